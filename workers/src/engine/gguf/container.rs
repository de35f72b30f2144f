//! The container of GGUF: numbers and texts by their keys, then tensors one after the other.
//!
//! candle's reader refuses a file for one format that it does not know, such as MXFP4, so this one is our own; blocks are
//! turned into numbers by candle.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};

const MAGIC: [u8; 4] = *b"GGUF";
/// Where tensors begin, unless the file says another number.
const ALIGNMENT: u64 = 32;
/// Lists are of numbers or texts, or of lists of such.
const DEPTH_MAX: usize = 4;
const DIMENSIONS_MAX: usize = 4;
const TEXT_MAX: usize = 64 << 20;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Integer(i64),
    Float(f64),
    Flag(bool),
    Text(String),
    List(Vec<Value>),
}

/// Where a tensor lies, and how it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// From the outermost on.
    pub dimensions: Vec<usize>,
    pub format: u32,
    /// From the beginning of the file.
    pub offset: u64,
}

#[derive(Debug)]
pub struct Container {
    pub metadata: HashMap<String, Value>,
    pub tensors: HashMap<String, Place>,
}

impl Container {
    pub fn read(file: &mut (impl Read + Seek)) -> io::Result<Self> {
        let length = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        let mut reader = Reader { file, at: 0, length, version: 0 };
        if reader.bytes::<4>()? != MAGIC {
            return Err(wrong("it does not begin with GGUF"));
        }
        reader.version = u32::from_le_bytes(reader.bytes()?);
        if !(1..=3).contains(&reader.version) {
            return Err(wrong(format!("its version is {}; 1 to 3 are known", reader.version)));
        }
        let (tensors, keys) = (reader.count()?, reader.count()?);
        let mut metadata = HashMap::new();
        for _ in 0..keys {
            let (key, kind) = (reader.text()?, reader.number()?);
            let value = reader.value(kind, 0)?;
            metadata.insert(key, value);
        }
        let mut found = HashMap::new();
        for _ in 0..tensors {
            let name = reader.text()?;
            let place = reader.place().map_err(|error| wrong(format!("tensor {name}: {error}")))?;
            found.insert(name, place);
        }
        let alignment = match metadata.get("general.alignment") {
            Some(Value::Integer(number)) => u64::try_from(*number).ok().filter(|number| *number > 0),
            _ => Some(ALIGNMENT),
        };
        let first = reader.at.next_multiple_of(alignment.ok_or_else(|| wrong("general.alignment: is no size"))?);
        for place in found.values_mut() {
            place.offset = place.offset.checked_add(first).ok_or_else(|| wrong("a tensor lies nowhere"))?;
        }
        Ok(Self { metadata, tensors: found })
    }
}

struct Reader<'a, R> {
    file: &'a mut R,
    at: u64,
    length: u64,
    version: u32,
}

impl<R: Read> Reader<'_, R> {
    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn number(&mut self) -> io::Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    /// Of things that take a byte each at the least: there are no more than the file has.
    fn count(&mut self) -> io::Result<usize> {
        let count = match self.version {
            1 => self.number()?.into(),
            _ => u64::from_le_bytes(self.bytes()?),
        };
        if count > self.length - self.at {
            return Err(wrong("it is cut off"));
        }
        usize::try_from(count).map_err(wrong)
    }

    fn text(&mut self) -> io::Result<String> {
        let count = self.count()?;
        if count > TEXT_MAX {
            return Err(wrong(format!("a text of {count} bytes is too long")));
        }
        let mut bytes = vec![0; count];
        self.file.read_exact(&mut bytes)?;
        self.at += bytes.len() as u64;
        String::from_utf8(bytes).map_err(|_| wrong("a text is not in UTF-8"))
    }

    fn value(&mut self, kind: u32, depth: usize) -> io::Result<Value> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.bytes()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Integer(self.number()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Value::Flag(self.bytes::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 if depth < DEPTH_MAX => {
                let (kind, count) = (self.number()?, self.count()?);
                Value::List((0..count).map(|_| self.value(kind, depth + 1)).collect::<io::Result<_>>()?)
            }
            // More than can be is as wrong as what is negative.
            10 => Value::Integer(i64::try_from(u64::from_le_bytes(self.bytes()?)).unwrap_or(-1)),
            11 => Value::Integer(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(wrong(format!("a value is of kind {other}"))),
        })
    }

    fn place(&mut self) -> io::Result<Place> {
        let count = self.number()? as usize;
        if count > DIMENSIONS_MAX {
            return Err(wrong(format!("{count} dimensions are too many")));
        }
        let mut dimensions = Vec::with_capacity(count);
        for _ in 0..count {
            let size = match self.version {
                1 => self.number()?.into(),
                _ => u64::from_le_bytes(self.bytes()?),
            };
            dimensions.push(usize::try_from(size).map_err(wrong)?);
        }
        dimensions.reverse();
        Ok(Place { dimensions, format: self.number()?, offset: u64::from_le_bytes(self.bytes()?) })
    }
}

fn wrong(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
