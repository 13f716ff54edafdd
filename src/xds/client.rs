//! A stream of a client, whatever it is for: who opened it, when its first request comes, and when it has to end.

use std::hash::{BuildHasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tracing::Instrument as _;

use super::grpc::{self, Outgoing, Requests};
use super::wire::Frame;
use crate::admission::{Admission, Exchange, Start, Turns};
use crate::ca::CertificateAuthority;
use crate::identity::{Identity, TokenError, TokenReviewer};
use crate::mesh::{Proxy, ProxyError};

/// How many responses may be queued for a client: one per type, and as many again for a client that answers responses
/// it has not read. More would let slow clients consume memory.
const WAITING: usize = 8;

/// How long to wait for a client that does not read to receive the final status.
const FINAL_STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an answer about the token of an open stream is used, and half as long again for some.
const REVIEW_AGAIN: Duration = Duration::from_secs(120);

/// The time over which closing is spread, per stream and in total.
const LEAVE_EACH: Duration = Duration::from_millis(2);
const LEAVE_ALL: Duration = Duration::from_secs(5);

/// Where the responses to a client go.
pub(super) type Sender = mpsc::Sender<Result<Outgoing, Status>>;

/// What all streams share.
#[derive(Debug)]
pub(super) struct Gate {
    /// The limits.
    pub admission: Arc<Admission>,
    /// When streams start.
    pub turns: Turns,
    /// Ends all streams.
    pub closing: CancellationToken,
    /// The tasks of the streams.
    pub tasks: TaskTracker,
    /// How long a client may take to read a response.
    pub read_timeout: Duration,
}

/// How clients of the TLS port are identified, and get certificates.
#[derive(Clone, Debug)]
pub(super) struct Access {
    /// Checks the tokens.
    pub tokens: Arc<TokenReviewer>,
    /// Signs certificates.
    pub authority: CertificateAuthority,
}

/// Who has opened a stream.
pub(super) enum Caller {
    /// Nobody asks.
    Anonymous,
    /// Whom the token in these headers names.
    Bearer {
        /// Who checks it.
        access: Access,
        /// The headers.
        headers: http::HeaderMap,
    },
}

impl Caller {
    /// Who sent these headers.
    pub(super) fn new(access: Option<Access>, headers: http::HeaderMap) -> Self {
        access.map_or(Self::Anonymous, |access| Self::Bearer {
            access,
            headers: authorization(headers),
        })
    }
}

/// The header with the token, which is all that is kept of the headers.
fn authorization(mut headers: http::HeaderMap) -> http::HeaderMap {
    let name = http::header::AUTHORIZATION;
    let value = headers.remove(&name).map(|mut value| {
        value.set_sensitive(true);
        (name, value)
    });
    value.into_iter().collect()
}

/// The client of a stream.
pub(super) struct Client<'a> {
    /// What all streams share.
    pub gate: &'a Gate,
    /// The request that the stream is.
    pub exchange: &'a Arc<Exchange>,
    /// Who opened it.
    pub caller: Caller,
    /// Where its responses go.
    pub sender: &'a Sender,
}

impl Gate {
    /// Serves a stream in a task of its own, which owns both halves of it, so it ends when the client disconnects. What
    /// `serve` returns is the final status; `ended` is called before the client gets that.
    pub(super) fn open<F>(
        &self,
        exchange: Arc<Exchange>,
        span: tracing::Span,
        serve: impl FnOnce(Sender) -> F,
        ended: impl FnOnce() + Send + 'static,
    ) -> http::Response<Body>
    where
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let (sender, frames) = mpsc::channel(WAITING);
        let served = serve(sender.clone());
        let task = async move {
            let status = match AssertUnwindSafe(served).catch_unwind().await {
                Ok(Ok(())) => Status::ok(""),
                Ok(Err(status)) => status,
                Err(_) => {
                    tracing::error!("the task of a stream panicked; the proxy will reconnect");
                    Status::internal("internal error of the stream")
                }
            };
            tracing::debug!(code = ?status.code(), reason = status.message(), "stream ended");
            ended();
            let farewell = async {
                let _ = sender.send(Err(status)).await;
                sender.closed().await;
            };
            // Responses that the client has not read by then are dropped.
            let _ = tokio::time::timeout(FINAL_STATUS_TIMEOUT, farewell).await;
            exchange.end();
        };
        self.tasks.spawn(task.instrument(span));
        grpc::response(frames)
    }
}

impl Client<'_> {
    /// Waits until the token of the client is no longer valid, and says why. The API server is asked again and again, because
    /// the pod of a token may be deleted.
    pub(super) async fn token_lost(&self, expires: Option<SystemTime>) -> Status {
        let Caller::Bearer { access, headers } = &self.caller else {
            return std::future::pending().await;
        };
        loop {
            let pause = REVIEW_AGAIN.mul_f64(1.0 + random_fraction() / 2.0);
            let left = expires.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
            tokio::time::sleep(left.map_or(pause, |left| left.min(pause))).await;
            if expires.is_some_and(|at| at <= SystemTime::now()) {
                return Status::permission_denied(
                    "the token of this stream has expired; connect with a new one",
                );
            }
            match access.tokens.identify(headers, self.exchange.peer()).await {
                Ok(_) | Err(TokenError::Unavailable(_)) => {}
                Err(error) => return error.into(),
            }
        }
    }

    /// Checks that the client may have the configuration of this proxy. Returns its identity, unless it is anonymous.
    pub(super) async fn identify(
        &self,
        proxy: &Proxy,
    ) -> Result<Option<(Identity, Access)>, Status> {
        let Caller::Bearer { access, headers } = &self.caller else {
            return Ok(None);
        };
        let identity = self.before_the_end(async {
            access.tokens.identify(headers, self.exchange.peer()).await.map_err(Status::from)
        });
        let identity = identity.await.inspect_err(|status| {
            let reason = format_args!("{}: {}", proxy.id, status.message());
            self.gate.admission.log("refused a client without a valid token", &reason);
        })?;
        identity.permits(proxy).map_err(|reason| {
            let why = format_args!("{}: {reason}", proxy.id);
            self.gate.admission.log("refused a client with another's token", &why);
            Status::permission_denied(reason)
        })?;
        Ok(Some((identity, access.clone())))
    }

    /// What comes first: this, or the end of the stream.
    pub(super) async fn before_the_end<T>(
        &self,
        awaited: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        tokio::select! {
            done = awaited => done,
            () = self.sender.closed() => Err(Status::cancelled("the client has left")),
            () = self.exchange.over() => Err(self.revoked()),
            () = self.gate.closing.cancelled() => Err(shutting_down()),
        }
    }

    /// The first request, and the start, for which the stream waits after its turn; `None` if the client ends the stream
    /// without a request. A stream waits only once its first request begins: a client that only opens streams takes no turn, and a
    /// waiting stream holds almost no memory.
    pub(super) async fn first<M: Message + Default>(
        &self,
        requests: &mut Requests<M>,
        start: impl Future<Output = Start>,
    ) -> Result<Option<(M, Start)>, Status> {
        let within = self.exchange.limits().first_request;
        let first = async {
            let begun = tokio::time::timeout(within, requests.begun()).await.map_err(|_| {
                let within = within.as_secs_f64();
                Status::deadline_exceeded(format!("no request arrived within {within} s"))
            })??;
            if !begun {
                return Ok(None);
            }
            self.exchange.is_in_use();
            self.gate.turns.turn(self.exchange.peer()).await;
            let mut start = start.await;
            let first = start.during(requests.next()).await?;
            Ok(first.map(|first| (first, start)))
        };
        tokio::select! {
            first = first => first,
            () = self.sender.closed() => Ok(None),
            () = self.exchange.over() => Err(self.revoked()),
            () = self.gate.closing.cancelled() => Err(shutting_down()),
        }
    }

    /// Sends a frame. Returns whether the client is still connected.
    pub(super) async fn send(&self, frame: Frame) -> Result<bool, Status> {
        let limit = self.gate.read_timeout;
        let outgoing = Outgoing::new(frame, self.exchange)?;
        tokio::select! {
            sent = tokio::time::timeout(limit, self.sender.send(Ok(outgoing))) => match sent {
                Ok(sent) => Ok(sent.is_ok()),
                Err(_) => Err(Status::resource_exhausted("the client does not read its responses")),
            },
            () = self.exchange.over() => Err(self.revoked()),
            () = self.gate.closing.cancelled() => Err(shutting_down()),
        }
    }

    /// The status of a stream that is ended to free resources for other streams.
    pub(super) fn revoked(&self) -> Status {
        let why = self.exchange.why_revoked();
        Status::resource_exhausted(
            why.map_or_else(|| "the stream was ended".to_owned(), |why| why.to_string()),
        )
    }

    /// When the stream closes if all streams begin to close now.
    pub(super) fn leave_at(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + leave_after(self.gate.admission.streams().used())
    }
}

/// How long a stream waits before it closes when all streams close: a random part of the total time, so that the
/// clients do not all reconnect at once.
fn leave_after(streams: usize) -> Duration {
    let streams = u32::try_from(streams).unwrap_or(u32::MAX);
    let all = LEAVE_EACH.saturating_mul(streams.saturating_sub(1)).min(LEAVE_ALL);
    all.mul_f64(random_fraction())
}

/// A random number from 0 to 1. The standard library seeds its hash maps from the system's randomness.
pub(super) fn random_fraction() -> f64 {
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}

pub(super) fn shutting_down() -> Status {
    Status::unavailable("weir is shutting down")
}

pub(super) fn not_served(error: &ProxyError) -> Status {
    tracing::warn!(%error, "refused a client");
    match error {
        ProxyError::Generator { .. } => Status::unimplemented(error.to_string()),
        ProxyError::Id(_)
        | ProxyError::TooLong { .. }
        | ProxyError::Type { .. }
        | ProxyError::Address { .. } => Status::invalid_argument(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_close_within_the_total_time() {
        let times: Vec<_> = (0..100).map(|_| leave_after(101)).collect();
        assert!(times.iter().all(|time| *time <= LEAVE_EACH * 100));
        assert!(times.iter().max() > times.iter().min(), "not all at the same time");
        assert!(leave_after(usize::MAX) <= LEAVE_ALL);
        assert_eq!(leave_after(1), Duration::ZERO);
    }
}
