//! The kernels for GPUs, emulated on the processor, beside what plain code makes of the same.

#![cfg(feature = "emulated")]

mod attention;
mod draws;
mod experts;
