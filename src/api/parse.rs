//! Parses a JSON document into an [`Object`], with errors that name the field.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::problem::{Problem, ProblemKind};
use super::{Age, Kind, Labels, Meta, Object, ObjectKey, Pod, Spec, validate};

/// The API group of Istio's traffic objects.
const ISTIO: &str = "networking.istio.io";

/// Kinds of that group that weir ignores. Any other unknown kind is a typo, and the object it was meant to be must not
/// be treated as deleted.
const NOT_READ: [&str; 4] = ["Gateway", "EnvoyFilter", "WorkloadGroup", "ProxyConfig"];

/// Why a document is not a valid object. Contains at least one problem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct ObjectError {
    /// All problems, in field order.
    pub problems: Vec<Problem>,
    /// `metadata.generation` of the document; 0 if absent.
    pub generation: i64,
    /// What the document references, as far as it can be read.
    pub references: References,
}

impl From<Problem> for ObjectError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem], generation: 0, references: References::default() }
    }
}

/// The names in a rejected object, so that objects that reference them are not reported as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// `spec.hosts` or `spec.host`.
    pub hosts: Vec<String>,
    /// The names of `spec.subsets`.
    pub subsets: Vec<String>,
    /// The namespace (may be empty) and name of each `spec.http[].delegate`.
    pub delegates: Vec<(String, String)>,
}

impl References {
    fn of(kind: Kind, document: &Value) -> Self {
        if !matches!(kind, Kind::VirtualService | Kind::DestinationRule | Kind::ServiceEntry) {
            return Self::default();
        }
        let hosts = items(document, "/spec/hosts").chain(document.pointer("/spec/host"));
        let subsets = items(document, "/spec/subsets").filter_map(|subset| subset.get("name"));
        let delegates = items(document, "/spec/http").filter_map(|route| route.get("delegate"));
        Self {
            hosts: hosts.filter_map(Value::as_str).map(str::to_owned).collect(),
            subsets: subsets.filter_map(Value::as_str).map(str::to_owned).collect(),
            delegates: delegates
                .filter_map(|to| {
                    let name = to.get("name").and_then(Value::as_str)?;
                    Some((text(to.get("namespace")), name.to_owned()))
                })
                .collect(),
        }
    }
}

/// The items of the list at `pointer`, if there is one.
fn items<'a>(document: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    document.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// The string `value`; empty if it is not a string.
fn text(value: Option<&Value>) -> String {
    value.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// An object and its harmless problems.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The object.
    pub object: Object,
    /// Unknown fields and fields without effect.
    pub warnings: Vec<Problem>,
}

/// The identity of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// An object of a kind that weir reads.
    Known(ObjectKey),
    /// An object of another kind, which weir ignores: its `apiVersion` and `kind`.
    Other(String, String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct RawMeta {
    name: String,
    namespace: String,
    labels: Labels,
    annotations: Labels,
    creation_timestamp: Option<Time>,
    generation: i64,
}

/// The items of a `List` document (as printed by `kubectl get -o yaml`), each with its path; for other documents the
/// document itself with an empty path.
pub fn expand_list(document: Value) -> Vec<(String, Value)> {
    let is_list =
        document.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"));
    match document {
        Value::Object(mut map) if is_list && matches!(map.get("items"), Some(Value::Array(_))) => {
            let list_kind = map.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
            let api_version = map.get("apiVersion").cloned();
            let Some(Value::Array(items)) = map.remove("items") else {
                return Vec::new();
            };
            let member_kind = list_kind.strip_suffix("List").filter(|kind| !kind.is_empty());
            items
                .into_iter()
                .enumerate()
                .map(|(index, mut item)| {
                    // The items of a typed list (`ServiceList`) have no kind or version of their own.
                    if let (Value::Object(item), Some(kind)) = (&mut item, member_kind) {
                        item.entry("kind").or_insert_with(|| Value::String(kind.to_owned()));
                        if let Some(version) = &api_version {
                            item.entry("apiVersion").or_insert_with(|| version.clone());
                        }
                    }
                    (format!("items[{index}]"), item)
                })
                .collect()
        }
        other => vec![(String::new(), other)],
    }
}

/// Identifies a document without parsing its content. A missing namespace means `default`, as in kubectl.
///
/// # Errors
/// The document is not an object (not a map, or without `apiVersion`, `kind` or `metadata.name`), or its group is known
/// but its version is not supported.
pub fn identify(document: &Value) -> Result<Identity, ObjectError> {
    if !document.is_object() {
        let found = describe(document);
        let advice = "expected an object with apiVersion, kind and metadata";
        return Err(Problem::new("", format!("the document is {found}"), advice).into());
    }
    let api_version =
        required_text(document, "/apiVersion", "apiVersion", "networking.istio.io/v1")?;
    let kind_name = required_text(document, "/kind", "kind", "VirtualService")?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let Some(kind) =
        Kind::ALL.into_iter().find(|kind| kind.as_str() == kind_name && kind.group() == group)
    else {
        if group == ISTIO && !NOT_READ.contains(&&*kind_name) {
            return Err(unknown_kind(&kind_name).into());
        }
        return Ok(Identity::Other(api_version, kind_name));
    };
    if !kind.versions().contains(&version) {
        return Err(unknown_version(kind, &api_version).into());
    }
    let name = required_text(document, "/metadata/name", "metadata.name", "my-app")?;
    let namespace = match document.pointer("/metadata/namespace") {
        _ if !kind.namespaced() => String::new(),
        Some(Value::String(namespace)) if !namespace.is_empty() => namespace.clone(),
        None | Some(Value::Null | Value::String(_)) => "default".to_owned(),
        Some(other) => {
            return Err(Problem::new(
                "metadata.namespace",
                format!("is {}", describe(other)),
                "expected a \
                string",
            )
            .into());
        }
    };
    Ok(Identity::Known(ObjectKey { kind, namespace: namespace.into(), name: name.into() }))
}

/// A string that every object has. `example` is a value it could have.
fn required_text(
    document: &Value,
    pointer: &str,
    path: &str,
    example: &str,
) -> Result<String, ObjectError> {
    let found = match document.pointer(pointer) {
        Some(Value::String(text)) if !text.is_empty() => return Ok(text.clone()),
        None | Some(Value::Null | Value::String(_)) => "is missing".to_owned(),
        Some(other) => format!("is {}", describe(other)),
    };
    Err(Problem::new(path, found, format!("expected a string like `{example}`")).into())
}

fn unknown_kind(name: &str) -> Problem {
    let read = Kind::ALL.into_iter().filter(|kind| kind.group() == ISTIO).map(Kind::as_str);
    let known = read.chain(NOT_READ).collect::<Vec<_>>().join(", ");
    let message = format!("`{name}` is not a kind of {ISTIO}");
    Problem::new("kind", message, format!("expected one of {known}"))
}

fn unknown_version(kind: Kind, api_version: &str) -> Problem {
    let group = kind.group();
    let known = kind.versions().iter().map(|version| match group {
        "" => (*version).to_owned(),
        group => format!("{group}/{version}"),
    });
    let known = known.collect::<Vec<_>>().join(", ");
    let message = format!("`{api_version}` is not a supported version of {kind}");
    Problem::new("apiVersion", message, format!("expected one of {known}"))
}

/// The label that assigns an Istio object to one revision of the control plane.
pub(crate) const REVISION_LABEL: &str = "istio.io/rev";

/// Whether a control plane of this revision reads a document of this kind. As in Istio, an Istio object with the label
/// `istio.io/rev` is read by that revision only, and a control plane without a revision reads all.
pub(crate) fn in_revision(kind: Kind, document: &Value, revision: Option<&str>) -> bool {
    if !kind.is_of_istio() {
        return true;
    }
    let labels = document.get("metadata").and_then(|metadata| metadata.get("labels"));
    let label = labels.and_then(|labels| labels.get(REVISION_LABEL)).and_then(Value::as_str);
    label.zip(revision).is_none_or(|(label, revision)| label == revision)
}

/// Parses the document that [`identify`] identified as `key` and validates it as far as possible without other objects.
/// `order` is its position in the source and decides between objects without a creation time.
///
/// # Errors
/// Every problem that makes the object invalid, with its field.
pub fn parse(key: &ObjectKey, mut document: Value, order: u64) -> Result<Parsed, ObjectError> {
    drop_nulls(&mut document);
    let references = References::of(key.kind, &document);
    let generation = document.pointer("/metadata/generation").and_then(Value::as_i64);
    object(key, document, order).map_err(|error| ObjectError {
        generation: generation.unwrap_or_default(),
        references,
        ..error
    })
}

fn object(key: &ObjectKey, document: Value, order: u64) -> Result<Parsed, ObjectError> {
    let Value::Object(mut map) = document else {
        return Err(Problem::new("", "the document is not an object", "expected a map").into());
    };
    let raw: RawMeta =
        read(map.remove("metadata").unwrap_or_default(), "metadata", &mut Vec::new())?;
    let mut annotations = raw.annotations;
    annotations.retain(|name, _| {
        name.split('/')
            .next()
            .is_some_and(|domain| domain.ends_with("istio.io") || domain == "weir.dev")
    });
    let created = raw.creation_timestamp.map_or(i64::MAX, |time| time.0.as_microsecond());
    let meta = Meta {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        labels: raw.labels.into(),
        annotations,
        age: Age { created, order },
        generation: raw.generation,
    };
    let mut warnings = Vec::new();
    let spec = map.remove("spec").unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    if key.kind.is_of_istio() {
        for name in
            map.keys().filter(|name| !matches!(name.as_str(), "apiVersion" | "kind" | "status"))
        {
            warnings.push(unknown_field(name));
        }
    }
    let mut ignored = Vec::new();
    let spec = match key.kind {
        Kind::Node => Spec::Node,
        Kind::Namespace => Spec::Namespace,
        Kind::Pod => Spec::Pod(pod(&spec, map.get("status"))),
        Kind::Service => Spec::Service(read(spec, "spec", &mut ignored)?),
        Kind::EndpointSlice => Spec::EndpointSlice(read(Value::Object(map), "", &mut ignored)?),
        Kind::Endpoints => Spec::Endpoints(read(Value::Object(map), "", &mut ignored)?),
        Kind::VirtualService => Spec::VirtualService(read(spec, "spec", &mut warnings)?),
        Kind::DestinationRule => {
            Spec::DestinationRule(Box::new(read(spec, "spec", &mut warnings)?))
        }
        Kind::ServiceEntry => Spec::ServiceEntry(Box::new(read(spec, "spec", &mut warnings)?)),
        Kind::WorkloadEntry => Spec::WorkloadEntry(Box::new(read(spec, "spec", &mut warnings)?)),
        Kind::Sidecar => Spec::Sidecar(Box::new(read(spec, "spec", &mut warnings)?)),
        Kind::PeerAuthentication => {
            Spec::PeerAuthentication(Box::new(read(spec, "spec", &mut warnings)?))
        }
    };
    let object = Object { meta, spec };
    let found = validate::check(&object);
    if !found.problems.is_empty() {
        // A missing field may be present under a misspelt name.
        let problems = found.problems.into_iter().chain(warnings).collect();
        return Err(ObjectError { problems, generation: 0, references: References::default() });
    }
    warnings.extend(found.warnings);
    Ok(Parsed { object, warnings })
}

/// Never fails: missing or malformed values count as unknown.
fn pod(spec: &Value, status: Option<&Value>) -> Pod {
    let listed = status
        .and_then(|status| status.get("podIPs"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let listed = listed.filter_map(|item| item.get("ip"));
    let first = status.and_then(|status| status.get("podIP"));
    let mut ips: Vec<String> = Vec::new();
    for ip in first.into_iter().chain(listed).filter_map(Value::as_str) {
        if !ip.is_empty() && !ips.iter().any(|known| known == ip) {
            ips.push(ip.to_owned());
        }
    }
    Pod {
        node_name: text(spec.get("nodeName")),
        service_account: text(spec.get("serviceAccountName")),
        ips,
    }
}

/// Deserializes `value` as `T`, collects unknown fields, and reports errors with their path below `prefix`.
fn read<T: DeserializeOwned>(
    value: Value,
    prefix: &str,
    unknown: &mut Vec<Problem>,
) -> Result<T, ObjectError> {
    let mut track = serde_path_to_error::Track::new();
    let value = if value.is_null() { Value::Object(serde_json::Map::new()) } else { value };
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let result = serde_ignored::deserialize(tracked, |path| {
        let path = join(prefix, &indexed(&path.to_string()));
        unknown.push(unknown_field(path));
    });
    result.map_err(|error: serde_json::Error| {
        let path = track.path().to_string();
        let path = if path == "." { prefix.to_owned() } else { join(prefix, &path) };
        let (message, advice) = plain(&error.to_string());
        Problem::new(path, message, advice).into()
    })
}

fn unknown_field(path: impl Into<String>) -> Problem {
    let advice = "check its spelling and position, or remove it";
    Problem::new(path, "is not a known field and has no effect", advice)
        .of(ProblemKind::UnknownField)
}

fn join(prefix: &str, path: &str) -> String {
    match (prefix, path) {
        ("", path) => path.to_owned(),
        (prefix, "") => prefix.to_owned(),
        (prefix, path) => format!("{prefix}.{path}"),
    }
}

/// `http.0.route` as `http[0].route`.
fn indexed(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 4);
    for (n, part) in path.split('.').enumerate() {
        if part == "?" {
            continue;
        }
        if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            out.push('[');
            out.push_str(part);
            out.push(']');
        } else {
            if n > 0 {
                out.push('.');
            }
            out.push_str(part);
        }
    }
    out
}

/// Rephrases a serde message for users who write YAML: what was found and what was expected.
fn plain(message: &str) -> (String, String) {
    let mut text = message.to_owned();
    for (rust, people) in [
        ("expected struct ", "expected a map for "),
        ("expected u16", "expected an integer from 0 to 65535"),
        ("expected u32", "expected an integer from 0 to 4294967295"),
        ("expected u64", "expected an integer of 0 or more"),
        ("expected i32", "expected an integer"),
        ("expected i64", "expected an integer"),
        ("expected f64", "expected a number"),
        ("expected a boolean", "expected true or false"),
        ("expected a string", "expected a string; quote values that YAML reads as another type"),
        ("invalid type: ", "is the wrong type: "),
        ("invalid value: ", "is out of range: "),
    ] {
        text = text.replace(rust, people);
    }
    let found = text.rfind("expected ").and_then(|at| Some((text.get(..at)?, text.get(at..)?)));
    match found.map(|(found, expected)| (found.trim_end_matches([',', ';', ' ']), expected)) {
        Some((found, expected)) if !found.is_empty() => (found.to_owned(), expected.to_owned()),
        _ => (text, String::new()),
    }
}

/// Describes a JSON value for error messages.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "empty".to_owned(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the string `{}`", s.chars().take(60).collect::<String>()),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
    }
}

/// An explicit null is equivalent to an absent field (in Protobuf's JSON mapping and in the Kubernetes API).
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, member| !member.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

impl From<&Object> for ObjectKey {
    fn from(object: &Object) -> Self {
        object.key()
    }
}

/// Constructor from plain strings, for tests and tools.
impl ObjectKey {
    /// The key of the object `namespace`/`name` of `kind`.
    pub(crate) fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: Arc::from(namespace), name: Arc::from(name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse_value(document: Value) -> Result<Parsed, ObjectError> {
        match identify(&document)? {
            Identity::Known(key) => parse(&key, document, 0),
            Identity::Other(..) => panic!("not a known kind"),
        }
    }

    fn virtual_service(spec: Value) -> Value {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "a"}, "spec": spec})
    }

    #[test]
    fn all_versions_of_istios_group_mean_the_same() {
        for version in ["v1", "v1beta1", "v1alpha3"] {
            let mut document = virtual_service(
                json!({"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web"}}]}]}),
            );
            document["apiVersion"] = json!(format!("networking.istio.io/{version}"));
            assert_eq!(
                parse_value(document).unwrap().object.key(),
                ObjectKey::new(Kind::VirtualService, "default", "a")
            );
        }
        let mut document = virtual_service(json!({}));
        document["apiVersion"] = json!("networking.istio.io/v9");
        assert!(identify(&document).unwrap_err().to_string().contains("networking.istio.io/v1"));
    }

    #[test]
    fn an_error_names_the_field_and_the_expected_value() {
        let error = parse_value(virtual_service(json!({"hosts": ["web"], "http": [{"route": [
            {"destination": {"host": "web"}}, {"destination": {"host": "web"}, "weight": "ten"}]}]})))
        .unwrap_err();
        assert_eq!(error.problems.len(), 1);
        assert_eq!(error.problems[0].path, "spec.http[0].route[1].weight");
        assert_eq!(error.problems[0].message, "is the wrong type: string \"ten\"");
        assert_eq!(error.problems[0].advice, "expected an integer");
    }

    #[test]
    fn an_unknown_field_is_a_warning_with_its_path() {
        let parsed = parse_value(virtual_service(json!({"hosts": ["web"], "http": [{"route": [
            {"destination": {"host": "web", "subsett": "v1"}}]}]})))
        .unwrap();
        assert_eq!(parsed.warnings.len(), 1);
        assert_eq!(parsed.warnings[0].kind, ProblemKind::UnknownField);
        assert_eq!(parsed.warnings[0].path, "spec.http[0].route[0].destination.subsett");
    }

    #[test]
    fn a_rejection_also_names_unknown_fields() {
        let error = parse_value(virtual_service(json!({"hosts": ["web"], "http": [{"rout": []}]})))
            .unwrap_err();
        let found: Vec<_> =
            error.problems.iter().map(|problem| (problem.kind, problem.path.as_str())).collect();
        assert_eq!(
            found,
            [
                (ProblemKind::Invalid, "spec.http[0]"),
                (ProblemKind::UnknownField, "spec.http[0].rout")
            ]
        );
        let mut document = virtual_service(json!({}));
        document["specs"] = document["spec"].take();
        let error = parse_value(document).unwrap_err();
        let found: Vec<_> =
            error.problems.iter().map(|problem| (problem.kind, problem.path.as_str())).collect();
        assert_eq!(found, [(ProblemKind::Invalid, "spec"), (ProblemKind::UnknownField, "specs")]);
    }

    #[test]
    fn null_means_absent() {
        let parsed = parse_value(virtual_service(json!({"hosts": ["web"], "gateways": null, "http": [
            {"match": null, "timeout": null, "route": [{"destination": {"host": "web", "port": null}}]}]})))
        .unwrap();
        let Spec::VirtualService(spec) = parsed.object.spec else { panic!() };
        assert!(spec.gateways.is_empty() && spec.http[0].timeout.is_none());
    }

    #[test]
    fn lists_are_expanded() {
        let list =
            json!({"apiVersion": "v1", "kind": "List", "items": [{"kind": "A"}, {"kind": "B"}]});
        let paths: Vec<_> = expand_list(list).into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["items[0]", "items[1]"]);
        let typed = json!({"apiVersion": "v1", "kind": "ServiceList", "items": [{"metadata": {"name": "x"}}]});
        assert_eq!(expand_list(typed)[0].1["kind"], "Service");
    }

    #[test]
    fn non_objects_are_rejected_with_a_reason() {
        for (document, says) in [
            (json!([]), "a list"),
            (json!("x"), "the string `x`"),
            (json!({"kind": "Service"}), "apiVersion"),
            (json!({"apiVersion": "v1", "kind": 5}), "the number 5"),
            (json!({"apiVersion": "v1", "kind": "Service", "metadata": {}}), "metadata.name"),
        ] {
            let error = identify(&document).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
