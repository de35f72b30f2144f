//! How a model sees: what is done to an image before it is cut into patches, as `preprocessor_config.json` says it.

use std::path::Path;

use serde_json::Value;

use super::resize::{Filter, Pixels};
use crate::engine::LoadError;
use crate::engine::model_config::optional;

/// Means and deviations of the images that OpenAI's models were trained on.
const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// How similarities become scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Similarity {
    pub scale: f32,
    pub bias: f32,
    /// Each class by itself, rather than all against each other.
    pub is_sigmoid: bool,
}

#[derive(Clone, Debug)]
pub struct Sight {
    /// Of the image that is seen.
    pub size: usize,
    /// Rows that the encoder makes of an image.
    pub places: usize,
    pub similarity: Similarity,
    resize: Resize,
    crops: bool,
    filter: Filter,
    factor: f64,
    mean: [f32; 3],
    deviation: [f32; 3],
}

#[derive(Clone, Copy, Debug)]
enum Resize {
    None,
    /// The shorter edge; the other one as the image is.
    Shortest(usize),
    Exact(usize, usize),
}

impl Sight {
    pub fn read(folder: &Path, size: usize, places: usize, similarity: Similarity) -> Result<Self, LoadError> {
        let path = folder.join("preprocessor_config.json");
        let config: Value = optional(folder, "preprocessor_config.json")?.unwrap_or_default();
        let wrong = |reason: &str| LoadError::file(&path, reason);
        let count = |value: &Value| value.as_u64().map(|count| count as usize);
        let resize = match (&config["do_resize"], &config["size"]) {
            (Value::Bool(false), _) => Resize::None,
            (_, Value::Null) => Resize::Shortest(size),
            (_, Value::Object(sides)) => match (sides.get("shortest_edge"), sides.get("height"), sides.get("width")) {
                (Some(edge), ..) => Resize::Shortest(count(edge).ok_or_else(|| wrong("size: is no number"))?),
                (_, Some(height), Some(width)) => {
                    let sides = count(width).zip(count(height)).ok_or_else(|| wrong("size: is no number"))?;
                    Resize::Exact(sides.0, sides.1)
                }
                _ => return Err(wrong("size: has neither shortest_edge nor height and width")),
            },
            (_, edge) => Resize::Shortest(count(edge).ok_or_else(|| wrong("size: is no number"))?),
        };
        let filter = match config["resample"].as_u64() {
            Some(2) => Filter::Bilinear,
            None | Some(3) => Filter::Bicubic,
            Some(other) => return Err(wrong(&format!("resample: {other} is neither 2, bilinear, nor 3, bicubic"))),
        };
        let three = |name: &str, default: [f64; 3]| {
            let given =
                config[name].as_array().map(|values| values.iter().filter_map(Value::as_f64).collect::<Vec<_>>());
            match given.as_deref() {
                None => Ok(default.map(|value| value as f32)),
                Some(&[red, green, blue]) => Ok([red as f32, green as f32, blue as f32]),
                Some(_) => Err(wrong(&format!("{name}: is not three numbers"))),
            }
        };
        let flag = |name: &str| config[name].as_bool().unwrap_or(true);
        let (mean, deviation) = match flag("do_normalize") {
            true => (three("image_mean", MEAN)?, three("image_std", DEVIATION)?),
            false => ([0.0; 3], [1.0; 3]),
        };
        let factor = if flag("do_rescale") { config["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0) } else { 1.0 };
        // Where nothing is said of it, a shortest edge is followed by a crop.
        let crops = config["do_center_crop"].as_bool().unwrap_or(matches!(resize, Resize::Shortest(_)));
        Ok(Self { size, places, similarity, resize, crops, filter, factor, mean, deviation })
    }

    /// The image as the model sees it, `[3, size, size]`.
    pub fn see(&self, image: &Pixels) -> Vec<f32> {
        let (width, height) = match self.resize {
            Resize::None => (image.width, image.height),
            Resize::Exact(width, height) => (width, height),
            Resize::Shortest(edge) => {
                let longer = |long: usize, short: usize| (edge as f64 * long as f64 / short as f64) as usize;
                match image.width <= image.height {
                    true => (edge, longer(image.height, image.width).max(1)),
                    false => (longer(image.width, image.height).max(1), edge),
                }
            }
        };
        let mut seen = image.resized(width, height, self.filter);
        if self.crops || (seen.width, seen.height) != (self.size, self.size) {
            seen = seen.cropped(self.size, self.size);
        }
        let mut values = Vec::with_capacity(seen.values.len());
        for channel in 0..3 {
            let pixels = seen.values[channel..].iter().step_by(3);
            values.extend(pixels.map(|pixel| {
                let value = (f64::from(*pixel) * self.factor) as f32;
                (value - self.mean[channel]) / self.deviation[channel]
            }));
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_scaled_by_its_shorter_edge_and_cropped() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("preprocessor_config.json"), r#"{"do_normalize": false}"#).unwrap();
        let similarity = Similarity { scale: 1.0, bias: 0.0, is_sigmoid: false };
        let sight = Sight::read(folder.path(), 2, 5, similarity).unwrap();
        // Green in the middle, red beside it.
        let row = [[255, 0, 0], [0, 255, 0], [0, 255, 0], [255, 0, 0]].concat();
        let image = Pixels { width: 4, height: 2, values: row.repeat(2) };
        let seen = sight.see(&image);
        assert_eq!(seen, [[0.0; 4], [1.0; 4], [0.0; 4]].concat());
    }
}
