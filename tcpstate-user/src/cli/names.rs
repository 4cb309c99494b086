//! Where the names of cgroups come from: the machine that is looked at, or a recording of it.

use hashbrown::HashMap;

use crate::kernel::Cgroups;

/// Names of cgroups by id.
pub enum Names {
    /// Those of this machine.
    Here(Cgroups),
    /// What was looked up when it was recorded.
    Recorded(HashMap<u64, String>),
}

impl Names {
    /// Those of a recording, as far as it has been read.
    pub fn recorded() -> Self {
        Self::Recorded(HashMap::default())
    }

    /// The path of a cgroup, if it has one now. What was recorded is told once, as often as it was looked up.
    pub fn path(&mut self, id: u64) -> Option<String> {
        match self {
            Self::Here(cgroups) => cgroups.path(id),
            Self::Recorded(paths) => paths.remove(&id),
        }
    }

    /// The recording says what the path is.
    pub fn learn(&mut self, id: u64, path: &str) {
        const LIMIT: usize = 65_536;
        if let Self::Recorded(paths) = self {
            if paths.len() >= LIMIT {
                paths.clear();
            }
            paths.insert(id, path.to_owned());
        }
    }
}
