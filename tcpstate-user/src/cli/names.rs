//! Where the names of cgroups come from: the machine that is looked at, or a recording of it.

use hashbrown::HashMap;

use crate::kernel::Cgroups;

/// Names of cgroups by id.
pub enum Names {
    /// Those of this machine.
    Here(Cgroups),
    /// What was looked up when it was recorded.
    Recorded {
        paths: HashMap<u64, String>,
        /// Of all these paths.
        bytes: usize,
    },
}

impl Names {
    /// Those of a recording, as far as it has been read.
    pub fn recorded() -> Self {
        Self::Recorded {
            paths: HashMap::default(),
            bytes: 0,
        }
    }

    /// The path of a cgroup, if it has one now. What was recorded is told once, as often as it was looked up.
    pub fn path(&mut self, id: u64) -> Option<String> {
        match self {
            Self::Here(cgroups) => cgroups.path(id),
            Self::Recorded { paths, bytes } => {
                let path = paths.remove(&id)?;
                *bytes -= path.len();
                Some(path)
            }
        }
    }

    /// The recording says what the path is.
    pub fn learn(&mut self, id: u64, path: &str) {
        const PATHS: usize = 65_536;
        const BYTES: usize = 64 << 20;
        if let Self::Recorded { paths, bytes } = self {
            if paths.len() >= PATHS || *bytes + path.len() > BYTES {
                paths.clear();
                *bytes = 0;
            }
            *bytes += path.len();
            if let Some(before) = paths.insert(id, path.to_owned()) {
                *bytes -= before.len();
            }
        }
    }
}
