//! What was lost before the view, or by it.

use std::io;

use super::View;
use crate::{
    kernel::Counters,
    loss::{Loss, LossKind, LossTotals},
    message::say,
    recording::{Mark, Step, Tape},
    sink::OtherProtocols,
};

/// Counts what was lost, and says so while it happens.
pub struct Losses {
    /// So far.
    pub totals: LossTotals,
    /// Transitions of protocols that were not asked for.
    pub other_protocols: OtherProtocols,
    checked: u64,
    /// Until then it was told what is not in the recording that is shown.
    told: u64,
    /// Records that are not in the recording, of what is shown.
    unrecorded: u64,
    /// The recording has ended, and that was said.
    broken: bool,
}

impl Losses {
    /// Nothing was lost before `start`.
    pub fn new(start: u64) -> Self {
        Self {
            totals: LossTotals::default(),
            other_protocols: OtherProtocols::default(),
            checked: start,
            told: start,
            unrecorded: 0,
            broken: false,
        }
    }

    /// Sockets that could not be sent when the list was read.
    pub const fn not_found(&self) -> u64 {
        self.totals.get(LossKind::NotFound)
    }

    /// What was lost before does not concern this run.
    pub const fn forget(&mut self, mark: &Mark) {
        self.totals.advance(LossKind::RingFull, mark.lost);
        self.totals.advance(LossKind::NotFound, mark.not_found);
        self.totals.advance(LossKind::Missed, mark.missed);
        self.totals.advance(LossKind::Unrecorded, mark.unrecorded);
    }

    /// Looks at all counters; what was lost until `now` is known after that.
    pub fn check(&mut self, counters: &Counters, view: &mut View, now: u64) -> io::Result<()> {
        view.on_tape(&Step::Losses {
            now,
            counters: *counters,
            unread: view.unread,
        });
        self.say_unrecorded(view);
        self.other_protocols = counters.other_protocols;
        self.not_recorded(view, now)?;
        let seen = [
            (LossKind::RingFull, counters.lost),
            (LossKind::Undecodable, view.undecodable),
            (LossKind::TableFull, view.forgotten()),
            (LossKind::Unread, view.unread),
            (LossKind::NotFound, counters.not_found),
            (LossKind::Missed, counters.missed(view.repeated)),
        ];
        for (kind, total) in seen {
            self.note(kind, total, view, now)?;
        }
        self.checked = now;
        Ok(())
    }

    /// Looks at what found no place in a recording; what was lost until `now` is known after that.
    pub fn not_recorded(&mut self, view: &mut View, now: u64) -> io::Result<()> {
        self.note(LossKind::Unrecorded, view.unrecorded, view, now)
    }

    fn note(&mut self, kind: LossKind, total: u64, view: &mut View, now: u64) -> io::Result<()> {
        let count = self.totals.advance(kind, total);
        if count == 0 {
            return Ok(());
        }
        let from = match kind {
            // Of a gap nothing was recorded, perhaps not even how late it was.
            LossKind::Unrecorded => view.time.max(self.told).min(now),
            _ => self.checked,
        };
        if kind == LossKind::Unrecorded {
            self.told = now;
        }
        if kind != LossKind::NotFound {
            view.lifecycle.events_lost(now);
            if let Some(reports) = &mut view.reports {
                reports.lost(count, now);
            }
        }
        say(format_args!("LOST {count}: {}", kind.advice()));
        view.sink.loss(&Loss {
            kind,
            count,
            from,
            to: now,
        })
    }

    /// What is not recorded is no loss to who looks at the same time.
    fn say_unrecorded(&mut self, view: &mut View) {
        if let Some(failure) = view.tape.as_mut().and_then(Tape::failure) {
            // Where that ends the run, its end says so.
            if !std::mem::replace(&mut self.broken, true) && !view.idle {
                say(format_args!(
                    "warning: the recording ends here, it cannot be written: {failure}"
                ));
            }
            return;
        }
        let total = view.tape.as_ref().map_or(0, Tape::unrecorded);
        if view.idle {
            view.unrecorded = total;
        } else if total > self.unrecorded {
            let count = total - self.unrecorded;
            say(format_args!(
                "LOST {count}: {}",
                LossKind::Unrecorded.advice()
            ));
        }
        self.unrecorded = total;
    }
}
