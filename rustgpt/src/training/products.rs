//! Products of small float32 matrices, the pieces of attention.

use crate::lanes::{Lanes, LANES};

/// Rows that a product advances at once: with 4 vectors of each, and those of B, they fill the registers of AVX-512.
const ROWS: usize = 6;

/// The left factor A: element (m, k) is at `m * row + k * step`, so that it may stand transposed.
#[derive(Clone, Copy)]
pub struct Left {
    pub start: *const f32,
    pub row: usize,
    pub step: usize,
}

/// Rows of a matrix, each contiguous, `row` elements apart.
#[derive(Clone, Copy)]
pub struct Rows {
    pub start: *mut f32,
    pub row: usize,
}

impl Rows {
    /// The rows from `index` on.
    ///
    /// # Safety
    /// There are as many.
    pub unsafe fn from(self, index: usize) -> Rows {
        Rows { start: self.start.add(index * self.row), ..self }
    }
}

/// C (M, N) = A (M, K) B (K, N), or C += A B if `ADD`. N is a multiple of 16. Each element is one chain over k.
///
/// # Safety
/// The processor supports `L`, and the matrices have these sizes.
#[inline(always)]
pub unsafe fn product<L: Lanes, const ADD: bool>(a: Left, b: Rows, c: Rows, (m, n, k): (usize, usize, usize)) {
    debug_assert!(n % LANES == 0);
    let mut column = 0;
    while column < n {
        let is_wide = L::VECTORS == 4 && n - column >= 4 * LANES;
        let mut row = 0;
        while row < m {
            let a = Left { start: a.start.add(row * a.row), ..a };
            let b = Rows { start: b.start.add(column), ..b };
            let c = Rows { start: c.start.add(row * c.row + column), ..c };
            let rows = ROWS.min(m - row);
            match (is_wide, rows) {
                (true, 6) => tile::<L, ADD, 6, 4>(a, b, c, k),
                (true, 5) => tile::<L, ADD, 5, 4>(a, b, c, k),
                (true, 4) => tile::<L, ADD, 4, 4>(a, b, c, k),
                (true, 3) => tile::<L, ADD, 3, 4>(a, b, c, k),
                (true, 2) => tile::<L, ADD, 2, 4>(a, b, c, k),
                (true, _) => tile::<L, ADD, 1, 4>(a, b, c, k),
                (false, 6) => tile::<L, ADD, 6, 1>(a, b, c, k),
                (false, 5) => tile::<L, ADD, 5, 1>(a, b, c, k),
                (false, 4) => tile::<L, ADD, 4, 1>(a, b, c, k),
                (false, 3) => tile::<L, ADD, 3, 1>(a, b, c, k),
                (false, 2) => tile::<L, ADD, 2, 1>(a, b, c, k),
                (false, _) => tile::<L, ADD, 1, 1>(a, b, c, k),
            }
            row += rows;
        }
        column += if is_wide { 4 * LANES } else { LANES };
    }
}

/// `product` of M rows and N vectors of columns.
#[inline(always)]
unsafe fn tile<L: Lanes, const ADD: bool, const M: usize, const N: usize>(a: Left, b: Rows, c: Rows, k: usize) {
    let mut sums = [[L::splat(0.0); N]; M];
    if ADD {
        for (m, sums) in sums.iter_mut().enumerate() {
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = L::load(c.start.add(m * c.row + n * LANES));
            }
        }
    }
    for k in 0..k {
        let mut vectors = [L::splat(0.0); N];
        for (n, vector) in vectors.iter_mut().enumerate() {
            *vector = L::load(b.start.add(k * b.row + n * LANES));
        }
        for (m, sums) in sums.iter_mut().enumerate() {
            let factor = L::splat(*a.start.add(m * a.row + k * a.step));
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = factor.fma(vectors[n], *sum);
            }
        }
    }
    for (m, sums) in sums.iter().enumerate() {
        for (n, sum) in sums.iter().enumerate() {
            sum.store(c.start.add(m * c.row + n * LANES));
        }
    }
}
