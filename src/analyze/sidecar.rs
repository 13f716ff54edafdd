//! Checks Sidecars: several for one pod, selectors without matches, and hosts without a service.

use std::collections::HashMap;

use super::index::Index;
use super::references::unknown_namespace;
use super::{Findings, code};
use crate::api::{self, Kind, Labels, Spec};
use crate::mesh::{covers, is_wildcard};
use crate::store::Entry;

pub(super) fn check(index: &Index<'_>, found: &mut Findings) {
    let mut by_namespace: HashMap<&str, Vec<(&Entry, &api::Sidecar)>> = HashMap::new();
    for entry in index.store.all(Kind::Sidecar) {
        if let Spec::Sidecar(spec) = &entry.object.spec {
            by_namespace.entry(&entry.object.meta.namespace).or_default().push((entry, spec));
            hosts(entry, spec, index, found);
        }
    }
    for (namespace, mut sidecars) in by_namespace {
        sidecars.sort_by_key(|(entry, _)| (entry.object.meta.age, entry.object.meta.name.clone()));
        for (n, (entry, spec)) in sidecars.iter().enumerate() {
            selector(namespace, entry, spec, sidecars.get(..n).unwrap_or_default(), index, found);
        }
    }
}

/// If several apply to a pod, the oldest wins.
fn selector(
    namespace: &str,
    entry: &Entry,
    spec: &api::Sidecar,
    older: &[(&Entry, &api::Sidecar)],
    index: &Index<'_>,
    found: &mut Findings,
) {
    let own = labels(spec);
    if own.is_empty() {
        if let Some((first, _)) = older.iter().find(|(_, other)| labels(other).is_empty()) {
            let message = format!(
                "{} also applies to the entire namespace and takes precedence",
                first.object.key()
            );
            let advice = "merge them, or add a workloadSelector to this one";
            found.add(&code::SIDECARS_WITHOUT_SELECTOR, entry, "", message, advice);
        }
        return;
    }
    let path = "spec.workloadSelector";
    let Some(pods) = index.workloads.get(namespace) else {
        return;
    };
    if !pods.iter().any(|pod| pod.may_have(&own)) {
        let message =
            format!("no pod in {namespace} has these labels, so the Sidecar applies to no proxy");
        found.add(
            &code::NO_WORKLOADS,
            entry,
            path,
            message,
            "correct the labels, or remove the Sidecar",
        );
        return;
    }
    let duplicate = older.iter().find(|(_, other)| {
        let other = labels(other);
        !other.is_empty() && pods.iter().any(|pod| pod.may_have(&own) && pod.may_have(&other))
    });
    if let Some((first, _)) = duplicate {
        let message = format!(
            "{} selects some of the same pods and takes precedence for them",
            first.object.key()
        );
        found.add(
            &code::SIDECAR_SELECTORS,
            entry,
            path,
            message,
            "merge them, or use disjoint selectors",
        );
    }
}

/// The labels of the workloads that a Sidecar selects; empty for all.
fn labels(spec: &api::Sidecar) -> Labels {
    spec.workload_selector.clone().unwrap_or_default().labels
}

fn hosts(entry: &Entry, spec: &api::Sidecar, index: &Index<'_>, found: &mut Findings) {
    for (n, listener) in spec.egress.iter().enumerate() {
        for (m, text) in listener.hosts.iter().enumerate() {
            // Excluded hosts need not exist.
            let Some((namespace, host)) =
                text.split_once('/').filter(|(name, _)| !name.starts_with('~'))
            else {
                continue;
            };
            let path = format!("spec.egress[{n}].hosts[{m}]");
            let (host, own) = (host.to_ascii_lowercase(), &*entry.object.meta.namespace);
            let namespace = if namespace == "." { own } else { namespace };
            if index.is_unknown_namespace(namespace) && namespace != "*" {
                unknown_namespace(entry, namespace, path, index, found);
                continue;
            }
            let is_there = match (namespace, index.hosts.get(namespace)) {
                _ if host == "*" => true,
                ("*", _) => index.is_known(&host),
                (_, None) => false,
                (_, Some(known)) if is_wildcard(&host) => {
                    known.iter().any(|known| covers(&host, known))
                }
                (_, Some(known)) => known.iter().any(|known| covers(known, &host)),
            };
            if !is_there && !index.is_rejected_host(&host) {
                let message = format!("no service matches `{text}`, so this entry has no effect");
                let advice = "check the namespace and the host, which is a full name like web.shop.svc.cluster.local";
                found.add(&code::EGRESS_HOST, entry, path, message, advice);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{base, found};

    fn sidecar(name: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{egress: [{{hosts: ['./*']}}], {spec}}}\n"
        )
    }

    fn found_in_all(specs: &[&str]) -> Vec<(&'static str, String)> {
        let objects = specs.iter().enumerate().map(|(n, spec)| sidecar(&format!("s{n}"), spec));
        found(&(base() + &objects.collect::<String>()))
    }

    #[test]
    fn one_sidecar_applies_to_a_pod() {
        let app = "workloadSelector: {labels: {app: web}}";
        let version = "workloadSelector: {labels: {version: v1}}";
        assert_eq!(found_in_all(&["", app]), []);
        assert_eq!(found_in_all(&["", ""]), [("IST0111", String::new())]);
        assert_eq!(
            found_in_all(&[app, version]),
            [("IST0110", "spec.workloadSelector".to_owned())]
        );
        assert_eq!(found_in_all(&[version, "workloadSelector: {labels: {version: v2}}"]), []);
        let nobody = "workloadSelector: {labels: {app: nobody}}";
        assert_eq!(found_in_all(&[nobody]), [("IST0127", "spec.workloadSelector".to_owned())]);
    }

    fn found_with_egress_to(host: &str) -> Vec<(&'static str, String)> {
        let namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: pay}\n";
        let entry = "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: pay}\n\
                     spec: {hosts: ['*.example.com'], ports: [{name: http, number: 80, protocol: HTTP}]}\n";
        let sidecar = sidecar("s", "").replace("./*", host);
        found(&(base() + namespace + entry + &sidecar))
    }

    #[test]
    fn hosts_are_those_of_services() {
        let path = "spec.egress[0].hosts[0]".to_owned();
        for fine in [
            "shop/*",
            "./web.shop.svc.cluster.local",
            "*/web.shop.svc.cluster.local",
            "./*.shop.svc.cluster.local",
            "pay/*",
            "pay/api.example.com",
            "*/api.example.com",
            "~/*",
        ] {
            assert_eq!(found_with_egress_to(fine), [], "{fine}");
        }
        for nothing in [
            "./cart.shop.svc.cluster.local",
            "pay/web.shop.svc.cluster.local",
            "*/api.example.org",
            "./*.example.com",
        ] {
            assert_eq!(found_with_egress_to(nothing), [("WEIR0112", path.clone())], "{nothing}");
        }
        assert_eq!(found_with_egress_to("nowhere/*"), [("WEIR0109", path)]);
    }
}
