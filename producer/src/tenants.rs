//! Tenants are noted where workers look them up, so that they know whose jobs may wait behind a long queue.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use schemas::stream::{TENANTS_BUCKET, tenant_key};
use schemas::subject::{Address, AddressError, Token};

use crate::client::Client;

/// After this a tenant is noted again: the bucket forgets whom nobody notes for days.
const AGAIN: Duration = Duration::from_secs(3600);
/// Remembered at a time. Above it all are forgotten, which costs only that they are noted again.
const MOST: usize = 65_536;

/// Whom a client has noted, and when. Shared by its clones.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    hasher: RandomState,
    /// By a hash, so that looking one up allocates nothing.
    times: Mutex<HashMap<u64, Instant>>,
}

impl Noted {
    /// Whether a tenant is to be noted. It counts as noted then.
    fn is_due(&self, address: &Address, now: Instant) -> bool {
        let key = self.hasher.hash_one((&address.model, address.lane, &address.tenant));
        let mut times = self.times.lock().expect("no panic while held");
        if times.get(&key).is_some_and(|noted| now.saturating_duration_since(*noted) < AGAIN) {
            return false;
        }
        if times.len() >= MOST {
            times.clear();
        }
        times.insert(key, now);
        true
    }
}

impl Client {
    /// Notes whose job is about to be published. Nothing waits for it: a tenant that is not noted waits its turn.
    pub(crate) async fn note_tenant(&self, address: &Address) -> Result<(), AddressError> {
        if !self.noted.is_due(address, Instant::now()) {
            return Ok(());
        }
        let model = Token::encode(&address.model).map_err(AddressError::Model)?;
        let tenant = Token::encode(&address.tenant).map_err(AddressError::Tenant)?;
        let subject = format!("$KV.{TENANTS_BUCKET}.{}", tenant_key(&model, address.lane, tenant.as_str()));
        if let Err(error) = self.connection.client.publish(subject, "".into()).await {
            tracing::debug!(%error, "tenant not noted");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use schemas::subject::{JobId, Lane};

    use super::*;

    #[test]
    fn a_tenant_is_noted_once_an_hour_for_each_lane() {
        let address = |lane, tenant: &str| {
            let job_id = JobId::new("j").unwrap();
            Address { model: "m".into(), lane, tenant: tenant.into(), job_id }
        };
        let (noted, now) = (Noted::default(), Instant::now());
        assert!(noted.is_due(&address(Lane::Default, "a"), now));
        assert!(!noted.is_due(&address(Lane::Default, "a"), now));
        assert!(noted.is_due(&address(Lane::Default, "b"), now));
        assert!(noted.is_due(&address(Lane::Flex, "a"), now));
        assert!(!noted.is_due(&address(Lane::Default, "a"), now + AGAIN / 2));
        assert!(noted.is_due(&address(Lane::Default, "a"), now + AGAIN));
    }
}
