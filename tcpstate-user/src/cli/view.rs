//! Everything right of the ring buffer.

mod found;
mod losses;
mod reports;

use std::io;

use super::{ahead::Ahead, args::LiveArgs, names::Names, shape::Shape, window::Window};
use crate::{
    analysis::{Connections, Reports},
    event::{About, CallEvent, CallStep, Event, Process, TimeWaitStep, TransitionEvent},
    filter::{Filter, Gate, Unattributed},
    kernel::{Owners, TimeWaitHook},
    lifecycle::{Counts, Lifecycle, Round, Transition},
    prefetch::Prefetch,
    recording::{Header, Step, Tape},
    sink::{Sink, Summary},
};

pub use losses::Losses;

/// How long a record may take from its time to where we can read it: that much later all CPUs have written theirs.
const DELAY: u64 = 50_000_000;

/// From records to rows.
pub struct View {
    filter: Filter,
    gate: Gate,
    lifecycle: Lifecycle,
    sink: Box<dyn Sink>,
    names: Names,
    owners: Owners,
    connections: Option<Connections>,
    running: bool,
    /// Transitions are shown besides connections.
    both: bool,
    reports: Option<Reports>,
    /// Nothing is shown: it is recorded only.
    idle: bool,
    /// Sockets that were there before, of what is recorded only.
    passed: u64,
    tape: Option<Tape>,
    window: Window,
    /// What minisockets do is seen: else nothing that is found of one could be followed.
    minisockets: bool,
    /// What is found now is for others.
    skip_found: bool,
    /// A report had something to say.
    counted: bool,
    /// Intervals have ended that were too many for a report each.
    leapt: bool,
    /// What comes next.
    ahead: Ahead,
    transitions: Vec<Transition>,
    events: u64,
    /// When the last one happened.
    time: u64,
    shown: u64,
    /// When the last report ended.
    reported: u64,
    wanted: u64,
    unattributed: u64,
    undecodable: u64,
    /// Events that came twice.
    repeated: u64,
    /// Records that were still waiting when the run ended.
    pub unread: u64,
    /// Records that a recording has no place for.
    pub unrecorded: u64,
}

/// What became of records that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// All were taken.
    All,
    /// Not the last of them: as many rows have been shown as were asked for.
    Enough,
    /// One is younger than the turn it is in.
    Younger,
}

impl View {
    /// Shows what is asked for through `sink`.
    pub fn new(
        args: &LiveArgs,
        mut filter: Filter,
        names: Names,
        sink: Box<dyn Sink>,
        header: &Header,
        shape: Shape,
    ) -> Self {
        let limit = args.max_connections;
        let mut lifecycle = Lifecycle::new(limit, header.begins)
            .with_minisockets(header.callers.clone(), header.tick());
        lifecycle.begin_finding();
        if header.timewait == Some(TimeWaitHook::Poll) {
            lifecycle = lifecycle.with_poll();
        }
        let connections = match shape {
            Shape::Connections { .. } | Shape::Export { stays: false, .. } => {
                Some(Connections::new(limit))
            }
            Shape::Export { stays: true, .. } => Some(Connections::new(limit).with_stays()),
            Shape::Transitions | Shape::Reports(_) | Shape::Recording => None,
        };
        let running = matches!(
            shape,
            Shape::Connections { running: true } | Shape::Export { .. }
        );
        let both = matches!(
            shape,
            Shape::Export {
                transitions: true,
                ..
            }
        );
        let idle = matches!(shape, Shape::Recording);
        let mut wanted = args.count;
        let reports = if let Shape::Reports(periodic) = shape {
            wanted = periodic.reports;
            // A view that measures states has to see every transition of a connection.
            filter.states.clear();
            Some(reports::begin(periodic, header, limit))
        } else {
            None
        };
        Self {
            filter,
            gate: Gate::default(),
            lifecycle,
            sink,
            names,
            owners: Owners::default(),
            connections,
            running,
            both,
            reports,
            idle,
            passed: 0,
            tape: None,
            window: Window::default(),
            minisockets: header.timewait.is_some(),
            skip_found: false,
            counted: false,
            leapt: false,
            ahead: Ahead::default(),
            transitions: Vec::new(),
            events: 0,
            time: 0,
            shown: 0,
            reported: 0,
            wanted: wanted.unwrap_or(u64::MAX),
            unattributed: 0,
            undecodable: 0,
            repeated: 0,
            unread: 0,
            unrecorded: 0,
        }
    }

    /// Records everything that it is told from now on.
    pub fn record_on(&mut self, tape: Tape) {
        self.tape = Some(tape);
    }

    /// Shows only what is in this window of time.
    pub fn look_through(&mut self, window: Window) {
        self.window = window;
    }

    /// The recording names a cgroup.
    pub fn learn_cgroup(&mut self, id: u64, path: &str) {
        self.names.learn(id, path);
    }

    fn on_tape(&mut self, step: &Step<'_>) {
        if let Some(tape) = &mut self.tape {
            tape.take(step);
        }
    }

    /// The recording, if there is one.
    pub const fn tape(&mut self) -> Option<&mut Tape> {
        self.tape.as_mut()
    }

    /// One more record comes; `false` if that is enough of them for [`View::take_ahead`], which has to be asked at the end of a turn.
    pub fn look_ahead(&mut self, record: &[u8]) -> bool {
        let about = About::of(record);
        self.prefetch(about, Prefetch::Place);
        self.ahead.push(record, about);
        !self.ahead.is_full()
    }

    /// Has what is kept of this socket fetched from memory.
    fn prefetch(&self, about: About, what: Prefetch) {
        self.lifecycle.prefetch(about, what);
        if let Some(connections) = &self.connections {
            connections.prefetch(about, what);
        }
        if let Some(reports) = &self.reports {
            reports.prefetch(about, what);
        }
    }

    /// Takes the records that came, which were sent until `now`.
    pub fn take_ahead(&mut self, now: u64) -> io::Result<Taken> {
        let mut ahead = std::mem::take(&mut self.ahead);
        for about in ahead.abouts() {
            self.prefetch(about, Prefetch::Value);
        }
        let mut taken = Taken::All;
        for record in ahead.iter() {
            if self.is_done() {
                taken = Taken::Enough;
                break;
            }
            if !self.record(record, now)? {
                taken = Taken::Younger;
                break;
            }
        }
        ahead.clear();
        self.ahead = ahead;
        Ok(taken)
    }

    /// Takes one record that was sent until `now`; `false` if it is younger.
    fn record(&mut self, bytes: &[u8], now: u64) -> io::Result<bool> {
        let decoded = Event::decode(bytes);
        let Ok(event) = &decoded else {
            self.undecodable += 1;
            self.lifecycle.events_lost(now);
            self.on_tape(&Step::Record(bytes));
            return Ok(true);
        };
        if event.time() > now {
            return Ok(false);
        }
        self.event(event)?;
        // Behind what was looked up for it.
        self.on_tape(&Step::Record(bytes));
        Ok(true)
    }

    /// The list of minisockets has been read once more.
    pub fn end_round(&mut self, round: Round) -> io::Result<()> {
        self.on_tape(&Step::Round(round));
        self.understand(|lifecycle, out| lifecycle.end_round(round, out))
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.time = event.time();
        if self.idle {
            self.pass(event);
            return Ok(());
        }
        if self.window.hides(event) {
            return Ok(());
        }
        if self.reports.is_some() {
            self.end_intervals(event.time())?;
        }
        match event {
            Event::Transition(event) => {
                self.events += 1;
                self.transition(event)
            }
            Event::Socket(event) => {
                self.found_socket(event);
                Ok(())
            }
            Event::TimeWait(event) if event.step == TimeWaitStep::Found => {
                self.found_minisocket(event)
            }
            Event::TimeWait(event) => {
                self.events += 1;
                if !self.filter.wants_minisocket(event) {
                    return Ok(());
                }
                self.understand(|lifecycle, out| lifecycle.timewait(event, out))
            }
            Event::Call(event) => {
                self.events += 1;
                self.call(event);
                Ok(())
            }
        }
    }

    /// Counts what is recorded only, and gives it the name that will be asked for.
    fn pass(&mut self, event: &Event) {
        match event {
            Event::Transition(event) => {
                self.events += 1;
                self.name_cgroup(event.cgroup);
            }
            Event::Socket(event) => {
                self.passed += 1;
                self.name_cgroup(event.cgroup);
            }
            Event::TimeWait(event) if event.step == TimeWaitStep::Found => self.passed += 1,
            Event::TimeWait(_) => self.events += 1,
            Event::Call(event) => {
                self.events += 1;
                self.name_cgroup(event.cgroup);
            }
        }
    }

    fn name_cgroup(&mut self, id: Option<u64>) {
        if let Some(id) = id
            && !self.lifecycle.knows_cgroup(id)
            && let Some(path) = self.names.path(id)
        {
            self.on_tape(&Step::Cgroup(id, &path));
            self.lifecycle.name_cgroup(id, &path);
        }
    }

    fn transition(&mut self, event: &TransitionEvent) -> io::Result<()> {
        self.name_cgroup(event.cgroup);
        if self.lifecycle.is_repeated(event) {
            self.repeated += 1;
            return Ok(());
        }
        let admitted = self.gate.admit(&self.filter, event);
        if let Some(held) = &admitted.held {
            self.admitted(held, true)?;
        }
        if let Some(accepted) = &admitted.accepted {
            self.call(accepted);
        }
        match admitted.wanted {
            Some(wanted) => self.admitted(event, wanted),
            None => Ok(()),
        }
    }

    fn admitted(&mut self, event: &TransitionEvent, wanted: bool) -> io::Result<()> {
        let mut transition = Transition::new(*event);
        self.lifecycle.understand(&mut transition);
        if !wanted {
            if let Some(reports) = &mut self.reports {
                reports.take(&transition, false);
            }
            return Ok(());
        }
        if !self.lifecycle.polls() {
            return self.show(&transition);
        }
        self.understand(|lifecycle, out| lifecycle.hold(transition, out))
    }

    fn call(&mut self, event: &CallEvent) {
        self.name_cgroup(event.cgroup);
        let asked = match event.step {
            CallStep::Accepted => {
                if let Some(connection) = self.lifecycle.accepted(event) {
                    self.accepted(connection, event.process);
                } else {
                    self.gate.accepted(event);
                }
                return;
            }
            CallStep::BindFailed(asked) => asked,
        };
        let Some(reports) = &mut self.reports else {
            return;
        };
        let cgroup = self.lifecycle.cgroup(event.cgroup);
        let wanted = self
            .filter
            .wants_owner(Some(event.process), cgroup.as_deref());
        self.unattributed += u64::from(wanted.is_err());
        if wanted.unwrap_or(false) && self.filter.wants_bind(event.protocol, asked) {
            reports.bind_failed(event);
        }
    }

    fn accepted(&mut self, connection: u64, process: Process) {
        if let Some(reports) = &mut self.reports {
            reports.accepted(connection, process);
        }
        if let Some(connections) = &mut self.connections {
            connections.accepted(connection, process);
        }
    }

    /// It is now this late, and everything before has been read.
    pub fn settle(&mut self, now: u64) -> io::Result<()> {
        self.on_tape(&Step::Settled(now));
        if self.idle {
            return Ok(());
        }
        let now = self.window.limit(now);
        let now = match self.reports {
            Some(_) => now.saturating_sub(DELAY),
            None => now,
        };
        self.end_intervals(now)?;
        self.understand(|lifecycle, out| lifecycle.settle(now, out))
    }

    /// Shows what the lifecycle makes of something.
    fn understand(
        &mut self,
        something: impl FnOnce(&mut Lifecycle, &mut dyn FnMut(Transition)),
    ) -> io::Result<()> {
        let mut transitions = std::mem::take(&mut self.transitions);
        something(&mut self.lifecycle, &mut |transition| {
            transitions.push(transition);
        });
        let result = transitions
            .drain(..)
            .try_for_each(|transition| self.show(&transition));
        self.transitions = transitions;
        result
    }

    fn show(&mut self, transition: &Transition) -> io::Result<()> {
        if let Some(reports) = &mut self.reports {
            let wanted = self.filter.wants(transition);
            self.unattributed += u64::from(wanted.is_err());
            reports.take(transition, wanted.unwrap_or(false));
            return Ok(());
        }
        if self.both || self.connections.is_none() {
            let wanted = self.filter.wants(transition);
            self.row(transition, wanted, |sink| sink.transition(transition))?;
        }
        let Some(connections) = &mut self.connections else {
            return Ok(());
        };
        let Some(ended) = connections.take(transition) else {
            return Ok(());
        };
        let wanted = if self.filter.wants_states(|state| ended.was_in(*state)) {
            let cgroup = transition.cgroup.as_deref();
            self.filter.wants_owner(transition.process, cgroup)
        } else {
            Ok(false)
        };
        self.row(transition, wanted, |sink| sink.connection(&ended))
    }

    /// Writes a row if it is wanted, and this transition, with which it comes, is in the window.
    fn row(
        &mut self,
        transition: &Transition,
        wanted: Result<bool, Unattributed>,
        write: impl FnOnce(&mut dyn Sink) -> io::Result<()>,
    ) -> io::Result<()> {
        match wanted {
            Ok(true) if !self.is_done() && self.window.shows(transition.event.time) => {
                self.shown += 1;
                write(&mut *self.sink)
            }
            Ok(_) => Ok(()),
            Err(Unattributed) => {
                self.unattributed += 1;
                Ok(())
            }
        }
    }

    /// The run ends now, and everything before has been read: shows what is left, if that was asked for.
    pub fn finish(&mut self, now: u64) -> io::Result<()> {
        self.on_tape(&Step::End(now));
        self.window.since = self.window.since.min(now);
        self.end_intervals(now)?;
        self.understand(|lifecycle, out| lifecycle.settle(u64::MAX, out))?;
        let (done, shown) = (self.is_done(), self.shown);
        if let Some(reports) = self.reports.as_mut().filter(|_| !done) {
            let last = reports.end(now);
            // One that was cut short is worth showing if it is the only one, or says something.
            if shown == 0 || last.says_something() {
                self.report(&last)?;
            }
        }
        let Some(connections) = self.connections.as_mut().filter(|_| self.running) else {
            return Ok(());
        };
        for connection in connections.finish(now) {
            if self.shown == self.wanted {
                break;
            }
            if !self.filter.wants_states(|state| connection.was_in(*state)) {
                continue;
            }
            let process = connection.closer.or(connection.owner);
            match self
                .filter
                .wants_owner(process, connection.cgroup.as_deref())
            {
                Ok(true) => {
                    self.shown += 1;
                    self.sink.connection(&connection)?;
                }
                Ok(false) => {}
                Err(Unattributed) => self.unattributed += 1,
            }
        }
        Ok(())
    }

    /// Connections forgotten because a table was full.
    fn forgotten(&self) -> u64 {
        let connections = self.connections.as_ref().map_or(0, Connections::forgotten);
        let reports = self.reports.as_ref().map_or(0, Reports::forgotten);
        self.lifecycle.counts().evicted + connections + reports
    }

    /// Whether as many rows were shown as were asked for, or nothing more can be recorded.
    pub fn is_done(&self) -> bool {
        self.shown >= self.wanted || self.idle && self.tape.as_ref().is_none_or(Tape::is_broken)
    }

    /// Whether there was anything to show.
    pub const fn has_shown(&self) -> bool {
        match self.reports {
            _ if self.idle => self.events + self.passed + self.undecodable > 0,
            Some(_) => self.counted,
            None => self.shown > 0,
        }
    }

    /// Rows or reports shown.
    pub const fn shown(&self) -> u64 {
        self.shown
    }

    /// When the last report ended, if there were as many as were asked for: what comes then is in none.
    pub fn reported(&self) -> Option<u64> {
        (self.reports.is_some() && self.is_done()).then_some(self.reported)
    }

    /// When the last event happened.
    pub const fn time(&self) -> u64 {
        self.time
    }

    /// Records that came.
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// Transitions hidden because no process or cgroup is known for them.
    pub const fn unattributed(&self) -> u64 {
        self.unattributed
    }

    /// Connections whose deciding port or address is not known.
    pub fn undecided(&self) -> u64 {
        self.gate.undecided()
    }

    /// What the lifecycle has counted.
    pub const fn counts(&self) -> Counts {
        self.lifecycle.counts()
    }

    /// The last line.
    pub fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        if self.idle && self.is_done() {
            // Nothing more could be recorded, which is said instead.
            return Ok(());
        }
        self.sink.summary(summary)
    }

    /// Passes on what was written.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some(tape) = &mut self.tape {
            tape.tick();
        }
        self.sink.flush()
    }

    /// The terminal has this many columns.
    pub fn resize(&mut self, columns: usize) {
        self.sink.resize(columns);
    }
}
