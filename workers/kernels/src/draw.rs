//! How a token is drawn, wherever its logits are.

/// What it takes beside logits that are taken as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Draw {
    /// The one with the highest, and the first of them.
    Highest,
    /// That in which a part of all weights ends. The greatest weighs 1, and what weighs less than `least` weighs nothing.
    Part { inverse_temperature: f32, least: f32, part: f64 },
}
