//! The life of TIME_WAIT minisockets: born in FIN_WAIT2 or TIME_WAIT, restarted, ended, and why.

use std::num::NonZeroU64;

use indexmap::IndexMap;
use rustc_hash::{FxBuildHasher, FxHashMap};
use tcpstate_common::state::TcpState;

use super::{
    Bound, Phase, Transition,
    caller::{Caller, Callers},
    grow_slowly,
};
use crate::event::{Process, Protocol, TimeWaitEvent, TimerStep, TransitionEvent};

/// `TCP_TIMEWAIT_LEN` in `include/net/tcp.h`.
const TIME_WAIT_NANOSECONDS: u64 = 60_000_000_000;

/// Why a minisocket ended, or that it was restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// TIME_WAIT began anew: a retransmitted FIN or another old segment came.
    Restarted,
    /// Its time was over.
    Expired,
    /// connect() took the 4-tuple over (tcp_tw_reuse).
    ReusedConnect,
    /// An acceptable new SYN took the 4-tuple over.
    ReusedSyn,
    /// A RST came.
    Rst,
    /// Data came for an end that had been closed: answered with a RST.
    ResetHalfClose,
    /// An administrator destroyed it (`ss -K`).
    Destroyed,
    /// Its network namespace went away.
    NamespaceGone,
    /// It was taken off before its time, and the kernel did not let us see by whom.
    Unknown,
}

impl Reason {
    /// The word for it in every output.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Restarted => "restarted",
            Self::Expired => "expired",
            Self::ReusedConnect => "reused_connect",
            Self::ReusedSyn => "reused_syn",
            Self::Rst => "rst",
            Self::ResetHalfClose => "reset_half_close",
            Self::Destroyed => "destroyed",
            Self::NamespaceGone => "namespace_gone",
            Self::Unknown => "unknown",
        }
    }
}

/// What is kept of one minisocket: 64 bytes, since there may be a million.
#[derive(Clone, Copy, Debug)]
struct Life {
    cookie: Option<NonZeroU64>,
    entered: u64,
    /// When the timer was last started, as far as we saw.
    armed: u64,
    cgroup: Option<NonZeroU64>,
    owner: Option<Process>,
    /// `u32::MAX` if not known.
    uid: u32,
    state: TcpState,
    bound: Bound,
}

const _: () = assert!(size_of::<Life>() == 64);

/// A minisocket whose full socket is about to close.
#[derive(Clone, Copy, Debug)]
pub(super) struct Born {
    address: u64,
    /// The state it was born in.
    pub(super) state: TcpState,
    /// When.
    pub(super) time: u64,
}

/// All minisockets that live, as far as we know.
#[derive(Debug)]
pub(super) struct MiniSockets {
    lives: IndexMap<u64, Life, FxBuildHasher>,
    /// Cookies of connections whose full socket is about to close, because its minisocket has been born.
    born: FxHashMap<u64, u64>,
    /// Per CPU: a timer that was taken off, until the next record of that CPU tells whether for good.
    cancelled: FxHashMap<u32, TimeWaitEvent>,
    callers: Callers,
    tick: u64,
    limit: usize,
    pub(super) forgotten: u64,
}

impl MiniSockets {
    /// `tick` is the length of a tick in nanoseconds.
    pub(super) fn new(limit: usize, callers: Callers, tick: u64) -> Self {
        Self {
            lives: IndexMap::default(),
            born: FxHashMap::default(),
            cancelled: FxHashMap::default(),
            callers,
            tick,
            limit,
            forgotten: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lives.len()
    }

    /// The minisocket that takes over from a full socket which closes.
    pub(super) fn born_of(&mut self, event: &TransitionEvent) -> Option<Born> {
        let address = self.born.remove(&event.cookie?)?;
        let life = self
            .lives
            .get(&address)
            .filter(|life| life.is(event.cookie))?;
        Some(Born {
            address,
            state: life.state,
            time: life.armed,
        })
    }

    /// The full socket of a minisocket has closed: what was known of it goes on, and FIN_WAIT2 with it.
    pub(super) fn inherit(
        &mut self,
        born: Born,
        event: &TransitionEvent,
        owner: Option<Process>,
        fin_wait2: Option<(u64, Bound)>,
    ) {
        if let Some(life) = self.lives.get_mut(&born.address) {
            life.uid = event.uid.unwrap_or(u32::MAX);
            life.cgroup = event.cgroup.and_then(NonZeroU64::new);
            life.owner = owner;
            if let Some((entered, bound)) = fin_wait2 {
                (life.entered, life.bound) = (entered, bound);
            }
        }
    }

    /// Understands one event; `unseen` is since when a minisocket that we meet now for the first time may have lived.
    pub(super) fn event(
        &mut self,
        event: TimeWaitEvent,
        unseen: Option<u64>,
        out: &mut impl FnMut(Transition),
    ) {
        // Nothing comes between a cancellation and what belongs to it, on one CPU. The address alone does not say that it
        // belongs to it: the next minisocket of this CPU often gets the place of the one just freed.
        if let Some(before) = self.cancelled.remove(&event.cpu)
            && (before.minisocket, before.cookie) != (event.minisocket, event.cookie)
        {
            self.end_early(&before, unseen, out);
        }
        match event.step {
            TimerStep::Armed => self.armed(&event, out),
            TimerStep::Cancelled => {
                self.cancelled.insert(event.cpu, event);
            }
            TimerStep::Expired => self.end(&event, Reason::Expired, unseen, out),
            TimerStep::Found => {}
        }
    }

    /// It is now this late: timers taken off long ago were taken off for good.
    pub(super) fn settle(
        &mut self,
        now: u64,
        unseen: Option<u64>,
        out: &mut impl FnMut(Transition),
    ) {
        /// A CPU of a virtual machine may be put aside for this long between two steps of the kernel.
        const PATIENCE: u64 = 100_000_000;
        if self.cancelled.is_empty() {
            return;
        }
        let mut late: Vec<_> = self
            .cancelled
            .extract_if(|_, event| event.time.saturating_add(PATIENCE) < now)
            .map(|(_, event)| event)
            .collect();
        late.sort_by_key(|event| event.time);
        for event in late {
            self.end_early(&event, unseen, out);
        }
    }

    /// Compares a minisocket that was found with what is known of it; `false` if that is nothing.
    pub(super) fn refresh(
        &mut self,
        event: &TimeWaitEvent,
        out: &mut impl FnMut(Transition),
    ) -> bool {
        let known = self.lives.get(&event.minisocket);
        let Some(mut life) = known.filter(|life| life.is(event.cookie)).copied() else {
            return false;
        };
        if event.substate == TcpState::TimeWait {
            self.silent_start(&mut life, event, true, out);
            life.armed = life.armed.max(self.started(event));
            self.lives.insert(event.minisocket, life);
        }
        true
    }

    /// Takes a minisocket that was found, and says since when at least it is in its state. `start` is since when a change
    /// would have been seen.
    pub(super) fn found(&mut self, event: &TimeWaitEvent, start: u64) -> u64 {
        let start = start.min(event.time);
        let since = match event.substate {
            TcpState::TimeWait => start.min(self.started(event)),
            _ => start,
        };
        self.make_room();
        let mut life = Life::new(event, since, Bound::AtLeast);
        life.armed = since;
        self.lives.insert(event.minisocket, life);
        since
    }

    /// When TIME_WAIT was started last, exact to a tick: it takes 60 s, unless the timer wheel is late.
    fn started(&self, event: &TimeWaitEvent) -> u64 {
        let started_ticks = event
            .due
            .saturating_sub(TIME_WAIT_NANOSECONDS / self.tick.max(1));
        let ago = event
            .ticks
            .saturating_sub(started_ticks)
            .saturating_mul(self.tick);
        event.time.saturating_sub(ago)
    }

    fn make_room(&mut self) {
        if self.lives.len() >= self.limit {
            self.lives.swap_remove_index(0);
            self.forgotten += 1;
        }
        grow_slowly(&mut self.lives);
    }

    fn armed(&mut self, event: &TimeWaitEvent, out: &mut impl FnMut(Transition)) {
        let known = self
            .lives
            .get_mut(&event.minisocket)
            .filter(|life| life.is(event.cookie));
        let Some(life) = known else {
            self.born(event);
            return;
        };
        let before = *life;
        life.armed = event.time;
        let phase = Phase::between(before.entered, event.time, before.bound);
        let reason = if before.state == event.substate {
            Some(Reason::Restarted)
        } else {
            life.state = event.substate;
            (life.entered, life.bound) = (event.time, Bound::Exact);
            None
        };
        out(before.transition(event, event.time, event.substate, phase, reason));
    }

    fn born(&mut self, event: &TimeWaitEvent) {
        self.make_room();
        if self.born.len() >= self.limit {
            self.born.clear();
        }
        if let Some(cookie) = event.cookie {
            self.born.insert(cookie, event.minisocket);
        }
        self.lives
            .insert(event.minisocket, Life::new(event, event.time, Bound::Exact));
    }

    fn end_early(
        &mut self,
        event: &TimeWaitEvent,
        unseen: Option<u64>,
        out: &mut impl FnMut(Transition),
    ) {
        let reason = match (self.callers.find(&event.callers), event.substate) {
            (Some(Caller::Connect), _) => Reason::ReusedConnect,
            (Some(Caller::Receive), TcpState::FinWait2) => Reason::ResetHalfClose,
            (Some(Caller::Receive), _) => Reason::ReusedSyn,
            (Some(Caller::Reset), _) => Reason::Rst,
            (Some(Caller::Abort), _) => Reason::Destroyed,
            (Some(Caller::Purge), _) => Reason::NamespaceGone,
            (None, _) => Reason::Unknown,
        };
        self.end(event, reason, unseen, out);
    }

    fn end(
        &mut self,
        event: &TimeWaitEvent,
        reason: Reason,
        unseen: Option<u64>,
        out: &mut impl FnMut(Transition),
    ) {
        let known = self
            .lives
            .swap_remove(&event.minisocket)
            .filter(|life| life.is(event.cookie));
        let mut life = known.unwrap_or_else(|| match unseen {
            Some(start) => Life::new(event, start, Bound::AtLeast),
            None => Life::new(event, event.time, Bound::Unknown),
        });
        if event.substate == TcpState::TimeWait {
            self.silent_start(&mut life, event, known.is_some(), out);
        }
        let phase = Phase::between(life.entered, event.time, life.bound);
        out(life.transition(event, event.time, TcpState::Close, phase, Some(reason)));
    }

    /// mod_timer() tells nothing when the new time falls into the same bucket of the timer wheel (about two seconds wide),
    /// but the timer's due time and the substate are set all the same: so they say at the end when TIME_WAIT was started
    /// last, exact to a tick.
    fn silent_start(
        &self,
        life: &mut Life,
        event: &TimeWaitEvent,
        known: bool,
        out: &mut impl FnMut(Transition),
    ) {
        let started = self.started(event);
        if life.state == TcpState::FinWait2 {
            let started = started.max(life.armed);
            let phase = Phase::between(life.entered, started, life.bound);
            out(life.transition(event, started, TcpState::TimeWait, phase, None));
            life.state = TcpState::TimeWait;
            (life.entered, life.bound) = (started, Bound::Exact);
        } else if known && started > life.armed.saturating_add(2 * self.tick) {
            let phase = Phase::between(life.entered, started, life.bound);
            let again = Some(Reason::Restarted);
            out(life.transition(event, started, TcpState::TimeWait, phase, again));
        } else if !known && started < event.time {
            // It was in TIME_WAIT at least since it was last started, also if that was before we looked.
            life.entered = life.entered.min(started);
            life.bound = Bound::AtLeast;
        }
    }
}

impl Life {
    fn new(event: &TimeWaitEvent, entered: u64, bound: Bound) -> Self {
        Self {
            cookie: event.cookie.and_then(NonZeroU64::new),
            entered,
            armed: event.time,
            cgroup: None,
            owner: None,
            uid: u32::MAX,
            state: event.substate,
            bound,
        }
    }

    /// Whether this is the minisocket of the connection with this cookie: at its address there may be another one by now.
    fn is(&self, cookie: Option<u64>) -> bool {
        self.cookie.map(NonZeroU64::get) == cookie
    }

    fn transition(
        &self,
        event: &TimeWaitEvent,
        time: u64,
        new: TcpState,
        phase: Phase,
        reason: Option<Reason>,
    ) -> Transition {
        let cookie = self.cookie.map(NonZeroU64::get);
        Transition {
            connection: cookie.unwrap_or_default(),
            phase,
            process: self.owner,
            cgroup: None,
            damaged: false,
            minisocket: true,
            reason,
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
                totals: None,
                context: None,
            },
        }
    }
}
