//! NEON, which every arm64 has, and the products of bytes that most servers add to it.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::simd::Simd;

/// Products of bytes are widened step by step.
pub(crate) const PLAIN: u8 = 0;
/// Four signed bytes at a time (`dotprod`), as servers have it since 2018.
pub(crate) const SIGNED: u8 = 1;
/// Unsigned by signed bytes (`i8mm`), as servers have it since 2021.
pub(crate) const MIXED: u8 = 2;

/// Two registers make a vector, so that a tile is as wide as on AVX2.
pub(crate) struct Neon<const BYTES: u8>;

type F = [float32x4_t; 2];
type I = [int32x4_t; 2];

// SAFETY of the blocks below: as promised by the callers, see `Simd`.
impl<const BYTES: u8> Simd for Neon<BYTES> {
    const LANES: usize = 8;
    // With two vectors of two registers each, 24 of 32.
    const ROWS: usize = 6;
    // Signed bytes are none but those up to 127.
    const ACTIVATION_MAX: f32 = if BYTES == MIXED { 255.0 } else { 127.0 };

    type F = F;
    type I = I;

    #[inline(always)]
    unsafe fn splat(value: f32) -> F {
        unsafe { [vdupq_n_f32(value); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> F {
        unsafe { [vld1q_f32(from), vld1q_f32(from.add(4))] }
    }

    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> F {
        unsafe { [widened(vld1_u16(from)), widened(vld1_u16(from.add(4)))] }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, [x, y]: F) {
        unsafe {
            vst1q_f32(to, x);
            vst1q_f32(to.add(4), y);
        }
    }

    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        unsafe { [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        unsafe { [vsubq_f32(a[0], b[0]), vsubq_f32(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        unsafe { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        unsafe { [vdivq_f32(a[0], b[0]), vdivq_f32(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn mul_add(a: F, b: F, c: F) -> F {
        unsafe { [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        unsafe { [vminnmq_f32(a[0], b[0]), vminnmq_f32(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        unsafe { [vmaxnmq_f32(a[0], b[0]), vmaxnmq_f32(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn abs(a: F) -> F {
        unsafe { [vabsq_f32(a[0]), vabsq_f32(a[1])] }
    }

    #[inline(always)]
    unsafe fn round(a: F) -> F {
        unsafe { [vrndnq_f32(a[0]), vrndnq_f32(a[1])] }
    }

    #[inline(always)]
    unsafe fn scale_by_power(a: F, n: F) -> F {
        unsafe { [vmulq_f32(a[0], power(n[0])), vmulq_f32(a[1], power(n[1]))] }
    }

    #[inline(always)]
    unsafe fn with_sign(magnitude: F, sign: F) -> F {
        unsafe {
            let bit = vdupq_n_u32(1 << 31);
            [vbslq_f32(bit, sign[0], magnitude[0]), vbslq_f32(bit, sign[1], magnitude[1])]
        }
    }

    #[inline(always)]
    unsafe fn sum(a: F) -> f32 {
        unsafe { vaddvq_f32(vaddq_f32(a[0], a[1])) }
    }

    #[inline(always)]
    unsafe fn least(a: F) -> f32 {
        unsafe { vminnmvq_f32(vminnmq_f32(a[0], a[1])) }
    }

    #[inline(always)]
    unsafe fn greatest(a: F) -> f32 {
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(a[0], a[1])) }
    }

    #[inline(always)]
    unsafe fn store_bytes(to: *mut u8, value: F) {
        unsafe {
            let [x, y] = [vmovn_u32(vcvtnq_u32_f32(value[0])), vmovn_u32(vcvtnq_u32_f32(value[1]))];
            vst1_u8(to, vmovn_u16(vcombine_u16(x, y)));
        }
    }

    #[inline(always)]
    unsafe fn zero() -> I {
        unsafe { [vdupq_n_s32(0); 2] }
    }

    #[inline(always)]
    unsafe fn dot(sums: I, activations: u32, weights: *const i8) -> I {
        unsafe {
            let activations = vreinterpretq_s8_u32(vdupq_n_u32(activations));
            let [x, y] = [vld1q_s8(weights), vld1q_s8(weights.add(16))];
            [four::<BYTES>(sums[0], activations, x), four::<BYTES>(sums[1], activations, y)]
        }
    }

    #[inline(always)]
    unsafe fn dot_signed(sums: I, activations: u32, weights: *const u8) -> I {
        unsafe {
            let activations = vreinterpretq_s8_u32(vdupq_n_u32(activations));
            let [x, y] = [vld1q_s8(weights.cast()), vld1q_s8(weights.cast::<i8>().add(16))];
            // Both are signed, since no weight is larger than 127.
            match BYTES {
                PLAIN => [four::<PLAIN>(sums[0], activations, x), four::<PLAIN>(sums[1], activations, y)],
                _ => [four::<SIGNED>(sums[0], activations, x), four::<SIGNED>(sums[1], activations, y)],
            }
        }
    }

    #[inline(always)]
    unsafe fn spread(from: *const u8, numbers: &[u8; 16], lower: *mut u8, upper: *mut u8) {
        unsafe {
            let (numbers, half) = (vld1q_u8(numbers.as_ptr()), vdupq_n_u8(15));
            for at in [0, 16] {
                let bytes = vld1q_u8(from.add(at));
                vst1q_u8(lower.add(at), vqtbl1q_u8(numbers, vandq_u8(bytes, half)));
                vst1q_u8(upper.add(at), vqtbl1q_u8(numbers, vshrq_n_u8::<4>(bytes)));
            }
        }
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const i32) -> F {
        unsafe { Self::to_f32([vld1q_s32(from), vld1q_s32(from.add(4))]) }
    }

    #[inline(always)]
    unsafe fn to_f32(sums: I) -> F {
        unsafe { [vcvtq_f32_s32(sums[0]), vcvtq_f32_s32(sums[1])] }
    }
}

/// `2ⁿ`
#[inline(always)]
unsafe fn power(n: float32x4_t) -> float32x4_t {
    // SAFETY: as promised by the caller.
    unsafe {
        let exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
        vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
    }
}

/// Adds to each lane the products of four bytes. The compiler's functions for them are not stable.
#[inline(always)]
unsafe fn four<const BYTES: u8>(sums: int32x4_t, activations: int8x16_t, weights: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // SAFETY: as promised by the caller; registers are read and written, nothing else.
    unsafe {
        match BYTES {
            SIGNED => asm!(
                ".arch_extension dotprod",
                "sdot {sums:v}.4s, {activations:v}.16b, {weights:v}.16b",
                sums = inout(vreg) sums,
                activations = in(vreg) activations,
                weights = in(vreg) weights,
                options(pure, nomem, nostack, preserves_flags),
            ),
            MIXED => asm!(
                ".arch_extension i8mm",
                "usdot {sums:v}.4s, {activations:v}.16b, {weights:v}.16b",
                sums = inout(vreg) sums,
                activations = in(vreg) activations,
                weights = in(vreg) weights,
                options(pure, nomem, nostack, preserves_flags),
            ),
            _ => {
                // Two products of 127 · 127 fit in 16 bits.
                let lower = vmull_s8(vget_low_s8(activations), vget_low_s8(weights));
                let pairs = vpaddq_s16(lower, vmull_high_s8(activations, weights));
                sums = vpadalq_s16(sums, pairs);
            }
        }
    }
    sums
}

/// Of f16, by their bits. The compiler's type for them is not stable.
#[inline(always)]
unsafe fn widened(halves: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: as promised by the caller; registers are read and written, nothing else.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h",
            wide = lateout(vreg) wide,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    wide
}
