//! An operator with an account and users, whose servers know them by signed claims (NATS JWTs, version 2).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use uuid::Uuid;

pub struct Operator {
    operator: KeyPair,
    system: KeyPair,
    account: KeyPair,
}

impl Operator {
    pub fn new() -> Self {
        Self { operator: KeyPair::new_operator(), system: KeyPair::new_account(), account: KeyPair::new_account() }
    }

    /// The lines of a server's configuration by which it knows the operator and the accounts.
    pub fn config(&self) -> String {
        let operator = claims(&self.operator, &self.operator, json!({ "type": "operator", "version": 2 }));
        let accounts = [&self.system, &self.account].map(|account| {
            let names = ["subs", "data", "payload", "imports", "exports", "conn", "leaf"];
            let storage = ["mem_storage", "disk_storage", "streams", "consumer"];
            // The system's account has no JetStream.
            let storage = if std::ptr::eq(account, &self.system) { &[][..] } else { &storage[..] };
            let unlimited = names.iter().chain(storage).map(|name| ((*name).to_owned(), json!(-1)));
            let mut limits: serde_json::Map<String, Value> = unlimited.collect();
            limits.insert("wildcards".to_owned(), json!(true));
            let jwt = claims(&self.operator, account, json!({ "type": "account", "version": 2, "limits": limits }));
            format!("{}: {jwt}", account.public_key())
        });
        let (system, accounts) = (self.system.public_key(), accounts.join("\n"));
        format!("operator: {operator}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload {{ {accounts} }}\n")
    }

    /// The text of a new user's credentials file; the seed may be another one's.
    pub fn credentials(&self, user: &KeyPair, seed: &str) -> String {
        let permissions =
            json!({ "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 });
        let jwt = claims(&self.account, user, permissions);
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }
}

/// What one says of another, signed.
fn claims(issuer: &KeyPair, subject: &KeyPair, nats: Value) -> String {
    let claims = json!({
        "jti": Uuid::now_v7().to_string(),
        "iat": 1_700_000_000,
        "iss": issuer.public_key(),
        "name": "test",
        "sub": subject.public_key(),
        "nats": nats,
    });
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), encode(&claims));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}
