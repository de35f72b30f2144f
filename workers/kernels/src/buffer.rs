//! Memory that begins at a cache line, so that no vector of it lies in two.

use bytemuck::{AnyBitPattern, NoUninit, Pod, Zeroable};

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: 64 bytes without padding, of which any are valid.
unsafe impl Zeroable for Line {}
// SAFETY: the same.
unsafe impl Pod for Line {}

/// Numbers, at first 0.
#[derive(Clone, Default)]
pub struct Buffer<T> {
    lines: Vec<Line>,
    length: usize,
    of: std::marker::PhantomData<T>,
}

impl<T: NoUninit + AnyBitPattern> Buffer<T> {
    pub fn zeroed(length: usize) -> Self {
        // Memory that is not touched is not taken: the system gives it as zeros when it is.
        let lines = bytemuck::zeroed_vec((length * size_of::<T>()).div_ceil(64));
        Self { lines, length, of: std::marker::PhantomData }
    }

    /// Makes room for `length` numbers, whatever they are then: memory is kept for the next use.
    pub fn resize(&mut self, length: usize) {
        let lines = (length * size_of::<T>()).div_ceil(64);
        if lines > self.lines.len() {
            self.lines = vec![Line([0; 64]); lines];
        }
        self.length = length;
    }
}

impl<T: NoUninit + AnyBitPattern> std::ops::Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.length]
    }
}

impl<T: NoUninit + AnyBitPattern> std::ops::DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.length]
    }
}

impl<T> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({})", self.length)
    }
}
