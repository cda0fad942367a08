//! Words that a thread has seen before, with their ids. Bounded: a word takes the place of another.

use crate::huge_pages::advise_huge_pages;
use crate::packed::{self as words, FastHasher, PackedWord};
use std::hash::Hasher;

/// The ids of a short word: up to four of 21 bits, in 32 bits each, and how many they are in the highest byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InlineIds(u128);

/// Ids that are kept with a short word.
pub const MAX_INLINE_IDS: usize = 4;
const COUNT_AT: u32 = 120;
const ID_MASKS: u128 = 0x001F_FFFF_001F_FFFF_001F_FFFF_001F_FFFF;

impl InlineIds {
    /// More than a few ids: only their number is kept, and they stand among the long words.
    fn new(ids: &[u32]) -> Self {
        let few = if ids.len() <= MAX_INLINE_IDS { ids } else { &[] };
        let all = few.iter().rev().fold(0, |all, &id| all << 32 | u128::from(id));
        Self(all | (ids.len() as u128) << COUNT_AT)
    }

    /// How many they are.
    #[inline(always)]
    pub fn count(self) -> usize {
        (self.0 >> COUNT_AT) as usize
    }

    /// The bytes of a few ids, 32 bits each and the lowest byte first, and zeros behind them.
    #[inline(always)]
    pub fn few(self) -> [u8; 4 * MAX_INLINE_IDS] {
        (self.0 & ID_MASKS).to_le_bytes()
    }

    /// A few ids.
    pub fn all(self) -> impl Iterator<Item = u32> {
        (0..self.count()).map(move |place| ((self.0 & ID_MASKS) >> (32 * place)) as u32)
    }
}

/// Lines for short words, two words each: a line of the processor's cache.
const LINES: usize = 1 << 17;
const LINE: usize = 4;
/// Longer words (sentences, where there are no spaces): their places, the longest that is kept, and the room for their
/// bytes and for their ids.
const LONG_PLACES: usize = 1 << 17;
const LONGEST: usize = 256;
const BYTES_ROOM: usize = 1 << 22;
const IDS_ROOM: usize = 1 << 20;

/// One thread's memory. Its tables are arrays of numbers, which the system gives out as zeros without writing them first.
pub struct WordCache {
    /// From `begin` on, lines of (word, its ids, word, its ids); a word of 0: nothing.
    short: Vec<u128>,
    /// That many numbers further, lines of the processor's cache begin.
    begin: usize,
    /// The hash of the word; where its bytes begin; where its ids begin; the number of the bytes (0: empty) and of the ids.
    long: Vec<[u64; 3]>,
    bytes: Vec<u8>,
    ids: Vec<u32>,
    is_prepared: bool,
}

impl Default for WordCache {
    fn default() -> Self {
        let short = vec![0; (LINES + 1) * LINE];
        let begin = short.as_ptr().cast::<u8>().align_offset(LINE * size_of::<u128>()) / size_of::<u128>();
        Self { short, begin, long: vec![[0; 3]; LONG_PLACES], bytes: Vec::new(), ids: Vec::new(), is_prepared: false }
    }
}

impl WordCache {
    /// Have all of the tables' memory at hand, before much is encoded; words that were here are forgotten, the first time.
    ///
    /// A page that is read before it is written costs twice, and the second time all threads are interrupted: for them it
    /// was another page, of zeros, until then.
    pub fn prepare(&mut self) {
        if !std::mem::replace(&mut self.is_prepared, true) {
            advise_huge_pages(&raw const self.short[..]);
            self.short.fill(0);
            self.forget_long();
        }
    }

    fn forget_long(&mut self) {
        self.long.fill([0; 3]);
        self.bytes.clear();
        self.ids.clear();
    }

    #[inline(always)]
    fn line(&self, number: u64) -> usize {
        self.begin + LINE * (number as usize & (LINES - 1))
    }

    /// The line of a word, which is fetched from memory meanwhile.
    #[inline(always)]
    pub fn ask(&self, word: PackedWord) -> usize {
        let line = self.line(words::hash_packed(word));
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has SSE. A prefetch reads nothing into the program and never faults, whatever
        // the address.
        unsafe {
            use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
            _mm_prefetch(self.short.as_ptr().wrapping_add(line).cast(), _MM_HINT_T0);
        }
        line
    }

    /// The line for words whose own line is full.
    fn second_line(&self, word: PackedWord) -> usize {
        self.line(words::hash_packed(word) >> 32)
    }

    /// The ids of a word, if it is in its line.
    #[inline(always)]
    pub fn short(&self, word: PackedWord, line: usize) -> Option<InlineIds> {
        let line: &[u128; LINE] = self.short[line..line + LINE].try_into().expect("of this length");
        let half = 2 * usize::from(line[2] == word); // without a branch: nobody knows which of the two it is
        (line[half] == word).then_some(InlineIds(line[half + 1]))
    }

    /// The ids of a word that is not in its line, if it is in its second line, which is asked only if the first is full.
    pub fn displaced(&self, word: PackedWord, line: usize) -> Option<InlineIds> {
        (self.short[line + 2] != 0).then(|| self.short(word, self.second_line(word))).flatten()
    }

    /// Keep a word: in its line, else in its second line, else instead of the last word in its line. What came early stays:
    /// frequent words come early.
    pub fn keep_short(&mut self, word: PackedWord, line: usize, ids: &[u32]) {
        let is_empty = |place: &usize| self.short[*place] == 0;
        let first = [line, line + 2].into_iter().find(is_empty);
        let second = || [0, 2].map(|half| self.second_line(word) + half).into_iter().find(is_empty);
        let place = first.or_else(second).unwrap_or(line + 2);
        self.short[place..place + 2].copy_from_slice(&[word, InlineIds::new(ids).0]);
    }

    fn hash_long(word: &[u8]) -> u64 {
        let mut hasher = FastHasher::default();
        hasher.write(word);
        hasher.finish()
    }

    /// The two places that a longer word may have.
    fn places(hash: u64) -> [usize; 2] {
        let place = hash as usize & (LONG_PLACES - 1);
        [place, place ^ 1]
    }

    /// The ids of a word that cannot be packed, if it is here.
    pub fn long(&self, word: &[u8]) -> Option<&[u32]> {
        let hash = Self::hash_long(word);
        let place = Self::places(hash).into_iter().find(|&place| self.long[place][0] == hash)?;
        let [_, begins, numbers] = self.long[place];
        let (bytes, ids) = (begins as u32 as usize, (begins >> 32) as usize);
        let (num_bytes, num_ids) = (numbers as u32 as usize, (numbers >> 32) as usize);
        let same = num_bytes == word.len() && self.bytes[bytes..bytes + num_bytes] == *word;
        same.then(|| &self.ids[ids..ids + num_ids])
    }

    /// Keep a word that cannot be packed, unless it is very long.
    pub fn keep_long(&mut self, word: &[u8], ids: &[u32]) {
        if word.len() > LONGEST {
            return;
        }
        if self.bytes.len() + word.len() > BYTES_ROOM || self.ids.len() + ids.len() > IDS_ROOM {
            self.forget_long();
        }
        let hash = Self::hash_long(word);
        let both = |low: usize, high: usize| (high as u64) << 32 | low as u64;
        let [first, second] = Self::places(hash);
        let place = if self.long[first][2] == 0 || self.long[second][2] != 0 { first } else { second };
        self.long[place] = [hash, both(self.bytes.len(), self.ids.len()), both(word.len(), ids.len())];
        self.bytes.extend_from_slice(word);
        self.ids.extend_from_slice(ids);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_ids_in_one_number() {
        let ids = [0, (1 << 21) - 2, 5, 1_000_000, 7];
        for count in 1..=MAX_INLINE_IDS {
            let kept = InlineIds::new(&ids[..count]);
            assert_eq!(kept.all().collect::<Vec<_>>(), ids[..count]);
            assert_eq!(
                kept.few()[..4 * count],
                ids[..count].iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>()
            );
        }
        assert_eq!(InlineIds::new(&ids).count(), 5);
    }

    #[test]
    fn what_is_remembered_of_many_words_is_true_and_it_is_most_of_them() {
        let mut cache = WordCache::default();
        let word = |number: u32| words::pack(&number.to_le_bytes(), 0, 4).unwrap();
        let find = |cache: &WordCache, number| {
            cache
                .short(word(number), cache.ask(word(number)))
                .or(cache.displaced(word(number), cache.ask(word(number))))
        };
        for number in 0..LINES as u32 {
            assert_eq!(find(&cache, number), None);
            cache.keep_short(word(number), cache.ask(word(number)), &[number]);
            assert_eq!(find(&cache, number), Some(InlineIds::new(&[number])));
        }
        let remembered = (0..LINES as u32).filter(|&number| match find(&cache, number) {
            Some(ids) => ids == InlineIds::new(&[number]) || panic!("{number}: {ids:?}"),
            None => false,
        });
        assert!(remembered.count() > LINES * 9 / 10);
        cache.prepare();
        assert!((0..LINES as u32).all(|number| find(&cache, number).is_none()));
        cache.keep_short(word(1), cache.ask(word(1)), &[1]);
        cache.prepare();
        assert_eq!(find(&cache, 1), Some(InlineIds::new(&[1])));
    }

    #[test]
    fn long_words_are_forgotten_when_the_room_is_full() {
        let mut cache = WordCache::default();
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
