//! Merges the bytes of one word: always the pair with the lowest id, the leftmost of equals, until none is left.

use super::vocabulary::{Vocabulary, NO_TOKEN};
use crate::packed::MAX_PACKED_LEN;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Up to this length the lowest pair is looked for by going through all of them, or through the lowest of each group, which is
/// quadratic, but quick.
const SCANNED: usize = 256;
const GROUP: usize = 16;

/// Append the ids of a word to `out`. The tables are always those of the same vocabulary.
pub fn merge_word(vocabulary: &Vocabulary, word: &[u8], tables: &mut MergeScratch, out: &mut Vec<u32>) {
    if word.len() <= MAX_PACKED_LEN {
        merge_short(vocabulary, word, out);
    } else if word.len() <= SCANNED {
        merge_grouped(vocabulary, word, out);
    } else {
        BucketMerger::new(vocabulary, word, tables).merge_all(out);
    }
}

/// Append the ids of a short word to `out`.
pub fn merge_short(vocabulary: &Vocabulary, word: &[u8], out: &mut Vec<u32>) {
    let mut ids = [0; MAX_PACKED_LEN];
    // ranks[i]: what ids[i] and ids[i + 1] make together
    let mut ranks = [NO_TOKEN; MAX_PACKED_LEN];
    let mut length = word.len();
    for (id, &byte) in ids.iter_mut().zip(word) {
        *id = vocabulary.byte_id(byte);
    }
    for (rank, pair) in ranks.iter_mut().zip(word.windows(2)) {
        *rank = vocabulary.byte_pair_id(pair[0], pair[1]);
    }
    while length > 1 {
        let (mut lowest, mut at) = (NO_TOKEN, 0);
        for (i, &rank) in ranks[..length - 1].iter().enumerate() {
            if rank < lowest {
                (lowest, at) = (rank, i);
            }
        }
        if lowest == NO_TOKEN {
            break;
        }
        ids[at] = lowest;
        length -= 1;
        for i in at + 1..length {
            ids[i] = ids[i + 1];
            ranks[i - 1] = ranks[i];
        }
        if at > 0 {
            ranks[at - 1] = vocabulary.merged_id(ids[at - 1], lowest);
        }
        ranks[at] = if at + 1 < length { vocabulary.merged_id(lowest, ids[at + 1]) } else { NO_TOKEN };
    }
    out.extend_from_slice(&ids[..length]);
}

/// For words of at most `SCANNED` bytes. A token stands at the place of its first byte and does not move.
fn merge_grouped(vocabulary: &Vocabulary, word: &[u8], out: &mut Vec<u32>) {
    /// What a token makes with the next one, and in the lowest byte its own place, so that the lowest number is the next merge.
    const NOTHING: i32 = i32::MAX;
    let pair = |rank: u32, at: usize| if rank == NO_TOKEN { NOTHING } else { (rank << 8) as i32 | at as i32 };
    let lowest_of = |pairs: &[i32; GROUP]| pairs.iter().fold(NOTHING, |lowest, &pair| lowest.min(pair));

    let mut ids = [0; SCANNED + 1];
    let mut next: [u16; SCANNED + 1] = std::array::from_fn(|at| at as u16 + 1);
    let mut previous: [u16; SCANNED + 1] = std::array::from_fn(|at| at as u16 - u16::from(at > 0));
    let mut pairs = [[NOTHING; GROUP]; SCANNED / GROUP];
    let mut lowest = [NOTHING; SCANNED / GROUP];
    for (id, &byte) in ids.iter_mut().zip(word) {
        *id = vocabulary.byte_id(byte);
    }
    for (at, bytes) in word.windows(2).enumerate() {
        pairs[at / GROUP][at % GROUP] = pair(vocabulary.byte_pair_id(bytes[0], bytes[1]), at);
    }
    let groups = word.len().div_ceil(GROUP);
    for group in 0..groups {
        lowest[group] = lowest_of(&pairs[group]);
    }
    loop {
        let best = lowest[..groups].iter().fold(NOTHING, |lowest, &pair| lowest.min(pair));
        if best == NOTHING {
            break;
        }
        let (made, at) = (best as u32 >> 8, best as usize & 0xFF);
        let gone = usize::from(next[at]);
        let (before, after) = (usize::from(previous[at]), usize::from(next[gone]));
        ids[at] = made;
        next[at] = after as u16;
        previous[after] = at as u16;
        pairs[gone / GROUP][gone % GROUP] = NOTHING;
        let with_after = if after < word.len() { vocabulary.merged_id(made, ids[after]) } else { NO_TOKEN };
        pairs[at / GROUP][at % GROUP] = pair(with_after, at);
        if before < at {
            pairs[before / GROUP][before % GROUP] = pair(vocabulary.merged_id(ids[before], made), before);
        }
        for group in before / GROUP..=gone / GROUP {
            lowest[group] = lowest_of(&pairs[group]);
        }
    }
    let mut at = 0;
    while at < word.len() {
        out.push(ids[at]);
        at = usize::from(next[at]);
    }
}

/// For long words: the places of all pairs that make the same token stand in one list, a heap knows the lowest token.
///
/// A list is gone through from left to right, so that memory is read in order and the time is linear but for the heap,
/// which holds each token once. There is a cell for each byte; the id of a token stands in the first and in the last
/// of its cells, as in `train/merges.rs`.
struct BucketMerger<'v> {
    vocabulary: &'v Vocabulary,
    tables: &'v mut MergeScratch,
    /// An id in the first cell of a token; in the last one, if that is another, the id with the bit `END`.
    cells: Vec<u32>,
    buckets: Vec<Bucket>,
    lowest: BinaryHeap<Reverse<u32>>,
}

/// What `BucketMerger` knows of each id of the vocabulary: all zeros between two words, since to make them anew would cost more
/// than to merge a word that is not very long.
#[derive(Default)]
pub struct MergeScratch {
    /// The number of the token's bucket plus one, or 0.
    bucket_of: Vec<u32>,
    /// How often two neighbouring bytes make it.
    counts: Vec<u32>,
}

/// In a cell where no token starts.
const END: u32 = 1 << 31;
/// In a cell inside a token.
const INSIDE: u32 = NO_TOKEN;

#[derive(Default)]
struct Bucket {
    made: u32,
    at: Vec<u32>,
    /// How many of them are done.
    done: usize,
    is_unsorted: bool,
}

impl<'v> BucketMerger<'v> {
    fn new(vocabulary: &'v Vocabulary, word: &[u8], tables: &'v mut MergeScratch) -> Self {
        assert!(u32::try_from(word.len()).is_ok(), "a word of more than 4 GiB");
        tables.bucket_of.resize(vocabulary.len(), 0);
        tables.counts.resize(vocabulary.len(), 0);
        let mut buckets = Self {
            vocabulary,
            tables,
            cells: word.iter().map(|&byte| vocabulary.byte_id(byte)).collect(),
            buckets: Vec::new(),
            lowest: BinaryHeap::new(),
        };
        // Once to count, once to note: no list has to grow.
        let made = |pair: &[u8]| vocabulary.byte_pair_id(pair[0], pair[1]);
        let counts = &mut buckets.tables.counts;
        word.windows(2).map(made).filter(|&made| made != NO_TOKEN).for_each(|made| counts[made as usize] += 1);
        for (at, made) in word.windows(2).map(made).enumerate().filter(|&(_, made)| made != NO_TOKEN) {
            let count = std::mem::take(&mut buckets.tables.counts[made as usize]);
            buckets.note(made, at).reserve_exact(count.saturating_sub(1) as usize);
        }
        buckets
    }

    /// The two tokens at `at` can make `made`. Gives the list in which that stands now.
    fn note(&mut self, made: u32, at: usize) -> &mut Vec<u32> {
        let number = &mut self.tables.bucket_of[made as usize];
        if *number == 0 {
            self.buckets.push(Bucket { made, ..Bucket::default() });
            *number = self.buckets.len() as u32;
        }
        let bucket = &mut self.buckets[*number as usize - 1];
        match bucket.at.last() {
            None => self.lowest.push(Reverse(made)),
            Some(&last) => bucket.is_unsorted |= last > at as u32,
        }
        bucket.at.push(at as u32);
        &mut bucket.at
    }

    /// If `left`, which stands at `at`, and `right` behind it can be merged, note it.
    fn note_pair(&mut self, left: u32, right: u32, at: usize) {
        let made = self.vocabulary.merged_id(left, right);
        if made != NO_TOKEN {
            self.note(made, at);
        }
    }

    fn merge_all(mut self, out: &mut Vec<u32>) {
        while let Some(Reverse(made)) = self.lowest.pop() {
            let number = self.tables.bucket_of[made as usize] as usize - 1;
            let mut bucket = std::mem::replace(&mut self.buckets[number], Bucket { made, ..Bucket::default() });
            if bucket.is_unsorted {
                bucket.at[bucket.done..].sort_unstable(); // only for vocabularies that no training makes
                bucket.is_unsorted = false;
            }
            while bucket.done < bucket.at.len() {
                if self.lowest.peek().is_some_and(|&Reverse(lower)| lower < made) {
                    self.lowest.push(Reverse(made)); // the lower one has just come up: it goes first
                    self.buckets[number] = bucket;
                    break;
                }
                let at = bucket.at[bucket.done] as usize;
                bucket.done += 1;
                self.merge_at(at, made);
            }
        }
        for bucket in &self.buckets {
            self.tables.bucket_of[bucket.made as usize] = 0;
        }
        let mut at = 0;
        while at < self.cells.len() {
            out.push(self.cells[at]);
            at += self.vocabulary.token_len(self.cells[at]);
        }
    }

    /// Merge at one place if its two tokens are still there: then, and only then, they have the bytes of `made`.
    fn merge_at(&mut self, at: usize, made: u32) {
        let first = self.cells[at];
        if first & END != 0 {
            return;
        }
        let middle = at + self.vocabulary.token_len(first);
        let end = at + self.vocabulary.token_len(made);
        if middle >= end || middle + self.vocabulary.token_len(self.cells[middle]) != end {
            return;
        }
        self.cells[middle - 1] = INSIDE;
        self.cells[middle] = INSIDE;
        self.cells[at] = made;
        self.cells[end - 1] = made | END;
        if at > 0 {
            let before = self.cells[at - 1] & !END;
            self.note_pair(before, made, at - self.vocabulary.token_len(before));
        }
        if let Some(&after) = self.cells.get(end) {
            self.note_pair(made, after, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule in the plainest words.
    fn slow(vocabulary: &Vocabulary, word: &[u8]) -> Vec<u32> {
        let mut parts: Vec<Vec<u8>> = word.iter().map(|&byte| vec![byte]).collect();
        loop {
            let joined = parts.windows(2).map(|pair| vocabulary.id(&pair.concat()));
            let Some((_, at)) = joined.enumerate().map(|(at, id)| (id, at)).filter(|&(id, _)| id != NO_TOKEN).min()
            else {
                return parts.iter().map(|part| vocabulary.id(part)).collect();
            };
            let right = parts.remove(at + 1);
            parts[at].extend(right);
        }
    }

    fn below(state: &mut u64, bound: u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % bound
    }

    #[test]
    fn all_ways_agree_also_for_vocabularies_that_no_training_makes() {
        let mut state = 1;
        for round in 0..100 {
            let letters = 2 + round % 3;
            let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
            for _ in 0..40 {
                let length = 2 + below(&mut state, 5);
                let token: Vec<u8> = (0..length).map(|_| b'a' + below(&mut state, letters) as u8).collect();
                if !tokens.contains(&token) {
                    tokens.push(token);
                }
            }
            let vocabulary = Vocabulary::new(&tokens, &[]).unwrap();
            let mut tables = MergeScratch::default();
            for _ in 0..8 {
                let length = 1 + below(&mut state, if round % 10 == 0 { SCANNED as u64 } else { 100 });
                let word: Vec<u8> = (0..length).map(|_| b'a' + below(&mut state, letters) as u8).collect();
                let expected = slow(&vocabulary, &word);
                if word.len() <= MAX_PACKED_LEN {
                    let mut scanned = Vec::new();
                    merge_short(&vocabulary, &word, &mut scanned);
                    assert_eq!(scanned, expected, "{word:?} {tokens:?}");
                }
                let (mut scanned, mut bucketed) = (Vec::new(), Vec::new());
                merge_grouped(&vocabulary, &word, &mut scanned);
                BucketMerger::new(&vocabulary, &word, &mut tables).merge_all(&mut bucketed);
                assert!(tables.bucket_of.iter().chain(&tables.counts).all(|&number| number == 0));
                assert_eq!(scanned, expected, "{word:?} {tokens:?}");
                assert_eq!(bucketed, expected, "{word:?} {tokens:?}");
            }
        }
    }
}
