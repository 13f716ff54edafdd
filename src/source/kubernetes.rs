//! A source that watches every kind in the Kubernetes API and relists after failures.
//!
//! Documents are received untyped and parsed by [`crate::api`], so an unreadable object is rejected individually and
//! never ends the watch of its kind. For Pods, Nodes and Namespaces only metadata is requested.

mod document;
pub(crate) mod inventory;
mod kinds;
pub(crate) mod object_watch;
mod observed;
mod resync;
pub(crate) mod selection;
mod shared;
mod watches;

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{BoxStream, SelectAll};
use futures::{FutureExt, StreamExt};
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use self::document::Document;
use self::kinds::Failure;
use self::resync::Resync;
use self::selection::{Namespaces, Selection};
use self::watches::Watches;
use super::SourceEvent;
use super::freshness::Freshness;
use super::sync::{KindSync, LastAnswer, Verb};
use crate::api::{Kind, ObjectKey};

/// The maximum number of events per batch.
const BATCH: usize = 1024;

/// The interval at which a missing kind is looked for.
const ABSENT_KIND: Duration = Duration::from_secs(5);

/// The delay before a kind is relisted after the first failure; it doubles with each further failure.
const RETRY: Duration = Duration::from_millis(500);

/// The maximum delay.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// The longest delay before a namespace that joins is listed again.
const LIST_RETRY: Duration = Duration::from_secs(2);

/// How long a watch that was refused before must last until it counts as permitted.
const SETTLED: Duration = Duration::from_secs(3);

/// How long nothing may arrive on a connection to the API server, which sends a bookmark about every minute on each watch.
/// Thus an API server that is cut off without a word is noticed after this time at the latest.
const SILENT_WATCH: Duration = Duration::from_secs(150);

/// The objects per page of a list.
const PAGE: u32 = 500;

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
    // A watch on which not even bookmarks arrive is dead. It is resumed, so this costs little where there are none.
    config.read_timeout = Some(SILENT_WATCH);
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
    /// The watch after a list did not fail at once.
    Settled,
    /// An object was deleted.
    Delete(Value),
    /// The watch ended, and the watcher resumes it; after 410 (Gone) it lists the objects anew.
    Interrupted { lists: bool },
    /// The list or the watch failed and is retried.
    Failed(Failure),
    /// The API does not serve the kind.
    Absent,
}

/// An event of all that is read.
enum Item {
    Kind(Kind, Event),
    Listed(NamespaceListing),
}

/// All objects of a namespace, of each kind.
struct NamespaceListing {
    namespace: Arc<str>,
    /// What [`Watches`] gave to this listing.
    ticket: u64,
    kinds: Result<Vec<(Kind, Listed)>, String>,
}

/// What has to be listed when a namespace joins.
struct NamespaceRequest {
    namespace: Arc<str>,
    ticket: u64,
    /// The kinds that the API is known to serve: after a restart it takes a moment until it serves those of
    /// CustomResourceDefinitions again.
    served: BTreeSet<Kind>,
}

/// A complete list.
#[derive(Default)]
struct Listed {
    /// Its resource version, which is newer than every change that it includes.
    version: u64,
    documents: Vec<Value>,
}

/// Watches what is selected and sends events until the receiver is dropped. Sends [`SourceEvent::Synced`] once the first
/// list of every kind is complete; a kind that the API does not serve counts as complete and empty. While changes of a kind
/// may be missing, because its watch broke, those of others are sent after [`SourceEvent::Resyncing`]. `states` tells how far
/// each kind is.
///
/// # Errors
/// None: failures are retried and reported as [`SourceEvent::SourceProblems`].
pub(crate) async fn watch(
    client: Client,
    selection: Selection,
    states: watch::Sender<Vec<KindSync>>,
    changes: mpsc::Sender<Vec<SourceEvent>>,
) -> Result<(), Error> {
    let mut watches = Watches::new(&selection);
    let mut items = Items {
        client,
        selection,
        started: BTreeSet::new(),
        all: SelectAll::new(),
        reachable: watch::Sender::default(),
    };
    items.start(&mut watches);
    states.send_replace(watches.sync());
    let (mut synced, mut resync) = (false, Resync::default());
    loop {
        let mut batch = Vec::new();
        let mut next = tokio::select! {
            next = items.all.next() => match next {
                Some(item) => Some(item),
                None => return Ok(()),
            },
            () = tokio::time::sleep(resync::TICK), if resync.waits() => None,
        };
        while let Some(item) = next {
            match item {
                Item::Kind(kind, event) => watches.handle(kind, event, &mut batch),
                Item::Listed(listing) => watches.listed(listing, &mut batch),
            }
            // Events that are already available go into the same batch.
            next =
                if batch.len() < BATCH { items.all.next().now_or_never().flatten() } else { None };
        }
        items.start(&mut watches);
        let now = watches.sync();
        states.send_if_modified(|before| {
            *before != now && {
                *before = now;
                true
            }
        });
        if !synced && watches.complete() {
            synced = true;
            batch.push(SourceEvent::Synced);
        }
        let now = Instant::now();
        let (behind, changes_objects) = (watches.are_behind(now), batch.iter().any(is_of_object));
        batch.extend(resync.update(behind, changes_objects, now));
        if !batch.is_empty() && changes.send(batch).await.is_err() {
            return Ok(());
        }
    }
}

/// Whether an event concerns an object.
fn is_of_object(event: &SourceEvent) -> bool {
    matches!(event, SourceEvent::Apply { .. } | SourceEvent::Reject { .. } | SourceEvent::Delete(_))
}

/// The running watches and lists.
struct Items {
    client: Client,
    selection: Selection,
    started: BTreeSet<Kind>,
    all: SelectAll<BoxStream<'static, Item>>,
    /// Changes when the API answers again after it could not be reached.
    reachable: watch::Sender<()>,
}

impl Items {
    /// Starts the watches and lists that are due.
    fn start(&mut self, watches: &mut Watches) {
        for (kind, answered) in watches.startable() {
            if self.started.insert(kind) {
                let watch = KindWatch {
                    client: observed::client(&self.client, kind, answered.clone()),
                    namespaces: self.selection.namespaces.clone(),
                    kind,
                    answered,
                    reachable: self.reachable.clone(),
                };
                self.all.push(in_task(watch.events()));
            }
        }
        for request in watches.take_requests() {
            self.all.push(list_namespace(&self.client, request));
        }
    }
}

/// How the objects of one kind are watched.
struct KindWatch {
    /// Records the answers.
    client: Client,
    namespaces: Namespaces,
    kind: Kind,
    answered: LastAnswer,
    reachable: watch::Sender<()>,
}

/// The watch of one kind and its retry state.
#[derive(Default)]
struct WatchAttempt {
    /// The running watch, or the delay before the next one.
    stream: Option<BoxStream<'static, Event>>,
    /// Failures since the kind was last listed and watched.
    failures: u32,
    /// Whether the last failure was a watch that is not permitted: a complete list does not mend that.
    refused: bool,
    /// Whether the list is complete, but it is not known whether the watch is permitted.
    unsettled: bool,
    /// Whether the last attempt did not reach the API.
    unreachable: bool,
}

impl WatchAttempt {
    /// The next event; `None` at the end of the watch or of the delay.
    async fn next(&mut self, reachable: &watch::Sender<()>) -> Option<Event> {
        let stream = self.stream.as_mut()?;
        let next = stream.next();
        let event = if self.unsettled {
            match tokio::time::timeout(SETTLED, next).await {
                Ok(event) => event?,
                Err(_) => Event::Settled,
            }
        } else {
            next.await?
        };
        let unsettled = std::mem::take(&mut self.unsettled);
        match &event {
            Event::InitDone if self.refused => self.unsettled = true,
            Event::InitDone => self.failures = 0,
            Event::Failed(failure) => self.failed(failure, reachable),
            Event::Settled => (self.failures, self.refused) = (0, false),
            Event::Apply(_) | Event::Delete(_) if unsettled => {
                (self.failures, self.refused) = (0, false);
            }
            _ => {}
        }
        Some(event)
    }

    /// Starts over after a failure, including discovery of the served version: resuming the old watch would neither
    /// clear the problem nor notice that the API now serves another version.
    fn failed(&mut self, failure: &Failure, reachable: &watch::Sender<()>) {
        self.refused = failure.forbidden && failure.verb == Verb::Watch;
        let longest = RETRY.saturating_mul(1 << self.failures.min(16)).min(LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        // Jitter spreads the retries of kinds and replicas.
        let delay = longest.mul_f64(jitter());
        self.unreachable = failure.unreachable;
        self.stream = Some(match failure.unreachable {
            true => pause_until_reachable(delay, reachable.subscribe()),
            false => pause(delay),
        });
    }

    /// The API answered. If it could not be reached before, the other kinds need not wait any longer: each change is then
    /// seen soon after those that were written before it.
    fn reached(&mut self, reachable: &watch::Sender<()>) {
        if std::mem::take(&mut self.unreachable) {
            self.failures = 0;
            reachable.send_replace(());
        }
    }
}

/// A random number from 0.5 to 1.
fn jitter() -> f64 {
    0.5 + 0.5 * (RandomState::new().hash_one(()) as f64 / u64::MAX as f64)
}

impl KindWatch {
    /// The events of the kind. They do not end.
    fn events(self) -> BoxStream<'static, Item> {
        let (kind, watch) = (self.kind, Arc::new(self));
        let stream = futures::stream::unfold(WatchAttempt::default(), move |mut attempt| {
            let watch = watch.clone();
            async move {
                let event = watch.next(&mut attempt).await;
                Some((event, attempt))
            }
        });
        stream.map(move |event| Item::Kind(kind, event)).boxed()
    }

    async fn next(&self, attempt: &mut WatchAttempt) -> Event {
        loop {
            if let Some(event) = attempt.next(&self.reachable).await {
                return event;
            }
            match resource(&self.client, self.kind).await {
                Ok(Some(resource)) => {
                    attempt.reached(&self.reachable);
                    attempt.stream = Some(self.watched(resource));
                }
                Ok(None) => {
                    attempt.reached(&self.reachable);
                    self.answered.arrived();
                    attempt.stream = Some(pause(ABSENT_KIND));
                    return Event::Absent;
                }
                Err(error) => {
                    let failure = failure(Verb::List, &error);
                    attempt.failed(&failure, &self.reachable);
                    return Event::Failed(failure);
                }
            }
        }
    }

    fn watched(&self, resource: ApiResource) -> BoxStream<'static, Event> {
        if self.kind.metadata_only() {
            self.documents::<true>(resource)
        } else {
            self.documents::<false>(resource)
        }
    }

    fn documents<const METADATA: bool>(&self, resource: ApiResource) -> BoxStream<'static, Event> {
        let client = self.client.clone();
        let api: Api<Document<METADATA>> = match &self.namespaces {
            Namespaces::One(name) => Api::namespaced_with(client, name, &resource),
            Namespaces::All | Namespaces::Matching(_) => Api::all_with(client, &resource),
        };
        let watch = watcher(api, watcher::Config::default().page_size(PAGE)).default_backoff();
        flatten(watch, move |object| object.of(&resource))
    }
}

/// Has a task of its own read a stream, so that kinds are read at the same time: decoding their lists is most of the time
/// until weir is ready. The task ends with the stream that is returned.
fn in_task(mut stream: BoxStream<'static, Item>) -> BoxStream<'static, Item> {
    let (sender, receiver) = mpsc::channel(BATCH);
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(item) = stream.next().await {
            if sender.send(item).await.is_err() {
                return;
            }
        }
    }));
    let items = futures::stream::unfold((receiver, task), async |(mut receiver, task)| {
        match receiver.recv().await {
            Some(item) => Some((item, (receiver, task))),
            None => match task.await.map_err(JoinError::try_into_panic) {
                Err(Ok(panic)) => std::panic::resume_unwind(panic),
                _ => None,
            },
        }
    });
    items.boxed()
}

/// Lists all objects of a namespace. A failure arrives after a delay, so that the next attempt may follow at once.
fn list_namespace(client: &Client, request: NamespaceRequest) -> BoxStream<'static, Item> {
    let client = client.clone();
    let listing = async move {
        let NamespaceRequest { namespace, ticket, served } = request;
        let kinds = Kind::ALL.into_iter().filter(|kind| kind.namespaced());
        let kinds = kinds.map(async |kind| match list(&client, kind, &namespace).await {
            Ok(Some(listed)) => Ok((kind, listed)),
            Ok(None) if served.contains(&kind) => {
                Err(format!("the API does not serve {} at the moment", kind.resource()))
            }
            Ok(None) => Ok((kind, Listed::default())),
            Err(error) => Err(reason(&error)),
        });
        let kinds = futures::future::try_join_all(kinds).await;
        if let Err(reason) = &kinds {
            tracing::warn!(%namespace, error = reason, "cannot list a namespace; retrying");
            tokio::time::sleep(LIST_RETRY.mul_f64(jitter())).await;
        }
        Item::Listed(NamespaceListing { namespace, ticket, kinds })
    };
    futures::stream::once(listing).boxed()
}

/// Lists all objects of a kind in a namespace; `None` if the API does not serve the kind.
async fn list(client: &Client, kind: Kind, namespace: &str) -> Result<Option<Listed>, kube::Error> {
    let Some(resource) = resource(client, kind).await? else {
        return Ok(None);
    };
    list_pages(client, &resource, Some(namespace), kind.metadata_only()).await.map(Some)
}

/// Lists all objects of a resource, in one namespace or in all.
async fn list_pages(
    client: &Client,
    resource: &ApiResource,
    namespace: Option<&str>,
    metadata_only: bool,
) -> Result<Listed, kube::Error> {
    if metadata_only {
        list_documents::<true>(client, resource, namespace).await
    } else {
        list_documents::<false>(client, resource, namespace).await
    }
}

async fn list_documents<const METADATA: bool>(
    client: &Client,
    resource: &ApiResource,
    namespace: Option<&str>,
) -> Result<Listed, kube::Error> {
    let client = client.clone();
    let api: Api<Document<METADATA>> = match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, resource),
        None => Api::all_with(client, resource),
    };
    let mut params = ListParams::default().limit(PAGE);
    let mut listed = Listed::default();
    loop {
        let page = api.list(&params).await?;
        listed.documents.extend(page.items.into_iter().map(|object| object.of(resource)));
        let page = page.metadata;
        if params.continue_token.is_none() {
            let version = page.resource_version.as_deref().map(str::parse);
            listed.version = version.and_then(Result::ok).unwrap_or_default();
        }
        match page.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(listed),
        }
    }
}

fn failure(verb: Verb, error: &kube::Error) -> Failure {
    let forbidden = matches!(error, kube::Error::Api(status) if status.code == 403);
    let unreachable = !matches!(error, kube::Error::Api(_));
    Failure { verb, forbidden, unreachable, reason: reason(error) }
}

/// A stream that ends after a delay.
fn pause(time: Duration) -> BoxStream<'static, Event> {
    futures::stream::once(tokio::time::sleep(time)).filter_map(async |()| None).boxed()
}

/// Like [`pause`], but ends early when the API answers another kind.
fn pause_until_reachable(
    time: Duration,
    mut reachable: watch::Receiver<()>,
) -> BoxStream<'static, Event> {
    let pause = async move {
        // It fails if nothing is watched any more.
        let _ = tokio::time::timeout(time, reachable.changed()).await;
    };
    futures::stream::once(pause).filter_map(async |()| None).boxed()
}

/// The API's message, or else the error with its chain of causes.
pub(crate) fn reason(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    with_causes(error)
}

/// An error with its chain of causes.
pub(crate) fn with_causes(error: &dyn StdError) -> String {
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
pub(crate) async fn freshness(client: &Client, key: &ObjectKey) -> Result<Freshness, String> {
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
///
/// # Errors
/// The API cannot be asked.
pub(crate) async fn resource(
    client: &Client,
    kind: Kind,
) -> Result<Option<ApiResource>, kube::Error> {
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
            Err(watcher::Error::WatchError(status)) if status.code == 410 => {
                Some(Event::Interrupted { lists: true })
            }
            // The connection broke: the watcher resumes, and reports an error if it cannot.
            Err(watcher::Error::WatchFailed(_)) if !std::mem::replace(&mut broken, true) => {
                Some(Event::Interrupted { lists: false })
            }
            Err(error) => Some(Event::Failed(match &error {
                watcher::Error::InitialListFailed(error) => failure(Verb::List, error),
                watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
                    failure(Verb::Watch, error)
                }
                watcher::Error::WatchError(status) => Failure {
                    verb: Verb::Watch,
                    forbidden: status.code == 403,
                    unreachable: false,
                    reason: status.message.clone(),
                },
                watcher::Error::NoResourceVersion => {
                    let reason = error.to_string();
                    Failure { verb: Verb::List, forbidden: false, unreachable: false, reason }
                }
            })),
        };
        std::future::ready(event)
    });
    events.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

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
