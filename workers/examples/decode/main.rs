//! Runs a decoder alone, for benchmarks on machines that have no more than this program: `decode FOLDER DTYPE`.
//!
//! Each line of standard input is an object with `prompts`, an array of sequences of tokens, and `max_tokens`; a line of
//! standard output answers it with seconds and what follows each prompt greedily. The model computes on the GPU where the
//! program was built for one.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use schemas::registry::Registry;
use serde::Deserialize;
use serde_json::json;
use workers::engine::{Engine, Goal, Loaded, SamplingParams, Sequence, SequenceId, load};

#[derive(Deserialize)]
struct Work {
    prompts: Vec<Vec<u32>>,
    max_tokens: usize,
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().context("give the folder of a model")?);
    let dtype = arguments.next().context("give a dtype")?;
    let model = format!(
        "[[models]]\nname = \"m\"\ntask = \"generate\"\nsource = \"m\"\ndtype = \"{dtype}\"\nlimits.batch = 256\nlimits.kv_cache_mebibytes = 8192"
    );
    let Loaded { mut engine, device, .. } = load(&Registry::parse(&model)?.models[0], Some(&folder))?;
    eprintln!("computes on {device}");
    for line in std::io::stdin().lock().lines() {
        let work: Work = serde_json::from_str(&line?)?;
        let start = Instant::now();
        let tokens = decode(&mut *engine, work)?;
        let answer = json!({ "seconds": start.elapsed().as_secs_f64(), "tokens": tokens });
        writeln!(std::io::stdout(), "{answer}")?;
    }
    Ok(())
}

fn decode(engine: &mut dyn Engine, work: Work) -> anyhow::Result<Vec<Vec<u32>>> {
    let mut tokens = vec![Vec::new(); work.prompts.len()];
    let params = SamplingParams { temperature: 0.0, max_tokens: work.max_tokens, ..SamplingParams::default() };
    for (id, prompt) in (0..).zip(work.prompts) {
        engine.add(SequenceId(id), Arc::new(Sequence::new(prompt, Goal::Generate(params.clone()))));
    }
    while !engine.is_idle() {
        engine.step()?;
        engine.made().into_iter().for_each(|made| tokens[made.id.0 as usize].push(made.token));
        engine.finished();
    }
    Ok(tokens)
}
