//! What runs beside Envoy in a pod: it starts Envoy with a bootstrap for this pod, says whether it is ready, asks the
//! application in the kubelet's stead, and lets Envoy's connections end before Envoy does.
//!
//! Envoy's image has no shell and no init process, so this program is both. Everything else is Envoy's own: it gets its
//! configuration and its certificates from weir, and reads its token by itself.

mod child;
mod drain;
mod files;
mod insecure;
mod install;
mod metrics;
mod probe;
mod readiness;
mod server;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bootstrap::Bootstrap;
use crate::envoy::Admin;

use child::Envoy;
use readiness::Readiness;

pub(crate) use child::become_envoy;
pub(crate) use files::labels;
pub(crate) use install::install;
pub(crate) use metrics::ApplicationMetrics;
pub(crate) use probe::Probes;
pub(crate) use readiness::wait;
pub(crate) use server::{AGENT_PORT, READY_PORT};

/// How long Envoy may take to end after SIGTERM.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// What an agent is to do.
#[derive(Debug)]
pub(crate) struct Options {
    /// The configuration that Envoy starts with.
    pub bootstrap: Bootstrap,
    /// The folder for Envoy's files.
    pub folder: PathBuf,
    /// The Envoy binary.
    pub envoy: PathBuf,
    /// More arguments for Envoy.
    pub envoy_args: Vec<OsString>,
    /// How long connections may take to end.
    pub drain: Duration,
    /// The address at which the application is asked.
    pub application: IpAddr,
    /// What the kubelet asks of the application.
    pub probes: Probes,
    /// Where the application's own metrics are, if they are served with Envoy's.
    pub metrics: Option<ApplicationMetrics>,
}

/// The signals that stop the agent.
struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    fn new() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next signal, as the exit status of a process that it ends.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => 143,
            _ = self.interrupt.recv() => 130,
        }
    }
}

/// Runs Envoy until it ends or until the agent is told to stop, and returns the exit status for it. Must be called on the
/// main thread, whose end would end Envoy.
///
/// # Errors
/// A port is in use, a file cannot be written, or Envoy cannot be started.
pub(crate) async fn run(options: Options) -> anyhow::Result<u8> {
    let mut stops = Stops::new().context("handling signals")?;
    let args = files::write(&options)?;
    let admin = Admin::new(options.bootstrap.admin);
    let readiness = Arc::new(Readiness::new(admin.clone()));
    let (closing, quit) = (CancellationToken::new(), CancellationToken::new());
    let state = server::State {
        readiness: readiness.clone(),
        admin: admin.clone(),
        probes: Arc::new(options.probes),
        application: options.application,
        metrics: options.metrics.map(Arc::new),
        quit: quit.clone(),
    };
    let mut servers = JoinSet::new();
    server::start(state, &mut servers, &closing).await?;
    let mut envoy = Envoy::start(&options.envoy, &args)?;
    let node = &options.bootstrap.node;
    tracing::info!(envoy = %options.envoy.display(), process = envoy.id(), %node, "Envoy is running");
    let status = tokio::select! {
        ended = envoy.ended() => {
            let ended = ended?;
            tracing::error!(%ended, "Envoy has ended by itself");
            ended.status()
        }
        _ = stops.next() => stop(&mut envoy, &mut stops, &admin, &readiness, options.drain).await?,
        () = quit.cancelled() => {
            stop(&mut envoy, &mut stops, &admin, &readiness, options.drain).await?
        }
    };
    closing.cancel();
    servers.shutdown().await;
    Ok(status)
}

/// Drains and ends Envoy. A signal meanwhile ends it at once.
async fn stop(
    envoy: &mut Envoy,
    stops: &mut Stops,
    admin: &Admin,
    readiness: &Readiness,
    drain: Duration,
) -> anyhow::Result<u8> {
    readiness.stop();
    tracing::info!(seconds = drain.as_secs(), "stopping; connections have time to end");
    let gently = async {
        tokio::select! {
            ended = envoy.ended() => return ended,
            () = drain::drained(admin, drain) => {}
        }
        envoy.terminate();
        match tokio::time::timeout(STOP_GRACE, envoy.ended()).await {
            Ok(ended) => ended,
            Err(_) => {
                tracing::warn!(after = ?STOP_GRACE, "Envoy has not ended after SIGTERM; killing it");
                envoy.kill();
                envoy.ended().await
            }
        }
    };
    let ended = tokio::select! {
        ended = gently => ended?,
        status = stops.next() => {
            tracing::warn!("a second signal; killing Envoy");
            envoy.kill();
            envoy.ended().await?;
            return Ok(status);
        }
    };
    tracing::info!(%ended, "Envoy has ended");
    Ok(ended.status_on_request())
}
