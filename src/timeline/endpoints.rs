//! Destinations that lose their last ready endpoint. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::entry::{EntryKind, Note};
use crate::api::{Destination, ObjectKey};
use crate::mesh::{Mesh, VirtualService, diff};
use crate::revision::MeshRevision;
use crate::rollout_guard::readiness;
use crate::store::Store;

/// The entries for destinations that get requests and have lost their last ready endpoint between two states of the
/// mesh, or have one again. A weight that waits for an endpoint is none of them.
pub(crate) fn endpoints(
    before: &Mesh,
    after: &Mesh,
    revision: MeshRevision,
    store: &Store,
) -> Vec<Note> {
    let mut routes: BTreeMap<&ObjectKey, &Arc<VirtualService>> = BTreeMap::new();
    diff(&before.services, &after.services, |host, _, _| {
        routes.extend(after.virtual_services.routing_to(host).map(|rules| (&rules.key, rules)));
    });
    let mut notes = BTreeMap::new();
    for rules in routes.into_values().filter(|rules| rules.is_for_mesh() && !rules.hosts.is_empty())
    {
        // A version that is new says itself what it does.
        let Some(old) = before.virtual_services.get(&rules.key) else { continue };
        let old = (!Arc::ptr_eq(old, rules)).then(|| with_requests(old));
        for to in with_requests(rules) {
            if old.as_ref().is_some_and(|old| !old.contains(&to)) {
                continue;
            }
            let (namespace, client) = (&to.object.namespace, rules.namespace());
            let ready =
                [before, after].map(|mesh| readiness(to.destination, namespace, client, mesh));
            let (kind, what) = match ready {
                [Some(true), Some(false)] => {
                    (EntryKind::NoEndpoints, "has no ready endpoint any more")
                }
                [Some(false), Some(true)] => (EntryKind::Endpoints, "has a ready endpoint again"),
                _ => continue,
            };
            for object in BTreeSet::from([to.object, &rules.key]) {
                let place = match object == to.object {
                    true => to.field.clone(),
                    false => format!("{}: {}", to.object, to.field),
                };
                let text = format!("{place}: {} {what}", to.name());
                notes.insert((object, text), kind);
            }
        }
    }
    let notes = notes.into_iter().map(|((object, text), kind)| {
        let generation = store.get(object).map_or(0, |entry| entry.object.meta.generation);
        Note { generation, revision, ..Note::of(object, kind, text) }
    });
    notes.collect()
}

/// A destination that gets requests or connections.
#[derive(PartialEq)]
struct Taker<'a> {
    /// The VirtualService that holds the route.
    object: &'a ObjectKey,
    /// The route.
    field: String,
    destination: &'a Destination,
}

impl Taker<'_> {
    fn name(&self) -> String {
        let Destination { host, subset, .. } = self.destination;
        match subset.as_str() {
            "" => host.clone(),
            subset => format!("subset `{subset}` of {host}"),
        }
    }
}

/// The destinations with a share, however small.
fn with_requests(of: &VirtualService) -> Vec<Taker<'_>> {
    let http = of.http().flat_map(|http| {
        let is_only = http.destinations.len() == 1;
        let some = http.destinations.iter().filter(move |to| is_only || to.weight > 0);
        some.filter_map(move |to| {
            let field = format!("spec.http[{}]", http.index);
            Some(Taker { object: http.key, field, destination: to.destination.as_ref()? })
        })
    });
    let tcp = of.tcp().map(|rule| rule.destinations).enumerate().map(|(n, to)| ("tcp", n, to));
    let tls = of.tls().map(|rule| rule.destinations).enumerate().map(|(n, to)| ("tls", n, to));
    let streams = tcp.chain(tls).flat_map(|(protocol, n, destinations)| {
        let some = destinations.iter().filter(|to| destinations.len() == 1 || to.weight > 0);
        some.filter_map(move |to| {
            let field = format!("spec.{protocol}[{n}]");
            Some(Taker { object: &of.key, field, destination: to.destination.as_ref()? })
        })
    });
    http.chain(streams).collect()
}
