//! What is found in manifests, and what is not.

use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::source::yaml;

fn documents(text: &str) -> Vec<Document> {
    let path = Arc::new(PathBuf::from("a.yaml"));
    let all = yaml::documents(text.as_bytes()).unwrap();
    all.into_iter()
        .map(|document| Document {
            origin: Origin::File { path: path.clone(), line: document.line },
            value: document.value,
        })
        .collect()
}

fn object(group: &str, kind: &str, place: &str, spec: &str) -> String {
    let (namespace, name) = place.split_once('/').unwrap();
    format!(
        "---\napiVersion: {group}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn namespace(name: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n"
    )
}

fn pod(place: &str, labels: &str, annotations: &str) -> String {
    let (namespace, name) = place.split_once('/').unwrap();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}, \
         annotations: {{{annotations}}}}}\n"
    )
}

const SIDECAR: &str = r#"sidecar.istio.io/status: '{"revision":"1-26"}'"#;

/// Two namespaces of the mesh and one outside, with what is added.
fn mesh(more: &str) -> Vec<Document> {
    let text = namespace("shop", "istio-injection: enabled")
        + &namespace("bank", "istio.io/rev: 1-26")
        + &namespace("other", "a: b")
        + &pod("shop/web-0", "app: web", SIDECAR)
        + &pod("bank/vault-0", "app: vault", SIDECAR)
        + more;
    documents(&text)
}

fn verdicts(more: &str) -> String {
    let report = check(&mesh(more), "istio-system", true);
    let all =
        report.namespaces.iter().map(|(name, verdict)| format!("{name}: {}", verdict.as_str()));
    all.collect::<Vec<_>>().join("; ")
}

const BOTH: &str = "bank: yes; shop: yes";

#[test]
fn what_sidecars_lose_keeps_the_namespaces_it_concerns() {
    let security = "security.istio.io/v1";
    let web = "{selector: {matchLabels: {app: web}}}";
    let shop = "bank: yes; shop: no";
    let all = "bank: no; shop: no";
    for (group, kind, place, spec, expected) in [
        (security, "AuthorizationPolicy", "shop/a", "{}", shop),
        (security, "AuthorizationPolicy", "istio-system/a", "{action: DENY}", all),
        (security, "AuthorizationPolicy", "istio-system/a", web, shop),
        (
            security,
            "AuthorizationPolicy",
            "shop/a",
            "{action: AUDIT}",
            "bank: yes; shop: yes, with differences",
        ),
        (security, "RequestAuthentication", "shop/a", web, shop),
        ("extensions.istio.io/v1alpha1", "WasmPlugin", "shop/a", "{url: oci://a}", shop),
        (
            "networking.istio.io/v1alpha3",
            "EnvoyFilter",
            "shop/a",
            "{configPatches: [{match: {context: GATEWAY}}, {match: {context: SIDECAR_INBOUND}}]}",
            shop,
        ),
        (
            "gateway.networking.k8s.io/v1",
            "HTTPRoute",
            "shop/a",
            "{parentRefs: [{kind: Service, name: web}]}",
            shop,
        ),
        (
            "networking.istio.io/v1",
            "VirtualService",
            "shop/a",
            "{hosts: [web], http: [{route: []}]}",
            shop,
        ),
        (
            "networking.istio.io/v1",
            "ServiceEntry",
            "shop/a",
            "{hosts: ['*.a.b'], resolution: DYNAMIC_DNS, location: MESH_EXTERNAL, ports: [{number: 80, name: http, protocol: HTTP}]}",
            shop,
        ),
    ] {
        let text = object(group, kind, place, spec);
        assert_eq!(verdicts(&text), expected, "{text}");
    }
}

#[test]
fn what_concerns_no_sidecar_is_not_mentioned() {
    let security = "security.istio.io/v1";
    for (group, kind, place, spec) in [
        (security, "AuthorizationPolicy", "shop/a", "{targetRefs: [{kind: Gateway, name: g}]}"),
        (security, "AuthorizationPolicy", "shop/a", "{selector: {matchLabels: {app: gone}}}"),
        (
            security,
            "AuthorizationPolicy",
            "istio-system/a",
            "{selector: {matchLabels: {istio: ingressgateway}}}",
        ),
        (security, "PeerAuthentication", "shop/a", "{mtls: {mode: PERMISSIVE}}"),
        (security, "PeerAuthentication", "shop/a", "{}"),
        (
            "networking.istio.io/v1alpha3",
            "EnvoyFilter",
            "shop/a",
            "{configPatches: [{match: {context: GATEWAY}}]}",
        ),
        (
            "gateway.networking.k8s.io/v1",
            "HTTPRoute",
            "shop/a",
            "{parentRefs: [{kind: Gateway, name: g}]}",
        ),
        (
            "networking.istio.io/v1",
            "VirtualService",
            "shop/a",
            "{hosts: [web], gateways: [mesh], http: [{route: [{destination: {host: web}}]}]}",
        ),
        ("networking.istio.io/v1", "DestinationRule", "shop/a", "{host: web}"),
        ("apps/v1", "Deployment", "shop/a", "{replicas: 1}"),
        ("", "ConfigMap", "other/a", "{}"),
    ] {
        let text = object(if group.is_empty() { "v1" } else { group }, kind, place, spec);
        assert_eq!(verdicts(&text), BOTH, "{text}");
    }
}

#[test]
fn what_works_differently_is_named_with_its_field() {
    for (group, kind, spec, path) in [
        (
            "networking.istio.io/v1",
            "VirtualService",
            "{hosts: [web], gateways: [mesh, ingress/g], http: [{route: [{destination: {host: web}}]}]}",
            "spec.gateways",
        ),
        ("networking.istio.io/v1", "Gateway", "{selector: {istio: ingress}}", ""),
        ("networking.istio.io/v1", "WorkloadGroup", "{template: {}}", ""),
        ("networking.istio.io/v1beta1", "ProxyConfig", "{concurrency: 1}", ""),
        ("telemetry.istio.io/v1", "Telemetry", "{accessLogging: [{}]}", ""),
        ("gateway.networking.k8s.io/v1", "Gateway", "{gatewayClassName: istio}", ""),
        (
            "networking.istio.io/v1",
            "Sidecar",
            "{ingress: [{port: {number: 80, protocol: HTTP, name: a}, defaultEndpoint: '127.0.0.1:80'}], egress: [{hosts: ['./*']}]}",
            "spec.ingress",
        ),
    ] {
        let text = object(group, kind, "shop/a", spec);
        assert_eq!(verdicts(&text), "bank: yes; shop: yes, with differences", "{text}");
        let report = check(&mesh(&text), "istio-system", true);
        let worst = report.findings.first().unwrap();
        assert_eq!((worst.object(), &*worst.path), (format!("{kind} shop/a"), path), "{text}");
    }
}

fn peers(place: &str, mode: &str) -> String {
    object(
        "security.istio.io/v1",
        "PeerAuthentication",
        place,
        &format!("{{mtls: {{mode: {mode}}}}}"),
    )
}

#[test]
fn a_namespace_with_a_mode_of_its_own_is_not_held_to_that_of_the_mesh() {
    let strict = peers("istio-system/default", "STRICT");
    for (mode, expected) in [("PERMISSIVE", [1, 0]), ("UNSET", [1, 1])] {
        let text = strict.clone() + &peers("shop/default", mode);
        let report = check(&mesh(&text), "istio-system", true);
        let found = ["bank", "shop"].map(|namespace| {
            report.about(namespace).filter(|finding| finding.path == "spec.mtls.mode").count()
        });
        assert_eq!(found, expected, "{mode}");
        assert_eq!(verdicts(&text), BOTH);
    }
}

#[test]
fn mutual_tls_needs_a_step_and_no_more() {
    let rule = object(
        "networking.istio.io/v1",
        "DestinationRule",
        "shop/a",
        "{host: web, subsets: [{name: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}]}",
    );
    let report = check(&mesh(&rule), "istio-system", true);
    assert_eq!(about(&report, "spec.subsets[0].trafficPolicy.tls.mode").len(), 1);
    assert_eq!(verdicts(&rule), BOTH);
}

fn about(report: &Report, path: &str) -> Vec<String> {
    let found = report.about("shop").filter(|finding| finding.path.contains(path));
    found.map(|finding| finding.message.clone()).collect::<Vec<_>>()
}

#[test]
fn ambient_mode_gateways_and_labels_of_pods_are_named_once_for_each_namespace() {
    let ambient = namespace("mist", "istio.io/dataplane-mode: ambient");
    assert_eq!(verdicts(&ambient), format!("bank: yes; mist: no; {}", "shop: yes"));
    let tls: String = (1..6)
        .map(|n| {
            pod(&format!("shop/api-{n}"), "app: api, security.istio.io/tlsMode: istio", SIDECAR)
        })
        .collect();
    let report = check(&mesh(&tls), "istio-system", true);
    let labelled = about(&report, "tlsMode");
    assert!(
        labelled.len() == 1 && labelled[0].contains("(5 like it: api-1, api-2, api-3, ...)"),
        "{labelled:?}"
    );
    let sidecars = report.about("shop").filter(|finding| finding.message.contains("`1-26`"));
    assert_eq!(sidecars.count(), 1);
    let gateway =
        object("networking.istio.io/v1", "Gateway", "edge/g", "{selector: {istio: ingress}}")
            + &pod("edge/ingress-0", "istio: ingress", SIDECAR);
    let report = check(&mesh(&gateway), "istio-system", true);
    let found: Vec<_> = report.about("edge").map(|finding| finding.object()).collect();
    assert_eq!(found, ["Gateway edge/g", "Pod edge/ingress-0"]);
    assert_eq!(report.namespaces["edge"], Verdict::WithDifferences);
}

#[test]
fn a_policy_counts_where_no_pod_is_known() {
    let text = object(
        "security.istio.io/v1",
        "AuthorizationPolicy",
        "shop/a",
        "{selector: {matchLabels: {app: web}}}",
    );
    let report = check(&documents(&text), "istio-system", false);
    assert_eq!(report.namespaces["shop"], Verdict::No);
    let deployment = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\n\
                      spec: {template: {metadata: {labels: {app: LABEL}}}}\n";
    for (label, expected) in [("web", true), ("api", false)] {
        let text = text.clone() + &deployment.replace("LABEL", label);
        let report = check(&documents(&text), "istio-system", false);
        assert_eq!(report.namespaces.contains_key("shop"), expected, "{label}");
    }
}

fn config(name: &str, text: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: istio-system}}\n\
         data:\n  mesh: |\n    {}\n",
        text.replace('\n', "\n    ")
    )
}

fn advice(text: &str) -> Vec<(Level, String, String)> {
    let report = check(&mesh(text), "istio-system", true);
    let found = report.findings.iter().filter(|finding| finding.kind == "ConfigMap");
    let found = found.map(|finding| (finding.level, finding.path.clone(), finding.advice.clone()));
    found.collect::<Vec<_>>()
}

fn flags(path: &str, flags: &str) -> Vec<(Level, String, String)> {
    vec![(Level::Step, format!("data.mesh: {path}"), format!("start weir with {flags}"))]
}

#[test]
fn the_mesh_config_says_how_to_start_weir_and_what_it_does_not_read() {
    assert_eq!(
        advice(&config("istio", "outboundTrafficPolicy:\n  mode: REGISTRY_ONLY")),
        flags("outboundTrafficPolicy.mode", "--outbound-policy registry-only")
    );
    let selectors = "discoverySelectors:\n- matchLabels: {env: prod}\n  matchExpressions:\n  \
                     - {key: team, operator: NotIn, values: [a, b]}\n  - {key: old, operator: DoesNotExist}\n\
                     - matchExpressions: [{key: mesh, operator: Exists}, {key: x, operator: In, values: [z]}]";
    let expected = ["env=prod,team notin (a,b),!old", "mesh,x in (z)"];
    let expected = expected.map(|selector| {
        let parsed = selector.parse::<crate::source::kubernetes::selection::DiscoverySelector>();
        assert!(parsed.is_ok(), "{selector}");
        format!("--discovery-selector '{selector}'")
    });
    let found = advice(&config("istio-1-26", selectors));
    assert_eq!(found, flags("discoverySelectors", &expected.join(" ")));
    let found = advice(&config(
        "istio",
        "accessLogFile: /dev/stdout\nenableTracing: false\ntrustDomain: a",
    ));
    let path = "data.mesh: accessLogFile".to_owned();
    assert_eq!(found, [(Level::Difference, path, String::new())]);
    assert_eq!(advice(&config("other", "accessLogFile: /dev/stdout")), []);
}
