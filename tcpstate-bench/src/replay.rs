//! How fast views read a recording: a large one that is generated, always the same.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Result, bail};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};

use crate::{
    bench::Bench,
    child::Running,
    figures::{Figures, number},
    interrupt,
};

/// The view whose speed has a goal.
pub const CONNS: &str = "conns --from";

/// One view of one recording.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Connections that are open at a time, at most.
    pub connections: u64,
    pub events: u64,
    /// Before the file.
    pub command: &'static str,
    /// Events for each second of processor time, user's and system's.
    pub rate: Figures,
}

pub fn measure(bench: &Bench) -> Result<Vec<Replay>> {
    const ALL: [&str; 7] = [
        "info",
        "trace --from",
        CONNS,
        "closers --from",
        "hist --from",
        "timewait --from",
        "states --from",
    ];
    let (runs, few, many) = if bench.quick {
        (1, 100_000, 200_000)
    } else {
        (5, 5_000_000, 20_000_000)
    };
    let mut rows = Vec::new();
    for (connections, events, commands) in [
        (1000, few, &ALL[..]),
        (1_000_000, few, &ALL[..]),
        (1_000_000, many, &[CONNS]),
    ] {
        let file = generate(bench, connections, events)?;
        for command in commands {
            let mut rate = Figures::default();
            for _ in 0..runs {
                rate.push(number(events) / seconds(&mut view(bench, command, &file))?);
            }
            let million = rate.median().unwrap_or_default() / 1e6;
            bench.say(&format!(
                "replay: {command}, {events} events of {connections} connections: {million:.1} million a second"
            ));
            rows.push(Replay {
                connections,
                events,
                command,
                rate,
            });
        }
        std::fs::remove_file(file)?;
    }
    Ok(rows)
}

fn generate(bench: &Bench, connections: u64, events: u64) -> Result<PathBuf> {
    let file = bench.folder.path().join("generated.tcps");
    let mut generate = Command::new(&bench.generate);
    generate.arg(&file);
    generate.args(["--connections", &connections.to_string()]);
    generate.args(["--events", &events.to_string()]);
    seconds(&mut generate)?;
    Ok(file)
}

fn view(bench: &Bench, command: &str, file: &Path) -> Command {
    let mut view = Command::new(&bench.tcpstate);
    view.args(command.split(' ')).arg(file);
    view
}

/// How much processor time it takes, without its output; ten minutes at most.
fn seconds(command: &mut Command) -> Result<f64> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let before = of_children()?;
    let mut process = Running::start(command)?;
    for _ in 0..60_000 {
        match process.ended() {
            Some(status) if status.success() => return Ok(of_children()? - before),
            Some(status) => bail!("{name}: {status}"),
            None => interrupt::pause(Duration::from_millis(10))?,
        }
    }
    bail!("{name} took more than ten minutes")
}

/// Seconds of processor time that our children took which have ended.
fn of_children() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = usage.user_time() + usage.system_time();
    Ok(number(u64::try_from(time.num_microseconds())?) / 1e6)
}
