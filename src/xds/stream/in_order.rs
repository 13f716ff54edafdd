//! Takes names out of a sorted map or set when they come in about their order.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::sync::Arc;

/// The entries of a map from which names are taken. One that follows the last one costs a comparison instead of a search, and
/// the map need not be kept in balance while most of it is taken.
pub(super) struct InOrder<V, I: Iterator<Item = (Arc<str>, V)>> {
    next: Peekable<I>,
    /// The entries before the last name that were not taken.
    passed: BTreeMap<Arc<str>, V>,
}

impl<V, I: Iterator<Item = (Arc<str>, V)>> InOrder<V, I> {
    /// The value under a name.
    pub(crate) fn take(&mut self, name: &Arc<str>) -> Option<V> {
        while let Some((first, _)) = self.next.peek() {
            // Most names are shared, so that their text need not be read.
            if !Arc::ptr_eq(first, name) {
                if first > name {
                    break;
                }
                if first < name {
                    self.passed.extend(self.next.next());
                    continue;
                }
            }
            return self.next.next().map(|(_, value)| value);
        }
        self.passed.remove(name)
    }

    /// What was not taken.
    pub(crate) fn rest(self) -> impl Iterator<Item = (Arc<str>, V)> {
        self.passed.into_iter().chain(self.next)
    }
}

/// Takes names out of a map.
pub(super) fn in_order<V>(
    map: BTreeMap<Arc<str>, V>,
) -> InOrder<V, impl Iterator<Item = (Arc<str>, V)>> {
    InOrder { next: map.into_iter().peekable(), passed: BTreeMap::new() }
}

/// Takes names out of a set.
pub(super) fn names_in_order(
    set: BTreeSet<Arc<str>>,
) -> InOrder<(), impl Iterator<Item = (Arc<str>, ())>> {
    InOrder { next: set.into_iter().map(|name| (name, ())).peekable(), passed: BTreeMap::new() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_taken_in_any_order_is_what_a_map_has(
            present in proptest::collection::btree_map("[a-d]{1,2}", 0..9_u8, 0..20),
            asked in proptest::collection::vec("[a-d]{1,2}", 0..20),
        ) {
            let mut map: BTreeMap<Arc<str>, u8> =
                present.into_iter().map(|(name, value)| (name.into(), value)).collect();
            let mut names = in_order(map.clone());
            for name in asked {
                let name = name.into();
                prop_assert_eq!(names.take(&name), map.remove(&name));
            }
            prop_assert_eq!(names.rest().collect::<BTreeMap<_, _>>(), map);
        }
    }
}
