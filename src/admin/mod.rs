//! Health, readiness, metrics and the state of the proxies over HTTP, and the admin API over gRPC on the same port.

pub mod api;

use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::snapshot::SnapshotCache;
use crate::source::newest::Asker;
use crate::status::{self, Ledger};
use crate::xds::board::Board;

/// What is said instead of a report before the first full state has been taken in.
const NOT_READY: &str = "weir is not ready: the first full list of objects has not come in yet; its log says why";

/// What the pages are made of.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Whether the first full state has been taken in.
    pub ready: watch::Receiver<bool>,
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// The snapshots.
    pub snapshots: SnapshotCache,
    /// The proxies.
    pub board: Arc<Board>,
    /// What was published last.
    pub ledger: Arc<Ledger>,
    /// Who knows whether that was all.
    pub asker: Asker,
    /// Ends what would go on for as long as a client listens.
    pub closing: CancellationToken,
}

/// The pages: `/healthz` (the process lives), `/ready` (it serves), `/metrics`, `/debug/syncz` (what each proxy has), and
/// the reports of [`crate::status`] as JSON: `/api/v1/proxies`, `/api/v1/splits[?namespace=NS]` and
/// `/api/v1/objects/KIND/NAMESPACE/NAME`.
pub fn router(admin: Admin) -> Router {
    let reports = Router::new()
        .route("/api/v1/proxies", get(proxies))
        .route("/api/v1/splits", get(splits))
        .route("/api/v1/objects/{kind}/{namespace}/{name}", get(object))
        .route_layer(middleware::from_fn_with_state(admin.clone(), once_ready));
    Router::new()
        .merge(reports)
        .route("/healthz", get(async || "ok\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/debug/syncz", get(async |State(admin): State<Admin>| Json(admin.board.list())))
        .with_state(admin.clone())
        .merge(tonic::service::Routes::new(api::service(admin)).into_axum_router())
}

/// Before the first full state there is nothing true to report.
async fn once_ready(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    if *admin.ready.borrow() { next.run(request).await } else { not_ready() }
}

fn not_ready() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{NOT_READY}\n")).into_response()
}

async fn proxies(State(admin): State<Admin>) -> Response {
    Json(status::proxies(&admin.ledger.state(), &admin.board.list())).into_response()
}

#[derive(serde::Deserialize)]
struct Narrowed {
    #[serde(default)]
    namespace: String,
}

async fn splits(State(admin): State<Admin>, Query(narrowed): Query<Narrowed>) -> Response {
    Json(status::splits(&admin.ledger.state(), &admin.board.list(), &narrowed.namespace)).into_response()
}

async fn object(State(admin): State<Admin>, Path((kind, namespace, name)): Path<(String, String, String)>) -> Response {
    let Some(kind) = api::object_kind(&kind) else {
        let message = format!("kind `{kind}`: expected virtualservice or destinationrule\n");
        return (StatusCode::BAD_REQUEST, message).into_response();
    };
    let key = crate::api::ObjectKey::new(kind, &namespace, &name);
    match status::object(&admin.ledger.state(), &admin.board.list(), &key) {
        Some(report) => Json(report).into_response(),
        None => (StatusCode::NOT_FOUND, format!("there is no {key}\n")).into_response(),
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    if *admin.ready.borrow() { "ready\n".into_response() } else { not_ready() }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match admin.metrics.text(admin.snapshots.stats()) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
