//! Sockets that were there before the hooks: they take their place among those whose beginning was seen.

use std::sync::Arc;

use hashbrown::HashSet;
use tcpstate_common::state::TcpState;

use super::{Bound, Connection, Lifecycle, Transition, named};
use crate::event::{
    Endpoint, Process, Protocol, SocketEvent, TimeWaitEvent, Totals, TransitionEvent,
};

/// A connection (or a listener) that was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its identity (see [`super::Transition::connection`]).
    pub connection: u64,
    /// The state it is in.
    pub state: TcpState,
    /// Whether that is the state of a minisocket.
    pub minisocket: bool,
    /// It is in this state at least since then (nanoseconds of `CLOCK_MONOTONIC`).
    pub since: u64,
    /// When it was found.
    pub time: u64,
    /// Network namespace: inode number.
    pub netns: Option<u32>,
    /// Network namespace: cookie.
    pub netns_cookie: Option<u64>,
    /// Protocol.
    pub protocol: Protocol,
    /// This host's end.
    pub local: Endpoint,
    /// The peer's end.
    pub remote: Endpoint,
    /// Whose it is, and how we know.
    pub process: Option<Process>,
    /// User id of the socket.
    pub uid: Option<u32>,
    /// Id of its cgroup.
    pub cgroup_id: Option<u64>,
    /// Path of its cgroup.
    pub cgroup: Option<Arc<str>>,
    /// What it has done so far.
    pub totals: Option<Totals>,
}

/// Connections that have ended while the kernel's list was read. It may have shown them a moment before, and its records
/// stand behind their end then (before Linux 5.15 the list does not lock the sockets).
#[derive(Debug, Default)]
pub(super) struct Ended(Option<HashSet<u64>>);

impl Ended {
    /// Remembers an end, if the list is being read.
    pub(super) fn add(&mut self, event: &TransitionEvent, limit: usize) {
        if let Some(ended) = &mut self.0
            && ended.len() < limit
        {
            ended.insert(key(event.cookie, event.socket));
        }
    }

    /// Whether it may be that this one has ended.
    fn may_have(&self, key: u64, limit: usize) -> bool {
        self.0
            .as_ref()
            .is_none_or(|ended| ended.contains(&key) || ended.len() >= limit)
    }
}

/// By cookie; where the kernel has none for us, by address: another socket may have got it meanwhile, which is not found
/// then.
fn key(cookie: Option<u64>, socket: u64) -> u64 {
    cookie.unwrap_or(socket)
}

impl Lifecycle {
    /// The kernel's list of sockets begins to be read.
    pub fn begin_finding(&mut self) {
        self.ended = Ended(Some(HashSet::default()));
    }

    /// All of the list has been read: nothing more is found.
    pub fn end_finding(&mut self) {
        self.ended = Ended(None);
    }

    /// Takes a socket that was found, and its owner. `None` if it is known already, or has ended.
    pub fn found(&mut self, event: &SocketEvent, owner: Option<Process>) -> Option<Found> {
        if self
            .ended
            .may_have(key(event.cookie, event.socket), self.limit)
        {
            return None;
        }
        let id = match event.cookie {
            Some(cookie) => cookie,
            None => self.identity(event.socket, false, event.time),
        };
        if self.connections.contains(id) {
            return None;
        }
        // If nothing was lost, any change since the hooks were in place would have been seen.
        let since = self.lost.map_or(self.start.min(event.time), |_| event.time);
        let connection = Connection {
            state: event.state,
            entered: since,
            bound: Bound::AtLeast,
            heard: event.time,
            owner,
        };
        self.insert(id, connection);
        self.counts.found += 1;
        Some(Found {
            connection: id,
            state: event.state,
            minisocket: false,
            since,
            time: event.time,
            netns: event.netns,
            netns_cookie: event.netns_cookie,
            protocol: event.protocol,
            local: event.local,
            remote: event.remote,
            process: owner,
            uid: event.uid,
            cgroup_id: event.cgroup,
            cgroup: self.cgroups.path(event.cgroup),
            totals: event.totals,
        })
    }

    /// Takes a minisocket that was found. `None` if it is known already, or has ended. What is known of it may be
    /// out of date: FIN_WAIT2 can go on to TIME_WAIT, and TIME_WAIT be restarted, without an event (`mod_timer`).
    pub fn found_minisocket(
        &mut self,
        event: &TimeWaitEvent,
        mut out: impl FnMut(Transition),
    ) -> Option<Found> {
        let Self {
            minisockets,
            cgroups,
            counts,
            ..
        } = self;
        let known = minisockets.refresh(event, &mut |transition| {
            counts.transitions += 1;
            out(named(cgroups, transition));
        });
        let known = self.polled(event, known, &mut out);
        if known
            || self
                .ended
                .may_have(key(event.cookie, event.minisocket), self.limit)
        {
            return None;
        }
        let start = self.lost.map_or(self.start, |_| event.time);
        let (connection, since) = self.minisockets.found(event, start);
        self.counts.found += 1;
        Some(Found {
            connection,
            state: event.substate,
            minisocket: true,
            since,
            time: event.time,
            netns: event.netns,
            netns_cookie: event.netns_cookie,
            protocol: Protocol::Tcp,
            local: event.local,
            remote: event.remote,
            process: None,
            uid: None,
            cgroup_id: None,
            cgroup: None,
            totals: None,
        })
    }
}
