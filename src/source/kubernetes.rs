//! The Kubernetes API: every kind weir reads, watched, relisted after a dropped connection.
//!
//! Documents are taken as they come and parsed by [`crate::api`], so that an object that can not be read is refused by
//! itself and never ends the watch of its kind. Of Pods, Nodes and Namespaces only the metadata is asked for.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::Duration;

use futures::stream::{BoxStream, SelectAll};
use futures::{FutureExt, StreamExt};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::newest::Newest;
use super::{Change, LocatedProblem, Origin, change_from};
use crate::api::{self, Identity, Kind, ObjectKey, Problem};

/// Changes that go on in one batch at the most.
const BATCH: usize = 1024;

/// How often the API is asked for a kind that it did not have.
const ABSENT_KIND: Duration = Duration::from_secs(5);

/// How long after a failure a kind is listed anew: this long after the first, twice as long after each that follows.
const RETRY: Duration = Duration::from_millis(500);

/// The longest such wait.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

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
            next = if batch.len() < BATCH { events.next().now_or_never().flatten() } else { None };
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

/// How far the watching of a kind has come.
#[derive(Default)]
struct Attempt {
    /// The watch that is under way, or the wait before the next one.
    stream: Option<BoxStream<'static, Event>>,
    /// Failures since the last complete list.
    failures: u32,
}

impl Attempt {
    /// After a failure everything begins anew, with the question which version the API serves by now: a watch that is
    /// only taken up again would not tell that it is well, nor ever find a version that has taken the place of its own.
    fn failed(&mut self) {
        let longest = RETRY.saturating_mul(1 << self.failures.min(16)).min(LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        // Not all kinds, nor all of weir's replicas, at the same moment.
        let part = 0.5 + 0.5 * (RandomState::new().hash_one(()) as f64 / u64::MAX as f64);
        self.stream = Some(pause(longest.mul_f64(part)));
    }
}

fn events(client: &Client, kind: Kind) -> BoxStream<'static, (Kind, Event)> {
    let client = client.clone();
    let stream = futures::stream::unfold(Attempt::default(), move |mut attempt| {
        let client = client.clone();
        async move {
            loop {
                if let Some(stream) = &mut attempt.stream
                    && let Some(event) = stream.next().await
                {
                    match &event {
                        Event::InitDone => attempt.failures = 0,
                        Event::Failed(_) => attempt.failed(),
                        _ => {}
                    }
                    return Some((event, attempt));
                }
                match resource(&client, kind).await {
                    Ok(Some(resource)) => attempt.stream = Some(watched(&client, kind, &resource)),
                    Ok(None) => {
                        attempt.stream = Some(pause(ABSENT_KIND));
                        return Some((Event::Absent, attempt));
                    }
                    Err(error) => {
                        attempt.failed();
                        return Some((Event::Failed(reason(&error)), attempt));
                    }
                }
            }
        }
    });
    stream.map(move |event| (kind, event)).boxed()
}

/// Nothing for a while, then the end.
fn pause(time: Duration) -> BoxStream<'static, Event> {
    futures::stream::once(tokio::time::sleep(time)).filter_map(async |()| None).boxed()
}

/// What the API said; where it said nothing, the error with what caused it, down to what the system said.
fn reason(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors say what caused them, and also give it.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// How new an object is in the API.
///
/// # Errors
/// Why the API does not say.
pub async fn newest(client: &Client, key: &ObjectKey) -> Result<Newest, String> {
    let found = async {
        let Some(resource) = resource(client, key.kind).await? else { return Ok(None) };
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &resource);
        api.get_metadata_opt(&key.name).await
    };
    match found.await {
        Ok(Some(object)) => Ok(Newest::Generation(object.metadata.generation.unwrap_or_default())),
        Ok(None) => Ok(Newest::Absent),
        Err(error) => Err(reason(&error)),
    }
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
    let mut broken = false;
    let events = stream.filter_map(move |event| {
        let event = match event {
            Ok(event) => {
                broken = false;
                Some(match event {
                    watcher::Event::Init => Event::Init,
                    watcher::Event::InitApply(object) | watcher::Event::Apply(object) => Event::Apply(document(object)),
                    watcher::Event::InitDone => Event::InitDone,
                    watcher::Event::Delete(object) => Event::Delete(document(object)),
                })
            }
            // What it was watching from is too old for the API: the watcher lists anew by itself.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => None,
            // A connection broke: the watcher goes on from where it was, and says so if it can not.
            Err(watcher::Error::WatchFailed(_)) if !std::mem::replace(&mut broken, true) => None,
            Err(error) => Some(Event::Failed(match &error {
                watcher::Error::InitialListFailed(error)
                | watcher::Error::WatchStartFailed(error)
                | watcher::Error::WatchFailed(error) => reason(error),
                watcher::Error::WatchError(status) => status.message.clone(),
                watcher::Error::NoResourceVersion => error.to_string(),
            })),
        };
        std::future::ready(event)
    });
    events.boxed()
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
    /// What was last said to be wrong.
    trouble: Option<String>,
}

impl KindState {
    fn new(kind: Kind) -> Self {
        Self { kind, complete: false, known: BTreeSet::new(), listing: None, trouble: None }
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
                let now = if self.complete { "what is known stays in force" } else { "weir is not ready until it is" };
                self.trouble(Some(format!("can not be watched, and is tried again: {error}; {now}")), out);
            }
            Event::Absent => {
                self.complete = true;
                let now = if self.known.is_empty() { "it is taken as empty" } else { "what is known stays in force" };
                let message = format!(
                    "the API does not have this kind (is its CustomResourceDefinition installed?); {now}, and it is \
                     looked for again every few seconds"
                );
                self.trouble(Some(message), out);
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
        if message == self.trouble {
            return;
        }
        self.trouble.clone_from(&message);
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

    #[test]
    fn what_is_wrong_is_said_once() {
        let mut state = KindState::new(Kind::VirtualService);
        assert_eq!(after(&mut state, vec![Event::Absent, Event::Absent, Event::Absent]), ["trouble 1"]);
        let failed = || Event::Failed("no route".into());
        assert_eq!(after(&mut state, vec![failed(), failed(), failed()]), ["trouble 1"]);
        assert_eq!(after(&mut state, vec![Event::Init, Event::InitDone]), ["trouble 0"]);
        assert_eq!(after(&mut state, vec![Event::Init, Event::InitDone]), [""; 0]);
    }

    #[test]
    fn a_reason_goes_down_to_what_the_system_said() {
        let inner = std::io::Error::other("connection refused");
        let error = kube::Error::Service(Box::new(inner));
        let text = reason(&error);
        assert!(text.ends_with("connection refused") && text.matches("refused").count() == 1, "{text}");
    }
}
