//! The jobs that are sent, and what their right answers are.

use std::path::{Path, PathBuf};

use async_nats::HeaderMap;
use bytes::Bytes;
use schemas::codec::Encoding;
use schemas::header;
use schemas::registry::{EchoCost, Model, Registry};
use schemas::subject::{Address, JobId, Lane};
use serde_json::{Value, json};
use workers::engine::{Goal, Output, SamplingParams, Sequence, SequenceId};

use crate::support::{program, run};

/// Whatever its engine is.
pub const MODEL: &str = "chaos";
pub const TENANT: &str = "chaos";
/// Random letters after a job's id, at most.
const LETTERS_MAX: usize = 300;
/// Where a real model has to embed them.
const EMBEDDED_LETTERS_MAX: usize = 40;
/// One in so many jobs asks for an embedding.
const EMBEDDINGS: u64 = 3;
/// A priority for one in so many, and as many in `flex`.
const OTHER_LANES: u64 = 8;
/// Texts that are embedded together are added up in another order than alone.
const COSINE_MIN: f64 = 0.999_99;

/// One job, with all that is needed to send it again.
#[derive(Clone, Debug)]
pub struct Job {
    pub id: String,
    pub subject: String,
    pub headers: HeaderMap,
    pub payload: Bytes,
    pub asks: Asks,
}

/// What the answer must be.
#[derive(Clone, Debug)]
pub enum Asks {
    Chat(String),
    Embedding(String),
    /// The prompt is a fault of the engine: the job must end as a dead letter.
    Poison,
}

impl Job {
    /// The job of that id, drawn with these dice. Its text begins with the id, so that no two have the same answer.
    pub fn draw(id: String, are_embedded: bool, dice: &mut fastrand::Rng) -> Self {
        let letters_max = if are_embedded { EMBEDDED_LETTERS_MAX } else { LETTERS_MAX };
        let letters: String = (0..dice.usize(..letters_max)).map(|_| dice.alphanumeric()).collect();
        let text = format!("{id} {letters}");
        let asks = match dice.u64(..EMBEDDINGS) {
            _ if are_embedded => Asks::Embedding(text.clone()),
            0 => Asks::Embedding(text.clone()),
            _ => Asks::Chat(text.clone()),
        };
        let lane = match dice.u64(..OTHER_LANES) {
            0 => Lane::Priority,
            1 => Lane::Flex,
            _ => Lane::Default,
        };
        let encoding = if dice.bool() { Encoding::Json } else { Encoding::MessagePack };
        Self::new(id, lane, encoding, &text, asks)
    }

    /// A job whose prompt asks the engine for a fault.
    pub fn poison(id: String, prompt: &str) -> Self {
        let text = format!("{id} {prompt}");
        Self::new(id, Lane::Default, Encoding::Json, &text, Asks::Poison)
    }

    fn new(id: String, lane: Lane, encoding: Encoding, text: &str, asks: Asks) -> Self {
        let job = match &asks {
            Asks::Embedding(_) => json!({ "url": "/v1/embeddings", "body": { "model": MODEL, "input": text } }),
            Asks::Chat(_) | Asks::Poison => {
                let body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": text }] });
                json!({ "url": "/v1/chat/completions", "body": body })
            }
        };
        let job_id = JobId::new(id.as_str()).unwrap();
        let address = Address { model: MODEL.to_owned(), lane, tenant: TENANT.to_owned(), job_id };
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, encoding.content_type());
        Self { subject: address.subject().unwrap(), headers, payload: encoding.encode(&job).into(), id, asks }
    }

    pub fn is_poison(&self) -> bool {
        matches!(self.asks, Asks::Poison)
    }

    /// The same job under its message id, by which the server knows it again.
    pub fn message_id(&self) -> String {
        format!("{TENANT}/{}", self.id)
    }
}

impl Asks {
    /// What is wrong with a result, if anything is.
    pub fn fault_of(&self, status: u16, result: &Value, oracle: &mut Oracle) -> Option<String> {
        let body = &result["response"]["body"];
        let (wanted, right) = match self {
            Self::Poison => (500, body["error"]["type"] == "server_error"),
            Self::Chat(text) => (200, body["choices"][0]["message"]["content"] == **text),
            Self::Embedding(text) => (200, oracle.is_embedding(text, &body["data"][0]["embedding"])),
        };
        match (status == wanted, right) {
            (true, true) => None,
            (true, false) => Some(format!("the answer is wrong: {body}")),
            (false, _) => Some(format!("status {status}, not {wanted}: {body}")),
        }
    }
}

/// The engine itself, asked directly.
pub struct Oracle(workers::engine::Loaded);

impl Oracle {
    /// Of the only model of a registry. It takes no time for what costs none.
    pub fn new(registry: &Path) -> Self {
        let model = model(&std::fs::read_to_string(registry).unwrap()).unwrap();
        let model = Model { echo: EchoCost::default(), ..model };
        let path = model.source.is_some().then(|| {
            let fetched = run(
                &program("inferq-worker"),
                &["fetch", "--model", MODEL, "--registry", registry.to_str().unwrap()],
                &[],
            );
            assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
            PathBuf::from(String::from_utf8(fetched.stdout).unwrap().trim())
        });
        Self(workers::engine::load(&model, path.as_deref()).unwrap())
    }

    /// Whether the engine has faults that prompts may ask for.
    pub fn fails_when_told() -> bool {
        let text = format!("[[models]]\nname = {MODEL:?}\ntask = \"echo\"\necho = {{ faults = true }}");
        let Some(model) = model(&text) else { return false };
        let mut loaded = workers::engine::load(&model, None).unwrap();
        let tokens = loaded.text.encode_prompt("!error!").unwrap();
        let params = SamplingParams { temperature: 0.0, max_tokens: 100, ..SamplingParams::default() };
        loaded.engine.add(SequenceId(0), Sequence::new(tokens, Goal::Generate(params)).into());
        loaded.engine.step().is_err()
    }

    fn is_embedding(&mut self, text: &str, given: &Value) -> bool {
        let tokens = self.0.text.encode(text).unwrap();
        self.0.engine.add(SequenceId(0), Sequence::new(tokens, Goal::Embed).into());
        self.0.engine.step().unwrap();
        let outputs = self.0.engine.finished();
        let [(_, Output::Embedding(wanted))] = &outputs[..] else { panic!("no embedding of {text:?}: {outputs:?}") };
        let given: Vec<f64> = given.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        let wanted: Vec<f64> = wanted.iter().copied().map(f64::from).collect();
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = product(&given, &wanted) / (product(&given, &given) * product(&wanted, &wanted)).sqrt();
        given.len() == wanted.len() && cosine > COSINE_MIN
    }
}

fn model(registry: &str) -> Option<Model> {
    Registry::parse(registry).ok()?.models.into_iter().next()
}
