//! The cache of keys and values in blocks, and attention to it.
//!
//! A block holds 16 positions of one sequence, in all layers. With D the head size (even) and D16 the same, rounded up
//! to a multiple of 16:
//!
//! ```text
//! keys    [block][key-value head][D][16 positions]       values    [block][key-value head][16 positions][D16]
//! ```
//!
//! So a vector of lanes is 16 positions of a score, and 16 elements of an output. The score of a position is one chain
//! of fused multiply-adds over D, an element of the output one chain over all positions: nothing depends on other
//! sequences, on how a prompt was cut into chunks, or on threads.

use crate::buffer::Buffer;
use crate::lanes::{Lanes, LANES};
use crate::matrix::{prefetch, to_bf16};

/// Positions of a block.
pub const BLOCK: usize = LANES;
/// Queries of one sequence that are computed together in a prompt: they share what is loaded.
pub const MANY: usize = 4;
const CACHE_LINE: usize = 64; // bytes

/// The keys and values of one layer.
pub enum Cache {
    F32 { keys: Buffer<f32>, values: Buffer<f32> },
    Bf16 { keys: Buffer<u16>, values: Buffer<u16> },
}

/// Shape of attention.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Query heads.
    pub n_head: usize,
    /// Key-value heads.
    pub n_kv_head: usize,
    pub head_dim: usize,
}

impl Shape {
    /// D16.
    pub fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    fn key_block(&self) -> usize {
        self.n_kv_head * self.head_dim * BLOCK
    }

    fn value_block(&self) -> usize {
        self.n_kv_head * self.padded_dim() * BLOCK
    }
}

impl Cache {
    /// Allocate `num_blocks` blocks.
    pub fn new(shape: Shape, num_blocks: usize, is_bf16: bool) -> Cache {
        let (keys, values) = (num_blocks * shape.key_block(), num_blocks * shape.value_block());
        if is_bf16 {
            Cache::Bf16 { keys: Buffer::zeroed(keys), values: Buffer::zeroed(values) }
        } else {
            Cache::F32 { keys: Buffer::zeroed(keys), values: Buffer::zeroed(values) }
        }
    }

    /// Copy a block.
    pub fn copy_block(&mut self, shape: Shape, source: usize, target: usize) {
        fn copy<T: Copy>(numbers: &mut [T], len: usize, source: usize, target: usize) {
            numbers.copy_within(source * len..(source + 1) * len, target * len);
        }
        match self {
            Cache::F32 { keys, values } => {
                copy(keys, shape.key_block(), source, target);
                copy(values, shape.value_block(), source, target);
            }
            Cache::Bf16 { keys, values } => {
                copy(keys, shape.key_block(), source, target);
                copy(values, shape.value_block(), source, target);
            }
        }
    }

    /// Write the key and the value (D each) of one head at one position.
    ///
    /// # Safety
    /// The block, the head and the slot (the position within the block) exist, and no other thread uses them.
    pub unsafe fn write(
        &self,
        shape: Shape,
        head: usize,
        block: usize,
        slot: usize,
        key: *const f32,
        value: *const f32,
    ) {
        let dim = shape.head_dim;
        let key_at = block * shape.key_block() + head * dim * BLOCK + slot;
        let value_at = block * shape.value_block() + (head * BLOCK + slot) * shape.padded_dim();
        match self {
            Cache::F32 { keys, values } => {
                let (keys, values) = (keys.as_ptr().cast_mut(), values.as_ptr().cast_mut());
                for i in 0..dim {
                    *keys.add(key_at + i * BLOCK) = *key.add(i);
                }
                std::ptr::copy_nonoverlapping(value, values.add(value_at), dim);
            }
            Cache::Bf16 { keys, values } => {
                let (keys, values) = (keys.as_ptr().cast_mut(), values.as_ptr().cast_mut());
                for i in 0..dim {
                    *values.add(value_at + i) = to_bf16(*value.add(i)); // apart from the keys: this loop has no gaps
                }
                for i in 0..dim {
                    *keys.add(key_at + i * BLOCK) = to_bf16(*key.add(i));
                }
            }
        }
    }

    /// Compute the attention of one query head at one position, or at `MANY` positions in succession.
    ///
    /// `blocks` are those of the sequence. `scores` is working memory of at least `MANY` times as many numbers as the
    /// blocks up to the last position have positions.
    ///
    /// # Safety
    /// The processor supports `L`; the pointers are valid; the positions have been written.
    #[inline(always)]
    pub unsafe fn attend<L: Lanes>(
        &self,
        shape: Shape,
        kv_head: usize,
        blocks: &[i32],
        queries: Queries,
        is_many: bool,
        scores: *mut f32,
    ) {
        match self {
            Cache::F32 { keys, values } => {
                let head = Head { shape, kv_head, blocks, keys: keys.as_ptr(), values: values.as_ptr() };
                head.attend_some::<L>(queries, is_many, scores);
            }
            Cache::Bf16 { keys, values } => {
                let head = Head { shape, kv_head, blocks, keys: keys.as_ptr(), values: values.as_ptr() };
                head.attend_some::<L>(queries, is_many, scores);
            }
        }
    }
}

/// A number of the cache.
trait Stored: Copy {
    /// # Safety
    /// As for `Lanes`.
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const f32) -> L {
        L::load(from)
    }
}

impl Stored for u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u16) -> L {
        L::load_bf16(from)
    }
}

/// Queries of one head, and where their results go: D numbers each, at a stride.
#[derive(Clone, Copy)]
pub struct Queries {
    pub query: *const f32,
    pub stride: usize,
    pub out: *mut f32,
    pub out_stride: usize,
    /// Positions that the first query sees; each further one sees one more.
    pub len: usize,
}

/// The keys and values of one head of one sequence.
struct Head<'a, T> {
    shape: Shape,
    kv_head: usize,
    blocks: &'a [i32],
    keys: *const T,
    values: *const T,
}

// Loops over lanes are written out instead of with closures, which would be compiled without the instructions of `L`.
impl<T: Stored> Head<'_, T> {
    #[inline(always)]
    unsafe fn attend_some<L: Lanes>(&self, queries: Queries, is_many: bool, scores: *mut f32) {
        // Blocks whose scores are computed together: independent chains hide the latency of multiply-add.
        if is_many {
            self.attend::<L, MANY, 2>(queries, scores);
        } else {
            self.attend::<L, 1, 4>(queries, scores);
        }
    }

    #[inline(always)]
    unsafe fn attend<L: Lanes, const QUERIES: usize, const GROUP: usize>(&self, queries: Queries, scores: *mut f32) {
        let n_blocks = (queries.len + QUERIES - 1).div_ceil(BLOCK);
        self.compute_scores::<L, QUERIES, GROUP>(queries, n_blocks, scores);
        let mut shares = [0.0; QUERIES];
        for (index, share) in shares.iter_mut().enumerate() {
            *share = 1.0 / exponentials::<L>(scores.add(index * n_blocks * BLOCK), n_blocks, queries.len + index);
        }
        let padded = self.shape.padded_dim();
        let mut column = 0;
        while column < padded {
            let n_left = (padded - column) / LANES;
            macro_rules! columns {
                ($n:literal) => {{
                    self.mean::<L, QUERIES, $n>(queries, n_blocks, column, scores, shares);
                    column += $n * LANES;
                }};
            }
            match n_left {
                1 => columns!(1),
                2 | 3 => columns!(2),
                4..=7 => columns!(4),
                _ if QUERIES > 1 => columns!(4), // all sums stay in registers
                _ => columns!(8),
            }
        }
    }

    /// The block of the given place in the sequence, or the last one if there are fewer.
    #[inline(always)]
    fn block(&self, index: usize, n_blocks: usize) -> usize {
        self.blocks[index.min(n_blocks - 1)] as usize
    }

    /// Write the scores of all positions, of one query after the other.
    #[inline(always)]
    unsafe fn compute_scores<L: Lanes, const QUERIES: usize, const GROUP: usize>(
        &self,
        queries: Queries,
        n_blocks: usize,
        scores: *mut f32,
    ) {
        let dim = self.shape.head_dim;
        let (size, at) = (self.shape.key_block(), self.kv_head * dim * BLOCK);
        let scale = L::splat(1.0 / (dim as f32).sqrt());
        for first in (0..n_blocks).step_by(GROUP) {
            let mut from = [self.keys; GROUP];
            let mut ahead = [self.keys; GROUP];
            for index in 0..GROUP {
                // A group that is not full computes its last block again.
                from[index] = self.keys.add(self.block(first + index, n_blocks) * size + at);
                // Blocks lie anywhere in memory: the processor does not foresee which is next.
                ahead[index] = self.keys.add(self.block(first + GROUP + index, n_blocks) * size + at);
            }
            let mut sums = [[L::splat(0.0); GROUP]; QUERIES];
            for i in 0..dim {
                let mut keys = [L::splat(0.0); GROUP];
                for (key, from) in keys.iter_mut().zip(from) {
                    *key = T::load(from.add(i * BLOCK));
                }
                for (index, sums) in sums.iter_mut().enumerate() {
                    let q = L::splat(*queries.query.add(index * queries.stride + i));
                    for (sum, key) in sums.iter_mut().zip(keys) {
                        *sum = key.fma(q, *sum);
                    }
                }
                if i % (CACHE_LINE / (BLOCK * size_of::<T>())).max(1) == 0 {
                    for ahead in ahead {
                        prefetch(ahead.add(i * BLOCK));
                    }
                }
            }
            for (index, sums) in sums.into_iter().enumerate() {
                let to = scores.add((index * n_blocks + first) * BLOCK);
                for (block, sum) in sums.into_iter().enumerate() {
                    if first + block < n_blocks {
                        sum.mul(scale).store(to.add(block * BLOCK));
                    }
                }
            }
        }
    }

    /// Write the means of the values, in N vectors of columns.
    #[inline(always)]
    unsafe fn mean<L: Lanes, const QUERIES: usize, const N: usize>(
        &self,
        queries: Queries,
        n_blocks: usize,
        column: usize,
        weights: *const f32,
        shares: [f32; QUERIES],
    ) {
        let (dim, padded) = (self.shape.head_dim, self.shape.padded_dim());
        let (size, at) = (self.shape.value_block(), self.kv_head * BLOCK * padded + column);
        let last_len = queries.len + QUERIES - 1;
        let mut sums = [[L::splat(0.0); N]; QUERIES];
        for index in 0..n_blocks {
            let from = self.values.add(self.block(index, n_blocks) * size + at);
            let ahead = self.values.add(self.block(index + 1, n_blocks) * size + at);
            for slot in 0..BLOCK.min(last_len - index * BLOCK) {
                let mut values = [L::splat(0.0); N];
                for (vector, value) in values.iter_mut().enumerate() {
                    *value = T::load(from.add(slot * padded + vector * LANES));
                    prefetch(ahead.add(slot * padded + vector * LANES));
                }
                for (query, sums) in sums.iter_mut().enumerate() {
                    let p = L::splat(*weights.add((query * n_blocks + index) * BLOCK + slot));
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = value.fma(p, *sum);
                    }
                }
            }
        }
        for (query, sums) in sums.into_iter().enumerate() {
            let out = queries.out.add(query * queries.out_stride);
            for (vector, sum) in sums.into_iter().enumerate() {
                let y = sum.mul(L::splat(shares[query]));
                let first = column + vector * LANES;
                if first + LANES <= dim {
                    y.store(out.add(first));
                } else if first < dim {
                    std::ptr::copy_nonoverlapping(y.to_array().as_ptr(), out.add(first), dim - first);
                }
            }
        }
    }
}

/// Replace the first `len` scores by the exponentials of their distance from the largest, those after them by 0, and
/// return the sum.
#[inline(always)]
unsafe fn exponentials<L: Lanes>(scores: *mut f32, n_blocks: usize, len: usize) -> f32 {
    let n_seen = len.div_ceil(BLOCK);
    for position in len..n_seen * BLOCK {
        *scores.add(position) = f32::NEG_INFINITY;
    }
    let mut largest = L::splat(f32::NEG_INFINITY);
    for block in 0..n_seen {
        largest = largest.max(L::load(scores.add(block * BLOCK)));
    }
    let largest = L::splat(largest.largest());
    let mut total = L::splat(0.0);
    for block in 0..n_seen {
        let to = scores.add(block * BLOCK);
        L::load(to).sub(largest).exp().store(to);
        if (block + 1) * BLOCK > len {
            for position in len..n_seen * BLOCK {
                *scores.add(position) = 0.0;
            }
        }
        total = total.add(L::load(to));
    }
    for position in n_seen * BLOCK..n_blocks * BLOCK {
        *scores.add(position) = 0.0;
    }
    total.sum()
}
