//! Accounts and users as an operator's servers know them: signed claims, the JWTs of NATS in version 2.
//!
//! The format is that of <https://github.com/nats-io/jwt>. Of it, this writes what the plan needs and nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use schemas::subject::Token;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::plan::{self, CORE, Crossing, Kind};

/// What one key says of another one: a name and what NATS is to know.
pub struct Claims<'a> {
    pub issuer: &'a KeyPair,
    /// A public key.
    pub subject: &'a str,
    pub name: &'a str,
    pub nats: Value,
}

impl Claims<'_> {
    /// A hash of all but the time.
    pub fn digest(&self) -> String {
        let all = json!([self.issuer.public_key(), self.subject, self.name, self.nats]);
        format!("{:x}", Sha256::digest(all.to_string()))
    }

    /// The JWT, issued at a time in seconds since 1970. The same claims of the same time have the same JWT.
    pub fn sign(&self, issued: i64) -> Result<String, nkeys::error::Error> {
        let claims = json!({
            "jti": self.digest(),
            "iat": issued,
            "iss": self.issuer.public_key(),
            "name": self.name,
            "sub": self.subject,
            "nats": self.nats,
        });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), encode(&claims));
        let signature = URL_SAFE_NO_PAD.encode(self.issuer.sign(signed.as_bytes())?);
        Ok(format!("{signed}.{signature}"))
    }
}

/// What the operator says of itself.
pub fn operator() -> Value {
    json!({ "type": "operator", "version": 2 })
}

/// What an account says of a user: all that the account may.
pub fn user() -> Value {
    json!({ "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 })
}

/// What the operator says of the account of the system, in which nothing is kept.
pub fn system() -> Value {
    json!({ "type": "account", "version": 2, "limits": limits(false) })
}

/// What the operator says of an account. `key` gives the public key of each account, `activation` the JWT by which the
/// exporter lets the importer in, and `revoked` are users that are let in no more, with the time of that.
pub fn account(
    name: &str,
    tenants: &[Token],
    key: impl Fn(&str) -> String,
    activation: impl Fn(&Crossing) -> Result<String, nkeys::error::Error>,
    revoked: &Map<String, Value>,
) -> Result<Value, nkeys::error::Error> {
    let crossings = plan::crossings(tenants);
    let exported = plan::exports(&crossings, name);
    // No two services may overlap. Who may use a part is said by its activation.
    let is_covered = |crossing: &Crossing| {
        let covers = |other: &Crossing| {
            (other.kind == Kind::Stream) == (crossing.kind == Kind::Stream)
                && other.subject != crossing.subject
                && plan::is_part(&crossing.subject, &other.subject)
        };
        exported.iter().any(|(other, _)| covers(other))
    };
    let exports = exported.iter().filter(|(crossing, _)| !is_covered(crossing)).map(|(crossing, _)| export(crossing));
    let exports: Vec<Value> = exports.collect();
    let mut imports = Vec::new();
    for crossing in crossings.iter().filter(|crossing| crossing.to == name) {
        imports.push(import(crossing, key(&crossing.from), activation(crossing)?));
    }
    Ok(json!({
        "type": "account",
        "version": 2,
        "limits": limits(name == CORE),
        "exports": exports,
        "imports": imports,
        "revocations": revoked,
    }))
}

/// What an exporter says to an importer: that it may.
pub fn activation(crossing: &Crossing) -> Value {
    json!({ "type": "activation", "version": 2, "subject": crossing.subject, "kind": kind(crossing) })
}

fn export(crossing: &Crossing) -> Value {
    let mut export = json!({
        "name": crossing.subject, "subject": crossing.subject, "type": kind(crossing), "token_req": true,
    });
    if crossing.kind == Kind::Answers {
        export["response_type"] = json!("Stream");
    }
    export
}

fn import(crossing: &Crossing, account: String, token: String) -> Value {
    let mut import = json!({
        "name": crossing.subject, "subject": crossing.subject, "type": kind(crossing), "account": account, "token": token,
    });
    if let Some(local) = &crossing.local {
        import["local_subject"] = json!(numbered(local));
    }
    import
}

fn kind(crossing: &Crossing) -> &'static str {
    if crossing.kind == Kind::Stream { "stream" } else { "service" }
}

/// A subject whose `*` are written as the numbers of those on the other side.
fn numbered(subject: &str) -> String {
    let mut wildcards = 0;
    let token = |token: &str| match token {
        "*" => {
            wildcards += 1;
            format!("${wildcards}")
        }
        token => token.to_owned(),
    };
    subject.split('.').map(token).collect::<Vec<_>>().join(".")
}

/// Without bounds; storage only where it is wanted.
fn limits(stores: bool) -> Map<String, Value> {
    let counted = ["subs", "data", "payload", "imports", "exports", "conn", "leaf"];
    let stored: &[&str] = if stores { &["mem_storage", "disk_storage", "streams", "consumer"] } else { &[] };
    let unlimited = counted.iter().chain(stored).map(|name| ((*name).to_owned(), json!(-1)));
    unlimited.chain([("wildcards".to_owned(), json!(true))]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jwt_is_signed_by_its_issuer_and_is_the_same_each_time() {
        let (issuer, user) = (KeyPair::new_account(), KeyPair::new_user().public_key());
        let claims = Claims { issuer: &issuer, subject: &user, name: "acme", nats: super::user() };
        let jwt = claims.sign(1).unwrap();
        assert_eq!(jwt, claims.sign(1).unwrap());
        let (signed, signature) = jwt.rsplit_once('.').unwrap();
        issuer.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
        let body = URL_SAFE_NO_PAD.decode(signed.split('.').nth(1).unwrap()).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["iss"], &body["sub"]), (&json!(issuer.public_key()), &json!(user)));
    }

    #[test]
    fn wildcards_of_a_local_subject_are_numbered() {
        assert_eq!(numbered("CORE.API.A.*.b.*"), "CORE.API.A.$1.b.$2");
        assert_eq!(numbered("CORE.API.$KV.a.>"), "CORE.API.$KV.a.>");
    }
}
