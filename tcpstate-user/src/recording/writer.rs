//! Writing one file of a recording.

use std::io::{self, Write};

use zerocopy::IntoBytes as _;

use super::{
    Header, Mark,
    block::{Kind, Packer},
    index::{Index, Trailer},
};

/// Writes one file, block by block.
#[expect(missing_debug_implementations, reason = "zstd's context has none")]
pub struct Writer<W> {
    out: W,
    packer: Packer,
    index: Index,
    offset: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(mut out: W, header: &Header) -> io::Result<Self> {
        let mut packer = Packer::new()?;
        let offset = header.write(&mut out, &mut packer)?;
        Ok(Self {
            out,
            packer,
            index: Index::default(),
            offset,
        })
    }

    /// Writes a block of steps.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn steps(&mut self, mark: &Mark, bytes: &[u8]) -> io::Result<()> {
        let length = self.packer.write(&mut self.out, Kind::Steps, mark, bytes)?;
        self.index.add(self.offset, mark.now);
        self.offset += length;
        Ok(())
    }

    /// Ends the file in order. The mark says what is known at its end.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self, mark: &Mark) -> io::Result<(W, u64)> {
        let bytes = self.index.as_bytes();
        let length = self.packer.write(&mut self.out, Kind::Index, mark, bytes)?;
        let trailer = Trailer::new(self.offset);
        self.out.write_all(trailer.as_bytes())?;
        self.out.flush()?;
        Ok((self.out, self.offset + length + Trailer::LENGTH as u64))
    }

    /// Bytes written so far.
    pub const fn written(&self) -> u64 {
        self.offset
    }

    /// What it writes to.
    pub const fn get_ref(&self) -> &W {
        &self.out
    }
}
