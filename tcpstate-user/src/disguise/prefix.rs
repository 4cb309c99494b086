//! Addresses for addresses, such that two that have so many leading bits in common still have as many in common: networks stay
//! networks, and nobody knows which. The construction of Crypto-PAn (Xu, Fan, Ammar, Moon: "Prefix-preserving IP address
//! anonymization", ICNP 2002): whether a bit is turned depends on the bits before it, and on a key.

use aes::{
    Aes128, Block,
    cipher::{BlockCipherEncrypt as _, KeyInit as _},
};

/// A key of one family of addresses: that of the cipher, and what stands for the bits that do not count.
pub type Key = [u8; 32];

/// A permutation of addresses.
pub struct Prefix {
    cipher: Aes128,
    rest: u128,
}

impl Prefix {
    pub fn new(key: &Key) -> Self {
        let (cipher, rest) = key.split_at(16);
        let half = |half: &[u8]| <[u8; 16]>::try_from(half).unwrap_or_default();
        let cipher = Aes128::new(&half(cipher).into());
        let mut block = Block::from(half(rest));
        cipher.encrypt_block(&mut block);
        Self {
            cipher,
            rest: u128::from_be_bytes(block.into()),
        }
    }

    /// The address for one of so many bits, which are the first ones of `address`. What is unspecified stays so: it is no
    /// address. The one that would become unspecified becomes what that would have become.
    pub fn turn(&self, address: u128, bits: u32) -> u128 {
        if address == 0 {
            return 0;
        }
        match self.permute(address, bits) {
            0 => self.permute(0, bits),
            other => other,
        }
    }

    fn permute(&self, address: u128, bits: u32) -> u128 {
        let turned = (0..bits).fold(0, |turned, bit| {
            // The bits before this one, and behind them always the same.
            let behind = u128::MAX >> bit;
            let input = address & !behind | self.rest & behind;
            let mut block = Block::from(input.to_be_bytes());
            self.cipher.encrypt_block(&mut block);
            turned << 1 | u128::from(block[0] >> 7)
        });
        address ^ turned << (128 - bits)
    }
}
