//! Causal attention for training in float32, forward and backward. Scores are in memory for a few queries at a time.
//!
//! With the queries scaled by 1 / sqrt(D), and L the logarithm of the sum of the exponentials of a query's scores:
//!
//! ```text
//! P = exp(Q K^T - L)        O = P V
//! dP = dO V^T        dS = P (dP - rowsum(dO O))        dQ = dS K / sqrt(D)        dK = dS^T Q        dV = P^T dO
//! ```
//!
//! T positions, D head size: a multiple of 16. A piece is a head of a row of the batch. All sums have one order.

use super::products::{product, Left, Rows};
use super::threads;
use crate::buffer::Buffer;
use crate::cpu::{Cpu, Kernel};
use crate::lanes::{exps, Lanes, LANES};

/// Queries whose scores are computed together.
const BLOCK: usize = 48;
/// Columns that a product of scores advances at once.
const COLUMNS: usize = 64;
/// Vectors of exponentials that are computed side by side.
const VECTORS: usize = 4;

/// The heads of a tensor (B, H, T, D): strides in elements; those of D are contiguous.
#[derive(Clone, Copy)]
pub struct Heads {
    pub start: *mut f32,
    pub batch: usize,
    pub head: usize,
    pub position: usize,
}

/// Sizes of the tensors.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    pub heads: usize,
    pub positions: usize,
    pub head_dim: usize,
}

impl Sizes {
    /// Elements from a row of scores, or of transposed keys, to the next: not a power of 2, whose rows would compete for
    /// a few lines of the cache.
    fn row(&self) -> usize {
        self.positions.next_multiple_of(COLUMNS) + LANES
    }
}

/// Working memory of a thread, which makes it with its first piece: to set it to zero takes as long as a small head.
struct Scratch {
    keys: Buffer<f32>,   // (D, row): transposed
    values: Buffer<f32>, // (D, row): transposed; only of the backward pass
    queries: Buffer<f32>,
    scores: Buffer<f32>,   // (BLOCK, row)
    d_scores: Buffer<f32>, // (BLOCK, row); only of the backward pass
}

impl Scratch {
    fn new(sizes: Sizes, is_backward: bool) -> Scratch {
        let (row, head_dim) = (sizes.row(), sizes.head_dim);
        let backward = usize::from(is_backward);
        Scratch {
            keys: Buffer::zeroed(head_dim * row),
            values: Buffer::zeroed(backward * head_dim * row),
            queries: Buffer::zeroed(BLOCK * head_dim),
            scores: Buffer::zeroed(BLOCK * row),
            d_scores: Buffer::zeroed(backward * BLOCK * row),
        }
    }
}

/// Tensors of the forward pass. `log_sums`: L, contiguous (B, H, T).
#[derive(Clone, Copy)]
pub struct Attention {
    pub sizes: Sizes,
    pub q: Heads,
    pub k: Heads,
    pub v: Heads,
    pub out: Heads,
    pub log_sums: *mut f32,
}

/// Tensors of the backward pass.
#[derive(Clone, Copy)]
pub struct AttentionGrads {
    pub forward: Attention,
    pub d_out: Heads,
    pub d_q: Heads,
    pub d_k: Heads,
    pub d_v: Heads,
}

struct Run<T> {
    tensors: T,
    scratch: *mut Option<Scratch>, // of each thread
}

// SAFETY: a piece writes what belongs to its head, and a thread uses its own scratch.
unsafe impl<T> Sync for Run<T> {}

/// Compute `out` and `log_sums`.
///
/// # Safety
/// The tensors have these sizes, and the processor supports `cpu`.
pub unsafe fn attention(tensors: Attention, cpu: Cpu, num_threads: usize) {
    let mut scratch = threads::scratch(num_threads);
    let run = Run { tensors, scratch: scratch.as_mut_ptr() };
    let count = tensors.sizes.batch * tensors.sizes.heads;
    threads::run(num_threads, count, &|piece, thread| cpu.run(&run, piece, thread));
}

/// Compute the gradients `d_q`, `d_k` and `d_v` from that of the result.
///
/// # Safety
/// As for `attention`, which has written `out` and `log_sums`.
pub unsafe fn attention_grads(tensors: AttentionGrads, cpu: Cpu, num_threads: usize) {
    let sizes = tensors.forward.sizes;
    let mut scratch = threads::scratch(num_threads);
    let run = Run { tensors, scratch: scratch.as_mut_ptr() };
    threads::run(num_threads, sizes.batch * sizes.heads, &|piece, thread| cpu.run(&run, piece, thread));
}

impl Heads {
    /// The positions of a head.
    unsafe fn rows(self, piece: usize, sizes: Sizes) -> Rows {
        let (row, head) = (piece / sizes.heads, piece % sizes.heads);
        Rows { start: self.start.add(row * self.batch + head * self.head), row: self.position }
    }
}

impl Kernel for Run<Attention> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, piece: usize, thread: usize) {
        let sizes = self.tensors.sizes;
        let scratch = (*self.scratch.add(thread)).get_or_insert_with(|| Scratch::new(sizes, false));
        let [q, k, v, out] = [self.tensors.q, self.tensors.k, self.tensors.v, self.tensors.out];
        let [q, k, v, out] = [q.rows(piece, sizes), k.rows(piece, sizes), v.rows(piece, sizes), out.rows(piece, sizes)];
        let log_sums = self.tensors.log_sums.add(piece * sizes.positions);
        transpose(k, sizes, &mut scratch.keys);
        let scores = Rows { start: scratch.scores.as_mut_ptr(), row: sizes.row() };
        for start in (0..sizes.positions).step_by(BLOCK) {
            let count = BLOCK.min(sizes.positions - start);
            compute_scores::<L>(q.from(start), (start, count), sizes, scratch);
            for i in 0..count {
                let row = scores.from(i).start;
                let visible = start + i + 1;
                let largest = hide_and_find_largest::<L>(row, visible);
                let sum = exponentials::<L>(row, visible, largest);
                clear(row, visible, start + count);
                *log_sums.add(start + i) = largest + sum.ln();
                scale::<L>(row, start + count, 1.0 / sum);
            }
            let left = Left { start: scores.start, row: scores.row, step: 1 };
            product::<L, false>(left, v, out.from(start), (count, sizes.head_dim, start + count));
        }
    }
}

impl Kernel for Run<AttentionGrads> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, piece: usize, thread: usize) {
        let Attention { sizes, q, k, v, out, log_sums } = self.tensors.forward;
        let scratch = (*self.scratch.add(thread)).get_or_insert_with(|| Scratch::new(sizes, true));
        let [q, k, v, out] = [q.rows(piece, sizes), k.rows(piece, sizes), v.rows(piece, sizes), out.rows(piece, sizes)];
        let AttentionGrads { d_out, d_q, d_k, d_v, .. } = self.tensors;
        let [d_out, d_q] = [d_out.rows(piece, sizes), d_q.rows(piece, sizes)];
        let [d_k, d_v] = [d_k.rows(piece, sizes), d_v.rows(piece, sizes)];
        let log_sums = log_sums.add(piece * sizes.positions);
        let head_dim = sizes.head_dim;
        transpose(k, sizes, &mut scratch.keys);
        transpose(v, sizes, &mut scratch.values);
        for position in 0..sizes.positions {
            std::ptr::write_bytes(d_k.from(position).start, 0, head_dim);
            std::ptr::write_bytes(d_v.from(position).start, 0, head_dim);
        }
        let scores = Rows { start: scratch.scores.as_mut_ptr(), row: sizes.row() };
        let d_scores = Rows { start: scratch.d_scores.as_mut_ptr(), row: sizes.row() };
        let factor = 1.0 / (head_dim as f32).sqrt();
        for start in (0..sizes.positions).step_by(BLOCK) {
            let count = BLOCK.min(sizes.positions - start);
            let end = start + count;
            compute_scores::<L>(q.from(start), (start, count), sizes, scratch);
            let values = Rows { start: scratch.values.as_mut_ptr(), row: sizes.row() };
            let left = Left { start: d_out.from(start).start, row: d_out.row, step: 1 };
            product::<L, false>(left, values, d_scores, (count, end.next_multiple_of(COLUMNS), head_dim));
            for i in 0..count {
                let (row, d_row) = (scores.from(i).start, d_scores.from(i).start);
                let visible = start + i + 1;
                hide_and_find_largest::<L>(row, visible);
                exponentials::<L>(row, visible, *log_sums.add(start + i));
                clear(row, visible, end);
                let mean = dot::<L>(d_out.from(start + i).start, out.from(start + i).start, head_dim);
                let mean = L::splat(mean);
                for at in (0..visible).step_by(LANES) {
                    let d_score = L::load(row.add(at)).mul(L::load(d_row.add(at)).sub(mean));
                    d_score.store(d_row.add(at));
                }
                clear(d_row, visible, end);
            }
            let sides = (end, head_dim, count);
            let transposed = |rows: Rows| Left { start: rows.start, row: 1, step: rows.row };
            product::<L, true>(transposed(scores), d_out.from(start), d_v, sides);
            let queries = Rows { start: scratch.queries.as_mut_ptr(), row: head_dim };
            product::<L, true>(transposed(d_scores), queries, d_k, sides);
            let left = Left { start: d_scores.start, row: d_scores.row, step: 1 };
            product::<L, false>(left, k, d_q.from(start), (count, head_dim, end));
            for i in 0..count {
                scale::<L>(d_q.from(start + i).start, head_dim, factor);
            }
        }
    }
}

/// Write the transposed rows of a head, (D, row).
unsafe fn transpose(rows: Rows, sizes: Sizes, to: &mut [f32]) {
    for block in (0..sizes.positions).step_by(LANES) {
        for d in 0..sizes.head_dim {
            for position in block..sizes.positions.min(block + LANES) {
                *to.get_unchecked_mut(d * sizes.row() + position) = *rows.start.add(position * rows.row + d);
            }
        }
    }
}

/// Compute the scores of queries `start` to `start + count`, scaled, with the keys up to the last of them, and more.
#[inline(always)]
unsafe fn compute_scores<L: Lanes>(q: Rows, (start, count): (usize, usize), sizes: Sizes, scratch: &mut Scratch) {
    let head_dim = sizes.head_dim;
    let factor = L::splat(1.0 / (head_dim as f32).sqrt());
    let queries = scratch.queries.as_mut_ptr();
    for i in 0..count {
        for d in (0..head_dim).step_by(LANES) {
            L::load(q.from(i).start.add(d)).mul(factor).store(queries.add(i * head_dim + d));
        }
    }
    let left = Left { start: queries, row: head_dim, step: 1 };
    let keys = Rows { start: scratch.keys.as_mut_ptr(), row: sizes.row() };
    let scores = Rows { start: scratch.scores.as_mut_ptr(), row: sizes.row() };
    product::<L, false>(left, keys, scores, (count, (start + count).next_multiple_of(COLUMNS), head_dim));
}

/// Set what follows the visible scores in their last vectors to minus infinity, and return the largest score.
#[inline(always)]
unsafe fn hide_and_find_largest<L: Lanes>(row: *mut f32, visible: usize) -> f32 {
    for at in visible..visible.next_multiple_of(VECTORS * LANES) {
        *row.add(at) = f32::NEG_INFINITY;
    }
    let mut largest = L::load(row);
    for at in (LANES..visible).step_by(LANES) {
        largest = largest.max(L::load(row.add(at)));
    }
    largest.largest()
}

/// Replace scores by the exponentials of their distance to `from`, and return the sum. Those that are hidden are tiny.
#[inline(always)]
unsafe fn exponentials<L: Lanes>(row: *mut f32, visible: usize, from: f32) -> f32 {
    let (from, mut sum) = (L::splat(from), L::splat(0.0));
    for at in (0..visible).step_by(VECTORS * LANES) {
        let mut x = [L::splat(0.0); VECTORS];
        for (i, x) in x.iter_mut().enumerate() {
            *x = L::load(row.add(at + i * LANES)).sub(from);
        }
        for (i, exp) in exps(x).into_iter().enumerate() {
            exp.store(row.add(at + i * LANES));
            sum = sum.add(exp);
        }
    }
    sum.sum()
}

/// Set the elements that are not visible to 0.
unsafe fn clear(row: *mut f32, visible: usize, end: usize) {
    let end = end.max(visible.next_multiple_of(VECTORS * LANES));
    std::ptr::write_bytes(row.add(visible), 0, end - visible);
}

/// Multiply the elements of a row; those up to the next multiple of 16 too.
#[inline(always)]
unsafe fn scale<L: Lanes>(row: *mut f32, len: usize, factor: f32) {
    for at in (0..len).step_by(LANES) {
        L::load(row.add(at)).mul(L::splat(factor)).store(row.add(at));
    }
}

#[inline(always)]
unsafe fn dot<L: Lanes>(a: *const f32, b: *const f32, len: usize) -> f32 {
    let mut sum = L::splat(0.0);
    for at in (0..len).step_by(LANES) {
        sum = L::load(a.add(at)).fma(L::load(b.add(at)), sum);
    }
    sum.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + seed * 977) * 7919) % 1013) as f32 / 400.0 - 1.25).collect()
    }

    /// The result and the gradients of a head in float64: out, d_q, d_k, d_v.
    fn expected(t: usize, d: usize, q: &[f32], k: &[f32], v: &[f32], d_out: &[f32]) -> [Vec<f64>; 4] {
        let dot = |a: &[f32], i: usize, b: &[f32], j: usize| -> f64 {
            (0..d).map(|c| f64::from(a[i * d + c]) * f64::from(b[j * d + c])).sum()
        };
        let mut results = [vec![0.0; t * d], vec![0.0; t * d], vec![0.0; t * d], vec![0.0; t * d]];
        for i in 0..t {
            let exps: Vec<f64> = (0..=i).map(|j| (dot(q, i, k, j) / (d as f64).sqrt()).exp()).collect();
            let sum: f64 = exps.iter().sum();
            let probs: Vec<f64> = exps.iter().map(|e| e / sum).collect();
            let d_probs: Vec<f64> = (0..=i).map(|j| dot(d_out, i, v, j)).collect();
            let mean: f64 = probs.iter().zip(&d_probs).map(|(p, dp)| p * dp).sum();
            for j in 0..=i {
                let d_score = probs[j] * (d_probs[j] - mean) / (d as f64).sqrt();
                for c in 0..d {
                    results[0][i * d + c] += probs[j] * f64::from(v[j * d + c]);
                    results[1][i * d + c] += d_score * f64::from(k[j * d + c]);
                    results[2][j * d + c] += d_score * f64::from(q[i * d + c]);
                    results[3][j * d + c] += probs[j] * f64::from(d_out[i * d + c]);
                }
            }
        }
        results
    }

    #[test]
    fn results_and_gradients_on_every_kind_of_processor() {
        let (batch, heads) = (2, 3);
        for (t, d) in [(1, 16), (17, 32), (48, 64), (70, 16), (131, 80)] {
            let sizes = Sizes { batch, heads, positions: t, head_dim: d };
            let len = batch * heads * t * d;
            // (B, T, H, D) in memory, the result (B, H, T, D).
            let mixed = |data: &mut Vec<f32>| Heads {
                start: data.as_mut_ptr(),
                batch: t * heads * d,
                head: d,
                position: heads * d,
            };
            let mut inputs: [Vec<f32>; 4] = [1, 2, 3, 4].map(|seed| numbers(len, seed));
            let mut first: Option<[Vec<f32>; 4]> = None;
            for cpu in Cpu::supported() {
                for num_threads in [1, 3] {
                    let mut results: [Vec<f32>; 4] = [1, 2, 3, 4].map(|_| vec![f32::NAN; len]);
                    let mut log_sums = vec![f32::NAN; batch * heads * t];
                    let out = Heads { start: results[0].as_mut_ptr(), batch: heads * t * d, head: t * d, position: d };
                    let [q, k, v, d_out] = inputs.each_mut().map(mixed);
                    let [_, d_q, d_k, d_v] = results.each_mut().map(mixed);
                    let forward = Attention { sizes, q, k, v, out, log_sums: log_sums.as_mut_ptr() };
                    // SAFETY: the vectors have these sizes.
                    unsafe {
                        attention(forward, cpu, num_threads);
                        attention_grads(AttentionGrads { forward, d_out, d_q, d_k, d_v }, cpu, num_threads);
                    }
                    for piece in 0..batch * heads {
                        let (b, h) = (piece / heads, piece % heads);
                        let head = |data: &Vec<f32>| -> Vec<f32> {
                            (0..t).flat_map(|i| data[((b * t + i) * heads + h) * d..][..d].to_vec()).collect()
                        };
                        let [q, k, v, d_out] = [0, 1, 2, 3].map(|i| head(&inputs[i]));
                        let got = [
                            results[0][piece * t * d..][..t * d].to_vec(),
                            head(&results[1]),
                            head(&results[2]),
                            head(&results[3]),
                        ];
                        for (got, wanted) in got.iter().zip(expected(t, d, &q, &k, &v, &d_out)) {
                            for (got, wanted) in got.iter().zip(wanted) {
                                assert!((f64::from(*got) - wanted).abs() < 2e-5, "{cpu:?} {t} {d}: {got} {wanted}");
                            }
                        }
                    }
                    assert!(*first.get_or_insert(results.clone()) == results, "{cpu:?}: other bits");
                }
            }
        }
    }
}
