//! What a client rejected, and which names its error message names.

use std::sync::Arc;

use crate::snapshot::Provenance;
use crate::text::prefix;

/// The maximum length of an error message that is kept, in bytes.
const MAX_MESSAGE: usize = 2048;

/// A resource that the client rejected, and that is not sent again before it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rejection {
    pub version: u64,
    /// The objects behind what it changed.
    pub objects: Provenance,
    pub message: Arc<str>,
}

/// Whether a message mentions this name, and not only a longer name that contains it. Numbers and names of one or two
/// bytes do not count, because they may occur by chance.
pub(super) fn is_named(message: &str, name: &str) -> bool {
    if name.len() < 3 || name.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    message.match_indices(name).any(|(at, _)| {
        let before = message.as_bytes().get(..at).and_then(<[u8]>::last);
        let mut after = message.as_bytes().get(at + name.len()..).unwrap_or_default().iter();
        let next = match after.next() {
            // The end of the sentence, or the next label of a host.
            Some(b'.' | b':') => after.next(),
            next => next,
        };
        !before.is_some_and(|byte| continues_name(*byte) || *byte == b'.')
            && !next.is_some_and(|byte| continues_name(*byte))
    })
}

/// Whether a byte before or after a name makes it a part of a longer one.
fn continues_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'|' | b'_' | b'-' | b':')
}

/// The part of a message that is kept.
pub(super) fn cut(message: &str) -> &str {
    prefix(message, MAX_MESSAGE)
}
