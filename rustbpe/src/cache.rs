//! Words that a thread has seen before, with their ids. Bounded: a word takes the place of another.

use crate::words::{self, Packed, QuickHasher};
use std::hash::Hasher;

/// Up to six ids of 21 bits, each plus one: three in the low half, three in the high half, 0 where there is none.
#[derive(Clone, Copy)]
pub struct ShortIds {
    low: u64,
    high: u64,
}

const ID_BITS: u32 = 21;
const ID_MASK: u64 = (1 << ID_BITS) - 1;

impl ShortIds {
    fn new(ids: &[u32]) -> Option<Self> {
        let half = |ids: &[u32]| ids.iter().rev().fold(0, |all, &id| all << ID_BITS | u64::from(id + 1));
        (ids.len() <= 6).then(|| Self { low: half(&ids[..ids.len().min(3)]), high: half(&ids[ids.len().min(3)..]) })
    }

    /// The first id; every word has one.
    #[inline(always)]
    pub fn first(self) -> u32 {
        (self.low & ID_MASK) as u32 - 1
    }

    /// The ids behind the first.
    #[inline(always)]
    pub fn others(self) -> impl Iterator<Item = u32> {
        let mut rest = u128::from(self.high) << (2 * ID_BITS) | u128::from(self.low >> ID_BITS);
        std::iter::from_fn(move || {
            let id = rest as u64 & ID_MASK;
            rest >>= ID_BITS;
            (id != 0).then(|| id as u32 - 1)
        })
    }
}

/// Places for short words, 32 bytes each.
const SHORT_PLACES: usize = 1 << 18;
/// Longer words (sentences, where there are no spaces): their places, the longest that is kept, and the room for their
/// bytes and for their ids.
const LONG_PLACES: usize = 1 << 17;
const LONGEST: usize = 256;
const BYTES_ROOM: usize = 1 << 22;
const IDS_ROOM: usize = 1 << 20;

/// One thread's memory. Its tables are arrays of numbers, which the system gives out as zeros without writing them first.
pub struct Cache {
    /// The word (0: empty) and its ids.
    short: Vec<[u64; 4]>,
    /// The hash of the word; where its bytes begin; where its ids begin; the number of the bytes (0: empty) and of the ids.
    long: Vec<[u64; 3]>,
    bytes: Vec<u8>,
    ids: Vec<u32>,
}

impl Default for Cache {
    fn default() -> Self {
        Self { short: vec![[0; 4]; SHORT_PLACES], long: vec![[0; 3]; LONG_PLACES], bytes: Vec::new(), ids: Vec::new() }
    }
}

impl Cache {
    #[inline(always)]
    fn place(word: Packed) -> usize {
        words::hash(word) as usize & (SHORT_PLACES - 1)
    }

    /// The ids of a word, if it is here.
    #[inline(always)]
    pub fn short(&self, word: Packed) -> Option<ShortIds> {
        let [low, high, first, second] = self.short[Self::place(word)];
        (low == word as u64 && high == (word >> 64) as u64).then_some(ShortIds { low: first, high: second })
    }

    /// Keep a word, unless it has too many ids.
    pub fn keep_short(&mut self, word: Packed, ids: &[u32]) {
        if let Some(ids) = ShortIds::new(ids) {
            self.short[Self::place(word)] = [word as u64, (word >> 64) as u64, ids.low, ids.high];
        }
    }

    fn hash_long(word: &[u8]) -> u64 {
        let mut hasher = QuickHasher::default();
        hasher.write(word);
        hasher.finish()
    }

    /// The ids of a word that cannot be packed, if it is here.
    pub fn long(&self, word: &[u8]) -> Option<&[u32]> {
        let hash = Self::hash_long(word);
        let [seen, begins, numbers] = self.long[hash as usize & (LONG_PLACES - 1)];
        let (bytes, ids) = (begins as u32 as usize, (begins >> 32) as usize);
        let (num_bytes, num_ids) = (numbers as u32 as usize, (numbers >> 32) as usize);
        let same = seen == hash && num_bytes == word.len() && self.bytes[bytes..bytes + num_bytes] == *word;
        same.then(|| &self.ids[ids..ids + num_ids])
    }

    /// Keep a word that cannot be packed, unless it is very long.
    pub fn keep_long(&mut self, word: &[u8], ids: &[u32]) {
        if word.len() > LONGEST {
            return;
        }
        if self.bytes.len() + word.len() > BYTES_ROOM || self.ids.len() + ids.len() > IDS_ROOM {
            self.long.fill([0; 3]);
            self.bytes.clear();
            self.ids.clear();
        }
        let hash = Self::hash_long(word);
        let both = |low: usize, high: usize| (high as u64) << 32 | low as u64;
        self.long[hash as usize & (LONG_PLACES - 1)] =
            [hash, both(self.bytes.len(), self.ids.len()), both(word.len(), ids.len())];
        self.bytes.extend_from_slice(word);
        self.ids.extend_from_slice(ids);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_ids_in_one_place() {
        let ids = [0, (1 << 21) - 2, 5, 0, 7, 1_000_000];
        for length in 1..=6 {
            let kept = ShortIds::new(&ids[..length]).unwrap();
            let found: Vec<u32> = std::iter::once(kept.first()).chain(kept.others()).collect();
            assert_eq!(found, ids[..length]);
        }
        assert!(ShortIds::new(&[1; 7]).is_none());
    }

    #[test]
    fn long_words_are_forgotten_when_the_room_is_full() {
        let mut cache = Cache::default();
        let word = |number: u32| [number.to_le_bytes(); 20].concat();
        for number in 0..100_000 {
            cache.keep_long(&word(number), &[number]);
            assert_eq!(cache.long(&word(number)), Some(&[number][..]));
        }
        assert!(cache.bytes.len() <= BYTES_ROOM && cache.ids.len() <= IDS_ROOM);
        assert_eq!(cache.long(&word(0)), None);
        cache.keep_long(&[1; LONGEST + 1], &[1]);
        assert_eq!(cache.long(&[1; LONGEST + 1]), None);
    }
}
