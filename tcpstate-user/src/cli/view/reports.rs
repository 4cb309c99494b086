//! A view that sums up: a report at the end of each interval.

use std::io;

use super::View;
use crate::{
    analysis::{Report, Reports},
    cli::shape::{Conditions, Periodic},
    disguise::Secret,
    kernel::Hook,
    lifecycle::Transition,
    message::say,
    recording::Header,
};

impl View {
    /// Reports on every interval that has ended by now.
    pub(super) fn end_intervals(&mut self, now: u64) -> io::Result<()> {
        if !self.begin_reports(now) {
            return Ok(());
        }
        while !self.is_done()
            && let Some(reports) = &mut self.reports
        {
            let wanted = |transition: &Transition| {
                let wanted = self.filter.wants(transition);
                self.unattributed += u64::from(wanted.is_err());
                wanted.unwrap_or(false)
            };
            let Some(report) = reports.next(&mut self.lifecycle, now, wanted) else {
                break;
            };
            if reports.is_of_many(&report) && !std::mem::replace(&mut self.leapt, true) {
                say(format_args!(
                    "warning: the time leaps by {} s in which nothing happened: that is one report, as any later leap like it",
                    (report.to - report.from) / 1_000_000_000
                ));
            }
            self.report(&report)?;
        }
        Ok(())
    }

    /// Whether the time that reports begin at has come.
    fn begin_reports(&mut self, now: u64) -> bool {
        let (Some(reports), Some(since)) = (&mut self.reports, self.window.waits()) else {
            return true;
        };
        if now >= since {
            let wanted = |transition: &Transition| self.filter.wants(transition).unwrap_or(false);
            reports.begin_at(&mut self.lifecycle, since, wanted);
            self.window.open();
        }
        now >= since
    }

    pub(super) fn report(&mut self, report: &Report) -> io::Result<()> {
        self.counted |= report.says_something();
        self.shown += 1;
        self.reported = report.to;
        self.sink.report(report)
    }
}

/// The reports that a view begins with.
pub(super) fn begin(periodic: Periodic, header: &Header, limit: usize) -> Reports {
    let timewait = header.timewait.is_some();
    let hooks = header.hooks();
    let tally = (periodic.tally)(&Conditions {
        timewait,
        calls: header.calls,
        errors: header.hook == Hook::BtfTracepoint,
        limit,
        begins: header.begins,
        hooks: &hooks,
        settings: &header.settings,
        addresses: !header
            .anonymized
            .iter()
            .any(|what| what == Secret::Addresses.label()),
    });
    let every = periodic
        .every
        .map(|every| u64::try_from(every.as_nanos()).unwrap_or(u64::MAX));
    Reports::new(tally, hooks, header.begins, every)
}
