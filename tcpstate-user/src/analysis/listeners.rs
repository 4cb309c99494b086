//! Which ports have listeners: that tells who opened a connection that was there before.

use std::collections::BTreeMap;

use tcpstate_common::state::TcpState;

use super::{Opened, key::Subject};
use crate::lifecycle::{Found, Transition};

/// Ports in use by listeners, for each network namespace.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    ports: BTreeMap<(u64, u16), u32>,
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
            let key = (subject.namespace(), subject.local.port);
            if let Some(count) = self.ports.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.ports.remove(&key);
                }
            }
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
        let key = (subject.namespace(), subject.local.port);
        self.ports.contains_key(&key)
    }

    /// The ports that listeners of a network namespace have.
    pub(crate) fn of(&self, namespace: u64) -> impl Iterator<Item = u16> {
        let own = self.ports.range((namespace, 0)..=(namespace, u16::MAX));
        own.map(|((_, port), _)| *port)
    }

    fn add(&mut self, subject: &Subject) {
        /// Ends that were lost must not fill the memory.
        const LIMIT: usize = 1 << 20;
        if self.ports.len() >= LIMIT {
            self.ports.clear();
            self.forgotten = true;
        }
        *self
            .ports
            .entry((subject.namespace(), subject.local.port))
            .or_default() += 1;
    }
}
