//! Paths of cgroups by id, each kept once for all that is in it.

use std::sync::Arc;

use hashbrown::HashMap;

/// As many paths as are known at a time.
const PATHS: usize = 65_536;

/// As much memory as all paths may take, those that connections still have included.
const BYTES: usize = 64 << 20;

/// What a path takes besides its bytes.
const EACH: usize = 32;

/// The cgroups that were named.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    known: HashMap<u64, Arc<str>>,
    /// Those that were forgotten while somebody still had them.
    held: Vec<Arc<str>>,
    bytes: usize,
    /// So much is held that nothing more is named: only a recording that somebody made up comes here.
    full: bool,
}

impl Cgroups {
    pub(super) fn has(&self, id: u64) -> bool {
        self.known.contains_key(&id)
    }

    pub(super) fn path(&self, id: Option<u64>) -> Option<Arc<str>> {
        self.known.get(&id?).cloned()
    }

    /// A cgroup has this path. The paths of many that came and went are forgotten at once.
    pub(super) fn name(&mut self, id: u64, path: &str) {
        let more = path.len() + EACH;
        if self.known.len() >= PATHS || self.bytes + more > BYTES {
            self.forget();
        }
        if self.full {
            return;
        }
        self.bytes += more;
        if let Some(before) = self.known.insert(id, path.into()) {
            self.held.push(before);
        }
    }

    fn forget(&mut self) {
        self.held.extend(self.known.drain().map(|(_, path)| path));
        self.held.retain(|path| Arc::strong_count(path) > 1);
        self.bytes = self.held.iter().map(|path| path.len() + EACH).sum();
        // To look through them again and again would take all the time.
        self.full |= self.bytes > BYTES / 2;
    }
}

#[cfg(test)]
mod tests {
    use super::{BYTES, Cgroups};

    #[test]
    fn what_nobody_has_makes_room() {
        let mut cgroups = Cgroups::default();
        let path = "a".repeat(65_000);
        for id in 0..3000 {
            cgroups.name(id, &path);
            assert!(cgroups.path(Some(id)).is_some() && cgroups.has(id));
            assert!(cgroups.bytes <= BYTES);
        }
        assert!(!cgroups.has(0) && cgroups.path(None).is_none());
    }

    #[test]
    fn what_connections_have_takes_no_more_than_there_is() {
        let mut cgroups = Cgroups::default();
        let path = "a".repeat(65_000);
        let mut connections = Vec::new();
        for id in 0..3000 {
            cgroups.name(id, &path);
            connections.extend(cgroups.path(Some(id)));
        }
        let held = connections.len() * path.len();
        assert!((BYTES / 2..BYTES).contains(&held), "{held}");
    }
}
