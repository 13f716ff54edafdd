//! The encoded configuration of each scope of proxies. A snapshot is built once for all proxies of a scope, from parts
//! that scopes share if they are equal.

mod builder;
mod cache;
mod cluster_refs;
mod domains;
mod fallback;
mod name_table;
mod parts;
mod provenance;
mod resource;
mod route_table;
mod runtime_weights;
mod scope;
mod sensitivity;
#[cfg(test)]
mod tests;
mod validator;
#[cfg(test)]
mod work_tests;

use std::sync::Arc;
use std::time::Instant;

pub use builder::SnapshotBuilder;
pub(crate) use cache::{CacheStats, SnapshotCache, SnapshotSubscription};
pub(crate) use cluster_refs::ClusterRefs;
pub(crate) use fallback::empty_endpoints;
pub(crate) use name_table::NameTable;
pub(crate) use provenance::{Provenance, provenance};
pub(crate) use resource::{Cursor, Pieces, Resource, Resources};
pub(crate) use route_table::{EncodedVirtualHost, RouteTable};
pub(crate) use runtime_weights::RuntimeWeights;
pub(crate) use validator::OmittedResource;

use crate::revision::MeshRevision;

/// The served resource types, in dependency order.
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
    /// RTDS: the weights that are not in the routes of a client. Each stream makes its own layer.
    Runtime,
}

impl ResourceType {
    /// All types.
    pub const ALL: [ResourceType; 5] = [
        ResourceType::Cluster,
        ResourceType::Endpoints,
        ResourceType::Listener,
        ResourceType::Route,
        ResourceType::Runtime,
    ];

    /// The types that a snapshot holds.
    pub(crate) const OF_SNAPSHOT: [ResourceType; 4] = [
        ResourceType::Cluster,
        ResourceType::Endpoints,
        ResourceType::Listener,
        ResourceType::Route,
    ];

    /// The type URL. Source: Envoy's xDS protocol document, "Resource types".
    pub fn type_url(self) -> &'static str {
        match self {
            ResourceType::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            ResourceType::Endpoints => {
                "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
            }
            ResourceType::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            ResourceType::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            ResourceType::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
        }
    }

    /// Parses a type URL.
    pub(crate) fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// The short name: `cds`, `eds`, `lds`, `rds` or `rtds`.
    pub fn short_name(self) -> &'static str {
        match self {
            ResourceType::Cluster => "cds",
            ResourceType::Endpoints => "eds",
            ResourceType::Listener => "lds",
            ResourceType::Route => "rds",
            ResourceType::Runtime => "rtds",
        }
    }

    /// The index in per-type arrays.
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// Whether a SotW response has all resources of the type that the client asks for, changed or not.
    pub(crate) fn is_sent_whole(self) -> bool {
        self.has_wildcard() || self == ResourceType::Runtime
    }

    /// Whether an empty list of names subscribes to everything. Source: Envoy's xDS protocol document, "How the client
    /// specifies what resources to return".
    pub(crate) fn has_wildcard(self) -> bool {
        matches!(self, ResourceType::Cluster | ResourceType::Listener)
    }
}

/// The configuration of one scope of proxies.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The published mesh that it was made from; `None` for a preview.
    pub revision: MeshRevision,
    /// When the change behind it was published; `None` for a preview.
    pub published: Option<Instant>,
    /// What is omitted because Envoy would reject it; empty unless weir has a bug.
    pub omitted: Arc<[OmittedResource]>,
    /// The table of names for DNS, if a proxy of the scope has asked for it.
    pub(crate) names: Option<Arc<Resource>>,
    resources: [Resources; 4],
    /// Empty: the resources of the types that streams make themselves.
    none: Resources,
}

impl Snapshot {
    /// The snapshot of a published mesh with these resources, in the order of [`ResourceType::OF_SNAPSHOT`].
    pub(crate) fn new(revision: MeshRevision, resources: [Resources; 4]) -> Self {
        Self {
            revision,
            published: None,
            omitted: Arc::default(),
            names: None,
            resources,
            none: Resources::default(),
        }
    }

    /// The resources of one type.
    pub fn get(&self, kind: ResourceType) -> &Resources {
        let [clusters, endpoints, listeners, routes] = &self.resources;
        match kind {
            ResourceType::Cluster => clusters,
            ResourceType::Endpoints => endpoints,
            ResourceType::Listener => listeners,
            ResourceType::Route => routes,
            ResourceType::Runtime => &self.none,
        }
    }
}
