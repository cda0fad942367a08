//! Words that a thread has seen before, with their ids. Bounded: a word takes the place of another.

use crate::vocabulary::NONE;
use crate::words::{self, Packed, QuickHasher};
use std::hash::Hasher;

/// Ids that a short word can have here; NONE fills up.
pub type ShortIds = [u32; 4];

/// Places for short words, 32 bytes each: 2 MiB, which the second-level cache of a core can hold.
const SHORT_PLACES: usize = 1 << 16;
/// Longer words: their places, the longest that is kept, and the room for their bytes and ids.
const LONG_PLACES: usize = 1 << 14;
const LONGEST: usize = 256;
const ROOM: usize = 1 << 20;

/// One thread's memory.
pub struct Cache {
    short: Vec<Short>,
    long: Vec<Long>,
    bytes: Vec<u8>,
    ids: Vec<u32>,
}

#[derive(Clone, Copy)]
#[repr(align(32))]
struct Short {
    low: u64,
    high: u64, // 0: empty
    ids: ShortIds,
}

#[derive(Clone, Copy, Default)]
struct Long {
    hash: u64,
    bytes: u32,
    ids: u32,
    num_bytes: u16, // 0: empty
    num_ids: u16,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            short: vec![Short { low: 0, high: 0, ids: [NONE; 4] }; SHORT_PLACES],
            long: vec![Long::default(); LONG_PLACES],
            bytes: Vec::new(),
            ids: Vec::new(),
        }
    }
}

impl Cache {
    #[inline(always)]
    fn place(word: Packed) -> usize {
        words::hash(word) as usize & (SHORT_PLACES - 1)
    }

    /// The ids of a word, if it is here.
    #[inline(always)]
    pub fn short(&self, word: Packed) -> Option<&ShortIds> {
        let place = &self.short[Self::place(word)];
        (place.low == word as u64 && place.high == (word >> 64) as u64).then_some(&place.ids)
    }

    /// Keep a word, unless it has too many ids.
    pub fn keep_short(&mut self, word: Packed, ids: &[u32]) {
        let mut kept = [NONE; 4];
        if ids.len() <= kept.len() {
            kept[..ids.len()].copy_from_slice(ids);
            self.short[Self::place(word)] = Short { low: word as u64, high: (word >> 64) as u64, ids: kept };
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
        let place = self.long[hash as usize & (LONG_PLACES - 1)];
        let start = place.bytes as usize;
        let same = place.hash == hash
            && usize::from(place.num_bytes) == word.len()
            && self.bytes[start..start + word.len()] == *word;
        same.then(|| &self.ids[place.ids as usize..place.ids as usize + usize::from(place.num_ids)])
    }

    /// Keep a word that cannot be packed, unless it is very long.
    pub fn keep_long(&mut self, word: &[u8], ids: &[u32]) {
        if word.len() > LONGEST {
            return;
        }
        if self.bytes.len() + word.len() > ROOM {
            self.long.fill(Long::default());
            self.bytes.clear();
            self.ids.clear();
        }
        let hash = Self::hash_long(word);
        self.long[hash as usize & (LONG_PLACES - 1)] = Long {
            hash,
            bytes: self.bytes.len() as u32,
            ids: self.ids.len() as u32,
            num_bytes: word.len() as u16,
            num_ids: ids.len() as u16,
        };
        self.bytes.extend_from_slice(word);
        self.ids.extend_from_slice(ids);
    }
}
