//! Route configurations as maps of encoded virtual hosts, so that changing a virtual host costs only the work for that
//! virtual host.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3 as route;
use imbl::OrdMap;
use prost::{Message, encoding};
use xxhash_rust::xxh3::xxh3_64;

use super::ClusterRefs;
use super::provenance::Provenance;
use super::runtime_weights::RuntimeWeights;

/// An encoded virtual host, as a field of its route configuration.
#[derive(Clone, Debug)]
pub struct EncodedVirtualHost {
    /// The virtual host's name.
    pub name: Arc<str>,
    /// The domains it matches.
    pub domains: Arc<[String]>,
    /// The field's bytes.
    pub field: Bytes,
    /// The clusters it references.
    pub clusters: ClusterRefs,
    /// Those of them that get requests, which a cluster of weight 0 does not.
    pub receiving: ClusterRefs,
    /// Whether domains were taken from it, because another virtual host has them now.
    pub is_shortened: bool,
    /// The objects it was made from.
    pub objects: Provenance,
    /// Its weights as runtime values; `None` if its routes use none.
    pub weights: Option<RuntimeWeights>,
    hash: u64,
}

impl PartialEq for EncodedVirtualHost {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.name == other.name
    }
}

// With it, comparing two `Arc`s looks at their addresses first.
impl Eq for EncodedVirtualHost {}

impl EncodedVirtualHost {
    /// Encodes a virtual host that was made from `objects`.
    pub(crate) fn new(mut host: route::VirtualHost, objects: Provenance) -> Self {
        let weights = RuntimeWeights::complete(&mut host, |host| xxh3_64(&encode(host)));
        let clusters = ClusterRefs::of_virtual_host(&host);
        let receiving = ClusterRefs::receiving(&host);
        let receiving = if receiving == clusters { clusters.clone() } else { receiving };
        let (name, domains) = (host.name.as_str().into(), host.domains.as_slice().into());
        let field = encode(host);
        let hash = xxh3_64(&field);
        Self {
            name,
            domains,
            field: field.into(),
            clusters,
            receiving,
            is_shortened: false,
            objects,
            weights,
            hash,
        }
    }

    /// A hash of its content: the same in every process for the same content.
    pub(crate) fn version(&self) -> u64 {
        self.hash
    }

    /// Whether it has no routes.
    pub(crate) fn is_empty(&self) -> bool {
        route::RouteConfiguration::decode(self.field.clone())
            .is_ok_and(|of| of.virtual_hosts.iter().all(|host| host.routes.is_empty()))
    }

    /// The same virtual host without the domains in `taken`, which are in lower case; `None` if no domain is left.
    pub(crate) fn without(&self, taken: &BTreeSet<String>) -> Option<Self> {
        let wrapped = route::RouteConfiguration::decode(self.field.clone()).ok()?;
        let mut host = wrapped.virtual_hosts.into_iter().next()?;
        host.domains.retain(|domain| !taken.contains(&domain.to_ascii_lowercase()));
        (!host.domains.is_empty())
            .then(|| Self { is_shortened: true, ..Self::new(host, self.objects.clone()) })
    }
}

/// A virtual host as field 2 of its `RouteConfiguration`: concatenated encoded fields are a valid Protobuf message.
///
/// The same virtual host always has the same bytes, so that its version is the same in every process. Protobuf leaves
/// the order of a map's entries open, and prost takes that of the hash map; here entries are sorted by key.
fn encode(mut host: route::VirtualHost) -> Vec<u8> {
    let routes = std::mem::take(&mut host.routes);
    let mut body = Vec::with_capacity(host.encoded_len());
    // Writing to a vector cannot fail.
    host.encode_raw(&mut body);
    for mut route in routes {
        let filters: BTreeMap<_, _> = route.typed_per_filter_config.drain().collect();
        let mut bytes = route.encode_to_vec();
        encoding::btree_map::encode(
            encoding::string::encode,
            encoding::string::encoded_len,
            encoding::message::encode,
            encoding::message::encoded_len,
            TYPED_PER_FILTER_CONFIG,
            &filters,
            &mut bytes,
        );
        encoding::bytes::encode(ROUTES, &bytes, &mut body);
    }
    let mut field = Vec::with_capacity(body.len() + 6);
    encoding::bytes::encode(VIRTUAL_HOSTS, &body, &mut field);
    field
}

/// `RouteConfiguration.virtual_hosts`.
const VIRTUAL_HOSTS: u32 = 2;

/// `VirtualHost.routes`.
const ROUTES: u32 = 3;

/// `Route.typed_per_filter_config`.
const TYPED_PER_FILTER_CONFIG: u32 = 13;

/// The virtual hosts of a route configuration by name, and its other fields. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    head: Bytes,
    hosts: OrdMap<Arc<str>, Arc<EncodedVirtualHost>>,
    catch_all: Option<Arc<EncodedVirtualHost>>,
    len: usize,
    /// The sum of the virtual hosts' hashes, which does not depend on their order.
    sum: u64,
    /// The number of virtual hosts that reference each cluster.
    with_cluster_refs: OrdMap<Arc<str>, u32>,
}

impl RouteTable {
    /// A table without virtual hosts. `head` are the encoded other fields of the route configuration.
    pub(crate) fn new(head: Bytes) -> Self {
        Self { len: head.len(), head, ..Self::default() }
    }

    /// The encoded fields other than the virtual hosts.
    pub(crate) fn head(&self) -> &Bytes {
        &self.head
    }

    /// The version: a hash of the content.
    pub(crate) fn version(&self) -> u64 {
        xxh3_64(&self.head) ^ self.sum
    }

    /// The length of the encoded route configuration, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The virtual host of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<EncodedVirtualHost>> {
        self.hosts.get(name)
    }

    /// The virtual host of a name, including the catch-all.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<EncodedVirtualHost>> {
        self.get(name).or_else(|| self.catch_all.as_ref().filter(|host| *host.name == *name))
    }

    /// The catch-all virtual host.
    pub(crate) fn catch_all(&self) -> Option<&Arc<EncodedVirtualHost>> {
        self.catch_all.as_ref()
    }

    /// All virtual hosts by name, the catch-all last.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<EncodedVirtualHost>> {
        self.hosts.values().chain(&self.catch_all)
    }

    pub(super) fn range(
        &self,
        start: Bound<Arc<str>>,
    ) -> impl Iterator<Item = &Arc<EncodedVirtualHost>> {
        self.hosts.range::<_, Arc<str>>((start, Bound::Unbounded)).map(|(_, host)| host)
    }

    /// Whether any virtual host references a cluster.
    pub(crate) fn routes_to(&self, cluster: &str) -> bool {
        self.with_cluster_refs.contains_key(cluster)
    }

    /// The clusters referenced by any virtual host, sorted.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = &Arc<str>> {
        self.with_cluster_refs.keys()
    }

    /// Replaces or removes the virtual host of this name.
    pub(crate) fn set(&mut self, name: &Arc<str>, new: Option<Arc<EncodedVirtualHost>>) {
        if new.is_some() && self.hosts.get(name) == new.as_ref() {
            return;
        }
        let old = match &new {
            Some(new) => self.hosts.insert(name.clone(), new.clone()),
            None => self.hosts.remove(name),
        };
        self.account(old.as_deref(), new.as_deref());
    }

    /// Sets the virtual host for requests that no other virtual host matches.
    pub(crate) fn set_catch_all(&mut self, new: Option<Arc<EncodedVirtualHost>>) {
        let old = std::mem::replace(&mut self.catch_all, new.clone());
        self.account(old.as_deref(), new.as_deref());
    }

    fn account(&mut self, old: Option<&EncodedVirtualHost>, new: Option<&EncodedVirtualHost>) {
        let same_clusters = old.zip(new).is_some_and(|(old, new)| old.clusters == new.clusters);
        if let Some(old) = old {
            self.len -= old.field.len();
            self.sum = self.sum.wrapping_sub(old.hash);
            for cluster in old.clusters.iter().filter(|_| !same_clusters) {
                if let Some(count) = self.with_cluster_refs.get_mut(cluster) {
                    *count -= 1;
                    if *count == 0 {
                        self.with_cluster_refs.remove(cluster);
                    }
                }
            }
        }
        if let Some(new) = new {
            self.len += new.field.len();
            self.sum = self.sum.wrapping_add(new.hash);
            for cluster in new.clusters.iter().filter(|_| !same_clusters) {
                *self.with_cluster_refs.entry(cluster.clone()).or_default() += 1;
            }
        }
    }

    /// Calls `found` with each name under which two tables have different virtual hosts, or only one has any, and with
    /// both virtual hosts. The catch-all is included. Takes time proportional to the difference if one table was
    /// derived from the other.
    pub(crate) fn diff<'a>(
        &'a self,
        new: &'a Self,
        mut found: impl FnMut(
            &'a Arc<str>,
            Option<&'a Arc<EncodedVirtualHost>>,
            Option<&'a Arc<EncodedVirtualHost>>,
        ),
    ) {
        crate::mesh::diff(&self.hosts, &new.hosts, &mut found);
        if self.catch_all != new.catch_all
            && let Some(either) = new.catch_all.as_ref().or(self.catch_all.as_ref())
        {
            found(&either.name, self.catch_all.as_ref(), new.catch_all.as_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::Any;

    use super::*;

    fn host(name: &str, domains: &[&str]) -> Arc<EncodedVirtualHost> {
        let domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
        let host = route::VirtualHost { name: name.into(), domains, ..Default::default() };
        Arc::new(EncodedVirtualHost::new(host, Provenance::default()))
    }

    /// A virtual host whose route has a new map of filters.
    fn host_with_filters() -> route::VirtualHost {
        let filters = ["cors", "fault", "lua"].map(|name| {
            let value = format!("of {name}").into_bytes();
            (name.to_owned(), Any { value, ..Any::default() })
        });
        route::VirtualHost {
            name: "a".into(),
            routes: vec![route::Route {
                name: "r".into(),
                typed_per_filter_config: filters.into(),
                ..Default::default()
            }],
            include_request_attempt_count: true,
            ..Default::default()
        }
    }

    #[test]
    fn a_virtual_host_has_the_same_bytes_in_any_order_of_its_maps() {
        let first = EncodedVirtualHost::new(host_with_filters(), Provenance::default());
        let read = route::RouteConfiguration::decode(first.field.clone()).unwrap();
        assert_eq!(read.virtual_hosts, [host_with_filters()]);
        for _ in 0..20 {
            let other = EncodedVirtualHost::new(host_with_filters(), Provenance::default());
            assert_eq!(first.field, other.field);
        }
    }

    #[test]
    fn a_table_has_the_same_version_in_any_order_of_changes() {
        let (a, b) = (host("a", &["x"]), host("b", &["y"]));
        let mut item = RouteTable::new(Bytes::from_static(b"head"));
        item.set(&a.name, Some(a.clone()));
        item.set(&b.name, Some(b.clone()));
        let mut other = RouteTable::new(Bytes::from_static(b"head"));
        other.set(&b.name, Some(b.clone()));
        other.set(&a.name, Some(host("a", &["z"])));
        assert_ne!(item.version(), other.version());
        other.set(&a.name, Some(a.clone()));
        assert_eq!((item.version(), item.len()), (other.version(), other.len()));
        other.set(&b.name, None);
        let mut names = Vec::new();
        item.diff(&other, |name, _, new| {
            names.push((name.clone(), new.is_some()));
        });
        assert_eq!(names, [("b".into(), false)]);
    }

    #[test]
    fn domains_of_others_are_left_out() {
        let taken = BTreeSet::from(["y".to_owned()]);
        assert_eq!(&*host("a", &["X", "Y"]).without(&taken).unwrap().domains, ["X".to_owned()]);
        assert!(host("a", &["y"]).without(&taken).is_none());
    }
}
