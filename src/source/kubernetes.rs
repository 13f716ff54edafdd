//! A source that watches every kind in the Kubernetes API and relists after failures.
//!
//! Documents are received untyped and parsed by [`crate::api`], so an unreadable object is rejected individually and
//! never ends the watch of its kind. For Pods, Nodes and Namespaces only metadata is requested.

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

use super::freshness::Freshness;
use super::{LocatedProblem, Origin, SourceEvent, event_from};
use crate::api::{self, Identity, Kind, ObjectKey, Problem};

/// The maximum number of events per batch.
const BATCH: usize = 1024;

/// The interval at which a missing kind is looked for.
const ABSENT_KIND: Duration = Duration::from_secs(5);

/// The delay before a kind is relisted after the first failure; it doubles with each further failure.
const RETRY: Duration = Duration::from_millis(500);

/// The maximum delay.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// Why the API cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be read, or there is none and weir does not run in a cluster.
    #[error(
        "cannot determine how to reach the Kubernetes API ({0}); use --kubeconfig FILE, or run inside a cluster"
    )]
    Config(String),
    /// No client can be created from it.
    #[error("cannot create a client for the Kubernetes API: {0}")]
    Client(#[from] kube::Error),
}

/// Creates a client from `kubeconfig` if given, else from the cluster that weir runs in, else from the user's default
/// kubeconfig.
///
/// # Errors
/// There is no usable configuration.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, Error> {
    let mut config = match kubeconfig {
        Some(file) => {
            let parsed = Kubeconfig::read_from(file)
                .map_err(|error| Error::Config(format!("{}: {error}", file.display())))?;
            Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
                .await
                .map_err(|error| Error::Config(format!("{}: {error}", file.display())))?
        }
        None => Config::infer().await.map_err(|error| Error::Config(error.to_string()))?,
    };
    // A watch is silent while nothing changes; the API server closes it within five minutes.
    config.read_timeout = Some(Duration::from_secs(330));
    Ok(Client::try_from(config)?)
}

/// A watch event of one kind with an untyped document.
#[derive(Debug)]
enum Event {
    /// A list starts.
    Init,
    /// An object was listed or changed.
    Apply(Value),
    /// The list is complete.
    InitDone,
    /// An object was deleted.
    Delete(Value),
    /// The watch failed and is retried.
    Failed(String),
    /// The API does not serve the kind.
    Absent,
}

/// Watches all kinds and sends events until the receiver is dropped. Sends [`SourceEvent::Synced`] once the first list
/// of every kind is complete; a kind that the API does not serve counts as complete and empty.
///
/// # Errors
/// None: failures are retried and reported as [`SourceEvent::SourceProblems`].
pub async fn watch(client: Client, changes: mpsc::Sender<Vec<SourceEvent>>) -> Result<(), Error> {
    let mut events: SelectAll<_> =
        Kind::ALL.into_iter().map(|kind| events(&client, kind)).collect();
    let mut kinds: Vec<KindState> = Kind::ALL.into_iter().map(KindState::new).collect();
    let mut synced = false;
    while let Some(first) = events.next().await {
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some((kind, event)) = next {
            if let Some(state) = kinds.iter_mut().find(|state| state.kind == kind) {
                state.handle(event, &mut batch);
            }
            // Events that are already available go into the same batch.
            next = if batch.len() < BATCH { events.next().now_or_never().flatten() } else { None };
        }
        if !synced && kinds.iter().all(|state| state.complete) {
            synced = true;
            batch.push(SourceEvent::Synced);
        }
        if !batch.is_empty() && changes.send(batch).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The watch of one kind and its retry state.
#[derive(Default)]
struct WatchAttempt {
    /// The running watch, or the delay before the next one.
    stream: Option<BoxStream<'static, Event>>,
    /// Failures since the last complete list.
    failures: u32,
}

impl WatchAttempt {
    /// Starts over after a failure, including discovery of the served version: resuming the old watch would neither
    /// clear the problem nor notice that the API now serves another version.
    fn failed(&mut self) {
        let longest = RETRY.saturating_mul(1 << self.failures.min(16)).min(LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        // Jitter spreads the retries of kinds and replicas.
        let part = 0.5 + 0.5 * (RandomState::new().hash_one(()) as f64 / u64::MAX as f64);
        self.stream = Some(pause(longest.mul_f64(part)));
    }
}

fn events(client: &Client, kind: Kind) -> BoxStream<'static, (Kind, Event)> {
    let client = client.clone();
    let stream = futures::stream::unfold(WatchAttempt::default(), move |mut attempt| {
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

/// A stream that ends after a delay.
fn pause(time: Duration) -> BoxStream<'static, Event> {
    futures::stream::once(tokio::time::sleep(time)).filter_map(async |()| None).boxed()
}

/// The API's message, or else the error with its chain of causes.
fn reason(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors already include the text of their cause.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// The freshness of an object in the API.
///
/// # Errors
/// Why the API cannot tell.
pub async fn freshness(client: &Client, key: &ObjectKey) -> Result<Freshness, String> {
    let found = async {
        let Some(resource) = resource(client, key.kind).await? else {
            return Ok(None);
        };
        let api: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), &key.namespace, &resource);
        api.get_metadata_opt(&key.name).await
    };
    match found.await {
        Ok(Some(object)) => {
            Ok(Freshness::Generation(object.metadata.generation.unwrap_or_default()))
        }
        Ok(None) => Ok(Freshness::Absent),
        Err(error) => Err(reason(&error)),
    }
}

/// The resource to watch: the first supported version that the API serves.
async fn resource(client: &Client, kind: Kind) -> Result<Option<ApiResource>, kube::Error> {
    for version in kind.versions() {
        let listed = if kind.group().is_empty() {
            client.list_core_api_resources(version).await
        } else {
            client.list_api_group_resources(&format!("{}/{version}", kind.group())).await
        };
        match listed {
            Ok(list) if list.resources.iter().any(|resource| resource.name == kind.plural()) => {
                let api_version = if kind.group().is_empty() {
                    (*version).to_owned()
                } else {
                    format!("{}/{version}", kind.group())
                };
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
                    watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                        Event::Apply(document(object))
                    }
                    watcher::Event::InitDone => Event::InitDone,
                    watcher::Event::Delete(object) => Event::Delete(document(object)),
                })
            }
            // The resource version expired: the watcher relists by itself.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => None,
            // The connection broke: the watcher resumes, and reports an error if it cannot.
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

/// The state of one kind.
struct KindState {
    kind: Kind,
    /// Whether the first list is complete or the API does not serve the kind.
    complete: bool,
    /// The reported objects, to detect deletions between watches.
    known: BTreeSet<ObjectKey>,
    /// The objects of the list in progress.
    listing: Option<BTreeSet<ObjectKey>>,
    /// The last reported problem.
    source_problems: Option<String>,
}

impl KindState {
    fn new(kind: Kind) -> Self {
        Self { kind, complete: false, known: BTreeSet::new(), listing: None, source_problems: None }
    }

    fn handle(&mut self, event: Event, out: &mut Vec<SourceEvent>) {
        match event {
            Event::Init => self.listing = Some(BTreeSet::new()),
            Event::Apply(document) => self.apply(document, out),
            Event::InitDone => {
                let listed = self.listing.take().unwrap_or_default();
                out.extend(self.known.difference(&listed).cloned().map(SourceEvent::Delete));
                self.known = listed;
                self.complete = true;
                self.source_problems(None, out);
            }
            Event::Delete(document) => {
                if let Ok(Identity::Known(key)) = api::identify(&document) {
                    self.known.remove(&key);
                    out.push(SourceEvent::Delete(key));
                }
            }
            Event::Failed(error) => {
                let now = if self.complete {
                    "the last known objects stay active"
                } else {
                    "weir is not ready until \
                    it can be listed"
                };
                self.source_problems(
                    Some(format!("cannot be watched, retrying: {error}; {now}")),
                    out,
                );
            }
            Event::Absent => {
                self.complete = true;
                let now = if self.known.is_empty() {
                    "it counts as empty"
                } else {
                    "the last known objects stay \
                    active"
                };
                let message = format!(
                    "the API does not serve this kind (is its CustomResourceDefinition installed?); {now}, and weir \
                        looks for it every few seconds"
                );
                self.source_problems(Some(message), out);
            }
        }
    }

    fn apply(&mut self, document: Value, out: &mut Vec<SourceEvent>) {
        // Without a name nothing can be rejected; the API server guarantees one.
        let Ok(Identity::Known(key)) = api::identify(&document) else {
            return;
        };
        self.known.insert(key.clone());
        if let Some(listing) = &mut self.listing {
            listing.insert(key.clone());
        } else {
            self.source_problems(None, out);
        }
        let parsed = api::parse(&key, document, 0);
        out.push(event_from(key, parsed, Origin::Cluster, |_| Origin::Cluster));
    }

    fn source_problems(&mut self, message: Option<String>, out: &mut Vec<SourceEvent>) {
        if message == self.source_problems {
            return;
        }
        self.source_problems.clone_from(&message);
        let subject = self.kind.plural().to_owned();
        let problems = message.into_iter().map(|message| LocatedProblem {
            origin: Origin::Cluster,
            problem: Problem::new(subject.clone(), message, ""),
        });
        let problems = problems.collect();
        out.push(SourceEvent::SourceProblems { subject, problems });
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
        events.into_iter().for_each(|event| state.handle(event, &mut out));
        let text = |change: &SourceEvent| match change {
            SourceEvent::Apply { object, .. } => format!("+{}", object.meta.name),
            SourceEvent::Delete(key) => format!("-{}", key.name),
            SourceEvent::SourceProblems { problems, .. } => format!("trouble {}", problems.len()),
            other => format!("{other:?}"),
        };
        out.iter().map(text).collect()
    }

    #[test]
    fn a_relist_deletes_objects_that_disappeared() {
        let mut state = KindState::new(Kind::Pod);
        let first = vec![Event::Init, Event::Apply(pod("a")), Event::Apply(pod("b"))];
        assert_eq!(after(&mut state, first), ["+a", "+b"]);
        assert!(!state.complete);
        after(&mut state, vec![Event::InitDone]);
        assert!(state.complete);
        let again = vec![
            Event::Failed("gone".into()),
            Event::Init,
            Event::Apply(pod("b")),
            Event::InitDone,
        ];
        assert_eq!(after(&mut state, again), ["trouble 1", "+b", "-a", "trouble 0"]);
        assert_eq!(after(&mut state, vec![Event::Delete(pod("b"))]), ["-b"]);
    }

    #[test]
    fn a_problem_is_reported_once() {
        let mut state = KindState::new(Kind::VirtualService);
        assert_eq!(
            after(&mut state, vec![Event::Absent, Event::Absent, Event::Absent]),
            ["trouble 1"]
        );
        let failed = || Event::Failed("no route".into());
        assert_eq!(after(&mut state, vec![failed(), failed(), failed()]), ["trouble 1"]);
        assert_eq!(after(&mut state, vec![Event::Init, Event::InitDone]), ["trouble 0"]);
        assert_eq!(after(&mut state, vec![Event::Init, Event::InitDone]), [""; 0]);
    }

    #[test]
    fn a_reason_includes_the_system_error() {
        let inner = std::io::Error::other("connection refused");
        let error = kube::Error::Service(Box::new(inner));
        let text = reason(&error);
        assert!(
            text.ends_with("connection refused") && text.matches("refused").count() == 1,
            "{text}"
        );
    }
}
