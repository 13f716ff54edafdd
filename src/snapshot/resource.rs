//! Encoded resources, and maps of them with structural sharing.

use std::cmp::Ordering;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use imbl::ordmap::RangedIter;
use imbl::shared_ptr::DefaultSharedPtr;
use xxhash_rust::xxh3::xxh3_64;

use super::provenance::{Provenance, provenance};
use super::{ClusterRefs, EncodedVirtualHost, NameTable, RouteTable};
use crate::api::ObjectKey;

/// An encoded resource.
#[derive(Clone, Debug)]
pub struct Resource {
    /// The name.
    pub name: Arc<str>,
    /// A hash of its content: the same in every process for the same content.
    pub version: u64,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    Message { bytes: Bytes, clusters: ClusterRefs, objects: Provenance },
    Routes(RouteTable),
    Names(NameTable),
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.name == other.name
    }
}

// With it, comparing two `Arc`s looks at their addresses first.
impl Eq for Resource {}

impl Resource {
    /// The resource with these bytes, made from `objects`.
    pub(crate) fn new(name: impl Into<Arc<str>>, bytes: Bytes, objects: Provenance) -> Arc<Self> {
        Self::with_cluster_refs(name, bytes, ClusterRefs::default(), objects)
    }

    /// A listener with these bytes that references `clusters`.
    pub(crate) fn with_cluster_refs(
        name: impl Into<Arc<str>>,
        bytes: Bytes,
        clusters: ClusterRefs,
        objects: Provenance,
    ) -> Arc<Self> {
        let version = xxh3_64(&bytes);
        Arc::new(Self {
            name: name.into(),
            version,
            body: Body::Message { bytes, clusters, objects },
        })
    }

    /// The route configuration of these virtual hosts.
    pub(crate) fn routes(name: impl Into<Arc<str>>, table: RouteTable) -> Arc<Self> {
        Arc::new(Self { name: name.into(), version: table.version(), body: Body::Routes(table) })
    }

    /// The table of these names. Like Istiod's, it has no name of its own.
    pub(crate) fn names(table: NameTable) -> Arc<Self> {
        Arc::new(Self { name: "".into(), version: table.version(), body: Body::Names(table) })
    }

    /// The virtual hosts of a route configuration; `None` for any other type.
    pub fn table(&self) -> Option<&RouteTable> {
        match &self.body {
            Body::Routes(table) => Some(table),
            Body::Message { .. } | Body::Names(_) => None,
        }
    }

    /// Whether a listener or route configuration references a cluster.
    pub(crate) fn routes_to(&self, cluster: &str) -> bool {
        match &self.body {
            Body::Message { clusters, .. } => clusters.contains(cluster),
            Body::Routes(table) => table.routes_to(cluster),
            Body::Names(_) => false,
        }
    }

    /// The clusters that a listener or route configuration references, sorted and unique.
    pub(crate) fn clusters(&self) -> Box<dyn Iterator<Item = &Arc<str>> + '_> {
        match &self.body {
            Body::Message { clusters, .. } => Box::new(clusters.iter()),
            Body::Routes(table) => Box::new(table.clusters()),
            Body::Names(_) => Box::new(std::iter::empty()),
        }
    }

    /// The clusters of a resource that is not a route configuration.
    pub(crate) fn cluster_refs(&self) -> ClusterRefs {
        match &self.body {
            Body::Message { clusters, .. } => clusters.clone(),
            Body::Routes(_) | Body::Names(_) => ClusterRefs::default(),
        }
    }

    /// The objects that a resource was made from; for a route configuration, those of its virtual hosts.
    pub(crate) fn objects(&self) -> Box<dyn Iterator<Item = &ObjectKey> + '_> {
        match &self.body {
            Body::Message { objects, .. } => Box::new(objects.iter()),
            Body::Routes(table) => Box::new(table.iter().flat_map(|host| host.objects.iter())),
            Body::Names(_) => Box::new(std::iter::empty()),
        }
    }

    /// The objects behind the difference from `old`: those of the virtual hosts that differ, if both are route
    /// configurations.
    pub(crate) fn objects_changed_since(&self, old: Option<&Self>) -> Provenance {
        let Some((new, old)) = self.table().zip(old.and_then(Self::table)) else {
            return provenance(self.objects().cloned());
        };
        let mut objects = Vec::new();
        old.diff(new, |_, before, after| {
            let hosts = before.into_iter().chain(after);
            objects.extend(hosts.flat_map(|host| host.objects.iter().cloned()));
        });
        provenance(objects)
    }

    /// The length of the encoded message, in bytes.
    pub(crate) fn len(&self) -> usize {
        match &self.body {
            Body::Message { bytes, .. } => bytes.len(),
            Body::Routes(table) => table.len(),
            Body::Names(table) => table.len(),
        }
    }

    /// The encoded message, unless it is a route configuration or a table of names.
    pub(super) fn message(&self) -> Option<&Bytes> {
        match &self.body {
            Body::Message { bytes, .. } => Some(bytes),
            Body::Routes(_) | Body::Names(_) => None,
        }
    }

    /// The encoded message as one buffer.
    pub fn bytes(&self) -> Vec<u8> {
        self.pieces().flatten().collect()
    }

    /// The encoded message in shared pieces that follow one another.
    pub(crate) fn pieces(&self) -> Pieces {
        let (first, rest) = match &self.body {
            Body::Message { bytes, .. } => (Some(bytes.clone()), None),
            Body::Routes(table) => {
                (Some(table.head().clone()), Some((Parts::Routes(table.clone()), None)))
            }
            Body::Names(table) => (None, Some((Parts::Names(table.clone()), None))),
        };
        Pieces { first, ready: Vec::new().into_iter(), rest }
    }
}

/// How many parts are looked up in one go.
const BATCH: usize = 64;

/// The pieces of an encoded message.
#[derive(Debug)]
pub(crate) struct Pieces {
    first: Option<Bytes>,
    ready: std::vec::IntoIter<Bytes>,
    /// The table whose parts follow, and the name of the last one that is ready.
    rest: Option<(Parts, Option<Arc<str>>)>,
}

/// A table whose parts are pieces.
#[derive(Debug)]
enum Parts {
    Routes(RouteTable),
    Names(NameTable),
}

impl Parts {
    /// The next parts with their names, after the one called `last`.
    fn after(&self, last: Option<&Arc<str>>) -> Vec<(Arc<str>, Bytes)> {
        match self {
            Self::Routes(table) => {
                let hosts = table.after(last, BATCH);
                hosts.into_iter().map(|host| (host.name.clone(), host.field.clone())).collect()
            }
            Self::Names(table) => table.after(last, BATCH),
        }
    }

    /// The part that has no name and follows all others.
    fn end(&self) -> Option<Bytes> {
        match self {
            Self::Routes(table) => table.catch_all().map(|host| host.field.clone()),
            Self::Names(_) => None,
        }
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if let Some(piece) = self.first.take().or_else(|| self.ready.next()) {
            return Some(piece);
        }
        let (table, last) = self.rest.take()?;
        let next = table.after(last.as_ref());
        let last = next.last().map(|(name, _)| name.clone());
        let is_full = next.len() == BATCH;
        let mut ready: Vec<Bytes> = next.into_iter().map(|(_, bytes)| bytes).collect();
        match last {
            Some(last) if is_full => self.rest = Some((table, Some(last))),
            _ => ready.extend(table.end()),
        }
        self.ready = ready.into_iter();
        self.ready.next()
    }
}

/// Resources of one type by name. Cheap to clone; modified copies share unchanged parts.
#[derive(Clone, Debug, Default)]
pub struct Resources(OrdMap<Arc<str>, Arc<Resource>>);

impl Resources {
    /// The resource of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.0.get(name)
    }

    /// Whether there is a resource of a name.
    pub(crate) fn contains_key(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Looks up names that come in about the order of names.
    pub(crate) fn cursor(&self) -> Cursor<'_> {
        Cursor {
            resources: self,
            next: Some(self.0.range::<_, Arc<str>>(..).peekable()),
            found: false,
            misses: Cursor::MISSES,
        }
    }

    /// The names in order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.keys()
    }

    /// The resources in the order of their names.
    pub fn values(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.0.values()
    }

    /// Names and resources, in the order of the names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Resource>)> {
        self.0.iter()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Inserts or replaces a resource. One with the same version is kept, so that [`Resources::diff`] need not compare
    /// it.
    pub(crate) fn insert(&mut self, resource: Arc<Resource>) {
        if self.get(&resource.name).is_none_or(|old| old.version != resource.version) {
            self.0.insert(resource.name.clone(), resource);
        }
    }

    /// Removes the resource of a name.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Arc<Resource>> {
        self.0.remove(name)
    }

    /// Whether both share the same map, a cheap check; `false` if unknown.
    pub(crate) fn ptr_eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }

    /// Calls `found` with each name whose versions differ between two maps, in time proportional to the difference if
    /// one map was derived from the other.
    pub(crate) fn diff<'a>(
        &'a self,
        new: &'a Self,
        found: impl FnMut(&'a Arc<str>, Option<&'a Arc<Resource>>, Option<&'a Arc<Resource>>),
    ) {
        crate::mesh::diff(&self.0, &new.0, found);
    }
}

/// Looks up many names. One that comes soon after the last one in the order of names costs a few steps instead of a search,
/// and any other is searched for.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    resources: &'a Resources,
    /// The resources from about the last name on; `None` once too many names were not where they were looked for.
    next: Option<Peekable<Rest<'a>>>,
    /// Whether the first of them was the last one found.
    found: bool,
    /// How many more names may be elsewhere.
    misses: usize,
}

type Rest<'a> = RangedIter<'a, Arc<str>, Arc<Resource>, DefaultSharedPtr>;

impl<'a> Cursor<'a> {
    /// How many resources are passed over in search of a name.
    const STEPS: usize = 4;

    /// How many names are searched for before every further one is.
    const MISSES: usize = 16;

    /// The resource of a name, as [`Resources::get`] returns it.
    pub(crate) fn get(&mut self, name: &str) -> Option<&'a Arc<Resource>> {
        let Some(next) = &mut self.next else {
            return self.resources.get(name);
        };
        if std::mem::take(&mut self.found) {
            next.next_if(|(key, _)| !is_same(key, name));
        }
        for _ in 0..Self::STEPS {
            let Some((key, resource)) = next.peek() else { break };
            // Most names are shared with the resources. Then their text, which is rarely in a cache, need not be read.
            let order = if is_same(key, name) { Ordering::Equal } else { (***key).cmp(name) };
            match order {
                Ordering::Less => _ = next.next(),
                Ordering::Equal => {
                    self.found = true;
                    return Some(resource);
                }
                Ordering::Greater => break,
            }
        }
        self.search(name)
    }

    /// Searches for a name, and looks for the next ones from there on.
    fn search(&mut self, name: &str) -> Option<&'a Arc<Resource>> {
        let found = self.resources.0.get_key_value(name);
        self.misses = self.misses.saturating_sub(1);
        self.next = match found {
            _ if self.misses == 0 => None,
            Some((key, _)) => Some(self.resources.0.range::<_, Arc<str>>(key.clone()..).peekable()),
            None => self.next.take(),
        };
        self.found = found.is_some();
        found.map(|(_, resource)| resource)
    }
}

/// Whether two names are the same text at the same place.
fn is_same(a: &str, b: &str) -> bool {
    std::ptr::eq(a, b)
}

impl FromIterator<Arc<Resource>> for Resources {
    fn from_iter<I: IntoIterator<Item = Arc<Resource>>>(all: I) -> Self {
        Self(all.into_iter().map(|resource| (resource.name.clone(), resource)).collect())
    }
}

impl RouteTable {
    /// Up to `count` virtual hosts that follow the one named `after`.
    fn after(&self, after: Option<&Arc<str>>, count: usize) -> Vec<Arc<EncodedVirtualHost>> {
        let start = after.map_or(Bound::Unbounded, |name| Bound::Excluded(name.clone()));
        self.range(start).take(count).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(n: u32) -> String {
        format!("name-{n:03}")
    }

    proptest! {
        #[test]
        fn a_cursor_finds_what_a_search_finds(
            present in proptest::collection::btree_set(0..200_u32, 0..200),
            mut asked in proptest::collection::vec(0..200_u32, 0..200),
            sorted: bool,
        ) {
            let resources: Resources = present
                .into_iter()
                .map(|n| Resource::new(name(n), Bytes::new(), Provenance::default()))
                .collect();
            if sorted {
                asked.sort_unstable();
            }
            let mut cursor = resources.cursor();
            for n in asked {
                prop_assert_eq!(cursor.get(&name(n)), resources.get(&name(n)));
            }
        }
    }
}
