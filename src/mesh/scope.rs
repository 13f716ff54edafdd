//! The scope and locality of proxies.

use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::endpoint::{label_locality, node_locality};
use super::peer_authentications::PeerPolicy;
use super::proxy::{Certificates, Families, Interception, Proxy, Scope};
use super::service::{Resolution, Service};
use super::topology::{Locality, Topology, is_topology};
use super::{Endpoint, Mesh, Workload};

impl Mesh {
    /// The attributes of `proxy` that can affect its configuration in this state of the mesh.
    pub fn scope(&self, proxy: &Proxy) -> Scope {
        let topology = LazyCell::new(|| self.topology(proxy));
        // The topology is evaluated only if some label needs it.
        let label = |name: &str| {
            if is_topology(name) {
                topology.label(&proxy.labels, name)
            } else {
                proxy.labels.get(name).map(String::as_str)
            }
        };
        let labels = self
            .scope_attributes
            .labels
            .iter()
            .filter_map(|name| Some((name.clone(), label(name)?.to_owned())));
        let sidecar = self.sidecars.find(
            &proxy.namespace,
            |selector| selector.iter().all(|(name, value)| label(name) == Some(value)),
            &self.config.root_namespace,
        );
        let node_counts = self
            .scope_attributes
            .node
            .iter()
            .any(|visibility| visibility.includes(&proxy.namespace));
        let namespace = self.scope_attributes.namespaces.get(&proxy.namespace);
        Scope {
            namespace: namespace.cloned().unwrap_or_else(|| Scope::OTHER_NAMESPACE.into()),
            labels: labels.collect(),
            interception: proxy.interception,
            certificates: proxy.certificates,
            peers: self.peer_policy(proxy),
            inbound: match proxy.interception {
                Interception::None => Vec::new(),
                Interception::Redirect => self.inbound(proxy),
            },
            locality: if self.scope_attributes.locality {
                topology.locality.clone()
            } else {
                Locality::default()
            },
            node: if node_counts { topology.node.clone() } else { Arc::default() },
            families: Families::of(&proxy.addresses),
            headless: {
                let own = self
                    .endpoints_of(proxy)
                    .filter(|(service, _)| service.resolution == Resolution::Passthrough)
                    .flat_map(|(_, endpoint)| endpoint.addresses());
                own.cloned().collect::<BTreeSet<_>>().into_iter().collect()
            },
            sidecar: sidecar.map(|sidecar| (sidecar.key.clone(), sidecar.revision)),
        }
    }

    /// What the ports of a workload accept.
    pub(crate) fn peer_policy_of(&self, workload: &Workload) -> PeerPolicy {
        let Workload { namespace, labels, .. } = workload;
        let root = &self.config.root_namespace;
        self.peer_authentications.of_workload(namespace, labels, root)
    }

    /// What the ports of a proxy accept; everything if it has no certificates and weir gives none to any proxy.
    fn peer_policy(&self, proxy: &Proxy) -> PeerPolicy {
        let applies = proxy.certificates != Certificates::None || self.config.identities;
        if !applies || proxy.interception == Interception::None {
            return PeerPolicy::default();
        }
        // A pod's labels change during its life, and clients go by those that it has.
        let mut own = self.endpoints_of(proxy).map(|(_, endpoint)| &endpoint.workload);
        let pod = own.find(|pod| pod.namespace == proxy.namespace && !pod.labels.is_empty());
        if let Some(pod) = pod {
            return self.peer_policy_of(pod);
        }
        let root = &self.config.root_namespace;
        self.peer_authentications.of_workload(&proxy.namespace, &proxy.labels, root)
    }

    /// The location of a proxy: as it reports, else that of its pod or of the endpoints at its address.
    fn topology(&self, proxy: &Proxy) -> Topology {
        let pod = self.pod_topologies.get(&(proxy.namespace.clone(), proxy.name.clone()));
        let own = self.endpoints_of(proxy).map(|(_, endpoint)| &endpoint.topology);
        let known: Vec<&Topology> =
            pod.into_iter().chain(own).map(|topology| &**topology).collect();
        let mut nodes =
            std::iter::once(&proxy.node).chain(known.iter().map(|topology| &topology.node));
        let node = nodes.find(|node| !node.is_empty()).cloned().unwrap_or_default();
        let said = Some(&proxy.locality).filter(|said| **said != Locality::default()).cloned();
        let locality = said.or_else(|| label_locality(&proxy.labels)).or_else(|| {
            let of_node = self.nodes.get(&node).map(|topology| &**topology);
            let known =
                known.iter().copied().chain(of_node).map(|topology| topology.locality.clone());
            known
                .chain([node_locality(&proxy.labels)])
                .find(|locality| *locality != Locality::default())
        });
        let [cluster, network] =
            [(&proxy.cluster, &self.config.cluster), (&self.network, &proxy.network)]
                .map(|(first, second)| if first.is_empty() { second } else { first }.clone());
        Topology { locality: locality.unwrap_or_default(), node, cluster, network }
    }

    /// The location of workloads about which nothing else is known.
    pub(crate) fn own_topology(&self) -> Topology {
        Topology {
            cluster: self.config.cluster.clone(),
            network: self.network.clone(),
            ..Topology::default()
        }
    }

    /// The location of a pod, as far as its node is known.
    pub(crate) fn pod_topology(&self, namespace: &Arc<str>, name: &Arc<str>) -> Topology {
        let known = self.pod_topologies.get(&(namespace.clone(), name.clone()));
        known.map_or_else(|| self.own_topology(), |known| (**known).clone())
    }

    /// The endpoints of the proxy's own workload, each with its service.
    pub(super) fn endpoints_of<'a>(
        &'a self,
        proxy: &'a Proxy,
    ) -> impl Iterator<Item = (&'a Service, &'a Endpoint)> {
        let hosts =
            proxy.addresses.iter().filter_map(|address| self.by_address.get(address)).flatten();
        // A service may be found by each of several addresses.
        let hosts: BTreeSet<_> = hosts.collect();
        let known = hosts
            .into_iter()
            .filter_map(|host| self.services.get(host))
            .flat_map(|list| list.iter());
        known.flat_map(|known| {
            let own = known.endpoints.list.iter().filter(|endpoint| {
                let mut addresses = endpoint.addresses();
                addresses.any(|address| proxy.addresses.contains(address))
            });
            own.map(|endpoint| (&*known.service, endpoint))
        })
    }
}
