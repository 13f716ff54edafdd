//! Istio's Sidecar. Source of every field: istio/api, `networking/v1alpha3/sidecar.proto`.

use serde::Deserialize;

use super::{ConnectionPoolSettings, Destination, EntrySelector};

/// `Sidecar.spec`: what is visible to the proxies of some workloads.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sidecar {
    /// The workloads; absent means all workloads of the namespace.
    pub workload_selector: Option<EntrySelector>,
    /// The inbound listeners, instead of the services' ports.
    pub ingress: Vec<serde_json::Value>,
    /// The outbound listeners; empty means everything that is visible.
    pub egress: Vec<IstioEgressListener>,
    /// Limits on inbound connections and requests.
    pub inbound_connection_pool: Option<ConnectionPoolSettings>,
    /// What happens to traffic for unknown hosts.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// Hosts that are visible to a proxy, on all ports or on one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IstioEgressListener {
    /// The only port; absent means all.
    pub port: Option<SidecarPort>,
    /// The address of the listener.
    pub bind: String,
    /// How traffic is captured.
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
    /// The protocol.
    pub protocol: String,
    /// Its name.
    pub name: String,
    /// Not supported here; rejected.
    pub target_port: u32,
}

/// What happens to traffic for unknown hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// Whether it passes through.
    pub mode: OutboundMode,
    /// The host that it is sent through.
    pub egress_proxy: Option<Destination>,
}

/// Whether traffic for unknown hosts passes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// It is blocked.
    #[default]
    RegistryOnly,
    /// It passes through.
    AllowAny,
}
