//! Functions of vectors.

use crate::simd::Simd;

/// e to the power of x, within 2 units of the last place; the coefficients are Cephes's `expf`.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: as promised by the caller; so for all of this file.
    unsafe {
        // e⁻⁸⁰ is nothing, but far enough from the numbers that processors are slow with.
        let x = S::min(S::max(x, S::splat(-80.0)), S::splat(88.0));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, so that nothing is lost in taking n of it off.
        let rest = S::mul_add(n, S::splat(-0.693_359_4), x);
        let rest = S::mul_add(n, S::splat(2.121_944_4e-4), rest);
        let coefficients = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
        let p = polynomial::<S, 6>(rest, coefficients);
        let y = S::add(S::mul_add(S::mul(p, rest), rest, rest), S::splat(1.0));
        S::scale_by_power(y, n)
    }
}

/// The coefficient of the highest power is first.
#[inline(always)]
unsafe fn polynomial<S: Simd, const N: usize>(x: S::F, coefficients: [f32; N]) -> S::F {
    unsafe {
        let mut sum = S::splat(coefficients[0]);
        for coefficient in &coefficients[1..] {
            sum = S::mul_add(sum, x, S::splat(*coefficient));
        }
        sum
    }
}

/// x · Φ(x), by the error function; Abramowitz and Stegun 7.1.26, within 1.5e-7.
#[inline(always)]
pub(crate) unsafe fn gelu<S: Simd>(x: S::F) -> S::F {
    unsafe {
        let one = S::splat(1.0);
        let z = S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let size = S::abs(z);
        let t = S::div(one, S::mul_add(size, S::splat(0.327_591_1), one));
        let p = polynomial::<S, 5>(t, [1.061_405_4, -1.453_152, 1.421_413_8, -0.284_496_74, 0.254_829_6]);
        let tail = exp::<S>(S::sub(S::splat(0.0), S::mul(size, size)));
        let erf = S::sub(one, S::mul(S::mul(p, t), tail));
        let half = S::mul(x, S::splat(0.5));
        S::mul_add(half, S::with_sign(erf, z), half)
    }
}

/// The approximation of the above by tanh that some models were trained with.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<S: Simd>(x: S::F) -> S::F {
    unsafe {
        let cubic = S::mul_add(S::mul(S::mul(x, x), x), S::splat(0.044_715), x);
        let half = S::mul(x, S::splat(0.5));
        S::mul_add(half, tanh::<S>(S::mul(cubic, S::splat(0.797_884_6))), half)
    }
}

#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S::F) -> S::F {
    unsafe {
        let one = S::splat(1.0);
        // Of the magnitude, whose exponential cannot overflow.
        let decay = exp::<S>(S::mul(S::abs(x), S::splat(-2.0)));
        S::with_sign(S::div(S::sub(one, decay), S::add(one, decay)), x)
    }
}

/// x · sigmoid(1.702 x)
#[inline(always)]
pub(crate) unsafe fn quick_gelu<S: Simd>(x: S::F) -> S::F {
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::mul(x, S::splat(-1.702))))) }
}

/// x · sigmoid(x)
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::F) -> S::F {
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x)))) }
}
