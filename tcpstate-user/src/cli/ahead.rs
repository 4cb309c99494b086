//! A few records that come next: what is known of their sockets can be fetched from memory before it is asked for.

use crate::event::About;

/// Enough of them for memory to answer meanwhile, few enough to stay in the nearest cache.
const COUNT: usize = 32;

/// Records in order.
#[derive(Default)]
pub struct Ahead {
    bytes: Vec<u8>,
    /// Of each, where it ends and what it is about.
    records: Vec<(usize, About)>,
}

impl Ahead {
    /// There are none any more.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
    }

    /// Whether these are enough.
    pub const fn is_full(&self) -> bool {
        self.records.len() >= COUNT
    }

    /// One more.
    pub fn push(&mut self, record: &[u8], about: About) {
        self.bytes.extend_from_slice(record);
        self.records.push((self.bytes.len(), about));
    }

    /// What they are about.
    pub fn abouts(&self) -> impl Iterator<Item = About> {
        self.records.iter().map(|(_, about)| *about)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut begin = 0;
        self.records.iter().map(move |(end, _)| {
            let record = self.bytes.get(begin..*end);
            begin = *end;
            record.unwrap_or_default()
        })
    }
}
