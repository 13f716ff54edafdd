//! HTTP routes: of a VirtualService's `http`, and the default route of a service without one.

#![allow(deprecated)] // `max_grpc_timeout`: Istio sets it, and what replaces it does not mean the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common_fault;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as cors;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as fault;
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use envoy_types::pb::google::protobuf::Any;

use super::header::Operations;
use super::{
    any, bool_value, canonical_host, cluster_name, destination_port, duration, load_balancer,
    route_match, seconds, u32_value,
};
use crate::api::{self, HttpRoute, HttpRouteDestination, Percent};
use crate::mesh::{
    DestinationRule, HttpRule, MeshConfig, Port, Scope, ScopeView, Service, VirtualService,
    WeightDelivery, resolve,
};

/// The service of a destination and the rule for it.
pub(crate) type ResolvedDestination = (Arc<Service>, Option<Arc<DestinationRule>>);

/// The inputs of a route's translation besides the VirtualService.
pub(crate) struct Context<'a> {
    /// Mesh-wide settings.
    pub config: &'a MeshConfig,
    /// The scope of the proxies.
    pub scope: &'a Scope,
    /// The listener port.
    pub port: u16,
    /// Looks up a destination's service and rule by host.
    pub service: &'a dyn Fn(&str) -> Option<ResolvedDestination>,
}

/// A route and its origin.
#[derive(Clone, Debug)]
pub(crate) struct RouteWithSource<'a> {
    /// The route.
    pub route: pb::Route,
    /// The VirtualService route it comes from; `None` for the default route.
    pub rule: Option<HttpRule<'a>>,
    /// The index of its match; `None` if the route has no match.
    pub matched: Option<usize>,
}

/// The default route of a service without a VirtualService.
pub(crate) fn default(
    service: &Service,
    port: &Port,
    context: &Context<'_>,
) -> RouteWithSource<'static> {
    let cluster = cluster_name(port.number, "", &service.host);
    let (_, rule) = (context.service)(&service.host).unzip();
    let hash = rule.flatten().and_then(|rule| {
        load_balancer::hash_policy(load_balancer::consistent_hash(&rule, "", port.number)?)
    });
    let route = pb::Route {
        name: "default".to_owned(),
        r#match: Some(route_match::translate(None)),
        action: Some(pb::route::Action::Route(pb::RouteAction {
            timeout: seconds(0),
            max_grpc_timeout: seconds(0),
            retry_policy: retry_policy(None),
            hash_policy: hash.into_iter().collect(),
            cluster_specifier: Some(pb::route_action::ClusterSpecifier::Cluster(cluster)),
            ..Default::default()
        })),
        ..Default::default()
    };
    RouteWithSource { route, rule: None, matched: None }
}

/// A retry of a hashed request must go to the same host.
fn keep_hashed_host(policy: &mut Option<pb::RetryPolicy>) {
    if let Some(policy) = policy {
        policy.retry_host_predicate.clear();
    }
}

/// The VirtualService that provides the routes of a host at a port for these proxies: the first that has a route there.
/// One whose matches exclude the port or these proxies is skipped, as if it did not name the host.
pub(crate) fn rules_at<'a>(
    view: &'a ScopeView<'_>,
    host: &str,
    port: u16,
) -> Option<&'a Arc<VirtualService>> {
    view.rules_at(port).http(host).find(|rules| has_routes(rules, view.scope, port))
}

/// Whether [`of_virtual_service`] returns any route.
pub(crate) fn has_routes(rules: &VirtualService, scope: &Scope, port: u16) -> bool {
    rules.http().any(|rule| {
        let mut matches = rule.route.matches.iter();
        acts(&rule)
            && (rule.route.matches.is_empty()
                || matches.any(|request_match| route_match::applies(request_match, scope, port)))
    })
}

/// Whether a route has an action; a missing delegate leaves a route without one.
fn acts(rule: &HttpRule<'_>) -> bool {
    rule.route.redirect.is_some()
        || rule.route.direct_response.is_some()
        || !rule.destinations.is_empty()
}

/// The routes of a VirtualService for one port, in order. Each match becomes a route, and nothing follows a route that
/// matches every request.
pub(crate) fn of_virtual_service<'a>(
    rules: &'a VirtualService,
    context: &Context<'_>,
) -> Vec<RouteWithSource<'a>> {
    let mut routes = Vec::new();
    for rule in rules.http() {
        let matches: Vec<Option<(usize, &api::HttpMatchRequest)>> = if rule.route.matches.is_empty()
        {
            vec![None]
        } else {
            rule.route.matches.iter().enumerate().map(Some).collect()
        };
        for request_match in matches {
            let (matched, request_match) = request_match.unzip();
            if request_match.is_some_and(|request_match| {
                !route_match::applies(request_match, context.scope, context.port)
            }) {
                continue;
            }
            let Some(route) = translate(&rule, request_match, context) else {
                continue;
            };
            let last = route.r#match.as_ref().is_some_and(route_match::is_catch_all);
            routes.push(RouteWithSource { route, rule: Some(rule), matched });
            if last {
                return routes;
            }
        }
    }
    routes
}

fn translate(
    rule: &HttpRule<'_>,
    request_match: Option<&api::HttpMatchRequest>,
    context: &Context<'_>,
) -> Option<pb::Route> {
    let http = rule.route;
    let mut name = http.name.clone();
    if let Some(request_match) =
        request_match.filter(|request_match| !request_match.name.is_empty())
    {
        name = if name.is_empty() {
            request_match.name.clone()
        } else {
            format!("{name}.{}", request_match.name)
        };
    }
    let mut headers = Operations::new(http.headers.as_ref());
    let action = if let Some(redirect) = &http.redirect {
        pb::route::Action::Redirect(redirect_action(redirect, context.port))
    } else if let Some(response) = &http.direct_response {
        pb::route::Action::DirectResponse(direct_response(response))
    } else if !acts(rule) {
        return None;
    } else {
        forward(rule, &mut headers, context)
    };
    let mut filters: HashMap<String, Any> = HashMap::new();
    if let Some(fault) = http.fault.as_ref().and_then(http_fault) {
        filters.insert("envoy.filters.http.fault".to_owned(), any(&fault));
    }
    if let Some(policy) = &http.cors_policy {
        filters.insert("envoy.filters.http.cors".to_owned(), any(&cors_policy(policy)));
    }
    Some(pb::Route {
        name,
        r#match: Some(route_match::translate(request_match)),
        stat_prefix: request_match
            .map(|request_match| request_match.stat_prefix.clone())
            .unwrap_or_default(),
        typed_per_filter_config: filters,
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
        action: Some(action),
        ..Default::default()
    })
}

fn forward(
    rule: &HttpRule<'_>,
    headers: &mut Operations,
    context: &Context<'_>,
) -> pb::route::Action {
    let (http, namespace) = (rule.route, &*rule.key.namespace);
    let timeout = http.timeout.map_or(Duration::ZERO, |timeout| timeout.0);
    let mut action = pb::RouteAction {
        timeout: duration(timeout),
        max_grpc_timeout: duration(timeout),
        retry_policy: retry_policy(http.retries.as_ref()),
        request_mirror_policies: mirrors(http, namespace, context),
        ..Default::default()
    };
    if let Some(rewrite) = &http.rewrite {
        rewrite_path(rewrite, &mut action);
        if !rewrite.authority.is_empty() {
            headers.authority = Some(rewrite.authority.clone());
        }
    }
    action.cluster_specifier = Some(match rule.destinations {
        [only] => {
            headers.append(Operations::new(only.headers.as_ref()));
            hash_by(std::slice::from_ref(only), namespace, context, &mut action);
            let explicit = http
                .retries
                .as_ref()
                .is_some_and(|retries| retries.retry_ignore_previous_hosts.is_some());
            if !action.hash_policy.is_empty() && !explicit {
                keep_hashed_host(&mut action.retry_policy);
            }
            let cluster = destination(only.destination.as_ref(), namespace, context);
            pb::route_action::ClusterSpecifier::Cluster(cluster)
        }
        several => {
            let weighted = weighted_clusters(several, namespace, context);
            if several.iter().all(|to| to.weight <= 0) {
                // Envoy would reject a sum of 0 together with the entire route table. This disables only this route.
                return pb::route::Action::DirectResponse(pb::DirectResponseAction {
                    status: 503,
                    body: inline("every destination of this route has weight 0"),
                    ..Default::default()
                });
            }
            hash_by(several, namespace, context, &mut action);
            pb::route_action::ClusterSpecifier::WeightedClusters(pb::WeightedCluster {
                clusters: weighted,
                ..Default::default()
            })
        }
    });
    action.host_rewrite_specifier =
        headers.authority.take().map(pb::route_action::HostRewriteSpecifier::HostRewriteLiteral);
    pb::route::Action::Route(action)
}

fn rewrite_path(rewrite: &api::HttpRewrite, action: &mut pb::RouteAction) {
    match &rewrite.uri_regex_rewrite {
        Some(regex) => {
            action.regex_rewrite = Some(matcher::RegexMatchAndSubstitute {
                pattern: Some(route_match::safe_regex(&regex.pattern)),
                substitution: regex.rewrite.clone(),
            });
        }
        None => action.prefix_rewrite.clone_from(&rewrite.uri),
    }
}

/// Adds the hash policies of destinations, each once.
fn hash_by(
    destinations: &[HttpRouteDestination],
    namespace: &str,
    context: &Context<'_>,
    action: &mut pb::RouteAction,
) {
    for policy in destinations.iter().filter_map(|to| hash(to, namespace, context)) {
        if !action.hash_policy.contains(&policy) {
            action.hash_policy.push(policy);
        }
    }
}

/// The destinations of a weighted route.
fn weighted_clusters(
    destinations: &[HttpRouteDestination],
    namespace: &str,
    context: &Context<'_>,
) -> Vec<pb::weighted_cluster::ClusterWeight> {
    let weighted = destinations.iter().filter_map(|to| {
        let weight = u32::try_from(to.weight).ok()?;
        let stays = weight > 0 || keeps_weightless(to, namespace, context);
        stays.then(|| {
            let cluster = destination(to.destination.as_ref(), namespace, context);
            weighted_cluster(cluster, weight, to)
        })
    });
    weighted.collect()
}

/// Whether a destination of weight 0 stays in its route, so that giving it weight later changes only numbers. That is so
/// where weights are runtime values and its cluster is defined.
fn keeps_weightless(to: &HttpRouteDestination, namespace: &str, context: &Context<'_>) -> bool {
    let Some(to) = to.destination.as_ref() else { return false };
    if context.config.weights != WeightDelivery::Runtime {
        return false;
    }
    let host = resolve(&to.host, namespace, &context.config.domain);
    let Some((service, rule)) = (context.service)(&host) else { return false };
    let port = destination_port(to, Some(&service), context.port);
    let has_port = service.ports.iter().any(|known| known.number == port);
    let has_subset =
        to.subset.is_empty() || rule.is_some_and(|rule| rule.subset(&to.subset).is_some());
    has_port && has_subset
}

fn weighted_cluster(
    name: String,
    weight: u32,
    to: &HttpRouteDestination,
) -> pb::weighted_cluster::ClusterWeight {
    let own = Operations::new(to.headers.as_ref());
    pb::weighted_cluster::ClusterWeight {
        name,
        weight: u32_value(weight),
        request_headers_to_add: own.request_add,
        request_headers_to_remove: own.request_remove,
        response_headers_to_add: own.response_add,
        response_headers_to_remove: own.response_remove,
        host_rewrite_specifier: own
            .authority
            .map(pb::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
        ..Default::default()
    }
}

fn destination(to: Option<&api::Destination>, namespace: &str, context: &Context<'_>) -> String {
    let Some(to) = to else {
        return super::BLACK_HOLE.to_owned();
    };
    let host = resolve(&to.host, namespace, &context.config.domain);
    let known = (context.service)(&host);
    let service = known.as_ref().map(|(service, _)| &**service);
    let port = destination_port(to, service, context.port);
    cluster_name(port, &to.subset, canonical_host(&host, service))
}

/// The hash policy of a destination.
fn hash(
    to: &HttpRouteDestination,
    namespace: &str,
    context: &Context<'_>,
) -> Option<pb::route_action::HashPolicy> {
    let to = to.destination.as_ref()?;
    let (service, rule) = (context.service)(&resolve(&to.host, namespace, &context.config.domain))?;
    let port = destination_port(to, Some(&service), context.port);
    load_balancer::hash_policy(load_balancer::consistent_hash(&*rule?, &to.subset, port)?)
}

fn mirrors(
    http: &HttpRoute,
    namespace: &str,
    context: &Context<'_>,
) -> Vec<pb::route_action::RequestMirrorPolicy> {
    // A single object sets only one of the two, but a delegate and its root may set one each.
    let percent = http
        .mirror_percentage
        .or(http.mirror_percent.map(|value| Percent { value: f64::from(value) }));
    let single = http.mirror.as_ref().map(|to| (to, percent));
    let list = http
        .mirrors
        .iter()
        .filter_map(|mirror| Some((mirror.destination.as_ref()?, mirror.percentage)));
    single
        .into_iter()
        .chain(list)
        .filter(|(_, percent)| percent.is_none_or(|percent| percent.value > 0.0))
        .map(|(to, percent)| pb::route_action::RequestMirrorPolicy {
            cluster: destination(Some(to), namespace, context),
            runtime_fraction: Some(core::RuntimeFractionalPercent {
                default_value: Some(percent.map_or_else(all_of_them, fraction)),
                ..Default::default()
            }),
            trace_sampled: bool_value(false),
            disable_shadow_host_suffix_append: true,
            ..Default::default()
        })
        .collect()
}

fn all_of_them() -> FractionalPercent {
    FractionalPercent { numerator: 100, denominator: DenominatorType::Hundred as i32 }
}

/// Percent as a fraction of a million, which keeps four decimals.
fn fraction(percent: Percent) -> FractionalPercent {
    // Validated to be between 0 and 100.
    let numerator = (percent.value.clamp(0.0, 100.0) * 10_000.0).round() as u32;
    FractionalPercent { numerator, denominator: DenominatorType::Million as i32 }
}

/// Absent means Istio's default: two retries, on failures that guarantee the request had no effect. Source: Istio's
/// `HTTPRetry`.
fn retry_policy(retries: Option<&api::HttpRetry>) -> Option<pb::RetryPolicy> {
    let mut policy = pb::RetryPolicy {
        retry_on: "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
            .to_owned(),
        num_retries: u32_value(2),
        host_selection_retry_max_attempts: 5,
        retry_host_predicate: vec![pb::retry_policy::RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(pb::retry_policy::retry_host_predicate::ConfigType::TypedConfig(
                any(&PreviousHostsPredicate {}),
            )),
        }],
        ..Default::default()
    };
    let Some(retries) = retries else {
        return Some(policy);
    };
    let attempts = u32::try_from(retries.attempts).ok().filter(|attempts| *attempts > 0)?;
    policy.num_retries = u32_value(attempts);
    policy.per_try_timeout = retries.per_try_timeout.and_then(|timeout| duration(timeout.0));
    policy.retry_back_off = retries.backoff.map(|base| pb::retry_policy::RetryBackOff {
        base_interval: duration(base.0),
        ..Default::default()
    });
    if !retries.retry_on.is_empty() {
        let (codes, mut conditions): (Vec<&str>, Vec<&str>) = retries
            .retry_on
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
            .partition(is_status_code);
        policy.retriable_status_codes = codes.iter().filter_map(|code| code.parse().ok()).collect();
        if !codes.is_empty() && !conditions.contains(&"retriable-status-codes") {
            conditions.push("retriable-status-codes");
        }
        policy.retry_on = conditions.join(",");
    }
    if retries.retry_ignore_previous_hosts == Some(false) {
        policy.retry_host_predicate.clear();
        policy.host_selection_retry_max_attempts = 0;
    }
    if retries.retry_remote_localities == Some(true) {
        policy.retry_priority = Some(pb::retry_policy::RetryPriority {
            name: "envoy.retry_priorities.previous_priorities".to_owned(),
            config_type: Some(pb::retry_policy::retry_priority::ConfigType::TypedConfig(any(
                &PreviousPrioritiesConfig { update_frequency: 2 },
            ))),
        });
    }
    Some(policy)
}

fn is_status_code(word: &&str) -> bool {
    word.parse::<u32>().is_ok_and(|code| (100..600).contains(&code))
}

/// The port of the redirect target. If the host does not change and no port is set, Envoy keeps the client's port,
/// except 80 when the scheme changes; so a scheme's default port need not be set if clients name no port or 80. Source:
/// Istio's `HTTPRedirect`.
fn redirect_port(from: &api::HttpRedirect, listener: u16) -> u32 {
    let own = if from.scheme == "https" { 443 } else { 80 };
    let wanted = match from.derive_port {
        Some(api::RedirectPort::FromRequestPort) => u32::from(listener),
        Some(api::RedirectPort::FromProtocolDefault) => own,
        None => from.port.unwrap_or_default(),
    };
    let goes_without_saying = wanted == own && (listener == 80 || !from.authority.is_empty());
    if goes_without_saying { 0 } else { wanted }
}

fn redirect_action(from: &api::HttpRedirect, port: u16) -> pb::RedirectAction {
    use pb::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let code = match from.redirect_code {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    pb::RedirectAction {
        host_redirect: from.authority.clone(),
        port_redirect: redirect_port(from, port),
        response_code: code as i32,
        scheme_rewrite_specifier: (!from.scheme.is_empty())
            .then(|| SchemeRewriteSpecifier::SchemeRedirect(from.scheme.clone())),
        path_rewrite_specifier: if !from.prefix_rewrite.is_empty() {
            Some(PathRewriteSpecifier::PrefixRewrite(from.prefix_rewrite.clone()))
        } else {
            (!from.uri.is_empty()).then(|| PathRewriteSpecifier::PathRedirect(from.uri.clone()))
        },
        ..Default::default()
    }
}

fn inline(text: &str) -> Option<core::DataSource> {
    let specifier = core::data_source::Specifier::InlineString(text.to_owned());
    Some(core::DataSource { specifier: Some(specifier), ..Default::default() })
}

/// From base64-encoded bytes.
fn inline_bytes(text: &str) -> Option<core::DataSource> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    Some(core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineBytes(bytes)),
        ..Default::default()
    })
}

fn direct_response(from: &api::HttpDirectResponse) -> pb::DirectResponseAction {
    let body = from.body.as_ref().and_then(|body| match (&body.string, &body.bytes) {
        (Some(text), _) => inline(text),
        (None, Some(bytes)) => inline_bytes(bytes),
        (None, None) => None,
    });
    pb::DirectResponseAction { status: from.status, body, ..Default::default() }
}

fn http_fault(from: &api::HttpFaultInjection) -> Option<fault::HttpFault> {
    // Without a percentage the fault applies to no request.
    let delay = from.delay.as_ref().and_then(|delay| {
        Some(common_fault::FaultDelay {
            percentage: Some(fraction(
                delay.percentage.unwrap_or(Percent { value: f64::from(delay.percent) }),
            )),
            fault_delay_secifier: Some(common_fault::fault_delay::FaultDelaySecifier::FixedDelay(
                duration(delay.fixed_delay?.0)?,
            )),
        })
    });
    let abort = from.abort.as_ref().and_then(|abort| {
        let status = match (abort.http_status, &abort.grpc_status) {
            (Some(status), _) => {
                fault::fault_abort::ErrorType::HttpStatus(u32::try_from(status).ok()?)
            }
            (None, Some(status)) => {
                fault::fault_abort::ErrorType::GrpcStatus(api::grpc_status(status)?)
            }
            (None, None) => return None,
        };
        Some(fault::FaultAbort {
            percentage: Some(fraction(abort.percentage.unwrap_or_default())),
            error_type: Some(status),
            ..Default::default()
        })
    });
    (delay.is_some() || abort.is_some()).then(|| fault::HttpFault {
        delay,
        abort,
        ..Default::default()
    })
}

fn cors_policy(from: &api::CorsPolicy) -> cors::CorsPolicy {
    let old = from.allow_origin.iter().map(|origin| api::StringMatch {
        exact: (origin != "*").then(|| origin.clone()),
        ..Default::default()
    });
    let origins: Vec<_> =
        if from.allow_origins.is_empty() { old.collect() } else { from.allow_origins.clone() };
    cors::CorsPolicy {
        allow_origin_string_match: origins.iter().map(route_match::string_matcher).collect(),
        allow_methods: from.allow_methods.join(","),
        allow_headers: from.allow_headers.join(","),
        expose_headers: from.expose_headers.join(","),
        max_age: from.max_age.map(|age| age.0.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: from.allow_credentials.and_then(bool_value),
        filter_enabled: Some(core::RuntimeFractionalPercent {
            default_value: Some(all_of_them()),
            ..Default::default()
        }),
        forward_not_matching_preflights: bool_value(
            from.unmatched_preflights != Some(api::UnmatchedPreflights::Ignore),
        ),
        ..Default::default()
    }
}
