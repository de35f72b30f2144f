//! Plain code in the shape of vectors, which the compiler makes into what every processor of the platform has.

use crate::simd::Simd;

pub(crate) struct Portable;

const LANES: usize = 8;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

// SAFETY of the blocks below: as promised by the callers, see `Simd`.
impl Simd for Portable {
    const LANES: usize = LANES;
    const ROWS: usize = 4;
    const ACTIVATION_MAX: f32 = 255.0;

    type F = [f32; LANES];
    type I = [i32; LANES];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> Self::F {
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        each(|lane| half::f16::from_bits(bits[lane]).to_f32_const())
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::F) {
        unsafe { to.cast::<Self::F>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each(|lane| a[lane] - b[lane])
    }

    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each(|lane| a[lane] / b[lane])
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Where there is no such instruction, the library's function for it is far slower than two.
        match cfg!(target_arch = "aarch64") {
            true => each(|lane| a[lane].mul_add(b[lane], c[lane])),
            false => each(|lane| a[lane] * b[lane] + c[lane]),
        }
    }

    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each(|lane| a[lane].min(b[lane]))
    }

    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(|lane| a[lane].max(b[lane]))
    }

    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        each(|lane| a[lane].abs())
    }

    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        // Adding and taking off 1.5 · 2²³ leaves no room for a fraction; larger numbers have none.
        const WHOLE: f32 = 12_582_912.0;
        each(|lane| if a[lane].abs() < 4_194_304.0 { (a[lane] + WHOLE) - WHOLE } else { a[lane] })
    }

    #[inline(always)]
    unsafe fn scale_by_power(a: Self::F, n: Self::F) -> Self::F {
        each(|lane| a[lane] * f32::from_bits(((n[lane] as i32 + 127) << 23).cast_unsigned()))
    }

    #[inline(always)]
    unsafe fn with_sign(magnitude: Self::F, sign: Self::F) -> Self::F {
        each(|lane| magnitude[lane].copysign(sign[lane]))
    }

    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        a.into_iter().sum()
    }

    #[inline(always)]
    unsafe fn least(a: Self::F) -> f32 {
        a.into_iter().fold(f32::INFINITY, f32::min)
    }

    #[inline(always)]
    unsafe fn greatest(a: Self::F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    unsafe fn store_bytes(to: *mut u8, value: Self::F) {
        let bytes: [u8; LANES] = std::array::from_fn(|lane| value[lane] as u8);
        unsafe { to.cast::<[u8; LANES]>().write_unaligned(bytes) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self::I {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::I, activations: u32, weights: *const i8) -> Self::I {
        let activations = activations.to_le_bytes().map(i32::from);
        let weights = unsafe { weights.cast::<[[i8; 4]; LANES]>().read_unaligned() };
        std::array::from_fn(|lane| {
            let products = std::array::from_fn::<i32, 4, _>(|byte| activations[byte] * i32::from(weights[lane][byte]));
            sums[lane] + products.iter().sum::<i32>()
        })
    }

    #[inline(always)]
    unsafe fn dot_signed(sums: Self::I, activations: u32, weights: *const u8) -> Self::I {
        let activations = activations.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
        let weights = unsafe { weights.cast::<[[u8; 4]; LANES]>().read_unaligned() };
        std::array::from_fn(|lane| {
            let products = std::array::from_fn::<i32, 4, _>(|byte| activations[byte] * i32::from(weights[lane][byte]));
            sums[lane] + products.iter().sum::<i32>()
        })
    }

    #[inline(always)]
    unsafe fn spread(from: *const u8, numbers: &[u8; 16], lower: *mut u8, upper: *mut u8) {
        unsafe {
            let bytes = from.cast::<[u8; 4 * LANES]>().read_unaligned();
            let of = |code: u8| numbers[usize::from(code)];
            lower.cast::<[u8; 4 * LANES]>().write_unaligned(bytes.map(|byte| of(byte & 15)));
            upper.cast::<[u8; 4 * LANES]>().write_unaligned(bytes.map(|byte| of(byte >> 4)));
        }
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const i32) -> Self::F {
        unsafe { from.cast::<Self::I>().read_unaligned() }.map(|sum| sum as f32)
    }

    #[inline(always)]
    unsafe fn to_f32(sums: Self::I) -> Self::F {
        sums.map(|sum| sum as f32)
    }
}
