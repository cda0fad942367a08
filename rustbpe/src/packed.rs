//! Words as keys: short ones packed into one number, so that comparing and hashing them costs next to nothing.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// The longest word that can be packed, in bytes.
pub const SHORT: usize = 15;

/// The bytes of a short word, the first one lowest, and its length in the highest byte. Never 0.
pub type Packed = u128;

const MASKS: [u128; SHORT + 1] = {
    let mut masks = [0; SHORT + 1];
    let mut length = 1;
    while length <= SHORT {
        masks[length] = u128::MAX >> (128 - 8 * length);
        length += 1;
    }
    masks
};

/// `text[start..end]`, which has at least one byte, if it is short enough.
#[inline(always)]
pub fn pack(text: &[u8], start: usize, end: usize) -> Option<Packed> {
    let length = end - start;
    if length > SHORT {
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
pub fn unpack(word: Packed) -> ([u8; 16], usize) {
    (word.to_le_bytes(), (word >> 120) as usize)
}

/// 64 well-mixed bits of a packed word.
#[inline(always)]
pub fn hash(word: Packed) -> u64 {
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
pub struct QuickHasher(u64);

impl Hasher for QuickHasher {
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

pub type QuickMap<K, V> = HashMap<K, V, BuildHasherDefault<QuickHasher>>;

/// Distinct words, and how often each was seen.
///
/// ```
/// let mut counts = rustbpe::WordCounts::default();
/// counts.add(b"to be", 3, 5, 2);
/// assert_eq!(counts.iter().collect::<Vec<_>>(), [(b"be".to_vec(), 2)]);
/// ```
#[derive(Default)]
pub struct WordCounts {
    /// Open addressing; the length is a power of two, at least half of it empty.
    short: Vec<Slot>,
    used: usize,
    long: QuickMap<Box<[u8]>, u64>,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    low: u64,
    high: u64, // 0: empty
    count: u64,
}

impl Slot {
    #[inline(always)]
    fn word(&self) -> Packed {
        u128::from(self.high) << 64 | u128::from(self.low)
    }
}

impl WordCounts {
    /// Count `text[start..end]`, which has at least one byte, `count` times more.
    #[inline(always)]
    pub fn add(&mut self, text: &[u8], start: usize, end: usize, count: u64) {
        match pack(text, start, end) {
            Some(word) => self.add_short(word, count),
            None => self.add_long(&text[start..end], count),
        }
    }

    #[inline(always)]
    fn add_short(&mut self, word: Packed, count: u64) {
        if 2 * self.used >= self.short.len() {
            self.grow();
        }
        let mask = self.short.len() - 1;
        let mut at = hash(word) as usize & mask;
        loop {
            let slot = &mut self.short[at];
            if slot.word() == word {
                slot.count += count;
                return;
            }
            if slot.high == 0 {
                *slot = Slot { low: word as u64, high: (word >> 64) as u64, count };
                self.used += 1;
                return;
            }
            at = (at + 1) & mask;
        }
    }

    fn add_long(&mut self, word: &[u8], count: u64) {
        match self.long.get_mut(word) {
            Some(seen) => *seen += count,
            None => {
                self.long.insert(word.into(), count);
            }
        }
    }

    #[cold]
    fn grow(&mut self) {
        let larger = vec![Slot::default(); (2 * self.short.len()).max(1 << 12)];
        let old = std::mem::replace(&mut self.short, larger);
        self.used = 0;
        for slot in old.iter().filter(|slot| slot.high != 0) {
            self.add_short(slot.word(), slot.count);
        }
    }

    /// Add all counts of `other`.
    pub fn merge(&mut self, other: Self) {
        for slot in other.short.iter().filter(|slot| slot.high != 0) {
            self.add_short(slot.word(), slot.count);
        }
        for (word, count) in other.long {
            *self.long.entry(word).or_insert(0) += count;
        }
    }

    /// Number of distinct words.
    pub fn len(&self) -> usize {
        self.used + self.long.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every word with its count, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (Vec<u8>, u64)> + '_ {
        let short = self.short.iter().filter(|slot| slot.high != 0).map(|slot| {
            let (bytes, length) = unpack(slot.word());
            (bytes[..length].to_vec(), slot.count)
        });
        short.chain(self.long.iter().map(|(word, &count)| (word.to_vec(), count)))
    }
}

impl<'w> FromIterator<(&'w [u8], u64)> for WordCounts {
    fn from_iter<I: IntoIterator<Item = (&'w [u8], u64)>>(words: I) -> Self {
        let mut counts = Self::default();
        for (word, count) in words {
            counts.add(word, 0, word.len(), count);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn counts_words_of_all_lengths() {
        let text: Vec<u8> = (0..200_u8).cycle().take(5000).collect();
        let mut counts = WordCounts::default();
        let mut expected = BTreeMap::new();
        for start in 0..4900 {
            let end = start + 1 + start * 7 % 40;
            counts.add(&text, start, end, 1);
            *expected.entry(text[start..end].to_vec()).or_insert(0) += 1;
        }
        counts.add(&text, 4999, 5000, 1); // at the very end, where sixteen bytes cannot be read
        *expected.entry(text[4999..].to_vec()).or_insert(0) += 1;
        assert_eq!(counts.len(), expected.len());
        assert_eq!(counts.iter().collect::<BTreeMap<_, _>>(), expected);

        let mut twice = WordCounts::default();
        twice.merge(counts);
        let again: WordCounts = expected.iter().map(|(word, &count)| (&word[..], count)).collect();
        twice.merge(again);
        expected.values_mut().for_each(|count| *count *= 2);
        assert_eq!(twice.iter().collect::<BTreeMap<_, _>>(), expected);
    }

    #[test]
    fn words_that_differ_in_zero_bytes_only_are_different() {
        let keys: Vec<_> = (1..=SHORT).map(|length| pack(&[0; 32], 0, length).unwrap()).collect();
        assert!((1..SHORT).all(|i| keys[i] != keys[i - 1] && keys[i] != 0));
        assert_eq!(pack(&[0; 32], 0, 16), None);
        assert_eq!(unpack(pack(b"xabc", 1, 4).unwrap()).1, 3);
    }
}
