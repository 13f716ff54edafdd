//! The resources in which two snapshots differ.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::snapshot::{ResourceType, Resources, Snapshot};

/// What happens to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ResourceChange {
    /// It is new.
    Added,
    /// It gets another content.
    Changed,
    /// It goes.
    Removed,
}

/// The type, the name, the virtual host within a route configuration, and what happens.
pub(super) type Place = (ResourceType, String, String, ResourceChange);

/// A resource that differs for some proxies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResourceDifference {
    /// The type.
    pub kind: ResourceType,
    /// The name.
    pub name: String,
    /// The virtual host within a route configuration; empty for other types, and for a whole route configuration.
    pub virtual_host: String,
    /// What happens to it.
    pub change: ResourceChange,
    /// For how many proxies.
    pub proxies: usize,
}

impl ResourceDifference {
    pub(super) fn new((kind, name, virtual_host, change): Place, proxies: usize) -> Self {
        Self { kind, name, virtual_host, change, proxies }
    }
}

/// Adds the differences between two snapshots that `count` proxies have. Returns whether there is one.
pub(super) fn compare(
    old: &Snapshot,
    new: &Snapshot,
    count: usize,
    found: &mut BTreeMap<Place, usize>,
) -> bool {
    let mut places = Vec::new();
    for kind in ResourceType::OF_SNAPSHOT {
        let (old, new) = (old.get(kind), new.get(kind));
        for (name, resource) in new.iter() {
            match old.get(name) {
                None => places.push((kind, name.to_string(), String::new(), ResourceChange::Added)),
                Some(other) if other.version == resource.version => {}
                Some(_) => compare_tables(kind, name, old, new, &mut places),
            }
        }
        let gone = old.iter().filter(|(name, _)| new.get(name).is_none());
        places.extend(
            gone.map(|(name, _)| (kind, name.to_string(), String::new(), ResourceChange::Removed)),
        );
    }
    let differ = !places.is_empty();
    for place in places {
        *found.entry(place).or_default() += count;
    }
    differ
}

/// The virtual hosts in which two versions of a route configuration differ; another resource differs as a whole.
fn compare_tables(
    kind: ResourceType,
    name: &str,
    old: &Resources,
    new: &Resources,
    places: &mut Vec<Place>,
) {
    let tables = (
        old.get(name).and_then(|resource| resource.table()),
        new.get(name).and_then(|resource| resource.table()),
    );
    let (Some(old), Some(new)) = tables else {
        places.push((kind, name.to_owned(), String::new(), ResourceChange::Changed));
        return;
    };
    let [old, new] = [old, new].map(|table| {
        let hosts = table.iter().map(|host| (&*host.name, &host.field));
        hosts.collect::<BTreeMap<&str, &Bytes>>()
    });
    let changed = new.iter().filter_map(|(host, field)| match old.get(host) {
        None => Some((host, ResourceChange::Added)),
        Some(other) if other == field => None,
        Some(_) => Some((host, ResourceChange::Changed)),
    });
    let gone = old.keys().filter(|host| !new.contains_key(*host));
    let all = changed.chain(gone.map(|host| (host, ResourceChange::Removed)));
    places.extend(all.map(|(host, change)| (kind, name.to_owned(), (*host).to_owned(), change)));
}
