//! A load tool for a running gateway: many sockets, floods for everyone, messages for one.
//!
//! ```sh
//! cargo run --release --example swarm -- idle --connections 10000 --pid "$(pidof warren)"
//! ```
//!
//! It measures what a noisy machine cannot spoil: the node's processor time and memory as Linux counts them, and
//! ratios to what bare `write(2)` costs in the same run. `benches/README.md` says how to read the numbers.

#[path = "swarm/client.rs"]
mod client;
#[path = "swarm/crowd.rs"]
mod crowd;
#[path = "swarm/direct.rs"]
mod direct;
#[path = "swarm/fanout.rs"]
mod fanout;
#[path = "swarm/floor.rs"]
mod floor;
#[path = "swarm/frames.rs"]
mod frames;
#[path = "swarm/idle.rs"]
mod idle;
#[path = "swarm/process.rs"]
mod process;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use client::Door;

#[derive(Debug, Parser)]
#[command(name = "swarm", about = "Loads a gateway and says what that costs it")]
struct Cli {
    /// The secret of the node's HS256 tokens [env: WARREN_JWT_SECRET]; without it the node must be insecure
    #[arg(long, global = true)]
    jwt_secret: Option<String>,
    #[command(subcommand)]
    load: Load,
}

#[derive(Debug, Subcommand)]
enum Load {
    /// Sockets that do nothing: connects per second, memory of each
    Idle(idle::Idle),
    /// All sockets are cut and come back at once
    Storm(idle::Storm),
    /// Messages for everyone: processor time of a delivery, next to that of a bare write
    Fanout(fanout::Fanout),
    /// Messages from users of one node to users of another: latency at a fixed rate
    Direct(direct::Direct),
    /// Writes to its own sockets: the floor
    #[command(hide = true)]
    Write(floor::Write),
    /// Reads whatever comes: the other end of the floor
    #[command(hide = true)]
    Drain(floor::Drain),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.to_string()),
    };
    let secret = cli.jwt_secret.or_else(secret_of_node);
    let door = |url: &str| Door::new(url, secret.clone());
    let done = runtime.block_on(async {
        match cli.load {
            Load::Idle(load) => load.run(&load.at.door(secret.clone())?).await,
            Load::Storm(load) => load.run(&load.at.door(secret.clone())?).await,
            Load::Fanout(load) => load.run(&load.at.door(secret.clone())?).await,
            Load::Direct(load) => load.run(&door(&load.from)?, &door(&load.to)?).await,
            Load::Write(load) => load.run().map_err(|error| error.to_string()),
            Load::Drain(load) => load.run().await.map_err(|error| error.to_string()),
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// So that node and tool can be started from one shell.
#[allow(clippy::disallowed_methods)]
fn secret_of_node() -> Option<String> {
    std::env::var("WARREN_JWT_SECRET").ok().filter(|secret| !secret.is_empty())
}

fn fail(error: &str) -> ExitCode {
    eprintln!("{error}");
    ExitCode::FAILURE
}
