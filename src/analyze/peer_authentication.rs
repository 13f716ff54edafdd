//! Checks PeerAuthentications: those without effect, and rules by which clients send plain text to workloads that refuse it.

use std::collections::BTreeSet;

use super::index::Index;
use super::{Findings, code};
use crate::api::{self, Kind, Spec, TlsMode};
use crate::mesh::Accepts;
use crate::store::Entry;
use crate::text::listed;

pub(super) fn check(index: &Index<'_>, found: &mut Findings) {
    let mut all: Vec<(&Entry, &api::PeerAuthentication)> = Vec::new();
    for entry in index.store.all(Kind::PeerAuthentication) {
        if let Spec::PeerAuthentication(spec) = &entry.object.spec {
            all.push((entry, spec));
        }
    }
    all.sort_by_key(|(entry, _)| (entry.object.meta.age, entry.object.key()));
    for (n, (entry, spec)) in all.iter().enumerate() {
        effect(entry, spec, all.get(..n).unwrap_or_default(), index, found);
    }
    for rule in &index.destination_rules {
        plain_text(rule.entry, rule.spec, &rule.host, index, found);
    }
}

/// `older` are the policies that take precedence over this one where both are for the same workloads.
fn effect(
    entry: &Entry,
    spec: &api::PeerAuthentication,
    older: &[(&Entry, &api::PeerAuthentication)],
    index: &Index<'_>,
    found: &mut Findings,
) {
    let namespace = &entry.object.meta.namespace;
    let (own, path) = (spec.labels(), "spec.selector");
    let same = older
        .iter()
        .find(|(other, spec)| other.object.meta.namespace == *namespace && spec.labels() == own);
    if let Some((first, _)) = same {
        let message = format!("{} is for the same workloads and older", first.object.key());
        found.add(&code::PEER_POLICY_IGNORED, entry, path, message, "remove one of them");
        return;
    }
    if own.is_empty() {
        return;
    }
    if *namespace == index.mesh.config.root_namespace {
        let message = format!("selects workloads in {namespace}, the root namespace");
        let advice = "write the policy into the namespace of the workloads, or remove the selector";
        found.add(&code::PEER_POLICY_IGNORED, entry, path, message, advice);
        return;
    }
    let pods = index.workloads.get(&**namespace).into_iter().flatten();
    let mut pods = pods.peekable();
    if pods.peek().is_some() && !pods.any(|pod| pod.may_have(&own)) {
        let message =
            format!("no pod in {namespace} has these labels, so the policy applies to no proxy");
        found.add(&code::NO_WORKLOADS, entry, path, message, "correct the labels");
    }
}

/// A rule that says DISABLE for endpoints that take only mutual TLS.
fn plain_text(
    entry: &Entry,
    spec: &api::DestinationRule,
    host: &str,
    index: &Index<'_>,
    found: &mut Findings,
) {
    let policy = spec.traffic_policy.as_deref();
    let is_disabled = policy
        .and_then(|policy| policy.tls.as_ref())
        .is_some_and(|tls| tls.mode == TlsMode::Disable);
    if !is_disabled {
        return;
    }
    let mesh = &index.mesh;
    let mut by: BTreeSet<String> = BTreeSet::new();
    for known in mesh.services.get(host).into_iter().flat_map(|list| list.iter()) {
        for endpoint in known.endpoints.list.iter().filter(|endpoint| endpoint.takes_mutual_tls) {
            let peers = mesh.peer_policy_of(&endpoint.workload);
            if peers.at(endpoint.port) == Accepts::MutualTls {
                by.extend(peers.objects.iter().map(ToString::to_string));
            }
        }
    }
    if by.is_empty() {
        return;
    }
    let by: Vec<String> = by.into_iter().collect();
    let message = format!(
        "is DISABLE, but {host} has endpoints that take only mutual TLS, by {}",
        listed(&by, "and")
    );
    let advice = "remove tls from this rule, or let the policy be PERMISSIVE";
    found.add(&code::PLAIN_TEXT_REFUSED, entry, "spec.trafficPolicy.tls.mode", message, advice);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{base, found};

    fn policy(name: &str, namespace: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        )
    }

    const WEB: &str = "selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}";

    #[test]
    fn policies_without_effect_are_found() {
        let ok = base() + &policy("a", "shop", WEB) + &policy("b", "shop", "mtls: {mode: STRICT}");
        assert_eq!(found(&ok), []);
        let twice = ok.clone() + &policy("c", "shop", WEB) + &policy("d", "shop", "mtls: {}");
        let ignored = ("WEIR0205", "spec.selector".to_owned());
        assert_eq!(found(&twice), [ignored.clone(), ignored.clone()]);
        assert_eq!(found(&(base() + &policy("a", "istio-system", WEB))), [ignored]);
        let nobody = "selector: {matchLabels: {app: nobody}}, mtls: {mode: STRICT}";
        let none = ("IST0127", "spec.selector".to_owned());
        assert_eq!(found(&(base() + &policy("a", "shop", nobody))), [none]);
    }

    #[test]
    fn a_rule_that_sends_plain_text_to_a_strict_workload_is_found() {
        let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web-tls, namespace: shop, labels: {app: web, \
                   version: v1, security.istio.io/tlsMode: istio}}\n\
                   ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                   metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\n\
                   addressType: IPv4\nports: [{name: http, port: 8080}]\n\
                   endpoints: [{addresses: [10.1.0.1], targetRef: {kind: Pod, name: web-tls, namespace: shop}}, \
                   {addresses: [10.1.0.2], targetRef: {kind: Pod, name: web-v2, namespace: shop}}]\n";
        let base = base()
            .replace("{host: web, ", "{host: web, trafficPolicy: {tls: {mode: DISABLE}}, ")
            + pod;
        assert_eq!(found(&base), []);
        let path = "spec.trafficPolicy.tls.mode".to_owned();
        let strict = base.clone() + &policy("a", "shop", WEB);
        assert_eq!(found(&strict), [("WEIR0206", path)]);
        let permissive = base + &policy("a", "shop", &WEB.replace("STRICT", "PERMISSIVE"));
        assert_eq!(found(&permissive), []);
    }
}
