//! Whether Envoy has what the objects of a canary say, by its own admin interface, whichever control plane it has.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::objects::{addresses, host};
use super::patterns::State;
use crate::envoy::{Admin, Error};

/// A canary's service, as Envoy names its clusters.
#[derive(Debug, Clone)]
pub struct Service {
    /// The namespace.
    pub namespace: String,
    /// The port.
    pub port: u16,
}

impl Service {
    fn cluster(&self, subset: &str) -> String {
        format!("outbound|{}|{subset}|{}", self.port, host(&self.namespace))
    }

    /// Whether Envoy has this state: the split, and the endpoints of what takes part in it.
    ///
    /// # Errors
    /// Envoy does not answer.
    pub async fn is_live(&self, envoy: &Admin, state: &State) -> Result<bool, Error> {
        let positive = state.route.iter().filter(|(_, weight)| **weight > 0);
        let wanted: BTreeMap<String, f64> = positive
            .clone()
            .map(|(subset, weight)| (self.cluster(subset), f64::from(*weight)))
            .collect();
        let routes = json(envoy, "/config_dump?resource=dynamic_route_configs").await?;
        let runtime = json(envoy, "/runtime").await?;
        if !self.weights(&routes, &runtime).is_some_and(|weights| same_shares(&weights, &wanted)) {
            return Ok(false);
        }
        let clusters = json(envoy, "/clusters?format=json").await?;
        Ok(positive.clone().all(|(subset, _)| {
            let version = state.rule.get(subset).copied();
            let versions = state.endpoints.iter().filter(|n| version == Some(&format!("v{n}")));
            let wanted: BTreeSet<String> =
                versions.flat_map(|version| addresses(*version)).collect();
            endpoints(&clusters, &self.cluster(subset)) == wanted
        }))
    }

    /// The weights by cluster that Envoy applies to requests for the service; `None` if it has no route for it.
    fn weights(&self, routes: &Value, runtime: &Value) -> Option<BTreeMap<String, f64>> {
        let configs = routes.get("configs")?.as_array()?;
        let hosts = configs
            .iter()
            .filter_map(|item| item.pointer("/route_config/virtual_hosts")?.as_array());
        let own = host(&self.namespace);
        let domains = [own.clone(), format!("{own}:{}", self.port)];
        let found = hosts.flatten().find(|item| {
            let listed = item.get("domains").and_then(Value::as_array).into_iter().flatten();
            listed.filter_map(Value::as_str).any(|domain| domains.iter().any(|own| own == domain))
        })?;
        let action = found.pointer("/routes/0/route")?;
        if let Some(cluster) = action.get("cluster").and_then(Value::as_str) {
            return Some([(cluster.to_owned(), 1.0)].into());
        }
        let weighted = action.get("weighted_clusters")?;
        let prefix = weighted.get("runtime_key_prefix").and_then(Value::as_str);
        let clusters = weighted.get("clusters")?.as_array()?.iter().filter_map(|item| {
            let name = item.get("name")?.as_str()?;
            // Runtime goes before the route.
            let of_runtime = prefix.and_then(|prefix| {
                let entry = runtime.get("entries")?.get(format!("{prefix}.{name}"))?;
                entry.get("final_value")?.as_str()?.parse::<f64>().ok()
            });
            let weight = item.get("weight").and_then(Value::as_f64).unwrap_or(0.0);
            Some((name.to_owned(), of_runtime.unwrap_or(weight)))
        });
        Some(clusters.collect())
    }
}

async fn json(envoy: &Admin, path: &str) -> Result<Value, Error> {
    let body = envoy.get(path).await?;
    serde_json::from_slice(&body)
        .map_err(|error| Error::Admin { path: path.to_owned(), reason: error.to_string() })
}

fn share(of: &BTreeMap<String, f64>, name: &str, sum: f64) -> f64 {
    of.get(name).copied().unwrap_or(0.0) / sum
}

/// Whether both give the same share to each cluster.
fn same_shares(found: &BTreeMap<String, f64>, wanted: &BTreeMap<String, f64>) -> bool {
    let (all, all_wanted): (f64, f64) = (found.values().sum(), wanted.values().sum());
    all > 0.0
        && all_wanted > 0.0
        && found
            .keys()
            .chain(wanted.keys())
            .all(|name| (share(found, name, all) - share(wanted, name, all_wanted)).abs() < 1e-4)
}

/// The addresses of a cluster that take requests.
fn endpoints(clusters: &Value, name: &str) -> BTreeSet<String> {
    let all = clusters.get("cluster_statuses").and_then(Value::as_array).into_iter().flatten();
    let own = all.filter(|cluster| cluster.get("name").and_then(Value::as_str) == Some(name));
    let hosts = own.filter_map(|cluster| cluster.get("host_statuses")?.as_array()).flatten();
    let healthy = hosts.filter(|host| {
        host.pointer("/health_status/eds_health_status").and_then(Value::as_str) == Some("HEALTHY")
    });
    healthy
        .filter_map(|host| host.pointer("/address/socket_address/address")?.as_str())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn runtime_goes_before_the_route() {
        let service = Service { namespace: "shop".to_owned(), port: 80 };
        let (v1, v2) = (service.cluster("v1"), service.cluster("v2"));
        let routes = json!({"configs": [{"route_config": {"virtual_hosts": [
            {"domains": ["other"]},
            {"domains": ["my-app.shop.svc.cluster.local"], "routes": [{"route": {"weighted_clusters": {
                "runtime_key_prefix": "weir.p",
                "clusters": [{"name": v1, "weight": 90}, {"name": v2, "weight": 10}],
            }}}]},
        ]}}]});
        let wanted =
            |percent: f64| BTreeMap::from([(v1.clone(), 100.0 - percent), (v2.clone(), percent)]);
        let weights = service.weights(&routes, &json!({"entries": {}})).unwrap();
        assert!(same_shares(&weights, &wanted(10.0)) && !same_shares(&weights, &wanted(11.0)));
        let runtime = json!({"entries": {
            format!("weir.p.{v1}"): {"final_value": "5000"},
            format!("weir.p.{v2}"): {"final_value": "5000"},
        }});
        assert!(same_shares(&service.weights(&routes, &runtime).unwrap(), &wanted(50.0)));
    }
}
