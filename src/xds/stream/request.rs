//! Requests of both variants in one shape, and what a client does with a response.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::service::discovery::v3 as pb;

use crate::snapshot::ResourceType;

/// The variant of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// State of the world: each response holds all that was asked for.
    Sotw,
    /// Incremental: each response holds what changed.
    Delta,
}

/// A request of either variant, in one shape.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The type URL.
    pub type_url: String,
    /// The nonce of the response it answers; empty where it answers none.
    pub nonce: String,
    /// The newest version that the client took, perhaps on an earlier stream (SotW).
    pub version: String,
    /// Why the response was refused.
    pub error: Option<String>,
    /// Names: all that are wanted (SotW), or those newly wanted (delta).
    pub names: Vec<String>,
    /// Names no longer wanted (delta).
    pub unsubscribe: Vec<String>,
    /// What the client has from an earlier stream: name to version (delta).
    pub initial_versions: BTreeMap<String, String>,
    /// Whether it came on a stream for its type alone.
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

/// What a client did with a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It took it.
    Acked(ResourceType),
    /// It refused it, and said why.
    Refused(ResourceType, String),
}

/// What a client may not do; the stream is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// More names than one stream may hold.
    #[error("the stream asks for more than {limit} names, which is the limit for one stream")]
    TooManyNames {
        /// How many it may hold.
        limit: usize,
    },
    /// Longer names than one stream may hold.
    #[error("the names that the stream asks for are longer than {limit} bytes together, which is the limit")]
    NamesTooLong {
        /// How many bytes they may have together.
        limit: usize,
    },
}
