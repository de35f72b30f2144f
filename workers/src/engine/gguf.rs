//! GGUF files: metadata, tensors and the tokenizer they describe.
//!
//! Tensors are dequantized to f32 as they are read.

mod tokenizer;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use super::LoadError;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};

/// An open file.
pub struct Gguf {
    path: PathBuf,
    content: Content,
    reader: BufReader<File>,
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let failed = |error: &dyn std::fmt::Display| LoadError::file(path, error);
        let file = File::open(path).map_err(|error| failed(&error))?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let content =
            Content::read(&mut reader).map_err(|error| failed(&format!("is no readable GGUF file: {error}")))?;
        Ok(Self { path: path.to_owned(), content, reader })
    }

    /// The values of a tensor.
    pub fn values(&mut self, name: &str) -> Result<Vec<f32>, LoadError> {
        let values = self.tensor(name)?.flatten_all().and_then(|tensor| tensor.to_vec1());
        values.map_err(|error| self.error(format!("tensor {name}: {error}")))
    }

    /// The values of a matrix, and how many stand in a row.
    pub fn matrix(&mut self, name: &str) -> Result<(Vec<f32>, usize), LoadError> {
        let tensor = self.tensor(name)?;
        let read = || Ok((tensor.flatten_all()?.to_vec1()?, tensor.dims2()?.1));
        read().map_err(|error: candle_core::Error| self.error(format!("tensor {name}: {error}")))
    }

    fn tensor(&mut self, name: &str) -> Result<Tensor, LoadError> {
        let read = self.content.tensor(&mut self.reader, name, &Device::Cpu);
        let dequantized = read.and_then(|tensor| tensor.dequantize(&Device::Cpu));
        dequantized.map_err(|error| self.error(format!("tensor {name}: {error}")))
    }

    pub fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    pub fn string(&self, key: &str) -> Result<&str, LoadError> {
        self.value(key)?.to_string().map(String::as_str).map_err(|error| self.error(format!("{key}: {error}")))
    }

    pub fn number(&self, key: &str) -> Result<usize, LoadError> {
        let value = self.value(key)?;
        let number = integer(value).and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| self.error(format!("{key}: {value:?} is not a number of things")))
    }

    pub fn float(&self, key: &str) -> Result<f32, LoadError> {
        self.value(key)?.to_f32().map_err(|error| self.error(format!("{key}: {error}")))
    }

    pub fn flag(&self, key: &str) -> Option<bool> {
        self.content.metadata.get(key).and_then(|value| value.to_bool().ok())
    }

    pub fn error(&self, reason: impl std::fmt::Display) -> LoadError {
        LoadError::file(&self.path, reason)
    }

    /// The text of a token.
    pub fn token(&self, id: usize) -> Result<&str, LoadError> {
        let tokens = self.list("tokenizer.ggml.tokens")?;
        let token = tokens.get(id).and_then(|token| token.to_string().ok());
        token.map(String::as_str).ok_or_else(|| self.error(format!("tokenizer.ggml.tokens: has no token {id}")))
    }

    fn strings(&self, key: &str) -> Result<Vec<&str>, LoadError> {
        let texts = self.list(key)?.iter().map(|value| value.to_string().map(String::as_str));
        texts.collect::<candle_core::Result<_>>().map_err(|error| self.error(format!("{key}: {error}")))
    }

    fn floats(&self, key: &str) -> Result<Vec<f32>, LoadError> {
        let numbers = self.list(key)?.iter().map(Value::to_f32);
        numbers.collect::<candle_core::Result<_>>().map_err(|error| self.error(format!("{key}: {error}")))
    }

    fn list(&self, key: &str) -> Result<&Vec<Value>, LoadError> {
        self.value(key)?.to_vec().map_err(|error| self.error(format!("{key}: {error}")))
    }

    fn value(&self, key: &str) -> Result<&Value, LoadError> {
        self.content.metadata.get(key).ok_or_else(|| self.error(format!("metadata {key} is missing")))
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::U8(number) => Some((*number).into()),
        Value::I8(number) => Some((*number).into()),
        Value::U16(number) => Some((*number).into()),
        Value::I16(number) => Some((*number).into()),
        Value::U32(number) => Some((*number).into()),
        Value::I32(number) => Some((*number).into()),
        Value::U64(number) => i64::try_from(*number).ok(),
        Value::I64(number) => Some(*number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_format_is_read_as_the_reference_reads_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/decoders");
        let golden: BTreeMap<String, Vec<f32>> =
            serde_json::from_slice(&std::fs::read(folder.join("formats.json")).unwrap()).unwrap();
        let mut file = Gguf::open(&folder.join("formats.gguf")).unwrap();
        assert_eq!(golden.len(), 12);
        for (format, theirs) in golden {
            let ours = file.values(&format).unwrap();
            assert_eq!(ours.len(), theirs.len());
            let most = theirs.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            let near = ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() <= 1e-5 * most);
            assert!(near, "{format}: {ours:?} and {theirs:?}");
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
