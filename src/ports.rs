//! The ports of a sidecar, which are those of Istio's.

/// Envoy's admin interface, on loopback.
pub(crate) const ADMIN: u16 = 15000;
/// Redirected outbound traffic.
pub(crate) const OUTBOUND: u16 = 15001;
/// Redirected inbound traffic.
pub(crate) const INBOUND: u16 = 15006;
/// The tunnels of ambient mode.
pub(crate) const HBONE: u16 = 15008;
/// The agent.
pub(crate) const AGENT: u16 = 15020;
/// Readiness.
pub(crate) const READY: u16 = 15021;
/// Envoy's metrics.
pub(crate) const METRICS: u16 = 15090;

/// The ports of the proxy and its agent, inbound traffic to which never goes through the proxy.
pub(crate) const NOT_REDIRECTED: [u16; 4] = [HBONE, AGENT, READY, METRICS];
