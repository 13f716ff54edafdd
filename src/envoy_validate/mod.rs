//! Predicts what Envoy would reject in an encoded message, before it is sent.
//!
//! The rules come from Envoy's protos (protoc-gen-validate's `validate.rules`, as interpreted by Envoy's C++) and from
//! checks in Envoy's code. They are compiled once per process; a check walks the wire bytes without building a message.

mod check;
mod compiled;
mod format;
pub mod re2;
mod rules;
mod semantics;
mod wire;

use std::fmt;
use std::sync::LazyLock;

use compiled::CompiledRules;

use crate::proto_json;

pub(crate) use format::with_literal_percents;
pub(crate) use wire::{Fields, Payload};

/// A violation that makes Envoy reject a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field, like `virtual_hosts[0].routes[2].route.weighted_clusters`; empty for the entire message.
    pub path: String,
    /// What was found.
    pub found: String,
    /// What is expected.
    pub expected: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "the message" } else { &self.path };
        write!(f, "{path}: found {}, expected {}", self.found, self.expected)
    }
}

/// The maximum number of violations that one check reports.
const MAX_VIOLATIONS: usize = 100;

/// The rules, compiled on first use.
fn compiled_rules() -> Result<&'static CompiledRules, &'static str> {
    static PLANS: LazyLock<Result<CompiledRules, String>> = LazyLock::new(|| {
        // A temporary pool, which takes several times as much memory as the compiled rules and is dropped afterwards.
        let pool = proto_json::fresh_pool().map_err(|error| error.to_string())?;
        CompiledRules::new(&pool, |name| semantics::semantic_check(name).is_some())
    });
    PLANS.as_ref().map_err(String::as_str)
}

/// Checks the encoded message `bytes` of the type `full_name` (like `envoy.config.cluster.v3.Cluster`).
///
/// An inner `Any` is checked according to its type URL; unknown types and unknown fields are skipped. Types without
/// rules are not inspected. Malformed bytes yield a violation.
pub fn check(full_name: &str, bytes: &[u8]) -> Vec<Violation> {
    match compiled_rules() {
        Ok(compiled_rules) => check::run(compiled_rules, full_name, bytes),
        Err(reason) => vec![Violation {
            path: String::new(),
            found: format!("unreadable descriptors of Envoy's messages: {reason}"),
            expected: "the descriptors embedded in the binary".to_owned(),
        }],
    }
}

#[cfg(test)]
mod tests;
