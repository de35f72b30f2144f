//! Subjects: how a job's model, lane, tenant and id become NATS subjects, and back.
//!
//! A [`Token`] is one piece of a subject. Names from outside (models, tenants) become tokens by one reversible rule:
//! ASCII letters, digits, `-` and `_` stand for themselves, every other byte of the UTF-8 name becomes `=` and two
//! upper-case hexadecimal digits. So `gpt-4.1` is `gpt-4=2E1`. Job ids are tokens already and are never escaped.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest name or id, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// OpenAI's service tiers as lanes, in order of precedence.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    Priority,
    #[default]
    Default,
    Flex,
}

impl Lane {
    pub const ALL: [Self; 3] = [Self::Priority, Self::Default, Self::Flex];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Priority => "priority",
            Self::Default => "default",
            Self::Flex => "flex",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Lane {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lane = Self::ALL.into_iter().find(|lane| lane.as_str() == text);
        lane.ok_or_else(|| format!("{text:?} is no lane; it is one of priority, default, flex"))
    }
}

/// Why a name cannot be part of a subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("is empty")]
    Empty,
    #[error("is {0} bytes long; at most {NAME_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("has {0:?} in it; only ASCII letters, digits, `-`, `_` and `=` are allowed")]
    Illegal(char),
    #[error("has a control character in it")]
    Control,
    #[error("{0:?} is not an escaped name")]
    NotEscaped(String),
}

/// A model or tenant name in its escaped form: one legal token of a subject, and a legal consumer name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(String);

impl Token {
    /// Escapes a name.
    pub fn encode(name: &str) -> Result<Self, NameError> {
        check_length(name)?;
        if name.chars().any(char::is_control) {
            return Err(NameError::Control);
        }
        let mut token = String::with_capacity(name.len());
        for byte in name.bytes() {
            if is_plain(byte) {
                token.push(char::from(byte));
            } else {
                token.push_str(&format!("={byte:02X}"));
            }
        }
        Ok(Self(token))
    }

    /// The name that a token of a subject stands for. Only what [`Token::encode`] makes is accepted.
    pub fn decode(token: &str) -> Result<String, NameError> {
        let wrong = || NameError::NotEscaped(token.to_owned());
        let mut bytes = Vec::with_capacity(token.len());
        let mut rest = token.as_bytes();
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            if byte == b'=' {
                let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or_else(wrong)?;
                bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
                rest = &rest[2..];
            } else {
                bytes.push(byte);
            }
        }
        let name = String::from_utf8(bytes).map_err(|_| wrong())?;
        match Self::encode(&name)? {
            Self(canonical) if canonical == token => Ok(name),
            _ => Err(wrong()),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The id of a job, chosen by its producer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(String);

impl JobId {
    pub fn new(id: impl Into<String>) -> Result<Self, NameError> {
        let id = id.into();
        check_length(&id)?;
        match id.chars().find(|&c| !(c.is_ascii() && is_plain(c as u8) || c == '=')) {
            Some(c) => Err(NameError::Illegal(c)),
            None => Ok(Self(id)),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a job stands: everything its subject says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub model: String,
    pub lane: Lane,
    pub tenant: String,
    pub job_id: JobId,
}

/// Why a job's subject cannot be used. The tenant and id tokens are kept where the subject has them, so that even
/// such a job can be answered on its result subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("subject {0:?} is not inferq.jobs.<model>.<lane>.<tenant>.<job_id>")]
    Shape(String),
    #[error("lane: {0}")]
    Lane(String),
    #[error("model: {0}")]
    Model(NameError),
    #[error("tenant: {0}")]
    Tenant(NameError),
    #[error("job_id: {0}")]
    JobId(NameError),
}

impl Address {
    /// The subject the job is published on.
    pub fn subject(&self) -> Result<String, AddressError> {
        let model = Token::encode(&self.model).map_err(AddressError::Model)?;
        let tenant = Token::encode(&self.tenant).map_err(AddressError::Tenant)?;
        Ok(format!("inferq.jobs.{model}.{}.{tenant}.{}", self.lane, self.job_id))
    }

    /// Reads a job's subject.
    pub fn parse(subject: &str) -> Result<Self, AddressError> {
        let reply = ReplyTokens::parse(subject)?;
        let mut tokens = subject.split('.').skip(2);
        let (model, lane) = (tokens.next().unwrap_or_default(), tokens.next().unwrap_or_default());
        Ok(Self {
            model: Token::decode(model).map_err(AddressError::Model)?,
            lane: lane.parse().map_err(AddressError::Lane)?,
            tenant: Token::decode(reply.tenant).map_err(AddressError::Tenant)?,
            job_id: JobId::new(reply.job_id).map_err(AddressError::JobId)?,
        })
    }
}

/// The last two tokens of a job's subject as they came: all that is needed to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTokens<'a> {
    pub tenant: &'a str,
    pub job_id: &'a str,
}

impl<'a> ReplyTokens<'a> {
    pub fn parse(subject: &'a str) -> Result<Self, AddressError> {
        let tokens: Vec<&str> = subject.split('.').collect();
        match tokens.as_slice() {
            ["inferq", "jobs", _, _, tenant, job_id] if !tenant.is_empty() && !job_id.is_empty() => {
                Ok(Self { tenant, job_id })
            }
            _ => Err(AddressError::Shape(subject.to_owned())),
        }
    }

    /// Where the result of the job is stored.
    pub fn result_subject(self) -> String {
        format!("inferq.results.{}.{}", self.tenant, self.job_id)
    }

    /// Where the answer of a job that streams appears in chunks.
    pub fn token_subject(self) -> String {
        format!("inferq.tokens.{}.{}", self.tenant, self.job_id)
    }

    /// Where the worker that runs the job is told to stop.
    pub fn cancel_subject(self, model: &Token) -> String {
        format!("inferq.cancel.{model}.{}.{}", self.tenant, self.job_id)
    }

    /// The job's key in key-value buckets.
    pub fn key(self) -> String {
        format!("{}.{}", self.tenant, self.job_id)
    }

    /// The name of the job's body in the object store, where it is too large for a message.
    pub fn input_name(self) -> String {
        format!("{}/{}", self.tenant, self.job_id)
    }

    /// Where the records of the job are stored.
    pub fn log_subject(self) -> String {
        format!("inferq.logs.{}.{}", self.tenant, self.job_id)
    }
}

/// The filter of one lane of one model: what its consumer reads.
pub fn lane_filter(model: &Token, lane: Lane) -> String {
    format!("inferq.jobs.{model}.{lane}.*.*")
}

/// The lane of jobs that a worker has lifted over those of a tenant with many.
pub const LIFTED: &str = "lifted";

/// Whether a job's subject is of that lane.
pub fn is_lifted(job_subject: &str) -> bool {
    job_subject.split('.').nth(3) == Some(LIFTED)
}

/// What the consumer of a model's lifted jobs reads.
pub fn lifted_filter(model: &Token) -> String {
    format!("inferq.jobs.{model}.{LIFTED}.*.*")
}

/// The durable pull consumer of a model's lifted jobs.
pub fn lifted_consumer_name(model: &Token) -> String {
    format!("{model}_{LIFTED}")
}

/// What a worker listens to for jobs to stop.
pub fn cancel_filter(model: &Token) -> String {
    format!("inferq.cancel.{model}.*.*")
}

/// The durable pull consumer of one lane of one model.
pub fn consumer_name(model: &Token, lane: Lane) -> String {
    format!("{model}_{lane}")
}

/// Where a job that was given up is kept.
pub fn dead_subject(job_subject: &str) -> String {
    job_subject.replacen("inferq.jobs.", "inferq.dead.", 1)
}

/// Where the chunks of a job's answer appear live, republished by the server.
pub fn live_token_subject(token_subject: &str) -> String {
    token_subject.replacen("inferq.tokens.", "inferq.live.tokens.", 1)
}

/// Where the result of a job appears live, republished by the server.
pub fn live_subject(result_subject: &str) -> String {
    result_subject.replacen("inferq.results.", "inferq.live.", 1)
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

fn check_length(name: &str) -> Result<(), NameError> {
    match name.len() {
        0 => Err(NameError::Empty),
        length if length > NAME_BYTES_MAX => Err(NameError::TooLong(length)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_legal_name_survives_the_round_trip(name in "[^\\x00-\\x1f\\x7f-\\x9f]{1,40}") {
            prop_assume!(name.len() <= NAME_BYTES_MAX);
            let token = Token::encode(&name).unwrap();
            prop_assert!(token.as_str().bytes().all(|byte| is_plain(byte) || byte == b'='));
            prop_assert_eq!(Token::decode(token.as_str()).unwrap(), name);
        }

        #[test]
        fn two_tokens_never_mean_the_same_name(token in "[A-Za-z0-9=_.-]{1,12}") {
            if let Ok(name) = Token::decode(&token) {
                prop_assert_eq!(Token::encode(&name).unwrap().to_string(), token);
            }
        }

        #[test]
        fn an_address_survives_its_subject(model in "[a-z/.:-]{1,20}", tenant in "[a-z@.]{1,20}", id in "[A-Za-z0-9=_-]{1,36}", lane in 0usize..3) {
            let address = Address { model, lane: Lane::ALL[lane], tenant, job_id: JobId::new(id).unwrap() };
            let subject = address.subject().unwrap();
            prop_assert_eq!(Address::parse(&subject).unwrap(), address);
        }
    }

    #[test]
    fn names_are_escaped_as_documented() {
        assert_eq!(Token::encode("gpt-4.1").unwrap().as_str(), "gpt-4=2E1");
        assert_eq!(Token::encode("openai/gpt-oss-20b").unwrap().as_str(), "openai=2Fgpt-oss-20b");
        assert_eq!(Token::encode("all-MiniLM-L6-v2").unwrap().as_str(), "all-MiniLM-L6-v2");
    }

    #[test]
    fn unusable_ids_are_refused_by_name() {
        assert_eq!(JobId::new(""), Err(NameError::Empty));
        assert_eq!(JobId::new("a b"), Err(NameError::Illegal(' ')));
        assert_eq!(JobId::new("ü"), Err(NameError::Illegal('ü')));
        assert_eq!(JobId::new("x".repeat(129)), Err(NameError::TooLong(129)));
    }
}
