//! Istio's Sidecar. Source of every field: istio/api, `networking/v1alpha3/sidecar.proto`.

use serde::Deserialize;

use super::{ConnectionPoolSettings, Destination, EntrySelector};

/// `Sidecar.spec`: what proxies of some workloads get to see.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sidecar {
    /// The workloads; absent means all of the namespace.
    pub workload_selector: Option<EntrySelector>,
    /// What comes in, in place of the services' ports.
    pub ingress: Vec<serde_json::Value>,
    /// What goes out; empty means everything that is visible.
    pub egress: Vec<IstioEgressListener>,
    /// Limits of connections and requests that come in.
    pub inbound_connection_pool: Option<ConnectionPoolSettings>,
    /// What happens to traffic for hosts that nobody knows.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// Hosts that a proxy gets to see, all of their ports or one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IstioEgressListener {
    /// The only port; absent means all.
    pub port: Option<SidecarPort>,
    /// The address of the listener.
    pub bind: String,
    /// How traffic gets to the listener.
    pub capture_mode: String,
    /// `NAMESPACE/HOST`: `*`, `.` or `~` for the namespace, wildcards for the host.
    pub hosts: Vec<String>,
}

/// A port of a Sidecar's listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarPort {
    /// 1 to 65535.
    pub number: u32,
    /// What is spoken over it.
    pub protocol: String,
    /// Its name.
    pub name: String,
    /// Means nothing, and is refused.
    pub target_port: u32,
}

/// What happens to traffic for hosts that nobody knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// Whether it passes.
    pub mode: OutboundMode,
    /// The host it goes through.
    pub egress_proxy: Option<Destination>,
}

/// Whether traffic for hosts that nobody knows passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// It does not.
    #[default]
    RegistryOnly,
    /// It does.
    AllowAny,
}
