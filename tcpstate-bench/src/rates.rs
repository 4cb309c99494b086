//! The connection rate with a tool, of that without: A B A B ... A, each B compared with the two As beside it.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use tcpstate_bench::Churned;

use crate::{
    bench::Bench,
    figures::{Figures, number},
    interrupt,
    subject::Subject,
    tool::{Output, Tool, Usage},
};

/// What came out for one subject.
#[derive(Clone, Debug, Default)]
pub struct Rate {
    /// Of the connection rate without.
    pub ratio: Figures,
    /// Connections a second.
    pub with: Figures,
    /// The 99th percentile of a connection, in microseconds.
    pub p99: Figures,
    /// Seconds of user time for a million transitions of the load.
    pub user: Figures,
    /// Seconds of system time of the tool itself for as many.
    pub system: Figures,
    /// The most memory it had, in bytes.
    pub peak: Figures,
    /// Why it was not measured.
    pub failed: Option<String>,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Rates {
    /// In the order of the subjects.
    pub rows: Vec<Rate>,
    /// Connections a second without any tool.
    pub without: Figures,
    /// The 99th percentile of a connection without any tool, in microseconds.
    pub p99: Figures,
    /// CPU seconds of the load itself for each second, without any tool.
    pub cpu: Figures,
    /// What went wrong in the load.
    pub errors: BTreeMap<String, u64>,
}

pub fn measure(bench: &Bench, subjects: &[Subject]) -> Result<Rates> {
    let mut rates = Rates {
        rows: vec![Rate::default(); subjects.len()],
        ..Rates::default()
    };
    let mut before = without(bench, &mut rates)?;
    for pair in 1..=bench.pairs {
        for (row, subject) in subjects.iter().enumerate() {
            if rates.rows[row].failed.is_some() {
                continue;
            }
            match with(bench, subject) {
                Ok((churned, used)) => {
                    let after = without(bench, &mut rates)?;
                    let ratio = churned.per_second / f64::midpoint(before, after);
                    bench.say(&format!(
                        "rates, pair {pair} of {}: {} {ratio:.2}",
                        bench.pairs, subject.name
                    ));
                    let transitions = churned.connections_all * bench.load.mode.transitions();
                    rates.rows[row].add(&churned, transitions, used, ratio);
                    rates.note_errors(&churned);
                    before = after;
                }
                Err(error) => {
                    interrupt::check()?;
                    let reason = format!("{error:#}");
                    bench.say(&format!("rates: {} not measured: {reason}", subject.name));
                    rates.rows[row].failed = Some(reason);
                }
            }
        }
    }
    Ok(rates)
}

impl Rates {
    fn note_errors(&mut self, churned: &Churned) {
        for (what, count) in &churned.errors {
            *self.errors.entry(what.clone()).or_default() += count;
        }
    }
}

impl Rate {
    fn add(&mut self, churned: &Churned, transitions: u64, used: Usage, ratio: f64) {
        let millions = number(transitions) / 1e6;
        self.ratio.push(ratio);
        self.with.push(churned.per_second);
        self.p99.push(number(churned.latency_us.p99));
        self.user.push(used.user / millions);
        self.system.push(used.system / millions);
        self.peak.push(number(used.peak));
    }
}

fn without(bench: &Bench, rates: &mut Rates) -> Result<f64> {
    let held = bench.load.run()?;
    let churned = held.churned.clone();
    held.release()?;
    rates.without.push(churned.per_second);
    rates.p99.push(number(churned.latency_us.p99));
    rates.cpu.push(churned.cpu_seconds / churned.seconds);
    rates.note_errors(&churned);
    Ok(churned.per_second)
}

/// The load with the tool beside it, and what the tool used for it.
fn with(bench: &Bench, subject: &Subject) -> Result<(Churned, Usage)> {
    let tool = Tool::start(subject, bench.folder.path(), Output::Own)?;
    let before = tool.usage()?;
    let held = bench.load.run()?;
    // What has not come yet comes now; TIME_WAITs do not end before they are released.
    interrupt::pause(Duration::from_millis(300))?;
    let after = tool.usage()?;
    tool.end()?;
    let churned = held.churned.clone();
    held.release()?;
    let used = Usage {
        user: after.user - before.user,
        system: after.system - before.system,
        ..after
    };
    Ok((churned, used))
}
