//! What the replicas of weir do together: one of them, elected by a Lease, writes the status of VirtualServices and
//! DestinationRules, after it has asked the others on how many of their proxies each object is live. The same one keeps the
//! webhook's certificate.
//!
//! Each replica serves its proxies whether or not it can reach the others.

mod answers;
mod lease;
mod object;
mod peers;
mod queue;
mod writer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use kube::api::Api;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::admin::Admin;
use crate::api::ObjectKey;
use crate::ca::Keeper;
use crate::metrics::StatusMetrics;
use crate::status::{self, ObjectSummary, Published, ReplicaAnswer, State, Summarizer};
use crate::webhook::Issuer;
use crate::xds::connections::Connections;

pub(crate) use answers::{PeerAnswers, PeerReader, PeerTask};
pub use peers::PeerOptions;
pub(crate) use peers::{PeerAnswer, observed_at};
pub use queue::{BURST, WRITES_PER_SECOND};

/// The shortest time between two summaries. What happens meanwhile is summarized together.
const PACE: Duration = Duration::from_millis(250);

/// The options of the election and of what the elected replica does.
#[derive(Clone, Debug)]
pub struct StatusOptions {
    /// Whether the elected replica writes the status of objects.
    pub write: bool,
    /// The namespace of the Lease: that of this pod.
    pub namespace: String,
    /// The name of this pod.
    pub pod: String,
    /// The only namespace whose objects are read; `None` if weir reads more than one.
    pub only: Option<Arc<str>>,
    /// How long the Lease is valid without renewal.
    pub lease: Duration,
}

/// What the status writer works with.
pub(crate) struct Replicas {
    /// The Kubernetes API.
    pub client: Client,
    /// The options.
    pub options: StatusOptions,
    /// The state of this replica.
    pub published: Arc<Published>,
    /// Whether this replica has read all objects. Until then it is no candidate.
    pub ready: watch::Receiver<bool>,
    /// Its proxies.
    pub connections: Arc<Connections>,
    /// Keeps the webhook's certificate while this replica is elected.
    pub issuer: Option<Issuer>,
    /// Keeps the certificate authority while this replica is elected.
    pub keeper: Option<Keeper>,
    /// What the other replicas answer.
    pub peers: PeerAnswers,
    /// The metrics.
    pub metrics: StatusMetrics,
    /// Ends it.
    pub closing: CancellationToken,
}

impl Replicas {
    /// With the state that the admin API reports.
    pub(crate) fn new(
        client: Client,
        options: StatusOptions,
        issuer: Option<Issuer>,
        keeper: Option<Keeper>,
        admin: &Admin,
    ) -> Self {
        Self {
            client,
            options,
            issuer,
            keeper,
            published: admin.published.clone(),
            ready: admin.ready.clone(),
            connections: admin.connections.clone(),
            peers: admin.peers.clone(),
            metrics: admin.metrics.status(),
            closing: admin.closing.clone(),
        }
    }

    /// Takes part in the election, and writes the status while this replica is elected, until weir shuts down.
    ///
    /// # Errors
    /// A computation panicked.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let ready = tokio::select! {
            ready = self.ready.wait_for(|ready| *ready) => ready.is_ok(),
            () = self.closing.cancelled() => false,
        };
        if !ready {
            return Ok(());
        }
        let StatusOptions { namespace, pod, lease, .. } = &self.options;
        let leases = Api::namespaced(self.client.clone(), namespace);
        let mut candidate = lease::Candidate::new(leases, pod, *lease);
        loop {
            let until = tokio::select! {
                until = candidate.acquire() => until,
                () = self.closing.cancelled() => return Ok(()),
            };
            tracing::info!(namespace, lease = lease::NAME, "this replica is elected");
            self.metrics.leader.set(1);
            let lost = self.hold(&mut candidate, until).await?;
            if let Some(issuer) = &self.issuer {
                issuer.resign();
            }
            self.metrics.leader.set(0);
            self.metrics.pending.set(0);
            self.metrics.unreachable.set(0);
            let Some(reason) = lost else {
                candidate.release().await;
                return Ok(());
            };
            tracing::warn!(
                namespace,
                lease = lease::NAME,
                reason,
                "this replica is no longer elected"
            );
        }
    }

    /// Does what the elected replica does, and returns why it no longer is elected; `None` if weir shuts down.
    async fn hold(
        &self,
        candidate: &mut lease::Candidate,
        until: tokio::time::Instant,
    ) -> anyhow::Result<Option<String>> {
        let (sender, valid) = watch::channel(until);
        tokio::select! {
            // At shutdown, what the others listen to may end at the same moment.
            biased;
            () = self.closing.cancelled() => Ok(None),
            why = candidate.keep(&sender) => Ok(Some(why)),
            ended = self.write(valid.clone()) => {
                ended.map(|()| Some("the Lease has expired".to_owned()))
            }
            () = self.issue(valid.clone()) => {
                Ok(Some("the certificate is no longer kept".to_owned()))
            }
            () = self.keep_authority(valid) => {
                Ok(Some("the certificate authority is no longer kept".to_owned()))
            }
        }
    }

    /// Writes the status of objects while this replica is elected; waits for ever if it is not written.
    async fn write(&self, valid: watch::Receiver<tokio::time::Instant>) -> anyhow::Result<()> {
        match self.options.write {
            true => {
                let span = tracing::info_span!("status_writer");
                writer::Writer::new(self, valid).run().instrument(span).await
            }
            false => std::future::pending().await,
        }
    }

    /// Keeps the webhook's certificate while this replica is elected; waits for ever if it is given.
    async fn issue(&self, valid: watch::Receiver<tokio::time::Instant>) {
        match &self.issuer {
            Some(issuer) => issuer.run(valid).await,
            None => std::future::pending().await,
        }
    }

    /// Keeps the certificate authority while this replica is elected; waits for ever if there is none.
    async fn keep_authority(&self, valid: watch::Receiver<tokio::time::Instant>) {
        match &self.keeper {
            Some(keeper) => keeper.run(valid).await,
            None => std::future::pending().await,
        }
    }
}

/// What each replica says of an object: this one, whose pod is named, and the others.
pub(crate) fn answers<'a>(
    pod: &'a str,
    own: Option<&'a ObjectSummary>,
    others: &'a [PeerAnswer],
    key: &ObjectKey,
) -> Vec<ReplicaAnswer<'a>> {
    let own = ReplicaAnswer { replica: pod, summary: Ok(own) };
    let others = others.iter().map(|other| ReplicaAnswer {
        replica: &other.name,
        summary: match &other.summaries {
            Ok(summaries) => Ok(summaries.get(key).map(Arc::as_ref)),
            Err(why) => Err(why.as_str()),
        },
    });
    std::iter::once(own).chain(others).collect()
}

/// Summarizes the state of this replica again and again, without using much of the processor for it.
#[derive(Debug)]
pub(crate) struct Summaries {
    summarizer: Option<Summarizer>,
    /// Not before this time.
    next: Instant,
}

impl Default for Summaries {
    fn default() -> Self {
        Self { summarizer: None, next: Instant::now() }
    }
}

impl Summaries {
    /// The current state and its summaries.
    ///
    /// # Errors
    /// The computation panicked.
    pub(crate) async fn take(
        &mut self,
        published: &Published,
        connections: &Connections,
    ) -> Result<(State, status::Summaries), tokio::task::JoinError> {
        let begun = Instant::now();
        let mut summarizer = self.summarizer.take().unwrap_or_default();
        let (state, connected) = (published.state(), connections.list());
        // With many proxies that keeps a thread busy.
        let work = tokio::task::spawn_blocking(move || {
            let summaries = summarizer.summaries(&state, &connected);
            (summarizer, state, summaries)
        });
        let (summarizer, state, summaries) = work.await?;
        self.summarizer = Some(summarizer);
        // At most a fifth of the time.
        let now = Instant::now();
        self.next = now + PACE.max((now - begun) * 4);
        Ok((state, summaries))
    }

    /// When the next summaries may be computed.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Waits until the next summaries may be computed.
    pub(crate) async fn pause(&self) {
        tokio::time::sleep_until(self.next.into()).await;
    }
}
