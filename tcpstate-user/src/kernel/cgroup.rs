//! Paths of cgroups, by the id the kernel gives: the file handle of their directory.

use std::{
    fs::{self, File, OpenOptions},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hashbrown::HashSet;

/// The cgroup v2 hierarchy.
#[derive(Debug)]
pub struct Cgroups {
    root: Option<(PathBuf, File)>,
    /// Ids that have no path, as far as we know.
    nameless: HashSet<u64>,
    walked: Option<Instant>,
}

/// `struct file_handle` of a kernfs node (`FILEID_KERNFS`, `include/linux/exportfs.h`).
#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    id: [u8; 8],
}

impl Cgroups {
    /// Opens the hierarchy, if one is mounted.
    #[must_use]
    pub fn open() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let root = mount_point(&mounts).and_then(|path| {
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
                .open(&path)
                .ok()?;
            Some((path, file))
        });
        Self {
            root,
            nameless: HashSet::default(),
            walked: None,
        }
    }

    /// The path below the root; `None` if the cgroup is gone, or there is no cgroup v2.
    pub fn path(&mut self, id: u64) -> Option<String> {
        const LIMIT: usize = 65_536;
        if self.nameless.contains(&id) {
            return None;
        }
        let (root, directory) = self.root.as_ref()?;
        let by_handle = open_by_id(directory, id)
            .and_then(|node| fs::read_link(format!("/proc/self/fd/{}", node.as_raw_fd())).ok());
        let path = match by_handle {
            Some(path) => Some(path),
            // Without CAP_DAC_READ_SEARCH the tree has to be walked; not too often.
            None if self.walked.is_some_and(|walked| walked.elapsed() < PAUSE) => return None,
            None => {
                let found = walk(root, id);
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
        path.map(|path| below(root, &path))
    }

    /// A path below the root, given as that or as a path in the file system.
    ///
    /// # Errors
    /// If there is no such cgroup.
    pub fn find(&self, name: &str) -> Result<String> {
        let Some((root, _)) = &self.root else {
            bail!("no cgroup v2 hierarchy is mounted, so cgroups have no names here");
        };
        let path = if Path::new(name).starts_with(root) {
            PathBuf::from(name)
        } else {
            root.join(name.trim_start_matches('/'))
        };
        let path = fs::canonicalize(&path)
            .ok()
            .filter(|path| path.is_dir() && path.starts_with(root))
            .with_context(|| format!("no cgroup {name:?} below {}", root.display()))?;
        Ok(below(root, &path))
    }
}

/// How long to wait between two walks through the tree.
const PAUSE: Duration = Duration::from_secs(1);

/// Looks for the directory whose inode number is the id.
fn walk(root: &Path, id: u64) -> Option<PathBuf> {
    const LIMIT: usize = 20_000;
    let mut open = vec![root.to_owned()];
    for _ in 0..LIMIT {
        let folder = open.pop()?;
        if fs::metadata(&folder).is_ok_and(|metadata| metadata.ino() == id) {
            return Some(folder);
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

fn open_by_id(root: &File, id: u64) -> Option<OwnedFd> {
    const FILEID_KERNFS: libc::c_int = 0xfe;
    let mut handle = Handle {
        bytes: 8,
        kind: FILEID_KERNFS,
        id: id.to_ne_bytes(),
    };
    // SAFETY: `handle` has the layout of `struct file_handle` with eight bytes behind its header, as it says.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            root.as_raw_fd(),
            &raw mut handle,
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the call has just given us this descriptor.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
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
