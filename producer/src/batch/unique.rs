//! Finds a name that stands twice in a file of any size: digests are kept in memory up to a bound, and above it in
//! temporary files by their first byte, each of which is then small enough to be looked through.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use sha2::{Digest, Sha256};

/// 24 bytes each: 48 MiB.
const IN_MEMORY_MAX: usize = 2 << 20;
const PARTS: usize = 256;

/// 128 bits of a name's digest and the row it stands in.
type Entry = (u128, u64);

#[derive(Debug, Default)]
pub struct Unique {
    recent: Vec<Entry>,
    parts: Vec<BufWriter<File>>,
}

impl Unique {
    pub fn insert(&mut self, name: &str, row: u64) -> io::Result<()> {
        let digest = Sha256::digest(name);
        let bytes: [u8; 16] = digest[..16].try_into().expect("a digest has 32 bytes");
        self.recent.push((u128::from_be_bytes(bytes), row));
        if self.recent.len() >= IN_MEMORY_MAX { self.spill() } else { Ok(()) }
    }

    /// Two rows with the same name, the first of which is the earlier, if there are any.
    pub fn duplicate(mut self) -> io::Result<Option<(u64, u64)>> {
        if self.parts.is_empty() {
            return Ok(first_duplicate(&mut self.recent));
        }
        self.spill()?;
        let mut found: Option<(u64, u64)> = None;
        for part in self.parts {
            let mut file = part.into_inner().map_err(io::IntoInnerError::into_error)?;
            let pair = first_duplicate(&mut read_entries(&mut file)?);
            found = [found, pair].into_iter().flatten().min_by_key(|pair| pair.1);
        }
        Ok(found)
    }

    fn spill(&mut self) -> io::Result<()> {
        while self.parts.len() < PARTS {
            self.parts.push(BufWriter::new(tempfile::tempfile()?));
        }
        for (digest, row) in self.recent.drain(..) {
            let part = &mut self.parts[(digest >> 120) as usize];
            part.write_all(&digest.to_le_bytes())?;
            part.write_all(&row.to_le_bytes())?;
        }
        Ok(())
    }
}

fn first_duplicate(entries: &mut [Entry]) -> Option<(u64, u64)> {
    entries.sort_unstable();
    let pairs = entries.windows(2).filter(|pair| pair[0].0 == pair[1].0);
    pairs.map(|pair| (pair[0].1, pair[1].1)).min_by_key(|pair| pair.1)
}

fn read_entries(file: &mut File) -> io::Result<Vec<Entry>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    let entry = |chunk: &[u8]| {
        let digest = u128::from_le_bytes(chunk[..16].try_into().expect("16 bytes"));
        (digest, u64::from_le_bytes(chunk[16..].try_into().expect("8 bytes")))
    };
    Ok(bytes.chunks_exact(24).map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_duplicate_is_found_in_memory_and_in_parts() {
        for spill in [false, true] {
            let mut unique = Unique::default();
            for (row, name) in ["a", "b", "c", "b", "a"].into_iter().enumerate() {
                unique.insert(name, row as u64).unwrap();
                if spill {
                    unique.spill().unwrap();
                }
            }
            assert_eq!(unique.duplicate().unwrap(), Some((1, 3)));
        }
        let mut unique = Unique::default();
        unique.insert("a", 0).unwrap();
        assert_eq!(unique.duplicate().unwrap(), None);
    }
}
