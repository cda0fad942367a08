//! Lanes as one register of AVX-512.

use super::Lanes;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct Avx512(__m512);

impl Lanes for Avx512 {
    const VECTORS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Avx512(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Avx512(_mm512_loadu_ps(from))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm512_storeu_ps(to, self.0);
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        Avx512(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)))
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u16) -> (Self, Self) {
        let pairs = _mm512_loadu_si512(from.cast());
        let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        (Avx512(_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))), Avx512(_mm512_castsi512_ps(second)))
    }
    #[inline(always)]
    unsafe fn store_bf16_pairs(self, second: Self, to: *mut u16) {
        let first = _mm512_srli_epi32(_mm512_castps_si512(self.0), 16);
        _mm512_storeu_si512(to.cast(), _mm512_or_si512(first, _mm512_castps_si512(second.0)));
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        let bits = _mm512_castps_si512(self.0);
        let is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
        let rounded = _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc0_0000));
        _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        Avx512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))))
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        Avx512(_mm512_fmadd_ps(self.0, a.0, b.0))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Avx512(_mm512_add_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Avx512(_mm512_sub_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Avx512(_mm512_mul_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Avx512(_mm512_div_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Avx512(_mm512_max_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn times_power_of_two(self, rounded: Self) -> Self {
        let exponent = _mm512_slli_epi32(_mm512_castps_si512(rounded.0), 23);
        Avx512(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), exponent)))
    }
}
