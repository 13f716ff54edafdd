//! The pages of the webhooks over HTTPS, and `POST /validate`. When time is short, the answer lacks the warnings that take
//! long.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use super::injection::Injector;
use super::request::{AT_ONCE, Refused, Times, blocking, busy, read, respond};
use super::review::{AdmissionRequest, Verdict, admitted, own_warnings, refused, warnings};
use crate::admission::Exchange;
use crate::api::{ObjectKey, Parsed};
use crate::mesh::MeshConfig;
use crate::metrics::{ReviewResult, WebhookMetrics};
use crate::source::kubernetes::selection::Selection;
use crate::store::Store;

/// Reviews objects.
#[derive(Clone, Debug)]
pub(crate) struct Reviewer {
    selection: Selection,
    config: Arc<MeshConfig>,
    /// The objects that weir has; `None` before they are complete.
    stores: watch::Receiver<Option<Store>>,
    judging: Arc<Semaphore>,
    /// The analysis takes time that grows with the mesh, so there is one at a time.
    analyzing: Arc<Semaphore>,
    times: Times,
    metrics: WebhookMetrics,
}

impl Reviewer {
    /// Reviews the objects of a selection among those of `stores`.
    pub(crate) fn new(
        selection: Selection,
        config: MeshConfig,
        stores: watch::Receiver<Option<Store>>,
        metrics: WebhookMetrics,
    ) -> Self {
        Self {
            selection,
            config: config.into(),
            stores,
            judging: Arc::new(Semaphore::new(AT_ONCE)),
            analyzing: Arc::new(Semaphore::new(1)),
            times: Times::default(),
            metrics,
        }
    }

    /// Judges a review. `Err` is for a body that is none, or if there was no time.
    async fn answer(&self, body: Body, exchange: Arc<Exchange>) -> Result<Value, Refused> {
        let (bytes, _memory) = read(body, exchange, self.times.body).await?;
        let due = Instant::now() + self.times.answer;
        let (selection, stores) = (self.selection.clone(), self.stores.clone());
        let judged = blocking(&self.judging, due, move || {
            let mut request = AdmissionRequest::read(&bytes)?;
            // Not held while the object is judged: the engine replaces it.
            let store = stores.borrow().clone();
            let verdict = request.judge(&selection, store.as_ref());
            Ok((request, verdict))
        });
        let (request, verdict) = judged
            .await
            .ok_or_else(busy)?
            .map_err(|why: String| Refused(StatusCode::BAD_REQUEST, why))?;
        tracing::Span::current().record("uid", &request.uid);
        let (result, review) = match verdict {
            Verdict::NotReviewed => (ReviewResult::Skipped, admitted(&request.uid, &[])),
            Verdict::Refused(why) => {
                tracing::debug!(reason = why, "refused an object");
                (ReviewResult::Refused, refused(&request.uid, &why))
            }
            Verdict::Admitted(key, parsed) => {
                let due = due.min(Instant::now() + self.times.analysis);
                let texts = self.warnings(key, parsed, request.is_create(), due).await;
                let result = match texts.is_empty() {
                    true => ReviewResult::Admitted,
                    false => ReviewResult::Warned,
                };
                (result, admitted(&request.uid, &texts))
            }
        };
        tracing::debug!(?result, "reviewed an object");
        self.metrics.count(result);
        Ok(review)
    }

    /// The warnings about an object among the others; about the object alone if the others are not known, or if there
    /// is no time.
    async fn warnings(
        &self,
        key: ObjectKey,
        parsed: Box<Parsed>,
        is_new: bool,
        due: Instant,
    ) -> Vec<String> {
        let own = own_warnings(&key, &parsed);
        let parsed: Arc<Parsed> = parsed.into();
        let (mut stores, caught_up) = (self.stores.clone(), Instant::now() + self.times.catch_up);
        loop {
            let Some(store) = stores.borrow_and_update().clone() else {
                self.metrics.unchecked.inc();
                return own;
            };
            let (config, key, parsed) = (self.config.clone(), key.clone(), parsed.clone());
            let analysis =
                blocking(&self.analyzing, due, move || warnings(store, &config, &key, &parsed));
            let Some(found) = analysis.await else {
                self.metrics.unchecked.inc();
                return own;
            };
            // What it refers to may have been written just before it, and be on its way here.
            if !is_new || found.len() <= own.len() {
                return found;
            }
            match timeout_at(caught_up.min(due), stores.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return found,
            }
        }
    }
}

/// The pages of the webhooks' port.
pub(crate) fn router(reviewer: Option<Reviewer>, injector: Option<Injector>) -> Router {
    let mut router = Router::new();
    let mut pages = Vec::new();
    if let Some(reviewer) = reviewer {
        router = router.route("/validate", post(validate).with_state(reviewer));
        pages.push("POST /validate");
    }
    if let Some(injector) = injector {
        router = router.route("/inject", post(inject).with_state(injector));
        pages.push("POST /inject");
    }
    let other = format!("no such page; there is {}\n", pages.join(" and "));
    router.fallback(async move || (StatusCode::NOT_FOUND, other)).method_not_allowed_fallback(
        async || (StatusCode::METHOD_NOT_ALLOWED, "this page takes POST only\n"),
    )
}

async fn validate(
    State(reviewer): State<Reviewer>,
    Extension(exchange): Extension<Arc<Exchange>>,
    body: Body,
) -> Response {
    let span = tracing::info_span!("review", uid = tracing::field::Empty);
    let answer = reviewer.answer(body, exchange).instrument(span).await;
    if let Err(Refused(status, reason)) = &answer {
        tracing::debug!(%status, reason, "refused a review");
        reviewer.metrics.count(match status.is_client_error() {
            true => ReviewResult::Malformed,
            false => ReviewResult::Failed,
        });
    }
    respond(answer)
}

async fn inject(
    State(injector): State<Injector>,
    Extension(exchange): Extension<Arc<Exchange>>,
    body: Body,
) -> Response {
    let span = tracing::info_span!("injection", uid = tracing::field::Empty);
    injector.respond(body, exchange).instrument(span).await
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use serde_json::json;
    use tower_service::Service as _;

    use std::time::Duration;

    use super::super::request::LARGEST;
    use super::*;
    use crate::admission::{Limits, exchange_for_tests};
    use crate::analyze::tests::{base, store};

    /// Longer than any test.
    const HOUR: Duration = Duration::from_secs(3600);
    const LONG: Times = Times { body: HOUR, answer: HOUR, analysis: HOUR, catch_up: HOUR };

    fn reviewer(store: Option<Store>) -> (watch::Sender<Option<Store>>, Reviewer) {
        let (sender, stores) = watch::channel(store);
        let metrics = WebhookMetrics::default();
        (sender, Reviewer::new(Selection::default(), MeshConfig::default(), stores, metrics))
    }

    fn review(operation: &str, host: &str) -> String {
        let object = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "new", "namespace": "shop"},
            "spec": {"hosts": ["*.new.example"], "http": [{"route": [{"destination": {"host": host}}]}]},
        });
        let request =
            json!({"uid": "7", "operation": operation, "namespace": "shop", "object": object});
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
            .to_string()
    }

    async fn ask(reviewer: &Reviewer, body: impl Into<Body>) -> (StatusCode, String) {
        let mut request = Request::post("/validate").body(body.into()).unwrap();
        request.extensions_mut().insert(exchange_for_tests(Limits::webhook()));
        let response = router(Some(reviewer.clone()), None).call(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn warned(reviewer: &Reviewer, operation: &str, host: &str) -> Vec<String> {
        let (status, text) = ask(reviewer, review(operation, host)).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        let review: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(review["response"]["uid"], "7");
        assert_eq!(review["response"]["allowed"], true, "{text}");
        let warnings = review["response"]["warnings"].as_array().cloned().unwrap_or_default();
        warnings.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn a_reference_to_nothing_is_a_warning_as_soon_as_the_objects_are_known() {
        let (sender, mut reviewer) = reviewer(None);
        reviewer.times = LONG;
        assert_eq!(warned(&reviewer, "UPDATE", "nobody").await, [""; 0]);
        assert_eq!(reviewer.metrics.unchecked.get(), 1);
        sender.send_replace(Some(store(&base())));
        let found = warned(&reviewer, "UPDATE", "nobody").await;
        assert!(found.len() == 1 && found[0].contains("IST0101"), "{found:?}");
        assert!(
            found[0]
                .starts_with("VirtualService shop/new: spec.http[0].route[0].destination.host: ")
        );
        assert_eq!(warned(&reviewer, "UPDATE", "web").await, [""; 0]);
        assert_eq!(reviewer.metrics.unchecked.get(), 1);
    }

    #[tokio::test]
    async fn a_new_object_waits_for_what_was_written_just_before_it() {
        let (sender, mut reviewer) = reviewer(Some(Store::default()));
        reviewer.times = LONG;
        let late = async {
            // It is on its way when the first analysis finds that it is missing.
            tokio::task::yield_now().await;
            sender.send_replace(Some(store(&base())));
        };
        let (found, ()) = tokio::join!(warned(&reviewer, "CREATE", "web"), late);
        assert_eq!(found, [""; 0]);
        reviewer.times.catch_up = Duration::ZERO;
        assert_eq!(warned(&reviewer, "CREATE", "nobody").await.len(), 1);
    }

    #[tokio::test]
    async fn without_time_for_the_analysis_the_object_is_admitted() {
        let (_sender, mut reviewer) = reviewer(Some(store(&base())));
        reviewer.times = Times { analysis: Duration::from_millis(10), ..LONG };
        let taken = reviewer.analyzing.clone().acquire_owned().await.unwrap();
        assert_eq!(warned(&reviewer, "UPDATE", "nobody").await, [""; 0]);
        assert_eq!(reviewer.metrics.unchecked.get(), 1);
        drop(taken);
        reviewer.times.analysis = LONG.analysis;
        assert_eq!(warned(&reviewer, "UPDATE", "nobody").await.len(), 1);
        let _all = reviewer.judging.clone().acquire_many_owned(AT_ONCE as u32).await.unwrap();
        reviewer.times.answer = Duration::from_millis(10);
        let (status, text) = ask(&reviewer, review("UPDATE", "web")).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    }

    #[tokio::test]
    async fn a_body_that_is_wrong_too_large_or_too_slow_is_refused() {
        let (_sender, mut reviewer) = reviewer(Some(Store::default()));
        reviewer.times = LONG;
        let (status, text) = ask(&reviewer, "hello").await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(text.starts_with("the body is not an AdmissionReview"), "{text}");
        // The largest body fits into the memory that one address may use.
        let (status, text) = ask(&reviewer, vec![b' '; LARGEST]).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
        let (status, text) = ask(&reviewer, vec![b' '; LARGEST + 1]).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{text}");
        reviewer.times.body = Duration::from_millis(10);
        let never = futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
        let (status, text) = ask(&reviewer, Body::from_stream(never)).await;
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT, "{text}");
    }
}
