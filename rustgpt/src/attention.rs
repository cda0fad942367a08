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
/// Blocks whose scores are computed together: independent chains hide the latency of multiply-add.
const GROUP: usize = 4;
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
                    *keys.add(key_at + i * BLOCK) = to_bf16(*key.add(i));
                    *values.add(value_at + i) = to_bf16(*value.add(i));
                }
            }
        }
    }

    /// Compute the attention of one query head at one position: `query` (D) -> `out` (D).
    ///
    /// `blocks` are those of the sequence, `len` the number of positions that the query sees. `scores` is working
    /// memory of at least `len` numbers, rounded up to a multiple of `GROUP * BLOCK`.
    ///
    /// # Safety
    /// The processor supports `L`; the pointers are valid; the positions have been written.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn attend<L: Lanes>(
        &self,
        shape: Shape,
        kv_head: usize,
        blocks: &[i32],
        len: usize,
        query: *const f32,
        out: *mut f32,
        scores: *mut f32,
    ) {
        match self {
            Cache::F32 { keys, values } => {
                let (keys, values) = (keys.as_ptr(), values.as_ptr());
                attend::<L, f32>(shape, kv_head, blocks, len, query, out, scores, keys, values, |from| L::load(from));
            }
            Cache::Bf16 { keys, values } => {
                let (keys, values) = (keys.as_ptr(), values.as_ptr());
                let load = |from| L::load_bf16(from);
                attend::<L, u16>(shape, kv_head, blocks, len, query, out, scores, keys, values, load);
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn attend<L: Lanes, T>(
    shape: Shape,
    kv_head: usize,
    blocks: &[i32],
    len: usize,
    query: *const f32,
    out: *mut f32,
    scores: *mut f32,
    keys: *const T,
    values: *const T,
    load: impl Fn(*const T) -> L,
) {
    let dim = shape.head_dim;
    let n_blocks = len.div_ceil(BLOCK);
    let scale = L::splat(1.0 / (dim as f32).sqrt());
    let padded = shape.padded_dim();
    let key_of = |block: i32| keys.add(block as usize * shape.key_block() + kv_head * dim * BLOCK);

    let value_of = |block: i32| values.add(block as usize * shape.value_block() + kv_head * BLOCK * padded);

    // Scores of all positions, and the largest.
    let mut largest = L::splat(f32::NEG_INFINITY);
    let mut first = 0;
    while first < n_blocks {
        let count = GROUP.min(n_blocks - first);
        // A group that is not full computes its last block again.
        let from: [*const T; GROUP] = std::array::from_fn(|i| key_of(blocks[first + i.min(count - 1)]));
        // Blocks lie anywhere in memory: the processor does not foresee which is next.
        let ahead: [*const T; GROUP] = std::array::from_fn(|i| key_of(blocks[(first + GROUP + i).min(n_blocks - 1)]));
        let mut sums = [L::splat(0.0); GROUP];
        for i in 0..dim {
            let q = L::splat(*query.add(i));
            for (sum, from) in sums.iter_mut().zip(from) {
                *sum = load(from.add(i * BLOCK)).fma(q, *sum);
            }
            if i % (CACHE_LINE / (BLOCK * size_of::<T>())).max(1) == 0 {
                for ahead in ahead {
                    prefetch(ahead.add(i * BLOCK));
                }
            }
        }
        for (index, sum) in sums.into_iter().enumerate().take(count) {
            let to = scores.add((first + index) * BLOCK);
            sum.mul(scale).store(to);
            // Positions of the last block that are not seen.
            for slot in len.saturating_sub((first + index) * BLOCK).min(BLOCK)..BLOCK {
                *to.add(slot) = f32::NEG_INFINITY;
            }
            largest = largest.max(L::load(to));
        }
        first += count;
    }
    let largest = L::splat(largest.largest());

    // Their exponentials, and the sum.
    let mut total = L::splat(0.0);
    for block in 0..n_blocks {
        let to = scores.add(block * BLOCK);
        L::load(to).sub(largest).exp().store(to);
        for slot in len.saturating_sub(block * BLOCK).min(BLOCK)..BLOCK {
            *to.add(slot) = 0.0;
        }
        total = total.add(L::load(to));
    }
    let share = 1.0 / total.sum();

    // The mean of the values. Up to 8 vectors of the output at once stay in registers.
    let mut column = 0;
    while column < padded {
        let n_left = (padded - column) / LANES;
        macro_rules! columns {
            ($n:literal) => {{
                let mut sums = [L::splat(0.0); $n];
                for index in 0..n_blocks {
                    let from = value_of(blocks[index]).add(column);
                    let ahead = value_of(blocks[(index + 1).min(n_blocks - 1)]).add(column);
                    for slot in 0..BLOCK.min(len - index * BLOCK) {
                        let p = L::splat(*scores.add(index * BLOCK + slot));
                        for (vector, sum) in sums.iter_mut().enumerate() {
                            *sum = load(from.add(slot * padded + vector * LANES)).fma(p, *sum);
                            prefetch(ahead.add(slot * padded + vector * LANES));
                        }
                    }
                }
                for (vector, sum) in sums.into_iter().enumerate() {
                    let y = sum.mul(L::splat(share));
                    let first = column + vector * LANES;
                    if first + LANES <= dim {
                        y.store(out.add(first));
                    } else if first < dim {
                        std::ptr::copy_nonoverlapping(y.to_array().as_ptr(), out.add(first), dim - first);
                    }
                }
                column += $n * LANES;
            }};
        }
        match n_left {
            1 => columns!(1),
            2 | 3 => columns!(2),
            4..=7 => columns!(4),
            _ => columns!(8),
        }
    }
}
