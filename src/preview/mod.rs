//! What applying files to the objects that weir reads would change, before anyone applies them: which objects, which
//! resources of how many proxies, what becomes of given requests, and which problems come up. Pure.

mod replay;
mod resources;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) use replay::{Move, Recorded, Replay};
pub(crate) use resources::{ResourceChange, ResourceDifference};

use crate::analyze::{self, Finding};
use crate::api::{Kind, Object, ObjectKey};
use crate::explain::{self, TrafficQuery};
use crate::mesh::{Mesh, MeshBuilder, MeshConfig, Proxy, Scope};
use crate::rollout_guard::{HeldChange, RolloutGuard};
use crate::snapshot::SnapshotBuilder;
use crate::source::loader::{Content, Loader};
use crate::source::{LocatedProblem, SourceEvent};
use crate::store::Store;

/// A file by its path, which messages name, and its bytes.
pub(crate) type File = (PathBuf, Vec<u8>);

/// A request whose fate before and after is compared.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// The client.
    pub proxy: Arc<Proxy>,
    /// What it sends.
    pub traffic: TrafficQuery,
}

/// What would change.
#[derive(Debug, Default)]
pub(crate) struct Preview {
    /// The objects in the files, in the order of their keys.
    pub objects: Vec<(ObjectKey, ObjectChange)>,
    /// Problems of files that belong to no object.
    pub problems: Vec<LocatedProblem>,
    /// The number of proxies that would get something else.
    pub proxies: usize,
    /// The resources that some proxy would get, lose or get with another content.
    pub resources: Vec<ResourceDifference>,
    /// The text of [`explain`] before and after, for each sample.
    pub samples: Vec<[String; 2]>,
    /// What becomes of the recorded requests.
    pub replay: Replay,
    /// Findings of [`analyze`] that there would be, and are not now.
    pub findings: Vec<Finding>,
    /// The changes that would be held back, and are not now.
    pub held: Vec<HeldChange>,
}

/// What would become of an object.
#[derive(Debug)]
pub(crate) enum ObjectChange {
    /// There is none of this name yet.
    Created(Arc<Object>),
    /// It would have another content: before and after.
    Changed(Arc<Object>, Arc<Object>),
    /// It is as in the file.
    Unchanged,
    /// The file's version is not valid. The version in force would stay.
    Invalid(Vec<LocatedProblem>),
}

/// A state: the mesh that a weir started with its objects would serve.
struct State {
    store: Store,
    mesh: Mesh,
    held: Vec<HeldChange>,
}

impl State {
    fn new(store: Store, config: &MeshConfig) -> Self {
        let all: BTreeSet<ObjectKey> = Kind::ALL
            .into_iter()
            .flat_map(|kind| store.all(kind).map(|entry| entry.object.key()))
            .collect();
        let wanted = MeshBuilder::new(config.clone()).update(&store, &all);
        let (mesh, held) = RolloutGuard::default().apply(wanted);
        Self { store, mesh, held }
    }
}

/// The requests that are asked about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requests<'a> {
    /// Each is explained.
    pub samples: &'a [Sample],
    /// They are summed up.
    pub recorded: &'a [Recorded],
    /// Whether nothing else is asked, so that resources and findings are not compared.
    pub alone: bool,
}

/// What applying `files` to the objects of `store` would change for these proxies and requests.
pub(crate) fn preview(
    store: &Store,
    config: &MeshConfig,
    files: Vec<File>,
    proxies: &[Arc<Proxy>],
    requests: Requests<'_>,
) -> Preview {
    let mut preview = Preview::default();
    let changed = preview.apply(store, config, files);
    let [before, after] = [store.clone(), changed].map(|store| State::new(store, config));
    let mut snapshots = [SnapshotBuilder::default(), SnapshotBuilder::default()];
    replay::both(&[&before, &after], requests.samples, &mut snapshots, |_, answers| {
        preview.samples.push(answers.map(|answer| explain::text(&answer)));
    });
    preview.replay = replay::replay(&[&before, &after], requests.recorded, &mut snapshots);
    if requests.alone {
        return preview;
    }
    preview.compare(&before, &after, proxies, &mut snapshots);
    let known = analyze::analyze(&before.store, config);
    preview.findings = analyze::analyze(&after.store, config);
    preview.findings.retain(|finding| !known.iter().any(|other| is_same(finding, other)));
    preview.held = after.held;
    preview.held.retain(|change| !before.held.contains(change));
    preview
}

/// Whether two findings say the same: the origins differ between a file and the cluster.
fn is_same(a: &Finding, b: &Finding) -> bool {
    (a.code.id, &a.object, &a.path, &a.message) == (b.code.id, &b.object, &b.path, &b.message)
}

impl Preview {
    /// The objects with those of the files applied.
    fn apply(&mut self, store: &Store, config: &MeshConfig, files: Vec<File>) -> Store {
        let mut changed = store.clone();
        let files = files.into_iter().map(|(path, bytes)| (path, Content::Bytes(bytes)));
        for event in Loader::of_revision(config.revision.clone()).update(files) {
            match event {
                SourceEvent::Apply { object, origin, warnings } => {
                    let key = object.key();
                    let old = store.get(&key).map(|entry| &entry.object);
                    let change = judged(old, object);
                    if let Some(object) = change.object() {
                        let object = object.clone();
                        let event = SourceEvent::Apply { object, origin, warnings };
                        changed.apply(event, &mut BTreeSet::new());
                    }
                    self.objects.push((key, change));
                }
                SourceEvent::Reject { key, problems, .. } => {
                    self.objects.push((key, ObjectChange::Invalid(problems)));
                }
                SourceEvent::SourceProblems { problems, .. } => self.problems.extend(problems),
                SourceEvent::Delete(_)
                | SourceEvent::Synced
                | SourceEvent::Resyncing
                | SourceEvent::Barrier(_) => {}
            }
        }
        self.objects.sort_by(|a, b| a.0.cmp(&b.0));
        changed
    }

    /// Compares what the proxies get. Those of the same scopes get the same.
    fn compare(
        &mut self,
        before: &State,
        after: &State,
        proxies: &[Arc<Proxy>],
        [old, new]: &mut [SnapshotBuilder; 2],
    ) {
        let mut scopes: BTreeMap<(Scope, Scope), usize> = BTreeMap::new();
        for proxy in proxies {
            let pair = (before.mesh.scope(proxy), after.mesh.scope(proxy));
            *scopes.entry(pair).or_default() += 1;
        }
        let mut found = BTreeMap::new();
        for ((scope, next), count) in scopes {
            let old = old.snapshot(&before.mesh, &scope);
            let new = new.snapshot(&after.mesh, &next);
            if resources::compare(&old, &new, count, &mut found) {
                self.proxies += count;
            }
        }
        self.resources = found
            .into_iter()
            .map(|(place, proxies)| ResourceDifference::new(place, proxies))
            .collect();
    }
}

/// What an object of a file would do. It keeps the age of the object that it replaces, because applying it does.
fn judged(old: Option<&Arc<Object>>, new: Arc<Object>) -> ObjectChange {
    let Some(old) = old else {
        return ObjectChange::Created(new);
    };
    let mut next = (*new).clone();
    (next.meta.age, next.meta.generation) = (old.meta.age, old.meta.generation);
    if next == **old {
        return ObjectChange::Unchanged;
    }
    next.meta.generation += 1;
    ObjectChange::Changed(old.clone(), Arc::new(next))
}

impl ObjectChange {
    /// The new version, if there would be one.
    fn object(&self) -> Option<&Arc<Object>> {
        match self {
            Self::Created(object) | Self::Changed(_, object) => Some(object),
            Self::Unchanged | Self::Invalid(_) => None,
        }
    }
}
