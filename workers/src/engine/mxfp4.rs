//! MXFP4 (Open Compute Project, 2023): numbers of four bits, of which a group shares a scale.

const VALUES: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
/// Values that share a scale.
pub const GROUP: usize = 32;

/// Of four bits; the scale is a power of two.
pub fn value(bits: u8, scale: u8) -> f32 {
    VALUES[usize::from(bits & 15)] * 2.0_f32.powi(i32::from(scale) - 127)
}
