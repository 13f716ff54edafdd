//! Follows the Secrets with the authority, and publishes what signs and what is trusted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::Api;
use tokio::sync::watch;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::authority::{Authority, is_valid_root};
use super::keeper::{ROOTS, ROOTS_KEY};
use super::retired;
use super::secret::{self, MADE, PROVIDED, Stored};
use super::signing::{CaOptions, Current};
use super::trust::{Now, Remembered, Times, Trust};
use crate::metrics::IdentityMetrics;
use crate::source::kubernetes::object_watch::{ObjectWatch, Seen};

/// The longest time between two looks at the clock, which may be set.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What is known about one Secret.
#[derive(Debug, Default)]
enum Candidate {
    #[default]
    Unknown,
    Absent,
    /// It exists.
    Usable(Arc<Authority>),
    /// It exists and cannot be used now. It may become valid.
    Unusable(Box<Secret>),
}

impl Candidate {
    fn is_present(&self) -> bool {
        matches!(self, Self::Usable(_) | Self::Unusable(_))
    }

    fn authority(&self) -> Option<&Arc<Authority>> {
        match self {
            Self::Usable(authority) => Some(authority),
            Self::Unknown | Self::Absent | Self::Unusable(_) => None,
        }
    }

    /// Reads again what could not be used.
    fn retry(&mut self, now: SystemTime) {
        if let Self::Unusable(secret) = self
            && let Ok(authority) = secret::read(secret, now)
        {
            *self = Self::Usable(Arc::new(authority));
        }
    }
}

/// What is known of the roots that were trusted before weir started.
#[derive(Debug)]
enum Before {
    Unknown,
    /// They cannot be read, for now.
    Failed,
    Known(Vec<Remembered>),
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
    let trusted = ObjectWatch::new(Api::<ConfigMap>::namespaced(client, &namespace), ROOTS);
    let mut trusted = Some(trusted);
    let times = Times { learn: options.learn, lifetime: options.lifetime };
    let mut follower = Follower {
        namespace,
        provided: Candidate::default(),
        made: Candidate::default(),
        before: Before::Unknown,
        trust: Trust::new(times),
        times,
        root_lifetime: options.root_lifetime,
        current,
        stored,
        metrics,
    };
    loop {
        let due = follower.publish();
        tokio::select! {
            seen = provided.next() => follower.see(PROVIDED, seen),
            seen = made.next() => follower.see(MADE, seen),
            seen = next(&mut trusted) => {
                follower.see_trusted(seen);
                // What weir itself writes then is nothing new.
                trusted = trusted.filter(|_| !matches!(follower.before, Before::Known(_)));
            }
            () = tokio::time::sleep(due) => {}
        }
    }
}

async fn next(watch: &mut Option<ObjectWatch<ConfigMap>>) -> Seen<ConfigMap> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

struct Follower {
    namespace: String,
    provided: Candidate,
    made: Candidate,
    before: Before,
    trust: Trust,
    times: Times,
    root_lifetime: Duration,
    current: watch::Sender<Option<Arc<Current>>>,
    stored: watch::Sender<Stored>,
    metrics: IdentityMetrics,
}

impl Follower {
    fn see(&mut self, name: &'static str, seen: Seen<Secret>) {
        let namespace = &self.namespace;
        let candidate = match seen {
            Seen::Object(secret) => match secret::read(&secret, SystemTime::now()) {
                Ok(authority) => Candidate::Usable(Arc::new(authority)),
                Err(error) => {
                    tracing::error!(
                        secret = %format_args!("{namespace}/{name}"), %error,
                        "the certificate authority cannot be used; the one before it, if any, continues to sign"
                    );
                    Candidate::Unusable(Box::new(secret))
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
    }

    /// Says what there is, for whoever makes a root where it is due.
    fn report_stored(&self, now: SystemTime) {
        let stored = match (&self.provided, &self.made) {
            (Candidate::Absent, Candidate::Absent) => Stored::Absent,
            (Candidate::Absent, Candidate::Usable(made)) if self.ages_in(made, now).is_zero() => {
                Stored::Aging
            }
            (provided, made) if provided.is_present() || made.is_present() => Stored::Present,
            _ => Stored::Unknown,
        };
        self.stored.send_if_modified(|known| std::mem::replace(known, stored) != stored);
    }

    /// How long it is until a root is near its end: in the last tenth of its life, and early enough for its successor to be
    /// learned of, and for the certificates that it has signed to end before it.
    fn ages_in(&self, made: &Authority, now: SystemTime) -> Duration {
        let left = made.valid_until().duration_since(now).unwrap_or_default();
        left.saturating_sub((self.root_lifetime / 10).max(self.times.learn + self.times.lifetime))
    }

    fn see_trusted(&mut self, seen: Seen<ConfigMap>) {
        match seen {
            Seen::Object(map) => {
                let roots = map.data.unwrap_or_default().remove(ROOTS_KEY).unwrap_or_default();
                let roots = CertificateDer::pem_slice_iter(roots.as_bytes()).flatten();
                let mut annotations = map.metadata.annotations.unwrap_or_default();
                let ends = annotations.remove(retired::ANNOTATION).unwrap_or_default();
                let now = SystemTime::now();
                let roots = roots.filter(|root| is_valid_root(root, now));
                let roots =
                    roots.map(|root| Remembered { until: retired::read(&ends, &root), root });
                self.before = Before::Known(roots.collect());
            }
            Seen::Absent => self.before = Before::Known(Vec::new()),
            Seen::Failed(reason) => {
                tracing::warn!(
                    configmap = ROOTS,
                    reason,
                    "cannot read the roots that were trusted before; retrying"
                );
                self.before = Before::Failed;
            }
            Seen::Works => {}
        }
    }

    /// Takes in the authority that is to sign. The first one that signs is one that proxies know, if there is one.
    fn change(&mut self, now: Now) {
        let (preferred, other) = match (&self.provided, &self.made) {
            (Candidate::Unknown, _) => (None, None),
            (Candidate::Absent, made) => (made.authority(), None),
            (provided, made) => (provided.authority(), made.authority()),
        };
        let known: Vec<_> = match &self.before {
            Before::Unknown => return,
            Before::Failed => Vec::new(),
            Before::Known(roots) => roots.iter().map(|remembered| &remembered.root).collect(),
        };
        let Some(preferred) = preferred.cloned() else { return };
        if self.trust.signing().is_none() {
            if matches!(self.made, Candidate::Unknown) {
                return;
            }
            let mut both = [Some(&preferred), other].into_iter().flatten();
            if let Some(first) = both.find(|authority| known.contains(&authority.root())) {
                self.trust.change(first.clone(), now);
            }
        }
        if let Before::Known(roots) = &mut self.before
            && !roots.is_empty()
        {
            let roots = std::mem::take(roots);
            self.trust.remember(&roots, now);
        }
        self.trust.change(preferred, now);
    }

    /// Publishes what holds now, and returns how long it holds.
    fn publish(&mut self) -> Duration {
        let now = Now::read();
        self.provided.retry(now.wall);
        self.made.retry(now.wall);
        self.change(now);
        self.report_stored(now.wall);
        let due = self.trust.advance(now);
        let complete = matches!(self.before, Before::Known(_));
        if let Some(signing) = self.trust.signing() {
            let new = Current::new(signing.clone(), &self.trust, complete);
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
        let ages_in = self.made.authority().map(|made| self.ages_in(made, now.wall));
        let ages_in = ages_in.filter(|left| !left.is_zero());
        due.into_iter().chain(ages_in).fold(LONGEST_WAIT, Duration::min)
    }
}
