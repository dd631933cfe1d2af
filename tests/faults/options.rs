//! What a run is asked for: by arguments, and by SEED, MINUTES, ROUTING and PARTITIONS.

use std::path::PathBuf;

use crate::world::Plan;

const SHORT: usize = 2_000;
const LONG: usize = 100_000;

pub struct Options {
    names: Vec<String>,
    all: bool,
    pub seeds: Vec<u64>,
    minutes: Option<f64>,
    pub table: Option<PathBuf>,
    /// Prints the sabotages instead, one to a line: its name and the row that must show it.
    pub sabotages: bool,
    mails: Option<u32>,
    partitions: Option<u16>,
    /// What the nodes break on purpose.
    sabotage: String,
    /// `WARREN_ROUTING` of all nodes; empty = what they do without it.
    routing: String,
    binary: PathBuf,
}

#[allow(clippy::disallowed_methods)] // The tests have no configuration file; a person speaks through these.
fn environment<T: std::str::FromStr>(name: &str) -> Result<Option<T>, String> {
    match std::env::var(name) {
        Ok(text) => text.parse().map(Some).map_err(|_| format!("{name}: not understood: {text}")),
        Err(_) => Ok(None),
    }
}

impl Options {
    pub fn read() -> Result<Self, String> {
        let seed = environment("SEED")?;
        let mut options = Self {
            names: vec![],
            all: false,
            seeds: vec![seed.unwrap_or(1)],
            minutes: environment("MINUTES")?,
            table: None,
            sabotages: false,
            mails: None,
            partitions: environment("PARTITIONS")?,
            sabotage: String::new(),
            routing: environment("ROUTING")?.unwrap_or_default(),
            binary: env!("CARGO_BIN_EXE_warren").into(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument}: what?"));
            match argument.as_str() {
                "--all" => options.all = true,
                "--table" => options.table = Some(value()?.into()),
                "--sabotages" => options.sabotages = true,
                "--mails" => {
                    options.mails = Some(value()?.parse().map_err(|_| "--mails: how many?")?);
                }
                "--sabotage" => options.sabotage = value()?,
                "--routing" => options.routing = value()?,
                "--binary" => options.binary = value()?.into(),
                "--seeds" => {
                    let seeds: Result<_, _> = value()?.split(',').map(str::parse).collect();
                    options.seeds = seeds.map_err(|_| "--seeds: numbers with commas between")?;
                }
                // What is meant for the usual harness is none of this one's business.
                flag if flag.starts_with('-') => {}
                name => options.names.push(name.to_owned()),
            }
        }
        Ok(options)
    }

    pub fn wants(&self, name: &str, quick: bool) -> bool {
        match self.names.is_empty() {
            true => self.all || quick,
            // `=name`: that row alone.
            false => self.names.iter().any(|wanted| match wanted.strip_prefix('=') {
                Some(wanted) => name == wanted,
                None => name.contains(wanted.as_str()),
            }),
        }
    }

    pub fn plan(&self, seed: u64, scenarios: usize) -> Plan {
        let seconds = self.minutes.map(|minutes| minutes * 60.0 / scenarios.max(1) as f64);
        Plan {
            seed,
            messages: if seconds.is_some() { LONG } else { SHORT },
            // A little more than it takes, for the time that faults cost.
            rate: seconds.map(|seconds| (1.2 * LONG as f64 / seconds).clamp(600.0, 3_000.0) as u32),
            long: seconds.is_some(),
            mails: self.mails,
            partitions: self.partitions,
            sabotage: self.sabotage.clone(),
            routing: self.routing.clone(),
            binary: self.binary.clone(),
        }
    }
}
