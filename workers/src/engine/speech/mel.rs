//! What a speech model hears: how loud each band of frequencies is, a hundred times in a second (log-mel spectra, as in
//! OpenAI's reference implementation).
//!
//! Samples are taken as they come, so that audio need not be in memory as a whole.

use std::f64::consts::PI;
use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

/// Samples of a second.
pub const RATE: usize = 16_000;
/// Samples from one frame to the next.
pub const HOP: usize = 160;
/// Frames of a second.
pub const FRAMES_PER_SECOND: usize = RATE / HOP;
/// Samples of a spectrum.
const SIZE: usize = 400;
/// The power that counts as silence.
const SILENCE: f32 = 1e-10;
/// How much less than the loudest is told apart, in powers of ten.
const RANGE: f32 = 8.0;

/// Turns samples into spectra.
pub struct Ear {
    fft: Arc<dyn RealToComplex<f32>>,
    window: Vec<f32>,
    /// Of each band, its first frequency and the weights from there on.
    bands: Vec<(usize, Vec<f32>)>,
}

impl std::fmt::Debug for Ear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ear({} bands)", self.bands.len())
    }
}

/// The spectra of some audio.
#[derive(Clone, Debug, PartialEq)]
pub struct Mel {
    bands: usize,
    /// Logarithms of powers, frame by frame. What follows is silence.
    powers: Vec<f32>,
    loudest: f32,
    samples: usize,
}

/// Hears audio piece by piece.
pub struct Listener<'a> {
    ear: &'a Ear,
    /// Samples that later frames need too.
    pending: Vec<f32>,
    has_begun: bool,
    heard: Mel,
    spectrum: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
}

impl Ear {
    pub fn new(bands: usize) -> Self {
        let window = |at: usize| (0.5 - 0.5 * (2.0 * PI * at as f64 / SIZE as f64).cos()) as f32;
        Self {
            fft: RealFftPlanner::new().plan_fft_forward(SIZE),
            window: (0..SIZE).map(window).collect(),
            bands: bands_of(bands),
        }
    }

    pub fn listen(&self) -> Listener<'_> {
        let heard = Mel { bands: self.bands.len(), powers: Vec::new(), loudest: SILENCE.log10(), samples: 0 };
        Listener {
            ear: self,
            pending: Vec::new(),
            has_begun: false,
            heard,
            spectrum: self.fft.make_output_vec(),
            scratch: self.fft.make_scratch_vec(),
        }
    }
}

impl Listener<'_> {
    /// Hears more.
    pub fn hear(&mut self, samples: &[f32]) {
        self.heard.samples += samples.len();
        self.pending.extend_from_slice(samples);
        self.begin(SIZE / 2 + 1);
        self.advance();
    }

    /// All that was heard.
    pub fn finish(mut self) -> Mel {
        // The last frames see the silence that follows.
        self.pending.resize(self.pending.len() + SIZE, 0.0);
        self.begin(0);
        self.advance();
        self.heard
    }

    /// Puts the mirror of the first samples before them, once there are enough.
    fn begin(&mut self, needed: usize) {
        if self.has_begun || self.pending.len() < needed {
            return;
        }
        self.has_begun = true;
        let mirrored: Vec<f32> = self.pending[1..=SIZE / 2].iter().rev().copied().collect();
        self.pending.splice(0..0, mirrored);
    }

    fn advance(&mut self) {
        if !self.has_begun {
            return;
        }
        let mut at = 0;
        while at + SIZE <= self.pending.len() {
            self.frame(at);
            at += HOP;
        }
        self.pending.drain(..at);
    }

    fn frame(&mut self, at: usize) {
        let samples = &self.pending[at..at + SIZE];
        let powers = &mut self.heard.powers;
        let floor = SILENCE.log10();
        if samples.iter().all(|sample| *sample == 0.0) {
            powers.resize(powers.len() + self.ear.bands.len(), floor);
            return;
        }
        let mut windowed = [0.0; SIZE];
        for ((to, sample), weight) in windowed.iter_mut().zip(samples).zip(&self.ear.window) {
            *to = sample * weight;
        }
        let done = self.ear.fft.process_with_scratch(&mut windowed, &mut self.spectrum, &mut self.scratch);
        done.expect("all lengths are the plan's own");
        let mut loud = [0.0; SIZE / 2 + 1];
        loud.iter_mut().zip(&self.spectrum).for_each(|(loud, value)| *loud = value.norm_sqr());
        for (first, weights) in &self.ear.bands {
            let power: f32 = loud[*first..].iter().zip(weights).map(|(loud, weight)| loud * weight).sum();
            let power = power.max(SILENCE).log10();
            self.heard.loudest = self.heard.loudest.max(power);
            powers.push(power);
        }
    }
}

impl Mel {
    pub fn bands(&self) -> usize {
        self.bands
    }

    /// Whole frames of audio.
    pub fn frames(&self) -> usize {
        self.samples / HOP
    }

    pub fn seconds(&self) -> f64 {
        self.samples as f64 / RATE as f64
    }

    /// So many frames from one on, as the model wants them.
    pub fn window(&self, first: usize, to: &mut [f32]) {
        let least = self.loudest - RANGE;
        let scaled = |power: f32| (power.max(least) + 4.0) / 4.0;
        let from = self.powers.get(first * self.bands..).unwrap_or_default();
        let (heard, silent) = to.split_at_mut(from.len().min(to.len()));
        heard.iter_mut().zip(from).for_each(|(to, power)| *to = scaled(*power));
        silent.fill(scaled(SILENCE.log10()));
    }

    /// Whether nothing at all is to be heard from one frame to another.
    pub fn is_silent(&self, first: usize, frames: usize) -> bool {
        let end = ((first + frames) * self.bands).min(self.powers.len());
        self.powers.get(first * self.bands..end).unwrap_or_default().iter().all(|power| *power <= SILENCE.log10())
    }

    /// What tells it from other audio.
    pub fn digest(&self, mut each: impl FnMut(&[u8])) {
        each(&(self.samples as u64).to_le_bytes());
        self.powers.iter().for_each(|power| each(&power.to_le_bytes()));
    }
}

/// Slaney's mel scale: triangles of the same area, whose peaks are equally far apart to the ear.
fn bands_of(count: usize) -> Vec<(usize, Vec<f32>)> {
    const LINEAR: f64 = 200.0 / 3.0;
    const KNEE: f64 = 1000.0;
    let step = 6.4_f64.ln() / 27.0;
    let to_mel = |hertz: f64| if hertz < KNEE { hertz / LINEAR } else { KNEE / LINEAR + (hertz / KNEE).ln() / step };
    let to_hertz =
        |mel: f64| if mel < KNEE / LINEAR { mel * LINEAR } else { KNEE * ((mel - KNEE / LINEAR) * step).exp() };
    let highest = to_mel(RATE as f64 / 2.0);
    let edge = |index: usize| to_hertz(highest * index as f64 / (count + 1) as f64);
    let frequency = |bin: usize| bin as f64 * RATE as f64 / SIZE as f64;
    let band = |index: usize| {
        let [low, peak, high] = [edge(index), edge(index + 1), edge(index + 2)];
        let weight = |bin: usize| {
            let (up, down) = ((frequency(bin) - low) / (peak - low), (high - frequency(bin)) / (high - peak));
            (up.min(down).max(0.0) * 2.0 / (high - low)) as f32
        };
        let weights: Vec<f32> = (0..=SIZE / 2).map(weight).collect();
        let first = weights.iter().position(|weight| *weight > 0.0).unwrap_or(0);
        let last = weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0);
        (first, weights[first..=last].to_vec())
    };
    (0..count).map(band).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of two tones.
    fn tones(seconds: usize) -> Vec<f32> {
        let sample = |at: usize| {
            let time = at as f32 / RATE as f32;
            0.5 * (440.0 * 6.283_185_5 * time).sin() + 0.1 * (3000.0 * 6.283_185_5 * time).sin()
        };
        (0..seconds * RATE).map(sample).collect()
    }

    #[test]
    fn pieces_are_heard_as_the_whole_is() {
        let (ear, samples) = (Ear::new(80), tones(2));
        let mut whole = ear.listen();
        whole.hear(&samples);
        let mut pieces = ear.listen();
        samples.chunks(37).for_each(|piece| pieces.hear(piece));
        let (whole, pieces) = (whole.finish(), pieces.finish());
        assert_eq!(whole, pieces);
        assert_eq!((whole.frames(), whole.seconds()), (200, 2.0));
    }

    #[test]
    fn what_follows_the_audio_is_silence() {
        let ear = Ear::new(80);
        let mut listener = ear.listen();
        listener.hear(&tones(1));
        let heard = listener.finish();
        let mut window = vec![0.0; 300 * 80];
        heard.window(0, &mut window);
        let least = (heard.loudest - RANGE + 4.0) / 4.0;
        assert!(window[..90 * 80].iter().any(|value| *value > least + 1.0));
        assert!(window[110 * 80..].iter().all(|value| *value == least));
        assert!(heard.is_silent(110, 100) && !heard.is_silent(50, 10));
    }

    #[test]
    fn no_audio_at_all_is_silence() {
        let heard = Ear::new(80).listen().finish();
        assert_eq!((heard.frames(), heard.seconds()), (0, 0.0));
        assert!(heard.is_silent(0, 3000));
    }
}
