//! Weight matrices, packed for products with few or many rows, and the product itself.
//!
//! A product is y = x W^T: rows x (M, n_in), weights W (n_out, n_in), results y (M, n_out). The outputs are cut into
//! panels of 64. A panel is one contiguous piece of memory in the order in which the product reads it, n_in first:
//!
//! ```text
//! f32:   [panel][k][64]
//! bf16:  [panel][half][k / 32][2][16][16][2]: tiles of 16 pairs of inputs and 16 outputs, two beside each other
//! int8:  [panel][half][k][32]
//! ```
//!
//! Every output is summed in one order, whatever the number of rows, the number of threads and the processor: so a row
//! gets the same bits in every company.
//!
//! - float32: one chain of fused multiply-adds over k = 0, 1, 2, ...
//! - bfloat16 and int8: the rows are rounded to bfloat16. Of each 32 inputs, those with even k and those with odd k make
//!   a chain of fused multiply-adds each; both are added, then this to the sum so far. Results below 2^-126 count as
//!   zero. That is what the AMX instruction does (Intel's manual, TDPBF16PS), so few rows, which read the weights faster
//!   with AVX-512, and many rows, for which AMX is faster, get the same bits. Without AMX it costs next to nothing. (On
//!   ARM, results are compared with 2^-126 before they are rounded; on other processors, those below are kept.)

#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::buffer::Buffer;
use crate::cpu::Kernel;
use crate::lanes::{Lanes, LANES};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::arch::asm;
#[cfg(target_arch = "x86_64")]
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU32, Ordering};

/// Outputs of a panel.
pub const PANEL: usize = 64;
const VECTORS: usize = PANEL / LANES;
/// Most rows that a product advances at once: 6 rows of 4 vectors, and the weights, fill the 32 registers of AVX-512.
const MAX_ROWS: usize = 6;
/// Outputs of half a panel: two tiles.
pub const HALF: usize = PANEL / 2;
/// Inputs of a tile of weights. The inputs of bfloat16 and int8 matrices are padded with zeros to a multiple of it.
pub const TILE_INPUTS: usize = 32;
/// Weights of a tile: 32 inputs of 16 outputs.
pub const TILE: usize = TILE_INPUTS * LANES;
/// Inputs whose weights AMX multiplies with all rows before it goes on: 16 KB of half a panel.
#[cfg(target_arch = "x86_64")]
const AMX_INPUTS: usize = 256;
/// Rows whose sums AMX computes together.
#[cfg(target_arch = "x86_64")]
const AMX_ROWS: usize = 128;
/// Bytes of weights that are fetched ahead.
const PREFETCH: usize = 4096;

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

/// The rows of a product and its results, both row by row.
#[derive(Clone, Copy)]
pub struct Rows {
    pub x: *mut f32,
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
            Format::Int8 => Packed::Int8(Buffer::zeroed(n_panels * padded * PANEL), Buffer::zeroed(n_panels * PANEL)),
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

    /// The packed weights, panel after panel.
    pub fn bytes(&self) -> &[u8] {
        let (start, len): (*const u8, usize) = match &self.packed {
            Packed::F32(weights) => (weights.as_ptr().cast(), 4 * weights.len()),
            Packed::Bf16(weights) => (weights.as_ptr().cast(), 2 * weights.len()),
            Packed::Int8(weights, _) => (weights.as_ptr().cast(), weights.len()),
        };
        // SAFETY: these are the bytes of numbers, which the matrix owns.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// True if the product rounds its rows to bfloat16: weights in bfloat16 and int8.
    pub fn rounds_rows(&self) -> bool {
        !matches!(self.packed, Packed::F32(_))
    }

    /// Number of inputs, padded to whole tiles.
    fn padded(&self) -> usize {
        self.n_in.next_multiple_of(TILE_INPUTS)
    }

    /// Index of the first weight of half a panel, that with the given output of the panel, from input `k` on (a multiple
    /// of 32). Of bfloat16 and int8 weights.
    #[inline(always)]
    fn start_of(&self, panel: usize, output: usize, k: usize) -> usize {
        (2 * panel + output / HALF) * HALF * self.padded() + k * HALF
    }

    /// Compute the outputs of one panel for all rows.
    ///
    /// If the product rounds its rows, they are given rounded, as float32, and padded with zeros to a multiple of
    /// `TILE_INPUTS` columns.
    ///
    /// # Safety
    /// The processor supports `L`, `rows` points to `count` rows of enough elements, and no other thread uses the
    /// results of this panel.
    #[inline(always)]
    pub unsafe fn product<L: Lanes>(&self, panel: usize, rows: Rows, store: Store) {
        let max_rows = match (&self.packed, L::VECTORS) {
            (Packed::F32(_), _) | (_, VECTORS) => MAX_ROWS,
            _ => MAX_ROWS / 2, // two sums of each output: half as many rows in the registers
        };
        let mut row = 0;
        while row < rows.count {
            let count = max_rows.min(rows.count - row);
            let group = Rows { x: rows.x.add(row * rows.x_stride), y: rows.y.add(row * rows.y_stride), count, ..rows };
            match count {
                1 => self.product_of::<L, 1>(panel, group, store),
                2 => self.product_of::<L, 2>(panel, group, store),
                3 => self.product_of::<L, 3>(panel, group, store),
                4 => self.product_of::<L, 4>(panel, group, store),
                5 => self.product_of::<L, 5>(panel, group, store),
                _ => self.product_of::<L, MAX_ROWS>(panel, group, store),
            }
            row += count;
        }
    }

    /// Compute the outputs of one panel for `ROWS` rows: as many vectors of it at once as the registers hold. The sums
    /// do not depend on it.
    #[inline(always)]
    unsafe fn product_of<L: Lanes, const ROWS: usize>(&self, panel: usize, rows: Rows, store: Store) {
        let is_wide = L::VECTORS == VECTORS;
        match &self.packed {
            Packed::F32(_) if is_wide || ROWS == 1 => self.product_by::<L, ROWS, VECTORS>(panel, rows, store),
            Packed::F32(_) => self.product_by::<L, ROWS, 1>(panel, rows, store),
            _ if is_wide || ROWS == 1 => self.product_by::<L, ROWS, 2>(panel, rows, store),
            _ => self.product_by::<L, ROWS, 1>(panel, rows, store),
        }
    }

    #[inline(always)]
    unsafe fn product_by<L: Lanes, const ROWS: usize, const N: usize>(&self, panel: usize, rows: Rows, store: Store) {
        let n_valid = PANEL.min(self.n_out - panel * PANEL);
        for first in (0..n_valid).step_by(N * LANES) {
            let (sums, scales): ([[L; N]; ROWS], _) = match &self.packed {
                Packed::F32(weights) => {
                    let weights = weights.as_ptr().add(panel * self.n_in * PANEL + first);
                    (sums_f32(rows.x, rows.x_stride, self.n_in, weights), None)
                }
                Packed::Bf16(weights) => {
                    let weights = Bf16Tiles(weights.as_ptr().add(self.start_of(panel, first, 0)), first % HALF / LANES);
                    (sums_of_tiles(rows.x, rows.x_stride, self.padded(), weights), None)
                }
                Packed::Int8(weights, scales) => {
                    let weights = Int8Tiles(weights.as_ptr().add(self.start_of(panel, first, 0)), first % HALF / LANES);
                    let scales = scales.as_ptr().add(panel * PANEL + first);
                    (sums_of_tiles(rows.x, rows.x_stride, self.padded(), weights), Some(scales))
                }
            };
            for (row, sums) in sums.iter().enumerate() {
                let to = rows.y.add(row * rows.y_stride + panel * PANEL + first);
                finish(*sums, scales, to, n_valid - first, store);
            }
        }
    }
}

/// Rows of activations for AMX, rounded to bfloat16, in tiles of 16 rows and 32 inputs: [row / 16][k / 32][16][32].
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct RowTiles {
    pub start: *mut u16,
    /// Inputs, padded with zeros to a multiple of 32.
    pub padded: usize,
}

#[cfg(target_arch = "x86_64")]
impl RowTiles {
    /// Number of elements for so many rows.
    pub fn len(count: usize, padded: usize) -> usize {
        count.next_multiple_of(amx::TILE_ROWS) * padded
    }

    /// The tile of a row and an input, both the first of theirs.
    #[inline(always)]
    unsafe fn tile(self, row: usize, k: usize) -> *mut u16 {
        self.start.add(row * self.padded + k * amx::TILE_ROWS)
    }

    /// Round a row of `width` numbers into its places.
    ///
    /// # Safety
    /// There is room for the row, and no other thread uses it.
    #[inline(always)]
    pub unsafe fn put(self, row: usize, x: *const f32) {
        let (first, row) = (row / amx::TILE_ROWS * amx::TILE_ROWS, row % amx::TILE_ROWS);
        for k in (0..self.padded).step_by(TILE_INPUTS) {
            let to = self.tile(first, k).add(row * TILE_INPUTS);
            for i in 0..TILE_INPUTS {
                *to.add(i) = to_bf16(*x.add(k + i));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[repr(align(64))]
#[allow(dead_code)] // used through a pointer
struct Aligned<T>(T);

#[cfg(target_arch = "x86_64")]
impl Matrix {
    /// Compute the outputs of one panel for all rows, with AMX. `rows.x` is not used.
    ///
    /// # Safety
    /// As for `product`; the processor has AMX, and the product rounds its rows.
    #[inline(always)]
    pub unsafe fn product_amx<L: Lanes>(&self, panel: usize, x: RowTiles, rows: Rows, store: Store) {
        let n_valid = PANEL.min(self.n_out - panel * PANEL);
        // Not filled with zeros: for few rows that would take longer than the product.
        let mut sums = MaybeUninit::<Aligned<[[f32; HALF]; AMX_ROWS]>>::uninit();
        let mut unpacked = MaybeUninit::<Aligned<[u16; AMX_INPUTS * HALF]>>::uninit();
        let sums = sums.as_mut_ptr().cast::<[f32; HALF]>();
        let unpacked = unpacked.as_mut_ptr().cast::<u16>();
        let mut configured = 0;
        for first in (0..rows.count).step_by(AMX_ROWS) {
            let count = AMX_ROWS.min(rows.count - first);
            for output in (0..n_valid).step_by(HALF) {
                sums.write_bytes(0, count);
                for k in (0..x.padded).step_by(AMX_INPUTS) {
                    let n_in = AMX_INPUTS.min(x.padded - k);
                    let (weights, mut next) = self.amx_weights::<L>(panel, output, k, n_in, unpacked);
                    let n_next = n_in * HALF * self.bytes_per_weight() / count.div_ceil(amx::MAX_ROWS);
                    for row in (0..count).step_by(amx::MAX_ROWS) {
                        let n_rows = amx::MAX_ROWS.min(count - row);
                        if configured != n_rows {
                            amx::configure(n_rows);
                            configured = n_rows;
                        }
                        let is_many = n_rows > amx::TILE_ROWS;
                        let second = if is_many { row + amx::TILE_ROWS } else { row };
                        let block = amx::Block {
                            x: [x.tile(first + row, k), x.tile(first + second, k)],
                            weights,
                            steps: n_in / TILE_INPUTS,
                            sums: sums.add(row),
                            next,
                            lines: (n_next / amx::LINE).div_ceil(n_in / TILE_INPUTS),
                        };
                        next = next.wrapping_add(n_next);
                        if is_many {
                            amx::multiply_many(block);
                        } else {
                            amx::multiply_few(block);
                        }
                    }
                }
                for row in 0..count {
                    let to = rows.y.add((first + row) * rows.y_stride + panel * PANEL + output);
                    let sums = sums.add(row).cast::<f32>();
                    let vectors = [L::load(sums), L::load(sums.add(LANES))];
                    finish(vectors, self.scales(panel, output), to, n_valid - output, store);
                }
            }
        }
        amx::release();
    }

    /// Weights of half a panel and `n_in` inputs from `k` on, in bfloat16, and where their bytes end: what follows is
    /// needed next. Those of an int8 matrix are converted, exactly, into `unpacked`.
    #[inline(always)]
    unsafe fn amx_weights<L: Lanes>(
        &self,
        panel: usize,
        output: usize,
        k: usize,
        n_in: usize,
        unpacked: *mut u16,
    ) -> (*const u16, *const u8) {
        let start = self.start_of(panel, output, k);
        match &self.packed {
            Packed::F32(_) => unreachable!(),
            Packed::Bf16(weights) => {
                let weights = weights.as_ptr().add(start);
                (weights, weights.add(n_in * HALF).cast())
            }
            Packed::Int8(weights, _) => {
                let weights = weights.as_ptr().add(start);
                for k in (0..n_in).step_by(2) {
                    for vector in 0..2 {
                        let from = weights.add(k * HALF + vector * LANES);
                        let tile = k / TILE_INPUTS * 2 + vector;
                        let to = unpacked.add(tile * TILE + k % TILE_INPUTS * LANES);
                        L::load_i8(from).store_bf16_pairs(L::load_i8(from.add(HALF)), to);
                    }
                }
                (unpacked, weights.add(n_in * HALF).cast())
            }
        }
    }

    fn bytes_per_weight(&self) -> usize {
        match &self.packed {
            Packed::F32(_) => 4,
            Packed::Bf16(_) => 2,
            Packed::Int8(..) => 1,
        }
    }

    fn scales(&self, panel: usize, output: usize) -> Option<*const f32> {
        match &self.packed {
            Packed::Int8(_, scales) => Some(scales[panel * PANEL + output..].as_ptr()),
            _ => None,
        }
    }
}

impl Packed {
    /// Put the weights of one output, `weight(k)` for each input k, into their places.
    fn put(&mut self, output: usize, n_in: usize, weight: impl Fn(usize) -> f32) {
        let (panel, column) = (output / PANEL, output % PANEL);
        let start = output / HALF * HALF * n_in.next_multiple_of(TILE_INPUTS); // of half a panel
        match self {
            Packed::F32(packed) => {
                for k in 0..n_in {
                    packed[(panel * n_in + k) * PANEL + column] = weight(k);
                }
            }
            Packed::Bf16(packed) => {
                for k in 0..n_in {
                    let tile = start + k / TILE_INPUTS * 2 * TILE + column % HALF / LANES * TILE;
                    let pair = k % TILE_INPUTS / 2 * LANES + column % LANES;
                    packed[tile + 2 * pair + k % 2] = to_bf16(weight(k));
                }
            }
            Packed::Int8(packed, scales) => {
                let largest = (0..n_in).map(|k| weight(k).abs()).fold(0.0, f32::max);
                let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
                scales[output] = scale;
                for k in 0..n_in {
                    packed[start + k * HALF + column % HALF] = (weight(k) / scale).round_ties_even() as i8;
                }
            }
        }
    }
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

/// Begin to load the cache line of an address, which need not be valid, into the second cache.
#[inline(always)]
pub fn prefetch_for_later<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on the processor's cache, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast())
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

/// Weights in tiles of 32 inputs: those of a pair of inputs, as float32.
trait Tiles: Copy {
    /// Load the weights of inputs k and k + 1 (`k` is even) of 16 outputs, `vector` times 16 from the first.
    unsafe fn load<L: Lanes>(self, k: usize, vector: usize) -> (L, L);
}

/// bfloat16 weights of half a panel, from the given vector of outputs on.
#[derive(Clone, Copy)]
struct Bf16Tiles(*const u16, usize);

impl Tiles for Bf16Tiles {
    #[inline(always)]
    unsafe fn load<L: Lanes>(self, k: usize, vector: usize) -> (L, L) {
        let tile = self.0.add(k / TILE_INPUTS * 2 * TILE + (self.1 + vector) * TILE);
        let from = tile.add(k % TILE_INPUTS * LANES);
        prefetch(from.wrapping_byte_add(PREFETCH));
        L::load_bf16_pairs(from)
    }
}

/// int8 weights of half a panel, from the given vector of outputs on.
#[derive(Clone, Copy)]
struct Int8Tiles(*const i8, usize);

impl Tiles for Int8Tiles {
    #[inline(always)]
    unsafe fn load<L: Lanes>(self, k: usize, vector: usize) -> (L, L) {
        let from = self.0.add(k * HALF + (self.1 + vector) * LANES);
        if vector == 0 {
            prefetch(from.wrapping_byte_add(PREFETCH));
        }
        (L::load_i8(from), L::load_i8(from.add(HALF)))
    }
}

/// Sums of bfloat16 rows with weights in tiles, in the order of AMX.
#[inline(always)]
unsafe fn sums_of_tiles<L: Lanes, W: Tiles, const ROWS: usize, const N: usize>(
    x: *const f32,
    x_stride: usize,
    n_in: usize,
    weights: W,
) -> [[L; N]; ROWS] {
    let mut sums = [[L::splat(0.0); N]; ROWS];
    let mode = flush_subnormals();
    for first in (0..n_in).step_by(TILE_INPUTS) {
        let mut even = [[L::splat(0.0); N]; ROWS];
        let mut odd = [[L::splat(0.0); N]; ROWS];
        for k in (first..first + TILE_INPUTS).step_by(2) {
            let mut w = [(L::splat(0.0), L::splat(0.0)); N];
            for (vector, w) in w.iter_mut().enumerate() {
                *w = weights.load(k, vector);
            }
            for row in 0..ROWS {
                let x = x.add(row * x_stride + k);
                let (x0, x1) = (L::splat(*x), L::splat(*x.add(1)));
                for vector in 0..N {
                    even[row][vector] = w[vector].0.fma(x0, even[row][vector]);
                    odd[row][vector] = w[vector].1.fma(x1, odd[row][vector]);
                }
            }
        }
        for row in 0..ROWS {
            for vector in 0..N {
                sums[row][vector] = sums[row][vector].add(even[row][vector].add(odd[row][vector]));
            }
        }
    }
    restore_subnormals(mode, &mut sums);
    sums
}

/// Let results below 2^-126 and such operands count as zero, in this thread. Returns what `restore_subnormals` needs.
#[inline(always)]
unsafe fn flush_subnormals() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        const FLUSH_RESULTS: u32 = 1 << 15;
        const FLUSH_OPERANDS: u32 = 1 << 6;
        let mut mode = 0_u32;
        asm!("stmxcsr [{mode}]", mode = in(reg) &mut mode, options(nostack));
        let flushing = mode | FLUSH_RESULTS | FLUSH_OPERANDS;
        asm!("ldmxcsr [{mode}]", mode = in(reg) &flushing, options(nostack));
        u64::from(mode)
    }
    #[cfg(target_arch = "aarch64")]
    {
        const FLUSH: u64 = 1 << 24;
        let mode: u64;
        asm!("mrs {mode}, fpcr", mode = out(reg) mode, options(nostack));
        asm!("msr fpcr, {mode}", mode = in(reg) mode | FLUSH, options(nostack));
        mode
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    0
}

/// Undo `flush_subnormals`. `results` are computed before: the compiler knows nothing of the mode, but that they are read.
#[inline(always)]
unsafe fn restore_subnormals<T>(mode: u64, results: &mut T) {
    #[cfg(target_arch = "x86_64")]
    {
        let mode = mode as u32;
        asm!("/* {results} */", "ldmxcsr [{mode}]", mode = in(reg) &mode, results = in(reg) results, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    asm!("/* {results} */", "msr fpcr, {mode}", mode = in(reg) mode, results = in(reg) results, options(nostack));
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = (mode, results);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;

    struct Random(u64);

    impl Random {
        /// A bfloat16 number of magnitude below 2^e, e drawn from a range.
        fn number(&mut self, exponents: std::ops::Range<i32>) -> f32 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let fraction = (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0;
            let exponent = exponents.start + ((self.0 >> 8) as u32 % exponents.len() as u32) as i32;
            from_bf16(to_bf16((f64::from(fraction) * 2.0_f64.powi(exponent)) as f32))
        }
    }

    struct Panel<'a>(&'a Matrix, Rows);

    impl Kernel for Panel<'_> {
        #[inline(always)]
        unsafe fn run<L: Lanes>(&self, panel: usize, _: usize) {
            self.0.product::<L>(panel, self.1, Store::Plain);
        }
    }

    fn flushed(x: f32) -> f32 {
        if x.abs() < f32::MIN_POSITIVE {
            0.0_f32.copysign(x)
        } else {
            x
        }
    }

    /// A sum in the order that the module's documentation gives.
    fn expected(x: &[f32], weights: &[f32], format: Format) -> f32 {
        if format == Format::F32 {
            return x.iter().zip(weights).fold(0.0, |sum, (x, w)| w.mul_add(*x, sum));
        }
        let mut sum = 0.0;
        for (x, weights) in x.chunks(TILE_INPUTS).zip(weights.chunks(TILE_INPUTS)) {
            let mut parts = [0.0, 0.0];
            for (k, (x, w)) in x.iter().zip(weights).enumerate() {
                parts[k % 2] = flushed(flushed(*w).mul_add(flushed(*x), parts[k % 2]));
            }
            sum = flushed(sum + flushed(parts[0] + parts[1]));
        }
        sum
    }

    fn check(cpu: Cpu, format: Format, (n_in, n_out, count): (usize, usize, usize), exponents: std::ops::Range<i32>) {
        let mut random = Random((n_in * n_out * count) as u64);
        let weights: Vec<f32> = (0..n_in * n_out).map(|_| random.number(exponents.clone())).collect();
        let stride = n_in.next_multiple_of(TILE_INPUTS);
        let mut x = vec![0.0; count * stride];
        for row in 0..count {
            x[row * stride..][..n_in].fill_with(|| random.number(exponents.clone()));
        }
        let matrix = Matrix::pack(&[Weights::F32(&weights)], n_in, format);
        let mut y = vec![0.0; count * n_out];
        let rows = Rows { x: x.as_mut_ptr(), x_stride: stride, y: y.as_mut_ptr(), y_stride: n_out, count };
        for panel in 0..matrix.n_panels() {
            // SAFETY: the instructions are supported, and the rows are as long as their strides.
            unsafe { cpu.run(&Panel(&matrix, rows), panel, 0) };
        }
        for (row, y) in y.chunks(n_out).enumerate() {
            for (output, y) in y.iter().enumerate() {
                let mut weights = weights[output * n_in..][..n_in].to_vec();
                let mut scale = 1.0;
                if format == Format::Int8 {
                    scale = weights.iter().fold(0.0_f32, |most, w| most.max(w.abs())) / 127.0;
                    weights.iter_mut().for_each(|w| *w = (*w / scale).round_ties_even());
                }
                let sum = expected(&x[row * stride..][..n_in], &weights, format) * scale;
                assert_eq!(y.to_bits(), sum.to_bits(), "{cpu:?} {format:?} {n_in} {n_out} {count}: {row}, {output}");
            }
        }
    }

    #[test]
    fn sums_have_the_documented_order() {
        for cpu in Cpu::supported() {
            for format in [Format::F32, Format::Bf16, Format::Int8] {
                for (n_in, n_out) in [(2, 1), (30, 64), (32, 65), (100, 150), (320, 33)] {
                    for count in [1, 2, 3, 4, 5, 6, 7, 13] {
                        check(cpu, format, (n_in, n_out, count), -3..3);
                    }
                }
            }
        }
    }

    #[test]
    fn results_below_the_normal_range_count_as_zero() {
        for cpu in Cpu::supported().into_iter().filter(|cpu| *cpu != Cpu::Portable) {
            for count in [1, 2, 6] {
                check(cpu, Format::Bf16, (96, 64, count), -70..-58);
            }
            // The mode of the thread is as before.
            let small = std::hint::black_box(f32::MIN_POSITIVE) * std::hint::black_box(0.5);
            assert!(small > 0.0);
        }
    }
}
