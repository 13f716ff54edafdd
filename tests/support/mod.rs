//! Shared support for integration tests: real servers, started so that they leave nothing behind.

#![allow(dead_code, reason = "each test binary compiles this module and uses its own part of it")]

pub mod ads;
pub mod backend;
pub mod cache;
pub mod canary;
pub mod certs;
pub mod cutter;
pub mod go;
pub mod helm;
pub mod hostile;
pub mod kube;
pub mod kube_binaries;
pub mod mesh;
pub mod network;
pub mod process;
pub mod sds;
pub mod sidecar;
pub mod traffic;

use std::io::Write;

/// Why a test cannot run on this machine.
#[derive(Debug, Clone)]
pub struct Skip {
    pub why: String,
}

impl Skip {
    /// Reports on stderr that `test` is skipped and why.
    ///
    /// # Panics
    /// If `CI` is set in the environment, where a skipped test is a failure.
    pub fn report(&self, test: &str) {
        let why = &self.why;
        if std::env::var_os("CI").is_some_and(|ci| !ci.is_empty()) {
            panic!("{test} cannot run, and CI does not allow skipped tests: {why}");
        }
        say(&format!("skipped: {test}: {why}"));
    }
}

/// Writes a line to stderr past the capture of the test harness, which would keep it until a test fails.
pub fn say(line: &str) {
    // If stderr is closed, nothing can be reported.
    let _ = writeln!(std::io::stderr(), "{line}");
}
