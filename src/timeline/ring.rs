//! A ring of entries, bounded in entries for each object, in objects and in bytes. The oldest go first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::entry::{Entry, EntryKind, Note};
use crate::api::ObjectKey;

/// The most entries about the versions of one object, and about all objects.
const VERSIONS: usize = 150;

/// The most entries about conditions of one object, and of all: a pod that crashes again and again must not push out what
/// tells about the versions.
const CONDITIONS: usize = 100;

/// The most objects.
const OBJECTS: usize = 20_000;

/// What an entry takes beside its own content: its places in the maps.
const PLACES: usize = 96;

/// What the list of an object takes beside its entries.
const LIST: usize = 160;

/// Which entries are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// All.
    All,
    /// Those of the objects in a namespace, and those that concern all.
    Namespace(Arc<str>),
    /// Those of an object, and those that concern all.
    Object(ObjectKey),
}

/// What was read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reading {
    /// By time.
    pub entries: Vec<Arc<Entry>>,
    /// From when on nothing is missing.
    pub whole_since: Timestamp,
    /// The number of the newest entry of any object; 0 if there is none.
    pub newest: u64,
}

/// The numbers of the entries of an object.
#[derive(Debug)]
struct List {
    versions: VecDeque<u64>,
    conditions: VecDeque<u64>,
    /// From when on nothing is missing.
    whole_since: Timestamp,
}

impl List {
    /// The numbers of the entries that an entry of this kind competes with, and how many there may be.
    fn of(&mut self, kind: EntryKind) -> (&mut VecDeque<u64>, usize) {
        match kind.is_condition() {
            true => (&mut self.conditions, CONDITIONS),
            false => (&mut self.versions, VERSIONS),
        }
    }

    fn is_empty(&self) -> bool {
        self.versions.is_empty() && self.conditions.is_empty()
    }
}

/// The ring.
#[derive(Debug)]
pub(super) struct Ring {
    memory: usize,
    used: usize,
    next: u64,
    entries: BTreeMap<u64, Arc<Entry>>,
    /// The list of each object; that of `None` concerns all.
    lists: BTreeMap<Option<ObjectKey>, List>,
    /// From when on nothing is missing of objects that have no list.
    forgotten: Timestamp,
    /// From when on nothing is missing of any.
    whole_since: Timestamp,
}

impl Ring {
    /// An empty one of at most `memory` bytes, that begins now.
    pub(super) fn new(memory: usize, now: Timestamp) -> Self {
        Self {
            memory,
            used: 0,
            next: 1,
            entries: BTreeMap::new(),
            lists: BTreeMap::new(),
            forgotten: now,
            whole_since: now,
        }
    }

    /// Adds an entry, and removes what has no place any more.
    pub(super) fn push(&mut self, note: Note, now: Timestamp) {
        let number = self.next;
        self.next = self.next.saturating_add(1);
        let (key, at, size) = (note.object.clone(), note.at.unwrap_or(now), note.size() + PLACES);
        let (forgotten, used) = (self.forgotten, &mut self.used);
        let list = self.lists.entry(key).or_insert_with(|| {
            *used += LIST;
            List { versions: VecDeque::new(), conditions: VecDeque::new(), whole_since: forgotten }
        });
        let (numbers, most) = list.of(note.kind);
        numbers.push_back(number);
        let overflow = numbers.front().copied().filter(|_| numbers.len() > most);
        self.entries.insert(number, Arc::new(Entry { number, at, note }));
        self.used += size;
        if let Some(oldest) = overflow {
            self.remove(oldest);
        }
        while self.used > self.memory || self.lists.len() > OBJECTS {
            let Some(oldest) = self.entries.first_key_value().map(|(number, _)| *number) else {
                return;
            };
            self.remove(oldest);
        }
    }

    /// Removes an entry, the oldest of its object or of its object's entries of that kind.
    fn remove(&mut self, number: u64) {
        let Some(entry) = self.entries.remove(&number) else { return };
        self.used = self.used.saturating_sub(entry.note.size() + PLACES);
        self.whole_since = self.whole_since.max(entry.at);
        let key = &entry.note.object;
        let Some(list) = self.lists.get_mut(key) else { return };
        list.of(entry.note.kind).0.pop_front();
        list.whole_since = list.whole_since.max(entry.at);
        if list.is_empty() {
            self.forgotten = self.forgotten.max(list.whole_since);
            self.lists.remove(key);
            self.used = self.used.saturating_sub(LIST);
        }
    }

    /// The entries with a greater number than `after`.
    pub(super) fn read(&self, of: &Of, after: u64) -> Reading {
        let mut entries: Vec<Arc<Entry>> = match of {
            Of::Object(key) => {
                let lists = [Some(key.clone()), None];
                let numbers = lists.iter().filter_map(|key| self.lists.get(key));
                let numbers = numbers.flat_map(|list| list.versions.iter().chain(&list.conditions));
                let newer = numbers.filter(|number| **number > after);
                newer.filter_map(|number| self.entries.get(number).cloned()).collect()
            }
            Of::All => self.newer(after).cloned().collect(),
            Of::Namespace(name) => {
                let inside = self.newer(after).filter(|entry| {
                    entry.note.object.as_ref().is_none_or(|object| object.namespace == *name)
                });
                inside.cloned().collect()
            }
        };
        entries.sort_by_key(|entry| (entry.at, entry.number));
        let whole_since = match of {
            Of::All | Of::Namespace(_) => self.whole_since,
            Of::Object(key) => {
                let lists = [Some(key.clone()), None].map(|key| {
                    self.lists.get(&key).map_or(self.forgotten, |list| list.whole_since)
                });
                lists.into_iter().max().unwrap_or(self.forgotten)
            }
        };
        Reading { entries, whole_since, newest: self.newest() }
    }

    /// The number of the newest entry; 0 if there was none.
    pub(super) fn newest(&self) -> u64 {
        self.next.saturating_sub(1)
    }

    fn newer(&self, after: u64) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.range(after.saturating_add(1)..).map(|(_, entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::Kind;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn key(name: usize) -> ObjectKey {
        ObjectKey::new(Kind::VirtualService, "shop", &format!("web-{name}"))
    }

    fn note(name: usize, text: &str) -> Note {
        Note::of(&key(name), EntryKind::Accepted, text.to_owned())
    }

    fn texts(ring: &Ring, of: &Of) -> Vec<String> {
        ring.read(of, 0).entries.iter().map(|entry| entry.note.text.clone()).collect()
    }

    #[test]
    fn an_object_keeps_its_newest_entries_and_says_from_when_on_they_are_whole() {
        let mut ring = Ring::new(usize::MAX, at(0));
        ring.push(note(0, "quiet"), at(1));
        for n in 0..VERSIONS + 3 {
            ring.push(note(1, &n.to_string()), at(10 + n as u64));
        }
        let busy = ring.read(&Of::Object(key(1)), 0);
        assert_eq!((busy.entries.len(), busy.whole_since), (VERSIONS, at(12)));
        assert_eq!(busy.entries[0].note.text, "3");
        // Another object's list is whole, and so is that of one without entries.
        for name in [0, 7] {
            assert_eq!(ring.read(&Of::Object(key(name)), 0).whole_since, at(0), "{name}");
        }
        assert_eq!(ring.read(&Of::All, 0).whole_since, at(12));
    }

    #[test]
    fn conditions_that_come_and_go_leave_the_versions_in_place() {
        let mut ring = Ring::new(usize::MAX, at(0));
        ring.push(note(1, "version"), at(1));
        for n in 0..1000 {
            let kind = [EntryKind::NoEndpoints, EntryKind::Endpoints][n % 2];
            ring.push(Note::of(&key(1), kind, n.to_string()), at(10 + n as u64));
        }
        let read = ring.read(&Of::Object(key(1)), 0);
        assert_eq!((read.entries.len(), read.whole_since), (1 + CONDITIONS, at(909)));
        assert_eq!(read.entries[0].note.text, "version");
        assert_eq!((&*read.entries[1].note.text, &*read.entries[100].note.text), ("900", "999"));
    }

    #[test]
    fn the_oldest_entries_of_all_objects_give_way_within_the_memory() {
        let size = note(0, "x").size() + PLACES + LIST;
        let mut ring = Ring::new(size * 10, at(0));
        for n in 0..100 {
            ring.push(note(n, "x"), at(1 + n as u64));
            assert!(ring.used <= ring.memory, "{} bytes", ring.used);
        }
        assert_eq!((ring.entries.len(), ring.lists.len()), (10, 10));
        // Of an object that was forgotten it is not claimed that nothing happened before.
        let gone = ring.read(&Of::Object(key(5)), 0);
        assert_eq!((gone.entries.len(), gone.whole_since), (0, at(90)));
        ring.push(note(5, "x"), at(200));
        assert_eq!(ring.read(&Of::Object(key(5)), 0).whole_since, at(91));
        // An entry that does not fit leaves none, and no account of it.
        ring.push(note(0, &"x".repeat(size * 20)), at(300));
        assert_eq!((ring.entries.len(), ring.lists.len(), ring.used), (0, 0, 0));
        assert_eq!(ring.read(&Of::All, 0).whole_since, at(300));
    }

    #[test]
    fn objects_are_bounded_by_number() {
        let mut ring = Ring::new(usize::MAX, at(0));
        (0..OBJECTS + 5).for_each(|n| ring.push(note(n, ""), at(1)));
        assert_eq!(ring.lists.len(), OBJECTS);
    }

    #[test]
    fn entries_are_read_by_time_and_only_the_new_ones() {
        let mut ring = Ring::new(usize::MAX, at(0));
        ring.push(note(1, "second"), at(20));
        ring.push(Note { at: Some(at(10)), ..note(1, "first") }, at(21));
        ring.push(Note::new(EntryKind::Started, "for all".to_owned()), at(30));
        ring.push(note(2, "other"), at(40));
        assert_eq!(texts(&ring, &Of::Object(key(1))), ["first", "second", "for all"]);
        assert_eq!(texts(&ring, &Of::Namespace("far".into())), ["for all"]);
        assert_eq!(texts(&ring, &Of::Namespace("shop".into())).len(), 4);
        let newer = ring.read(&Of::All, 3);
        assert_eq!((newer.entries.len(), newer.newest), (1, 4));
    }
}
