//! The files of an encoder in the layout of the Hugging Face hub: configuration, tokenizer, weights, and what
//! sentence-transformers does after the model.

use std::collections::BTreeMap;
use std::path::Path;

use kernels::Activation;
use schemas::registry;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::blueprint::{Head, Pooling, Step};
use super::family::Model;
use crate::engine::layers::{Affine, NormWeights};
use crate::engine::model_config::{Config, optional, required};
use crate::engine::tensors::Tensors;
use crate::engine::{Classes, LoadError, Prompts, Scale};

/// All that an encoder is made of.
pub struct Files {
    pub model: Model,
    pub config: Config,
    pub tokenizer: Tokenizer,
    /// The limit sentence-transformers sets, which may be below the positions the model has.
    pub tokens_max: Option<usize>,
}

#[derive(Deserialize)]
struct SentenceBert {
    max_seq_length: Option<usize>,
}

/// A line of `modules.json`.
#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

/// What of `config_sentence_transformers.json` is read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct SentenceTransformers {
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

impl Files {
    pub fn read(folder: &Path, config: Config) -> Result<Self, LoadError> {
        let tokenizer_path = folder.join("tokenizer.json");
        let tokenizer =
            Tokenizer::from_file(&tokenizer_path).map_err(|error| LoadError::file(&tokenizer_path, error))?;
        let sentence_bert: Option<SentenceBert> = optional(folder, "sentence_bert_config.json")?;
        let model = Model::open(folder, &config)?;
        let last = tokenizer.get_vocab(true).into_values().max().unwrap_or(0) as usize;
        if last >= model.vocabulary() {
            let reason = format!("has tokens up to {last}, the model has vectors for {} of them", model.vocabulary());
            return Err(LoadError::file(&tokenizer_path, reason));
        }
        Ok(Self {
            model,
            config,
            tokenizer,
            tokens_max: sentence_bert.and_then(|sentence_bert| sentence_bert.max_seq_length),
        })
    }
}

/// What the model's own files and its entry in the registry say is put before texts. The registry has the last word.
pub fn prompts(folder: &Path, registry: &registry::Model) -> Result<Prompts, LoadError> {
    const FILE: &str = "config_sentence_transformers.json";
    let file: SentenceTransformers = optional(folder, FILE)?.unwrap_or_default();
    let mut named = file.prompts;
    named.extend(registry.prompts.clone());
    let prompts = Prompts { named, default: registry.default_prompt_name.clone().or(file.default_prompt_name) };
    match prompts.has_default() {
        true => Ok(prompts),
        false => {
            let name = prompts.default.as_deref().unwrap_or_default();
            Err(LoadError::file(folder, format!("default_prompt_name: {name:?} is no prompt; {}", prompts.known())))
        }
    }
}

/// The classes that `config.json` names, and what their scores are made into: what the file says, or what transformers
/// does. `is_one` asks for a model of one class.
pub fn classes(config: &Config, is_one: bool) -> Result<Classes, LoadError> {
    let values = &config.values;
    let labels: Vec<String> = match values["id2label"].as_object() {
        Some(names) => {
            let name = |index: usize| names.get(&index.to_string()).and_then(Value::as_str).map(str::to_owned);
            let all: Option<_> = (0..names.len()).map(name).collect();
            all.ok_or_else(|| config.invalid("id2label", "does not name its classes from 0 on"))?
        }
        None => {
            (0..values["num_labels"].as_u64().unwrap_or(2).min(1 << 20)).map(|index| format!("LABEL_{index}")).collect()
        }
    };
    if labels.is_empty() || is_one && labels.len() != 1 {
        let reason = format!("are {}; the task \"rerank\" takes a model of 1, a cross-encoder", labels.len());
        return Err(config.invalid("id2label", &reason));
    }
    let asked = [&values["sentence_transformers"]["activation_fn"], &values["sbert_ce_default_activation_function"]];
    let asked = asked.into_iter().find_map(Value::as_str).map(|name| name.rsplit('.').next().unwrap_or_default());
    let scale = match (asked, values["problem_type"].as_str()) {
        (Some("Identity"), _) | (None, Some("regression")) => Scale::Identity,
        (Some("Sigmoid"), _) | (None, Some("multi_label_classification")) => Scale::Sigmoid,
        (Some("Softmax"), _) => Scale::Softmax,
        (Some(other), _) => return Err(config.invalid("activation_fn", &format!("{other} is not supported"))),
        (None, _) if labels.len() == 1 => Scale::Sigmoid,
        (None, _) => Scale::Softmax,
    };
    Ok(Classes { labels, scale })
}

/// What an embedder does with a sequence's vectors: the modules of sentence-transformers, or what the family is known
/// for, normalised, where there are none.
pub fn embedder(folder: &Path, model: &Model) -> Result<Head<Affine, NormWeights>, LoadError> {
    const MODULES: &str = "modules.json";
    let Some(modules) = optional::<Vec<Module>>(folder, MODULES)? else {
        let pooling = match optional(folder, "1_Pooling/config.json")? {
            Some(config) => pooling(&config).map_err(|reason| LoadError::file(folder, reason))?,
            None if model.shape.causal => vec![Pooling::Last],
            None => vec![Pooling::Mean],
        };
        return Ok(Head { pooling, steps: vec![Step::Normalize] });
    };
    let (mut pools, mut steps, mut width) = (None, Vec::new(), model.shape.hidden);
    for module in modules {
        let (path, config) = (folder.join(&module.path), format!("{}/config.json", module.path));
        match module.kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" => {}
            "Pooling" => {
                let found = pooling(&required(folder, &config)?);
                let found = found.map_err(|reason| LoadError::file(&folder.join(&config), reason))?;
                width *= found.len();
                pools = Some(found);
            }
            "Dense" => {
                let (step, outputs) = dense(&path, &required(folder, &config)?, width)?;
                steps.push(step);
                width = outputs;
            }
            "Normalize" => steps.push(Step::Normalize),
            other => {
                let reason = format!("{other} is not supported; Transformer, Pooling, Dense and Normalize are");
                return Err(LoadError::file(&folder.join(MODULES), reason));
            }
        }
    }
    let missing = || LoadError::file(&folder.join(MODULES), "has no Pooling");
    Ok(Head { pooling: pools.ok_or_else(missing)?, steps })
}

/// The values of the vector that a head gives.
pub fn dimensions(head: &Head<Affine, NormWeights>, hidden: usize) -> usize {
    let last = head.steps.iter().rev().find_map(|step| match step {
        Step::Linear(affine, _) => Some(affine.weight.len() / affine.inputs),
        _ => None,
    });
    last.unwrap_or(hidden * head.pooling.len())
}

fn pooling(config: &Value) -> Result<Vec<Pooling>, String> {
    const MODES: [(&str, &str, Pooling); 6] = [
        ("cls", "pooling_mode_cls_token", Pooling::Cls),
        ("max", "pooling_mode_max_tokens", Pooling::Max),
        ("mean", "pooling_mode_mean_tokens", Pooling::Mean),
        ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLength),
        ("weightedmean", "pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
        ("lasttoken", "pooling_mode_lasttoken", Pooling::Last),
    ];
    let named = |name: &Value| {
        let mode = MODES.iter().find(|(mode, ..)| name == mode);
        mode.map(|(.., pooling)| *pooling).ok_or_else(|| format!("pooling_mode: {name} is not supported"))
    };
    let found = match &config["pooling_mode"] {
        Value::Null => MODES.iter().filter(|(_, flag, _)| config[flag] == true).map(|(.., pooling)| *pooling).collect(),
        Value::Array(names) => names.iter().map(named).collect::<Result<Vec<_>, _>>()?,
        name => vec![named(name)?],
    };
    if config["include_prompt"] == false {
        return Err("include_prompt: false is not supported".to_owned());
    }
    if found.is_empty() { Err("asks for no pooling".to_owned()) } else { Ok(found) }
}

fn dense(path: &Path, config: &Value, width: usize) -> Result<(Step<Affine, NormWeights>, usize), LoadError> {
    let invalid = |reason: &str| LoadError::file(&path.join("config.json"), reason);
    let outputs = config["out_features"].as_u64().ok_or_else(|| invalid("out_features is missing"))? as usize;
    let activation = match config["activation_function"].as_str().and_then(|name| name.rsplit('.').next()) {
        None | Some("Identity") => Activation::None,
        Some("Tanh") => Activation::Tanh,
        Some("GELU") => Activation::Gelu,
        Some("ReLU") => Activation::Relu,
        Some("SiLU") => Activation::Silu,
        Some(other) => return Err(invalid(&format!("activation_function {other} is not supported"))),
    };
    let weights = Tensors::open(path, &[])?;
    let weight = weights.matrix("linear.weight", [outputs, width])?;
    let bias = weights.has("linear.bias").then(|| weights.vector("linear.bias", outputs)).transpose()?;
    Ok((Step::Linear(Affine { weight, bias, inputs: width }, activation), outputs))
}
