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
    /// What was lost before this run, of what the same counters count.
    before: LossTotals,
    /// Transitions of protocols that were not asked for.
    pub other_protocols: OtherProtocols,
    checked: u64,
    /// Until then it was told what is not in the recording that is shown.
    told: u64,
    /// Of each kind.
    messages: [Messages; LossKind::ALL.len()],
    /// Of what is not in the recording of what is shown.
    unrecorded: Messages,
    /// The recording has ended, and that was said.
    broken: bool,
}

impl Losses {
    /// Nothing was lost before `start`.
    pub fn new(start: u64) -> Self {
        Self {
            totals: LossTotals::default(),
            before: LossTotals::default(),
            other_protocols: OtherProtocols::default(),
            checked: start,
            told: start,
            messages: [Messages::default(); LossKind::ALL.len()],
            unrecorded: Messages::default(),
            broken: false,
        }
    }

    /// Sockets that could not be sent when the list was read.
    pub const fn not_found(&self) -> u64 {
        self.totals.get(LossKind::NotFound)
    }

    /// What was lost before does not concern this run.
    pub const fn forget(&mut self, mark: &Mark) {
        self.before.advance(LossKind::RingFull, mark.lost);
        self.before.advance(LossKind::NotFound, mark.not_found);
        self.before.advance(LossKind::Missed, mark.missed);
        self.before.advance(LossKind::Unrecorded, mark.unrecorded);
    }

    /// Looks at all counters; what was lost until `now` is known after that.
    pub fn check(&mut self, counters: &Counters, view: &mut View, now: u64) -> io::Result<()> {
        view.on_tape(&Step::Losses {
            now,
            counters: *counters,
            unread: view.unread,
        });
        self.say_unrecorded(view, now);
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

    /// Says what was lost and not said yet.
    pub fn say_rest(&mut self, view: &View) {
        for kind in LossKind::ALL {
            // The last line about a recording has that.
            if kind != LossKind::Unrecorded || view.tape.is_none() {
                self.messages[kind as usize].say(kind);
            }
        }
    }

    fn note(&mut self, kind: LossKind, total: u64, view: &mut View, now: u64) -> io::Result<()> {
        let total = total.saturating_sub(self.before.get(kind));
        let count = self.totals.advance(kind, total);
        self.messages[kind as usize].more(kind, count, now);
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
        view.sink.loss(&Loss {
            kind,
            count,
            from,
            to: now,
        })
    }

    /// What is not recorded is no loss to who looks at the same time.
    fn say_unrecorded(&mut self, view: &mut View, now: u64) {
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
        } else {
            let count = total - self.unrecorded.total;
            self.unrecorded.more(LossKind::Unrecorded, count, now);
        }
    }
}

/// Messages about one kind of loss: the first at once, and then ever more seldom, so that they are few however long it goes on.
#[derive(Clone, Copy, Debug, Default)]
struct Messages {
    /// How much was lost.
    total: u64,
    /// How much of that was said.
    said: u64,
    /// When the next one may come (nanoseconds of `CLOCK_MONOTONIC`).
    next: u64,
    /// How long after the last one.
    pause: u64,
}

impl Messages {
    /// After the first one (nanoseconds).
    const PAUSE: u64 = 10_000_000_000;

    /// So much more was lost; it may be time to say so.
    fn more(&mut self, kind: LossKind, count: u64, now: u64) {
        self.total = self.total.saturating_add(count);
        if self.total > self.said && now >= self.next {
            self.say(kind);
            self.pause = self.pause.saturating_mul(2).max(Self::PAUSE);
            self.next = now.saturating_add(self.pause);
        }
    }

    /// Says what was not said yet.
    fn say(&mut self, kind: LossKind) {
        let (advice, total) = (kind.advice(), self.total);
        match (self.said, total - self.said) {
            (_, 0) => {}
            (0, _) => say(format_args!("LOST {total}: {advice}")),
            (_, more) => say(format_args!("LOST {more} more, {total} in all: {advice}")),
        }
        self.said = total;
    }
}

#[cfg(test)]
mod tests {
    use super::Messages;
    use crate::{loss::LossKind, message::overhear};

    #[test]
    fn however_long_it_goes_on_there_are_few_messages_and_they_add_up() {
        const TURN: u64 = 50_000_000;
        let kind = LossKind::Unread;
        let mut messages = Messages::default();
        let turns = 24 * 60 * 60 * 20;
        let ((), heard) = overhear(|| {
            for turn in 0..turns {
                messages.more(kind, 2, turn * TURN);
            }
            messages.say(kind);
            messages.say(kind);
        });
        // `LOST 2: ...`, `LOST 8 more, 10 in all: ...`
        let numbers = |message: &String| -> Vec<u64> {
            let (numbers, _) = message.split_once(':').unwrap_or_default();
            let words = numbers.split(' ');
            words.filter_map(|word| word.parse().ok()).collect()
        };
        let mut total = 0;
        for message in &heard.said {
            let numbers = numbers(message);
            total += numbers.first().copied().unwrap_or_default();
            assert_eq!(numbers.last(), Some(&total), "{message}");
        }
        assert_eq!(total, 2 * turns);
        assert!((10..20).contains(&heard.said.len()), "{:?}", heard.said);
    }

    #[test]
    fn what_is_lost_long_after_is_said_at_once() {
        let kind = LossKind::Unread;
        let mut messages = Messages::default();
        let ((), heard) = overhear(|| {
            messages.more(kind, 1, 0);
            messages.more(kind, 1, 9 * 1_000_000_000);
            messages.more(kind, 0, 10 * 1_000_000_000);
            messages.more(kind, 1, u64::MAX);
        });
        let advice = kind.advice();
        let expected = [
            format!("LOST 1: {advice}"),
            format!("LOST 1 more, 2 in all: {advice}"),
            format!("LOST 1 more, 3 in all: {advice}"),
        ];
        assert_eq!(heard.said, expected);
    }
}
