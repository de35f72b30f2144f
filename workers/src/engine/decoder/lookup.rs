//! Guesses of what comes next: what came after the same tokens before ("prompt lookup decoding", Saxena, 2023).
//!
//! Guesses are computed together with the token they follow, which costs little where memory is what takes time, and those
//! that the model would not have drawn are forgotten. So they change how long a text takes, and never the text.

/// Tokens that have to be the same.
const SAME: [usize; 2] = [3, 2];
/// Rows of a step up to which more of them cost little.
const ROWS: usize = 16;
/// Guesses before anything is known of how often they are right.
const FIRST: usize = 4;

/// How many guesses are worth it.
#[derive(Clone, Copy, Debug)]
pub struct Trust(usize);

impl Default for Trust {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Trust {
    pub fn guesses(self) -> usize {
        self.0
    }

    /// Of so many guesses so many were right.
    pub fn learn(&mut self, guesses: usize, right: usize) {
        self.0 = if right == guesses { 2 * self.0.max(right) } else { right.max(1) };
        self.0 = self.0.min(ROWS);
    }
}

/// Guesses for each of so many sequences that are computed together.
pub fn share(sequences: usize) -> usize {
    (ROWS / sequences.max(1)).saturating_sub(1)
}

/// At most so many tokens that came after the last ones when they stood there before.
pub fn guess(tokens: &[u32], most: usize) -> &[u32] {
    if most == 0 {
        return &[];
    }
    SAME.into_iter().map(|same| after(tokens, same, most)).find(|guess| !guess.is_empty()).unwrap_or_default()
}

/// The nearest place that has as many after it as are wanted, or the one that has most.
fn after(tokens: &[u32], same: usize, most: usize) -> &[u32] {
    let Some(end) = tokens.len().checked_sub(same) else { return &[] };
    let last = &tokens[end..];
    let mut guess: &[u32] = &[];
    for start in (0..end).rev().filter(|start| &tokens[*start..start + same] == last) {
        let first = start + same;
        guess = &tokens[first..tokens.len().min(first + most)];
        if guess.len() == most {
            break;
        }
    }
    guess
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_after_the_same_tokens_is_guessed() {
        assert_eq!(guess(&[1, 2, 3, 4, 5, 6, 1, 2, 3], 2), [4, 5]);
        assert_eq!(guess(&[9, 2, 3, 4, 5, 1, 2, 3], 9), [4, 5, 1, 2, 3]);
        assert_eq!(guess(&[7, 7, 7, 7, 7, 7, 7], 3), [7, 7, 7]);
        assert_eq!(guess(&[1, 2, 3, 8, 1, 2, 3, 9, 1, 2, 3], 1), [9]);
    }

    #[test]
    fn nothing_is_guessed_where_nothing_is_the_same() {
        for tokens in [&[][..], &[1], &[1, 1], &[1, 2, 3, 4], &[1, 2, 1, 3]] {
            assert!(guess(tokens, 4).is_empty(), "{tokens:?}");
        }
        assert!(guess(&[1, 2, 3, 1, 2, 3], 0).is_empty());
    }

    #[test]
    fn trust_follows_what_was_right() {
        let mut trust = Trust::default();
        trust.learn(4, 4);
        assert_eq!(trust.guesses(), 8);
        trust.learn(8, 3);
        assert_eq!(trust.guesses(), 3);
        trust.learn(3, 0);
        assert_eq!(trust.guesses(), 1);
        (0..9).for_each(|_| trust.learn(1, 1));
        assert_eq!(trust.guesses(), ROWS);
        assert_eq!([1, 2, 8, 9, 100].map(share), [15, 7, 1, 0, 0]);
    }
}
