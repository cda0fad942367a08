//! Merge the bytes of one word into tokens: the pair whose merge has the lowest id first, the leftmost among equals,
//! until no pair has a merge.
//!
//! With the tokens ab = 256, bc = 257 and abc = 258:
//!
//! ```text
//! "abcbcab"   a  b  c  b  c  a  b     pairs with a merge: ab 256, bc 257, bc 257, ab 256
//!             ab    c  b  c  a  b     the leftmost 256
//!             ab    c  b  c  ab       256 again: lower than abc 258 and bc 257
//!             ab    c  bc    ab       257
//!             abc      bc    ab       258  ->  [258, 257, 256]
//! ```
//!
//! Three algorithms give the same ids. Which one runs depends on the length of the word in bytes, `n`:
//!
//! | length     | algorithm        | next merge                                                     | time       |
//! |------------|------------------|----------------------------------------------------------------|------------|
//! | 1 to 15    | [`merge_short`]  | minimum of all pairs                                           | O(n²)      |
//! | 16 to 256  | `merge_grouped`  | minimum of the minima of groups of 16 pairs                    | O(n²)      |
//! | from 257   | `BucketMerger`   | heap of ids; one list of positions per id, read left to right  | O(n log v) |
//!
//! Here v is the number of distinct merges in the word. The first two need no memory but the stack and win by small
//! constants: a group costs about as much as a single step of a heap. The third keeps long words (a text without
//! spaces) from taking quadratic time.

use super::vocabulary::{Vocabulary, NO_TOKEN};
use crate::packed::MAX_PACKED_LEN;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The longest word for `merge_grouped`. Positions fit into a byte.
const MAX_GROUPED_LEN: usize = 256;
/// Number of pairs in a group.
const GROUP_LEN: usize = 16;

/// Append the ids of a word to `out`. All calls with the same `scratch` must use the same vocabulary.
pub fn merge_word(vocabulary: &Vocabulary, word: &[u8], scratch: &mut MergeScratch, out: &mut Vec<u32>) {
    if word.len() <= MAX_PACKED_LEN {
        merge_short(vocabulary, word, out);
    } else if word.len() <= MAX_GROUPED_LEN {
        merge_grouped(vocabulary, word, out);
    } else {
        BucketMerger::new(vocabulary, word, scratch).merge_all(out);
    }
}

/// Append the ids of a word of at most `MAX_PACKED_LEN` bytes to `out`.
pub fn merge_short(vocabulary: &Vocabulary, word: &[u8], out: &mut Vec<u32>) {
    let mut ids = [0; MAX_PACKED_LEN];
    let mut merged = [NO_TOKEN; MAX_PACKED_LEN]; // merged[i]: the merge of ids[i] and ids[i + 1]
    let mut len = word.len();
    for (id, &byte) in ids.iter_mut().zip(word) {
        *id = vocabulary.byte_id(byte);
    }
    for (merged_id, pair) in merged.iter_mut().zip(word.windows(2)) {
        *merged_id = vocabulary.byte_pair_id(pair[0], pair[1]);
    }
    while len > 1 {
        let (mut lowest, mut pos) = (NO_TOKEN, 0);
        for (i, &merged_id) in merged[..len - 1].iter().enumerate() {
            if merged_id < lowest {
                (lowest, pos) = (merged_id, i);
            }
        }
        if lowest == NO_TOKEN {
            break;
        }
        ids[pos] = lowest;
        len -= 1;
        for i in pos + 1..len {
            ids[i] = ids[i + 1];
            merged[i - 1] = merged[i];
        }
        if pos > 0 {
            merged[pos - 1] = vocabulary.merged_id(ids[pos - 1], lowest);
        }
        merged[pos] = if pos + 1 < len { vocabulary.merged_id(lowest, ids[pos + 1]) } else { NO_TOKEN };
    }
    out.extend_from_slice(&ids[..len]);
}

/// A position of `merge_grouped` without a pair.
const NO_PAIR: i32 = i32::MAX;

#[inline(always)]
fn minimum(pairs: &[i32]) -> i32 {
    pairs.iter().fold(NO_PAIR, |lowest, &pair| lowest.min(pair))
}

/// Append the ids of a word of at most `MAX_GROUPED_LEN` bytes to `out`.
///
/// Tokens do not move: a token stays at the position of its first byte and links to its neighbors. A pair is stored as
/// one integer with the merged id above the position of the left token, so that the minimum is the next merge.
fn merge_grouped(vocabulary: &Vocabulary, word: &[u8], out: &mut Vec<u32>) {
    let pair = |merged_id: u32, pos: usize| {
        if merged_id == NO_TOKEN {
            NO_PAIR
        } else {
            (merged_id << 8) as i32 | pos as i32
        }
    };

    let mut ids = [0; MAX_GROUPED_LEN + 1];
    let mut next: [u16; MAX_GROUPED_LEN + 1] = std::array::from_fn(|pos| pos as u16 + 1);
    let mut previous: [u16; MAX_GROUPED_LEN + 1] = std::array::from_fn(|pos| pos as u16 - u16::from(pos > 0));
    let mut groups = [[NO_PAIR; GROUP_LEN]; MAX_GROUPED_LEN / GROUP_LEN];
    let mut group_minima = [NO_PAIR; MAX_GROUPED_LEN / GROUP_LEN];
    for (id, &byte) in ids.iter_mut().zip(word) {
        *id = vocabulary.byte_id(byte);
    }
    for (pos, bytes) in word.windows(2).enumerate() {
        groups[pos / GROUP_LEN][pos % GROUP_LEN] = pair(vocabulary.byte_pair_id(bytes[0], bytes[1]), pos);
    }
    let num_groups = word.len().div_ceil(GROUP_LEN);
    for group in 0..num_groups {
        group_minima[group] = minimum(&groups[group]);
    }
    loop {
        let best = minimum(&group_minima[..num_groups]);
        if best == NO_PAIR {
            break;
        }
        let (merged_id, left) = (best as u32 >> 8, best as usize & 0xFF);
        let right = usize::from(next[left]);
        let (before, after) = (usize::from(previous[left]), usize::from(next[right]));
        ids[left] = merged_id;
        next[left] = after as u16;
        previous[after] = left as u16;

        groups[right / GROUP_LEN][right % GROUP_LEN] = NO_PAIR;
        let merged_with_after = if after < word.len() { vocabulary.merged_id(merged_id, ids[after]) } else { NO_TOKEN };
        groups[left / GROUP_LEN][left % GROUP_LEN] = pair(merged_with_after, left);
        if before < left {
            groups[before / GROUP_LEN][before % GROUP_LEN] = pair(vocabulary.merged_id(ids[before], merged_id), before);
        }
        for group in before / GROUP_LEN..=right / GROUP_LEN {
            group_minima[group] = minimum(&groups[group]);
        }
    }
    let mut pos = 0;
    while pos < word.len() {
        out.push(ids[pos]);
        pos = usize::from(next[pos]);
    }
}

/// Merges long words. The positions of all pairs with the same merge are in one bucket, and a heap yields the lowest id.
///
/// A bucket is read from left to right: memory is read in order, and the heap holds each id once instead of each
/// position. There is a cell for each byte of the word, laid out as in `train/train_merges.rs`.
struct BucketMerger<'v> {
    vocabulary: &'v Vocabulary,
    scratch: &'v mut MergeScratch,
    /// The id in the first cell of a token. In the last one, if that is another cell, the id with the bit `END`.
    cells: Vec<u32>,
    buckets: Vec<Bucket>,
    /// Merged ids that have unread positions.
    lowest_ids: BinaryHeap<Reverse<u32>>,
}

/// Tables by id for `BucketMerger`.
///
/// All entries are zero between two words: clearing the entries of one word is cheaper than allocating tables for a vocabulary.
#[derive(Default)]
pub struct MergeScratch {
    /// Index of the bucket of a merged id plus one, or 0.
    bucket_of_id: Vec<u32>,
    /// Number of byte pairs with this merge.
    byte_pair_counts: Vec<u32>,
}

/// The bit that marks the last cell of a token with several cells.
const END: u32 = 1 << 31;
/// A cell between the first and the last cell of a token.
const INSIDE: u32 = NO_TOKEN;

/// The positions of pairs with the same merge.
#[derive(Default)]
struct Bucket {
    merged_id: u32,
    positions: Vec<u32>,
    /// Number of positions that were read.
    num_read: usize,
    is_unsorted: bool,
}

impl<'v> BucketMerger<'v> {
    fn new(vocabulary: &'v Vocabulary, word: &[u8], scratch: &'v mut MergeScratch) -> Self {
        assert!(u32::try_from(word.len()).is_ok(), "a word of {} bytes: must be less than 4 GiB", word.len());
        scratch.bucket_of_id.resize(vocabulary.len(), 0);
        scratch.byte_pair_counts.resize(vocabulary.len(), 0);
        let mut merger = Self {
            vocabulary,
            scratch,
            cells: word.iter().map(|&byte| vocabulary.byte_id(byte)).collect(),
            buckets: Vec::new(),
            lowest_ids: BinaryHeap::new(),
        };
        // Two passes, first to count, then to add: no list of positions has to grow.
        let merged_ids = || word.windows(2).map(|pair| vocabulary.byte_pair_id(pair[0], pair[1]));
        for merged_id in merged_ids().filter(|&merged_id| merged_id != NO_TOKEN) {
            merger.scratch.byte_pair_counts[merged_id as usize] += 1;
        }
        for (pos, merged_id) in merged_ids().enumerate().filter(|&(_, merged_id)| merged_id != NO_TOKEN) {
            let count = std::mem::take(&mut merger.scratch.byte_pair_counts[merged_id as usize]);
            merger.add_position(merged_id, pos).reserve_exact(count.saturating_sub(1) as usize);
        }
        merger
    }

    /// Add the position of a pair to the bucket of its merge, and return the positions of the bucket.
    fn add_position(&mut self, merged_id: u32, pos: usize) -> &mut Vec<u32> {
        let bucket_number = &mut self.scratch.bucket_of_id[merged_id as usize];
        if *bucket_number == 0 {
            self.buckets.push(Bucket { merged_id, ..Bucket::default() });
            *bucket_number = self.buckets.len() as u32;
        }
        let bucket = &mut self.buckets[*bucket_number as usize - 1];
        match bucket.positions.last() {
            None => self.lowest_ids.push(Reverse(merged_id)),
            Some(&last) => bucket.is_unsorted |= last > pos as u32,
        }
        bucket.positions.push(pos as u32);
        &mut bucket.positions
    }

    /// Add the pair of `left`, which starts at `pos`, and `right`, if it has a merge.
    fn add_pair(&mut self, left: u32, right: u32, pos: usize) {
        let merged_id = self.vocabulary.merged_id(left, right);
        if merged_id != NO_TOKEN {
            self.add_position(merged_id, pos);
        }
    }

    fn merge_all(mut self, out: &mut Vec<u32>) {
        while let Some(Reverse(merged_id)) = self.lowest_ids.pop() {
            let index = self.scratch.bucket_of_id[merged_id as usize] as usize - 1;
            let empty = Bucket { merged_id, ..Bucket::default() };
            let mut bucket = std::mem::replace(&mut self.buckets[index], empty);
            if bucket.is_unsorted {
                bucket.positions[bucket.num_read..].sort_unstable(); // only for vocabularies that were not trained
                bucket.is_unsorted = false;
            }
            while bucket.num_read < bucket.positions.len() {
                if self.lowest_ids.peek().is_some_and(|&Reverse(lowest)| lowest < merged_id) {
                    // The last merge created a pair with a lower id: it is merged first.
                    self.lowest_ids.push(Reverse(merged_id));
                    self.buckets[index] = bucket;
                    break;
                }
                let pos = bucket.positions[bucket.num_read] as usize;
                bucket.num_read += 1;
                self.merge_at(pos, merged_id);
            }
        }
        for bucket in &self.buckets {
            self.scratch.bucket_of_id[bucket.merged_id as usize] = 0;
        }
        let mut pos = 0;
        while pos < self.cells.len() {
            out.push(self.cells[pos]);
            pos += self.vocabulary.token_len(self.cells[pos]);
        }
    }

    /// Merge the pair at `pos` unless an earlier merge took one of its tokens. Two tokens that together have the length
    /// of the merged token also have its bytes: the bytes of the word do not change.
    fn merge_at(&mut self, pos: usize, merged_id: u32) {
        let first = self.cells[pos];
        if first & END != 0 {
            return;
        }
        let middle = pos + self.vocabulary.token_len(first);
        let end = pos + self.vocabulary.token_len(merged_id);
        if middle >= end || middle + self.vocabulary.token_len(self.cells[middle]) != end {
            return;
        }
        self.cells[middle - 1] = INSIDE;
        self.cells[middle] = INSIDE;
        self.cells[pos] = merged_id;
        self.cells[end - 1] = merged_id | END;
        if pos > 0 {
            let before = self.cells[pos - 1] & !END;
            self.add_pair(before, merged_id, pos - self.vocabulary.token_len(before));
        }
        if let Some(&after) = self.cells.get(end) {
            self.add_pair(merged_id, after, pos);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule of BPE as directly as possible.
    fn merge_slow(vocabulary: &Vocabulary, word: &[u8]) -> Vec<u32> {
        let mut parts: Vec<Vec<u8>> = word.iter().map(|&byte| vec![byte]).collect();
        loop {
            let merged_ids = parts.windows(2).map(|pair| vocabulary.id(&pair.concat()));
            let lowest = merged_ids.enumerate().map(|(pos, id)| (id, pos)).filter(|&(id, _)| id != NO_TOKEN).min();
            let Some((_, pos)) = lowest else {
                return parts.iter().map(|part| vocabulary.id(part)).collect();
            };
            let right = parts.remove(pos + 1);
            parts[pos].extend(right);
        }
    }

    fn vocabulary_with(merged: &[Vec<u8>]) -> Vocabulary {
        let mut tokens = crate::token_bytes(&[]);
        tokens.extend_from_slice(merged);
        Vocabulary::new(&tokens, &[]).unwrap()
    }

    /// Return the ids by every algorithm that takes a word of this length.
    fn merge_by_all(vocabulary: &Vocabulary, word: &[u8], scratch: &mut MergeScratch) -> Vec<Vec<u32>> {
        let (mut short, mut grouped, mut bucketed) = (Vec::new(), Vec::new(), Vec::new());
        merge_grouped(vocabulary, word, &mut grouped);
        BucketMerger::new(vocabulary, word, scratch).merge_all(&mut bucketed);
        assert!(scratch.bucket_of_id.iter().chain(&scratch.byte_pair_counts).all(|&entry| entry == 0));
        if word.len() > MAX_PACKED_LEN {
            return vec![grouped, bucketed];
        }
        merge_short(vocabulary, word, &mut short);
        vec![short, grouped, bucketed]
    }

    fn random_below(state: &mut u64, bound: u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % bound
    }

    #[test]
    fn the_example_above() {
        let vocabulary = vocabulary_with(&[b"ab".to_vec(), b"bc".to_vec(), b"abc".to_vec()]);
        for ids in merge_by_all(&vocabulary, b"abcbcab", &mut MergeScratch::default()) {
            assert_eq!(ids, [258, 257, 256]);
        }
    }

    /// Random vocabularies, which no training would produce: a token may have no parts, or parts with higher ids.
    #[test]
    fn all_algorithms_agree() {
        let mut state = 1;
        for round in 0..100 {
            let num_letters = 2 + round % 3;
            let mut merged: Vec<Vec<u8>> = Vec::new();
            for _ in 0..40 {
                let len = 2 + random_below(&mut state, 5);
                let token: Vec<u8> = (0..len).map(|_| b'a' + random_below(&mut state, num_letters) as u8).collect();
                if !merged.contains(&token) {
                    merged.push(token);
                }
            }
            let vocabulary = vocabulary_with(&merged);
            let mut scratch = MergeScratch::default();
            for _ in 0..8 {
                let max_len = if round % 10 == 0 { MAX_GROUPED_LEN as u64 } else { 100 };
                let len = 1 + random_below(&mut state, max_len);
                let word: Vec<u8> = (0..len).map(|_| b'a' + random_below(&mut state, num_letters) as u8).collect();
                let expected = merge_slow(&vocabulary, &word);
                for ids in merge_by_all(&vocabulary, &word, &mut scratch) {
                    assert_eq!(ids, expected, "{word:?} {merged:?}");
                }
            }
        }
    }
}
