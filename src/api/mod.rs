//! The objects that weir reads, as plain types: Kubernetes' Service, EndpointSlice, Endpoints, Pod, Node and Namespace,
//! and Istio's VirtualService, DestinationRule, ServiceEntry, WorkloadEntry, Sidecar and PeerAuthentication.
//!
//! [`parse`] turns a JSON document (from the API server or from YAML) into an [`Object`] or reports exactly what is
//! wrong with it. Nothing here knows where a document came from or what it is used for.

mod destination_rule;
#[cfg(test)]
mod fields;
mod kubernetes;
mod parse;
mod peer_authentication;
mod problem;
mod scalar;
mod service_entry;
mod shares;
mod sidecar;
mod validate;
mod virtual_service;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub(crate) use destination_rule::*;
pub(crate) use kubernetes::*;
pub use parse::{Identity, expand_list, identify, parse};
pub(crate) use parse::{ObjectError, Parsed, REVISION_LABEL, References, describe, in_revision};
pub(crate) use peer_authentication::*;
pub(crate) use problem::{Problem, ProblemKind};
pub(crate) use scalar::Duration;
pub(crate) use service_entry::*;
pub(crate) use shares::{share_of, shares};
pub(crate) use sidecar::*;
pub(crate) use validate::{is_dns_label, is_label_name, is_label_value};
pub use virtual_service::VirtualService;
pub(crate) use virtual_service::*;

/// Labels or annotations: name to value.
pub(crate) type Labels = BTreeMap<String, String>;

/// Whether `labels` contains every label of `selector`. An empty selector matches everything.
pub(crate) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// The group of most of Istio's kinds.
const NETWORKING: &str = "networking.istio.io";

/// The kinds that weir reads. [`Kind::group`] and [`Kind::versions`] return the API group and its equivalent versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1 Node, for the locality of its pods.
    Node,
    /// core/v1 Namespace.
    Namespace,
    /// core/v1 Service.
    Service,
    /// core/v1 Pod, metadata only.
    Pod,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// core/v1 Endpoints, used if a service has no slice.
    Endpoints,
    /// networking.istio.io VirtualService.
    VirtualService,
    /// networking.istio.io DestinationRule.
    DestinationRule,
    /// networking.istio.io ServiceEntry.
    ServiceEntry,
    /// networking.istio.io WorkloadEntry.
    WorkloadEntry,
    /// networking.istio.io Sidecar.
    Sidecar,
    /// security.istio.io PeerAuthentication.
    PeerAuthentication,
}

impl Kind {
    /// Every kind, in dependency order.
    pub const ALL: [Kind; 12] = [
        Kind::Node,
        Kind::Namespace,
        Kind::Service,
        Kind::Pod,
        Kind::EndpointSlice,
        Kind::Endpoints,
        Kind::WorkloadEntry,
        Kind::ServiceEntry,
        Kind::Sidecar,
        Kind::PeerAuthentication,
        Kind::VirtualService,
        Kind::DestinationRule,
    ];

    /// The name as in `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Node => "Node",
            Kind::Namespace => "Namespace",
            Kind::Service => "Service",
            Kind::Pod => "Pod",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Endpoints => "Endpoints",
            Kind::VirtualService => "VirtualService",
            Kind::DestinationRule => "DestinationRule",
            Kind::ServiceEntry => "ServiceEntry",
            Kind::WorkloadEntry => "WorkloadEntry",
            Kind::Sidecar => "Sidecar",
            Kind::PeerAuthentication => "PeerAuthentication",
        }
    }

    /// The API group; empty for Kubernetes' core group.
    pub fn group(self) -> &'static str {
        match self {
            Kind::Node | Kind::Namespace | Kind::Service | Kind::Pod | Kind::Endpoints => "",
            Kind::EndpointSlice => "discovery.k8s.io",
            Kind::PeerAuthentication => "security.istio.io",
            _ => NETWORKING,
        }
    }

    /// The supported versions, which are equivalent, with the preferred one first.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Kind::PeerAuthentication => &["v1", "v1beta1"],
            _ if self.is_of_istio() => &["v1", "v1beta1", "v1alpha3"],
            _ => &["v1"],
        }
    }

    /// The plural resource name in API paths.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Kind::Node => "nodes",
            Kind::Namespace => "namespaces",
            Kind::Service => "services",
            Kind::Pod => "pods",
            Kind::EndpointSlice => "endpointslices",
            Kind::Endpoints => "endpoints",
            Kind::VirtualService => "virtualservices",
            Kind::DestinationRule => "destinationrules",
            Kind::ServiceEntry => "serviceentries",
            Kind::WorkloadEntry => "workloadentries",
            Kind::Sidecar => "sidecars",
            Kind::PeerAuthentication => "peerauthentications",
        }
    }

    /// The resource with its API group, as in `virtualservices.networking.istio.io`.
    pub(crate) fn resource(self) -> String {
        let dot = if self.group().is_empty() { "" } else { "." };
        format!("{}{dot}{}", self.plural(), self.group())
    }

    /// Whether Istio defines it.
    pub(crate) fn is_of_istio(self) -> bool {
        self.group() == NETWORKING || self == Kind::PeerAuthentication
    }

    /// Whether this kind is namespaced.
    pub(crate) fn namespaced(self) -> bool {
        !matches!(self, Kind::Node | Kind::Namespace)
    }

    /// Whether weir reads only metadata of this kind.
    pub(crate) fn metadata_only(self) -> bool {
        matches!(self, Kind::Node | Kind::Namespace | Kind::Pod)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Identifies an object in a cluster: kind, namespace (empty for a cluster-scoped kind) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// The namespace; empty for a cluster-scoped kind.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// The object metadata that weir uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The namespace; empty for a cluster-scoped kind.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// The labels, which many pods have in common.
    pub labels: Arc<Labels>,
    /// The annotations that weir reads (`*.istio.io/*` and `weir.dev/*`); all others are dropped to save memory.
    pub annotations: Labels,
    /// The age of the object. If two objects apply to the same host, the older one wins.
    pub age: Age,
    /// `metadata.generation`; 0 if absent.
    pub generation: i64,
}

/// Orders objects from the oldest to the newest.
///
/// An object without a creation time is newer than all that have one; among those `order`, which a source increments as
/// it reads, decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Age {
    /// Microseconds since 1970, or `i64::MAX` if the object has no creation time.
    pub created: i64,
    /// The position in its source.
    pub order: u64,
}

/// An object that is valid as far as can be checked without other objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its metadata.
    pub meta: Meta,
    /// Its content by kind.
    pub spec: Spec,
}

/// The content of an [`Object`], by kind.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Spec {
    Node,
    Namespace,
    Service(Service),
    Pod(Pod),
    EndpointSlice(EndpointSlice),
    Endpoints(Endpoints),
    VirtualService(VirtualService),
    DestinationRule(Box<DestinationRule>),
    ServiceEntry(Box<ServiceEntry>),
    WorkloadEntry(Box<WorkloadEntry>),
    Sidecar(Box<Sidecar>),
    /// A PeerAuthentication.
    PeerAuthentication(Box<PeerAuthentication>),
}

impl Object {
    /// The object's kind.
    pub(crate) fn kind(&self) -> Kind {
        match &self.spec {
            Spec::Node => Kind::Node,
            Spec::Namespace => Kind::Namespace,
            Spec::Service(_) => Kind::Service,
            Spec::Pod(_) => Kind::Pod,
            Spec::EndpointSlice(_) => Kind::EndpointSlice,
            Spec::Endpoints(_) => Kind::Endpoints,
            Spec::VirtualService(_) => Kind::VirtualService,
            Spec::DestinationRule(_) => Kind::DestinationRule,
            Spec::ServiceEntry(_) => Kind::ServiceEntry,
            Spec::WorkloadEntry(_) => Kind::WorkloadEntry,
            Spec::Sidecar(_) => Kind::Sidecar,
            Spec::PeerAuthentication(_) => Kind::PeerAuthentication,
        }
    }

    /// Whether this is its key.
    pub(crate) fn is(&self, key: &ObjectKey) -> bool {
        self.kind() == key.kind
            && self.meta.name == key.name
            && self.meta.namespace == key.namespace
    }

    /// The object's key.
    pub fn key(&self) -> ObjectKey {
        ObjectKey {
            kind: self.kind(),
            namespace: self.meta.namespace.clone(),
            name: self.meta.name.clone(),
        }
    }
}
