//! Locality load balancing: which endpoints the clients of a locality prefer, and with what weight.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config as pb;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::UInt64Value;

use crate::api::{Distribute, Failover, LoadBalancerSettings};
use crate::mesh::{Endpoint, Locality, NETWORK, Scope, Service};

/// The locality setting of a cluster: the rule's, else the Service's preference, else the mesh default, which is
/// failover if there is outlier detection. Source: Istio's documentation of `LocalityLoadBalancerSetting`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Setting<'a> {
    /// Disabled.
    Off,
    /// Weights by client locality.
    Distribute(&'a [Distribute]),
    /// Prefers nearer endpoints while they are healthy.
    Failover {
        /// Failover regions.
        regions: &'a [Failover],
        /// Labels that rank endpoints.
        labels: Vec<&'a str>,
        /// Whether it applies without outlier detection too.
        always: bool,
    },
    /// Prefers the client's zone up to the capacity of its endpoints, within the region.
    ZoneAware {
        /// Whether it is enabled.
        enabled: bool,
        /// Failover regions.
        regions: &'a [Failover],
        /// Labels that rank endpoints.
        labels: Vec<&'a str>,
        /// The minimum number of endpoints.
        min_cluster_size: Option<u64>,
    },
}

impl<'a> Setting<'a> {
    /// The setting of a cluster of `service` with this load balancer.
    pub(crate) fn new(service: &Service, balancer: Option<&'a LoadBalancerSettings>) -> Self {
        if let Some(zone) = balancer.and_then(|balancer| balancer.zone_aware_lb_setting.as_ref()) {
            return Setting::ZoneAware {
                enabled: zone.enabled != Some(false),
                regions: &zone.failover,
                labels: zone.failover_priority.iter().map(String::as_str).collect(),
                min_cluster_size: zone.min_cluster_size,
            };
        }
        if let Some(setting) = balancer.and_then(|balancer| balancer.locality_lb_setting.as_ref()) {
            return if setting.enabled == Some(false) {
                Setting::Off
            } else if setting.distribute.is_empty() {
                let labels = setting.failover_priority.iter().map(String::as_str).collect();
                Setting::Failover { regions: &setting.failover, labels, always: false }
            } else {
                Setting::Distribute(&setting.distribute)
            };
        }
        let labels = service
            .preference
            .into_iter()
            .flat_map(|preference| preference.labels())
            .copied()
            .collect();
        Setting::Failover { regions: &[], labels, always: service.preference.is_some() }
    }
}

/// The locality configuration of a cluster.
pub(crate) fn cluster_config(
    setting: Setting<'_>,
    has_outlier_detection: bool,
) -> Option<pb::LocalityConfigSpecifier> {
    let weighted = match setting {
        Setting::Off => false,
        Setting::Distribute(_) => true,
        // Without failover, the load balancer should choose among all endpoints.
        Setting::Failover { regions, labels, always } => {
            (always || has_outlier_detection) && !(regions.is_empty() && labels.is_empty())
        }
        Setting::ZoneAware { enabled, min_cluster_size, .. } => {
            return Some(pb::LocalityConfigSpecifier::ZoneAwareLbConfig(pb::ZoneAwareLbConfig {
                routing_enabled: (!enabled).then_some(Percent { value: 0.0 }),
                min_cluster_size: min_cluster_size.map(|value| UInt64Value { value }),
                ..Default::default()
            }));
        }
    };
    weighted.then_some(pb::LocalityConfigSpecifier::LocalityWeightedLbConfig(
        pb::LocalityWeightedLbConfig {},
    ))
}

/// The endpoints of one locality and priority.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group<'a> {
    /// Their locality.
    pub locality: &'a Locality,
    /// 0 is the highest; without gaps.
    pub priority: u32,
    /// Their weight among the localities of the same priority.
    pub weight: u32,
    /// The endpoints.
    pub members: Vec<&'a Endpoint>,
}

/// Groups the endpoints of a cluster for clients of `scope`.
pub(crate) fn arrange<'a>(
    members: impl Iterator<Item = &'a Endpoint>,
    setting: Setting<'_>,
    has_outlier_detection: bool,
    scope: &Scope,
) -> Vec<Group<'a>> {
    let mut by_locality: BTreeMap<&Locality, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in members {
        by_locality.entry(endpoint.locality()).or_default().push(endpoint);
    }
    let groups: Vec<Group<'a>> =
        by_locality.into_iter().map(|(locality, members)| group(locality, 0, members)).collect();
    match setting {
        Setting::Off | Setting::ZoneAware { enabled: false, .. } => groups,
        Setting::Distribute(rules) => distribute(groups, rules, &scope.locality),
        Setting::Failover { always, .. } if !always && !has_outlier_detection => groups,
        Setting::Failover { regions, labels, .. } => {
            let by_labels = !labels.is_empty();
            let groups = if by_labels { rank_by_labels(groups, &labels, scope) } else { groups };
            if by_labels && regions.is_empty() {
                groups
            } else {
                rank(groups, |at| distance(&scope.locality, at, regions))
            }
        }
        Setting::ZoneAware { regions, labels, .. } => {
            let groups =
                if labels.is_empty() { groups } else { rank_by_labels(groups, &labels, scope) };
            rank(groups, |at| match () {
                () if at.region == scope.locality.region => 0,
                () if failover_target(&scope.locality.region, regions) == Some(&at.region) => 1,
                () => 2,
            })
        }
    }
}

fn group<'a>(locality: &'a Locality, priority: u32, members: Vec<&'a Endpoint>) -> Group<'a> {
    let weight = members.iter().fold(0u32, |sum, member| sum.saturating_add(member.weight));
    Group { locality, priority, weight, members }
}

/// Assigns each locality its weight; a locality without one gets no traffic.
fn distribute<'a>(
    mut groups: Vec<Group<'a>>,
    rules: &[Distribute],
    client: &Locality,
) -> Vec<Group<'a>> {
    let Some(rule) = rules.iter().find(|rule| is_in(client, &rule.from)) else {
        return groups;
    };
    let mut left: BTreeSet<usize> = (0..groups.len()).collect();
    // Most specific first, so that a wildcard does not take what another entry names.
    let mut shares: Vec<(&String, u32)> = rule.to.iter().map(|(to, share)| (to, *share)).collect();
    shares.sort_by_key(|(to, _)| {
        (std::cmp::Reverse(to.split('/').filter(|part| *part != "*").count()), *to)
    });
    for (to, share) in shares {
        let chosen: Vec<usize> = left
            .iter()
            .copied()
            .filter(|at| groups.get(*at).is_some_and(|group| is_in(group.locality, to)))
            .collect();
        let total: u64 = chosen
            .iter()
            .filter_map(|at| groups.get(*at))
            .map(|group| u64::from(group.weight))
            .sum();
        for at in chosen {
            left.remove(&at);
            if let Some(entry) = groups.get_mut(at) {
                let weight = (u64::from(entry.weight) * u64::from(share)).div_ceil(total.max(1));
                entry.weight = u32::try_from(weight).unwrap_or(u32::MAX);
            }
        }
    }
    let mut at = 0;
    groups.retain(|group| {
        at += 1;
        !left.contains(&(at - 1)) && group.weight > 0
    });
    groups
}

/// Whether a locality matches `region/zone/subzone`, where each part is a name or `*` and missing parts match anything.
fn is_in(locality: &Locality, pattern: &str) -> bool {
    let mut parts = pattern.split('/');
    [&locality.region, &locality.zone, &locality.sub_zone]
        .into_iter()
        .all(|own| parts.next().is_none_or(|part| part == "*" || part == own))
}

fn failover_target<'a>(region: &str, regions: &'a [Failover]) -> Option<&'a String> {
    regions.iter().find(|failover| failover.from == region).map(|region| &region.to)
}

/// 0: same sub-zone, 1: same zone, 2: same region, 3: another region, 4: another region that is not the failover
/// target.
fn distance(client: &Locality, at: &Locality, regions: &[Failover]) -> u32 {
    if client.region != at.region {
        return match failover_target(&client.region, regions) {
            Some(other) if *other != at.region => 4,
            _ => 3,
        };
    }
    if client.zone != at.zone {
        2
    } else if client.sub_zone != at.sub_zone {
        1
    } else {
        0
    }
}

/// Splits existing priorities further by `distance` and closes the gaps.
fn rank<'a>(mut groups: Vec<Group<'a>>, distance: impl Fn(&Locality) -> u32) -> Vec<Group<'a>> {
    for group in &mut groups {
        group.priority = group.priority * 5 + distance(group.locality);
    }
    close_gaps(groups)
}

/// Priorities must be consecutive from 0. Source: Envoy's documentation, "Priority levels".
fn close_gaps(mut groups: Vec<Group<'_>>) -> Vec<Group<'_>> {
    let used: BTreeSet<u32> = groups.iter().map(|group| group.priority).collect();
    let place: BTreeMap<u32, u32> = used.into_iter().zip(0..).collect();
    for group in &mut groups {
        group.priority = place.get(&group.priority).copied().unwrap_or_default();
    }
    groups
}

/// Ranks endpoints by how many of the labels, counted from the first, have the client's values; 0 means all of them.
/// Endpoints in another network come after all others and are ranked by the remaining labels. A group is split if its
/// endpoints have different ranks.
fn rank_by_labels<'a>(groups: Vec<Group<'a>>, labels: &[&str], scope: &Scope) -> Vec<Group<'a>> {
    let mut out = Vec::new();
    for whole in groups {
        let mut by_rank: BTreeMap<u32, Vec<&Endpoint>> = BTreeMap::new();
        for endpoint in whole.members {
            by_rank.entry(label_rank(endpoint, labels, scope)).or_default().push(endpoint);
        }
        out.extend(by_rank.into_iter().map(|(rank, members)| group(whole.locality, rank, members)));
    }
    close_gaps(out)
}

fn label_rank(endpoint: &Endpoint, labels: &[&str], scope: &Scope) -> u32 {
    let lowest = u32::try_from(labels.len()).unwrap_or(u32::MAX);
    let elsewhere = labels.first() == Some(&NETWORK) && !has_label(endpoint, NETWORK, scope);
    let rest = labels.iter().skip(usize::from(elsewhere));
    let equal = rest.take_while(|label| has_label(endpoint, label, scope)).count();
    let rank = lowest - u32::try_from(equal + usize::from(elsewhere)).unwrap_or(lowest);
    if elsewhere { rank + lowest } else { rank }
}

/// Whether an endpoint has the client's value of a label, or the value in `NAME=VALUE`.
fn has_label(endpoint: &Endpoint, label: &str, scope: &Scope) -> bool {
    let (name, wanted) = match label.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (label, scope.labels.get(label).map(String::as_str)),
    };
    wanted.unwrap_or_default() == endpoint.label(name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_localities() {
        let at = Locality::parse("eu/eu-a/1");
        for (pattern, fits) in [
            ("eu/eu-a/1", true),
            ("eu/eu-a/*", true),
            ("eu/*", true),
            ("eu", true),
            ("*", true),
            ("us", false),
        ] {
            assert_eq!(is_in(&at, pattern), fits, "{pattern}");
        }
    }

    #[test]
    fn nearer_localities_have_priority() {
        let client = Locality::parse("eu/a/1");
        let regions = [Failover { from: "eu".into(), to: "us".into() }];
        let distances = ["eu/a/1", "eu/a/2", "eu/b/1", "us/a/1", "as/a/1"]
            .map(|at| distance(&client, &Locality::parse(at), &regions));
        assert_eq!(distances, [0, 1, 2, 3, 4]);
    }
}
