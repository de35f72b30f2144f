//! Groups of weights as codes of four bits.

use super::GROUP;

/// What the codes of even steps stand for.
pub const EVEN: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// The numbers of MXFP4 (0, ½, 1, 1½, 2, 3, 4, 6 and their negatives) twice, and 12 more.
pub const FLOATS: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];
/// How far from its step a value may lie that is on it, in steps: what f32 and f16 round.
const NEAR: f32 = 0.02;

/// Values are `scale * number + least`.
#[derive(Debug, PartialEq)]
pub struct Block {
    pub scale: f32,
    pub least: f32,
    pub codes: [u8; GROUP],
}

/// Values in at most 16 even steps.
pub fn even(values: &[f32]) -> Option<Block> {
    let (least, most) = range(values);
    if least == most {
        return Some(Block { scale: 0.0, least, codes: [0; GROUP] });
    }
    let scale = (1_u8..16).rev().map(|steps| (most - least) / f32::from(steps)).find(|scale| {
        let place = |value: &f32| (value - least) / scale;
        values.iter().map(place).all(|place| (place - place.round()).abs() < NEAR)
    })?;
    Some(Block { scale, least, codes: codes(values, scale, least) })
}

/// Values that are numbers of MXFP4.
pub fn floats(values: &[f32]) -> Option<Block> {
    let (least, most) = range(values);
    let most = most.max(-least);
    // The largest number may be any of a half to six, so the scale is one of a few powers of two.
    let power = if most > 0.0 { most.log2().floor() } else { 0.0 };
    let at = |scale: f32| {
        let code = |value: &f32| {
            let number = value / scale + 12.0;
            FLOATS.iter().position(|known| f32::from(*known) == number).map(|code| code as u8)
        };
        let mut codes = [0; GROUP];
        codes.iter_mut().zip(values).try_for_each(|(place, value)| code(value).map(|code| *place = code))?;
        Some(Block { scale, least: -12.0 * scale, codes })
    };
    (-3..=0).find_map(|lower| at((power + lower as f32).exp2()))
}

/// Even steps from the least value to the greatest, moved to where they are nearest to all.
pub fn nearest(values: &[f32]) -> Block {
    let (least, most) = range(values);
    let scale = (most - least) / 15.0;
    let codes = codes(values, scale, least);
    // The line through codes and values that leaves the smallest squares.
    let (mut of_codes, mut of_values, mut squares, mut products) = (0.0, 0.0, 0.0, 0.0);
    for (code, value) in codes.iter().zip(values) {
        let code = f32::from(*code);
        of_codes += code;
        of_values += value;
        squares += code * code;
        products += code * value;
    }
    let count = values.len() as f32;
    let scale = (count * products - of_codes * of_values) / (count * squares - of_codes * of_codes);
    Block { scale, least: (of_values - scale * of_codes) / count, codes }
}

fn range(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(least, most), value| (least.min(*value), most.max(*value)))
}

fn codes(values: &[f32], scale: f32, least: f32) -> [u8; GROUP] {
    let mut codes = [0; GROUP];
    for (code, value) in codes.iter_mut().zip(values) {
        *code = ((value - least) / scale).round().clamp(0.0, 15.0) as u8;
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(block: &Block, numbers: [u8; 16]) -> Vec<f32> {
        block.codes.iter().map(|code| block.scale * f32::from(numbers[usize::from(*code)]) + block.least).collect()
    }

    #[test]
    fn values_on_even_steps_are_kept() {
        for steps in 1..16 {
            let values_of = |at: usize| 0.25 * (at * 7 % (steps + 1)) as f32 - 1.5;
            let stored: Vec<f32> = (0..GROUP).map(values_of).collect();
            let block = even(&stored).unwrap();
            assert!(values(&block, EVEN).iter().zip(&stored).all(|(a, b)| (a - b).abs() < 1e-5), "{steps}");
        }
        assert_eq!(values(&even(&[0.5; GROUP]).unwrap(), EVEN), [0.5; GROUP]);
    }

    #[test]
    fn numbers_of_mxfp4_are_kept() {
        let numbers = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
        for most in 1..numbers.len() {
            let stored: Vec<f32> = (0..GROUP).map(|at| numbers[at % (most + 1)] / 64.0).collect();
            let block = floats(&stored).unwrap();
            assert_eq!(values(&block, FLOATS), stored, "{most}");
        }
        assert!(even(&[&numbers[..], &numbers[..]].concat()).is_none());
        assert_eq!(values(&floats(&[0.0; GROUP]).unwrap(), FLOATS), [0.0; GROUP]);
    }

    #[test]
    fn what_is_on_no_step_is_near_to_one() {
        let stored: Vec<f32> = (0..GROUP).map(|at| (at as f32 * 0.7).sin()).collect();
        assert!(even(&stored).is_none() && floats(&stored).is_none());
        let most = values(&nearest(&stored), EVEN).iter().zip(&stored).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(most < 0.09, "{most}");
    }
}
