//! Destinations that lose their last ready endpoint. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::entry::{EntryKind, Note};
use crate::api::{Destination, ObjectKey};
use crate::mesh::{Mesh, VirtualService, diff};
use crate::revision::MeshRevision;
use crate::rollout_guard::is_ready;
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
    let mut notes = Vec::new();
    for rules in routes.into_values().filter(|rules| rules.is_for_mesh() && !rules.hosts.is_empty())
    {
        // A version that is new says itself what it does.
        let Some(old) = before.virtual_services.get(&rules.key) else { continue };
        let old = with_requests(old);
        for to in with_requests(rules).into_iter().filter(|to| old.contains(to)) {
            let ready = [before, after].map(|mesh| {
                is_ready(to.destination, &to.object.namespace, rules.namespace(), mesh)
            });
            let (kind, what) = match ready {
                [true, false] => (EntryKind::NoEndpoints, "has no ready endpoint any more"),
                [false, true] => (EntryKind::Endpoints, "has a ready endpoint again"),
                _ => continue,
            };
            for object in [to.object, &rules.key] {
                let place = match object == to.object {
                    true => to.field.clone(),
                    false => format!("{}: {}", to.object, to.field),
                };
                let text = format!("{place}: {} {what}", to.name());
                let entry = store.get(object);
                let generation = entry.map_or(0, |entry| entry.object.meta.generation);
                let note = Note { generation, revision, ..Note::of(object, kind, text) };
                if !notes.contains(&note) {
                    notes.push(note);
                }
            }
        }
    }
    notes
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
