//! What becomes of an AdmissionReview. An object is refused exactly if weir would reject it when it reads it, by the same
//! rules. Otherwise it is admitted, with warnings where `weir analyze` finds a warning or an error. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::analyze::{self, Finding, Severity};
use crate::api::{self, Identity, Kind, Labels, ObjectError, ObjectKey, Parsed};
use crate::mesh::MeshConfig;
use crate::source::kubernetes::selection::{Namespaces, Selection};
use crate::source::{LocatedProblem, Origin, SourceEvent};
use crate::store::Store;
use crate::text::prefix;

const API_VERSION: &str = "admission.k8s.io/v1";

/// The API server drops warnings that exceed 4096 bytes in total.
pub(super) const MAX_WARNINGS: usize = 8;
pub(super) const MAX_WARNING: usize = 480;

/// A review, as far as weir reads it. The old object and the options are skipped.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AdmissionReview {
    api_version: String,
    kind: String,
    request: Option<AdmissionRequest>,
}

/// The request of a review.
#[derive(Debug, Deserialize)]
pub(super) struct AdmissionRequest {
    /// Identifies the request in its response.
    pub uid: String,
    operation: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    object: Value,
}

impl AdmissionRequest {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// It is not an AdmissionReview v1 with a request: what was found, and what would be right.
    pub(crate) fn read(body: &[u8]) -> Result<Self, String> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let review: AdmissionReview =
            serde_path_to_error::deserialize(&mut json).map_err(|error| {
                let path = error.path().to_string();
                let at = if path == "." { String::new() } else { format!("{path}: ") };
                format!("the body is not an AdmissionReview: {at}{}", error.into_inner())
            })?;
        if (&*review.api_version, &*review.kind) != (API_VERSION, "AdmissionReview") {
            let AdmissionReview { api_version, kind, .. } = review;
            return Err(format!(
                "the body is {} of {}; expected AdmissionReview of {API_VERSION}",
                shortened(&kind, 60),
                shortened(&api_version, 60)
            ));
        }
        let request =
            review.request.ok_or("request: is missing; expected the request of a review")?;
        if request.uid.is_empty() {
            return Err("request.uid: is empty; expected the id of the request".to_owned());
        }
        if request.is_write() && !request.object.is_object() {
            let found = api::describe(&request.object);
            return Err(format!("request.object: is {found}; expected the object to review"));
        }
        Ok(request)
    }

    /// Whether it creates or changes an object.
    fn is_write(&self) -> bool {
        matches!(&*self.operation, "CREATE" | "UPDATE")
    }

    /// Whether it creates an object.
    pub(crate) fn is_create(&self) -> bool {
        self.operation == "CREATE"
    }

    /// The object, if it is created; `None` for other operations.
    pub(crate) fn created(&self) -> Option<&Value> {
        self.is_create().then_some(&self.object)
    }

    /// The namespace of the object.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Judges the object by itself. `store` has the namespaces that are known.
    pub(crate) fn judge(&mut self, selection: &Selection, store: Option<&Store>) -> Verdict {
        if !self.is_write() {
            return Verdict::NotReviewed;
        }
        let mut document = std::mem::take(&mut self.object);
        complete(&mut document, &self.namespace);
        let metadata = document.get("metadata");
        // Its finalizers have to be removable, whatever it contains.
        let deleted = metadata.and_then(|metadata| metadata.get("deletionTimestamp"));
        if deleted.is_some_and(|time| !time.is_null()) {
            return Verdict::NotReviewed;
        }
        let Ok(Identity::Known(key)) = api::identify(&document) else {
            // weir does not read it, so it is not weir's to refuse.
            return Verdict::NotReviewed;
        };
        if !key.kind.is_of_istio()
            || !api::in_revision(key.kind, &document, selection.revision.as_deref())
            || !is_selected(&key.namespace, &selection.namespaces, store)
        {
            return Verdict::NotReviewed;
        }
        match api::parse(&key, document, 0) {
            Ok(parsed) => Verdict::Admitted(key, Box::new(parsed)),
            Err(error) => Verdict::Refused(refusal(&key, &error)),
        }
    }
}

/// What the object is by itself.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is none of weir's, or is being deleted.
    NotReviewed,
    /// It is invalid, and why.
    Refused(String),
    /// It is valid.
    Admitted(ObjectKey, Box<Parsed>),
}

/// Adds what the API server adds to the object after the review.
fn is_empty(value: Option<&Value>) -> bool {
    value.and_then(Value::as_str).is_none_or(str::is_empty)
}

fn complete(document: &mut Value, namespace: &str) {
    let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    if is_empty(metadata.get("namespace")) && !namespace.is_empty() {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    if is_empty(metadata.get("name"))
        && let Some(prefix) = metadata.get("generateName").cloned()
    {
        metadata.insert("name".to_owned(), prefix);
    }
}

/// Whether weir reads the objects of a namespace.
fn is_selected(namespace: &str, selected: &Namespaces, store: Option<&Store>) -> bool {
    match selected {
        Namespaces::All => true,
        Namespaces::One(only) => **only == *namespace,
        Namespaces::Matching(selectors) => {
            let key = ObjectKey::new(Kind::Namespace, "", namespace);
            let known = store.and_then(|store| store.get(&key));
            let labels: Option<&Labels> = known.map(|entry| &*entry.object.meta.labels);
            labels.is_some_and(|labels| selectors.iter().any(|selector| selector.matches(labels)))
        }
    }
}

fn refusal(key: &ObjectKey, error: &ObjectError) -> String {
    let problems: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
    format!("{key}: {}", problems.join("\n"))
}

/// The warnings about an object by itself.
pub(super) fn own_warnings(key: &ObjectKey, parsed: &Parsed) -> Vec<String> {
    texts(key, analyze::of_intake(key, parsed.warnings.clone()))
}

/// The warnings about an object among those of `store`, in which it takes the place of its old version.
pub(super) fn warnings(
    mut store: Store,
    config: &MeshConfig,
    key: &ObjectKey,
    parsed: &Parsed,
) -> Vec<String> {
    let warnings = parsed
        .warnings
        .iter()
        .map(|problem| LocatedProblem { origin: Origin::Cluster, problem: problem.clone() });
    let event = SourceEvent::Apply {
        object: Arc::new(parsed.object.clone()),
        origin: Origin::Cluster,
        warnings: warnings.collect(),
    };
    store.apply(event, &mut BTreeSet::new());
    texts(key, analyze::analyze_object(&store, config, key))
}

fn texts(key: &ObjectKey, findings: Vec<Finding>) -> Vec<String> {
    let shown = findings.into_iter().filter(|finding| finding.code.severity >= Severity::Warning);
    let texts = shown.map(|Finding { code, path, message, advice, .. }| {
        let problem = api::Problem::new(path, message, advice);
        shortened(&format!("{key}: {problem} ({})", code.id), MAX_WARNING)
    });
    let mut texts: Vec<String> = texts.collect();
    if texts.len() > MAX_WARNINGS {
        let more = texts.len() - (MAX_WARNINGS - 1);
        texts.truncate(MAX_WARNINGS - 1);
        texts.push(format!("{key}: {more} more warnings; `weir analyze` shows them"));
    }
    texts
}

/// A text of at most `length` bytes.
pub(super) fn shortened(text: &str, length: usize) -> String {
    const MORE: &str = "...";
    if text.len() <= length {
        return text.to_owned();
    }
    format!("{}{MORE}", prefix(text, length.saturating_sub(MORE.len())))
}

/// The response that admits an object.
pub(super) fn admitted(uid: &str, warnings: &[String]) -> Value {
    let mut response = json!({"uid": uid, "allowed": true});
    if !warnings.is_empty() {
        response["warnings"] = json!(warnings);
    }
    review(response)
}

/// The response that admits an object with changes: a JSON patch.
pub(super) fn admitted_with(uid: &str, patch: &Value, warnings: &[String]) -> Value {
    let mut review = admitted(uid, warnings);
    review["response"]["patchType"] = "JSONPatch".into();
    review["response"]["patch"] = STANDARD.encode(patch.to_string()).into();
    review
}

/// The response that refuses an object.
pub(super) fn refused(uid: &str, message: &str) -> Value {
    let status = json!({"code": 422, "reason": "Invalid", "message": message});
    review(json!({"uid": uid, "allowed": false, "status": status}))
}

fn review(response: Value) -> Value {
    json!({"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn virtual_service(labels: Value, weight: i64) -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "web", "namespace": "shop", "labels": labels},
            "spec": {"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web"}, "weight": weight}]}]},
        })
    }

    fn request(operation: &str, object: Value) -> AdmissionRequest {
        let review = json!({
            "apiVersion": API_VERSION, "kind": "AdmissionReview",
            "request": {"uid": "1", "operation": operation, "namespace": "shop", "object": object},
        });
        AdmissionRequest::read(review.to_string().as_bytes()).unwrap()
    }

    /// `-` if it is not reviewed, `+` if it is admitted, else why it is refused.
    fn judged(
        selection: &Selection,
        store: Option<&Store>,
        mut request: AdmissionRequest,
    ) -> String {
        match request.judge(selection, store) {
            Verdict::NotReviewed => "-".to_owned(),
            Verdict::Admitted(..) => "+".to_owned(),
            Verdict::Refused(why) => why,
        }
    }

    fn judge(operation: &str, object: Value) -> String {
        judged(&Selection::default(), None, request(operation, object))
    }

    #[test]
    fn an_invalid_object_is_refused_with_its_name_and_field() {
        for operation in ["CREATE", "UPDATE"] {
            assert_eq!(judge(operation, virtual_service(json!({}), 5)), "+");
            let why = judge(operation, virtual_service(json!({}), -5));
            let begin = "VirtualService shop/web: spec.http[0].route[0].weight: is -5; expected ";
            assert!(why.starts_with(begin), "{why}");
        }
        assert_eq!(judge("DELETE", Value::Null), "-");
        assert_eq!(judge("CONNECT", Value::Null), "-");
        let mut deleted = virtual_service(json!({}), -5);
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(judge("UPDATE", deleted), "-");
    }

    #[test]
    fn what_weir_does_not_read_is_not_reviewed() {
        for (api_version, kind) in [
            ("networking.istio.io/v1", "Gateway"),
            ("networking.istio.io/v1", "VirtualServise"),
            ("networking.istio.io/v9", "VirtualService"),
            ("v1", "Service"),
        ] {
            let mut object = virtual_service(json!({}), -5);
            object["apiVersion"] = json!(api_version);
            object["kind"] = json!(kind);
            assert_eq!(judge("CREATE", object), "-", "{api_version} {kind}");
        }
        let selection = Selection { revision: Some("weir".into()), ..Default::default() };
        for (label, is_reviewed) in [("weir", true), ("stable", false)] {
            let object = virtual_service(json!({"istio.io/rev": label}), -5);
            let seen = judged(&selection, None, request("CREATE", object));
            assert_eq!(seen != "-", is_reviewed, "{label}: {seen}");
        }
    }

    #[test]
    fn an_object_in_a_namespace_that_is_not_read_is_not_reviewed() {
        let mut store = Store::default();
        for (name, environment) in [("shop", "prod"), ("lab", "dev")] {
            let key = ObjectKey::new(Kind::Namespace, "", name);
            let document = json!({"apiVersion": "v1", "kind": "Namespace",
                                  "metadata": {"name": name, "labels": {"env": environment}}});
            let object = Arc::new(api::parse(&key, document, 0).unwrap().object);
            let origin = Origin::Cluster;
            let event = SourceEvent::Apply { object, origin, warnings: Vec::new() };
            store.apply(event, &mut BTreeSet::new());
        }
        let matching: Vec<_> = vec!["env=prod".parse().unwrap()];
        let matching = Namespaces::Matching(matching.into());
        for (namespaces, namespace, is_reviewed) in [
            (Namespaces::All, "new", true),
            (Namespaces::One("shop".into()), "shop", true),
            (Namespaces::One("shop".into()), "lab", false),
            (matching.clone(), "shop", true),
            (matching.clone(), "lab", false),
            (matching.clone(), "new", false),
        ] {
            let selection = Selection { namespaces, ..Default::default() };
            let mut object = virtual_service(json!({}), -5);
            object["metadata"]["namespace"] = json!(namespace);
            let seen = judged(&selection, Some(&store), request("CREATE", object));
            assert_eq!(seen != "-", is_reviewed, "{namespace}: {seen}");
        }
    }

    #[test]
    fn a_name_that_is_still_to_be_generated_is_no_problem() {
        let mut object = virtual_service(json!({}), -5);
        object["metadata"] = json!({"generateName": "web-"});
        let why = judged(&Selection::default(), None, request("CREATE", object));
        assert!(why.starts_with("VirtualService shop/web-: spec.http"), "{why}");
    }

    #[test]
    fn another_body_is_refused_with_what_is_wrong() {
        let deep = "[".repeat(100_000);
        for (body, said) in [
            ("", "the body is not an AdmissionReview: EOF"),
            ("{", "the body is not an AdmissionReview: "),
            ("[]", "the body is not an AdmissionReview: "),
            ("\u{0}\u{1}", "the body is not an AdmissionReview: expected value"),
            (deep.as_str(), "the body is not an AdmissionReview: "),
            (r#"{"apiVersion": "v1", "kind": "Pod"}"#, "the body is Pod of v1; expected"),
            (
                r#"{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"}"#,
                "the body is AdmissionReview of admission.k8s.io/v1beta1; expected",
            ),
            (
                r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}"#,
                "request: is missing",
            ),
            (
                r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": 5}}"#,
                "the body is not an AdmissionReview: request.uid: invalid type",
            ),
            (
                r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "", "operation": "DELETE"}}"#,
                "request.uid: is empty",
            ),
            (
                r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "1", "operation": "UPDATE", "object": 7}}"#,
                "request.object: is the number 7; expected",
            ),
        ] {
            let error = AdmissionRequest::read(body.as_bytes()).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn warnings_name_the_object_and_stay_within_what_the_api_server_keeps() {
        let mut routes = Vec::new();
        for n in 0..20 {
            let host = format!("no-such-host-{n}");
            let unknown = format!("unknown-{n}-{}", "x".repeat(600));
            routes.push(json!({"route": [{"destination": {"host": host}}], unknown: 1}));
        }
        let mut object = virtual_service(json!({}), 1);
        object["spec"]["http"] = json!(routes);
        let mut request = request("CREATE", object);
        let Verdict::Admitted(key, parsed) = request.judge(&Selection::default(), None) else {
            panic!()
        };
        let config = MeshConfig::default();
        for texts in
            [own_warnings(&key, &parsed), warnings(Store::default(), &config, &key, &parsed)]
        {
            assert_eq!(texts.len(), MAX_WARNINGS);
            assert!(texts.iter().all(|text| text.starts_with("VirtualService shop/web: ")));
            assert!(texts.iter().map(String::len).sum::<usize>() < 4096, "{texts:?}");
            assert!(texts.last().unwrap().contains("more warnings"), "{texts:?}");
        }
        assert_eq!(shortened("äöü", 5), "ä...");
    }
}
