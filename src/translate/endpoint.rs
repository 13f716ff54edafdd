//! EDS: the endpoints of a service's ports and subsets, by locality.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;

use super::context::{Context, uses_eds};
use super::locality::{self, Setting};
use super::policy::Policy;
use super::{cluster_name, socket_address, tls, u32_value};
use crate::api::Labels;
use crate::mesh::{
    DestinationRule, Endpoint, Families, Health, Locality, Port, Resolution, Scope, Service,
};

/// The endpoint assignments of a port: one for all endpoints and one per subset, for clusters that use EDS.
pub(crate) fn outbound(port: &Port, context: Context<'_>) -> Vec<pb::ClusterLoadAssignment> {
    let subsets =
        context.rule.into_iter().flat_map(|rule| &rule.subsets).map(|subset| subset.name.as_str());
    std::iter::once("")
        .chain(subsets)
        .map(|subset| (subset, Policy::new(context.rule, subset, port.number)))
        .filter(|(_, policy)| uses_eds(&context.known.service, policy))
        .map(|(subset, policy)| assignment(port, subset, &policy, context))
        .collect()
}

/// The attributes of clients that affect their endpoints of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    locality: Locality,
    labels: BTreeMap<String, String>,
    node: Arc<str>,
}

impl Place {
    /// That of the clients of `scope`.
    pub(crate) fn new(service: &Service, rule: Option<&DestinationRule>, scope: &Scope) -> Self {
        let mut place = Self::default();
        if service.preference.is_some() || rule.is_some_and(DestinationRule::looks_at_locality) {
            place.locality.clone_from(&scope.locality);
            place.labels.clone_from(&scope.labels);
        }
        if service.node_local {
            place.node.clone_from(&scope.node);
        }
        place
    }
}

/// The endpoints of one subset (empty for all) of a port.
pub(crate) fn assignment(
    port: &Port,
    subset: &str,
    policy: &Policy<'_>,
    context: Context<'_>,
) -> pb::ClusterLoadAssignment {
    let everything = Labels::new();
    let labels = context.rule.and_then(|rule| rule.labels(subset)).unwrap_or(&everything);
    let (service, scope) = (&context.known.service, context.scope);
    let members = context.known.endpoints.list.iter().filter(|endpoint| {
        endpoint.port_name == port.name
            && endpoint.is_in_subset(labels)
            && (!service.node_local || endpoint.topology.node == scope.node)
            && fits(&endpoint.address, service.resolution)
            && endpoint.addresses().any(|address| scope.families.reach(address))
    });
    let setting = Setting::new(service, policy.load_balancer);
    let groups = locality::arrange(members, setting, policy.outlier_detection.is_some(), scope);
    pb::ClusterLoadAssignment {
        cluster_name: cluster_name(port.number, subset, &service.host),
        endpoints: groups
            .into_iter()
            .map(|group| pb::LocalityLbEndpoints {
                locality: Some(core::Locality {
                    region: group.locality.region.clone(),
                    zone: group.locality.zone.clone(),
                    sub_zone: group.locality.sub_zone.clone(),
                }),
                priority: group.priority,
                load_balancing_weight: u32_value(group.weight),
                lb_endpoints: group
                    .members
                    .into_iter()
                    .filter_map(|member| lb_endpoint(member, scope.families))
                    .collect(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

/// Whether a cluster accepts an address: DNS resolves names but not paths, and names in EDS are never resolved.
fn fits(address: &str, resolution: Resolution) -> bool {
    let by_dns = matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    let is_path = address.starts_with("unix://");
    !address.is_empty()
        && if by_dns { !is_path } else { is_path || address.parse::<IpAddr>().is_ok() }
}

/// An endpoint by the addresses that clients of these families can reach. Envoy tries the first one, and a moment later
/// the other as well; the two remain one endpoint.
fn lb_endpoint(endpoint: &Endpoint, families: Families) -> Option<pb::LbEndpoint> {
    let mut addresses = endpoint.addresses().filter(|address| families.reach(address));
    let address = addresses.next()?;
    let address = match address.strip_prefix("unix://") {
        Some(path) => core::Address {
            address: Some(core::address::Address::Pipe(core::Pipe {
                path: path.to_owned(),
                mode: 0,
            })),
        },
        None => socket_address(address, endpoint.port),
    };
    let additional = addresses.map(|address| pb::endpoint::AdditionalAddress {
        address: Some(socket_address(address, endpoint.port)),
    });
    Some(pb::LbEndpoint {
        health_status: match endpoint.health {
            Health::Healthy => core::HealthStatus::Healthy,
            Health::Unhealthy => core::HealthStatus::Unhealthy,
        } as i32,
        load_balancing_weight: u32_value(endpoint.weight),
        metadata: endpoint.takes_mutual_tls.then(tls::endpoint_metadata),
        host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(pb::Endpoint {
            address: Some(address),
            additional_addresses: additional.collect(),
            ..Default::default()
        })),
    })
}
