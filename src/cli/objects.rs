//! Loads objects from files for one-shot commands and prints their problems to standard error.

use std::collections::BTreeSet;
use std::path::Path;

use super::usage;
use crate::api::{Kind, ObjectKey};
use crate::mesh::{self, Mesh, MeshBuilder, MeshConfig, Proxy};
use crate::rollout_guard::{HeldChange, RolloutGuard};
use crate::source;
use crate::store::Store;

/// Objects and the mesh built from them.
#[derive(Debug)]
pub struct Objects {
    /// The objects.
    pub store: Store,
    /// The effective mesh of a `weir serve` started with these objects.
    pub mesh: Mesh,
    /// The changes that are held back.
    pub held: Vec<HeldChange>,
    /// The number of problems, without warnings.
    pub problems: usize,
}

impl Objects {
    /// Reads a file or folder.
    ///
    /// # Errors
    /// It cannot be read at all.
    pub fn load(path: &Path, config: MeshConfig) -> anyhow::Result<Self> {
        let (mut store, mut dirty) = (Store::default(), BTreeSet::new());
        let changes = source::directory::load_revision(path, config.revision.clone())
            .map_err(|error| usage(error.to_string()))?;
        for change in changes {
            store.apply(change, &mut dirty);
        }
        let mut problems = 0;
        for (key, list) in store.rejected() {
            list.iter().for_each(|item| eprintln!("{}: {key}: {}", item.origin, item.problem));
            problems += list.len();
        }
        for (_, list) in store.source_problems() {
            list.iter().for_each(|item| eprintln!("{item}"));
            problems += list.len();
        }
        for (key, list) in store.warnings() {
            list.iter()
                .for_each(|item| eprintln!("{}: {key}: warning: {}", item.origin, item.problem));
        }
        let wanted = MeshBuilder::new(config).update(&store, &dirty);
        let (mesh, held) = RolloutGuard::default().apply(wanted);
        Ok(Self { store, mesh, held, problems })
    }

    /// The proxy of a pod, `NAMESPACE/POD`; if `known`, the pod must be among the objects.
    ///
    /// # Errors
    /// The name is malformed or the pod does not exist.
    pub fn proxy(&self, name: &str, known: bool) -> anyhow::Result<Proxy> {
        let (namespace, pod) = mesh::pod_name(name).map_err(usage)?;
        if known && !self.has_pod(name) {
            let key = ObjectKey::new(Kind::Pod, namespace, pod);
            anyhow::bail!("{key} is not among the objects");
        }
        Ok(mesh::proxy_of_pod(&self.store, &self.mesh.config, namespace, pod)?)
    }

    /// Whether a pod, `NAMESPACE/POD`, is among the objects.
    pub(crate) fn has_pod(&self, name: &str) -> bool {
        let pod = mesh::pod_name(name).ok();
        pod.is_some_and(|(ns, pod)| self.store.get(&ObjectKey::new(Kind::Pod, ns, pod)).is_some())
    }
}
