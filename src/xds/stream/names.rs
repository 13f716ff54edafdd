//! The names that a client asks for.

use std::collections::BTreeSet;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::snapshot::{Cursor, Resources};

/// A set of names. Most clients ask for nearly all names that resources have, so these are described by their difference
/// from the names of a shared map.
///
/// Unknown names, which no resource has, are kept only as a hash: a client may ask for very many, and no other stream
/// shares them, whereas the text of a known name is shared. If two names have the same hash, only the client that asked
/// for them is affected: it gets a resource that it did not ask for.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The resources whose names were learned last.
    learned: Option<Resources>,
    /// Whether the set contains all names of `learned` except those in `without`.
    has_learned: bool,
    without: BTreeSet<Arc<str>>,
    /// The other known names.
    known: BTreeSet<Arc<str>>,
    unknown: BTreeSet<u64>,
    len: usize,
    /// The bytes of all names together.
    bytes: usize,
    /// The sum of the hashes of all names, which does not depend on their order.
    sum: u64,
}

impl Names {
    /// The memory for a name of which only the hash is kept, in bytes.
    const UNKNOWN: usize = 16;

    /// How many known names are kept in a set of their own, however many resources there are.
    const FEW: usize = 16;

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.known.contains(name)
            || (self.has_learned && self.is_learned(name) && !self.without.contains(name))
            || (!self.unknown.is_empty() && self.unknown.contains(&hash(name)))
    }

    /// Whether one of the resources whose names were learned last has this name.
    fn is_learned(&self, name: &str) -> bool {
        self.learned.as_ref().is_some_and(|learned| learned.contains_key(name))
    }

    /// Like [`Names::contains`], with a cursor of [`Names::cursor`].
    pub(crate) fn contains_at(&self, cursor: &mut Option<Cursor<'_>>, name: &str) -> bool {
        match cursor {
            Some(learned) if self.known.is_empty() && self.unknown.is_empty() => {
                learned.get(name).is_some() && !self.without.contains(name)
            }
            _ => self.contains(name),
        }
    }

    /// Looks up names among those that were learned last, if the set is described by them.
    pub(crate) fn cursor(&self) -> Option<Cursor<'_>> {
        self.learned.as_ref().filter(|_| self.has_learned).map(Resources::cursor)
    }

    /// Whether the set has exactly the names of `resources`, a cheap check; `false` if unknown.
    pub(crate) fn are_those_of(&self, resources: &Resources) -> bool {
        self.has_learned
            && self.without.is_empty()
            && self.known.is_empty()
            && self.unknown.is_empty()
            && self.learned.as_ref().is_some_and(|learned| learned.ptr_eq(resources))
    }

    /// Adds names, each with whether a resource has it. Returns those that are new.
    pub(crate) fn extend(&mut self, mut names: Vec<(Arc<str>, bool)>) -> Vec<Arc<str>> {
        if self.len > 0 || self.learned.is_some() {
            names.retain(|(name, known)| self.insert(name, *known));
            return names.into_iter().map(|(name, _)| name).collect();
        }
        // A set that is made at once from sorted names needs hardly any comparison.
        names.sort_unstable();
        names.dedup_by(|next, name| next.0 == name.0);
        for (name, known) in &names {
            let hash = hash(name);
            if !known {
                self.unknown.insert(hash);
            }
            self.bytes += name.len();
            self.sum = self.sum.wrapping_add(hash);
        }
        self.len = names.len();
        self.known =
            names.iter().filter(|(_, known)| *known).map(|(name, _)| name.clone()).collect();
        names.into_iter().map(|(name, _)| name).collect()
    }

    /// Adds a name. `known` says whether a resource has it. Returns whether the name is new.
    pub(crate) fn insert(&mut self, name: &Arc<str>, known: bool) -> bool {
        if self.contains(name) {
            return false;
        }
        let hash = hash(name);
        let learned = self.is_learned(name);
        if learned && self.has_learned {
            self.without.remove(name);
        } else if learned || known {
            self.known.insert(name.clone());
        } else {
            self.unknown.insert(hash);
        }
        self.len += 1;
        self.bytes += name.len();
        self.sum = self.sum.wrapping_add(hash);
        true
    }

    /// Removes a name. Returns whether it was there.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        if !self.contains(name) {
            return false;
        }
        let learned = self.learned.as_ref().filter(|_| self.has_learned);
        match learned.and_then(|learned| learned.get(name)) {
            Some(resource) => _ = self.without.insert(resource.name.clone()),
            None => _ = self.known.remove(name) || self.unknown.remove(&hash(name)),
        }
        self.len -= 1;
        self.bytes = self.bytes.saturating_sub(name.len());
        self.sum = self.sum.wrapping_sub(hash(name));
        true
    }

    /// Whether these are the same names, without looking any of them up.
    pub(crate) fn are(&self, names: &[String]) -> bool {
        names.len() == self.len()
            && names.iter().fold(0u64, |sum, name| sum.wrapping_add(hash(name))) == self.sum
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

    /// Marks the names of these resources as known, in time proportional to their difference from the last ones.
    pub(crate) fn learn_from(&mut self, resources: &Resources) {
        if self.len == 0 || self.learned.as_ref().is_some_and(|learned| learned.ptr_eq(resources)) {
            return;
        }
        match self.learned.take() {
            Some(learned) if self.has_learned => self.move_to(&learned, resources),
            Some(learned) => {
                let mut added = Vec::new();
                learned.diff(resources, |name, old, _| added.extend(old.is_none().then_some(name)));
                self.learn(added.into_iter());
            }
            None => self.learn(resources.keys()),
        }
        if !self.has_learned
            && self.known.len() > Self::FEW
            && self.known.len() * 2 > resources.len()
        {
            // Both are sorted, so each is walked once.
            let mut known = std::mem::take(&mut self.known).into_iter().peekable();
            let (mut others, mut without) = (Vec::new(), Vec::new());
            for name in resources.keys() {
                others.extend(std::iter::from_fn(|| known.next_if(|known| known < name)));
                if known.next_if_eq(name).is_none() {
                    without.push(name.clone());
                }
            }
            others.extend(known);
            self.known = others.into_iter().collect();
            self.without.extend(without);
            self.has_learned = true;
        }
        self.learned = Some(resources.clone());
    }

    /// Describes the same set by its difference from `new` instead of `old`.
    fn move_to(&mut self, old: &Resources, new: &Resources) {
        let Self { without, known, unknown, .. } = self;
        old.diff(new, |name, old, new| {
            let gone = old.is_some() && new.is_none();
            let added = old.is_none() && new.is_some();
            if gone && !without.remove(name) {
                known.insert(name.clone());
            } else if added && !known.remove(name) && !unknown.remove(&hash(name)) {
                without.insert(name.clone());
            }
        });
    }

    /// The known names in order.
    pub(crate) fn known(&self) -> impl Iterator<Item = &Arc<str>> {
        let learned = self.learned.iter().filter(|_| self.has_learned).flat_map(Resources::keys);
        let mut learned = learned
            .filter(|name| self.without.is_empty() || !self.without.contains(*name))
            .peekable();
        let mut others = self.known.iter().peekable();
        std::iter::from_fn(move || match (learned.peek(), others.peek()) {
            (Some(name), Some(other)) if other < name => others.next(),
            (Some(_), _) => learned.next(),
            (None, _) => others.next(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
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
    use crate::snapshot::Resource;
    use bytes::Bytes;

    fn name(text: &str) -> Arc<str> {
        text.into()
    }

    fn owned(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn known(names: &Names) -> Vec<&str> {
        names.known().map(|name| &**name).collect()
    }

    fn assert_known(names: &Names, texts: &[&str]) {
        assert_eq!(known(names), texts);
        assert!(texts.iter().all(|text| names.contains(text)));
    }

    #[test]
    fn a_known_or_unknown_name_is_contained_until_it_is_removed() {
        let mut names = Names::default();
        assert!(names.insert(&name("a"), true) && names.insert(&name("bb"), false));
        assert!(!names.insert(&name("a"), false) && !names.insert(&name("bb"), true));
        assert_eq!((names.len(), names.bytes(), known(&names)), (2, 3, vec!["a"]));
        assert!(names.contains("a") && names.contains("bb") && !names.contains("c"));
        assert!(names.are(&owned(&["bb", "a"])) && !names.are(&owned(&["a", "a"])));
        assert!(!names.are(&owned(&["a"])) && !names.are(&owned(&["a", "c"])));
        assert!(names.remove("a") && names.remove("bb") && !names.remove("c"));
        assert_eq!((names.len(), names.bytes()), (0, 0));
    }

    #[test]
    fn names_added_at_once_are_those_added_one_by_one() {
        let asked = [("d", true), ("b", false), ("a", true), ("b", false), ("c", true)]
            .map(|(text, known)| (name(text), known));
        let (mut all, mut each) = (Names::default(), Names::default());
        let new = all.extend(asked.to_vec());
        assert_eq!(new, ["a", "b", "c", "d"].map(name));
        asked.iter().for_each(|(name, known)| _ = each.insert(name, *known));
        assert_eq!((&all.known, &all.unknown), (&each.known, &each.unknown));
        assert_eq!((all.len, all.bytes, all.sum), (each.len, each.bytes, each.sum));
        let more = vec![(name("e"), true), (name("a"), true)];
        assert_eq!(all.extend(more), [name("e")]);
        assert_eq!(known(&all), ["a", "c", "d", "e"]);
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

    fn resources(names: &[&str]) -> Resources {
        names.iter().map(|name| Resource::new(*name, Bytes::new(), Arc::default())).collect()
    }

    #[test]
    fn names_that_resources_have_are_shared_with_them() {
        let all: Vec<String> = (0..100).map(|n| format!("name-{n:03}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let mut names = Names::default();
        all.iter().skip(1).chain(&["old", "new"]).for_each(|text| {
            names.insert(&name(text), *text == "old");
        });
        names.learn_from(&resources(&all));
        assert_eq!((names.known.len(), names.without.len(), names.unknown.len()), (1, 1, 1));
        assert_known(&names, &[&all[1..], &["old"]].concat());
        assert!(!names.contains(all[0]) && names.len() == 101);

        assert!(names.remove(all[7]) && !names.remove(all[7]) && !names.remove(all[0]));
        assert!(names.insert(&name(all[0]), true) && !names.insert(&name(all[0]), true));
        assert_known(&names, &[&all[..7], &all[8..], &["old"]].concat());

        // A name that goes stays asked for, and one that comes is asked for only if it was before.
        names.learn_from(&resources(&[&all[..50], &["new", "other"]].concat()));
        assert_known(&names, &[&all[..7], &all[8..], &["new", "old"]].concat());
        assert!(!names.contains("other") && !names.contains(all[7]));
        names.learn_from(&resources(&all));
        assert_known(&names, &[&all[..7], &all[8..], &["new", "old"]].concat());
        let asked: Vec<String> = known(&names).into_iter().map(str::to_owned).collect();
        assert!(names.are(&asked) && names.len() == asked.len());
        assert_eq!(names.bytes(), asked.iter().map(String::len).sum::<usize>());
    }
}
