//! Which connection an event belongs to, where the kernel has no socket cookies (before 5.12, and with the classic
//! tracepoint): the address of the socket, made unique by a new number for every new life at that address.

use crate::register::Register;

/// Identities of our own start here: above every cookie, and exact in a JSON reader that knows only doubles.
pub const OWN_IDS: u64 = 1 << 52;

/// The living sockets without a cookie.
#[derive(Debug, Default)]
pub(super) struct Identities {
    /// By address.
    current: Register<u64>,
    made: u64,
}

impl Identities {
    /// A life begins at this address: its identity, and the one that had to leave if there are more than so many.
    pub(super) fn make(&mut self, socket: u64, limit: usize) -> (u64, Option<u64>) {
        let id = OWN_IDS + self.made;
        self.made += 1;
        let gone = self.current.make_room(socket, limit);
        self.current.insert(socket, id);
        (id, gone)
    }

    /// The identity of the socket that lives at this address now.
    pub(super) fn current(&self, socket: u64) -> Option<u64> {
        self.current.get(socket).copied()
    }

    /// The life at this address has ended.
    pub(super) fn forget(&mut self, socket: u64) {
        self.current.remove(socket);
    }
}

#[cfg(test)]
mod tests {
    use super::Identities;

    #[test]
    fn who_has_to_leave_is_told() {
        let mut identities = Identities::default();
        let gone = (0..1000).filter_map(|socket| identities.make(socket, 100).1);
        assert_eq!(gone.count(), 900);
        let left = (0..1000).filter_map(|socket| identities.current(socket));
        assert_eq!(left.count(), 100);
        // A new life at an address that has one.
        let (id, gone) = identities.make(999, 100);
        assert_eq!((identities.current(999), gone), (Some(id), None));
    }
}
