//! Understands events: which connection, how long in the old state, whose, and what is missing.
//!
//! Pure: events in, transitions out; no clock, no input or output, no privilege. It knows connections by socket cookie,
//! never by pointer (except where the kernel has no cookies, see `identity.rs`).

mod caller;
mod cgroups;
mod found;
mod identity;
mod life;
mod phase;
mod poll;
mod reason;
mod timewait;

use std::{sync::Arc, time::Duration};

use tcpstate_common::state::TcpState;

use crate::{
    event::{
        About, CallEvent, CallStep, Event, Process, TimeWaitEvent, TimeWaitStep, TransitionEvent,
        Via,
    },
    prefetch::Prefetch,
    register::Register,
};
use cgroups::Cgroups;
use found::Ended;
use identity::Identities;
use poll::Poll;
use timewait::{MiniSockets, Unseen, goes_on};

pub use caller::{Caller, Callers};
pub use found::Found;
pub use identity::OWN_IDS;
pub use phase::{Bound, Phase};
pub use poll::Round;
pub use reason::{KnownBy, Reason};

/// One state change of one connection, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// What the kernel said.
    pub event: TransitionEvent,
    /// The connection: its socket cookie, or a number of our own from [`OWN_IDS`] upwards.
    pub connection: u64,
    /// Time spent in the old state.
    pub phase: Phase,
    /// Whose it is, and how we know.
    pub process: Option<Process>,
    /// Path of its cgroup below the root of the cgroup hierarchy.
    pub cgroup: Option<Arc<str>>,
    /// The old state does not follow from what was seen before: something was lost.
    pub damaged: bool,
    /// Old or new is a state of the TIME_WAIT minisocket.
    pub minisocket: bool,
    /// Why the minisocket ended, that it was restarted, or that there was none.
    pub reason: Option<Reason>,
    /// How the reason is known.
    pub known_by: Option<KnownBy>,
}

impl Transition {
    /// One of which nothing is understood yet.
    #[must_use]
    pub const fn new(event: TransitionEvent) -> Self {
        Self {
            event,
            connection: 0,
            phase: Phase::UNKNOWN,
            process: None,
            cgroup: None,
            damaged: false,
            minisocket: false,
            reason: None,
            known_by: None,
        }
    }

    /// The thread in whose context this happened, if [`Transition::process`] is that of the context.
    #[must_use]
    pub fn tid(&self) -> Option<u32> {
        let context = self.event.context.as_ref()?;
        self.process
            .filter(|process| process.pid == context.pid)
            .map(|_| context.tid)
    }
}

/// What the lifecycle has to say about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Transitions understood.
    pub transitions: u64,
    /// Connections and listeners seen.
    pub connections: u64,
    /// Transitions whose old state did not follow from what was seen.
    pub damaged: u64,
    /// Connections forgotten because the table was full.
    pub evicted: u64,
    /// Sockets that were there before.
    pub found: u64,
}

/// What is kept of one open connection.
#[derive(Clone, Copy, Debug)]
struct Connection {
    state: TcpState,
    /// When the state was entered, and whether it was then or earlier.
    entered: u64,
    bound: Bound,
    /// When we heard of it last.
    heard: u64,
    owner: Option<Process>,
}

/// All connections that are open, as far as we know.
#[derive(Debug)]
pub struct Lifecycle {
    connections: Register<Connection>,
    identities: Identities,
    cgroups: Cgroups,
    minisockets: MiniSockets,
    ended: Ended,
    poll: Option<Poll>,
    limit: usize,
    start: u64,
    /// When something was lost last, if anything was.
    lost: Option<u64>,
    counts: Counts,
    random: u64,
}

impl Lifecycle {
    /// An empty table for at most `limit` connections; `start` is when the hooks were in place (nanoseconds of
    /// `CLOCK_MONOTONIC`).
    #[must_use]
    pub fn new(limit: usize, start: u64) -> Self {
        Self {
            connections: Register::default(),
            identities: Identities::default(),
            cgroups: Cgroups::default(),
            minisockets: MiniSockets::new(limit.max(1), Callers::default(), DEFAULT_TICK),
            ended: Ended::default(),
            poll: None,
            limit: limit.max(1),
            start,
            lost: None,
            counts: Counts::default(),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// Lets it understand minisockets: who ends them in this kernel, and how long a tick of its timers is.
    #[must_use]
    pub fn with_minisockets(mut self, callers: Callers, tick: Duration) -> Self {
        let tick = u64::try_from(tick.as_nanos()).unwrap_or(DEFAULT_TICK);
        self.minisockets = MiniSockets::new(self.limit, callers, tick);
        self
    }

    /// What has been counted so far.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        let evicted = self.counts.evicted + self.minisockets.forgotten;
        Counts {
            evicted,
            ..self.counts
        }
    }

    /// Connections held now, without minisockets.
    #[must_use]
    pub fn open(&self) -> usize {
        self.connections.len()
    }

    /// Minisockets held now.
    #[must_use]
    pub fn minisockets(&self) -> usize {
        self.minisockets.len()
    }

    /// Events were lost, none of them later than `at` (nanoseconds of `CLOCK_MONOTONIC`): a connection met in the middle of
    /// its life from now on may have begun unseen, and one not heard of since then may have changed unseen.
    pub fn events_lost(&mut self, at: u64) {
        self.lost = Some(self.lost.map_or(at, |before| before.max(at)));
        self.minisockets.lost = self.lost;
    }

    /// Whether the path of this cgroup is known.
    #[must_use]
    pub fn knows_cgroup(&self, id: u64) -> bool {
        self.cgroups.has(id)
    }

    /// The path of this cgroup, if it is known.
    #[must_use]
    pub fn cgroup(&self, id: Option<u64>) -> Option<Arc<str>> {
        self.cgroups.path(id)
    }

    /// A cgroup has this path. The names of many cgroups that came and went are forgotten at once.
    pub fn name_cgroup(&mut self, id: u64, path: &str) {
        self.cgroups.name(id, path);
    }

    /// Has what is kept of this socket fetched from memory: an event of it comes soon.
    pub fn prefetch(&self, about: About, what: Prefetch) {
        match about {
            About {
                minisocket: Some(minisocket),
                ..
            } => self.minisockets.prefetch(minisocket, what),
            About {
                cookie: Some(cookie),
                ..
            } => self.connections.prefetch(cookie, what),
            _ => {}
        }
    }

    /// Understands one event, and passes on what it means: nothing, or one or more transitions.
    pub fn event(&mut self, event: Event, out: impl FnMut(Transition)) {
        match event {
            Event::Transition(event) if self.is_repeated(&event) => {}
            Event::Transition(event) => {
                let transition = self.transition(&event);
                self.hold(transition, out);
            }
            Event::TimeWait(event) if event.step == TimeWaitStep::Found => {
                self.found_minisocket(&event, out);
            }
            Event::TimeWait(event) => self.timewait(&event, out),
            Event::Socket(event) => {
                self.found(&event, None);
            }
            Event::Call(event) => {
                self.accepted(&event);
            }
        }
    }

    /// It is now this late (nanoseconds of `CLOCK_MONOTONIC`; `u64::MAX` at the end of the run): passes on what only the absence
    /// of events could tell.
    pub fn settle(&mut self, now: u64, mut out: impl FnMut(Transition)) {
        if now == u64::MAX {
            self.release(&mut out);
        }
        self.with_unseen(
            |minisockets, unseen, mut out| minisockets.settle(now, unseen, &mut out),
            out,
        );
    }

    /// Understands what happened to a minisocket. One that was found is for [`Lifecycle::event`].
    pub fn timewait(&mut self, event: &TimeWaitEvent, out: impl FnMut(Transition)) {
        self.with_unseen(
            |minisockets, unseen, mut out| minisockets.event(event, unseen, &mut out),
            out,
        );
    }

    /// Lets the minisockets understand something, and passes on what it means.
    fn with_unseen(
        &mut self,
        something: impl FnOnce(&mut MiniSockets, Unseen<'_>, &mut dyn FnMut(Transition)),
        mut out: impl FnMut(Transition),
    ) {
        let unseen = Unseen {
            since: self.lost.is_none().then_some(self.start),
            connections: &self.connections,
        };
        // There may be full sockets whose own end was not told.
        let mut damaged = Vec::new();
        something(&mut self.minisockets, unseen, &mut |transition| {
            if transition.event.new == TcpState::Close {
                self.ended.add(&transition.event, self.limit);
                damaged.extend(transition.damaged.then_some(transition.connection));
            }
            self.counts.transitions += 1;
            self.counts.damaged += u64::from(transition.damaged);
            out(named(&self.cgroups, transition));
        });
        for id in damaged {
            let full = self.connections.get(id);
            if full.is_some_and(|full| goes_on(full.state)) {
                self.connections.remove(id);
            }
        }
    }

    /// Whether an event is one that is known already: our second program takes those that the kernel did not run the first
    /// one for, and may be wrong about that.
    #[must_use]
    pub fn is_repeated(&self, event: &TransitionEvent) -> bool {
        if !event.second_look || event.old == event.new {
            return false;
        }
        let id = event
            .cookie
            .or_else(|| self.identities.current(event.socket));
        id.and_then(|id| self.connections.get(id))
            .map_or(event.new == TcpState::Close, |connection| {
                connection.state == event.new
            })
    }

    /// Understands one transition of a full socket. One that gives way to its minisocket goes on in that one's state.
    pub fn transition(&mut self, event: &TransitionEvent) -> Transition {
        let mut transition = Transition::new(*event);
        self.understand(&mut transition);
        transition
    }

    /// The same, of a [`Transition::new`].
    pub fn understand(&mut self, transition: &mut Transition) {
        let event = &mut transition.event;
        let id = match event.cookie {
            Some(cookie) => cookie,
            None => self.identity(event.socket, event.is_birth(), event.time),
        };
        transition.connection = id;
        transition.cgroup = self.cgroups.path(event.cgroup);
        if event.is_birth() {
            self.minisockets.forget(event);
        }
        let heir = event.is_child().then(|| self.listener_owner(event));
        let known = self.connections.get_mut(id);
        let (mut born, mut refused) = (None, None);
        if event.new == TcpState::Close {
            refused = self.minisockets.refused_to(event);
            born = self.minisockets.born_of(event);
        }
        // That there was no minisocket is worth nothing if its birth may have been lost.
        let heard = known.as_ref().map_or(self.start, |known| known.heard);
        // So it may before all hooks were in place: the one that tells births comes after the one that tells states.
        let whole = self.lost.is_none_or(|lost| lost < heard) && event.time >= self.start;
        let refused = refused
            .filter(|(_, known_by)| born.is_none() && (whole || *known_by == KnownBy::Kernel));
        event.refused = refused.map(|(state, _)| state);
        transition.reason = refused.map(|_| Reason::Overflow);
        transition.known_by = refused.map(|(_, known_by)| known_by);
        if let Some(born) = born {
            // The minisocket was born a moment before the full socket closed.
            event.time = born.time;
        }
        let (phase, damaged) = match &known {
            Some(connection) => connection.phase(event, self.lost),
            None => first_phase(event, self.start, self.lost),
        };
        (transition.phase, transition.damaged) = (phase, damaged);
        let owner = heir.unwrap_or_else(|| owner(event, known.as_deref()));
        transition.process = shown(event, owner);

        self.counts.transitions += 1;
        self.counts.damaged += u64::from(damaged);
        if event.is_birth() || (known.is_none() && event.old != TcpState::Close) {
            self.counts.connections += 1;
        }
        if event.new == TcpState::Close {
            self.connections.remove(id);
            if event.cookie.is_none() {
                self.identities.forget(event.socket);
            }
            if born.is_none() {
                self.ended.add(event, self.limit);
            }
        } else {
            let after = Connection::after(event, known.as_deref(), phase, owner);
            match known {
                Some(known) => *known = after,
                None => self.insert(id, after),
            }
        }
        if let Some(born) = born {
            let fin_wait2 = (born.state == event.old)
                .then(|| phase.began(event.time))
                .flatten();
            self.minisockets.inherit(born, id, event, owner, fin_wait2);
            event.new = born.state;
            transition.minisocket = true;
        }
    }

    /// A connection belongs to the process that accepted it: says which. `None` if it is not known, or has an owner that has
    /// used it already.
    pub fn accepted(&mut self, event: &CallEvent) -> Option<u64> {
        if event.step != CallStep::Accepted {
            return None;
        }
        let id = event
            .cookie
            .or_else(|| self.identities.current(event.socket))?;
        let connection = self.connections.get_mut(id)?;
        if connection.owner.is_some_and(has_used) {
            return None;
        }
        connection.owner = Some(event.process);
        Some(id)
    }

    fn listener_owner(&self, event: &TransitionEvent) -> Option<Process> {
        let id = match event.cookie {
            Some(_) => event.listener_cookie,
            None => event
                .listener_socket
                .and_then(|socket| self.identities.current(socket)),
        }?;
        let listener = self.connections.get(id)?;
        let owner = listener
            .owner
            .filter(|_| listener.state == TcpState::Listen)?;
        Some(Process {
            via: Via::Listener,
            ..owner
        })
    }

    /// The identity of a socket without a cookie, which we hear of at this time.
    fn identity(&mut self, socket: u64, is_birth: bool, time: u64) -> u64 {
        let current = self.identities.current(socket);
        if let Some(id) = current.filter(|_| !is_birth) {
            return id;
        }
        // Twice as many as connections, since those of connections that were forgotten are still there.
        let (id, gone) = self.identities.make(socket, self.limit.saturating_mul(2));
        if gone.is_some_and(|gone| self.connections.remove(gone).is_some()) {
            self.counts.evicted += 1;
            self.events_lost(time);
        }
        id
    }

    fn insert(&mut self, id: u64, connection: Connection) {
        if self.connections.len() >= self.limit && !self.connections.contains(id) {
            self.evict();
        }
        self.connections.insert(id, connection);
    }

    /// Forgets the connection that has been silent longest among a few picked at random.
    fn evict(&mut self) {
        const SAMPLE: usize = 8;
        let mut victim: Option<(u64, u64)> = None;
        for _ in 0..SAMPLE {
            // xorshift64: good enough to pick a victim, and the same in every replay.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            // The table is full, so there is something in nearly every place.
            let range = self.connections.places() as u64;
            let place = usize::try_from(self.random % range).unwrap_or_default();
            if let Some((id, connection)) = self.connections.at(place)
                && victim.is_none_or(|(_, heard)| connection.heard < heard)
            {
                victim = Some((id, connection.heard));
            }
        }
        if let Some((id, heard)) = victim {
            self.connections.remove(id);
            self.counts.evicted += 1;
            self.events_lost(heard);
        }
    }
}

impl Connection {
    /// The time in the old state, and whether something is missing between what we knew and this event.
    fn phase(&self, event: &TransitionEvent, lost: Option<u64>) -> (Phase, bool) {
        if self.state != event.old {
            // It came into the old state unseen, after we heard of it last.
            return (Phase::between(self.heard, event.time, Bound::AtMost), true);
        }
        // A socket can be used again: if something was lost meanwhile, it may have left the state and come back.
        let bound = match (lost.is_some_and(|lost| self.heard <= lost), self.bound) {
            (true, Bound::Exact) => Bound::AtMost,
            (true, Bound::AtLeast) => Bound::Unknown,
            (_, bound) => bound,
        };
        (Phase::between(self.entered, event.time, bound), false)
    }

    fn after(
        event: &TransitionEvent,
        known: Option<&Self>,
        phase: Phase,
        owner: Option<Process>,
    ) -> Self {
        // shutdown() followed by close() gives FIN_WAIT2 -> FIN_WAIT2: the state goes on.
        let goes_on = event.old == event.new && phase.bound() != Bound::Unknown;
        let (entered, bound) = match known {
            Some(connection) if goes_on && connection.state == event.old => {
                (connection.entered, connection.bound)
            }
            _ if goes_on => (
                event
                    .time
                    .saturating_sub(phase.nanoseconds().unwrap_or_default()),
                phase.bound(),
            ),
            // Since when it is in this state is not known, but it is.
            _ if event.old == event.new => (event.time, Bound::AtLeast),
            _ => (event.time, Bound::Exact),
        };
        Self {
            state: event.new,
            entered,
            bound,
            heard: event.time,
            owner,
        }
    }
}

/// The time in the old state of a connection that we meet for the first time, and whether something is missing. `start` is when the
/// hooks were in place.
fn first_phase(event: &TransitionEvent, start: u64, lost: Option<u64>) -> (Phase, bool) {
    if event.is_birth() || event.old == TcpState::Close {
        // How long a socket existed before it was used is not told; a child's LISTEN is its listener's.
        (Phase::UNKNOWN, false)
    } else if lost.is_some() {
        (Phase::UNKNOWN, true)
    } else {
        (Phase::between(start, event.time, Bound::AtLeast), false)
    }
}

/// The owner after this event: a task that used the socket itself, or the one before. That of a child is its listener's.
fn owner(event: &TransitionEvent, known: Option<&Connection>) -> Option<Process> {
    let before = known.and_then(|connection| connection.owner);
    let Some(context) = &event.context else {
        return before;
    };
    let in_use = event.is_of_a_call() && !event.is_destroyed() && !before.is_some_and(has_used);
    let owns = match context.via {
        Via::Connect | Via::Listen => true,
        Via::Syscall => in_use,
        Via::Close | Via::Shutdown | Via::Accept | Via::Listener | Via::Scan => false,
    };
    if owns {
        Some(Process {
            pid: context.pid,
            comm: context.comm,
            via: context.via,
        })
    } else {
        before
    }
}

/// Whether it is an owner by what it did with the socket, not by what it may do.
const fn has_used(process: Process) -> bool {
    !matches!(process.via, Via::Listener | Via::Scan)
}

/// 250 ticks a second.
const DEFAULT_TICK: u64 = 4_000_000;

/// With the name of its cgroup.
fn named(cgroups: &Cgroups, mut transition: Transition) -> Transition {
    transition.cgroup = cgroups.path(transition.event.cgroup);
    transition
}

/// The process to show with an event: the task in whose context it happened, else the owner.
fn shown(event: &TransitionEvent, owner: Option<Process>) -> Option<Process> {
    let Some(context) = &event.context else {
        return owner;
    };
    // `ss -K` holds the socket as its owner would, but is not. And `connect` says more than `syscall`.
    let same = owner.is_some_and(|process| process.pid == context.pid);
    // That holds for a listener too, whose socket does not say so yet (`tcp_abort`).
    let maybe_destroyed = event.is_destroyed() || event.ends_listener();
    if context.via == Via::Syscall && (same || maybe_destroyed || !event.is_of_a_call()) {
        return owner;
    }
    Some(Process {
        pid: context.pid,
        comm: context.comm,
        via: context.via,
    })
}
