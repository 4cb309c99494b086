//! The states of a connection in order, for who shows when it was in which.

use tcpstate_common::state::TcpState;

use crate::{
    event::Process,
    lifecycle::{Bound, KnownBy, Phase, Reason, Transition},
};

/// So many states of a connection are kept in order. TCP goes through nine at most; what can come without end is restarts of
/// TIME_WAIT, which are counted besides, and what a loss or a hostile recording makes up.
pub const STAYS: usize = 64;

/// One stay of a connection in a state, or something that happened in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    /// The state.
    pub state: TcpState,
    /// Where it went from there; the same state if it went on there, in a minisocket, or TIME_WAIT began anew; `None` if it
    /// is still there when the run ends.
    pub to: Option<TcpState>,
    /// When that was (nanoseconds of `CLOCK_MONOTONIC`).
    pub until: u64,
    /// How long it had been there.
    pub phase: Phase,
    /// A minisocket has to do with it.
    pub minisocket: bool,
    /// Whose it was then, and how we know.
    pub process: Option<Process>,
    /// Why a minisocket ended, or TIME_WAIT began anew.
    pub reason: Option<Reason>,
    /// How the reason is known.
    pub known_by: Option<KnownBy>,
    /// The socket's error: a positive errno.
    pub error: Option<i32>,
    /// It does not follow from what was seen before.
    pub damaged: bool,
}

/// The first [`STAYS`] states of a connection, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stays {
    list: Vec<Stay>,
    more: u32,
}

impl Stays {
    /// Those that are kept.
    #[must_use]
    pub fn list(&self) -> &[Stay] {
        &self.list
    }

    /// The same, to be changed.
    pub fn list_mut(&mut self) -> &mut [Stay] {
        &mut self.list
    }

    /// How many more there were.
    #[must_use]
    pub const fn more(&self) -> u32 {
        self.more
    }

    /// Remembers the state that was left, or what happened in it.
    pub(super) fn take(&mut self, transition: &Transition) {
        let event = &transition.event;
        if event.is_birth() {
            return;
        }
        self.add(Stay {
            state: event.old,
            to: Some(event.new),
            until: event.time,
            phase: transition.phase,
            minisocket: transition.minisocket,
            process: transition.process,
            reason: transition.reason,
            known_by: transition.known_by,
            error: event.error,
            damaged: transition.damaged,
        });
    }

    /// Remembers the state in which it still is, and has been since then or longer.
    pub(super) fn still(&mut self, state: TcpState, since: u64, now: u64) {
        self.add(Stay {
            state,
            to: None,
            until: now,
            phase: Phase::between(since, now, Bound::AtLeast),
            minisocket: state == TcpState::TimeWait,
            process: None,
            reason: None,
            known_by: None,
            error: None,
            damaged: false,
        });
    }

    fn add(&mut self, stay: Stay) {
        if self.list.len() < STAYS {
            self.list.push(stay);
        } else {
            self.more = self.more.saturating_add(1);
        }
    }
}
