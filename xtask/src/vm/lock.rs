//! A folder that only one run of `cargo xtask vm` works in at a time.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The folder is ours as long as this lives, or the process: the kernel takes the lock back.
pub struct Lock(#[expect(dead_code, reason = "held, not used")] File);

impl Lock {
    /// Waits until nobody else has it, and says so if that is not at once.
    pub fn take(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| {
            format!(
                "{} cannot be made (is the folder above it yours?)",
                folder.display()
            )
        })?;
        let path = folder.join("lock");
        let file =
            File::create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        if flock(&file, libc::LOCK_EX | libc::LOCK_NB) {
            return Ok(Self(file));
        }
        eprintln!(
            "xtask: waiting for another run of `cargo xtask vm` that uses {}",
            folder.display()
        );
        if !flock(&file, libc::LOCK_EX) {
            bail!(
                "{} cannot be locked: {}",
                path.display(),
                std::io::Error::last_os_error()
            );
        }
        Ok(Self(file))
    }
}

fn flock(file: &File, operation: libc::c_int) -> bool {
    // SAFETY: the file lives through the call.
    unsafe { libc::flock(file.as_raw_fd(), operation) == 0 }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test stops where its set-up fails")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_second_run_waits_for_the_first() {
        let folder = std::env::temp_dir().join(format!("tcpstate-lock-{}", std::process::id()));
        let first = Lock::take(&folder).expect("free");
        let (sender, receiver) = std::sync::mpsc::channel();
        let second = {
            let folder = folder.clone();
            std::thread::spawn(move || {
                let _lock = Lock::take(&folder).expect("free in the end");
                sender.send(()).expect("heard");
            })
        };
        assert!(receiver.recv_timeout(Duration::from_millis(200)).is_err());
        drop(first);
        receiver.recv().expect("it goes on");
        second.join().expect("it ends");
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
