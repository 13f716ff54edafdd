//! Fallback resources for clusters that are undefined but still needed by a proxy for a moment.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use prost::Message;
use prost::bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

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
    /// Whether endpoints are some; true of what are no endpoints. Reads the bytes in place, because it is asked of every
    /// resource of a response (fields: ClusterLoadAssignment.endpoints 2, LocalityLbEndpoints.lb_endpoints 2).
    pub fn has_endpoints(&self) -> bool {
        let Some(bytes) = self.message() else {
            return true;
        };
        let mut found = false;
        let read = each_field(bytes, &mut |field, group| {
            let group = group.filter(|_| field == 2);
            group.is_none_or(|group| {
                each_field(group, &mut |field, _| {
                    found |= field == 2;
                    true
                })
            })
        });
        found || !read
    }
}

/// Calls `visit` with the number of each field and, of a length-delimited one, its bytes, until it returns false. Returns
/// whether all were read and visited.
fn each_field(bytes: &Bytes, visit: &mut dyn FnMut(u32, Option<&Bytes>) -> bool) -> bool {
    let mut rest = bytes.clone();
    while rest.has_remaining() {
        let Ok((field, kind)) = decode_key(&mut rest) else {
            return false;
        };
        let body = match kind {
            WireType::LengthDelimited => match decode_varint(&mut rest).map(usize::try_from) {
                Ok(Ok(len)) if len <= rest.len() => Some(rest.split_to(len)),
                _ => return false,
            },
            _ if skip_field(kind, field, &mut rest, DecodeContext::default()).is_ok() => None,
            _ => return false,
        };
        if !visit(field, body.as_ref()) {
            return false;
        }
    }
    true
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

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::endpoint::v3::{LbEndpoint, LocalityLbEndpoints};

    #[test]
    fn endpoints_are_some_where_a_locality_has_one() {
        let with = |groups: &[usize]| {
            let group = |count: &usize| LocalityLbEndpoints {
                lb_endpoints: vec![LbEndpoint::default(); *count],
                priority: 1,
                ..Default::default()
            };
            let assignment = ClusterLoadAssignment {
                cluster_name: "a".to_owned(),
                endpoints: groups.iter().map(group).collect(),
                ..Default::default()
            };
            let bytes = assignment.encode_to_vec().into();
            Resource::new("a", bytes, Arc::default()).has_endpoints()
        };
        assert!(!with(&[]) && !with(&[0]) && !with(&[0, 0]));
        assert!(with(&[1]) && with(&[0, 2]));
        assert!(!empty_endpoints("a").has_endpoints());
        // What cannot be read may be endpoints.
        let cut = Resource::new("a", Bytes::from_static(&[18, 9, 1]), Arc::default());
        assert!(cut.has_endpoints());
    }
}
