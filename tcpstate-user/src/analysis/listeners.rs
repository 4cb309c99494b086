//! Which ports have listeners: that tells who opened a connection that was there before.

use rustc_hash::FxHashMap;
use tcpstate_common::state::TcpState;

use super::{Opened, key::Subject};
use crate::lifecycle::{Found, Transition};

/// Ports in use by listeners, for each network namespace.
#[derive(Debug, Default)]
pub(crate) struct Listeners(FxHashMap<(u64, u16), u32>);

impl Listeners {
    /// Takes a transition of any socket.
    pub(crate) fn take(&mut self, transition: &Transition) {
        let event = &transition.event;
        let subject = Subject::of(transition);
        if event.new == TcpState::Listen && event.old != TcpState::Listen {
            self.add(&subject);
        } else if event.ends_listener() {
            let key = (subject.namespace(), subject.local.port);
            if let Some(count) = self.0.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(&key);
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
        self.opened_of(&subject)
    }

    /// The same for a connection met in the middle of its life.
    pub(crate) fn opened_of(&self, subject: &Subject) -> Opened {
        if self
            .0
            .contains_key(&(subject.namespace(), subject.local.port))
        {
            Opened::Passive
        } else {
            Opened::Active
        }
    }

    /// The ports that listeners of a network namespace have.
    pub(crate) fn of(&self, namespace: u64) -> impl Iterator<Item = u16> {
        let all = self.0.keys();
        all.filter(move |(one, _)| *one == namespace)
            .map(|(_, port)| *port)
    }

    fn add(&mut self, subject: &Subject) {
        /// Ends that were lost must not fill the memory.
        const LIMIT: usize = 1 << 20;
        if self.0.len() >= LIMIT {
            self.0.clear();
        }
        *self
            .0
            .entry((subject.namespace(), subject.local.port))
            .or_default() += 1;
    }
}
