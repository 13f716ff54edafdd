//! Waits for a time that may be absent.

use tokio::time::Instant;

/// Waits until this time, or forever if there is none.
pub(crate) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
