//! `stream: true`: the chunks of a job's answer as server-sent events.
//!
//! An event's id is the job and the number of its chunk, so a client that was cut off asks again with `Last-Event-ID` and
//! gets the next one, from whichever gateway and whichever worker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{BoxStream, StreamExt};
use schemas::chunk::{ChatChunkChoice, ChatCompletionChunk, Chunk, CompletionChunk, CompletionChunkChoice, Delta};
use schemas::completions::Role;
use schemas::log::Usage;
use schemas::result::{ErrorBody, ErrorObject, JobResult};
use schemas::subject::JobId;
use schemas::tools::{ToolCall, ToolCallDelta};
use serde_json::Value;
use tokio::time::timeout;

use super::Gateway;
use super::answer::{error_of, mark, respond};
use super::asked::{self, Asked};
use super::caller::Caller;
use super::error::{ApiError, ApiResult, QUEUE_UNAVAILABLE};
use super::leave::{Leave, StandBy, stand_by};
use super::metrics::Open;
use crate::client::ReadError;

/// A job that fails within this time is answered with its status; after it the stream is open and tells by an event.
const OPEN_AFTER: Duration = Duration::from_secs(5);
/// Between two comments that keep a silent connection alive.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Proxies are not to hold back what they get.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Where a stream goes on: the job, and the number of the last chunk that was read.
#[derive(Debug)]
pub struct Place {
    job_id: JobId,
    chunk: u64,
}

/// `Last-Event-ID`, as the events have it: `JOB_ID/CHUNK`.
pub fn place(headers: &HeaderMap) -> ApiResult<Option<Place>> {
    let Some(value) = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) else { return Ok(None) };
    let read = || {
        let (job_id, chunk) = value.to_str().ok()?.rsplit_once('/')?;
        Some(Place { job_id: JobId::new(job_id).ok()?, chunk: chunk.parse().ok()? })
    };
    let wrong =
        || ApiError::invalid("invalid_value", "", "Last-Event-ID: the id of an event of a stream, JOB_ID/CHUNK");
    read().map(Some).ok_or_else(wrong)
}

type Chunks = BoxStream<'static, Result<(u64, Chunk), ReadError>>;

/// One reader of one job's answer.
struct Reader {
    gateway: Arc<Gateway>,
    caller: Caller,
    job_id: JobId,
    chunks: Chunks,
    /// A chunk that was read already.
    ahead: Option<Result<(u64, Chunk), ReadError>>,
    include_usage: bool,
    /// When the request came, until its first token has gone.
    begun: Option<Instant>,
    /// Whether it began with the first chunk.
    from_start: bool,
    /// The shape of the last events, and the usage that came with the last chunk.
    last: Option<Chunk>,
    stage: Stage,
    /// Dropped with the reader: the job of a caller that left is cancelled.
    leave: Option<Leave>,
    _stand_by: Option<StandBy>,
    _open: Open,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Chunks,
    Usage,
    Done,
    Over,
}

impl Gateway {
    /// Sends a job and answers with its chunks as they are made.
    pub async fn stream(self: Arc<Self>, caller: Caller, asked: Asked) -> ApiResult<Response> {
        let (begun, job_id) = (Instant::now(), asked.job_id().clone());
        let chunks = self.client.tokens(&caller.token, &job_id, 0).await?.boxed();
        self.send(&asked, &caller).await?;
        let is_own = asked.fingerprint.is_none();
        let leave = Leave::new(&self, &caller, &job_id, is_own, self.options.resume);
        let include_usage = include_usage(&asked.job.body);
        let mut reader = Reader {
            include_usage,
            begun: Some(begun),
            leave: Some(leave),
            ..Reader::new(self, caller, job_id, chunks)
        };
        // Most mistakes are found at once: they are told by a status, as without a stream.
        if let Ok(first) = timeout(OPEN_AFTER, reader.chunks.next()).await {
            match first {
                Some(first) => reader.ahead = Some(first),
                None => {
                    let result = reader.result().await?;
                    asked.check(&result)?;
                    if !result.is_success() {
                        reader.settle();
                        return respond(result);
                    }
                    reader.take_whole(&result);
                }
            }
        }
        Ok(reader.respond())
    }

    /// Goes on with a stream after the chunk that its reader had last.
    /// `is_own` is whether the job ends with its reader.
    pub async fn resume(self: Arc<Self>, caller: &Caller, place: Place, is_own: bool) -> ApiResult<Response> {
        let Place { job_id, chunk } = place;
        let stand_by = stand_by(&self.client, &caller.token, &job_id).await;
        let stand_by = stand_by.map_err(|error| ApiError::unavailable(QUEUE_UNAVAILABLE, error.to_string()))?;
        self.known(caller, &job_id).await?;
        let chunks = self.client.tokens(&caller.token, &job_id, chunk + 1).await?.boxed();
        let is_own = is_own && !asked::is_shared(&job_id);
        let leave = Leave::new(&self, caller, &job_id, is_own, self.options.resume);
        let reader = Reader {
            from_start: false,
            leave: Some(leave),
            _stand_by: Some(stand_by),
            ..Reader::new(self, caller.clone(), job_id, chunks)
        };
        Ok(reader.respond())
    }

    /// All chunks of a job that was sent before, from the first on.
    pub async fn replay(self: Arc<Self>, caller: &Caller, job_id: JobId) -> ApiResult<Response> {
        self.known(caller, &job_id).await?;
        let chunks = self.client.tokens(&caller.token, &job_id, 0).await?.boxed();
        Ok(Reader::new(self, caller.clone(), job_id, chunks).respond())
    }
}

impl Reader {
    /// Of a whole answer, whose end is of no consequence for the job.
    fn new(gateway: Arc<Gateway>, caller: Caller, job_id: JobId, chunks: Chunks) -> Self {
        Self {
            _open: gateway.metrics.open_stream(),
            gateway,
            caller,
            job_id,
            chunks,
            ahead: None,
            // Who asks a second time is told all.
            include_usage: true,
            begun: None,
            from_start: true,
            last: None,
            stage: Stage::Chunks,
            leave: None,
            _stand_by: None,
        }
    }

    fn respond(self) -> Response {
        let job_id = Ok::<_, ()>(self.job_id.clone());
        let events = futures::stream::unfold(self, |mut reader| async move {
            let event = reader.next().await?;
            Some((Ok::<_, std::convert::Infallible>(event), reader))
        });
        let mut response =
            Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("ping")).into_response();
        mark(&mut response, &job_id);
        let headers = response.headers_mut();
        headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }

    async fn next(&mut self) -> Option<Event> {
        if self.stage == Stage::Chunks {
            let read = match self.ahead.take() {
                Some(read) => Some(read),
                None => self.chunks.next().await,
            };
            match read {
                Some(Ok((number, chunk))) => return Some(self.chunk(number, chunk)),
                Some(Err(error)) => return Some(self.fail(ErrorObject::server("stream_broken", error.to_string()))),
                None => match self.result().await {
                    Ok(result) if !result.is_success() => return Some(self.fail(error_of(&result))),
                    Ok(result) if self.last.is_none() => {
                        self.take_whole(&result);
                        if let Some(Ok((number, chunk))) = self.ahead.take() {
                            return Some(self.chunk(number, chunk));
                        }
                        self.stage = Stage::Usage;
                    }
                    Ok(_) => self.stage = Stage::Usage,
                    Err(error) => return Some(self.fail(*error.error)),
                },
            }
        }
        if self.stage == Stage::Usage {
            self.stage = Stage::Done;
            if let Some(usage) = self.usage() {
                return Some(Event::default().data(write(&usage)));
            }
        }
        if self.stage == Stage::Done {
            self.settle();
            self.stage = Stage::Over;
            return Some(Event::default().data("[DONE]"));
        }
        None
    }

    /// One chunk. Its usage has an event of its own, after the last one.
    fn chunk(&mut self, number: u64, chunk: Chunk) -> Event {
        if chunk.is_last() {
            self.stage = Stage::Usage;
        }
        if let Some(begun) = self.begun.take() {
            let operation = match &chunk {
                Chunk::Chat(_) => "chat",
                Chunk::Completion(_) => "text_completion",
            };
            self.gateway.metrics.first_token(operation, begun.elapsed());
        }
        let mut sent = chunk.clone();
        *usage_of(&mut sent) = None;
        self.last = Some(chunk);
        Event::default().id(format!("{}/{number}", self.job_id)).data(write(&sent))
    }

    /// An error ends the stream: OpenAI's clients raise it.
    fn fail(&mut self, error: ErrorObject) -> Event {
        self.settle();
        self.stage = Stage::Over;
        Event::default().event("error").data(write(&ErrorBody { error }))
    }

    /// What the usage event says, if it is wanted and known.
    fn usage(&mut self) -> Option<Chunk> {
        let mut last = self.last.take().filter(|_| self.include_usage)?;
        usage_of(&mut last).as_ref()?;
        match &mut last {
            Chunk::Chat(chunk) => chunk.choices.clear(),
            Chunk::Completion(chunk) => chunk.choices.clear(),
        }
        Some(last)
    }

    /// An answer without chunks, or none that are left, as one; or, for a reader that had some, what comes after them.
    fn take_whole(&mut self, result: &JobResult) {
        let Some(response) = &result.response else { return };
        match (whole(&response.body), self.from_start) {
            (Some(chunk), true) => self.ahead = Some(Ok((0, chunk))),
            (chunk, _) => self.last = chunk,
        }
    }

    fn result(&self) -> impl Future<Output = ApiResult<JobResult>> + use<> {
        let (client, tenant, job_id) = (self.gateway.client.clone(), self.caller.token.clone(), self.job_id.clone());
        async move { Ok(client.wait(&tenant, &job_id).await?) }
    }

    /// The job is over, whatever becomes of its reader.
    fn settle(&mut self) {
        if let Some(leave) = self.leave.take() {
            leave.stay();
        }
    }
}

fn include_usage(body: &Value) -> bool {
    body["stream_options"]["include_usage"] == Value::Bool(true)
}

fn write<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("the contract's types have string keys only")
}

fn usage_of(chunk: &mut Chunk) -> &mut Option<Usage> {
    match chunk {
        Chunk::Chat(chunk) => &mut chunk.usage,
        Chunk::Completion(chunk) => &mut chunk.usage,
    }
}

/// A whole answer as one chunk.
fn whole(body: &Value) -> Option<Chunk> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let (id, model) = (text(&body["id"])?, text(&body["model"])?);
    let created = body["created"].as_i64()?;
    let usage: Option<Usage> = serde_json::from_value(body["usage"].clone()).ok();
    let choices = body["choices"].as_array()?.iter().enumerate();
    match body["object"].as_str()? {
        "chat.completion" => {
            let choices = choices.map(|(index, choice)| chat_choice(index, choice)).collect();
            let object = "chat.completion.chunk".to_owned();
            Some(Chunk::Chat(ChatCompletionChunk { id, object, created, model, choices, usage }))
        }
        "text_completion" => {
            let choice = |(index, choice): (usize, &Value)| CompletionChunkChoice {
                index,
                text: text(&choice["text"]).unwrap_or_default(),
                finish_reason: text(&choice["finish_reason"]),
                logprobs: serde_json::from_value(choice["logprobs"].clone()).ok(),
            };
            let (object, choices) = ("text_completion".to_owned(), choices.map(choice).collect());
            Some(Chunk::Completion(CompletionChunk { id, object, created, model, choices, usage }))
        }
        _ => None,
    }
}

fn chat_choice(index: usize, choice: &Value) -> ChatChunkChoice {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let calls: Vec<ToolCall> = serde_json::from_value(choice["message"]["tool_calls"].clone()).unwrap_or_default();
    let tool_calls = calls.into_iter().enumerate().map(|(index, call)| ToolCallDelta::begin(index, call)).collect();
    let (content, reasoning_content) =
        (text(&choice["message"]["content"]), text(&choice["message"]["reasoning_content"]));
    let delta = Delta { role: Some(Role::Assistant), content, reasoning_content, tool_calls };
    let logprobs = serde_json::from_value(choice["logprobs"].clone()).ok();
    ChatChunkChoice { index, delta, finish_reason: text(&choice["finish_reason"]), logprobs }
}
