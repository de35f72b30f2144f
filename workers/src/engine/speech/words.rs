//! When each word was said, by where the decoder looks while it writes it: the attention of some heads, and the way
//! through it on which the least is missed (dynamic time warping), as in OpenAI's reference implementation.

use super::languages::has_spaces;
use super::vocabulary::TICK;
use crate::engine::Word;
use crate::engine::text::Text;

/// Frames over which attention is smoothed, by their median.
const SMOOTHED: usize = 7;
/// Signs that belong to the word after them, and to the one before.
const BEFORE: &str = "\"'“¿([{-";
const AFTER: &str = "\"'.。,，!！?？:：”)]}、";
/// The longest word that is believed, as a multiple of the median, and seconds of the longest median.
const LONGEST: f64 = 2.0;
const MEDIAN_MAX: f64 = 0.7;
const SENTENCE_ENDS: &str = ".。!！?？";

/// A word with its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub text: String,
    pub tokens: usize,
}

/// Divides tokens into words.
pub fn pieces(tokens: &[u32], language: &str, text: &Text) -> Vec<Piece> {
    // Tokens that are whole characters only together stay together.
    let mut characters: Vec<Piece> = Vec::new();
    let (mut bytes, mut count) = (Vec::new(), 0);
    for token in tokens {
        bytes.extend(text.token_bytes(*token));
        count += 1;
        if let Ok(whole) = std::str::from_utf8(&bytes) {
            characters.push(Piece { text: whole.to_owned(), tokens: count });
            (bytes, count) = (Vec::new(), 0);
        }
    }
    if count > 0 {
        characters.push(Piece { text: String::from_utf8_lossy(&bytes).into_owned(), tokens: count });
    }
    if !has_spaces(language) {
        return characters;
    }
    let mut words: Vec<Piece> = Vec::new();
    for piece in characters {
        let is_sign = !piece.text.trim().is_empty() && piece.text.trim().chars().all(|c| c.is_ascii_punctuation());
        match words.last_mut() {
            Some(word) if !piece.text.starts_with(' ') && !is_sign => {
                word.text.push_str(&piece.text);
                word.tokens += piece.tokens;
            }
            _ => words.push(piece),
        }
    }
    words
}

/// When the pieces were said, from the attention of some heads: for each, `[rows, frames]`, where each row but the last
/// looks for one token.
pub fn times(pieces: Vec<Piece>, heads: &[Vec<f32>], rows: usize, frames: usize, skipped: usize) -> Vec<Word> {
    if pieces.is_empty() || frames == 0 {
        return Vec::new();
    }
    let cost = cost(heads, rows, frames);
    let looked = &cost[skipped * frames..(rows - 1) * frames];
    let starts = warp(looked, frames);
    let second = |token: usize| starts.get(token).copied().unwrap_or(frames) as f64 * TICK;
    let mut token = 0;
    let mut words: Vec<Word> = Vec::new();
    for piece in pieces {
        let (start, end) = (second(token), second(token + piece.tokens));
        token += piece.tokens;
        words.push(Word { word: piece.text, start, end });
    }
    shorten(&mut words);
    merge(words)
}

/// How little each row looks at each frame, over all heads.
fn cost(heads: &[Vec<f32>], rows: usize, frames: usize) -> Vec<f32> {
    let mut cost = vec![0.0; rows * frames];
    for weights in heads {
        let mut weights = weights.clone();
        for frame in 0..frames {
            let of_rows = || (0..rows).map(|row| weights[row * frames + frame]);
            let mean = of_rows().sum::<f32>() / rows as f32;
            let variance = of_rows().map(|value| (value - mean) * (value - mean)).sum::<f32>() / rows as f32;
            let deviation = variance.sqrt().max(f32::MIN_POSITIVE);
            (0..rows)
                .for_each(|row| weights[row * frames + frame] = (weights[row * frames + frame] - mean) / deviation);
        }
        for (to, row) in cost.chunks_exact_mut(frames).zip(weights.chunks_exact(frames)) {
            for (frame, to) in to.iter_mut().enumerate() {
                *to -= median_around(row, frame) / heads.len() as f32;
            }
        }
    }
    cost
}

/// The median of the values around one; beyond an end they are mirrored.
fn median_around(values: &[f32], at: usize) -> f32 {
    let half = (SMOOTHED / 2) as isize;
    let last = values.len() as isize - 1;
    let mirrored = |index: isize| {
        let index = index.abs();
        (if index > last { 2 * last - index } else { index }).clamp(0, last) as usize
    };
    let mut around = [0.0; SMOOTHED];
    around.iter_mut().zip(-half..).for_each(|(to, offset)| *to = values[mirrored(at as isize + offset)]);
    around.sort_unstable_by(f32::total_cmp);
    around[SMOOTHED / 2]
}

/// The cheapest way from the first row and frame to the last ones: the frame at which each row begins.
fn warp(cost: &[f32], frames: usize) -> Vec<usize> {
    #[derive(Clone, Copy)]
    enum Step {
        Both,
        Row,
        Frame,
    }
    let rows = cost.len() / frames;
    let width = frames + 1;
    let mut total = vec![f32::INFINITY; (rows + 1) * width];
    let mut steps = vec![Step::Both; (rows + 1) * width];
    total[0] = 0.0;
    for row in 1..=rows {
        for frame in 1..=frames {
            let (both, down, right) = (
                total[(row - 1) * width + frame - 1],
                total[(row - 1) * width + frame],
                total[row * width + frame - 1],
            );
            let (least, step) = match () {
                () if both < down && both < right => (both, Step::Both),
                () if down < both && down < right => (down, Step::Row),
                () => (right, Step::Frame),
            };
            total[row * width + frame] = cost[(row - 1) * frames + frame - 1] + least;
            steps[row * width + frame] = step;
        }
    }
    let mut starts = vec![0; rows];
    let (mut row, mut frame) = (rows, frames);
    while row > 0 && frame > 0 {
        starts[row - 1] = frame - 1;
        match steps[row * width + frame] {
            Step::Both => (row, frame) = (row - 1, frame - 1),
            Step::Row => row -= 1,
            Step::Frame => frame -= 1,
        }
    }
    starts
}

/// Words that seem to last very long have a pause in them: at the end of a sentence it is cut off.
fn shorten(words: &mut [Word]) {
    let mut durations: Vec<f64> =
        words.iter().map(|word| word.end - word.start).filter(|&seconds| seconds > 0.0).collect();
    durations.sort_unstable_by(f64::total_cmp);
    let median = durations.get(durations.len() / 2).copied().unwrap_or(0.0).min(MEDIAN_MAX);
    let longest = median * LONGEST;
    for index in 1..words.len() {
        if words[index].end - words[index].start <= longest {
            continue;
        }
        if is_end(&words[index]) {
            words[index].end = words[index].start + longest;
        } else if is_end(&words[index - 1]) {
            words[index].start = words[index].end - longest;
        }
    }
}

fn is_end(word: &Word) -> bool {
    let text = word.word.trim();
    !text.is_empty() && text.chars().all(|sign| SENTENCE_ENDS.contains(sign))
}

/// Signs to their words.
fn merge(words: Vec<Word>) -> Vec<Word> {
    let is_of = |signs: &str, text: &str| {
        let text = text.trim();
        !text.is_empty() && text.chars().all(|sign| signs.contains(sign))
    };
    let mut merged: Vec<Word> = Vec::new();
    let mut open: Option<Word> = None;
    for mut word in words {
        if let Some(sign) = open.take() {
            word.word = format!("{}{}", sign.word, word.word);
        }
        if word.word.starts_with(' ') && is_of(BEFORE, &word.word) {
            open = Some(word);
            continue;
        }
        match merged.last_mut() {
            Some(last) if !last.word.ends_with(' ') && is_of(AFTER, &word.word) && !word.word.starts_with(' ') => {
                last.word.push_str(&word.word);
            }
            _ => merged.push(word),
        }
    }
    merged.extend(open);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_follows_what_is_looked_at() {
        let frames = 8;
        let looked = [[0, 1], [2, 4], [5, 7]];
        let mut cost = vec![1.0; 3 * frames];
        for (row, [from, to]) in looked.into_iter().enumerate() {
            (from..=to).for_each(|frame| cost[row * frames + frame] = -1.0);
        }
        assert_eq!(warp(&cost, frames), [0, 2, 5]);
    }

    #[test]
    fn signs_belong_to_words() {
        let word = |text: &str, start, end| Word { word: text.to_owned(), start, end };
        let words = vec![
            word(" \"", 0.0, 0.1),
            word("Yes", 0.1, 0.4),
            word(",", 0.4, 0.5),
            word(" he", 0.5, 0.7),
            word(" said", 0.7, 0.9),
            word(".", 0.9, 1.0),
        ];
        let merged: Vec<String> = merge(words).into_iter().map(|word| word.word).collect();
        assert_eq!(merged, [" \"Yes,", " he", " said."]);
    }
}
