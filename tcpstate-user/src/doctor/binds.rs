//! bind() that found its address in use, by process, and what had that port then.

use std::{cmp::Reverse, net::IpAddr, sync::Arc};

use hashbrown::HashMap;

use super::finding::{Process, container};
use crate::{
    analysis::{Container, Subject},
    event::{self, CallEvent, CallStep},
};

/// A namespace, and a port in it.
pub(super) type At = (u64, u16);

/// Knows what holds each local port, and whose bind() failed.
#[derive(Debug, Default)]
pub(super) struct Binds {
    holders: HashMap<At, Holders>,
    /// How many there are of all [`Holders::listeners`].
    listeners: usize,
    failed: HashMap<Key, FailedBind>,
    /// Paths of cgroups, by id, as sockets in them told.
    cgroups: HashMap<u64, Arc<str>>,
    /// What could not be counted, since there was too much of it.
    beyond: u64,
}

/// Sockets at one local port.
#[derive(Clone, Debug, Default)]
struct Holders {
    sockets: u64,
    minisockets: u64,
    listeners: Vec<Listener>,
    /// Listeners of which nothing else is known.
    more: u64,
}

/// A socket that listens.
#[derive(Clone, Copy, Debug)]
struct Listener {
    connection: u64,
    addr: IpAddr,
    process: Option<event::Process>,
    /// When it began to, if that was seen.
    since: Option<u64>,
}

/// What a process whose bind() failed has there in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listens {
    /// No listener that is known to be its own.
    No,
    /// One that was there already when bind() failed last.
    Before,
    /// One that came after that.
    After,
}

/// Whose bind() failed, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    pid: u32,
    namespace: u64,
    at: Option<(IpAddr, u16)>,
}

/// bind() of one process that found an address in use.
#[derive(Clone, Debug)]
pub struct FailedBind {
    /// Whose.
    pub process: Process,
    /// Its container, if a socket told what its cgroup is called.
    pub container: Option<String>,
    /// Network namespace: inode number.
    pub netns: Option<u32>,
    /// The address; `None` if it could not be read. Port 0: any port of it.
    pub at: Option<(IpAddr, u16)>,
    /// How often.
    pub failed: u64,
    /// When it happened last, minisockets in TIME_WAIT or FIN_WAIT2 that had this local port.
    pub minisockets: u64,
    /// Then, other sockets that had it and do not listen.
    pub sockets: u64,
    /// Then, listeners.
    pub listeners: u64,
    /// The process of a listener; this one if it listens at that address itself.
    pub listener: Option<Process>,
    /// Whether it listened there itself.
    pub own: bool,
    /// Whether it listens there at the end.
    pub listens: Listens,
    /// When it happened last (nanoseconds of `CLOCK_MONOTONIC`).
    pub last: u64,
    /// Network namespace: cookie, or inode number.
    pub namespace: u64,
    /// Id of its cgroup.
    pub cgroup: Option<u64>,
}

/// More ports than a few namespaces have, and more listeners.
const PORTS: usize = 1 << 20;
/// Whose bind() fails at more addresses than that scans.
const FAILED: usize = 4096;
/// More listeners than processors, each of which may have one at the same port (SO_REUSEPORT); those beyond are only counted.
const LISTENERS: usize = 512;
/// More cgroups than one machine has containers; of those beyond, the container is not known.
const CGROUPS: usize = 4096;

impl Binds {
    /// What could not be counted.
    pub(super) const fn beyond(&self) -> u64 {
        self.beyond
    }

    /// bind() that failed, most often first.
    pub(super) fn failed(&self) -> Vec<FailedBind> {
        let mut binds: Vec<_> = self.failed.values().cloned().collect();
        for bind in &mut binds {
            let held = held(&self.holders, bind.namespace, bind.at);
            let listeners = held.map(|(addr, holders)| holders.in_the_way(addr));
            let own = listeners
                .into_iter()
                .flatten()
                .filter(|listener| listener.is_of(bind.process.pid));
            bind.listens = own
                .map(|listener| match listener.since {
                    Some(since) if since > bind.last => Listens::After,
                    _ => Listens::Before,
                })
                .max()
                .unwrap_or(Listens::No);
            if bind.listens == Listens::Before && !bind.own {
                // It was found only after bind() had failed.
                bind.own = true;
                bind.listener = Some(bind.process);
                bind.listeners += 1;
            }
            let path = bind.cgroup.and_then(|id| self.cgroups.get(&id));
            let of_path = path.and_then(|path| Container::of(path));
            bind.container = of_path.map(|of_path| container(of_path.runtime, of_path.id));
        }
        binds.sort_by_key(|bind| {
            let who = (bind.process.pid, bind.namespace);
            (Reverse(bind.failed), who, bind.at)
        });
        binds
    }

    /// A socket tells what its cgroup is called.
    pub(super) fn name(&mut self, id: Option<u64>, path: Option<&Arc<str>>) {
        if let (Some(id), Some(path)) = (id, path)
            && self.cgroups.len() < CGROUPS
        {
            self.cgroups.entry(id).or_insert_with(|| Arc::clone(path));
        }
    }

    /// A listener comes, or is found.
    pub(super) fn listens(
        &mut self,
        connection: u64,
        subject: &Subject,
        process: Option<event::Process>,
        since: Option<u64>,
    ) {
        let at = (subject.namespace(), subject.local.port);
        let addr = subject.local.addr;
        let room = self.listeners < PORTS;
        let Some(holders) = self.at(at) else {
            return;
        };
        if !room || holders.listeners.len() >= LISTENERS {
            holders.more += 1;
            return;
        }
        holders.listeners.push(Listener {
            connection,
            addr,
            process,
            since,
        });
        self.listeners += 1;
    }

    /// A listener goes.
    pub(super) fn leaves(&mut self, connection: u64, subject: &Subject) {
        let at = (subject.namespace(), subject.local.port);
        if let Some(holders) = self.holders.get_mut(&at) {
            let all = &mut holders.listeners;
            match all.iter().position(|one| one.connection == connection) {
                Some(place) => {
                    all.remove(place);
                    self.listeners -= 1;
                }
                None => holders.more = holders.more.saturating_sub(1),
            }
            self.tidy(at);
        }
    }

    /// A connection has this port from now on.
    pub(super) fn hold(&mut self, at: At, minisocket: bool) {
        if at.1 != 0
            && let Some(holders) = self.at(at)
        {
            *holders.count(minisocket) += 1;
        }
    }

    /// And no longer.
    pub(super) fn release(&mut self, at: At, minisocket: bool) {
        if let Some(holders) = self.holders.get_mut(&at) {
            let count = holders.count(minisocket);
            *count = count.saturating_sub(1);
            self.tidy(at);
        }
    }

    /// One has failed.
    pub(super) fn fail(&mut self, event: &CallEvent) {
        let CallStep::BindFailed(asked) = event.step else {
            return;
        };
        let namespace = event
            .netns_cookie
            .or(event.netns.map(u64::from))
            .unwrap_or_default();
        let at = asked.map(|asked| (asked.addr, asked.port));
        let key = Key {
            pid: event.process.pid,
            namespace,
            at,
        };
        if self.failed.len() >= FAILED && !self.failed.contains_key(&key) {
            self.beyond += 1;
            return;
        }
        let bind = self.failed.entry(key).or_insert_with(|| FailedBind {
            process: known(event.process),
            container: None,
            netns: event.netns,
            at,
            failed: 0,
            minisockets: 0,
            sockets: 0,
            listeners: 0,
            listener: None,
            own: false,
            listens: Listens::No,
            last: event.time,
            namespace,
            cgroup: event.cgroup,
        });
        bind.failed += 1;
        bind.last = event.time;
        bind.listener = None;
        bind.own = false;
        let Some((addr, holders)) = held(&self.holders, namespace, at) else {
            (bind.minisockets, bind.sockets, bind.listeners) = (0, 0, 0);
            return;
        };
        bind.minisockets = holders.minisockets;
        bind.sockets = holders.sockets;
        bind.listeners = holders.more;
        for listener in holders.in_the_way(addr) {
            bind.listeners += 1;
            if !bind.own {
                bind.own = listener.is_of(bind.process.pid);
                bind.listener = listener.process.map(known).or(bind.listener);
            }
        }
    }

    fn at(&mut self, at: At) -> Option<&mut Holders> {
        if self.holders.len() >= PORTS && !self.holders.contains_key(&at) {
            self.beyond += 1;
            return None;
        }
        Some(self.holders.entry(at).or_default())
    }

    fn tidy(&mut self, at: At) {
        if self.holders.get(&at).is_some_and(Holders::is_empty) {
            self.holders.remove(&at);
        }
    }
}

/// An address, and what holds its port.
fn held(
    holders: &HashMap<At, Holders>,
    namespace: u64,
    at: Option<(IpAddr, u16)>,
) -> Option<(IpAddr, &Holders)> {
    let (addr, port) = at?;
    Some((addr, holders.get(&(namespace, port))?))
}

fn known(process: event::Process) -> Process {
    Process {
        pid: Some(process.pid),
        comm: Some(process.comm),
    }
}

impl Holders {
    const fn is_empty(&self) -> bool {
        self.sockets + self.minisockets + self.more == 0 && self.listeners.is_empty()
    }

    /// Listeners that keep bind() from having this address.
    fn in_the_way(&self, addr: IpAddr) -> impl Iterator<Item = &Listener> {
        let all = self.listeners.iter();
        all.filter(move |listener| overlap(listener.addr, addr))
    }

    const fn count(&mut self, minisocket: bool) -> &mut u64 {
        if minisocket {
            &mut self.minisockets
        } else {
            &mut self.sockets
        }
    }
}

impl Listener {
    fn is_of(&self, pid: Option<u32>) -> bool {
        self.process.map(|process| process.pid) == pid
    }
}

/// Whether two sockets cannot both have a port at these addresses. `::` takes IPv4 too, unless its socket has IPV6_V6ONLY, which is
/// not known.
fn overlap(one: IpAddr, other: IpAddr) -> bool {
    let takes =
        |one: IpAddr, other: IpAddr| one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
    one == other || takes(one, other) || takes(other, one)
}

#[cfg(test)]
impl FailedBind {
    /// A failure at this port, to make others of.
    #[must_use]
    pub fn at(port: u16) -> Self {
        Self {
            process: Process::default(),
            container: None,
            netns: None,
            at: Some((std::net::Ipv4Addr::LOCALHOST.into(), port)),
            failed: 1,
            minisockets: 0,
            sockets: 0,
            listeners: 0,
            listener: None,
            own: false,
            listens: Listens::No,
            last: 0,
            namespace: 0,
            cgroup: None,
        }
    }
}
