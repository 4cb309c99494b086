//! Network namespaces by name, path or inode number.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::filter::Netns;

/// Where `ip netns` keeps names.
const NAMES: &str = "/run/netns";
const OWN: &str = "/proc/thread-self/ns/net";
const HINT: &str = "give a name of `ip netns list`, a path, an inode number, or `self`";

/// Finds a namespace by a name of `ip netns`, a path (`/proc/1234/ns/net`), an inode number, or `self`.
///
/// # Errors
/// If there is none, or it cannot be looked at.
pub fn find(name: &str) -> Result<Netns> {
    if name.is_empty() {
        bail!("{HINT}");
    }
    let path = if name == "self" {
        PathBuf::from(OWN)
    } else if name.contains('/') {
        PathBuf::from(name)
    } else if Path::new(NAMES).join(name).exists() {
        Path::new(NAMES).join(name)
    } else if let Ok(inode) = name.parse::<u64>() {
        path_of(inode).with_context(|| {
            format!(
                "no process and no name has the network namespace {inode}; `lsns -t net` lists them"
            )
        })?
    } else {
        Path::new(NAMES).join(name)
    };
    let file = File::open(&path).with_context(|| {
        format!(
            "network namespace {name:?}: cannot open {}; {HINT}",
            path.display()
        )
    })?;
    let inode = file
        .metadata()
        .with_context(|| format!("{}", path.display()))?
        .ino();
    let (Ok(inode), true) = (u32::try_from(inode), is_netns(&file)) else {
        bail!("{} is no network namespace; {HINT}", path.display());
    };
    Ok(Netns {
        inode,
        cookie: cookie(file),
    })
}

/// The network namespaces of all threads, and those that are mounted somewhere, by inode number; and whether there was time
/// to look at all of them. Those that only sockets keep alive are not among them.
#[must_use]
pub fn all(limit: Duration) -> (BTreeMap<u32, File>, bool) {
    let deadline = Instant::now() + limit;
    let mut found = BTreeMap::new();
    add(&mut found, Path::new(OWN));
    for path in mounted() {
        add(&mut found, &path);
    }
    for process in numbered(Path::new("/proc")) {
        if Instant::now() >= deadline {
            return (found, false);
        }
        for thread in numbered(&process.join("task")) {
            add(&mut found, &thread.join("ns/net"));
        }
    }
    (found, true)
}

/// The inode number of the namespace that this thread is in.
pub(super) fn own() -> Option<u32> {
    inode(&fs::metadata(OWN).ok()?)
}

fn inode(metadata: &fs::Metadata) -> Option<u32> {
    u32::try_from(metadata.ino()).ok()
}

/// What may not be looked at, or has ended, is left out.
fn add(found: &mut BTreeMap<u32, File>, path: &Path) {
    let Some(number) = fs::metadata(path).ok().as_ref().and_then(inode) else {
        return;
    };
    if let Entry::Vacant(entry) = found.entry(number)
        && let Ok(file) = File::open(path)
        // It may be another one by now.
        && file.metadata().ok().as_ref().and_then(inode) == Some(number)
        && is_netns(&file)
    {
        entry.insert(file);
    }
}

/// Where namespaces are mounted, by `ip netns` or a container runtime.
fn mounted() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            // ID, parent, device, root (`net:[4026532000]`), mount point
            let mut words = line.split(' ').skip(3);
            words.next()?.strip_prefix("net:[")?;
            Some(PathBuf::from(words.next()?))
        })
        .collect()
}

/// The entries of a directory whose names are numbers.
fn numbered(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .first()
                .is_some_and(u8::is_ascii_digit)
        })
        .map(|entry| entry.path())
}

fn is_netns(file: &File) -> bool {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument; a file that is no namespace refuses it.
    unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}

/// A path by which the namespace with this inode number can be opened.
fn path_of(inode: u64) -> Option<PathBuf> {
    let is = |path: &Path| fs::metadata(path).is_ok_and(|metadata| metadata.ino() == inode);
    let named = fs::read_dir(NAMES)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let processes = numbered(Path::new("/proc")).map(|process| process.join("ns/net"));
    named.chain(processes).find(|path| is(path))
}

/// The cookie of a namespace, as a socket made in it tells; `None` before Linux 5.14 or without the privilege.
fn cookie(namespace: File) -> Option<u64> {
    // A thread of its own enters the namespace, and ends in it.
    thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).ok()?;
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0))
            .or_else(|_| std::net::UdpSocket::bind(("::", 0)))
            .or_else(|_| std::net::UdpSocket::bind(("0.0.0.0", 0)));
        socket.and_then(|socket| socket_netns_cookie(&socket)).ok()
    })
    .join()
    .ok()
    .flatten()
    .filter(|cookie| *cookie != 0)
}

fn socket_netns_cookie(socket: &impl AsRawFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(8);
    // SAFETY: the pointers are to values that live through the call, and `length` is the size of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
