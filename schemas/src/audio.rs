//! `/v1/audio/transcriptions` and `/v1/audio/translations`, in OpenAI's shape, but for the file: where OpenAI takes it as a
//! part of a form, a job has it in base64. In MessagePack it may be binary.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The body of a job for `/v1/audio/transcriptions` or `/v1/audio/translations`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct TranscriptionRequest {
    pub model: String,
    /// The audio file in base64, or as a `data:` URL: flac, m4a, mp3, mp4, ogg, opus, wav, webm and more.
    #[schemars(length(min = 1))]
    pub file: String,
    /// Its name, whose ending helps to tell the format.
    #[serde(default)]
    pub filename: Option<String>,
    /// The language that is spoken, by its ISO 639 code. It is found out where it is not said.
    #[serde(default)]
    pub language: Option<String>,
    /// What was said before, or how names are spelled.
    #[serde(default)]
    pub prompt: Option<String>,
    #[serde(default)]
    pub response_format: Option<TranscriptFormat>,
    /// 0, the default, is greedy, and grows by itself where that gives no good answer.
    #[serde(default, deserialize_with = "crate::number::finite")]
    pub temperature: Option<f32>,
    /// With `verbose_json`: whether segments or words, or both, come with their times. Segments alone unless it is said.
    #[serde(default)]
    pub timestamp_granularities: Option<Vec<Granularity>>,
    /// Of the temperature's randomness.
    #[serde(default)]
    pub seed: Option<i64>,
    #[serde(default)]
    pub user: Option<String>,
}

/// How a transcript is written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum TranscriptFormat {
    #[default]
    Json,
    Text,
    Srt,
    VerboseJson,
    Vtt,
}

impl TranscriptFormat {
    /// Whether it is a text and no object.
    pub fn is_text(self) -> bool {
        matches!(self, Self::Text | Self::Srt | Self::Vtt)
    }
}

/// What has times of its own.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    Word,
    Segment,
}

/// The answer: a text, or an object for `json` and `verbose_json`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(untagged)]
pub enum TranscriptionResponse {
    /// `text`, `srt` or `vtt`.
    Text(String),
    Verbose(VerboseTranscription),
    Json(Transcription),
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct Transcription {
    pub text: String,
    pub usage: AudioUsage,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct VerboseTranscription {
    pub task: AudioTask,
    /// Its name in English, in small letters.
    pub language: String,
    /// Seconds of audio.
    #[serde(deserialize_with = "crate::number::finite")]
    pub duration: f64,
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Vec<TranscriptionSegment>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<Vec<TranscriptionWord>>,
    pub usage: AudioUsage,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum AudioTask {
    Transcribe,
    Translate,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct TranscriptionSegment {
    pub id: usize,
    /// Where its window begins, in hundredths of a second.
    pub seek: usize,
    #[serde(deserialize_with = "crate::number::finite")]
    pub start: f64,
    #[serde(deserialize_with = "crate::number::finite")]
    pub end: f64,
    pub text: String,
    pub tokens: Vec<u32>,
    #[serde(deserialize_with = "crate::number::finite")]
    pub temperature: f32,
    /// The mean logarithm of the probability of the window's tokens.
    #[serde(deserialize_with = "crate::number::finite")]
    pub avg_logprob: f32,
    /// How many times as long the text is as when it is compressed: above 2.4 it repeats itself.
    #[serde(deserialize_with = "crate::number::finite")]
    pub compression_ratio: f32,
    /// The probability that nothing is said in the window.
    #[serde(deserialize_with = "crate::number::finite")]
    pub no_speech_prob: f32,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct TranscriptionWord {
    pub word: String,
    #[serde(deserialize_with = "crate::number::finite")]
    pub start: f64,
    #[serde(deserialize_with = "crate::number::finite")]
    pub end: f64,
}

/// What is counted of audio.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct AudioUsage {
    /// `duration`.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(deserialize_with = "crate::number::finite")]
    pub seconds: f64,
}

/// SubRip.
pub fn srt(segments: &[TranscriptionSegment]) -> String {
    let mut text = String::new();
    for (index, segment) in segments.iter().enumerate() {
        let (start, end) = (clock(segment.start, ','), clock(segment.end, ','));
        let words = segment.text.trim().replace("-->", "->");
        let _ = write!(text, "{}\n{start} --> {end}\n{words}\n\n", index + 1);
    }
    text
}

/// WebVTT.
pub fn vtt(segments: &[TranscriptionSegment]) -> String {
    let mut text = "WEBVTT\n\n".to_owned();
    for segment in segments {
        let (start, end) = (clock(segment.start, '.'), clock(segment.end, '.'));
        let words = segment.text.trim().replace("-->", "->");
        let _ = write!(text, "{start} --> {end}\n{words}\n\n");
    }
    text
}

/// Hours, minutes, seconds and thousandths of them.
fn clock(seconds: f64, point: char) -> String {
    let thousandths = (seconds.max(0.0) * 1000.0).round() as u64;
    let (seconds, rest) = (thousandths / 1000, thousandths % 1000);
    format!("{:02}:{:02}:{:02}{point}{rest:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtitles_are_written_as_players_read_them() {
        let segment = |start, end, text: &str| TranscriptionSegment {
            id: 0,
            seek: 0,
            start,
            end,
            text: text.to_owned(),
            tokens: Vec::new(),
            temperature: 0.0,
            avg_logprob: -0.25,
            compression_ratio: 1.0,
            no_speech_prob: 0.0,
        };
        let segments = [segment(0.0, 2.5, " One."), segment(3661.2, 3662.0, " Two --> three.")];
        assert_eq!(
            srt(&segments),
            "1\n00:00:00,000 --> 00:00:02,500\nOne.\n\n2\n01:01:01,200 --> 01:01:02,000\nTwo -> three.\n\n"
        );
        assert!(vtt(&segments).starts_with("WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nOne.\n\n01:01:01.200 -->"));
    }
}
