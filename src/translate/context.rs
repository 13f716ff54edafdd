//! What the clusters of a service and their endpoints are made from.

use super::load_balancer;
use super::policy::Policy;
use crate::mesh::{DestinationRule, MeshConfig, RegisteredService, Resolution, Scope, Service};

/// The inputs of a service's clusters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    /// Mesh-wide settings.
    pub config: &'a MeshConfig,
    /// The scope of the proxies.
    pub scope: &'a Scope,
    /// The service and its endpoints.
    pub known: &'a RegisteredService,
    /// The DestinationRule for it.
    pub rule: Option<&'a DestinationRule>,
}

/// Whether a cluster gets its endpoints over EDS.
pub(crate) fn uses_eds(service: &Service, policy: &Policy<'_>) -> bool {
    service.resolution == Resolution::Endpoints
        && !load_balancer::is_passthrough(policy.load_balancer)
}
