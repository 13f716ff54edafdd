//! Load balancing by locality: which endpoints are preferred by clients of one place, and by how much.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config as pb;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::UInt64Value;

use crate::api::{Distribute, Failover, LoadBalancerSettings};
use crate::mesh::{Endpoint, Locality, NETWORK, Scope, Service};

/// The setting that counts for a cluster: the rule's, else what the Service prefers, else the mesh's, which is failover
/// where there is outlier detection. Source: Istio's documentation of `LocalityLoadBalancerSetting`.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting<'a> {
    /// None at all: it was switched off.
    Off,
    /// Shares by where the client is.
    Distribute(&'a [Distribute]),
    /// Nearer endpoints first, as long as they are healthy.
    Failover {
        /// Regions that stand in for others.
        regions: &'a [Failover],
        /// Labels that rank endpoints.
        labels: Vec<&'a str>,
        /// Whether it holds without outlier detection too.
        always: bool,
    },
    /// The client's zone first, as far as its endpoints can take it, within its region.
    ZoneAware {
        /// Whether it is on.
        enabled: bool,
        /// Regions that stand in for others.
        regions: &'a [Failover],
        /// Labels that rank endpoints.
        labels: Vec<&'a str>,
        /// The number of endpoints below which it does not apply.
        min_cluster_size: Option<u64>,
    },
}

impl<'a> Setting<'a> {
    /// The setting for a cluster of `service` with this load balancer.
    pub fn new(service: &Service, balancer: Option<&'a LoadBalancerSettings>) -> Self {
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
        let labels = service.preference.into_iter().flat_map(|preference| preference.labels()).copied().collect();
        Setting::Failover { regions: &[], labels, always: service.preference.is_some() }
    }
}

/// What a cluster says about localities.
pub fn cluster_config(setting: Setting<'_>, has_outlier_detection: bool) -> Option<pb::LocalityConfigSpecifier> {
    let weighted = match setting {
        Setting::Off => false,
        Setting::Distribute(_) => true,
        // Without failover of its own a cluster is better off with its load balancer's choice among all endpoints.
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
    weighted.then_some(pb::LocalityConfigSpecifier::LocalityWeightedLbConfig(pb::LocalityWeightedLbConfig {}))
}

/// The endpoints of one locality and priority.
#[derive(Clone, Debug, PartialEq)]
pub struct Group<'a> {
    /// Where they are.
    pub locality: &'a Locality,
    /// 0 is the first; without gaps.
    pub priority: u32,
    /// Their share among the localities of their priority.
    pub weight: u32,
    /// The endpoints.
    pub members: Vec<&'a Endpoint>,
}

/// Groups the endpoints of a cluster for clients of `scope`.
pub fn arrange<'a>(
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
            let groups = if labels.is_empty() { groups } else { rank_by_labels(groups, &labels, scope) };
            rank(groups, |at| match () {
                () if at.region == scope.locality.region => 0,
                () if stands_in(&scope.locality.region, regions) == Some(&at.region) => 1,
                () => 2,
            })
        }
    }
}

fn group<'a>(locality: &'a Locality, priority: u32, members: Vec<&'a Endpoint>) -> Group<'a> {
    let weight = members.iter().fold(0u32, |sum, one| sum.saturating_add(one.weight));
    Group { locality, priority, weight, members }
}

/// Gives each locality its share; those without one get no traffic.
fn distribute<'a>(mut groups: Vec<Group<'a>>, rules: &[Distribute], client: &Locality) -> Vec<Group<'a>> {
    let Some(rule) = rules.iter().find(|rule| is_in(client, &rule.from)) else { return groups };
    let mut left: BTreeSet<usize> = (0..groups.len()).collect();
    // The most specific first, so that a wildcard does not take what another entry names.
    let mut shares: Vec<(&String, u32)> = rule.to.iter().map(|(to, share)| (to, *share)).collect();
    shares.sort_by_key(|(to, _)| (std::cmp::Reverse(to.split('/').filter(|part| *part != "*").count()), *to));
    for (to, share) in shares {
        let chosen: Vec<usize> =
            left.iter().copied().filter(|at| groups.get(*at).is_some_and(|one| is_in(one.locality, to))).collect();
        let total: u64 = chosen.iter().filter_map(|at| groups.get(*at)).map(|one| u64::from(one.weight)).sum();
        for at in chosen {
            left.remove(&at);
            if let Some(one) = groups.get_mut(at) {
                let weight = (u64::from(one.weight) * u64::from(share)).div_ceil(total.max(1));
                one.weight = u32::try_from(weight).unwrap_or(u32::MAX);
            }
        }
    }
    let mut at = 0;
    groups.retain(|one| {
        at += 1;
        !left.contains(&(at - 1)) && one.weight > 0
    });
    groups
}

/// Whether a locality is in `pattern`: `region/zone/subzone`, each part a name or `*`, missing parts any.
fn is_in(locality: &Locality, pattern: &str) -> bool {
    let mut parts = pattern.split('/');
    [&locality.region, &locality.zone, &locality.sub_zone]
        .into_iter()
        .all(|own| parts.next().is_none_or(|part| part == "*" || part == own))
}

fn stands_in<'a>(region: &str, regions: &'a [Failover]) -> Option<&'a String> {
    regions.iter().find(|one| one.from == region).map(|one| &one.to)
}

/// 0 the same sub-zone, 1 the same zone, 2 the same region, 3 another, 4 another that is not the one to stand in.
fn distance(client: &Locality, at: &Locality, regions: &[Failover]) -> u32 {
    if client.region != at.region {
        return match stands_in(&client.region, regions) {
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

/// Ranks groups by `distance` below the priorities they have, and closes the gaps.
fn rank<'a>(mut groups: Vec<Group<'a>>, distance: impl Fn(&Locality) -> u32) -> Vec<Group<'a>> {
    for one in &mut groups {
        one.priority = one.priority * 5 + distance(one.locality);
    }
    close_gaps(groups)
}

/// Priorities must go up by one from 0. Source: Envoy's documentation, "Priority levels".
fn close_gaps(mut groups: Vec<Group<'_>>) -> Vec<Group<'_>> {
    let used: BTreeSet<u32> = groups.iter().map(|one| one.priority).collect();
    let place: BTreeMap<u32, u32> = used.into_iter().zip(0..).collect();
    for one in &mut groups {
        one.priority = place.get(&one.priority).copied().unwrap_or_default();
    }
    groups
}

/// Ranks endpoints by how many of the labels, from the first on, are the client's: all of them is 0. Those in another
/// network come after all others, and are ranked by the labels that follow. A group falls apart where its endpoints have
/// different ranks.
fn rank_by_labels<'a>(groups: Vec<Group<'a>>, labels: &[&str], scope: &Scope) -> Vec<Group<'a>> {
    let lowest = u32::try_from(labels.len()).unwrap_or(u32::MAX);
    let is_equal = |label: &str, endpoint: &Endpoint| {
        let (name, wanted) = match label.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (label, scope.labels.get(label).map(String::as_str)),
        };
        wanted.unwrap_or_default() == endpoint.label(name).unwrap_or_default()
    };
    let rank = |endpoint: &Endpoint| {
        let elsewhere = labels.first() == Some(&NETWORK) && !is_equal(NETWORK, endpoint);
        let rest = labels.iter().skip(usize::from(elsewhere));
        let equal = rest.take_while(|label| is_equal(label, endpoint)).count() + usize::from(elsewhere);
        let rank = lowest - u32::try_from(equal).unwrap_or(lowest);
        if elsewhere { rank + lowest } else { rank }
    };
    let mut out = Vec::new();
    for whole in groups {
        let mut by_rank: BTreeMap<u32, Vec<&Endpoint>> = BTreeMap::new();
        for endpoint in whole.members {
            by_rank.entry(rank(endpoint)).or_default().push(endpoint);
        }
        out.extend(by_rank.into_iter().map(|(rank, members)| group(whole.locality, rank, members)));
    }
    close_gaps(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_localities() {
        let at = Locality::parse("eu/eu-a/1");
        for (pattern, fits) in
            [("eu/eu-a/1", true), ("eu/eu-a/*", true), ("eu/*", true), ("eu", true), ("*", true), ("us", false)]
        {
            assert_eq!(is_in(&at, pattern), fits, "{pattern}");
        }
    }

    #[test]
    fn nearer_is_first() {
        let client = Locality::parse("eu/a/1");
        let regions = [Failover { from: "eu".into(), to: "us".into() }];
        let of = |at: &str| distance(&client, &Locality::parse(at), &regions);
        assert_eq!(["eu/a/1", "eu/a/2", "eu/b/1", "us/a/1", "as/a/1"].map(of), [0, 1, 2, 3, 4]);
    }
}
