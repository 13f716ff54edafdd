//! The weights of a virtual host as runtime values.
//!
//! A weighted route with a runtime key prefix takes the weight of a cluster from the runtime key `PREFIX.CLUSTER` if it
//! exists. The prefix ends in a hash of everything in the virtual host except its weights. So the keys of one virtual
//! host never apply to another version of it that differs in anything else, regardless of the order in which routes and
//! runtime values arrive.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::google::protobuf::UInt32Value;

/// The weights of the routes of a virtual host that have a runtime key prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeWeights {
    /// Identifies everything in the virtual host except these weights.
    shape: u64,
    /// Runtime keys and weights, in the order of the routes.
    values: Arc<[(Arc<str>, u32)]>,
    /// The clusters of the values.
    clusters: Arc<[Arc<str>]>,
    /// The sum of the weights of each route.
    sums: Arc<[u64]>,
}

impl RuntimeWeights {
    /// Completes the prefixes of `host` with the hash of everything except the weights, and returns the weights; `None`
    /// if no route has a prefix. `hash` must return the same for the same virtual host in every process.
    pub(super) fn complete(
        host: &mut route::VirtualHost,
        hash: impl FnOnce(route::VirtualHost) -> u64,
    ) -> Option<Self> {
        weighted(host).next()?;
        let mut shape = host.clone();
        for clusters in weighted(&mut shape) {
            for cluster in &mut clusters.clusters {
                cluster.weight = None;
            }
        }
        let shape = hash(shape);
        let (mut values, mut names, mut sums) = (Vec::new(), Vec::new(), Vec::new());
        for clusters in weighted(host) {
            clusters.runtime_key_prefix = format!("{}.{shape:016x}", clusters.runtime_key_prefix);
            let weights = clusters.clusters.iter().map(|cluster| {
                let key = format!("{}.{}", clusters.runtime_key_prefix, cluster.name).into();
                (key, cluster.weight.map_or(0, |UInt32Value { value }| value))
            });
            let start = values.len();
            values.extend(weights);
            names.extend(clusters.clusters.iter().map(|cluster| Arc::from(cluster.name.as_str())));
            sums.push(values.iter().skip(start).map(|(_, weight)| u64::from(*weight)).sum());
        }
        Some(Self { shape, values: values.into(), clusters: names.into(), sums: sums.into() })
    }

    /// Whether the virtual host of `old` becomes that of `self` by setting runtime values. The sums must be equal,
    /// because with another sum a hash policy would move users between clusters that keep their weight. Envoy answers
    /// 404 if a sum is 0 or does not fit in 32 bits.
    pub(crate) fn can_replace(&self, old: &Self) -> bool {
        self.shape == old.shape
            && self.sums == old.sums
            && self.sums.iter().all(|sum| (1..=u64::from(u32::MAX)).contains(sum))
    }

    /// Identifies the virtual hosts that have these keys: a hash of everything in them except the weights.
    pub(crate) fn shape(&self) -> u64 {
        self.shape
    }

    /// Whether both are of virtual hosts that differ in nothing but weights, so that they have the same keys.
    pub(crate) fn same_keys(&self, other: &Self) -> bool {
        self.shape == other.shape
    }

    /// The clusters that get requests by `old`, of the same virtual host, and none by `self`.
    pub(crate) fn emptied_since(&self, old: &Self) -> BTreeSet<&str> {
        // Each stream asks this for each virtual host whose weights changed, and weights seldom become 0.
        if self.same_keys(old) && !self.has_zeros_since(old) {
            return BTreeSet::new();
        }
        let (before, now) = (old.receiving(), self.receiving());
        let gone = self.clusters.iter().map(|name| &**name);
        gone.filter(|name| before.contains(name) && !now.contains(name)).collect()
    }

    /// Whether a weight is 0 that was not in `old`, which has the same keys.
    fn has_zeros_since(&self, old: &Self) -> bool {
        let both = self.values.iter().zip(old.values.iter());
        both.into_iter().any(|((_, new), (_, old))| *new == 0 && *old > 0)
    }

    /// The clusters that get requests.
    fn receiving(&self) -> BTreeSet<&str> {
        let weights = self.clusters.iter().zip(self.values.iter());
        weights.filter(|(_, (_, weight))| *weight > 0).map(|(name, _)| &**name).collect()
    }

    /// Runtime keys and their weights.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&Arc<str>, u32)> {
        self.values.iter().map(|(key, weight)| (key, *weight))
    }
}

/// The weighted clusters of the routes that have a runtime key prefix.
fn weighted(host: &mut route::VirtualHost) -> impl Iterator<Item = &mut route::WeightedCluster> {
    host.routes.iter_mut().filter_map(|route| {
        let Some(route::route::Action::Route(action)) = &mut route.action else { return None };
        match &mut action.cluster_specifier {
            Some(route::route_action::ClusterSpecifier::WeightedClusters(clusters)) => {
                Some(clusters).filter(|clusters| !clusters.runtime_key_prefix.is_empty())
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;
    use prost::Message;

    fn host(timeout: i64, weights: &[(&str, u32)]) -> route::VirtualHost {
        let clusters =
            weights.iter().map(|(name, weight)| route::weighted_cluster::ClusterWeight {
                name: (*name).to_owned(),
                weight: Some(UInt32Value { value: *weight }),
                ..Default::default()
            });
        let action = route::RouteAction {
            timeout: Some(envoy_types::pb::google::protobuf::Duration {
                seconds: timeout,
                nanos: 0,
            }),
            cluster_specifier: Some(route::route_action::ClusterSpecifier::WeightedClusters(
                route::WeightedCluster {
                    clusters: clusters.collect(),
                    runtime_key_prefix: "weir.web:80.0".to_owned(),
                    ..Default::default()
                },
            )),
            ..Default::default()
        };
        route::VirtualHost {
            name: "web:80".to_owned(),
            routes: vec![route::Route {
                action: Some(route::route::Action::Route(action)),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn weights(timeout: i64, weights: &[(&str, u32)]) -> RuntimeWeights {
        let mut host = host(timeout, weights);
        RuntimeWeights::complete(&mut host, |host| xxh3_64(&host.encode_to_vec())).unwrap()
    }

    fn keys(weights: &RuntimeWeights) -> Vec<&str> {
        weights.values().map(|(key, _)| &**key).collect()
    }

    #[test]
    fn weights_replace_only_those_of_the_same_clusters_with_the_same_sum() {
        let old = weights(1, &[("v1", 90), ("v2", 10)]);
        assert!(weights(1, &[("v1", 0), ("v2", 100)]).can_replace(&old));
        assert!(!weights(1, &[("v1", 9), ("v2", 1)]).can_replace(&old), "another sum");
        assert!(!weights(1, &[("v1", 90), ("v3", 10)]).can_replace(&old), "another cluster");
        assert!(!weights(2, &[("v1", 80), ("v2", 20)]).can_replace(&old), "another timeout");
        let none = weights(1, &[("v1", 0), ("v2", 0)]);
        assert!(!none.can_replace(&none), "Envoy would answer 404");
        let huge = weights(1, &[("v1", u32::MAX), ("v2", 1)]);
        assert!(!huge.can_replace(&huge), "Envoy would answer 404");
    }

    #[test]
    fn the_keys_of_one_version_never_apply_to_another() {
        let (old, same) =
            (weights(1, &[("v1", 90), ("v2", 10)]), weights(1, &[("v1", 1), ("v2", 99)]));
        assert_eq!(keys(&old), keys(&same));
        let other = weights(2, &[("v1", 90), ("v2", 10)]);
        assert!(keys(&old).iter().all(|key| !keys(&other).contains(key)));
        assert!(keys(&old)[1].starts_with("weir.web:80.0.") && keys(&old)[1].ends_with(".v2"));
    }

    #[test]
    fn a_route_without_a_prefix_has_no_runtime_weights() {
        let mut host = host(1, &[("v1", 90), ("v2", 10)]);
        weighted(&mut host).for_each(|clusters| clusters.runtime_key_prefix.clear());
        assert_eq!(RuntimeWeights::complete(&mut host, |_| 0), None);
    }
}
