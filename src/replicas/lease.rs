//! Elects one of the replicas by a Lease, as client-go's leader election does.
//!
//! The holder renews the Lease well before it expires, and stops at two thirds of its duration after the last renewal
//! that succeeded. The others take it over when they have seen no renewal for its whole duration, measured by their own
//! clock, so clocks need not agree. Every write carries the resource version that was read, so only one of several
//! succeeds.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::source::kubernetes::reason;

/// The name of the Lease.
pub(crate) const NAME: &str = "weir-status";

/// How long giving the Lease up may take.
const RELEASE: Duration = Duration::from_secs(3);

/// Takes part in the election.
pub(crate) struct Candidate {
    api: Api<Lease>,
    identity: String,
    duration: Duration,
    /// The resource version of the Lease that was seen last, and since when.
    seen: Option<(Option<String>, Instant)>,
    /// The Lease as this replica wrote it.
    held: Option<Lease>,
    /// The last failure that was logged.
    failure: Option<String>,
}

impl Candidate {
    /// A candidate called `name`, which need not be unique.
    pub(crate) fn new(api: Api<Lease>, name: &str, duration: Duration) -> Self {
        let number = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let number = number.map_or(0, |time| time.as_nanos()) ^ u128::from(std::process::id());
        let identity = format!("{name}_{:016x}", xxhash_rust::xxh3::xxh3_64(&number.to_le_bytes()));
        Self { api, identity, duration, seen: None, held: None, failure: None }
    }

    /// How long after a renewal the holder stops.
    fn deadline(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// The time between two renewals or looks at the Lease.
    fn interval(&self) -> Duration {
        self.duration * 2 / 15
    }

    /// Waits until this replica holds the Lease, and returns until when.
    pub(crate) async fn acquire(&mut self) -> Instant {
        loop {
            let begun = Instant::now();
            let tried = timeout(self.deadline(), self.try_acquire()).await;
            match tried.unwrap_or_else(|_| Err("the API server does not answer".to_owned())) {
                Ok(true) => {
                    self.failure = None;
                    return begun + self.deadline();
                }
                Ok(false) => self.failure = None,
                Err(error) => {
                    if self.failure.as_ref() != Some(&error) {
                        tracing::warn!(lease = NAME, error, "cannot acquire the lease; retrying");
                    }
                    self.failure = Some(error);
                }
            }
            sleep(self.interval()).await;
        }
    }

    async fn try_acquire(&mut self) -> Result<bool, String> {
        let Some(lease) = self.api.get_opt(NAME).await.map_err(|error| reason(&error))? else {
            let lease = self.lease(None);
            return self.wrote(self.api.create(&PostParams::default(), &lease).await);
        };
        let now = Instant::now();
        let version = lease.metadata.resource_version.clone();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => now,
        };
        self.seen = Some((version, since));
        // An earlier write may have arrived although its answer did not.
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref());
        let is_own = holder == Some(&self.identity);
        if !is_own && !is_free(lease.spec.as_ref(), now - since) {
            return Ok(false);
        }
        let lease = self.lease(Some(&lease));
        self.wrote(self.api.replace(NAME, &PostParams::default(), &lease).await)
    }

    /// The outcome of a write: `false` if another replica was faster.
    fn wrote(&mut self, outcome: Result<Lease, kube::Error>) -> Result<bool, String> {
        match outcome {
            Ok(lease) => {
                self.held = Some(lease);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(reason(&error)),
        }
    }

    /// The Lease with this replica as its holder.
    fn lease(&self, old: Option<&Lease>) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        let spec = old.and_then(|old| old.spec.as_ref());
        let transitions = spec.and_then(|spec| spec.lease_transitions);
        let seconds = i32::try_from(self.duration.as_secs()).unwrap_or(i32::MAX).max(1);
        Lease {
            metadata: match old {
                Some(old) => old.metadata.clone(),
                None => ObjectMeta { name: Some(NAME.to_owned()), ..Default::default() },
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(seconds),
                acquire_time: now.clone(),
                renew_time: now,
                lease_transitions: Some(old.map_or(0, |_| transitions.unwrap_or(0) + 1)),
                ..spec.cloned().unwrap_or_default()
            }),
        }
    }

    /// Renews the Lease until it is lost, and says why. Tells `until` how long it is held.
    pub(crate) async fn keep(&mut self, until: &watch::Sender<Instant>) -> String {
        let mut last_failure = None;
        loop {
            sleep(self.interval()).await;
            let (begun, end) = (Instant::now(), *until.borrow());
            let renewed = timeout_at(end, self.renew()).await;
            if Instant::now() >= end {
                self.held = None;
                let why =
                    last_failure.unwrap_or_else(|| "the API server did not answer".to_owned());
                return format!("it could not be renewed in time: {why}");
            }
            match renewed {
                Ok(Ok(true)) => {
                    until.send_replace(begun + self.deadline());
                    last_failure = None;
                }
                Ok(Ok(false)) => {
                    self.held = None;
                    return "another replica has taken it over".to_owned();
                }
                Ok(Err(error)) => last_failure = Some(error),
                Err(_) => {}
            }
        }
    }

    async fn renew(&mut self) -> Result<bool, String> {
        let Some(mut lease) = self.held.clone() else {
            return Ok(false);
        };
        if let Some(spec) = &mut lease.spec {
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        let params = PostParams::default();
        if self.wrote(self.api.replace(NAME, &params, &lease).await)? {
            return Ok(true);
        }
        // Somebody else has written it; perhaps only a label.
        let Some(current) = self.api.get_opt(NAME).await.map_err(|error| reason(&error))? else {
            return Ok(false);
        };
        let holder = current.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref());
        if holder != Some(&self.identity) {
            return Ok(false);
        }
        lease.metadata = current.metadata;
        self.wrote(self.api.replace(NAME, &params, &lease).await)
    }

    /// Gives the Lease up, so that another replica need not wait until it expires.
    pub(crate) async fn release(&mut self) {
        let Some(mut lease) = self.held.take() else {
            return;
        };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        // If this fails, it expires.
        let _ = timeout(RELEASE, self.replace_own(lease)).await;
    }

    /// Replaces the Lease as long as this replica holds it. A renewal that was interrupted may still arrive meanwhile.
    async fn replace_own(&self, mut lease: Lease) -> Result<(), kube::Error> {
        loop {
            match self.api.replace(NAME, &PostParams::default(), &lease).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                replaced => return replaced.map(drop),
            }
            let current = self.api.get(NAME).await?;
            let holder = current.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref());
            if holder != Some(&self.identity) {
                return Ok(());
            }
            lease.metadata = current.metadata;
        }
    }
}

/// Whether a Lease may be taken that has not changed for so long.
fn is_free(spec: Option<&LeaseSpec>, unchanged: Duration) -> bool {
    let Some(spec) = spec else {
        return true;
    };
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    spec.holder_identity.as_deref().unwrap_or_default().is_empty()
        || unchanged >= Duration::from_secs(seconds.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(holder: &str, seconds: Option<i32>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: seconds,
            ..Default::default()
        }
    }

    #[test]
    fn a_lease_is_free_without_a_holder_or_when_it_was_not_renewed_in_its_time() {
        let second = Duration::from_secs(1);
        for (spec, unchanged, free) in [
            (None, 0, true),
            (Some(LeaseSpec::default()), 0, true),
            (Some(held("", Some(15))), 0, true),
            (Some(held("weir-0_1", Some(15))), 14, false),
            (Some(held("weir-0_1", Some(15))), 15, true),
            (Some(held("weir-0_1", Some(-1))), 0, true),
        ] {
            assert_eq!(is_free(spec.as_ref(), second * unchanged), free, "{spec:?}");
        }
    }
}
