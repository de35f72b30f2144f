//! Subjects, and the names and ids in them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schemas::subject::{Address, JobId, Lane, ReplyTokens, Token, dead_subject, live_subject};

fuzz_target!(|text: &str| {
    if let Ok(token) = Token::encode(text) {
        assert_legal(token.as_str());
        assert_eq!(Token::decode(token.as_str()).as_deref(), Ok(text));
    }
    if let Ok(name) = Token::decode(text) {
        assert_eq!(Token::encode(&name).as_ref().map(Token::as_str), Ok(text));
    }
    if let Ok(id) = JobId::new(text) {
        assert_legal(id.as_str());
    }
    if let Ok(lane) = text.parse::<Lane>() {
        assert_eq!(lane.as_str(), text);
    }
    let address = Address::parse(text);
    if let Ok(address) = &address {
        assert_eq!(address.subject().as_deref(), Ok(text));
    }
    if let Ok(reply) = ReplyTokens::parse(text) {
        check_reply(reply, address.is_ok());
        assert!(dead_subject(text).starts_with("inferq.dead."));
    }
});

/// Whatever the ids are, an answer goes to five tokens or fewer; for legal ids each of these is legal.
fn check_reply(reply: ReplyTokens, is_legal: bool) {
    let (result, model) = (reply.result_subject(), Token::encode("m").expect("a legal name"));
    let subjects =
        [reply.token_subject(), reply.cancel_subject(&model), reply.log_subject(), live_subject(&result), result];
    for subject in &subjects {
        assert_eq!(subject.split('.').count(), if subject.starts_with("inferq.cancel.") { 5 } else { 4 });
        assert!(subject.split('.').all(|token| !token.is_empty()));
        if is_legal {
            subject.split('.').for_each(assert_legal);
        }
    }
    assert_eq!(reply.key().split('.').collect::<Vec<_>>(), [reply.tenant, reply.job_id]);
    assert!(!is_legal || reply.input_name().split('/').eq([reply.tenant, reply.job_id]));
}

/// Neither a wildcard nor white space, nor anything else that a server may read in its own way.
#[track_caller]
fn assert_legal(token: &str) {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=".contains(&byte);
    assert!(!token.is_empty() && token.bytes().all(is_legal), "{token:?}");
}
