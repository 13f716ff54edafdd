//! *Switch*: gives the client each listener and virtual host as soon as every cluster that it references is made.

use std::collections::BTreeMap;

use super::Stream;
use super::gate::{self, Chosen, ClusterReadiness};
use super::subscription::View;
use crate::snapshot::{ResourceType, Resources};

impl Stream {
    /// Gives the client those listeners and virtual hosts of which all clusters are made.
    pub(super) fn switch(&mut self) {
        self.leaving.clear();
        let Some(target) = self.target.clone() else {
            return;
        };
        // A client's first listeners and routes come only when it has its first clusters.
        if !self.started && self.awaits_clusters() {
            self.waiting = self.asks_for_routes();
            return;
        }
        if !self.started {
            let next_references = self.next_references();
            let needed = |name: &str| {
                next_references
                    .as_ref()
                    .is_none_or(|next_references| next_references.contains(name))
            };
            let mut clusters = target.get(ResourceType::Cluster).keys().filter(|name| needed(name));
            self.waiting = clusters.any(|name| self.readiness(name) == ClusterReadiness::Making);
            self.started = self.asks_for_routes() && !self.waiting;
        }
        if !self.started {
            return;
        }
        self.waiting = false;
        let again = std::mem::take(&mut self.choose_again);
        for kind in [ResourceType::Listener, ResourceType::Route] {
            let wanted = target.get(kind);
            let live = match &self.live {
                [listeners, _] if kind == ResourceType::Listener => listeners,
                [_, routes] => routes,
            };
            let chosen = if live.ptr_eq(wanted) && !again {
                Chosen::default()
            } else {
                let has = |name: &str| self.get(kind).form(name);
                gate::choose(kind, wanted, has, |cluster| self.readiness(cluster))
            };
            self.waiting |= chosen.waiting && self.get(kind).subscribed;
            self.leaving.extend(chosen.leaving);
            let live = chosen.resources.unwrap_or_else(|| wanted.clone());
            let ([listeners, routes], [held_listeners, held_routes]) =
                (&mut self.live, &mut self.held);
            match kind {
                ResourceType::Listener => (*listeners, *held_listeners) = (live, chosen.held),
                _ => (*routes, *held_routes) = (live, chosen.held),
            }
        }
    }
}

/// The forms of `live`. What is to be there but waits is not to be told as missing.
pub(super) fn given(live: &Resources, target: &Resources) -> View {
    let mut kept = BTreeMap::new();
    if !live.ptr_eq(target) {
        let waits = target.keys().filter(|name| !live.contains_key(name));
        kept.extend(waits.map(|name| (name.clone(), None)));
    }
    View { base: live.clone(), target: target.clone(), kept }
}
