//! The product all others are made of: a few rows by two vectors of columns, kept in registers.

use std::ops::Range;

use crate::simd::Simd;

/// What is done with tiles of rows.
pub(crate) trait Tiles {
    /// # Safety
    /// As for [`Work`](crate::level::Work); rows `row` to `row + R` are there.
    unsafe fn tile<S: Simd, const R: usize>(&mut self, row: usize);
}

/// Divides rows into tiles that are as high as registers allow, and one of what is left: lower tiles keep a processor
/// busy too, but for those of a single row.
#[inline(always)]
pub(crate) unsafe fn each_tile<S: Simd, T: Tiles>(rows: Range<usize>, tiles: &mut T) {
    // SAFETY: as promised by the caller.
    unsafe { tiles_of::<S, T>(rows, S::ROWS, tiles) };
}

/// The same for tiles that keep twice as much of each row.
#[inline(always)]
pub(crate) unsafe fn each_low_tile<S: Simd, T: Tiles>(rows: Range<usize>, tiles: &mut T) {
    // SAFETY: as promised by the caller.
    unsafe { tiles_of::<S, T>(rows, S::ROWS / 2, tiles) };
}

#[inline(always)]
unsafe fn tiles_of<S: Simd, T: Tiles>(rows: Range<usize>, height: usize, tiles: &mut T) {
    let mut row = rows.start;
    while row < rows.end {
        let count = height.min(rows.end - row);
        // SAFETY: as promised by the caller, and tiles end where the rows end.
        unsafe {
            match count {
                1 => tiles.tile::<S, 1>(row),
                2 => tiles.tile::<S, 2>(row),
                3 => tiles.tile::<S, 3>(row),
                4 => tiles.tile::<S, 4>(row),
                5 => tiles.tile::<S, 5>(row),
                6 => tiles.tile::<S, 6>(row),
                7 => tiles.tile::<S, 7>(row),
                8 => tiles.tile::<S, 8>(row),
                9 => tiles.tile::<S, 9>(row),
                10 => tiles.tile::<S, 10>(row),
                11 => tiles.tile::<S, 11>(row),
                _ => tiles.tile::<S, 12>(row),
            }
        }
        row += count;
    }
}

/// A matrix in memory, by its first value and the distance of its rows.
pub(crate) struct Matrix<T> {
    pub first: *const T,
    pub stride: usize,
}

impl<T> Clone for Matrix<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Matrix<T> {}

impl<T> Matrix<T> {
    pub fn of(values: &[T], stride: usize) -> Self {
        Self { first: values.as_ptr(), stride }
    }

    /// From another place on.
    ///
    /// # Safety
    /// That place is in the matrix.
    #[inline(always)]
    pub unsafe fn at(self, row: usize, column: usize) -> Self {
        // SAFETY: as promised by the caller.
        Self { first: unsafe { self.first.add(row * self.stride + column) }, stride: self.stride }
    }
}

/// `R` rows of `a` by two vectors of columns of `b`, over `depth` columns of `a`, onto `sums`.
#[inline(always)]
pub(crate) unsafe fn product<S: Simd, const R: usize>(
    a: Matrix<f32>,
    b: Matrix<f32>,
    depth: usize,
    mut sums: [[S::F; 2]; R],
) -> [[S::F; 2]; R] {
    // SAFETY: as promised by the caller.
    unsafe {
        for k in 0..depth {
            let row = b.first.add(k * b.stride);
            let (left, right) = (S::load(row), S::load(row.add(S::LANES)));
            for (r, [x, y]) in sums.iter_mut().enumerate() {
                let value = S::splat(*a.first.add(r * a.stride + k));
                *x = S::mul_add(value, left, *x);
                *y = S::mul_add(value, right, *y);
            }
        }
    }
    sums
}
