//! Accepts and serves connections, and closes idle ones.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tower_service::Service as _;
use tracing::Instrument as _;

use super::connection::Guarded;
use super::paced::Paced;
use super::{Admission, Connection, Limits};
use crate::timer::at;

/// The initial and maximum delay after a failure to accept.
const BACKOFF: Duration = Duration::from_millis(20);
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// How long a closing connection may take to finish its requests.
const DRAIN: Duration = Duration::from_secs(1);

/// The keepalive interval and timeout. Envoy does not answer while its main thread takes in a large configuration, which takes
/// many seconds where a sidecar has a tenth of a core.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(30);

/// How long a client may fail to read pending data. A briefly paused client is not disconnected.
const STALL: Duration = Duration::from_secs(60);

/// The receive window in bytes: HTTP/2's minimum (RFC 9113, section 6.9.2).
const WINDOW: u32 = 65_535;

/// The send buffer in bytes.
const SEND_BUFFER: usize = 64 << 10;

/// The maximum size of request headers in bytes.
const HEADERS: u32 = 16 << 10;

/// The protocol of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// gRPC only. A request is useful once its handler says so with
    /// [`Exchange::is_in_use`](super::Exchange::is_in_use).
    Grpc,
    /// HTTP and gRPC.
    Pages,
}

impl Protocol {
    /// The maximum number of concurrent requests per connection. Without aggregation Envoy opens one per cluster for
    /// endpoints.
    fn concurrent(self) -> u32 {
        match self {
            Self::Grpc => 5000,
            Self::Pages => 100,
        }
    }

    fn builder(self, limits: &Limits) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.first_request)
            .max_buf_size(SEND_BUFFER)
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_ANSWER)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(HEADERS)
            .max_concurrent_streams(self.concurrent());
        builder
    }
}

/// Serves `router` to the clients that `admission` admits, until `closing` is cancelled and every connection has ended.
/// Each request carries its [`Exchange`](super::Exchange) as an extension.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    admission: Arc<Admission>,
    protocol: Protocol,
    closing: CancellationToken,
) {
    serve_with(listener, router, admission, protocol, None, closing).await;
}

/// Like [`serve`], over TLS. A handshake that fails or takes too long ends its connection only.
pub(crate) async fn serve_tls(
    listener: TcpListener,
    router: Router,
    admission: Arc<Admission>,
    protocol: Protocol,
    tls: Arc<ServerConfig>,
    closing: CancellationToken,
) {
    serve_with(listener, router, admission, protocol, Some(tls.into()), closing).await;
}

async fn serve_with(
    listener: TcpListener,
    router: Router,
    admission: Arc<Admission>,
    protocol: Protocol,
    tls: Option<TlsAcceptor>,
    closing: CancellationToken,
) {
    let builder = protocol.builder(admission.limits());
    let router = router.with_state(());
    // Dropping this future closes the connections.
    let mut connections = JoinSet::new();
    let mut wait = None;
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => break,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, address)) => {
                wait = None;
                match admission.connect(address) {
                    Ok(connection) => {
                        let served = Served { connection, router: router.clone(), protocol };
                        let (tls, builder, closing) =
                            (tls.clone(), builder.clone(), closing.clone());
                        let accepted = served.accepted(socket, tls, builder, closing);
                        connections.spawn(accepted.instrument(tracing::debug_span!(
                            "connection",
                            port = admission.port(),
                            peer = %address
                        )));
                    }
                    Err(exhausted) => admission.log("refused a connection", &exhausted),
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if wait.is_none() {
                    tracing::warn!(port = admission.port(), %error, "cannot accept connections");
                }
                let now = wait.map_or(BACKOFF, |last: Duration| (last * 2).min(MAX_BACKOFF));
                wait = Some(now);
                tokio::select! {
                    () = tokio::time::sleep(now) => {}
                    () = closing.cancelled() => break,
                }
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Whether the error affects only the connection being accepted. Source: accept(2), "Error handling".
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::ConnectionRefused
            | Kind::NetworkDown
            | Kind::NetworkUnreachable
            | Kind::HostUnreachable
            | Kind::Interrupted
            | Kind::TimedOut
    )
}

/// A connection and the state needed to serve it.
#[derive(Clone)]
struct Served {
    connection: Arc<Connection>,
    router: Router,
    protocol: Protocol,
}

impl Served {
    async fn accepted(
        self,
        socket: TcpStream,
        tls: Option<TlsAcceptor>,
        builder: auto::Builder<TokioExecutor>,
        closing: CancellationToken,
    ) {
        // Messages are sent as a whole; without this option they are slightly delayed.
        let _ = socket.set_nodelay(true);
        let socket = Paced::new(socket, STALL);
        let Some(tls) = tls else {
            return self.run(socket, builder, closing).await;
        };
        if let Err(exhausted) = self.connection.begin_handshake() {
            self.connection.admission().log("refused a TLS handshake", &exhausted);
            return;
        }
        let limit = self.connection.limits().first_request;
        let handshake = tokio::select! {
            handshake = tokio::time::timeout(limit, tls.accept(socket)) => handshake,
            () = self.connection.over() => return self.connection.log_closing(),
            () = closing.cancelled() => return,
        };
        self.connection.end_handshake();
        match handshake {
            Ok(Ok(stream)) => self.run(stream, builder, closing).await,
            // The client knows.
            Ok(Err(error)) => tracing::debug!(%error, "the TLS handshake failed"),
            Err(_) => tracing::debug!("the TLS handshake took too long"),
        }
    }

    async fn run<S>(
        self,
        stream: S,
        builder: auto::Builder<TokioExecutor>,
        closing: CancellationToken,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connection = self.connection.clone();
        let limits = *connection.limits();
        let mut in_use = connection.in_use();
        let mut http = pin!(builder.serve_connection(TokioIo::new(stream), self));
        // When it became idle, and its idle timeout.
        let mut idle = Some((Instant::now(), limits.first_request));
        let mut seen = 0;
        let mut draining = false;
        let mut ends_at: Option<Instant> = None;
        loop {
            let requests = *in_use.borrow_and_update();
            if requests.now > 0 {
                idle = None;
            } else if idle.is_none() || requests.ever > seen {
                idle = Some((Instant::now(), limits.idle));
            }
            seen = requests.ever;
            let idle_until = idle.map(|(since, limit)| since + limit).filter(|_| ends_at.is_none());
            tokio::select! {
                // The client knows how it ended.
                _ = http.as_mut() => return,
                _ = in_use.changed() => continue,
                () = connection.over() => {
                    connection.log_closing();
                    return;
                }
                () = at(ends_at) => return,
                () = at(idle_until) => ends_at = Some(Instant::now() + DRAIN),
                // Open streams end by themselves.
                () = closing.cancelled(), if !draining => draining = true,
            }
            http.as_mut().graceful_shutdown();
        }
    }

    async fn answer(self, mut request: Request<Incoming>) -> Response<Guarded> {
        let grpc = request.headers().get(header::CONTENT_TYPE).is_some_and(is_grpc);
        let exchange = match self.connection.begin() {
            Ok(exchange) => exchange,
            Err(exhausted) => {
                self.connection.admission().log("refused a request", &exhausted);
                let rejected = if grpc {
                    Status::resource_exhausted(exhausted.to_string()).into_http()
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, format!("{exhausted}\n")).into_response()
                };
                return rejected.map(|body| Guarded::new(body, None));
            }
        };
        let mut router = self.router;
        let response = match self.protocol {
            Protocol::Grpc if request.version() < Version::HTTP_2 => {
                let text = "this port serves gRPC, which requires HTTP/2\n";
                let close = (header::CONNECTION, HeaderValue::from_static("close"));
                (StatusCode::HTTP_VERSION_NOT_SUPPORTED, [close], text).into_response()
            }
            Protocol::Grpc => {
                request.extensions_mut().insert(exchange.clone());
                infallible(router.call(request).await)
            }
            Protocol::Pages => {
                exchange.is_in_use();
                exchange.makes_sense();
                request.extensions_mut().insert(exchange.clone());
                let limit = self.connection.limits().page;
                let answered =
                    tokio::time::timeout(limit, router.call(request)).await.map(infallible);
                answered.unwrap_or_else(|_| {
                    (StatusCode::GATEWAY_TIMEOUT, "timed out\n").into_response()
                })
            }
        };
        response.map(|body| Guarded::new(body, Some(exchange)))
    }
}

fn infallible(response: Result<axum::response::Response, Infallible>) -> axum::response::Response {
    match response {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

fn is_grpc(content_type: &HeaderValue) -> bool {
    content_type.as_bytes().starts_with(b"application/grpc")
}

impl hyper::service::Service<Request<Incoming>> for Served {
    type Response = Response<Guarded>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let served = self.clone();
        // hyper may run it in a task of its own.
        Box::pin(async move { Ok(served.answer(request).await) }.in_current_span())
    }
}
