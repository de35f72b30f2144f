//! Runs an encoder alone, for benchmarks on machines that have no more than this program: `encode FOLDER DTYPE`.
//!
//! Each line of standard input is an array of sequences of tokens; a line of standard output answers it with seconds and
//! vectors. The model computes on the GPU where the program was built for one.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use schemas::registry::Registry;
use serde_json::json;
use workers::engine::{Engine, Goal, Loaded, Output, Sequence, SequenceId, load};

/// Of a batch. A GPU wants larger ones than a processor.
const BATCH_TOKENS: usize = 65_536;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().context("give the folder of a model")?);
    let dtype = arguments.next().context("give a dtype")?;
    let model = format!(
        "[[models]]\nname = \"m\"\ntask = \"embed\"\nsource = \"m\"\ndtype = \"{dtype}\"\nlimits.batch_tokens = {BATCH_TOKENS}"
    );
    let Loaded { mut engine, device, .. } = load(&Registry::parse(&model)?.models[0], Some(&folder))?;
    eprintln!("computes on {device}");
    for line in std::io::stdin().lock().lines() {
        let sequences: Vec<Vec<u32>> = serde_json::from_str(&line?)?;
        let start = Instant::now();
        let vectors = encode(&mut *engine, sequences)?;
        let answer = json!({ "seconds": start.elapsed().as_secs_f64(), "vectors": vectors });
        writeln!(std::io::stdout(), "{answer}")?;
    }
    Ok(())
}

fn encode(engine: &mut dyn Engine, sequences: Vec<Vec<u32>>) -> anyhow::Result<Vec<Vec<f32>>> {
    for (id, tokens) in (0..).zip(sequences) {
        engine.add(SequenceId(id), Arc::new(Sequence::new(tokens, Goal::Embed)));
    }
    let mut outputs = Vec::new();
    while !engine.is_idle() {
        engine.step()?;
        outputs.extend(engine.finished());
    }
    outputs.sort_by_key(|(id, _)| *id);
    let vector = |(_, output)| match output {
        Output::Embedding(vector) => Ok(vector),
        Output::Scores(_) | Output::Completion { .. } | Output::Transcript(_) => {
            Err(anyhow::anyhow!("embeddings were asked for"))
        }
    };
    outputs.into_iter().map(vector).collect()
}
