//! Sixteen float32 lanes, as every kernel uses them, on each kind of processor.
//!
//! All operations are those of IEEE 754, rounded once, so a kernel gives the same bits on every processor: `fma` is
//! fused everywhere, and nothing is approximate. The kernels are generic over [`Lanes`]; `cpu.rs` chooses the type.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use portable::Portable;

use crate::matrix::to_bf16;

/// Number of lanes.
pub const LANES: usize = 16;

/// Adding it to a float32 of magnitude below 2^22 rounds that to a whole number, which then stands in the lowest bits.
const ROUNDER: f32 = 12_582_912.0; // 1.5 * 2^23

/// Sixteen float32 numbers.
///
/// # Safety
/// All methods: the processor must support the instructions of the type, and pointers must be valid for the 16 (pairs:
/// 32) elements that are read or written. No alignment is required.
#[allow(clippy::missing_safety_doc)]
pub trait Lanes: Copy {
    /// Number of vectors of 16 lanes by which a product advances for several rows: as many as the registers hold.
    const VECTORS: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Load bfloat16 numbers.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Load 16 pairs of bfloat16 numbers: all first ones, and all second ones.
    unsafe fn load_bf16_pairs(from: *const u16) -> (Self, Self);
    /// Store 16 pairs of bfloat16 numbers, first ones from `self` and second ones from `second`, which are exact in it.
    #[inline(always)]
    unsafe fn store_bf16_pairs(self, second: Self, to: *mut u16) {
        let (first, second) = (self.to_array(), second.to_array());
        for lane in 0..LANES {
            *to.add(2 * lane) = (first[lane].to_bits() >> 16) as u16;
            *to.add(2 * lane + 1) = (second[lane].to_bits() >> 16) as u16;
        }
    }
    /// Store as bfloat16 numbers, rounded to the nearest, and of two equally near to the even one. NaN stays NaN.
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        for (lane, x) in self.to_array().into_iter().enumerate() {
            *to.add(lane) = to_bf16(x);
        }
    }
    /// Load int8 numbers.
    unsafe fn load_i8(from: *const i8) -> Self;
    /// `self * a + b`, rounded once.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// The larger number of each lane. `self` may not be NaN; if `other` is, so is the result.
    unsafe fn max(self, other: Self) -> Self;
    /// `self * 2^n`, where n is the whole number in the lowest bits of `rounded` (see `ROUNDER`). No overflow is handled.
    unsafe fn times_power_of_two(self, rounded: Self) -> Self;

    /// The lanes as an array.
    #[inline(always)]
    unsafe fn to_array(self) -> [f32; LANES] {
        let mut array = [0.0; LANES];
        self.store(array.as_mut_ptr());
        array
    }

    /// The sum of all lanes, added in a fixed order.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut array = self.to_array();
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                array[lane] += array[lane + half];
            }
        }
        array[0]
    }

    /// The largest lane.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.to_array().into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    /// e^x for x from -87 to 88, with a relative error below 2e-7; lower values give e^-87, and NaN stays NaN.
    ///
    /// e^x = 2^n e^r with n the whole number nearest to x / ln 2, so |r| <= ln 2 / 2, and the Taylor polynomial of e^r.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        let x = Self::splat(-87.0).max(self);
        let rounded = x.fma(Self::splat(std::f32::consts::LOG2_E), Self::splat(ROUNDER));
        let n = rounded.sub(Self::splat(ROUNDER));
        // ln 2 in two parts, the first of which has few bits, so that n times it is exact.
        let r = n.fma(Self::splat(-355.0 / 512.0), x);
        let r = n.fma(Self::splat(2.121_944_4e-4), r);
        let mut sum = Self::splat(1.0 / 5040.0);
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            sum = sum.fma(r, Self::splat(coefficient));
        }
        // The power may make a number of NaN; `r` is still NaN then. Else nothing is added.
        r.fma(Self::splat(0.0), sum.times_power_of_two(rounded))
    }

    /// The hyperbolic tangent, with an absolute error below 3e-7.
    #[inline(always)]
    unsafe fn tanh(self) -> Self {
        // tanh(x) = 1 - 2 / (e^2x + 1); beyond 10 it is +-1 in float32, and the exponential stays in its range.
        let bounded = Self::splat(-10.0).max(self);
        let bounded = Self::splat(0.0).sub(Self::splat(-10.0).max(Self::splat(0.0).sub(bounded)));
        let e = bounded.add(bounded).exp();
        Self::splat(1.0).sub(Self::splat(2.0).div(e.add(Self::splat(1.0))))
    }
}

/// `exp` of several vectors, with the same bits, side by side: an exponential is a chain of operations, each of which
/// waits for the one before, and a processor looks only so far ahead for other work.
///
/// # Safety
/// The processor supports `L`.
#[inline(always)]
pub unsafe fn exps<L: Lanes, const N: usize>(mut x: [L; N]) -> [L; N] {
    // (Loops, because the closures of `array::from_fn` are compiled without the instructions of `L`.)
    let (mut rounded, mut sum) = (x, [L::splat(1.0 / 5040.0); N]);
    for i in 0..N {
        x[i] = L::splat(-87.0).max(x[i]);
        rounded[i] = x[i].fma(L::splat(std::f32::consts::LOG2_E), L::splat(ROUNDER));
    }
    for i in 0..N {
        let n = rounded[i].sub(L::splat(ROUNDER));
        let r = n.fma(L::splat(-355.0 / 512.0), x[i]);
        x[i] = n.fma(L::splat(2.121_944_4e-4), r);
    }
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        for i in 0..N {
            sum[i] = sum[i].fma(x[i], L::splat(coefficient));
        }
    }
    for i in 0..N {
        sum[i] = x[i].fma(L::splat(0.0), sum[i].times_power_of_two(rounded[i]));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe fn check<L: Lanes>() {
        let mut worst = (0.0_f64, 0.0_f64);
        for step in 0..20_000 {
            let x = -87.0 + step as f32 * (175.0 / 20_000.0);
            let e = L::splat(x).exp().to_array()[3];
            worst.0 = worst.0.max((f64::from(e) / f64::from(x).exp() - 1.0).abs());
            let y = x / 8.0;
            worst.1 = worst.1.max((f64::from(L::splat(y).tanh().to_array()[9]) - f64::from(y).tanh()).abs());
            // The same bits as the portable type.
            assert_eq!(e.to_bits(), Portable::splat(x).exp().to_array()[3].to_bits(), "exp({x})");
            assert_eq!(exps([L::splat(y), L::splat(x)])[1].to_array()[5].to_bits(), e.to_bits(), "exps({x})");
            let tanh = L::splat(y).tanh().to_array()[0];
            assert_eq!(tanh.to_bits(), Portable::splat(y).tanh().to_array()[0].to_bits(), "tanh({y})");
        }
        assert!(worst.0 < 2e-7 && worst.1 < 3e-7, "{worst:?}");

        let numbers: [f32; 32] = std::array::from_fn(|i| (i as f32 - 11.3) * 1.7);
        let halves: [u16; 32] = std::array::from_fn(|i| (numbers[i].to_bits() >> 16) as u16);
        let wide = |half: u16| f32::from_bits(u32::from(half) << 16);
        let small: [i8; 16] = std::array::from_fn(|i| (i as i32 * 17 - 128) as i8);
        assert_eq!(L::load(numbers.as_ptr()).to_array(), numbers[..16]);
        assert_eq!(L::load_bf16(halves.as_ptr()).to_array(), std::array::from_fn(|i| wide(halves[i])));
        let (first, second) = L::load_bf16_pairs(halves.as_ptr());
        assert_eq!(first.to_array(), std::array::from_fn(|i| wide(halves[2 * i])));
        assert_eq!(second.to_array(), std::array::from_fn(|i| wide(halves[2 * i + 1])));
        let mut rounded = [0; 16];
        for start in [0, 16] {
            L::load(numbers[start..].as_ptr()).store_bf16(rounded.as_mut_ptr());
            assert_eq!(rounded, std::array::from_fn(|i| to_bf16(numbers[start + i])));
        }
        for (bits, nearest) in
            [(0x3f80_7fff, 0x3f80), (0x3f80_8000, 0x3f80), (0x3f81_8000, 0x3f82), (0x3f80_8001, 0x3f81)]
        {
            L::splat(f32::from_bits(bits)).store_bf16(rounded.as_mut_ptr());
            assert_eq!(rounded, [nearest; 16]);
        }
        for bits in [0x7fc0_0000, 0x7fc0_0001, 0x7fff_ffff, 0xffff_ffff] {
            let nan = L::splat(f32::from_bits(bits)); // 0x7fff_ffff is that of GPUs
            assert!(nan.exp().to_array()[0].is_nan() && exps([nan])[0].to_array()[1].is_nan(), "{bits:x}");
            nan.store_bf16(rounded.as_mut_ptr());
            assert!(rounded.iter().all(|&half| wide(half).is_nan()), "{bits:x}");
        }
        assert_eq!(L::load_i8(small.as_ptr()).to_array(), std::array::from_fn(|i| f32::from(small[i])));
        let (a, b) = (L::load(numbers.as_ptr()), L::load(numbers[16..].as_ptr()));
        assert_eq!(a.add(b).to_array(), std::array::from_fn(|i| numbers[i] + numbers[i + 16]));
        assert_eq!(a.sub(b).to_array(), std::array::from_fn(|i| numbers[i] - numbers[i + 16]));
        assert_eq!(a.mul(b).to_array(), std::array::from_fn(|i| numbers[i] * numbers[i + 16]));
        assert_eq!(a.div(b).to_array(), std::array::from_fn(|i| numbers[i] / numbers[i + 16]));
        assert_eq!(a.max(b).to_array(), std::array::from_fn(|i| numbers[i].max(numbers[i + 16])));
        assert_eq!(a.fma(a, b).to_array(), std::array::from_fn(|i| numbers[i].mul_add(numbers[i], numbers[i + 16])));
        assert_eq!(a.sum().to_bits(), Portable::load(numbers.as_ptr()).sum().to_bits());
        assert_eq!(a.largest(), numbers[15]);
    }

    #[test]
    fn portable() {
        // SAFETY: no instructions beyond the target's are used, and all pointers are to arrays of enough elements.
        unsafe { check::<Portable>() }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn avx512() {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
            unsafe fn run() {
                check::<Avx512>()
            }
            // SAFETY: the processor has the instructions.
            unsafe { run() }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn avx2() {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            #[target_feature(enable = "avx2,fma")]
            unsafe fn run() {
                check::<Avx2>()
            }
            // SAFETY: the processor has the instructions.
            unsafe { run() }
        }
    }

    #[test]
    #[cfg(target_arch = "aarch64")]
    fn neon() {
        // SAFETY: every aarch64 processor has NEON.
        unsafe { check::<Neon>() }
    }
}
