//! What all measurements share.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::load::Load;

/// The surroundings of a measurement.
pub struct Bench {
    pub tcpstate: PathBuf,
    /// What generates recordings.
    pub generate: PathBuf,
    /// The load on which rates are measured.
    pub load: Load,
    /// How many pairs of runs with and without.
    pub pairs: u32,
    /// Whether this is only to see that everything works.
    pub quick: bool,
    /// For what tools write.
    pub folder: Folder,
    pub began: Instant,
}

impl Bench {
    /// Says what goes on.
    pub fn say(&self, what: &str) {
        let seconds = self.began.elapsed().as_secs();
        eprintln!("bench: {:>2}:{:02}  {what}", seconds / 60, seconds % 60);
    }
}

/// A folder that goes with what is in it.
pub struct Folder(PathBuf);

impl Folder {
    pub fn make(above: &Path) -> Result<Self> {
        let folder = above.join(format!("bench-{}", std::process::id()));
        fs::create_dir_all(&folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
        Ok(Self(folder))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing to be done about it, and nothing that matters.
        let _ = fs::remove_dir_all(&self.0);
    }
}
