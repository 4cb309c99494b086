//! What ought to be reached, beside what was measured.

use crate::{replay, report::Results, subject::Subject};

/// A goal, and whether it is met.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub figure: String,
    pub goal: String,
    pub measured: String,
    pub met: bool,
}

/// At most, in nanoseconds, for a transition in its own process's system call.
const ADDED: f64 = 160.0;
/// Less than, in milliseconds.
const ATTACHED: f64 = 100.0;
/// At most, in bytes.
const OPEN: f64 = 256.0;
const TIME_WAIT: f64 = 128.0;
/// At least, in events a second and core.
const REPLAYED: f64 = 5e6;
/// The subject whose added time has a goal.
const ADDED_BY: &str = "trace-json";

/// Those whose figure was measured.
pub fn verdicts(subjects: &[Subject], results: &Results) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut add = |figure: String, goal: String, measured: String, met: bool| {
        verdicts.push(Verdict {
            figure,
            goal,
            measured,
            met,
        });
    };
    if let Some(rates) = &results.rates {
        for (subject, rate) in subjects.iter().zip(&rates.rows) {
            if let (Some(goal), Some(median)) = (subject.goals.ratio, rate.ratio.median()) {
                add(
                    format!("connection rate with / without: {}", subject.name),
                    format!("at least {goal:.2}"),
                    rate.ratio.shown(2),
                    median >= goal,
                );
            }
        }
        for (subject, rate) in subjects.iter().zip(&rates.rows) {
            if let (Some(goal), Some(median)) = (subject.goals.user_seconds, rate.user.median()) {
                add(
                    format!("user CPU for a million transitions: {}", subject.name),
                    format!("at most {goal:.1} s"),
                    format!("{} s", rate.user.shown(2)),
                    median <= goal,
                );
            }
        }
    }
    for (subject, cost) in subjects.iter().zip(results.costs.iter().flatten()) {
        if let (true, Some((seen, made))) = (subject.goals.complete, cost.seen) {
            add(
                format!("lost at full churn: {}", subject.name),
                "0".to_owned(),
                format!("{} of {made}", made.saturating_sub(seen)),
                seen == made,
            );
        }
    }
    if let Some(added) = &results.added {
        for (subject, row) in subjects.iter().zip(&added.rows) {
            if let (ADDED_BY, Some(median)) = (subject.name.as_str(), row.nanoseconds.median()) {
                add(
                    format!("added to a transition, whole round: {}", subject.name),
                    format!("at most {ADDED:.0} ns"),
                    format!("{} ns", row.nanoseconds.shown(0)),
                    median <= ADDED,
                );
            }
        }
    }
    // The first two start with nothing there.
    for start in results.starts.iter().flatten().take(2) {
        if let Some(median) = start.attached.median() {
            add(
                format!("exec to attached: {}", start.title),
                format!("under {ATTACHED:.0} ms"),
                format!("{} ms", start.attached.shown(0)),
                median < ATTACHED,
            );
        }
    }
    for one in results.replays.iter().flatten() {
        if let (replay::CONNS, Some(median)) = (one.command, one.rate.median()) {
            add(
                format!(
                    "{}, {} events of {} connections",
                    one.command, one.events, one.connections
                ),
                format!("at least {:.0} million/s", REPLAYED / 1e6),
                format!("{} million/s", one.rate.times(1e-6).shown(2)),
                median >= REPLAYED,
            );
        }
    }
    if let Some(kept) = results.kept.iter().flatten().last() {
        for (what, bytes, goal) in [
            ("open connection", kept.open, OPEN),
            ("TIME_WAIT", kept.time_wait, TIME_WAIT),
        ] {
            add(
                format!("memory for each {what}, of {}", kept.connections),
                format!("at most {goal:.0} bytes"),
                format!("{bytes:.0} bytes"),
                bytes <= goal,
            );
        }
    }
    verdicts
}
