//! Images to the size that a model sees, to the bit as Pillow does it: two passes of weights in fixed point, across and then
//! down.

/// Bits behind the point of a weight.
const PRECISION: u32 = 32 - 8 - 2;

/// How pixels between those of an image are made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    Bilinear,
    Bicubic,
}

/// Rows of pixels of red, green and blue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    pub width: usize,
    pub height: usize,
    pub values: Vec<u8>,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bicubic => 0.0,
        }
    }
}

impl Pixels {
    pub fn resized(&self, width: usize, height: usize, filter: Filter) -> Self {
        let across = if width == self.width { self.clone() } else { self.across(width, filter) };
        if height == self.height { across } else { across.down(height, filter) }
    }

    fn across(&self, width: usize, filter: Filter) -> Self {
        let weights = weights(self.width, width, filter);
        let mut values = Vec::with_capacity(width * self.height * 3);
        for row in self.values.chunks_exact(self.width * 3) {
            for (first, weights) in &weights {
                for channel in 0..3 {
                    let pixels = row[first * 3 + channel..].iter().step_by(3);
                    values.push(sum(weights, pixels));
                }
            }
        }
        Self { width, height: self.height, values }
    }

    fn down(&self, height: usize, filter: Filter) -> Self {
        let stride = self.width * 3;
        let mut values = Vec::with_capacity(stride * height);
        for (first, weights) in weights(self.height, height, filter) {
            for at in 0..stride {
                values.push(sum(&weights, self.values[first * stride + at..].iter().step_by(stride)));
            }
        }
        Self { width: self.width, height, values }
    }

    /// The middle of it; what lies outside is black.
    pub fn cropped(&self, width: usize, height: usize) -> Self {
        let mut values = vec![0; width * height * 3];
        let offset = |own: usize, wanted: usize| (own as isize - wanted as isize).div_euclid(2);
        let (left, top) = (offset(self.width, width), offset(self.height, height));
        for (row, to) in values.chunks_exact_mut(width * 3).enumerate() {
            for (column, to) in to.chunks_exact_mut(3).enumerate() {
                let (x, y) = (column as isize + left, row as isize + top);
                if (0..self.width as isize).contains(&x) && (0..self.height as isize).contains(&y) {
                    let from = (y as usize * self.width + x as usize) * 3;
                    to.copy_from_slice(&self.values[from..from + 3]);
                }
            }
        }
        Self { width, height, values }
    }
}

fn sum<'a>(weights: &[i32], pixels: impl Iterator<Item = &'a u8>) -> u8 {
    let half = 1_i32 << (PRECISION - 1);
    let sum = weights.iter().zip(pixels).fold(half, |sum, (weight, pixel)| sum + weight * i32::from(*pixel));
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// For each pixel that is made, the first of those it is made of and the weights from there on.
fn weights(from: usize, to: usize, filter: Filter) -> Vec<(usize, Vec<i32>)> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let one = |at: usize| {
        let center = (at as f64 + 0.5) * scale;
        let first = ((center - support + 0.5) as isize).max(0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weight = |pixel: usize| filter.weight((pixel as f64 - center + 0.5) / stretch);
        let exact: Vec<f64> = (first..end).map(weight).collect();
        let whole: f64 = exact.iter().sum();
        let fixed = |weight: f64| {
            let scaled = weight / whole * f64::from(1 << PRECISION);
            (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
        };
        (first, exact.into_iter().map(fixed).collect())
    };
    (0..to).map(one).collect()
}
