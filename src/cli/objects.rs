//! Objects from files for commands that run once: what is wrong with them goes to standard error.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::usage;
use crate::api;
use crate::guard::{Guard, Held};
use crate::mesh::{Builder, Locality, Mesh, MeshConfig, NodeMetadata, Proxy};
use crate::source;
use crate::store::Store;

/// Objects and the mesh they make.
#[derive(Debug)]
pub struct Objects {
    /// The objects.
    pub store: Store,
    /// The mesh as `weir serve` has it in force when it starts on these objects.
    pub mesh: Mesh,
    /// What is held back of what the objects say.
    pub held: Vec<Held>,
    /// How many problems were found, warnings not counted.
    pub problems: usize,
}

impl Objects {
    /// Reads a file or folder.
    ///
    /// # Errors
    /// It can not be read at all.
    pub fn load(path: &Path, config: MeshConfig) -> anyhow::Result<Self> {
        let (mut store, mut dirty) = (Store::default(), BTreeSet::new());
        let changes = source::directory::load_once(path).map_err(|error| usage(error.to_string()))?;
        for change in changes {
            store.apply(change, &mut dirty);
        }
        let mut problems = 0;
        for (key, list) in store.refused() {
            list.iter().for_each(|one| eprintln!("{}: {key}: {}", one.origin, one.problem));
            problems += list.len();
        }
        for (_, list) in store.trouble() {
            list.iter().for_each(|one| eprintln!("{one}"));
            problems += list.len();
        }
        for (key, list) in store.warnings() {
            list.iter().for_each(|one| eprintln!("{}: {key}: warning: {}", one.origin, one.problem));
        }
        let wanted = Builder::new(config).update(&store, &dirty);
        let (mesh, held) = Guard::default().apply(wanted);
        Ok(Self { store, mesh, held, problems })
    }

    /// The proxy of a pod, `NAMESPACE/POD`; with `known` the pod must be among the objects.
    ///
    /// # Errors
    /// The name is not of that form, or there is no such pod.
    pub fn proxy(&self, name: &str, known: bool) -> anyhow::Result<Proxy> {
        let Some((namespace, pod)) =
            name.split_once('/').filter(|(namespace, pod)| !namespace.is_empty() && !pod.is_empty())
        else {
            return Err(usage(format!("`{name}` is not of the form NAMESPACE/POD")));
        };
        let key = api::ObjectKey::new(api::Kind::Pod, namespace, pod);
        let object = self.store.get(&key).map(|entry| &entry.object);
        if object.is_none() && known {
            anyhow::bail!("there is no {key} among the objects");
        }
        let own = object.and_then(|object| match &object.spec {
            api::Spec::Pod(pod) if !pod.ip.is_empty() => Some(Arc::from(pod.ip.as_str())),
            _ => None,
        });
        let address = own.or_else(|| self.pod_address(namespace, pod)).unwrap_or_else(|| Arc::from("127.0.0.1"));
        let id = format!("sidecar~{address}~{pod}.{namespace}~{namespace}.svc.{}", self.mesh.config.domain);
        let labels = object.map(|object| object.meta.labels.clone()).unwrap_or_default();
        let metadata = NodeMetadata { labels, ..Default::default() };
        Ok(Proxy::new(&id, metadata, Locality::default())?)
    }

    /// Whether a pod, `NAMESPACE/POD`, is among the objects.
    pub fn has_pod(&self, name: &str) -> bool {
        let parts = name.split_once('/');
        parts.is_some_and(|(ns, pod)| self.store.get(&api::ObjectKey::new(api::Kind::Pod, ns, pod)).is_some())
    }

    /// A pod's address as the slices know it.
    fn pod_address(&self, namespace: &str, pod: &str) -> Option<Arc<str>> {
        let slices =
            self.store.all(api::Kind::EndpointSlice).filter(|entry| *entry.object.meta.namespace == *namespace);
        slices.into_iter().find_map(|entry| match &entry.object.spec {
            api::Spec::EndpointSlice(slice) => slice.endpoints.iter().find_map(|one| {
                let target = one.target_ref.as_ref()?;
                (target.kind == "Pod" && target.name == pod)
                    .then(|| one.addresses.first().map(|address| address.as_str().into()))?
            }),
            _ => None,
        })
    }
}
