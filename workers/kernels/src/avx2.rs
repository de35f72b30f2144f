//! AVX2 with FMA, without VNNI.

use std::arch::x86_64::*;

use crate::simd::Simd;

pub(crate) struct Avx2;

// SAFETY of the blocks below: as promised by the callers, see `Simd`.
impl Simd for Avx2 {
    const LANES: usize = 8;
    const ROWS: usize = 6;
    // Two products of 127 · 127 fit in 16 bits; of 255 · 127 they do not.
    const ACTIVATION_MAX: f32 = 127.0;

    type F = __m256;
    type I = __m256i;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m256) {
        unsafe { _mm256_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn abs(a: __m256) -> __m256 {
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }

    #[inline(always)]
    unsafe fn round(a: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    unsafe fn scale_by_power(a: __m256, n: __m256) -> __m256 {
        unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
            _mm256_mul_ps(a, _mm256_castsi256_ps(exponent))
        }
    }

    #[inline(always)]
    unsafe fn with_sign(magnitude: __m256, sign: __m256) -> __m256 {
        unsafe { _mm256_or_ps(magnitude, _mm256_and_ps(sign, _mm256_set1_ps(-0.0))) }
    }

    #[inline(always)]
    unsafe fn sum(a: __m256) -> f32 {
        unsafe { lanes(a).into_iter().sum() }
    }

    #[inline(always)]
    unsafe fn least(a: __m256) -> f32 {
        unsafe { lanes(a).into_iter().fold(f32::INFINITY, f32::min) }
    }

    #[inline(always)]
    unsafe fn greatest(a: __m256) -> f32 {
        unsafe { lanes(a).into_iter().fold(f32::NEG_INFINITY, f32::max) }
    }

    #[inline(always)]
    unsafe fn store_bytes(to: *mut u8, value: __m256) {
        unsafe {
            let whole = _mm256_cvtps_epi32(value);
            let halves = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256::<1>(whole));
            _mm_storel_epi64(to.cast(), _mm_packus_epi16(halves, halves));
        }
    }

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, activations: u32, weights: *const i8) -> __m256i {
        unsafe {
            let activations = _mm256_set1_epi32(activations.cast_signed());
            let pairs = _mm256_maddubs_epi16(activations, _mm256_loadu_si256(weights.cast()));
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn dot_signed(sums: __m256i, activations: u32, weights: *const u8) -> __m256i {
        unsafe {
            let activations = _mm256_set1_epi32(activations.cast_signed());
            let pairs = _mm256_maddubs_epi16(_mm256_loadu_si256(weights.cast()), activations);
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn spread(from: *const u8, numbers: &[u8; 16], lower: *mut u8, upper: *mut u8) {
        unsafe {
            let numbers = _mm256_broadcastsi128_si256(_mm_loadu_si128(numbers.as_ptr().cast()));
            let (bytes, half) = (_mm256_loadu_si256(from.cast()), _mm256_set1_epi8(15));
            let codes = [_mm256_and_si256(bytes, half), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), half)];
            _mm256_storeu_si256(lower.cast(), _mm256_shuffle_epi8(numbers, codes[0]));
            _mm256_storeu_si256(upper.cast(), _mm256_shuffle_epi8(numbers, codes[1]));
        }
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const i32) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn to_f32(sums: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(sums) }
    }
}

#[inline(always)]
unsafe fn lanes(a: __m256) -> [f32; 8] {
    let mut lanes = [0.0; 8];
    // SAFETY: there is room for eight.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), a) };
    lanes
}
