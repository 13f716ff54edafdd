//! The application in the pods: a server that answers with what it sees, or a client that sends requests until it is told
//! to end. It is the program of the tests itself, started with [`ROLE`] in its environment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::routing::{any, get, post};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::images::Image;

/// `server VERSION` or `client URL`.
const ROLE: &str = "WEIR_TEST_APPLICATION";

/// The port of the server.
pub(crate) const SERVER: u16 = 8080;
/// The port at which a client says what it got.
pub(crate) const REPORT: u16 = 9090;

/// The line that a client writes last begins with this, and a [`Report`] follows.
const LAST: &str = "at its end: ";

/// How many requests a client sends at the same time, and the pause of each before the next one.
const WORKERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(4);
/// How many requests a measurement takes.
const MEASURED: usize = 3000;
/// After how many requests a worker opens a new connection.
const ON_A_CONNECTION: u64 = 40;

/// What the server saw of a request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub version: String,
    /// The address of the connection.
    pub source: String,
    pub host: String,
    /// The values of `x-forwarded-for` and `x-forwarded-client-cert`; empty without.
    pub forwarded_for: String,
    pub client_certificate: String,
}

/// What a client got.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// All requests.
    pub sent: u64,
    /// How often each version answered a request that was sent since the last step began.
    pub step: BTreeMap<String, u64>,
    /// Whatever is no answer of the server, with how often it was got.
    pub failures: BTreeMap<String, u64>,
    /// What servers saw, apart from certificates.
    pub seen: BTreeSet<Seen>,
    /// How many requests arrived with the certificate of a client, as Envoy says it.
    pub with_certificate: u64,
    /// When the first answer arrived, in milliseconds of Unix time; 0 before.
    pub first_answer: u64,
}

/// How long requests took that one client sent one after the other on one connection, in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub median: u64,
    pub p99: u64,
}

/// The image of the application. `test` is a test that begins with [`run_if_wanted`].
pub(crate) fn image(test: &str) -> Image {
    let program = std::env::current_exe().expect("this program has a path");
    let entrypoint = ["/application", "--exact", test, "--nocapture", "--include-ignored"];
    Image {
        program: (program, "/application".to_owned()),
        entrypoint: entrypoint.map(str::to_owned).to_vec(),
        env: Vec::new(),
        user: 65534,
    }
}

/// The environment of a container of the application, as YAML.
pub(crate) fn environment(role: &str) -> String {
    format!("[{{name: {ROLE}, value: \"{role}\"}}]")
}

/// Runs the application if this process is to be it; returns whether it was.
pub(crate) async fn run_if_wanted() -> bool {
    let Ok(role) = std::env::var(ROLE) else { return false };
    match role.split_once(' ') {
        Some(("server", version)) => serve(version).await,
        Some(("client", url)) => send(url).await,
        _ => panic!("{ROLE}={role}"),
    }
    true
}

/// What the client wrote last, if it has ended.
pub(crate) fn last_report(log: &str) -> Option<Report> {
    let line = log.lines().rev().find_map(|line| line.split_once(LAST))?.1;
    Some(serde_json::from_str(line).expect("a report"))
}

async fn told_to_end() {
    signal(SignalKind::terminate()).expect("a handler").recv().await;
}

async fn serve(version: &str) {
    let version = version.to_owned();
    let router = Router::new().route("/healthz", get(async || "ok")).fallback(any(
        async move |ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request<Body>| {
            axum::Json(seen(version, peer, request.headers()))
        },
    ));
    let router = router.into_make_service_with_connect_info::<SocketAddr>();
    let listener = TcpListener::bind(("0.0.0.0", SERVER)).await.expect("the port");
    axum::serve(listener, router).with_graceful_shutdown(told_to_end()).await.expect("a server");
}

fn seen(version: String, peer: SocketAddr, headers: &HeaderMap) -> Seen {
    let [host, forwarded_for, client_certificate] =
        ["host", "x-forwarded-for", "x-forwarded-client-cert"].map(|name| {
            let value = headers.get(name).map(|value| value.as_bytes()).unwrap_or_default();
            String::from_utf8_lossy(value).into_owned()
        });
    let source = peer.ip().to_string();
    Seen { version, source, host, forwarded_for, client_certificate }
}

/// Milliseconds of Unix time.
pub(crate) fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
    u64::try_from(now.as_millis()).expect("it is before the year 500 million")
}

/// What the workers of a client share.
#[derive(Debug, Default)]
struct Shared {
    report: Mutex<Report>,
    step: AtomicU64,
    ends: AtomicBool,
}

async fn send(url: &str) {
    let shared = Arc::new(Shared::default());
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn(work(shared.clone(), url.to_owned()));
    }
    let (told, of_step, measured) = (shared.clone(), shared.clone(), url.to_owned());
    let router = Router::new()
        .route("/report", get(async move || axum::Json(told.report.lock().clone())))
        .route(
            "/step",
            post(async move || {
                let mut report = of_step.report.lock();
                of_step.step.fetch_add(1, Ordering::SeqCst);
                report.step.clear();
            }),
        )
        .route("/measure", post(async move || axum::Json(measure(&measured).await)));
    let listener = TcpListener::bind(("0.0.0.0", REPORT)).await.expect("the port");
    let ended = async { axum::serve(listener, router).await };
    tokio::select! {
        served = ended => panic!("{served:?}"),
        () = told_to_end() => {}
    }
    shared.ends.store(true, Ordering::SeqCst);
    while let Some(worker) = workers.join_next().await {
        worker.expect("a worker ends");
    }
    let report = serde_json::to_string(&*shared.report.lock()).expect("JSON");
    println!("{LAST}{report}");
}

async fn measure(url: &str) -> Latency {
    let client: Client<HttpConnector, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let mut all = Vec::new();
    for _ in 0..MEASURED {
        let begun = Instant::now();
        request(&client, url).await.expect("an answer");
        all.push(u64::try_from(begun.elapsed().as_micros()).expect("it is short"));
    }
    all.sort_unstable();
    Latency { median: all[MEASURED / 2], p99: all[MEASURED * 99 / 100] }
}

async fn work(shared: Arc<Shared>, url: String) {
    while !shared.ends.load(Ordering::SeqCst) {
        let client: Client<HttpConnector, Empty<Bytes>> =
            Client::builder(TokioExecutor::new()).build_http();
        for _ in 0..ON_A_CONNECTION {
            if shared.ends.load(Ordering::SeqCst) {
                return;
            }
            let step = shared.step.load(Ordering::SeqCst);
            let answer = request(&client, &url).await;
            shared.count(step, answer);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn request(client: &Client<HttpConnector, Empty<Bytes>>, url: &str) -> Result<Seen, String> {
    let response = client.get(url.parse().expect("a URL")).await;
    let response = response.map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", cause.unwrap_or_default())
    })?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    if status != http::StatusCode::OK {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
    }
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

impl Shared {
    /// Counts an answer to a request that was sent in this step.
    fn count(&self, step: u64, answer: Result<Seen, String>) {
        let mut report = self.report.lock();
        report.sent += 1;
        match answer {
            Ok(mut seen) => {
                if report.first_answer == 0 {
                    report.first_answer = unix_millis();
                }
                if step == self.step.load(Ordering::SeqCst) {
                    *report.step.entry(seen.version.clone()).or_default() += 1;
                }
                report.with_certificate += u64::from(!seen.client_certificate.is_empty());
                seen.client_certificate.clear();
                report.seen.insert(seen);
            }
            Err(why) => {
                // Into the log with its time, to find what happened then.
                let now = k8s_openapi::jiff::Timestamp::now();
                println!("{now} {why}");
                *report.failures.entry(why).or_default() += 1;
            }
        }
    }
}
