//! A random history of a mesh against a simulated Envoy: whatever is written in whatever order, and however the client
//! dawdles, refuses and comes back, no route of it leads to a cluster that it lacks or that still warms.

use super::*;
use crate::snapshot::ResourceType::Route;
use crate::snapshot::{Part, Refers};
use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3 as route;
use prost::Message;

/// Resources as text: type, name, body. A listener's body may end in `>cluster,cluster`; a route configuration's is
/// a list of virtual hosts `name>cluster,cluster*anything`.
pub(super) type Parts<'a> = &'a [(ResourceType, &'a str, &'a str)];

pub(super) fn snapshot(revision: u64, parts: Parts<'_>) -> Arc<Snapshot> {
    let of = |kind: ResourceType| -> Resources {
        let wanted = parts.iter().filter(|(one, ..)| *one == kind);
        wanted.map(|(_, name, body)| ((*name).into(), resource(kind, name, body))).collect()
    };
    Arc::new(Snapshot::new(revision, ResourceType::ALL.map(of)))
}

fn resource(kind: ResourceType, name: &str, body: &str) -> Arc<Resource> {
    if kind == Route {
        let head = route::RouteConfiguration { name: name.to_owned(), ..Default::default() };
        let hosts = body.split_whitespace().map(host).map(Part::new).collect();
        return Resource::of_hosts(name.into(), head.encode_to_vec().into(), hosts);
    }
    Resource::leading_to(name, vec![Bytes::copy_from_slice(body.as_bytes())], Refers::new(led_to(body)))
}

fn led_to(text: &str) -> impl Iterator<Item = &str> {
    let list = text.split_once('>').map_or("", |(_, list)| list);
    list.split('*').next().unwrap_or_default().split(',')
}

fn host(text: &str) -> route::VirtualHost {
    let to = |cluster: &str| route::Route {
        name: text.to_owned(),
        action: Some(route::route::Action::Route(route::RouteAction {
            cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
            ..Default::default()
        })),
        ..Default::default()
    };
    let name = text.split('>').next().unwrap_or_default().to_owned();
    route::VirtualHost {
        domains: vec![name.clone()],
        name,
        routes: led_to(text).map(to).collect(),
        ..Default::default()
    }
}

/// The text that an encoded resource was made of.
pub(super) fn show(kind: ResourceType, bytes: &[u8]) -> String {
    if kind != Route {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let message = route::RouteConfiguration::decode(bytes).unwrap();
    let hosts: Vec<_> = message.virtual_hosts.into_iter().map(|host| host.routes[0].name.clone()).collect();
    hosts.join(" ")
}
