//! What a view remembers of each connection, for a limited number of them.

use tcpstate_common::state::TcpState;

use crate::{
    event::About,
    lifecycle::{Found, Transition},
    prefetch::Prefetch,
    register::Register,
};

/// Something about each connection, by its key. When there are too many, others are forgotten, and counted.
#[derive(Debug)]
pub struct Memory<T> {
    connections: Register<T>,
    limit: usize,
    forgotten: u64,
}

impl<T> Memory<T> {
    /// For at most so many connections.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            connections: Register::default(),
            limit: limit.max(1),
            forgotten: 0,
        }
    }

    /// Connections forgotten because there were too many.
    #[must_use]
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Has what is remembered of the connection of this socket fetched from memory: a transition of it comes soon.
    pub fn prefetch(&self, about: About, what: Prefetch) {
        if let Some(cookie) = about.cookie {
            let key = key(cookie, about.minisocket.is_some());
            self.connections.prefetch(key, what);
        }
    }

    /// The key of the connection of a transition. One that goes on as a minisocket gets another: the socket may be used again
    /// meanwhile, with the same identity.
    pub fn key(&mut self, transition: &Transition) -> u64 {
        let key = key(transition.connection, transition.minisocket);
        let begins = transition.event.old != TcpState::TimeWait || transition.damaged;
        if transition.minisocket
            && begins
            && !self.connections.contains(key)
            && let Some(known) = self.connections.remove(transition.connection)
        {
            self.connections.insert(key, known);
        }
        key
    }

    /// What is remembered of a connection.
    pub fn get(&mut self, connection: u64) -> Option<&mut T> {
        self.connections.get_mut(connection)
    }

    /// All that is remembered.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.connections.iter()
    }

    /// Remembers a connection, and gives back what was remembered of one that had to go: its own before, or another's.
    pub fn insert(&mut self, connection: u64, value: T) -> Option<T> {
        let gone = self.connections.make_room(connection, self.limit);
        self.forgotten += u64::from(gone.is_some());
        self.connections.insert(connection, value).or(gone)
    }

    /// The same, but what was remembered of the connection itself is not given back.
    pub fn replace(&mut self, connection: u64, value: T) -> Option<T> {
        if let Some(known) = self.connections.get_mut(connection) {
            *known = value;
            return None;
        }
        self.insert(connection, value)
    }

    /// Forgets a connection that has ended.
    pub fn remove(&mut self, connection: u64) -> Option<T> {
        self.connections.remove(connection)
    }
}

/// The key of a connection that was found.
#[must_use]
pub const fn key_of_found(found: &Found) -> u64 {
    key(found.connection, found.minisocket)
}

const fn key(connection: u64, minisocket: bool) -> u64 {
    /// Identities are below (see [`crate::lifecycle::OWN_IDS`]).
    const MINISOCKET: u64 = 1 << 63;
    if minisocket {
        connection | MINISOCKET
    } else {
        connection
    }
}
