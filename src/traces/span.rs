//! Spans as OTLP has them.

use std::hash::{BuildHasher as _, RandomState};

use k8s_openapi::jiff::Timestamp;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{Span, span};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

/// Makes the ids of traces and spans.
#[derive(Debug)]
pub(super) struct Ids {
    seed: u64,
    next: u64,
}

impl Ids {
    /// Ids that no other process makes.
    pub(super) fn random() -> Self {
        // The standard library seeds its hash maps from the system's randomness.
        Self { seed: RandomState::new().hash_one(()), next: 0 }
    }

    fn count(&mut self) -> [u8; 8] {
        self.next = self.next.wrapping_add(1);
        self.next.to_be_bytes()
    }

    /// The id of a trace.
    pub(super) fn trace(&mut self) -> [u8; 16] {
        xxh3_128_with_seed(&self.count(), self.seed).max(1).to_be_bytes()
    }

    /// The id of a span.
    pub(super) fn span(&mut self) -> [u8; 8] {
        xxh3_64_with_seed(&self.count(), self.seed).max(1).to_be_bytes()
    }
}

/// Nanoseconds since 1970; 0 for what was before.
pub(super) fn nanoseconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_nanosecond()).unwrap_or(0)
}

/// An attribute.
pub(super) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.into()))
}

/// An attribute.
pub(super) fn number(key: &str, value: impl TryInto<i64>) -> KeyValue {
    attribute(key, any_value::Value::IntValue(value.try_into().unwrap_or(i64::MAX)))
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    let value = Some(AnyValue { value: Some(value) });
    KeyValue { key: key.to_owned(), value, ..Default::default() }
}

/// A span within weir. The end is not before the start.
pub(super) fn between(name: &str, start: Timestamp, end: Timestamp) -> Span {
    Span {
        name: name.to_owned(),
        kind: span::SpanKind::Internal.into(),
        start_time_unix_nano: nanoseconds(start),
        end_time_unix_nano: nanoseconds(end.max(start)),
        ..Default::default()
    }
}

/// An event of a span.
pub(super) fn event(name: &str, at: Timestamp, attributes: Vec<KeyValue>) -> span::Event {
    let (name, time_unix_nano) = (name.to_owned(), nanoseconds(at));
    span::Event { time_unix_nano, name, attributes, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_different_in_a_process_and_between_processes() {
        let mut makers = [Ids::random(), Ids::random()];
        let spans: BTreeSet<_> =
            makers.iter_mut().flat_map(|ids| [0; 500].map(|_| ids.span())).collect();
        let traces: BTreeSet<_> =
            makers.iter_mut().flat_map(|ids| [0; 500].map(|_| ids.trace())).collect();
        assert_eq!((spans.len(), traces.len()), (1000, 1000));
    }
}
