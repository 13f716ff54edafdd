//! Fallback resources for clusters that are undefined but that a proxy still needs for a moment.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use prost::Message;

use super::{Resource, ResourceType, Snapshot};
use crate::envoy_validate::{Fields, Payload};
use crate::translate::service_cluster_name;

/// An empty endpoint assignment. It ends the warming of a cluster, which would otherwise block all other cluster
/// updates.
pub(crate) fn empty_endpoints(cluster: &str) -> Arc<Resource> {
    let assignment =
        ClusterLoadAssignment { cluster_name: cluster.to_owned(), ..Default::default() };
    encoded_resource(cluster, &assignment)
}

fn encoded_resource(name: &str, message: &impl Message) -> Arc<Resource> {
    Resource::new(name, message.encode_to_vec().into(), Arc::default())
}

impl Resource {
    /// Whether an endpoint assignment has endpoints; `true` for other resources and for undecodable bytes. Reads the
    /// bytes in place, because it is called for every resource of a response.
    pub(crate) fn has_endpoints(&self) -> bool {
        self.any_endpoint(|_| true)
    }

    /// Like [`Resource::has_endpoints`], but only endpoints count to which Envoy sends requests.
    pub(crate) fn takes_requests(&self) -> bool {
        /// `LbEndpoint.health_status`.
        const HEALTH: u32 = 2;
        self.any_endpoint(|endpoint| {
            let mut health = HealthStatus::Unknown as u64;
            for field in Fields::new(endpoint) {
                match field {
                    Ok((HEALTH, Payload::Varint(value))) => health = value,
                    Ok(_) => {}
                    Err(_) => return true,
                }
            }
            let serves = [HealthStatus::Unknown, HealthStatus::Healthy, HealthStatus::Degraded];
            serves.into_iter().any(|serves| serves as u64 == health)
        })
    }

    /// Whether any endpoint of an assignment is like this.
    fn any_endpoint(&self, is: impl Fn(&[u8]) -> bool) -> bool {
        /// `ClusterLoadAssignment.endpoints`.
        const LOCALITIES: u32 = 2;
        /// `LocalityLbEndpoints.lb_endpoints`.
        const ENDPOINTS: u32 = 2;
        let Some(bytes) = self.message() else {
            return true;
        };
        Fields::new(bytes).any(|field| match field {
            Ok((LOCALITIES, Payload::Bytes(locality))) => {
                Fields::new(locality).any(|field| match field {
                    Ok((ENDPOINTS, Payload::Bytes(endpoint))) => is(endpoint),
                    Ok(_) => false,
                    Err(_) => true,
                })
            }
            Ok(_) => false,
            Err(_) => true,
        })
    }
}

impl Snapshot {
    /// The cluster and endpoints to use for a subset that no longer exists and whose cluster name is all that is known:
    /// those of the whole service. `None` if the service is unknown too or does not use EDS.
    pub(crate) fn fallback(&self, name: &str) -> Option<(Arc<Resource>, Arc<Resource>)> {
        let whole = service_cluster_name(name)?;
        let cluster = self.get(ResourceType::Cluster).get(&whole)?;
        let endpoints = self.get(ResourceType::Endpoints).get(&whole)?;
        let mut cluster = Cluster::decode(&*cluster.bytes()).ok()?;
        cluster.eds_cluster_config.as_mut()?.service_name = name.to_owned();
        cluster.alt_stat_name = format!("{name};");
        name.clone_into(&mut cluster.name);
        let mut endpoints = ClusterLoadAssignment::decode(&*endpoints.bytes()).ok()?;
        name.clone_into(&mut endpoints.cluster_name);
        Some((encoded_resource(name, &cluster), encoded_resource(name, &endpoints)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::endpoint::v3::{LbEndpoint, LocalityLbEndpoints};

    fn assignment(endpoints: Vec<LocalityLbEndpoints>) -> Arc<Resource> {
        let message =
            ClusterLoadAssignment { cluster_name: "a".to_owned(), endpoints, ..Default::default() };
        encoded_resource("a", &message)
    }

    /// An assignment whose localities have so many endpoints.
    fn with_counts(counts: &[usize]) -> Arc<Resource> {
        let localities = counts.iter().map(|count| LocalityLbEndpoints {
            lb_endpoints: vec![LbEndpoint::default(); *count],
            priority: 1,
            ..Default::default()
        });
        assignment(localities.collect())
    }

    /// An assignment with one endpoint for each of these states.
    fn with_health(all: &[HealthStatus]) -> Arc<Resource> {
        let endpoints = all
            .iter()
            .map(|health| LbEndpoint { health_status: *health as i32, ..Default::default() });
        assignment(vec![LocalityLbEndpoints {
            lb_endpoints: endpoints.collect(),
            ..Default::default()
        }])
    }

    #[test]
    fn an_assignment_has_endpoints_if_any_locality_has_one() {
        for empty in [&[][..], &[0], &[0, 0]] {
            assert!(!with_counts(empty).has_endpoints(), "{empty:?}");
        }
        assert!(with_counts(&[1]).has_endpoints() && with_counts(&[0, 2]).has_endpoints());
        assert!(!empty_endpoints("a").has_endpoints());
        // Undecodable bytes may be endpoints.
        let cut = Resource::new("a", bytes::Bytes::from_static(&[18, 9, 1]), Arc::default());
        assert!(cut.has_endpoints() && cut.takes_requests());
    }

    #[test]
    fn only_endpoints_that_are_not_known_to_fail_take_requests() {
        let (healthy, unhealthy) = (HealthStatus::Healthy, HealthStatus::Unhealthy);
        for (all, takes_requests) in [
            (&[][..], false),
            (&[unhealthy], false),
            (&[unhealthy, healthy], true),
            (&[HealthStatus::Unknown], true),
            (&[HealthStatus::Draining], false),
        ] {
            assert_eq!(with_health(all).takes_requests(), takes_requests, "{all:?}");
            assert_eq!(with_health(all).has_endpoints(), !all.is_empty());
        }
    }
}
