//! Lanes as two registers of AVX2.

use super::Lanes;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct Avx2(__m256, __m256);

impl Avx2 {
    #[inline(always)]
    unsafe fn from_ints(low: __m256i, high: __m256i) -> Self {
        Avx2(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
    }
}

impl Lanes for Avx2 {
    const VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm256_storeu_ps(to, self.0);
        _mm256_storeu_ps(to.add(8), self.1);
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
        Self::from_ints(_mm256_slli_epi32(low, 16), _mm256_slli_epi32(high, 16))
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u16) -> (Self, Self) {
        let (low, high) = (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(16).cast()));
        let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        let first = Self::from_ints(_mm256_slli_epi32(low, 16), _mm256_slli_epi32(high, 16));
        (first, Self::from_ints(_mm256_and_si256(low, mask), _mm256_and_si256(high, mask)))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        let bytes = _mm_loadu_si128(from.cast());
        let low = _mm256_cvtepi8_epi32(bytes);
        let high = _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8));
        Avx2(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        Avx2(_mm256_fmadd_ps(self.0, a.0, b.0), _mm256_fmadd_ps(self.1, a.1, b.1))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Avx2(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Avx2(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Avx2(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Avx2(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Avx2(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn times_power_of_two(self, rounded: Self) -> Self {
        let low = _mm256_slli_epi32(_mm256_castps_si256(rounded.0), 23);
        let high = _mm256_slli_epi32(_mm256_castps_si256(rounded.1), 23);
        Self::from_ints(
            _mm256_add_epi32(_mm256_castps_si256(self.0), low),
            _mm256_add_epi32(_mm256_castps_si256(self.1), high),
        )
    }
}
