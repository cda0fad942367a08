//! Lanes as an array: any processor, and the readable twin of the others.

use super::{Lanes, LANES};

#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

#[inline(always)]
fn bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[inline(always)]
fn each(function: impl FnMut(usize) -> f32) -> Portable {
    Portable(std::array::from_fn(function))
}

impl Lanes for Portable {
    const VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Portable([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Portable(from.cast::<[f32; LANES]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        to.cast::<[f32; LANES]>().write_unaligned(self.0);
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        each(|i| bf16(*from.add(i)))
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u16) -> (Self, Self) {
        (each(|i| bf16(*from.add(2 * i))), each(|i| bf16(*from.add(2 * i + 1))))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        each(|i| f32::from(*from.add(i)))
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        each(|i| self.0[i].mul_add(a.0[i], b.0[i]))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        each(|i| self.0[i] + other.0[i])
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        each(|i| self.0[i] - other.0[i])
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        each(|i| self.0[i] * other.0[i])
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        each(|i| self.0[i] / other.0[i])
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        each(|i| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] })
    }
    #[inline(always)]
    unsafe fn times_power_of_two(self, rounded: Self) -> Self {
        each(|i| f32::from_bits(self.0[i].to_bits().wrapping_add(rounded.0[i].to_bits() << 23)))
    }
}
