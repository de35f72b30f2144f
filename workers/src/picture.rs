//! Image files to pixels. A file is read as hostile: its sides and what decoding may take are bounded before it is decoded.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{ImageReader, Limits};

use crate::engine::Pixels;

const SIDE_MAX: u32 = 16_384;
const DECODED_BYTES_MAX: u64 = 256 << 20;

/// Decodes a file; an error says why it cannot be seen.
pub fn read(file: &[u8]) -> Result<Pixels, String> {
    let read = catch_unwind(AssertUnwindSafe(|| read_unguarded(file)));
    read.unwrap_or_else(|_| Err("is broken: its decoder gave up".to_owned()))
}

fn read_unguarded(file: &[u8]) -> Result<Pixels, String> {
    let reader = ImageReader::new(Cursor::new(file)).with_guessed_format();
    let mut reader = reader.map_err(|error| format!("cannot be read: {error}"))?;
    if reader.format().is_none() {
        return Err("is no image that is known; bmp, gif, jpeg, png, tiff and webp are".to_owned());
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_MAX);
    limits.max_image_height = Some(SIDE_MAX);
    limits.max_alloc = Some(DECODED_BYTES_MAX);
    reader.limits(limits);
    let image = reader.decode().map_err(|error| format!("cannot be decoded: {error}"))?.into_rgb8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    if width == 0 || height == 0 {
        return Err("has no pixels".to_owned());
    }
    // An image so narrow would become too long where its shorter edge is scaled.
    if width.max(height) > 200 * width.min(height) {
        return Err(format!("is {width} by {height} pixels; one side may be at most 200 times the other"));
    }
    Ok(Pixels { width, height, values: image.into_raw() })
}
