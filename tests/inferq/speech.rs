//! Speech through the whole system, on the real weights of whisper-tiny.en: what faster-whisper hears is what is heard here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt, stream};
use producer::{Submission, SubmitOptions};
use schemas::codec::Encoding;
use schemas::log::{LogEvent, LogRecord};
use schemas::subject::{Address, JobId, Lane, Token};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Deployment, TENANT, eventually, root, tenant};

const MODEL: &str = "whisper-tiny.en";
const TRANSCRIPTIONS: &str = "/v1/audio/transcriptions";

fn speech(name: &str) -> PathBuf {
    root().join("tests/speech").join(name)
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(speech(name)).unwrap()
}

/// The names of the clips, with what is said in each.
fn clips() -> BTreeMap<String, String> {
    serde_json::from_slice(&file("transcripts.json")).unwrap()
}

async fn deployment(dtype: &str) -> Deployment {
    let registry = std::fs::read_to_string(root().join("workers/models.toml")).unwrap();
    let named = format!("name = \"{MODEL}\"\ndtype = \"{dtype}\"");
    Deployment::new(&registry.replace(&format!("name = \"{MODEL}\""), &named)).await
}

fn job(file: &[u8], more: Value) -> Value {
    let mut body = json!({ "model": MODEL, "file": STANDARD.encode(file) });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "url": TRANSCRIPTIONS, "body": body })
}

async fn answer(deployment: &Deployment, job: &Value) -> (u16, Value) {
    let id = deployment.submit(job, Encoding::Json).await;
    let (_, result) = deployment.result(id.as_str()).await;
    let response = &result["response"];
    (response["status_code"].as_u64().unwrap() as u16, response["body"].clone())
}

/// A text as words in small letters, spelled as the transcripts do.
fn words(text: &str) -> Vec<String> {
    let text = text.to_lowercase().replace("mr.", "mister").replace('-', " ");
    // In one word or in two, with a hyphen or without: all are right.
    let text = text.replace("coldhearted", "cold hearted");
    let letters: String = text.chars().filter(|sign| sign.is_alphanumeric() || sign.is_whitespace()).collect();
    letters.split_whitespace().map(str::to_owned).collect()
}

/// How many words have to change to make one text of another.
fn errors(heard: &[String], said: &[String]) -> usize {
    let mut row: Vec<usize> = (0..=said.len()).collect();
    for (index, word) in heard.iter().enumerate() {
        let mut before = row[0];
        row[0] = index + 1;
        for (place, other) in said.iter().enumerate() {
            let changed = before + usize::from(word != other);
            before = row[place + 1];
            row[place + 1] = changed.min(row[place] + 1).min(before + 1);
        }
    }
    row[said.len()]
}

#[tokio::test]
async fn transcripts_are_as_good_as_those_of_faster_whisper() {
    let theirs: Value =
        serde_json::from_slice(&std::fs::read(root().join("tests/golden/speech/transcripts.json")).unwrap()).unwrap();
    for dtype in ["f32", "int8"] {
        let deployment = deployment(dtype).await;
        let _worker = deployment.worker(MODEL).await;
        let (mut ours_wrong, mut theirs_wrong, mut spoken_words) = (0, 0, 0);
        let (mut near, mut count) = (0, 0);
        for (name, said) in clips() {
            let asked = json!({ "response_format": "verbose_json", "timestamp_granularities": ["segment", "word"] });
            let (status, body) = answer(&deployment, &job(&file(&format!("clips/{name}.flac")), asked)).await;
            assert_eq!(status, 200, "{body}");
            assert_eq!((&body["task"], &body["language"]), (&json!("transcribe"), &json!("english")));
            let theirs = &theirs[&name];
            let texts = theirs["segments"].as_array().unwrap().iter().map(|segment| segment["text"].as_str().unwrap());
            let said = words(&said);
            spoken_words += said.len();
            ours_wrong += errors(&words(body["text"].as_str().unwrap()), &said);
            theirs_wrong += errors(&words(&texts.collect::<String>()), &said);
            let end = |segments: &Value| segments.as_array().unwrap().last().unwrap()["end"].as_f64().unwrap();
            count += 1;
            near += usize::from((end(&body["segments"]) - end(&theirs["segments"])).abs() <= 0.2);
            let spoken = body["words"].as_array().unwrap();
            assert!(spoken.len() >= 8, "{body}");
            if dtype == "f32" && spoken.len() == theirs["words"].as_array().unwrap().len() {
                let apart = spoken.iter().zip(theirs["words"].as_array().unwrap()).filter(|(ours, theirs)| {
                    (ours["start"].as_f64().unwrap() - theirs["start"].as_f64().unwrap()).abs() > 0.2
                });
                assert!(apart.count() * 10 <= spoken.len() * 5, "{spoken:?}");
            }
        }
        println!("{dtype}: {ours_wrong} of {spoken_words} words wrong, of faster-whisper's in f32 {theirs_wrong}");
        assert!(ours_wrong <= theirs_wrong, "{dtype}: {ours_wrong} words are wrong, of theirs {theirs_wrong}");
        assert!(near * 10 >= count * 9, "{dtype}: {near} of {count} segments end where theirs do");
    }
}

#[tokio::test]
async fn every_format_is_read_and_written() {
    let deployment = deployment("int8").await;
    let _worker = deployment.worker(MODEL).await;
    let names = std::fs::read_dir(speech("formats")).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    assert!(names.len() >= 10, "{names:?}");
    for name in names {
        let (status, body) = answer(&deployment, &job(&file(&format!("formats/{name}")), json!({}))).await;
        assert_eq!(status, 200, "{name}: {body}");
        let heard = words(body["text"].as_str().unwrap());
        assert_eq!(heard, words("he might even have been made amiable himself"), "{name}");
        let seconds = body["usage"]["seconds"].as_f64().unwrap();
        assert!((seconds - 3.29).abs() < 0.05, "{name} is {seconds} s long");
    }
    let clip = file("clips/0880.flac");
    let formats = [
        ("text", "young man.\n"),
        ("srt", "1\n00:00:00,000 --> 00:00:0"),
        ("vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:0"),
    ];
    for (format, part) in formats {
        let (status, body) = answer(&deployment, &job(&clip, json!({ "response_format": format }))).await;
        assert_eq!(status, 200, "{body}");
        assert!(body.as_str().unwrap().contains(part), "{body:?}");
    }
    let url = format!("data:audio/flac;base64,{}", STANDARD.encode(&clip));
    let (status, _) = answer(&deployment, &job(&[], json!({ "file": url, "prompt": "Jane Austen" }))).await;
    assert_eq!(status, 200);
    binary(&deployment, &clip).await;
}

/// Bytes as MessagePack has them.
struct Binary<'a>(&'a [u8]);

impl Serialize for Binary<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// A file need not be text where the job is none.
async fn binary(deployment: &Deployment, clip: &[u8]) {
    #[derive(Serialize)]
    struct Body<'a> {
        model: &'a str,
        file: Binary<'a>,
    }
    #[derive(Serialize)]
    struct Job<'a> {
        url: &'a str,
        body: Body<'a>,
    }
    let job = Job { url: TRANSCRIPTIONS, body: Body { model: MODEL, file: Binary(clip) } };
    let job_id = JobId::new(Uuid::now_v7().to_string()).unwrap();
    let address =
        Address { model: MODEL.to_owned(), lane: Lane::Default, tenant: TENANT.to_owned(), job_id: job_id.clone() };
    let payload = rmp_serde::to_vec_named(&job).unwrap().into();
    let submission =
        Submission { address, encoding: Encoding::MessagePack, payload, options: SubmitOptions::default() };
    deployment.client.submit(&submission).await.unwrap();
    let (_, result) = deployment.result(job_id.as_str()).await;
    assert!(result["response"]["body"]["text"].as_str().unwrap().contains("young man"), "{result}");
}

/// A WAV file of one format chunk and some bytes of samples, whose header claims more or fewer.
fn wav(channels: u16, rate: u32, claimed: u32, samples: &[u8]) -> Vec<u8> {
    let mut file = b"RIFF".to_vec();
    file.extend(claimed.saturating_add(36).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0");
    file.extend(channels.to_le_bytes());
    file.extend(rate.to_le_bytes());
    file.extend((rate.wrapping_mul(u32::from(channels) * 2)).to_le_bytes());
    file.extend((channels * 2).to_le_bytes());
    file.extend(b"\x10\0data");
    file.extend(claimed.to_le_bytes());
    file.extend(samples);
    file
}

#[tokio::test]
async fn hostile_files_are_refused_and_the_worker_lives_on() {
    let deployment = deployment("int8").await;
    let mut worker = deployment.worker(MODEL).await;
    let flac = file("clips/0870.flac");
    let mut unknown_length = file("hostile/ten-hours.flac");
    // The total of samples in STREAMINFO: 36 bits, of which the last 32.
    unknown_length[22..26].fill(0);
    unknown_length[21] &= 0xf0;
    let quiet = [0; 3200];
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("cut in the middle", flac[..flac.len() / 2].to_vec(), "invalid_audio"),
        ("cut in the header", flac[..30].to_vec(), "unsupported_format"),
        ("one byte", vec![b'f'], "unsupported_format"),
        ("ten hours", file("hostile/ten-hours.flac"), "audio_too_long"),
        ("ten hours that are not said", unknown_length, "audio_too_long"),
        ("eight channels at 192 kHz", wav(8, 192_000, 3200, &quiet), "unsupported_audio"),
        ("a gibibyte that is claimed", wav(1, 16_000, 1 << 30, &quiet), "audio_too_long"),
        ("a minute that is claimed", wav(1, 16_000, 60 * 32_000, &quiet), "invalid_audio"),
        ("no rate", wav(1, 0, 3200, &quiet), "unsupported_"),
        ("no channels", wav(0, 16_000, 3200, &quiet), "unsupported_"),
        ("no samples", wav(1, 16_000, 0, &[]), "invalid_audio"),
        ("an archive", [b"PK\x03\x04\x14\0\0\0\x08\0", &[0x55; 4000][..]].concat(), "unsupported_format"),
        (
            "an image",
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x75\x30\0\0\x75\x30\x08\x06\0\0\0".to_vec(),
            "unsupported_format",
        ),
        ("a text", b"He might even have been made amiable himself.".repeat(100), "unsupported_format"),
    ];
    let mut slowest = (Duration::ZERO, "");
    for (what, bytes, code) in cases {
        let begun = Instant::now();
        let (status, body) = answer(&deployment, &job(&bytes, json!({ "filename": "speech.mp3" }))).await;
        slowest = slowest.max((begun.elapsed(), what));
        let error = &body["error"];
        assert!(status == 400 && error["code"].as_str().unwrap().starts_with(code), "{what}: {status} {error}");
        assert_eq!(error["param"], "body.file", "{what}: {error}");
    }
    println!("refused at the latest after {:?}: {}", slowest.0, slowest.1);
    let fields = [
        (json!({ "file": "" }), "body.file"),
        (json!({ "file": "not base64!" }), "body.file"),
        (json!({ "file": 7 }), "body.file"),
        (json!({ "file": "http://169.254.169.254/latest/meta-data" }), "body.file"),
        (json!({ "language": "de" }), "body.language"),
        (json!({ "language": "klingon" }), "body.language"),
        (json!({ "temperature": 3 }), "body.temperature"),
        (json!({ "response_format": "diarized_json" }), "body.response_format"),
        (json!({ "timestamp_granularities": ["word"] }), "body.timestamp_granularities"),
        (json!({ "include": ["logprobs"] }), "body.include"),
    ];
    for (more, param) in fields {
        let (status, body) = answer(&deployment, &job(&file("clips/0880.flac"), more.clone())).await;
        assert_eq!((status, &body["error"]["param"]), (400, &json!(param)), "{more}: {body}");
    }
    let mut translation = job(&file("clips/0880.flac"), json!({}));
    translation["url"] = json!("/v1/audio/translations");
    let (status, body) = answer(&deployment, &translation).await;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("unsupported_endpoint")), "{body}");
    assert!(!worker.has_ended());
    let (status, body) = answer(&deployment, &job(&file("clips/0880.flac"), json!({}))).await;
    assert_eq!(status, 200, "{body}");
}

/// Silence needs no model.
#[tokio::test]
async fn silence_and_a_short_file_do_not_wait_for_a_long_one() {
    let deployment = deployment("f32").await;
    let _worker = deployment.worker(MODEL).await;
    // Ten minutes: the five sentences again and again.
    let names: Vec<String> = clips().into_keys().collect();
    let mut samples: Vec<u8> = Vec::new();
    let round = |samples: &mut Vec<u8>| {
        for name in &names {
            let heard = |values: &[f32]| {
                samples.extend(values.iter().flat_map(|value| ((value * 32_767.0) as i16).to_le_bytes()));
            };
            workers::audio::read(file(&format!("clips/{name}.flac")), None, 60, heard).unwrap();
        }
    };
    (0..25).for_each(|_| round(&mut samples));
    let seconds = samples.len() / 32_000;
    assert!(seconds > 600, "{seconds} s");
    let long = wav(1, 16_000, samples.len() as u32, &samples);
    let verbose = json!({ "response_format": "verbose_json" });
    let id = deployment.submit(&job(&long, verbose.clone()), Encoding::Json).await;
    eventually("the long file is taken up", async || {
        let stream = deployment.stream(schemas::stream::JOBS).await;
        let consumer = stream.consumer_info(format!("{}_default", Token::encode(MODEL).unwrap())).await;
        consumer.is_ok_and(|info| info.num_ack_pending > 0).then_some(())
    })
    .await;
    let silence = wav(1, 16_000, 64_000, &vec![0; 64_000]);
    let (_, silent) = answer(&deployment, &job(&silence, json!({}))).await;
    assert_eq!((&silent["text"], &silent["usage"]["seconds"]), (&json!(""), &json!(2.0)), "{silent}");
    let (_, short) = answer(&deployment, &job(&file("clips/0880.flac"), json!({}))).await;
    assert!(short["text"].as_str().unwrap().contains("young man"), "{short}");
    let results = deployment.stream(schemas::stream::RESULTS).await;
    let subject = schemas::subject::ReplyTokens { tenant: TENANT, job_id: id.as_str() }.result_subject();
    assert!(results.direct_get_last_for_subject(&subject).await.is_err(), "the long file is not done yet");
    let (_, result) = deployment.result(id.as_str()).await;
    let body = &result["response"]["body"];
    let text = body["text"].as_str().unwrap();
    for part in ["John Dashwood", "young man", "rather selfish", "more respectable", "amiable himself"] {
        assert_eq!(text.matches(part).count(), 25, "{part}: {text}");
    }
    let segments = body["segments"].as_array().unwrap();
    let time = |segment: &Value, name: &str| segment[name].as_f64().unwrap();
    assert!(segments.windows(2).all(|pair| time(&pair[0], "end") <= time(&pair[1], "start") + 0.01), "{segments:?}");
    assert!(time(segments.last().unwrap(), "end") > seconds as f64 - 3.0);
    // Its log says how far it was, every five seconds.
    let messages = deployment.client.logs(&tenant(), &id, false).await.unwrap();
    let records: Vec<LogRecord> = messages.map(|message| stream::iter(message.unwrap())).flatten().collect().await;
    let run = records.iter().find_map(|record| match &record.event {
        LogEvent::Finished { run_seconds, .. } => Some(*run_seconds),
        _ => None,
    });
    let heard = records.iter().filter_map(|record| match &record.event {
        LogEvent::Progress { audio_seconds, .. } => Some(audio_seconds.unwrap()),
        _ => None,
    });
    let heard: Vec<f64> = heard.collect();
    assert!(heard.is_sorted() && heard.iter().all(|at| (0.0..=seconds as f64 + 1.0).contains(at)), "{heard:?}");
    assert!(!heard.is_empty() || run.unwrap() < 6.0, "{records:?}");
}

/// A file for each, and what failed with its reason; the same command again sends nothing twice.
#[tokio::test]
async fn a_folder_is_written_down_file_by_file() {
    let deployment = deployment("int8").await;
    let _worker = deployment.worker(MODEL).await;
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    std::fs::create_dir_all(input.join("deep")).unwrap();
    std::fs::copy(speech("clips/0880.flac"), input.join("deep/one.flac")).unwrap();
    std::fs::copy(speech("formats/speech.mp3"), input.join("two.mp3")).unwrap();
    std::fs::copy(speech("formats/speech.ogg"), input.join("two.ogg")).unwrap();
    std::fs::write(input.join("broken.wav"), "no audio").unwrap();
    std::fs::write(input.join("notes.txt"), "passed over").unwrap();
    let run = |more: &[&str]| {
        let paths = [input.to_str().unwrap(), "-o", output.to_str().unwrap()];
        deployment.inferq(&[&["--output", "json", "batch", "run"], &paths[..], more].concat())
    };
    let summary = |done: &std::process::Output| serde_json::from_slice::<Value>(&done.stdout).unwrap();
    let refused = run(&[]);
    assert_eq!(refused.status.code(), Some(64), "a folder needs a model");
    let first = run(&["--model", MODEL, "--format", "srt"]);
    assert_eq!(first.status.code(), Some(1), "{}", String::from_utf8_lossy(&first.stderr));
    assert!(String::from_utf8_lossy(&first.stderr).contains("s of audio"), "progress is told in seconds");
    let told = summary(&first);
    assert_eq!((&told["rows"], &told["failed"], &told["resumed"]), (&json!(4), &json!(1), &json!(0)));
    let written = |name: &str| std::fs::read_to_string(output.join(name)).unwrap();
    assert!(written("deep/one.srt").contains("--> 00:00:0") && written("deep/one.srt").contains("young man"));
    assert!(written("two.mp3.srt").contains("amiable") && written("two.ogg.srt").contains("amiable"));
    assert!(!output.join("broken.srt").exists());
    let errors: Value = serde_json::from_str(written("batch.errors.jsonl").trim()).unwrap();
    assert_eq!((&errors["custom_id"], &errors["response"]["status_code"]), (&json!("broken.wav"), &json!(400)));
    let again = summary(&run(&["--model", MODEL, "--format", "srt"]));
    assert_eq!((&again["failed"], &again["resumed"]), (&json!(1), &json!(4)));
    let changed = run(&["--model", MODEL, "--format", "srt", "--set", "temperature=0.5"]);
    assert!(!changed.status.success(), "another question is another run");
}
