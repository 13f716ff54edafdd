//! Shared support for integration tests: real servers, started so that they leave nothing behind.

#![allow(dead_code, reason = "each test binary compiles this module and uses its own part of it")]

pub(crate) mod ads;
pub(crate) mod backend;
pub(crate) mod browser;
pub(crate) mod cache;
pub(crate) mod canary;
pub(crate) mod certs;
pub(crate) mod cutter;
pub(crate) mod go;
pub(crate) mod helm;
pub(crate) mod hostile;
pub(crate) mod kube;
pub(crate) mod kube_binaries;
pub(crate) mod kube_canary;
pub(crate) mod lint;
pub(crate) mod mesh;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod process;
pub(crate) mod rollout_tools;
pub(crate) mod sds;
pub(crate) mod sidecar;
pub(crate) mod traffic;
pub(crate) mod workloads;

use std::io::Write;

/// Why a test cannot run on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Skip {
    pub why: String,
}

impl Skip {
    /// Reports on stderr that `test` is skipped and why.
    ///
    /// # Panics
    /// If `CI` is set in the environment, where a skipped test is a failure.
    pub(crate) fn report(&self, test: &str) {
        let why = &self.why;
        if std::env::var_os("CI").is_some_and(|ci| !ci.is_empty()) {
            panic!("{test} cannot run, and CI does not allow skipped tests: {why}");
        }
        say(&format!("skipped: {test}: {why}"));
    }
}

/// Writes a line to stderr past the capture of the test harness, which would keep it until a test fails.
pub(crate) fn say(line: &str) {
    // If stderr is closed, nothing can be reported.
    let _ = writeln!(std::io::stderr(), "{line}");
}
