//! Find the merges of byte-level BPE from word counts.
//!
//! Layout: all distinct words lie one after another in one array with a cell per byte. A token occupies as many cells
//! as it has bytes, and its first and its last cell hold its id. So the right neighbor of the token at `pos` starts at
//! `pos + len`, the left neighbor ends at `pos - 1`, and a merge writes four cells. No token moves, and no linked list
//! is needed:
//!
//! ```text
//! word "abcabc"                  |  a    b    c    a    b    c    |    (| is WORD_BOUNDARY)
//! after the merge a b -> 256     |  256  256  c    256  256  c    |
//! after the merge 256 c -> 257   |  257  .    257  257  .    257  |    (. is INSIDE)
//! ```
//!
//! Counts: a pair (a, b) can only appear in the step that creates the younger of its two tokens. Hence the list of the
//! pair's positions is complete at the end of that step, and its count only falls afterwards. Two things follow.
//! Position lists are written once, in increasing order. And an outdated entry of the heap can only be too high, so it
//! is enough to correct an entry when it reaches the top.

use crate::packed::FastMap;
use crate::{Error, WordCounts};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The ids of two adjacent tokens.
type Pair = (u32, u32);

/// Number of words or cells between two calls of `progress` before the first merge.
const PROGRESS_INTERVAL: u32 = 1 << 16;
/// The cell between two words.
const WORD_BOUNDARY: u32 = u32::MAX;
/// A cell inside a token of three or more bytes.
const INSIDE: u32 = u32::MAX - 1;

/// Find `vocab_size - 256` merges, or fewer if no pair is left. Merge `i` creates token `256 + i`.
///
/// The pair with the highest count is merged first, the lowest pair of ids among equals. `progress` gets the number of
/// merges so far. It is called before each merge and regularly before the first one, and its error stops the training.
///
/// ```
/// let counts = [(&b"abab"[..], 2), (b"bc", 3)].into_iter().collect();
/// let merges = rustbpe::train_merges::<rustbpe::Error>(&counts, 259, |_| Ok(())).unwrap();
/// assert_eq!(merges, [(97, 98), (98, 99), (256, 256)]); // ab: 4 times, bc: 3, abab: 2
/// ```
///
/// Errors: `vocab_size` is less than 256, there are no words, or their bytes do not fit into 32-bit positions.
pub fn train_merges<E: From<Error>>(
    counts: &WordCounts,
    vocab_size: usize,
    mut progress: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<Pair>, E> {
    if vocab_size < 256 {
        return Err(Error::VocabSize(vocab_size).into());
    }
    let mut trainer = Trainer::new(counts, || progress(0))?;
    let mut merges = Vec::new();
    while merges.len() < vocab_size - 256 {
        progress(merges.len())?;
        let Some(pair) = trainer.pop_most_frequent() else {
            break;
        };
        trainer.merge(pair);
        merges.push(pair);
    }
    Ok(merges)
}

/// Return the bytes of every token by id: the 256 single bytes, then the result of each merge.
///
/// ```
/// assert_eq!(rustbpe::token_bytes(&[(97, 98), (256, 99)])[257], b"abc");
/// ```
pub fn token_bytes(merges: &[Pair]) -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    for &(left, right) in merges {
        tokens.push([&tokens[left as usize][..], &tokens[right as usize][..]].concat());
    }
    tokens
}

/// The occurrences of a pair.
struct Occurrences {
    /// Occurrences in the corpus: the sum of the counts of the words.
    count: u64,
    /// Positions of the pair's first cell. A position is outdated if an earlier merge took one of the two tokens.
    positions: Vec<u32>,
}

/// The key of a pair in the map of pairs.
fn key((a, b): Pair) -> u64 {
    u64::from(a) << 32 | u64::from(b)
}

struct Trainer {
    /// Ids in the first and last cell of each token, `INSIDE` between them, `WORD_BOUNDARY` before, between and after
    /// words.
    cells: Vec<u32>,
    /// Index of the word of each cell.
    word_of_cell: Vec<u32>,
    word_counts: Vec<u64>,
    /// Bytes of each token.
    token_lens: Vec<u32>,
    pairs: FastMap<u64, Occurrences>,
    /// Pairs by count, lower pairs first among equals. Counts may be outdated: too high.
    heap: BinaryHeap<(u64, Reverse<Pair>)>,
    /// Neighbors of the new token in the current step, each side by id.
    left: Neighbors,
    right: Neighbors,
}

/// The tokens that became neighbors of the new token on one side in the current step.
#[derive(Default)]
struct Neighbors {
    /// Occurrences in the corpus by token id.
    counts: Vec<u64>,
    /// Positions of the pair of the neighbor and the new token by the neighbor's id.
    positions: Vec<Vec<u32>>,
    /// The ids that have positions.
    ids: Vec<u32>,
}

impl Neighbors {
    fn add(&mut self, id: u32, count: u64, position: u32) {
        let index = id as usize;
        if self.positions[index].is_empty() {
            self.ids.push(id);
        }
        self.counts[index] += count;
        self.positions[index].push(position);
    }

    /// Remove and return the occurrences of one neighbor.
    fn take(&mut self, id: u32) -> Occurrences {
        let index = id as usize;
        Occurrences {
            count: std::mem::take(&mut self.counts[index]),
            positions: std::mem::take(&mut self.positions[index]),
        }
    }

    /// Add the entries of one more token.
    fn grow(&mut self) {
        self.counts.push(0);
        self.positions.push(Vec::new());
    }
}

impl Trainer {
    fn new<E: From<Error>>(counts: &WordCounts, mut progress: impl FnMut() -> Result<(), E>) -> Result<Self, E> {
        let num_cells = 1 + counts.iter().map(|(word, _)| word.len() + 1).sum::<usize>();
        if counts.is_empty() {
            return Err(Error::EmptyCorpus.into());
        }
        if num_cells > INSIDE as usize {
            return Err(Error::TooManyWords(num_cells).into());
        }
        progress()?;
        let mut trainer = Self {
            cells: Vec::with_capacity(num_cells),
            word_of_cell: Vec::with_capacity(num_cells),
            word_counts: Vec::with_capacity(counts.len()),
            token_lens: vec![1; 256],
            pairs: FastMap::default(),
            heap: BinaryHeap::new(),
            left: Neighbors::default(),
            right: Neighbors::default(),
        };
        for _ in 0..256 {
            trainer.left.grow();
            trainer.right.grow();
        }
        trainer.cells.push(WORD_BOUNDARY);
        trainer.word_of_cell.push(0);
        for (word, count) in counts.iter() {
            let index = trainer.word_counts.len() as u32;
            trainer.word_counts.push(count);
            trainer.cells.extend(word.iter().map(|&byte| u32::from(byte)));
            trainer.cells.push(WORD_BOUNDARY);
            trainer.word_of_cell.resize(trainer.cells.len(), index);
            if index.is_multiple_of(PROGRESS_INTERVAL) {
                progress()?;
            }
        }
        trainer.count_byte_pairs(progress)?;
        Ok(trainer)
    }

    /// Insert all pairs of bytes.
    fn count_byte_pairs<E>(&mut self, mut progress: impl FnMut() -> Result<(), E>) -> Result<(), E> {
        let mut byte_pairs: Vec<Occurrences> =
            (0..256 * 256).map(|_| Occurrences { count: 0, positions: Vec::new() }).collect();
        for pos in 1..self.cells.len() - 1 {
            let (a, b) = (self.cells[pos], self.cells[pos + 1]);
            if a != WORD_BOUNDARY && b != WORD_BOUNDARY {
                let occurrences = &mut byte_pairs[(a << 8 | b) as usize];
                occurrences.count += self.word_counts[self.word_of_cell[pos] as usize];
                occurrences.positions.push(pos as u32);
            }
            if (pos as u32).is_multiple_of(PROGRESS_INTERVAL) {
                progress()?;
            }
        }
        for (index, occurrences) in byte_pairs.into_iter().enumerate() {
            self.insert_pair(((index >> 8) as u32, (index & 0xFF) as u32), occurrences);
        }
        Ok(())
    }

    /// Take the pair with the highest count off the heap, the lowest pair among equals.
    fn pop_most_frequent(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.heap.pop() {
            let current_count = self.pairs.get(&key(pair)).map_or(0, |occurrences| occurrences.count);
            if current_count == count {
                return Some(pair);
            }
            if current_count > 0 {
                self.heap.push((current_count, Reverse(pair)));
            } else {
                self.pairs.remove(&key(pair));
            }
        }
        None
    }

    /// Merge all occurrences of a pair into a new token, and update the pairs around them.
    fn merge(&mut self, (a, b): Pair) {
        let new_id = self.token_lens.len() as u32;
        self.token_lens.push(self.token_lens[a as usize] + self.token_lens[b as usize]);
        self.left.grow();
        self.right.grow();
        let occurrences = self.pairs.remove(&key((a, b))).expect("a pair of the heap with a count has occurrences");
        for pos in occurrences.positions {
            self.merge_at(pos, (a, b), new_id);
        }
        self.update_pairs((a, b), new_id);
    }

    /// Merge one occurrence, unless an earlier merge took one of the two tokens.
    fn merge_at(&mut self, pos: u32, (a, b): Pair, new_id: u32) {
        let first = pos as usize;
        let second = first + self.token_lens[a as usize] as usize;
        if self.cells[first] != a || self.cells[second] != b {
            return;
        }
        let last = first + self.token_lens[new_id as usize] as usize - 1;
        let (before, after) = (self.cells[first - 1], self.cells[last + 1]);
        self.cells[second - 1] = INSIDE;
        self.cells[second] = INSIDE;
        self.cells[first] = new_id;
        self.cells[last] = new_id;

        let count = self.word_counts[self.word_of_cell[first] as usize];
        if before != WORD_BOUNDARY {
            self.left.add(before, count, (first - self.token_lens[before as usize] as usize) as u32);
        }
        if after != WORD_BOUNDARY {
            self.right.add(after, count, pos);
        }
    }

    /// Update the pairs after a step: `(b, x)` became `(new_id, x)`, and `(x, a)` became `(x, new_id)`.
    fn update_pairs(&mut self, (a, b): Pair, new_id: u32) {
        // In a run like "abab" the first merge creates (new, a), which the second one turns into (new, new).
        let num_new_pairs = self.left.counts[new_id as usize];
        for id in std::mem::take(&mut self.right.ids) {
            let mut occurrences = self.right.take(id);
            self.reduce_count((b, id), occurrences.count);
            if id == a {
                occurrences.count -= num_new_pairs;
            }
            self.insert_pair((new_id, id), occurrences);
        }
        for id in std::mem::take(&mut self.left.ids) {
            let occurrences = self.left.take(id);
            if id != new_id {
                self.reduce_count((id, a), occurrences.count);
            }
            self.insert_pair((id, new_id), occurrences);
        }
    }

    fn reduce_count(&mut self, pair: Pair, by: u64) {
        if let Some(occurrences) = self.pairs.get_mut(&key(pair)) {
            occurrences.count -= by;
        }
    }

    fn insert_pair(&mut self, pair: Pair, occurrences: Occurrences) {
        if occurrences.count > 0 {
            self.heap.push((occurrences.count, Reverse(pair)));
            self.pairs.insert(key(pair), occurrences);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_the_example_above() {
        const W: u32 = WORD_BOUNDARY;
        let counts: WordCounts = [(&b"abcabc"[..], 1)].into_iter().collect();
        let mut trainer = Trainer::new::<Error>(&counts, || Ok(())).unwrap();
        assert_eq!(trainer.cells, [W, 97, 98, 99, 97, 98, 99, W]);
        for (pair, cells) in
            [((97, 98), [W, 256, 256, 99, 256, 256, 99, W]), ((256, 99), [W, 257, INSIDE, 257, 257, INSIDE, 257, W])]
        {
            assert_eq!(trainer.pop_most_frequent(), Some(pair));
            trainer.merge(pair);
            assert_eq!(trainer.cells, cells);
        }
    }
}
