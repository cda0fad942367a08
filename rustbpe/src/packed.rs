//! Short words packed into one integer, which is cheap to compare and to hash.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// The largest number of bytes that can be packed.
pub const MAX_PACKED_LEN: usize = 15;

/// A word of 1 to 15 bytes: the first byte in the lowest byte of the integer, the length in the highest. Never 0.
///
/// `"ab"` is packed as `0x02_..._62_61`.
pub type PackedWord = u128;

/// `BYTE_MASKS[len]` covers the lowest `len` bytes.
const BYTE_MASKS: [u128; MAX_PACKED_LEN + 1] = {
    let mut masks = [0; MAX_PACKED_LEN + 1];
    let mut len = 1;
    while len <= MAX_PACKED_LEN {
        masks[len] = u128::MAX >> (128 - 8 * len);
        len += 1;
    }
    masks
};

/// Pack `text[start..end]`, which must not be empty. Returns `None` if it is longer than `MAX_PACKED_LEN`.
#[inline(always)]
pub fn pack(text: &[u8], start: usize, end: usize) -> Option<PackedWord> {
    let len = end - start;
    if len > MAX_PACKED_LEN {
        return None;
    }
    // One read of sixteen bytes for words of any length, except near the end of the text.
    let bytes = match text.get(start..start + 16) {
        Some(sixteen) => u128::from_le_bytes(sixteen.try_into().expect("the slice has sixteen bytes")),
        None => {
            let mut sixteen = [0; 16];
            sixteen[..len].copy_from_slice(&text[start..end]);
            u128::from_le_bytes(sixteen)
        }
    };
    Some((bytes & BYTE_MASKS[len]) | (len as u128) << 120)
}

/// Return sixteen bytes that start with those of the word, and the length of the word.
pub fn unpack(word: PackedWord) -> ([u8; 16], usize) {
    (word.to_le_bytes(), (word >> 120) as usize)
}

/// Return 64 well-mixed bits of a packed word.
#[inline(always)]
pub fn hash_packed(word: PackedWord) -> u64 {
    mix(word as u64 ^ 0x9E37_79B9_7F4A_7C15, (word >> 64) as u64 ^ 0xD1B5_4A32_D192_ED03)
}

/// Return the lower half of the 128-bit product, xored with the upper half.
#[inline(always)]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// A fast hash for the maps of this crate. It does not resist keys that were chosen to collide.
#[derive(Default)]
pub struct FastHasher(u64);

impl Hasher for FastHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.write_u64(u64::from_le_bytes(chunk.try_into().expect("the chunk has eight bytes")));
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
    fn first_byte_lowest_and_length_highest() {
        assert_eq!(pack(b"ab", 0, 2), Some(2 << 120 | 0x62_61));
        assert_eq!(pack(&[b'x'; 32], 0, 16), None);
        assert_eq!(unpack(pack(b"xabc", 1, 4).unwrap()), (*b"abc\0\0\0\0\0\0\0\0\0\0\0\0\x03", 3));
    }

    #[test]
    fn words_that_differ_only_in_zero_bytes_are_different() {
        let words: Vec<_> = (1..=MAX_PACKED_LEN).map(|len| pack(&[0; 32], 0, len).unwrap()).collect();
        assert!((1..MAX_PACKED_LEN).all(|i| words[i] != words[i - 1] && words[i] != 0));
    }
}
