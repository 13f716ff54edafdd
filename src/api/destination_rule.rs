//! Istio's DestinationRule. Source of every field: istio/api, `networking/v1alpha3/destination_rule.proto`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Duration, Labels};

/// `DestinationRule.spec`: the subsets of a host, and the policies for traffic to it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DestinationRule {
    /// The host: a name, a short name, or a wildcard.
    pub host: String,
    /// The policy for all of it.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named parts of it, by labels.
    pub subsets: Vec<Subset>,
    /// The namespaces that see it: `*`, `.` or names. Empty means all.
    pub export_to: Vec<String>,
    /// The client workloads it applies to; absent means all.
    pub workload_selector: Option<WorkloadSelector>,
}

/// A named part of a host's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    /// The name, unique in the rule.
    pub name: String,
    /// An endpoint that has all of these belongs to it; empty means every endpoint.
    pub labels: Labels,
    /// Overrides the rule's policy.
    pub traffic_policy: Option<TrafficPolicy>,
}

/// Workloads by labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// All of these.
    pub match_labels: Labels,
}

/// Policies for traffic to a host.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// Which endpoint a request goes to.
    pub load_balancer: Option<LoadBalancerSettings>,
    /// Limits of connections and requests.
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// When an endpoint is left out for a while.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the endpoints.
    pub tls: Option<ClientTlsSettings>,
    /// Policies for single ports, each in place of what it covers.
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// Tunnel TCP through HTTP CONNECT or POST.
    pub tunnel: Option<TunnelSettings>,
    /// Send a PROXY protocol header.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How many retries may be under way.
    pub retry_budget: Option<RetryBudget>,
}

/// Policies for one port.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortTrafficPolicy {
    /// The service port.
    pub port: Option<super::PortSelector>,
    /// Which endpoint a request goes to.
    pub load_balancer: Option<LoadBalancerSettings>,
    /// Limits of connections and requests.
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// When an endpoint is left out for a while.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the endpoints.
    pub tls: Option<ClientTlsSettings>,
}

/// Which endpoint a request goes to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerSettings {
    /// One of the simple kinds.
    pub simple: Option<SimpleLb>,
    /// By a hash of the request.
    pub consistent_hash: Option<ConsistentHashLb>,
    /// By locality.
    pub locality_lb_setting: Option<LocalityLbSetting>,
    /// Within the zone first, as far as its endpoints can take it.
    pub zone_aware_lb_setting: Option<ZoneAwareLbSetting>,
    /// Deprecated form of `warmup.duration`.
    pub warmup_duration_secs: Option<Duration>,
    /// New endpoints get their share slowly.
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
    /// Any.
    Random,
    /// The address the client asked for.
    Passthrough,
    /// In turn.
    RoundRobin,
    /// Of two the one with fewer requests.
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
    /// By a ring.
    pub ring_hash: Option<RingHash>,
    /// By a Maglev table.
    pub maglev: Option<Maglev>,
    /// Deprecated form of `ringHash.minimumRingSize`.
    pub minimum_ring_size: u64,
}

/// A cookie that is hashed, and made where it is missing and `ttl` is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpCookie {
    /// Its name.
    pub name: String,
    /// Its path.
    pub path: String,
    /// How long a made one lives; 0 means for the session.
    pub ttl: Option<Duration>,
    /// Further attributes of a made one.
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
    /// Its least size; 0 means 1024.
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
    /// Shares by where the client is.
    pub distribute: Vec<Distribute>,
    /// Where traffic goes when a region fails.
    pub failover: Vec<Failover>,
    /// Labels that rank endpoints.
    pub failover_priority: Vec<String>,
    /// Whether it applies; absent means yes.
    pub enabled: Option<bool>,
}

/// Shares of localities for clients in one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Distribute {
    /// Clients here: `region/zone/subzone`, with `*` for any.
    pub from: String,
    /// Locality to share in percent; they sum to 100.
    pub to: BTreeMap<String, u32>,
}

/// Load balancing within the client's zone first.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ZoneAwareLbSetting {
    /// Whether it applies; absent means yes.
    pub enabled: Option<bool>,
    /// Where traffic goes when a region fails.
    pub failover: Vec<Failover>,
    /// Labels that rank endpoints.
    pub failover_priority: Vec<String>,
    /// The number of endpoints below which it does not apply; absent means 6.
    pub min_cluster_size: Option<u64>,
}

/// The region that stands in for another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Failover {
    /// The region that fails.
    pub from: String,
    /// The region that stands in.
    pub to: String,
}

/// How new endpoints get their share.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WarmupConfiguration {
    /// For how long.
    pub duration: Option<Duration>,
    /// The least share, in percent; absent means 10.
    pub minimum_percent: Option<f64>,
    /// How fast the share grows; absent means 1, which is linear.
    pub aggression: Option<f64>,
}

/// Limits of connections and requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionPoolSettings {
    /// Of connections.
    pub tcp: Option<TcpSettings>,
    /// Of requests.
    pub http: Option<HttpSettings>,
}

/// Limits of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpSettings {
    /// How many; 0 means no limit.
    pub max_connections: i32,
    /// How long setting one up may take; absent means 10 s.
    pub connect_timeout: Option<Duration>,
    /// Probes on idle connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// How long one may live.
    pub max_connection_duration: Option<Duration>,
    /// How long one may be idle.
    pub idle_timeout: Option<Duration>,
}

/// Probes on idle connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpKeepalive {
    /// How many fail before the connection is dead.
    pub probes: u32,
    /// How long it is idle before the first.
    pub time: Option<Duration>,
    /// How long between them.
    pub interval: Option<Duration>,
}

/// Limits of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpSettings {
    /// Waiting for a connection; 0 means no limit.
    #[serde(rename = "http1MaxPendingRequests")]
    pub http1_max_pending_requests: i32,
    /// Under way; 0 means no limit.
    #[serde(rename = "http2MaxRequests")]
    pub http2_max_requests: i32,
    /// On one connection; 0 means no limit.
    pub max_requests_per_connection: i32,
    /// Retries under way; 0 means no limit.
    pub max_retries: i32,
    /// How long a connection may be without a request.
    pub idle_timeout: Option<Duration>,
    /// Whether HTTP/1.1 is upgraded to HTTP/2.
    pub h2_upgrade_policy: Option<H2UpgradePolicy>,
    /// Speak the protocol the client speaks.
    pub use_client_protocol: bool,
    /// Streams on one HTTP/2 connection; 0 means Envoy's number.
    pub max_concurrent_streams: i32,
    /// Probes on HTTP/2 connections.
    pub http2_keep_alive: Option<ConnectionKeepalive>,
}

/// PING frames on an HTTP/2 connection; both are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionKeepalive {
    /// How often.
    pub interval: Option<Duration>,
    /// How long to wait for the answer.
    pub timeout: Option<Duration>,
}

/// Whether HTTP/1.1 is upgraded to HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2UpgradePolicy {
    /// As the mesh says, which is no.
    Default,
    /// No.
    DoNotUpgrade,
    /// Yes.
    Upgrade,
}

/// When an endpoint is left out for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// Deprecated form of `consecutive5xxErrors`.
    pub consecutive_errors: i32,
    /// Count errors made here apart from those of the endpoint.
    pub split_external_local_origin_errors: bool,
    /// How many errors made here in a row.
    pub consecutive_local_origin_failures: Option<u32>,
    /// How many of 502, 503 and 504 in a row; 0 means not counted.
    pub consecutive_gateway_errors: Option<u32>,
    /// How many 5xx in a row; 0 means not counted; absent means 5.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// How often counts are looked at; absent means 10 s.
    pub interval: Option<Duration>,
    /// How long an endpoint is out the first time; absent means 30 s.
    pub base_ejection_time: Option<Duration>,
    /// The largest share that may be out, in percent; 0 means 10.
    pub max_ejection_percent: i32,
    /// The share that must be healthy for this to work, in percent.
    pub min_health_percent: i32,
    /// The statuses that count as errors, 100 to 599; empty means 5xx.
    pub outlier_detection_http_error_codes: Vec<u32>,
}

/// TLS towards the endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientTlsSettings {
    /// Whether, and with whose certificates.
    pub mode: TlsMode,
    /// The client's certificate, a file at the proxy.
    pub client_certificate: String,
    /// Its key, a file at the proxy.
    pub private_key: String,
    /// Whom to trust, a file at the proxy; empty means that the server is not verified.
    pub ca_certificates: String,
    /// A Secret with all three; for gateways alone.
    pub credential_name: String,
    /// The server's certificate must hold one of these.
    pub subject_alt_names: Vec<String>,
    /// The SNI that is sent.
    pub sni: String,
    /// Do not verify the server.
    pub insecure_skip_verify: Option<bool>,
    /// Revoked certificates, a file at the proxy.
    pub ca_crl: String,
}

/// Whether TLS is used, and with whose certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// Not used.
    #[default]
    Disable,
    /// With a server certificate.
    Simple,
    /// With certificates of both sides.
    Mutual,
    /// With the mesh's own certificates of both sides.
    IstioMutual,
}

/// Tunnel TCP through another proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TunnelSettings {
    /// CONNECT (default) or POST.
    pub protocol: String,
    /// Where the tunnel ends.
    pub target_host: String,
    /// The port where it ends.
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
    /// As text.
    #[default]
    V1,
    /// As bytes.
    V2,
}

/// How many retries may be under way.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// As a share of the requests under way, in percent; absent means 20.
    pub percent: Option<f64>,
    /// At least this many; 0 means 3.
    pub min_retry_concurrency: u32,
    /// For how long a request counts; absent means only while it is under way.
    pub budget_interval: Option<Duration>,
}
