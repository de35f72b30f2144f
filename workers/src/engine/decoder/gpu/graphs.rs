//! Steps that are done again and again: a model has hundreds of launches, which the GPU can do by one call to it.

use std::collections::HashMap;
use std::hash::Hash;

use candle_core::{Device, Result};
use kernels::cuda::Graph;

/// So many are kept; then they are forgotten, since the steps of now will be others.
const GRAPHS_MAX: usize = 128;

/// What was launched, by what tells steps apart that launch differently.
pub struct Graphs<K> {
    /// The first step of a kind is launched as it is, since what a driver does once, such as to load a kernel, cannot be
    /// recorded. Its graph is there from the second on.
    known: HashMap<K, Option<Graph>>,
    /// Not every GPU can record.
    is_on: bool,
}

impl<K> Default for Graphs<K> {
    fn default() -> Self {
        Self { known: HashMap::new(), is_on: true }
    }
}

impl<K: Eq + Hash> Graphs<K> {
    /// Does what `launches` launches. With equal keys it must launch the same, on memory that stays where it is.
    pub fn launch(&mut self, key: K, device: &Device, launches: impl Fn() -> Result<()>) -> Result<()> {
        if !self.is_on {
            return launches();
        }
        if self.known.len() >= GRAPHS_MAX && !self.known.contains_key(&key) {
            self.known.clear();
        }
        let Some(graph) = self.known.get_mut(&key) else {
            launches()?;
            self.known.insert(key, None);
            return Ok(());
        };
        let graph = match graph {
            Some(graph) => graph,
            None => match Graph::record(device, &launches) {
                Ok(recorded) => graph.insert(recorded),
                // Where it is tested, it has to work.
                Err(error) if cfg!(feature = "emulated") => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "steps are not recorded on this GPU, and take longer");
                    self.is_on = false;
                    return launches();
                }
            },
        };
        graph.launch()
    }
}

#[cfg(test)]
#[cfg(feature = "emulated")]
mod tests {
    use std::cell::Cell;

    use candle_core::{DType, Tensor};
    use kernels::cuda::decoder::score;

    use super::*;

    #[test]
    fn what_was_launched_twice_is_done_again_without_being_launched() {
        let mut graphs = Graphs::default();
        let (scores, launches) = (Tensor::zeros((1, 2), DType::F32, &Device::Cpu).unwrap(), Cell::new(0));
        for (time, expected) in [(0, 1), (1, 2), (2, 2), (3, 2)] {
            let rows = Tensor::new(&[[1.0_f32, time as f32]], &Device::Cpu).unwrap();
            let launch = || {
                launches.set(launches.get() + 1);
                score(&rows, None, None, &scores)
            };
            graphs.launch(0, &Device::Cpu, launch).unwrap();
            assert_eq!(launches.get(), expected);
        }
    }
}
