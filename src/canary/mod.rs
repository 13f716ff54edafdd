//! A canary: its objects, backends that say which version they are, load through an Envoy, the writes of a rollout in the
//! orders in which tools make them, and what of them is live in Envoy. `weir demo`, `weir bench canary` and the tests
//! share it.

pub mod backends;
pub(crate) mod folder;
pub mod live;
pub mod load;
pub mod objects;
pub mod patterns;

use std::net::{Ipv4Addr, SocketAddr};

use crate::bootstrap::{AdsVariant, Bootstrap, NodeId, XdsAddress};
use crate::mesh::{Interception, Locality, WeightDelivery};

/// The bootstrap of the pod `client-0` in this namespace, whose Envoy binds the ports of services on loopback.
pub(crate) fn sidecar(namespace: &str, xds: XdsAddress, variant: AdsVariant) -> Bootstrap {
    let node = NodeId {
        ip: Ipv4Addr::LOCALHOST.into(),
        pod: "client-0".to_owned(),
        namespace: namespace.to_owned(),
        dns_domain: format!("{namespace}.svc.cluster.local"),
    };
    Bootstrap {
        node,
        labels: [("app".to_owned(), "client".to_owned())].into(),
        cluster_id: "Kubernetes".to_owned(),
        other_ips: Vec::new(),
        node_name: None,
        locality: None::<Locality>,
        interception: Interception::None,
        xds,
        identity: None,
        variant,
        weights: WeightDelivery::Runtime,
        load_reports: true,
        admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        stats: None,
    }
}
