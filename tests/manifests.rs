//! The manifests in `deploy/` as linters of the field judge them: kubeconform by the schemas of a real API server, and
//! kube-score by what a workload should have.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};

use crate::support::helm::helm;
use crate::support::kube::KubeCluster;
use crate::support::lint::Linters;
use crate::support::mesh::until;

const KUSTOMIZATIONS: [&str; 4] = [
    "deploy",
    "deploy/overlays/ha",
    "deploy/overlays/one-namespace",
    "deploy/overlays/with-istio-crds",
];

/// Kinds of rollout tools, whose schemas the API server does not have.
const FOREIGN: &str = "AnalysisTemplate,Canary,MetricTemplate,Rollout";

/// What people apply, by the name of a file to write it to: the kustomizations and the chart, each complete.
fn rendered(cluster: &KubeCluster, test: &str) -> Option<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for folder in KUSTOMIZATIONS {
        let path = format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"));
        all.insert(
            format!("{}.yaml", folder.replace('/', "-")),
            cluster.kubectl_ok(&["kustomize", &path]),
        );
    }
    let chart = helm(
        test,
        &[
            "template",
            "weir",
            "deploy/helm/weir",
            "-n",
            "weir-system",
            "--set",
            "namespace.create=true",
        ],
    )?;
    assert!(chart.status.success(), "{chart:?}");
    all.insert("chart.yaml".to_owned(), String::from_utf8(chart.stdout).unwrap());
    Some(all)
}

/// Rejects unknown fields, and lets a number stand for an int-or-string as the API server does.
fn make_strict(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("properties")
                && !fields.contains_key("additionalProperties")
                && !fields.contains_key("x-kubernetes-preserve-unknown-fields")
            {
                fields.insert("additionalProperties".to_owned(), false.into());
            }
            let either = fields.get("format").is_some_and(|format| format == "int-or-string")
                || fields.get("x-kubernetes-int-or-string").is_some_and(|both| both == true);
            if either {
                fields.insert("type".to_owned(), json!(["string", "integer"]));
            }
            fields.values_mut().for_each(make_strict);
        }
        Value::Array(items) => items.iter_mut().for_each(make_strict),
        _ => {}
    }
}

/// Adds the definitions that `schema` references, and those that they reference.
fn add_references(schema: &Value, all: &Map<String, Value>, found: &mut Map<String, Value>) {
    match schema {
        Value::Object(fields) => {
            let name = fields.get("$ref").and_then(Value::as_str);
            if let Some(name) = name.and_then(|name| name.strip_prefix("#/definitions/"))
                && !found.contains_key(name)
            {
                found.insert(name.to_owned(), all[name].clone());
                add_references(&all[name], all, found);
            }
            fields.values().for_each(|field| add_references(field, all, found));
        }
        Value::Array(items) => items.iter().for_each(|item| add_references(item, all, found)),
        _ => {}
    }
}

/// Writes the schema of each kind that the API server has, as `GROUP-VERSION-KIND.json` in lower case.
fn write_schemas(openapi: &Value, folder: &Path) {
    let mut definitions = openapi["definitions"].clone();
    make_strict(&mut definitions);
    let definitions = definitions.as_object().unwrap();
    for schema in definitions.values() {
        let kinds = schema["x-kubernetes-group-version-kind"].as_array();
        let Some([kind]) = kinds.map(Vec::as_slice) else {
            continue;
        };
        let mut references = Map::new();
        add_references(schema, definitions, &mut references);
        let mut schema = schema.clone();
        schema["definitions"] = Value::Object(references);
        let part = |name: &str| kind[name].as_str().unwrap().to_lowercase();
        // kubeconform takes the version of the core group for its name.
        let group = if part("group").is_empty() { part("version") } else { part("group") };
        let name = format!("{group}-{}-{}.json", part("version"), part("kind"));
        std::fs::write(folder.join(name), schema.to_string()).unwrap();
    }
}

/// The schemas that the API server publishes, once they include the Istio kinds.
async fn openapi(cluster: &KubeCluster) -> Value {
    let mut document = Value::Null;
    until("the API server to publish the Istio kinds", async || {
        let text = cluster.kubectl_ok(&["get", "--raw", "/openapi/v2"]);
        document = serde_json::from_str(&text).unwrap();
        let definitions = document["definitions"].as_object().unwrap();
        let crds = [
            "DestinationRule",
            "PeerAuthentication",
            "ServiceEntry",
            "Sidecar",
            "VirtualService",
            "WorkloadEntry",
        ];
        crds.iter().all(|kind| definitions.keys().any(|name| name.ends_with(&format!(".{kind}"))))
    })
    .await;
    document
}

#[tokio::test]
async fn kubeconform_finds_no_field_that_the_api_server_does_not_know() {
    let test = "kubeconform_finds_no_field_that_the_api_server_does_not_know";
    let (Some(linters), Some(cluster)) = (Linters::find(test), KubeCluster::start(test)) else {
        return;
    };
    cluster.apply_crds();
    let folder = tempfile::tempdir().unwrap();
    let schemas = folder.path().join("schemas");
    std::fs::create_dir(&schemas).unwrap();
    write_schemas(&openapi(&cluster).await, &schemas);
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let Some(rendered) = rendered(&cluster, test) else {
        return;
    };
    for (name, text) in rendered {
        std::fs::write(manifests.join(name), text).unwrap();
    }
    let location = format!(
        "{}/{{{{.Group}}}}-{{{{.ResourceAPIVersion}}}}-{{{{.ResourceKind}}}}.json",
        schemas.display()
    );
    let lint = |file: &Path| {
        Command::new(&linters.kubeconform)
            .args([
                "-strict",
                "-summary",
                "-ignore-filename-pattern",
                "kustomization.yaml",
                "-skip",
                FOREIGN,
            ])
            .args(["-schema-location", &location])
            .arg(file)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples"))
            .output()
            .unwrap()
    };
    let output = lint(&manifests);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));

    // A field that does not exist is found, so the schemas are in use.
    let wrong = folder.path().join("wrong.yaml");
    let text = "{apiVersion: v1, kind: Namespace, metadata: {name: a}, spec: {no: 1}}";
    std::fs::write(&wrong, text).unwrap();
    let output = lint(&wrong);
    assert!(!output.status.success(), "{output:?}");
}

#[test]
fn kube_score_finds_nothing_critical() {
    let test = "kube_score_finds_nothing_critical";
    let (Some(linters), Some(cluster)) = (Linters::find(test), KubeCluster::start(test)) else {
        return;
    };
    let Some(rendered) = rendered(&cluster, test) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in rendered {
        let file = folder.path().join(&name);
        std::fs::write(&file, text).unwrap();
        // A limit of CPU time would delay configuration when it matters most. The address of the API server, which an
        // egress policy would have to name, differs from cluster to cluster. Replicas are spread by topology
        // constraints. The image's tag is a version, which need not be pulled again.
        let output = Command::new(&linters.kube_score)
            .args(["score", "--ignore-container-cpu-limit", "--exit-one-on-warning"])
            .args([
                "--ignore-test",
                "pod-networkpolicy",
                "--ignore-test",
                "container-image-pull-policy",
            ])
            .args(["--ignore-test", "deployment-has-host-podantiaffinity"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
}
