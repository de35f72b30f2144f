//! Where a job stands: in the queue, at a worker, or answered.

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::DirectGetErrorKind;
use backlog::{Rate, costs, paces, position};
use schemas::header;
use schemas::log::{LogEvent, LogMessage, LogRecord};
use schemas::stream;
use schemas::subject::{JobId, Token};
use serde::Serialize;

use crate::client::{Client, ReadError, decode, log_subject, queued_filter, server, stream_handle};

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Standing {
    /// Its result is stored.
    Answered { status_code: u16 },
    /// No worker has it yet.
    Waiting {
        model: String,
        lane: String,
        /// Its place in the lane, from 1, about.
        position: u64,
        /// What the jobs before it in the lane will take, about. None while no worker has told its pace.
        eta_seconds: Option<f64>,
    },
    /// A worker has it, or had it and will again. Who, as far as the job's log says so yet.
    Running { model: String, lane: String, worker: Option<String>, attempt: Option<u32> },
    /// There is no such job, or no more.
    Unknown,
}

impl Client {
    /// Looks where a job stands.
    pub async fn standing(&self, tenant: &Token, job_id: &JobId) -> Result<Standing, ReadError> {
        // First the queue: a job leaves it after its result is stored, so it is found in one of the two.
        let job = self.first_queued(tenant, job_id).await?;
        match (self.stored(tenant, job_id).await?, job) {
            (Some(result), _) => {
                let status = result.headers.get(header::STATUS).and_then(|status| status.as_str().parse().ok());
                let status_code = match status {
                    Some(status) => status,
                    None => self.read(Some(&result.headers), &result.payload).await?.status_code(),
                };
                Ok(Standing::Answered { status_code })
            }
            (None, Some(job)) => self.standing_of(tenant, job_id, &job).await,
            (None, None) => Ok(Standing::Unknown),
        }
    }

    async fn first_queued(&self, tenant: &Token, job_id: &JobId) -> Result<Option<StreamMessage>, ReadError> {
        let jobs = stream_handle(&self.connection.jetstream, stream::JOBS).await?;
        match jobs.direct_get_first_for_subject(queued_filter(tenant, job_id)).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(server(error)),
        }
    }

    async fn standing_of(&self, tenant: &Token, job_id: &JobId, job: &StreamMessage) -> Result<Standing, ReadError> {
        let mut tokens = job.subject.split('.').skip(2);
        let (model, lane) = (tokens.next().unwrap_or_default(), tokens.next().unwrap_or_default().to_owned());
        let jobs = self.connection.jetstream.get_stream(stream::JOBS).await.map_err(server)?;
        // As `consumer_name` has it, for the lane of lifted jobs too.
        let consumer = jobs.consumer_info(format!("{model}_{lane}")).await.map_err(server)?;
        let name = Token::decode(model).unwrap_or_else(|_| model.to_owned());
        let delivered = consumer.delivered.stream_sequence;
        if job.sequence <= delivered {
            let record = self.last_record(tenant, job_id).await?;
            let (worker, attempt) = record.map(|record| (record.worker, record.attempt)).unzip();
            return Ok(Standing::Running { model: name, lane, worker, attempt });
        }
        let position = position(consumer.num_pending, job.sequence, delivered, jobs.cached_info().state.last_sequence);
        let rate = Rate::of_model(&paces(&self.connection.client).await.map_err(server)?, &name);
        let before = match rate.units_per_second {
            Some(_) => costs(&jobs, &consumer.config.filter_subject, delivered + 1, job.sequence - 1).await,
            None => Vec::new(),
        };
        Ok(Standing::Waiting { model: name, lane, position, eta_seconds: rate.seconds(position - 1, &before) })
    }

    /// What a job's log says last, unless that is the end of an earlier life.
    async fn last_record(&self, tenant: &Token, job_id: &JobId) -> Result<Option<LogRecord>, ReadError> {
        let logs = stream_handle(&self.connection.jetstream, stream::LOGS).await?;
        let message = match logs.direct_get_last_for_subject(log_subject(tenant, job_id)).await {
            Ok(message) => message,
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(server(error)),
        };
        let mut records: LogMessage = decode(Some(&message.headers), &message.payload)?;
        Ok(records.pop().filter(|record| !matches!(record.event, LogEvent::Finished { .. })))
    }
}
