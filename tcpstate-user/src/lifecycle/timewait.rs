//! The life of TIME_WAIT minisockets: born in FIN_WAIT2 or TIME_WAIT, restarted, ended, and why.

use std::{collections::VecDeque, num::NonZeroU64};

use hashbrown::HashMap;
use tcpstate_common::state::TcpState;

use super::{
    Bound, Connection, Phase, Transition,
    caller::{Caller, Callers},
    identity::OWN_IDS,
    life::{Life, low_bits},
    reason::{KnownBy, Reason, Why},
};
use crate::{
    event::{Process, TimeWaitEvent, TimeWaitStep, TransitionEvent},
    prefetch::Prefetch,
    register::Register,
};

/// `TCP_TIMEWAIT_LEN` in `include/net/tcp.h`.
const TIME_WAIT_NANOSECONDS: u64 = 60_000_000_000;

/// How many ends are remembered, in case that two processors told the same one. They do that within microseconds.
const ENDED: usize = 32;

/// No kernel is built for more (`NR_CPUS`): only a recording that somebody made up has more.
const CPUS: usize = 8192;

/// A connection whose full socket is about to close: its cookie or, without cookies, the address of the full socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Closing {
    Cookie(u64),
    Socket(u64),
}

impl Closing {
    fn of(event: &TransitionEvent) -> Self {
        event
            .cookie
            .map_or(Self::Socket(event.socket), Self::Cookie)
    }
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

/// Whether a full socket in this state may go on as a minisocket: only an active close comes there (`tcp_time_wait`).
pub(super) const fn goes_on(state: TcpState) -> bool {
    matches!(
        state,
        TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing
    )
}

/// What may be known of a minisocket that we meet for the first time.
#[derive(Clone, Copy)]
pub(super) struct Unseen<'a> {
    /// Since when it may have lived.
    pub(super) since: Option<u64>,
    /// The full sockets that are open.
    pub(super) connections: &'a Register<Connection>,
}

impl Unseen<'_> {
    /// Since when at least it lives, if it was there before: not if its full socket is known, whose end is missing then.
    fn since(self, event: &TimeWaitEvent) -> Option<u64> {
        let full = event.cookie.and_then(|cookie| self.connections.get(cookie));
        self.since
            .filter(|_| !full.is_some_and(|full| goes_on(full.state)))
    }
}

/// All minisockets that live, as far as we know.
#[derive(Debug)]
pub(super) struct MiniSockets {
    lives: Register<Life>,
    /// Addresses of minisockets just born.
    born: HashMap<Closing, u64>,
    /// Connections that were refused a minisocket, and the state it would have had.
    refused: HashMap<Closing, TcpState>,
    /// Minisockets that ended just now, by address and cookie, told by the functions themselves.
    ended: VecDeque<(u64, Option<u64>)>,
    /// How many had to be given an identity of our own.
    made: u64,
    /// Per CPU: a timer that was taken off, until the next record of that CPU tells whether for good.
    cancelled: HashMap<u32, TimeWaitEvent>,
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
            lives: Register::default(),
            born: HashMap::default(),
            refused: HashMap::default(),
            ended: VecDeque::with_capacity(ENDED),
            made: 0,
            cancelled: HashMap::default(),
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

    pub(super) fn prefetch(&self, minisocket: u64, what: Prefetch) {
        self.lives.prefetch(minisocket, what);
    }

    /// The minisocket that takes over from a full socket which closes.
    pub(super) fn born_of(&mut self, event: &TransitionEvent) -> Option<Born> {
        // After a loss a restart may have been taken for a birth.
        if !goes_on(event.old) {
            return None;
        }
        let address = self.born.remove(&Closing::of(event))?;
        let life = self
            .lives
            .get(address)
            .filter(|life| life.is(event.cookie))?;
        Some(Born {
            address,
            state: life.state,
            time: life.armed,
        })
    }

    /// The minisocket that a closing full socket should have become and did not: the state it would have had.
    pub(super) fn refused_to(&mut self, event: &TransitionEvent) -> Option<(TcpState, KnownBy)> {
        match self.refused.remove(&Closing::of(event)) {
            Some(state) => Some((state, KnownBy::Kernel)),
            None => event.refused.map(|state| (state, KnownBy::Inferred)),
        }
    }

    /// A socket begins a new life. Where cookies are missing, what is still known of this address is of the life before.
    pub(super) fn forget(&mut self, event: &TransitionEvent) {
        if event.cookie.is_none() {
            self.born.remove(&Closing::of(event));
            self.refused.remove(&Closing::of(event));
        }
    }

    /// The full socket of a minisocket has closed: what was known of it goes on, and FIN_WAIT2 with it.
    pub(super) fn inherit(
        &mut self,
        born: Born,
        connection: u64,
        event: &TransitionEvent,
        owner: Option<Process>,
        fin_wait2: Option<(u64, Bound)>,
    ) {
        if let Some(life) = self.lives.get_mut(born.address) {
            life.connection = connection;
            life.uid = event.uid.unwrap_or(u32::MAX);
            life.cgroup = event.cgroup.and_then(NonZeroU64::new);
            life.owner = owner;
            if let Some((entered, bound)) = fin_wait2 {
                (life.entered, life.bound) = (entered, bound);
            } else if born.state == TcpState::TimeWait {
                life.bound = Bound::Exact;
            }
        }
    }

    /// Understands one event; `unseen` is what may be known of a minisocket that we meet now for the first time.
    pub(super) fn event(
        &mut self,
        event: &TimeWaitEvent,
        unseen: Unseen<'_>,
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
            // Timers do not tell a birth from a start whose cancellation was lost.
            TimeWaitStep::Armed if before.is_none() && !self.knows(event) => self.born(event),
            TimeWaitStep::Armed | TimeWaitStep::Restarted => {
                self.armed_again(event, before.as_ref(), out);
            }
            TimeWaitStep::Cancelled => {
                if self.cancelled.len() >= CPUS {
                    self.settle(u64::MAX, unseen, out);
                }
                self.cancelled.insert(event.cpu, event.clone());
            }
            TimeWaitStep::Found => {}
            TimeWaitStep::Expired | TimeWaitStep::TimedOut => {
                self.end(event, (Reason::Expired, KnownBy::Kernel), unseen, out);
            }
            TimeWaitStep::Born => self.born(event),
            TimeWaitStep::Ended => self.end_early(event, unseen, out),
            TimeWaitStep::Freed => {
                let purged = self.callers.find(&event.callers) == Some(Caller::Purge);
                if self.knows(event) || purged {
                    self.end_early(event, unseen, out);
                }
            }
            TimeWaitStep::Paired => {
                if let Some(socket) = event.socket
                    && self.knows(event)
                {
                    make_room(&mut self.born, self.limit);
                    self.born.insert(Closing::Socket(socket), event.minisocket);
                }
            }
            TimeWaitStep::Refused => {
                let socket = event.socket.map(Closing::Socket);
                if let Some(connection) = event.cookie.map(Closing::Cookie).or(socket) {
                    make_room(&mut self.refused, self.limit);
                    self.refused.insert(connection, event.substate);
                }
            }
        }
    }

    /// It is now this late: timers taken off long ago were taken off for good.
    pub(super) fn settle(
        &mut self,
        now: u64,
        unseen: Unseen<'_>,
        out: &mut impl FnMut(Transition),
    ) {
        /// A CPU of a virtual machine may be put aside for this long between two steps of the kernel.
        const PATIENCE: u64 = 100_000_000;
        if self.cancelled.is_empty() {
            return;
        }
        let mut late: Vec<_> = self
            .cancelled
            // At the end nothing more can follow.
            .extract_if(|_, event| now == u64::MAX || event.time.saturating_add(PATIENCE) < now)
            .map(|(_, event)| event)
            .collect();
        late.sort_by_key(|event| (event.time, event.cpu));
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
        let known = self.lives.get(event.minisocket);
        let Some(mut life) = known.filter(|life| life.is(event.cookie)).copied() else {
            return false;
        };
        if event.substate == TcpState::TimeWait {
            self.started_last(&mut life, event, true, true, out);
            life.armed = life.armed.max(self.started(event));
            life.due = low_bits(event.due);
            self.lives.insert(event.minisocket, life);
        }
        true
    }

    /// Takes a minisocket that was found, and says which connection it is and since when at least it is in its state.
    /// `start` is since when a change would have been seen.
    pub(super) fn found(&mut self, event: &TimeWaitEvent, start: u64) -> (u64, u64) {
        let start = start.min(event.time);
        let since = match event.substate {
            TcpState::TimeWait => start.min(self.started(event)),
            _ => start,
        };
        let mut life = self.life(event, since, Bound::AtLeast);
        life.armed = since;
        self.insert(event.minisocket, life);
        (life.connection, since)
    }

    /// A minisocket that was found goes on in the place of a full socket that closed: says in which state it was born.
    pub(super) fn follow(&mut self, event: &TimeWaitEvent, closed: &Transition) -> TcpState {
        let born = closed.event.time;
        let later = self.started(event) > born.saturating_add(2 * self.tick);
        let state = if later {
            TcpState::FinWait2
        } else {
            event.substate
        };
        let mut life = self.life(event, born, Bound::Exact);
        life.connection = closed.connection;
        life.state = state;
        life.armed = born;
        if state == closed.event.old
            && let Some((entered, bound)) = closed.phase.began(born)
        {
            (life.entered, life.bound) = (entered, bound);
        }
        life.uid = closed.event.uid.unwrap_or(u32::MAX);
        life.cgroup = closed.event.cgroup.and_then(NonZeroU64::new);
        life.owner = closed.process;
        self.insert(event.minisocket, life);
        state
    }

    /// A minisocket that was in the list at `seen` is not there any more.
    pub(super) fn missed(
        &mut self,
        end: &TimeWaitEvent,
        seen: u64,
        why: Why,
        out: &mut impl FnMut(Transition),
    ) {
        if !self.knows(end) {
            return;
        }
        let Some(life) = self.lives.remove(end.minisocket) else {
            return;
        };
        let phase = match life.bound {
            Bound::Exact => Phase::between(life.entered, end.time, Bound::AtMost),
            bound => Phase::between(life.entered, seen, bound),
        };
        out(life.transition(end, end.time, TcpState::Close, phase, Some(why)));
    }

    /// Length of a tick in nanoseconds.
    pub(super) const fn tick(&self) -> u64 {
        self.tick
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

    /// Whether the minisocket of an event is one that we know.
    fn knows(&self, event: &TimeWaitEvent) -> bool {
        self.lives
            .get(event.minisocket)
            .is_some_and(|life| life.is(event.cookie))
    }

    /// `off` is what the timer was when it was taken off just before, where that is told.
    fn armed_again(
        &mut self,
        event: &TimeWaitEvent,
        off: Option<&TimeWaitEvent>,
        out: &mut impl FnMut(Transition),
    ) {
        // A FIN that came before, and told nothing?
        let fin = off.map(|off| (low_bits(off.due), self.started(off)));
        if !self.knows(event) {
            if !self.has_ended(event) {
                // Older than the run. It may have been in this state already.
                let life = self.life(event, event.time, Bound::AtLeast);
                self.insert(event.minisocket, life);
            }
            return;
        }
        let Some(life) = self.lives.get_mut(event.minisocket) else {
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
        let why = if before.state == event.substate {
            Some((Reason::Restarted, KnownBy::Kernel))
        } else {
            life.state = event.substate;
            (life.entered, life.bound) = (event.time, Bound::Exact);
            None
        };
        out(before.transition(event, event.time, event.substate, phase, why));
    }

    fn born(&mut self, event: &TimeWaitEvent) {
        make_room(&mut self.born, self.limit);
        if let Some(cookie) = event.cookie {
            self.born.insert(Closing::Cookie(cookie), event.minisocket);
        }
        // In FIN_WAIT2 it goes on with that of the full socket; and after a loss timers may tell not a birth but that it was
        // started again. The full socket's last event tells, if it comes.
        let sure = event.step == TimeWaitStep::Born || self.lost.is_none();
        let bound = match event.substate {
            TcpState::TimeWait if sure => Bound::Exact,
            _ => Bound::AtLeast,
        };
        let life = self.life(event, event.time, bound);
        self.insert(event.minisocket, life);
    }

    fn insert(&mut self, minisocket: u64, life: Life) {
        let gone = self.lives.make_room(minisocket, self.limit);
        self.forgotten += u64::from(gone.is_some());
        self.lives.insert(minisocket, life);
    }

    /// A life that begins to be known.
    fn life(&mut self, event: &TimeWaitEvent, entered: u64, bound: Bound) -> Life {
        /// Above those of full sockets without cookies, and still exact in a JSON reader that knows only doubles.
        const OWN: u64 = OWN_IDS + OWN_IDS / 2;
        let connection = event.cookie.unwrap_or_else(|| {
            self.made += 1;
            OWN + self.made
        });
        Life::new(event, connection, entered, bound)
    }

    fn has_ended(&self, event: &TimeWaitEvent) -> bool {
        self.ended.contains(&(event.minisocket, event.cookie))
    }

    fn end_early(
        &mut self,
        event: &TimeWaitEvent,
        unseen: Unseen<'_>,
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
        let known_by = match reason {
            Reason::Unknown => KnownBy::Inferred,
            _ => KnownBy::Kernel,
        };
        let told = event.step == TimeWaitStep::Ended;
        if told || self.lost.is_none_or(|lost| lost < event.time) {
            self.end(event, (reason, known_by), unseen, out);
            return;
        }
        // What followed may be lost: then it was started again, and lives.
        let known = self.lives.remove(event.minisocket);
        let life = known
            .filter(|life| life.is(event.cookie))
            .unwrap_or_else(|| self.life(event, event.time, Bound::Unknown));
        let why = Some((Reason::Unknown, KnownBy::Inferred));
        out(Transition {
            damaged: true,
            ..life.transition(event, event.time, TcpState::Close, Phase::UNKNOWN, why)
        });
    }

    fn end(
        &mut self,
        event: &TimeWaitEvent,
        why: Why,
        unseen: Unseen<'_>,
        out: &mut impl FnMut(Transition),
    ) {
        let known = self
            .lives
            .remove(event.minisocket)
            .filter(|life| life.is(event.cookie));
        let told = matches!(
            event.step,
            TimeWaitStep::Ended | TimeWaitStep::TimedOut | TimeWaitStep::Freed
        );
        if told {
            // It was taken off just as it expired, on two processors.
            if known.is_none() && self.has_ended(event) {
                return;
            }
            if self.ended.len() >= ENDED {
                self.ended.pop_front();
            }
            self.ended.push_back((event.minisocket, event.cookie));
        }
        // One that is not known may have been forgotten.
        let unseen = unseen.since(event).filter(|_| self.forgotten == 0);
        let mut life = known.unwrap_or_else(|| match unseen {
            Some(start) => self.life(event, start, Bound::AtLeast),
            None => self.life(event, event.time, Bound::Unknown),
        });
        if event.substate == TcpState::TimeWait {
            // The functions tell every start, so that there is none to be found as long as no event was lost.
            let silent = !told || unseen.is_none();
            self.started_last(&mut life, event, known.is_some(), silent, out);
        }
        let phase = Phase::between(life.entered, event.time, life.bound);
        out(Transition {
            damaged: known.is_none() && unseen.is_none(),
            ..life.transition(event, event.time, TcpState::Close, phase, Some(why))
        });
    }

    /// mod_timer() tells nothing when the new time falls into the same bucket of the timer wheel (about two seconds wide),
    /// but the timer's due time and the substate are set all the same: so they say at the end when TIME_WAIT was started
    /// last, exact to a tick.
    fn started_last(
        &self,
        life: &mut Life,
        event: &TimeWaitEvent,
        known: bool,
        silent: bool,
        out: &mut impl FnMut(Transition),
    ) {
        let started = self.started(event);
        if !known {
            if life.bound != Bound::Unknown && started < event.time {
                // It was in TIME_WAIT at least since it was last started, also if that was before we looked.
                life.entered = life.entered.min(started);
                life.bound = Bound::AtLeast;
            }
        } else if !silent {
            // Nothing to find.
        } else if life.state == TcpState::FinWait2 {
            life.start_unseen(event, started, out);
        } else if started > life.armed.saturating_add(2 * self.tick) {
            let phase = Phase::between(life.entered, started, life.bound);
            let again = Some((Reason::Restarted, KnownBy::Inferred));
            out(life.transition(event, started, TcpState::TimeWait, phase, again));
        }
    }
}

/// Connections that never closed are those whose closing was lost: nothing to keep.
fn make_room<T>(map: &mut HashMap<Closing, T>, limit: usize) {
    if map.len() >= limit {
        map.clear();
    }
}
