//! The fuzz targets as functions of bytes: `cargo test --test weir fuzz::` calls them with random input, and the targets in
//! `fuzz_targets` with input found by cargo-fuzz.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use weir::api::{self, Identity, ObjectKey};
use weir::envoy_validate;
use weir::mesh::{
    Certificates, Locality, Mesh, MeshBuilder, MeshConfig, NodeMetadata, Proxy, Scope,
};
use weir::snapshot::{ResourceType, Snapshot, SnapshotBuilder};
use weir::source::{SourceEvent, yaml};
use weir::store::Store;

#[path = "dice.rs"]
mod dice;

use dice::Dice;

/// Reading any bytes as YAML or JSON yields an object or an error.
pub(super) fn read(bytes: &[u8]) {
    for document in yaml::documents(bytes).unwrap_or_default() {
        object(document.value);
    }
    if let Ok(value) = serde_json::from_slice::<Value>(bytes) {
        object(value.clone());
        // The same bytes as the spec of each kind, where all the rules are.
        for kind in api::Kind::ALL {
            let version = kind.versions().first().copied().unwrap_or_default();
            let group =
                if kind.group().is_empty() { String::new() } else { format!("{}/", kind.group()) };
            object(json!({"apiVersion": format!("{group}{version}"), "kind": kind.as_str(),
                "metadata": {"name": "a"}, "spec": value}));
        }
    }
}

fn object(value: Value) {
    for (_, document) in api::expand_list(value) {
        if let Ok(Identity::Known(key)) = api::identify(&document) {
            let _ = api::parse(&key, document, 0);
        }
    }
}

fn proxies() -> Vec<Proxy> {
    [
        (
            "sidecar~10.9.0.1~a.shop~shop.svc.cluster.local",
            json!({"LABELS": {"app": "web", "version": "v1"}}),
        ),
        ("sidecar~10.1.0.1~b.pay~pay.svc.cluster.local", json!({"INTERCEPTION_MODE": "NONE"})),
        (
            "sidecar~10.1.0.1~c.pay~pay.svc.cluster.local",
            json!({"LABELS": {"app": "cart", "version": "v2"}}),
        ),
        ("sidecar~10.1.0.2~d.shop~shop.svc.cluster.local", json!({"LABELS": {"app": "cart"}})),
        ("sidecar~10.9.0.2~e.istio-system~istio-system.svc.cluster.local", json!({})),
    ]
    .into_iter()
    .zip([Certificates::Ads, Certificates::None, Certificates::Agent].into_iter().cycle())
    .map(|((id, metadata), certificates)| {
        let metadata = NodeMetadata::from_json(&metadata);
        Proxy { certificates, ..Proxy::new(id, metadata, Locality::parse("eu/a/b")).unwrap() }
    })
    .collect()
}

/// How many objects were accepted and rejected.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tried {
    /// Accepted.
    pub accepted: usize,
    /// Rejected.
    pub rejected: usize,
}

/// A history of objects that are added, changed and deleted never yields anything that Envoy would reject, and every
/// state equals one that is built from scratch.
///
/// # Panics
/// It does.
pub(super) fn history(bytes: &[u8]) -> Tried {
    let mut dice = Dice { left: bytes, order: 0 };
    let (mut store, mut dirty) = (Store::default(), BTreeSet::new());
    let (mut builder, mut snapshot_builder) =
        (MeshBuilder::new(MeshConfig::default()), SnapshotBuilder::default());
    let (mut tried, mut log, mut checked) = (Tried::default(), BTreeMap::new(), BTreeSet::new());
    let (proxies, mut held) = (proxies(), Vec::new());
    while !dice.left.is_empty() {
        let Some(change) = dice.change() else {
            continue;
        };
        note(&change, &mut tried, &mut log);
        store.apply(change, &mut dirty);
        // Several changes may arrive at once, and none may be lost.
        if !dice.left.is_empty() && dice.once_in(3) {
            continue;
        }
        let changed: BTreeSet<ObjectKey> = std::mem::take(&mut dirty);
        let mesh = builder.update(&store, &changed);
        if dice.once_in(5) {
            // Proxies that come back get what was kept up to date for others, or is derived from it.
            let left = held.len().min(2);
            held.rotate_left(left.min(1));
            held.drain(left..).for_each(|scope| snapshot_builder.release(&scope));
        }
        snapshot_builder.publish(mesh.clone(), 1.into(), None);
        let scopes: Vec<Scope> = proxies.iter().map(|proxy| mesh.scope(proxy)).collect();
        let snapshots: Vec<_> =
            scopes.iter().filter_map(|scope| snapshot_builder.acquire(scope)).collect();
        let before = std::mem::replace(&mut held, scopes);
        before.iter().for_each(|scope| snapshot_builder.release(scope));
        snapshots.iter().for_each(|snapshot| sound(snapshot, &mut checked, &log));
        // Building every state from scratch would take too long; checking some states and the last one is enough.
        if dice.left.is_empty() || dice.once_in(4) {
            let fresh = from_nothing(&store);
            for (proxy, kept) in proxies.iter().zip(&snapshots) {
                same(kept, &SnapshotBuilder::default().snapshot(&fresh, &fresh.scope(proxy)), &log);
            }
        }
    }
    tried
}

fn note(change: &SourceEvent, tried: &mut Tried, log: &mut BTreeMap<ObjectKey, String>) {
    match change {
        SourceEvent::Apply { object, .. } => {
            tried.accepted += 1;
            log.insert(object.key(), format!("{:?}", object.spec));
        }
        SourceEvent::Reject { .. } => tried.rejected += 1,
        SourceEvent::Delete(key) => {
            log.remove(key);
        }
        _ => {}
    }
}

fn from_nothing(store: &Store) -> Mesh {
    let keys =
        api::Kind::ALL.into_iter().flat_map(|kind| store.all(kind).map(|entry| entry.object.key()));
    MeshBuilder::new(MeshConfig::default()).update(store, &keys.collect())
}

/// `checked` are the resources that were found sound before, by name and version.
fn sound(
    snapshot: &Snapshot,
    checked: &mut BTreeSet<(Arc<str>, u64)>,
    log: &BTreeMap<ObjectKey, String>,
) {
    assert!(snapshot.omitted.is_empty(), "{:#?}\n{log:#?}", snapshot.omitted);
    for kind in ResourceType::ALL {
        let name = kind.type_url().rsplit('/').next().unwrap_or_default();
        for resource in snapshot.get(kind).values() {
            if !checked.insert((resource.name.clone(), resource.version)) {
                continue;
            }
            let found = envoy_validate::check(name, &resource.bytes());
            assert!(
                found.is_empty(),
                "{} {}: {found:#?}\n{log:#?}",
                kind.short_name(),
                resource.name
            );
        }
    }
}

fn same(kept: &Snapshot, fresh: &Snapshot, log: &BTreeMap<ObjectKey, String>) {
    for kind in ResourceType::ALL {
        let of = |snapshot: &Snapshot| -> BTreeMap<Arc<str>, Vec<u8>> {
            snapshot
                .get(kind)
                .values()
                .map(|resource| (resource.name.clone(), resource.bytes()))
                .collect()
        };
        // Which virtual hosts differ, and in what if not in their domains.
        let hosts = |snapshot: &Snapshot, other: &Snapshot| -> Vec<String> {
            let of = |snapshot: &Snapshot| -> BTreeSet<String> {
                let tables = snapshot.get(kind).values();
                let tables =
                    tables.filter_map(|resource| Some((&resource.name, resource.table()?)));
                let hosts =
                    tables.flat_map(|(name, table)| table.iter().map(move |host| (name, host)));
                hosts
                    .map(|(name, host)| {
                        let from: Vec<_> = host.objects.iter().map(ToString::to_string).collect();
                        let text = String::from_utf8_lossy(&host.field);
                        format!("{name} {} {text:?} of {from:?}", host.name)
                    })
                    .collect()
            };
            of(snapshot).difference(&of(other)).cloned().collect()
        };
        let (only_kept, only_fresh) = (hosts(kept, fresh), hosts(fresh, kept));
        let (kept, fresh) = (of(kept), of(fresh));
        let names: BTreeSet<_> = kept.keys().chain(fresh.keys()).collect();
        let differ: Vec<_> =
            names.into_iter().filter(|name| kept.get(*name) != fresh.get(*name)).collect();
        assert!(
            differ.is_empty(),
            "{} {differ:?} differ from a build from scratch, which lacks {only_kept:#?} and has \
             {only_fresh:#?}\n{log:#?}",
            kind.short_name()
        );
    }
}
