//! Counts the work of changes: an event touches only what it changes, with one scope and with many.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::parts::WorkCounts;
use super::{ResourceType, SnapshotBuilder};
use crate::mesh::{Locality, Mesh, MeshBuilder, MeshConfig, NodeMetadata, Proxy, Scope};
use crate::revision::MeshRevision;
use crate::source::loader::{Content, Loader};
use crate::store::Store;

/// A mesh of namespaces with services, each with a VirtualService and a DestinationRule, and proxies in each namespace.
struct World {
    loader: Loader,
    store: Store,
    builder: MeshBuilder,
    snapshots: SnapshotBuilder,
    revision: MeshRevision,
    scopes: usize,
}

const SERVICES: usize = 20;

fn service(namespace: usize, n: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: ns{namespace}}}\nspec: {{clusterIP: \
         10.{namespace}.{}.{}, ports: [{{name: http, port: 80}}]}}\n---\n",
        n / 250,
        n % 250
    )
}

fn endpoints(namespace: usize, n: usize, ready: bool) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{n}-x, namespace: ns{namespace}, \
         labels: {{kubernetes.io/service-name: s{n}}}}}\naddressType: IPv4\nports: [{{name: http, port: \
         8080}}]\nendpoints: [{{addresses: [10.{namespace}.{}.{}], conditions: {{ready: {ready}}}}}]\n---\n",
        100 + n / 250,
        n % 250
    )
}

fn rules(namespace: usize, n: usize, weight: u32) -> String {
    let group = "apiVersion: networking.istio.io/v1";
    format!(
        "{group}\nkind: DestinationRule\nmetadata: {{name: s{n}, namespace: ns{namespace}}}\nspec: {{host: s{n}, \
         subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]}}\n---\n\
         {group}\nkind: VirtualService\nmetadata: {{name: s{n}, namespace: ns{namespace}}}\nspec: {{hosts: [s{n}], \
         http: [{{route: [{{destination: {{host: s{n}, subset: v1}}, weight: {}}}, \
         {{destination: {{host: s{n}, subset: v2}}, weight: {weight}}}]}}]}}\n---\n",
        100 - weight
    )
}

fn scope_of(world: &World, namespace: usize) -> Scope {
    let id = format!("sidecar~10.200.0.1~client.ns{namespace}~x");
    let proxy = Proxy::new(&id, NodeMetadata::default(), Locality::default()).unwrap();
    world.snapshots.mesh().unwrap().scope(&proxy)
}

impl World {
    fn new(namespaces: usize) -> Self {
        Self::sized(namespaces, SERVICES)
    }

    fn sized(namespaces: usize, services: usize) -> Self {
        let mut world = Self {
            loader: Loader::new(),
            store: Store::default(),
            builder: MeshBuilder::new(MeshConfig::default()),
            snapshots: SnapshotBuilder::default(),
            revision: MeshRevision::NONE,
            scopes: namespaces,
        };
        let all = (0..namespaces).flat_map(|ns| (0..services).map(move |n| (ns, n)));
        let files = all.flat_map(|(ns, n)| {
            [
                (format!("{ns}-{n}-service.yaml"), service(ns, n)),
                (format!("{ns}-{n}-slice.yaml"), endpoints(ns, n, true)),
                (format!("{ns}-{n}-rules.yaml"), rules(ns, n, 10)),
            ]
        });
        world.write(files.collect());
        for namespace in 0..namespaces {
            let scope = scope_of(&world, namespace);
            world.snapshots.acquire(&scope).unwrap();
        }
        world
    }

    /// Writes files. Returns the work that they caused.
    fn write(&mut self, files: Vec<(String, String)>) -> WorkCounts {
        let mesh = self.read(files);
        let before = self.snapshots.counts();
        self.publish(mesh);
        self.snapshots.counts().since(before)
    }

    fn publish(&mut self, mesh: Mesh) {
        self.revision = self.revision.next();
        self.snapshots.publish(mesh, self.revision, None);
    }

    /// The mesh after these files are written.
    fn read(&mut self, files: Vec<(String, String)>) -> Mesh {
        let files = files.into_iter().map(|(name, text)| {
            let content =
                if text.is_empty() { Content::Gone } else { Content::Bytes(text.into_bytes()) };
            (PathBuf::from(name), content)
        });
        let mut dirty = BTreeSet::new();
        for change in self.loader.update(files) {
            self.store.apply(change, &mut dirty);
        }
        self.builder.update(&self.store, &dirty)
    }
}

/// A world with one namespace and one with many.
fn worlds() -> [World; 2] {
    [World::new(1), World::new(30)]
}

#[test]
fn a_new_scope_is_derived_from_an_existing_one() {
    let world = World::new(30);
    let counts = world.snapshots.counts();
    assert_eq!(counts.scopes_built, 1);
    // Each examines its own services and those of the scope that it is derived from, and no others.
    let all = (30 * SERVICES) as u64;
    assert!(counts.scope_hosts <= all + 30 * 2 * SERVICES as u64, "{counts:?}");
}

#[test]
fn a_weight_costs_one_virtual_host_and_one_lookup_in_each_scope() {
    for mut world in worlds() {
        let work = world.write(vec![("0-3-rules.yaml".into(), rules(0, 3, 20))]);
        let scopes = world.scopes as u64;
        // The virtual host is built once for its own namespace, where the service has a short name, and once for all
        // others.
        let made = scopes.min(2);
        let wanted = WorkCounts {
            translated: made,
            encoded: made,
            scope_hosts: scopes,
            scope_ports: 0,
            scopes_built: 0,
            scopes_changed: scopes,
            hosts_named: 0,
        };
        assert_eq!(work, wanted);
    }
}

/// The allocations while a change of one weight becomes the snapshots of all scopes.
fn allocations_of_a_weight(world: &mut World) -> u64 {
    let mesh = world.read(vec![("0-3-rules.yaml".into(), rules(0, 3, 20))]);
    allocation_counter::measure(|| world.publish(mesh)).count_total
}

#[test]
fn the_allocations_for_a_weight_depend_on_the_scopes_and_hardly_on_the_services() {
    let [small, large, wide] = [(1, 20), (1, 1000), (50, 20)].map(|(namespaces, services)| {
        allocations_of_a_weight(&mut World::sized(namespaces, services))
    });
    println!("{small} with 20 services, {large} with 1000, {wide} with 1000 in 50 scopes");
    // Maps with more entries have more levels.
    assert!(large <= small + 20, "{small} with 20 services, {large} with 1000");
    assert!(small <= 400, "{small}");
    assert!(wide <= small + 49 * 70, "{small} for one scope, {wide} for 50");
}

#[test]
fn an_endpoint_costs_the_endpoints_of_its_service() {
    for mut world in worlds() {
        let work = world.write(vec![("0-3-slice.yaml".into(), endpoints(0, 3, false))]);
        let scopes = world.scopes as u64;
        // One assignment for the service and one for each subset.
        let wanted = WorkCounts {
            translated: 1,
            encoded: 3,
            scope_hosts: scopes,
            scope_ports: 0,
            scopes_built: 0,
            scopes_changed: scopes,
            hosts_named: 0,
        };
        assert_eq!(work, wanted);
    }
}

#[test]
fn a_new_service_costs_its_own_resources_and_an_update_of_its_port() {
    for mut world in worlds() {
        let work = world.write(vec![("new.yaml".into(), service(0, 200))]);
        let scopes = world.scopes as u64;
        assert_eq!((work.scope_hosts, work.scope_ports), (scopes, scopes));
        // Cluster, endpoints, and a virtual host for each of the two kinds of namespaces.
        assert_eq!((work.translated, work.scopes_built), (2 + scopes.min(2), 0));
    }
}

#[test]
fn a_deleted_namespace_costs_only_its_own_resources() {
    let mut world = World::new(30);
    let files = (0..SERVICES).flat_map(|n| {
        [format!("7-{n}-service.yaml"), format!("7-{n}-slice.yaml"), format!("7-{n}-rules.yaml")]
    });
    let work = world.write(files.map(|name| (name, String::new())).collect());
    assert_eq!((work.translated, work.encoded, work.scopes_built), (0, 0, 0));
    assert_eq!(work.scope_hosts, (30 * SERVICES) as u64);
    let scope = scope_of(&world, 7);
    let left = world.snapshots.acquire(&scope).unwrap();
    assert!(!left.get(ResourceType::Cluster).keys().any(|name| name.contains(".ns7.")));
}

#[test]
fn the_number_of_parts_is_kept_up_to_date() {
    let mut world = World::new(3);
    let first = world.snapshots.parts();
    world.write(vec![("new.yaml".into(), service(0, 200))]);
    assert!(world.snapshots.parts() > first);
    world.write(vec![("0-3-rules.yaml".into(), rules(0, 3, 20))]);
    world.write(vec![("new.yaml".into(), String::new())]);
    assert_eq!(world.snapshots.parts(), first);
}

#[test]
fn writing_an_unchanged_file_costs_nothing() {
    let mut world = World::new(2);
    assert_eq!(
        world.write(vec![("0-3-rules.yaml".into(), rules(0, 3, 10))]),
        WorkCounts::default()
    );
}

/// A headless service, or its endpoint with this address.
fn headless(address: Option<&str>) -> String {
    let meta = "{name: s99, namespace: ns0}";
    match address {
        None => format!(
            "apiVersion: v1\nkind: Service\nmetadata: {meta}\nspec: {{clusterIP: None, ports: [{{name: tcp, port: 80}}]}}\n"
        ),
        Some(address) => format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s99-x, namespace: ns0, labels: \
             {{kubernetes.io/service-name: s99}}}}\naddressType: IPv4\nports: [{{name: tcp, port: 80}}]\nendpoints: \
             [{{addresses: [{address}], conditions: {{ready: true}}}}]\n"
        ),
    }
}

fn version_of_names(world: &World, namespace: usize) -> Option<u64> {
    let snapshot = world.snapshots.snapshot_of(&scope_of(world, namespace)).unwrap();
    snapshot.names.as_ref().map(|names| names.version)
}

#[test]
fn a_table_of_names_costs_one_lookup_for_each_changed_host_where_it_is_asked_for() {
    let mut world = World::new(30);
    assert_eq!(world.snapshots.counts().hosts_named, 0);
    let all = (30 * SERVICES) as u64;
    for (namespace, most) in [(0, all), (0, 0), (1, 2 * SERVICES as u64)] {
        let before = world.snapshots.counts();
        world.snapshots.add_names(&scope_of(&world, namespace));
        let work = world.snapshots.counts().since(before);
        assert!(work.hosts_named <= most, "{work:?}");
    }
    let first = version_of_names(&world, 0);
    assert_eq!(
        (first.is_some(), version_of_names(&world, 1), version_of_names(&world, 2)),
        (true, first, None)
    );

    let work = world.write(vec![("0-3-slice.yaml".into(), endpoints(0, 3, false))]);
    assert_eq!(
        (work.hosts_named, version_of_names(&world, 0)),
        (2, first),
        "the cluster IP is the same"
    );
    let files = [("h.yaml", headless(None)), ("h-slice.yaml", headless(Some("10.0.9.1")))];
    let work = world.write(files.map(|(name, text)| (name.to_owned(), text)).into());
    assert_eq!(work.hosts_named, 2);
    let second = version_of_names(&world, 0);
    assert!(second.is_some() && second != first);
    world.write(vec![("h-slice.yaml".into(), headless(Some("10.0.9.2")))]);
    assert_ne!(version_of_names(&world, 0), second);
    world.write(vec![("h-slice.yaml".into(), headless(Some("10.0.9.1")))]);
    assert_eq!((version_of_names(&world, 0), version_of_names(&world, 1)), (second, second));
    world.write(["h.yaml", "h-slice.yaml"].map(|name| (name.to_owned(), String::new())).into());
    assert_eq!(version_of_names(&world, 0), first);
}
