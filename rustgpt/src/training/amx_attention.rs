//! The backward pass of causal attention in bfloat16, with AMX (see `attention.rs` for the formulas).
//!
//! Scores are computed for 64 keys and 64 queries at a time, transposed (keys are rows): then P^T and dS^T stand in
//! memory as the products for dV and dK read them, and the logarithms of the sums of the queries are vectors. The left
//! factor of a product stands row by row, the right one as rows of pairs of inputs: [k / 2][column][2].

use super::attention::Sizes;
use super::threads;
use crate::amx;
use crate::buffer::Buffer;
use crate::cpu::{Cpu, Kernel};
use crate::lanes::{exps, Lanes, LANES};
use std::arch::asm;

/// Keys and queries of a block of scores.
const BLOCK: usize = 64;
/// Rows and columns of a call of `tiles`, and inputs of one of its steps.
const SIDE: usize = 32;

/// The heads of a tensor (B, H, T, D) of bfloat16: strides in elements; those of D are contiguous.
#[derive(Clone, Copy)]
pub struct Heads16 {
    pub start: *mut u16,
    pub batch: usize,
    pub head: usize,
    pub position: usize,
}

/// Tensors of the backward pass. `log_sums`: contiguous (B, H, T).
#[derive(Clone, Copy)]
pub struct AmxAttentionGrads {
    pub sizes: Sizes,
    pub q: Heads16,
    pub k: Heads16,
    pub v: Heads16,
    pub out: Heads16,
    pub log_sums: *const f32,
    pub d_out: Heads16,
    pub d_q: Heads16,
    pub d_k: Heads16,
    pub d_v: Heads16,
}

/// Working memory of a thread. T is padded with zeros to a multiple of 64, in rows of `row` elements where it is a row.
struct Scratch {
    keys: Buffer<u16>,            // (T, D)
    values: Buffer<u16>,          // (T, D)
    transposed_keys: Buffer<u16>, // (D, row)
    d_keys: Buffer<f32>,          // (T, D)
    d_values: Buffer<f32>,        // (T, D)
    queries: [Buffer<u16>; 2],    // of a block, as right factor: [D / 2][64][2], and [64 / 2][D][2]
    d_outs: [Buffer<u16>; 2],     // the same
    d_queries: Buffer<f32>,       // (D, 64)
    log_sums: [f32; BLOCK],
    means: [f32; BLOCK],        // rowsum(dO O)
    scores: Buffer<f32>,        // (64 keys, 64 queries)
    d_probs: Buffer<f32>,       // the same
    probs: Buffer<u16>,         // the same, rounded
    d_scores: Buffer<u16>,      // the same, rounded
    paired_scores: Buffer<u16>, // of `d_scores`: [64 / 2][64][2]
    hidden: Buffer<f32>,        // (64, 64): minus infinity where the key comes after the query
}

impl Scratch {
    fn new(sizes: Sizes) -> Scratch {
        let (d, t) = (sizes.head_dim, padded(sizes));
        let square = BLOCK * BLOCK;
        let mut hidden = Buffer::zeroed(square);
        for key in 0..BLOCK {
            hidden[key * BLOCK..][..key].fill(f32::NEG_INFINITY);
        }
        Scratch {
            keys: Buffer::zeroed(t * d),
            values: Buffer::zeroed(t * d),
            transposed_keys: Buffer::zeroed(d * row(sizes)),
            d_keys: Buffer::zeroed(t * d),
            d_values: Buffer::zeroed(t * d),
            queries: [Buffer::zeroed(BLOCK * d), Buffer::zeroed(BLOCK * d)],
            d_outs: [Buffer::zeroed(BLOCK * d), Buffer::zeroed(BLOCK * d)],
            d_queries: Buffer::zeroed(d * BLOCK),
            log_sums: [0.0; BLOCK],
            means: [0.0; BLOCK],
            scores: Buffer::zeroed(square),
            d_probs: Buffer::zeroed(square),
            probs: Buffer::zeroed(square),
            d_scores: Buffer::zeroed(square),
            paired_scores: Buffer::zeroed(square),
            hidden,
        }
    }
}

fn padded(sizes: Sizes) -> usize {
    sizes.positions.next_multiple_of(BLOCK)
}

/// Elements of a row of transposed keys: not a power of 2, whose rows would compete for a few lines of the cache.
fn row(sizes: Sizes) -> usize {
    padded(sizes) + SIDE
}

struct Run {
    tensors: AmxAttentionGrads,
    scratch: *mut Option<Scratch>, // of each thread
}

// SAFETY: a piece writes what belongs to its head, and a thread uses its own scratch.
unsafe impl Sync for Run {}

/// Compute the gradients `d_q`, `d_k` and `d_v`. D is a multiple of 32.
///
/// # Safety
/// The tensors have these sizes, and AMX works (`Cpu::named("amx")` returned it).
pub unsafe fn amx_attention_grads(tensors: AmxAttentionGrads, num_threads: usize) {
    let sizes = tensors.sizes;
    assert!(sizes.head_dim.is_multiple_of(SIDE), "a head size of {}", sizes.head_dim);
    let mut scratch = threads::scratch(num_threads);
    let run = Run { tensors, scratch: scratch.as_mut_ptr() };
    threads::run(num_threads, sizes.batch * sizes.heads, &|piece, thread| Cpu::Amx.run(&run, piece, thread));
}

/// Rows of a head.
#[derive(Clone, Copy)]
struct Rows16 {
    start: *mut u16,
    row: usize,
}

impl Rows16 {
    unsafe fn at(self, position: usize) -> *mut u16 {
        self.start.add(position * self.row)
    }
}

impl Kernel for Run {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, piece: usize, thread: usize) {
        let AmxAttentionGrads { sizes, q, k, v, out, log_sums, d_out, d_q, d_k, d_v } = self.tensors;
        let rows = |heads: Heads16| Rows16 {
            start: heads.start.add(piece / sizes.heads * heads.batch + piece % sizes.heads * heads.head),
            row: heads.position,
        };
        let [q, k, v, out, d_out] = [rows(q), rows(k), rows(v), rows(out), rows(d_out)];
        let log_sums = log_sums.add(piece * sizes.positions);
        let scratch = (*self.scratch.add(thread)).get_or_insert_with(|| Scratch::new(sizes));
        let (d, t) = (sizes.head_dim, sizes.positions);
        for position in 0..t {
            std::ptr::copy_nonoverlapping(k.at(position), scratch.keys.as_mut_ptr().add(position * d), d);
            std::ptr::copy_nonoverlapping(v.at(position), scratch.values.as_mut_ptr().add(position * d), d);
        }
        transpose(&scratch.keys, t, d, &mut scratch.transposed_keys, row(sizes));
        scratch.d_keys.fill(0.0);
        scratch.d_values.fill(0.0);
        amx::configure(2 * amx::TILE_ROWS);
        for start in (0..t).step_by(BLOCK) {
            let count = BLOCK.min(t - start);
            load_queries::<L>(scratch, [q, d_out, out], start, count, d);
            for i in 0..count {
                scratch.log_sums[i] = *log_sums.add(start + i);
            }
            for key in (0..start + count).step_by(BLOCK) {
                block::<L>(scratch, key, key == start, sizes);
            }
            let factor = 1.0 / (d as f32).sqrt();
            let d_q = rows(d_q);
            for i in 0..count {
                for at in (0..d).step_by(LANES) {
                    let mut column = [0.0; LANES];
                    for (lane, x) in column.iter_mut().enumerate() {
                        *x = *scratch.d_queries.get_unchecked((at + lane) * BLOCK + i);
                    }
                    L::load(column.as_ptr()).mul(L::splat(factor)).store_bf16(d_q.at(start + i).add(at));
                }
            }
        }
        amx::release();
        store::<L>(&scratch.d_keys, rows(d_k), t, d, 1.0 / (d as f32).sqrt());
        store::<L>(&scratch.d_values, rows(d_v), t, d, 1.0);
    }
}

/// Write rows in bfloat16.
#[inline(always)]
unsafe fn store<L: Lanes>(from: &[f32], to: Rows16, t: usize, d: usize, factor: f32) {
    for position in 0..t {
        for at in (0..d).step_by(LANES) {
            L::load(from.as_ptr().add(position * d + at)).mul(L::splat(factor)).store_bf16(to.at(position).add(at));
        }
    }
}

/// Transpose (t, d) to rows of `row` elements.
unsafe fn transpose(from: &[u16], t: usize, d: usize, to: &mut [u16], row: usize) {
    for block in (0..t).step_by(SIDE) {
        for column in 0..d {
            for position in block..t.min(block + SIDE) {
                *to.get_unchecked_mut(column * row + position) = *from.get_unchecked(position * d + column);
            }
        }
    }
}

/// Arrange a block of queries, and of the gradients of their results, as right factors; and compute the means.
#[inline(always)]
unsafe fn load_queries<L: Lanes>(
    scratch: &mut Scratch,
    [q, d_out, out]: [Rows16; 3],
    start: usize,
    count: usize,
    d: usize,
) {
    scratch.d_queries.fill(0.0);
    for (rows, [by_column, by_row]) in [(q, &mut scratch.queries), (d_out, &mut scratch.d_outs)] {
        if count < BLOCK {
            by_column.fill(0);
            by_row.fill(0);
        }
        for i in 0..count {
            let from = rows.at(start + i);
            for pair in 0..d / 2 {
                let to = by_column.as_mut_ptr().add((pair * BLOCK + i) * 2).cast::<u32>();
                to.write_unaligned(from.add(2 * pair).cast::<u32>().read_unaligned());
            }
        }
        for i in (0..count).step_by(2) {
            for at in (0..d).step_by(LANES) {
                let first = L::load_bf16(rows.at(start + i).add(at));
                let second = if i + 1 < count { L::load_bf16(rows.at(start + i + 1).add(at)) } else { L::splat(0.0) };
                first.store_bf16_pairs(second, by_row.as_mut_ptr().add(i * d + 2 * at));
            }
        }
    }
    for i in 0..BLOCK {
        let mut sum = L::splat(0.0);
        if i < count {
            for at in (0..d).step_by(LANES) {
                sum = L::load_bf16(d_out.at(start + i).add(at)).fma(L::load_bf16(out.at(start + i).add(at)), sum);
            }
        }
        scratch.means[i] = sum.sum();
        scratch.log_sums[i] = 0.0;
    }
}

/// Add what the block of queries and the 64 keys from `key` on give. `is_last`: they are the same positions.
#[inline(always)]
unsafe fn block<L: Lanes>(scratch: &mut Scratch, key: usize, is_last: bool, sizes: Sizes) {
    let d = sizes.head_dim;
    let keys = scratch.keys.as_ptr().add(key * d);
    let values = scratch.values.as_ptr().add(key * d);
    product::<false>(
        (keys, d),
        (scratch.queries[0].as_ptr(), BLOCK),
        (scratch.scores.as_mut_ptr(), BLOCK),
        (BLOCK, BLOCK, d),
    );
    product::<false>(
        (values, d),
        (scratch.d_outs[0].as_ptr(), BLOCK),
        (scratch.d_probs.as_mut_ptr(), BLOCK),
        (BLOCK, BLOCK, d),
    );
    differentiate::<L>(scratch, is_last, 1.0 / (d as f32).sqrt());
    let sizes_of_keys = (BLOCK, d, BLOCK);
    let d_values = scratch.d_values.as_mut_ptr().add(key * d);
    product::<true>((scratch.probs.as_ptr(), BLOCK), (scratch.d_outs[1].as_ptr(), d), (d_values, d), sizes_of_keys);
    let d_keys = scratch.d_keys.as_mut_ptr().add(key * d);
    product::<true>((scratch.d_scores.as_ptr(), BLOCK), (scratch.queries[1].as_ptr(), d), (d_keys, d), sizes_of_keys);
    let transposed = scratch.transposed_keys.as_ptr().add(key);
    let d_queries = scratch.d_queries.as_mut_ptr();
    let pairs = (scratch.paired_scores.as_ptr(), BLOCK);
    product::<true>((transposed, row(sizes)), pairs, (d_queries, BLOCK), (d, BLOCK, BLOCK));
}

/// Compute P^T and dS^T of a block from the scores and dP^T.
#[inline(always)]
unsafe fn differentiate<L: Lanes>(scratch: &mut Scratch, is_last: bool, factor: f32) {
    let factor = L::splat(factor);
    for key in (0..BLOCK).step_by(2) {
        for at in (0..BLOCK).step_by(2 * LANES) {
            // Two keys, and 32 queries.
            let offsets =
                [key * BLOCK + at, key * BLOCK + at + LANES, (key + 1) * BLOCK + at, (key + 1) * BLOCK + at + LANES];
            let log_sums = [L::load(&scratch.log_sums[at]), L::load(&scratch.log_sums[at + LANES])];
            let means = [L::load(&scratch.means[at]), L::load(&scratch.means[at + LANES])];
            let mut x = [L::splat(0.0); 4];
            for (i, x) in x.iter_mut().enumerate() {
                *x = L::load(scratch.scores.as_ptr().add(offsets[i])).mul(factor).sub(log_sums[i % 2]);
                if is_last {
                    *x = x.add(L::load(scratch.hidden.as_ptr().add(offsets[i])));
                }
            }
            let probs = exps(x);
            for i in 0..4 {
                probs[i].store_bf16(scratch.probs.as_mut_ptr().add(offsets[i]));
                let d_prob = L::load(scratch.d_probs.as_ptr().add(offsets[i]));
                probs[i].mul(d_prob.sub(means[i % 2])).store_bf16(scratch.d_scores.as_mut_ptr().add(offsets[i]));
            }
            for i in 0..2 {
                let first = L::load_bf16(scratch.d_scores.as_ptr().add(offsets[i]));
                let second = L::load_bf16(scratch.d_scores.as_ptr().add(offsets[i + 2]));
                let to = scratch.paired_scores.as_mut_ptr().add(key * BLOCK + 2 * (at + i * LANES));
                first.store_bf16_pairs(second, to);
            }
        }
    }
}

/// C (M, N) = A (M, K) B (K, N), or C += A B if `ADD`, all sides multiples of 32. Of each matrix: its start, and the
/// elements of a row; of B, pairs of inputs.
#[inline(always)]
unsafe fn product<const ADD: bool>(
    (a, a_row): (*const u16, usize),
    (b, b_row): (*const u16, usize),
    (c, c_row): (*mut f32, usize),
    (m, n, k): (usize, usize, usize),
) {
    for row in (0..m).step_by(SIDE) {
        for column in (0..n).step_by(SIDE) {
            let c = c.add(row * c_row + column);
            tiles::<ADD>((a.add(row * a_row), 2 * a_row), (b.add(2 * column), 4 * b_row), (c, 4 * c_row), k / SIDE);
        }
    }
}

/// `product` of 32 rows and columns. Rows are given in bytes here.
#[inline(always)]
unsafe fn tiles<const ADD: bool>(
    (a, a_row): (*const u16, usize),
    (b, b_row): (*const u16, usize),
    (c, c_row): (*mut f32, usize),
    steps: usize,
) {
    let second = c.byte_add(amx::TILE_ROWS * c_row);
    if ADD {
        asm!(
            "tileloadd tmm0, [{c} + {row}]",
            "tileloadd tmm1, [{c} + {row} + 64]",
            "tileloadd tmm2, [{second} + {row}]",
            "tileloadd tmm3, [{second} + {row} + 64]",
            c = in(reg) c,
            second = in(reg) second,
            row = in(reg) c_row,
            options(nostack, readonly),
        );
    } else {
        asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack));
    }
    asm!(
        "2:",
        "tileloadd tmm4, [{a} + {a_row}]",
        "tileloadd tmm6, [{b} + {b_row}]",
        "tileloadd tmm7, [{b} + {b_row} + 64]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{a2} + {a_row}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "add {a}, 64",
        "add {a2}, 64",
        "add {b}, {b_step}",
        "dec {steps}",
        "jnz 2b",
        "tilestored [{c} + {c_row}], tmm0",
        "tilestored [{c} + {c_row} + 64], tmm1",
        "tilestored [{second} + {c_row}], tmm2",
        "tilestored [{second} + {c_row} + 64], tmm3",
        a = inout(reg) a => _,
        a2 = inout(reg) a.byte_add(amx::TILE_ROWS * a_row) => _,
        b = inout(reg) b => _,
        b_step = in(reg) amx::TILE_ROWS * b_row,
        a_row = in(reg) a_row,
        b_row = in(reg) b_row,
        c = in(reg) c,
        second = in(reg) second,
        c_row = in(reg) c_row,
        steps = inout(reg) steps => _,
        options(nostack),
    );
}
