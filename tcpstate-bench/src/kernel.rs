//! The time that a tool's programs take in the kernel, as the kernel counts it; and how much of the load the tool has seen.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::sys::{Stats, enable_stats};

use crate::{
    bench::Bench,
    bpf::{self, Ran},
    count,
    figures::number,
    interrupt,
    subject::{Seen, Subject},
    tool::{Output, Tool},
};

/// What came out for one subject.
#[derive(Debug, Default)]
pub struct Cost {
    /// Each program: what it ran during the load.
    pub programs: Vec<Ran>,
    /// Transitions of that load.
    pub transitions: u64,
    /// What it has seen, and what there was.
    pub seen: Option<(u64, u64)>,
    /// Why it was not measured.
    pub failed: Option<String>,
}

impl Cost {
    /// Nanoseconds of all programs, for each transition.
    pub fn each(&self) -> Option<f64> {
        let sum: u64 = self
            .programs
            .iter()
            .map(|program| program.nanoseconds)
            .sum();
        (!self.programs.is_empty()).then(|| number(sum) / number(self.transitions))
    }
}

pub fn measure(bench: &Bench, subjects: &[Subject]) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    for subject in subjects {
        let mut cost = Cost::default();
        let done = time(bench, subject, &mut cost).and_then(|()| seen(bench, subject, &mut cost));
        if let Err(error) = done {
            interrupt::check()?;
            cost.failed = Some(format!("{error:#}"));
        }
        let each = cost
            .each()
            .map_or("-".to_owned(), |each| format!("{each:.0} ns"));
        bench.say(&match (&cost.failed, cost.seen) {
            (Some(reason), _) => format!("costs: {} not measured: {reason}", subject.name),
            (None, Some((seen, made))) => {
                format!(
                    "costs: {} {each} a transition, saw {seen} of {made}",
                    subject.name
                )
            }
            (None, None) => format!("costs: {} {each} a transition", subject.name),
        });
        costs.push(cost);
    }
    Ok(costs)
}

/// With the kernel's counting, which itself takes time: not where rates are measured.
fn time(bench: &Bench, subject: &Subject, cost: &mut Cost) -> Result<()> {
    let tool = Tool::start(subject, bench.folder.path(), Output::Own)?;
    let ids = bpf::programs(tool.pid());
    let counting =
        enable_stats(Stats::RunTime).context("the kernel does not count what programs take")?;
    let before = bpf::ran(&ids);
    let held = bench.load.run()?;
    let after = bpf::ran(&ids);
    drop(counting);
    tool.end()?;
    cost.transitions = held.churned.connections_all * bench.load.mode.transitions();
    held.release()?;
    for (id, ran) in after {
        let (times, nanoseconds) = before
            .get(&id)
            .map_or((0, 0), |before| (before.times, before.nanoseconds));
        if ran.times > times {
            cost.programs.push(Ran {
                name: ran.name,
                times: ran.times - times,
                nanoseconds: ran.nanoseconds - nanoseconds,
            });
        }
    }
    Ok(())
}

/// Counted against what the load says, not what the tool says.
fn seen(bench: &Bench, subject: &Subject, cost: &mut Cost) -> Result<()> {
    if subject.seen == Seen::Nothing {
        return Ok(());
    }
    let tool = Tool::start(subject, bench.folder.path(), Output::Counted)?;
    let held = bench.load.run()?;
    let made = held.churned.connections_all * count::of_a_connection(subject.seen, bench.load.mode);
    // TIME_WAITs end with their namespace, and with them connections.
    held.release()?;
    interrupt::pause(Duration::from_millis(1500))?;
    let output = tool.end()?;
    let seen = count::seen(bench, subject.seen, &output)?;
    cost.seen = seen.map(|seen| (seen, made));
    Ok(())
}
