//! The `warren` command: reads the configuration, runs a node until it is told to stop.
//!
//! Exit codes: 0 = stopped as asked, 1 = could not start or go on, 64 = the configuration or the command line is wrong.

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{signal, Signal, SignalKind};
use tracing_subscriber::EnvFilter;
use warren::bus::rabbit;
use warren::cli::{config_text, Cli, Command};
use warren::config::{raise_thread_stack, Config, LogFormat};
use warren::lifecycle::Phase;
use warren::node::Node;

const WRONG_USE: u8 = 64;
const CANNOT_START: u8 = 1;
const BUS_THREADS_MAX: usize = 2;

fn main() -> ExitCode {
    // Before any thread exists: see there.
    raise_thread_stack();
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command(),
        Err(help) => {
            // Help and version are no errors, and clap knows which stream is for what.
            let _ = help.print();
            return if help.use_stderr() { ExitCode::from(WRONG_USE) } else { ExitCode::SUCCESS };
        }
    };
    if command == Command::Config {
        print!("{}", config_text());
        return ExitCode::SUCCESS;
    }
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(mistakes) => return fail(WRONG_USE, &mistakes),
    };
    match command {
        Command::Token(args) => match args.mint(&config) {
            Ok(token) => {
                println!("{token}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(WRONG_USE, &error),
        },
        Command::Serve | Command::Config => serve(config),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(code)
}

fn serve(config: Config) -> ExitCode {
    let filter = EnvFilter::try_new(format!("{},{}", rabbit::QUIET, config.log)).unwrap_or_default();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    // Sockets live on the workers' threads; these carry the bus and what is between them. One such thread keeps
    // up with several workers, and a second one on a small machine only makes them wake each other.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if cores > BUS_THREADS_MAX * 2 { BUS_THREADS_MAX } else { 1 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(config)),
        Err(error) => fail(CANNOT_START, &error),
    }
}

/// `false`: this build may be broken on purpose and must not serve anybody but the fault suite. See Cargo.toml.
fn may_serve(config: &Config) -> bool {
    if cfg!(feature = "sabotage") {
        tracing::error!("THIS BUILD LOSES OR REPEATS MESSAGES ON PURPOSE: for the fault suite alone");
    }
    !cfg!(feature = "sabotage") || config.listen.ip().is_loopback()
}

async fn run(config: Config) -> ExitCode {
    if !may_serve(&config) {
        return fail(CANNOT_START, &"a sabotaged build listens on loopback only");
    }
    let (Ok(mut term), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return fail(CANNOT_START, &"cannot listen for signals");
    };
    let (standalone, insecure) = (config.standalone(), config.insecure());
    let mut node = match Node::start(config) {
        Ok(node) => node,
        Err(error) => return fail(CANNOT_START, &error),
    };
    greet(&node, standalone, insecure);
    let lifecycle = node.lifecycle().clone();
    tokio::select! {
        () = either(&mut term, &mut interrupt) => {}
        () = lifecycle.reached(Phase::Stopped) => {
            tracing::error!("a worker thread has ended");
            return ExitCode::from(CANNOT_START);
        }
    }
    tracing::info!("draining; a second signal hurries");
    node.drain(either(&mut term, &mut interrupt)).await;
    node.stop().await;
    ExitCode::SUCCESS
}

async fn either(term: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// What a person at a terminal wants to know first.
fn greet(node: &Node, standalone: bool, insecure: bool) {
    let (public, admin) = (node.public(), node.admin());
    println!("warren {} as node {}", env!("CARGO_PKG_VERSION"), node.id());
    if standalone {
        println!("STANDALONE: no WARREN_AMQP_URL, so messages stay in this process and end with it.");
    }
    if insecure {
        println!("INSECURE: no key, so everybody is who they say they are and the API is open.");
    }
    println!("  sockets   ws://{public}/ws");
    println!("  API       http://{public}/v1/messages");
    println!("  admin     http://{admin}/readyz  /livez  /metrics");
    if insecure {
        println!("Try it:");
        println!("  websocat 'ws://{public}/ws?user=alice'");
        println!("  or open http://{public}/livez and in the browser's console:");
        println!(
            "    s = new WebSocket('ws://{public}/ws?user=alice'); s.onmessage = m => console.log(m.data)"
        );
        println!("  then:");
        println!("    curl http://{public}/v1/messages -d '{{\"to\":\"user.alice\",\"payload\":\"hello\"}}'");
    }
}
