//! The settings of network namespaces.

use std::{
    fs::{self, File},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

use super::netns;
use crate::settings::{SETTINGS, Settings};

/// How many namespaces are asked for theirs.
const MOST: usize = 1000;
/// Bytes of a value: a longer one (a list of ports) is left out.
const LONGEST: usize = 2048;

/// The settings of all network namespaces that can be found and entered in this time, of a thousand at most, by inode number.
#[must_use]
pub fn settings(limit: Duration) -> Vec<Settings> {
    let (namespaces, _) = netns::all(limit);
    let ours = netns::own();
    let own = ours.map(read);
    // A thread of its own enters the others, and ends in the last of them.
    let others = thread::spawn(move || {
        let enter = |file: &File| setns(file, CloneFlags::CLONE_NEWNET).ok();
        namespaces
            .iter()
            .filter(|(inode, _)| Some(**inode) != ours)
            .filter_map(|(inode, file)| enter(file).map(|()| read(*inode)))
            .take(MOST - 1)
            .collect::<Vec<_>>()
    });
    let others = others.join().unwrap_or_default();
    let mut all: Vec<_> = own.into_iter().chain(others).collect();
    all.sort_by_key(|settings| settings.netns);
    all
}

/// Those of the namespace that this thread is in: `/proc/sys/net` is that of the task which opens it (`net_ctl_root` in
/// `net/sysctl_net.c`).
fn read(netns: u32) -> Settings {
    let mut settings = Settings {
        netns,
        ..Settings::default()
    };
    for (path, _) in SETTINGS {
        if let Ok(text) = fs::read_to_string(format!("/proc/sys/net/{path}"))
            && text.len() <= LONGEST
        {
            settings.insert(path, &text);
        }
    }
    settings
}
