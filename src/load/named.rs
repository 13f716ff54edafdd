//! The clusters that proxies report: those of weighted routes. Each has a number, which is what reports are kept by.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsResponse;
use prost::Message as _;

use super::window::Counts;
use crate::metrics::{ClusterCounters, LoadMetrics};
use crate::translate;

/// The maximum number of clusters that proxies are asked about.
const MOST: usize = 4096;

/// The maximum number of clusters with metrics of their own.
const MOST_MEASURED: usize = 500;

/// A version of the list.
#[derive(Debug, Default)]
pub(crate) struct Named {
    version: u64,
    clusters: HashMap<Arc<str>, Cluster>,
    last_id: u32,
    /// The encoded answer that tells proxies the list.
    response: Bytes,
    /// How many clusters are not in it because there are too many.
    left_out: usize,
}

/// A cluster of the list.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    /// Its number, which no other cluster had or will have.
    pub id: u32,
    /// The version of the list that it came with.
    pub since: u64,
    counters: Option<ClusterCounters>,
}

impl Cluster {
    /// Whether it has metrics of its own.
    pub(crate) fn is_measured(&self) -> bool {
        self.counters.is_some()
    }

    /// Adds to its metrics.
    pub(super) fn count(&self, counts: Counts) {
        if let Some(counters) = &self.counters {
            counters.add(counts.issued, counts.succeeded, counts.failed);
        }
    }
}

impl Named {
    /// The first version, without clusters.
    pub(super) fn first(interval: Duration) -> Self {
        Self { response: response(Vec::new(), interval), ..Self::default() }
    }

    /// The next version of the list; `None` if it is the same.
    pub(super) fn next(
        &self,
        names: &BTreeSet<String>,
        interval: Duration,
        metrics: &LoadMetrics,
    ) -> Option<Self> {
        let listed = || names.iter().take(MOST);
        let left_out = names.len().saturating_sub(MOST);
        let same = listed().count() == self.clusters.len()
            && listed().all(|name| self.clusters.contains_key(name.as_str()));
        if same && left_out == self.left_out {
            return None;
        }
        for name in self.clusters.keys().filter(|name| !names.contains(&***name)) {
            metrics.forget(name);
        }
        let (version, mut last_id) = (self.version + 1, self.last_id);
        let mut clusters = HashMap::new();
        let kept = self.clusters.values().filter(|cluster| cluster.counters.is_some()).count();
        let mut measured = kept;
        for name in listed() {
            let cluster = match self.clusters.get_key_value(name.as_str()) {
                Some((name, known)) => (name.clone(), known.clone()),
                None => {
                    last_id = last_id.wrapping_add(1);
                    let has_counters = measured < MOST_MEASURED;
                    measured += usize::from(has_counters);
                    let counters = has_counters.then(|| metrics.cluster(name));
                    (name.as_str().into(), Cluster { id: last_id, since: version, counters })
                }
            };
            clusters.insert(cluster.0, cluster.1);
        }
        let response = response(listed().cloned().collect(), interval);
        Some(Self { version, clusters, last_id, response, left_out })
    }

    /// The version, which grows.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The encoded answer.
    pub(crate) fn response(&self) -> Bytes {
        self.response.clone()
    }

    /// Whether there are more clusters than the list may have.
    pub(crate) fn is_cut(&self) -> bool {
        self.left_out > 0
    }

    /// Whether there is no cluster.
    pub(super) fn is_empty(&self) -> bool {
        self.clusters.is_empty()
    }

    /// A cluster of the list.
    pub(crate) fn get(&self, name: &str) -> Option<&Cluster> {
        self.clusters.get(name)
    }
}

/// Names clusters instead of asking for all: Envoy reports each, also those without requests, so all clusters of a large
/// mesh are megabytes.
fn response(clusters: Vec<String>, interval: Duration) -> Bytes {
    let response = LoadStatsResponse {
        clusters,
        load_reporting_interval: translate::duration(interval),
        ..Default::default()
    };
    response.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn clusters_keep_their_numbers_and_new_ones_get_new_numbers() {
        let (interval, metrics) = (Duration::from_secs(10), LoadMetrics::default());
        let first = Named::first(interval).next(&names(&["a", "b"]), interval, &metrics).unwrap();
        assert!(first.next(&names(&["b", "a"]), interval, &metrics).is_none());
        let second = first.next(&names(&["b", "c"]), interval, &metrics).unwrap();
        assert_eq!(second.get("b").unwrap().id, first.get("b").unwrap().id);
        assert_eq!((second.get("b").unwrap().since, second.get("c").unwrap().since), (1, 2));
        assert!(second.get("a").is_none());
        let third = second.next(&names(&["a", "b", "c"]), interval, &metrics).unwrap();
        assert_ne!(third.get("a").unwrap().id, first.get("a").unwrap().id);
        let told = LoadStatsResponse::decode(third.response()).unwrap();
        assert_eq!(told.clusters, ["a", "b", "c"]);
        assert!(!told.send_all_clusters && !told.report_endpoint_granularity);
        assert_eq!(told.load_reporting_interval.map(|time| time.seconds), Some(10));
    }

    #[test]
    fn the_list_and_its_metrics_are_bounded() {
        let (interval, metrics) = (Duration::from_secs(10), LoadMetrics::default());
        let many: BTreeSet<String> = (0..MOST + 5).map(|n| format!("cluster-{n:05}")).collect();
        let list = Named::first(interval).next(&many, interval, &metrics).unwrap();
        assert_eq!((list.clusters.len(), list.left_out), (MOST, 5));
        let measured = list.clusters.values().filter(|cluster| cluster.counters.is_some());
        assert_eq!(measured.count(), MOST_MEASURED);
    }
}
