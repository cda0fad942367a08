//! A cache of words and their ids for one thread, bounded in memory.

use crate::huge_pages::advise_huge_pages;
use crate::packed::{hash_packed, FastHasher, PackedWord};
use std::hash::Hasher;

/// The ids of a short word in one integer: up to four ids of 21 bits, 32 bits apart, and their number in the highest
/// byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InlineIds(u128);

/// The largest number of ids that are stored with a short word.
pub const MAX_INLINE_IDS: usize = 4;
const COUNT_SHIFT: u32 = 120;
const ID_MASKS: u128 = 0x001F_FFFF_001F_FFFF_001F_FFFF_001F_FFFF;

impl InlineIds {
    /// Pack ids. Of more than `MAX_INLINE_IDS` only the number is kept: the ids themselves are stored like a long
    /// word's.
    fn new(ids: &[u32]) -> Self {
        let inline = if ids.len() <= MAX_INLINE_IDS { ids } else { &[] };
        let packed = inline.iter().rev().fold(0, |packed, &id| packed << 32 | u128::from(id));
        Self(packed | (ids.len() as u128) << COUNT_SHIFT)
    }

    /// Number of ids of the word, which may be more than are stored.
    #[inline(always)]
    pub fn count(self) -> usize {
        (self.0 >> COUNT_SHIFT) as usize
    }

    /// Return the ids as little-endian `u32`, followed by zeros.
    #[inline(always)]
    pub fn to_le_bytes(self) -> [u8; 4 * MAX_INLINE_IDS] {
        (self.0 & ID_MASKS).to_le_bytes()
    }

    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..self.count()).map(move |index| ((self.0 & ID_MASKS) >> (32 * index)) as u32)
    }
}

/// Number of lines for short words. A line holds two words and their ids, and fills one line of the processor's cache.
const NUM_LINES: usize = 1 << 17;
/// Number of integers in a line: word, ids, word, ids.
const LINE_LEN: usize = 4;

/// Number of slots for long words, which occur as sentences in languages without spaces.
const NUM_LONG_SLOTS: usize = 1 << 17;
/// The longest word that is stored.
const MAX_LONG_LEN: usize = 256;
/// Limits for all long words together, in bytes and in ids. All long words are dropped when a limit is reached.
const MAX_LONG_BYTES: usize = 1 << 22;
const MAX_LONG_IDS: usize = 1 << 20;

/// The cache of one thread. Short words are packed words.
pub struct WordCache {
    /// Lines, from index `first_line` on. A word of 0 marks an empty place.
    short: Vec<u128>,
    /// Index of the first integer that starts a line of the processor's cache.
    first_line: usize,
    /// Slots as `LongSlot::pack` makes them; all zeros if empty. Integers, because `vec!` gets those as zeroed memory
    /// from the system without writing them.
    long: Vec<[u64; 3]>,
    long_bytes: Vec<u8>,
    long_ids: Vec<u32>,
    is_prepared: bool,
}

/// A long word: its hash, and its bytes and ids as ranges of the arrays of all long words.
struct LongSlot {
    hash: u64,
    bytes_start: usize,
    num_bytes: usize,
    ids_start: usize,
    num_ids: usize,
}

impl LongSlot {
    fn pack(&self) -> [u64; 3] {
        let pair = |low: usize, high: usize| (high as u64) << 32 | low as u64;
        [self.hash, pair(self.bytes_start, self.ids_start), pair(self.num_bytes, self.num_ids)]
    }

    fn unpack([hash, starts, lens]: [u64; 3]) -> Self {
        let low = |pair: u64| pair as u32 as usize;
        let high = |pair: u64| (pair >> 32) as usize;
        Self { hash, bytes_start: low(starts), num_bytes: low(lens), ids_start: high(starts), num_ids: high(lens) }
    }
}

impl Default for WordCache {
    fn default() -> Self {
        let short = vec![0; (NUM_LINES + 1) * LINE_LEN];
        let first_line = short.as_ptr().cast::<u8>().align_offset(LINE_LEN * size_of::<u128>()) / size_of::<u128>();
        Self {
            short,
            first_line,
            long: vec![[0; 3]; NUM_LONG_SLOTS],
            long_bytes: Vec::new(),
            long_ids: Vec::new(),
            is_prepared: false,
        }
    }
}

impl WordCache {
    /// Write the memory of all tables before a large text is encoded. The first call drops all words.
    ///
    /// The system provides zeroed memory lazily. A page that is read before it is written costs two page faults, and
    /// the second one interrupts all threads of the process, because it replaces the shared page of zeros.
    pub fn prepare(&mut self) {
        if !std::mem::replace(&mut self.is_prepared, true) {
            advise_huge_pages(&raw const self.short[..]);
            self.short.fill(0);
            self.clear_long();
        }
    }

    fn clear_long(&mut self) {
        self.long.fill([0; 3]);
        self.long_bytes.clear();
        self.long_ids.clear();
    }

    /// Return the index of the line for a hash.
    #[inline(always)]
    fn line_of_hash(&self, hash: u64) -> usize {
        self.first_line + LINE_LEN * (hash as usize & (NUM_LINES - 1))
    }

    /// Return the line of a word, and start to fetch it from memory.
    #[inline(always)]
    pub fn prefetch(&self, word: PackedWord) -> usize {
        let line = self.line_of_hash(hash_packed(word));
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has SSE. A prefetch reads nothing into the program and never faults, even
        // for an invalid address.
        unsafe {
            use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
            _mm_prefetch(self.short.as_ptr().wrapping_add(line).cast(), _MM_HINT_T0);
        }
        line
    }

    /// Return the line for words whose own line is full.
    fn second_line(&self, word: PackedWord) -> usize {
        self.line_of_hash(hash_packed(word) >> 32)
    }

    /// Return the ids of a short word if it is in the given line.
    #[inline(always)]
    pub fn get_short(&self, word: PackedWord, line: usize) -> Option<InlineIds> {
        let line: &[u128; LINE_LEN] = self.short[line..line + LINE_LEN].try_into().expect("the slice is one line");
        let index = 2 * usize::from(line[2] == word); // no branch: which of the two matches is unpredictable
        (line[index] == word).then_some(InlineIds(line[index + 1]))
    }

    /// Return the ids of a short word if it is in its second line. That is possible only if its own line, `line`, is
    /// full.
    pub fn get_displaced(&self, word: PackedWord, line: usize) -> Option<InlineIds> {
        if self.short[line + 2] == 0 {
            return None;
        }
        self.get_short(word, self.second_line(word))
    }

    /// Insert a short word: into its own line, else into its second line, else in place of the last word of its own
    /// line. The first word of a line is never replaced: frequent words come early.
    pub fn insert_short(&mut self, word: PackedWord, line: usize, ids: &[u32]) {
        let second_line = self.second_line(word);
        let places = [line, line + 2, second_line, second_line + 2];
        let place = places.into_iter().find(|&place| self.short[place] == 0).unwrap_or(line + 2);
        self.short[place..place + 2].copy_from_slice(&[word, InlineIds::new(ids).0]);
    }

    fn hash_long(word: &[u8]) -> u64 {
        let mut hasher = FastHasher::default();
        hasher.write(word);
        hasher.finish()
    }

    /// Return the two slots that a long word may have.
    fn long_slots(hash: u64) -> [usize; 2] {
        let slot = hash as usize & (NUM_LONG_SLOTS - 1);
        [slot, slot ^ 1]
    }

    /// Return the ids of a word that was inserted by `insert_long`.
    pub fn get_long(&self, word: &[u8]) -> Option<&[u32]> {
        let hash = Self::hash_long(word);
        let slot = Self::long_slots(hash).into_iter().find(|&slot| self.long[slot][0] == hash)?;
        let LongSlot { bytes_start, num_bytes, ids_start, num_ids, .. } = LongSlot::unpack(self.long[slot]);
        let is_same = self.long_bytes[bytes_start..bytes_start + num_bytes] == *word;
        is_same.then(|| &self.long_ids[ids_start..ids_start + num_ids])
    }

    /// Insert a word of any length up to `MAX_LONG_LEN`. A longer one is ignored.
    pub fn insert_long(&mut self, word: &[u8], ids: &[u32]) {
        if word.len() > MAX_LONG_LEN {
            return;
        }
        if self.long_bytes.len() + word.len() > MAX_LONG_BYTES || self.long_ids.len() + ids.len() > MAX_LONG_IDS {
            self.clear_long();
        }
        let hash = Self::hash_long(word);
        let [first, second] = Self::long_slots(hash);
        let is_empty = |slot: usize| self.long[slot] == [0; 3];
        let slot = if is_empty(first) || !is_empty(second) { first } else { second };
        let long_slot = LongSlot {
            hash,
            bytes_start: self.long_bytes.len(),
            num_bytes: word.len(),
            ids_start: self.long_ids.len(),
            num_ids: ids.len(),
        };
        self.long[slot] = long_slot.pack();
        self.long_bytes.extend_from_slice(word);
        self.long_ids.extend_from_slice(ids);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::pack;

    #[test]
    fn inline_ids() {
        let ids = [0, (1 << 21) - 2, 5, 1_000_000, 7];
        for count in 1..=MAX_INLINE_IDS {
            let inline = InlineIds::new(&ids[..count]);
            assert_eq!(inline.iter().collect::<Vec<_>>(), ids[..count]);
            let expected: Vec<u8> = ids[..count].iter().flat_map(|id| id.to_le_bytes()).collect();
            assert_eq!(inline.to_le_bytes()[..4 * count], expected);
        }
        assert_eq!(InlineIds::new(&ids).count(), 5);
    }

    #[test]
    fn most_short_words_are_kept_with_their_ids() {
        let mut cache = WordCache::default();
        let word = |number: u32| pack(&number.to_le_bytes(), 0, 4).unwrap();
        let get = |cache: &WordCache, number| {
            let line = cache.prefetch(word(number));
            cache.get_short(word(number), line).or(cache.get_displaced(word(number), line))
        };
        let num_words = NUM_LINES as u32;
        for number in 0..num_words {
            assert_eq!(get(&cache, number), None);
            cache.insert_short(word(number), cache.prefetch(word(number)), &[number]);
            assert_eq!(get(&cache, number), Some(InlineIds::new(&[number])));
        }
        let kept = (0..num_words).filter(|&number| match get(&cache, number) {
            Some(ids) => ids == InlineIds::new(&[number]) || panic!("{number}: {ids:?}"),
            None => false,
        });
        assert!(kept.count() > NUM_LINES * 9 / 10);

        cache.prepare();
        assert!((0..num_words).all(|number| get(&cache, number).is_none()));
        cache.insert_short(word(1), cache.prefetch(word(1)), &[1]);
        cache.prepare();
        assert_eq!(get(&cache, 1), Some(InlineIds::new(&[1])));
    }

    #[test]
    fn long_words_are_dropped_at_the_limit() {
        let mut cache = WordCache::default();
        let word = |number: u32| [number.to_le_bytes(); 20].concat();
        for number in 0..100_000 {
            cache.insert_long(&word(number), &[number]);
            assert_eq!(cache.get_long(&word(number)), Some(&[number][..]));
        }
        assert!(cache.long_bytes.len() <= MAX_LONG_BYTES && cache.long_ids.len() <= MAX_LONG_IDS);
        assert_eq!(cache.get_long(&word(0)), None);
        cache.insert_long(&[1; MAX_LONG_LEN + 1], &[1]);
        assert_eq!(cache.get_long(&[1; MAX_LONG_LEN + 1]), None);
    }
}
