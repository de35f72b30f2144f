//! Tensors of safetensors files, which are mapped and read one tensor at a time, so that a model is never in memory twice.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use kernels::Mapped;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use super::LoadError;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// A larger header is none.
const HEADER_BYTES_MAX: usize = 64 << 20;

/// A matrix or a vector, in f32.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// All tensors of a model.
pub struct Tensors {
    source: Arc<Source>,
    /// What names begin with where the model was saved as a part of another, such as `bert.`.
    prefix: String,
}

struct Source {
    folder: PathBuf,
    tensors: HashMap<String, (usize, TensorInfo)>,
    files: Vec<Opened>,
}

struct Opened {
    path: PathBuf,
    file: Mapped,
    /// Where the values begin.
    start: usize,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// The files that hold a model's weights, in a fixed order.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let index = folder.join(INDEX);
    let Ok(text) = std::fs::read(&index) else { return Ok(vec![folder.join(SINGLE)]) };
    let Index { weight_map } = serde_json::from_slice(&text).map_err(|error| LoadError::file(&index, error))?;
    let mut names: Vec<String> = weight_map.into_values().collect();
    names.sort();
    names.dedup();
    match names.iter().find(|name| name.contains('/')) {
        Some(name) => Err(LoadError::file(&index, format!("{name:?} leaves the folder"))),
        None => Ok(names.into_iter().map(|name| folder.join(name)).collect()),
    }
}

impl Tensors {
    /// Opens a model's files. `prefixes` are what names may begin with; the first tensor that has one decides.
    pub fn open(folder: &Path, prefixes: &[&str]) -> Result<Self, LoadError> {
        let (mut tensors, mut opened) = (HashMap::new(), Vec::new());
        for path in files(folder)? {
            let (file, header) = open(&path).map_err(|reason| LoadError::file(&path, reason))?;
            tensors.extend(header.tensors.into_iter().map(|(name, info)| (name, (opened.len(), info))));
            opened.push(Opened { path, file, start: header.start });
        }
        let begins = |prefix: &&&str| tensors.keys().any(|name| name.starts_with(**prefix));
        let prefix = prefixes.iter().find(begins).map_or(String::new(), |prefix| (*prefix).to_owned());
        Ok(Self { source: Arc::new(Source { folder: folder.to_owned(), tensors, files: opened }), prefix })
    }

    /// A tensor of the model itself.
    pub fn get(&self, name: &str) -> Result<Tensor, LoadError> {
        self.named(&format!("{}{name}", self.prefix))
    }

    /// A vector of that length.
    pub fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        self.shaped(name, &[length])
    }

    /// A matrix of that shape.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Vec<f32>, LoadError> {
        self.shaped(name, &shape)
    }

    /// The values of a tensor of that shape.
    pub fn shaped(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let tensor = self.get(name)?;
        self.check(name, &tensor.shape, shape).map(|()| tensor.values)
    }

    /// The bytes of a tensor of that shape.
    pub fn bytes(&self, name: &str, shape: &[usize]) -> Result<Vec<u8>, LoadError> {
        let (info, path, bytes) = self.source.read(&format!("{}{name}", self.prefix), |_, bytes| bytes.to_vec())?;
        if info.dtype != Dtype::U8 {
            return Err(LoadError::file(path, format!("tensor {name} is {:?}; U8 is wanted", info.dtype)));
        }
        self.check(name, &info.shape, shape).map(|()| bytes)
    }

    pub fn has(&self, name: &str) -> bool {
        self.source.tensors.contains_key(&format!("{}{name}", self.prefix))
    }

    /// The same files with names from their beginning: what stands beside the model, such as a classifier.
    pub fn outside(&self) -> Self {
        Self { source: Arc::clone(&self.source), prefix: String::new() }
    }

    fn check(&self, name: &str, found: &[usize], wanted: &[usize]) -> Result<(), LoadError> {
        if found == wanted {
            return Ok(());
        }
        let reason = format!("tensor {}{name} has the shape {found:?}; {wanted:?} is wanted", self.prefix);
        Err(LoadError::file(&self.source.folder, reason))
    }

    fn named(&self, name: &str) -> Result<Tensor, LoadError> {
        let (info, path, values) = self.source.read(name, floats)?;
        match values {
            Some(values) => Ok(Tensor { shape: info.shape.clone(), values }),
            None => {
                let reason = format!("tensor {name} is {:?}; F32, F16 and BF16 are read", info.dtype);
                Err(LoadError::file(path, reason))
            }
        }
    }
}

impl Source {
    /// What the header says of a tensor, the file it is in, and what is made of its bytes.
    fn read<T>(&self, name: &str, make: impl FnOnce(Dtype, &[u8]) -> T) -> Result<(&TensorInfo, &Path, T), LoadError> {
        let Some((file, info)) = self.tensors.get(name) else {
            return Err(LoadError::file(&self.folder, format!("tensor {name} is missing")));
        };
        let Opened { path, file, start } = &self.files[*file];
        let (from, to) = info.data_offsets;
        let made = file.read(start + from..start + to, |bytes| make(info.dtype, bytes));
        let made = made.map_err(|error| LoadError::file(path, format!("tensor {name}: {error}")))?;
        Ok((info, path, made))
    }
}

/// Where they are of a type that is read.
fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => {
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect()
        }
        Dtype::F16 => bytes.chunks_exact(2).map(|two| f16::from_le_bytes([two[0], two[1]]).to_f32()).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|two| bf16::from_le_bytes([two[0], two[1]]).to_f32()).collect(),
        _ => return None,
    })
}

struct Header {
    tensors: Vec<(String, TensorInfo)>,
    start: usize,
}

fn open(path: &Path) -> Result<(Mapped, Header), String> {
    let file = Mapped::open(path).map_err(|error| error.to_string())?;
    let bytes = file.bytes();
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or("is no safetensors file: it is too short")?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > HEADER_BYTES_MAX {
        return Err("is no safetensors file: its header would be too long".to_owned());
    }
    let header = rest.get(..length).ok_or("is cut off: its header is not whole")?;
    let metadata: Metadata = serde_json::from_slice(header).map_err(|error| error.to_string())?;
    let (start, size) = (8 + length, bytes.len());
    if size < start + metadata.data_len() {
        return Err(format!("is cut off: {size} bytes of {}", start + metadata.data_len()));
    }
    let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
    Ok((file, Header { tensors, start }))
}
