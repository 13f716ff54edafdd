//! Istio's PeerAuthentication. Source of every field: istio/api, `security/v1beta1/peer_authentication.proto`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Labels, WorkloadSelector};

/// `PeerAuthentication.spec`: which connections the sidecars of some workloads accept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthentication {
    /// The workloads; absent means all of the namespace, or of the mesh if the object is in the root namespace.
    pub selector: Option<WorkloadSelector>,
    /// The mode for all ports.
    pub mtls: Option<MutualTls>,
    /// The mode for single ports of the workload, by number.
    pub port_level_mtls: BTreeMap<String, MutualTls>,
}

impl PeerAuthentication {
    /// The labels that select workloads; empty if it applies to all.
    pub(crate) fn labels(&self) -> Labels {
        self.selector.as_ref().map(|selector| selector.match_labels.clone()).unwrap_or_default()
    }
}

/// Whether mutual TLS is required.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MutualTls {
    /// The mode.
    pub mode: MutualTlsMode,
}

/// Which connections a port accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MutualTlsMode {
    /// As the policy for more workloads says.
    #[default]
    Unset,
    /// Plain text; TLS goes to the application as it is.
    Disable,
    /// Mutual TLS and plain text.
    Permissive,
    /// Mutual TLS alone.
    Strict,
}
