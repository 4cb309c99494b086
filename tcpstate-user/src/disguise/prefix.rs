//! Addresses for addresses, such that two that have so many leading bits in common still have as many in common: networks stay
//! networks, and nobody knows which. The construction of Crypto-PAn (Xu, Fan, Ammar, Moon: "Prefix-preserving IP address
//! anonymization", ICNP 2002): whether a bit is turned depends on the bits before it, on which bit it is, and on a key.

use aes::{
    Aes128, Block,
    cipher::{BlockCipherEncrypt as _, KeyInit as _},
};

/// A key of one family of addresses: that of the cipher, and that of what tells the bits apart.
pub type Key = [u8; 32];

/// A permutation of addresses.
pub struct Prefix {
    cipher: Aes128,
    /// For each bit something else. Without it, what stands behind the bits that count could be what the address has there, too, and
    /// then the next bit would be turned like this one: every 14th address kept its first byte.
    bits: Box<[u128; 128]>,
}

impl Prefix {
    pub fn new(key: &Key) -> Self {
        let (cipher, of_bits) = key.split_at(16);
        let [cipher, of_bits] = [cipher, of_bits].map(|half| {
            let half = <[u8; 16]>::try_from(half).unwrap_or_default();
            Aes128::new(&half.into())
        });
        let bits = std::array::from_fn(|bit| encrypt(&of_bits, bit as u128));
        Self {
            cipher,
            bits: Box::new(bits),
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
        let turned = (0..bits).zip(&*self.bits).fold(0, |turned, (bit, tweak)| {
            // The bits before this one.
            let before = address & !(u128::MAX >> bit);
            turned << 1 | encrypt(&self.cipher, before ^ tweak) >> 127
        });
        address ^ turned << (128 - bits)
    }
}

fn encrypt(cipher: &Aes128, number: u128) -> u128 {
    let mut block = Block::from(number.to_be_bytes());
    cipher.encrypt_block(&mut block);
    u128::from_be_bytes(block.into())
}

#[cfg(test)]
mod tests {
    use super::Prefix;

    #[test]
    fn no_part_of_an_address_is_kept_more_often_than_by_chance() {
        const ADDRESS: u128 = 10 << 120 | 9 << 112 | 3 << 96;
        const KEYS: u32 = 4000;
        let turned: Vec<_> = (0..KEYS)
            .map(|number| {
                let mut key = [0; 32];
                key[..4].copy_from_slice(&number.to_le_bytes());
                key[20..24].copy_from_slice(&number.to_be_bytes());
                Prefix::new(&key).turn(ADDRESS, 32) ^ ADDRESS
            })
            .collect();
        let of = |what: &dyn Fn(u128) -> bool| turned.iter().filter(|bits| what(**bits)).count();
        // One in 256, so 16.
        let first_byte = of(&|bits| bits >> 120 == 0);
        assert!(first_byte < 40, "{first_byte}");
        for bit in 97..128 {
            // Half of them.
            let same = of(&|bits| bits >> bit & 1 == bits >> (bit - 1) & 1);
            assert!((1800..2200).contains(&same), "{bit}: {same}");
        }
    }
}
