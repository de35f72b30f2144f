//! GGUF files: metadata, tensors and the tokenizer they describe.
//!
//! A file is mapped; tensors are dequantized to f32 as they are read.

mod container;
mod formats;
mod tokenizer;

use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::Context;
use kernels::Mapped;

use self::container::{Container, Place, Value};
use super::LoadError;

/// An open file.
pub struct Gguf {
    path: PathBuf,
    content: Container,
    file: Mapped,
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let failed = |error: &dyn std::fmt::Display| LoadError::file(path, error);
        let file = Mapped::open(path).map_err(|error| failed(&error))?;
        let content = Container::read(&mut Cursor::new(file.bytes()))
            .map_err(|error| failed(&format!("is no readable GGUF file: {error}")))?;
        Ok(Self { path: path.to_owned(), content, file })
    }

    /// The values of a tensor.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        self.tensor(name).map(|(values, _)| values)
    }

    /// The values of a matrix, and how many stand in a row.
    pub fn matrix(&self, name: &str) -> Result<(Vec<f32>, usize), LoadError> {
        match self.tensor(name)? {
            (values, dimensions) if dimensions.len() == 2 => Ok((values, dimensions[1])),
            (_, dimensions) => Err(self.error(format!("tensor {name}: is no matrix, but {dimensions:?}"))),
        }
    }

    /// The values of matrices of one size, and how many stand in a row.
    pub fn matrices(&self, name: &str) -> Result<(Vec<Vec<f32>>, usize), LoadError> {
        match self.tensor(name)? {
            (values, dimensions) if dimensions.len() == 3 && !values.is_empty() => {
                let one = dimensions[1] * dimensions[2];
                Ok((values.chunks_exact(one).map(<[f32]>::to_vec).collect(), dimensions[2]))
            }
            (_, dimensions) => Err(self.error(format!("tensor {name}: are no matrices, but {dimensions:?}"))),
        }
    }

    /// The values of a tensor, and its dimensions from the outermost on.
    fn tensor(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>), LoadError> {
        let place = self.content.tensors.get(name);
        let place = place.ok_or_else(|| self.error(format!("tensor {name}: is missing")))?;
        self.read(place)
            .map(|values| (values, place.dimensions.clone()))
            .map_err(|error| self.error(format!("tensor {name}: {error}")))
    }

    fn read(&self, Place { dimensions, format, offset }: &Place) -> anyhow::Result<Vec<f32>> {
        let (values, bytes) =
            formats::block(*format).with_context(|| format!("format {format} of GGUF is not supported"))?;
        let count = dimensions.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
        let count = count.filter(|count| count.is_multiple_of(values)).context("its size is no number of blocks")?;
        let size = (count / values).checked_mul(bytes).context("it is too large")?;
        let start = usize::try_from(*offset)?;
        let end = start.checked_add(size).context("it is too large")?;
        Ok(self.file.read(start..end, |stored| formats::values(*format, stored, dimensions))??)
    }

    pub fn has_tensor(&self, name: &str) -> bool {
        self.content.tensors.contains_key(name)
    }

    /// Whether any tensor is of four bits.
    pub fn has_four_bits(&self) -> bool {
        self.content.tensors.values().any(|place| formats::FOUR_BITS.contains(&place.format))
    }

    pub fn string(&self, key: &str) -> Result<&str, LoadError> {
        match self.value(key)? {
            Value::Text(text) => Ok(text),
            _ => Err(self.error(format!("{key}: is no text"))),
        }
    }

    pub fn number(&self, key: &str) -> Result<usize, LoadError> {
        let number = integer(self.value(key)?).and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| self.error(format!("{key}: is not a number of things")))
    }

    pub fn float(&self, key: &str) -> Result<f32, LoadError> {
        float(self.value(key)?).ok_or_else(|| self.error(format!("{key}: is no number")))
    }

    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.content.metadata.get(key) {
            Some(Value::Flag(flag)) => Some(*flag),
            _ => None,
        }
    }

    pub fn error(&self, reason: impl std::fmt::Display) -> LoadError {
        LoadError::file(&self.path, reason)
    }

    /// The text of a token.
    pub fn token(&self, id: usize) -> Result<&str, LoadError> {
        let tokens = self.list("tokenizer.ggml.tokens")?;
        let token = tokens.get(id).and_then(text);
        token.ok_or_else(|| self.error(format!("tokenizer.ggml.tokens: has no token {id}")))
    }

    fn strings(&self, key: &str) -> Result<Vec<&str>, LoadError> {
        let texts = self.list(key)?.iter().map(text);
        texts.collect::<Option<_>>().ok_or_else(|| self.error(format!("{key}: holds what is no text")))
    }

    fn floats(&self, key: &str) -> Result<Vec<f32>, LoadError> {
        let numbers = self.list(key)?.iter().map(float);
        numbers.collect::<Option<_>>().ok_or_else(|| self.error(format!("{key}: holds what is no number")))
    }

    fn list(&self, key: &str) -> Result<&[Value], LoadError> {
        match self.value(key)? {
            Value::List(values) => Ok(values),
            _ => Err(self.error(format!("{key}: is no list"))),
        }
    }

    fn value(&self, key: &str) -> Result<&Value, LoadError> {
        self.content.metadata.get(key).ok_or_else(|| self.error(format!("metadata {key} is missing")))
    }
}

fn integer(value: &Value) -> Option<i64> {
    if let Value::Integer(number) = value { Some(*number) } else { None }
}

fn float(value: &Value) -> Option<f32> {
    if let Value::Float(number) = value { Some(*number as f32) } else { None }
}

fn text(value: &Value) -> Option<&str> {
    if let Value::Text(text) = value { Some(text) } else { None }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kernels::Int4Linear;

    use super::*;

    #[test]
    fn every_format_is_read_as_the_reference_reads_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/decoders");
        let golden: BTreeMap<String, Vec<f32>> =
            serde_json::from_slice(&std::fs::read(folder.join("formats.json")).unwrap()).unwrap();
        let file = Gguf::open(&folder.join("formats.gguf")).unwrap();
        assert_eq!(golden.len(), 13);
        for (format, theirs) in golden {
            let ours = file.values(&format).unwrap();
            assert_eq!(ours.len(), theirs.len());
            let most = theirs.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            let near = ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() <= 1e-5 * most);
            assert!(near, "{format}: {ours:?} and {theirs:?}");
            let is_of_four_bits = ["Q4_0", "Q4_1", "Q4_K", "MXFP4"].contains(&&*format);
            assert_eq!(Int4Linear::exact(&ours, None, ours.len()).is_some(), is_of_four_bits, "{format}");
        }
        assert!(file.has_four_bits());
    }

    /// What is read of a file: its tokenizer, and all tensors.
    fn read_all(path: &Path) -> Result<(), LoadError> {
        let file = Gguf::open(path)?;
        file.tokenizer()?;
        let names: Vec<String> = file.content.tensors.keys().cloned().collect();
        names.iter().try_for_each(|name| file.values(name).map(drop))
    }

    #[test]
    fn whatever_is_cut_off_or_changed_is_no_more_than_an_error() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/decoders");
        let temporary = tempfile::tempdir().unwrap();
        let place = temporary.path().join("model.gguf");
        let mut random = fastrand::Rng::with_seed(3);
        for name in ["qwen2/model.gguf", "pieces.gguf", "gpt-oss-mxfp4/model.gguf"] {
            let whole = std::fs::read(folder.join(name)).unwrap();
            read_all(&folder.join(name)).unwrap();
            for _ in 0..150 {
                std::fs::write(&place, &whole[..random.usize(..whole.len())]).unwrap();
                assert!(read_all(&place).is_err(), "{name} is cut off");
                let mut changed = whole.clone();
                // Most of what is no weight stands at the beginning.
                let last = if random.bool() { 200 } else { whole.len() };
                changed[random.usize(..last)] ^= 1 << random.u32(0..8);
                std::fs::write(&place, changed).unwrap();
                let _ = read_all(&place);
            }
        }
    }

    #[test]
    fn a_file_that_is_no_gguf_is_an_error_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in
            [("empty.gguf", &b""[..]), ("text.gguf", b"hello"), ("cut.gguf", b"GGUF\x03\0\0\0\xff\0\0\0\0\0\0\0")]
        {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let message = Gguf::open(&path).map(drop).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains("is no readable GGUF file"), "{message}");
        }
        assert!(Gguf::open(Path::new("/missing.gguf")).is_err());
    }
}
