//! Which connection an event belongs to, where the kernel has no socket cookies (before 5.12, and with the classic
//! tracepoint): the address of the socket, made unique by a new number for every new life at that address.

use rustc_hash::FxHashMap;
use tcpstate_common::state::TcpState;

use crate::event::TransitionEvent;

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
        if !event.is_birth()
            && let Some(id) = self.current(event.socket)
        {
            return id;
        }
        let id = OWN_IDS + self.made;
        self.made += 1;
        self.current.insert(event.socket, id);
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
