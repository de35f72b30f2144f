//! Audio files: any of the usual formats to samples of one channel at 16 kHz, piece by piece.
//!
//! A file is read as hostile: what its header claims is checked before and while it is decoded, nothing is kept beyond a
//! packet, and a reader that panics is a file that cannot be read. Files are bytes of the job: no address is followed.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use opus_decoder::OpusDecoder;
use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Indexing, Resampler};
use symphonia::core::codecs::audio::well_known::CODEC_ID_OPUS;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, Track, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::packet::Packet;

/// Samples of a second that come out.
pub const RATE: u32 = 16_000;
const CHANNELS_MAX: usize = 6;
const RATE_MAX: u32 = 192_000;
/// Samples that are resampled together.
const CHUNK: usize = 4096;
/// Packets without a sample, one after the other, before a file counts as broken.
const BROKEN_MAX: usize = 100;
/// How much less may come than was claimed, in seconds: encoders round.
const MISSING_MAX: f64 = 1.0;
const OPUS_RATE: u32 = 48_000;

/// Why a file cannot be heard.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AudioError {
    #[error("is no audio that can be read ({0}); flac, m4a, mp3, mp4, ogg, opus, wav and webm are known, among others")]
    Unknown(String),
    #[error("has {0} channels; at most {CHANNELS_MAX} are taken")]
    Channels(usize),
    #[error("has {0} samples in a second; 1 to {RATE_MAX} are taken")]
    Rate(u32),
    #[error("is longer than {0} seconds, the limit of this model; divide it")]
    TooLong(u64),
    #[error("is cut off: {found:.1} of {claimed:.1} seconds are there")]
    Cut { found: f64, claimed: f64 },
    #[error("is broken: {0}")]
    Broken(String),
    #[error("has no sound in it")]
    Empty,
}

/// Decodes a file and hands its samples on as they come. `name` helps to tell its format.
pub fn read(
    file: Vec<u8>,
    name: Option<&str>,
    seconds_max: u64,
    mut each: impl FnMut(&[f32]),
) -> Result<(), AudioError> {
    let read = catch_unwind(AssertUnwindSafe(|| read_unguarded(file, name, seconds_max, &mut each)));
    read.unwrap_or_else(|_| Err(AudioError::Broken("its decoder gave up".to_owned())))
}

fn read_unguarded(
    file: Vec<u8>,
    name: Option<&str>,
    seconds_max: u64,
    each: &mut dyn FnMut(&[f32]),
) -> Result<(), AudioError> {
    let mut hint = Hint::new();
    if let Some((_, ending)) = name.and_then(|name| name.rsplit_once('.')) {
        hint.with_extension(ending);
    }
    let unknown = |error: Error| AudioError::Unknown(error.to_string());
    let stream = MediaSourceStream::new(Box::new(Cursor::new(file)), Default::default());
    let probe = symphonia::default::get_probe();
    let mut format = probe.probe(&hint, stream, FormatOptions::default(), Default::default()).map_err(unknown)?;
    let track = format.default_track(TrackType::Audio).ok_or_else(|| AudioError::Unknown("no audio track".into()))?;
    let claimed = claimed_seconds(track);
    if claimed.is_some_and(|seconds| seconds > seconds_max as f64 + 1.0) {
        return Err(AudioError::TooLong(seconds_max));
    }
    let id = track.id;
    let parameters = track.codec_params.as_ref().and_then(|parameters| parameters.audio());
    let parameters = parameters.ok_or_else(|| AudioError::Unknown("no audio codec".into()))?;
    let mut decoder = Decoder::new(parameters)?;
    let mut mixer = Mixer::new(seconds_max, each);
    let mut broken = 0;
    while let Some(packet) = next(&mut *format)? {
        if packet.track_id != id {
            continue;
        }
        let heard = decoder.decode(&packet)?;
        broken = if heard { 0 } else { broken + 1 };
        if broken > BROKEN_MAX {
            return Err(AudioError::Broken("none of its packets can be decoded".to_owned()));
        }
        if heard {
            mixer.take(&decoder.samples, decoder.channels, decoder.rate)?;
        }
    }
    let found = mixer.finish()?;
    match claimed {
        Some(claimed) if found + MISSING_MAX < claimed => Err(AudioError::Cut { found, claimed }),
        _ if found == 0.0 => Err(AudioError::Empty),
        _ => Ok(()),
    }
}

/// The next packet; none at the end, or where the file is cut off.
fn next(format: &mut dyn FormatReader) -> Result<Option<Packet>, AudioError> {
    match format.next_packet() {
        Ok(packet) => Ok(packet),
        Err(Error::IoError(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        // A chain of streams: the first is what was asked for.
        Err(Error::ResetRequired) => Ok(None),
        Err(error) => Err(AudioError::Broken(error.to_string())),
    }
}

/// What the header says, where it says it.
fn claimed_seconds(track: &Track) -> Option<f64> {
    let parameters = track.codec_params.as_ref()?.audio()?;
    Some(track.num_frames? as f64 / f64::from(parameters.sample_rate.filter(|rate| *rate > 0)?))
}

enum Codec {
    Symphonia(Box<dyn AudioDecoder>),
    Opus(Box<OpusDecoder>),
}

/// Decodes packets to samples, channels next to each other.
struct Decoder {
    codec: Codec,
    samples: Vec<f32>,
    channels: usize,
    rate: u32,
}

impl Decoder {
    fn new(parameters: &AudioCodecParameters) -> Result<Self, AudioError> {
        let channels = parameters.channels.as_ref().map_or(1, |channels| channels.count());
        let rate = parameters.sample_rate.unwrap_or(RATE);
        check(channels, rate)?;
        let codec = match parameters.codec {
            CODEC_ID_OPUS => {
                let channels = channels.min(2);
                let decoder = OpusDecoder::new(OPUS_RATE, channels);
                let decoder = decoder.map_err(|error| AudioError::Unknown(error.to_string()))?;
                return Ok(Self {
                    codec: Codec::Opus(Box::new(decoder)),
                    samples: Vec::new(),
                    channels,
                    rate: OPUS_RATE,
                });
            }
            _ => symphonia::default::get_codecs().make_audio_decoder(parameters, &AudioDecoderOptions::default()),
        };
        let codec = codec.map_err(|error| AudioError::Unknown(error.to_string()))?;
        Ok(Self { codec: Codec::Symphonia(codec), samples: Vec::new(), channels, rate })
    }

    /// Whether a packet had samples.
    fn decode(&mut self, packet: &Packet) -> Result<bool, AudioError> {
        match &mut self.codec {
            Codec::Symphonia(codec) => match codec.decode(packet) {
                Ok(decoded) => {
                    (self.channels, self.rate) = (decoded.spec().channels().count(), decoded.spec().rate());
                    check(self.channels, self.rate)?;
                    self.samples.clear();
                    decoded.copy_to_vec_interleaved(&mut self.samples);
                    Ok(!self.samples.is_empty())
                }
                // What is broken is left out, as players do.
                Err(Error::DecodeError(_) | Error::IoError(_)) => Ok(false),
                Err(error) => Err(AudioError::Broken(error.to_string())),
            },
            Codec::Opus(codec) => {
                let frames_max = codec.max_frame_size_per_channel();
                self.samples.resize(frames_max * self.channels, 0.0);
                let Ok(frames) = codec.decode_float(&packet.data, &mut self.samples, false) else { return Ok(false) };
                let (start, end) = (packet.trim_start.get() as usize, packet.trim_end.get() as usize);
                let end = frames.saturating_sub(end);
                self.samples.truncate(end * self.channels);
                self.samples.drain(..start.min(end) * self.channels);
                Ok(true)
            }
        }
    }
}

fn check(channels: usize, rate: u32) -> Result<(), AudioError> {
    match () {
        () if !(1..=CHANNELS_MAX).contains(&channels) => Err(AudioError::Channels(channels)),
        () if !(1..=RATE_MAX).contains(&rate) => Err(AudioError::Rate(rate)),
        () => Ok(()),
    }
}

/// Mixes channels to one, brings it to the rate that is wanted and counts.
struct Mixer<'a> {
    each: &'a mut dyn FnMut(&[f32]),
    seconds_max: u64,
    seconds: f64,
    rate: Option<u32>,
    resampler: Option<Resampled>,
    mixed: Vec<f32>,
}

impl<'a> Mixer<'a> {
    fn new(seconds_max: u64, each: &'a mut dyn FnMut(&[f32])) -> Self {
        Self { each, seconds_max, seconds: 0.0, rate: None, resampler: None, mixed: Vec::new() }
    }

    fn take(&mut self, samples: &[f32], channels: usize, rate: u32) -> Result<(), AudioError> {
        if self.rate != Some(rate) {
            self.flush()?;
            self.rate = Some(rate);
            self.resampler = if rate == RATE { None } else { Some(Resampled::new(rate)?) };
        }
        self.mixed.clear();
        let whole = |value: f32| if value.is_finite() { value } else { 0.0 };
        let mix = |frame: &[f32]| whole(frame.iter().sum::<f32>() / channels as f32);
        self.mixed.extend(samples.chunks_exact(channels).map(mix));
        self.seconds += self.mixed.len() as f64 / f64::from(rate);
        if self.seconds > self.seconds_max as f64 {
            return Err(AudioError::TooLong(self.seconds_max));
        }
        match &mut self.resampler {
            None => (self.each)(&self.mixed),
            Some(resampler) => resampler.take(&self.mixed, self.each)?,
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), AudioError> {
        match self.resampler.take() {
            Some(resampler) => resampler.finish(self.each),
            None => Ok(()),
        }
    }

    /// Seconds in all.
    fn finish(mut self) -> Result<f64, AudioError> {
        self.flush()?;
        Ok(self.seconds)
    }
}

/// One channel on its way to another rate.
struct Resampled {
    resampler: Fft<f32>,
    waiting: Vec<f32>,
    made: Vec<f32>,
    /// Samples that are still to be left out, since they come before the first.
    early: usize,
    taken: usize,
    given: usize,
    rate: u32,
}

impl Resampled {
    fn new(rate: u32) -> Result<Self, AudioError> {
        let resampler = Fft::new(rate as usize, RATE as usize, CHUNK, 1, FixedSync::Input);
        let resampler = resampler.map_err(|error| AudioError::Broken(error.to_string()))?;
        let (early, made) = (resampler.output_delay(), vec![0.0; resampler.output_frames_max()]);
        Ok(Self { resampler, waiting: Vec::new(), made, early, taken: 0, given: 0, rate })
    }

    fn take(&mut self, samples: &[f32], each: &mut dyn FnMut(&[f32])) -> Result<(), AudioError> {
        self.taken += samples.len();
        self.waiting.extend_from_slice(samples);
        let mut at = 0;
        while self.waiting.len() - at >= self.resampler.input_frames_next() {
            at += self.chunk(at, None, each, usize::MAX)?;
        }
        self.waiting.drain(..at);
        Ok(())
    }

    /// Resamples a chunk from there on, of which only so many samples may be there, and says how many it took.
    fn chunk(
        &mut self,
        at: usize,
        partial: Option<usize>,
        each: &mut dyn FnMut(&[f32]),
        wanted: usize,
    ) -> Result<usize, AudioError> {
        let wrong = |error: String| AudioError::Broken(error);
        let (from, size) = (&self.waiting[at..], self.made.len());
        let input = InterleavedSlice::new(from, 1, from.len()).map_err(|error| wrong(error.to_string()))?;
        let mut output =
            InterleavedSlice::new_mut(&mut self.made, 1, size).map_err(|error| wrong(error.to_string()))?;
        let indexing = partial.map(|count| Indexing::new().partial_len(count));
        let done = self.resampler.process_into_buffer(&input, &mut output, indexing.as_ref());
        let (taken, made) = done.map_err(|error| wrong(error.to_string()))?;
        let early = self.early.min(made);
        self.early -= early;
        let count = (made - early).min(wanted);
        each(&self.made[early..early + count]);
        self.given += count;
        Ok(taken)
    }

    /// What is left, to as many samples as there were seconds.
    fn finish(mut self, each: &mut dyn FnMut(&[f32])) -> Result<(), AudioError> {
        let all = (self.taken as u64 * u64::from(RATE)).div_ceil(u64::from(self.rate)) as usize;
        let left = self.waiting.len();
        let needed = self.resampler.input_frames_max();
        self.waiting.resize(left.max(needed), 0.0);
        let mut partial = left;
        while self.given < all {
            let wanted = all - self.given;
            self.chunk(0, Some(partial), each, wanted)?;
            partial = 0;
        }
        Ok(())
    }
}
