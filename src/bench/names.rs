//! Names and versions of resources, kept once for all proxies: each proxy stores numbers.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::proto::Request;

/// How many distinct lists of names are kept in encoded form; a mesh has one for each set of services that proxies see.
const MAX_LISTS: usize = 256;

/// A set of numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Numbers(Vec<u64>);

impl Numbers {
    /// Adds a number and says whether it is new.
    pub(crate) fn insert(&mut self, number: u32) -> bool {
        let (at, bit) = place(number);
        if at >= self.0.len() {
            self.0.resize(at + 1, 0);
        }
        self.0.get_mut(at).is_some_and(|word| {
            let is_new = *word & bit == 0;
            *word |= bit;
            is_new
        })
    }

    /// Removes a number and says whether it was in the set.
    pub(crate) fn remove(&mut self, number: u32) -> bool {
        let (at, bit) = place(number);
        self.0.get_mut(at).is_some_and(|word| {
            let was_in = *word & bit != 0;
            *word &= !bit;
            was_in
        })
    }

    /// Whether all of these are in `other` as well.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        let theirs = other.0.iter().copied().chain(std::iter::repeat(0));
        self.0.iter().zip(theirs).all(|(own, other)| own & !other == 0)
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// In order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        (0u32..).zip(&self.0).flat_map(|(at, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 64 + bit)
        })
    }
}

fn place(number: u32) -> (usize, u64) {
    ((number / 64) as usize, 1 << (number % 64))
}

/// Texts by number and numbers by text.
#[derive(Debug, Default)]
struct Known {
    numbers: HashMap<Arc<[u8]>, u32>,
    texts: Vec<Arc<[u8]>>,
}

/// Texts that are kept once.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: RwLock<Known>,
    /// The field `resource_names` for a set of names, encoded.
    lists: Mutex<HashMap<Numbers, Bytes>>,
}

impl Names {
    /// The number of a text.
    pub(crate) fn number(&self, text: &[u8]) -> u32 {
        if let Some(number) = self.known.read().numbers.get(text) {
            return *number;
        }
        let mut known = self.known.write();
        let next = u32::try_from(known.texts.len()).unwrap_or(u32::MAX);
        let shared: Arc<[u8]> = text.into();
        let number = *known.numbers.entry(shared.clone()).or_insert(next);
        if number == next {
            known.texts.push(shared);
        }
        number
    }

    /// The text of a number.
    pub(crate) fn text(&self, number: u32) -> Arc<[u8]> {
        let known = self.known.read();
        known.texts.get(number as usize).cloned().unwrap_or_default()
    }

    /// These names as `repeated string resource_names = 3`, which is the same for many proxies.
    pub(crate) fn list(&self, of: &Numbers) -> Bytes {
        let mut lists = self.lists.lock();
        if let Some(list) = lists.get(of) {
            return list.clone();
        }
        if lists.len() >= MAX_LISTS {
            lists.clear();
        }
        let mut encoded = Request::default();
        of.iter().for_each(|number| encoded.repeated(3, &self.text(number)));
        let encoded = encoded.done();
        lists.insert(of.clone(), encoded.clone());
        encoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_a_set() {
        let (mut some, mut all) = (Numbers::default(), Numbers::default());
        assert!(some.insert(3) && some.insert(200) && !some.insert(3));
        assert!([200, 3, 64].into_iter().all(|number| all.insert(number)));
        assert_eq!(some.iter().collect::<Vec<_>>(), [3, 200]);
        assert!(some.is_within(&all) && !all.is_within(&some));
        assert!(some.remove(3) && some.remove(200) && !some.remove(9) && some.is_empty());
    }

    #[test]
    fn a_text_has_one_number() {
        let names = Names::default();
        assert_eq!([names.number(b"a"), names.number(b"b"), names.number(b"a")], [0, 1, 0]);
        assert_eq!(&*names.text(1), b"b");
        let mut both = Numbers::default();
        both.insert(0);
        both.insert(1);
        assert_eq!(&names.list(&both)[..], b"\x1a\x01a\x1a\x01b");
    }
}
