//! What kernels need of a vector unit.

/// Vectors of f32, and of i32 as wide, that sums of int8 products are kept in.
///
/// # Safety
/// Every function needs the instructions of its implementation, and pointers to as many values as a vector has lanes.
/// All are inlined: see [`Work`](crate::level::Work).
pub(crate) trait Simd {
    /// Values in a vector: a power of two, at most 16.
    const LANES: usize;
    /// Rows that a product keeps in registers at two vectors each: 12, 6 or 4.
    const ROWS: usize;
    /// The largest quantized activation: 255, or 127 where products of bytes are summed in 16 bits.
    const ACTIVATION_MAX: f32;

    type F: Copy;
    type I: Copy;

    unsafe fn splat(value: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    /// Of f16, by their bits.
    unsafe fn load_half(from: *const u16) -> Self::F;
    unsafe fn store(to: *mut f32, value: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// To the nearest whole number.
    unsafe fn round(a: Self::F) -> Self::F;
    /// `a · 2ⁿ` for whole `n` of -126 to 127.
    unsafe fn scale_by_power(a: Self::F, n: Self::F) -> Self::F;
    /// `magnitude`, which is not negative, with the sign of `sign`.
    unsafe fn with_sign(magnitude: Self::F, sign: Self::F) -> Self::F;
    /// Of all lanes.
    unsafe fn sum(a: Self::F) -> f32;
    unsafe fn least(a: Self::F) -> f32;
    unsafe fn greatest(a: Self::F) -> f32;
    /// Stores whole numbers of 0 to 255 as bytes.
    unsafe fn store_bytes(to: *mut u8, value: Self::F);

    unsafe fn zero() -> Self::I;
    /// Adds to each lane the products of four bytes of `activations`, the same for all lanes, and its own four of
    /// `weights`.
    unsafe fn dot(sums: Self::I, activations: u32, weights: *const i8) -> Self::I;
    /// The same with signed bytes of `activations`, and `weights` of 0 to 127.
    unsafe fn dot_signed(sums: Self::I, activations: u32, weights: *const u8) -> Self::I;
    /// From four bytes for each lane stores the numbers of their lower halves, and those of the upper ones.
    unsafe fn spread(from: *const u8, numbers: &[u8; 16], lower: *mut u8, upper: *mut u8);
    unsafe fn load_sums(from: *const i32) -> Self::F;
    unsafe fn to_f32(sums: Self::I) -> Self::F;
}
