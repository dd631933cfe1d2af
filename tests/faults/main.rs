//! The fault suite: real nodes, a real broker, real clients; what is lost, doubled or untrue is counted.
//!
//! `./test faults [names]` runs all faults or those whose name has one of the names; SEED and MINUTES make it
//! another or a long run. Each fault is one row of [`scenario`].

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test that cannot go on has failed.

mod backend;
#[path = "../support/broker.rs"]
mod broker;
mod checker;
mod clients;
#[path = "../support/eventually.rs"]
mod eventually;
mod inject;
mod nodes;
mod options;
mod publishers;
mod record;
#[path = "../support/relay.rs"]
mod relay;
mod report;
mod scenario;
mod stage;
mod world;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use options::Options;
use report::Row;
use scenario::Scenario;
use stage::Stage;
use world::{Outcome, Plan, World};

fn main() -> ExitCode {
    let options = match Options::read() {
        Ok(options) => options,
        Err(mistake) => {
            eprintln!("{mistake}");
            return ExitCode::from(64);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(options))
}

async fn run(options: Options) -> ExitCode {
    let mut scenarios: Vec<Scenario> = scenario::all();
    let names: Vec<_> = scenarios.iter().map(|scenario| scenario.name).collect();
    scenarios.retain(|scenario| options.wants(scenario.name, scenario.quick));
    // Those that share brokers follow each other.
    scenarios.sort_by_key(|scenario| scenario.stage);
    let (mut passed, mut failed, mut number) = (0, vec![], 0);
    let mut rows: BTreeMap<usize, Row> = BTreeMap::new();
    let mut stage: Option<Stage> = None;
    for (index, scenario) in scenarios.iter().enumerate() {
        for seed in &options.seeds {
            if stage.as_ref().is_none_or(|stage| stage.kind != scenario.stage) {
                drop(stage.take());
                stage = Some(Stage::set(scenario.stage).await);
            }
            let plan = options.plan(*seed, scenarios.len());
            let started = Instant::now();
            let playing = tokio::spawn(play(stage.take().unwrap(), scenario.name, plan, number));
            number += 1;
            let row = rows.entry(index).or_insert(Row {
                name: scenario.name,
                about: scenario.about,
                ..Row::default()
            });
            let good = match playing.await {
                Ok((back, outcome)) => {
                    stage = Some(back);
                    row.add(*seed, &outcome.verdict);
                    tell(scenario, *seed, started.elapsed(), outcome)
                }
                Err(error) => {
                    println!("FAILED {}: {error}", scenario.name);
                    false
                }
            };
            match good {
                true => passed += 1,
                false => failed.push(format!("SEED={seed} ./test faults {}", scenario.name)),
            }
        }
        if let Some(path) = &options.table {
            let rows: Vec<_> = rows.values().cloned().collect();
            report::write_table(path, &rows, &names);
        }
    }
    failed.iter().for_each(|replay| println!("again: {replay}"));
    println!("faults: {passed} passed, {} failed", failed.len());
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// From an empty stage to an empty stage.
async fn play(stage: Stage, name: &'static str, plan: Plan, number: usize) -> (Stage, Outcome) {
    let scenario = scenario::all().into_iter().find(|scenario| scenario.name == name).unwrap();
    let mut world = World::build(stage, &scenario, &plan, number).await;
    world.connect(&scenario, plan.seed).await;
    world.publish(&scenario, &plan);
    let mut troubles = vec![];
    // Before the first fault and after each, things are well for a while.
    let calm = (plan.messages / 8).clamp(300, 3_000);
    loop {
        world.flow(world.recorder.sent_count() + calm).await;
        (scenario.inject)(&mut world).await;
        world.flow(world.recorder.sent_count() + calm).await;
        if world.recorder.sent_count() >= plan.messages {
            break;
        }
        if !plan.repeats {
            world.flow(plan.messages).await;
            break;
        }
    }
    world.calm_down(&mut troubles).await;
    world.judge(troubles).await
}

/// Prints what came of it; `true` if all is well.
fn tell(scenario: &Scenario, seed: u64, took: Duration, mut outcome: Outcome) -> bool {
    let verdict = &outcome.verdict;
    if let Some(ms) = verdict.recovery(99).filter(|ms| *ms > scenario.recovers_ms) {
        outcome.troubles.push(format!("recovery took {ms} ms, more than {} ms", scenario.recovers_ms));
    }
    let good = verdict.holds(scenario.ordered) && outcome.troubles.is_empty();
    let word = if good { "ok    " } else { "FAILED" };
    println!("{word} {:<22} {} ({} s)", scenario.name, report::line(verdict), took.as_secs());
    if !good {
        println!("  seed {seed}; closes by code: {:?}", outcome.closes);
        outcome.troubles.iter().for_each(|trouble| println!("  {trouble}"));
        outcome.timeline.iter().for_each(|line| println!("  {line}"));
        println!("  the nodes' logs are in {}", outcome.folder.keep().display());
    }
    good
}
