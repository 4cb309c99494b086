//! Which process holds which socket, as `/proc/PID/fd` tells: for sockets that were there before the hooks.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hashbrown::HashMap;

use crate::event::{Comm, Process, Via};

/// Processes by the inode number of a socket that they hold.
#[derive(Debug, Default)]
pub struct Owners {
    holders: HashMap<u64, Process>,
    /// Not every process was looked at: it took too long, or they hold too many sockets.
    pub cut_short: bool,
}

impl Owners {
    /// Looks at the open files of every process, for at most this long. Of several processes that hold a socket, the one
    /// that started first is taken: as a rule the one that made it, and handed it down.
    #[must_use]
    pub fn scan(limit: Duration) -> Self {
        let deadline = Instant::now() + limit;
        let mut found = Self::default();
        let mut pids: Vec<u32> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        // Of two that started within one tick, the one with the lower id is taken.
        pids.sort_unstable();
        let mut starts = Starts::default();
        for pid in pids {
            if !found.add(pid, &mut starts, deadline) {
                found.cut_short = true;
                break;
            }
        }
        found
    }

    /// The process that holds the socket with this inode number.
    #[must_use]
    pub fn of(&self, inode: u64) -> Option<Process> {
        self.holders.get(&inode).copied()
    }

    /// All of them.
    pub fn holders(&self) -> impl Iterator<Item = (u64, Process)> {
        self.holders
            .iter()
            .map(|(inode, process)| (*inode, *process))
    }

    /// A process holds the socket with this inode number.
    pub fn insert(&mut self, inode: u64, process: Process) {
        if self.has_room(inode) {
            self.holders.insert(inode, process);
        }
    }

    /// Whether this socket's holder can be kept; if not, it stays unknown.
    fn has_room(&mut self, inode: u64) -> bool {
        const MOST: usize = 1 << 20;
        let room = self.holders.len() < MOST || self.holders.contains_key(&inode);
        self.cut_short |= !room;
        room
    }

    /// Looks at one process, which may end meanwhile; `false` if the time is over.
    fn add(&mut self, pid: u32, starts: &mut Starts, deadline: Instant) -> bool {
        const BETWEEN_LOOKS: usize = 1024;
        let directory = directory(pid);
        let Ok(files) = fs::read_dir(directory.join("fd")) else {
            return Instant::now() < deadline;
        };
        let mut comm = None;
        for (index, file) in files.flatten().enumerate() {
            if index % BETWEEN_LOOKS == 0 && Instant::now() >= deadline {
                return false;
            }
            let Some(inode) = fs::read_link(file.path())
                .ok()
                .and_then(|target| socket_inode(target.to_str()?))
            else {
                continue;
            };
            comm = comm.or_else(|| name(&directory));
            let Some(comm) = comm else {
                // It has ended.
                return true;
            };
            let process = Process {
                pid,
                comm,
                via: Via::Scan,
            };
            if !self.has_room(inode) {
                return false;
            }
            self.holders
                .entry(inode)
                .and_modify(|holder| {
                    if starts.is_older(pid, holder.pid) {
                        *holder = process;
                    }
                })
                .or_insert(process);
        }
        true
    }
}

/// When processes started (ticks since boot), of those that share a socket. Ids do not tell: they begin anew at the end of
/// their range.
#[derive(Default)]
struct Starts(HashMap<u32, Option<u64>>);

impl Starts {
    fn of(&mut self, pid: u32) -> Option<u64> {
        *self.0.entry(pid).or_insert_with(|| {
            let stat = fs::read(directory(pid).join("stat")).ok()?;
            started(&String::from_utf8_lossy(&stat))
        })
    }

    /// Whether one started before the other, as far as it is known.
    fn is_older(&mut self, one: u32, other: u32) -> bool {
        one != other
            && match (self.of(one), self.of(other)) {
                (Some(one), Some(other)) => one < other,
                _ => false,
            }
    }
}

/// The start time in `/proc/PID/stat`, whose second field is a name that may hold anything.
fn started(stat: &str) -> Option<u64> {
    const AFTER_NAME: usize = 22 - 3;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(AFTER_NAME)?.parse().ok()
}

fn directory(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// From `socket:[123]`.
fn socket_inode(target: &str) -> Option<u64> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// The name of a process, which may hold anything but a zero; the file ends with a newline of its own.
fn name(directory: &Path) -> Option<Comm> {
    let text = fs::read(directory.join("comm")).ok()?;
    let text = text.strip_suffix(b"\n").unwrap_or(&text);
    let mut bytes = [0; 16];
    for (slot, byte) in bytes.iter_mut().take(15).zip(text) {
        *slot = *byte;
    }
    Some(Comm::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::{Owners, Starts, socket_inode, started};
    use std::{os::fd::AsRawFd as _, time::Duration};

    #[test]
    fn only_sockets_have_the_inode_of_a_socket() {
        assert_eq!(socket_inode("socket:[4026]"), Some(4026));
        for other in ["pipe:[4026]", "socket:[]", "socket:[x]", "/socket:[1]", ""] {
            assert_eq!(socket_inode(other), None, "{other}");
        }
    }

    #[test]
    fn the_name_of_a_process_does_not_hide_when_it_started() {
        let stat = "7 (a) S 1 2 (b) S 1 7 7 0 -1 4194560 9 0 3 0 1 2 0 0 20 0 1 0 4711 10 20 18446744073709551615\n";
        assert_eq!(started(stat), Some(4711));
        for broken in ["", "7 (a", "7 (a) S 1 2"] {
            assert_eq!(started(broken), None, "{broken}");
        }
    }

    #[test]
    fn who_started_first_is_older_whatever_its_id() {
        let mut starts = Starts::default();
        starts.0.extend([(7, Some(200)), (9, Some(100)), (8, None)]);
        assert!(starts.is_older(9, 7));
        assert!(!starts.is_older(7, 9));
        assert!(!starts.is_older(7, 7));
        // One that ended before it was asked.
        assert!(!starts.is_older(8, 7) && !starts.is_older(7, 8));
        assert!(starts.of(std::process::id()).is_some());
    }

    #[test]
    fn a_socket_of_ours_is_found() -> std::io::Result<()> {
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0))?;
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd()))?;
        let inode = socket_inode(&link.to_string_lossy()).unwrap_or_default();
        let found = Owners::scan(Duration::from_secs(60));
        assert!(!found.cut_short);
        let pid = found.of(inode).map(|process| process.pid);
        assert_eq!(pid, Some(std::process::id()));
        assert!(Owners::scan(Duration::ZERO).cut_short);
        Ok(())
    }
}
