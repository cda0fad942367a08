//! A hash table of distinct words with their counts.

use crate::packed::{hash_packed, pack, unpack, FastMap, PackedWord};

/// Distinct words with the number of times that each occurs.
///
/// ```
/// let mut counts = rustbpe::WordCounts::default();
/// counts.add(b"to be", 3, 5, 2); // "be", twice
/// assert_eq!(counts.iter().collect::<Vec<_>>(), [(b"be".to_vec(), 2)]);
/// ```
#[derive(Default)]
pub struct WordCounts {
    /// Packed words: open addressing, the length a power of two, at least half of the slots empty.
    short: Vec<Slot>,
    num_short: usize,
    /// Words that are too long to pack.
    long: FastMap<Box<[u8]>, u64>,
}

/// A packed word and its count. Two halves instead of a `u128`, whose alignment would make the slot 32 bytes instead of
/// 24.
#[derive(Clone, Copy, Default)]
struct Slot {
    low: u64,
    high: u64, // 0 if the slot is empty
    count: u64,
}

impl Slot {
    #[inline(always)]
    fn word(&self) -> PackedWord {
        u128::from(self.high) << 64 | u128::from(self.low)
    }

    fn is_empty(&self) -> bool {
        self.high == 0
    }
}

impl WordCounts {
    /// Add `count` to the count of the word `text[start..end]`, which must not be empty.
    #[inline(always)]
    pub fn add(&mut self, text: &[u8], start: usize, end: usize, count: u64) {
        match pack(text, start, end) {
            Some(word) => self.add_short(word, count),
            None => self.add_long(&text[start..end], count),
        }
    }

    #[inline(always)]
    fn add_short(&mut self, word: PackedWord, count: u64) {
        if 2 * self.num_short >= self.short.len() {
            self.grow();
        }
        let mask = self.short.len() - 1;
        let mut index = hash_packed(word) as usize & mask;
        loop {
            let slot = &mut self.short[index];
            if slot.word() == word {
                slot.count += count;
                return;
            }
            if slot.is_empty() {
                *slot = Slot { low: word as u64, high: (word >> 64) as u64, count };
                self.num_short += 1;
                return;
            }
            index = (index + 1) & mask;
        }
    }

    fn add_long(&mut self, word: &[u8], count: u64) {
        match self.long.get_mut(word) {
            Some(known) => *known += count,
            None => {
                self.long.insert(word.into(), count);
            }
        }
    }

    #[cold]
    fn grow(&mut self) {
        let larger = vec![Slot::default(); (2 * self.short.len()).max(1 << 12)];
        let old = std::mem::replace(&mut self.short, larger);
        self.num_short = 0;
        for slot in old.iter().filter(|slot| !slot.is_empty()) {
            self.add_short(slot.word(), slot.count);
        }
    }

    /// Add all counts of `other`.
    pub fn merge(&mut self, other: Self) {
        for slot in other.short.iter().filter(|slot| !slot.is_empty()) {
            self.add_short(slot.word(), slot.count);
        }
        for (word, count) in other.long {
            *self.long.entry(word).or_insert(0) += count;
        }
    }

    /// Number of distinct words.
    pub fn len(&self) -> usize {
        self.num_short + self.long.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Iterate over all words with their counts, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (Vec<u8>, u64)> + '_ {
        let short = self.short.iter().filter(|slot| !slot.is_empty()).map(|slot| {
            let (bytes, len) = unpack(slot.word());
            (bytes[..len].to_vec(), slot.count)
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
    fn words_of_all_lengths() {
        let text: Vec<u8> = (0..200_u8).cycle().take(5000).collect();
        let mut counts = WordCounts::default();
        let mut expected = BTreeMap::new();
        for start in 0..4900 {
            let end = start + 1 + start * 7 % 40;
            counts.add(&text, start, end, 1);
            *expected.entry(text[start..end].to_vec()).or_insert(0) += 1;
        }
        counts.add(&text, 4999, 5000, 1); // at the end of the text, where sixteen bytes cannot be read
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
}
