//! What weir does with objects of each kind.

use std::collections::BTreeSet;

use serde_json::Value;

use super::workloads::Workloads;
use super::{Concerns, Document, Finding, Level, mesh_config};
use crate::api::{self, Identity, Kind, Problem, ProblemKind};

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// The groups and resources whose objects are judged, in the plural, besides Pods and Namespaces.
pub(crate) const RESOURCES: [(&str, &str); 19] = [
    (NETWORKING, "virtualservices"),
    (NETWORKING, "destinationrules"),
    (NETWORKING, "serviceentries"),
    (NETWORKING, "workloadentries"),
    (NETWORKING, "workloadgroups"),
    (NETWORKING, "sidecars"),
    (NETWORKING, "gateways"),
    (NETWORKING, "envoyfilters"),
    (NETWORKING, "proxyconfigs"),
    (SECURITY, "authorizationpolicies"),
    (SECURITY, "requestauthentications"),
    (SECURITY, "peerauthentications"),
    ("telemetry.istio.io", "telemetries"),
    ("extensions.istio.io", "wasmplugins"),
    (GATEWAY_API, "gateways"),
    (GATEWAY_API, "httproutes"),
    (GATEWAY_API, "grpcroutes"),
    (GATEWAY_API, "tcproutes"),
    (GATEWAY_API, "tlsroutes"),
];

/// The findings about one object.
pub(super) fn check(
    document: &Document,
    documents: &[Document],
    workloads: &Workloads,
) -> Vec<Finding> {
    match (document.group(), document.kind()) {
        (SECURITY, "AuthorizationPolicy") => authorization(document, workloads),
        (SECURITY, "RequestAuthentication") => {
            let message = "weir checks no tokens: requests with invalid ones reach the service";
            policy(document, workloads, Level::Blocker, message)
        }
        (SECURITY, "PeerAuthentication") => {
            let mut found = rule(document);
            found.extend(peer_authentication(document, documents, workloads));
            found
        }
        ("telemetry.istio.io", "Telemetry") => {
            let message = "weir configures no telemetry: its sidecars have Envoy's own statistics, without access logs \
                           and traces";
            policy(document, workloads, Level::Difference, message)
        }
        ("extensions.istio.io", "WasmPlugin") => {
            let message = "weir configures no Wasm plugins";
            policy(document, workloads, Level::Blocker, message)
        }
        (NETWORKING, "EnvoyFilter") => envoy_filter(document, workloads),
        (NETWORKING, "ProxyConfig") => {
            let message = "applies to sidecars that Istio injects: weir does not read it";
            policy(document, workloads, Level::Difference, message)
        }
        (NETWORKING, "WorkloadGroup") => {
            let message =
                "weir registers no workloads: it reads the WorkloadEntries that are there";
            vec![own(
                document,
                Level::Difference,
                "",
                message,
                "write WorkloadEntries for its workloads",
            )]
        }
        (NETWORKING, "Gateway") => {
            let message = "weir serves no gateways";
            let advice = "leave the gateway and the routes bound to it with Istiod";
            vec![own(document, Level::Difference, "", message, advice)]
        }
        (NETWORKING, _) => rule(document),
        ("", "ConfigMap") => mesh_config::check(document, workloads.root_namespace),
        (GATEWAY_API, "Gateway") => gateway_api(document),
        (GATEWAY_API, kind) if kind.ends_with("Route") => mesh_route(document),
        _ => Vec::new(),
    }
}

/// The namespaces of the objects that weir reads itself: whoever writes them uses the mesh.
pub(super) fn namespaces_of_rules(documents: &[Document]) -> impl Iterator<Item = String> {
    let rules = documents.iter().filter(|document| document.group() == NETWORKING);
    rules.map(|document| document.namespace().to_owned())
}

fn own(document: &Document, level: Level, path: &str, message: &str, advice: &str) -> Finding {
    let concerns = Concerns::Namespace(document.namespace().to_owned());
    document.finding(level, concerns, path, message, advice)
}

/// A policy that selects workloads by `spec.selector`. With `targetRefs` it is for gateways and waypoints.
fn policy(document: &Document, workloads: &Workloads, level: Level, message: &str) -> Vec<Finding> {
    if document.at("/spec/targetRef").is_some()
        || document.items("/spec/targetRefs").next().is_some()
    {
        return Vec::new();
    }
    let selector = document.labels("/spec/selector/matchLabels");
    let concerned = workloads.selected(document, &selector);
    concerned.into_iter().map(|scope| document.finding(level, scope, "", message, "")).collect()
}

fn authorization(document: &Document, workloads: &Workloads) -> Vec<Finding> {
    if document.at("/spec/action").is_some_and(|action| action == "AUDIT") {
        let message = "weir logs no audits";
        return policy(document, workloads, Level::Difference, message);
    }
    let message = "weir enforces no authorization: requests that it denies reach the service";
    policy(document, workloads, Level::Blocker, message)
}

fn is_strict(mode: Option<&Value>) -> bool {
    mode.is_some_and(|mode| mode == "STRICT")
}

fn peer_authentication(
    document: &Document,
    documents: &[Document],
    workloads: &Workloads,
) -> Vec<Finding> {
    let ports = document.at("/spec/portLevelMtls").and_then(Value::as_object);
    let port = ports.into_iter().flatten().find(|(_, port)| is_strict(port.get("mode")));
    let path = if is_strict(document.at("/spec/mtls/mode")) {
        "spec.mtls.mode".to_owned()
    } else if let Some((port, _)) = port {
        format!("spec.portLevelMtls[{port}].mode")
    } else {
        return Vec::new();
    };
    let message = "is STRICT: sidecars of weir keep to it, and can call workloads that do, only with --identity on and if \
                   weir and Istiod sign with the same authority";
    let mut found = policy(document, workloads, Level::Step, message);
    for finding in &mut found {
        finding.path.clone_from(&path);
        finding.advice =
            "run weir with --identity on and Istio's authority, or change it to PERMISSIVE while namespaces move"
                .to_owned();
        if let Concerns::Mesh(except) = &mut finding.concerns {
            *except = with_own_mode(documents, workloads.root_namespace);
        }
    }
    found
}

/// The namespaces whose own PeerAuthentication counts instead of the one of the root namespace.
fn with_own_mode(documents: &[Document], root_namespace: &str) -> BTreeSet<String> {
    let own = documents.iter().filter(|document| {
        document.is(SECURITY, "PeerAuthentication")
            && document.namespace() != root_namespace
            && document.at("/spec/selector").is_none()
            && document.at("/spec/mtls/mode").is_some_and(|mode| mode != "UNSET")
    });
    own.map(|document| document.namespace().to_owned()).collect()
}

fn is_for_gateways(patch: &Value) -> bool {
    patch.pointer("/match/context").is_some_and(|value| value == "GATEWAY")
}

fn envoy_filter(document: &Document, workloads: &Workloads) -> Vec<Finding> {
    let mut patches = document.items("/spec/configPatches").peekable();
    let refers = document.items("/spec/targetRefs").next().is_some();
    if refers || patches.peek().is_none() || patches.all(is_for_gateways) {
        return Vec::new();
    }
    let selector = document.labels("/spec/workloadSelector/labels");
    let concerned = workloads.selected(document, &selector);
    let message = "weir applies no EnvoyFilters";
    concerned
        .into_iter()
        .map(|scope| document.finding(Level::Blocker, scope, "", message, ""))
        .collect()
}

/// An object that weir reads.
fn rule(document: &Document) -> Vec<Finding> {
    let Ok(Identity::Known(key)) = api::identify(&document.value) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    match api::parse(&key, document.value.clone(), 0) {
        Err(error) => {
            found.extend(error.problems.iter().map(|problem| {
                let message = format!("weir rejects the object: {}", problem.message);
                own(document, Level::Blocker, &problem.path, &message, &problem.advice)
            }));
        }
        Ok(parsed) => {
            let warnings = parsed.warnings.iter().filter(|warning| matters(warning));
            found.extend(warnings.map(|warning| {
                own(document, Level::Difference, &warning.path, &warning.message, &warning.advice)
            }));
        }
    }
    match key.kind {
        Kind::VirtualService => found.extend(gateways_of(document)),
        Kind::DestinationRule => found.extend(istio_mutual(document)),
        _ => {}
    }
    found
}

/// Whether a warning means that Istiod does something else.
fn matters(warning: &Problem) -> bool {
    // These have no effect under Istiod either.
    let never = ["sourceSubnet", "consecutiveErrors"];
    let field = warning.path.rsplit('.').next().unwrap_or_default();
    match warning.kind {
        ProblemKind::NoEffect | ProblemKind::UnknownField => !never.contains(&field),
        ProblemKind::Credential | ProblemKind::DeadRoute => true,
        _ => false,
    }
}

/// The names of gateways in a list, without that of the sidecars.
fn named_in(list: Option<&Value>) -> impl Iterator<Item = &str> {
    let names = list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    names.filter(|name| *name != "mesh")
}

/// The gateways to which a VirtualService is bound.
fn gateways_of(document: &Document) -> Option<Finding> {
    let mut gateways: BTreeSet<&str> = named_in(document.at("/spec/gateways")).collect();
    for list in ["/spec/http", "/spec/tls", "/spec/tcp"] {
        for route in document.items(list) {
            let matches = route.get("match").and_then(Value::as_array).into_iter().flatten();
            gateways.extend(matches.flat_map(|item| named_in(item.get("gateways"))));
        }
    }
    if gateways.is_empty() {
        return None;
    }
    let names = gateways.into_iter().collect::<Vec<_>>().join(", ");
    let message = format!(
        "is bound to the gateway {names}, where Istiod keeps serving it: what weir reports as live is live at the \
         sidecars only"
    );
    Some(own(document, Level::Difference, "spec.gateways", &message, ""))
}

/// The first place where a DestinationRule asks for Istio's own certificates.
fn istio_mutual(document: &Document) -> Option<Finding> {
    fn find(value: &Value, path: &str) -> Option<String> {
        match value {
            Value::Object(map) => map.iter().find_map(|(name, member)| {
                let path = format!("{path}.{name}");
                let asks =
                    name == "tls" && member.get("mode").is_some_and(|mode| mode == "ISTIO_MUTUAL");
                if asks { Some(format!("{path}.mode")) } else { find(member, &path) }
            }),
            Value::Array(items) => {
                items.iter().enumerate().find_map(|(n, item)| find(item, &format!("{path}[{n}]")))
            }
            _ => None,
        }
    }
    let path = find(document.at("/spec")?, "spec")?;
    let message = "is ISTIO_MUTUAL: sidecars of weir have certificates only with --identity on";
    Some(own(document, Level::Step, &path, message, "run weir with --identity on"))
}

fn gateway_api(document: &Document) -> Vec<Finding> {
    let waypoint =
        document.at("/spec/gatewayClassName").is_some_and(|class| class == "istio-waypoint");
    let (level, message) = if waypoint {
        (Level::Blocker, "is a waypoint of ambient mode, and weir configures sidecars only")
    } else {
        (Level::Difference, "weir serves no gateways")
    };
    let advice = "leave it with the controller that serves it";
    vec![own(document, level, "", message, advice)]
}

/// A route that is attached to a Service applies to sidecars.
fn mesh_route(document: &Document) -> Vec<Finding> {
    let attached = document.items("/spec/parentRefs").enumerate().find(|(_, parent)| {
        parent.get("kind").is_some_and(|kind| kind == "Service" || kind == "ServiceEntry")
    });
    let Some((n, _)) = attached else {
        return Vec::new();
    };
    let path = format!("spec.parentRefs[{n}]");
    let message = "is a Service: weir does not read routes of the Gateway API";
    vec![own(document, Level::Blocker, &path, message, "write the route as a VirtualService")]
}
