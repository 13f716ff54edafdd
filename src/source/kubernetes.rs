//! The Kubernetes API: every kind weir reads, watched, relisted after a dropped connection.
//!
//! Documents are taken as they come and parsed by [`crate::api`], so that an object that can not be read is refused by
//! itself and never ends the watch of its kind. Of Pods, Nodes and Namespaces only the metadata is asked for.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use futures::stream::{BoxStream, SelectAll};
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Change, LocatedProblem, Origin, change_from};
use crate::api::{self, Identity, Kind, ObjectKey, Problem};

/// Changes that go on in one batch at the most.
const BATCH: usize = 1024;

/// How often the API is asked for a kind that it did not have.
const ABSENT_KIND: Duration = Duration::from_secs(5);

/// Why the API can not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig can not be read, or there is none and this is no cluster.
    #[error("can not find out how to reach the Kubernetes API ({0}); give --kubeconfig FILE, or run inside a cluster")]
    Config(String),
    /// No client can be made of it.
    #[error("can not make a client for the Kubernetes API: {0}")]
    Client(#[from] kube::Error),
}

/// A client for the API: of `kubeconfig` where given, else of the cluster that weir runs in, else of the user's own
/// kubeconfig.
///
/// # Errors
/// There is no usable configuration.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, Error> {
    let mut config = match kubeconfig {
        Some(file) => {
            let parsed =
                Kubeconfig::read_from(file).map_err(|error| Error::Config(format!("{}: {error}", file.display())))?;
            Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
                .await
                .map_err(|error| Error::Config(format!("{}: {error}", file.display())))?
        }
        None => Config::infer().await.map_err(|error| Error::Config(error.to_string()))?,
    };
    // A watch is silent for as long as nothing changes; the API server ends it within five minutes.
    config.read_timeout = Some(Duration::from_secs(330));
    Ok(Client::try_from(config)?)
}

/// One event of a kind's watch, with documents instead of types.
#[derive(Debug)]
enum Event {
    /// A new list begins.
    Init,
    /// An object is in the list, or was changed.
    Apply(Value),
    /// The list is complete.
    InitDone,
    /// An object is gone.
    Delete(Value),
    /// The watch failed and is tried again.
    Failed(String),
    /// The API does not have the kind.
    Absent,
}

/// Follows all kinds, and hands changes on until nobody takes them. Says [`Change::Synced`] when the first list of every
/// kind is complete; a kind that the API does not have counts as complete and empty.
///
/// # Errors
/// None at present: failures are tried again and reported as [`Change::Trouble`].
pub async fn watch(client: Client, changes: mpsc::Sender<Vec<Change>>) -> Result<(), Error> {
    let mut events: SelectAll<_> = Kind::ALL.into_iter().map(|kind| events(&client, kind)).collect();
    let mut kinds: Vec<KindState> = Kind::ALL.into_iter().map(KindState::new).collect();
    let mut synced = false;
    while let Some(first) = events.next().await {
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some((kind, event)) = next {
            if let Some(state) = kinds.iter_mut().find(|state| state.kind == kind) {
                state.take(event, &mut batch);
            }
            // What is there already goes in the same batch; what is not is not waited for.
            next = if batch.len() < BATCH { futures::FutureExt::now_or_never(events.next()).flatten() } else { None };
        }
        if !synced && kinds.iter().all(|state| state.complete) {
            synced = true;
            batch.push(Change::Synced);
        }
        if !batch.is_empty() && changes.send(batch).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn events(client: &Client, kind: Kind) -> BoxStream<'static, (Kind, Event)> {
    let client = client.clone();
    let stream = futures::stream::unfold(None::<BoxStream<'static, Event>>, move |current| {
        let client = client.clone();
        async move {
            let mut current = current;
            loop {
                if let Some(stream) = &mut current
                    && let Some(event) = stream.next().await
                {
                    return Some((event, current));
                }
                match resource(&client, kind).await {
                    Ok(Some(resource)) => current = Some(watched(&client, kind, &resource)),
                    Ok(None) => return Some((Event::Absent, Some(later()))),
                    Err(error) => return Some((Event::Failed(error.to_string()), Some(later()))),
                }
            }
        }
    });
    stream.map(move |event| (kind, event)).boxed()
}

/// Nothing for a while, then the end.
fn later() -> BoxStream<'static, Event> {
    futures::stream::once(tokio::time::sleep(ABSENT_KIND)).filter_map(async |()| None).boxed()
}

/// The resource to watch: the first version of the kind that the API serves.
async fn resource(client: &Client, kind: Kind) -> Result<Option<ApiResource>, kube::Error> {
    for version in kind.versions() {
        let listed = if kind.group().is_empty() {
            client.list_core_api_resources(version).await
        } else {
            client.list_api_group_resources(&format!("{}/{version}", kind.group())).await
        };
        match listed {
            Ok(list) if list.resources.iter().any(|one| one.name == kind.plural()) => {
                let api_version =
                    if kind.group().is_empty() { (*version).to_owned() } else { format!("{}/{version}", kind.group()) };
                return Ok(Some(ApiResource {
                    group: kind.group().to_owned(),
                    version: (*version).to_owned(),
                    api_version,
                    kind: kind.as_str().to_owned(),
                    plural: kind.plural().to_owned(),
                }));
            }
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn watched(client: &Client, kind: Kind, resource: &ApiResource) -> BoxStream<'static, Event> {
    let config = watcher::Config::default().page_size(500);
    let gvk = (resource.api_version.clone(), resource.kind.clone());
    if kind.metadata_only() {
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client.clone(), resource);
        let document = move |object: PartialObjectMeta<DynamicObject>| {
            let mut metadata = object.metadata;
            metadata.managed_fields = None;
            json!({"apiVersion": gvk.0, "kind": gvk.1, "metadata": metadata})
        };
        flatten(watcher(api, config).default_backoff(), document)
    } else {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
        let document = move |mut object: DynamicObject| {
            object.metadata.managed_fields = None;
            let mut value = object.data;
            if let Value::Object(map) = &mut value {
                map.remove("status");
                map.insert("apiVersion".to_owned(), json!(gvk.0));
                map.insert("kind".to_owned(), json!(gvk.1));
                map.insert("metadata".to_owned(), json!(object.metadata));
            }
            value
        };
        flatten(watcher(api, config).default_backoff(), document)
    }
}

fn flatten<K: Send + 'static>(
    stream: impl futures::Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
    document: impl Fn(K) -> Value + Send + 'static,
) -> BoxStream<'static, Event> {
    let events = stream.map_ok(move |event| match event {
        watcher::Event::Init => Event::Init,
        watcher::Event::InitApply(object) | watcher::Event::Apply(object) => Event::Apply(document(object)),
        watcher::Event::InitDone => Event::InitDone,
        watcher::Event::Delete(object) => Event::Delete(document(object)),
    });
    events.map(|event| event.unwrap_or_else(|error| Event::Failed(error.to_string()))).boxed()
}

/// What is known of one kind.
struct KindState {
    kind: Kind,
    /// The first list has come in whole, or the API does not have the kind.
    complete: bool,
    /// The objects handed on, to find those that vanished while nobody watched.
    known: BTreeSet<ObjectKey>,
    /// The objects of the list that is coming in.
    listing: Option<BTreeSet<ObjectKey>>,
    in_trouble: bool,
}

impl KindState {
    fn new(kind: Kind) -> Self {
        Self { kind, complete: false, known: BTreeSet::new(), listing: None, in_trouble: false }
    }

    fn take(&mut self, event: Event, out: &mut Vec<Change>) {
        match event {
            Event::Init => self.listing = Some(BTreeSet::new()),
            Event::Apply(document) => self.apply(document, out),
            Event::InitDone => {
                let listed = self.listing.take().unwrap_or_default();
                out.extend(self.known.difference(&listed).cloned().map(Change::Delete));
                self.known = listed;
                self.complete = true;
                self.trouble(None, out);
            }
            Event::Delete(document) => {
                if let Ok(Identity::Known(key)) = api::identify(&document) {
                    self.known.remove(&key);
                    out.push(Change::Delete(key));
                }
            }
            Event::Failed(error) => {
                let message = format!("can not be watched, and is tried again: {error}; what is known stays in force");
                self.trouble(Some(message), out);
            }
            Event::Absent => {
                self.complete = true;
                let message = "the API does not have this kind (is its CustomResourceDefinition installed?); it is \
                               taken as empty and looked for again every few seconds";
                self.trouble(Some(message.to_owned()), out);
            }
        }
    }

    fn apply(&mut self, document: Value, out: &mut Vec<Change>) {
        // Without a name there is nothing that could be refused; the API server does not let that happen.
        let Ok(Identity::Known(key)) = api::identify(&document) else { return };
        self.known.insert(key.clone());
        if let Some(listing) = &mut self.listing {
            listing.insert(key.clone());
        } else {
            self.trouble(None, out);
        }
        let parsed = api::parse(&key, document, 0);
        out.push(change_from(key, parsed, Origin::Cluster, |_| Origin::Cluster));
    }

    fn trouble(&mut self, message: Option<String>, out: &mut Vec<Change>) {
        if message.is_none() && !self.in_trouble {
            return;
        }
        self.in_trouble = message.is_some();
        let subject = self.kind.plural().to_owned();
        let problems = message.into_iter().map(|message| LocatedProblem {
            origin: Origin::Cluster,
            problem: Problem::new(subject.clone(), message, ""),
        });
        let problems = problems.collect();
        out.push(Change::Trouble { subject, problems });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"}})
    }

    fn after(state: &mut KindState, events: Vec<Event>) -> Vec<String> {
        let mut out = Vec::new();
        events.into_iter().for_each(|event| state.take(event, &mut out));
        let text = |change: &Change| match change {
            Change::Apply { object, .. } => format!("+{}", object.meta.name),
            Change::Delete(key) => format!("-{}", key.name),
            Change::Trouble { problems, .. } => format!("trouble {}", problems.len()),
            other => format!("{other:?}"),
        };
        out.iter().map(text).collect()
    }

    #[test]
    fn a_second_list_deletes_what_vanished_meanwhile() {
        let mut state = KindState::new(Kind::Pod);
        let first = vec![Event::Init, Event::Apply(pod("a")), Event::Apply(pod("b"))];
        assert_eq!(after(&mut state, first), ["+a", "+b"]);
        assert!(!state.complete);
        after(&mut state, vec![Event::InitDone]);
        assert!(state.complete);
        let again = vec![Event::Failed("gone".into()), Event::Init, Event::Apply(pod("b")), Event::InitDone];
        assert_eq!(after(&mut state, again), ["trouble 1", "+b", "-a", "trouble 0"]);
        assert_eq!(after(&mut state, vec![Event::Delete(pod("b"))]), ["-b"]);
    }
}
