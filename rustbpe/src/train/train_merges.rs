//! Turns word counts into merges.
//!
//! All distinct words lie one after another in one array with a cell per byte. A token occupies as many cells as it
//! has bytes, and its id stands in the first and in the last of them. So the right neighbour of the token at `p` is at
//! `p + length`, the left one ends at `p - 1`, and a merge writes four cells: nothing moves, no lists are linked.
//!
//! A pair (a, b) can only come to be during the step that makes the younger of its two tokens. Hence a pair's list of
//! places is complete when that step ends, and its count only falls from then on. Both facts are used: lists are
//! written once, in rising order, and a heap entry whose count is out of date can only be too high, so that it is
//! enough to correct it when it reaches the top.

use crate::packed::FastMap;
use crate::{Error, WordCounts};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

type Pair = (u32, u32);

/// Of so many words or cells that are laid out, one is told of.
const PROGRESS_INTERVAL: u32 = 1 << 16;
/// Between two words.
const WORD_BOUNDARY: u32 = u32::MAX;
/// Inside a token of three bytes or more.
const INSIDE: u32 = u32::MAX - 1;

/// Find `vocab_size - 256` merges, or fewer if no pair is left. Merge `i` makes token `256 + i`.
/// `progress` is called with the number of merges so far, before each and now and then while all is laid out; its error
/// ends the training.
///
/// ```
/// let counts = [(&b"abab"[..], 2), (b"bc", 3)].into_iter().collect();
/// let merges = rustbpe::train_merges::<rustbpe::Error>(&counts, 259, |_| Ok(())).unwrap();
/// assert_eq!(merges, [(97, 98), (98, 99), (256, 256)]); // ab: 4 times, bc: 3, abab: 2
/// ```
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
        let Some(pair) = trainer.most_frequent() else {
            break;
        };
        trainer.merge(pair);
        merges.push(pair);
    }
    Ok(merges)
}

/// The bytes of every token, the 256 single bytes first.
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

/// Where a pair stands, and how often in the corpus.
struct Occurrences {
    count: u64,
    at: Vec<u32>,
}

/// A pair as one number.
fn key((a, b): Pair) -> u64 {
    u64::from(a) << 32 | u64::from(b)
}

struct Trainer {
    /// Ids at both ends of every token, `INSIDE` between them, a `WORD_BOUNDARY` before, between and after words.
    cells: Vec<u32>,
    /// The word that each cell belongs to.
    word_of: Vec<u32>,
    word_counts: Vec<u64>,
    /// Bytes of each token.
    lengths: Vec<u32>,
    pairs: FastMap<u64, Occurrences>,
    heap: BinaryHeap<(u64, Reverse<Pair>)>,
    /// Of the step under way, by id: how often the token has just become a neighbour of the new one.
    left: Neighbours,
    right: Neighbours,
}

/// The neighbours of a new token on one side.
#[derive(Default)]
struct Neighbours {
    counts: Vec<u64>,
    places: Vec<Vec<u32>>,
    seen: Vec<u32>,
}

impl Neighbours {
    fn add(&mut self, id: u32, count: u64, place: u32) {
        let slot = id as usize;
        if self.places[slot].is_empty() {
            self.seen.push(id);
        }
        self.counts[slot] += count;
        self.places[slot].push(place);
    }

    fn take(&mut self, id: u32) -> Occurrences {
        let slot = id as usize;
        Occurrences { count: std::mem::take(&mut self.counts[slot]), at: std::mem::take(&mut self.places[slot]) }
    }

    fn grow(&mut self) {
        self.counts.push(0);
        self.places.push(Vec::new());
    }
}

impl Trainer {
    fn new<E: From<Error>>(counts: &WordCounts, mut beat: impl FnMut() -> Result<(), E>) -> Result<Self, E> {
        let size = 1 + counts.iter().map(|(word, _)| word.len() + 1).sum::<usize>();
        if counts.is_empty() {
            return Err(Error::EmptyCorpus.into());
        }
        if size > INSIDE as usize {
            return Err(Error::TooManyWords(size).into());
        }
        beat()?;
        let mut trainer = Self {
            cells: Vec::with_capacity(size),
            word_of: Vec::with_capacity(size),
            word_counts: Vec::with_capacity(counts.len()),
            lengths: vec![1; 256],
            pairs: FastMap::default(),
            heap: BinaryHeap::new(),
            left: Neighbours::default(),
            right: Neighbours::default(),
        };
        (0..256).for_each(|_| {
            trainer.left.grow();
            trainer.right.grow();
        });
        trainer.cells.push(WORD_BOUNDARY);
        trainer.word_of.push(0);
        for (word, count) in counts.iter() {
            let index = trainer.word_counts.len() as u32;
            trainer.word_counts.push(count);
            trainer.cells.extend(word.iter().map(|&byte| u32::from(byte)));
            trainer.cells.push(WORD_BOUNDARY);
            trainer.word_of.resize(trainer.cells.len(), index);
            if index % PROGRESS_INTERVAL == 0 {
                beat()?;
            }
        }
        trainer.find_first_pairs(beat)?;
        Ok(trainer)
    }

    fn find_first_pairs<E>(&mut self, mut beat: impl FnMut() -> Result<(), E>) -> Result<(), E> {
        let mut places: Vec<Occurrences> = (0..256 * 256).map(|_| Occurrences { count: 0, at: Vec::new() }).collect();
        for at in 1..self.cells.len() - 1 {
            let (a, b) = (self.cells[at], self.cells[at + 1]);
            if a != WORD_BOUNDARY && b != WORD_BOUNDARY {
                let place = &mut places[(a << 8 | b) as usize];
                place.count += self.word_counts[self.word_of[at] as usize];
                place.at.push(at as u32);
            }
            if at as u32 % PROGRESS_INTERVAL == 0 {
                beat()?;
            }
        }
        for (index, place) in places.into_iter().enumerate() {
            self.open(((index >> 8) as u32, (index & 0xFF) as u32), place);
        }
        Ok(())
    }

    /// The pair with the highest count; the lower one of equals.
    fn most_frequent(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.heap.pop() {
            let current = self.pairs.get(&key(pair)).map_or(0, |place| place.count);
            if current == count {
                return Some(pair);
            }
            if current > 0 {
                self.heap.push((current, Reverse(pair)));
            } else {
                self.pairs.remove(&key(pair));
            }
        }
        None
    }

    fn merge(&mut self, (a, b): Pair) {
        let new = self.lengths.len() as u32;
        self.lengths.push(self.lengths[a as usize] + self.lengths[b as usize]);
        self.left.grow();
        self.right.grow();
        let place = self.pairs.remove(&key((a, b))).expect("a pair on the heap has a list of places");
        for at in place.at {
            self.merge_at(at, (a, b), new);
        }
        self.settle((a, b), new);
    }

    /// Merge at one place, unless an earlier merge took one of the two tokens.
    fn merge_at(&mut self, at: u32, (a, b): Pair, new: u32) {
        let first = at as usize;
        let second = first + self.lengths[a as usize] as usize;
        if self.cells[first] != a || self.cells[second] != b {
            return;
        }
        let last = first + self.lengths[new as usize] as usize - 1;
        let (before, after) = (self.cells[first - 1], self.cells[last + 1]);
        self.cells[second - 1] = INSIDE;
        self.cells[second] = INSIDE;
        self.cells[first] = new;
        self.cells[last] = new;
        let count = self.word_counts[self.word_of[first] as usize];
        if before != WORD_BOUNDARY {
            self.left.add(before, count, (first - self.lengths[before as usize] as usize) as u32);
        }
        if after != WORD_BOUNDARY {
            self.right.add(after, count, at);
        }
    }

    /// Account for a whole step: where x now stands before the new token it stood before `a`; likewise after `b`.
    fn settle(&mut self, (a, b): Pair, new: u32) {
        // In a run like "abab" the second merge turns the (new, a) that the first one made into (new, new).
        let passing = self.left.counts[new as usize];
        for id in std::mem::take(&mut self.right.seen) {
            let mut place = self.right.take(id);
            self.lower((b, id), place.count);
            if id == a {
                place.count -= passing;
            }
            self.open((new, id), place);
        }
        for id in std::mem::take(&mut self.left.seen) {
            let place = self.left.take(id);
            if id != new {
                self.lower((id, a), place.count);
            }
            self.open((id, new), place);
        }
    }

    fn lower(&mut self, pair: Pair, by: u64) {
        if let Some(place) = self.pairs.get_mut(&key(pair)) {
            place.count -= by;
        }
    }

    fn open(&mut self, pair: Pair, place: Occurrences) {
        if place.count > 0 {
            self.heap.push((place.count, Reverse(pair)));
            self.pairs.insert(key(pair), place);
        }
    }
}
