//! What Envoy would refuse in an encoded message, found before it is sent.
//!
//! The rules are those that stand in Envoy's own protos (protoc-gen-validate's `validate.rules`, as Envoy's C++ reads them) and some
//! that Envoy's code adds. They are compiled once per process; a check then walks the wire bytes and builds no message.

mod check;
mod format;
mod plan;
pub mod re2;
mod rules;
mod semantics;
mod wire;

use std::fmt;

use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, ReflectMessage as _};

pub use format::with_literal_percents;

/// One thing in a message that Envoy would refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field, as `virtual_hosts[0].routes[2].route.weighted_clusters`; empty for the message as a whole.
    pub path: String,
    /// What is there.
    pub found: String,
    /// What would be right.
    pub expected: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "the message" } else { &self.path };
        write!(f, "{path}: found {}, expected {}", self.found, self.expected)
    }
}

/// The most that one check reports: what is wrong in a thousand places is told well enough by some of them.
const MAX_VIOLATIONS: usize = 100;

/// Checks the encoded message `bytes` of the type `full_name` (as `envoy.config.cluster.v3.Cluster`).
///
/// An `Any` inside is checked as what its type URL says; one of a type that weir does not know is passed over, as are unknown fields.
/// A type without any rule is not looked into. Bytes that are no such message give a violation.
pub fn check(full_name: &str, bytes: &[u8]) -> Vec<Violation> {
    match plan::plans() {
        Ok(plans) => check::run(plans, full_name, bytes),
        Err(reason) => vec![Violation {
            path: String::new(),
            found: format!("the descriptors of Envoy's messages, which cannot be read: {reason}"),
            expected: "a binary with the descriptors it was built with".to_owned(),
        }],
    }
}

/// As [`check`], for a message that is not encoded yet.
pub fn check_message(message: &DynamicMessage) -> Vec<Violation> {
    check(message.descriptor().full_name(), &message.encode_to_vec())
}

#[cfg(test)]
mod tests;
