//! CLIP (Radford et al., 2021) and SigLIP (Zhai et al., 2023): texts and images to vectors of one space. Two encoders beside
//! each other, each with the layers of `encoder/`.

mod files;
mod pool;
pub mod resize;
pub mod sight;

use kernels::{Activation, Linear, Norm};
use rayon::prelude::*;

pub use self::files::{Loaded, is_clip, load};
use self::pool::Pool;
use super::StepError;
use super::encoder::body::Body;
use super::encoder::cpu::Place;
use super::encoder::pooling::normalize;

#[derive(Debug)]
pub struct Clip {
    texts: Texts,
    images: Images,
}

#[derive(Debug)]
struct Texts {
    body: Body,
    words: Vec<f32>,
    positions: Vec<f32>,
    /// What every text is filled up with to its longest, for models that were trained so.
    padding: Option<u32>,
    projection: Linear,
    hidden: usize,
}

#[derive(Debug)]
struct Images {
    body: Body,
    patches: Linear,
    /// The row before the patches, where there is one.
    class: Option<Vec<f32>>,
    positions: Vec<f32>,
    norm: Option<Norm>,
    pool: Pool,
    hidden: usize,
    /// Pixels of an edge, of the image and of a patch.
    size: usize,
    patch: usize,
}

impl Clip {
    /// A vector for each text.
    pub fn texts(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, StepError> {
        self.texts.run(texts)
    }

    /// A vector for each image, `[3, size, size]`.
    pub fn images(&self, images: &[&[f32]]) -> Result<Vec<Vec<f32>>, StepError> {
        self.images.run(images)
    }

    pub fn level(&self) -> kernels::Level {
        self.texts.body.level()
    }
}

impl Texts {
    fn run(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, StepError> {
        let (hidden, longest) = (self.hidden, self.positions.len() / self.hidden);
        let length = |text: &&[u32]| if self.padding.is_some() { longest } else { text.len() };
        let lengths: Vec<usize> = texts.iter().map(length).collect();
        let embed = |Place { sequence, position }: Place, to: &mut [f32]| {
            let token = texts[sequence].get(position).copied().or(self.padding).unwrap_or_default();
            to.copy_from_slice(&self.words[token as usize * hidden..][..hidden]);
            to.iter_mut().zip(&self.positions[position * hidden..]).for_each(|(to, more)| *to += more);
        };
        let level = self.body.level();
        // The token that ends a text has seen all of it; where texts are filled up, the last one has.
        self.body.run(&lengths, embed, |rows| {
            let mut vector = vec![0.0; self.projection.outputs()];
            self.projection.forward(level, &rows[rows.len() - hidden..], &mut vector, Activation::None);
            normalize(&mut vector);
            vector
        })
    }
}

impl Images {
    fn run(&self, images: &[&[f32]]) -> Result<Vec<Vec<f32>>, StepError> {
        let (level, hidden) = (self.body.level(), self.hidden);
        let rows: Vec<Vec<f32>> = self.body.install(|| {
            let cut = |image: &&[f32]| {
                let patches = self.cut(image);
                let mut rows = vec![0.0; patches.len() / self.patches.inputs() * hidden];
                self.patches.forward(level, &patches, &mut rows, Activation::None);
                rows
            };
            images.par_iter().map(cut).collect()
        });
        let before = usize::from(self.class.is_some());
        let places = self.positions.len() / hidden;
        let embed = |Place { sequence, position }: Place, to: &mut [f32]| {
            match (&self.class, position) {
                (Some(class), 0) => to.copy_from_slice(class),
                _ => to.copy_from_slice(&rows[sequence][(position - before) * hidden..][..hidden]),
            }
            to.iter_mut().zip(&self.positions[position * hidden..]).for_each(|(to, more)| *to += more);
            self.norm.iter().for_each(|norm| norm.apply(level, to));
        };
        self.body.run(&vec![places; images.len()], embed, |rows| {
            let mut vector = self.pool.pool(level, rows);
            normalize(&mut vector);
            vector
        })
    }

    /// The patches of an image, row by row, each with its three colours one after the other.
    fn cut(&self, image: &[f32]) -> Vec<f32> {
        let (size, patch) = (self.size, self.patch);
        let mut patches = Vec::with_capacity(image.len());
        for (top, left) in (0..size / patch).flat_map(|row| (0..size / patch).map(move |column| (row, column))) {
            for colour in image.chunks_exact(size * size) {
                for line in 0..patch {
                    patches.extend(&colour[(top * patch + line) * size + left * patch..][..patch]);
                }
            }
        }
        patches
    }
}
