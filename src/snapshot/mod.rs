//! Everything one scope of proxies gets, encoded: name → version and bytes. Made once for all proxies of the scope, of
//! parts that are made once for all scopes in which they are the same.

mod builder;
mod cache;
mod cluster_refs;
mod domains;
mod net;
mod parts;
mod resource;
mod route_table;
mod scope;
mod sensitivity;
mod stand_in;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

pub use builder::SnapshotBuilder;
pub use cache::{CacheStats, Ended, SnapshotCache, Subscription};
pub use cluster_refs::ClusterRefs;
pub use net::LeftOut;
pub use parts::WorkCounts;
pub use resource::{Pieces, Provenance, Resource, Resources};
pub use route_table::{EncodedVirtualHost, RouteTable};
pub use stand_in::no_endpoints;

use crate::revision::MeshRevision;

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

/// Everything one scope of proxies gets.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The published mesh it was made from; none for one that is only looked at.
    pub revision: MeshRevision,
    /// When the change that led to it was taken in; `None` for one that is only looked at.
    pub published: Option<Instant>,
    /// What Envoy would refuse and is therefore not among the resources; nothing as long as weir is right.
    pub left_out: Arc<[LeftOut]>,
    resources: [Resources; 4],
}

impl Snapshot {
    /// The snapshot of a published mesh with these resources, in the order of [`ResourceType::ALL`].
    pub fn new(revision: MeshRevision, resources: [Resources; 4]) -> Self {
        Self { revision, published: None, left_out: Arc::default(), resources }
    }

    /// The resources of one type.
    pub fn get(&self, kind: ResourceType) -> &Resources {
        let [clusters, endpoints, listeners, routes] = &self.resources;
        match kind {
            ResourceType::Cluster => clusters,
            ResourceType::Endpoints => endpoints,
            ResourceType::Listener => listeners,
            ResourceType::Route => routes,
        }
    }
}
