//! Words as keys: short ones packed into one number, so that comparing and hashing them costs next to nothing.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// The longest word that can be packed, in bytes.
pub const MAX_PACKED_LEN: usize = 15;

/// The bytes of a short word, the first one lowest, and its length in the highest byte. Never 0.
pub type PackedWord = u128;

const MASKS: [u128; MAX_PACKED_LEN + 1] = {
    let mut masks = [0; MAX_PACKED_LEN + 1];
    let mut length = 1;
    while length <= MAX_PACKED_LEN {
        masks[length] = u128::MAX >> (128 - 8 * length);
        length += 1;
    }
    masks
};

/// `text[start..end]`, which has at least one byte, if it is short enough.
#[inline(always)]
pub fn pack(text: &[u8], start: usize, end: usize) -> Option<PackedWord> {
    let length = end - start;
    if length > MAX_PACKED_LEN {
        return None;
    }
    // Read sixteen bytes at once where the text has them, whatever the length of the word.
    let bytes = match text.get(start..start + 16) {
        Some(sixteen) => u128::from_le_bytes(sixteen.try_into().expect("sixteen bytes")),
        None => {
            let mut sixteen = [0; 16];
            sixteen[..length].copy_from_slice(&text[start..end]);
            u128::from_le_bytes(sixteen)
        }
    };
    Some((bytes & MASKS[length]) | (length as u128) << 120)
}

/// The bytes of a packed word, and how many of them count.
pub fn unpack(word: PackedWord) -> ([u8; 16], usize) {
    (word.to_le_bytes(), (word >> 120) as usize)
}

/// 64 well-mixed bits of a packed word.
#[inline(always)]
pub fn hash(word: PackedWord) -> u64 {
    mix(word as u64 ^ 0x9E37_79B9_7F4A_7C15, (word >> 64) as u64 ^ 0xD1B5_4A32_D192_ED03)
}

/// The two halves of a product, folded.
#[inline(always)]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// A quick hash for the maps in here; not meant to withstand an attacker.
#[derive(Default)]
pub struct FastHasher(u64);

impl Hasher for FastHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.write_u64(u64::from_le_bytes(chunk.try_into().expect("eight bytes")));
        }
        let mut rest = [0; 8];
        rest[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        self.write_u64(u64::from_le_bytes(rest));
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.0 = mix(self.0 ^ value ^ 0x9E37_79B9_7F4A_7C15, 0xD1B5_4A32_D192_ED03);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

pub type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<FastHasher>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_differ_in_zero_bytes_only_are_different() {
        let keys: Vec<_> = (1..=MAX_PACKED_LEN).map(|length| pack(&[0; 32], 0, length).unwrap()).collect();
        assert!((1..MAX_PACKED_LEN).all(|i| keys[i] != keys[i - 1] && keys[i] != 0));
        assert_eq!(pack(&[0; 32], 0, 16), None);
        assert_eq!(unpack(pack(b"xabc", 1, 4).unwrap()).1, 3);
    }
}
