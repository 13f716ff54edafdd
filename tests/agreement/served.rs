//! What an Envoy has, by its `/config_dump`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use weir::explain::{Destination, Explanation, Outcome};

use super::shares;

/// Resources by name, as canonical JSON.
type Resources = BTreeMap<String, Value>;

/// What Envoy has.
#[derive(Debug)]
pub(super) struct Served {
    clusters: Resources,
    endpoints: Resources,
    listeners: Resources,
    routes: Resources,
}

impl Served {
    pub(super) fn new(dump: &Value) -> Self {
        let configs = dump["configs"].as_array().unwrap();
        let all = |list: &str, part: &[&str], name: &str| -> Resources {
            let lists = configs.iter().filter_map(|config| config[list].as_array()).flatten();
            let parts = lists.map(|item| part.iter().fold(item, |value, key| &value[*key]));
            let named = parts.map(|item| (item[name].as_str().unwrap().to_owned(), camel(item)));
            named.map(|(name, item)| (name, without_type(item))).collect()
        };
        Self {
            clusters: all("dynamic_active_clusters", &["cluster"], "name"),
            endpoints: all("dynamic_endpoint_configs", &["endpoint_config"], "cluster_name"),
            listeners: all("dynamic_listeners", &["active_state", "listener"], "name"),
            routes: all("dynamic_route_configs", &["route_config"], "name"),
        }
    }

    /// Where `weir translate` prints something else.
    pub(super) fn differences(&self, translated: &Value) -> Vec<String> {
        let mut wrong = Vec::new();
        for (kind, own, name) in [
            ("clusters", &self.clusters, "name"),
            ("listeners", &self.listeners, "name"),
            ("routes", &self.routes, "name"),
        ] {
            let mut printed: Resources = translated[kind]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| (item[name].as_str().unwrap().to_owned(), plain(item)))
                .collect();
            for (name, own) in own {
                match printed.remove(name) {
                    Some(other) if other == plain(own) => {}
                    other => wrong
                        .push(format!("{kind} {name}: Envoy has\n  {}\nnot {other:?}", plain(own))),
                }
            }
            wrong.extend(printed.keys().map(|name| format!("{kind} {name}: Envoy has none")));
        }
        wrong
    }

    /// Where an answer says something else than what Envoy has.
    pub(super) fn contradictions(&self, answer: &Explanation) -> Vec<String> {
        let mut wrong = Vec::new();
        let taken = answer.considered.iter().find(|item| item.not.is_none());
        let action = match (&answer.virtual_host, taken.and_then(|item| item.index)) {
            (Some(host), Some(index)) => {
                let routes =
                    answer.route_configuration.as_ref().and_then(|name| self.routes.get(name));
                let hosts = routes
                    .and_then(|routes| routes["virtualHosts"].as_array())
                    .into_iter()
                    .flatten();
                let host = hosts.into_iter().find(|item| item["name"] == host.as_str());
                host.map(|host| host["routes"][index].clone())
            }
            _ if answer.route_configuration.is_none() => self.tcp_proxy(&answer.listener),
            _ => None,
        };
        match &answer.outcome {
            Outcome::Forward { destinations, copies, .. } => {
                let Some(action) = action else {
                    return vec!["Envoy has no such route".to_owned()];
                };
                let explained =
                    shares(destinations.iter().map(|to| (to.cluster.as_str(), to.percent)));
                let has = cluster_shares(if action["route"].is_null() {
                    &action
                } else {
                    &action["route"]
                });
                if explained != has {
                    wrong.push(format!("Envoy has the shares {has:?}, not {explained:?}"));
                }
                let mirrors =
                    action["route"]["requestMirrorPolicies"].as_array().into_iter().flatten();
                let mirrors: BTreeSet<_> =
                    mirrors.filter_map(|item| item["cluster"].as_str()).collect();
                let explained: BTreeSet<_> = copies.iter().map(|to| to.cluster.as_str()).collect();
                if explained != mirrors {
                    wrong.push(format!("Envoy sends copies to {mirrors:?}, not {explained:?}"));
                }
                wrong.extend(
                    destinations.iter().chain(copies).flat_map(|to| self.of_destination(to)),
                );
            }
            Outcome::Respond { status, .. } => {
                let has = action.as_ref().map(|action| &action["directResponse"]["status"]);
                if has.is_none_or(|has| *has != *status) {
                    wrong.push(format!("Envoy does not answer {status}: {action:?}"));
                }
            }
            Outcome::Redirect { .. }
                if action.as_ref().is_none_or(|action| action["redirect"].is_null()) =>
            {
                wrong.push(format!("Envoy does not redirect: {action:?}"));
            }
            _ => {}
        }
        wrong
    }

    fn of_destination(&self, to: &Destination) -> Vec<String> {
        let mut wrong = Vec::new();
        let name = &to.cluster;
        if self.clusters.contains_key(name) == to.missing {
            wrong
                .push(format!("Envoy has the cluster {name}: {}, not {}", !to.missing, to.missing));
        }
        if let Some(assignment) = self.endpoints.get(name) {
            let explained: BTreeSet<_> = to
                .endpoints
                .iter()
                .map(|endpoint| (endpoint.address.clone(), endpoint.healthy))
                .collect();
            let has = endpoints(assignment);
            if explained != has {
                wrong.push(format!("Envoy has the endpoints {has:?} of {name}, not {explained:?}"));
            }
        }
        wrong
    }

    fn tcp_proxy(&self, listener: &str) -> Option<Value> {
        let chains = self.listeners.get(listener)?["filterChains"].as_array()?.iter();
        let filters = chains.filter_map(|chain| chain["filters"].as_array()).flatten();
        let mut proxies = filters.map(|filter| &filter["typedConfig"]).filter(|config| {
            config["@type"].as_str().is_some_and(|kind| kind.ends_with(".TcpProxy"))
        });
        proxies.next().cloned()
    }
}

fn cluster_shares(action: &Value) -> BTreeMap<String, i64> {
    if let Some(cluster) = action["cluster"].as_str() {
        return shares(std::iter::once((cluster, 100.0)));
    }
    let list = action["weightedClusters"]["clusters"].as_array().cloned().unwrap_or_default();
    let total: f64 = list.iter().filter_map(|item| item["weight"].as_f64()).sum();
    shares(list.iter().filter_map(|item| {
        Some((item["name"].as_str()?, item["weight"].as_f64()? / total * 100.0))
    }))
}

fn endpoints(assignment: &Value) -> BTreeSet<(String, bool)> {
    let groups = assignment["endpoints"].as_array().into_iter().flatten();
    let all = groups.filter_map(|group| group["lbEndpoints"].as_array()).flatten();
    all.map(|item| {
        let address = &item["endpoint"]["address"]["socketAddress"];
        let at = format!("{}:{}", address["address"].as_str().unwrap(), address["portValue"]);
        (at, item["healthStatus"] != "UNHEALTHY")
    })
    .collect()
}

/// A resource alone, without what says in an `Any` of which type it is.
fn without_type(mut resource: Value) -> Value {
    if let Some(map) = resource.as_object_mut() {
        map.remove("@type");
    }
    resource
}

/// Envoy prints fields by the names that they have in its protos, and weir by those of JSON.
fn camel(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let renamed = map.iter().map(|(key, value)| {
                let mut up = false;
                let name = key.chars().filter_map(|c| {
                    let c = if std::mem::take(&mut up) { c.to_ascii_uppercase() } else { c };
                    up = c == '_';
                    (!up).then_some(c)
                });
                // Names of filters and extensions are keys of maps, and hold dots.
                let name = if key.contains('.') { key.clone() } else { name.collect() };
                (name, camel(value))
            });
            Value::Object(renamed.collect())
        }
        Value::Array(list) => list.iter().map(camel).collect(),
        other => other.clone(),
    }
}

/// Without what says nothing: one of both leaves out what is empty.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map
                .iter()
                .map(|(key, value)| (key.clone(), plain(value)))
                .filter(|(_, value)| !is_empty(value));
            Value::Object(kept.collect::<Map<_, _>>())
        }
        Value::Array(list) => list.iter().map(plain).collect(),
        other => other.clone(),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(true) => false,
    }
}
