//! Transcribes files without a queue, for profiles and for comparisons with other engines.
//!
//! `transcribe FOLDER DTYPE [FIELD=JSON...] FILE...`, where the folder holds a Whisper model, prints a line for each file.
//! `transcribe FOLDER DTYPE serve` reads lines of files, with tabs between them, and answers each with their texts.

use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemas::codec::Encoding;
use schemas::registry::{Model, Registry};
use serde_json::{Value, json};
use time::OffsetDateTime;
use workers::endpoint::{Known, Stamp, prepare};
use workers::engine::{Loaded, SequenceId, load};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(dtype)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: transcribe FOLDER DTYPE [FIELD=JSON...] FILE... | serve");
    };
    let registry = format!("[[models]]\nname = \"m\"\ntask = \"transcribe\"\nsource = {folder:?}\ndtype = {dtype:?}\n");
    let registry = Registry::parse(&registry)?;
    let model = &registry.models[0];
    let mut loaded = load(model, Some(Path::new(&folder)))?;
    let mut body = json!({ "model": "m", "response_format": "verbose_json" });
    let mut files = Vec::new();
    for argument in arguments {
        match argument.split_once('=') {
            Some((field, value)) => {
                body[field] = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            }
            None => files.push(argument),
        }
    }
    if files == ["serve"] {
        for line in std::io::stdin().lock().lines() {
            let files: Vec<String> = line?.split('\t').map(str::to_owned).collect();
            let answers = transcribe(&mut loaded, model, &body, &files)?;
            let texts: Vec<&Value> = answers.iter().map(|answer| &answer["text"]).collect();
            println!("{}", json!(texts));
        }
        return Ok(());
    }
    let began = Instant::now();
    let answers = transcribe(&mut loaded, model, &body, &files)?;
    eprintln!("{:.3} s", began.elapsed().as_secs_f64());
    for (file, answer) in files.iter().zip(answers) {
        println!("{}", json!({ "file": file, "body": answer }));
    }
    Ok(())
}

fn transcribe(loaded: &mut Loaded, model: &Model, body: &Value, files: &[String]) -> anyhow::Result<Vec<Value>> {
    let url = if body["translate"] == true { "/v1/audio/translations" } else { "/v1/audio/transcriptions" };
    let mut answers = Vec::new();
    for (id, file) in (0..).zip(files) {
        let mut body = body.clone();
        (body["file"], body["filename"]) = (json!(STANDARD.encode(std::fs::read(file)?)), json!(file));
        let job = Encoding::Json.decode(&serde_json::to_vec(&json!({ "url": url, "body": body }))?)?;
        let plan = prepare(&job, Known { job_id: "job", published: OffsetDateTime::now_utc() }, model, &loaded.text);
        let plan = plan.map_err(|reject| anyhow::anyhow!("{file}: {}", reject.error.message))?;
        loaded.engine.add(SequenceId(id), plan.sequences[0].clone().into());
        answers.push(plan.answer);
    }
    let mut done = Vec::new();
    while !loaded.engine.is_idle() {
        loaded.engine.step()?;
        done.extend(loaded.engine.finished());
    }
    done.sort_by_key(|(id, _)| *id);
    let stamp = Stamp { model: "m", job_id: "job", created: 0, prompt_tokens: 0, text: &loaded.text };
    let body = |((_, output), answer): ((_, _), &workers::endpoint::Answer)| {
        Ok(serde_json::to_value(answer.body(vec![output], stamp).0)?)
    };
    done.into_iter().zip(&answers).map(body).collect()
}
