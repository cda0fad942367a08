//! Weight matrices, packed for products with few or many rows, and the product itself.
//!
//! A product is y = x W^T: rows x (M, n_in), weights W (n_out, n_in), results y (M, n_out). The outputs are cut into
//! panels of 64. A panel is one contiguous piece of memory in the order in which the product reads it, n_in first:
//!
//! ```text
//! f32:   [panel][k][64]           bf16: [panel][k / 2][4][16][2]: pairs along k           int8: [panel][k][64]
//! ```
//!
//! Every output is one chain of fused multiply-adds over k = 0, 1, 2, ..., whatever the number of rows, the number of
//! threads and the processor: so a row gets the same bits in every company. With AMX, products of bfloat16 weights have
//! another order (`amx.rs`), which is also one and the same for any number of rows.

#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::buffer::Buffer;
use crate::cpu::Kernel;
use crate::lanes::{Lanes, LANES};
use std::sync::atomic::{AtomicU32, Ordering};

/// Outputs of a panel.
pub const PANEL: usize = 64;
const VECTORS: usize = PANEL / LANES;
/// Most rows that a product advances at once: 6 rows of 4 vectors, and the weights, fill the 32 registers of AVX-512.
const MAX_ROWS: usize = 6;
/// Inputs of a product of AMX tiles. The inputs of a packed bfloat16 matrix are padded with zeros to a multiple of it.
pub const TILE_INPUTS: usize = 32;
/// Inputs whose weights AMX multiplies with all rows before it goes on: 8 KB of half a panel.
#[cfg(target_arch = "x86_64")]
const AMX_INPUTS: usize = 128;
/// Rows whose sums AMX computes together.
#[cfg(target_arch = "x86_64")]
const AMX_ROWS: usize = 128;
/// Bytes of weights that are fetched ahead.
const PREFETCH: usize = 2048;

/// Weights as they are given, (n_out, n_in), row by row.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

impl Weights<'_> {
    /// Number of weights.
    pub fn count(&self) -> usize {
        match self {
            Weights::F32(weights) => weights.len(),
            Weights::Bf16(weights) => weights.len(),
        }
    }

    fn get(&self, index: usize) -> f32 {
        match self {
            Weights::F32(weights) => weights[index],
            Weights::Bf16(weights) => from_bf16(weights[index]),
        }
    }
}

/// Number format of packed weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    F32,
    Bf16,
    /// Whole numbers from -127 to 127, times a scale for each output.
    Int8,
}

enum Packed {
    F32(Buffer<f32>),
    Bf16(Buffer<u16>),
    Int8(Buffer<i8>, Buffer<f32>), // and the scale of each output
}

/// A packed weight matrix.
pub struct Matrix {
    pub n_out: usize,
    pub n_in: usize,
    packed: Packed,
}

/// How the results of a product are stored.
#[derive(Clone, Copy)]
pub enum Store {
    /// y
    Plain,
    /// relu(y)^2
    ReluSquared,
    /// previous value + y
    Add,
    /// cap tanh(y / cap)
    Softcap(f32),
}

/// The rows of a product and its results. Both are row by row; `x` has `n_in` columns, rounded up to an even number.
#[derive(Clone, Copy)]
pub struct Rows {
    pub x: *const f32,
    pub x_stride: usize,
    pub y: *mut f32,
    pub y_stride: usize,
    pub count: usize,
}

/// The sum of a large array, read as a product reads its weights: for a measurement of the machine's bandwidth.
pub struct Total<'a> {
    numbers: &'a [f32],
    pub sums: Vec<AtomicU32>, // of each piece, as bits
}

impl<'a> Total<'a> {
    const PIECE: usize = 1 << 16;

    /// The sum of these numbers, to be computed.
    pub fn new(numbers: &'a [f32]) -> Total<'a> {
        Total { numbers, sums: (0..numbers.len() / Self::PIECE).map(|_| AtomicU32::new(0)).collect() }
    }
}

impl Kernel for Total<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, piece: usize, _: usize) {
        let from = self.numbers[piece * Self::PIECE..].as_ptr();
        let mut sums = [L::splat(0.0); VECTORS];
        for k in 0..Self::PIECE / PANEL {
            for (vector, sum) in sums.iter_mut().enumerate() {
                let at = from.add(k * PANEL + vector * LANES);
                prefetch(at.wrapping_byte_add(PREFETCH));
                *sum = L::load(at).add(*sum);
            }
        }
        let total = sums[0].add(sums[1]).add(sums[2]).add(sums[3]).sum();
        self.sums[piece].store(total.to_bits(), Ordering::Relaxed);
    }
}

/// The bfloat16 nearest to `x`; of two equally near, the even one. NaN stays NaN.
#[inline(always)]
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The number that a bfloat16 stands for.
#[inline(always)]
pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

impl Matrix {
    /// Pack several matrices with the same number of inputs, one below the other.
    pub fn pack(parts: &[Weights], n_in: usize, format: Format) -> Matrix {
        let n_out = parts.iter().map(Weights::count).sum::<usize>() / n_in;
        let n_panels = n_out.div_ceil(PANEL);
        let padded = n_in.next_multiple_of(TILE_INPUTS);
        let mut packed = match format {
            Format::F32 => Packed::F32(Buffer::zeroed(n_panels * n_in * PANEL)),
            Format::Bf16 => Packed::Bf16(Buffer::zeroed(n_panels * padded * PANEL)),
            Format::Int8 => Packed::Int8(Buffer::zeroed(n_panels * n_in * PANEL), Buffer::zeroed(n_panels * PANEL)),
        };
        let mut output = 0;
        for part in parts {
            for row in 0..part.count() / n_in {
                packed.put(output, n_in, |k| part.get(row * n_in + k));
                output += 1;
            }
        }
        Matrix { n_out, n_in, packed }
    }

    /// Number of panels, the pieces of a product that are computed by one thread each.
    pub fn n_panels(&self) -> usize {
        self.n_out.div_ceil(PANEL)
    }

    /// Bytes that a product reads.
    pub fn n_bytes(&self) -> usize {
        match &self.packed {
            Packed::F32(weights) => 4 * weights.len(),
            Packed::Bf16(weights) => 2 * weights.len(),
            Packed::Int8(weights, scales) => weights.len() + 4 * scales.len(),
        }
    }

    /// Compute the outputs of one panel for all rows.
    ///
    /// # Safety
    /// The processor supports `L`, `rows` points to `count` rows of enough elements, and no other thread uses the
    /// results of this panel.
    #[inline(always)]
    pub unsafe fn product<L: Lanes>(&self, panel: usize, rows: Rows, store: Store) {
        let scales = match &self.packed {
            Packed::Int8(_, scales) => Some(scales.as_ptr().add(panel * PANEL)),
            _ => None,
        };
        let n_valid = PANEL.min(self.n_out - panel * PANEL);
        let mut row = 0;
        while row < rows.count {
            let count = MAX_ROWS.min(rows.count - row);
            // The vectors of a panel are computed together where registers suffice; their sums do not depend on it.
            let step = if count == 1 { VECTORS } else { L::VECTORS };
            for vector in (0..VECTORS).step_by(step) {
                let to = rows.y.add(row * rows.y_stride + panel * PANEL + vector * LANES);
                let n_valid = n_valid.saturating_sub(vector * LANES).min(step * LANES);
                if n_valid == 0 {
                    break;
                }
                let x = rows.x.add(row * rows.x_stride);
                macro_rules! compute {
                    ($rows:literal, $vectors:literal) => {{
                        let sums: [[L; $vectors]; $rows] = match &self.packed {
                            Packed::F32(weights) => {
                                sums_f32(x, rows.x_stride, self.n_in, at(weights, panel, self.n_in, vector))
                            }
                            Packed::Bf16(weights) => {
                                let padded = self.n_in.next_multiple_of(TILE_INPUTS);
                                let even = self.n_in.next_multiple_of(2);
                                sums_bf16(x, rows.x_stride, even, at(weights, panel, padded, 2 * vector))
                            }
                            Packed::Int8(weights, _) => {
                                sums_int8(x, rows.x_stride, self.n_in, at(weights, panel, self.n_in, vector))
                            }
                        };
                        for (index, sums) in sums.iter().enumerate() {
                            let scales = scales.map(|scales| scales.add(vector * LANES));
                            finish(*sums, scales, to.add(index * rows.y_stride), n_valid, store);
                        }
                    }};
                }
                match (count, step) {
                    (1, _) => compute!(1, 4),
                    (2, 4) => compute!(2, 4),
                    (3, 4) => compute!(3, 4),
                    (4, 4) => compute!(4, 4),
                    (5, 4) => compute!(5, 4),
                    (_, 4) => compute!(6, 4),
                    (2, _) => compute!(2, 1),
                    (3, _) => compute!(3, 1),
                    (4, _) => compute!(4, 1),
                    (5, _) => compute!(5, 1),
                    (_, _) => compute!(6, 1),
                }
            }
            row += count;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[repr(align(64))]
struct Sums([[f32; PANEL]; AMX_ROWS]);

#[cfg(target_arch = "x86_64")]
impl Matrix {
    /// True for weights whose products AMX computes.
    pub fn is_bf16(&self) -> bool {
        matches!(self.packed, Packed::Bf16(_))
    }

    /// Compute the outputs of one panel for all rows, with AMX. `x` are the rows in bfloat16, padded with zeros to a
    /// multiple of `TILE_INPUTS` columns; `rows.x` is not used.
    ///
    /// # Safety
    /// As for `product`; the processor has AMX, and the weights are bfloat16.
    #[inline(always)]
    pub unsafe fn product_amx<L: Lanes>(&self, panel: usize, x: *const u16, rows: Rows, store: Store) {
        let Packed::Bf16(weights) = &self.packed else { unreachable!() };
        let padded = self.n_in.next_multiple_of(TILE_INPUTS);
        let n_valid = PANEL.min(self.n_out - panel * PANEL);
        let weights = at(weights, panel, padded, 0);
        let mut configured = 0;
        for first in (0..rows.count).step_by(AMX_ROWS) {
            let count = AMX_ROWS.min(rows.count - first);
            let mut sums = Sums([[0.0; PANEL]; AMX_ROWS]);
            // With more rows than are multiplied at once, half a panel of some inputs stays in the nearest cache for all.
            let step = if count > amx::MAX_ROWS { AMX_INPUTS } else { padded };
            let halves = if count > amx::TILE_ROWS { 2 } else { 1 };
            for half in 0..halves {
                for k in (0..padded).step_by(step) {
                    for row in (0..count).step_by(amx::MAX_ROWS) {
                        let block = amx::Block {
                            x: x.add((first + row) * padded + k),
                            x_stride: padded,
                            n_rows: amx::MAX_ROWS.min(count - row),
                            n_in: step.min(padded - k),
                            weights: weights.add(k * PANEL),
                            sums: sums.0.as_mut_ptr().add(row),
                        };
                        if configured != block.n_rows {
                            amx::configure(block.n_rows);
                            configured = block.n_rows;
                        }
                        if block.n_rows > amx::TILE_ROWS {
                            amx::multiply_many(block, half);
                        } else if half == 0 {
                            amx::multiply_few(block); // both halves
                        }
                    }
                }
            }
            for (row, sums) in sums.0.iter().enumerate().take(count) {
                let to = rows.y.add((first + row) * rows.y_stride + panel * PANEL);
                let mut vectors = [L::splat(0.0); VECTORS];
                for (index, vector) in vectors.iter_mut().enumerate() {
                    *vector = L::load(sums.as_ptr().add(index * LANES));
                }
                finish(vectors, None, to, n_valid, store);
            }
        }
        amx::release();
    }
}

impl Packed {
    /// Put the weights of one output, `weight(k)` for each input k, into their places.
    fn put(&mut self, output: usize, n_in: usize, weight: impl Fn(usize) -> f32) {
        let (panel, column) = (output / PANEL, output % PANEL);
        match self {
            Packed::F32(packed) => {
                for k in 0..n_in {
                    packed[(panel * n_in + k) * PANEL + column] = weight(k);
                }
            }
            Packed::Bf16(packed) => {
                for k in 0..n_in {
                    let pair = (panel * n_in.next_multiple_of(TILE_INPUTS) / 2 + k / 2) * PANEL + column;
                    packed[2 * pair + k % 2] = to_bf16(weight(k));
                }
            }
            Packed::Int8(packed, scales) => {
                let largest = (0..n_in).map(|k| weight(k).abs()).fold(0.0, f32::max);
                let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
                scales[output] = scale;
                for k in 0..n_in {
                    packed[(panel * n_in + k) * PANEL + column] = (weight(k) / scale).round_ties_even() as i8;
                }
            }
        }
    }
}

/// The first weight that the product of a panel reads, from the given vector of 16 elements of each k on.
#[inline(always)]
unsafe fn at<T: Copy>(weights: &Buffer<T>, panel: usize, n_in: usize, vector: usize) -> *const T {
    weights.as_ptr().add(panel * n_in * PANEL + vector * LANES)
}

/// Begin to load the cache line of an address, which need not be valid.
#[inline(always)]
pub fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on the processor's cache, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[inline(always)]
unsafe fn sums_f32<L: Lanes, const ROWS: usize, const N: usize>(
    x: *const f32,
    x_stride: usize,
    n_in: usize,
    weights: *const f32,
) -> [[L; N]; ROWS] {
    let mut sums = [[L::splat(0.0); N]; ROWS];
    for k in 0..n_in {
        let from = weights.add(k * PANEL);
        let mut w = [L::splat(0.0); N];
        for (vector, w) in w.iter_mut().enumerate() {
            *w = L::load(from.add(vector * LANES));
            prefetch(from.add(vector * LANES).wrapping_byte_add(PREFETCH));
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = L::splat(*x.add(row * x_stride + k));
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = w.fma(x, *sum);
            }
        }
    }
    sums
}

#[inline(always)]
unsafe fn sums_bf16<L: Lanes, const ROWS: usize, const N: usize>(
    x: *const f32,
    x_stride: usize,
    n_in: usize,
    weights: *const u16,
) -> [[L; N]; ROWS] {
    let mut sums = [[L::splat(0.0); N]; ROWS];
    for k in (0..n_in).step_by(2) {
        let from = weights.add(k * PANEL);
        let mut w = [(L::splat(0.0), L::splat(0.0)); N];
        for (vector, w) in w.iter_mut().enumerate() {
            *w = L::load_bf16_pairs(from.add(2 * vector * LANES));
            prefetch(from.add(2 * vector * LANES).wrapping_byte_add(PREFETCH));
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = x.add(row * x_stride + k);
            let (x0, x1) = (L::splat(*x), L::splat(*x.add(1)));
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = w.1.fma(x1, w.0.fma(x0, *sum));
            }
        }
    }
    sums
}

#[inline(always)]
unsafe fn sums_int8<L: Lanes, const ROWS: usize, const N: usize>(
    x: *const f32,
    x_stride: usize,
    n_in: usize,
    weights: *const i8,
) -> [[L; N]; ROWS] {
    let mut sums = [[L::splat(0.0); N]; ROWS];
    for k in 0..n_in {
        let from = weights.add(k * PANEL);
        let mut w = [L::splat(0.0); N];
        for (vector, w) in w.iter_mut().enumerate() {
            *w = L::load_i8(from.add(vector * LANES));
        }
        prefetch(from.wrapping_byte_add(PREFETCH));
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = L::splat(*x.add(row * x_stride + k));
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = w.fma(x, *sum);
            }
        }
    }
    sums
}

/// Store the sums of one row, the first `n_valid` of them.
#[inline(always)]
unsafe fn finish<L: Lanes, const N: usize>(
    sums: [L; N],
    scales: Option<*const f32>,
    to: *mut f32,
    n_valid: usize,
    store: Store,
) {
    for (vector, sum) in sums.into_iter().enumerate() {
        let first = vector * LANES;
        if first >= n_valid {
            return;
        }
        let is_whole = first + LANES <= n_valid;
        let to = to.add(first);
        let y = match scales {
            Some(scales) => sum.mul(L::load(scales.add(first))),
            None => sum,
        };
        let y = match store {
            Store::Plain => y,
            Store::ReluSquared => {
                let positive = L::splat(0.0).max(y);
                positive.mul(positive)
            }
            Store::Add if is_whole => y.add(L::load(to)),
            Store::Add => {
                let mut before = [0.0; LANES];
                std::ptr::copy_nonoverlapping(to, before.as_mut_ptr(), n_valid - first);
                y.add(L::load(before.as_ptr()))
            }
            Store::Softcap(cap) => y.div(L::splat(cap)).tanh().mul(L::splat(cap)),
        };
        if is_whole {
            y.store(to);
        } else {
            std::ptr::copy_nonoverlapping(y.to_array().as_ptr(), to, n_valid - first);
        }
    }
}
