//! Fallback resources for clusters that are undefined but still needed by a proxy for a moment.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use prost::Message;

use super::{Resource, ResourceType, Snapshot};
use crate::translate::service_cluster_name;

/// An empty endpoint assignment. It ends the warming of a cluster, which would otherwise block all other cluster
/// updates.
pub fn empty_endpoints(cluster: &str) -> Arc<Resource> {
    let assignment =
        ClusterLoadAssignment { cluster_name: cluster.to_owned(), ..Default::default() };
    Resource::new(cluster, assignment.encode_to_vec().into(), Arc::default())
}

impl Resource {
    /// Whether endpoints are some; true of what are no endpoints.
    pub fn has_endpoints(&self) -> bool {
        let groups =
            ClusterLoadAssignment::decode(&*self.bytes()).map(|assignment| assignment.endpoints);
        groups.is_err()
            || groups.is_ok_and(|groups| groups.iter().any(|group| !group.lb_endpoints.is_empty()))
    }
}

impl Snapshot {
    /// The cluster and endpoints to use for a subset that no longer exists and of which only the cluster name is known:
    /// those of the whole service. `None` if the service is unknown too or does not use EDS.
    pub fn fallback(&self, name: &str) -> Option<(Arc<Resource>, Arc<Resource>)> {
        let whole = service_cluster_name(name)?;
        let cluster = self.get(ResourceType::Cluster).get(&whole)?;
        let endpoints = self.get(ResourceType::Endpoints).get(&whole)?;
        let mut cluster = Cluster::decode(&*cluster.bytes()).ok()?;
        cluster.eds_cluster_config.as_mut()?.service_name = name.to_owned();
        cluster.alt_stat_name = format!("{name};");
        name.clone_into(&mut cluster.name);
        let mut endpoints = ClusterLoadAssignment::decode(&*endpoints.bytes()).ok()?;
        name.clone_into(&mut endpoints.cluster_name);
        let encoded = |bytes: Vec<u8>| Resource::new(name, bytes.into(), Arc::default());
        Some((encoded(cluster.encode_to_vec()), encoded(endpoints.encode_to_vec())))
    }
}
