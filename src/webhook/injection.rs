//! `POST /inject`: sidecars for pods that are created. What becomes of a pod is a pure decision of [`crate::inject`].

use std::sync::Arc;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::request::{AT_ONCE, Refused, Times, blocking, busy, read, respond};
use super::review::{
    AdmissionRequest, MAX_WARNING, MAX_WARNINGS, admitted, admitted_with, refused, shortened,
};
use crate::admission::Exchange;
use crate::api::describe;
use crate::inject::{self, Chosen, Options, Outcome, inject};
use crate::metrics::{InjectionMetrics, InjectionResult};

/// Injects sidecars into pods.
#[derive(Clone, Debug)]
pub(crate) struct Injector {
    options: Arc<Options>,
    /// Its own, so that pods do not wait for the validation of large objects.
    judging: Arc<Semaphore>,
    times: Times,
    metrics: InjectionMetrics,
}

impl Injector {
    /// Injects sidecars with these settings.
    pub(crate) fn new(options: Options, metrics: InjectionMetrics) -> Self {
        Self {
            options: options.into(),
            judging: Arc::new(Semaphore::new(AT_ONCE)),
            times: Times::default(),
            metrics,
        }
    }

    /// Answers a request.
    pub(super) async fn respond(&self, body: Body, exchange: Arc<Exchange>) -> Response {
        let (result, response) = match self.answer(body, exchange).await {
            Ok((result, review)) => (result, Ok(review)),
            Err(refused) => (InjectionResult::Failed, Err(refused)),
        };
        self.metrics.count(result);
        respond(response)
    }

    async fn answer(
        &self,
        body: Body,
        exchange: Arc<Exchange>,
    ) -> Result<(InjectionResult, Value), Refused> {
        let (bytes, _memory) = read(body, exchange, self.times.body).await?;
        let due = Instant::now() + self.times.answer;
        let options = self.options.clone();
        let judged = blocking(&self.judging, due, move || {
            let request = AdmissionRequest::read(&bytes)?;
            let judged = judge(&request, &options)?;
            Ok((request.uid, judged))
        });
        let (uid, judged) = judged
            .await
            .ok_or_else(busy)?
            .map_err(|why: String| Refused(StatusCode::BAD_REQUEST, why))?;
        tracing::Span::current().record("uid", &uid);
        let Judged { pod, result, reason, is_unnoticed, review } = judged;
        if is_unnoticed {
            tracing::warn!(pod, reason, "a pod gets no sidecar");
        } else {
            tracing::debug!(pod, ?result, reason, "answered for a pod");
        }
        Ok((result, review))
    }
}

/// What becomes of a pod.
struct Judged {
    /// The pod in messages.
    pod: String,
    result: InjectionResult,
    /// Why it gets no sidecar.
    reason: Option<String>,
    /// Whether it runs without a sidecar that its namespace has asked for, which its controller shows nobody.
    is_unnoticed: bool,
    review: Value,
}

/// What becomes of the pod of a request.
///
/// # Errors
/// The object is no pod.
fn judge(request: &AdmissionRequest, options: &Options) -> Result<Judged, String> {
    let uid = &request.uid;
    let none = &Value::Null;
    let created = request.created();
    let pod = created.unwrap_or(none);
    let kind = pod.get("kind").unwrap_or(none);
    if created.is_some() && kind != "Pod" {
        return Err(format!("request.object.kind: is {}; expected a Pod", describe(kind)));
    }
    let mut judged = Judged {
        pod: name(pod, request.namespace()),
        result: InjectionResult::Skipped,
        reason: None,
        is_unnoticed: false,
        review: admitted(uid, &[]),
    };
    if created.is_none() {
        return Ok(judged);
    }
    match inject(pod, request.namespace(), None, Chosen::ByWebhook, options) {
        Outcome::Injected(injected) => {
            let patch = inject::patch(pod, &injected.pod);
            judged.result = InjectionResult::Injected;
            judged.review = admitted_with(uid, &patch, &about(&judged.pod, injected.warnings));
        }
        Outcome::Skipped(reason) => judged.reason = Some(reason.to_string()),
        Outcome::Refused(refusal) => {
            let problems: Vec<_> = refusal.problems.iter().map(ToString::to_string).collect();
            judged.result = InjectionResult::Failed;
            judged.is_unnoticed = !refusal.asked;
            judged.reason = Some(problems.join("; "));
            judged.review = if refusal.asked {
                refused(uid, &format!("{}: {}", judged.pod, problems.join("\n")))
            } else {
                let warnings = problems.iter().map(|text| format!("gets no sidecar: {text}"));
                admitted(uid, &about(&judged.pod, warnings.collect()))
            };
        }
    }
    Ok(judged)
}

/// Warnings about a pod, within what the API server keeps.
fn about(pod: &str, texts: Vec<String>) -> Vec<String> {
    let texts = texts.into_iter().take(MAX_WARNINGS);
    texts.map(|text| shortened(&format!("{pod}: {text}"), MAX_WARNING)).collect()
}

/// The pod in messages. The name of one that a controller creates is still to be generated.
fn name(pod: &Value, namespace: &str) -> String {
    match (metadata(pod, "name"), metadata(pod, "generateName")) {
        (Some(name), _) => format!("Pod {namespace}/{name}"),
        (None, prefix) => format!("Pod {namespace}/{}*", prefix.unwrap_or_default()),
    }
}

/// A member of the metadata as text, if it has any.
fn metadata<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod.get("metadata")?.get(name)?.as_str().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use http_body_util::BodyExt as _;
    use serde_json::json;
    use tower_service::Service as _;

    use super::super::server::router;
    use super::*;
    use crate::admission::{Limits, exchange_for_tests};

    fn pod(metadata: Value, spec: Value) -> Value {
        let mut pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        pod["spec"]["containers"] = json!([{"name": "app", "image": "i"}]);
        pod
    }

    async fn ask(injector: &Injector, operation: &str, object: Value) -> (StatusCode, String) {
        let request =
            json!({"uid": "7", "operation": operation, "namespace": "shop", "object": object});
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
        let mut request = Request::post("/inject").body(Body::from(review.to_string())).unwrap();
        request.extensions_mut().insert(exchange_for_tests(Limits::webhook()));
        let response = router(None, Some(injector.clone())).call(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn answer(injector: &Injector, object: Value) -> Value {
        let (status, text) = ask(injector, "CREATE", object).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        let review: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(review["response"]["uid"], "7");
        review["response"].clone()
    }

    fn injector() -> Injector {
        Injector::new(Options::default(), InjectionMetrics::default())
    }

    #[tokio::test]
    async fn a_pod_is_answered_with_a_patch() {
        let injector = injector();
        let annotations = json!({"annotations": {"sidecar.istio.io/bootstrapOverride": "x"}});
        let answer = answer(&injector, pod(annotations, json!({}))).await;
        assert_eq!((&answer["allowed"], &answer["patchType"]), (&json!(true), &json!("JSONPatch")));
        let patch = STANDARD.decode(answer["patch"].as_str().unwrap()).unwrap();
        let patch: Value = serde_json::from_slice(&patch).unwrap();
        let paths: Vec<_> =
            patch.as_array().unwrap().iter().map(|operation| &operation["path"]).collect();
        let changed =
            ["/metadata/annotations", "/metadata/labels", "/spec/initContainers", "/spec/volumes"];
        assert_eq!(paths, changed);
        let warning = "Pod shop/*: metadata.annotations[sidecar.istio.io/bootstrapOverride]: has no effect; weir does \
                       not read it";
        assert_eq!(answer["warnings"], json!([warning]));
        assert_eq!(injector.metrics.count_of(InjectionResult::Injected), 1);
    }

    #[tokio::test]
    async fn a_pod_that_cannot_be_injected_is_denied_if_it_has_asked_and_else_admitted_as_it_is() {
        let injector = injector();
        let spec = || json!({"volumes": [{"name": "istio-token"}]});
        let text = "spec.volumes[0].name: is `istio-token`, the name of a volume of the sidecar; give it another name";
        let metadata =
            json!({"generateName": "web-", "labels": {"sidecar.istio.io/inject": "true"}});
        let denied = answer(&injector, pod(metadata, spec())).await;
        assert_eq!(denied["allowed"], false);
        assert_eq!(denied["status"]["message"], format!("Pod shop/web-*: {text}"));
        let admitted = answer(&injector, pod(json!({"name": "web"}), spec())).await;
        assert_eq!((&admitted["allowed"], &admitted["patch"]), (&json!(true), &Value::Null));
        assert_eq!(admitted["warnings"], json!([format!("Pod shop/web: gets no sidecar: {text}")]));
        // Whoever writes an annotation for the sidecar wants one.
        let wrong = json!({"annotations": {"sidecar.istio.io/proxyCPU": "fast"}});
        assert_eq!(answer(&injector, pod(wrong, json!({}))).await["allowed"], false);
        assert_eq!(injector.metrics.count_of(InjectionResult::Failed), 3);
    }

    #[tokio::test]
    async fn other_pods_and_operations_are_admitted_as_they_are() {
        let injector = injector();
        let unwanted = json!({"labels": {"sidecar.istio.io/inject": "false"}});
        for object in [pod(unwanted, json!({})), pod(json!({}), json!({"hostNetwork": true}))] {
            assert_eq!(answer(&injector, object).await, json!({"uid": "7", "allowed": true}));
        }
        let (status, text) = ask(&injector, "UPDATE", pod(json!({}), json!({}))).await;
        assert!(status == StatusCode::OK && !text.contains("patch"), "{text}");
        assert_eq!(injector.metrics.count_of(InjectionResult::Skipped), 3);
        let (status, text) = ask(&injector, "CREATE", json!({"kind": "Service"})).await;
        let said = "request.object.kind: is the string `Service`; expected a Pod\n";
        assert_eq!((status, text.as_str()), (StatusCode::BAD_REQUEST, said));
    }

    #[tokio::test]
    async fn without_time_there_is_no_answer() {
        let mut injector = injector();
        let _all = injector.judging.clone().acquire_many_owned(AT_ONCE as u32).await.unwrap();
        injector.times.answer = std::time::Duration::from_millis(10);
        let (status, text) = ask(&injector, "CREATE", pod(json!({}), json!({}))).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    }
}
