//! Which connection an event belongs to, where the kernel has no socket cookies (before 5.12, and with the classic
//! tracepoint): the address of the socket, made unique by a new number for every new life at that address.

use rustc_hash::FxHashMap;
use tcpstate_common::state::TcpState;

use crate::event::{SocketEvent, TransitionEvent};

/// Identities of our own start here: above every cookie, and exact in a JSON reader that knows only doubles.
pub const OWN_IDS: u64 = 1 << 52;

/// The living sockets without a cookie.
#[derive(Debug, Default)]
pub(super) struct Identities {
    current: FxHashMap<u64, u64>,
    made: u64,
}

impl Identities {
    /// The identity of the connection an event belongs to.
    pub(super) fn of(&mut self, event: &TransitionEvent) -> u64 {
        if let Some(cookie) = event.cookie {
            return cookie;
        }
        match self.current(event.socket).filter(|_| !event.is_birth()) {
            Some(id) => id,
            None => self.make(event.socket),
        }
    }

    /// The identity of a socket that was found.
    pub(super) fn of_found(&mut self, event: &SocketEvent) -> u64 {
        let known = event.cookie.or_else(|| self.current(event.socket));
        known.unwrap_or_else(|| self.make(event.socket))
    }

    fn make(&mut self, socket: u64) -> u64 {
        let id = OWN_IDS + self.made;
        self.made += 1;
        self.current.insert(socket, id);
        id
    }

    /// The identity of the socket that lives at this address now.
    pub(super) fn current(&self, socket: u64) -> Option<u64> {
        self.current.get(&socket).copied()
    }

    /// The life at this address has ended.
    pub(super) fn forget(&mut self, event: &TransitionEvent) {
        if event.cookie.is_none() && event.new == TcpState::Close {
            self.current.remove(&event.socket);
        }
    }
}
