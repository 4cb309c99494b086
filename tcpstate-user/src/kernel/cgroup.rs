//! Paths of cgroups, by the id the kernel gives: the file handle of their directory.

use std::{
    fs::{self, File, OpenOptions},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Component, Path, PathBuf},
    ptr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use hashbrown::HashSet;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use super::{Hook, Missing};

/// The cgroup v2 hierarchy.
#[derive(Debug)]
pub struct Cgroups {
    root: Option<Root>,
    /// Ids that have no path, as far as we know.
    nameless: HashSet<u64>,
    walked: Option<Instant>,
}

/// Its root.
#[derive(Debug)]
struct Root {
    /// Where it is mounted, or usually is.
    mount: PathBuf,
    directory: File,
}

/// `struct file_handle` of a kernfs node (`FILEID_KERNFS`, `include/linux/exportfs.h`).
#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    id: [u8; 8],
}

impl Cgroups {
    /// Opens the hierarchy, if there is one, mounted or not.
    #[must_use]
    pub fn open() -> Self {
        Self {
            root: Root::mounted().or_else(Root::unmounted),
            nameless: HashSet::default(),
            walked: None,
        }
    }

    /// What is lost if there is none. The classic tracepoint tells no cgroups anyway.
    #[must_use]
    pub fn missing(&self, hook: Hook) -> Option<Missing> {
        (self.root.is_none() && hook == Hook::BtfTracepoint).then(|| Missing {
            what: "mounted cgroup v2 hierarchy: `mount -t cgroup2 none /sys/fs/cgroup` mounts it"
                .to_owned(),
            loses: "names of cgroups and containers".to_owned(),
        })
    }

    /// The path below the root; `None` if the cgroup is gone, or there is no cgroup v2.
    pub fn path(&mut self, id: u64) -> Option<String> {
        const LIMIT: usize = 65_536;
        if self.nameless.contains(&id) {
            return None;
        }
        let root = self.root.as_ref()?;
        let path = match root.open(id) {
            Some(path) => Some(path),
            // Without CAP_DAC_READ_SEARCH the tree has to be walked; not too often.
            None if self.walked.is_some_and(|walked| walked.elapsed() < PAUSE) => return None,
            None => {
                let found = root.walk(id);
                self.walked = Some(Instant::now());
                found
            }
        };
        if path.is_none() {
            if self.nameless.len() >= LIMIT {
                self.nameless.clear();
            }
            self.nameless.insert(id);
        }
        path
    }

    /// A path below the root, given as that or as a path in the file system.
    ///
    /// # Errors
    /// If there is no such cgroup.
    pub fn find(&self, name: &str) -> Result<String> {
        let Some(root) = &self.root else {
            bail!(
                "no cgroup v2 hierarchy is mounted, so cgroups have no names here; mount it \
                 (`mount -t cgroup2 none /sys/fs/cgroup`), or filter with --pid or --comm"
            );
        };
        let given = Path::new(name);
        let mut path = PathBuf::new();
        for component in given
            .strip_prefix(&root.mount)
            .unwrap_or(given)
            .components()
        {
            match component {
                Component::Normal(name) => path.push(name),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    bail!("{name:?}: give it without `..`")
                }
            }
        }
        if !root.link().join(&path).is_dir() {
            bail!(
                "no cgroup {name:?} below {}; give a path below it, as /proc/PID/cgroup has it after `0::`",
                root.mount.display()
            );
        }
        Ok(format!("/{}", path.to_string_lossy()))
    }
}

/// How long to wait between two walks through the tree.
const PAUSE: Duration = Duration::from_secs(1);

impl Root {
    /// Where it is mounted.
    fn mounted() -> Option<Self> {
        let mount = mount_point(&fs::read_to_string("/proc/self/mounts").ok()?)?;
        let directory = directory(&mount)?;
        // Something else may be mounted over it.
        let kind = fstatfs(&directory).ok()?.filesystem_type();
        (kind == CGROUP2_SUPER_MAGIC).then_some(Self { mount, directory })
    }

    /// Where we do not see it mounted, as in the new /sys that `ip netns exec` makes: a mount that nobody else sees, and that goes with
    /// us. Not the first of all, which would add a line to each /proc/PID/cgroup (`cgrp_dfl_visible`).
    fn unmounted() -> Option<Self> {
        const CLOSE_ON_EXEC: libc::c_uint = 1;
        const CREATE: libc::c_uint = 6;
        const READ_ONLY: libc::c_uint = 1;
        const NOTHING: *const libc::c_char = ptr::null();
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        if !own.lines().any(|line| line.starts_with("0::")) {
            return None;
        }
        let name = c"cgroup2".as_ptr();
        // SAFETY: the name lives through the call, which gives a new descriptor.
        let context = unsafe { descriptor(libc::syscall(libc::SYS_fsopen, name, CLOSE_ON_EXEC)) }?;
        let number = context.as_raw_fd();
        // SAFETY: this command takes nothing else.
        let made =
            unsafe { libc::syscall(libc::SYS_fsconfig, number, CREATE, NOTHING, NOTHING, 0) };
        if made != 0 {
            return None;
        }
        // SAFETY: a call without pointers, which gives a new descriptor.
        let mount = unsafe {
            descriptor(libc::syscall(
                libc::SYS_fsmount,
                number,
                CLOSE_ON_EXEC,
                READ_ONLY,
            ))
        }?;
        // That is a path only (O_PATH).
        let directory = directory(&link(&mount))?;
        let mount = PathBuf::from("/sys/fs/cgroup");
        Some(Self { mount, directory })
    }

    /// A path to it, mounted or not.
    fn link(&self) -> PathBuf {
        link(&self.directory)
    }

    /// The path of a directory by its handle.
    fn open(&self, id: u64) -> Option<String> {
        let node = open_by_id(&self.directory, id)?;
        // What the kernel calls either of them depends on where it is mounted.
        let root = fs::read_link(self.link()).ok()?;
        Some(below(&root, &fs::read_link(link(&node)).ok()?))
    }

    /// The path of the directory whose inode number is the id.
    fn walk(&self, id: u64) -> Option<String> {
        const LIMIT: usize = 20_000;
        let root = self.link();
        let mut open = vec![root.clone()];
        for _ in 0..LIMIT {
            let folder = open.pop()?;
            if fs::metadata(&folder).is_ok_and(|metadata| metadata.ino() == id) {
                return Some(below(&root, &folder));
            }
            let children = fs::read_dir(&folder).into_iter().flatten().flatten();
            open.extend(
                children
                    .filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|child| child.path()),
            );
        }
        None
    }
}

fn directory(path: &Path) -> Option<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(path)
        .ok()
}

/// What a system call gives, if it does.
///
/// # Safety
/// It must be a new descriptor, which nobody else has, or negative.
unsafe fn descriptor(result: libc::c_long) -> Option<OwnedFd> {
    let descriptor = i32::try_from(result).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the caller has it from the kernel.
    Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Where the kernel says what is open.
fn link(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn open_by_id(root: &File, id: u64) -> Option<OwnedFd> {
    const FILEID_KERNFS: libc::c_int = 0xfe;
    let mut handle = Handle {
        bytes: 8,
        kind: FILEID_KERNFS,
        id: id.to_ne_bytes(),
    };
    // SAFETY: `handle` has the layout of `struct file_handle` with eight bytes behind its header, as it says; the call gives a new
    // descriptor.
    unsafe {
        descriptor(libc::syscall(
            libc::SYS_open_by_handle_at,
            root.as_raw_fd(),
            &raw mut handle,
            libc::O_PATH | libc::O_CLOEXEC,
        ))
    }
}

fn below(root: &Path, path: &Path) -> String {
    let rest = path.strip_prefix(root).unwrap_or(path);
    format!("/{}", rest.to_string_lossy())
}

fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, path, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{below, mount_point};

    #[test]
    fn the_hierarchy_is_found_among_the_mounts() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n";
        assert_eq!(
            mount_point(mounts),
            Some(PathBuf::from("/sys/fs/cgroup/uni fied"))
        );
        assert_eq!(mount_point("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn paths_are_told_from_the_root() {
        assert_eq!(
            below(Path::new("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup/a/b")),
            "/a/b"
        );
        assert_eq!(
            below(Path::new("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup")),
            "/"
        );
    }
}
