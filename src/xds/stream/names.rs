//! The names that a client asks for.

use std::collections::BTreeSet;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

/// A set of names. Of those that nothing is known of only a hash is kept: a client may ask for very many, and they are
/// all its own, whereas known ones are shared with all who have them. Were two names to have one hash, their client
/// would get what it did not ask for, and nobody else.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: BTreeSet<Arc<str>>,
    unknown: BTreeSet<u64>,
    /// The bytes of all names together.
    bytes: usize,
    /// The sum of the hashes of all names, whatever their order.
    sum: u64,
}

impl Names {
    /// What a name of which only a hash is kept takes, in bytes.
    const UNKNOWN: usize = 16;

    pub fn contains(&self, name: &str) -> bool {
        self.known.contains(name)
            || (!self.unknown.is_empty() && self.unknown.contains(&hash(name)))
    }

    /// Adds a name, of which something is known or not. Says whether it is new.
    pub fn insert(&mut self, name: &Arc<str>, known: bool) -> bool {
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

    /// Takes a name out. Says whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let had = self.known.remove(name) || self.unknown.remove(&hash(name));
        if had {
            self.bytes = self.bytes.saturating_sub(name.len());
            self.sum = self.sum.wrapping_sub(hash(name));
        }
        had
    }

    /// Whether these are the same names, without looking any of them up.
    pub fn are(&self, names: &[String]) -> bool {
        let sum = || names.iter().fold(0u64, |sum, name| sum.wrapping_add(hash(name)));
        names.len() == self.len() && sum() == self.sum
    }

    /// Something is known of these now, whether they are asked for or not.
    pub fn learn<'a>(&mut self, names: impl Iterator<Item = &'a Arc<str>>) {
        if self.unknown.is_empty() {
            return;
        }
        for name in names {
            if self.unknown.remove(&hash(name)) {
                self.known.insert(name.clone());
            }
        }
    }

    /// Those of which something is known.
    pub fn known(&self) -> impl Iterator<Item = &Arc<str>> {
        self.known.iter()
    }

    pub fn len(&self) -> usize {
        self.known.len() + self.unknown.len()
    }

    /// The bytes of all names together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What it takes that no other stream shares, in bytes: about.
    pub fn held_bytes(&self) -> usize {
        self.unknown.len() * Self::UNKNOWN
    }
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
    fn a_name_is_there_until_it_is_taken_out_whatever_is_known_of_it() {
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
    fn what_becomes_known_is_there_by_name() {
        let mut names = Names::default();
        names.insert(&name("later"), false);
        names.learn([name("other"), name("later")].iter());
        assert_eq!((names.len(), known(&names)), (1, vec!["later"]));
        assert!(names.remove("later"));
        assert_eq!(names.bytes(), 0);
    }

    #[test]
    fn a_name_that_nothing_knows_takes_next_to_nothing() {
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
