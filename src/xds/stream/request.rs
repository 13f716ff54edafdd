//! Requests of both variants in a common form, and the client's reaction to a response.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::service::discovery::v3 as pb;

use crate::snapshot::ResourceType;

/// The variant of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// State of the world: each response contains all subscribed resources.
    Sotw,
    /// Incremental: each response contains only changes.
    Delta,
}

impl Variant {
    /// The name, for the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sotw => "sotw",
            Self::Delta => "delta",
        }
    }
}

/// A request of either variant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    /// The type URL.
    pub type_url: String,
    /// The nonce of the response that it answers; empty if it answers none.
    pub nonce: String,
    /// The newest version that the client accepted, possibly on an earlier stream (SotW).
    pub version: String,
    /// Why the response was rejected.
    pub error: Option<String>,
    /// The subscribed names: all (SotW), or new ones (delta).
    pub names: Vec<String>,
    /// The names to unsubscribe from (delta).
    pub unsubscribe: Vec<String>,
    /// The resources of an earlier stream: name to version (delta).
    pub initial_versions: BTreeMap<String, String>,
    /// Whether it came on a stream for its type only.
    pub alone: bool,
}

impl From<pb::DiscoveryRequest> for Request {
    fn from(request: pb::DiscoveryRequest) -> Self {
        Self {
            type_url: request.type_url,
            nonce: request.response_nonce,
            version: request.version_info,
            error: request.error_detail.map(|error| error.message),
            names: request.resource_names,
            ..Default::default()
        }
    }
}

impl From<pb::DeltaDiscoveryRequest> for Request {
    fn from(request: pb::DeltaDiscoveryRequest) -> Self {
        Self {
            type_url: request.type_url,
            nonce: request.response_nonce,
            error: request.error_detail.map(|error| error.message),
            names: request.resource_names_subscribe,
            unsubscribe: request.resource_names_unsubscribe,
            initial_versions: request.initial_resource_versions.into_iter().collect(),
            ..Default::default()
        }
    }
}

/// The client's reaction to a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It accepted the response.
    Acked(ResourceType),
    /// It rejected the response, with the reason.
    Rejected(ResourceType, String),
}

/// A request that exceeds a limit; the stream must be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    /// Too many names.
    #[error("the stream exceeds the limit of {limit} names")]
    TooManyNames {
        /// The limit.
        limit: usize,
    },
    /// The names are too long.
    #[error("the names of the stream exceed the total limit of {limit} bytes")]
    NamesTooLong {
        /// The total limit in bytes.
        limit: usize,
    },
}
