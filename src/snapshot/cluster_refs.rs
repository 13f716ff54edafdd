//! The clusters that a listener or virtual host references, which decide when a proxy may get it.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

/// Sorted, unique cluster names. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterRefs(Arc<[Arc<str>]>);

impl ClusterRefs {
    /// Collects these names.
    pub(crate) fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let sorted: BTreeSet<&str> = names.into_iter().filter(|name| !name.is_empty()).collect();
        Self(sorted.into_iter().map(Arc::from).collect())
    }

    /// The clusters of a virtual host's routes, including weighted and mirror clusters.
    pub(crate) fn of_virtual_host(host: &route::VirtualHost) -> Self {
        Self::new(of_host(host, |_| true))
    }

    /// Those of them that get requests: all but the ones of weight 0.
    pub(crate) fn receiving(host: &route::VirtualHost) -> Self {
        Self::new(of_host(host, |cluster| cluster.weight.is_some_and(|weight| weight.value > 0)))
    }

    /// The clusters of a listener's TCP proxies and inline routes.
    pub(crate) fn of_listener(listener: &listener::Listener) -> Self {
        let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
        let configs = chains.flat_map(|chain| &chain.filters).filter_map(|filter| {
            match &filter.config_type {
                Some(listener::filter::ConfigType::TypedConfig(config)) => Some(config),
                _ => None,
            }
        });
        let names: Vec<String> = configs.flat_map(of_filter).collect();
        Self::new(names.iter().map(String::as_str))
    }

    /// Whether this cluster is referenced.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.0.binary_search_by(|item| (**item).cmp(name)).is_ok()
    }

    /// The names in order.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Arc<str>> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a ClusterRefs {
    type Item = &'a Arc<str>;
    type IntoIter = std::slice::Iter<'a, Arc<str>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

fn of_filter(config: &Any) -> Vec<String> {
    use hcm::http_connection_manager::RouteSpecifier;
    use tcp::tcp_proxy::ClusterSpecifier;
    if config.type_url == tcp::TcpProxy::type_url() {
        let specifier =
            tcp::TcpProxy::decode(&*config.value).ok().and_then(|proxy| proxy.cluster_specifier);
        return match specifier {
            Some(ClusterSpecifier::Cluster(name)) => vec![name],
            Some(ClusterSpecifier::WeightedClusters(list)) => {
                list.clusters.into_iter().map(|cluster| cluster.name).collect()
            }
            _ => Vec::new(),
        };
    }
    if config.type_url == hcm::HttpConnectionManager::type_url()
        && let Ok(manager) = hcm::HttpConnectionManager::decode(&*config.value)
        && let Some(RouteSpecifier::RouteConfig(routes)) = manager.route_specifier
    {
        let hosts = routes.virtual_hosts.iter();
        return hosts.flat_map(|host| of_host(host, |_| true)).map(str::to_owned).collect();
    }
    Vec::new()
}

/// The clusters that a virtual host references; of weighted clusters those for which `counts` holds.
fn of_host(
    host: &route::VirtualHost,
    counts: impl Fn(&route::weighted_cluster::ClusterWeight) -> bool,
) -> Vec<&str> {
    use route::route_action::ClusterSpecifier;
    let mut names: Vec<&str> =
        host.request_mirror_policies.iter().map(|copy| copy.cluster.as_str()).collect();
    for item in &host.routes {
        let Some(route::route::Action::Route(action)) = &item.action else {
            continue;
        };
        match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => names.push(name),
            Some(ClusterSpecifier::WeightedClusters(list)) => {
                let counted = list.clusters.iter().filter(|cluster| counts(cluster));
                names.extend(counted.map(|cluster| cluster.name.as_str()));
            }
            _ => {}
        }
        names.extend(action.request_mirror_policies.iter().map(|copy| copy.cluster.as_str()));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Scope;
    use crate::translate::inbound::virtual_inbound;
    use crate::translate::listener::outbound;
    use crate::translate::listener_plan::ListenerPlan;
    use crate::translate::tcp::{Chain, Target};
    use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;

    fn names(cluster_refs: &ClusterRefs) -> Vec<&str> {
        cluster_refs.iter().map(|name| &**name).collect()
    }

    fn route_to(cluster_specifier: ClusterSpecifier, mirrors: &[&str]) -> route::Route {
        let mirrors = mirrors.iter().map(|name| route::route_action::RequestMirrorPolicy {
            cluster: (*name).to_owned(),
            ..Default::default()
        });
        route::Route {
            action: Some(route::route::Action::Route(route::RouteAction {
                cluster_specifier: Some(cluster_specifier),
                request_mirror_policies: mirrors.collect(),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    #[test]
    fn a_virtual_host_references_plain_weighted_and_mirror_clusters_once_each() {
        let weighted = route::WeightedCluster {
            clusters: ["c", "a"]
                .map(|name| route::weighted_cluster::ClusterWeight {
                    name: name.to_owned(),
                    ..Default::default()
                })
                .to_vec(),
            ..Default::default()
        };
        let host = route::VirtualHost {
            routes: vec![
                route_to(ClusterSpecifier::Cluster("b".into()), &["d"]),
                route_to(ClusterSpecifier::WeightedClusters(weighted), &["b"]),
                route_to(ClusterSpecifier::ClusterHeader("x-where".into()), &[]),
            ],
            ..Default::default()
        };
        let cluster_refs = ClusterRefs::of_virtual_host(&host);
        assert_eq!(names(&cluster_refs), ["a", "b", "c", "d"]);
        assert!(cluster_refs.contains("c") && !cluster_refs.contains("x-where"));
    }

    #[test]
    fn a_listener_references_its_tcp_clusters_and_those_of_inline_routes() {
        let wanted = ListenerPlan {
            address: "10.0.0.1".into(),
            port: 80,
            bind: false,
            any_address: false,
            both_families: false,
            http: Some("r".into()),
            only_http: false,
            grpc_web: false,
            chains: vec![Chain {
                sni: vec![],
                subnets: vec![],
                target: Target::plain("outbound|80||a"),
                defined_by: None,
            }],
            default_cluster: "PassthroughCluster".into(),
        };
        assert_eq!(names(&ClusterRefs::of_listener(&outbound(&wanted))), ["outbound|80||a"]);
        let inbound = virtual_inbound(&Scope::of_shop(), "cluster.local");
        let inbound = ClusterRefs::of_listener(&inbound);
        assert_eq!(names(&inbound), ["BlackHoleCluster", "InboundPassthroughCluster"]);
    }
}
