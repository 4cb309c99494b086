//! What a view remembers of each connection, for a limited number of them.

use indexmap::IndexMap;
use rustc_hash::FxBuildHasher;
use tcpstate_common::state::TcpState;

use crate::lifecycle::{Found, Transition};

/// Something about each connection, by its key. When there are too many, others are forgotten, and counted.
#[derive(Debug)]
pub struct Memory<T> {
    connections: IndexMap<u64, T, FxBuildHasher>,
    limit: usize,
    forgotten: u64,
}

impl<T> Memory<T> {
    /// For at most so many connections.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            connections: IndexMap::default(),
            limit: limit.max(1),
            forgotten: 0,
        }
    }

    /// Connections forgotten because there were too many.
    #[must_use]
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The key of the connection of a transition. One that goes on as a minisocket gets another: the socket may be used again
    /// meanwhile, with the same identity.
    pub fn key(&mut self, transition: &Transition) -> u64 {
        let key = key(transition.connection, transition.minisocket);
        let begins = transition.event.old != TcpState::TimeWait || transition.damaged;
        if transition.minisocket
            && begins
            && !self.connections.contains_key(&key)
            && let Some(known) = self.connections.swap_remove(&transition.connection)
        {
            self.connections.insert(key, known);
        }
        key
    }

    /// What is remembered of a connection.
    pub fn get(&mut self, connection: u64) -> Option<&mut T> {
        self.connections.get_mut(&connection)
    }

    /// All that is remembered.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.connections.iter().map(|(id, value)| (*id, value))
    }

    /// Remembers a connection, and gives back what was remembered of one that had to go: its own before, or another's.
    pub fn insert(&mut self, connection: u64, value: T) -> Option<T> {
        let mut gone = None;
        if self.connections.len() >= self.limit && !self.connections.contains_key(&connection) {
            gone = self
                .connections
                .swap_remove_index(0)
                .map(|(_, value)| value);
            self.forgotten += 1;
        }
        self.connections.insert(connection, value).or(gone)
    }

    /// The same, but what was remembered of the connection itself is not given back.
    pub fn replace(&mut self, connection: u64, value: T) -> Option<T> {
        if let Some(known) = self.connections.get_mut(&connection) {
            *known = value;
            return None;
        }
        self.insert(connection, value)
    }

    /// Forgets a connection that has ended.
    pub fn remove(&mut self, connection: u64) -> Option<T> {
        self.connections.swap_remove(&connection)
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
