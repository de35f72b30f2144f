//! BERT as candle-transformers has it: `stock MODEL_FOLDER`, driven by lines of JSON as `peers.py` says.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use candle_core::{D, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config, DTYPE};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Asked {
    sequences: Vec<Vec<u32>>,
    sorted: bool,
    vectors: bool,
    batch: usize,
}

#[derive(Serialize)]
struct Answer {
    seconds: f64,
    times: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vectors: Option<Vec<Vec<f32>>>,
    peak_bytes: u64,
}

fn main() -> anyhow::Result<()> {
    let folder = std::env::args().nth(1).context("stock MODEL_FOLDER")?;
    let model = load(Path::new(&folder))?;
    let mut answers = std::io::stdout().lock();
    writeln!(answers, "{{\"ready\": true}}")?;
    for line in std::io::stdin().lock().lines() {
        let answer = answer(&model, &serde_json::from_str(&line?)?)?;
        writeln!(answers, "{}", serde_json::to_string(&answer)?)?;
    }
    Ok(())
}

fn load(folder: &Path) -> anyhow::Result<BertModel> {
    let config: Config = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)?;
    Ok(BertModel::load(VarBuilder::from_tensors(tensors, DTYPE, &Device::Cpu), &config)?)
}

fn answer(model: &BertModel, asked: &Asked) -> anyhow::Result<Answer> {
    let (started, mut times) = (Instant::now(), Vec::new());
    let mut order: Vec<usize> = (0..asked.sequences.len()).collect();
    if asked.sorted {
        order.sort_by_key(|&index| asked.sequences[index].len());
    }
    let mut vectors = vec![Vec::new(); order.len()];
    for batch in order.chunks(asked.batch) {
        let began = Instant::now();
        let sequences: Vec<&[u32]> = batch.iter().map(|&index| &asked.sequences[index][..]).collect();
        for (index, vector) in batch.iter().zip(run(model, &sequences)?) {
            vectors[*index] = vector;
        }
        times.push(began.elapsed().as_secs_f64());
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(Answer { seconds, times, vectors: asked.vectors.then_some(vectors), peak_bytes: peak_bytes()? })
}

/// Padded to the longest; the mean of the tokens' vectors, of length 1.
fn run(model: &BertModel, sequences: &[&[u32]]) -> anyhow::Result<Vec<Vec<f32>>> {
    let length = sequences.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for tokens in sequences {
        let pad = length - tokens.len();
        ids.extend(tokens.iter().copied().chain(std::iter::repeat_n(0, pad)));
        mask.extend(std::iter::repeat_n(1_u32, tokens.len()).chain(std::iter::repeat_n(0, pad)));
    }
    let shape = (sequences.len(), length);
    let ids = Tensor::from_vec(ids, shape, &Device::Cpu)?;
    let mask = Tensor::from_vec(mask, shape, &Device::Cpu)?;
    let hidden = model.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
    let weights = mask.to_dtype(DTYPE)?.unsqueeze(2)?;
    let mean = hidden.broadcast_mul(&weights)?.sum(1)?.broadcast_div(&weights.sum(1)?)?;
    Ok(mean.broadcast_div(&mean.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?.to_vec2()?)
}

fn peak_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak")?;
    Ok(line.trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}
