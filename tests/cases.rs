//! Every folder under `tests/cases` contains objects (`input.yaml`) and the configuration of a sidecar
//! (`expected.json`, recorded from Istiod). weir's configuration must be equivalent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use weir::mesh::{Locality, MeshBuilder, MeshConfig, NodeMetadata, Proxy};
use weir::snapshot::{ResourceType, SnapshotBuilder};
use weir::store::Store;

/// Fields that do not affect traffic.
const NO_MEANING: [(&str, &str); 11] = [
    ("altStatName", "names of statistics"),
    ("statPrefix", "names of statistics"),
    ("metadata", "Istio's notes for people and telemetry"),
    ("decorator", "names of trace spans"),
    ("trackRemaining", "whether statistics count down"),
    ("transportSocketConnectTimeout", "of handshakes that these listeners do not make"),
    ("initialFetchTimeout", "0 s everywhere; the proxies' bootstrap says the same"),
    ("resourceApiVersion", "V3 everywhere"),
    ("requestIdExtension", "trace sampling"),
    ("typedDnsResolverConfig", "limits of the DNS client"),
    ("dnsJitter", "how far apart proxies ask DNS"),
];

const FILES: &str = "Istio's agent reads certificate files for Envoy and serves them by SDS; weir has Envoy read them, so that \
                     no agent is needed";
const BUDGET: &str = "Istiod's answer leaves out budgetInterval, which its API and Envoy's have";

/// Intentional differences: case, kind, name, and reason.
const DIFFERENCES: [(&str, &str, &str, &str); 10] = [
    (
        "endpoint-states",
        "endpoints",
        "outbound|80||old.shop.svc.cluster.local",
        "Istiod no longer reads Endpoints objects; weir does, for a service that has no slice",
    ),
    (
        "weights",
        "routes",
        "80 a.example",
        "two destinations without weights: Envoy rejects Istiod's route; weir's answers 503",
    ),
    (
        "service-entry",
        "routes",
        "80 legacy.internal",
        "the host has port 8080 alone: Istiod's route on port 80 references clusters of port 80, which do not exist",
    ),
    (
        "ports-and-protocols/as-multi-0",
        "listeners",
        "virtualInbound envoy.filters.listener.tls_inspector",
        "Istiod waits for a TLS client's first bytes on TCP ports too, which mutual TLS needs; weir has none, and a server \
         that speaks first would never be reached",
    ),
    ("tls", "clusters", "outbound|80|mutual|web.shop.svc.cluster.local", FILES),
    ("tls", "clusters", "outbound|80|simple|web.shop.svc.cluster.local", FILES),
    ("tls", "clusters", "outbound|80|simplebare|web.shop.svc.cluster.local", FILES),
    ("traffic-policy", "clusters", "outbound|8080|v1|cart.shop.svc.cluster.local", BUDGET),
    ("traffic-policy", "clusters", "outbound|8080|v2|cart.shop.svc.cluster.local", BUDGET),
    ("traffic-policy", "clusters", "outbound|8080||cart.shop.svc.cluster.local", BUDGET),
];

#[test]
fn every_case_is_translated_to_the_same_meaning() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    let mut count = 0;
    for folder in case_folders(&root) {
        let case = folder.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let expected: Value =
            serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let got = translate(&folder);
        for kind in ["clusters", "endpoints", "listeners", "routes"] {
            let (expected, got) = (by_name(kind, &expected[kind]), by_name(kind, &got[kind]));
            let names: BTreeSet<_> = expected.keys().chain(got.keys()).collect();
            count += names.len();
            for name in names {
                if expected.get(name) == got.get(name) {
                    continue;
                }
                match DIFFERENCES
                    .iter()
                    .position(|(c, k, n, _)| (*c, *k, *n) == (&*case, kind, name))
                {
                    Some(found) => {
                        used.insert(found);
                    }
                    None => wrong.push(format!(
                        "{case} {kind} {name}\n  expected {}\n  got      {}",
                        expected.get(name).unwrap_or(&Value::Null),
                        got.get(name).unwrap_or(&Value::Null)
                    )),
                }
            }
        }
    }
    assert!(count > 150, "only {count} resources were compared");
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(
        used.len(),
        DIFFERENCES.len(),
        "a listed difference no longer exists: remove it from the list"
    );
}

fn case_folders(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(case_folders(&path));
            if path.join("expected.json").exists() {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A folder `as-WHO` below a case contains the configuration of another proxy for the same objects.
fn translate(folder: &Path) -> Value {
    let who = folder.file_name().unwrap().to_str().unwrap();
    let (id, metadata) = match who {
        "as-multi-0" => (
            "sidecar~10.1.4.1~multi-0.shop~shop.svc.cluster.local",
            json!({"LABELS": {"app": "multi"}}),
        ),
        "as-unintercepted" => (
            "sidecar~10.9.0.1~client-0.shop~shop.svc.cluster.local",
            json!({"LABELS": {"app": "client", "version": "v1"}, "INTERCEPTION_MODE": "NONE"}),
        ),
        _ => (
            "sidecar~10.9.0.1~client-0.shop~shop.svc.cluster.local",
            json!({"LABELS": {"app": "client", "version": "v1"}}),
        ),
    };
    let objects =
        if who.starts_with("as-") { folder.parent().unwrap() } else { folder }.join("input.yaml");
    let (mut store, mut dirty) = (Store::default(), BTreeSet::new());
    for change in weir::source::directory::load_once(&objects).unwrap() {
        store.apply(change, &mut dirty);
    }
    assert_eq!(
        store.rejected().count() + store.source_problems().count(),
        0,
        "{}",
        objects.display()
    );
    let mesh = MeshBuilder::new(MeshConfig::default()).update(&store, &dirty);
    let proxy =
        Proxy::new(id, NodeMetadata::from_json(&metadata), Locality::parse("eu/eu-a")).unwrap();
    let snapshot = SnapshotBuilder::default().snapshot(&mesh, &mesh.scope(&proxy));
    let all = |kind| Value::Array(weir::cli::translate::to_json(&snapshot, kind).unwrap());
    json!({
        "clusters": all(ResourceType::Cluster),
        "endpoints": all(ResourceType::Endpoints),
        "listeners": all(ResourceType::Listener),
        "routes": all(ResourceType::Route),
    })
}

/// The resources of one kind in a normal form. Virtual hosts are separate because their order is irrelevant, and so are
/// listener filters, whose names stay in their listeners.
fn by_name(kind: &str, resources: &Value) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    for resource in resources.as_array().unwrap() {
        let mut resource = normal(resource);
        match kind {
            "routes" => {
                let name = resource["name"].as_str().unwrap().to_owned();
                for host in resource
                    .as_object_mut()
                    .unwrap()
                    .remove("virtualHosts")
                    .unwrap()
                    .as_array_mut()
                    .unwrap()
                {
                    sort(&mut host["domains"]);
                    let first = host["name"]
                        .as_str()
                        .unwrap()
                        .rsplit_once(':')
                        .map_or("*", |(host, _)| host)
                        .to_owned();
                    for route in host["routes"].as_array_mut().unwrap() {
                        // A descriptive name; and an absent `caseSensitive` means true.
                        route.as_object_mut().unwrap().remove("name");
                        let matches = route["match"].as_object_mut().unwrap();
                        if matches.get("caseSensitive") == Some(&json!(true)) {
                            matches.remove("caseSensitive");
                        }
                    }
                    out.insert(format!("{name} {first}"), host.clone());
                }
                out.insert(name, resource);
            }
            "endpoints" => {
                let name = resource["clusterName"].as_str().unwrap().to_owned();
                for locality in resource["endpoints"].as_array_mut().into_iter().flatten() {
                    sort(&mut locality["lbEndpoints"]);
                }
                sort(&mut resource["endpoints"]);
                out.insert(name, resource);
            }
            "listeners" => {
                let name = resource["name"].as_str().unwrap().to_owned();
                for filter in resource["listenerFilters"].as_array_mut().into_iter().flatten() {
                    let of = filter["name"].clone();
                    out.insert(
                        format!("{name} {}", of.as_str().unwrap()),
                        std::mem::replace(filter, of),
                    );
                }
                out.insert(name, resource);
            }
            _ => {
                out.insert(resource["name"].as_str().unwrap().to_owned(), resource);
            }
        }
    }
    out
}

fn sort(list: &mut Value) {
    if let Value::Array(items) = list {
        items.sort_by_key(ToString::to_string);
    }
}

/// Without irrelevant fields and default values.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept =
                map.iter().filter(|(key, _)| !NO_MEANING.iter().any(|(name, _)| name == key));
            let kept = kept.map(|(key, value)| (key.clone(), normal(value)));
            // 0 s disables a `timeout` but is a default elsewhere, so it is kept.
            Value::Object(kept.filter(|(_, value)| !is_nothing(value)).collect::<Map<_, _>>())
        }
        Value::Array(items) => items.iter().map(normal).collect(),
        Value::String(text) => {
            match text.strip_suffix('s').and_then(|seconds| seconds.parse::<f64>().ok()) {
                Some(seconds) => json!(format!("{seconds}s")),
                None => value.clone(),
            }
        }
        Value::Number(number) => match number.as_f64() {
            Some(whole) if whole.fract() == 0.0 && whole.abs() < 1e15 => json!(whole as i64),
            _ => value.clone(),
        },
        other => other.clone(),
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        // HEALTHY and UNKNOWN both accept traffic.
        Value::String(text) => text.is_empty() || text == "HEALTHY",
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
    }
}
