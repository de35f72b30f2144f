//! Sending a dead letter again: the same job under the same id, with its history.
//!
//! The letter is deleted last. After a crash in between, it is still there, and sending it again comes to the same end.

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use connect::bucket::BODY_BYTES_MAX;
use schemas::subject::{Address, JobId, LIFTED, Lane, ReplyTokens, Token};
use schemas::{header, stream};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Letter;
use crate::client::{Client, stream_handle};
use crate::submission::{WhenFull, message_id};
use crate::submit::Submitted;

/// What became of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// Its job waits again.
    Queued {
        /// Its deadline had passed and was taken away.
        without_deadline: bool,
    },
    /// Its job was answered after all. The letter is deleted.
    Answered,
}

/// What workers have written on the letter, and what must be new.
const NOT_THE_JOBS: [&str; 7] = [
    header::LANE,
    header::ATTEMPT,
    header::WORKER,
    header::DEAD_REASON,
    header::DEAD_CLASS,
    header::DEAD_LOG,
    header::HISTORY,
];

impl Client {
    /// Publishes the job of a letter again and deletes the letter.
    pub async fn replay(&self, letter: &Letter) -> anyhow::Result<Replayed> {
        let address = address(letter).with_context(|| format!("job {} cannot be sent again", letter.job_id))?;
        anyhow::ensure!(
            self.is_registered(&address.model, address.lane).await?,
            "job {}: model {:?} is no longer registered with lane {}; nothing was done",
            letter.job_id,
            address.model,
            address.lane
        );
        let dead = stream_handle(&self.connection.jetstream, stream::DEAD).await?;
        let message = dead.direct_get(letter.sequence).await;
        let message = message.with_context(|| format!("dead letter {}", letter.job_id))?;
        let mut headers = headers(letter, &address, OffsetDateTime::now_utc())?;
        let had_deadline = letter.headers.get(header::DEADLINE).is_some();
        let replayed = Replayed::Queued { without_deadline: had_deadline && headers.get(header::DEADLINE).is_none() };
        if let Some(queued) = self.queued_job(letter.tokens()).await? {
            // A replay that was cut off has sent it. Anything else is the last life of the job, which is not over yet.
            let is_sent = queued.headers.get(header::HISTORY) == headers.get(header::HISTORY);
            anyhow::ensure!(
                is_sent,
                "job {}: it is still queued or in flight; try again when it has its result",
                letter.job_id
            );
            self.delete_letter(letter).await?;
            return Ok(replayed);
        }
        let result = self.stored(&Token::encode(&address.tenant)?, &address.job_id).await?;
        if result.as_ref().is_some_and(is_answer) {
            self.delete_dead(letter).await?;
            return Ok(Replayed::Answered);
        }
        if let Some(name) = letter.body_name() {
            let input = letter.tokens().input_name();
            let body = self.dead.get(name, BODY_BYTES_MAX).await?;
            self.put_input(&input, &body, WhenFull::Wait).await?;
            headers.insert(header::BODY, input);
        }
        if let Some(result) = result {
            self.forget_result(&result).await?;
        }
        self.forget_attempts(letter.tokens()).await?;
        let publish = || PublishMessage::build().payload(message.payload.clone()).headers(headers.clone());
        let submitted = self.publish(&address, WhenFull::Wait, publish).await?;
        anyhow::ensure!(submitted == Submitted::Queued, "job {}: it was sent again by somebody else", letter.job_id);
        self.delete_letter(letter).await?;
        if let Some(name) = letter.body_name() {
            self.dead.remove(name).await?;
        }
        Ok(replayed)
    }

    /// The job of that id that waits or runs.
    pub(super) async fn queued_job(&self, tokens: ReplyTokens<'_>) -> anyhow::Result<Option<StreamMessage>> {
        let tenant = Token::encode(&Token::decode(tokens.tenant)?)?;
        let subjects = self.queued(&tenant, &JobId::new(tokens.job_id)?).await?;
        match subjects.first() {
            Some(subject) => self.job_at(subject).await,
            None => Ok(None),
        }
    }

    /// Deletes the result that says the job failed, which would stand before the new one.
    async fn forget_result(&self, result: &StreamMessage) -> anyhow::Result<()> {
        let results = stream_handle(&self.connection.jetstream, stream::RESULTS).await?;
        let purged = results.purge().filter(result.subject.as_str()).await;
        purged.context("the earlier result could not be deleted")?;
        if let Some(name) = result.headers.get(header::BODY) {
            self.blobs.remove(name.as_str()).await?;
        }
        Ok(())
    }
}

fn is_answer(result: &StreamMessage) -> bool {
    result.headers.get(header::STATUS).is_some_and(|status| status.as_str().starts_with('2'))
}

/// Where the job goes: where it came from, also if a worker had lifted it since.
fn address(letter: &Letter) -> anyhow::Result<Address> {
    let subject = letter.subject.replacen("inferq.dead.", "inferq.jobs.", 1);
    if letter.lane != LIFTED {
        return Ok(Address::parse(&subject)?);
    }
    let lane = letter.headers.get(header::LANE).and_then(|lane| lane.as_str().parse::<Lane>().ok()).unwrap_or_default();
    Ok(Address::parse(&subject.replacen(&format!(".{LIFTED}."), &format!(".{lane}."), 1))?)
}

/// The job's own headers, without a deadline that has passed, and with this life in its history.
fn headers(letter: &Letter, address: &Address, now: OffsetDateTime) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let has_passed = |value: &str| OffsetDateTime::parse(value, &Rfc3339).is_ok_and(|deadline| deadline <= now);
    for (name, values) in letter.headers.iter() {
        let name: &str = name.as_ref();
        let is_servers = name.to_ascii_lowercase().starts_with("nats-");
        if is_servers || NOT_THE_JOBS.iter().any(|other| other.eq_ignore_ascii_case(name)) {
            continue;
        }
        let kept = values.iter().filter(|value| name != header::DEADLINE || !has_passed(value.as_str()));
        kept.for_each(|value| headers.append(name, value.as_str()));
    }
    let mut history = letter.history().with_context(|| format!("{} of job {}", header::HISTORY, letter.job_id))?;
    history.push(letter.life());
    let history = serde_json::to_string(&history)?;
    // Another one than before, which may still be remembered; the same one when this replay is begun again.
    let parts = [address.tenant.as_bytes(), address.job_id.as_str().as_bytes(), history.as_bytes()];
    headers.insert(header::MESSAGE_ID, message_id(&parts));
    headers.insert(header::HISTORY, history);
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use schemas::header::{DeadClass, Life};

    use super::*;

    fn letter(lane: &str, more: &[(&str, &str)]) -> Letter {
        let mut headers = HeaderMap::new();
        let own = [
            ("Content-Type", "application/msgpack"),
            ("Inferq-Max-Attempts", "2"),
            ("Nats-Msg-Id", "t/j"),
            ("Inferq-Dead-Class", "poison"),
            ("Inferq-Dead-Reason", "why"),
            ("Inferq-Attempt", "3"),
            ("Inferq-Worker", "w"),
        ];
        own.iter().chain(more).for_each(|(name, value)| headers.insert(*name, *value));
        Letter::new(format!("inferq.dead.m.{lane}.t.j"), headers, OffsetDateTime::UNIX_EPOCH, 1).unwrap()
    }

    fn names(headers: &HeaderMap) -> Vec<String> {
        let mut names: Vec<String> = headers.iter().map(|(name, _)| name.to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_job_keeps_its_own_headers_and_gains_a_life() {
        let letter = letter("flex", &[]);
        let headers = headers(&letter, &address(&letter).unwrap(), OffsetDateTime::now_utc()).unwrap();
        assert_eq!(names(&headers), ["Content-Type", "Inferq-History", "Inferq-Max-Attempts", "Nats-Msg-Id"]);
        assert_ne!(headers.get("Nats-Msg-Id").unwrap().as_str(), "t/j");
        let history: Vec<Life> = serde_json::from_str(headers.get("Inferq-History").unwrap().as_str()).unwrap();
        let life = Life {
            time: "1970-01-01T00:00:00Z".into(),
            class: DeadClass::Poison,
            reason: "why".into(),
            attempts: 3,
            worker: "w".into(),
        };
        assert_eq!(history, [life]);
    }

    #[test]
    fn a_deadline_is_kept_while_it_lasts() {
        let letter = letter("flex", &[("Inferq-Deadline", "2030-01-01T00:00:00Z")]);
        let address = address(&letter).unwrap();
        let is_kept = |now: &str| {
            let now = OffsetDateTime::parse(now, &Rfc3339).unwrap();
            headers(&letter, &address, now).unwrap().get("Inferq-Deadline").is_some()
        };
        assert!(is_kept("2029-01-01T00:00:00Z"));
        assert!(!is_kept("2031-01-01T00:00:00Z"));
    }

    #[test]
    fn a_lifted_job_goes_back_to_its_lane() {
        assert_eq!(address(&letter("lifted", &[("Inferq-Lane", "flex")])).unwrap().lane, Lane::Flex);
        assert_eq!(address(&letter("lifted", &[])).unwrap().lane, Lane::Default);
        assert_eq!(address(&letter("priority", &[])).unwrap().lane, Lane::Priority);
    }
}
