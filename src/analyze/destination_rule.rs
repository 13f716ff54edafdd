//! Checks DestinationRules: unresolved hosts, subsets, ports and selectors, and TLS without verification. Invalid
//! values are reported when the objects are parsed.

use super::code::{self, Code};
use super::index::{Index, IndexedDestinationRule, IndexedService, shown};
use super::references::unknown_namespace;
use super::{Findings, any_of, protocols};
use crate::api::{ClientTlsSettings, LoadBalancerSettings, TlsMode, TrafficPolicy};
use crate::mesh::{Protocol, is_wildcard};
use crate::rollout_guard::HeldChange;

pub(super) fn check(rule: &IndexedDestinationRule<'_>, index: &Index<'_>, found: &mut Findings) {
    for (n, name) in rule.spec.export_to.iter().enumerate() {
        unknown_namespace(rule.entry, name, format!("spec.exportTo[{n}]"), index, found);
    }
    selector(rule, index, found);
    host_and_subsets(rule, index, found);
    if let Some(policy) = &rule.spec.traffic_policy {
        self::policy(rule, policy, "spec.trafficPolicy", index, found);
    }
    for (n, subset) in rule.spec.subsets.iter().enumerate() {
        if let Some(policy) = &subset.traffic_policy {
            self::policy(rule, policy, &format!("spec.subsets[{n}].trafficPolicy"), index, found);
        }
    }
}

fn selector(rule: &IndexedDestinationRule<'_>, index: &Index<'_>, found: &mut Findings) {
    let Some(selector) = &rule.spec.workload_selector else {
        return;
    };
    let namespace = rule.namespace();
    if let Some(pods) = index.workloads.get(namespace)
        && !pods.iter().any(|labels| labels.may_have(&selector.match_labels))
    {
        let message =
            format!("no pod in {namespace} has these labels, so the rule applies to no client");
        let advice = "correct the labels: they select clients, not the service";
        found.add(&code::NO_WORKLOADS, rule.entry, "spec.workloadSelector", message, advice);
    }
}

fn host_and_subsets(rule: &IndexedDestinationRule<'_>, index: &Index<'_>, found: &mut Findings) {
    let host = &*rule.host;
    if !index.is_known(host) {
        if !index.is_rejected_host(host) {
            let message = format!("`{host}` is not a known service, so the rule has no effect");
            let advice = match index.similar(host).as_slice() {
                [] => "check its spelling and namespace, or add a Service or ServiceEntry for it"
                    .to_owned(),
                similar => format!("did you mean {}?", any_of(similar)),
            };
            found.add(&code::UNUSED_RULE, rule.entry, "spec.host", message, advice);
        }
        return;
    }
    if let Some(service) = index.service(host).filter(|_| !is_wildcard(host)) {
        unused(rule, service, index, found);
        if let Some(target) = &service.alias_of {
            let target = shown(target, index.config);
            let message = format!(
                "{} is an ExternalName service: the rule for {target} applies",
                shown(host, index.config)
            );
            found.add(
                &code::UNUSED_RULE,
                rule.entry,
                "spec.host",
                message,
                format!("write the rule for {target}"),
            );
            return;
        }
    }
    subsets(rule, index, found);
}

/// Subsets that have no labels, or labels that no endpoint has.
fn subsets(rule: &IndexedDestinationRule<'_>, index: &Index<'_>, found: &mut Findings) {
    let name = shown(&rule.host, index.config);
    let endpoints = index
        .service(&rule.host)
        .filter(|_| !is_wildcard(&rule.host))
        .and_then(|service| service.endpoints.as_ref());
    for (n, subset) in rule.spec.subsets.iter().enumerate() {
        let path = format!("spec.subsets[{n}].labels");
        if subset.labels.is_empty() {
            let message =
                format!("the subset `{}` has no labels, so it contains all of {name}", subset.name);
            let advice = "add labels that select its pods, unless it exists only for its policy";
            found.add(&code::SUBSET_WITHOUT_LABELS, rule.entry, path, message, advice);
            continue;
        }
        if let Some(endpoints) = endpoints
            && !endpoints.iter().any(|labels| labels.may_have(&subset.labels))
        {
            let labels: Vec<_> =
                subset.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let message = format!(
                "none of the {} known endpoints of {name} has {}: {}",
                endpoints.len(),
                labels.join(","),
                consequence(&rule.host, &subset.name, index)
            );
            found.add(
                &code::EMPTY_SUBSET,
                rule.entry,
                path,
                message,
                "correct the labels, or start the pods first",
            );
        }
    }
}

/// Describes what happens to traffic for a subset without endpoints.
fn consequence(host: &str, subset: &str, index: &Index<'_>) -> String {
    if index.weighted_subsets.iter().any(|(of, name)| **of == *host && name == subset) {
        return format!("requests to subset `{subset}` get 503");
    }
    let held = index.held.iter().find(|held| *held.host == *host && held.subset == subset);
    match held {
        Some(HeldChange { object, field, .. }) => {
            format!("the weight of subset `{subset}` in {object} {field} is held back")
        }
        None => format!("subset `{subset}` is empty, but no route assigns weight to it yet"),
    }
}

/// A rule in a namespace where no client looks: clients look in their own namespace, the service's and the root
/// namespace.
fn unused(
    rule: &IndexedDestinationRule<'_>,
    service: &IndexedService,
    index: &Index<'_>,
    found: &mut Findings,
) {
    let own = rule.namespace();
    if *own == service.namespace || **own == *index.config.root_namespace {
        return;
    }
    let name = shown(&rule.host, index.config);
    let (path, message, advice) = if !service.visibility.includes(own) {
        let message = format!(
            "{name} is not exported to {own}, the only namespace whose clients look for the rule here"
        );
        (
            "spec.host",
            message,
            format!("move the rule to {}, or export the service to {own}", service.namespace),
        )
    } else if !rule.visibility.includes(own) {
        let message = format!(
            "the rule does not apply to clients in {own}, and no other clients look for it here"
        );
        ("spec.exportTo", message, format!("add `.`, or move the rule to {}", service.namespace))
    } else {
        return;
    };
    found.add(&code::UNUSED_RULE, rule.entry, path, message, advice);
}

fn policy(
    rule: &IndexedDestinationRule<'_>,
    policy: &TrafficPolicy,
    path: &str,
    index: &Index<'_>,
    found: &mut Findings,
) {
    if let Some(tls) = &policy.tls {
        unverified(rule, tls, path, &code::UNVERIFIED, found);
    }
    let ports = index
        .real_service(&rule.host)
        .map(|(_, service)| service.ports.as_slice())
        .unwrap_or_default();
    hash_of_requests(rule, policy.load_balancer.as_ref(), path, ports, found);
    for (n, settings) in policy.port_level_settings.iter().enumerate() {
        let path = format!("{path}.portLevelSettings[{n}]");
        if let Some(port) = settings.port {
            self::port(rule, port.number, &format!("{path}.port.number"), index, found);
        }
        if let Some(tls) = &settings.tls {
            unverified(rule, tls, &path, &code::UNVERIFIED_PORT, found);
        }
        let number = settings.port.map_or(0, |port| port.number);
        let own: Vec<_> =
            ports.iter().copied().filter(|(known, _)| u32::from(*known) == number).collect();
        hash_of_requests(rule, settings.load_balancer.as_ref(), &path, &own, found);
    }
}

/// A hash of request attributes on ports where requests are not parsed.
fn hash_of_requests(
    rule: &IndexedDestinationRule<'_>,
    balancer: Option<&LoadBalancerSettings>,
    path: &str,
    ports: &[(u16, Protocol)],
    found: &mut Findings,
) {
    let Some(hash) = balancer.and_then(|balancer| balancer.consistent_hash.as_ref()) else {
        return;
    };
    if ports.is_empty() || ports.iter().any(|(_, protocol)| protocol.may_be_http()) {
        return;
    }
    let fields = [
        ("httpHeaderName", hash.http_header_name.is_some()),
        ("httpCookie", hash.http_cookie.is_some()),
        ("httpQueryParameterName", hash.http_query_parameter_name.is_some()),
    ];
    for (field, _) in fields.into_iter().filter(|(_, given)| *given) {
        let message =
            format!("has no effect, because requests are not parsed on {}", protocols::list(ports));
        let advice = "hash the client's address (useSourceIp: true), or name the port after its HTTP protocol";
        found.add(
            &code::NO_EFFECT,
            rule.entry,
            format!("{path}.loadBalancer.consistentHash.{field}"),
            message,
            advice,
        );
    }
}

/// A port that the service does not have.
fn port(
    rule: &IndexedDestinationRule<'_>,
    number: u32,
    path: &str,
    index: &Index<'_>,
    found: &mut Findings,
) {
    let Some(service) = index.service(&rule.host).filter(|_| !is_wildcard(&rule.host)) else {
        return;
    };
    if service.may_have_port(number) {
        return;
    }
    let name = shown(&rule.host, index.config);
    let known = service.port_numbers();
    let message =
        format!("the service {name} has no port {number}, so the settings have no effect");
    let advice = format!("use the port of the service, {}", any_of(&known));
    found.add(&code::UNKNOWN_PORT, rule.entry, path, message, advice);
}

fn unverified(
    rule: &IndexedDestinationRule<'_>,
    tls: &ClientTlsSettings,
    path: &str,
    code: &'static Code,
    found: &mut Findings,
) {
    // Without caCertificates the proxy's system trust store is used. With a credential TLS is not used at all, which is
    // reported when the rule is parsed.
    let verifiable =
        matches!(tls.mode, TlsMode::Simple | TlsMode::Mutual) && tls.credential_name.is_empty();
    if verifiable && tls.insecure_skip_verify == Some(true) {
        let message = "accepts any certificate, so the traffic can be intercepted";
        let advice = "remove it; set caCertificates if the system does not trust the server's CA";
        found.add(code, rule.entry, format!("{path}.tls.insecureSkipVerify"), message, advice);
    }
}

#[cfg(test)]
mod tests {
    use super::super::analyze;
    use super::super::tests::{base, found, found_in_rule as rule, store};
    use crate::mesh::{EmptySubset, MeshConfig};

    #[test]
    fn valid_objects_have_no_findings() {
        for fine in [
            "host: other, trafficPolicy: {loadBalancer: {simple: RANDOM}}",
            "host: other, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}",
            "host: other, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /ca.pem}}",
            "host: other, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}",
            "host: '*.shop.svc.cluster.local', trafficPolicy: {tls: {mode: DISABLE}}",
            "host: other, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x, maglev: {tableSize: 65537}}}}",
            "host: other, workloadSelector: {matchLabels: {app: web}}, exportTo: [.], trafficPolicy: {tls: {mode: DISABLE}}",
        ] {
            assert_eq!(rule(fine), [], "{fine}");
        }
    }

    #[test]
    fn hosts_and_subsets_resolve() {
        for (fields, code, path) in [
            ("host: nobody", "IST0174", "host"),
            ("host: '*.nowhere.example'", "IST0174", "host"),
            ("host: many, subsets: [{name: all}]", "WEIR0105", "subsets[0].labels"),
            (
                "host: web, subsets: [{name: v3, labels: {version: v3}}], exportTo: [other]",
                "IST0173",
                "subsets[0].labels",
            ),
            (
                "host: other, workloadSelector: {matchLabels: {app: nobody}}",
                "IST0127",
                "workloadSelector",
            ),
        ] {
            let found = rule(fields);
            assert!(found.contains(&(code, format!("spec.{path}"))), "{fields}: {found:?}");
        }
        let unknown = "host: other, subsets: [{name: v9, labels: {version: v9}}]";
        assert_eq!(rule(unknown), [], "its endpoints are unknown");
    }

    fn found_with(more: &str, fields: &str) -> Vec<(&'static str, String)> {
        found(&format!(
            "{}{more}---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: r, namespace: shop}}\nspec: {{{fields}}}\n",
            base()
        ))
    }

    #[test]
    fn a_subset_may_select_pods_by_location() {
        let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/region: eu, \
                    topology.kubernetes.io/zone: eu-a}}\n";
        let placed = "---\napiVersion: v1\nkind: Service\nmetadata: {name: placed, namespace: shop}\n\
                      spec: {clusterIP: 10.0.9.1, ports: [{name: http, port: 80}]}\n\
                      ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                      metadata: {name: p, namespace: shop, labels: {kubernetes.io/service-name: placed}}\n\
                      addressType: IPv4\nports: [{name: http, port: 8080}]\n\
                      endpoints: [{addresses: [10.1.1.1], nodeName: n1, targetRef: {kind: Pod, name: web-v1}}]\n";
        let empty = [("IST0173", "spec.subsets[0].labels".to_owned())];
        for (labels, without_node, with_node) in [
            ("topology.kubernetes.io/zone: eu-a", true, true),
            ("topology.kubernetes.io/zone: eu-b", true, false),
            ("topology.kubernetes.io/region: eu, version: v1", true, true),
            ("topology.kubernetes.io/region: eu, version: v2", false, false),
            ("topology.istio.io/subzone: rack", true, false),
            ("kubernetes.io/hostname: n1", true, true),
            ("kubernetes.io/hostname: n2", false, false),
            ("topology.istio.io/cluster: Kubernetes", true, true),
            ("topology.istio.io/cluster: other", false, false),
        ] {
            let rule = format!("host: placed, subsets: [{{name: s, labels: {{{labels}}}}}]");
            for (nodes, fine) in [("", without_node), (node, with_node)] {
                let found = found_with(&format!("{placed}{nodes}"), &rule);
                assert_eq!(found, if fine { &[][..] } else { &empty }, "{labels} {nodes}");
            }
        }
        // The locality of pods alone is unknown.
        for labels in ["topology.kubernetes.io/zone: eu-a", "topology.istio.io/cluster: Kubernetes"]
        {
            let rule =
                format!("host: web, subsets: [{{name: s, labels: {{{labels}, version: v1}}}}]");
            assert!(
                !found_with(node, &rule).iter().any(|(code, _)| *code == "IST0173"),
                "{labels}"
            );
            let selector = format!(
                "host: other, workloadSelector: {{matchLabels: {{{labels}, app: web}}}}, exportTo: [.]"
            );
            let selector = format!("{selector}, trafficPolicy: {{tls: {{mode: DISABLE}}}}");
            assert_eq!(found_with(node, &selector), [], "{labels}");
        }
    }

    fn found_in_namespace(namespace: &str, fields: &str) -> Vec<(&'static str, String)> {
        found(&format!(
            "{}---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: r, namespace: {namespace}}}\nspec: {{{fields}}}\n",
            base()
        ))
    }

    #[test]
    fn a_rule_must_be_in_a_namespace_where_clients_look_for_it() {
        let (hidden, other) =
            ("host: hidden.shop.svc.cluster.local", "host: other.shop.svc.cluster.local");
        for fine in ["shop", "third", "istio-system"] {
            assert_eq!(found_in_namespace(fine, hidden), [], "{fine}");
        }
        assert_eq!(found_in_namespace("pay", hidden), [("IST0174", "spec.host".to_owned())]);
        assert_eq!(found_in_namespace("pay", other), []);
        assert_eq!(
            found_in_namespace("pay", &format!("{other}, exportTo: [shop]")),
            [("IST0174", "spec.exportTo".to_owned())]
        );
    }

    fn at(start: &str, expected: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        expected.iter().map(|(code, path)| (*code, format!("spec.{start}.{path}"))).collect()
    }

    #[test]
    fn ports_and_tls_of_every_policy() {
        for (policy, expected) in [
            ("tls: {mode: SIMPLE}", vec![]),
            ("tls: {mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem}", vec![]),
            ("tls: {mode: SIMPLE, caCertificates: /ca.pem}", vec![]),
            ("tls: {mode: SIMPLE, insecureSkipVerify: false}", vec![]),
            (
                "tls: {mode: SIMPLE, insecureSkipVerify: true}",
                vec![("IST0128", "tls.insecureSkipVerify")],
            ),
            ("tls: {mode: SIMPLE, credentialName: x}", vec![("WEIR0202", "tls.credentialName")]),
            ("portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]", vec![]),
            (
                "portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, insecureSkipVerify: true}}]",
                vec![("IST0129", "portLevelSettings[0].tls.insecureSkipVerify")],
            ),
            (
                "portLevelSettings: [{port: {number: 81}, tls: {mode: DISABLE}}]",
                vec![("WEIR0106", "portLevelSettings[0].port.number")],
            ),
        ] {
            let found = rule(&format!("host: other, trafficPolicy: {{{policy}}}"));
            assert_eq!(found, at("trafficPolicy", &expected), "{policy}");
            let subset = "host: other, subsets: [{name: s, labels: {version: v1}, trafficPolicy";
            let found = rule(&format!("{subset}: {{{policy}}}}}]"));
            assert_eq!(found, at("subsets[0].trafficPolicy", &expected), "{policy}");
        }
    }

    fn findings_of(config: &MeshConfig, annotation: &str, routes: &str) -> Vec<(String, String)> {
        let service = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: v, namespace: shop, annotations: {{weir.dev/empty-subset: {annotation}}}}}\n\
             spec: {{hosts: [web], http: [{{route: [{routes}]}}]}}\n"
        );
        let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                     metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\n\
                     ports: [{name: http, port: 80}]\n\
                     endpoints: [{addresses: [10.1.0.1], targetRef: {kind: Pod, name: web-v1}}]\n";
        let text = base()
            .replace("{name: v2, labels: {version: v2}}", "{name: v2, labels: {version: v9}}")
            + slice
            + &service;
        let findings = analyze(&store(&text), config);
        findings.into_iter().map(|finding| (finding.code.id.to_owned(), finding.message)).collect()
    }

    fn weighted(subset: &str, weight: u8) -> String {
        format!("{{destination: {{host: web, subset: {subset}}}, weight: {weight}}}")
    }

    #[test]
    fn the_finding_for_an_empty_subset_names_the_consequence() {
        let both = format!("{}, {}", weighted("v1", 50), weighted("v2", 50));
        let empty = "none of the 1 known endpoints of web.shop has version=v9: ";
        let fails = ("IST0173".to_owned(), format!("{empty}requests to subset `v2` get 503"));
        let (hold, allow) = (
            MeshConfig::default(),
            MeshConfig { empty_subset: EmptySubset::Allow, ..Default::default() },
        );
        let holds = [
            (
                "IST0173".to_owned(),
                format!("{empty}the weight of subset `v2` in VirtualService shop/v spec.http[0].route[1] is held \
                    back"),
            ),
            (
                "WEIR0113".to_owned(),
                "weight 50 for subset `v2` of web.shop.svc.cluster.local is held at 0 until one of its endpoints is ready"
                    .to_owned(),
            ),
        ];
        assert_eq!(findings_of(&hold, "''", &both), holds);
        assert_eq!(findings_of(&allow, "hold", &both), holds);
        assert_eq!(findings_of(&allow, "''", &both), std::slice::from_ref(&fails));
        assert_eq!(findings_of(&hold, "allow", &both), std::slice::from_ref(&fails));
        // No other destination could take its requests.
        assert_eq!(findings_of(&hold, "''", &weighted("v2", 100)), [fails]);
        let unused = format!("{empty}subset `v2` is empty, but no route assigns weight to it yet");
        assert_eq!(
            findings_of(&hold, "''", &weighted("v1", 100)),
            [("IST0173".to_owned(), unused)]
        );
    }

    fn service(ports: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: shop}}\n\
             spec: {{clusterIP: 10.0.0.9, ports: [{ports}]}}\n"
        )
    }

    fn found_in_policy(policy: &str, ports: &str) -> Vec<(&'static str, String)> {
        found(&format!(
            "{}{}---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: r, namespace: shop}}\nspec: {{host: db, trafficPolicy: {{{policy}}}}}\n",
            base(),
            service(ports)
        ))
    }

    fn no_effect(at: &str, name: &str) -> Vec<(&'static str, String)> {
        vec![("WEIR0203", format!("spec.trafficPolicy.{at}loadBalancer.consistentHash.{name}"))]
    }

    fn hash_by(key: &str) -> String {
        format!("loadBalancer: {{consistentHash: {{{key}}}}}")
    }

    fn at_port(number: u16) -> String {
        format!(
            "portLevelSettings: [{{port: {{number: {number}}}, {}}}]",
            hash_by("httpHeaderName: x")
        )
    }

    #[test]
    fn a_hash_of_requests_requires_an_http_port() {
        let (tcp, http) =
            ("{name: tcp, port: 5432}", "{name: tcp, port: 5432}, {name: http, port: 80}");
        assert_eq!(
            found_in_policy(&hash_by("httpHeaderName: x"), tcp),
            no_effect("", "httpHeaderName")
        );
        assert_eq!(
            found_in_policy(&hash_by("httpCookie: {name: c, ttl: 1s}"), tcp),
            no_effect("", "httpCookie")
        );
        assert_eq!(
            found_in_policy(&hash_by("httpQueryParameterName: q"), tcp),
            no_effect("", "httpQueryParameterName")
        );
        assert_eq!(found_in_policy(&hash_by("useSourceIp: true"), tcp), []);
        assert_eq!(found_in_policy(&hash_by("httpHeaderName: x"), http), []);
        assert_eq!(
            found_in_policy(&at_port(5432), http),
            no_effect("portLevelSettings[0].", "httpHeaderName")
        );
        assert_eq!(found_in_policy(&at_port(80), http), []);
    }
}
