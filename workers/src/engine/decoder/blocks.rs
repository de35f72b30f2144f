//! Which blocks of the cache hold whose tokens.
//!
//! A block that is full has a name: a hash of its tokens and all before them. A sequence that begins with the same tokens
//! takes the block as it is, from one that runs or from one that has ended: a block nobody holds keeps its tokens until
//! its room is needed, the one that was let go first before others.

use std::collections::{HashMap, VecDeque};

use kernels::BLOCK;
use sha2::{Digest, Sha256};

/// Of a block's tokens and all before them.
pub type Name = [u8; 16];

#[derive(Debug)]
pub struct Blocks {
    /// Sequences that hold each.
    holders: Vec<u32>,
    names: Vec<Option<Name>>,
    /// Blocks with nobody, each with the time it was let go. Entries of blocks that were taken again are stale.
    free: VecDeque<(u32, u64)>,
    let_go: Vec<u64>,
    count_free: usize,
    clock: u64,
    known: HashMap<Name, u32>,
}

impl Blocks {
    pub fn new(count: usize) -> Self {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            holders: vec![0; count as usize],
            names: vec![None; count as usize],
            free: (0..count).map(|block| (block, 0)).collect(),
            let_go: vec![0; count as usize],
            count_free: count as usize,
            clock: 0,
            known: HashMap::new(),
        }
    }

    /// Blocks nobody holds.
    pub fn free(&self) -> usize {
        self.count_free
    }

    /// A block for new tokens.
    pub fn take(&mut self) -> Option<u32> {
        loop {
            let (block, since) = self.free.pop_front()?;
            let index = block as usize;
            if self.holders[index] > 0 || self.let_go[index] != since {
                continue;
            }
            if let Some(name) = self.names[index].take() {
                self.known.remove(&name);
            }
            self.hold(index);
            return Some(block);
        }
    }

    /// The block of that name, where there is one.
    pub fn share(&mut self, name: &Name) -> Option<u32> {
        let block = *self.known.get(name)?;
        self.hold(block as usize);
        Some(block)
    }

    fn hold(&mut self, index: usize) {
        if self.holders[index] == 0 {
            self.count_free -= 1;
        }
        self.holders[index] += 1;
    }

    /// Names a block whose tokens are all computed.
    pub fn name(&mut self, block: u32, name: Name) {
        // Two sequences may have computed the same at the same time: the first keeps the name.
        self.known.entry(name).or_insert_with(|| {
            self.names[block as usize] = Some(name);
            block
        });
    }

    /// Lets blocks of a sequence go. The last first, since those before it are more likely to be shared.
    pub fn let_go(&mut self, blocks: &[u32]) {
        for &block in blocks.iter().rev() {
            let index = block as usize;
            self.holders[index] -= 1;
            if self.holders[index] > 0 {
                continue;
            }
            self.clock += 1;
            self.let_go[index] = self.clock;
            self.count_free += 1;
            self.free.push_back((block, self.clock));
        }
    }
}

/// The name of a block after that one.
pub fn name_after(before: Option<&Name>, tokens: &[u32]) -> Name {
    debug_assert_eq!(tokens.len(), BLOCK);
    let mut hasher = Sha256::new();
    hasher.update(before.unwrap_or(&[0; 16]));
    tokens.iter().for_each(|token| hasher.update(token.to_le_bytes()));
    let mut name = [0; 16];
    name.copy_from_slice(&hasher.finalize()[..16]);
    name
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(of: u32) -> Name {
        name_after(None, &[of; BLOCK])
    }

    #[test]
    fn a_block_that_was_let_go_is_shared_until_its_room_is_needed() {
        let mut blocks = Blocks::new(2);
        let [first, second] = [blocks.take().unwrap(), blocks.take().unwrap()];
        assert_eq!(blocks.take(), None);
        blocks.name(first, name(1));
        blocks.name(second, name(2));
        blocks.let_go(&[first, second]);
        assert_eq!(blocks.share(&name(1)), Some(first));
        assert_eq!(blocks.free(), 1);
        assert_eq!(blocks.take(), Some(second));
        assert_eq!(blocks.take(), None);
        assert_eq!((blocks.share(&name(1)), blocks.share(&name(2))), (Some(first), None));
    }

    #[test]
    fn a_name_tells_all_tokens_before_it() {
        let [one, two] = [[1; BLOCK], [2; BLOCK]];
        let names = [name_after(None, &one), name_after(None, &two)];
        assert_ne!(name_after(Some(&names[0]), &one), name_after(Some(&names[1]), &one));
        assert_ne!(name_after(Some(&names[0]), &one), names[0]);
    }

    proptest! {
        #[test]
        fn no_block_is_lost_or_given_twice(steps in prop::collection::vec((0_u8..4, 0_u32..6), 1..200)) {
            let mut blocks = Blocks::new(6);
            let mut held: Vec<u32> = Vec::new();
            for (step, which) in steps {
                match step {
                    0 => if let Some(block) = blocks.take() {
                        prop_assert!(!held.contains(&block));
                        held.push(block);
                    },
                    1 => held.extend(blocks.share(&name(which))),
                    2 => if let Some(&block) = held.get(which as usize) {
                        blocks.name(block, name(block));
                    },
                    _ => if !held.is_empty() {
                        let block = held.swap_remove(which as usize % held.len());
                        blocks.let_go(&[block]);
                    },
                }
                let mut distinct = held.clone();
                distinct.sort_unstable();
                distinct.dedup();
                prop_assert_eq!(blocks.free(), 6 - distinct.len());
            }
        }
    }
}
