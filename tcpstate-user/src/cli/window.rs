//! The part of a recording that is shown. What came before is understood all the same, so that times and owners are right.

use crate::event::Event;

/// From when to when (nanoseconds of `CLOCK_MONOTONIC`), and where.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Nothing that happened before is shown.
    pub since: u64,
    /// Nothing that happened after is looked at.
    pub until: u64,
    /// Only this network namespace, by inode number. What the kernel side did not send needs no looking at: see
    /// [`crate::filter::Filter::for_kernel`].
    pub netns: Option<u32>,
    /// The time to begin has not come.
    waits: bool,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            since: 0,
            until: u64::MAX,
            netns: None,
            waits: false,
        }
    }
}

impl Window {
    /// From `since` to `until`, in one namespace or all.
    pub const fn new(since: Option<u64>, until: Option<u64>, netns: Option<u32>) -> Self {
        Self {
            since: match since {
                Some(since) => since,
                None => 0,
            },
            until: match until {
                Some(until) => until,
                None => u64::MAX,
            },
            netns,
            waits: since.is_some(),
        }
    }

    /// Whether this is not to be looked at.
    pub fn hides(&self, event: &Event) -> bool {
        let netns = match event {
            Event::Transition(event) => event.netns,
            Event::TimeWait(event) => event.netns,
            Event::Socket(event) => event.netns,
            Event::Call(event) => event.netns,
        };
        event.time() > self.until || self.netns.is_some() && self.netns != netns
    }

    /// Whether what happened then is shown.
    pub const fn shows(&self, time: u64) -> bool {
        self.since <= time && time <= self.until
    }

    /// A time that is not after the end.
    pub fn limit(&self, now: u64) -> u64 {
        now.min(self.until)
    }

    /// When intervals begin, if that is still to come.
    pub fn waits(&self) -> Option<u64> {
        self.waits.then_some(self.since)
    }

    /// It has come.
    pub const fn open(&mut self) {
        self.waits = false;
    }
}
