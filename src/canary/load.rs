//! Continuous requests, also during edits, counted per step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use tokio::task::JoinSet;

/// The number of concurrent connections.
const WORKERS: usize = 8;

/// The pause between a worker's requests, for a total of about 2000 per second.
const PAUSE: Duration = Duration::from_millis(3);

/// The responses of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// From v1.
    pub v1: u64,
    /// From v2.
    pub v2: u64,
    /// Anything but a 200, including connection errors.
    pub failed: u64,
}

impl Tally {
    /// All responses.
    pub fn total(self) -> u64 {
        self.v1 + self.v2 + self.failed
    }
}

#[derive(Debug, Default)]
struct State {
    /// Incremented with each step and edit: a request counts only if it was sent and answered within the same step.
    step: AtomicU64,
    counting: AtomicBool,
    paused: AtomicBool,
    tally: Mutex<Tally>,
    sent: AtomicU64,
    failed_between: AtomicU64,
    /// All failed requests by status, or kind of error.
    failures: Mutex<BTreeMap<String, u64>>,
}

/// A running load; it stops when dropped.
#[derive(Debug)]
pub struct Load {
    state: Arc<State>,
    workers: JoinSet<()>,
}

impl Load {
    /// Starts sending up to `request_limit` requests for this host to this port on loopback.
    pub(crate) fn start(host: &str, port: u16, request_limit: u64) -> Self {
        Self::paced(host, port, request_limit, PAUSE)
    }

    /// The same with this pause between a worker's requests.
    pub fn paced(host: &str, port: u16, request_limit: u64, pause: Duration) -> Self {
        let state = Arc::new(State::default());
        let mut workers = JoinSet::new();
        for _ in 0..WORKERS {
            workers.spawn(work(state.clone(), host.to_owned(), port, request_limit, pause));
        }
        Self { state, workers }
    }

    /// From now on, responses do not count for a step.
    pub fn edit_begins(&self) {
        self.state.counting.store(false, Ordering::SeqCst);
        self.state.step.fetch_add(1, Ordering::SeqCst);
    }

    /// From now on, responses count for a new step.
    pub fn step_begins(&self) {
        *self.state.tally.lock() = Tally::default();
        self.state.step.fetch_add(1, Ordering::SeqCst);
        self.state.counting.store(true, Ordering::SeqCst);
    }

    /// The responses of this step so far.
    pub fn tally(&self) -> Tally {
        *self.state.tally.lock()
    }

    /// All requests so far.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }

    /// Failed requests that counted for no step.
    pub(crate) fn failed_between_steps(&self) -> u64 {
        self.state.failed_between.load(Ordering::SeqCst)
    }

    /// All failed requests by status, or kind of error.
    pub fn failures(&self) -> BTreeMap<String, u64> {
        self.state.failures.lock().clone()
    }

    /// Pauses sending.
    pub(crate) fn pause(&self) {
        self.state.paused.store(true, Ordering::SeqCst);
    }

    /// Stops the workers and waits for them.
    pub async fn end(mut self) {
        self.workers.shutdown().await;
    }
}

async fn work(state: Arc<State>, host: String, port: u16, request_limit: u64, pause: Duration) {
    let client: Client<HttpConnector, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    while state.sent.load(Ordering::SeqCst) < request_limit {
        if state.paused.load(Ordering::SeqCst) {
            return;
        }
        let step = state.step.load(Ordering::SeqCst);
        let answer = request(&client, &host, port).await;
        if let Err(why) = &answer {
            let mut failures = state.failures.lock();
            *failures.entry(why.clone()).or_default() += 1;
        }
        state.sent.fetch_add(1, Ordering::SeqCst);
        let same_step =
            step == state.step.load(Ordering::SeqCst) && state.counting.load(Ordering::SeqCst);
        if same_step {
            let mut tally = state.tally.lock();
            match answer.as_deref() {
                Ok(b"v1") => tally.v1 += 1,
                Ok(b"v2") => tally.v2 += 1,
                _ => tally.failed += 1,
            }
        } else if answer.is_err() {
            state.failed_between.fetch_add(1, Ordering::SeqCst);
        }
        tokio::time::sleep(pause).await;
    }
}

async fn request(
    client: &Client<HttpConnector, Empty<Bytes>>,
    host: &str,
    port: u16,
) -> Result<Bytes, String> {
    let request = http::Request::get(format!("http://127.0.0.1:{port}/")).header("host", host);
    let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
    let response = client.request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    if status == http::StatusCode::OK { Ok(body) } else { Err(status.as_u16().to_string()) }
}
