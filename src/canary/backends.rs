//! The backends: HTTP servers that respond with their version.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::any;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Running backends; they stop when dropped.
pub struct Backends {
    /// Their common port.
    pub port: u16,
    _tasks: JoinSet<()>,
}

/// Starts three backends of v1 on 127.0.1.1 to 3 and three of v2 on 127.0.2.1 to 3, all on one free port.
///
/// # Errors
/// No port is free on all of them.
pub async fn start() -> anyhow::Result<Backends> {
    for _ in 0..20 {
        let first = TcpListener::bind(("127.0.1.1", 0)).await?;
        let port = first.local_addr()?.port();
        let mut listeners = vec![("v1", first)];
        for (version, net, host) in
            [("v1", 1, 2), ("v1", 1, 3), ("v2", 2, 1), ("v2", 2, 2), ("v2", 2, 3)]
        {
            if let Ok(listener) =
                TcpListener::bind(SocketAddr::from(([127, 0, net, host], port))).await
            {
                listeners.push((version, listener));
            }
        }
        if listeners.len() < 6 {
            continue;
        }
        let mut tasks = JoinSet::new();
        for (version, listener) in listeners {
            tasks.spawn(async move {
                let router = Router::new().fallback(any(move || async move { version }));
                if let Err(error) = axum::serve(listener, router).await {
                    tracing::error!(%error, "a backend failed");
                }
            });
        }
        return Ok(Backends { port, _tasks: tasks });
    }
    anyhow::bail!(
        "no port is free on all of 127.0.1.1 to 127.0.2.3; does this machine answer on all of 127.0.0.0/8?"
    )
}
