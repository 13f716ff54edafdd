//! What differs between two versions of an object, in a few words. Pure.

use super::entry::ShareChange;
use crate::api::{
    Destination, DestinationRule, HttpRouteDestination, Object, RouteDestination, Spec,
    VirtualService, share_of,
};

/// How many routes and fields are named.
const NAMED: usize = 4;

/// How many weights are kept.
const SHARES: usize = 16;

/// What differs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Change {
    /// In words: the weights before and after, and which other fields changed.
    pub text: String,
    /// The weights that changed; those of all weighted routes if there was no version before.
    pub shares: Vec<ShareChange>,
}

/// What differs between the version before, if there was one, and this one.
pub(crate) fn between(old: Option<&Object>, new: &Object) -> Change {
    let mut fields = Vec::new();
    if let Some(old) = old {
        if old.meta.labels != new.meta.labels {
            fields.push("metadata.labels".to_owned());
        }
        if old.meta.annotations != new.meta.annotations {
            fields.push("metadata.annotations".to_owned());
        }
    }
    let mut shares = Vec::new();
    match (old.map(|old| &old.spec), &new.spec) {
        (old, Spec::VirtualService(new)) => {
            let old = match old {
                Some(Spec::VirtualService(old)) => Some(old),
                _ => None,
            };
            shares = routes(old, new, &mut fields);
        }
        (Some(Spec::DestinationRule(old)), Spec::DestinationRule(new)) => {
            rule(old, new, &mut fields);
        }
        (Some(old), new) if old != new => fields.push("spec".to_owned()),
        _ => {}
    }
    let weights = in_words(&shares);
    shares.truncate(SHARES);
    let changed = match fields.as_slice() {
        [] => String::new(),
        fields if weights.is_empty() => format!("changes {}", some_of(fields)),
        fields => format!("also changes {}", some_of(fields)),
    };
    let parts = [weights, changed].into_iter().filter(|part| !part.is_empty());
    Change { text: parts.collect::<Vec<_>>().join("; "), shares }
}

/// The first of these, and how many more there are.
fn some_of(list: &[String]) -> String {
    let first = list.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match list.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// The weights that changed. Adds the other fields that did.
fn routes(
    old: Option<&VirtualService>,
    new: &VirtualService,
    fields: &mut Vec<String>,
) -> Vec<ShareChange> {
    let nothing = VirtualService::default();
    let before = old.unwrap_or(&nothing);
    if old.is_some() {
        for (name, same) in [
            ("hosts", before.hosts == new.hosts),
            ("gateways", before.gateways == new.gateways),
            ("exportTo", before.export_to == new.export_to),
        ] {
            if !same {
                fields.push(format!("spec.{name}"));
            }
        }
    }
    let mut found = Vec::new();
    for n in 0..before.http.len().max(new.http.len()) {
        let (field, routes) = (format!("spec.http[{n}]"), (before.http.get(n), new.http.get(n)));
        let [was, is] =
            [routes.0, routes.1].map(|route| route.map_or(&[][..], |route| &route.route[..]));
        let changes = weights(&field, was, is);
        let only_weights = match routes {
            (Some(was), Some(is)) => {
                same_headers(&was.route, &is.route) && {
                    let mut of_before = is.clone();
                    of_before.route.clone_from(&was.route);
                    of_before == *was
                }
            }
            _ => false,
        };
        if old.is_some() && routes.0 != routes.1 && (!only_weights || changes.is_empty()) {
            fields.push(field);
        }
        found.extend(changes);
    }
    let streams = [
        ("tcp", pairs(&before.tcp, &new.tcp, |route| &route.route)),
        ("tls", pairs(&before.tls, &new.tls, |route| &route.route)),
    ];
    for (name, pairs) in streams {
        for (n, (was, is, differ)) in pairs.into_iter().enumerate() {
            let field = format!("spec.{name}[{n}]");
            let changes = weights(&field, &was, &is);
            if old.is_some() && differ && changes.is_empty() {
                fields.push(field);
            }
            found.extend(changes);
        }
    }
    found
}

/// The destinations of routes of connections before and after, and whether the routes differ.
fn pairs<R: PartialEq>(
    before: &[R],
    after: &[R],
    destinations: impl Fn(&R) -> &Vec<RouteDestination>,
) -> Vec<(Vec<HttpRouteDestination>, Vec<HttpRouteDestination>, bool)> {
    let count = before.len().max(after.len());
    let pairs = (0..count).map(|n| {
        let (was, is) = (before.get(n), after.get(n));
        let [old, new] = [was, is].map(|route| {
            let list = route.map_or(&[][..], |route| destinations(route).as_slice());
            let list = list.iter().map(|item| HttpRouteDestination {
                destination: item.destination.clone(),
                weight: item.weight,
                headers: None,
            });
            list.collect()
        });
        (old, new, was != is)
    });
    pairs.collect()
}

/// Whether no destination has other headers than before.
fn same_headers(old: &[HttpRouteDestination], new: &[HttpRouteDestination]) -> bool {
    new.iter().all(|new| {
        let mut same = old.iter().filter(|old| old.destination == new.destination);
        same.all(|old| old.headers == new.headers)
    })
}

/// The shares of a route that changed. A route with a single destination before and after has none.
fn weights(
    field: &str,
    old: &[HttpRouteDestination],
    new: &[HttpRouteDestination],
) -> Vec<ShareChange> {
    if old.len() < 2 && new.len() < 2 {
        return Vec::new();
    }
    let mut all: Vec<&Destination> = Vec::new();
    for to in old.iter().chain(new).filter_map(|entry| entry.destination.as_ref()) {
        if !all.contains(&to) {
            all.push(to);
        }
    }
    let shares = all.into_iter().filter_map(|to| {
        let [before, after] = [old, new].map(|list| {
            let is_there = list.iter().any(|entry| entry.destination.as_ref() == Some(to));
            is_there.then(|| percent(share_of(list, Some(to))))
        });
        let (host, subset) = (to.host.clone(), to.subset.clone());
        let field = field.to_owned();
        (before != after).then_some(ShareChange { field, host, subset, before, after })
    });
    shares.collect()
}

/// A share in percent, rounded to hundredths.
fn percent(share: f64) -> f64 {
    (share * 10_000.0).round() / 100.0
}

fn in_words(shares: &[ShareChange]) -> String {
    let mut routes: Vec<(&str, Vec<String>)> = Vec::new();
    for share in shares {
        let name = if share.subset.is_empty() { &share.host } else { &share.subset };
        let text = match (share.before, share.after) {
            (Some(before), Some(after)) => format!("{name} {before} -> {after} %"),
            (None, Some(after)) => format!("{name} {after} %"),
            (Some(before), None) => format!("{name} {before} % -> none"),
            (None, None) => continue,
        };
        match routes.last_mut() {
            Some((field, texts)) if *field == share.field => texts.push(text),
            _ => routes.push((&share.field, vec![text])),
        }
    }
    let texts = routes.into_iter().map(|(field, texts)| format!("{field}: {}", some_of(&texts)));
    some_of(&texts.collect::<Vec<_>>())
}

/// The fields of a DestinationRule that differ.
fn rule(old: &DestinationRule, new: &DestinationRule, fields: &mut Vec<String>) {
    for (name, same) in [
        ("host", old.host == new.host),
        ("trafficPolicy", old.traffic_policy == new.traffic_policy),
        ("exportTo", old.export_to == new.export_to),
        ("workloadSelector", old.workload_selector == new.workload_selector),
    ] {
        if !same {
            fields.push(format!("spec.{name}"));
        }
    }
    for subset in &new.subsets {
        let name = &subset.name;
        match old.subsets.iter().find(|old| old.name == *name) {
            None => fields.push(format!("subset `{name}` (new)")),
            Some(old) if old != subset => fields.push(format!("subset `{name}`")),
            Some(_) => {}
        }
    }
    for gone in old.subsets.iter().filter(|old| !new.subsets.iter().any(|new| new.name == old.name))
    {
        fields.push(format!("subset `{}` (removed)", gone.name));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::{self, Identity};

    fn object(kind: &str, spec: &Value) -> Object {
        let document = json!({"apiVersion": "networking.istio.io/v1", "kind": kind,
                              "metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
        let Ok(Identity::Known(key)) = api::identify(&document) else { panic!("{document}") };
        api::parse(&key, document, 0).unwrap().object
    }

    fn route(weights: &[(&str, i64)], timeout: &str) -> Value {
        let route = weights.iter().map(|(subset, weight)| {
            json!({"destination": {"host": "web", "subset": subset}, "weight": weight})
        });
        json!({"timeout": timeout, "route": route.collect::<Vec<_>>()})
    }

    fn virtual_service(http: &[Value]) -> Object {
        object("VirtualService", &json!({"hosts": ["web"], "http": http}))
    }

    fn text(old: Option<&Object>, new: &Object) -> String {
        between(old, new).text
    }

    #[test]
    fn a_virtual_service_is_described_by_its_weights_and_its_other_fields() {
        let first = virtual_service(&[route(&[("v1", 100), ("v2", 0)], "1s")]);
        assert_eq!(text(None, &first), "spec.http[0]: v1 100 %, v2 0 %");
        let step = virtual_service(&[route(&[("v1", 90), ("v2", 10)], "1s")]);
        assert_eq!(text(Some(&first), &step), "spec.http[0]: v1 100 -> 90 %, v2 0 -> 10 %");
        let changed = between(Some(&first), &step).shares;
        assert_eq!((changed[1].before, changed[1].after), (Some(0.0), Some(10.0)));
        let slow = virtual_service(&[route(&[("v1", 90), ("v2", 10)], "2s")]);
        assert_eq!(text(Some(&step), &slow), "changes spec.http[0]");
        let both =
            virtual_service(&[route(&[("v1", 50), ("v2", 50)], "2s"), route(&[("v1", 1)], "1s")]);
        assert_eq!(
            text(Some(&step), &both),
            "spec.http[0]: v1 90 -> 50 %, v2 10 -> 50 %; also changes spec.http[0], spec.http[1]"
        );
        let third = virtual_service(&[route(&[("v1", 50), ("v3", 50)], "1s")]);
        assert_eq!(
            text(Some(&step), &third),
            "spec.http[0]: v1 90 -> 50 %, v2 10 % -> none, v3 50 %"
        );
        assert_eq!(between(Some(&step), &step), Change::default());
    }

    #[test]
    fn weights_of_connections_are_described_too() {
        let tcp = |v2: i64| {
            let spec = json!({"hosts": ["web"], "tcp": [{"route": [
                {"destination": {"host": "web", "subset": "v1"}, "weight": 100 - v2},
                {"destination": {"host": "web-2"}, "weight": v2}]}]});
            object("VirtualService", &spec)
        };
        assert_eq!(text(Some(&tcp(0)), &tcp(25)), "spec.tcp[0]: v1 100 -> 75 %, web-2 0 -> 25 %");
    }

    #[test]
    fn a_rule_is_described_by_its_subsets_and_fields() {
        let [old, new] = [json!(["v1", "v2"]), json!(["v2", "v3"])].map(|names| {
            let is_new = names[0] == "v2";
            let subsets = names.as_array().unwrap().iter().map(|name| {
                json!({"name": name, "labels": {"version": if is_new { json!("x") } else { name.clone() }}})
            });
            let spec = json!({"host": if is_new { "web-2" } else { "web" },
                              "subsets": subsets.collect::<Vec<_>>()});
            object("DestinationRule", &spec)
        });
        assert_eq!(
            text(Some(&old), &new),
            "changes spec.host, subset `v2`, subset `v3` (new), subset `v1` (removed)"
        );
    }
}
