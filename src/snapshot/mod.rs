//! Everything one scope of proxies gets, encoded: name → version and bytes. Made once for all proxies of the scope, of
//! parts that are made once for all scopes in which they are the same.

mod build;
mod hub;
mod net;
mod refers;
mod routes;
mod stand_in;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

pub use build::Memo;
pub use hub::{Hub, HubStats, Subscription};
pub use net::LeftOut;
pub use refers::Refers;
pub use routes::Part;
pub use stand_in::no_endpoints;

/// The resource types that are served, in the order in which they depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// LDS.
    Listener,
    /// RDS.
    Route,
}

impl ResourceType {
    /// All of them.
    pub const ALL: [ResourceType; 4] =
        [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Listener, ResourceType::Route];

    /// The type URL. Source: Envoy's xDS protocol document, "Resource types".
    pub fn type_url(self) -> &'static str {
        match self {
            ResourceType::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            ResourceType::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            ResourceType::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            ResourceType::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The type of a type URL.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// The name in metrics and tables: `cds`, `eds`, `lds` or `rds`.
    pub fn short_name(self) -> &'static str {
        match self {
            ResourceType::Cluster => "cds",
            ResourceType::Endpoints => "eds",
            ResourceType::Listener => "lds",
            ResourceType::Route => "rds",
        }
    }

    /// The position in arrays by type.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Whether an empty list of names asks for everything. Source: Envoy's xDS protocol document, "How the client
    /// specifies what resources to return".
    pub fn has_wildcard(self) -> bool {
        matches!(self, ResourceType::Cluster | ResourceType::Listener)
    }
}

/// An encoded resource.
#[derive(Clone, Debug)]
pub struct Resource {
    /// The name.
    pub name: Arc<str>,
    /// A hash of its bytes.
    pub version: u64,
    /// The encoded message, in parts that stand one behind the other.
    pub body: Vec<Bytes>,
    /// The clusters that a listener or a route configuration leads to, sorted.
    pub refers: Refers,
    /// The virtual hosts that a route configuration is made of; empty for everything else.
    pub parts: Arc<[Part]>,
}

impl Resource {
    /// The resource of these parts.
    pub fn new(name: &str, body: Vec<Bytes>) -> Arc<Self> {
        Self::leading_to(name, body, Refers::default())
    }

    /// The resource of these parts, which leads to the clusters `refers`.
    pub fn leading_to(name: &str, body: Vec<Bytes>, refers: Refers) -> Arc<Self> {
        Self::composed(name.into(), body, refers, Arc::default())
    }

    fn composed(name: Arc<str>, body: Vec<Bytes>, refers: Refers, parts: Arc<[Part]>) -> Arc<Self> {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        body.iter().for_each(|part| hasher.update(part));
        Arc::new(Self { name, version: hasher.digest(), body, refers, parts })
    }

    /// The length of the encoded message, in bytes.
    pub fn len(&self) -> usize {
        self.body.iter().map(Bytes::len).sum()
    }

    /// Whether the encoded message has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The encoded message in one piece.
    pub fn bytes(&self) -> Vec<u8> {
        self.body.concat()
    }
}

/// Resources of one type by name.
pub type Resources = BTreeMap<Arc<str>, Arc<Resource>>;

/// Everything one scope of proxies gets.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The state of the mesh it was made from; grows with each.
    pub revision: u64,
    /// When the change that led to it was taken in; `None` for one that is only looked at.
    pub published: Option<Instant>,
    /// What Envoy would refuse and is therefore not among the resources; nothing as long as weir is right.
    pub left_out: Arc<[LeftOut]>,
    resources: [Arc<Resources>; 4],
}

impl Snapshot {
    /// The snapshot of state `revision` with these resources, in the order of [`ResourceType::ALL`].
    pub fn new(revision: u64, resources: [Resources; 4]) -> Self {
        Self { revision, published: None, left_out: Arc::default(), resources: resources.map(Arc::new) }
    }

    /// Takes the resources of `before` for those of its own types that are the same, so that whoever has them need not
    /// compare them.
    pub fn share_with(&mut self, before: &Snapshot) {
        for (own, before) in self.resources.iter_mut().zip(&before.resources) {
            let same = |(a, b): (&Arc<Resource>, &Arc<Resource>)| {
                Arc::ptr_eq(a, b) || (a.version == b.version && a.name == b.name)
            };
            if own.len() == before.len() && own.values().zip(before.values()).all(same) {
                *own = before.clone();
            }
        }
    }

    /// The resources of one type.
    pub fn get(&self, kind: ResourceType) -> &Arc<Resources> {
        let [clusters, endpoints, listeners, routes] = &self.resources;
        match kind {
            ResourceType::Cluster => clusters,
            ResourceType::Endpoints => endpoints,
            ResourceType::Listener => listeners,
            ResourceType::Route => routes,
        }
    }
}
