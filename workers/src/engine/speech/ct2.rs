//! Files of CTranslate2 (`model.bin`), the format of faster-whisper, under the names of Hugging Face's transformers.
//!
//! A file is a list of named arrays. Projections that share their inputs are one array; it is cut apart here. Weights in
//! int8 have a scale for each row.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use kernels::Mapped;

use crate::engine::LoadError;
use crate::engine::tensors::Tensor;

pub const FILE: &str = "model.bin";
/// The newest version of the format that is known here.
const VERSION_MAX: u32 = 6;
const ARRAYS_MAX: u32 = 100_000;
const NAME: &str = "WhisperSpec";

/// Arrays of a file, read when they are asked for.
pub struct Arrays {
    path: PathBuf,
    file: Mapped,
    arrays: HashMap<String, Array>,
}

#[derive(Clone, Debug)]
struct Array {
    shape: Vec<usize>,
    kind: u8,
    bytes: Range<usize>,
}

impl Arrays {
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join(FILE);
        let wrong = |reason: String| LoadError::file(&path, reason);
        let file = Mapped::open(&path).map_err(|error| wrong(error.to_string()))?;
        let arrays = list(file.bytes()).map_err(wrong)?;
        Ok(Self { path, file, arrays })
    }

    /// A number that stands by itself.
    pub fn number(&self, name: &str) -> Result<usize, LoadError> {
        let (_, bytes) = self.read(name)?;
        let mut value = [0; 8];
        let count = bytes.len().min(8);
        value[..count].copy_from_slice(&bytes[..count]);
        Ok(u64::from_le_bytes(value) as usize)
    }

    pub fn shape(&self, name: &str) -> Result<&[usize], LoadError> {
        self.arrays.get(name).map(|array| &*array.shape).ok_or_else(|| self.missing(name))
    }

    /// The tensor that transformers calls so.
    pub fn get(&self, name: &str) -> Result<Tensor, LoadError> {
        let Place { array, part } = place(name).ok_or_else(|| self.missing(name))?;
        let Tensor { mut shape, mut values } = self.floats(&array)?;
        if let Some((index, count)) = part {
            let rows = shape[0] / count;
            let row = values.len() / shape[0].max(1);
            values = values[index * rows * row..(index + 1) * rows * row].to_vec();
            shape[0] = rows;
        }
        Ok(Tensor { shape, values })
    }

    fn floats(&self, name: &str) -> Result<Tensor, LoadError> {
        let (array, bytes) = self.read(name)?;
        let values: Vec<f32> = match array.kind {
            0 => bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect(),
            4 => bytes.chunks_exact(2).map(|two| f16::from_le_bytes([two[0], two[1]]).to_f32()).collect(),
            5 => bytes.chunks_exact(2).map(|two| bf16::from_le_bytes([two[0], two[1]]).to_f32()).collect(),
            1 => {
                let scales = self.floats(&format!("{name}_scale"))?.values;
                let row = bytes.len() / scales.len().max(1);
                let scaled = |(row, scale): (&[u8], &f32)| -> Vec<f32> {
                    row.iter().map(|byte| f32::from(byte.cast_signed()) / scale).collect()
                };
                bytes.chunks_exact(row.max(1)).zip(&scales).flat_map(scaled).collect()
            }
            other => {
                let reason = format!("array {name} is of type {other}; f32, f16, bf16 and int8 are read");
                return Err(LoadError::file(&self.path, reason));
            }
        };
        match values.len() == array.shape.iter().product::<usize>() {
            true => Ok(Tensor { shape: array.shape.clone(), values }),
            false => Err(LoadError::file(&self.path, format!("array {name} has not the size of its shape"))),
        }
    }

    fn read(&self, name: &str) -> Result<(&Array, Vec<u8>), LoadError> {
        let array = self.arrays.get(name).ok_or_else(|| self.missing(name))?;
        let bytes = self.file.read(array.bytes.clone(), <[u8]>::to_vec);
        Ok((array, bytes.map_err(|error| LoadError::file(&self.path, error))?))
    }

    fn missing(&self, name: &str) -> LoadError {
        LoadError::file(&self.path, format!("array {name} is missing"))
    }
}

/// Where a tensor is: an array, and which of how many parts of its rows.
#[derive(Debug, PartialEq)]
struct Place {
    array: String,
    part: Option<(usize, usize)>,
}

/// From the name of a tensor in transformers, such as `decoder.layers.0.encoder_attn.k_proj.weight`.
fn place(name: &str) -> Option<Place> {
    let whole = |array: String| Some(Place { array, part: None });
    let (side, rest) = name.split_once('.')?;
    match rest {
        "embed_positions.weight" => return whole(format!("{side}/position_encodings/encodings")),
        "embed_tokens.weight" => return whole(format!("{side}/embeddings/weight")),
        "layer_norm.weight" => return whole(format!("{side}/layer_norm/gamma")),
        "layer_norm.bias" => return whole(format!("{side}/layer_norm/beta")),
        _ => {}
    }
    if let Some((conv, kind)) = rest.split_once('.').filter(|(conv, _)| conv.starts_with("conv")) {
        return whole(format!("{side}/{conv}/{kind}"));
    }
    let mut words = rest.strip_prefix("layers.")?.splitn(2, '.');
    let (layer, part) = (words.next()?, words.next()?);
    let (part, kind) = part.rsplit_once('.')?;
    let norm = if kind == "weight" { "gamma" } else { "beta" };
    let (array, cut) = match part {
        "self_attn_layer_norm" => (format!("self_attention/layer_norm/{norm}"), None),
        "encoder_attn_layer_norm" => (format!("attention/layer_norm/{norm}"), None),
        "final_layer_norm" => (format!("ffn/layer_norm/{norm}"), None),
        "self_attn.q_proj" => (format!("self_attention/linear_0/{kind}"), Some((0, 3))),
        "self_attn.k_proj" => (format!("self_attention/linear_0/{kind}"), Some((1, 3))),
        "self_attn.v_proj" => (format!("self_attention/linear_0/{kind}"), Some((2, 3))),
        "self_attn.out_proj" => (format!("self_attention/linear_1/{kind}"), None),
        "encoder_attn.q_proj" => (format!("attention/linear_0/{kind}"), None),
        "encoder_attn.k_proj" => (format!("attention/linear_1/{kind}"), Some((0, 2))),
        "encoder_attn.v_proj" => (format!("attention/linear_1/{kind}"), Some((1, 2))),
        "encoder_attn.out_proj" => (format!("attention/linear_2/{kind}"), None),
        "fc1" => (format!("ffn/linear_0/{kind}"), None),
        "fc2" => (format!("ffn/linear_1/{kind}"), None),
        _ => return None,
    };
    Some(Place { array: format!("{side}/layer_{layer}/{array}"), part: cut })
}

/// The arrays of a file.
fn list(file: &[u8]) -> Result<HashMap<String, Array>, String> {
    let mut reader = Reader { file, at: 0 };
    let version = reader.u32()?;
    if version == 0 || version > VERSION_MAX {
        return Err(format!("is no file of CTranslate2, or of a version that is not known: {version}"));
    }
    let spec = reader.text()?;
    if spec != NAME {
        return Err(format!("holds a model of the kind {spec:?}; {NAME:?} is wanted"));
    }
    reader.u32()?;
    let count = reader.u32()?;
    if count > ARRAYS_MAX {
        return Err(format!("{count} arrays are too many for a model"));
    }
    let mut arrays = HashMap::new();
    for _ in 0..count {
        let name = reader.text()?;
        let rank = reader.u8()?;
        let shape = (0..rank).map(|_| Ok(reader.u32()? as usize)).collect::<Result<_, String>>()?;
        let (kind, count) = (reader.u8()?, reader.u32()? as usize);
        let start = reader.at;
        reader.take(count).map_err(|error| format!("{error}: array {name}"))?;
        arrays.insert(name, Array { shape, kind, bytes: start..reader.at });
    }
    // Names that stand for others.
    if version >= 3 {
        for _ in 0..reader.u32()?.min(ARRAYS_MAX) {
            let (alias, name) = (reader.text()?, reader.text()?);
            if let Some(array) = arrays.get(&name).cloned() {
                arrays.insert(alias, array);
            }
        }
    }
    Ok(arrays)
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (rest, size) = (&self.file[self.at..], self.file.len());
        let taken = rest.get(..count).ok_or_else(|| format!("is cut off: {size} bytes of {}", self.at + count))?;
        self.at += count;
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(self.bytes::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    /// A text with its length before it and a zero behind.
    fn text(&mut self) -> Result<String, String> {
        let length = u16::from_le_bytes(self.bytes()?);
        let text = self.take(length.into())?.split_last().map_or(&[][..], |(_, text)| text);
        String::from_utf8(text.to_vec()).map_err(|_| "a name in it is no text".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_found_under_the_names_of_transformers() {
        let found = |name| place(name).map(|Place { array, part }| (array, part));
        let of = |array: &str, part| Some((array.to_owned(), part));
        assert_eq!(found("encoder.conv1.weight"), of("encoder/conv1/weight", None));
        assert_eq!(found("decoder.layer_norm.bias"), of("decoder/layer_norm/beta", None));
        assert_eq!(
            found("decoder.layers.12.encoder_attn.v_proj.bias"),
            of("decoder/layer_12/attention/linear_1/bias", Some((1, 2)))
        );
        assert_eq!(found("encoder.layers.0.fc2.weight"), of("encoder/layer_0/ffn/linear_1/weight", None));
        assert_eq!(found("encoder.layers.0.other.weight"), None);
    }
}
