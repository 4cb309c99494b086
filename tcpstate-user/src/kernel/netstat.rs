//! The counters of network namespaces, before and after something.

use std::{
    fs::{self, File},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

use super::netns;
use crate::doctor::NetCounters;

/// How many namespaces are looked at.
const MOST: usize = 1000;
/// How long to look for them.
const SEARCH: Duration = Duration::from_secs(2);

/// Reads the counters when it is made, and when it ends, in a thread that keeps its privileges meanwhile. It holds no
/// namespace between: one that ends has no second reading.
#[derive(Debug)]
pub struct NetStat {
    again: Sender<()>,
    read: Receiver<Vec<NetCounters>>,
    before: Vec<NetCounters>,
}

impl NetStat {
    /// Of one namespace, or of all that can be found and entered.
    #[must_use]
    pub fn begin(only: Option<u32>) -> Self {
        let (again, asked) = channel();
        let (answer, read) = channel();
        thread::spawn(move || {
            // Whoever asks may have gone.
            while answer.send(read_all(only)).is_ok() && asked.recv().is_ok() {}
        });
        let before = read.recv().unwrap_or_default();
        Self {
            again,
            read,
            before,
        }
    }

    /// What was read first, and what is read now.
    #[must_use]
    pub fn end(self) -> (Vec<NetCounters>, Vec<NetCounters>) {
        let after = match self.again.send(()) {
            Ok(()) => self.read.recv().unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        (self.before, after)
    }
}

fn read_all(only: Option<u32>) -> Vec<NetCounters> {
    let wanted = move |inode: u32| only.is_none_or(|only| only == inode);
    let (namespaces, _) = netns::all(SEARCH);
    let ours = netns::own();
    let own = ours.filter(|own| wanted(*own)).map(read);
    // A thread of its own enters the others, and ends in the last of them.
    let others = thread::spawn(move || {
        let enter = |file: &File| setns(file, CloneFlags::CLONE_NEWNET).ok();
        namespaces
            .iter()
            .filter(|(inode, _)| Some(**inode) != ours && wanted(**inode))
            .filter_map(|(inode, file)| enter(file).map(|()| read(*inode)))
            .take(MOST)
            .collect::<Vec<_>>()
    });
    own.into_iter()
        .chain(others.join().unwrap_or_default())
        .collect()
}

/// Those of the namespace that this thread is in.
fn read(netns: u32) -> NetCounters {
    let text = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    let mut counters = NetCounters::new(netns);
    for name in ["netstat", "snmp"] {
        counters.insert_table(&text(name).unwrap_or_default());
    }
    for name in ["sockstat", "sockstat6"] {
        counters.insert_pairs(&text(name).unwrap_or_default());
    }
    counters
}
