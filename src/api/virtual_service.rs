//! Istio's VirtualService. Source of every field: istio/api, `networking/v1alpha3/virtual_service.proto`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Duration, Labels};

/// `VirtualService.spec`: how requests to some hosts are routed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualService {
    /// The hosts it speaks for: a name, a short name, a wildcard like `*.example.com`, or an IP address.
    pub hosts: Vec<String>,
    /// Where it applies: gateways by name, and `mesh` for sidecars. Empty means `mesh`.
    pub gateways: Vec<String>,
    /// Routes for HTTP, tried in order.
    pub http: Vec<HttpRoute>,
    /// Routes for TLS that is passed through, by SNI.
    pub tls: Vec<TlsRoute>,
    /// Routes for TCP.
    pub tcp: Vec<TcpRoute>,
    /// The namespaces that see it: `*`, `.` or names. Empty means all.
    pub export_to: Vec<String>,
}

/// One route of `http`: its matches (any of them), and what happens to the requests.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRoute {
    /// A name for people.
    pub name: String,
    /// Any of these; empty means every request.
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatchRequest>,
    /// Where requests go, by weight.
    pub route: Vec<HttpRouteDestination>,
    /// Answer with a redirect instead.
    pub redirect: Option<HttpRedirect>,
    /// Answer with a fixed response instead.
    pub direct_response: Option<HttpDirectResponse>,
    /// Take the routes of another VirtualService instead.
    pub delegate: Option<Delegate>,
    /// Change path or authority before forwarding.
    pub rewrite: Option<HttpRewrite>,
    /// The longest a request may take; absent or 0 means no limit.
    pub timeout: Option<Duration>,
    /// When a failed request is tried again.
    pub retries: Option<HttpRetry>,
    /// Delays and aborts put in on purpose.
    pub fault: Option<HttpFaultInjection>,
    /// A copy of each request goes here.
    pub mirror: Option<Destination>,
    /// Copies of each request go here.
    pub mirrors: Vec<HttpMirrorPolicy>,
    /// Deprecated form of `mirrorPercentage`, in percent.
    #[serde(alias = "mirror_percent")]
    pub mirror_percent: Option<u32>,
    /// The share of requests that `mirror` copies; absent means all.
    pub mirror_percentage: Option<Percent>,
    /// Cross-origin rules.
    pub cors_policy: Option<CorsPolicy>,
    /// Header changes for every destination.
    pub headers: Option<Headers>,
}

/// What a request must be like. Every given part must hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatchRequest {
    /// A name for people, added to the route's.
    pub name: String,
    /// The path.
    pub uri: Option<StringMatch>,
    /// `http` or `https`.
    pub scheme: Option<StringMatch>,
    /// The method.
    pub method: Option<StringMatch>,
    /// The Host or :authority header.
    pub authority: Option<StringMatch>,
    /// Headers by lower-case name; an empty matcher means that the header is present.
    pub headers: BTreeMap<String, StringMatch>,
    /// The service port the request was sent to.
    pub port: Option<u32>,
    /// Labels of the client's workload.
    pub source_labels: Labels,
    /// Overrides the VirtualService's `gateways`.
    pub gateways: Vec<String>,
    /// Query parameters by name.
    pub query_params: BTreeMap<String, StringMatch>,
    /// Compare exact and prefix `uri` without case.
    pub ignore_uri_case: bool,
    /// Headers that must not match.
    pub without_headers: BTreeMap<String, StringMatch>,
    /// The namespace of the client's workload.
    pub source_namespace: String,
    /// The prefix of this route's own statistics.
    pub stat_prefix: String,
}

/// How a text is compared: one of the three, or none, which means that there is a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StringMatch {
    /// Equal.
    pub exact: Option<String>,
    /// Begins with.
    pub prefix: Option<String>,
    /// The whole text matches this RE2 expression.
    pub regex: Option<String>,
}

/// One destination of a route.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteDestination {
    /// Where.
    pub destination: Option<Destination>,
    /// Its share, relative to the sum of all; 0 means none.
    pub weight: i32,
    /// Header changes for this destination.
    pub headers: Option<Headers>,
}

/// A service, or a subset of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Destination {
    /// The service's host; a name without a dot is read in the VirtualService's namespace.
    pub host: String,
    /// The subset, as a DestinationRule for the host names it; empty means the whole service.
    pub subset: String,
    /// The port; may be left out where the service has one.
    pub port: Option<PortSelector>,
}

/// A port by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortSelector {
    /// 1 to 65535.
    pub number: u32,
}

/// The VirtualService whose routes are taken in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Delegate {
    /// Its name.
    pub name: String,
    /// Its namespace; empty means that of the root.
    pub namespace: String,
}

/// Header changes in both directions.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Headers {
    /// Before the request is forwarded.
    pub request: Option<HeaderOperations>,
    /// Before the response is returned.
    pub response: Option<HeaderOperations>,
}

/// Header changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderOperations {
    /// Overwrite.
    pub set: BTreeMap<String, String>,
    /// Append.
    pub add: BTreeMap<String, String>,
    /// Remove.
    pub remove: Vec<String>,
}

/// A redirect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRedirect {
    /// The new path.
    pub uri: String,
    /// What the matched prefix is replaced by; the rest of the path stays.
    pub prefix_rewrite: String,
    /// The new authority.
    pub authority: String,
    /// The new port.
    pub port: Option<u32>,
    /// Where the port comes from otherwise.
    pub derive_port: Option<RedirectPort>,
    /// The new scheme.
    pub scheme: String,
    /// 301 (default), 302, 303, 307 or 308.
    pub redirect_code: u32,
}

/// Where a redirect's port comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum RedirectPort {
    /// 80 for http, 443 for https.
    #[serde(rename = "FROM_PROTOCOL_DEFAULT")]
    FromProtocolDefault,
    /// That of the request.
    #[serde(rename = "FROM_REQUEST_PORT")]
    FromRequestPort,
}

/// A fixed answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpDirectResponse {
    /// The status, 200 to 599.
    pub status: u32,
    /// The body.
    pub body: Option<HttpBody>,
}

/// A body as text or as bytes in base64.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpBody {
    /// As text.
    pub string: Option<String>,
    /// As bytes, in base64.
    pub bytes: Option<String>,
}

/// A change of path or authority.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRewrite {
    /// Replaces the path, or the matched prefix.
    pub uri: String,
    /// Replaces the authority.
    pub authority: String,
    /// Replaces by expression.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// A rewrite by expression.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RegexRewrite {
    /// What is replaced, as RE2.
    #[serde(rename = "match")]
    pub pattern: String,
    /// By what; `\1` is the first group.
    pub rewrite: String,
}

/// When and how often a failed request is tried again.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRetry {
    /// How often; 0 means never.
    pub attempts: i32,
    /// The longest each try may take; absent means as long as the request.
    pub per_try_timeout: Option<Duration>,
    /// Conditions and status codes, separated by commas.
    pub retry_on: String,
    /// Whether tries may go to other localities.
    pub retry_remote_localities: Option<bool>,
    /// Whether hosts tried before are left out; absent means yes.
    pub retry_ignore_previous_hosts: Option<bool>,
    /// The base interval between tries; absent means Envoy's 25 ms.
    pub backoff: Option<Duration>,
}

/// Faults put in on purpose.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpFaultInjection {
    /// Hold requests.
    pub delay: Option<FaultDelay>,
    /// Answer requests with an error.
    pub abort: Option<FaultAbort>,
}

/// A delay put in on purpose.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FaultDelay {
    /// Deprecated form of `percentage`, whole percent.
    pub percent: i32,
    /// The share of requests.
    pub percentage: Option<Percent>,
    /// How long.
    pub fixed_delay: Option<Duration>,
    /// Not in use, in Istio either.
    pub exponential_delay: Option<Duration>,
}

/// An abort put in on purpose.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FaultAbort {
    /// The HTTP status.
    pub http_status: Option<i32>,
    /// The gRPC status, by name or number.
    pub grpc_status: Option<String>,
    /// Not in use, in Istio either.
    #[serde(rename = "http2Error")]
    pub http2_error: Option<String>,
    /// The share of requests.
    pub percentage: Option<Percent>,
}

/// A share, 0 to 100, of which Envoy keeps four decimals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Percent {
    /// In percent.
    pub value: f64,
}

/// A copy of requests.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMirrorPolicy {
    /// Where copies go.
    pub destination: Option<Destination>,
    /// The share of requests; absent means all.
    pub percentage: Option<Percent>,
}

/// Cross-origin rules.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CorsPolicy {
    /// Deprecated form of `allowOrigins`, exact.
    pub allow_origin: Vec<String>,
    /// The origins that may ask.
    pub allow_origins: Vec<StringMatch>,
    /// `access-control-allow-methods`.
    pub allow_methods: Vec<String>,
    /// `access-control-allow-headers`.
    pub allow_headers: Vec<String>,
    /// `access-control-expose-headers`.
    pub expose_headers: Vec<String>,
    /// `access-control-max-age`.
    pub max_age: Option<Duration>,
    /// `access-control-allow-credentials`.
    pub allow_credentials: Option<bool>,
    /// What happens to a preflight request of another origin.
    pub unmatched_preflights: Option<UnmatchedPreflights>,
}

/// What happens to a preflight request whose origin is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum UnmatchedPreflights {
    /// As `FORWARD`.
    #[serde(rename = "UNSPECIFIED")]
    Unspecified,
    /// It goes to the destination.
    #[serde(rename = "FORWARD")]
    Forward,
    /// It is answered here, without headers that would allow the request.
    #[serde(rename = "IGNORE")]
    Ignore,
}

/// One route of `tls`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRoute {
    /// Any of these.
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatchAttributes>,
    /// Where connections go, by weight.
    pub route: Vec<RouteDestination>,
}

/// What a TLS connection must be like.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsMatchAttributes {
    /// Any of these names in the SNI; a wildcard prefix is allowed.
    pub sni_hosts: Vec<String>,
    /// Any of these destinations, with or without a prefix length.
    pub destination_subnets: Vec<String>,
    /// The port.
    pub port: Option<u32>,
    /// Labels of the client's workload.
    pub source_labels: Labels,
    /// Overrides the VirtualService's `gateways`.
    pub gateways: Vec<String>,
    /// The namespace of the client's workload.
    pub source_namespace: String,
}

/// One route of `tcp`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRoute {
    /// Any of these; empty means every connection.
    #[serde(rename = "match")]
    pub matches: Vec<L4MatchAttributes>,
    /// Where connections go, by weight.
    pub route: Vec<RouteDestination>,
}

/// What a connection must be like.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L4MatchAttributes {
    /// Any of these destinations, with or without a prefix length.
    pub destination_subnets: Vec<String>,
    /// The port.
    pub port: Option<u32>,
    /// Where the connection comes from; Istio does not use it.
    pub source_subnet: String,
    /// Labels of the client's workload.
    pub source_labels: Labels,
    /// Overrides the VirtualService's `gateways`.
    pub gateways: Vec<String>,
    /// The namespace of the client's workload.
    pub source_namespace: String,
}

/// One destination of a TLS or TCP route.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteDestination {
    /// Where.
    pub destination: Option<Destination>,
    /// Its share, relative to the sum of all; 0 means none.
    pub weight: i32,
}

/// A gRPC status by name or number. Source: gRPC's "Status codes and their use".
pub fn grpc_status(status: &str) -> Option<u32> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let by_name = NAMES.iter().position(|name| *name == status).and_then(|n| u32::try_from(n).ok());
    by_name.or_else(|| status.parse().ok().filter(|number| *number <= 16))
}
