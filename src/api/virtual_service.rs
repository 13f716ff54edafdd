//! Istio's VirtualService. Source of every field: istio/api, `networking/v1alpha3/virtual_service.proto`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Duration, Labels};

/// `VirtualService.spec`: how requests to some hosts are routed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualService {
    /// The hosts it applies to: a name, a short name, a wildcard like `*.example.com`, or an IP address.
    pub hosts: Vec<String>,
    /// Where it applies: gateways by name, and `mesh` for sidecars. Empty means `mesh`.
    pub gateways: Vec<String>,
    /// Routes for HTTP, tried in order.
    pub http: Vec<HttpRoute>,
    /// Routes for passed-through TLS, by SNI.
    pub tls: Vec<TlsRoute>,
    /// Routes for TCP.
    pub tcp: Vec<TcpRoute>,
    /// The namespaces that see it: `*`, `.` or names. Empty means all.
    pub export_to: Vec<String>,
}

/// An HTTP route: requests that satisfy any of its matches, and what happens to them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRoute {
    /// A descriptive name.
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
    /// Use the routes of another VirtualService instead.
    pub delegate: Option<Delegate>,
    /// Change path or authority before forwarding.
    pub rewrite: Option<HttpRewrite>,
    /// The request timeout; absent or 0 means none.
    pub timeout: Option<Duration>,
    /// The retry policy.
    pub retries: Option<HttpRetry>,
    /// Injected delays and aborts.
    pub fault: Option<HttpFaultInjection>,
    /// Where requests are mirrored.
    pub mirror: Option<Destination>,
    /// Where requests are mirrored, several destinations.
    pub mirrors: Vec<HttpMirrorPolicy>,
    /// Deprecated form of `mirrorPercentage`, in percent.
    #[serde(alias = "mirror_percent")]
    pub mirror_percent: Option<u32>,
    /// The percentage of requests to mirror; absent means all.
    pub mirror_percentage: Option<Percent>,
    /// Cross-origin rules.
    pub cors_policy: Option<CorsPolicy>,
    /// Header changes for every destination.
    pub headers: Option<Headers>,
}

/// The conditions of a match; all that are set must hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatchRequest {
    /// A descriptive name, appended to the route's.
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
    /// The service port of the request.
    pub port: Option<u32>,
    /// Labels of the client's workload.
    pub source_labels: Labels,
    /// Overrides the VirtualService's `gateways`.
    pub gateways: Vec<String>,
    /// Query parameters by name.
    pub query_params: BTreeMap<String, StringMatch>,
    /// Compare exact and prefix `uri` case-insensitively.
    pub ignore_uri_case: bool,
    /// Headers that must not match.
    pub without_headers: BTreeMap<String, StringMatch>,
    /// The namespace of the client's workload.
    pub source_namespace: String,
    /// The prefix of this route's statistics.
    pub stat_prefix: String,
}

/// How a string is matched: by one of the three, or by presence if none is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StringMatch {
    /// Equals this value.
    pub exact: Option<String>,
    /// Starts with this value.
    pub prefix: Option<String>,
    /// Fully matches this RE2 expression.
    pub regex: Option<String>,
}

/// One destination of a route.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteDestination {
    /// The destination.
    pub destination: Option<Destination>,
    /// Its weight, relative to the sum of all weights; 0 means no traffic.
    pub weight: i32,
    /// Header changes for this destination.
    pub headers: Option<Headers>,
}

/// A service, or a subset of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Destination {
    /// The service's host; a name without a dot is resolved in the VirtualService's namespace.
    pub host: String,
    /// The subset, defined by a DestinationRule for the host; empty means the whole service.
    pub subset: String,
    /// The port; optional if the service has a single port.
    pub port: Option<PortSelector>,
}

/// A port by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortSelector {
    /// 1 to 65535.
    pub number: u32,
}

/// The VirtualService whose routes are used.
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
    /// Replaces the matched prefix; the rest of the path stays.
    pub prefix_rewrite: String,
    /// The new authority.
    pub authority: String,
    /// The new port.
    pub port: Option<u32>,
    /// How to derive the port if `port` is not set.
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

/// A fixed response.
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
    /// Replaces the path by a regular expression.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// A rewrite by a regular expression.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RegexRewrite {
    /// The RE2 expression to replace.
    #[serde(rename = "match")]
    pub pattern: String,
    /// The replacement; `\1` is the first group.
    pub rewrite: String,
}

/// When and how often a failed request is retried.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRetry {
    /// The number of retries; 0 means none.
    pub attempts: i32,
    /// The timeout of each attempt; absent means the request's timeout.
    pub per_try_timeout: Option<Duration>,
    /// Comma-separated conditions and status codes.
    pub retry_on: String,
    /// Whether retries may go to other localities.
    pub retry_remote_localities: Option<bool>,
    /// Whether retries avoid hosts that were already tried; absent means yes.
    pub retry_ignore_previous_hosts: Option<bool>,
    /// The base interval between retries; absent means Envoy's 25 ms.
    pub backoff: Option<Duration>,
}

/// Injected faults.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpFaultInjection {
    /// Delay requests.
    pub delay: Option<FaultDelay>,
    /// Abort requests with an error.
    pub abort: Option<FaultAbort>,
}

/// An injected delay.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FaultDelay {
    /// Deprecated integer form of `percentage`.
    pub percent: i32,
    /// The percentage of requests.
    pub percentage: Option<Percent>,
    /// The delay.
    pub fixed_delay: Option<Duration>,
    /// Unused, also in Istio.
    pub exponential_delay: Option<Duration>,
}

/// An injected abort.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FaultAbort {
    /// The HTTP status.
    pub http_status: Option<i32>,
    /// The gRPC status, by name or number.
    pub grpc_status: Option<String>,
    /// Unused, also in Istio.
    #[serde(rename = "http2Error")]
    pub http2_error: Option<String>,
    /// The percentage of requests.
    pub percentage: Option<Percent>,
}

/// A percentage from 0 to 100, with four decimals in Envoy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Percent {
    /// The percentage.
    pub value: f64,
}

/// A mirror destination.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMirrorPolicy {
    /// The destination.
    pub destination: Option<Destination>,
    /// The percentage of requests; absent means all.
    pub percentage: Option<Percent>,
}

/// Cross-origin rules.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CorsPolicy {
    /// Deprecated form of `allowOrigins`, exact.
    pub allow_origin: Vec<String>,
    /// The allowed origins.
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
    /// What happens to a preflight request of a disallowed origin.
    pub unmatched_preflights: Option<UnmatchedPreflights>,
}

/// What happens to a preflight request of a disallowed origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum UnmatchedPreflights {
    /// As `FORWARD`.
    #[serde(rename = "UNSPECIFIED")]
    Unspecified,
    /// It is forwarded to the destination.
    #[serde(rename = "FORWARD")]
    Forward,
    /// The proxy answers it without CORS headers.
    #[serde(rename = "IGNORE")]
    Ignore,
}

/// A TLS route.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRoute {
    /// The matches, any of which must hold.
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatchAttributes>,
    /// Where connections go, by weight.
    pub route: Vec<RouteDestination>,
}

/// The conditions of a TLS match.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsMatchAttributes {
    /// The accepted SNI values; a wildcard prefix is allowed.
    pub sni_hosts: Vec<String>,
    /// The accepted destinations, with an optional prefix length.
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

/// A TCP route.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRoute {
    /// Any of these; empty means every connection.
    #[serde(rename = "match")]
    pub matches: Vec<L4MatchAttributes>,
    /// Where connections go, by weight.
    pub route: Vec<RouteDestination>,
}

/// The conditions of a TCP match.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L4MatchAttributes {
    /// The accepted destinations, with an optional prefix length.
    pub destination_subnets: Vec<String>,
    /// The port.
    pub port: Option<u32>,
    /// The source subnet; unused, also in Istio.
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
    /// The destination.
    pub destination: Option<Destination>,
    /// Its weight, relative to the sum of all weights; 0 means no traffic.
    pub weight: i32,
}

/// A gRPC status by name or number. Source: gRPC's "Status codes and their use".
pub(crate) fn grpc_status(status: &str) -> Option<u32> {
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
