//! Minisockets where nothing tells of them but the kernel's list of sockets, read again and again: what it shows was there, what
//! it does not show any more has ended. An approximation, whose times are bounds where they are not exact.
//!
//! A full socket that closes may go on as a minisocket; which, only the next list tells. So such a transition is held until
//! then.

use hashbrown::DefaultHashBuilder;
use indexmap::{IndexMap, map::Entry};
use tcpstate_common::state::TcpState;

use super::{Lifecycle, Reason, Transition, named, reason::KnownBy, timewait::goes_on};
use crate::event::{Endpoint, TimeWaitEvent, TimeWaitStep};

/// What is known only from lists.
#[derive(Debug, Default)]
pub(super) struct Poll {
    /// Full sockets that closed and may go on as minisockets, by cookie.
    closed: IndexMap<u64, Transition, DefaultHashBuilder>,
    /// Minisockets as they were seen last, by address.
    seen: IndexMap<u64, Seen, DefaultHashBuilder>,
}

/// A minisocket as it was seen last.
#[derive(Clone, Copy, Debug)]
struct Seen {
    time: u64,
    ticks: u64,
    due: u64,
    cookie: Option<u64>,
    netns_cookie: Option<u64>,
    netns: Option<u32>,
    local: Endpoint,
    remote: Endpoint,
    substate: TcpState,
}

/// One reading of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// When it began (nanoseconds of `CLOCK_MONOTONIC`).
    pub began: u64,
    /// When it ended.
    pub ended: u64,
    /// Whether all of it was read: only then what it does not show has ended.
    pub complete: bool,
}

impl Seen {
    fn of(event: &TimeWaitEvent) -> Self {
        Self {
            time: event.time,
            ticks: event.ticks,
            due: event.due,
            cookie: event.cookie,
            netns_cookie: event.netns_cookie,
            netns: event.netns,
            local: event.local,
            remote: event.remote,
            substate: event.substate,
        }
    }

    /// The event that would have told its end.
    fn end(self, minisocket: u64, time: u64, tick: u64) -> TimeWaitEvent {
        let since = time.saturating_sub(self.time) / tick.max(1);
        TimeWaitEvent {
            step: TimeWaitStep::Found,
            time,
            cpu: 0,
            cookie: self.cookie,
            minisocket,
            socket: None,
            netns_cookie: self.netns_cookie,
            netns: self.netns,
            local: self.local,
            remote: self.remote,
            substate: self.substate,
            ticks: self.ticks.saturating_add(since),
            due: self.due,
            callers: Default::default(),
        }
    }
}

impl Lifecycle {
    /// Lets it learn of minisockets from lists alone.
    #[must_use]
    pub fn with_poll(mut self) -> Self {
        self.poll = Some(Poll::default());
        self
    }

    /// Whether it learns of minisockets from lists alone.
    #[must_use]
    pub const fn polls(&self) -> bool {
        self.poll.is_some()
    }

    /// Passes a transition on, or holds it until the next list tells whether a minisocket goes on in its place.
    pub fn hold(&mut self, transition: Transition, mut out: impl FnMut(Transition)) {
        let Some(poll) = &mut self.poll else {
            return out(transition);
        };
        let event = &transition.event;
        if event.is_birth()
            && let Some(before) = event
                .cookie
                .and_then(|cookie| poll.closed.swap_remove(&cookie))
        {
            // The socket is used again before the list was read.
            out(before);
        }
        let may_go_on = event.new == TcpState::Close && goes_on(event.old) && event.error.is_none();
        match event.cookie.filter(|_| may_go_on) {
            // Beyond the limit it is told at once, as what it may be.
            Some(cookie) if poll.closed.len() < self.limit => {
                poll.closed.insert(cookie, transition);
            }
            _ => out(transition),
        }
    }

    /// Compares a minisocket of the list with what is known; `true` if there is no more to say of it.
    pub(super) fn polled(
        &mut self,
        event: &TimeWaitEvent,
        known: bool,
        out: &mut impl FnMut(Transition),
    ) -> bool {
        let Some(poll) = &mut self.poll else {
            return known;
        };
        // In the list a moment before its full socket closes: the next list will do.
        let full = |cookie| self.connections.contains(cookie);
        if !known && event.cookie.is_some_and(full) {
            return true;
        }
        if poll.seen.len() >= self.limit && !poll.seen.contains_key(&event.minisocket) {
            // Nobody would notice its end.
            self.counts.evicted += 1;
            return true;
        }
        grow_slowly(&mut poll.seen);
        poll.seen.insert(event.minisocket, Seen::of(event));
        if known {
            return true;
        }
        let closed = event
            .cookie
            .and_then(|cookie| match poll.closed.entry(cookie) {
                // Of a socket that was used again the list may have the life before.
                Entry::Occupied(closed) if event.has_ends_of(&closed.get().event) => {
                    Some(closed.swap_remove())
                }
                _ => None,
            });
        let Some(mut closed) = closed else {
            return false;
        };
        closed.event.new = self.minisockets.follow(event, &closed);
        closed.minisocket = true;
        self.counts.transitions += 1;
        out(closed);
        let Self {
            minisockets,
            cgroups,
            counts,
            ..
        } = self;
        minisockets.refresh(event, &mut |transition| {
            counts.transitions += 1;
            out(named(cgroups, transition));
        });
        true
    }

    /// The list has been read once more.
    pub fn end_round(&mut self, round: Round, mut out: impl FnMut(Transition)) {
        let Self {
            poll: Some(poll),
            minisockets,
            cgroups,
            counts,
            ..
        } = self
        else {
            return;
        };
        let tick = minisockets.tick();
        // Their minisockets would have been in the list.
        poll.closed.retain(|_, transition| {
            let waits = transition.event.time >= round.began;
            if !waits {
                out(transition.clone());
            }
            waits
        });
        if !round.complete {
            return;
        }
        poll.seen.retain(|minisocket, seen| {
            if seen.time >= round.began {
                return true;
            }
            let end = seen.end(*minisocket, round.ended, tick);
            // It may have expired while the list was read: what ends by itself is never called unknown.
            let reason = if end.ticks >= end.due {
                Reason::Expired
            } else {
                Reason::Unknown
            };
            let why = (reason, KnownBy::Inferred);
            minisockets.missed(&end, seen.time, why, &mut |transition| {
                counts.transitions += 1;
                out(named(cgroups, transition));
            });
            false
        });
    }

    /// Nothing more comes: passes on what is held.
    pub(super) fn release(&mut self, out: &mut impl FnMut(Transition)) {
        if let Some(poll) = &mut self.poll {
            for (_, transition) in poll.closed.drain(..) {
                out(transition);
            }
        }
    }
}

/// Makes room for one more. Left to itself a full table doubles, and half of it may then be empty for hours.
fn grow_slowly<T>(table: &mut IndexMap<u64, T, DefaultHashBuilder>) {
    if table.len() == table.capacity() {
        table.reserve_exact((table.len() / 8).max(64));
    }
}
