//! Checks PeerAuthentications: those without effect, and those that sidecars without certificates cannot meet.

use std::collections::BTreeMap;

use super::index::Index;
use super::{Findings, code};
use crate::api::{self, Kind, Labels, ObjectKey, Spec};
use crate::inject::STATUS;
use crate::mesh::{Accepts, PeerPolicy, TLS_MODE, TLS_MODE_ISTIO};
use crate::store::Entry;
use crate::text::first_of;

/// How many pods are named.
const NAMED: usize = 3;

/// The annotations by which inbound connections do not go through the sidecar.
const INTERCEPTION: &str = "sidecar.istio.io/interceptionMode";
const PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
const PROXY_CONFIG: &str = "proxy.istio.io/config";

type Policy<'a> = (&'a Entry, &'a api::PeerAuthentication);

pub(super) fn check(index: &Index<'_>, found: &mut Findings) {
    let mut all: Vec<Policy<'_>> = Vec::new();
    for entry in index.store.all(Kind::PeerAuthentication) {
        if let Spec::PeerAuthentication(spec) = &entry.object.spec {
            all.push((entry, spec));
        }
    }
    if all.is_empty() {
        return;
    }
    all.sort_by_key(|(entry, _)| (entry.object.meta.age, entry.object.key()));
    for (n, (entry, spec)) in all.iter().enumerate() {
        effect(entry, spec, all.get(..n).unwrap_or_default(), index, found);
    }
    overlaps(&all, index, found);
    without_certificates(index, found);
}

/// `older` are the policies that take precedence over this one where both are for the same workloads.
fn effect(
    entry: &Entry,
    spec: &api::PeerAuthentication,
    older: &[Policy<'_>],
    index: &Index<'_>,
    found: &mut Findings,
) {
    let namespace = &entry.object.meta.namespace;
    let is_root = *namespace == index.mesh.config.root_namespace;
    let (own, path) = (spec.labels(), "spec.selector");
    let same = older
        .iter()
        .find(|(other, spec)| other.object.meta.namespace == *namespace && spec.labels() == own);
    if let Some((first, _)) = same {
        let workloads = match (own.is_empty(), is_root) {
            (false, _) => "the same workloads".to_owned(),
            (true, false) => format!("all workloads of {namespace}, as this one,"),
            (true, true) => "the whole mesh, as this one,".to_owned(),
        };
        let first = first.object.key();
        let message =
            format!("{first} is for {workloads} and older: it applies, and this one is ignored");
        found.add(&code::PEER_POLICY_IGNORED, entry, path, message, "remove one of them");
        return;
    }
    if own.is_empty() {
        return;
    }
    if is_root {
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

/// Policies with different selectors that select the same pods.
fn overlaps(all: &[Policy<'_>], index: &Index<'_>, found: &mut Findings) {
    let by_key: BTreeMap<ObjectKey, Policy<'_>> =
        all.iter().map(|policy| (policy.0.object.key(), *policy)).collect();
    let (policies, root) = (&index.mesh.peer_authentications, &index.mesh.config.root_namespace);
    // The pods by the policy that is ignored for them, and the one that applies.
    let mut pods: BTreeMap<(&ObjectKey, &ObjectKey), Vec<&str>> = BTreeMap::new();
    for pod in index.store.all(Kind::Pod) {
        let meta = &pod.object.meta;
        let mut selecting = policies.selecting(&meta.namespace, &meta.labels, root);
        let Some(applies) = selecting.next() else {
            continue;
        };
        for ignored in selecting {
            pods.entry((ignored, applies)).or_default().push(&meta.name);
        }
    }
    for ((ignored, applies), mut names) in pods {
        let Some(((entry, spec), (_, other))) = by_key.get(ignored).zip(by_key.get(applies)) else {
            continue;
        };
        // The same selector is reported for the policy as a whole.
        if spec.labels() == other.labels() {
            continue;
        }
        names.sort_unstable();
        let message = format!(
            "{applies} is older and selects {} as well: it applies there, and this one is ignored",
            pods_named(&names)
        );
        let advice = "select different pods, or write one policy for them";
        found.add(&code::PEER_POLICY_IGNORED, entry, "spec.selector", message, advice);
    }
}

/// Pods whose sidecars have to take mutual TLS but say that they have no certificates.
fn without_certificates(index: &Index<'_>, found: &mut Findings) {
    if !index.config.identities {
        return;
    }
    let mut pods: BTreeMap<ObjectKey, (&'static str, Vec<String>)> = BTreeMap::new();
    for pod in index.store.all(Kind::Pod) {
        let meta = &pod.object.meta;
        if !lacks_certificates(&meta.labels, &meta.annotations) {
            continue;
        }
        let policy = index.mesh.peer_authentications.of_workload(
            &meta.namespace,
            &meta.labels,
            &index.config.root_namespace,
        );
        if let (Some(path), Some(key)) = (strict(&policy), policy.objects.first()) {
            let (_, names) = pods.entry(key.clone()).or_insert_with(|| (path, Vec::new()));
            names.push(format!("{}/{}", meta.namespace, meta.name));
        }
    }
    for (key, (path, mut names)) in pods {
        let Some(entry) = index.store.get(&key) else { continue };
        names.sort_unstable();
        let message = format!(
            "requires mutual TLS of {}, whose label {TLS_MODE} says that the sidecar has no certificates: clients send \
             plain text, and it is refused",
            pods_named(&names)
        );
        let advice = "give the sidecars an identity and inject the pods again, or let the policy be PERMISSIVE for them";
        found.add(&code::STRICT_WITHOUT_CERTIFICATES, entry, path, message, advice);
    }
}

/// Whether an injected pod has a proxy for its inbound connections, and a label by which that has no certificates.
fn lacks_certificates(labels: &Labels, annotations: &Labels) -> bool {
    let redirects = annotations.get(INTERCEPTION).is_none_or(|mode| mode != "NONE")
        && annotations.get(PORTS).is_none_or(|ports| !ports.trim().is_empty())
        && annotations.get(PROXY_CONFIG).is_none_or(|text| !text.contains("interceptionMode"));
    let has_certificates = labels.get(TLS_MODE).is_none_or(|mode| mode == TLS_MODE_ISTIO);
    annotations.contains_key(STATUS) && redirects && !has_certificates
}

/// The field that makes some port of a workload strict.
fn strict(policy: &PeerPolicy) -> Option<&'static str> {
    if policy.default == Accepts::MutualTls {
        return Some("spec.mtls.mode");
    }
    let of_port = policy.ports.values().any(|accepts| *accepts == Accepts::MutualTls);
    of_port.then_some("spec.portLevelMtls")
}

/// `pod a`, `pods a and b` or `pods a, b, c and 2 more`.
fn pods_named(names: &[impl AsRef<str>]) -> String {
    let word = if names.len() == 1 { "pod" } else { "pods" };
    format!("{word} {}", first_of(names, NAMED))
}

#[cfg(test)]
mod tests {
    use super::super::analyze;
    use super::super::tests::{base, found, store};
    use crate::mesh::MeshConfig;

    fn policy(name: &str, namespace: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        )
    }

    /// Path and message of each finding.
    fn messages(text: &str, config: &MeshConfig) -> Vec<(String, String)> {
        let found = analyze(&store(text), config).into_iter();
        found.map(|finding| (finding.path, finding.message)).collect()
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
    fn of_two_policies_for_the_same_the_finding_names_both() {
        for (namespace, spec, for_what) in [
            ("shop", "mtls: {mode: STRICT}", "all workloads of shop, as this one,"),
            ("istio-system", "mtls: {mode: STRICT}", "the whole mesh, as this one,"),
            ("shop", WEB, "the same workloads"),
        ] {
            let text = base() + &policy("b", namespace, spec) + &policy("a", namespace, spec);
            let found = analyze(&store(&text), &MeshConfig::default());
            let [only] = found.as_slice() else { panic!("{found:?}") };
            let ignored = only.object.as_ref().map(ToString::to_string).unwrap();
            assert_eq!(ignored, format!("PeerAuthentication {namespace}/a"));
            let expected = format!(
                "PeerAuthentication {namespace}/b is for {for_what} and older: it applies, and this one is ignored"
            );
            assert_eq!(only.message, expected);
        }
    }

    fn ignored(older: &str) -> (String, String) {
        let message = format!(
            "PeerAuthentication shop/{older} is older and selects pod web-v1 as well: it applies there, and this one is \
             ignored"
        );
        ("spec.selector".to_owned(), message)
    }

    #[test]
    fn a_policy_is_ignored_for_pods_that_an_older_one_selects() {
        let v1 = "selector: {matchLabels: {version: v1}}, mtls: {mode: DISABLE}";
        let both = base() + &policy("web", "shop", WEB) + &policy("v1", "shop", v1);
        let config = MeshConfig::default();
        assert_eq!(messages(&both, &config), [ignored("web")]);
        let all = base() + &policy("v1", "shop", v1) + &policy("web", "shop", WEB);
        assert_eq!(messages(&all, &config), [ignored("v1")]);
        let v2 =
            base() + &policy("v2", "shop", &v1.replace("v1", "v2")) + &policy("v1", "shop", v1);
        assert_eq!(messages(&v2, &config), []);
        // One for the namespace gives way to one with a selector.
        let wider =
            base() + &policy("ns", "shop", "mtls: {mode: STRICT}") + &policy("v1", "shop", v1);
        assert_eq!(messages(&wider, &config), []);
    }

    #[test]
    fn a_strict_policy_for_sidecars_without_certificates_is_found() {
        let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web-0, namespace: shop, labels: {app: web, \
                   security.istio.io/tlsMode: disabled}, annotations: {sidecar.istio.io/status: '{}'}}\n";
        let identities = MeshConfig { identities: true, ..MeshConfig::default() };
        let text = base() + pod + &policy("a", "shop", WEB);
        let message = "requires mutual TLS of pod shop/web-0, whose label security.istio.io/tlsMode says that the sidecar \
                       has no certificates: clients send plain text, and it is refused";
        let expected = ("spec.mtls.mode".to_owned(), message.to_owned());
        assert_eq!(messages(&text, &identities), std::slice::from_ref(&expected));
        let of_port = "selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: STRICT}}";
        let of_port = base() + pod + &policy("a", "shop", of_port);
        let expected = ("spec.portLevelMtls".to_owned(), expected.1);
        assert_eq!(messages(&of_port, &identities), [expected]);

        // Without identities weir applies no policy to its proxies, and these pods have no such sidecar.
        assert_eq!(messages(&text, &MeshConfig::default()), []);
        for (from, to) in [
            ("mode: STRICT", "mode: PERMISSIVE"),
            ("tlsMode: disabled", "tlsMode: istio"),
            ("sidecar.istio.io/status", "sidecar.istio.io/inject"),
            (
                "{sidecar.istio.io/status",
                "{sidecar.istio.io/interceptionMode: NONE, sidecar.istio.io/status",
            ),
            (
                "{sidecar.istio.io/status",
                "{traffic.sidecar.istio.io/includeInboundPorts: '', sidecar.istio.io/status",
            ),
        ] {
            let found = messages(&text.replace(from, to), &identities);
            assert!(found.iter().all(|(_, text)| !text.starts_with("requires")), "{to}: {found:?}");
        }
    }
}
