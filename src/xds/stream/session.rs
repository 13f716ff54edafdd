//! Clients that resume: they have clusters and routes from an earlier stream, which are unknown until the client
//! reports them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::Stream;
use super::clusters::Draining;
use super::request::Variant;
use crate::snapshot::{Resource, ResourceType, Snapshot};

/// How long a resuming client may take to request everything that it had. Envoy requests one type after the other
/// without waiting for responses; this allows for a client with very little CPU time.
pub(super) const ASKS_WITHIN: Duration = Duration::from_secs(2);

/// How long the routes of a resuming client wait for undefined clusters: a user who writes a route before its subset
/// writes the subset soon. Less than [`ASKS_WITHIN`], so that the client has the routes before its old endpoints go.
const DEFINED_WITHIN: Duration = Duration::from_secs(1);

/// The maximum number of clusters that a resuming client keeps although only their names are known. That is more than
/// are removed while weir is down.
const MAX_SUBSTITUTES: usize = 1000;

/// What is known about the resources that the client has from an earlier stream.
#[derive(Debug, Default)]
pub(super) enum Session {
    /// The client has only what this stream sent.
    #[default]
    Fresh,
    /// The client has clusters and routes from an earlier stream. Its routes may reference anything.
    Resuming(Earlier),
    /// The client resumed, and every listener and route that it may use is known.
    Resumed,
}

/// What a resuming client had before this stream.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// Clusters whose endpoints it asked for, to be compared with the mesh.
    unchecked: Option<BTreeSet<Arc<str>>>,
    /// Clusters for which it may have had endpoints.
    served: BTreeSet<Arc<str>>,
    /// Endpoints of whole services, for subsets that lost theirs while the client was away: its old routes may
    /// reference them.
    pub fallback: BTreeMap<Arc<str>, Arc<Resource>>,
    /// The clusters that the listeners and routes of the target reference. There are very many, so they are collected
    /// once.
    pub next: OnceLock<References>,
}

/// The names of clusters.
pub(super) type References = Arc<BTreeSet<Arc<str>>>;

impl Session {
    /// Whether the client was connected before.
    pub(crate) fn is_returning(&self) -> bool {
        !matches!(self, Self::Fresh)
    }

    /// The client reported something that it has from an earlier stream.
    pub(crate) fn resume(&mut self) {
        if matches!(self, Self::Fresh) {
            tracing::debug!("proxy resumes with resources of an earlier stream");
            *self = Self::Resuming(Earlier::default());
        }
    }

    /// Every listener and route that the client may use is known.
    pub(crate) fn finish(&mut self) {
        if matches!(self, Self::Resuming(_)) {
            tracing::debug!("proxy has resumed: all its listeners and routes are known");
            *self = Self::Resumed;
        }
    }

    /// What the client had before; `None` if it had nothing, or if that no longer matters.
    pub(crate) fn earlier(&self) -> Option<&Earlier> {
        match self {
            Self::Resuming(earlier) => Some(earlier),
            Self::Fresh | Self::Resumed => None,
        }
    }

    /// Like [`Session::earlier`], but mutable.
    pub(crate) fn earlier_mut(&mut self) -> Option<&mut Earlier> {
        match self {
            Self::Resuming(earlier) => Some(earlier),
            Self::Fresh | Self::Resumed => None,
        }
    }
}

impl Earlier {
    /// The client asked for the endpoints of these clusters, which it had on an earlier stream.
    pub(crate) fn report(&mut self, clusters: BTreeSet<Arc<str>>) {
        self.unchecked = Some(clusters);
    }

    /// Whether the client may have had endpoints for a cluster.
    pub(crate) fn served(&self, cluster: &str) -> bool {
        self.served.contains(cluster)
    }
}

impl Stream {
    /// Whether a resuming client is about to report which clusters it has: it asks for one type after the other.
    pub(super) fn may_have_more(&self) -> bool {
        self.settings.gated
            && self.session.is_returning()
            && self.variant == Variant::Sotw
            && self.get(ResourceType::Cluster).wildcard
            && !self.asked_for(ResourceType::Endpoints)
            && self.is_early()
    }

    /// Whether the client may not have asked for everything that it wants yet.
    pub(super) fn is_early(&self) -> bool {
        self.is_within(ASKS_WITHIN)
    }

    fn is_within(&self, time: Duration) -> bool {
        self.serving_since.zip(self.now).is_none_or(|(since, now)| now < since + time)
    }

    /// When a resuming client has had the time to ask for everything that it wants.
    pub(super) fn resume_deadlines(&self) -> impl Iterator<Item = Instant> {
        let since = self.serving_since.filter(|_| self.session.is_returning()).into_iter();
        since.flat_map(|since| [since + DEFINED_WITHIN, since + ASKS_WITHIN])
    }

    /// Whether a cluster that the routes of a resuming client reference may be defined soon.
    pub(super) fn may_be_defined_soon(&self) -> bool {
        self.session.is_returning() && !self.knows_routes() && self.is_within(DEFINED_WITHIN)
    }

    /// Keeps the clusters that a client resumed with and that the mesh does not define, with endpoints: its old routes
    /// may reference them. Does the same for clusters that lost all endpoints meanwhile, if the client waits for some.
    pub(super) fn keep_earlier_clusters(&mut self) {
        let Some(target) = self.target.clone() else {
            return;
        };
        let Some(mut names) =
            self.session.earlier_mut().and_then(|earlier| earlier.unchecked.take())
        else {
            return;
        };
        let [clusters, ..] = &self.types;
        let paused = !clusters.subscribed;
        if self.settings.gated && (clusters.wildcard || paused) {
            self.keep_clusters(&target, &names, paused);
            // Undefined names are dropped to save memory. A substituted cluster may be defined again before the routes
            // are known.
            names.retain(|name| {
                target.get(ResourceType::Endpoints).contains_key(name)
                    || self.clusters.is_substituted(name)
            });
        }
        if let Some(earlier) = self.session.earlier_mut() {
            earlier.served = names;
        }
    }

    fn keep_clusters(&mut self, target: &Snapshot, names: &BTreeSet<Arc<str>>, paused: bool) {
        let next_references = self.next_references().unwrap_or_default();
        let mut substitutes = self.clusters.substituted_count();
        for name in names {
            let known = target.get(ResourceType::Cluster).contains_key(name);
            let endpoints = target.get(ResourceType::Endpoints).get(name);
            let serves = endpoints.is_none_or(|endpoints| endpoints.has_endpoints());
            if known && (next_references.contains(name) || serves) {
                continue;
            }
            if !known && substitutes >= MAX_SUBSTITUTES {
                continue;
            }
            let Some((cluster, endpoints)) = target.fallback(name) else {
                continue;
            };
            if known {
                if endpoints.has_endpoints()
                    && let Some(earlier) = self.session.earlier_mut()
                {
                    earlier.fallback.insert(name.clone(), endpoints);
                }
            } else if self.variant == Variant::Sotw {
                // The client removes what a SotW response leaves out.
                substitutes += 1;
                self.clusters.substitute(name.clone(), cluster.version);
                let cluster = Draining::new(Some(cluster), Some(endpoints));
                self.clusters.drain_once(name.clone(), cluster);
            } else if paused {
                self.clusters.drain_once(name.clone(), Draining::new(None, Some(endpoints)));
            }
        }
    }

    /// Whether the client must ask for clusters before it gets routes. A client that asks for endpoints has clusters,
    /// and a resuming client may be about to ask for either.
    pub(super) fn awaits_clusters(&self) -> bool {
        let [clusters, endpoints, ..] = &self.types;
        let asks = endpoints.subscribed || (self.session.is_returning() && self.is_early());
        self.settings.gated && !clusters.subscribed && asks
    }

    /// Whether every listener and route that the client may use is known.
    pub(super) fn knows_routes(&self) -> bool {
        if self.session.earlier().is_none() {
            return true;
        }
        let [_, _, listeners, routes, _] = &self.types;
        let users = [listeners, routes];
        // The client may be about to ask for the other type.
        let asked = users.iter().all(|state| state.subscribed) || !self.is_early();
        self.switch.has_started()
            && asked
            && users.iter().all(|state| !state.subscribed || state.knows_all())
    }

    /// Whether the routes of a resuming client are unknown and are about to become known.
    pub(super) fn awaits_routes(&self) -> bool {
        let Some(target) = &self.target else { return false };
        let [clusters, _, listeners, routes, _] = &self.types;
        let users = [(listeners, ResourceType::Listener), (routes, ResourceType::Route)];
        let takes_all = clusters.wildcard || self.awaits_clusters();
        self.settings.gated
            && takes_all
            && !self.knows_routes()
            && (self.switch.is_waiting()
                || users.into_iter().any(|(state, kind)| match state.subscribed {
                    true => state.expects(target.get(kind)),
                    false => self.is_early(),
                }))
    }

    /// The clusters that the new listeners and routes of a resuming client reference, as long as its old ones are
    /// unknown; `None` if all are known, or never will be. The old ones may reference anything, so the endpoints of all
    /// other clusters stay as they are: the change that moved the traffic away may also have removed the pods.
    pub(super) fn next_references(&self) -> Option<References> {
        let target = self.target.as_ref().filter(|_| self.awaits_routes())?;
        let references = self.session.earlier()?.next.get_or_init(|| {
            let users = [ResourceType::Listener, ResourceType::Route]
                .into_iter()
                .flat_map(|kind| target.get(kind).values());
            Arc::new(users.flat_map(|resource| resource.clusters()).cloned().collect())
        });
        Some(references.clone())
    }

    /// Forgets the earlier stream once it no longer affects what the client gets.
    pub(super) fn forget_earlier(&mut self) {
        if self.session.earlier().is_some()
            && self.asked_for(ResourceType::Cluster)
            && !self.awaits_routes()
            && let Some(earlier) = self.session.earlier_mut()
        {
            earlier.fallback.clear();
            earlier.served.clear();
            earlier.next = OnceLock::new();
        }
    }
}
