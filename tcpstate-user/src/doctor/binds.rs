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
    failed: HashMap<Key, FailedBind>,
    /// Paths of cgroups, by id, as sockets in them told.
    cgroups: HashMap<u64, Arc<str>>,
    /// What could not be counted, since there was too much of it.
    beyond: u64,
}

/// Sockets at one local port.
#[derive(Clone, Copy, Debug, Default)]
struct Holders {
    sockets: u64,
    minisockets: u64,
    listeners: u64,
    /// Of one of the listeners.
    listener: Option<event::Process>,
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
    /// The process of a listener.
    pub listener: Option<Process>,
    /// At the end, this process listens at that port after all.
    pub listens: bool,
    /// Network namespace: cookie, or inode number.
    pub namespace: u64,
    /// Id of its cgroup.
    pub cgroup: Option<u64>,
}

/// More ports than a few namespaces have.
const PORTS: usize = 1 << 20;
/// Whose bind() fails at more addresses than that scans.
const FAILED: usize = 4096;
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
            let holders = bind
                .at
                .and_then(|(_, port)| self.holders.get(&(bind.namespace, port)));
            bind.listens = holders
                .and_then(|holders| holders.listener)
                .is_some_and(|listener| Some(listener.pid) == bind.process.pid);
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

    /// A listener comes or goes.
    pub(super) fn listener(
        &mut self,
        subject: &Subject,
        process: Option<event::Process>,
        comes: bool,
    ) {
        let at = (subject.namespace(), subject.local.port);
        if comes {
            if let Some(holders) = self.at(at) {
                holders.listeners += 1;
                holders.listener = process.or(holders.listener);
            }
        } else if let Some(holders) = self.holders.get_mut(&at) {
            holders.listeners = holders.listeners.saturating_sub(1);
            if holders.listeners == 0 {
                holders.listener = None;
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
        let holders = at
            .filter(|(_, port)| *port != 0)
            .and_then(|(_, port)| self.holders.get(&(namespace, port)).copied())
            .unwrap_or_default();
        let process = |process: event::Process| Process {
            pid: Some(process.pid),
            comm: Some(process.comm),
        };
        let bind = self.failed.entry(key).or_insert_with(|| FailedBind {
            process: process(event.process),
            container: None,
            netns: event.netns,
            at,
            failed: 0,
            minisockets: 0,
            sockets: 0,
            listeners: 0,
            listener: None,
            listens: false,
            namespace,
            cgroup: event.cgroup,
        });
        bind.failed += 1;
        bind.minisockets = holders.minisockets;
        bind.sockets = holders.sockets;
        bind.listeners = holders.listeners;
        bind.listener = holders.listener.map(process);
    }

    fn at(&mut self, at: At) -> Option<&mut Holders> {
        if self.holders.len() >= PORTS && !self.holders.contains_key(&at) {
            self.beyond += 1;
            return None;
        }
        Some(self.holders.entry(at).or_default())
    }

    fn tidy(&mut self, at: At) {
        let empty =
            |holders: &Holders| holders.sockets + holders.minisockets + holders.listeners == 0;
        if self.holders.get(&at).is_some_and(empty) {
            self.holders.remove(&at);
        }
    }
}

impl Holders {
    const fn count(&mut self, minisocket: bool) -> &mut u64 {
        if minisocket {
            &mut self.minisockets
        } else {
            &mut self.sockets
        }
    }
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
            listens: false,
            namespace: 0,
            cgroup: None,
        }
    }
}
