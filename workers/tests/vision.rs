//! CLIP and SigLIP against transformers, on the tiny models that `tests/golden/vision/make.py` made.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemas::codec::Encoding;
use schemas::registry::{Model, Registry};
use serde_json::{Value, json};
use time::OffsetDateTime;
use workers::endpoint::{Known, Stamp, prepare};
use workers::engine::{Loaded, SequenceId, load};
use workers::picture;

const MODELS: [&str; 2] = ["clip", "siglip"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/vision")
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder().join(name).join("golden.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn read(name: &str, task: &str, dtype: &str) -> (Model, Loaded) {
    let lines = format!("name = \"m\"\ntask = \"{task}\"\nsource = \"m\"\ndtype = \"{dtype}\"");
    let model = Registry::parse(&format!("[[models]]\n{lines}")).unwrap().models.remove(0);
    let loaded = load(&model, Some(&folder().join(name))).unwrap_or_else(|error| panic!("{name}: {error}"));
    (model, loaded)
}

/// What a job is answered, without a queue.
fn answer((model, loaded): &mut (Model, Loaded), url: &str, mut body: Value) -> Result<Value, Value> {
    body["model"] = json!("m");
    let job = Encoding::Json.decode(json!({ "url": url, "body": body }).to_string().as_bytes()).unwrap();
    let plan = prepare(&job, Known { job_id: "job", published: OffsetDateTime::now_utc() }, model, &loaded.text)
        .map_err(|reject| json!(reject.error))?;
    for (id, sequence) in (0..).zip(&plan.sequences) {
        loaded.engine.add(SequenceId(id), Arc::new(sequence.clone()));
    }
    let mut done = Vec::new();
    while !loaded.engine.is_idle() {
        loaded.engine.step().unwrap();
        done.extend(loaded.engine.finished());
    }
    done.sort_by_key(|(id, _)| *id);
    let prompt_tokens = plan.prompt_tokens();
    let stamp = Stamp { model: "m", job_id: "job", created: 0, prompt_tokens, text: &loaded.text };
    let outputs = done.into_iter().map(|(_, output)| output).collect();
    Ok(serde_json::to_value(plan.answer.body(outputs, stamp).0).unwrap())
}

fn image(name: &str) -> String {
    STANDARD.encode(std::fs::read(folder().join(name)).unwrap())
}

fn apart(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn images_are_seen_to_the_bit_as_pillow_brings_them_to_their_size() {
    let pixels = picture::read(&std::fs::read(folder().join("image.png")).unwrap()).unwrap();
    for name in MODELS {
        let (_, loaded) = read(name, "embed", "f32");
        let seen = loaded.text.sight().unwrap().see(&pixels);
        assert_eq!(seen, numbers(&golden(name)["pixels"]), "{name}");
    }
}

#[test]
fn vectors_are_those_of_transformers() {
    for (name, dtype, most) in
        [("clip", "f32", 1e-4), ("siglip", "f32", 1e-4), ("clip", "int8", 0.05), ("siglip", "int8", 0.05)]
    {
        if cfg!(feature = "cuda") && dtype == "int8" {
            // On processors alone.
            continue;
        }
        let (golden, mut model) = (golden(name), read(name, "embed", dtype));
        let cases = golden["texts"].as_array().unwrap();
        let mut input: Vec<Value> = cases.iter().map(|case| case["text"].clone()).collect();
        let url = format!("data:image/png;base64,{}", image("image.png"));
        input.push(json!({ "image": image("image.png") }));
        input.push(json!({ "type": "image_url", "image_url": { "url": url } }));
        let body = answer(&mut model, "/v1/embeddings", json!({ "input": input })).unwrap();
        let vector = |index: usize| numbers(&body["data"][index]["embedding"]);
        for (index, case) in cases.iter().enumerate() {
            let apart = apart(&vector(index), &numbers(&case["embedding"]));
            assert!(apart < most, "{name}, {dtype}, {}: {apart}", case["text"]);
        }
        assert!(apart(&vector(3), &numbers(&golden["image"])) < most, "{name}, {dtype}");
        assert_eq!(vector(3), vector(4));
        // The same by itself, and from a file that lost a little.
        let alone = answer(&mut model, "/v1/embeddings", json!({ "input": { "image": image("image.jpg") } })).unwrap();
        let cosine: f32 = numbers(&alone["data"][0]["embedding"]).iter().zip(vector(3)).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.9, "{name}: {cosine}");
    }
}

#[test]
fn classes_are_told_by_their_names() {
    for name in MODELS {
        let (golden, mut model) = (golden(name), read(name, "classify", "f32"));
        let labels: Vec<&Value> = golden["texts"].as_array().unwrap().iter().map(|case| &case["text"]).collect();
        let asked = json!({
            "input": [{ "image": image("image.png") }, "a cat"],
            "candidate_labels": labels,
            "hypothesis_template": "{}",
        });
        let body = answer(&mut model, "/v1/classify", asked).unwrap();
        let theirs = numbers(&golden["probs"]);
        assert!(apart(&numbers(&body["data"][0]["probs"]), &theirs) < 1e-3, "{name}: {body}");
        let best = (0..3).max_by(|a, b| theirs[*a].total_cmp(&theirs[*b])).unwrap();
        assert_eq!((&body["data"][0]["label"], &body["data"][0]["num_classes"]), (labels[best], &json!(3)));
        assert_eq!(body["data"][1]["label"], "a cat", "a text is nearest to itself");
        for (asked, param) in [
            (json!({ "input": "a" }), "body.candidate_labels"),
            (json!({ "input": "a", "candidate_labels": ["x", ""] }), "body.candidate_labels"),
            (
                json!({ "input": "a", "candidate_labels": ["x", "a class of too many letters"], "hypothesis_template": "{}" }),
                "body.candidate_labels[1]",
            ),
            (
                json!({ "input": "a", "candidate_labels": ["x"], "hypothesis_template": "y" }),
                "body.hypothesis_template",
            ),
        ] {
            assert_eq!(answer(&mut model, "/v1/classify", asked).unwrap_err()["param"], param);
        }
    }
}

#[test]
fn hostile_images_are_refused() {
    let mut model = read("clip", "embed", "f32");
    let whole = std::fs::read(folder().join("image.png")).unwrap();
    // A header that claims 30,000 by 30,000 pixels, with its checksum.
    let mut huge = whole.clone();
    huge[16..24].copy_from_slice(&[0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30]);
    let checksum = crc32(&huge[12..29]);
    huge[29..33].copy_from_slice(&checksum.to_be_bytes());
    let files = [
        ("huge", huge),
        ("cut off", whole[..whole.len() / 2].to_vec()),
        ("a header alone", whole[..33].to_vec()),
        ("text", b"not an image".repeat(50)),
        ("audio", b"RIFF\x24\0\0\0WAVEfmt ".to_vec()),
        ("an archive", b"PK\x03\x04\x14\0\0\0\x08\0".to_vec()),
    ];
    for (what, file) in files {
        let input = json!([{ "image": STANDARD.encode(file) }]);
        let error = answer(&mut model, "/v1/embeddings", json!({ "input": input })).unwrap_err();
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("invalid_image"), &json!("body.input[0]")),
            "{what}: {error}"
        );
    }
    for input in [json!({ "image": "" }), json!({ "image": "%" }), json!({ "image": "https://localhost/a.png" })] {
        let error = answer(&mut model, "/v1/embeddings", json!({ "input": input })).unwrap_err();
        assert_eq!(error["param"], "body.input[0]", "{error}");
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1)))
    };
    !bytes.iter().fold(u32::MAX, step)
}
