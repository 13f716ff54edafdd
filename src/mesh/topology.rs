//! The location of workloads and the corresponding labels.

use std::fmt;
use std::sync::Arc;

use crate::api::Labels;

/// The region.
pub(crate) const REGION: &str = "topology.kubernetes.io/region";
/// The zone.
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";
/// The sub-zone.
pub(crate) const SUBZONE: &str = "topology.istio.io/subzone";
/// The node.
pub(crate) const HOSTNAME: &str = "kubernetes.io/hostname";
/// The cluster.
pub(crate) const CLUSTER: &str = "topology.istio.io/cluster";
/// The network.
pub(crate) const NETWORK: &str = "topology.istio.io/network";

/// A locality: region, zone and sub-zone, each possibly empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locality {
    /// The region.
    pub region: String,
    /// The zone.
    pub zone: String,
    /// The sub-zone.
    pub sub_zone: String,
}

impl Locality {
    /// Parses `region/zone/subzone`; missing parts are empty.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        let [region, zone, sub_zone] = [(); 3].map(|()| parts.next().unwrap_or_default());
        Self { region, zone, sub_zone }
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}/{}/{}", self.region, self.zone, self.sub_zone);
        f.pad(text.trim_end_matches('/'))
    }
}

/// The location of a workload; empty means unknown. It counts as additional labels of the workload. Source: Istio's
/// AugmentLabels.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Topology {
    /// Region, zone and sub-zone.
    pub locality: Locality,
    /// The name of the node.
    pub node: Arc<str>,
    /// The id of the cluster.
    pub cluster: Arc<str>,
    /// The network, unless the workload has a label for it.
    pub network: Arc<str>,
}

/// Whether a label describes the location of a workload.
pub(crate) fn is_topology(label: &str) -> bool {
    matches!(label, REGION | ZONE | SUBZONE | HOSTNAME | CLUSTER | NETWORK)
}

impl Topology {
    /// A label of a workload at this location that has labels of its `own`.
    pub(crate) fn label<'a>(&'a self, own: &'a Labels, name: &str) -> Option<&'a str> {
        let own = own.get(name).map(String::as_str);
        let known: &str = match name {
            REGION => &self.locality.region,
            ZONE => &self.locality.zone,
            SUBZONE => &self.locality.sub_zone,
            HOSTNAME => &self.node,
            CLUSTER => &self.cluster,
            // Only the network can differ among the workloads of a node.
            NETWORK => own.filter(|own| !own.is_empty()).unwrap_or(&self.network),
            _ => return own,
        };
        Some(known).filter(|known| !known.is_empty()).or(own.filter(|_| name != NETWORK))
    }

    /// Whether `selector` selects a workload at this location that has labels of its `own`.
    pub(crate) fn selects(&self, selector: &Labels, own: &Labels) -> bool {
        selector.iter().all(|(name, value)| self.label(own, name) == Some(value))
    }

    /// All labels of a workload at this location that has labels of its `own`.
    pub(crate) fn labels(&self, own: &Labels) -> Labels {
        let mut all = own.clone();
        for name in [REGION, ZONE, SUBZONE, HOSTNAME, CLUSTER, NETWORK] {
            if let Some(value) = self.label(own, name) {
                all.insert(name.to_owned(), value.to_owned());
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn the_known_location_takes_precedence_over_the_workloads_labels() {
        let topology = Topology {
            locality: Locality::parse("eu/eu-a"),
            node: "n1".into(),
            cluster: "Kubernetes".into(),
            network: "net".into(),
        };
        let own = labels([(REGION, "us"), (SUBZONE, "rack-7"), (NETWORK, "other"), ("app", "web")]);
        let expected = [
            (REGION, "eu"),
            (ZONE, "eu-a"),
            (SUBZONE, "rack-7"),
            (HOSTNAME, "n1"),
            (CLUSTER, "Kubernetes"),
            (NETWORK, "other"),
            ("app", "web"),
        ];
        assert_eq!(topology.labels(&own), labels(expected));
        for (name, value) in expected {
            assert!(topology.selects(&labels([(name, value)]), &own), "{name}");
            assert!(!topology.selects(&labels([(name, "else")]), &own), "{name}");
        }
        assert_eq!(topology.label(&labels([]), NETWORK), Some("net"));
        assert_eq!(topology.label(&labels([(NETWORK, "")]), NETWORK), Some("net"));
        assert_eq!(topology.label(&own, "version"), None);
    }

    #[test]
    fn an_unknown_location_has_no_labels() {
        let nowhere = Topology::default();
        assert_eq!(nowhere.labels(&labels([])), labels([]));
        assert!(nowhere.selects(&labels([]), &labels([])));
        assert!(!nowhere.selects(&labels([(ZONE, "")]), &labels([])));
    }
}
