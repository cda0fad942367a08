//! The terms of the loss that depend on all soft-capped logits (nanochat/layers/softcap_loss.py), in one pass over them.

use super::{threads, Element};
use crate::cpu::{Cpu, Kernel};
use crate::lanes::{exps, Lanes, LANES};

/// Rows of a piece.
const PIECE: usize = 8;
/// Vectors that are computed side by side.
const VECTORS: usize = 4;
/// Columns whose exponentials are added before they are added to the sum: it then has few terms, and little rounding.
const PARTIAL: usize = 1024;

/// Rows of raw logits x, with the cap c: z = c tanh(x / c).
#[derive(Clone, Copy)]
pub struct SoftcapRows<T> {
    /// Raw logits: `count` rows of `len`, the next one `stride` elements further.
    pub raw: *const T,
    pub count: usize,
    pub len: usize,
    pub stride: usize,
    pub cap: f32,
    /// For each row the sum of exp(z).
    pub sums: *mut f32,
    /// exp(z) (1 - (z / c)^2), in contiguous rows; null = not wanted.
    pub grads: *mut T,
}

// SAFETY: a piece uses its own rows only.
unsafe impl<T: Element> Sync for SoftcapRows<T> {}

/// Compute the sums, and the gradients if they are wanted. The order of sums does not depend on the threads.
///
/// # Safety
/// The pointers are valid for what `SoftcapRows` says, and the processor supports `cpu`.
pub unsafe fn softcap_terms<T: Element>(rows: SoftcapRows<T>, cpu: Cpu, num_threads: usize) {
    threads::run(num_threads, rows.count.div_ceil(PIECE), &|piece, thread| cpu.run(&rows, piece, thread));
}

impl<T: Element> Kernel for SoftcapRows<T> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, piece: usize, _: usize) {
        for row in piece * PIECE..self.count.min((piece + 1) * PIECE) {
            let raw = self.raw.add(row * self.stride);
            let grads = if self.grads.is_null() { None } else { Some(self.grads.add(row * self.len)) };
            *self.sums.add(row) = match grads {
                Some(grads) => self.row::<L, true>(raw, grads),
                None => self.row::<L, false>(raw, std::ptr::null_mut()),
            };
        }
    }
}

impl<T: Element> SoftcapRows<T> {
    /// Return the sum of a row, and write its gradients.
    #[inline(always)]
    unsafe fn row<L: Lanes, const GRADS: bool>(&self, raw: *const T, grads: *mut T) -> f32 {
        let whole = self.len - self.len % (VECTORS * LANES);
        let mut sum = L::splat(0.0);
        let mut start = 0;
        while start < whole {
            let end = whole.min(start + PARTIAL);
            let mut partial = L::splat(0.0);
            for at in (start..end).step_by(VECTORS * LANES) {
                let mut x = [L::splat(0.0); VECTORS];
                for (i, x) in x.iter_mut().enumerate() {
                    *x = T::load(raw.add(at + i * LANES));
                }
                let (exps, factors) = self.terms(x);
                for i in 0..VECTORS {
                    partial = partial.add(exps[i]);
                    if GRADS {
                        T::store(exps[i].mul(factors[i]), grads.add(at + i * LANES));
                    }
                }
            }
            sum = sum.add(partial);
            start = end;
        }
        let mut total = sum.sum();
        for at in (whole..self.len).step_by(LANES) {
            let count = LANES.min(self.len - at);
            let mut elements = [T::ZERO; LANES];
            std::ptr::copy_nonoverlapping(raw.add(at), elements.as_mut_ptr(), count);
            let ([exps], [factor]) = self.terms::<L, 1>([T::load(elements.as_ptr())]);
            total += exps.to_array()[..count].iter().sum::<f32>();
            if GRADS {
                T::store(exps.mul(factor), elements.as_mut_ptr());
                std::ptr::copy_nonoverlapping(elements.as_ptr(), grads.add(at), count);
            }
        }
        total
    }

    /// exp(z) and 1 - (z / c)^2: with u = 1 / (1 + exp(2 x / c)), z is c - 2 c u, and the second is 4 u (1 - u).
    #[inline(always)]
    unsafe fn terms<L: Lanes, const N: usize>(&self, mut x: [L; N]) -> ([L; N], [L; N]) {
        let (zero, one, limit) = (L::splat(0.0), L::splat(1.0), L::splat(-80.0));
        for x in &mut x {
            // Between -80 and 80 the exponential and the reciprocal stay in range, and beyond them tanh is +-1.
            let negated = limit.max(x.mul(L::splat(-2.0 / self.cap)));
            *x = limit.max(zero.sub(negated));
        }
        let mut u = exps(x);
        for i in 0..N {
            u[i] = one.div(one.add(u[i]));
            x[i] = u[i].fma(L::splat(-2.0 * self.cap), L::splat(self.cap));
            u[i] = L::splat(4.0).mul(u[i]).mul(one.sub(u[i]));
        }
        (exps(x), u)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums and gradients in float64.
    fn expected(raw: &[f32], cap: f64) -> (f64, Vec<f64>) {
        let z: Vec<f64> = raw.iter().map(|&x| cap * (f64::from(x) / cap).tanh()).collect();
        let grads = z.iter().map(|z| z.exp() * (1.0 - (z / cap).powi(2))).collect();
        (z.iter().map(|z| z.exp()).sum(), grads)
    }

    #[test]
    fn terms_of_float32_rows_on_every_kind_of_processor() {
        let (count, stride) = (11, 1100);
        let raw: Vec<f32> = (0..count * stride).map(|i| ((i * 7919) % 1013) as f32 / 20.0 - 25.0).collect();
        for cap in [1.0, 15.0, 64.0] {
            for len in [1, 16, 37, 1056, 1100] {
                let mut first: Option<Vec<f32>> = None;
                for cpu in Cpu::supported() {
                    for num_threads in [1, 3] {
                        let (mut sums, mut grads) = (vec![0.0; count], vec![0.0; count * len]);
                        let rows = SoftcapRows {
                            raw: raw.as_ptr(),
                            count,
                            len,
                            stride,
                            cap,
                            sums: sums.as_mut_ptr(),
                            grads: grads.as_mut_ptr(),
                        };
                        // SAFETY: the vectors have these sizes.
                        unsafe { softcap_terms(rows, cpu, num_threads) };
                        for row in 0..count {
                            let (sum, wanted) = expected(&raw[row * stride..][..len], f64::from(cap));
                            assert!((f64::from(sums[row]) / sum - 1.0).abs() < 1e-5, "{cpu:?} {cap} {len}");
                            for (grad, wanted) in grads[row * len..].iter().zip(wanted) {
                                let bound = 1e-5 * wanted.abs() + 3e-7 * f64::from(cap).exp();
                                assert!((f64::from(*grad) - wanted).abs() < bound, "{grad} {wanted} {cap}");
                            }
                        }
                        let all: Vec<f32> = sums.into_iter().chain(grads).collect();
                        assert!(*first.get_or_insert(all.clone()) == all, "{cpu:?}: other bits");
                    }
                }
            }
        }
    }

    #[test]
    fn bfloat16_is_rounded_to_nearest_and_infinity_and_nan_pass() {
        let raw: Vec<f32> = (0..35).map(|i| i as f32 - 17.0).chain([f32::INFINITY, f32::NEG_INFINITY]).collect();
        let halves: Vec<u16> = raw.iter().map(|x| (x.to_bits() >> 16) as u16).collect(); // exact
        for cpu in Cpu::supported() {
            let (mut wide, mut narrow, mut sums) = (vec![0.0_f32; 37], vec![0_u16; 37], [0.0; 2]);
            let rows = |raw, sums, grads| SoftcapRows { raw, count: 1, len: 37, stride: 37, cap: 15.0, sums, grads };
            // SAFETY: the vectors have these sizes.
            unsafe {
                let grads = wide.as_mut_ptr();
                let [wide_sum, narrow_sum] = &mut sums;
                softcap_terms(rows(raw.as_ptr(), wide_sum, grads), cpu, 1);
                let rows = SoftcapRows {
                    raw: halves.as_ptr(),
                    count: 1,
                    len: 37,
                    stride: 37,
                    cap: 15.0,
                    sums: narrow_sum,
                    grads: narrow.as_mut_ptr(),
                };
                softcap_terms(rows, cpu, 1);
            }
            assert_eq!(sums[0], sums[1]);
            for (wide, narrow) in wide.iter().zip(narrow) {
                let narrow = f32::from_bits(u32::from(narrow) << 16);
                assert!((narrow - wide).abs() <= wide.abs() / 256.0, "{wide} {narrow}");
            }
            assert!(wide[35] < 1e-20 && wide[36] < 1e-20, "tanh is +-1 there");
            let mut sum = [0.0];
            // SAFETY: as above; no gradients are wanted.
            unsafe { softcap_terms(rows([f32::NAN; 37].as_ptr(), sum.as_mut_ptr(), std::ptr::null_mut()), cpu, 1) };
            assert!(sum[0].is_nan());
        }
    }
}
