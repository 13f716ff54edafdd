//! The ports of the agent: 15021 for readiness, and 15020 for everything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::{Path, RawQuery, State as Shared};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::metrics::{self, ApplicationMetrics};
use super::probe::Probes;
use super::readiness::Readiness;
use crate::admission::{self, Admission, Exchange, Limits, Protocol};
use crate::envoy::Admin;
use crate::metrics::Metrics;
use crate::ports;

/// The port with all pages.
pub(crate) const AGENT_PORT: u16 = ports::AGENT;
/// The port with readiness only.
pub(crate) const READY_PORT: u16 = ports::READY;

/// How long a page may take: probes have timeouts of their own, and hooks as long as the pod has.
const PAGE: Duration = Duration::from_secs(3600);

/// What the pages show.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub readiness: Arc<Readiness>,
    pub admin: Admin,
    pub probes: Arc<Probes>,
    pub application: IpAddr,
    pub metrics: Option<Arc<ApplicationMetrics>>,
    /// Cancelled to stop the agent.
    pub quit: CancellationToken,
}

/// Serves both ports.
///
/// # Errors
/// A port cannot be bound.
pub(crate) async fn start(
    state: State,
    servers: &mut JoinSet<()>,
    closing: &CancellationToken,
) -> anyhow::Result<()> {
    let ready = Router::new().route("/healthz/ready", get(is_ready));
    let all = ready
        .clone()
        .route("/app-health/{container}/{page}", get(probe))
        // The kubelet sends GET for hooks as well.
        .route("/app-lifecycle/{container}/{page}", get(probe))
        .route("/stats/prometheus", get(prometheus))
        .route("/quitquitquit", post(quit));
    for (port, name, router) in [(AGENT_PORT, "agent", all), (READY_PORT, "readiness", ready)] {
        let listener = bind(port).await?;
        let admission = Arc::new(Admission::new(limits(), name, &Metrics::default()));
        let (router, closing) = (router.with_state(state.clone()), closing.clone());
        servers.spawn(admission::serve(listener, router, admission, Protocol::Pages, closing));
    }
    Ok(())
}

fn limits() -> Limits {
    Limits { connections: 128, streams: 128, memory: 16 << 20, page: PAGE, ..Limits::admin() }
}

/// A listener for both families, or for IPv4 if the pod has no IPv6.
async fn bind(port: u16) -> anyhow::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(error),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
    .with_context(|| format!("listening on port {port}"))
}

async fn is_ready(Shared(state): Shared<State>) -> Response {
    match state.readiness.check().await {
        Ok(()) => "ready\n".into_response(),
        Err(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response()
        }
    }
}

async fn probe(
    Shared(state): Shared<State>,
    uri: http::Uri,
    Path(_): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let Some(probe) = state.probes.find(uri.path()) else {
        let text = format!("ISTIO_KUBE_APP_PROBERS has no {}\n", uri.path());
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    match probe.perform(state.application, &headers).await {
        Ok(status) => (status, format!("{status}\n")).into_response(),
        Err(why) => {
            tracing::debug!(path = uri.path(), reason = why, "a probe or hook failed");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")).into_response()
        }
    }
}

async fn prometheus(Shared(state): Shared<State>, RawQuery(query): RawQuery) -> Response {
    let application = state.metrics.as_deref().map(|metrics| (metrics, state.application));
    metrics::page(&state.admin, query.as_deref(), application).await
}

async fn quit(
    Shared(state): Shared<State>,
    Extension(exchange): Extension<Arc<Exchange>>,
) -> Response {
    if !exchange.peer().is_loopback() {
        return (StatusCode::FORBIDDEN, "only from the loopback address\n").into_response();
    }
    tracing::info!("told to stop by /quitquitquit");
    state.quit.cancel();
    "stopping\n".into_response()
}
