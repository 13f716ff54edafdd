//! Numbers that tell contents apart, and numbers that count the published meshes.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

/// Identifies one content of an object, or of something that is made from objects. Two contents never have the same
/// revision, whatever they are contents of.
///
/// Whatever is made from several objects, or from an object and something else, keeps its revision as long as it is
/// made from the same, and gets a fresh one otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(NonZeroU64);

impl Revision {
    /// A revision that nothing in this process has had before. There is no other way to get one.
    pub fn fresh() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(NonZeroU64::MIN.saturating_add(LAST.fetch_add(1, Ordering::Relaxed)))
    }
}

/// The number of a mesh that was published to the proxies: 1 for the first, and one more for each change. It says what a
/// proxy has ACKed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshRevision(u64);

impl MeshRevision {
    /// Before the first mesh.
    pub const NONE: Self = Self(0);

    /// The number of the mesh after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The number, to print it.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<u64> for MeshRevision {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for MeshRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn fresh_revisions_differ_on_all_threads_and_grow_on_each() {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| (0..1000).map(|_| Revision::fresh()).collect::<Vec<_>>())
            })
            .collect();
        let all: Vec<Vec<Revision>> =
            threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(all.iter().all(|own| own.is_sorted()));
        assert_eq!(all.iter().flatten().collect::<BTreeSet<_>>().len(), 4000);
    }
}
