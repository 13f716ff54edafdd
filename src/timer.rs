//! Waiting for a time that may not come.

use tokio::time::Instant;

/// Waits until this time; for ever without one.
pub(crate) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
