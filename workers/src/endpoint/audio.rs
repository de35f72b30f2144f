//! `/v1/audio/transcriptions` and `/v1/audio/translations`.

use std::sync::Arc;

use schemas::audio::{
    AudioTask, AudioUsage, Granularity, TranscriptFormat, Transcription, TranscriptionRequest, TranscriptionResponse,
    TranscriptionSegment, TranscriptionWord, VerboseTranscription, srt, vtt,
};
use schemas::codec::decode_body;
use schemas::log::Usage;
use schemas::registry::Model;
use serde_json::Value;

use super::inputs::file_of;
use super::sampling::seed_of;
use super::{Answer, Body, Plan, Reject, Stamp, misshapen};
use crate::audio::{self, AudioError};
use crate::engine::speech::languages;
use crate::engine::text::{Listening, Text};
use crate::engine::{Goal, Hearing, OTHER_OUTPUT, Output, Segment, Sequence, Transcript};

const TEMPERATURE_MAX: f32 = 1.0;

/// How a transcript is given.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    task: AudioTask,
    format: TranscriptFormat,
    segments: bool,
    words: bool,
}

pub fn prepare(body: &Value, job_id: &str, task: AudioTask, model: &Model, text: &Text) -> Result<Plan, Reject> {
    let request: TranscriptionRequest = decode_body(body).map_err(misshapen)?;
    let listening = text.listening().expect("models of this endpoint hear");
    refuse(body)?;
    let shape = Shape::of(&request, task)?;
    let language = language(&request, task, listening, &model.name)?;
    let temperature = request.temperature.unwrap_or(0.0);
    if !(0.0..=TEMPERATURE_MAX).contains(&temperature) {
        return Err(Reject::value("body.temperature", format!("{temperature} is not 0 to {TEMPERATURE_MAX}")));
    }
    let prompt = match request.prompt.as_deref().map(str::trim).filter(|prompt| !prompt.is_empty()) {
        Some(prompt) => {
            let tokens = text.encode_prompt(&format!(" {prompt}"));
            tokens.map_err(|error| Reject::value("body.prompt", error))?
        }
        None => Vec::new(),
    };
    let seed = match (request.seed, temperature > 0.0) {
        (Some(seed), _) => seed.cast_unsigned(),
        (None, true) => seed_of(job_id),
        // What is warm for want of a good answer is so in the same way each time.
        (None, false) => 0,
    };
    let file = file_of(&request.file, "body.file")?;
    let mut listener = listening.ear.listen();
    let read = audio::read(file, request.filename.as_deref(), model.limits.audio_seconds, |samples| {
        listener.hear(samples);
    });
    read.map_err(|error| refused(&error))?;
    let hearing = Hearing {
        mel: Arc::new(listener.finish()),
        language,
        translate: task == AudioTask::Translate,
        temperature,
        words: shape.words,
        seed,
    };
    let sequence = Sequence::new(prompt, Goal::Transcribe(hearing));
    let mut plan = Plan::from((vec![sequence], Answer::Transcription(shape)));
    plan.seed = (temperature > 0.0).then_some(seed);
    plan.is_repeatable = temperature == 0.0 || request.seed.is_some();
    Ok(plan)
}

/// What is known and would change the answer, and is not done here.
fn refuse(body: &Value) -> Result<(), Reject> {
    let is_asked = |name: &str| match &body[name] {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    for name in ["include", "known_speaker_names", "known_speaker_references", "keywords", "languages"] {
        if is_asked(name) {
            return Err(Reject::value(&format!("body.{name}"), "is not supported by this model"));
        }
    }
    Ok(())
}

fn language(
    request: &TranscriptionRequest,
    task: AudioTask,
    listening: &Listening,
    model: &str,
) -> Result<Option<u32>, Reject> {
    let vocabulary = &listening.vocabulary;
    if task == AudioTask::Translate && !vocabulary.is_multilingual() {
        let message = format!("url: {model:?} knows English alone, and translates nothing");
        return Err(Reject::invalid("unsupported_endpoint", "url".to_owned(), message));
    }
    let Some(given) = request.language.as_deref().filter(|given| !given.is_empty()) else { return Ok(None) };
    let known = languages::code(given).filter(|code| *code == "en" || vocabulary.language(code).is_some());
    match known {
        Some(code) => Ok(vocabulary.language(code)),
        None => {
            let wanted = match vocabulary.is_multilingual() {
                true => "give the ISO 639 code of a language that the model knows, such as \"en\"",
                false => "this model knows \"en\" alone",
            };
            Err(Reject::value("body.language", format!("{given:?}: {wanted}")))
        }
    }
}

fn refused(error: &AudioError) -> Reject {
    let code = match error {
        AudioError::Unknown(_) => "unsupported_format",
        AudioError::TooLong(_) => "audio_too_long",
        AudioError::Channels(_) | AudioError::Rate(_) => "unsupported_audio",
        AudioError::Cut { .. } | AudioError::Broken(_) | AudioError::Empty => "invalid_audio",
    };
    Reject::invalid(code, "body.file".to_owned(), format!("body.file: the file {error}"))
}

impl Shape {
    fn of(request: &TranscriptionRequest, task: AudioTask) -> Result<Self, Reject> {
        let format = request.response_format.unwrap_or_default();
        let asked = request.timestamp_granularities.as_deref().unwrap_or_default();
        if !asked.is_empty() && format != TranscriptFormat::VerboseJson {
            let message = "come with response_format \"verbose_json\" alone";
            return Err(Reject::value("body.timestamp_granularities", message));
        }
        let words = asked.contains(&Granularity::Word);
        let segments = asked.is_empty() || asked.contains(&Granularity::Segment);
        Ok(Self { task, format, segments, words })
    }
}

pub fn body(shape: Shape, outputs: Vec<Output>, stamp: Stamp<'_>) -> (Body, Usage) {
    let transcript = outputs.into_iter().next().map(|output| match output {
        Output::Transcript(transcript) => transcript,
        Output::Embedding(_) | Output::Scores(_) | Output::Completion { .. } => unreachable!("{OTHER_OUTPUT}"),
    });
    let transcript = transcript.expect("a job for a transcript is one sequence");
    let usage = Usage {
        prompt_tokens: stamp.prompt_tokens,
        completion_tokens: Some(transcript.tokens as u64),
        total_tokens: stamp.prompt_tokens + transcript.tokens as u64,
    };
    (Body::Transcription(response(shape, transcript)), usage)
}

fn response(shape: Shape, transcript: Transcript) -> TranscriptionResponse {
    let text = || {
        let whole: String = transcript.segments.iter().map(|segment| segment.text.as_str()).collect();
        whole.trim().to_owned()
    };
    let segments = || transcript.segments.iter().enumerate().map(segment).collect::<Vec<_>>();
    let usage = || AudioUsage { kind: "duration".to_owned(), seconds: transcript.seconds };
    match shape.format {
        TranscriptFormat::Json => TranscriptionResponse::Json(Transcription { text: text(), usage: usage() }),
        TranscriptFormat::Text => TranscriptionResponse::Text(format!("{}\n", text())),
        TranscriptFormat::Srt => TranscriptionResponse::Text(srt(&segments())),
        TranscriptFormat::Vtt => TranscriptionResponse::Text(vtt(&segments())),
        TranscriptFormat::VerboseJson => {
            let language = match shape.task {
                AudioTask::Transcribe => &transcript.language,
                AudioTask::Translate => "en",
            };
            let words = transcript.segments.iter().flat_map(|segment| &segment.words);
            let word = |word: &crate::engine::Word| TranscriptionWord {
                word: word.word.trim().to_owned(),
                start: rounded(word.start),
                end: rounded(word.end),
            };
            TranscriptionResponse::Verbose(VerboseTranscription {
                task: shape.task,
                language: languages::name(language).to_owned(),
                duration: transcript.seconds,
                text: text(),
                words: shape.words.then(|| words.map(word).collect()),
                segments: shape.segments.then(segments),
                usage: usage(),
            })
        }
    }
}

fn segment((id, segment): (usize, &Segment)) -> TranscriptionSegment {
    TranscriptionSegment {
        id,
        seek: segment.seek,
        start: rounded(segment.start),
        end: rounded(segment.end),
        text: segment.text.clone(),
        tokens: segment.tokens.clone(),
        temperature: segment.temperature,
        avg_logprob: segment.avg_logprob,
        compression_ratio: segment.compression_ratio,
        no_speech_prob: segment.no_speech_prob,
    }
}

/// To hundredths of a second, which is as near as a model knows it.
fn rounded(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}
