//! What is kept of one minisocket.

use std::num::NonZeroU64;

use tcpstate_common::state::TcpState;

use super::{Bound, Phase, Transition, identity::OWN_IDS, reason::Why};
use crate::event::{Process, Protocol, TimeWaitEvent, TransitionEvent};

/// What is kept of one minisocket: 64 bytes, since there may be a million.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    /// The cookie or, from [`OWN_IDS`] upwards, a number of our own.
    pub(super) connection: u64,
    pub(super) entered: u64,
    /// When the timer was last started, as far as we saw.
    pub(super) armed: u64,
    /// When it was due then, in ticks: the low bits, which a silent start changes (by less than 65 s).
    pub(super) due: u16,
    pub(super) cgroup: Option<NonZeroU64>,
    pub(super) owner: Option<Process>,
    /// `u32::MAX` if not known.
    pub(super) uid: u32,
    pub(super) state: TcpState,
    pub(super) bound: Bound,
}

const _: () = assert!(size_of::<Life>() == 64);

impl Life {
    pub(super) fn new(event: &TimeWaitEvent, connection: u64, entered: u64, bound: Bound) -> Self {
        Self {
            connection,
            entered,
            armed: event.time,
            due: low_bits(event.due),
            cgroup: None,
            owner: None,
            uid: u32::MAX,
            state: event.substate,
            bound,
        }
    }

    /// Whether this is the minisocket of the connection with this cookie: at its address there may be another one by now.
    pub(super) fn is(&self, cookie: Option<u64>) -> bool {
        self.cookie() == cookie
    }

    pub(super) fn cookie(&self) -> Option<u64> {
        Some(self.connection).filter(|connection| *connection < OWN_IDS)
    }

    /// TIME_WAIT was started last then, and nobody knows how often before: the FIN came then at the latest.
    pub(super) fn start_unseen(
        &mut self,
        event: &TimeWaitEvent,
        started: u64,
        out: &mut impl FnMut(Transition),
    ) {
        let started = started.max(self.armed);
        let bound = match self.bound {
            Bound::Exact => Bound::AtMost,
            _ => Bound::Unknown,
        };
        let phase = Phase::between(self.entered, started, bound);
        out(self.transition(event, started, TcpState::TimeWait, phase, None));
        (self.state, self.entered, self.bound) = (TcpState::TimeWait, started, Bound::AtLeast);
    }

    pub(super) fn transition(
        &self,
        event: &TimeWaitEvent,
        time: u64,
        new: TcpState,
        phase: Phase,
        why: Option<Why>,
    ) -> Transition {
        let cookie = self.cookie();
        Transition {
            connection: self.connection,
            phase,
            process: self.owner,
            cgroup: None,
            damaged: false,
            minisocket: true,
            reason: why.map(|(reason, _)| reason),
            known_by: why.map(|(_, known_by)| known_by),
            event: TransitionEvent {
                time,
                cookie,
                socket: event.minisocket,
                listener_cookie: None,
                listener_socket: None,
                netns_cookie: event.netns_cookie,
                netns: event.netns,
                cgroup: self.cgroup.map(NonZeroU64::get),
                uid: Some(self.uid).filter(|uid| *uid != u32::MAX),
                protocol: Protocol::Tcp,
                local: event.local,
                remote: event.remote,
                old: self.state,
                new,
                error: None,
                error_known: true,
                refused: None,
                totals: None,
                second_look: false,
                context: None,
            },
        }
    }
}

/// Of a due time, as much as a silent start changes.
pub(super) fn low_bits(due: u64) -> u16 {
    u16::try_from(due & u64::from(u16::MAX)).unwrap_or_default()
}
