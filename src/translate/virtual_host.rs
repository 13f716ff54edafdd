//! Virtual hosts: the domains of a service or of a VirtualService host on a port.

#![allow(deprecated)] // `max_grpc_timeout`: Istio sets it, and what replaces it does not mean the same.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as pb;

use super::route::{self, Context};
use super::seconds;
use crate::api::ObjectKey;
use crate::mesh::{
    OutboundPolicy, Port, Registry, Resolution, Service, VirtualService, WeightDelivery,
    name_and_namespace, without_brackets,
};

/// A virtual host and the VirtualService behind each of its routes.
#[derive(Clone, Debug)]
pub(crate) struct TranslatedVirtualHost {
    /// The virtual host.
    pub host: pb::VirtualHost,
    /// By route; `None` for the default route of a service.
    pub defined_by: Vec<Option<ObjectKey>>,
}

/// The virtual host of a service's HTTP port. `aliases` are the ExternalName services that point to it. `None` if its
/// VirtualService has no route for these proxies.
pub(crate) fn of_service(
    service: &Service,
    port: &Port,
    aliases: &[Arc<Service>],
    rules: Option<&VirtualService>,
    context: &Context<'_>,
) -> Option<TranslatedVirtualHost> {
    let mut domains = names(&service.host, context);
    for alias in aliases {
        domains.extend(names(&alias.host, context));
    }
    if service.resolution == Resolution::Passthrough && service.registry == Registry::Kubernetes {
        // The pods of a headless service have DNS names below it.
        let pods: Vec<_> = domains.iter().map(|name| format!("*.{name}")).collect();
        domains.extend(pods);
    }
    let addresses = service.addresses.iter().filter(|address| !address.contains('/'));
    domains.extend(addresses.map(|address| in_brackets(address)));
    assemble(
        &service.host,
        port.number,
        domains,
        routes_with_source(service, port, rules, context),
        context,
    )
}

/// The only virtual host of a service that has a route configuration to itself; it takes every Host.
pub(crate) fn of_any_name(
    service: &Service,
    port: &Port,
    rules: Option<&VirtualService>,
    context: &Context<'_>,
) -> Option<TranslatedVirtualHost> {
    assemble(
        &service.host,
        port.number,
        vec!["*".to_owned()],
        routes_with_source(service, port, rules, context),
        context,
    )
}

/// The virtual host of a VirtualService host that is not a service.
pub(crate) fn of_host(
    host: &str,
    rules: &VirtualService,
    context: &Context<'_>,
) -> Option<TranslatedVirtualHost> {
    let domains = address_names(host).unwrap_or_else(|| vec![host.to_owned()]);
    let routes = route::of_virtual_service(rules, context);
    assemble(host, context.port, domains, routes, context)
}

/// The last virtual host of a port, for unknown hosts. `rest` is the cluster for traffic that is let through.
pub(crate) fn catch_all(policy: OutboundPolicy, default_cluster: &str) -> pb::VirtualHost {
    let (name, action) = match policy {
        OutboundPolicy::AllowAny => (
            "allow_any",
            pb::route::Action::Route(pb::RouteAction {
                timeout: seconds(0),
                max_grpc_timeout: seconds(0),
                cluster_specifier: Some(pb::route_action::ClusterSpecifier::Cluster(
                    default_cluster.to_owned(),
                )),
                ..Default::default()
            }),
        ),
        OutboundPolicy::RegistryOnly => (
            "block_all",
            pb::route::Action::DirectResponse(pb::DirectResponseAction {
                status: 502,
                ..Default::default()
            }),
        ),
    };
    let route = pb::Route {
        name: name.to_owned(),
        r#match: Some(super::route_match::translate(None)),
        action: Some(action),
        ..Default::default()
    };
    pb::VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        include_request_attempt_count: true,
        ..Default::default()
    }
}

/// The routes of a service port, each with its origin.
pub(crate) fn routes_with_source<'a>(
    service: &Service,
    port: &Port,
    rules: Option<&'a VirtualService>,
    context: &Context<'_>,
) -> Vec<route::RouteWithSource<'a>> {
    match rules {
        Some(rules) => route::of_virtual_service(rules, context),
        None => vec![route::default(service, port, context)],
    }
}

/// `None` if there are no routes.
fn assemble(
    host: &str,
    port: u16,
    domains: Vec<String>,
    said: Vec<route::RouteWithSource<'_>>,
    context: &Context<'_>,
) -> Option<TranslatedVirtualHost> {
    let (routes, defined_by): (Vec<_>, Vec<_>) =
        said.into_iter().map(|said| (said.route, said.rule.map(|rule| rule.key.clone()))).unzip();
    let mut host = pb::VirtualHost {
        name: format!("{}:{port}", in_brackets(host)),
        domains,
        routes,
        include_request_attempt_count: true,
        ..Default::default()
    };
    if context.config.weights == WeightDelivery::Runtime {
        set_runtime_key_prefixes(&mut host);
    }
    (!host.routes.is_empty()).then_some(TranslatedVirtualHost { host, defined_by })
}

/// Lets the weights of routes be overridden by runtime values. A route that names a cluster twice cannot be: both would
/// take the value of the same key. A hash of the virtual host completes the prefix, so that it needs no name.
fn set_runtime_key_prefixes(host: &mut pb::VirtualHost) {
    for (at, route) in host.routes.iter_mut().enumerate() {
        let Some(pb::route::Action::Route(action)) = &mut route.action else { continue };
        let Some(pb::route_action::ClusterSpecifier::WeightedClusters(clusters)) =
            &mut action.cluster_specifier
        else {
            continue;
        };
        let names: BTreeSet<&str> =
            clusters.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        if names.len() > 1 && names.len() == clusters.clusters.len() {
            clusters.runtime_key_prefix = format!("weir.{at}");
        }
    }
}

/// The names of a host: the full one, and those that DNS search paths allow.
fn names(host: &str, context: &Context<'_>) -> Vec<String> {
    if let Some(names) = address_names(host) {
        return names;
    }
    let mut names = vec![host.to_owned(), format!("{host}.")];
    if let Some((name, namespace)) = name_and_namespace(host, &context.config.domain) {
        if *namespace == *context.scope.namespace {
            names.push(name.to_owned());
        }
        names.push(format!("{name}.{namespace}.svc"));
        names.push(format!("{name}.{namespace}"));
    }
    names
}

/// The forms in which clients write an address as Host: the object's and the shortest. `None` for a name.
fn address_names(host: &str) -> Option<Vec<String>> {
    let address: IpAddr = host.parse().ok()?;
    let mut names = vec![in_brackets(host), in_brackets(&address.to_string())];
    names.dedup();
    Some(names)
}

/// The host and the port in the name of a virtual host.
pub(crate) fn host_and_port(name: &str) -> Option<(&str, u16)> {
    let (host, port) = name.rsplit_once(':')?;
    Some((without_brackets(host), port.parse().ok()?))
}

/// A host in the form used before a port: an IPv6 address is in brackets.
fn in_brackets(host: &str) -> String {
    if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() }
}
