//! What a report about a problem needs to say of the process: its version, its flags and what it uses.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use serde::Serialize;

use super::Admin;
use super::http::json_response;
use crate::proto_json;

/// The paths below `/debug`.
pub(super) fn routes() -> Router<Admin> {
    let started = Instant::now();
    Router::new().route(
        "/info",
        get(async move |State(admin): State<Admin>| answer(&Info::of(&admin, started))),
    )
}

fn answer(info: &Info) -> Response {
    match serde_json::to_value(info) {
        Ok(value) => json_response(StatusCode::OK, proto_json::to_text(&value)),
        Err(error) => json_response(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// The process. None of it is secret: keys and tokens are in files and Secrets that flags name.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    version: &'static str,
    target: String,
    replica: String,
    flags: Vec<String>,
    running_seconds: u64,
    ready: bool,
    tasks: usize,
    proxies: usize,
    /// Lines of the kernel's account of the process, such as `VmRSS`; empty where there is none.
    process: BTreeMap<String, String>,
}

impl Info {
    fn of(admin: &Admin, started: Instant) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            replica: admin.peers.pod().to_owned(),
            flags: std::env::args_os().skip(1).map(|flag| flag.to_string_lossy().into()).collect(),
            running_seconds: started.elapsed().as_secs(),
            ready: *admin.ready.borrow(),
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            proxies: admin.connections.list().len(),
            process: process(&std::fs::read_to_string("/proc/self/status").unwrap_or_default()),
        }
    }
}

/// The lines about memory and threads.
fn process(status: &str) -> BTreeMap<String, String> {
    let lines = status.lines().filter_map(|line| line.split_once(':'));
    let lines = lines.filter(|(name, _)| {
        matches!(*name, "VmPeak" | "VmSize" | "VmHWM" | "VmRSS" | "RssAnon" | "Threads" | "FDSize")
    });
    lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_account_of_a_process_its_memory_and_threads_are_kept() {
        let status = "Name:\tweir\nVmRSS:\t   33996 kB\nThreads:\t3\nCapEff:\t0\n";
        let kept = process(status);
        assert_eq!(kept.len(), 2);
        assert_eq!((&*kept["VmRSS"], &*kept["Threads"]), ("33996 kB", "3"));
    }
}
