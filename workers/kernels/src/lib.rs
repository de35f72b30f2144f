//! Kernels of encoders and decoders, on processors and, with the feature `cuda`, on GPUs: linear layers in f32, int8 and int4, attention,
//! norms, rotary positions; and what else of an engine takes unsafe code: files that are mapped into memory.
//!
//! Matrices are slices of rows, one after the other; all functions run on the calling thread and take no memory of their
//! own beside what they are handed to use again. They know nothing of models. Each is tested against the plain code in
//! `tests/reference.rs`, on every level that the machine has.

mod activation;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod buffer;
#[cfg(feature = "gpu")]
pub mod cuda;
mod draw;
mod dynamic;
mod int4;
mod level;
mod linear;
mod mapped;
mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod paged;
mod portable;
mod quantized;
mod rows;
mod simd;
mod team;
mod tile;

pub use activation::{Activation, Function, gate};
pub use attention::{Attention, Scratch, softmax_weights};
pub use buffer::Buffer;
pub use draw::Draw;
pub use dynamic::QuantizedRows;
pub use int4::Int4Linear;
pub use level::Level;
pub use linear::Linear;
pub use mapped::Mapped;
pub use paged::{BLOCK, PagedAttention, PagedScratch, Pages, Span};
pub use quantized::QuantizedLinear;
pub use rows::{Norm, Rotary};
pub use team::Team;
