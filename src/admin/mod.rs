//! Health, readiness and metrics over HTTP, and the admin API over HTTP and gRPC, all on one port.

pub mod api;
pub(crate) mod convert;
mod debug;
mod diff;
mod gates;
mod grpc;
mod history;
mod http;
mod page;
mod questions;
mod splits;
mod summaries;
mod timeline;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use history::{History, sample};
pub(crate) use questions::MAX_RECORDED;

use crate::ca::Current;
use crate::load::Loads;
use crate::metrics::Metrics;
use crate::replicas::PeerAnswers;
use crate::snapshot::SnapshotCache;
use crate::source::probe::FreshnessProbe;
use crate::source::sync::KindSync;
use crate::status::Published;
use crate::store::Store;
use crate::timeline::SharedTimeline;
use crate::webhook;
use crate::xds::connections::Connections;

/// The response before the first complete state.
const NOT_READY: &str =
    "weir is not ready: the first complete list of objects has not arrived yet; see the log";

/// What the admin endpoints read.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    /// Whether the first complete state is published.
    pub ready: watch::Receiver<bool>,
    /// How far the source is with each kind; empty for a folder.
    pub sync: watch::Receiver<Vec<KindSync>>,
    /// The state of the webhook; `None` if it is off.
    pub webhook: Option<watch::Receiver<webhook::Health>>,
    /// What the certificate authority signs with; `None` if identity is off.
    pub authority: Option<watch::Receiver<Option<Arc<Current>>>>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The snapshots.
    pub snapshots: SnapshotCache,
    /// The connected proxies.
    pub connections: Arc<Connections>,
    /// The last published state.
    pub published: Arc<Published>,
    /// Asks the source how fresh an object is.
    pub freshness_probe: FreshnessProbe,
    /// The newest objects; `None` before the first complete state.
    pub stores: watch::Receiver<Option<Store>>,
    /// What the other replicas answer.
    pub peers: PeerAnswers,
    /// What happened to each object.
    pub timeline: SharedTimeline,
    /// What proxies report of their requests; `None` if they do not.
    pub load: Option<Arc<Loads>>,
    /// What became of the weighted routes in the last hour.
    pub history: Arc<History>,
    /// Ends the streaming responses at shutdown.
    pub closing: CancellationToken,
}

/// The web page on `/`, `/healthz` (the process lives), `/ready` (it serves), `/metrics`, the gates of rollout tools below `/gates`,
/// and the admin API, which is JSON below `/api/v1` and gRPC.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .merge(page::routes())
        .nest("/api/v1", http::routes())
        .nest("/gates", gates::routes())
        .nest("/debug", debug::routes())
        .route("/healthz", get(async || "ok\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin.clone())
        .merge(tonic::service::Routes::new(grpc::service(admin)).into_axum_router())
        .fallback(no_such_page)
}

/// The gates alone, for a port that rollout tools may reach. Everything else on the admin port is for operators.
pub(crate) fn gates_router(admin: Admin) -> Router {
    Router::new().nest("/gates", gates::routes()).with_state(admin).fallback(gates::no_such_page)
}

async fn no_such_page(headers: HeaderMap) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("application/grpc")) {
        return tonic::Status::unimplemented("weir has no such method").into_http::<Body>();
    }
    (
        StatusCode::NOT_FOUND,
        "no such page; there are /, /healthz, /ready, /metrics, /gates/..., /debug/info and /api/v1/...\n",
    )
        .into_response()
}

/// `/ready`, and `/ready?verbose` with a line for each kind that is read from the Kubernetes API, and one each for the
/// webhook and the certificate authority.
async fn ready(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let ready = *admin.ready.borrow();
    let query = query.unwrap_or_default();
    let verbose = query.split('&').any(|part| matches!(part, "verbose" | "verbose=true"));
    let mut text = String::new();
    if verbose {
        for kind in admin.sync.borrow().iter() {
            text += &format!("[{}] {kind}\n", if kind.is_well() { '+' } else { '-' });
        }
        if let Some(webhook) = &admin.webhook {
            let health = webhook.borrow();
            let sign = if health.works() { '+' } else { '-' };
            text += &format!("[{sign}] webhook: {}\n", *health);
        }
        if let Some(authority) = &admin.authority {
            text += &match &*authority.borrow() {
                Some(current) => format!("[+] certificate authority: {current}\n"),
                None => "[-] certificate authority: it has no root yet\n".to_owned(),
            };
        }
    }
    if ready {
        (text + "ready\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{text}{NOT_READY}\n")).into_response()
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    admin.metrics.watches(&admin.sync.borrow());
    if let Err(status) = admin.show_weights().await {
        return (StatusCode::INTERNAL_SERVER_ERROR, status.message().to_owned()).into_response();
    }
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    match admin.metrics.text(admin.snapshots.stats(), tasks) {
        Ok(text) => (
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
