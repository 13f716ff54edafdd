//! The table of names of a scope as a map of encoded parts, one for each host, so that changing a host costs only the work
//! for that host.

use std::ops::Bound;

use bytes::Bytes;
use imbl::OrdMap;
use xxhash_rust::xxh3::xxh3_64;

use crate::mesh::Host;

/// The names that proxies may look up, by the host of their service. Cheap to clone; a changed copy shares what did not
/// change.
#[derive(Clone, Debug, Default)]
pub(crate) struct NameTable {
    parts: OrdMap<Host, Part>,
    len: usize,
    /// The sum of the parts' hashes, which does not depend on their order.
    sum: u64,
}

#[derive(Clone, Debug)]
struct Part {
    bytes: Bytes,
    hash: u64,
}

impl PartialEq for NameTable {
    fn eq(&self, other: &Self) -> bool {
        (self.len, self.sum) == (other.len, other.sum)
    }
}

impl NameTable {
    /// A hash of its content: the same in every process for the same content.
    pub(crate) fn version(&self) -> u64 {
        self.sum
    }

    /// The length of the encoded message, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Replaces the names of a host by these, encoded as a part of the table; none if it is empty.
    pub(crate) fn set(&mut self, host: &Host, bytes: Vec<u8>) {
        let hash = xxh3_64(&bytes);
        if self.parts.get(host).is_some_and(|old| old.hash == hash) {
            return;
        }
        let old = if bytes.is_empty() {
            self.parts.remove(host)
        } else {
            self.len += bytes.len();
            self.sum = self.sum.wrapping_add(hash);
            self.parts.insert(host.clone(), Part { bytes: bytes.into(), hash })
        };
        if let Some(old) = old {
            self.len -= old.bytes.len();
            self.sum = self.sum.wrapping_sub(old.hash);
        }
    }

    /// Up to `count` parts that follow the one of the host `after`, with their hosts.
    pub(super) fn after(&self, after: Option<&Host>, count: usize) -> Vec<(Host, Bytes)> {
        let start = after.map_or(Bound::Unbounded, |host| Bound::Excluded(host.clone()));
        let parts = self.parts.range::<_, Host>((start, Bound::Unbounded)).take(count);
        parts.map(|(host, part)| (host.clone(), part.bytes.clone())).collect()
    }
}
