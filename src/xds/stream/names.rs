//! The names that a client asks for.

use std::collections::BTreeSet;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

/// A set of names. Unknown names, which no resource has, are kept only as a hash: a client may ask for very many, and
/// no other stream shares them, whereas the text of a known name is shared. If two names have the same hash, only the
/// client that asked for them is affected: it gets a resource that it did not ask for.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: BTreeSet<Arc<str>>,
    unknown: BTreeSet<u64>,
    /// The bytes of all names together.
    bytes: usize,
    /// The sum of the hashes of all names, which does not depend on their order.
    sum: u64,
}

impl Names {
    /// The memory for a name of which only the hash is kept, in bytes.
    const UNKNOWN: usize = 16;

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.known.contains(name)
            || (!self.unknown.is_empty() && self.unknown.contains(&hash(name)))
    }

    /// Adds a name. `known` says whether a resource has it. Returns whether the name is new.
    pub(crate) fn insert(&mut self, name: &Arc<str>, known: bool) -> bool {
        let hash = hash(name);
        let new = !self.known.contains(name)
            && !self.unknown.contains(&hash)
            && if known { self.known.insert(name.clone()) } else { self.unknown.insert(hash) };
        if new {
            self.bytes += name.len();
            self.sum = self.sum.wrapping_add(hash);
        }
        new
    }

    /// Removes a name. Returns whether it was there.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let had = self.known.remove(name) || self.unknown.remove(&hash(name));
        if had {
            self.bytes = self.bytes.saturating_sub(name.len());
            self.sum = self.sum.wrapping_sub(hash(name));
        }
        had
    }

    /// Whether these are the same names, without looking any of them up.
    pub(crate) fn are(&self, names: &[String]) -> bool {
        let sum = || names.iter().fold(0u64, |sum, name| sum.wrapping_add(hash(name)));
        names.len() == self.len() && sum() == self.sum
    }

    /// Marks these names as known; those that are not in the set are ignored.
    pub(crate) fn learn<'a>(&mut self, names: impl Iterator<Item = &'a Arc<str>>) {
        if self.unknown.is_empty() {
            return;
        }
        for name in names {
            if self.unknown.remove(&hash(name)) {
                self.known.insert(name.clone());
            }
        }
    }

    /// The known names.
    pub(crate) fn known(&self) -> impl Iterator<Item = &Arc<str>> {
        self.known.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len() + self.unknown.len()
    }

    /// The bytes of all names together.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The approximate memory that no other stream shares, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.unknown.len() * Self::UNKNOWN
    }
}

/// The approximate number of bytes that a name takes in a set or a map. A name with more owners than a stream has
/// places for it belongs to a resource, which has its text.
pub(super) fn name_bytes(name: &Arc<str>) -> usize {
    const ENTRY: usize = 32;
    const PLACES: usize = 3;
    let own = Arc::strong_count(name) <= PLACES;
    ENTRY + if own { name.len() + 32 } else { 0 }
}

fn hash(name: &str) -> u64 {
    xxh3_64(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Arc<str> {
        text.into()
    }

    fn known(names: &Names) -> Vec<&str> {
        names.known().map(|name| &**name).collect()
    }

    #[test]
    fn a_known_or_unknown_name_is_contained_until_it_is_removed() {
        let mut names = Names::default();
        assert!(names.insert(&name("a"), true) && names.insert(&name("bb"), false));
        assert!(!names.insert(&name("a"), false) && !names.insert(&name("bb"), true));
        assert_eq!((names.len(), names.bytes(), known(&names)), (2, 3, vec!["a"]));
        assert!(names.contains("a") && names.contains("bb") && !names.contains("c"));
        let are = |list: &[&str]| {
            names.are(&list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        assert!(are(&["bb", "a"]) && !are(&["a", "a"]) && !are(&["a"]) && !are(&["a", "c"]));
        assert!(names.remove("a") && names.remove("bb") && !names.remove("c"));
        assert_eq!((names.len(), names.bytes()), (0, 0));
    }

    #[test]
    fn a_name_that_becomes_known_is_kept_as_text() {
        let mut names = Names::default();
        names.insert(&name("later"), false);
        names.learn([name("other"), name("later")].iter());
        assert_eq!((names.len(), known(&names)), (1, vec!["later"]));
        assert!(names.remove("later"));
        assert_eq!(names.bytes(), 0);
    }

    #[test]
    fn an_unknown_name_takes_almost_no_memory() {
        let mut names = Names::default();
        for n in 0..1000 {
            names.insert(
                &name(&format!("outbound|80||service-{n}.nowhere.svc.cluster.local")),
                false,
            );
        }
        assert!(names.held_bytes() <= 16_000);
        let asked = names.bytes();
        assert!(asked > 40_000, "the names themselves have {asked} bytes");
    }
}
