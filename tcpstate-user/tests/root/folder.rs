//! Folders for what a test writes.

use std::{
    fs,
    ops::Deref,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::support::nobody_starts;

/// One that is gone when the test is. Everybody may look into it, and run what is there.
pub struct Folder(PathBuf);

impl Folder {
    /// Its name has this in it, and is that of no other.
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tcpstate-{name}-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("readable");
        Self(path)
    }

    /// With a copy of `tcpstate`: the original may be where only root can look.
    pub fn with_tcpstate(name: &str) -> Self {
        let folder = Self::new(name);
        // A process just started would hold it open for writing as well, and what is, cannot be run.
        let _nobody = nobody_starts();
        fs::copy(env!("CARGO_BIN_EXE_tcpstate"), folder.tcpstate()).expect("a copy");
        folder
    }

    /// The copy.
    pub fn tcpstate(&self) -> PathBuf {
        self.join("tcpstate")
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> String {
        self.join(name).to_str().expect("UTF-8").to_owned()
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
