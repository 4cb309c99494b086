//! Where to find a time: the last block of a recording.

use std::io::{Read, Seek, SeekFrom};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use super::{
    ReadError,
    block::{Kind, Unpacker},
};

/// How many blocks it names: of more, every second one, or fourth and so on.
const MOST: usize = 65_536;

/// Where a block is.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    offset: U64,
    now: U64,
}

/// The last bytes of a file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Trailer {
    /// Where the block of the index begins.
    index: U64,
    check: U32,
    mark: [u8; 4],
}

impl Trailer {
    pub const LENGTH: usize = size_of::<Self>();
    const MARK: [u8; 4] = *b"tcpE";

    pub fn new(index: u64) -> Self {
        let index = U64::new(index);
        Self {
            index,
            check: crc32fast::hash(index.as_bytes()).into(),
            mark: Self::MARK,
        }
    }

    /// Where the index is, if this is a trailer.
    pub fn index(&self) -> Option<u64> {
        let whole = self.check.get() == crc32fast::hash(self.index.as_bytes());
        (whole && self.mark == Self::MARK).then(|| self.index.get())
    }
}

/// Which blocks begin when.
#[derive(Debug)]
pub(super) struct Index {
    entries: Vec<Entry>,
    /// One block of so many is in it.
    step: u64,
    blocks: u64,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            step: 1,
            blocks: 0,
        }
    }
}

impl Index {
    /// The next block begins here, in the turn of this time.
    pub fn add(&mut self, offset: u64, now: u64) {
        if self.entries.len() >= MOST {
            let mut keep = false;
            self.entries.retain(|_| {
                keep = !keep;
                keep
            });
            self.step *= 2;
        }
        if self.blocks.is_multiple_of(self.step) {
            self.entries.push(Entry {
                offset: offset.into(),
                now: now.into(),
            });
        }
        self.blocks += 1;
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.entries.as_bytes()
    }

    /// Whether this is the index of these blocks, all of the file.
    pub fn is(&self, bytes: &[u8]) -> bool {
        self.as_bytes() == bytes
    }

    /// The last block that is known to begin before this time, in a file that has an index; that may be none.
    pub fn find(
        input: &mut (impl Read + Seek),
        unpacker: &mut Unpacker,
        time: u64,
    ) -> Result<Option<u64>, ReadError> {
        let length = input.seek(SeekFrom::End(0))?;
        let Some(trailer_at) = length.checked_sub(Trailer::LENGTH as u64) else {
            return Ok(None);
        };
        input.seek(SeekFrom::Start(trailer_at))?;
        let mut bytes = [0; Trailer::LENGTH];
        input.read_exact(&mut bytes)?;
        let trailer: Trailer = zerocopy::transmute!(bytes);
        let Some(at) = trailer.index().filter(|index| *index < trailer_at) else {
            return Ok(None);
        };
        let mut offset = at;
        input.seek(SeekFrom::Start(offset))?;
        let block = unpacker.read(input, &mut offset)?;
        if block.is_none_or(|block| block.kind != Kind::Index) {
            return Ok(None);
        }
        let Ok(entries) = <[Entry]>::ref_from_bytes(unpacker.bytes()) else {
            return Ok(None);
        };
        let after = entries.partition_point(|entry| entry.now.get() < time);
        let entry = after.checked_sub(1).and_then(|last| entries.get(last));
        // What names a place behind itself is no index; who reads the whole file says so.
        let offset = entry.map(|entry| entry.offset.get());
        Ok(offset.filter(|offset| *offset < at))
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Index, MOST};
    use zerocopy::FromBytes as _;

    #[test]
    fn a_long_recording_has_a_coarser_index() {
        let mut index = Index::default();
        for block in 0..MOST as u64 * 2 + 10 {
            index.add(block * 100, block);
        }
        let entries = <[Entry]>::ref_from_bytes(index.as_bytes()).unwrap_or_default();
        assert!(entries.len() <= MOST && entries.len() > MOST / 2);
        let steps = |pair: &[Entry]| pair[1].now.get() - pair[0].now.get() == 4;
        assert!(entries.windows(2).all(steps));
    }
}
