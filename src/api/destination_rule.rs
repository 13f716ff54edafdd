//! Istio's DestinationRule. Source of every field: istio/api, `networking/v1alpha3/destination_rule.proto`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::{Duration, Labels};

/// `DestinationRule.spec`: the subsets of a host, and the policies for traffic to it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DestinationRule {
    /// The host: a name, a short name, or a wildcard.
    pub host: String,
    /// The policy for the entire host.
    pub traffic_policy: Option<Box<TrafficPolicy>>,
    /// Named subsets, selected by labels.
    pub subsets: Vec<Arc<Subset>>,
    /// The namespaces that see it: `*`, `.` or names. Empty means all.
    pub export_to: Vec<String>,
    /// The client workloads it applies to; absent means all.
    pub workload_selector: Option<WorkloadSelector>,
}

/// A named subset of a host's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    /// The name, unique in the rule.
    pub name: String,
    /// Selects the endpoints that have all of these labels; empty means every endpoint.
    pub labels: Arc<Labels>,
    /// Overrides the rule's policy.
    pub traffic_policy: Option<Box<TrafficPolicy>>,
}

/// Selects workloads by labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// The labels that must all match.
    pub match_labels: Labels,
}

/// Policies for traffic to a host.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// How an endpoint is picked.
    pub load_balancer: Option<LoadBalancerSettings>,
    /// Limits of connections and requests.
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// When an endpoint is ejected.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the endpoints.
    pub tls: Option<ClientTlsSettings>,
    /// Policies per port, which replace the settings they contain.
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// Tunnel TCP through HTTP CONNECT or POST.
    pub tunnel: Option<TunnelSettings>,
    /// Send a PROXY protocol header.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The limit on concurrent retries.
    pub retry_budget: Option<RetryBudget>,
}

/// Policies for one port.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortTrafficPolicy {
    /// The service port.
    pub port: Option<super::PortSelector>,
    /// How an endpoint is picked.
    pub load_balancer: Option<LoadBalancerSettings>,
    /// Limits of connections and requests.
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// When an endpoint is ejected.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the endpoints.
    pub tls: Option<ClientTlsSettings>,
}

/// How an endpoint is picked.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerSettings {
    /// One of the simple kinds.
    pub simple: Option<SimpleLb>,
    /// By a hash of the request.
    pub consistent_hash: Option<ConsistentHashLb>,
    /// By locality.
    pub locality_lb_setting: Option<LocalityLbSetting>,
    /// Zone-aware: prefers the local zone up to its capacity.
    pub zone_aware_lb_setting: Option<ZoneAwareLbSetting>,
    /// Deprecated form of `warmup.duration`.
    pub warmup_duration_secs: Option<Duration>,
    /// Ramps up traffic to new endpoints.
    pub warmup: Option<WarmupConfiguration>,
}

/// The simple kinds of load balancing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleLb {
    /// As `LEAST_REQUEST`.
    Unspecified,
    /// Deprecated name of `LEAST_REQUEST`.
    LeastConn,
    /// A random endpoint.
    Random,
    /// The original destination address.
    Passthrough,
    /// Round robin.
    RoundRobin,
    /// The one with fewer requests out of two.
    LeastRequest,
}

/// Load balancing by a hash of the request.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsistentHashLb {
    /// Hash this header.
    pub http_header_name: Option<String>,
    /// Hash this cookie.
    pub http_cookie: Option<HttpCookie>,
    /// Hash the client's address.
    pub use_source_ip: Option<bool>,
    /// Hash this query parameter.
    pub http_query_parameter_name: Option<String>,
    /// Uses a hash ring.
    pub ring_hash: Option<RingHash>,
    /// Uses a Maglev table.
    pub maglev: Option<Maglev>,
    /// Deprecated form of `ringHash.minimumRingSize`.
    pub minimum_ring_size: u64,
}

/// A cookie to hash; it is generated if it is missing and `ttl` is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpCookie {
    /// Its name.
    pub name: String,
    /// Its path.
    pub path: String,
    /// The lifetime of a generated cookie; 0 means a session cookie.
    pub ttl: Option<Duration>,
    /// More attributes of a generated cookie.
    pub attributes: Vec<CookieAttribute>,
}

/// A cookie's attribute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CookieAttribute {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A hash ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RingHash {
    /// Its minimum size; 0 means 1024.
    pub minimum_ring_size: u64,
}

/// A Maglev table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Maglev {
    /// Its size, a prime up to 5 000 011; 0 means 65 537.
    pub table_size: u64,
}

/// Load balancing by locality.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalityLbSetting {
    /// Weights by client locality.
    pub distribute: Vec<Distribute>,
    /// Where traffic goes when a region fails.
    pub failover: Vec<Failover>,
    /// Labels that rank endpoints.
    pub failover_priority: Vec<String>,
    /// Whether it is enabled; absent means yes.
    pub enabled: Option<bool>,
}

/// The locality weights for clients in one locality.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Distribute {
    /// The client locality: `region/zone/subzone`, with `*` for any.
    pub from: String,
    /// The weight of each locality in percent; they sum to 100.
    pub to: BTreeMap<String, u32>,
}

/// Zone-aware load balancing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ZoneAwareLbSetting {
    /// Whether it is enabled; absent means yes.
    pub enabled: Option<bool>,
    /// Where traffic goes when a region fails.
    pub failover: Vec<Failover>,
    /// Labels that rank endpoints.
    pub failover_priority: Vec<String>,
    /// The minimum number of endpoints; absent means 6.
    pub min_cluster_size: Option<u64>,
}

/// The failover target of a region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Failover {
    /// The region that fails.
    pub from: String,
    /// The region that takes over.
    pub to: String,
}

/// The ramp-up of new endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WarmupConfiguration {
    /// Its duration.
    pub duration: Option<Duration>,
    /// The initial weight in percent; absent means 10.
    pub minimum_percent: Option<f64>,
    /// The growth rate; absent means 1, which is linear.
    pub aggression: Option<f64>,
}

/// Limits of connections and requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionPoolSettings {
    /// Connection limits.
    pub tcp: Option<TcpSettings>,
    /// Request limits.
    pub http: Option<HttpSettings>,
}

/// Limits of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpSettings {
    /// How many; 0 means no limit.
    pub max_connections: i32,
    /// The connect timeout; absent means 10 s.
    pub connect_timeout: Option<Duration>,
    /// Probes on idle connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// The maximum connection duration.
    pub max_connection_duration: Option<Duration>,
    /// The idle timeout.
    pub idle_timeout: Option<Duration>,
}

/// Probes on idle connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpKeepalive {
    /// How many probes may fail before the connection is closed.
    pub probes: u32,
    /// The idle time before the first probe.
    pub time: Option<Duration>,
    /// The interval between probes.
    pub interval: Option<Duration>,
}

/// Limits of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpSettings {
    /// Requests waiting for a connection; 0 means no limit.
    #[serde(rename = "http1MaxPendingRequests")]
    pub http1_max_pending_requests: i32,
    /// Concurrent requests; 0 means no limit.
    #[serde(rename = "http2MaxRequests")]
    pub http2_max_requests: i32,
    /// Requests per connection; 0 means no limit.
    pub max_requests_per_connection: i32,
    /// Concurrent retries; 0 means no limit.
    pub max_retries: i32,
    /// The idle timeout of a connection without requests.
    pub idle_timeout: Option<Duration>,
    /// Whether HTTP/1.1 is upgraded to HTTP/2.
    pub h2_upgrade_policy: Option<H2UpgradePolicy>,
    /// Use the client's protocol upstream.
    pub use_client_protocol: bool,
    /// Concurrent streams per HTTP/2 connection; 0 means Envoy's default.
    pub max_concurrent_streams: i32,
    /// Probes on HTTP/2 connections.
    pub http2_keep_alive: Option<ConnectionKeepalive>,
}

/// PING frames on an HTTP/2 connection; both fields are required.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionKeepalive {
    /// The interval between pings.
    pub interval: Option<Duration>,
    /// How long to wait for a response.
    pub timeout: Option<Duration>,
}

/// Whether HTTP/1.1 is upgraded to HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2UpgradePolicy {
    /// The mesh default, which is no.
    Default,
    /// No.
    DoNotUpgrade,
    /// Yes.
    Upgrade,
}

/// When an endpoint is ejected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// Deprecated form of `consecutive5xxErrors`.
    pub consecutive_errors: i32,
    /// Count locally originated errors separately.
    pub split_external_local_origin_errors: bool,
    /// The number of consecutive locally originated errors.
    pub consecutive_local_origin_failures: Option<u32>,
    /// The number of consecutive 502, 503 and 504 responses; 0 disables it.
    pub consecutive_gateway_errors: Option<u32>,
    /// The number of consecutive 5xx responses; 0 disables it, absent means 5.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// The analysis interval; absent means 10 s.
    pub interval: Option<Duration>,
    /// The duration of the first ejection; absent means 30 s.
    pub base_ejection_time: Option<Duration>,
    /// The maximum percentage of ejected endpoints; 0 means 10.
    pub max_ejection_percent: i32,
    /// The minimum percentage of healthy endpoints for ejection to apply.
    pub min_health_percent: i32,
    /// The status codes that count as errors, 100 to 599; empty means 5xx.
    pub outlier_detection_http_error_codes: Vec<u32>,
}

/// TLS towards the endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientTlsSettings {
    /// The TLS mode.
    pub mode: TlsMode,
    /// The client certificate, a file on the proxy.
    pub client_certificate: String,
    /// Its private key, a file on the proxy.
    pub private_key: String,
    /// The trusted CAs, a file on the proxy; empty means that the server is not verified.
    pub ca_certificates: String,
    /// A Secret with all three; only for gateways.
    pub credential_name: String,
    /// The server certificate must contain one of these names.
    pub subject_alt_names: Vec<String>,
    /// The SNI to send.
    pub sni: String,
    /// Do not verify the server.
    pub insecure_skip_verify: Option<bool>,
    /// The certificate revocation list, a file on the proxy.
    pub ca_crl: String,
}

/// Whether TLS is used, and with which certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// No TLS.
    #[default]
    Disable,
    /// TLS with a server certificate.
    Simple,
    /// Mutual TLS.
    Mutual,
    /// Mutual TLS with the mesh's certificates.
    IstioMutual,
}

/// Tunnel TCP through another proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TunnelSettings {
    /// CONNECT (default) or POST.
    pub protocol: String,
    /// The target host.
    pub target_host: String,
    /// The target port.
    pub target_port: u32,
}

/// A PROXY protocol header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyProtocol {
    /// V1 (default) or V2.
    pub version: ProxyProtocolVersion,
}

/// The version of the PROXY protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum ProxyProtocolVersion {
    /// The text format.
    #[default]
    V1,
    /// The binary format.
    V2,
}

/// The limit on concurrent retries.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// The limit as a percentage of active requests; absent means 20.
    pub percent: Option<f64>,
    /// The minimum limit; 0 means 3.
    pub min_retry_concurrency: u32,
    /// How long a request counts; absent means only while it is active.
    pub budget_interval: Option<Duration>,
}
