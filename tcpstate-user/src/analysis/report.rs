//! Periodic views: what adds up over intervals of time, and when an interval ends.
//!
//! Pure: an interval ends when something is known to have happened after it, or when the caller says that it is so late. So
//! the same records give the same reports, live or not. A transition counts in the interval in which it was understood.

use super::table::{RowKind, Table};
use crate::{
    event::{About, CallEvent, Process},
    lifecycle::{Found, Lifecycle, Transition},
    prefetch::Prefetch,
};

/// A periodic view: takes transitions, and has a table to show whenever an interval ends.
pub trait Tally {
    /// The word for it: the command, and `"event"` in JSON.
    fn name(&self) -> &'static str;

    /// Has what is remembered of this socket fetched from memory: a transition of it comes soon.
    fn prefetch(&self, _about: About, _what: Prefetch) {}

    /// Takes a transition. One that is not `wanted` is to be understood, but not to be counted.
    fn take(&mut self, transition: &Transition, wanted: bool);

    /// Takes a connection (or a listener) that was there before.
    fn found(&mut self, _found: &Found, _wanted: bool) {}

    /// All connections that were there before have been found.
    fn all_found(&mut self) {}

    /// A connection that is to be counted was accepted: it belongs to this process now.
    fn accepted(&mut self, _connection: u64, _process: Process) {}

    /// bind() found the address in use.
    fn bind_failed(&mut self, _event: &CallEvent) {}

    /// Something was lost, none of it later than `at`.
    fn lost(&mut self, _at: u64) {}

    /// What an interval has brought, from one time to another; the next begins.
    fn table(&mut self, from: u64, to: u64) -> Table;

    /// Connections forgotten because there were too many.
    fn forgotten(&self) -> u64;
}

/// What a periodic view has to say of one interval (nanoseconds of `CLOCK_MONOTONIC`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// See [`Tally::name`].
    pub view: &'static str,
    /// When the interval began.
    pub from: u64,
    /// When it ended.
    pub to: u64,
    /// The hooks in use.
    pub hooks: Vec<&'static str>,
    /// How much was lost in the meantime, as far as we know: any kind of [`crate::loss::LossKind`].
    pub lost: u64,
    /// What happened.
    pub table: Table,
}

impl Report {
    /// Whether anything was counted.
    #[must_use]
    pub fn says_something(&self) -> bool {
        let more = self.table.more.iter().map(|section| &section.table);
        let mut tables = std::iter::once(&self.table).chain(more);
        tables.any(|table| table.rows.iter().any(|row| row.kind != RowKind::Total))
    }
}

/// So many empty intervals that end in leaps of the time have reports of their own, in all of a run.
const APART: u64 = 10_000;
/// No clock that is told every 50 ms leaps so far, unless who tells it was stopped.
const LEAP: u64 = 1_000_000_000;

/// A view and its intervals.
#[expect(missing_debug_implementations, reason = "a view has none")]
pub struct Reports {
    tally: Box<dyn Tally>,
    hooks: Vec<&'static str>,
    every: Option<u64>,
    from: u64,
    lost: u64,
    /// Nothing has come in this interval.
    quiet: bool,
    /// Of [`APART`], how many are left.
    apart: u64,
}

impl Reports {
    /// Begins to look at `start`; an interval ends `every` so many nanoseconds, or at the end of the run only.
    #[must_use]
    pub fn new(
        tally: Box<dyn Tally>,
        hooks: Vec<&'static str>,
        start: u64,
        every: Option<u64>,
    ) -> Self {
        Self {
            tally,
            hooks,
            every: every.map(|every| every.max(1)),
            from: start,
            lost: 0,
            quiet: false,
            apart: APART,
        }
    }

    /// See [`Tally::prefetch`].
    pub fn prefetch(&self, about: About, what: Prefetch) {
        self.tally.prefetch(about, what);
    }

    /// The report on the present interval, if it has ended by now; the next begins. Ask until there is none, before anything
    /// that happened now is taken.
    ///
    /// Who watches is told the time every 50 ms, so a leap by a second or more in which nothing happened is no gap in what
    /// happened, but a clock that nobody can have seen (or that stood still for who looked). Of such leaps ten thousand intervals
    /// have reports of their own; the others have one report for each leap, and so has a leap of more than ten thousand.
    ///
    /// What the lifecycle concludes from silence belongs to the interval in which it may be concluded, whenever it is asked.
    pub fn next(
        &mut self,
        lifecycle: &mut Lifecycle,
        now: u64,
        mut wanted: impl FnMut(&Transition) -> bool,
    ) -> Option<Report> {
        let every = self.every?;
        let ended = now.saturating_sub(self.from) / every;
        let leapt = self.quiet && ended > 1 && now - self.from >= LEAP;
        let together = if leapt && ended > self.apart {
            ended
        } else {
            self.apart -= u64::from(leapt);
            1
        };
        let to = self.from.checked_add(every.saturating_mul(together))?;
        if now < to {
            return None;
        }
        lifecycle.settle(to, |transition| {
            self.tally.take(&transition, wanted(&transition));
        });
        Some(self.end(to))
    }

    /// Forgets what was counted until now: the first interval begins here. What was understood stays.
    pub fn begin_at(
        &mut self,
        lifecycle: &mut Lifecycle,
        now: u64,
        mut wanted: impl FnMut(&Transition) -> bool,
    ) {
        lifecycle.settle(now, |transition| {
            self.tally.take(&transition, wanted(&transition));
        });
        drop(self.end(now));
    }

    /// Takes a transition.
    pub fn take(&mut self, transition: &Transition, wanted: bool) {
        self.quiet = false;
        self.tally.take(transition, wanted);
    }

    /// Takes a connection that was there before.
    pub fn found(&mut self, found: &Found, wanted: bool) {
        self.quiet = false;
        self.tally.found(found, wanted);
    }

    /// All connections that were there before have been found.
    pub fn all_found(&mut self) {
        self.tally.all_found();
    }

    /// A connection was accepted: it belongs to this process now.
    pub fn accepted(&mut self, connection: u64, process: Process) {
        self.quiet = false;
        self.tally.accepted(connection, process);
    }

    /// bind() found the address in use.
    pub fn bind_failed(&mut self, event: &CallEvent) {
        self.quiet = false;
        self.tally.bind_failed(event);
    }

    /// So much was lost, none of it later than `at`.
    pub fn lost(&mut self, count: u64, at: u64) {
        self.quiet = false;
        self.lost = self.lost.saturating_add(count);
        self.tally.lost(at);
    }

    /// The report on the present interval, which ends here; the next begins.
    pub fn end(&mut self, to: u64) -> Report {
        let from = self.from;
        self.from = to.max(from);
        self.quiet = true;
        Report {
            view: self.tally.name(),
            from,
            to: self.from,
            hooks: self.hooks.clone(),
            lost: std::mem::take(&mut self.lost),
            table: self.tally.table(from, self.from),
        }
    }

    /// Whether this is a report of many intervals at once.
    #[must_use]
    pub fn is_of_many(&self, report: &Report) -> bool {
        self.every
            .is_some_and(|every| report.to - report.from > every)
    }

    /// Connections forgotten because there were too many.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.tally.forgotten()
    }
}
