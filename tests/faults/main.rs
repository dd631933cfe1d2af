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
use std::sync::Arc;
use std::time::{Duration, Instant};

use clients::Phase;
use options::Options;
use report::Row;
use scenario::Scenario;
use settle::Outcome;
use stage::{Stage, Stages};
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use world::{Plan, World};

/// Scenarios at a time, most of them waiting for stragglers.
const RUNNING_MAX: usize = 6;
/// Of those that are under load, when all of them mostly wait. Any other one has the machine for itself.
const LIGHT_MAX: usize = 3;

fn main() -> ExitCode {
    let options = match Options::read() {
        Ok(options) => options,
        Err(mistake) => {
            eprintln!("{mistake}");
            return ExitCode::from(64);
        }
    };
    if options.sabotages {
        sabotage::SABOTAGES.iter().for_each(|one| println!("{} {}", one.name, one.caught_by));
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // What is dropped takes its processes with it.
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        tokio::select! {
            code = run(options) => code,
            _ = tokio::signal::ctrl_c() => ExitCode::from(130),
            _ = terminate.recv() => ExitCode::from(143),
        }
    })
}

struct Start {
    index: usize,
    stage: Arc<Stage>,
    scenario: Scenario,
    plan: Plan,
    number: usize,
}

/// A scenario that has been played through and has rested. `Err`: the suite itself could not go on.
struct Played {
    index: usize,
    scenario: Scenario,
    seed: u64,
    took: Duration,
    outcome: Result<Outcome, String>,
}

async fn whole(start: Start, permit: OwnedSemaphorePermit) -> Played {
    let Start { index, stage, scenario, plan, number } = start;
    let (seed, started) = (plan.seed, Instant::now());
    // A panic is one row's failure.
    let played = tokio::spawn(play(stage, scenario, plan, number)).await;
    let took = started.elapsed();
    drop(permit);
    let outcome = match played {
        Ok(world) => tokio::spawn(world.rest_and_judge()).await,
        Err(error) => Err(error),
    };
    Played { index, scenario, seed, took, outcome: outcome.map_err(|error| error.to_string()) }
}

/// What the finished scenarios add up to.
struct Results {
    rows: BTreeMap<usize, Row>,
    names: Vec<&'static str>,
    passed: usize,
    failed: Vec<String>,
}

impl Results {
    fn finish(&mut self, done: Result<Played, tokio::task::JoinError>, options: &Options) {
        let Played { index, scenario, seed, took, outcome } = done.expect("panics are caught inside");
        let good = match outcome {
            Ok(outcome) => {
                let row = self.rows.entry(index).or_insert_with(|| Row::new(&scenario));
                row.add(&outcome.verdict);
                if let Some(path) = &options.table {
                    let rows: Vec<_> = self.rows.values().cloned().collect();
                    report::write_table(path, &rows, &self.names);
                }
                tell(&scenario, seed, took, outcome)
            }
            Err(error) => {
                println!("FAILED {}: {error}", scenario.name);
                false
            }
        };
        match good {
            true => self.passed += 1,
            false => self.failed.push(format!("SEED={seed} ./test faults ={}", scenario.name)),
        }
    }
}

async fn run(options: Options) -> ExitCode {
    let mut scenarios: Vec<Scenario> = table::all();
    let names = scenarios.iter().map(|scenario| scenario.name).collect();
    scenarios.retain(|scenario| options.wants(scenario.name, scenario.quick));
    let mut results = Results { rows: BTreeMap::new(), names, passed: 0, failed: vec![] };
    // Those that mostly wait come last, several at a time.
    scenarios.sort_by_key(|scenario| scenario.light);
    let (mut stages, mut running, mut number) = (Stages::default(), JoinSet::new(), 0);
    let room = Arc::new(Semaphore::new(LIGHT_MAX));
    for (index, scenario) in scenarios.iter().enumerate() {
        for seed in &options.seeds {
            let weight = if scenario.light { 1 } else { LIGHT_MAX as u32 };
            let permit = loop {
                tokio::select! {
                    Some(done) = running.join_next(), if !running.is_empty() => results.finish(done, &options),
                    permit = room.clone().acquire_many_owned(weight), if running.len() < RUNNING_MAX => break permit,
                }
            };
            let stage = stages.take(scenario.stage, scenario.alone).await;
            if number == 0 {
                println!("RabbitMQ {}", stage.version().await);
            }
            let plan = options.plan(*seed, scenarios.len());
            running.spawn(whole(Start { index, stage, scenario: *scenario, plan, number }, permit.unwrap()));
            number += 1;
        }
    }
    while let Some(done) = running.join_next().await {
        results.finish(done, &options);
    }
    results.failed.iter().for_each(|replay| println!("again: {replay}"));
    println!("faults: {} passed, {} failed", results.passed, results.failed.len());
    match results.failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// From an empty stage to the beginning of the silence.
async fn play(stage: Arc<Stage>, scenario: Scenario, plan: Plan, number: usize) -> World {
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
