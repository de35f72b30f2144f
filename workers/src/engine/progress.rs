//! Progress of loading a model, told in the log where it takes long.

use std::time::{Duration, Instant};

/// How often it is told.
const EVERY: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Progress {
    layers: usize,
    told: Instant,
}

impl Progress {
    pub fn of(layers: usize) -> Self {
        Self { layers, told: Instant::now() }
    }

    /// So many layers are there.
    pub fn tell(&mut self, done: usize) {
        if self.is_due(Instant::now()) {
            tracing::info!(done, layers = self.layers, "loading the model");
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = now.saturating_duration_since(self.told) >= EVERY;
        if is_due {
            self.told = now;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_takes_long_is_told() {
        let mut progress = Progress::of(100);
        let start = progress.told;
        let told = (0..100).filter(|step| progress.is_due(start + Duration::from_millis(step * 100))).count();
        assert_eq!(told, 4, "of ten seconds");
        assert!(!progress.is_due(start), "clocks that went back");
    }
}
