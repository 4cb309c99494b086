//! Blocks: what a recording is made of. Each is whole or not, and says so by its checksums.

use std::io::{self, Read, Write};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::{
    ReadError,
    fold::{BlockSteps, Groups, Last, fold},
};

/// How many bytes a block may have, packed or not: what a reader has to hold, whatever the file says.
pub(super) const MOST: usize = 4 << 20;

/// How hard zstd tries: more costs more than it saves.
const LEVEL: i32 = 1;

const MARK: [u8; 4] = *b"tcpB";

/// What is in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The description of the run: the first block.
    Header = 1,
    /// Steps.
    Steps = 2,
    /// Where blocks are: the last block.
    Index = 3,
}

/// What is known where a block begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// How many blocks of steps there were before, in this part and those before.
    pub number: u64,
    /// How many records there were before.
    pub records: u64,
    /// The time of the turn that goes on in it (nanoseconds of `CLOCK_MONOTONIC`).
    pub now: u64,
    /// Transitions lost by then because the ring buffer was full.
    pub lost: u64,
    /// Sockets not found by then for the same reason.
    pub not_found: u64,
    /// Events that nobody saw by then, at most ([`crate::kernel::Counters::missed`]).
    pub missed: u64,
    /// Records not recorded by then.
    pub unrecorded: u64,
}

/// What stands before the bytes of a block.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    mark: [u8; 4],
    kind: u8,
    packing: u8,
    reserved: U16,
    stored: U32,
    length: U32,
    number: U64,
    records: U64,
    now: U64,
    lost: U64,
    not_found: U64,
    missed: U64,
    unrecorded: U64,
    /// Of the bytes that follow.
    body: U32,
    /// Of this structure without its last four bytes.
    check: U32,
}

const HEAD: usize = size_of::<Head>();
/// Bits of how a block is packed: what was done last is undone first.
const ZSTD: u8 = 1;
/// By length: nobody does that any more.
const FOLDED_BY_LENGTH: u8 = 2;
const FOLDED: u8 = 4;

const _: () = assert!(HEAD == 80);

/// A block that was read, and found whole.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Where it begins in the file.
    pub offset: u64,
    /// What is in it.
    pub(super) kind: Kind,
    /// What was known there.
    pub mark: Mark,
}

/// Packs blocks.
pub(super) struct Packer {
    zstd: zstd::bulk::Compressor<'static>,
    /// Memory that is used again.
    folded: Vec<u8>,
}

impl Packer {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            zstd: zstd::bulk::Compressor::new(LEVEL)?,
            folded: Vec::new(),
        })
    }

    /// Writes a block, and says how many bytes it took.
    pub fn write(
        &mut self,
        out: &mut impl Write,
        kind: Kind,
        mark: &Mark,
        bytes: &[u8],
    ) -> io::Result<u64> {
        let (mut packing, mut body) = (0, bytes);
        if kind == Kind::Steps
            && let Some(folded) = fold(bytes, &mut self.folded)
        {
            (packing, body) = (FOLDED, folded);
        }
        let packed;
        // The header can be read without a tool.
        if kind != Kind::Header {
            packed = self.zstd.compress(body)?;
            if packed.len() < body.len() {
                (packing, body) = (packing | ZSTD, &packed);
            }
        }
        let size = |bytes: &[u8]| {
            u32::try_from(bytes.len())
                .ok()
                .filter(|_| bytes.len() <= MOST)
                .map(U32::new)
                .ok_or_else(|| io::Error::other("a block would be too large"))
        };
        let mut head = Head {
            mark: MARK,
            kind: kind as u8,
            packing,
            reserved: U16::ZERO,
            stored: size(body)?,
            length: size(bytes)?,
            number: mark.number.into(),
            records: mark.records.into(),
            now: mark.now.into(),
            lost: mark.lost.into(),
            not_found: mark.not_found.into(),
            missed: mark.missed.into(),
            unrecorded: mark.unrecorded.into(),
            body: crc32fast::hash(body).into(),
            check: U32::ZERO,
        };
        head.check = head.check().into();
        // One write: what is torn is torn at the end.
        let whole = [head.as_bytes(), body].concat();
        out.write_all(&whole)?;
        Ok(whole.len() as u64)
    }
}

impl Head {
    fn check(&self) -> u32 {
        crc32fast::hash(&self.as_bytes()[..HEAD - 4])
    }
}

/// Unpacks blocks, into memory that is used again.
pub(super) struct Unpacker {
    zstd: zstd::bulk::Decompressor<'static>,
    body: Vec<u8>,
    unpacked: Vec<u8>,
    last: Box<Last>,
    packing: u8,
    /// Bytes of the block, unfolded.
    length: usize,
}

impl Unpacker {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            zstd: zstd::bulk::Decompressor::new()?,
            body: Vec::new(),
            unpacked: Vec::new(),
            last: Box::default(),
            packing: 0,
            length: 0,
        })
    }

    /// The bytes of the block that was read last, unpacked. Only steps are folded.
    pub fn bytes(&self) -> &[u8] {
        &self.unpacked
    }

    /// The steps of the block that was read last.
    pub fn steps(&mut self) -> BlockSteps<'_> {
        let groups = match self.packing & !ZSTD {
            FOLDED => Some(Groups::Kind),
            FOLDED_BY_LENGTH => Some(Groups::Length),
            _ => None,
        };
        let last = groups.map(|groups| (&mut *self.last, groups));
        BlockSteps::new(&self.unpacked, self.length, last)
    }

    /// Reads the block that begins here; `None` if the file ends here.
    pub fn read(
        &mut self,
        input: &mut impl Read,
        offset: &mut u64,
    ) -> Result<Option<Block>, ReadError> {
        let start = *offset;
        let damaged = |offset: u64, what| ReadError::Damaged { offset, what };
        let cut_off = |offset| ReadError::CutOff {
            offset,
            what: "a block is not whole",
        };
        let mut head = [0; HEAD];
        match read_up_to(input, &mut head)? {
            0 => return Ok(None),
            HEAD => {}
            some => return Err(cut_off(start + some as u64)),
        }
        let head: Head = zerocopy::transmute!(head);
        if head.mark != MARK {
            return Err(damaged(start, "no block begins here"));
        }
        if head.check.get() != head.check() {
            return Err(damaged(
                start,
                "the checksum of the head of a block is wrong",
            ));
        }
        let kind = match head.kind {
            1 => Kind::Header,
            2 => Kind::Steps,
            3 => Kind::Index,
            _ => return Err(damaged(start, "there is no such kind of block")),
        };
        let (stored, length) = (head.stored.get() as usize, head.length.get() as usize);
        if stored > MOST || length > MOST {
            return Err(damaged(start, "a block is larger than any may be"));
        }
        self.body.resize(stored, 0);
        let body_at = start + HEAD as u64;
        let got = read_up_to(input, &mut self.body)?;
        if got < stored {
            return Err(cut_off(body_at + got as u64));
        }
        if crc32fast::hash(&self.body) != head.body.get() {
            return Err(damaged(body_at, "the checksum of a block is wrong"));
        }
        let wrong_length = damaged(body_at, "a block has another length than it says");
        self.packing = head.packing;
        let folded = matches!(self.packing & !ZSTD, FOLDED_BY_LENGTH | FOLDED);
        if self.packing & !ZSTD != 0 && !(folded && kind == Kind::Steps) {
            return Err(damaged(start, "there is no such way of packing"));
        }
        if self.packing & ZSTD != 0 {
            // It gets no more room than was promised, however much it would unpack to.
            self.unpacked.clear();
            self.unpacked.reserve(length);
            let unpacked = &mut self.unpacked;
            if self
                .zstd
                .decompress_to_buffer(&self.body, unpacked)
                .is_err()
            {
                return Err(wrong_length);
            }
        } else {
            std::mem::swap(&mut self.body, &mut self.unpacked);
        }
        // What is folded tells it when it is unfolded.
        if !folded && self.bytes().len() != length {
            return Err(wrong_length);
        }
        self.length = length;
        *offset = body_at + stored as u64;
        Ok(Some(Block {
            offset: start,
            kind,
            mark: Mark {
                number: head.number.get(),
                records: head.records.get(),
                now: head.now.get(),
                lost: head.lost.get(),
                not_found: head.not_found.get(),
                missed: head.missed.get(),
                unrecorded: head.unrecorded.get(),
            },
        }))
    }
}

/// Fills the buffer as far as there is something to fill it with.
pub(super) fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(some) => filled += some,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
