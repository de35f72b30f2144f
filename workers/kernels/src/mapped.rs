//! A file that is mapped into memory, so that what is read of it need not be copied before it is turned into weights.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::{Advice, Mmap, UncheckedAdvice};

/// The bytes of a file, which must not be cut off before this is dropped: the system ends a process that reads what is gone.
#[derive(Debug)]
pub struct Mapped(Mmap);

impl Mapped {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no file"));
        }
        // SAFETY: nothing is written through the map, and it is read as bytes, of which any will do.
        unsafe { Mmap::map(&file) }.map(Self)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Hands over some bytes that are read once. They are asked of the disk together, and do not stay in the process's memory.
    pub fn read<T>(&self, range: Range<usize>, read: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        let cut_off = || io::Error::new(io::ErrorKind::UnexpectedEof, "the file is cut off");
        let bytes = self.0.get(range.clone()).ok_or_else(cut_off)?;
        if bytes.is_empty() {
            return Ok(read(bytes));
        }
        // A hint, which not all systems take.
        let _ = self.0.advise_range(Advice::WillNeed, range.start, range.len());
        let result = read(bytes);
        // SAFETY: the map is of a file and read only, so what is read again has the same bytes.
        let _ = unsafe { self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(bytes: &[u8]) -> Mapped {
        let path = std::env::temp_dir().join(format!("mapped-{}-{}", std::process::id(), bytes.len()));
        std::fs::write(&path, bytes).unwrap();
        let mapped = Mapped::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        mapped
    }

    #[test]
    fn every_part_of_a_file_is_read_as_often_as_it_is_asked_for() {
        let bytes: Vec<u8> = (0..20_000_u32).map(|at| (at % 251) as u8).collect();
        let mapped = mapped(&bytes);
        assert_eq!(mapped.bytes(), bytes);
        for range in [0..20_000, 1..2, 4095..4097, 5000..13_000, 19_999..20_000, 7..7] {
            for _ in 0..2 {
                assert_eq!(mapped.read(range.clone(), <[u8]>::to_vec).unwrap(), bytes[range.clone()], "{range:?}");
            }
        }
    }

    #[test]
    fn what_a_file_does_not_have_is_an_error() {
        for (length, range) in [(10, 5..11), (10, 11..12), (0, 0..1), (10, usize::MAX - 1..usize::MAX)] {
            let error = mapped(&vec![1; length]).read(range, <[u8]>::len).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        assert_eq!(mapped(b"").read(0..0, <[u8]>::len).unwrap(), 0);
        assert!(Mapped::open(&std::env::temp_dir()).is_err());
        assert!(Mapped::open(Path::new("/missing")).is_err());
    }
}
