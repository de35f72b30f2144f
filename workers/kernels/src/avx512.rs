//! AVX-512 with VNNI.

use std::arch::x86_64::*;

use crate::simd::Simd;

pub(crate) struct Avx512;

// SAFETY of the blocks below: as promised by the callers, see `Simd`.
impl Simd for Avx512 {
    const LANES: usize = 16;
    const ROWS: usize = 12;
    const ACTIVATION_MAX: f32 = 255.0;

    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m512) {
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn abs(a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }

    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    unsafe fn scale_by_power(a: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(a, n) }
    }

    #[inline(always)]
    unsafe fn with_sign(magnitude: __m512, sign: __m512) -> __m512 {
        unsafe { _mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.0))) }
    }

    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(a) }
    }

    #[inline(always)]
    unsafe fn least(a: __m512) -> f32 {
        unsafe { _mm512_reduce_min_ps(a) }
    }

    #[inline(always)]
    unsafe fn greatest(a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    unsafe fn store_bytes(to: *mut u8, value: __m512) {
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value))) }
    }

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m512i, activations: u32, weights: *const i8) -> __m512i {
        unsafe {
            let activations = _mm512_set1_epi32(activations.cast_signed());
            _mm512_dpbusd_epi32(sums, activations, _mm512_loadu_si512(weights.cast()))
        }
    }

    #[inline(always)]
    unsafe fn dot_signed(sums: __m512i, activations: u32, weights: *const u8) -> __m512i {
        unsafe {
            let activations = _mm512_set1_epi32(activations.cast_signed());
            _mm512_dpbusd_epi32(sums, _mm512_loadu_si512(weights.cast()), activations)
        }
    }

    #[inline(always)]
    unsafe fn spread(from: *const u8, numbers: &[u8; 16], lower: *mut u8, upper: *mut u8) {
        unsafe {
            let numbers = _mm512_broadcast_i32x4(_mm_loadu_si128(numbers.as_ptr().cast()));
            let (bytes, half) = (_mm512_loadu_si512(from.cast()), _mm512_set1_epi8(15));
            let codes = [_mm512_and_si512(bytes, half), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), half)];
            _mm512_storeu_si512(lower.cast(), _mm512_shuffle_epi8(numbers, codes[0]));
            _mm512_storeu_si512(upper.cast(), _mm512_shuffle_epi8(numbers, codes[1]));
        }
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const i32) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_loadu_si512(from.cast())) }
    }

    #[inline(always)]
    unsafe fn to_f32(sums: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(sums) }
    }
}
