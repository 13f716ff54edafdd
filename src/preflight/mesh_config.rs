//! Istio's MeshConfig, which is in the ConfigMap `istio`, or `istio-REVISION`, of the root namespace.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Concerns, Document, Finding, Level};
use crate::source::yaml;

/// Fields with which Istiod configures sidecars in another way than weir does. Where they are set, weir differs.
const NOT_READ: [&str; 16] = [
    "accessLogFile",
    "connectTimeout",
    "defaultDestinationRuleExportTo",
    "defaultHttpRetryPolicy",
    "defaultProviders",
    "defaultServiceExportTo",
    "defaultVirtualServiceExportTo",
    "enableTracing",
    "h2UpgradePolicy",
    "inboundTrafficPolicy",
    "localityLbSetting",
    "meshMTLS",
    "pathNormalization",
    "serviceSettings",
    "tcpKeepalive",
    "tlsDefaults",
];

/// What a MeshConfig says that weir has to be told by flags, or does not do.
pub(super) fn check(document: &Document, root_namespace: &str) -> Vec<Finding> {
    let name = document.name();
    if document.namespace() != root_namespace || name != "istio" && !name.starts_with("istio-") {
        return Vec::new();
    }
    let Some(text) = document.at("/data/mesh").and_then(Value::as_str) else {
        return Vec::new();
    };
    let config = match yaml::documents(text.as_bytes()) {
        Ok(documents) => {
            documents.into_iter().next().map(|config| config.value).unwrap_or_default()
        }
        Err(error) => {
            let message = format!("is not YAML: {error}");
            return vec![difference(document, "", &message)];
        }
    };
    let mut found = Vec::new();
    if config.pointer("/outboundTrafficPolicy/mode").is_some_and(|mode| mode == "REGISTRY_ONLY") {
        let (path, flags) = ("outboundTrafficPolicy.mode", "--outbound-policy registry-only");
        found.push(step(document, path, "is REGISTRY_ONLY", flags));
    }
    let root = config.get("rootNamespace").and_then(Value::as_str);
    if let Some(root) = root.filter(|root| !root.is_empty() && *root != "istio-system") {
        let flags = format!("--root-namespace {root}");
        found.push(step(document, "rootNamespace", &format!("is `{root}`"), &flags));
    }
    let selectors = config.get("discoverySelectors").and_then(Value::as_array);
    let flags: Vec<String> = selectors.into_iter().flatten().map(flag).collect();
    if !flags.is_empty() {
        let message = "limits the namespaces that are read";
        found.push(step(document, "discoverySelectors", message, &flags.join(" ")));
    }
    for field in NOT_READ {
        if config.get(field).is_some_and(is_set) {
            found.push(difference(document, field, "is set, and weir does not read it"));
        }
    }
    found
}

/// What weir has to be told by these flags.
fn step(document: &Document, path: &str, message: &str, flags: &str) -> Finding {
    finding(document, Level::Step, path, message, &format!("start weir with {flags}"))
}

fn difference(document: &Document, path: &str, message: &str) -> Finding {
    finding(document, Level::Difference, path, message, "")
}

fn finding(document: &Document, level: Level, path: &str, message: &str, advice: &str) -> Finding {
    let path = format!("data.mesh: {path}");
    document.finding(level, Concerns::Mesh(BTreeSet::new()), path, message, advice)
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Number(_) => true,
    }
}

/// A label selector as a flag of `weir serve`.
fn flag(selector: &Value) -> String {
    let labels = selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
    let mut all: Vec<String> = labels
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
        .collect();
    let expressions = selector.get("matchExpressions").and_then(Value::as_array);
    for expression in expressions.into_iter().flatten() {
        let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
        let values = values.filter_map(Value::as_str).collect::<Vec<_>>().join(",");
        let key = expression["key"].as_str().unwrap_or_default();
        all.push(match expression["operator"].as_str().unwrap_or_default() {
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => format!("{key} in ({values})"),
        });
    }
    format!("--discovery-selector '{}'", all.join(","))
}
