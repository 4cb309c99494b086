//! Reading a recording back, as far as it is whole.

use std::io::{self, Read, Seek, SeekFrom};

use super::{
    Block, BlockSteps, Header, ReadError,
    block::{Kind, Unpacker, read_up_to},
    index::{Index, Trailer},
};

/// Reads one file.
#[expect(missing_debug_implementations, reason = "zstd's context has none")]
pub struct Reader<R> {
    input: R,
    unpacker: Unpacker,
    format: u32,
    header: Header,
    offset: u64,
    /// The number of the next block, if that is known.
    number: Option<u64>,
    /// Of the blocks so far, unless some were passed over.
    index: Option<Index>,
}

impl<R: Read> Reader<R> {
    /// Reads what a file begins with.
    ///
    /// # Errors
    /// If it is no recording, or one that we cannot read.
    pub fn new(mut input: R) -> Result<Self, ReadError> {
        let mut unpacker = Unpacker::new()?;
        let mut offset = 0;
        let (format, header) = Header::read(&mut input, &mut unpacker, &mut offset)?;
        Ok(Self {
            input,
            unpacker,
            format,
            header,
            offset,
            number: None,
            index: Some(Index::default()),
        })
    }

    /// The version of its format.
    pub const fn format(&self) -> u32 {
        self.format
    }

    /// What is known of the run.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// How far the file has been read, in bytes.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The block with this number must be the next.
    pub const fn expect(&mut self, number: u64) {
        self.number = Some(number);
    }

    /// The number that the next block must have, if that is known.
    pub const fn expected(&self) -> Option<u64> {
        self.number
    }

    /// The steps of the block that was read last.
    pub fn steps(&mut self) -> BlockSteps<'_> {
        self.unpacker.steps()
    }

    /// The next block of steps; `None` at the end.
    ///
    /// # Errors
    /// If there is no whole block, and no end either: nothing more can be read then.
    pub fn next_block(&mut self) -> Result<Option<Block>, ReadError> {
        let start = self.offset;
        let damaged = |what| ReadError::Damaged {
            offset: start,
            what,
        };
        let Some(block) = self.unpacker.read(&mut self.input, &mut self.offset)? else {
            return Err(ReadError::CutOff {
                offset: start,
                what: "the end is missing; the recorder was ended by force, or is still at it",
            });
        };
        match block.kind {
            Kind::Header => Err(damaged("a second header")),
            Kind::Steps => {
                let number = block.mark.number;
                if self.number.is_some_and(|expected| expected != number) {
                    return Err(damaged("blocks are missing before this one"));
                }
                self.number = Some(number.saturating_add(1));
                if let Some(index) = &mut self.index {
                    index.add(start, block.mark.now);
                }
                Ok(Some(block))
            }
            Kind::Index => {
                let known = self.index.as_ref();
                if known.is_some_and(|index| !index.is(self.unpacker.bytes())) {
                    return Err(damaged("the index is not that of the blocks before it"));
                }
                self.number = Some(block.mark.number);
                end(&mut self.input, start, self.offset).map(|()| None)
            }
        }
    }
}

/// Behind the index at `index`, at `offset`, there is the trailer, and nothing more.
fn end(input: &mut impl Read, index: u64, offset: u64) -> Result<(), ReadError> {
    // One byte more than there should be.
    let mut bytes = [0; Trailer::LENGTH + 1];
    let got = read_up_to(input, &mut bytes)?;
    if got < Trailer::LENGTH {
        return Err(ReadError::CutOff {
            offset: offset + got as u64,
            what: "the last bytes are missing",
        });
    }
    let [bytes @ .., _] = bytes;
    let trailer: Trailer = zerocopy::transmute!(bytes);
    if trailer.index() != Some(index) {
        return Err(ReadError::Damaged {
            offset,
            what: "the last bytes are wrong",
        });
    }
    if got > Trailer::LENGTH {
        return Err(ReadError::Damaged {
            offset: offset + Trailer::LENGTH as u64,
            what: "something follows the end",
        });
    }
    Ok(())
}

impl<R: Read + Seek> Reader<R> {
    /// Goes to the last block that is known to begin before this time (nanoseconds of `CLOCK_MONOTONIC`); says whether
    /// anything was passed over. Without an index nothing is.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn skip_to(&mut self, time: u64) -> io::Result<bool> {
        let found = match Index::find(&mut self.input, &mut self.unpacker, time) {
            Ok(found) => found.filter(|offset| *offset > self.offset),
            Err(ReadError::Io(error)) => return Err(error),
            // What is wrong with it is reported where it stands.
            Err(_) => None,
        };
        if let Some(offset) = found {
            self.offset = offset;
            self.number = None;
            self.index = None;
        }
        self.input.seek(SeekFrom::Start(self.offset))?;
        Ok(found.is_some())
    }
}
