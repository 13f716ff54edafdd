//! Where the objects of a mesh are: in the memory of a weir that was started for it, in a folder, or in a Kubernetes API.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Client, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::mesh::{Edit, LABEL};
use crate::api::{Identity, Kind, ObjectKey, identify};
use crate::source::kubernetes;
use crate::source::stdin::Line;

/// How many requests to the API are under way at once.
pub(crate) const CONCURRENCY: usize = 32;

/// How often a request is tried that the API refuses for a while, and the pause between.
const TRIES: usize = 50;
const AGAIN: Duration = Duration::from_millis(200);

/// A place for objects.
pub(crate) enum Objects {
    /// The standard input of a weir.
    Memory(tokio::sync::Mutex<Box<dyn AsyncWrite + Send + Unpin>>),
    /// A folder.
    Folder(PathBuf),
    /// A Kubernetes API.
    Kubernetes(Box<Cluster>),
}

impl Objects {
    /// How many edits may be under way at once.
    pub(crate) fn concurrency(&self) -> usize {
        match self {
            Self::Memory(_) | Self::Folder(_) => 1,
            Self::Kubernetes(_) => CONCURRENCY,
        }
    }

    /// Makes a change.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) async fn write(&self, edit: &Edit) -> anyhow::Result<()> {
        match self {
            Self::Memory(input) => {
                let lines = edit.changed.iter().cloned().map(Line::Apply);
                let lines: Vec<Line> =
                    lines.chain(edit.deleted.iter().cloned().map(Line::Delete)).collect();
                send(&mut **input.lock().await, &lines).await
            }
            Self::Folder(folder) => write_file(folder, &format!("{}.yaml", edit.file), &edit.whole),
            Self::Kubernetes(cluster) => {
                for object in &edit.changed {
                    cluster.apply(object).await?;
                }
                for object in &edit.deleted {
                    cluster.delete(object).await?;
                }
                Ok(())
            }
        }
    }

    /// Says that everything was written that exists at the beginning.
    ///
    /// # Errors
    /// It cannot be said.
    pub(crate) async fn complete(&self) -> anyhow::Result<()> {
        match self {
            Self::Memory(input) => send(&mut **input.lock().await, &[Line::Synced]).await,
            Self::Folder(_) | Self::Kubernetes(_) => Ok(()),
        }
    }
}

impl Objects {
    /// Deletes what was created in a Kubernetes API, unless interrupted.
    ///
    /// # Errors
    /// Something is left there.
    pub(crate) async fn close<T>(
        &self,
        interrupted: impl Future<Output = T>,
    ) -> anyhow::Result<()> {
        let Self::Kubernetes(cluster) = self else {
            return Ok(());
        };
        tokio::select! {
            removed = cluster.remove() => removed,
            _ = interrupted => anyhow::bail!(
                "interrupted while deleting namespaces; delete the rest with: \
                 kubectl delete namespaces -l {}={}", LABEL.0, LABEL.1
            ),
        }
    }
}

async fn send(input: &mut (dyn AsyncWrite + Send + Unpin), lines: &[Line]) -> anyhow::Result<()> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
    }
    let written = async {
        input.write_all(&text).await?;
        input.flush().await
    };
    written.await.context("weir no longer reads objects")
}

/// Writes objects to a file by rename, so that it is never seen half written. JSON is YAML.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write_file(folder: &Path, name: &str, objects: &[Value]) -> anyhow::Result<()> {
    let texts: Vec<String> = objects.iter().map(Value::to_string).collect();
    let temporary = folder.join(format!(".{name}"));
    std::fs::write(&temporary, texts.join("\n---\n"))
        .and_then(|()| std::fs::rename(&temporary, folder.join(name)))
        .with_context(|| format!("cannot write {}", folder.join(name).display()))
}

/// Objects in a Kubernetes API, in namespaces of their own.
pub(crate) struct Cluster {
    client: Client,
    resources: HashMap<Kind, ApiResource>,
    namespaces: Vec<String>,
    /// What was created.
    known: Mutex<HashSet<ObjectKey>>,
}

/// The kinds that are made, those first that others refer to.
const KINDS: [Kind; 6] = [
    Kind::Service,
    Kind::Pod,
    Kind::EndpointSlice,
    Kind::DestinationRule,
    Kind::VirtualService,
    Kind::ServiceEntry,
];

impl Cluster {
    /// In these namespaces, which do not exist yet.
    ///
    /// # Errors
    /// The API cannot be reached, or does not have the kinds.
    pub(crate) async fn new(client: Client, namespaces: Vec<String>) -> anyhow::Result<Self> {
        let mut resources = HashMap::new();
        for kind in KINDS {
            let found = kubernetes::resource(&client, kind).await?;
            let resource = found.with_context(|| {
                format!(
                    "the API does not serve {}; install Istio's CRDs: kubectl apply -k deploy/crds",
                    kind.plural()
                )
            })?;
            resources.insert(kind, resource);
        }
        Ok(Self { client, resources, namespaces, known: Mutex::default() })
    }

    /// Creates the namespaces.
    ///
    /// # Errors
    /// The API refuses, for example because one exists.
    pub(crate) async fn create_namespaces(&self) -> anyhow::Result<()> {
        for name in &self.namespaces {
            let object = json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": {LABEL.0: LABEL.1}},
            });
            let object: DynamicObject = serde_json::from_value(object)?;
            let made = self.namespace_api().create(&PostParams::default(), &object).await;
            made.with_context(|| format!("cannot create namespace {name}"))?;
        }
        Ok(())
    }

    fn namespace_api(&self) -> Api<DynamicObject> {
        let resource = ApiResource {
            group: String::new(),
            version: "v1".to_owned(),
            api_version: "v1".to_owned(),
            kind: "Namespace".to_owned(),
            plural: "namespaces".to_owned(),
        };
        Api::all_with(self.client.clone(), &resource)
    }

    fn api(&self, kind: Kind, namespace: &str) -> anyhow::Result<Api<DynamicObject>> {
        let resource =
            self.resources.get(&kind).with_context(|| format!("{kind:?} is not written"))?;
        Ok(Api::namespaced_with(self.client.clone(), namespace, resource))
    }

    /// Creates an object, or changes it if it was created before.
    ///
    /// # Errors
    /// The API refuses it.
    pub(crate) async fn apply(&self, object: &Value) -> anyhow::Result<()> {
        let key = key(object)?;
        let api = self.api(key.kind, &key.namespace)?;
        let is_known = self.known.lock().contains(&key);
        for attempt in 1.. {
            let written = if is_known {
                api.patch(&key.name, &PatchParams::default(), &Patch::Merge(object)).await
            } else {
                api.create(&PostParams::default(), &serde_json::from_value(object.clone())?).await
            };
            match written {
                Ok(_) => break,
                Err(error) if attempt < TRIES && is_temporary(&error) => {
                    tokio::time::sleep(AGAIN).await
                }
                Err(error) => return Err(error).with_context(|| format!("cannot write {key}")),
            }
        }
        self.known.lock().insert(key);
        Ok(())
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// The API refuses it.
    pub(crate) async fn delete(&self, object: &Value) -> anyhow::Result<()> {
        let key = key(object)?;
        let api = self.api(key.kind, &key.namespace)?;
        match api.delete(&key.name, &at_once()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error).with_context(|| format!("cannot delete {key}")),
        }
        self.known.lock().remove(&key);
        Ok(())
    }

    /// Deletes everything that was created.
    ///
    /// # Errors
    /// The API refuses it; what could be deleted is.
    pub(crate) async fn remove(&self) -> anyhow::Result<()> {
        let labelled = ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
        let all = self
            .namespaces
            .iter()
            .flat_map(|name| KINDS.into_iter().rev().map(move |kind| (kind, name)));
        let emptied = futures::stream::iter(all)
            .map(async |(kind, namespace)| {
                let api = self.api(kind, namespace)?;
                if kind != Kind::Service {
                    api.delete_collection(&at_once(), &labelled).await?;
                    return anyhow::Ok(());
                }
                // An API server before 1.26 cannot delete a collection of Services.
                for service in api.list(&labelled).await? {
                    api.delete(&service.name_any(), &at_once()).await?;
                }
                Ok(())
            })
            .buffer_unordered(CONCURRENCY)
            .try_collect::<Vec<()>>()
            .await;
        for name in &self.namespaces {
            match self.namespace_api().delete(name, &DeleteParams::default()).await {
                Ok(_) => {}
                // The bench ended before it was created.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot delete namespace {name}"));
                }
            }
        }
        emptied.map(|_| ()).context("cannot delete the objects of the bench")
    }
}

fn at_once() -> DeleteParams {
    DeleteParams { grace_period_seconds: Some(0), ..Default::default() }
}

fn key(object: &Value) -> anyhow::Result<ObjectKey> {
    match identify(object) {
        Ok(Identity::Known(key)) => Ok(key),
        _ => anyhow::bail!("not an object that weir knows: {object}"),
    }
}

/// Whether the API may accept the same request later: it is busy, or has not made the namespace's ServiceAccount yet,
/// which a pod needs.
fn is_temporary(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    matches!(status.code, 429 | 500..)
        || (status.code == 403 && status.message.contains("serviceaccount"))
}
