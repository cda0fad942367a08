//! A table of distinct words with their counts.

use crate::packed::{hash, pack, unpack, FastMap, PackedWord};

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
    long: FastMap<Box<[u8]>, u64>,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    low: u64,
    high: u64, // 0: empty
    count: u64,
}

impl Slot {
    #[inline(always)]
    fn word(&self) -> PackedWord {
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
    fn add_short(&mut self, word: PackedWord, count: u64) {
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
}
