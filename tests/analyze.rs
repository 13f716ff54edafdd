//! Tests the output and exit status of `weir analyze`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::kube::KubeCluster;
use serde_json::{Value, json};
use weir::analyze;
use weir::mesh::MeshConfig;
use weir::source::directory;
use weir::store::Store;

const SERVICES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.0.0.1
  ports: [{name: http, port: 80}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  subsets:
  - {name: v1, labels: {version: v1}}
";

const WRONG: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - name: canary
    timeuot: 3s
    route:
    - destination: {host: web, subset: v1}
      weight: 50
    - destination: {host: web, subset: v2}
      weight: 60
";

fn weir(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir"))
        .arg("analyze")
        .args(args)
        .env_remove("WEIR_LOG")
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let path = folder.path().to_str().unwrap().to_owned();
    (folder, path)
}

fn findings(path: &str) -> Vec<Value> {
    let output = weir(&["-f", path, "-o", "json"]);
    let mut all: Value = serde_json::from_slice(&output.stdout).unwrap();
    all["findings"].as_array_mut().unwrap().drain(..).collect()
}

#[test]
fn json_names_the_code_the_object_the_line_and_the_field() {
    let (_folder, path) = folder(&[("services.yaml", SERVICES), ("wrong.yaml", WRONG)]);
    let output = weir(&["-f", &path, "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let short: Vec<_> = all["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| json!([item["severity"], item["code"], item["line"], item["path"]]))
        .collect();
    assert_eq!(
        short,
        [
            json!(["warning", "IST0133", 8, "spec.http[0].timeuot"]),
            json!(["info", "WEIR0101", 9, "spec.http[0].route"]),
            json!(["error", "IST0101", 12, "spec.http[0].route[1].destination.subset"]),
        ]
    );
    let last = &all["findings"][2];
    assert_eq!(
        last["object"],
        json!({"kind": "VirtualService", "namespace": "shop", "name": "web"})
    );
    assert_eq!(last["name"], "ReferencedResourceNotFound");
    assert_eq!(last["file"], format!("{path}/wrong.yaml"));
    assert_eq!(
        last["message"],
        "subset `v2` of web.shop does not exist in DestinationRule shop/web"
    );
    assert_eq!(last["advice"], "add it there, or use `v1`");
    assert_eq!(
        all["summary"],
        json!({"error": 1, "warning": 1, "info": 1, "objects": 3, "rejected": 0})
    );
}

#[test]
fn the_table_is_aligned_and_fits_a_hundred_columns() {
    let (_folder, path) = folder(&[("services.yaml", SERVICES), ("wrong.yaml", WRONG)]);
    let output = text(&weir(&["-f", &path]));
    assert!(output.lines().all(|line| line.chars().count() <= 100), "{output}");
    assert!(!output.contains('\x1b'), "a pipe gets no colours: {output}");
    let lines: Vec<_> = output.lines().collect();
    let column = lines[0].find("WHAT").unwrap();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["LEVEL", "CODE", "WHERE", "WHAT"]);
    let first = lines.iter().find(|line| line.starts_with("error")).unwrap();
    assert_eq!(first.split_whitespace().nth(1), Some("IST0101"));
    assert_eq!(&first[column..column + 8], "subset `", "{output}");
    assert!(output.contains("VirtualService shop/web"));
    assert_eq!(lines.last(), Some(&"1 error, 1 warning, 1 note in 3 objects"));
}

#[test]
fn the_exit_status_says_whether_something_was_found() {
    let (_folder, fine) = folder(&[("services.yaml", SERVICES)]);
    assert_eq!(weir(&["-f", &fine]).status.code(), Some(0));
    assert_eq!(text(&weir(&["-f", &fine])), "No problems found in 2 objects.\n");

    let info = WRONG.replace("    timeuot: 3s\n", "").replace("subset: v2", "subset: v1");
    let (_folder, info) = folder(&[("services.yaml", SERVICES), ("info.yaml", &info)]);
    for (fail_on, status) in [("error", 0), ("warning", 0), ("info", 1)] {
        assert_eq!(
            weir(&["-f", &info, "--fail-on", fail_on]).status.code(),
            Some(status),
            "{fail_on}"
        );
    }
    assert_eq!(
        weir(&["-f", &info, "--fail-on", "info", "--ignore", "WEIR0101"]).status.code(),
        Some(0)
    );
    assert_eq!(
        weir(&["-f", &info, "--fail-on", "info", "--namespace", "pay"]).status.code(),
        Some(0)
    );

    let (_folder, warning) = folder(&[
        ("services.yaml", SERVICES),
        ("w.yaml", &WRONG.replace("subset: v2", "subset: v1")),
    ]);
    assert_eq!(weir(&["-f", &warning]).status.code(), Some(0));
    assert_eq!(weir(&["-f", &warning, "--fail-on", "warning"]).status.code(), Some(1));
}

#[test]
fn usage_errors_are_distinguished_from_findings() {
    for (args, says) in [
        (&[][..], "--file"),
        (&["-f", "/nowhere/at/all"], "/nowhere/at/all"),
        (&["-f", ".", "--ignore", "IST9999"], "IST9999"),
        (&["--kubeconfig", "/nowhere/at/all"], "/nowhere/at/all"),
        (&["-f", ".", "-o", "xml"], "xml"),
        (&["-f", "deploy/examples/nothing"], "nothing"),
        (&["-f", "src/analyze"], "contains an object of these kinds"),
    ] {
        let output = weir(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(says), "{args:?}: {error}");
    }
}

#[test]
fn broken_yaml_is_found_at_its_line_and_the_rest_is_looked_at() {
    let broken = "apiVersion: v1\nkind: Service\nmetadata:\n  name: [web\nspec: {}\n";
    let (_folder, path) =
        folder(&[("a.yaml", broken), ("services.yaml", SERVICES), ("wrong.yaml", WRONG)]);
    let all = findings(&path);
    assert_eq!(all[0]["code"], "WEIR0001");
    assert_eq!(all[0]["file"], format!("{path}/a.yaml"));
    assert_eq!(all[0]["line"], 5);
    assert_eq!(all[0]["object"], Value::Null);
    assert_eq!(all.len(), 4, "{all:#?}");
}

#[test]
fn a_rejected_field_has_its_line() {
    let rejected = WRONG.replace("weight: 60", "weight: many");
    let (_folder, path) = folder(&[("services.yaml", SERVICES), ("refused.yaml", &rejected)]);
    let all = findings(&path);
    assert_eq!((&all[0]["code"], &all[0]["line"]), (&json!("IST0106"), &json!(13)));
    assert_eq!(all[0]["path"], "spec.http[0].route[1].weight");
    assert_eq!(all.len(), 1, "{all:#?}");
}

/// Anchors, aliases and a merge, a key with dots, and a second document in flow style. The fields of an alias are at the
/// line of its anchor.
const ANCHORS: &str = "\
# A comment before the document.
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: anchors, namespace: shop}
spec:
  hosts: ['*.a.b']
  http:
  - match: [{uri: {prefix: /a}}]
    route: &both
    - destination: &web
        host: web
      weight: 50
    - destination:
        <<: *web
        host: nobody
      weight: 50
  - match:
    - headers:
        x.dots.in-it:
          regex: .*
      uri: {prefix: /b}
    route: *both
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: second, namespace: shop}
spec: {hosts: ['*.c.d'], http: [{route: [
  {destination: {host: web,
    subset: v7}}]}]}
...
";

/// JSON in a `List`.
const JSON_LIST: &str = "\
{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [
  {\"apiVersion\": \"networking.istio.io/v1\", \"kind\": \"VirtualService\",
   \"metadata\": {\"name\": \"json\", \"namespace\": \"shop\"},
   \"spec\": {\"hosts\": [\"*.e.f\"], \"http\": [{\"route\": [
     {\"destination\": {\"host\": \"web\"}},
     {\"destination\": {\"host\": \"nobody\"},
      \"weight\": 100}]}]}}]}
";

/// Lines that end as on Windows.
const CRLF: &str = "apiVersion: networking.istio.io/v1\r\nkind: VirtualService\r\nmetadata: {name: crlf, namespace: shop}\r\n\
                    spec:\r\n  hosts: ['*.g.h']\r\n  http:\r\n  - route:\r\n    - destination: {host: web}\r\n    timeout: soon\r\n";

/// The file name, line and path of each finding.
fn places(path: &str) -> Vec<(String, u64, String)> {
    let all = findings(path).into_iter().map(|finding| {
        let file = Path::new(finding["file"].as_str().unwrap()).file_name().unwrap();
        let (line, path) = (finding["line"].as_u64().unwrap(), finding["path"].as_str().unwrap());
        (file.to_str().unwrap().to_owned(), line, path.to_owned())
    });
    all.collect()
}

#[test]
fn a_field_has_its_line_in_any_style() {
    let (_folder, path) = folder(&[
        ("services.yaml", SERVICES),
        ("anchors.yml", ANCHORS),
        ("list.json", JSON_LIST),
        ("windows.yaml", CRLF),
    ]);
    let expected = [
        ("anchors.yml", 16, "spec.http[0].route[1].destination.host"),
        ("anchors.yml", 16, "spec.http[1].route[1].destination.host"),
        ("anchors.yml", 30, "spec.http[0].route[0].destination.subset"),
        ("list.json", 6, "spec.http[0].route[1].destination.host"),
        ("windows.yaml", 9, "spec.http[0].timeout"),
    ];
    let expected = expected.map(|(file, line, path)| (file.to_owned(), line, path.to_owned()));
    assert_eq!(places(&path), expected);
}

#[test]
fn every_code_is_listed() {
    let output = text(&weir(&["--list-codes"]));
    assert!(output.lines().all(|line| line.chars().count() <= 100), "{output}");
    let all: Value = serde_json::from_slice(&weir(&["--list-codes", "-o", "json"]).stdout).unwrap();
    for code in weir::analyze::code::ALL {
        assert!(output.contains(code.id), "{}", code.id);
        let listed = all.as_array().unwrap().iter().find(|item| item["code"] == code.id).unwrap();
        assert_eq!(listed["severity"], code.severity.as_str());
    }
}

/// Cases with intentional mistakes and their expected errors.
const MISTAKES: &[(&str, &[(&str, &str)])] = &[
    // Weights that are all 0, an undefined subset and an unknown host.
    (
        "weights",
        &[
            ("IST0106", "spec.http[4].route"),
            ("IST0101", "spec.http[5].route[0].destination.subset"),
            ("IST0101", "spec.http[6].route[0].destination.host"),
        ],
    ),
    // A root whose delegate is missing.
    ("delegate", &[("IST0101", "spec.http[1].delegate")]),
    // Two VirtualServices for one host, a short name that means another service, subsets without pods.
    (
        "scope",
        &[
            ("IST0101", "spec.http[0].route[0].destination.host"),
            ("IST0109", "spec.hosts[0]"),
            ("IST0173", "spec.subsets[0].labels"),
            ("IST0173", "spec.subsets[0].labels"),
            ("IST0173", "spec.subsets[1].labels"),
        ],
    ),
    // A rule with a subset that matches no pod of the service.
    ("tcp-and-tls", &[("IST0173", "spec.subsets[1].labels")]),
];

#[test]
fn the_cases_that_are_right_have_no_errors() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|case| case.join("input.yaml").exists());
    cases.sort();
    assert!(cases.len() >= 8, "{cases:?}");
    for case in cases {
        let name = case.file_name().unwrap().to_str().unwrap();
        let expected =
            MISTAKES.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, errors)| errors);
        let all = findings(case.join("input.yaml").to_str().unwrap());
        let errors: Vec<_> = all
            .iter()
            .filter(|item| item["severity"] == "error")
            .map(|item| (item["code"].as_str().unwrap(), item["path"].as_str().unwrap()))
            .collect();
        assert_eq!(errors, expected, "{name}");
    }
}

#[test]
fn a_cluster_is_listed_once() {
    let Some(cluster) = KubeCluster::start("a_cluster_is_listed_once") else {
        return;
    };
    let kubeconfig = cluster.kubeconfig_path().to_str().unwrap().to_owned();
    let listed = |more: &[&str]| {
        let output = weir(&[&["--kubeconfig", &kubeconfig, "-o", "json"], more].concat());
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        let short = all["findings"].as_array().unwrap().iter();
        let short: Vec<_> = short
            .map(|item| {
                json!([
                    item["code"],
                    item["object"]["name"],
                    item["file"],
                    item["line"],
                    item["path"]
                ])
            })
            .collect();
        (output.status.code(), short)
    };
    let absent = |kind: &str| json!(["WEIR0002", null, null, null, kind]);
    assert_eq!(
        listed(&[]),
        (
            Some(0),
            [
                "destinationrules",
                "peerauthentications",
                "serviceentries",
                "sidecars",
                "virtualservices",
                "workloadentries"
            ]
            .map(absent)
            .to_vec()
        )
    );

    cluster.apply_crds();
    cluster.apply_folder("deploy/examples/canary");
    assert_eq!(listed(&["--fail-on", "info"]), (Some(0), Vec::new()));

    let patch =
        json!([{"op": "replace", "path": "/spec/http/0/route/1/destination/subset", "value": "v3"}]).to_string();
    let object = ["virtualservice", "my-app", "--type=json", "-p", &patch];
    cluster.kubectl_ok(&[&["-n", "your-namespace", "patch"], &object[..]].concat());
    let subset = "spec.http[0].route[1].destination.subset";
    assert_eq!(listed(&[]), (Some(1), vec![json!(["IST0101", "my-app", null, null, subset])]));
    assert_eq!(listed(&["-n", "default"]), (Some(0), Vec::new()));
}

/// A folder as of a large mesh. Run with `cargo test --release --test analyze -- --ignored --nocapture` to see how long
/// it takes.
#[test]
#[ignore = "prints how long it takes, which says something in a release build alone"]
fn five_thousand_objects() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..1250 {
        let (namespace, a, b) = (n % 25, n / 250, n % 250);
        let content = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: n{namespace}}}\n\
             spec: {{clusterIP: 10.0.{a}.{b}, selector: {{app: s{n}}}, ports: [{{name: http, port: 80}}]}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: s{n}, namespace: n{namespace}, labels: {{app: s{n}, version: v1}}}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: s{n}, namespace: n{namespace}}}\n\
             spec: {{host: s{n}, subsets: [{{name: v1, labels: {{version: v1}}}}]}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: s{n}, namespace: n{namespace}}}\n\
             spec:\n  hosts: [s{n}]\n  http:\n  - route:\n    - destination: {{host: s{n}, subset: v1}}\n      weight: 90\n    \
             - destination: {{host: s{n}, subset: v2}}\n      weight: 10\n"
        );
        std::fs::write(folder.path().join(format!("{n}.yaml")), content).unwrap();
    }
    let begun = std::time::Instant::now();
    let all = findings(folder.path().to_str().unwrap());
    println!("{} findings in {:?}", all.len(), begun.elapsed());
    assert_eq!(all.len(), 1250);
    assert!(all.iter().all(|item| item["code"] == "IST0101"));
}

#[test]
fn the_findings_about_one_object_are_those_of_all_about_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let cases = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let (mut objects, mut seen) = (0, 0);
    for case in cases {
        let (mut store, mut keys) = (Store::default(), BTreeSet::new());
        for change in directory::load_once(&case.join("input.yaml")).unwrap() {
            store.apply(change, &mut keys);
        }
        let config = MeshConfig::default();
        let all = analyze::analyze(&store, &config);
        for key in &keys {
            let about = all.iter().filter(|finding| finding.object.as_ref() == Some(key));
            let about: Vec<_> = about.cloned().collect();
            assert_eq!(analyze::analyze_object(&store, &config, key), about, "{key}");
            seen += about.len();
        }
        objects += keys.len();
    }
    assert!(objects > 100 && seen > 20, "{seen} findings about {objects} objects");
}
