//! Where the value of each number is.

use crate::prefetch::prefetch;

/// No place.
pub(super) const NONE: u32 = u32::MAX;

/// Places by hash. Each stands at its home, which the hash says, or behind it where the next ones had been taken; what comes behind one
/// that is removed moves up. So the entries that a look-up passes are in one line of the cache, mostly, and say without their slots
/// whether they can be meant, and where they belong. A table of hashbrown does not tell where it will look, so nobody could
/// have it fetched.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// None, or a power of two.
    entries: Vec<Entry>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: u32,
    place: u32,
}

impl Entry {
    const EMPTY: Self = Self {
        hash: 0,
        place: NONE,
    };

    const fn is_empty(self) -> bool {
        self.place == NONE
    }
}

impl Index {
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Has the entries fetched that will tell the place.
    pub fn prefetch(&self, hash: u32) {
        if let Some(entry) = self.entries.get(self.home(hash)) {
            prefetch(entry);
        }
    }

    /// Where the entry with this hash is that is meant.
    pub fn find(&self, hash: u32, is_meant: impl Fn(usize) -> bool) -> Option<usize> {
        let mut at = self.home(hash);
        loop {
            let entry = self.entries.get(at)?;
            if entry.is_empty() {
                return None;
            }
            if entry.hash == hash && is_meant(entry.place as usize) {
                return Some(at);
            }
            at = self.next(at);
        }
    }

    /// The place that is told there.
    pub fn place(&self, at: usize) -> usize {
        self.entries.get(at).map_or(NONE, |entry| entry.place) as usize
    }

    /// Tells a place from now on.
    pub fn insert(&mut self, hash: u32, place: u32) {
        // A quarter stays empty, so that each finds room near its home.
        if (self.len + 1) * 4 > self.entries.len() * 3 {
            let more = (self.entries.len() * 2).max(64);
            let before = std::mem::replace(&mut self.entries, vec![Entry::EMPTY; more]);
            for entry in before.into_iter().filter(|entry| !entry.is_empty()) {
                self.put(entry);
            }
        }
        self.put(Entry { hash, place });
        self.len += 1;
    }

    fn put(&mut self, entry: Entry) {
        let mut at = self.home(entry.hash);
        while self.entries.get(at).is_some_and(|there| !there.is_empty()) {
            at = self.next(at);
        }
        if let Some(there) = self.entries.get_mut(at) {
            *there = entry;
        }
    }

    /// Removes the entry that is there.
    pub fn remove(&mut self, mut at: usize) {
        let mut behind = self.next(at);
        while let Some(entry) = self.entries.get(behind).copied()
            && !entry.is_empty()
        {
            // It may not come before its home.
            if self.distance(self.home(entry.hash), behind) >= self.distance(at, behind) {
                self.entries[at] = entry;
                at = behind;
            }
            behind = self.next(behind);
        }
        if let Some(last) = self.entries.get_mut(at) {
            *last = Entry::EMPTY;
            self.len -= 1;
        }
    }

    fn home(&self, hash: u32) -> usize {
        // The upper bits, as many as there are.
        usize::try_from((u64::from(hash) * self.entries.len() as u64) >> 32).unwrap_or_default()
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & self.entries.len().wrapping_sub(1)
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & self.entries.len().wrapping_sub(1)
    }
}
