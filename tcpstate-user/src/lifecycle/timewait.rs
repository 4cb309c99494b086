//! The life of TIME_WAIT minisockets: born in FIN_WAIT2 or TIME_WAIT, restarted, ended, and why.

use indexmap::IndexMap;
use rustc_hash::{FxBuildHasher, FxHashMap};
use tcpstate_common::state::TcpState;

use super::{
    Bound, Phase, Transition,
    caller::{Caller, Callers},
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

/// What is kept of one minisocket.
#[derive(Clone, Copy, Debug)]
struct Life {
    cookie: Option<u64>,
    state: TcpState,
    entered: u64,
    bound: Bound,
    /// When the timer was last started, as far as we saw.
    armed: u64,
    /// When it was due then, in ticks: the low bits, which a silent start changes (by less than 65 s).
    due: u16,
    uid: Option<u32>,
    cgroup: Option<u64>,
    owner: Option<Process>,
}

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
    /// When something was lost last, if anything was.
    pub(super) lost: Option<u64>,
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
            lost: None,
            forgotten: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lives.len()
    }

    /// The minisocket that takes over from a full socket which closes.
    pub(super) fn born_of(&mut self, event: &TransitionEvent) -> Option<Born> {
        use TcpState::{Closing, FinWait1, FinWait2};
        // Only an active close comes there (`tcp_time_wait`): after a loss a restart may have been taken for a birth.
        if !matches!(event.old, FinWait1 | FinWait2 | Closing) {
            return None;
        }
        let address = self.born.remove(&event.cookie?)?;
        let life = self
            .lives
            .get(&address)
            .filter(|life| life.cookie == event.cookie)?;
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
            life.uid = event.uid;
            life.cgroup = event.cgroup;
            life.owner = owner;
            if let Some((entered, bound)) = fin_wait2 {
                (life.entered, life.bound) = (entered, bound);
            } else if born.state == TcpState::TimeWait {
                life.bound = Bound::Exact;
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
        let mut before = self.cancelled.remove(&event.cpu);
        if let Some(other) = before.take_if(|before| {
            (before.minisocket, before.cookie) != (event.minisocket, event.cookie)
        }) {
            self.end_early(&other, unseen, out);
        }
        match event.step {
            TimerStep::Armed => self.armed(&event, before.as_ref(), out),
            TimerStep::Cancelled => {
                self.cancelled.insert(event.cpu, event);
            }
            TimerStep::Expired => self.end(&event, Reason::Expired, unseen, out),
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

    /// `off` is what the timer was when it was taken off just before.
    fn armed(
        &mut self,
        event: &TimeWaitEvent,
        off: Option<&TimeWaitEvent>,
        out: &mut impl FnMut(Transition),
    ) {
        // A FIN that came before, and told nothing?
        let fin = off.map(|off| (low_bits(off.due), self.started(off)));
        let known = self
            .lives
            .get_mut(&event.minisocket)
            .filter(|life| life.cookie == event.cookie);
        let Some(life) = known else {
            if off.is_some() {
                // Started again, and older than what we know.
                self.insert(event, Bound::AtLeast);
            } else {
                self.born(event);
            }
            return;
        };
        let mut before = *life;
        let lost = self.lost.is_some_and(|lost| lost >= before.armed);
        let fin = fin.filter(|(due, _)| *due != before.due);
        if (fin.is_some() || lost)
            && (before.state, event.substate) == (TcpState::FinWait2, TcpState::TimeWait)
        {
            let started = fin.map_or(event.time, |(_, started)| started.min(event.time));
            before.start_unseen(event, started, out);
            *life = before;
        }
        (life.armed, life.due) = (event.time, low_bits(event.due));
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

    fn born(&mut self, event: &TimeWaitEvent) {
        if self.born.len() >= self.limit {
            self.born.clear();
        }
        if let Some(cookie) = event.cookie {
            self.born.insert(cookie, event.minisocket);
        }
        // In FIN_WAIT2 it goes on with that of the full socket; and after a loss it may not be born now but started again. The
        // full socket's last event tells, if it comes.
        let bound = match event.substate {
            TcpState::TimeWait if self.lost.is_none() => Bound::Exact,
            _ => Bound::AtLeast,
        };
        self.insert(event, bound);
    }

    fn insert(&mut self, event: &TimeWaitEvent, bound: Bound) {
        if self.lives.len() >= self.limit {
            self.lives.swap_remove_index(0);
            self.forgotten += 1;
        }
        self.lives
            .insert(event.minisocket, Life::new(event, event.time, bound));
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
        if self.lost.is_none_or(|lost| lost < event.time) {
            self.end(event, reason, unseen, out);
            return;
        }
        // What followed may be lost: then it was started again, and lives.
        let known = self.lives.swap_remove(&event.minisocket);
        let life = known
            .filter(|life| life.cookie == event.cookie)
            .unwrap_or_else(|| Life::new(event, event.time, Bound::Unknown));
        let unknown = Some(Reason::Unknown);
        out(Transition {
            damaged: true,
            ..life.transition(event, event.time, TcpState::Close, Phase::UNKNOWN, unknown)
        });
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
            .filter(|life| life.cookie == event.cookie);
        // One that is not known may have been forgotten.
        let unseen = unseen.filter(|_| self.forgotten == 0);
        let mut life = known.unwrap_or_else(|| match unseen {
            Some(start) => Life::new(event, start, Bound::AtLeast),
            None => Life::new(event, event.time, Bound::Unknown),
        });
        if event.substate == TcpState::TimeWait {
            self.silent_start(&mut life, event, known.is_some(), out);
        }
        let phase = Phase::between(life.entered, event.time, life.bound);
        out(Transition {
            damaged: known.is_none() && unseen.is_none(),
            ..life.transition(event, event.time, TcpState::Close, phase, Some(reason))
        });
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
            life.start_unseen(event, started, out);
        } else if known && started > life.armed.saturating_add(2 * self.tick) {
            let phase = Phase::between(life.entered, started, life.bound);
            let again = Some(Reason::Restarted);
            out(life.transition(event, started, TcpState::TimeWait, phase, again));
        } else if !known && life.bound != Bound::Unknown && started < event.time {
            // It was in TIME_WAIT at least since it was last started, also if that was before we looked.
            life.entered = life.entered.min(started);
            life.bound = Bound::AtLeast;
        }
    }
}

fn low_bits(due: u64) -> u16 {
    u16::try_from(due & u64::from(u16::MAX)).unwrap_or_default()
}

impl Life {
    fn new(event: &TimeWaitEvent, entered: u64, bound: Bound) -> Self {
        Self {
            cookie: event.cookie,
            state: event.substate,
            entered,
            bound,
            armed: event.time,
            due: low_bits(event.due),
            uid: None,
            cgroup: None,
            owner: None,
        }
    }

    /// TIME_WAIT was started last then, and nobody knows how often before: the FIN came then at the latest.
    fn start_unseen(
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

    fn transition(
        &self,
        event: &TimeWaitEvent,
        time: u64,
        new: TcpState,
        phase: Phase,
        reason: Option<Reason>,
    ) -> Transition {
        Transition {
            connection: self.cookie.unwrap_or_default(),
            phase,
            process: self.owner,
            cgroup: None,
            damaged: false,
            minisocket: true,
            reason,
            event: TransitionEvent {
                time,
                cookie: self.cookie,
                socket: event.minisocket,
                listener_cookie: None,
                listener_socket: None,
                netns_cookie: event.netns_cookie,
                netns: event.netns,
                cgroup: self.cgroup,
                uid: self.uid,
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
