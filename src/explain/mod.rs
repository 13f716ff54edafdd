//! Explains how a request is routed: which listener, virtual host and route handle it, why earlier routes do not match,
//! and where it goes. Works on the resources of a snapshot, so the result reflects what Envoy gets and not a second
//! interpretation of the objects.

mod answer;
mod encryption;
mod matching;
mod path;
mod policies;
mod request;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::network::{
    http_connection_manager::v3 as hcm, tcp_proxy::v3 as tcp,
};
use policies::{cluster_policies, destination_policies, percent, route_policies, seconds};
use prost::Message;

pub(crate) use answer::{ConsideredRoute, Endpoint};
pub use answer::{Destination, Explanation, Outcome};
pub use request::{Request, TrafficQuery};
pub(crate) use text::{ends, succeeds, text};

use crate::api::{ObjectKey, shares};
use crate::mesh::{
    HttpRule, Interception, Protocol, Registry, Resolution, ScopeView, VirtualService,
    VisibleService, resolve,
};
use crate::snapshot::{ResourceType, Snapshot};
use crate::translate::route::{Context, ResolvedDestination, RouteWithSource, has_routes};
use crate::translate::{
    listener as translate_listener, listener_plan, route_match, virtual_host as hosts,
};

/// The addresses of sidecars that are known to have no certificates, and through which inbound connections go.
pub(crate) type ServersWithoutCertificates = BTreeSet<Arc<str>>;

/// Simulates `question` for the proxies of `view`. Nothing is known of the proxies of servers but what objects say.
pub fn explain(view: &ScopeView<'_>, snapshot: &Snapshot, traffic: &TrafficQuery) -> Explanation {
    explain_with(view, snapshot, traffic, &ServersWithoutCertificates::new())
}

/// The same, where some servers are known to have no certificates.
pub(crate) fn explain_with(
    view: &ScopeView<'_>,
    snapshot: &Snapshot,
    traffic: &TrafficQuery,
    servers: &ServersWithoutCertificates,
) -> Explanation {
    Simulator::new(view, snapshot, servers).simulate(traffic)
}

/// Simulates traffic from the proxies of one view.
pub(crate) struct Simulator<'a> {
    view: &'a ScopeView<'a>,
    snapshot: &'a Snapshot,
    servers: &'a ServersWithoutCertificates,
    /// The route configurations that were needed so far, by name. One of them may hold all hosts of a large mesh.
    decoded: BTreeMap<String, Option<Arc<route::RouteConfiguration>>>,
}

impl<'a> Simulator<'a> {
    /// `snapshot` is what the proxies of `view` get. `servers` are known to have no certificates.
    pub(crate) fn new(
        view: &'a ScopeView<'a>,
        snapshot: &'a Snapshot,
        servers: &'a ServersWithoutCertificates,
    ) -> Self {
        Self { view, snapshot, servers, decoded: BTreeMap::new() }
    }

    /// Explains how `traffic` is routed.
    pub(crate) fn simulate(&mut self, traffic: &TrafficQuery) -> Explanation {
        // HTTP inside TLS is opaque; only the server name is visible.
        let (host, port, sni, is_http) = match traffic {
            TrafficQuery::Http(request) if request.scheme == "https" => {
                (request.host.as_str(), request.port, Some(request.host.as_str()), false)
            }
            TrafficQuery::Http(request) => (request.host.as_str(), request.port, None, true),
            TrafficQuery::Tcp { host, port, sni } => (host.as_str(), *port, sni.as_deref(), false),
        };
        let address = self.address(host);
        let mut answer = Explanation::default();
        let Some((name, listener)) = self.listener(address.as_deref(), port) else {
            return answer;
        };
        answer.listener = name;
        let ip = address.and_then(|address| address.parse::<IpAddr>().ok());
        let Some(chain) = matching::filter_chain(&listener, ip, sni, is_http) else {
            return answer;
        };
        match (terminal(chain), traffic) {
            (Some(Terminal::Routes(routes, manager)), TrafficQuery::Http(request)) => {
                answer.route_configuration = Some(routes.clone());
                match request.received(&manager) {
                    Ok(request) => self.http(&routes, &request, &mut answer),
                    Err((status, why)) => {
                        answer.outcome = Outcome::Respond { status, body: why.to_owned() }
                    }
                }
            }
            (Some(Terminal::Tcp(proxy)), _) => {
                answer.considered.extend(self.chain_source(&answer.listener, chain));
                answer.outcome = self.tcp(&proxy);
            }
            (Some(Terminal::Routes(routes, _)), TrafficQuery::Tcp { .. }) => {
                answer.route_configuration = Some(routes);
                answer.outcome =
                    Outcome::Respond { status: 400, body: "the port accepts only HTTP".to_owned() };
            }
            (None, _) => {}
        }
        answer
    }

    /// The VirtualService that defines a filter chain, if any.
    fn chain_source(
        &self,
        listener: &str,
        chain: &listener::FilterChain,
    ) -> Option<ConsideredRoute> {
        let all =
            listener_plan::listeners(self.view).into_iter().find(|plan| plan.name() == listener)?;
        let planned_chain =
            all.chains.iter().find(|planned| translate_listener::chain(planned) == *chain)?;
        let (object, field) = planned_chain.defined_by.clone()?;
        Some(ConsideredRoute {
            object: Some(object.to_string()),
            field,
            name: String::new(),
            index: None,
            not: None,
        })
    }

    /// The address that the client connects to: the host itself if it is an address, else the first address of the
    /// service.
    fn address(&self, host: &str) -> Option<String> {
        let plain = host.trim_start_matches('[').trim_end_matches(']');
        if plain.parse::<IpAddr>().is_ok() {
            return Some(plain.to_owned());
        }
        let host = host.trim_end_matches('.');
        if let Some(seen) = self.named(host) {
            let service = match &seen.known.service.alias_of {
                Some(target) => self.view.service(target)?.known.service.clone(),
                None => seen.known.service.clone(),
            };
            let families = self.view.scope.families;
            let own = service
                .addresses
                .iter()
                .find(|address| !address.contains('/') && families.reach(address));
            let mut of_pods =
                seen.known.endpoints.list.iter().flat_map(|endpoint| endpoint.addresses());
            return own
                .or_else(|| of_pods.find(|address| families.reach(address)))
                .map(ToString::to_string);
        }
        // A pod of a headless service has a DNS name below the service's.
        let (pod, service) = host.split_once('.')?;
        let known = self.named(service).map(|seen| seen.known)?;
        let headless = known.service.resolution == Resolution::Passthrough
            && known.service.registry == Registry::Kubernetes;
        let pods =
            known.endpoints.list.iter().filter(|endpoint| headless && *endpoint.hostname == *pod);
        let families = self.view.scope.families;
        let mut addresses = pods.flat_map(|endpoint| endpoint.addresses());
        addresses.find(|address| families.reach(address)).map(ToString::to_string)
    }

    /// The service that a name refers to after applying DNS search paths.
    fn named(&self, name: &str) -> Option<VisibleService<'_>> {
        let config = &self.view.mesh.config;
        let full = resolve(name, &self.view.scope.namespace, &config.domain);
        let longer = [format!("{full}.svc.{}", config.domain), format!("{full}.{}", config.domain)];
        let known = std::iter::once(&*full).chain(longer.iter().map(String::as_str));
        known.into_iter().find_map(|name| self.view.service(name))
    }

    fn listener(&self, address: Option<&str>, port: u16) -> Option<(String, listener::Listener)> {
        let any = crate::translate::listener_plan::any_address(self.view.scope.families);
        let mut names: Vec<String> = Vec::new();
        if self.view.scope.interception == Interception::None {
            names.push(format!("127.0.0.1_{port}"));
            names.push(format!("::1_{port}"));
        } else {
            names.extend(address.map(|address| format!("{address}_{port}")));
            names.push(format!("{any}_{port}"));
            names.push("virtualOutbound".to_owned());
        }
        let all = self.snapshot.get(ResourceType::Listener);
        names.into_iter().find_map(|name| {
            let bytes = all.get(name.as_str())?.bytes();
            Some((name, listener::Listener::decode(bytes.as_slice()).ok()?))
        })
    }

    fn configuration(&mut self, routes: &str) -> Option<Arc<route::RouteConfiguration>> {
        if let Some(known) = self.decoded.get(routes) {
            return known.clone();
        }
        let resource = self.snapshot.get(ResourceType::Route).get(routes);
        let decoded = resource.and_then(|resource| {
            route::RouteConfiguration::decode(resource.bytes().as_slice()).ok().map(Arc::new)
        });
        self.decoded.insert(routes.to_owned(), decoded.clone());
        decoded
    }

    fn http(&mut self, routes: &str, request: &Request, answer: &mut Explanation) {
        answer.outcome = Outcome::NoRoute;
        let Some(configuration) = self.configuration(routes) else {
            return;
        };
        let Some((host, domain)) = matching::virtual_host(&configuration, &request.authority)
        else {
            return;
        };
        answer.virtual_host = Some(host.name.clone());
        answer.domain = Some(domain.to_owned());
        let rules = self.rules_in_force(host);
        let sources = self.route_sources(&host.name, routes, rules);
        for (index, entry) in host.routes.iter().enumerate() {
            let source = sources.get(index);
            let mismatch = entry
                .r#match
                .as_ref()
                .map_or(Ok(()), |matches| matching::route(matches, request))
                .err();
            let taken = mismatch.is_none();
            answer.considered.push(ConsideredRoute {
                object: source.and_then(|source| source.object.clone()),
                field: source.map(|source| source.field.clone()).unwrap_or_default(),
                name: entry.name.clone(),
                index: Some(index),
                not: mismatch,
            });
            if taken {
                answer.outcome = self.outcome(entry, request);
                break;
            }
        }
        self.add_left_out(&host.name, request.port, rules.map(|rules| &rules.key), answer);
    }

    /// The VirtualService whose routes a virtual host has. If several have routes for a host at a port, it is not
    /// always the first: at a port that the host's own service does not have, the other hosts that each names matter
    /// too.
    fn rules_in_force(&self, virtual_host: &route::VirtualHost) -> Option<&VirtualService> {
        let (host, port) = hosts::host_and_port(&virtual_host.name)?;
        let all = self.view.rules_at(port).http(host);
        let mut all = all
            .map(Arc::as_ref)
            .filter(|rules| has_routes(rules, self.view.scope, port))
            .peekable();
        let first = all.peek().copied();
        let context = Context {
            config: &self.view.mesh.config,
            scope: self.view.scope,
            port,
            service: &|name: &str| self.known(name),
        };
        let same = all.find(|rules| {
            let own = crate::translate::route::of_virtual_service(rules, &context);
            own.iter().map(|route| &route.route).eq(&virtual_host.routes)
        });
        same.or(first)
    }

    fn known(&self, name: &str) -> Option<ResolvedDestination> {
        let known = self.view.service(name)?.known;
        Some((known.service.clone(), self.view.destination_rule(known).cloned()))
    }

    /// The origin of each route of a virtual host, in order.
    fn route_sources(
        &self,
        virtual_host: &str,
        routes: &str,
        rules: Option<&VirtualService>,
    ) -> Vec<RouteSource> {
        let Some((host, port)) = hosts::host_and_port(virtual_host) else {
            return Vec::new();
        };
        let context = Context {
            config: &self.view.mesh.config,
            scope: self.view.scope,
            port,
            service: &|name: &str| self.known(name),
        };
        let routes: Vec<RouteWithSource<'_>> = match (self.view.service(host), rules) {
            (Some(seen), _)
                if seen
                    .ports()
                    .any(|known| known.number == port && carries_http(known.protocol, routes)) =>
            {
                let service = &seen.known.service;
                match service.port(port) {
                    Some(port) => hosts::routes_with_source(service, port, rules, &context),
                    None => Vec::new(),
                }
            }
            (_, Some(rules)) => crate::translate::route::of_virtual_service(rules, &context),
            (_, None) => Vec::new(),
        };
        routes.iter().map(RouteSource::new).collect()
    }

    /// Adds the routes that this proxy does not get, with the reasons.
    fn add_left_out(
        &self,
        virtual_host: &str,
        port: u16,
        counting: Option<&ObjectKey>,
        answer: &mut Explanation,
    ) {
        let Some((host, _)) = hosts::host_and_port(virtual_host) else {
            return;
        };
        answer.overruled = self.overruled(host, port, counting);
        let (mut all, mut lost) = (Vec::new(), Vec::new());
        for rules in self.view.rules_at(port).http(host) {
            let counts = counting == Some(&rules.key);
            if counts || !has_routes(rules, self.view.scope, port) {
                all.extend(rules.http());
                lost.extend(rules.dropped().iter().map(|route| (&rules.key, route)));
            }
            if counts {
                break;
            }
        }
        self.add_inapplicable(&all, port, answer);
        let lost = lost.into_iter().map(|(key, lost)| ConsideredRoute {
            object: Some(key.to_string()),
            field: format!("spec.http[{}].delegate", lost.index),
            name: String::new(),
            index: None,
            not: Some(lost.reason.clone()),
        });
        answer.considered.splice(0..0, lost);
    }

    /// The VirtualServices that have routes for a host at a port, but less precedence than the one that is used.
    fn overruled(&self, host: &str, port: u16, counting: Option<&ObjectKey>) -> Vec<String> {
        let mut overruled = Vec::new();
        // Those with more precedence have no routes here.
        let after =
            self.view.rules_at(port).all(host).skip_while(|rules| counting != Some(&rules.key));
        for rules in after {
            let name = rules.key.to_string();
            if counting != Some(&rules.key)
                && has_routes(rules, self.view.scope, port)
                && !overruled.contains(&name)
            {
                overruled.push(name);
            }
        }
        overruled
    }

    /// Inserts the matches that do not apply to this proxy among the routes that were considered, up to the one that
    /// was taken.
    fn add_inapplicable(&self, rules: &[HttpRule<'_>], port: u16, answer: &mut Explanation) {
        let mut at = 0;
        for rule in rules {
            for (n, request_match) in rule.route.matches.iter().enumerate() {
                let field = format!("spec.http[{}].match[{n}]", rule.index);
                let object = Some(rule.key.to_string());
                if let Some(found) = answer
                    .considered
                    .iter()
                    .position(|seen| seen.object == object && seen.field == field)
                {
                    at = found + 1;
                    continue;
                }
                if let Some(reason) = route_match::why_not(request_match, self.view.scope, port) {
                    // Only routes before the matching one are relevant.
                    let took = answer
                        .considered
                        .get(at.wrapping_sub(1))
                        .is_some_and(|seen| seen.not.is_none());
                    if took {
                        return;
                    }
                    let name = rule.route.name.clone();
                    let omitted =
                        ConsideredRoute { object, field, name, index: None, not: Some(reason) };
                    answer.considered.insert(at.min(answer.considered.len()), omitted);
                    at += 1;
                }
            }
            if rule.route.matches.is_empty() {
                at = answer.considered.len().min(at + 1);
            }
        }
    }

    fn outcome(&self, entry: &route::Route, request: &Request) -> Outcome {
        match &entry.action {
            Some(route::route::Action::Redirect(redirect)) => redirected(redirect, entry, request),
            Some(route::route::Action::DirectResponse(response)) => Outcome::Respond {
                status: response.status,
                body: match response.body.as_ref().and_then(|body| body.specifier.as_ref()) {
                    Some(core::data_source::Specifier::InlineString(text)) => text.clone(),
                    Some(core::data_source::Specifier::InlineBytes(bytes)) => {
                        format!("{} bytes", bytes.len())
                    }
                    _ => String::new(),
                },
            },
            Some(route::route::Action::Route(action)) => self.forward(action, entry),
            _ => Outcome::NoRoute,
        }
    }

    fn forward(&self, action: &route::RouteAction, entry: &route::Route) -> Outcome {
        use route::route_action::ClusterSpecifier;
        let destinations = match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => vec![self.destination(name, 100.0)],
            Some(ClusterSpecifier::WeightedClusters(list)) => {
                let weights = list
                    .clusters
                    .iter()
                    .map(|cluster| cluster.weight.map_or(0, |weight| weight.value));
                // A destination of weight 0 gets no request.
                let shares = list.clusters.iter().zip(shares(weights));
                let destinations = shares.filter(|(_, share)| *share > 0.0);
                destinations
                    .map(|(weighted, share)| {
                        let mut to = self.destination(&weighted.name, share * 100.0);
                        to.policies.extend(destination_policies(weighted));
                        to
                    })
                    .collect()
            }
            _ => Vec::new(),
        };
        let copies = action.request_mirror_policies.iter().map(|copy| {
            let share =
                copy.runtime_fraction.as_ref().and_then(|share| share.default_value.as_ref());
            self.destination(&copy.cluster, share.map_or(100.0, percent))
        });
        Outcome::Forward {
            destinations,
            copies: copies.collect(),
            policies: route_policies(action, entry),
        }
    }

    fn tcp(&self, proxy: &tcp::TcpProxy) -> Outcome {
        use tcp::tcp_proxy::ClusterSpecifier;
        let destinations = match &proxy.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => vec![self.destination(name, 100.0)],
            Some(ClusterSpecifier::WeightedClusters(list)) => {
                let shares = shares(list.clusters.iter().map(|cluster| cluster.weight));
                list.clusters
                    .iter()
                    .zip(shares)
                    .map(|(cluster, share)| self.destination(&cluster.name, share * 100.0))
                    .collect()
            }
            None => Vec::new(),
        };
        let mut policies = Vec::new();
        policies.extend(proxy.idle_timeout.as_ref().map(|time| ("idle timeout", seconds(time))));
        policies.extend(proxy.tunneling_config.as_ref().map(|to| ("tunnel", to.hostname.clone())));
        Outcome::Forward { destinations, copies: Vec::new(), policies }
    }

    fn destination(&self, name: &str, percent: f64) -> Destination {
        let resource = self.snapshot.get(ResourceType::Cluster).get(name);
        let decoded = resource
            .and_then(|resource| cluster::Cluster::decode(resource.bytes().as_slice()).ok());
        let Some(cluster) = decoded else {
            let cluster = name.to_owned();
            return Destination {
                cluster,
                percent,
                missing: true,
                refused: false,
                policies: Vec::new(),
                endpoints: Vec::new(),
            };
        };
        let assignment = cluster.load_assignment.clone().or_else(|| {
            let resource = self.snapshot.get(ResourceType::Endpoints).get(name)?;
            endpoint::ClusterLoadAssignment::decode(resource.bytes().as_slice()).ok()
        });
        let mut endpoints: Vec<_> = assignment.iter().flat_map(endpoints).collect();
        endpoints.sort_by_key(|endpoint| endpoint.priority);
        let mut policies = cluster_policies(&cluster);
        let encryption = encryption::describe(self.view, &cluster, &endpoints, self.servers);
        policies.extend(encryption.said);
        let (cluster, refused) = (name.to_owned(), encryption.refused);
        Destination { cluster, percent, missing: false, refused, policies, endpoints }
    }
}

struct RouteSource {
    object: Option<String>,
    field: String,
}

impl RouteSource {
    fn new(routed: &RouteWithSource<'_>) -> Self {
        let Some(rule) = &routed.rule else {
            return Self { object: None, field: String::new() };
        };
        let field = match routed.matched {
            Some(matched) => format!("spec.http[{}].match[{matched}]", rule.index),
            None => format!("spec.http[{}]", rule.index),
        };
        Self { object: Some(rule.key.to_string()), field }
    }
}

/// Whether a port of this protocol has a virtual host in the route configuration of this name.
fn carries_http(protocol: Protocol, routes: &str) -> bool {
    let by_port = routes.bytes().all(|b| b.is_ascii_digit());
    if by_port { protocol.may_be_http() } else { protocol == Protocol::Unknown }
}

enum Terminal {
    /// HTTP: the name of the route configuration, and the connection manager.
    Routes(String, Box<hcm::HttpConnectionManager>),
    Tcp(Box<tcp::TcpProxy>),
}

fn terminal(chain: &listener::FilterChain) -> Option<Terminal> {
    let Some(listener::filter::ConfigType::TypedConfig(config)) =
        &chain.filters.last()?.config_type
    else {
        return None;
    };
    if config.type_url.ends_with(".TcpProxy") {
        return Some(Terminal::Tcp(Box::new(tcp::TcpProxy::decode(config.value.as_slice()).ok()?)));
    }
    let manager = hcm::HttpConnectionManager::decode(config.value.as_slice()).ok()?;
    match &manager.route_specifier {
        Some(hcm::http_connection_manager::RouteSpecifier::Rds(rds)) => {
            Some(Terminal::Routes(rds.route_config_name.clone(), Box::new(manager)))
        }
        _ => None,
    }
}

fn redirected(
    redirect: &route::RedirectAction,
    entry: &route::Route,
    request: &Request,
) -> Outcome {
    use route::redirect_action::{
        PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
    };
    let scheme = match &redirect.scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => scheme.clone(),
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => "https".to_owned(),
        _ => request.scheme.clone(),
    };
    let own = if redirect.host_redirect.is_empty() {
        &request.authority
    } else {
        &redirect.host_redirect
    };
    let authority = match redirect.port_redirect {
        0 => own.clone(),
        port => format!("{}:{port}", own.split(':').next().unwrap_or_default()),
    };
    let query = request.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
    let path = match &redirect.path_rewrite_specifier {
        Some(PathRewriteSpecifier::PathRedirect(path)) if path.contains('?') => path.clone(),
        Some(PathRewriteSpecifier::PathRedirect(path)) => format!("{path}{query}"),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            let matched = match entry
                .r#match
                .as_ref()
                .and_then(|route_match| route_match.path_specifier.as_ref())
            {
                Some(route::route_match::PathSpecifier::Prefix(prefix)) => prefix.len(),
                _ => request.path.len(),
            };
            format!("{prefix}{}{query}", request.path.get(matched..).unwrap_or_default())
        }
        _ => format!("{}{query}", request.path),
    };
    let status = match RedirectResponseCode::try_from(redirect.response_code) {
        Ok(RedirectResponseCode::Found) => 302,
        Ok(RedirectResponseCode::SeeOther) => 303,
        Ok(RedirectResponseCode::TemporaryRedirect) => 307,
        Ok(RedirectResponseCode::PermanentRedirect) => 308,
        _ => 301,
    };
    Outcome::Redirect { status, location: format!("{scheme}://{authority}{path}") }
}

fn endpoints(assignment: &endpoint::ClusterLoadAssignment) -> impl Iterator<Item = Endpoint> {
    assignment.endpoints.iter().flat_map(|group| {
        let locality = group.locality.clone().unwrap_or_default();
        let locality = [locality.region, locality.zone, locality.sub_zone].join("/");
        group.lb_endpoints.iter().filter_map(move |lb_endpoint| {
            let Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(host)) =
                &lb_endpoint.host_identifier
            else {
                return None;
            };
            let others = host
                .additional_addresses
                .iter()
                .filter_map(|additional| additional.address.as_ref());
            Some(Endpoint {
                address: address_text(host.address.as_ref()?)?,
                other_addresses: others.filter_map(address_text).collect(),
                locality: locality.trim_end_matches('/').to_owned(),
                priority: group.priority,
                weight: lb_endpoint.load_balancing_weight.as_ref().map_or(1, |weight| weight.value),
                healthy: lb_endpoint.health_status != core::HealthStatus::Unhealthy as i32,
            })
        })
    })
}

/// An IP address, or the path of a socket (`unix://...`), with the port of the former.
pub(crate) fn socket_text(address: &str, port: u16) -> String {
    if let Some(path) = address.strip_prefix("unix://") {
        return path.to_owned();
    }
    match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    }
}

fn address_text(address: &core::Address) -> Option<String> {
    match address.address.as_ref()? {
        core::address::Address::SocketAddress(socket) => {
            let port = match socket.port_specifier {
                Some(core::socket_address::PortSpecifier::PortValue(port)) => port,
                _ => 0,
            };
            u16::try_from(port).ok().map(|port| socket_text(&socket.address, port))
        }
        core::address::Address::Pipe(pipe) => Some(pipe.path.clone()),
        _ => None,
    }
}
