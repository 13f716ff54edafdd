//! Whether Envoy serves traffic.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::envoy::{Admin, Error};

/// How long Envoy may take to say whether it is ready: less than the timeout of a probe.
const ANSWER: Duration = Duration::from_secs(1);

/// How often [`wait`] asks.
const POLL: Duration = Duration::from_millis(250);

/// The updates of clusters and of listeners that Envoy has taken.
const UPDATES: [&str; 2] =
    ["cluster_manager.cds.update_success", "listener_manager.lds.update_success"];

/// Whether Envoy is ready: live, and with clusters and listeners from weir.
///
/// Once it is ready it stays so, whatever updates follow, until it says otherwise or the agent stops: its main thread,
/// which would answer, can be busy for seconds with a large update, while its other threads serve traffic.
#[derive(Debug)]
pub(crate) struct Readiness {
    admin: Admin,
    was_ready: AtomicBool,
    is_stopping: AtomicBool,
}

impl Readiness {
    pub(crate) fn new(admin: Admin) -> Self {
        Self { admin, was_ready: AtomicBool::new(false), is_stopping: AtomicBool::new(false) }
    }

    /// From now on it is not ready.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Asks Envoy. `Err` says why it is not ready.
    pub(crate) async fn check(&self) -> Result<(), String> {
        if self.is_stopping.load(Ordering::Relaxed) {
            return Err("the agent is stopping".to_owned());
        }
        let was_ready = self.was_ready.load(Ordering::Relaxed);
        match timeout(ANSWER, self.ask(was_ready)).await {
            Ok(Ok(Ok(()))) => {
                if !self.was_ready.swap(true, Ordering::Relaxed) {
                    tracing::info!("Envoy is ready");
                }
                Ok(())
            }
            Ok(Ok(Err(why))) => Err(why),
            Ok(Err(_)) | Err(_) if was_ready => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("Envoy's admin interface does not answer within {ANSWER:?}")),
        }
    }

    async fn ask(&self, was_ready: bool) -> Result<Result<(), String>, Error> {
        match self.admin.ready().await? {
            (true, _) if was_ready => return Ok(Ok(())),
            (true, _) => {}
            (false, state) => return Ok(Err(format!("Envoy is {state}"))),
        }
        let stats = self
            .admin
            .stats(r"^(cluster_manager\.cds|listener_manager\.lds)\.update_success$")
            .await?;
        let missing = UPDATES.iter().find(|name| stats.get(**name).is_none_or(|count| *count == 0));
        Ok(match missing {
            None => Ok(()),
            Some(name) => Err(format!(
                "Envoy has no configuration from weir yet: {name} is 0; see cluster.xds-grpc.* in its statistics"
            )),
        })
    }
}

/// Waits until the agent of this pod says that Envoy is ready.
///
/// # Errors
/// What it says instead at the end of `limit`.
pub(crate) async fn wait(agent: std::net::SocketAddr, limit: Duration) -> anyhow::Result<()> {
    let (admin, until) = (Admin::new(agent), Instant::now() + limit);
    loop {
        let last = match timeout(limit, admin.get("/healthz/ready")).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(Error::Admin { reason, .. })) => reason,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the agent does not answer".to_owned(),
        };
        anyhow::ensure!(Instant::now() < until, "not ready after {} s: {last}", limit.as_secs());
        tokio::time::sleep(POLL).await;
    }
}
