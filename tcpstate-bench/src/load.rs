//! The load, one run of it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{ChildStdin, Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::{ValueEnum as _, builder::PossibleValue};
use tcpstate_bench::{Churned, Link, Mode};

use crate::{child::Running, interrupt};

/// How to load the machine.
pub struct Load {
    pub churn: PathBuf,
    pub seconds: f64,
    pub warm_up: f64,
    pub mode: Mode,
    pub link: Link,
}

/// A load that is over; what is left of it in the kernel stays as long as this lives.
pub struct Held {
    pub churned: Churned,
    process: Running,
    release: Option<ChildStdin>,
}

impl Load {
    /// As it would be typed.
    pub fn shown(&self) -> String {
        format!("churn {}", self.arguments().join(" "))
    }

    fn arguments(&self) -> Vec<String> {
        let name = |value: Option<PossibleValue>| {
            value.map_or_else(String::new, |value| value.get_name().to_owned())
        };
        vec![
            format!("--mode={}", name(self.mode.to_possible_value())),
            format!("--link={}", name(self.link.to_possible_value())),
            format!("--seconds={}", self.seconds),
            format!("--warm-up={}", self.warm_up),
        ]
    }

    /// Runs it to its end; its TIME_WAITs are still there.
    pub fn run(&self) -> Result<Held> {
        let mut churn = Command::new(&self.churn);
        churn.args(self.arguments());
        let limit = Duration::from_secs_f64(self.seconds + self.warm_up + 40.0);
        let (line, process, release) = answer(churn.arg("--hold"), limit)?;
        let churned = serde_json::from_str(&line)
            .with_context(|| format!("churn says what it should not: {line}"))?;
        Ok(Held {
            churned,
            process,
            release: Some(release),
        })
    }

    /// Keeps sockets that do nothing, until it is dropped; two for a connection.
    pub fn existing(&self, sockets: u32, time_waits: u32) -> Result<(Running, ChildStdin)> {
        let mut churn = Command::new(&self.churn);
        churn.arg(format!("--existing={sockets},{time_waits}"));
        let (_, process, release) = answer(&mut churn, Duration::from_secs(120))?;
        Ok((process, release))
    }
}

/// Starts it, and reads the line that it prints.
fn answer(command: &mut Command, limit: Duration) -> Result<(String, Running, ChildStdin)> {
    let mut process = Running::start(
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit()),
    )?;
    let child = process.child();
    let release = child.stdin.take().context("no pipe")?;
    let output = child.stdout.take().context("no pipe")?;
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line);
        // Nobody waits any more after Ctrl-C.
        let _ = sender.send(read.map(|_| line));
    });
    let end = Instant::now() + limit;
    loop {
        interrupt::check()?;
        match receiver.recv_timeout(Duration::from_millis(20)) {
            Ok(line) => {
                let line = line.context("churn cannot be heard")?;
                if line.is_empty() {
                    bail!("churn failed: see its message above");
                }
                return Ok((line, process, release));
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
            Err(_) => bail!("churn does not come to an end"),
        }
    }
}

impl Held {
    /// Lets the network namespace go, and waits until its TIME_WAITs have gone: the kernel's work on them must not fall into the next run.
    pub fn release(mut self) -> Result<()> {
        drop(self.release.take());
        self.process.wait(Duration::from_secs(10));
        settled()
    }
}

/// Waits until hardly a minisocket is left, at most ten seconds; other namespaces may have some.
pub fn settled() -> Result<()> {
    let mut least = u64::MAX;
    let mut still = 0;
    for _ in 0..200 {
        interrupt::pause(Duration::from_millis(50))?;
        let Some(count) = minisockets() else {
            return interrupt::pause(Duration::from_millis(700));
        };
        still = if count < least { 0 } else { still + 1 };
        least = least.min(count);
        // The kernel may take its time before it begins (cleanup_net).
        if count < 1000 || still >= 60 {
            break;
        }
    }
    Ok(())
}

/// How many the kernel has allocated, about; only root may read it.
fn minisockets() -> Option<u64> {
    let slabs = fs::read_to_string("/proc/slabinfo").ok()?;
    let line = slabs
        .lines()
        .find(|line| line.starts_with("tw_sock_TCP "))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}
