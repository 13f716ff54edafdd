//! Virtual hosts: which names a service or a VirtualService's host answers to on a port.

#![allow(deprecated)] // `max_grpc_timeout`: Istio sets it, and what replaces it does not mean the same.

use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as pb;

use super::route::{self, Context};
use super::seconds;
use crate::api::ObjectKey;
use crate::mesh::{OutboundPolicy, Port, Registry, Resolution, Service, VirtualService};

/// A virtual host, and the VirtualService that says each of its routes.
#[derive(Clone, Debug)]
pub struct Made {
    /// The virtual host.
    pub host: pb::VirtualHost,
    /// By route; `None` for the one that a service has without any VirtualService.
    pub said_by: Vec<Option<ObjectKey>>,
}

/// The virtual host of a service's HTTP port. `aliases` are the ExternalName services that stand for it. `None` where
/// its VirtualService leaves no route for these proxies.
pub fn of_service(
    service: &Service,
    port: &Port,
    aliases: &[Arc<Service>],
    rules: Option<&VirtualService>,
    context: &Context<'_>,
) -> Option<Made> {
    let mut domains = service_domains(service, context);
    for alias in aliases {
        domains.extend(service_domains(alias, context));
    }
    made(&service.host, port.number, domains, said(service, port, rules, context))
}

/// The only virtual host of a port whose protocol is not known; it answers to every name.
pub fn of_unknown_port(
    service: &Service,
    port: &Port,
    rules: Option<&VirtualService>,
    context: &Context<'_>,
) -> Option<Made> {
    made(&service.host, port.number, vec!["*".to_owned()], said(service, port, rules, context))
}

/// The virtual host of a VirtualService's host that no service has.
pub fn of_host(host: &str, rules: &VirtualService, context: &Context<'_>) -> Option<Made> {
    made(host, context.port, vec![host.to_owned()], route::of_virtual_service(rules, context))
}

/// The last virtual host of a port, for names that nobody knows. `rest` is where what passes goes.
pub fn catch_all(policy: OutboundPolicy, rest: &str) -> pb::VirtualHost {
    let (name, action) = match policy {
        OutboundPolicy::AllowAny => (
            "allow_any",
            pb::route::Action::Route(pb::RouteAction {
                timeout: seconds(0),
                max_grpc_timeout: seconds(0),
                cluster_specifier: Some(pb::route_action::ClusterSpecifier::Cluster(rest.to_owned())),
                ..Default::default()
            }),
        ),
        OutboundPolicy::RegistryOnly => (
            "block_all",
            pb::route::Action::DirectResponse(pb::DirectResponseAction { status: 502, ..Default::default() }),
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

/// The routes of a service's port, each with what says it.
pub fn said<'a>(
    service: &Service,
    port: &Port,
    rules: Option<&'a VirtualService>,
    context: &Context<'_>,
) -> Vec<route::Said<'a>> {
    match rules {
        Some(rules) => route::of_virtual_service(rules, context),
        None => vec![route::default(service, port, context)],
    }
}

/// `None` where there are no routes.
fn made(host: &str, port: u16, domains: Vec<String>, said: Vec<route::Said<'_>>) -> Option<Made> {
    let (routes, said_by): (Vec<_>, Vec<_>) =
        said.into_iter().map(|said| (said.route, said.rule.map(|rule| rule.key.clone()))).unzip();
    let host = pb::VirtualHost {
        name: format!("{host}:{port}"),
        domains,
        routes,
        include_request_attempt_count: true,
        ..Default::default()
    };
    (!host.routes.is_empty()).then_some(Made { host, said_by })
}

/// The names by which clients call a service: the full one, the ones that DNS search paths allow, and its addresses.
fn service_domains(service: &Service, context: &Context<'_>) -> Vec<String> {
    let host = &*service.host;
    let mut names = vec![host.to_owned(), format!("{host}.")];
    let short = host.strip_suffix(&*context.config.domain).and_then(|rest| rest.strip_suffix(".svc."));
    if let Some((name, namespace)) = short.and_then(|short| short.split_once('.')).filter(|(_, ns)| !ns.contains('.')) {
        if *namespace == *context.scope.namespace {
            names.push(name.to_owned());
        }
        names.push(format!("{name}.{namespace}.svc"));
        names.push(format!("{name}.{namespace}"));
    }
    if service.resolution == Resolution::Passthrough && service.registry == Registry::Kubernetes {
        // A headless service's pods have names of their own below it.
        let pods: Vec<_> = names.iter().map(|name| format!("*.{name}")).collect();
        names.extend(pods);
    }
    let plain = service.addresses.iter().filter(|address| !address.contains('/'));
    names.extend(plain.map(|address| if address.contains(':') { format!("[{address}]") } else { address.to_string() }));
    names
}
