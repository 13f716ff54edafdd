//! HTTP backends that record requests, identify themselves, and are controlled by request headers. They echo WebSockets,
//! tunnels and gRPC streams.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::certs::{Certificates, Shown};
use super::mesh::DEADLINE;
use super::process::{Reserved, free_port};

/// The number of backends. The Nth listens on all ports at the Nth address of their network.
pub(crate) const COUNT: u8 = 6;

/// The header that identifies a request on all of its paths.
pub(crate) const ID: &str = "x-id";
/// Makes backends respond with these comma-separated statuses: the first on the first attempt, and so on, and the last
/// from then on. `x-answer-N` applies only to the Nth backend.
pub(crate) const ANSWER: &str = "x-answer";
/// Makes backends hold the request until [`Backends::release`], from the Nth attempt on, where N is the value.
pub(crate) const HOLD: &str = "x-hold";
/// A header with this prefix is returned in the response without the prefix.
pub(crate) const REPLY: &str = "x-reply-";

/// A request as seen by a backend.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The backend, counted from 1.
    pub backend: u8,
    /// The client's end of the connection.
    pub peer: SocketAddr,
    pub version: Version,
    pub method: Method,
    /// Including the query.
    pub path: String,
    /// The authority, in either HTTP version.
    pub host: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Whether it has been answered.
    pub answered: bool,
    /// The client's TLS parameters, if it used TLS.
    pub tls: Option<Shown>,
}

impl Seen {
    /// The request with its whole body, before it is answered.
    async fn of(
        backend: u8,
        peer: SocketAddr,
        tls: Option<Shown>,
        request: Request<Incoming>,
    ) -> Self {
        let (head, body) = request.into_parts();
        let host = head.uri.authority().map(ToString::to_string);
        Self {
            backend,
            peer,
            version: head.version,
            method: head.method,
            path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            host: host.unwrap_or_else(|| joined(&head.headers, "host")),
            headers: head.headers,
            body: body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default(),
            answered: false,
            tls,
        }
    }

    /// The status that the request asks for when `before` attempts came before it.
    fn wanted_status(&self, before: usize) -> StatusCode {
        let own = self.header(&format!("{ANSWER}-{}", self.backend));
        let list = if own.is_empty() { self.header(ANSWER) } else { own };
        let statuses: Vec<&str> = list.split(',').filter(|status| !status.is_empty()).collect();
        let status =
            statuses.get(before).or(statuses.last()).map_or(200, |status| status.parse().unwrap());
        StatusCode::from_u16(status).unwrap()
    }

    /// A header's values, joined by commas; empty if absent.
    pub(crate) fn header(&self, name: &str) -> String {
        joined(&self.headers, name)
    }
}

/// The values of a header, joined by commas.
pub(crate) fn joined(headers: &HeaderMap, name: &str) -> String {
    let values: Vec<_> = headers
        .get_all(name)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .collect();
    values.join(",")
}

#[derive(Debug, Default)]
struct Log {
    seen: Vec<Seen>,
    released: BTreeSet<String>,
}

impl Log {
    fn of(&self, id: &str) -> impl Iterator<Item = &Seen> {
        self.seen.iter().filter(move |seen| seen.header(ID) == id)
    }
}

/// All backends.
#[derive(Debug, Clone)]
pub(crate) struct Backends {
    /// The port for HTTP/1.1 and HTTP/2.
    pub http: u16,
    /// The port for HTTP over TLS.
    pub https: u16,
    /// The port on which they send `N\n` and then echo.
    pub tcp: u16,
    /// A port that is reserved and on which nothing listens.
    pub closed: u16,
    log: Arc<watch::Sender<Log>>,
}

impl Backends {
    /// Starts them in the network with this address prefix; they run as long as this process.
    pub(crate) fn start(network: [u8; 3], certificates: &Certificates) -> Self {
        let (http, https, tcp, closed) =
            (bind(network), bind(network), bind(network), reserve(network));
        let this = Self {
            http: http.0,
            https: https.0,
            tcp: tcp.0,
            closed,
            log: Arc::new(watch::Sender::default()),
        };
        let (served, tls) = (this.clone(), certificates.acceptor());
        // Not on a test's runtime, because the shared Envoys outlive it.
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for (backend, listener) in (1..).zip(tcp.1) {
                    tokio::spawn(accept(listener, move |stream, _| echo(backend, stream)));
                }
                for (backend, listener) in (1..).zip(http.1) {
                    let served = served.clone();
                    tokio::spawn(accept(listener, move |stream, peer| {
                        let served = served.clone();
                        async move { served.serve(backend, peer, stream, None).await }
                    }));
                }
                for (backend, listener) in (1..).zip(https.1) {
                    let (served, tls) = (served.clone(), tls.clone());
                    tokio::spawn(accept(listener, move |stream, peer| {
                        let (served, tls) = (served.clone(), tls.clone());
                        async move {
                            // The client reports failures.
                            let Ok(stream) = tls.accept(stream).await else {
                                return;
                            };
                            let shown = Shown::of(stream.get_ref().1);
                            served.serve(backend, peer, stream, Some(shown)).await;
                        }
                    }));
                }
                std::future::pending::<()>().await;
            });
        });
        this
    }

    /// All attempts of a request seen by all backends, in order.
    pub(crate) fn seen(&self, id: &str) -> Vec<Seen> {
        self.log.borrow().of(id).cloned().collect()
    }

    /// Waits until a request has been seen `count` times.
    pub(crate) async fn wait(&self, id: &str, count: usize) -> Vec<Seen> {
        let enough = self.until(|log| log.of(id).count() >= count).await;
        assert!(enough, "waited for {count} attempts of request {id}: {:?}", self.seen(id));
        self.seen(id)
    }

    /// Releases a held request.
    pub(crate) fn release(&self, id: &str) {
        self.log.send_modify(|log| _ = log.released.insert(id.to_owned()));
    }

    async fn until(&self, holds: impl Fn(&Log) -> bool) -> bool {
        let mut changes = self.log.subscribe();
        let found = tokio::time::timeout(DEADLINE, changes.wait_for(|log| holds(log))).await;
        found.is_ok()
    }

    async fn serve(
        &self,
        backend: u8,
        peer: SocketAddr,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        tls: Option<Shown>,
    ) {
        let this = self.clone();
        let service = hyper::service::service_fn(move |request| {
            let (this, tls) = (this.clone(), tls.clone());
            async move {
                if joined(request.headers(), "content-type").starts_with("application/grpc") {
                    return Ok::<_, Infallible>(echo_stream(backend, request));
                }
                Ok(this.answer(backend, peer, tls, request).await.map(|body| {
                    let body = body.map_err(|never| match never {});
                    body.boxed()
                }))
            }
        });
        let server = auto::Builder::new(TokioExecutor::new());
        // An error means that the client disconnected.
        let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
    }

    async fn answer(
        &self,
        backend: u8,
        peer: SocketAddr,
        tls: Option<Shown>,
        mut request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        let upgrade = hyper::upgrade::on(&mut request);
        let seen = Seen::of(backend, peer, tls, request).await;
        let id = seen.header(ID);
        let (mut at, mut before) = (0, 0);
        self.log.send_modify(|log| {
            before = log.of(&id).count();
            at = log.seen.len();
            log.seen.push(seen.clone());
        });
        let holds = seen.header(HOLD).parse().is_ok_and(|from: usize| before + 1 >= from);
        if holds && !self.until(|log| log.released.contains(&id)).await {
            return Response::new(Full::from("this was never released"));
        }
        self.log.send_modify(|log| log.seen[at].answered = true);

        let mut response = Response::new(Full::from(backend.to_string()));
        *response.status_mut() = seen.wanted_status(before);
        for (name, value) in &seen.headers {
            if let Some(name) = name.as_str().strip_prefix(REPLY) {
                let name: hyper::header::HeaderName = name.parse().unwrap();
                response.headers_mut().append(name, value.clone());
            }
        }
        let websocket = seen.header("upgrade") == "websocket";
        if websocket {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
            response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        }
        if websocket || seen.method == Method::CONNECT {
            *response.body_mut() = Full::default();
            tokio::spawn(echo_upgraded(upgrade));
        }
        response
    }
}

/// Echoes what a client sends over its WebSocket or through its tunnel.
async fn echo_upgraded(upgrade: OnUpgrade) {
    let Ok(upgraded) = upgrade.await else { return };
    let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
}

/// The header in which a backend that echoes a stream identifies itself.
pub(crate) const BACKEND: &str = "x-backend";

/// Echoes a stream message by message until the client ends it.
fn echo_stream(backend: u8, request: Request<Incoming>) -> Response<BoxBody<Bytes, hyper::Error>> {
    let mut response = Response::new(request.into_body().boxed());
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert(BACKEND, HeaderValue::from(u16::from(backend)));
    response
}

async fn echo(backend: u8, mut stream: TcpStream) {
    let (mut reader, mut writer) = stream.split();
    // An error means that the client disconnected.
    if writer.write_all(format!("{backend}\n").as_bytes()).await.is_ok() {
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    }
}

async fn accept<F>(listener: std::net::TcpListener, serve: impl Fn(TcpStream, SocketAddr) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        // An error means that the client disconnected before it was accepted.
        if let Ok((stream, peer)) = listener.accept().await {
            tokio::spawn(serve(stream, peer));
        }
    }
}

fn addresses([a, b, c]: [u8; 3]) -> impl Iterator<Item = Ipv4Addr> {
    (1..=COUNT).map(move |n| Ipv4Addr::new(a, b, c, n))
}

/// A port, and a listener of each backend on it.
fn bind(network: [u8; 3]) -> (u16, Vec<std::net::TcpListener>) {
    for _ in 0..50 {
        let port = free_port();
        let all = addresses(network).map(|address| std::net::TcpListener::bind((address, port)));
        let all: Result<Vec<_>, _> = all.collect();
        if let Ok(all) = all {
            all.iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
            return (port, all);
        }
    }
    panic!("no port is free on all addresses of the backends");
}

/// A port reserved on every backend's address without listening.
fn reserve(network: [u8; 3]) -> u16 {
    for _ in 0..50 {
        let port = free_port();
        let all = addresses(network).map(|address| Reserved::new((address, port).into()));
        let all: Result<Vec<_>, _> = all.collect();
        if let Ok(all) = all {
            std::mem::forget(all);
            return port;
        }
    }
    panic!("no port is free on all addresses of the backends");
}
