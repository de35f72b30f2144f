//! `inferq submit`.

use std::io::Read;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use connect::NatsArgs;
use producer::{Client, Submission, SubmitError, SubmitOptions, Submitted, WhenFull, cost};
use schemas::codec;
use schemas::job::{Endpoint, Job, Method};
use schemas::subject::{Address, JobId};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use traces::Traces;
use uuid::Uuid;

use super::results::{in_time, print_result, wait};
use super::tokens::follow;
use super::{BadInput, Usage, connect, print_json, print_line, tenant_token};
use crate::config::{self, Encoding, Output, SubmitArgs};

/// How long a person sees nothing while a job is not stored.
const QUIET_MAX: Duration = Duration::from_secs(2);

pub async fn run(nats: &NatsArgs, traces: Traces, output: Output, args: SubmitArgs) -> anyhow::Result<u8> {
    let tenant = tenant_token(&args.tenant)?;
    let job = match &args.file {
        Some(file) => read_job(file)?,
        None => job_from_flags(&args)?,
    };
    let submission = submission(&args, &job)?;
    let job_id = submission.address.job_id.clone();
    let client = Client::new(connect(nats).await?).with_traces(traces);
    // Before the job is published, so that no chunk of it is missed.
    let chunks = match args.stream {
        true => Some(client.tokens(&tenant, &job_id, 0).await?),
        false => None,
    };
    let submitted = submit(&client, &submission).await?;
    if let Some(note) = note(submitted, &job_id) {
        eprintln!("{note}");
    }
    let timeout = Duration::from_secs(args.timeout_seconds);
    if let Some(chunks) = chunks {
        eprintln!("{job_id}");
        return in_time(timeout, &job_id, follow(&client, &tenant, &job_id, chunks, true, output)).await;
    }
    if args.wait {
        eprintln!("{job_id}");
        let result = wait(&client, &tenant, &job_id, timeout).await?;
        return print_result(&result);
    }
    match output {
        Output::Json => print_json(&json!({
            "job_id": job_id.as_str(),
            "duplicate": submitted != Submitted::Queued,
            "answered": submitted == Submitted::Answered,
        }))?,
        Output::Text => print_line(job_id.as_str())?,
    }
    Ok(0)
}

/// Publishes; says so when that takes a while.
async fn submit(client: &Client, submission: &Submission) -> Result<Submitted, SubmitError> {
    let mut submitting = pin!(client.submit(submission));
    if let Ok(submitted) = tokio::time::timeout(QUIET_MAX, &mut submitting).await {
        return submitted;
    }
    eprintln!("not stored yet: the queue is full or the server is away; trying on, Ctrl-C gives up");
    submitting.await
}

/// What became of the job, where it was not simply stored.
fn note(submitted: Submitted, job_id: &JobId) -> Option<String> {
    match submitted {
        Submitted::Queued => None,
        Submitted::Duplicate => {
            Some("a job with this id is queued, in flight or was just answered: it was not stored again".to_owned())
        }
        Submitted::Answered => Some(format!(
            "the job with this id is answered already and was not stored again; `inferq results {job_id}` prints its result"
        )),
    }
}

fn submission(args: &SubmitArgs, job: &Job) -> anyhow::Result<Submission> {
    let model = job.model().ok_or_else(|| BadInput("body.model: is missing or not a string".to_owned()))?;
    let tier = job.lane().map_err(BadInput)?;
    let deadline =
        match &args.deadline {
            Some(text) => Some(OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
                Usage(format!("--deadline {text:?} is not an RFC 3339 time such as 2027-01-31T12:00:00Z"))
            })?),
            None => None,
        };
    let id = match &args.id {
        Some(id) => id.clone(),
        None => JobId::new(Uuid::now_v7().to_string())?,
    };
    let encoding = match args.encoding {
        Encoding::Json => codec::Encoding::Json,
        Encoding::Msgpack => codec::Encoding::MessagePack,
    };
    let address = Address {
        model: model.to_owned(),
        lane: args.lane.or(tier).unwrap_or_default(),
        tenant: args.tenant.tenant.clone(),
        job_id: id,
    };
    let payload = encoding.encode(job);
    let options = SubmitOptions {
        deadline,
        timeout: args.expires_in,
        max_attempts: args.max_attempts,
        no_store: args.no_cache,
        stream: args.stream,
        cost: Some(args.cost.unwrap_or_else(|| cost::estimate(payload.len(), &job.body))),
        when_full: match args.when_full {
            config::WhenFull::Wait => WhenFull::Wait,
            config::WhenFull::Refuse => WhenFull::Refuse,
        },
        may_exist: args.id.is_some(),
        is_id_random: args.id.is_none(),
    };
    Ok(Submission { address, encoding, payload: payload.into(), options })
}

fn read_job(file: &Path) -> anyhow::Result<Job> {
    let mut text = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut text).context("standard input")?;
    } else {
        text = std::fs::read(file).with_context(|| file.display().to_string())?;
    }
    let job = codec::Encoding::Json.decode(text.trim_ascii());
    Ok(job.map_err(|error| BadInput(format!("{} is not a job: {error}", file.display())))?)
}

fn job_from_flags(args: &SubmitArgs) -> anyhow::Result<Job> {
    let mut body = Map::new();
    body.insert("model".to_owned(), json!(args.model));
    let endpoint = match args {
        SubmitArgs { message: Some(message), .. } => {
            let system = args.system.iter().map(|text| json!({ "role": "system", "content": text }));
            let user = json!({ "role": "user", "content": message });
            body.insert("messages".to_owned(), system.chain([user]).collect());
            Endpoint::ChatCompletions
        }
        SubmitArgs { prompt: Some(prompt), .. } => {
            body.insert("prompt".to_owned(), json!(prompt));
            Endpoint::Completions
        }
        SubmitArgs { query: Some(query), .. } => {
            body.insert("query".to_owned(), json!(query));
            body.insert("documents".to_owned(), json!(args.document));
            Endpoint::Rerank
        }
        SubmitArgs { classify, .. } if !classify.is_empty() => {
            body.insert("input".to_owned(), one_or_all(classify));
            Endpoint::Classify
        }
        SubmitArgs { audio: Some(path), translate, .. } => {
            let read = std::fs::read(path).map_err(|error| BadInput(format!("{}: {error}", path.display())))?;
            body.insert("file".to_owned(), json!(STANDARD.encode(read)));
            body.insert("filename".to_owned(), json!(path.to_string_lossy()));
            if *translate { Endpoint::Translations } else { Endpoint::Transcriptions }
        }
        SubmitArgs { input, .. } if !input.is_empty() => {
            body.insert("input".to_owned(), one_or_all(input));
            Endpoint::Embeddings
        }
        _ => {
            let needed = "--input, --classify, --query, --audio, --message or --prompt";
            return Err(Usage(format!("--model needs one of {needed}")).into());
        }
    };
    set_fields(&mut body, &args.set)?;
    Ok(Job { custom_id: None, method: Method::Post, url: endpoint.url().to_owned(), body: Value::Object(body) })
}

/// Puts `FIELD=JSON` into a body.
pub fn set_fields(body: &mut Map<String, Value>, fields: &[String]) -> anyhow::Result<()> {
    for field in fields {
        let (name, value) =
            field.split_once('=').ok_or_else(|| Usage(format!("--set {field:?} has no `=`; write FIELD=JSON")))?;
        // A bare word is meant as a string more often than it is a mistake.
        let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
        body.insert(name.to_owned(), value);
    }
    Ok(())
}

fn one_or_all(texts: &[String]) -> Value {
    match texts {
        [text] => json!(text),
        texts => json!(texts),
    }
}
