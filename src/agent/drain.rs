//! Lets the connections of clients end before Envoy does.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::envoy::Admin;
use crate::ports::METRICS;

/// How often Envoy is asked for its connections.
const POLL: Duration = Duration::from_millis(100);

/// How long there must be no connection before there is no further one to wait for: clients learn a moment later than
/// this pod that it ends.
const QUIET: Duration = Duration::from_secs(1);

/// How long Envoy may take to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// Tells Envoy to ask its clients to leave, while it goes on to serve them and new ones. Returns when none has been there
/// for a while, after `limit`, or if Envoy does not answer.
pub(crate) async fn drained(admin: &Admin, limit: Duration) {
    let until = Instant::now() + limit;
    match timeout(ANSWER, admin.post("/drain_listeners?graceful&skip_exit")).await {
        Ok(Ok(_)) => {}
        // It has not begun to serve.
        Ok(Err(error)) => return tracing::warn!(%error, "the listeners cannot be drained"),
        Err(_) => tracing::warn!("Envoy does not say that it drains its listeners"),
    }
    let mut last = Seen { active: 0, ever: 0 };
    let mut quiet_since = Instant::now();
    while Instant::now() < until {
        let stats = timeout(ANSWER, admin.stats(r"^listener\..*\.downstream_cx_(active|total)$"));
        if let Ok(Ok(stats)) = stats.await {
            let seen = Seen::count(&stats);
            if seen.active > 0 || seen.ever > last.ever {
                quiet_since = Instant::now();
            }
            last = seen;
        }
        if quiet_since.elapsed() >= QUIET.min(limit) {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
    if last.active > 0 {
        tracing::warn!(
            connections = last.active,
            "connections have not ended within the drain time"
        );
    }
}

/// Connections of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    active: u64,
    ever: u64,
}

impl Seen {
    /// Adds up the connections of all listeners but those of the admin interface and of the statistics.
    fn count(stats: &BTreeMap<String, u64>) -> Self {
        let mut seen = Self { active: 0, ever: 0 };
        for (name, value) in stats {
            let Some(listener) = name.strip_prefix("listener.") else { continue };
            // The workers' shares of what is counted as well.
            if listener.contains(".worker_")
                || listener.contains(&format!("_{METRICS}."))
                || listener.starts_with("admin.")
            {
                continue;
            }
            if listener.ends_with(".downstream_cx_active") {
                seen.active += value;
            } else {
                seen.ever += value;
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_clients_are_counted_once() {
        let stats = [
            ("listener.0.0.0.0_15001.downstream_cx_active", 2),
            ("listener.0.0.0.0_15001.worker_0.downstream_cx_active", 2),
            ("listener.[__]_80.downstream_cx_active", 1),
            ("listener.0.0.0.0_15090.downstream_cx_active", 4),
            ("listener.admin.downstream_cx_active", 8),
            ("listener.0.0.0.0_15001.downstream_cx_total", 16),
        ];
        let stats = stats.map(|(name, value)| (name.to_owned(), value)).into();
        assert_eq!(Seen::count(&stats), Seen { active: 3, ever: 16 });
    }
}
