//! Lanes as four registers of NEON.

use super::Lanes;
use std::arch::aarch64::*;
use std::array::from_fn;

#[derive(Clone, Copy)]
pub struct Neon([float32x4_t; 4]);

#[inline(always)]
unsafe fn from_bits(bits: [uint32x4_t; 4]) -> Neon {
    Neon(from_fn(|i| vreinterpretq_f32_u32(bits[i])))
}

impl Lanes for Neon {
    const VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Neon([vdupq_n_f32(x); 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Neon(from_fn(|i| vld1q_f32(from.add(4 * i))))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for i in 0..4 {
            vst1q_f32(to.add(4 * i), self.0[i]);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        from_bits(from_fn(|i| vshlq_n_u32::<16>(vmovl_u16(vld1_u16(from.add(4 * i))))))
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u16) -> (Self, Self) {
        let pairs: [uint32x4_t; 4] = from_fn(|i| vreinterpretq_u32_u16(vld1q_u16(from.add(8 * i))));
        let second = from_fn(|i| vandq_u32(pairs[i], vdupq_n_u32(0xffff_0000)));
        (from_bits(from_fn(|i| vshlq_n_u32::<16>(pairs[i]))), from_bits(second))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        let bytes = vld1q_s8(from);
        let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
        let quarters = [vget_low_s16(low), vget_high_s16(low), vget_low_s16(high), vget_high_s16(high)];
        Neon(from_fn(|i| vcvtq_f32_s32(vmovl_s16(quarters[i]))))
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        Neon(from_fn(|i| vfmaq_f32(b.0[i], self.0[i], a.0[i])))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Neon(from_fn(|i| vaddq_f32(self.0[i], other.0[i])))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Neon(from_fn(|i| vsubq_f32(self.0[i], other.0[i])))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Neon(from_fn(|i| vmulq_f32(self.0[i], other.0[i])))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Neon(from_fn(|i| vdivq_f32(self.0[i], other.0[i])))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Neon(from_fn(|i| vmaxq_f32(self.0[i], other.0[i])))
    }
    #[inline(always)]
    unsafe fn times_power_of_two(self, rounded: Self) -> Self {
        from_bits(from_fn(|i| {
            let exponent = vshlq_n_u32::<23>(vreinterpretq_u32_f32(rounded.0[i]));
            vaddq_u32(vreinterpretq_u32_f32(self.0[i]), exponent)
        }))
    }
}
