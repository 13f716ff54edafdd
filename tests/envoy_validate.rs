//! Compares the violations reported by `weir::envoy_validate` with a real Envoy, and checks everything that weir sends.

mod cases;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cases::{cases, route, routes};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use weir::envoy::EnvoyBinary;
use weir::envoy_validate::{check, re2};
use weir::mesh::{Locality, MeshBuilder, MeshConfig, NodeMetadata, Proxy};
use weir::proto_json::{bytes_to_json, json_to_any};
use weir::snapshot::{ResourceType, Snapshot, SnapshotBuilder};
use weir::store::Store;

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";

/// Expressions with a small program, because Envoy's size limit is not tested here.
const PATTERNS: &str = r"a** a*+ a++ a*? a?? a??? a{2}{3} a{2}? a{2}?? a{1001} (a{100}){11} (a{2}){600} (a{2,}){600} (a?){1001}
    a{,5} a{5,1} a{01} a{100000000} a{1 a{ { } ] *a |* (*) a|*b ^* () (|a)* ()* (?:)* x{0} (?=a) (?!a) (?<=a) (?<!a) (?>a) (?#a)
    (?P<n>a) (?<n>a) (?P<n>a)(?P<m>b) (?P<1>a) (?P<>a) (?P<é>a) (?P=n) (?'n'a) (?P<n (?P (? (?P<n> (?i)a (?i-s:a) (?-) (?i-) (?) (?x)a
    (?i (?i)* a(?i)* (?U)a+ (?s). (a a) (a)) \ a\ \1 \12 \8 \0 \07 \377 \400 \777 \x4 \x41 \x{41} \x{ff} \x{100} \x{110000} \x{}
    \x{4 \_ \- \< \é é [é] [а-б] \e \cA \Z \z \A \b \B \b* \b{2} \C \G \K \h \R \X \u0041 \Qa*\E* \Qa \E \Q\E* a\Q\E* \Q+\E+
    [a [] []a] [^]a] [^] [b-a] [a-\d] [\d-z] [a-b-c] [a-] [-a] [a-\n] [\n-a] [^\n] [[:alpha:]] [[:^alpha:]] [[:foo:]] [[:alpha
    [[.a.]] [[=a=]] [\b] [\C] [\Q] [\pN] [\pX] \pN \PN \p{N} \p{Nd} \p{^N} \p{n} \p{Foo} \p \p{L \pX \p{LC}
    ((a{2}){3}){4}x a.*b? ^/api/v[0-9]+/.*$ [^a-z]+|(b|c)* .*?";

#[test]
fn envoy_agrees_on_valid_and_invalid_messages() {
    let mut cases = cases();
    let of = |pattern: &str| json!({"match": {"safe_regex": {"regex": pattern}}, "route": {"cluster": "c"}});
    let (fine, rejected): (Vec<_>, Vec<_>) =
        PATTERNS.split_ascii_whitespace().partition(|pattern| re2::check(pattern).is_ok());
    assert!(fine.len() > 50 && rejected.len() > 50, "{} and {}", fine.len(), rejected.len());
    cases.extend(
        rejected
            .into_iter()
            .map(|pattern| route(&format!("the pattern {pattern}"), false, of(pattern))),
    );
    // All at once, because Envoy's error names the pattern.
    let all: Vec<_> = fine.into_iter().map(of).collect();
    cases.push(routes(
        "the patterns that are fine",
        true,
        json!([{"name": "v", "domains": ["*"], "routes": all}]),
    ));

    let envoy = EnvoyBinary::find(None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let bytes = json_to_any(case.kind, &case.resource)
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let found = check(case.kind, &bytes);
        let spare = json!({"name": "c", "connect_timeout": "1s", "type": "STATIC"});
        let (clusters, listeners) = match case.kind {
            CLUSTER => (json!([case.resource]), json!([])),
            _ => (json!([spare]), json!([case.resource])),
        };
        let file = folder.path().join(format!("{number}.json"));
        let bootstrap = json!({
            "node": {"id": "a", "cluster": "a"},
            "static_resources": {"clusters": clusters, "listeners": listeners},
        });
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let envoy = envoy.validate(&file).err().map(|error| error.to_string());
        if case.fine != found.is_empty() || case.fine != envoy.is_none() {
            let expected = if case.fine { "fine" } else { "wrong" };
            wrong.push(format!(
                "{}: expected {expected}\n  weir:  {found:?}\n  Envoy: {envoy:?}",
                case.name
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn full_name(kind: ResourceType) -> &'static str {
    kind.type_url().rsplit('/').next().unwrap()
}

/// Everything that a sidecar gets for the objects of each case.
fn snapshots() -> Vec<(PathBuf, Snapshot)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut inputs: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path().join("input.yaml"))
        .collect();
    inputs.retain(|input| input.exists());
    inputs.sort();
    let mut out = Vec::new();
    for input in inputs {
        let (mut store, mut dirty) = (Store::default(), BTreeSet::new());
        for change in weir::source::directory::load_once(&input).unwrap() {
            store.apply(change, &mut dirty);
        }
        let mesh = MeshBuilder::new(MeshConfig::default()).update(&store, &dirty);
        for metadata in
            [json!({}), json!({"LABELS": {"app": "client"}, "INTERCEPTION_MODE": "NONE"})]
        {
            let id = "sidecar~10.9.0.1~client-0.shop~shop.svc.cluster.local";
            let proxy =
                Proxy::new(id, NodeMetadata::from_json(&metadata), Locality::parse("eu/eu-a"))
                    .unwrap();
            out.push((
                input.clone(),
                SnapshotBuilder::default().snapshot(&mesh, &mesh.scope(&proxy)),
            ));
        }
    }
    out
}

/// The resources of all snapshots, each with its type.
fn resources() -> Vec<(String, &'static str, Vec<u8>)> {
    let mut out = Vec::new();
    for (input, snapshot) in snapshots() {
        for kind in ResourceType::ALL {
            let all = snapshot.get(kind).values();
            out.extend(all.map(|item| {
                (format!("{} {}", input.display(), item.name), full_name(kind), item.bytes())
            }));
        }
    }
    assert!(out.len() > 150, "only {}", out.len());
    out
}

#[test]
fn nothing_that_weir_sends_is_wrong() {
    for (name, kind, bytes) in resources() {
        let found = check(kind, &bytes);
        assert!(found.is_empty(), "{name}: {found:#?}");
    }
}

#[test]
fn corrupted_resources_are_detected() {
    let spoil = |kind, json: &mut Value| -> &'static str {
        match kind {
            CLUSTER => {
                json["connectTimeout"] = json!("0s");
                "connect_timeout"
            }
            LISTENER => {
                let chain = match json["filterChains"].is_array() {
                    true => &mut json["filterChains"][0],
                    false => &mut json["defaultFilterChain"],
                };
                chain["filters"][0]["name"] = json!("");
                ".name"
            }
            ROUTES => {
                json["virtualHosts"][0]["domains"] = json!([]);
                "virtual_hosts[0].domains"
            }
            _ => {
                json["clusterName"] = json!("");
                "cluster_name"
            }
        }
    };
    for (name, kind, bytes) in resources() {
        let mut json = bytes_to_json(kind, &bytes).unwrap();
        let path = spoil(kind, &mut json);
        let found = check(kind, &json_to_any(kind, &json).unwrap());
        assert!(found.iter().any(|item| item.path.ends_with(path)), "{name}: {path}: {found:#?}");
        let cut = check(kind, &bytes[..bytes.len() - 1]);
        assert!(!cut.is_empty(), "{name}: without its last byte");
    }
}

#[test]
fn no_changed_byte_makes_it_panic() {
    let all = resources();
    let strategy = (
        any::<prop::sample::Index>(),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    );
    let mut runner =
        TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(500) });
    let outcome = runner.run(&strategy, |(which, changes)| {
        let (_, kind, bytes) = which.get(&all);
        let mut bytes = bytes.clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        check(kind, &bytes);
        Ok(())
    });
    outcome.unwrap();
}

/// Prints how long checks of increasingly large route configurations take. Run manually: `cargo test --test
/// weir envoy_validate:: -- --ignored --nocapture`
#[test]
#[ignore = "prints times"]
fn print_durations() {
    let host = |at: usize| {
        json!({"name": format!("app-{at}.shop.svc.cluster.local:80"),
            "domains": [format!("app-{at}.shop.svc.cluster.local"), format!("app-{at}.shop"), format!("10.0.{}.{}", at / 256, at % 256)],
            "routes": [{
                "match": {"prefix": "/", "headers": [{"name": "x", "stringMatch": {"safeRegex": {"regex": "^a[0-9]+$"}}}]},
                "route": {
                    "weightedClusters": {"clusters": [
                        {"name": format!("outbound|80|v1|app-{at}.shop.svc.cluster.local"), "weight": 90},
                        {"name": format!("outbound|80|v2|app-{at}.shop.svc.cluster.local"), "weight": 10}]},
                    "timeout": "0s",
                    "retryPolicy": {"retryOn": "connect-failure,refused-stream", "numRetries": 2,
                        "retryHostPredicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typedConfig": {
                            "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]}}}]})
    };
    check(ROUTES, &[]);
    for count in [250, 500, 1000, 2000] {
        let json = json!({"name": "80", "virtualHosts": (0..count).map(host).collect::<Vec<_>>()});
        let bytes = json_to_any(ROUTES, &json).unwrap();
        let start = Instant::now();
        let found = check(ROUTES, &bytes);
        let took = start.elapsed();
        assert!(found.is_empty(), "{found:?}");
        println!("{count} virtual hosts, {} bytes: {took:?}", bytes.len());
    }
}
