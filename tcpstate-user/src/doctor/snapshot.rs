//! Everything that a rule may look at.

use indexmap::IndexMap;

use super::{binds::FailedBind, counters::NetCounters, finding::Who};
use crate::{event::Endpoint, settings::Settings};
#[cfg(test)]
use {super::finding::Process, crate::analysis::Opened};

/// What was seen during the watch, and what network namespaces have set and counted.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// How long was watched, in nanoseconds.
    pub nanoseconds: u64,
    /// Seconds in a state that only passes that were too long.
    pub stay: f64,
    /// Nothing can have been seen to stay so long.
    pub short: bool,
    /// Of this machine, now; else from a recording.
    pub live: bool,
    /// The life of TIME_WAIT was observed.
    pub timewait: bool,
    /// System calls were watched.
    pub calls: bool,
    /// The hook told errors of sockets.
    pub errors: bool,
    /// Nothing was lost, and the sockets that were there at the start are counted.
    pub certain: bool,
    /// Network namespaces of which something is known, by inode number.
    pub namespaces: Vec<Namespace>,
    /// Who closed first.
    pub closes: Vec<Closes>,
    /// TIME_WAITs.
    pub waits: Vec<Waits>,
    /// Local ports in use.
    pub ports: Vec<Ports>,
    /// connect() that found no port: whose, from, to, and how often.
    pub portless: Vec<Portless>,
    /// bind() that found its address in use.
    pub binds: Vec<FailedBind>,
    /// Sockets that stay in states that only pass.
    pub stays: Vec<Stay>,
    /// How connections began and ended.
    pub ends: Vec<Ends>,
}

/// One network namespace.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    /// Its inode number.
    pub netns: u32,
    /// What it has set.
    pub settings: Option<Settings>,
    /// What it had counted before the watch, and after.
    pub counters: Option<(NetCounters, NetCounters)>,
}

/// First closes of one group.
#[derive(Clone, Debug)]
pub struct Closes {
    /// The process that closed, or whose the connection was.
    pub who: Who,
    /// This side closed first.
    pub local: u64,
    /// Of them with a RST.
    pub local_rst: u64,
    /// The peer did.
    pub remote: u64,
    /// Of them with a RST.
    pub remote_rst: u64,
    /// Both sides closed at the same time: they passed CLOSING.
    pub simultaneous: u64,
    /// TIME_WAITs that began.
    pub time_waits: u64,
    /// Minisockets in FIN_WAIT2, or in TIME_WAIT unheard.
    pub fin_wait2: u64,
}

/// TIME_WAITs of one group.
#[derive(Clone, Debug)]
pub struct Waits {
    /// Whose connection it was.
    pub who: Who,
    /// There are so many now.
    pub now: u64,
    /// Minisockets in FIN_WAIT2, or in TIME_WAIT unheard.
    pub fin_wait2: u64,
    /// Began during the watch.
    pub born: u64,
    /// Ended since a RST came.
    pub rst: u64,
    /// Connections that got none.
    pub overflow: u64,
    /// Ended when their time was over.
    pub expired: u64,
    /// Taken over by connect().
    pub reused_connect: u64,
    /// Taken over by a new SYN.
    pub reused_syn: u64,
    /// Destroyed by an administrator.
    pub destroyed: u64,
    /// Ended with their network namespace.
    pub namespace_gone: u64,
    /// Ended before their time, and it is not known why.
    pub unknown: u64,
    /// Begun anew, since an old segment came.
    pub restarted: u64,
}

/// Local ports towards one destination.
#[derive(Clone, Debug)]
pub struct Ports {
    /// Network namespace: inode number.
    pub netns: Option<u32>,
    /// The local address.
    pub source: Option<Endpoint>,
    /// The peer's address and port.
    pub destination: Option<Endpoint>,
    /// In use.
    pub used: u64,
    /// Of them by minisockets.
    pub minisockets: u64,
    /// There are so many.
    pub limit: Option<u64>,
    /// Change a second.
    pub growth: Option<f64>,
    /// Seconds until there is none.
    pub until_none: Option<f64>,
    /// connect() that found none.
    pub failed: u64,
    /// connect() may take over TIME_WAITs.
    pub reuse: bool,
}

/// connect() of one process that found no port.
#[derive(Clone, Debug)]
pub struct Portless {
    /// Whose.
    pub who: Who,
    /// How often.
    pub failed: u64,
}

/// Sockets of one group that stay.
#[derive(Clone, Debug)]
pub struct Stay {
    /// Whose.
    pub who: Who,
    /// The state, as in machine formats.
    pub state: String,
    /// How many.
    pub sockets: u64,
    /// Seconds that the oldest is in it.
    pub age: Option<f64>,
    /// It may be older.
    pub at_least: bool,
}

/// Beginnings and ends of connections of one group.
#[derive(Clone, Debug)]
pub struct Ends {
    /// Whose, and towards whom.
    pub who: Who,
    /// connect() that began.
    pub attempts: u64,
    /// Came to be open.
    pub established: u64,
    /// connect() that was refused.
    pub refused: u64,
    /// That could not reach the peer.
    pub unreachable: u64,
    /// That nobody answered.
    pub connect_timeout: u64,
    /// That the application gave up.
    pub given_up: u64,
    /// Open ones of which the peer was not heard any more.
    pub timeout: u64,
    /// The peer reset, after data had gone either way.
    pub rst_received: u64,
    /// The peer reset, and no data had gone.
    pub rst_received_idle: u64,
    /// We reset, after data had gone either way.
    pub rst_sent: u64,
    /// We reset, and no data had gone.
    pub rst_sent_idle: u64,
    /// Of which beginning and first close were seen.
    pub lives: u64,
    /// Of them short ones.
    pub short_lives: u64,
    /// TIME_WAITs that the peer ended by a RST.
    pub wait_rst: u64,
    /// TIME_WAITs that began anew, since the peer sent an old segment.
    pub wait_restarted: u64,
    /// TIME_WAITs that the peer took over by a new SYN.
    pub wait_syn: u64,
}

impl Snapshot {
    /// What is known of minisockets, by network namespace.
    pub(super) fn waits_by_namespace(&self) -> impl Iterator<Item = (Option<u32>, Vec<&Waits>)> {
        let mut namespaces: IndexMap<_, Vec<_>> = IndexMap::default();
        for waits in &self.waits {
            namespaces.entry(waits.who.netns).or_default().push(waits);
        }
        namespaces.into_iter()
    }

    /// How long was watched, in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        real(self.nanoseconds) / 1e9
    }

    /// So many a second.
    #[must_use]
    pub fn rate(&self, count: u64) -> f64 {
        if self.nanoseconds == 0 {
            return 0.0;
        }
        real(count) / self.seconds()
    }

    /// What is known of how connections began and ended, by network namespace.
    pub(super) fn ends_by_namespace(&self) -> impl Iterator<Item = (Option<u32>, Vec<&Ends>)> {
        let mut namespaces: IndexMap<_, Vec<_>> = IndexMap::default();
        for ends in &self.ends {
            namespaces.entry(ends.who.netns).or_default().push(ends);
        }
        namespaces.into_iter()
    }

    /// How far a counter of a network namespace has gone, if that is known.
    #[must_use]
    pub fn counted(&self, netns: Option<u32>, name: &str) -> Option<u64> {
        self.namespace(netns?)?.counted(name)
    }

    /// What a network namespace has set, if that is known.
    #[must_use]
    pub fn setting(&self, netns: Option<u32>, name: &str) -> Option<&str> {
        self.namespace(netns?)?.settings.as_ref()?.get(name)
    }

    /// The same as a number.
    #[must_use]
    pub fn number(&self, netns: Option<u32>, name: &str) -> Option<u64> {
        self.setting(netns, name)?.parse().ok()
    }

    /// A network namespace, if anything is known of it.
    #[must_use]
    pub fn namespace(&self, netns: u32) -> Option<&Namespace> {
        self.namespaces.iter().find(|one| one.netns == netns)
    }
}

impl Closes {
    /// TIME_WAITs at most.
    #[must_use]
    pub const fn minisockets(&self) -> u64 {
        self.time_waits + self.fin_wait2
    }
}

impl Waits {
    /// TIME_WAITs at most.
    #[must_use]
    pub const fn minisockets(&self) -> u64 {
        self.now + self.fin_wait2
    }

    /// Those that ended.
    #[must_use]
    pub const fn ended(&self) -> u64 {
        self.expired
            + self.reused_connect
            + self.reused_syn
            + self.rst
            + self.destroyed
            + self.namespace_gone
            + self.unknown
    }
}

impl Namespace {
    /// How far a counter has gone during the watch, if both its values are known.
    #[must_use]
    pub fn counted(&self, name: &str) -> Option<u64> {
        let (before, after) = self.counters.as_ref()?;
        Some(after.get(name)?.saturating_sub(before.get(name)?))
    }
}

impl Ends {
    /// connect() that failed.
    #[must_use]
    pub const fn failed(&self) -> u64 {
        self.refused + self.unreachable + self.connect_timeout + self.given_up
    }
}

/// A count to calculate with.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    reason = "to compare and to show; counts stay below 2^53"
)]
pub fn real(count: u64) -> f64 {
    count as f64
}

/// A number to show as a count.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, and what is shown is positive"
)]
pub fn whole(number: f64) -> u64 {
    number.round() as u64
}

/// Which part of the whole it is; nothing of nothing.
#[must_use]
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    real(part) / real(whole)
}

#[cfg(test)]
impl Who {
    /// No process, in one namespace, to make others of.
    pub(super) fn nobody(opened: Opened) -> Self {
        Self {
            process: Process::default(),
            container: None,
            netns: Some(1),
            opened,
            service: None,
            peer: None,
        }
    }
}

#[cfg(test)]
impl Closes {
    /// None yet, to make others of.
    #[must_use]
    pub fn of(opened: Opened) -> Self {
        Self {
            who: Who::nobody(opened),
            local: 0,
            local_rst: 0,
            remote: 0,
            remote_rst: 0,
            simultaneous: 0,
            time_waits: 0,
            fin_wait2: 0,
        }
    }
}

#[cfg(test)]
impl Ends {
    /// None yet, to make others of.
    #[must_use]
    pub fn of(opened: Opened) -> Self {
        Self {
            who: Who::nobody(opened),
            attempts: 0,
            established: 0,
            refused: 0,
            unreachable: 0,
            connect_timeout: 0,
            given_up: 0,
            timeout: 0,
            rst_received: 0,
            rst_received_idle: 0,
            rst_sent: 0,
            rst_sent_idle: 0,
            lives: 0,
            short_lives: 0,
            wait_rst: 0,
            wait_restarted: 0,
            wait_syn: 0,
        }
    }
}

#[cfg(test)]
impl Waits {
    /// None yet in this namespace, to make others of.
    #[must_use]
    pub fn of(netns: u32) -> Self {
        Self {
            who: Who {
                netns: Some(netns),
                ..Who::nobody(Opened::Passive)
            },
            now: 0,
            fin_wait2: 0,
            born: 0,
            rst: 0,
            overflow: 0,
            expired: 0,
            reused_connect: 0,
            reused_syn: 0,
            destroyed: 0,
            namespace_gone: 0,
            unknown: 0,
            restarted: 0,
        }
    }
}
