//! Who may do what: the accounts and every subject that crosses the border between two of them.
//!
//! The border of an account is the only one that holds: inside an account the server does not look at the reply subjects
//! that clients choose. So there is an account for each role, users have no permissions of their own, and what does not
//! stand here is not possible. `SECURITY.md` says what it comes to.

use schemas::subject::{Lane, Token};
use schemas::{WORKER_SERVICE, pace, stream};

/// Has the streams. Its user is the operator's: set-up, status, cancelling, dead letters.
pub const CORE: &str = "CORE";
/// Workers of all models.
pub const WORK: &str = "WORK";
/// The logger, which reads and acknowledges what it reads, and looks at what waits.
pub const LOG: &str = "LOG";

/// Where other accounts find the JetStream API of [`CORE`]: their own stands at `$JS.API`.
pub const API_PREFIX: &str = "CORE.API";

/// A subject that crosses from the account that has it to one that uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crossing {
    pub kind: Kind,
    /// Who answers, or publishes.
    pub from: String,
    /// Who asks, or subscribes.
    pub to: String,
    pub subject: String,
    /// Its name on the other side, where that is another one.
    pub local: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Messages go from the one that uses it to the one that has it, and one answer comes back.
    Service,
    /// The same with any number of answers.
    Answers,
    /// Messages go from the one that has it to the one that uses it.
    Stream,
}

/// The account of a tenant. No other one has a name like it.
pub fn tenant_account(tenant: &Token) -> String {
    format!("tenant_{tenant}")
}

/// The names of all accounts.
pub fn accounts(tenants: &[Token]) -> Vec<String> {
    let fixed = [CORE, WORK, LOG].map(str::to_owned);
    fixed.into_iter().chain(tenants.iter().map(tenant_account)).collect()
}

/// All that crosses a border.
pub fn crossings(tenants: &[Token]) -> Vec<Crossing> {
    let mut all = of_workers();
    all.extend(of_loggers());
    all.extend(tenants.iter().flat_map(of_tenant));
    all
}

fn of_workers() -> Vec<Crossing> {
    let (service, answers) = (crossing(Kind::Service, WORK), crossing(Kind::Answers, WORK));
    let (stream, api) = (crossing(Kind::Stream, WORK), api(Kind::Service, WORK));
    let (jobs, attempts, tenants) = (stream::JOBS, stream::ATTEMPTS_BUCKET, stream::TENANTS_BUCKET);
    let mut all = vec![
        // Pulling, and what comes of a job.
        api(&format!("CONSUMER.INFO.{jobs}.*")),
        self::api(Kind::Answers, WORK)(&format!("CONSUMER.MSG.NEXT.{jobs}.*")),
        service("inferq.results.*.*"),
        service("inferq.live.*.*"),
        service("inferq.logs.*.*"),
        service("inferq.tokens.*.*"),
        service("inferq.dead.*.*.*.*"),
        api(&format!("DIRECT.GET.{}.inferq.results.*.*", stream::RESULTS)),
        api(&format!("DIRECT.GET.{}", stream::LOGS)),
        api(&format!("DIRECT.GET.{}", stream::TOKENS)),
        stream("inferq.cancel.*.*.*"),
        // Lifting: a job is copied to the other lane and deleted.
        api(&format!("DIRECT.GET.{jobs}")),
        api(&format!("STREAM.MSG.DELETE.{jobs}")),
        service("inferq.jobs.*.lifted.*.*"),
        // Buckets.
        api(&format!("STREAM.INFO.KV_{attempts}")),
        api(&format!("DIRECT.GET.KV_{attempts}.$KV.{attempts}.>")),
        // The client library puts keys behind the prefix of the API.
        Crossing { local: Some(format!("{API_PREFIX}.$KV.{attempts}.>")), ..service(&format!("$KV.{attempts}.>")) },
        api(&format!("STREAM.INFO.KV_{tenants}")),
        service(&format!("$KV.{tenants}.>")),
        self::api(Kind::Answers, WORK)(&format!("DIRECT.GET.KV_{}", stream::CACHE_BUCKET)),
        service(&format!("$KV.{}.>", stream::CACHE_BUCKET)),
        service(&format!("$O.{}.>", stream::BLOBS_BUCKET)),
        service(&format!("$O.{}.>", stream::DEAD_BUCKET)),
    ];
    all.extend(acknowledgements(WORK, jobs, "*"));
    // While a lane is long, a worker is told of jobs that the operator publishes; those of tenants are not passed on.
    all.extend(Lane::ALL.map(|lane| stream(&format!("inferq.jobs.*.{lane}.*.*"))));
    for bucket in [stream::INPUTS_BUCKET, stream::BLOBS_BUCKET, stream::DEAD_BUCKET] {
        all.extend(["DIRECT.GET", "STREAM.MSG.GET", "STREAM.PURGE"].map(|name| api(&format!("{name}.OBJ_{bucket}"))));
        all.push(api(&format!("DIRECT.GET.OBJ_{bucket}.$O.{bucket}.>")));
    }
    // The other way: the operator asks the workers.
    let asked = |subject: &str| Crossing { from: WORK.to_owned(), to: CORE.to_owned(), ..answers(subject) };
    all.extend([asked(pace::SUBJECT), asked(&format!("$SRV.*.{WORKER_SERVICE}"))]);
    all
}

fn of_loggers() -> Vec<Crossing> {
    let consumer = |consumer: stream::Consumer| {
        let (stream, name) = (consumer.stream, consumer.name);
        let mut own = vec![
            api(Kind::Service, LOG)(&format!("CONSUMER.INFO.{stream}.{name}")),
            api(Kind::Answers, LOG)(&format!("CONSUMER.MSG.NEXT.{stream}.{name}")),
        ];
        own.extend(acknowledgements(LOG, stream, &name));
        own
    };
    let mut all: Vec<_> = stream::logger_consumers().into_iter().flat_map(consumer).collect();
    // What waits, for its metrics, with the first jobs that do: their age and what they say of their cost.
    all.extend(
        ["STREAM.INFO", "CONSUMER.LIST", "DIRECT.GET"]
            .map(|name| api(Kind::Service, LOG)(&format!("{name}.{}", stream::JOBS))),
    );
    let asked = crossing(Kind::Answers, LOG)(pace::SUBJECT);
    all.push(Crossing { from: WORK.to_owned(), ..asked });
    all
}

/// A tenant publishes jobs under its own name and reads what comes of them. It makes no consumer: who makes one chooses a
/// subject that the server then publishes on, whosever it is. Nor does it ask with a body, which may name any subject.
fn of_tenant(tenant: &Token) -> Vec<Crossing> {
    let account = tenant_account(tenant);
    let (service, heard) = (crossing(Kind::Service, &account), crossing(Kind::Stream, &account));
    // Not the lane of lifted jobs, whose headers are believed.
    let mut own: Vec<Crossing> =
        Lane::ALL.iter().map(|lane| service(&format!("inferq.jobs.*.{lane}.{tenant}.*"))).collect();
    // What the gateway does for it: submit and wait, cancel, status.
    own.push(service(&format!("inferq.control.*.{tenant}")));
    // Whether a model is served.
    own.push(api(Kind::Service, &account)(&format!("CONSUMER.INFO.{}.*", stream::JOBS)));
    for (name, kept) in [("results", stream::RESULTS), ("logs", stream::LOGS), ("tokens", stream::TOKENS)] {
        own.push(api(Kind::Service, &account)(&format!("DIRECT.GET.{kept}.inferq.{name}.{tenant}.*")));
    }
    // So that workers know whose jobs may wait. The bucket takes no rollup.
    let noted = |lane: &Lane| service(&format!("$KV.{}.*.{lane}.{tenant}", stream::TENANTS_BUCKET));
    own.extend(Lane::ALL.iter().map(noted));
    // What the streams' own account republishes: what came from the workers' would not be passed on.
    own.extend(["live", "live.tokens"].map(|name| heard(&format!("inferq.{name}.{tenant}.*"))));
    own
}

/// What an account has that others use: each subject once, with those who use it.
pub fn exports<'a>(all: &'a [Crossing], account: &str) -> Vec<(&'a Crossing, Vec<&'a str>)> {
    let mut exports: Vec<(&Crossing, Vec<&str>)> = Vec::new();
    for crossing in all.iter().filter(|crossing| crossing.from == account) {
        let same = |(other, _): &&mut (&Crossing, _)| other.kind == crossing.kind && other.subject == crossing.subject;
        match exports.iter_mut().find(same) {
            Some((_, users)) => users.push(&crossing.to),
            None => exports.push((crossing, vec![&crossing.to])),
        }
    }
    exports
}

/// Whether a subject, which may have wildcards, is a part of another one.
pub fn is_part(part: &str, whole: &str) -> bool {
    let (mut part, mut whole) = (part.split('.'), whole.split('.'));
    loop {
        match (part.next(), whole.next()) {
            (None, None) => return true,
            (Some(_), Some(">")) => return true,
            (Some(token), Some("*")) if token != ">" => {}
            (Some(token), Some(other)) if token == other => {}
            _ => return false,
        }
    }
}

/// Of a consumer's messages, in both forms that the server uses.
fn acknowledgements(account: &str, stream: &str, consumer: &str) -> [Crossing; 2] {
    ["$JS.ACK", "$JS.ACK.*.*"]
        .map(|prefix| crossing(Kind::Service, account)(&format!("{prefix}.{stream}.{consumer}.>")))
}

fn crossing(kind: Kind, to: &str) -> impl Fn(&str) -> Crossing {
    let (from, to) = (CORE.to_owned(), to.to_owned());
    move |subject| Crossing { kind, from: from.clone(), to: to.clone(), subject: subject.to_owned(), local: None }
}

/// A part of the JetStream API.
fn api(kind: Kind, to: &str) -> impl Fn(&str) -> Crossing {
    let crossing = crossing(kind, to);
    move |name| Crossing { local: Some(format!("{API_PREFIX}.{name}")), ..crossing(&format!("$JS.API.{name}")) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn tenants() -> Vec<Token> {
        ["acme", "CORE", "a.b *>", "*", "世界"].iter().map(|name| Token::encode(name).unwrap()).collect()
    }

    #[test]
    fn nothing_crosses_twice_and_accounts_differ() {
        let (tenants, mut seen) = (tenants(), HashSet::new());
        for Crossing { kind, from, to, subject, .. } in crossings(&tenants) {
            assert!(seen.insert((kind == Kind::Stream, from.clone(), to.clone(), subject.clone())), "{to} {subject}");
        }
        let all = crossings(&tenants);
        let names: Vec<_> = exports(&all, CORE).iter().map(|(export, _)| (export.kind, &export.subject)).collect();
        assert!(names.iter().enumerate().all(|(place, name)| !names[..place].contains(name)), "{names:?}");
        let names = accounts(&tenants);
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
    }

    #[test]
    fn whatever_a_tenant_reaches_has_its_name_in_it() {
        for tenant in tenants() {
            for Crossing { from, to, subject, .. } in of_tenant(&tenant) {
                assert_eq!((from.as_str(), to), (CORE, tenant_account(&tenant)));
                let is_general = subject == "$JS.API.CONSUMER.INFO.INFERQ_JOBS.*";
                let is_own = subject.ends_with(&format!(".{tenant}.*")) || subject.ends_with(&format!(".{tenant}"));
                assert!(is_general || is_own, "{subject}");
                assert!(!subject.contains('>') && !subject.contains("lifted"), "{subject}");
            }
        }
    }

    #[test]
    fn a_part_of_a_subject_is_told_from_what_is_beside_it() {
        for (part, whole) in [("a.b", "a.b"), ("a.b", "a.*"), ("a.*", "a.*"), ("a.b.c", "a.>"), ("a.>", "a.>")] {
            assert!(is_part(part, whole), "{part} {whole}");
        }
        for (part, whole) in [("a.b", "a.c"), ("a.*", "a.b"), ("a.>", "a.*"), ("a", "a.>"), ("a.b.c", "a.*")] {
            assert!(!is_part(part, whole), "{part} {whole}");
        }
    }

    #[test]
    fn nobody_but_the_operator_makes_or_deletes_streams_and_consumers() {
        let forbidden =
            ["CREATE", "UPDATE", "DELETE", "SNAPSHOT", "RESTORE", "STREAM.LIST", "STREAM.NAMES", "$JS.API.>"];
        for Crossing { subject, .. } in crossings(&tenants()) {
            let is_lift = subject == "$JS.API.STREAM.MSG.DELETE.INFERQ_JOBS";
            assert!(is_lift || forbidden.iter().all(|word| !subject.contains(word)), "{subject}");
        }
    }
}
