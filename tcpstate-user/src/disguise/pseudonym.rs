//! Names for names: the same for the same, and otherwise without any likeness.

use std::fmt::Write as _;

use aes::{
    Aes128, Block,
    cipher::{BlockCipherEncrypt as _, KeyInit as _},
};

use crate::event::Comm;

/// The key.
pub type Key = [u8; 16];

/// Gives names.
pub struct Pseudonyms(Aes128);

impl Pseudonyms {
    pub fn new(key: &Key) -> Self {
        Self(Aes128::new(&(*key).into()))
    }

    /// The name for the name of a process: 15 characters, as many as the kernel keeps. That of one that has none is none.
    pub fn comm(&self, comm: Comm) -> Comm {
        match comm.as_bytes() {
            [] => comm,
            name => Comm::truncated(&self.name("p-", name)),
        }
    }

    /// The path for a path: below the same cgroup as before.
    pub fn path(&self, path: &str) -> String {
        let part = |part: &str| match part {
            "" => String::new(),
            part => self.name("c-", part.as_bytes()),
        };
        path.split('/').map(part).collect::<Vec<_>>().join("/")
    }

    /// CBC-MAC, with the length first, so that no text is the beginning of another one; 52 bits of it.
    fn name(&self, prefix: &str, text: &[u8]) -> String {
        let mut block = Block::from((text.len() as u128).to_be_bytes());
        self.0.encrypt_block(&mut block);
        for some in text.chunks(block.len()) {
            for (byte, more) in block.iter_mut().zip(some) {
                *byte ^= more;
            }
            self.0.encrypt_block(&mut block);
        }
        let mut name = prefix.to_owned();
        for byte in block.iter().take(7) {
            // Writing to a string does not fail.
            let _ = write!(name, "{byte:02x}");
        }
        name.truncate(15);
        name
    }
}
