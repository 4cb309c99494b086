//! How much of the load a tool has seen, counted in what it wrote.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use tcpstate_bench::Mode;

use crate::{bench::Bench, child::Running, interrupt, subject::Seen};

/// What a connection of the load is, in these units. Both its ends are here.
pub const fn of_a_connection(seen: Seen, mode: Mode) -> u64 {
    match seen {
        Seen::Transitions | Seen::Counts | Seen::Recording | Seen::Perf => mode.transitions(),
        Seen::Ends | Seen::Closes | Seen::Established => 2,
        Seen::Births => mode.time_waits(),
        Seen::Nothing => 0,
    }
}

/// Counts. None if the tool does not tell.
pub fn seen(bench: &Bench, seen: Seen, output: &Path) -> Result<Option<u64>> {
    let ours = bench.load.link.prefix();
    let is_transition = |line: &str| is_transition(line, ours);
    let count = match seen {
        Seen::Nothing => return Ok(None),
        Seen::Transitions => lines(output, is_transition)?,
        Seen::Ends => lines(output, |line| line.contains(ours))?,
        Seen::Closes => report(output, "total", None, "closes")?,
        Seen::Births => report(output, "total", None, "born")?,
        Seen::Established => report(output, "group", Some("established"), "count")?,
        Seen::Counts => counts(output)?,
        Seen::Recording => {
            let mut replay = Command::new(&bench.tcpstate);
            let told = output.with_extension("told");
            replay.args(["trace", "-j", "--from"]).arg(output);
            tell(&mut replay, &told)?;
            lines(&told, is_transition)?
        }
        Seen::Perf => {
            let mut script = Command::new("perf");
            let told = output.with_extension("told");
            script.args(["script", "-F", "trace", "-i"]).arg(output);
            tell(&mut script, &told)?;
            lines(&told, is_transition)?
        }
    };
    Ok(Some(count))
}

/// One that is on the tracepoint. What a minisocket does is not: the end of its TIME_WAIT, and its wait for the peer's FIN, which the
/// load has only there; the TIME_WAIT that follows stands for FIN_WAIT2 -> CLOSE.
fn is_transition(line: &str, ours: &str) -> bool {
    const MINISOCKETS: [&str; 4] = [
        "TIME_WAIT -> CLOSE",
        "FIN_WAIT2 -> FIN_WAIT2",
        "\"old\":\"time_wait\"",
        "\"old\":\"fin_wait2\",\"new\":\"fin_wait2\"",
    ];
    line.contains(ours)
        && !MINISOCKETS
            .iter()
            .any(|minisocket| line.contains(minisocket))
}

fn lines(path: &Path, counts: impl Fn(&str) -> bool) -> Result<u64> {
    let mut reader = open(path)?;
    let mut line = Vec::new();
    let mut count = 0;
    while {
        line.clear();
        reader.read_until(b'\n', &mut line)? > 0
    } {
        count += u64::from(counts(&String::from_utf8_lossy(&line)));
    }
    Ok(count)
}

/// Sums up a column of the reports of a view.
fn report(path: &Path, row: &str, state: Option<&str>, column: &str) -> Result<u64> {
    let mut sum = 0;
    for line in open(path)?.lines() {
        let report: Value = serde_json::from_str(&line?).context("a line is not JSON")?;
        for each in report["rows"].as_array().into_iter().flatten() {
            if each["row"] == row && state.is_none_or(|state| each["state"] == state) {
                sum += each[column].as_u64().unwrap_or(0);
            }
        }
    }
    Ok(sum)
}

/// `@[7, 8]: 123`
fn counts(path: &Path) -> Result<u64> {
    let mut sum = 0;
    for line in open(path)?.lines() {
        let line = line?;
        // LISTEN is 10: what becomes of listeners is not of a connection; their children come from it.
        let listener = line.starts_with("@[7, 10]") || line.starts_with("@[10, 7]");
        if line.starts_with("@[") && !listener {
            let count = line
                .rsplit_once(": ")
                .and_then(|(_, count)| count.parse().ok());
            sum += count.unwrap_or(0_u64);
        }
    }
    Ok(sum)
}

fn open(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    Ok(BufReader::new(file))
}

/// Runs it with its output in a file, two minutes at most.
fn tell(command: &mut Command, file: &Path) -> Result<()> {
    command
        .stdin(Stdio::null())
        .stdout(File::create(file)?)
        .stderr(Stdio::null());
    let mut process = Running::start(command)?;
    for _ in 0..2400 {
        if process.ended().is_some() {
            return Ok(());
        }
        interrupt::pause(std::time::Duration::from_millis(50))?;
    }
    bail!("its output could not be counted within two minutes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_minisocket_does_is_no_transition_of_the_tracepoint() {
        let counts = |end: &str| {
            let text = format!("   0.002  127.0.0.1:50852 127.1.0.0:5000  {end} 12565 churn");
            is_transition(&text, "127.1.")
        };
        assert!(counts("FIN_WAIT2 -> TIME_WAIT"));
        assert!(counts("LAST_ACK -> CLOSE"));
        assert!(!counts("TIME_WAIT -> CLOSE namespace_gone"));
        assert!(!counts("FIN_WAIT2 -> FIN_WAIT2 mini"));
        let listener = "  - *:5000  *  CLOSE -> LISTEN  12565 churn";
        assert!(!is_transition(listener, "127.1."));
        let json = |old: &str, new: &str| {
            let text = format!(
                r#"{{"laddr":"127.0.0.1","raddr":"127.1.3.9","old":"{old}","new":"{new}"}}"#
            );
            is_transition(&text, "127.1.")
        };
        assert!(json("fin_wait2", "time_wait"));
        assert!(!json("time_wait", "close"));
        assert!(!json("fin_wait2", "fin_wait2"));
    }
}
