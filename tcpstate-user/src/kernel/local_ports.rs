//! The settings of network namespaces that decide which local ports connect() may pick.

use std::{
    fs::{self, File},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use rustc_hash::FxHashMap;

use super::netns;
use crate::analysis::LocalPorts;

/// The settings of all network namespaces that can be found and entered in this time, by inode number.
#[must_use]
pub fn local_ports(limit: Duration) -> FxHashMap<u32, LocalPorts> {
    let (namespaces, _) = netns::all(limit);
    let ours = netns::own();
    let mut found = FxHashMap::default();
    if let (Some(inode), Some(ports)) = (ours, read()) {
        found.insert(inode, ports);
    }
    // A thread of its own enters the others, and ends in the last of them.
    let others = thread::spawn(move || {
        let enter = |file: &File| setns(file, CloneFlags::CLONE_NEWNET).ok();
        namespaces
            .iter()
            .filter(|(inode, _)| Some(**inode) != ours)
            .filter_map(|(inode, file)| enter(file).and_then(|()| Some((*inode, read()?))))
            .collect::<Vec<_>>()
    });
    found.extend(others.join().unwrap_or_default());
    found
}

/// Those of the namespace that this thread is in: `/proc/sys/net` is that of the task which opens it (`net_ctl_root` in
/// `net/sysctl_net.c`).
fn read() -> Option<LocalPorts> {
    let setting = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"));
    LocalPorts::parse(
        &setting("ip_local_port_range").ok()?,
        &setting("ip_local_reserved_ports").unwrap_or_default(),
        &setting("tcp_tw_reuse").unwrap_or_default(),
    )
}
