//! The fault suite: real nodes, a real broker, real clients; what is lost, doubled or untrue is counted.
//!
//! `./test faults [names]` runs all faults or those whose name has one of the names; SEED and MINUTES make it
//! another or a long run. Each fault is one row of [`table`]. After each one comes a silence that is longer than
//! every timeout in play; the next one runs meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test that cannot go on has failed.

mod backend;
#[path = "../support/broker.rs"]
mod broker;
mod checker;
mod clients;
#[path = "../support/eventually.rs"]
mod eventually;
mod inject;
mod line;
mod nodes;
mod options;
mod publishers;
#[path = "../support/raw_amqp.rs"]
mod raw_amqp;
mod record;
#[path = "../support/relay.rs"]
mod relay;
mod report;
mod sabotage;
mod scenario;
mod settle;
mod stage;
mod table;
mod world;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clients::Phase;
use options::Options;
use report::Row;
use scenario::Scenario;
use settle::Outcome;
use stage::{Stage, Stages};
use tokio::task::JoinSet;
use world::{Plan, World};

/// Scenarios that wait for stragglers at a time.
const RESTING_MAX: usize = 4;

fn main() -> ExitCode {
    let options = match Options::read() {
        Ok(options) => options,
        Err(mistake) => {
            eprintln!("{mistake}");
            return ExitCode::from(64);
        }
    };
    if options.sabotages {
        sabotage::SABOTAGES.iter().for_each(|one| println!("{} {}", one.feature, one.caught_by));
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(options))
}

/// A scenario that was played through, and what came of it once it has rested.
struct Played {
    index: usize,
    scenario: Scenario,
    seed: u64,
    took: Duration,
    outcome: Outcome,
}

/// What the finished scenarios add up to.
struct Results {
    rows: BTreeMap<usize, Row>,
    names: Vec<&'static str>,
    passed: usize,
    failed: Vec<String>,
}

impl Results {
    fn fail(&mut self, scenario: &Scenario, seed: u64) {
        self.failed.push(format!("SEED={seed} ./test faults {}", scenario.name));
    }

    fn add(&mut self, played: Played, options: &Options) {
        let Played { index, scenario, seed, .. } = played;
        let row = self.rows.entry(index).or_insert_with(|| Row::new(&scenario));
        row.add(&played.outcome.verdict);
        if let Some(path) = &options.table {
            let rows: Vec<_> = self.rows.values().cloned().collect();
            report::write_table(path, &rows, &self.names);
        }
        match tell(&scenario, seed, played.took, played.outcome) {
            true => self.passed += 1,
            false => self.fail(&scenario, seed),
        }
    }
}

async fn run(options: Options) -> ExitCode {
    let mut scenarios: Vec<Scenario> = table::all();
    let names = scenarios.iter().map(|scenario| scenario.name).collect();
    scenarios.retain(|scenario| options.wants(scenario.name, scenario.quick));
    let mut results = Results { rows: BTreeMap::new(), names, passed: 0, failed: vec![] };
    let (mut stages, mut resting, mut number) = (Stages::default(), JoinSet::new(), 0);
    for (index, scenario) in scenarios.iter().enumerate() {
        for seed in &options.seeds {
            while resting.len() >= RESTING_MAX {
                finish(&mut resting, &mut results, &options).await;
            }
            let (stage, plan) =
                (stages.take(scenario.stage, scenario.alone).await, options.plan(*seed, scenarios.len()));
            if number == 0 {
                println!("RabbitMQ {}", stage.version().await);
            }
            let started = Instant::now();
            // A panic is one row's failure.
            let playing = tokio::spawn(play(stage, *scenario, plan, number));
            number += 1;
            let (scenario, seed) = (*scenario, *seed);
            match playing.await {
                Ok(world) => {
                    let took = started.elapsed();
                    resting.spawn(async move {
                        let outcome = world.rest_and_judge().await;
                        Played { index, scenario, seed, took, outcome }
                    });
                }
                Err(error) => {
                    println!("FAILED {}: {error}", scenario.name);
                    results.fail(&scenario, seed);
                }
            }
        }
    }
    while !resting.is_empty() {
        finish(&mut resting, &mut results, &options).await;
    }
    results.failed.iter().for_each(|replay| println!("again: {replay}"));
    println!("faults: {} passed, {} failed", results.passed, results.failed.len());
    match results.failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

async fn finish(resting: &mut JoinSet<Played>, results: &mut Results, options: &Options) {
    match resting.join_next().await {
        Some(Ok(played)) => results.add(played, options),
        Some(Err(error)) => {
            println!("FAILED while it rested: {error}");
            results.failed.push(error.to_string());
        }
        None => {}
    }
}

/// From an empty stage to the beginning of the silence.
async fn play(stage: std::sync::Arc<Stage>, scenario: Scenario, plan: Plan, number: usize) -> World {
    let mut world = World::build(stage, &scenario, &plan, number).await;
    world.connect().await;
    world.publish();
    // Before the first fault and after each, things are well for a while; for longer where that is compared.
    let calm = (plan.messages / 8).clamp(300, 3_000);
    let first = if scenario.compares { 3 * calm } else { calm };
    world.flow(first).await;
    world.begin(Phase::Act);
    loop {
        (scenario.inject)(&mut world).await;
        world.flow(world.recorder.sent_count() + calm).await;
        if world.recorder.sent_count() >= plan.messages {
            break;
        }
        if !plan.long {
            world.flow(plan.messages).await;
            break;
        }
    }
    world.calm_down(calm).await;
    world
}

/// Prints what came of it; `true` if all is well.
fn tell(scenario: &Scenario, seed: u64, took: Duration, outcome: Outcome) -> bool {
    let verdict = &outcome.verdict;
    let good = verdict.holds() && outcome.troubles.is_empty();
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
