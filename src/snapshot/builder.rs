//! Updates the snapshots of all scopes incrementally.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::parts::{Parts, WorkCounts};
use super::scope::{ScopeResources, Touched};
use super::sensitivity::Sensitivity;
use super::{OmittedResource, Snapshot};
use crate::api::ObjectKey;
use crate::mesh::{Certificates, Families, Interception, Mesh, MeshChange, Scope, ScopeView};
use crate::revision::{MeshRevision, Revision};

/// Builds snapshots and keeps those of the requested scopes up to date.
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    parts: Parts,
    mesh: Option<Arc<Mesh>>,
    revision: MeshRevision,
    scopes: HashMap<Scope, Entry>,
    /// How many scopes were dropped since the last search for unused parts.
    dropped: usize,
    /// Which hosts distinguish scopes, for the current mesh.
    sensitivity: Option<Sensitivity>,
    /// A scope of each family, and of each namespace in it, to derive others from.
    bases: HashMap<(Family, Option<Arc<str>>), Scope>,
}

/// Scopes that can be derived from each other.
type Family = (Interception, Families, Certificates, Option<(ObjectKey, Revision)>);

fn family(scope: &Scope) -> Family {
    (scope.interception, scope.families, scope.certificates, scope.sidecar.clone())
}

#[derive(Debug)]
struct Entry {
    /// How many proxies have it.
    users: usize,
    resources: ScopeResources,
    snapshot: Arc<Snapshot>,
}

impl SnapshotBuilder {
    /// Builds the snapshot of `scope` from scratch, using only cached parts.
    pub fn snapshot(&mut self, mesh: &Mesh, scope: &Scope) -> Snapshot {
        ScopeResources::build(mesh, scope, &mut self.parts).snapshot(MeshRevision::NONE)
    }

    /// Publishes a new state of the mesh. `published` is when its change arrived. Returns the difference from the
    /// previous state, if there was one.
    pub fn publish(
        &mut self,
        mesh: Mesh,
        revision: MeshRevision,
        published: Option<Instant>,
    ) -> Option<MeshChange> {
        let mesh = Arc::new(mesh);
        let change = self.mesh.as_ref().map(|old| MeshChange::between(old, &mesh));
        if let Some(change) = &change {
            let touched = Touched { hosts: change.hosts.clone(), ports: change.ports.clone() };
            for (scope, entry) in &mut self.scopes {
                entry.update(&mesh, scope, &touched, &mut self.parts, (revision, published));
            }
            self.parts.sweep(&change.hosts);
            if !change.ports.is_empty() {
                self.parts.sweep_listeners();
            }
            if !change.is_empty() {
                self.sensitivity = None;
            }
        }
        self.mesh = Some(mesh);
        self.revision = revision;
        change
    }

    /// The state of the mesh that was published last.
    pub(crate) fn mesh(&self) -> Option<&Arc<Mesh>> {
        self.mesh.as_ref()
    }

    /// The snapshot of a scope in the last published state, if any. It is kept up to date until each call has been
    /// followed by [`SnapshotBuilder::release`].
    pub fn acquire(&mut self, scope: &Scope) -> Option<Arc<Snapshot>> {
        if let Some(entry) = self.scopes.get_mut(scope) {
            entry.users += 1;
            return Some(entry.snapshot.clone());
        }
        let mesh = self.mesh.clone()?;
        // The cluster for unknown hosts may depend on what the namespace sees.
        let own_default = ScopeView::new(&mesh, scope).egress_proxy().is_some();
        let family = family(scope);
        let base = [Some(scope.namespace.clone()), None]
            .into_iter()
            .find_map(|namespace| self.bases.get(&(family.clone(), namespace)))
            // A scope with a different default cluster cannot be derived from another.
            .filter(|_| !own_default)
            .and_then(|base| self.scopes.get_key_value(base));
        let (resources, shared) = match base {
            Some((base, entry)) => {
                let sensitivity = self.sensitivity.get_or_insert_with(|| Sensitivity::new(&mesh));
                let touched = sensitivity.between(&mesh, base, scope);
                let mut resources = entry.resources.clone();
                resources.update(&mesh, scope, &touched, &mut self.parts);
                resources.update_own(&mesh, scope, &mut self.parts);
                let shared = resources.same(&entry.resources).then(|| entry.snapshot.clone());
                (resources, shared)
            }
            None => (ScopeResources::build(&mesh, scope, &mut self.parts), None),
        };
        let snapshot = shared.unwrap_or_else(|| Arc::new(resources.snapshot(self.revision)));
        for namespace in [Some(scope.namespace.clone()), None] {
            self.bases.entry((family.clone(), namespace)).or_insert_with(|| scope.clone());
        }
        let entry = Entry { users: 1, resources, snapshot: snapshot.clone() };
        self.scopes.insert(scope.clone(), entry);
        Some(snapshot)
    }

    /// The snapshot of a scope that is kept up to date.
    pub(crate) fn snapshot_of(&self, scope: &Scope) -> Option<Arc<Snapshot>> {
        self.scopes.get(scope).map(|entry| entry.snapshot.clone())
    }

    /// Adds the table of names to the snapshot of a scope that is kept up to date, and keeps it up to date as well.
    pub(crate) fn add_names(&mut self, scope: &Scope) {
        let Some(mesh) = self.mesh.clone() else {
            return;
        };
        if self.scopes.get(scope).is_none_or(|entry| entry.resources.names().is_some()) {
            return;
        }
        let family = family(scope);
        let mut others = self.scopes.iter().filter(|(other, _)| self::family(other) == family);
        let base = others.find_map(|(other, entry)| Some((other, entry.resources.names()?)));
        let base = base.map(|(other, table)| {
            let sensitivity = self.sensitivity.get_or_insert_with(|| Sensitivity::new(&mesh));
            (sensitivity.between(&mesh, other, scope).hosts, table.clone())
        });
        let Some(entry) = self.scopes.get_mut(scope) else {
            return;
        };
        let (resources, parts) = (&mut entry.resources, &mut self.parts);
        match base {
            Some((hosts, table)) => resources.derive_names(table, &hosts, (&mesh, scope), parts),
            None => resources.build_names(&mesh, scope, parts),
        }
        let Snapshot { revision, published, .. } = *entry.snapshot;
        let snapshot = Snapshot { published, ..resources.snapshot(revision) };
        entry.snapshot = Arc::new(snapshot);
    }

    /// Takes back one [`SnapshotBuilder::acquire`]. The last one drops the snapshot.
    pub fn release(&mut self, scope: &Scope) {
        let Some(entry) = self.scopes.get_mut(scope) else {
            return;
        };
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        self.scopes.remove(scope);
        let family = family(scope);
        for namespace in [Some(scope.namespace.clone()), None] {
            let key = (family.clone(), namespace.clone());
            if self.bases.get(&key) == Some(scope) {
                let other = self.scopes.keys().find(|other| {
                    self::family(other) == family
                        && namespace.as_ref().is_none_or(|namespace| other.namespace == *namespace)
                });
                match other {
                    Some(other) => self.bases.insert(key, other.clone()),
                    None => self.bases.remove(&key),
                };
            }
        }
        // Looking for unused parts takes time proportional to the mesh, so it waits until many scopes were dropped.
        self.dropped += 1;
        if self.dropped * 4 > self.scopes.len() {
            self.dropped = 0;
            self.parts.sweep_all();
        }
    }

    /// How many scopes are kept up to date.
    pub(crate) fn scopes(&self) -> usize {
        self.scopes.len()
    }

    /// The number of encoded parts.
    pub(crate) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Everything that was omitted from the current snapshots.
    pub(crate) fn omitted(&self) -> BTreeSet<&OmittedResource> {
        self.scopes.values().flat_map(|entry| entry.snapshot.omitted.iter()).collect()
    }

    /// The work done so far.
    pub(crate) fn counts(&self) -> WorkCounts {
        self.parts.counts
    }
}

impl Entry {
    fn update(
        &mut self,
        mesh: &Mesh,
        scope: &Scope,
        touched: &Touched,
        parts: &mut Parts,
        (revision, published): (MeshRevision, Option<Instant>),
    ) {
        let before = self.resources.clone();
        if !touched.hosts.is_empty() || !touched.ports.is_empty() {
            self.resources.update(mesh, scope, touched, parts);
        }
        let same = self.resources.same(&before);
        let mut snapshot =
            if same { (*self.snapshot).clone() } else { self.resources.snapshot(revision) };
        snapshot.revision = revision;
        snapshot.published = published;
        parts.counts.scopes_changed += u64::from(!same);
        self.snapshot = Arc::new(snapshot);
    }
}
