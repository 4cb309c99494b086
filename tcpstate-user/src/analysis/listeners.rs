//! Which ports have listeners: that tells who opened a connection that was there before.

use hashbrown::HashMap;
use tcpstate_common::state::TcpState;

use super::{Opened, key::Subject};
use crate::lifecycle::{Found, Transition};

/// Ports in use by listeners, for each network namespace.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    namespaces: HashMap<u64, HashMap<u16, u32>>,
    /// How many ports these are.
    ports: usize,
    /// Those that were there before have been found.
    complete: bool,
    /// There were too many.
    forgotten: bool,
}

impl Listeners {
    /// Takes a transition of any socket.
    pub(crate) fn take(&mut self, transition: &Transition) {
        let event = &transition.event;
        let subject = Subject::of(transition);
        if event.new == TcpState::Listen && event.old != TcpState::Listen {
            self.add(&subject);
        } else if event.ends_listener() {
            self.remove(&subject);
        }
    }

    /// Who opened a connection that was found: the peer if a listener has its local port, else this host. The kernel lists
    /// listeners first (`tcp_seek_last_pos` in `net/ipv4/tcp_ipv4.c`).
    pub(crate) fn opened(&mut self, found: &Found) -> Opened {
        let subject = Subject::of_found(found);
        if found.state == TcpState::Listen {
            self.add(&subject);
        }
        match self.has(&subject) {
            true => Opened::Passive,
            false if self.forgotten => Opened::Unknown,
            false => Opened::Active,
        }
    }

    /// The same for a connection met in the middle of its life: not known if its listener may not have been found.
    pub(crate) fn opened_of(&self, subject: &Subject) -> Opened {
        match self.has(subject) {
            true => Opened::Passive,
            false if self.complete && !self.forgotten => Opened::Active,
            false => Opened::Unknown,
        }
    }

    /// All that were there before have been found.
    pub(crate) const fn all_found(&mut self) {
        self.complete = true;
    }

    fn has(&self, subject: &Subject) -> bool {
        self.namespaces
            .get(&subject.namespace())
            .is_some_and(|ports| ports.contains_key(&subject.local.port))
    }

    /// The ports that listeners of a network namespace have.
    pub(crate) fn of(&self, namespace: u64) -> impl Iterator<Item = u16> {
        let ports = self.namespaces.get(&namespace);
        ports.into_iter().flat_map(|ports| ports.keys().copied())
    }

    fn add(&mut self, subject: &Subject) {
        /// Ends that were lost must not fill the memory.
        const LIMIT: usize = 1 << 20;
        if self.ports >= LIMIT {
            self.namespaces.clear();
            self.ports = 0;
            self.forgotten = true;
        }
        let ports = self.namespaces.entry(subject.namespace()).or_default();
        let listeners = ports.entry(subject.local.port).or_default();
        self.ports += usize::from(*listeners == 0);
        *listeners += 1;
    }

    fn remove(&mut self, subject: &Subject) {
        let Some(ports) = self.namespaces.get_mut(&subject.namespace()) else {
            return;
        };
        let Some(listeners) = ports.get_mut(&subject.local.port) else {
            return;
        };
        *listeners -= 1;
        if *listeners == 0 {
            ports.remove(&subject.local.port);
            self.ports -= 1;
            if ports.is_empty() {
                self.namespaces.remove(&subject.namespace());
            }
        }
    }
}
