//! EDS: the endpoints of a service's ports and subsets, by locality.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;

use super::{cluster_name, socket_address, u32_value};
use crate::api::{Labels, selects};
use crate::mesh::{DestinationRule, Endpoint, EndpointSet, Health, Locality, Port, Resolution, Service};

/// The assignments of one port: one for all endpoints, and one for each subset of `rule`. None for a service whose
/// clusters do not ask EDS.
pub fn outbound(
    service: &Service,
    port: &Port,
    endpoints: &EndpointSet,
    rule: Option<&DestinationRule>,
) -> Vec<pb::ClusterLoadAssignment> {
    if service.resolution != Resolution::Endpoints {
        return Vec::new();
    }
    let everything = Labels::new();
    let subsets = rule.into_iter().flat_map(|rule| &rule.subsets).map(|subset| (subset.name.as_str(), &subset.labels));
    std::iter::once(("", &everything))
        .chain(subsets)
        .map(|(subset, labels)| {
            let members = endpoints
                .list
                .iter()
                .filter(|endpoint| endpoint.port_name == port.name && selects(labels, &endpoint.labels));
            assignment(cluster_name(port.number, subset, &service.host), members)
        })
        .collect()
}

fn assignment<'a>(cluster_name: String, members: impl Iterator<Item = &'a Endpoint>) -> pb::ClusterLoadAssignment {
    let mut by_locality: BTreeMap<&Locality, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in members {
        by_locality.entry(&endpoint.locality).or_default().push(endpoint);
    }
    let endpoints = by_locality.into_iter().map(|(locality, members)| pb::LocalityLbEndpoints {
        locality: Some(core::Locality {
            region: locality.region.clone(),
            zone: locality.zone.clone(),
            sub_zone: locality.sub_zone.clone(),
        }),
        load_balancing_weight: u32_value(members.iter().fold(0u32, |sum, one| sum.saturating_add(one.weight))),
        lb_endpoints: members.into_iter().map(lb_endpoint).collect(),
        ..Default::default()
    });
    pb::ClusterLoadAssignment { cluster_name, endpoints: endpoints.collect(), ..Default::default() }
}

fn lb_endpoint(endpoint: &Endpoint) -> pb::LbEndpoint {
    pb::LbEndpoint {
        health_status: match endpoint.health {
            Health::Healthy => core::HealthStatus::Healthy,
            Health::Unhealthy => core::HealthStatus::Unhealthy,
        } as i32,
        load_balancing_weight: u32_value(endpoint.weight),
        host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(pb::Endpoint {
            address: Some(socket_address(&endpoint.address, endpoint.port)),
            ..Default::default()
        })),
        ..Default::default()
    }
}
