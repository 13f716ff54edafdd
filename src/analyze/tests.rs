//! Shared test support: a small set of objects without findings.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{analyze, code};
use crate::mesh::MeshConfig;
use crate::source::loader::{Content, Loader};
use crate::store::Store;

/// The file name of the objects.
pub(super) const BASE_FILE: &str = "mesh.yaml";

/// In `shop`: the service `web` with pods of versions v1 and v2 and matching subsets; `other`, whose pods are unknown;
/// `many` with two ports; and `hidden`, which is not exported.
pub(crate) fn base() -> String {
    let mut text = String::new();
    for (name, ports, fields) in [
        ("web", "{name: http, port: 80}", "namespace: shop"),
        ("other", "{name: http, port: 80}", "namespace: shop"),
        ("many", "{name: http, port: 80}, {name: tcp, port: 81}", "namespace: shop"),
        (
            "hidden",
            "{name: http, port: 80}",
            "namespace: shop, annotations: {networking.istio.io/exportTo: third}",
        ),
    ] {
        let ip = format!("10.0.1.{}", name.len());
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, {fields}}}\n\
             spec: {{clusterIP: {ip}, selector: {{app: {name}}}, ports: [{ports}]}}\n"
        );
    }
    for version in ["v1", "v2"] {
        text += &format!(
            "---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: web-{version}, namespace: shop, labels: {{app: web, version: {version}}}}}\n"
        );
    }
    text += "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\n\
             spec: {host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}\n";
    text
}

pub(crate) fn store(text: &str) -> Store {
    let (mut store, mut dirty) = (Store::default(), BTreeSet::new());
    for change in
        Loader::new().update([(PathBuf::from(BASE_FILE), Content::Bytes(text.as_bytes().to_vec()))])
    {
        store.apply(change, &mut dirty);
    }
    store
}

/// The codes and paths of the findings in a text, in order.
pub(super) fn found(text: &str) -> Vec<(&'static str, String)> {
    let found = analyze(&store(text), &MeshConfig::default());
    found.into_iter().map(|item| (item.code.id, item.path)).collect()
}

pub(super) fn ids(text: &str) -> Vec<&'static str> {
    found(text).into_iter().map(|(id, _)| id).collect()
}

/// The findings in a VirtualService in `shop` besides the base objects.
pub(super) fn found_in_virtual_service(spec: &str) -> Vec<(&'static str, String)> {
    found(&format!(
        "{}---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: shop}}\n\
         spec: {{{spec}}}\n",
        base()
    ))
}

/// The findings in its only route.
pub(super) fn found_in_route(route: &str) -> Vec<(&'static str, String)> {
    found_in_virtual_service(&format!("hosts: ['*.a.b'], http: [{{{route}}}]"))
}

/// The findings in a DestinationRule in `shop` besides the base objects.
pub(super) fn found_in_rule(spec: &str) -> Vec<(&'static str, String)> {
    found(&format!(
        "{}---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r, namespace: shop}}\n\
         spec: {{{spec}}}\n",
        base()
    ))
}

#[test]
fn syntax_schema_and_unknown_fields() {
    assert_eq!(found("kind: VirtualService\n"), [("WEIR0001", "apiVersion".to_owned())]);
    assert_eq!(found_in_virtual_service("hosts: 5"), [("IST0106", "spec.hosts".to_owned())]);
    assert_eq!(
        found_in_route("route: [{destination: {host: web}, wieght: 5}]"),
        [("IST0133", "spec.http[0].route[0].wieght".to_owned())]
    );
    let twice = base() + &base();
    assert!(ids(&twice).iter().all(|id| *id == "WEIR0001"));
}

fn route_to(host: &str, more: &str) -> String {
    let route = format!("route: [{{destination: {{host: {host}{more}}}}}]");
    istio("VirtualService", "v", &format!("hosts: [{host}], http: [{{{route}}}]"))
}

#[test]
fn references_to_rejected_objects_are_not_reported() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: bad, namespace: shop}\nspec: {ports: 5}\n";
    let rule = istio("DestinationRule", "r", "host: bad, trafficPolicy: {tls: {mode: DISABLE}}");
    for (rejected, cluster_refs, path) in [
        (service.to_owned(), route_to("bad", "") + &rule, "spec.ports"),
        (
            istio("ServiceEntry", "e", "hosts: ['*.example.com'], resolution: NOTHING"),
            route_to("api.example.com", ""),
            "spec.resolution",
        ),
        (
            istio("DestinationRule", "d", "host: other, subsets: [{name: v9}], trafficPolicy: {}"),
            route_to("other", ", subset: v9"),
            "spec.trafficPolicy",
        ),
        (
            istio("VirtualService", "d", "http: [{}]"),
            istio("VirtualService", "v", "hosts: ['*.a.b'], http: [{delegate: {name: d}}]"),
            "spec.http[0]",
        ),
        (
            istio("VirtualService", "root", "hosts: [5], http: [{delegate: {name: v}}]"),
            istio("VirtualService", "v", "http: [{route: [{destination: {host: web}}]}]"),
            "spec.hosts[0]",
        ),
    ] {
        assert_eq!(
            found(&(base() + &rejected + &cluster_refs)),
            [("IST0106", path.to_owned())],
            "{rejected}"
        );
    }
}

#[test]
fn many_findings_are_all_reported() {
    let mut text = base();
    for n in 0..300 {
        text += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v{n}, namespace: shop}}\n\
             spec: {{hosts: [h{n}.example.com], http: [{{route: [{{destination: {{host: nobody{n}}}}}]}}]}}\n"
        );
    }
    let found = ids(&text);
    assert_eq!(found.iter().filter(|id| **id == "IST0101").count(), 300);
    assert_eq!(found.iter().filter(|id| **id == "WEIR0110").count(), 300);
}

fn core(kind: &str, meta: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: {kind}\nmetadata: {{{meta}}}\nspec: {{{spec}}}\n")
}

/// An Istio object in `shop`.
fn istio(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{{spec}}}\n"
    )
}

/// A VirtualService with one HTTP route.
fn route(name: &str, fields: &str) -> String {
    istio("VirtualService", name, &format!("hosts: [{name}.com], http: [{{{fields}}}]"))
}

fn rule(name: &str, spec: &str) -> String {
    istio("DestinationRule", name, spec)
}

/// A Service with an annotation.
fn annotated(name: &str, annotation: &str) -> String {
    core(
        "Service",
        &format!("name: {name}, namespace: shop, annotations: {{{annotation}}}"),
        "clusterIP: 10.0.0.9, ports: [{name: http, port: 80}]",
    )
}

/// An EndpointSlice with one endpoint, which is the pod `web-v1`.
fn slice(service: &str, conditions: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {service}-1, namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         ports: [{{name: http, port: 80}}]\n\
         endpoints: [{{addresses: [10.1.0.1], conditions: {{{conditions}}}, targetRef: {{kind: Pod, name: web-v1}}}}]\n"
    )
}

const TO_WEB: &str = "route: [{destination: {host: web}}]";

fn virtual_services_with_findings() -> Vec<String> {
    let to = TO_WEB;
    let elsewhere = istio("VirtualService", "a", &format!("hosts: [a.com], http: [{{{to}}}]"))
        .replace("namespace: shop", "namespace: pay")
        .replace("host: web", "host: web.shop.svc.cluster.local");
    vec![
        elsewhere,
        "--- just text\n".to_owned(),
        route("a1", &format!("{to}, mirror: {{host: web}}, mirrorPercent: 5")),
        route("a2", "route: [{destination: {host: nobody}}]"),
        route("a3", &format!("{to}, timeout: soon")),
        route("a4", &format!("{to}, match: [{{uri: {{regex: '('}}}}]")),
        route("a5", "route: [{destination: {host: many}}]"),
        route("a6", &format!("{to}, timeuot: 3s")),
        route(
            "a7",
            "route: [{destination: {host: web}, weight: 1}, {destination: {host: other}, weight: 2}]",
        ),
        route("a8", &format!("{to}, timeout: 1s, retries: {{attempts: 2, perTryTimeout: 2s}}")),
        route("a9", "route: [{destination: {host: other, subset: v9}}]"),
        route("b1", &format!("{to}, match: [{{gateways: [gw]}}]")),
        annotated("near", "networking.istio.io/exportTo: ."),
        route("b5", "route: [{destination: {host: near}}]"),
        route(
            "b4",
            "route: [{destination: {host: web}, weight: 50}, {destination: {host: other}, weight: 50}]",
        ),
        route("b2", "redirect: {uri: /x}, timeout: 1s"),
        route("b3", &format!("{to}, match: [{{uri: {{prefix: /}}}}, {{uri: {{prefix: /a}}}}]")),
        istio("VirtualService", "c1", &format!("hosts: ['*.a.b'], http: [{{{to}}}, {{{to}}}]")),
        istio(
            "VirtualService",
            "c2",
            &format!("hosts: ['*.a.b'], exportTo: [nowhere, shop], http: [{{{to}}}]"),
        ),
        istio("VirtualService", "c5", &format!("hosts: ['*.a.b'], http: [{{{to}}}]")),
        istio(
            "VirtualService",
            "c3",
            &format!("hosts: [web], http: [{{match: [{{port: 5}}], {to}}}]"),
        ),
        istio("VirtualService", "c4", &format!("http: [{{{to}}}]")),
    ]
}

fn services_with_findings() -> Vec<String> {
    vec![
        slice("web", "ready: true"),
        slice("other", "ready: false, terminating: false"),
        annotated("s1", "proxy.istio.io/config: x"),
        annotated("s2", "networking.istio.io/exportto: shop"),
        annotated("s3", "networking.istio.io/exportTo: 'a b'"),
        annotated("s4", "alpha.istio.io/canonical-serviceaccounts: x"),
        core(
            "Service",
            "name: p1, namespace: shop",
            "clusterIP: 10.0.0.9, ports: [{name: tcp, port: 80}, {port: 81}]",
        ),
        core(
            "Service",
            "name: p2, namespace: shop",
            "selector: {version: v1}, ports: [{name: tcp, port: 80}]",
        ),
        core(
            "Service",
            "name: p3, namespace: shop",
            "type: ExternalName, externalName: a.b, ports: [{port: 80}]",
        ),
    ]
}

fn service_entries_and_sidecars_with_findings() -> Vec<String> {
    vec![
        istio(
            "ServiceEntry",
            "e1",
            "hosts: [e.com], ports: [{name: tcp, number: 5, protocol: TCP}]",
        ),
        istio(
            "ServiceEntry",
            "e2",
            "hosts: [e.com], resolution: DNS, ports: [{name: http, number: 80, protocol: HTTP}]",
        ),
        istio("Sidecar", "x1", "egress: [{hosts: ['./nobody.com']}]"),
        istio("Sidecar", "x2", "egress: [{hosts: ['./*']}]"),
        istio(
            "Sidecar",
            "x3",
            "workloadSelector: {labels: {app: web}}, egress: [{hosts: ['./*']}]",
        ),
        istio(
            "Sidecar",
            "x4",
            "workloadSelector: {labels: {version: v1}}, egress: [{hosts: ['./*']}]",
        ),
    ]
}

fn destination_rules_with_findings() -> Vec<String> {
    vec![
        rule("r1", "host: other, workloadSelector: {matchLabels: {app: nobody}}"),
        rule("r2", "host: many, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}"),
        rule(
            "r3",
            "host: many, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, insecureSkipVerify: true}}]}",
        ),
        rule(
            "r4",
            "host: web, exportTo: [.], subsets: [{name: v3, labels: {version: v3}}, {name: all}]",
        ),
        rule("r5", "host: nobody"),
        rule("r6", "host: '*.e.com', trafficPolicy: {tls: {mode: SIMPLE, credentialName: x}}"),
        rule(
            "r7",
            "host: p2.shop.svc.cluster.local, subsets: [{name: v1, labels: {version: v1}}], exportTo: [.]",
        ),
        route("d1", "route: [{destination: {host: p2, subset: v1}}]"),
    ]
}

fn peer_authentications_with_findings() -> Vec<String> {
    let policies = [("istio-system", "web"), ("shop", "strict")].map(|(namespace, app)| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: p, namespace: {namespace}}}\n\
             spec: {{selector: {{matchLabels: {{app: {app}}}}}, mtls: {{mode: STRICT}}}}\n"
        )
    });
    let [of_root, strict] = policies;
    vec![
        of_root,
        strict,
        rule(
            "r8",
            "host: strict, trafficPolicy: {tls: {mode: DISABLE}}, subsets: [{name: all, trafficPolicy: {tls: {mode: \
             MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem}}}]",
        ),
        core("Service", "name: strict, namespace: shop", "ports: [{name: http, port: 80}]"),
        core("Service", "name: mail, namespace: shop", "ports: [{name: smtp, port: 587}]"),
        "---\napiVersion: v1\nkind: Pod\nmetadata: {name: strict-1, namespace: shop, labels: {app: strict, \
         security.istio.io/tlsMode: disabled}, annotations: {sidecar.istio.io/status: '{}'}}\n"
            .to_owned(),
        "---\napiVersion: v1\nkind: Pod\nmetadata: {name: strict-0, namespace: shop, labels: {app: strict, \
         security.istio.io/tlsMode: istio}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {name: strict-1, namespace: shop, labels: {kubernetes.io/service-name: strict}}\n\
         addressType: IPv4\nports: [{name: http, port: 8080}]\n\
         endpoints: [{addresses: [10.1.9.1], targetRef: {kind: Pod, name: strict-0, namespace: shop}}]\n"
            .to_owned(),
    ]
}

#[test]
fn every_kind_of_finding_is_found() {
    let text: String = [base(), core("Namespace", "name: pay", "")]
        .into_iter()
        .chain(virtual_services_with_findings())
        .chain(services_with_findings())
        .chain(service_entries_and_sidecars_with_findings())
        .chain(destination_rules_with_findings())
        .chain(peer_authentications_with_findings())
        .collect();
    let config = MeshConfig { identities: true, ..MeshConfig::default() };
    let seen: BTreeSet<_> =
        analyze(&store(&text), &config).into_iter().map(|finding| finding.code.id).collect();
    // Kinds that cannot be listed occur only in a cluster.
    let all: BTreeSet<_> =
        code::ALL.iter().map(|code| code.id).filter(|id| *id != code::NOT_LISTED.id).collect();
    assert_eq!(all.difference(&seen).collect::<Vec<_>>(), [""; 0].iter().collect::<Vec<_>>());
}
