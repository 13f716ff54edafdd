//! Health, readiness, metrics and the state of the proxies over HTTP.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::snapshot::Hub;
use crate::xds::board::Board;

/// What the pages are made of.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Whether the first full state has been taken in.
    pub ready: watch::Receiver<bool>,
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// The snapshots.
    pub hub: Arc<Hub>,
    /// The proxies.
    pub board: Arc<Board>,
}

/// The pages: `/healthz` (the process lives), `/ready` (it serves), `/metrics`, `/debug/syncz` (what each proxy has).
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/debug/syncz", get(async |State(admin): State<Admin>| Json(admin.board.list())))
        .with_state(admin)
}

async fn ready(State(admin): State<Admin>) -> Response {
    if *admin.ready.borrow() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: the first full list of objects has not come in yet\n")
            .into_response()
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match admin.metrics.text(admin.hub.stats()) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
