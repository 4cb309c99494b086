//! How long a watch that shows nothing meanwhile goes on, on a terminal.

use std::{
    io,
    time::{Duration, Instant},
};

use super::terminal;
use crate::message;

/// How often it is shown.
const OFTEN: Duration = Duration::from_millis(500);

/// A line that says so, if somebody looks.
#[derive(Debug)]
pub struct Countdown {
    /// When the watch ends.
    end: Option<Instant>,
    /// When it is shown next; `None` if never.
    next: Option<Instant>,
}

impl Countdown {
    /// For so long; `shown` says whether anything else tells that the watch goes on.
    pub fn new(duration: Option<Duration>, shown: bool) -> Self {
        let now = Instant::now();
        Self {
            end: duration.and_then(|duration| now.checked_add(duration)),
            next: (!shown && terminal::is_able(&io::stderr())).then_some(now),
        }
    }

    /// So many events have come.
    pub fn at(&mut self, events: u64) {
        let now = Instant::now();
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = Some(now + OFTEN);
        let left = self.end.map_or(0, |end| {
            let left = end.saturating_duration_since(now);
            left.as_millis().div_ceil(1000)
        });
        message::show(format_args!(
            "watching: {left} s left, {}; Ctrl-C tells what was seen so far",
            message::plural(events, "event")
        ));
    }

    /// Something else is to be seen from here on.
    pub fn end(&mut self) {
        if self.next.take().is_some() {
            message::erase();
        }
    }
}

impl Drop for Countdown {
    fn drop(&mut self) {
        self.end();
    }
}
