//! A set of row numbers, a bit each.

#[derive(Clone, Debug, Default)]
pub struct Bits {
    words: Vec<u64>,
    count: u64,
}

impl Bits {
    pub fn new(rows: u64) -> Self {
        let words = usize::try_from(rows.div_ceil(64)).expect("a file has fewer rows than the memory has bits");
        Self { words: vec![0; words], count: 0 }
    }

    /// Adds a row; false if it was there, or is none of the rows.
    pub fn insert(&mut self, row: u64) -> bool {
        let Some(word) = usize::try_from(row / 64).ok().and_then(|index| self.words.get_mut(index)) else {
            return false;
        };
        let bit = 1 << (row % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        self.count += u64::from(is_new);
        is_new
    }

    pub fn contains(&self, row: u64) -> bool {
        usize::try_from(row / 64)
            .ok()
            .and_then(|index| self.words.get(index))
            .is_some_and(|word| word & (1 << (row % 64)) != 0)
    }

    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_counts_once() {
        let mut bits = Bits::new(70);
        assert!(bits.insert(69) && !bits.insert(69) && bits.contains(69) && !bits.contains(0));
        assert!(!bits.insert(1_000));
        assert_eq!(bits.count(), 1);
    }
}
