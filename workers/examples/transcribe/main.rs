//! Transcribes files without a queue: `transcribe FOLDER DTYPE FILE...`, where the folder holds a Whisper model. For
//! profiles and for comparisons with other engines.

use std::time::Instant;

use schemas::codec::Encoding;
use schemas::registry::Registry;
use serde_json::{Value, json};
use workers::endpoint::{Stamp, prepare};
use workers::engine::{SequenceId, load};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(dtype)) = (arguments.next(), arguments.next()) else {
        return Err("usage: transcribe FOLDER DTYPE [FIELD=VALUE...] FILE...".into());
    };
    let registry = format!("[[models]]\nname = \"m\"\ntask = \"transcribe\"\nsource = {folder:?}\ndtype = {dtype:?}\n");
    let registry = Registry::parse(&registry)?;
    let model = &registry.models[0];
    let mut loaded = load(model, Some(std::path::Path::new(&folder)))?;
    let mut plans = Vec::new();
    let (mut body, mut url) = (json!({ "model": "m", "response_format": "verbose_json" }), "transcriptions");
    let began = Instant::now();
    for argument in arguments {
        if argument == "translate" {
            url = "translations";
            continue;
        }
        if let Some((field, value)) = argument.split_once('=') {
            body[field] = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            continue;
        }
        body["file"] =
            json!(base64::Engine::encode(&base64::engine::general_purpose::STANDARD, std::fs::read(&argument)?));
        body["filename"] = json!(argument);
        let job = json!({ "url": format!("/v1/audio/{url}"), "body": body });
        let job = Encoding::Json.decode(&serde_json::to_vec(&job)?)?;
        let plan = prepare(&job, "job", model, &loaded.text).map_err(|reject| reject.error.message)?;
        plans.push((argument, plan));
    }
    eprintln!("{:.3} s to read the files", began.elapsed().as_secs_f64());
    let began = Instant::now();
    for (id, (_, plan)) in (0..).zip(&plans) {
        loaded.engine.add(SequenceId(id), plan.sequences[0].clone().into());
    }
    let mut done = Vec::new();
    while !loaded.engine.is_idle() {
        loaded.engine.step()?;
        done.extend(loaded.engine.finished());
    }
    eprintln!("{:.3} s to transcribe them", began.elapsed().as_secs_f64());
    done.sort_by_key(|(id, _)| *id);
    for ((_, output), (file, plan)) in done.into_iter().zip(&plans) {
        let stamp = Stamp { model: "m", job_id: "job", created: 0, prompt_tokens: 0, text: &loaded.text };
        let (body, _) = plan.answer.body(vec![output], stamp);
        println!("{}", serde_json::to_string(&json!({ "file": file, "body": body }))?);
    }
    Ok(())
}
