//! Records as the kernel side sends them, or as it never would, straight into what understands them: as in a live run.

use std::time::Duration;

use tcpstate_common::record::{
    CallRecord, RecordKind, SocketRecord, TimeWaitRecord, TransitionRecord,
};
use tcpstate_user::{
    analysis::Connections,
    event::Event,
    filter::{Filter, Gate},
    lifecycle::{Callers, Lifecycle, Transition},
};

use super::steps::{START, SYMBOLS};

/// Few enough to have some forgotten.
const LIMIT: usize = 8;

/// One record after the other, each as long as its kind is.
pub fn run(data: &[u8]) {
    let mut watch = Watch::new(data.first().is_some_and(|first| first & 128 != 0));
    let mut rest = data.get(1..).unwrap_or_default();
    while !rest.is_empty() {
        let (record, after) = rest.split_at(length(rest[0]).min(rest.len()));
        watch.record(record);
        rest = after;
    }
    watch.end();
}

/// How long a record of this kind is.
pub fn length(kind: u8) -> usize {
    match RecordKind::from_number(kind) {
        Some(RecordKind::Transition) => size_of::<TransitionRecord>(),
        Some(RecordKind::Socket) => size_of::<SocketRecord>(),
        Some(RecordKind::Call) => size_of::<CallRecord>(),
        Some(_) => size_of::<TimeWaitRecord>(),
        None => 1,
    }
}

struct Watch {
    gate: Gate,
    lifecycle: Lifecycle,
    connections: Connections,
    transitions: u64,
    now: u64,
}

impl Watch {
    fn new(poll: bool) -> Self {
        let mut lifecycle = Lifecycle::new(LIMIT, START)
            .with_minisockets(Callers::parse(SYMBOLS), Duration::from_millis(4));
        lifecycle.begin_finding();
        if poll {
            lifecycle = lifecycle.with_poll();
        }
        Self {
            gate: Gate::default(),
            lifecycle,
            connections: Connections::new(LIMIT),
            transitions: 0,
            now: START,
        }
    }

    fn record(&mut self, record: &[u8]) {
        let Ok(event) = Event::decode(record) else {
            self.lifecycle.events_lost(self.now);
            return;
        };
        self.now = self.now.max(event.time());
        match event {
            Event::Transition(event) => {
                if self.lifecycle.is_repeated(&event) {
                    return;
                }
                let admitted = self.gate.admit(&Filter::default(), &event);
                for (event, _) in admitted.events(&event) {
                    let transition = self.lifecycle.transition(event);
                    self.understand(|lifecycle, out| lifecycle.hold(transition, out));
                }
            }
            Event::Socket(event) => {
                if let Some(found) = self.lifecycle.found(&event, None) {
                    self.connections.found(&found);
                }
            }
            Event::Call(event) => {
                if let Some(connection) = self.lifecycle.accepted(&event) {
                    self.connections.accepted(connection, event.process);
                }
            }
            event @ Event::TimeWait(_) => {
                self.understand(|lifecycle, out| lifecycle.event(event, out));
            }
        }
        let now = self.now;
        self.understand(|lifecycle, out| lifecycle.settle(now, out));
        assert!(self.lifecycle.open() <= LIMIT && self.lifecycle.minisockets() <= LIMIT);
    }

    fn understand(&mut self, something: impl FnOnce(&mut Lifecycle, &mut dyn FnMut(Transition))) {
        let mut transitions = Vec::new();
        something(&mut self.lifecycle, &mut |transition| {
            transitions.push(transition);
        });
        for transition in transitions {
            self.take(&transition);
        }
    }

    fn take(&mut self, transition: &Transition) {
        self.transitions += 1;
        self.connections.take(transition);
    }

    fn end(mut self) {
        self.lifecycle.end_finding();
        self.understand(|lifecycle, out| lifecycle.settle(u64::MAX, out));
        assert!(self.connections.finish(self.now).count() <= 2 * LIMIT);
    }
}
