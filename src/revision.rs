//! Revisions: those of contents distinguish them, those of published meshes count them.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

/// Identifies one content of an object, or of something derived from objects. No two contents in a process share a
/// revision, even if they belong to different objects.
///
/// A value derived from several inputs keeps its revision as long as their revisions are the same, and gets a fresh one
/// otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(NonZeroU64);

impl Revision {
    /// A revision that is new in this process. This is the only constructor.
    pub(crate) fn fresh() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(NonZeroU64::MIN.saturating_add(LAST.fetch_add(1, Ordering::Relaxed)))
    }
}

/// The number of a mesh that was published to the proxies: 1 for the first, incremented with each change. It identifies
/// what a proxy has ACKed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshRevision(u64);

impl MeshRevision {
    /// Before the first mesh.
    pub(crate) const NONE: Self = Self(0);

    /// The number of the mesh after this one.
    #[must_use]
    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The number, for output.
    pub(crate) fn get(self) -> u64 {
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
