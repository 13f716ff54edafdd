//! What one replica knows of every object: on how many of its proxies it is live, and on which it is not. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::published::{ObjectVersion, State};
use super::report::{ObjectState, Verdict};
use super::visibility::{ProxyGroup, VisibleObjects};
use crate::api::ObjectKey;
use crate::revision::MeshRevision;
use crate::xds::connections::ProxyStatus;

/// How many proxies and held-back changes a summary names.
pub(crate) const NAMED: usize = 5;

/// On how many of a replica's proxies an object is live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObjectSummary {
    /// The version in force; the default if no version was accepted yet.
    pub version: ObjectVersion,
    /// How many proxies see the object.
    pub in_scope: usize,
    /// How many of those have ACKed this version.
    pub live: usize,
    /// How many rejected it.
    pub rejected: usize,
    /// How many keep the previous version because the new one references a cluster that does not exist.
    pub held: usize,
    /// The first [`NAMED`] proxies that do not have it, those that rejected it first.
    pub missing: Vec<MissingProxy>,
    /// The first [`NAMED`] changes of it that are held back.
    pub held_changes: Vec<String>,
}

/// A proxy that does not have an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MissingProxy {
    /// `NAMESPACE/POD`.
    pub proxy: String,
    /// The state.
    pub state: ObjectState,
    /// Why it is not live.
    pub reason: String,
}

/// The summaries of a replica.
pub(crate) type Summaries = BTreeMap<ObjectKey, Arc<ObjectSummary>>;

/// Summarizes states of one replica, and remembers who sees which objects.
#[derive(Debug, Default)]
pub(crate) struct Summarizer {
    visible: VisibleObjects,
}

impl Summarizer {
    /// Summarizes every VirtualService and DestinationRule that has a version in force.
    pub(crate) fn summaries(&mut self, state: &State, connected: &[ProxyStatus]) -> Summaries {
        let Some(mesh) = &state.mesh else {
            return Summaries::new();
        };
        let mut proxies = self.visible.by_viewpoint(mesh, connected);
        let mut held: BTreeMap<&ObjectKey, Vec<String>> = BTreeMap::new();
        for change in state.held.iter() {
            for object in change.affected() {
                held.entry(object).or_default().push(change.to_string());
            }
        }
        let summaries = state.active.iter().map(|(key, active)| {
            let mut held_changes = held.remove(key).unwrap_or_default();
            held_changes.truncate(NAMED);
            let mut summary =
                ObjectSummary { version: active.version, held_changes, ..Default::default() };
            proxies.groups(key).for_each(|group| add(&mut summary, group, key, active.since));
            sort_missing(&mut summary);
            (key.clone(), Arc::new(summary))
        });
        summaries.collect()
    }
}

/// The summary of one object; `None` if it has no version in force.
pub(crate) fn summary(
    state: &State,
    connected: &[ProxyStatus],
    key: &ObjectKey,
) -> Option<ObjectSummary> {
    let (mesh, active) = (state.mesh.as_ref()?, state.active.get(key)?);
    let held = state.held.iter().filter(|held| held.object == *key || held.roots.contains(key));
    let held_changes = held.take(NAMED).map(ToString::to_string).collect();
    let mut summary = ObjectSummary { version: active.version, held_changes, ..Default::default() };
    let mut visible = VisibleObjects::default();
    let mut proxies = visible.by_viewpoint(mesh, connected);
    proxies.groups(key).for_each(|group| add(&mut summary, group, key, active.since));
    sort_missing(&mut summary);
    Some(summary)
}

/// Those that rejected the object stay among the named ones.
fn sort_missing(summary: &mut ObjectSummary) {
    summary.missing.sort_by_key(|proxy| std::cmp::Reverse(severity(proxy.state)));
    summary.missing.truncate(NAMED);
}

/// Counts proxies that see the object.
fn add(summary: &mut ObjectSummary, of: &ProxyGroup<'_>, key: &ObjectKey, since: MeshRevision) {
    summary.in_scope += of.proxies.len();
    if of.all_acked(since) {
        summary.live += of.proxies.len();
        return;
    }
    of.proxies.iter().for_each(|status| add_proxy(summary, status, key, since));
}

/// Adds what a proxy has of an object that it sees; it is in scope already.
fn add_proxy(
    summary: &mut ObjectSummary,
    status: &ProxyStatus,
    key: &ObjectKey,
    since: MeshRevision,
) {
    let verdict = Verdict::of(status, key, since);
    match verdict.state() {
        ObjectState::Live => {
            summary.live += 1;
            return;
        }
        ObjectState::Rejected => summary.rejected += 1,
        ObjectState::Held => summary.held += 1,
        ObjectState::Lagging => {}
    }
    if summary.missing.len() >= NAMED {
        // One that rejected it says more than one that is on its way.
        let less_severe = summary
            .missing
            .iter()
            .rposition(|proxy| severity(proxy.state) < severity(verdict.state()));
        let Some(place) = less_severe else { return };
        summary.missing.remove(place);
    }
    let proxy = format!("{}/{}", status.proxy.namespace, status.proxy.name);
    let (state, reason) = (verdict.state(), verdict.reason());
    summary.missing.push(MissingProxy { proxy, state, reason });
}

fn severity(state: ObjectState) -> u8 {
    match state {
        ObjectState::Live => 0,
        ObjectState::Lagging => 1,
        ObjectState::Held => 2,
        ObjectState::Rejected => 3,
    }
}
