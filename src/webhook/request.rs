//! What a review and an injection share: a body within limits of size and time, work off the network threads, and the response.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::admission::{Exchange, Exhausted, Hold};

/// The largest body. The API server accepts requests of 3 MB, and a review contains the old and the new object. With
/// [`MEMORY_PER_BYTE`] it fits into the share of one address ([`Limits::webhook`](crate::admission::Limits::webhook)).
pub(super) const LARGEST: usize = 7 << 20;

/// How many bytes of memory a byte of JSON takes at most while it is judged, roughly.
const MEMORY_PER_BYTE: usize = 4;

/// How long the parts of a request may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// The body.
    pub body: Duration,
    /// The answer after that: less than the timeout of the webhook configuration.
    pub answer: Duration,
    /// The analysis among other objects. After that the object is admitted without its warnings.
    pub analysis: Duration,
    /// How long a new object waits for those that were written just before it, before it gets a warning about them.
    pub catch_up: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            body: Duration::from_secs(5),
            answer: Duration::from_secs(3),
            analysis: Duration::from_secs(2),
            catch_up: Duration::from_millis(500),
        }
    }
}

/// How many reviews are judged at the same time. Proxies come first.
pub(super) const AT_ONCE: usize = 2;

/// Runs a computation on a thread of its own as soon as there is a permit. `None` if it is not done in time, or if it
/// panicked; it keeps its permit until it ends.
pub(super) async fn blocking<T: Send + 'static>(
    permits: &Arc<Semaphore>,
    due: Instant,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let permit = timeout_at(due, permits.clone().acquire_owned()).await.ok()?.ok()?;
    let task = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(permit);
        done
    });
    match timeout_at(due, task).await.ok()? {
        Ok(done) => Some(done),
        Err(error) => {
            tracing::error!(%error, "a review failed");
            None
        }
    }
}

/// Why a request gets no review.
pub(super) struct Refused(pub StatusCode, pub String);

impl From<Exhausted> for Refused {
    fn from(why: Exhausted) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, why.to_string())
    }
}

pub(super) fn busy() -> Refused {
    Refused(
        StatusCode::SERVICE_UNAVAILABLE,
        "weir has no time for a review at the moment".to_owned(),
    )
}

/// Reads a body within its limits of time and size.
pub(super) async fn read(
    body: Body,
    exchange: Arc<Exchange>,
    time: Duration,
) -> Result<(Vec<u8>, Hold), Refused> {
    tokio::time::timeout(time, read_all(body, exchange))
        .await
        .map_err(|_| Refused(StatusCode::REQUEST_TIMEOUT, "the body took too long".to_owned()))?
}

async fn read_all(mut body: Body, exchange: Arc<Exchange>) -> Result<(Vec<u8>, Hold), Refused> {
    let mut memory = exchange.hold(0)?;
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Refused(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}"))
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let length = bytes.len() + data.len();
        if length > LARGEST {
            let why = format!("the body has more than {LARGEST} bytes");
            return Err(Refused(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        memory.resize(length * MEMORY_PER_BYTE)?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, memory))
}

/// The response with a review, or the reason why there is none.
pub(super) fn respond(answer: Result<Value, Refused>) -> Response {
    let json = (header::CONTENT_TYPE, "application/json");
    match answer {
        Ok(review) => ([json], review.to_string()).into_response(),
        Err(Refused(status, why)) => (status, format!("{why}\n")).into_response(),
    }
}
