//! What a proxy must have received for a write to be live there, and how much of it each has.

use std::collections::{HashMap, HashSet};

use super::proto::{Malformed, Value, fields, has_address};

/// The split of a service between its two subsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Split {
    /// The name of the virtual host.
    pub virtual_host: String,
    /// The cluster of the subset that gets the rest.
    pub stable: String,
    /// The cluster of the subset that gets the weight.
    pub canary: String,
    /// The percentage of the canary.
    pub percent: u32,
}

impl Split {
    /// Whether these weights are the split, in whatever scale.
    fn is(&self, stable: f64, canary: f64) -> bool {
        let sum = stable + canary;
        sum > 0.0 && (canary * 100.0 - f64::from(self.percent) * sum).abs() < sum * 1e-6
    }

    /// Whether the weights of the clusters are the split.
    fn is_in(&self, weights: &HashMap<&[u8], f64>) -> bool {
        let stable = weights.get(self.stable.as_bytes());
        let canary = weights.get(self.canary.as_bytes());
        stable.zip(canary).is_some_and(|(stable, canary)| self.is(*stable, *canary))
    }
}

/// What a write leads to at each proxy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expectation {
    /// The splits by virtual host.
    splits: HashMap<Vec<u8>, Split>,
    /// The one that was written last, which is looked for first.
    last: Option<Split>,
    /// The addresses by name of the endpoints' cluster, each with its number.
    endpoints: HashMap<Vec<u8>, Vec<(usize, Vec<u8>)>>,
    addresses: usize,
}

impl Expectation {
    /// Adds a split. The one that is added last must have been written last.
    pub(crate) fn split(mut self, split: Split) -> Self {
        self.splits.insert(split.virtual_host.clone().into_bytes(), split.clone());
        self.last = Some(split);
        self
    }

    /// Adds an endpoint of a cluster.
    pub(crate) fn endpoint(mut self, cluster: &str, address: &str) -> Self {
        let list = self.endpoints.entry(cluster.as_bytes().to_vec()).or_default();
        list.push((self.addresses, address.as_bytes().to_vec()));
        self.addresses += 1;
        self
    }
}

/// How much of an expectation a proxy has received.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    has_splits: bool,
    /// The canary clusters of the splits that runtime layers have brought.
    in_runtime: HashSet<Vec<u8>>,
    has_address: Vec<bool>,
    missing_addresses: usize,
}

impl Progress {
    /// Nothing yet.
    pub(crate) fn new(expected: &Expectation) -> Self {
        Self {
            has_splits: expected.splits.is_empty(),
            in_runtime: HashSet::new(),
            has_address: vec![false; expected.addresses],
            missing_addresses: expected.addresses,
        }
    }

    /// Whether it has everything.
    pub(crate) fn is_complete(&self) -> bool {
        self.has_splits && self.missing_addresses == 0
    }

    /// A route configuration arrived.
    pub(crate) fn routes(&mut self, expected: &Expectation, body: &[u8]) -> Result<(), Malformed> {
        let Some(last) = expected.last.as_ref().filter(|_| !self.has_splits) else {
            return Ok(());
        };
        let mut found = false;
        for host in fields(body).all(2) {
            let host = host?;
            if fields(host).first(1)? == last.virtual_host.as_bytes() {
                found = weights_of(host, last)?;
                break;
            }
        }
        if !found {
            return Ok(());
        }
        let mut splits = 1;
        if expected.splits.len() > 1 {
            splits = 0;
            for host in fields(body).all(2) {
                let host = host?;
                if let Some(split) = expected.splits.get(fields(host).first(1)?)
                    && weights_of(host, split)?
                {
                    splits += 1;
                }
            }
        }
        self.has_splits = splits == expected.splits.len();
        Ok(())
    }

    /// A runtime layer arrived: its keys end in the names of the clusters, its values are their weights.
    pub(crate) fn runtime(&mut self, expected: &Expectation, body: &[u8]) -> Result<(), Malformed> {
        if self.has_splits {
            return Ok(());
        }
        let mut weights = HashMap::new();
        for entry in fields(fields(body).first(2)?).all(1) {
            let entry = entry?;
            let (key, value) = (fields(entry).first(1)?, fields(entry).first(2)?);
            let at = key.windows(OUTBOUND.len()).rposition(|part| part == OUTBOUND).unwrap_or(0);
            if let Some(Ok((2, Value::Double(weight)))) = fields(value).next() {
                weights.insert(key.get(at..).unwrap_or_default(), weight);
            }
        }
        // The splits may be spread over several layers.
        let found = expected.splits.values().filter(|split| split.is_in(&weights));
        self.in_runtime.extend(found.map(|split| split.canary.clone().into_bytes()));
        self.has_splits = self.in_runtime.len() == expected.splits.len();
        Ok(())
    }

    /// The endpoints of a cluster arrived.
    pub(crate) fn endpoints(
        &mut self,
        expected: &Expectation,
        body: &[u8],
    ) -> Result<(), Malformed> {
        if self.missing_addresses == 0 {
            return Ok(());
        }
        let Some(list) = expected.endpoints.get(fields(body).first(1)?) else {
            return Ok(());
        };
        for (number, address) in list {
            if let Some(has @ false) = self.has_address.get_mut(*number)
                && has_address(body, address)
            {
                *has = true;
                self.missing_addresses -= 1;
            }
        }
        Ok(())
    }
}

/// How the names of clusters of services begin.
const OUTBOUND: &[u8] = b"outbound|";

/// Whether a virtual host has a route with this split.
fn weights_of(host: &[u8], split: &Split) -> Result<bool, Malformed> {
    for route in fields(host).all(3) {
        let action = fields(route?).first(2)?;
        let (mut stable, mut canary) = (None, None);
        for cluster in fields(fields(action).first(3)?).all(1) {
            let cluster = cluster?;
            let name = fields(cluster).first(1)?;
            let weight = match fields(fields(cluster).first(2)?).next().transpose()? {
                Some((1, Value::Number(weight))) => weight as f64,
                _ => 0.0,
            };
            if name == split.stable.as_bytes() {
                stable = Some(weight);
            } else if name == split.canary.as_bytes() {
                canary = Some(weight);
            }
        }
        if stable.zip(canary).is_some_and(|(stable, canary)| split.is(stable, canary)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::route::v3 as route;
    use envoy_types::pb::envoy::service::runtime::v3::Runtime;
    use envoy_types::pb::google::protobuf::{Struct, UInt32Value, Value as Json, value::Kind};
    use prost::Message as _;

    use super::*;

    fn split(service: &str, percent: u32) -> Split {
        Split {
            virtual_host: format!("{service}.a.svc.cluster.local:80"),
            stable: format!("outbound|80|v1|{service}.a.svc.cluster.local"),
            canary: format!("outbound|80|v2|{service}.a.svc.cluster.local"),
            percent,
        }
    }

    fn weighted(name: &str, weight: u32) -> route::weighted_cluster::ClusterWeight {
        route::weighted_cluster::ClusterWeight {
            name: name.to_owned(),
            weight: Some(UInt32Value { value: weight }),
            ..Default::default()
        }
    }

    fn table(splits: &[Split], scale: u32) -> Vec<u8> {
        let hosts = splits.iter().map(|split| route::VirtualHost {
            name: split.virtual_host.clone(),
            domains: vec!["x".into()],
            routes: vec![route::Route {
                action: Some(route::route::Action::Route(route::RouteAction {
                    cluster_specifier: Some(
                        route::route_action::ClusterSpecifier::WeightedClusters(
                            route::WeightedCluster {
                                clusters: vec![
                                    weighted(&split.stable, (100 - split.percent) * scale),
                                    weighted(&split.canary, split.percent * scale),
                                ],
                                ..Default::default()
                            },
                        ),
                    ),
                    ..Default::default()
                })),
                ..Default::default()
            }],
            ..Default::default()
        });
        route::RouteConfiguration {
            name: "80".into(),
            virtual_hosts: hosts.collect(),
            ..Default::default()
        }
        .encode_to_vec()
    }

    fn layer(splits: &[Split]) -> Vec<u8> {
        let fields = splits.iter().flat_map(|split| {
            [(&split.stable, 100 - split.percent), (&split.canary, split.percent)].map(
                |(cluster, weight)| {
                    let kind = Some(Kind::NumberValue(f64::from(weight * 100)));
                    (format!("weir.prefix.{cluster}"), Json { kind })
                },
            )
        });
        let layer = Some(Struct { fields: fields.collect() });
        Runtime { name: "weir-weights".into(), layer }.encode_to_vec()
    }

    #[test]
    fn a_weight_counts_in_whatever_scale() {
        let expected = Expectation::default().split(split("web", 20));
        for scale in [1, 100] {
            let mut progress = Progress::new(&expected);
            progress
                .routes(&expected, &table(&[split("web", 10), split("api", 20)], scale))
                .unwrap();
            assert!(!progress.is_complete());
            progress
                .routes(&expected, &table(&[split("api", 10), split("web", 20)], scale))
                .unwrap();
            assert!(progress.is_complete());
        }
    }

    #[test]
    fn all_weights_of_a_storm_must_be_there() {
        let expected = Expectation::default().split(split("api", 30)).split(split("web", 20));
        let mut progress = Progress::new(&expected);
        progress.routes(&expected, &table(&[split("api", 10), split("web", 20)], 1)).unwrap();
        assert!(!progress.is_complete());
        progress.routes(&expected, &table(&[split("api", 30), split("web", 20)], 1)).unwrap();
        assert!(progress.is_complete());
    }

    #[test]
    fn a_runtime_layer_may_carry_weights() {
        let expected = Expectation::default().split(split("api", 30)).split(split("web", 20));
        let mut progress = Progress::new(&expected);
        progress.runtime(&expected, &layer(&[split("web", 20)])).unwrap();
        progress.runtime(&expected, &layer(&[split("web", 20), split("api", 31)])).unwrap();
        assert!(!progress.is_complete());
        progress.runtime(&expected, &layer(&[split("api", 30)])).unwrap();
        assert!(progress.is_complete());
    }
}
