//! Follows the Secrets with the authority, and publishes what signs and what is trusted.

use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::Api;
use tokio::sync::watch;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::authority::Authority;
use super::keeper::{ROOTS, ROOTS_KEY};
use super::secret::{self, MADE, PROVIDED, Stored};
use super::signing::{CaOptions, Current};
use super::trust::{Times, Trust};
use crate::metrics::IdentityMetrics;
use crate::source::kubernetes::object_watch::{ObjectWatch, Seen};

/// The longest time between two looks at the clock, which may be set.
const LONGEST_WAIT: std::time::Duration = std::time::Duration::from_secs(60);

/// What is known about one Secret.
#[derive(Debug, Default)]
enum Candidate {
    #[default]
    Unknown,
    Absent,
    /// It exists; the authority is `None` if it cannot be used.
    Present(Option<Arc<Authority>>),
}

/// Publishes what signs and what is trusted to `current`, and whether there is a Secret to `stored`. Runs until it is
/// dropped.
pub(crate) async fn follow(
    client: Client,
    options: CaOptions,
    current: watch::Sender<Option<Arc<Current>>>,
    stored: watch::Sender<Stored>,
    metrics: IdentityMetrics,
) {
    let namespace = options.namespace;
    let secrets = Api::<Secret>::namespaced(client.clone(), &namespace);
    let (mut provided, mut made) =
        (ObjectWatch::new(secrets.clone(), PROVIDED), ObjectWatch::new(secrets, MADE));
    let mut trusted = ObjectWatch::new(Api::<ConfigMap>::namespaced(client, &namespace), ROOTS);
    let times = Times { learn: options.learn, lifetime: options.lifetime };
    let mut follower = Follower {
        namespace,
        provided: Candidate::default(),
        made: Candidate::default(),
        before: None,
        trust: Trust::new(times),
        current,
        stored,
        metrics,
    };
    loop {
        let due = follower.publish();
        tokio::select! {
            seen = provided.next() => follower.see(PROVIDED, seen),
            seen = made.next() => follower.see(MADE, seen),
            seen = trusted.next(), if follower.before.is_none() => follower.see_trusted(seen),
            () = tokio::time::sleep(due) => {}
        }
    }
}

struct Follower {
    namespace: String,
    provided: Candidate,
    made: Candidate,
    /// The roots that were trusted when weir started, once they are known.
    before: Option<Vec<CertificateDer<'static>>>,
    trust: Trust,
    current: watch::Sender<Option<Arc<Current>>>,
    stored: watch::Sender<Stored>,
    metrics: IdentityMetrics,
}

impl Follower {
    fn see(&mut self, name: &'static str, seen: Seen<Secret>) {
        let namespace = &self.namespace;
        let candidate = match seen {
            Seen::Object(secret) => match secret::read(&secret, SystemTime::now()) {
                Ok(authority) => Candidate::Present(Some(Arc::new(authority))),
                Err(error) => {
                    tracing::error!(
                        secret = %format_args!("{namespace}/{name}"), %error,
                        "the certificate authority cannot be used; the one before it, if any, continues to sign"
                    );
                    Candidate::Present(None)
                }
            },
            Seen::Absent => Candidate::Absent,
            Seen::Failed(reason) => {
                tracing::warn!(secret = %format_args!("{namespace}/{name}"), reason, "cannot watch");
                return;
            }
            Seen::Works => return,
        };
        match name {
            PROVIDED => self.provided = candidate,
            _ => self.made = candidate,
        }
        self.stored.send_replace(match (&self.provided, &self.made) {
            (Candidate::Present(_), _) | (_, Candidate::Present(_)) => Stored::Present,
            (Candidate::Absent, Candidate::Absent) => Stored::Absent,
            (Candidate::Unknown, _) | (_, Candidate::Unknown) => Stored::Unknown,
        });
    }

    fn see_trusted(&mut self, seen: Seen<ConfigMap>) {
        self.before = match seen {
            Seen::Object(map) => {
                let roots = map.data.unwrap_or_default().remove(ROOTS_KEY).unwrap_or_default();
                let roots = CertificateDer::pem_slice_iter(roots.as_bytes()).flatten();
                Some(roots.collect())
            }
            Seen::Absent => Some(Vec::new()),
            Seen::Failed(reason) => {
                tracing::warn!(
                    configmap = ROOTS,
                    reason,
                    "cannot read the roots that were trusted before"
                );
                Some(Vec::new())
            }
            Seen::Works => return,
        };
        tracing::debug!(
            roots = self.before.as_ref().map_or(0, Vec::len),
            "read the roots that were trusted before"
        );
    }

    /// Publishes what holds now, and returns how long it holds.
    fn publish(&mut self) -> std::time::Duration {
        let now = SystemTime::now();
        let authority = match (&self.provided, &self.made) {
            (Candidate::Present(authority), _)
            | (Candidate::Absent, Candidate::Present(authority)) => authority.clone(),
            _ => None,
        };
        if let (Some(authority), Some(before)) = (authority, &mut self.before) {
            self.trust.change(authority, now);
            self.trust.remember(std::mem::take(before), now);
        }
        let due = self.trust.advance(now);
        if let Some(signing) = self.trust.signing() {
            let new = Current::new(signing.clone(), &self.trust.roots());
            self.current.send_if_modified(|current| {
                if current.as_ref().is_some_and(|current| current.is_same(&new)) {
                    return false;
                }
                self.metrics.set_expiry(new.valid_until());
                tracing::info!(state = %new, "the certificate authority signs");
                *current = Some(Arc::new(new));
                true
            });
        }
        let wait = due.map(|due| due.duration_since(now).unwrap_or_default());
        wait.map_or(LONGEST_WAIT, |wait| wait.min(LONGEST_WAIT))
    }
}
