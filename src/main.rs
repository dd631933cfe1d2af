//! The `warren` command: reads the configuration, runs a node until it is told to stop.
//!
//! Exit codes: 0 = stopped as asked, 1 = could not start, 64 = the configuration or the command line is wrong, or
//! does not fit the cluster, 70 = a part of the node has failed (64 and 70 as in sysexits.h).

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{signal, Signal, SignalKind};
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;
use warren::bus::rabbit;
use warren::cli::{config_text, Cli, Command, TraceArgs};
use warren::config::{Config, LogFormat};
use warren::http::listener::raise_file_limit;
use warren::ids::AppKey;
use warren::migrate;
use warren::node::keys::KeyReload;
use warren::node::{Failure, Node};
use warren::output::Output;
use warren::trace;

const WRONG_USE: u8 = 64;
const CANNOT_START: u8 = 1;
const FAILED: u8 = 70;
/// For moving clients to other nodes when a part of this one has failed.
const FAILED_DRAIN_MAX: Duration = Duration::from_secs(5);
/// For ending what still runs, and for writing the last lines: a part that hangs must not keep the process.
const STOP_MAX: Duration = Duration::from_secs(2);
/// Open files beside the sockets of clients: the broker, listeners, the runtime.
const FILES_BESIDE_CLIENTS: u64 = 256;
const BUS_THREADS_MAX: usize = 2;

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command(),
        Err(help) => {
            // Help and version are no errors, and clap knows which stream is for what.
            let _ = help.print();
            return if help.use_stderr() { ExitCode::from(WRONG_USE) } else { ExitCode::SUCCESS };
        }
    };
    if command == Command::Config {
        return show(&config_text());
    }
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(mistakes) => return fail(WRONG_USE, &mistakes),
    };
    match command {
        Command::Token(args) => match args.mint(&config) {
            Ok(token) => show(&format!("{token}\n")),
            Err(error) => fail(WRONG_USE, &error),
        },
        Command::MigrateMailboxes => migrate_mailboxes(&config),
        Command::AppEcho(args) => app_echo(config, args.key),
        Command::Trace(args) => trace_message(&config, &args),
        Command::Serve | Command::Config => serve(config),
    }
}

/// For a person or a script at the other end of stdout, who may have read enough (`| head -1`).
fn show(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// Moves the mailboxes of version 1 whose names stand on the standard input.
fn migrate_mailboxes(config: &Config) -> ExitCode {
    let names: Vec<String> = std::io::stdin().lines().map_while(Result::ok).collect();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(CANNOT_START, &error),
    };
    match runtime.block_on(migrate::mailboxes(config, &names)) {
        Ok(summary) => {
            let shown = show(&format!("{summary}\n"));
            if summary.is_complete() {
                shown
            } else {
                ExitCode::from(CANNOT_START)
            }
        }
        Err(error) => fail(CANNOT_START, &error),
    }
}

/// Answers requests until it is told to stop.
fn app_echo(config: Config, key: AppKey) -> ExitCode {
    if config.standalone() {
        let why = "app-echo needs WARREN_AMQP_URL; a node without a broker answers app.echo itself";
        return fail(WRONG_USE, &why);
    }
    let started = Output::start("stderr", std::io::stderr())
        .and_then(|log| Ok((log, tokio::runtime::Builder::new_current_thread().enable_all().build()?)));
    let (log, runtime) = match started {
        Ok(started) => started,
        Err(error) => return fail(CANNOT_START, &error),
    };
    start_log(&config, log.clone());
    let stopped = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let settings = Node::rabbit_settings(&config);
        tokio::select! {
            () = rabbit::serve_echo(&settings, &key) => {}
            () = signals.stop(None) => {}
        }
        Ok::<_, std::io::Error>(())
    });
    log.flush(STOP_MAX);
    stopped.map_or_else(|error| fail(CANNOT_START, &error), |()| ExitCode::SUCCESS)
}

fn trace_message(config: &Config, args: &TraceArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(CANNOT_START, &error),
    };
    match runtime.block_on(trace::trace(config, &args.id, args.node)) {
        Ok(told) => show(&told),
        Err(error) => fail(CANNOT_START, &error),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{error}");
    ExitCode::from(code)
}

fn serve(config: Config) -> ExitCode {
    let outputs = Output::start("stderr", std::io::stderr())
        .and_then(|log| Ok((log, Output::start("stdout", std::io::stdout())?)));
    let (log, terminal) = match outputs {
        Ok(outputs) => outputs,
        Err(error) => return fail(CANNOT_START, &error),
    };
    start_log(&config, log.clone());
    // Sockets live on the workers' threads; these carry the bus and what is between them. One such thread keeps
    // up with several workers, and a second one on a small machine only makes them wake each other.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if cores > BUS_THREADS_MAX * 2 { BUS_THREADS_MAX } else { 1 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(run(config, &terminal));
            runtime.shutdown_timeout(STOP_MAX);
            ended
        }
        Err(error) => Err(error.to_string()),
    };
    for output in [&terminal, &log] {
        output.flush(STOP_MAX);
    }
    ended.unwrap_or_else(|error| {
        log.line(format!("{error}\n").into_bytes());
        log.flush(STOP_MAX);
        ExitCode::from(CANNOT_START)
    })
}

/// Everything that is logged, panics among it, goes through `log`: nothing else may wait for stderr.
fn start_log(config: &Config, log: Output) {
    let filter = EnvFilter::try_new(format!("{},{}", rabbit::QUIET, config.log)).unwrap_or_default();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log).log_internal_errors(false);
    match config.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or_default();
        // Its text may hold what came from outside, and is for the person who looks for the cause.
        tracing::error!(thread, location, "panic");
        let text = panic.payload();
        let text = text.downcast_ref::<&str>().copied().or(text.downcast_ref::<String>().map(String::as_str));
        tracing::debug!(text, "panic");
    }));
}

/// Raises the limit of open files, and says so if the configuration asks for more sockets than it allows.
fn raise_limits(config: &Config) {
    // One session of four may be over HTTP, and costs two more.
    let pairs = if config.sockjs_over_http { config.max_sessions as u64 / 2 } else { 0 };
    let needed = config.max_sessions as u64 + pairs + 6 * config.handshakes_max as u64 + FILES_BESIDE_CLIENTS;
    match raise_file_limit() {
        Ok(limit) if limit >= needed => {}
        Ok(limit) => tracing::warn!(
            limit,
            needed,
            "fewer files may be open than WARREN_MAX_SESSIONS and WARREN_HANDSHAKES_MAX need: raise `ulimit -n`"
        ),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

/// `false`: this build may be broken on purpose and must not serve anybody but the fault suite. See Cargo.toml.
fn may_serve(config: &Config) -> bool {
    if cfg!(feature = "sabotage") {
        tracing::error!("THIS BUILD LOSES OR REPEATS MESSAGES ON PURPOSE: for the fault suite alone");
    }
    !cfg!(feature = "sabotage") || config.listen.ip().is_loopback()
}

/// The signals that a node acts on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns when the process is to stop. SIGHUP has the keys of a node read again, also that of a terminal that is closed.
    async fn stop(&mut self, keys: Option<&KeyReload>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.quit.recv() => return,
                _ = self.hangup.recv() => keys.into_iter().for_each(KeyReload::now),
            }
        }
    }
}

async fn run(config: Config, terminal: &Output) -> Result<ExitCode, String> {
    if !may_serve(&config) {
        return Err("a sabotaged build listens on loopback only".into());
    }
    let mut signals = Signals::listen().map_err(|error| format!("cannot listen for signals: {error}"))?;
    raise_limits(&config);
    let (standalone, insecure) = (config.standalone(), config.insecure());
    let console = ConsolePlaces {
        is_public: config.console_is_public(),
        is_for_operators: config.console_is_for_operators(),
    };
    let mut node = Node::start(config).map_err(|error| error.to_string())?;
    terminal.line(greeting(&node, standalone, insecure, &console).into_bytes());
    #[cfg(debug_assertions)]
    if warren::config::test_panic() {
        node.tasks().spawn("test", async { std::panic::panic_any("asked for by a test") });
    }
    let failed = node.failed();
    let keys = node.keys().clone();
    tokio::select! {
        () = signals.stop(Some(&keys)) => {}
        () = node.drain_ordered() => {}
        failure = failed => {
            tracing::error!(%failure, "the node ends");
            return Ok(end_failed(node, &failure).await);
        }
    }
    tracing::info!("draining; a second signal hurries");
    node.drain(signals.stop(Some(&keys))).await;
    node.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Clients are sent elsewhere at once. Whatever hangs is left behind: it may be what has failed.
async fn end_failed(mut node: Node, failure: &Failure) -> ExitCode {
    let _ = timeout(FAILED_DRAIN_MAX, node.drain(std::future::ready(()))).await;
    let _ = timeout(STOP_MAX, node.stop()).await;
    ExitCode::from(match failure {
        Failure::Part { .. } => FAILED,
        Failure::Misplaced(_) => WRONG_USE,
    })
}

/// On which addresses the console is.
struct ConsolePlaces {
    is_public: bool,
    is_for_operators: bool,
}

/// What a person at a terminal wants to know first.
fn greeting(node: &Node, standalone: bool, insecure: bool, console: &ConsolePlaces) -> String {
    let (public, admin) = (node.public(), node.admin());
    let mut text = format!("warren {} as node {}\n", env!("CARGO_PKG_VERSION"), node.id());
    if standalone {
        text += "STANDALONE: no WARREN_AMQP_URL, so messages stay in this process and end with it.\n";
    }
    if insecure {
        text += "INSECURE: no key, so everybody is who they say they are and the API is open.\n";
    }
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "  sockets   ws://{public}/ws\n  API       http://{public}/v1/messages\n  \
         admin     http://{admin}/readyz  /livez  /metrics\n"
    );
    if console.is_public {
        let _ = write!(
            text,
            "  console   http://{public}/\n\
             Try it: open the console, or\n  websocat 'ws://{public}/ws?user=alice'\n  \
             curl http://{public}/v1/messages -d '{{\"to\":\"user.alice\",\"payload\":\"hello\"}}'\n"
        );
    } else if console.is_for_operators {
        let _ = writeln!(text, "  console   http://{admin}/");
    }
    if insecure && standalone {
        let _ = write!(
            text,
            "  or ask the built-in demo service:\n    curl http://{public}/v1/messages \\\n      \
             -d '{{\"to\":\"app.echo\",\"payload\":\"hello\",\"reply\":true}}'\n"
        );
    }
    text
}
