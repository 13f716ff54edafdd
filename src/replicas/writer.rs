//! Writes the status of objects while this replica is elected.

use std::collections::{BTreeMap, BTreeSet};
use std::future::ready;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::{BoxStream, SelectAll};
use futures::{FutureExt, StreamExt};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout_at};

use super::object::ApiObject;
use super::queue::{Next, Queue};
use super::{PACE, PeerReader, Replicas, Summaries, answers};
use crate::api::{Kind, ObjectKey};
use crate::source::kubernetes::{reason, resource};
use crate::status::{Conditions, conditions};
use crate::timer::at;

/// The field manager of weir's conditions.
const MANAGER: &str = "weir";

/// The kinds that have a status.
const KINDS: [Kind; 2] = [Kind::VirtualService, Kind::DestinationRule];

/// The delay before a kind is listed again after a failure, or looked for if the API does not serve it.
const RELIST: Duration = Duration::from_secs(5);

/// How long a write may take.
const WRITE: Duration = Duration::from_secs(10);

/// What the API says of the objects of a kind.
enum ObjectEvent {
    /// A list starts.
    Init(ApiResource),
    /// An object was listed or changed.
    Found(ObjectKey, Box<ApiObject>),
    /// The list is complete.
    Listed,
    /// An object was deleted.
    Deleted(ObjectKey),
    /// The API does not serve the kind.
    Absent,
    /// The objects cannot be watched; this is retried.
    Failed(Failure),
}

/// Why a request failed.
struct Failure {
    /// The HTTP status; 0 if there was no answer.
    code: u16,
    text: String,
}

impl From<&kube::Error> for Failure {
    fn from(error: &kube::Error) -> Self {
        let code = match error {
            kube::Error::Api(status) => status.code,
            _ => 0,
        };
        Self { code, text: reason(error) }
    }
}

/// The objects of a kind in the API.
#[derive(Default)]
struct KindObjects {
    resource: Option<ApiResource>,
    objects: BTreeMap<ObjectKey, ApiObject>,
    /// The objects of the list in progress.
    listing: Option<BTreeSet<ObjectKey>>,
}

/// A write in progress.
struct Writing {
    key: ObjectKey,
    conditions: Conditions,
    /// The API's answer.
    outcome: BoxFuture<'static, Outcome>,
    /// Whether the watch has delivered the object since the write began.
    delivered: bool,
    /// Whether an evaluation has left the object out since then.
    left_out: bool,
}

type Outcome = Result<DynamicObject, WriteError>;

/// Why a write failed.
enum WriteError {
    /// The object has changed.
    Conflict,
    Failed(Failure),
}

/// Writes the status of objects. Has its own watch of them: nobody else needs their status, and only while this replica
/// is elected.
pub(crate) struct Writer<'a> {
    replicas: &'a Replicas,
    /// Until when this replica is elected.
    valid: watch::Receiver<tokio::time::Instant>,
    events: SelectAll<BoxStream<'static, (Kind, ObjectEvent)>>,
    kinds: BTreeMap<Kind, KindObjects>,
    peers: PeerReader,
    summaries: Summaries,
    queue: Queue,
    /// What the status of the queued objects should be.
    wanted: BTreeMap<ObjectKey, Conditions>,
    writing: Option<Writing>,
    /// When to evaluate what has changed.
    evaluate_at: Option<Instant>,
    /// When to evaluate even if nothing changes.
    again_at: Option<Instant>,
    /// The last failure of each kind that was logged, by its HTTP status.
    failures: BTreeMap<Kind, u16>,
}

impl<'a> Writer<'a> {
    /// A writer for a replica that is elected as long as `valid` says.
    pub(crate) fn new(
        replicas: &'a Replicas,
        valid: watch::Receiver<tokio::time::Instant>,
    ) -> Self {
        let options = &replicas.options;
        Self {
            replicas,
            valid,
            events: KINDS
                .into_iter()
                .map(|kind| objects(&replicas.client, kind, options.only.clone()))
                .collect(),
            kinds: KINDS.into_iter().map(|kind| (kind, KindObjects::default())).collect(),
            peers: replicas.peers.read(),
            summaries: Summaries::default(),
            queue: Queue::default(),
            wanted: BTreeMap::new(),
            writing: None,
            evaluate_at: Some(Instant::now()),
            again_at: None,
            failures: BTreeMap::new(),
        }
    }

    /// Writes until this replica is no longer elected.
    ///
    /// # Errors
    /// A computation panicked.
    pub(crate) async fn run(&mut self) -> anyhow::Result<()> {
        let mut states = self.replicas.published.changes();
        let mut proxies = self.replicas.connections.changes();
        loop {
            let mut write_at = None;
            if self.writing.is_none() {
                match self.queue.next(Instant::now()) {
                    Next::Write(key) => {
                        if !self.is_elected() {
                            return Ok(());
                        }
                        self.write(&key);
                        continue;
                    }
                    Next::At(at) => write_at = Some(at),
                    Next::Idle => {}
                }
            }
            let idle = self.evaluate_at.is_none();
            let evaluate_at = self.evaluate_at.into_iter().chain(self.again_at).min();
            let evaluated = tokio::select! {
                Some((kind, event)) = self.events.next() => {
                    self.object(kind, event);
                    false
                }
                () = self.peers.changed() => {
                    self.schedule();
                    false
                }
                // Further changes until the evaluation need not be noticed.
                Ok(()) = states.changed(), if idle => {
                    self.schedule();
                    false
                }
                Ok(()) = proxies.changed(), if idle => {
                    self.schedule();
                    false
                }
                // The rest goes on meanwhile, so that what is written next is as new as possible.
                outcome = outcome(&mut self.writing) => {
                    self.written(outcome);
                    false
                }
                () = at(evaluate_at.map(Into::into)) => true,
                () = at(write_at.map(Into::into)) => false,
            };
            if evaluated {
                self.evaluate().await?;
            }
        }
    }

    fn is_elected(&self) -> bool {
        tokio::time::Instant::now() < *self.valid.borrow()
    }

    /// Evaluates soon, together with what follows.
    fn schedule(&mut self) {
        let soon = (Instant::now() + PACE).max(self.summaries.next());
        self.evaluate_at = Some(self.evaluate_at.map_or(soon, |at| at.min(soon)));
    }

    fn object(&mut self, kind: Kind, event: ObjectEvent) {
        let Some(of) = self.kinds.get_mut(&kind) else {
            return;
        };
        match event {
            ObjectEvent::Init(resource) => {
                of.resource = Some(resource);
                of.listing = Some(BTreeSet::new());
                return;
            }
            ObjectEvent::Found(key, object) => {
                if let Some(listing) = &mut of.listing {
                    listing.insert(key.clone());
                }
                let is_new = match of.objects.get_mut(&key) {
                    Some(known) => known.update(*object, of.listing.is_some()),
                    None => of.objects.insert(key.clone(), *object).is_none(),
                };
                if !is_new {
                    return;
                }
                self.queue.changed(&key);
                if let Some(writing) = self.writing.as_mut().filter(|writing| writing.key == key) {
                    writing.delivered = true;
                }
            }
            ObjectEvent::Listed | ObjectEvent::Absent => {
                let listed = of.listing.take().unwrap_or_default();
                let gone: Vec<ObjectKey> =
                    of.objects.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                gone.iter().for_each(|key| self.forget(key));
                self.failures.remove(&kind);
            }
            ObjectEvent::Deleted(key) => return self.forget(&key),
            ObjectEvent::Failed(failure) => {
                if self.is_new_failure(kind, &failure) {
                    let (kind, error) = (kind.plural(), failure.text);
                    tracing::warn!(kind, error, "cannot watch objects; retrying");
                }
                return;
            }
        }
        self.schedule();
    }

    fn forget(&mut self, key: &ObjectKey) {
        if let Some(of) = self.kinds.get_mut(&key.kind) {
            of.objects.remove(key);
        }
        self.queue.clear(key);
        self.wanted.remove(key);
    }

    /// Whether a failure differs from the last one of this kind; only such failures are logged.
    fn is_new_failure(&mut self, kind: Kind, failure: &Failure) -> bool {
        self.failures.insert(kind, failure.code) != Some(failure.code)
    }

    /// Compares what the status of every object should be with what it is.
    async fn evaluate(&mut self) -> anyhow::Result<()> {
        (self.evaluate_at, self.again_at) = (None, None);
        let Replicas { published, connections, metrics, options, .. } = self.replicas;
        let (state, own) = self.summaries.take(published, connections).await?;
        let now = Instant::now();
        let others = match self.peers.answers(now) {
            Ok(others) => others,
            Err(at) => {
                self.again_at = Some(at);
                return Ok(());
            }
        };
        self.again_at = self.peers.next_change(now);
        let unreachable = others.iter().filter(|other| other.summaries.is_err()).count();
        metrics.unreachable.set(i64::try_from(unreachable).unwrap_or(i64::MAX));
        for (key, object) in self.kinds.values().flat_map(|of| &of.objects) {
            if let Some(writing) = self.writing.as_mut().filter(|writing| writing.key == *key) {
                // What it differs in is known after the write.
                writing.left_out = true;
                continue;
            }
            let own = own.get(key).map(Arc::as_ref);
            let answers = answers(&options.pod, own, &others, key);
            let wanted = conditions(&state, key, &answers)
                .filter(|wanted| object.is_subject_of(wanted))
                .and_then(|wanted| Some((object.difference(&wanted)?, wanted)));
            let Some((urgency, wanted)) = wanted else {
                if self.queue.clear(key) {
                    metrics.skipped.inc();
                }
                self.wanted.remove(key);
                continue;
            };
            self.queue.set(key, urgency, now);
            if let Some(old) = self.wanted.get(key)
                && *old != wanted
            {
                metrics.skipped.inc();
            }
            self.wanted.insert(key.clone(), wanted);
        }
        metrics.pending.set(i64::try_from(self.queue.len()).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Starts to write the newest status of an object.
    fn write(&mut self, key: &ObjectKey) {
        let of = self.kinds.get(&key.kind);
        let found = of.and_then(|of| of.resource.as_ref().zip(of.objects.get(key)));
        let Some(((resource, object), wanted)) = found.zip(self.wanted.get(key)) else {
            self.queue.clear(key);
            return;
        };
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.replicas.client.clone(), &key.namespace, resource);
        let patch = Patch::Apply(object.patch(key, resource, wanted, Timestamp::now()));
        self.replicas.metrics.writes.inc();
        let end = (tokio::time::Instant::now() + WRITE).min(*self.valid.borrow());
        let name = key.name.clone();
        let outcome = async move {
            // Nobody else has a reason to own weir's conditions.
            let params = PatchParams::apply(MANAGER).force();
            match timeout_at(end, api.patch_status(&name, &params, &patch)).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                    Err(WriteError::Conflict)
                }
                Ok(Err(error)) => Err(WriteError::Failed((&error).into())),
                Err(_) => {
                    let text = "the API server does not answer".to_owned();
                    Err(WriteError::Failed(Failure { code: 0, text }))
                }
            }
        };
        self.writing = Some(Writing {
            key: key.clone(),
            conditions: wanted.clone(),
            outcome: outcome.boxed(),
            delivered: false,
            left_out: false,
        });
    }

    /// Takes in the outcome of the write in progress.
    fn written(&mut self, outcome: Outcome) {
        let Some(Writing { key, conditions, delivered, left_out, .. }) = self.writing.take() else {
            return;
        };
        if left_out {
            self.schedule();
        }
        let metrics = &self.replicas.metrics;
        match outcome {
            Ok(answer) => {
                let of = self.kinds.get_mut(&key.kind);
                if let Some(object) = of.and_then(|of| of.objects.get_mut(&key)) {
                    object.wrote(&conditions, ApiObject::read(&answer));
                }
                tracing::debug!(object = %key, "wrote the status of an object");
                self.wanted.remove(&key);
                self.queue.clear(&key);
                self.failures.remove(&key.kind);
                metrics.pending.set(i64::try_from(self.queue.len()).unwrap_or(i64::MAX));
            }
            Err(WriteError::Conflict) => {
                tracing::debug!(object = %key, "the object has changed; its status is evaluated again");
                // The watch has delivered the change, or is about to.
                self.queue.failed(&key, Instant::now());
                if delivered {
                    self.queue.changed(&key);
                }
            }
            Err(WriteError::Failed(failure)) => {
                metrics.errors.inc();
                self.queue.failed(&key, Instant::now());
                if self.is_new_failure(key.kind, &failure) {
                    let error = failure.text;
                    tracing::warn!(object = %key, error, "cannot write the status of an object; retrying");
                }
            }
        }
    }
}

/// Waits for the outcome of the write in progress, or for ever without one. Cancel safe.
async fn outcome(writing: &mut Option<Writing>) -> Outcome {
    match writing {
        Some(writing) => (&mut writing.outcome).await,
        None => std::future::pending().await,
    }
}

/// Watches the objects of a kind, and starts over after failures.
fn objects(
    client: &Client,
    kind: Kind,
    only: Option<Arc<str>>,
) -> BoxStream<'static, (Kind, ObjectEvent)> {
    let client = client.clone();
    let start: Option<BoxStream<'static, ObjectEvent>> = None;
    let events = futures::stream::unfold((start, false), move |(mut stream, mut failed)| {
        let (client, only) = (client.clone(), only.clone());
        async move {
            loop {
                if std::mem::take(&mut failed) {
                    sleep(RELIST).await;
                }
                if let Some(events) = &mut stream
                    && let Some(event) = events.next().await
                {
                    failed = matches!(event, ObjectEvent::Failed(_));
                    let stream = stream.filter(|_| !failed);
                    return Some((event, (stream, failed)));
                }
                match resource(&client, kind).await {
                    Ok(Some(resource)) => {
                        stream = Some(watched(&client, kind, resource, only.as_deref()))
                    }
                    Ok(None) => return Some((ObjectEvent::Absent, (None, true))),
                    Err(error) => {
                        return Some((ObjectEvent::Failed((&error).into()), (None, true)));
                    }
                }
            }
        }
    });
    events.map(move |event| (kind, event)).boxed()
}

fn watched(
    client: &Client,
    kind: Kind,
    resource: ApiResource,
    only: Option<&str>,
) -> BoxStream<'static, ObjectEvent> {
    let api: Api<DynamicObject> = match only {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let config = watcher::Config::default().page_size(500);
    let events = watcher(api, config).default_backoff();
    events.filter_map(move |event| ready(object_event(kind, &resource, event))).boxed()
}

/// An event of the watcher in the writer's terms; `None` if the watcher resumes or lists anew by itself.
fn object_event(
    kind: Kind,
    resource: &ApiResource,
    event: Result<watcher::Event<DynamicObject>, watcher::Error>,
) -> Option<ObjectEvent> {
    Some(match event {
        Ok(watcher::Event::Init) => ObjectEvent::Init(resource.clone()),
        Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
            ObjectEvent::Found(key_of(kind, &object), Box::new(ApiObject::read(&object)))
        }
        Ok(watcher::Event::InitDone) => ObjectEvent::Listed,
        Ok(watcher::Event::Delete(object)) => ObjectEvent::Deleted(key_of(kind, &object)),
        Err(watcher::Error::WatchError(status)) if status.code == 410 => return None,
        Err(watcher::Error::WatchFailed(_)) => return None,
        Err(watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)) => {
            ObjectEvent::Failed((&error).into())
        }
        Err(watcher::Error::WatchError(status)) => {
            ObjectEvent::Failed(Failure { code: status.code, text: status.message })
        }
        Err(error @ watcher::Error::NoResourceVersion) => {
            ObjectEvent::Failed(Failure { code: 0, text: error.to_string() })
        }
    })
}

fn key_of(kind: Kind, object: &DynamicObject) -> ObjectKey {
    ObjectKey::new(kind, &object.namespace().unwrap_or_default(), &object.name_any())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::metrics::StatusMetrics;
    use crate::replicas::queue::Urgency;
    use crate::replicas::{PeerAnswers, StatusOptions};
    use crate::status::{Condition, ConditionStatus};

    fn replicas() -> Replicas {
        // Nothing listens there.
        replicas_with("http://127.0.0.1:1")
    }

    fn replicas_with(api: &str) -> Replicas {
        let config = kube::Config::new(api.parse().unwrap());
        let (_, ready) = watch::channel(true);
        Replicas {
            client: Client::try_from(config).unwrap(),
            options: StatusOptions {
                write: true,
                namespace: "weir-system".to_owned(),
                pod: "weir-0".to_owned(),
                only: None,
                lease: Duration::from_secs(15),
            },
            published: Arc::default(),
            ready,
            connections: Arc::default(),
            issuer: None,
            keeper: None,
            peers: PeerAnswers::new(None),
            metrics: StatusMetrics::default(),
            closing: tokio_util::sync::CancellationToken::new(),
        }
    }

    /// A writer that has one object to write, elected until a time.
    fn writer(replicas: &Replicas, until: tokio::time::Instant) -> (Writer<'_>, ObjectKey) {
        let key = ObjectKey::new(Kind::VirtualService, "shop", "web");
        let mut writer = Writer::new(replicas, watch::channel(until).1);
        let of = writer.kinds.get_mut(&Kind::VirtualService).unwrap();
        of.objects.insert(key.clone(), ApiObject::default());
        of.resource = Some(ApiResource {
            group: "networking.istio.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "networking.istio.io/v1".to_owned(),
            kind: "VirtualService".to_owned(),
            plural: "virtualservices".to_owned(),
        });
        let condition = Condition {
            kind: "Accepted",
            status: ConditionStatus::True,
            reason: "Accepted",
            message: String::new(),
        };
        let list = [condition.clone(), condition.clone(), condition];
        writer.wanted.insert(key.clone(), Conditions { created: None, generation: 1, list });
        writer.queue.set(&key, Urgency::Now, Instant::now());
        (writer, key)
    }

    #[tokio::test]
    async fn a_writer_that_is_no_longer_elected_stops_before_its_next_write() {
        let (replicas, now) = (replicas(), tokio::time::Instant::now());
        let (mut late, _) = writer(&replicas, now);
        late.run().await.unwrap();
        assert_eq!(replicas.metrics.writes.get(), 0);

        // One that is elected tries, and keeps what it could not write.
        let (mut elected, key) = writer(&replicas, now + Duration::from_secs(60));
        elected.write(&key);
        let failed = outcome(&mut elected.writing).await;
        elected.written(failed);
        assert_eq!((replicas.metrics.writes.get(), replicas.metrics.errors.get()), (1, 1));
        assert_eq!(elected.queue.len(), 1);
    }

    #[tokio::test]
    async fn events_and_evaluation_go_on_while_the_api_does_not_answer_a_write() {
        // Takes connections, and never answers.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let replicas = replicas_with(&format!("http://{}", listener.local_addr().unwrap()));
        let until = tokio::time::Instant::now() + Duration::from_secs(60);
        let (mut writer, first) = writer(&replicas, until);
        let queued = ObjectKey::new(Kind::VirtualService, "shop", "queued");
        let gone = ObjectKey::new(Kind::VirtualService, "shop", "gone");
        let of = writer.kinds.get_mut(&Kind::VirtualService).unwrap();
        of.objects.insert(queued.clone(), ApiObject::default());
        of.objects.insert(gone.clone(), ApiObject::default());
        writer.wanted.insert(queued.clone(), writer.wanted[&first].clone());
        writer.queue.set(&queued, Urgency::Now, Instant::now());
        let (event, taken) = (ObjectEvent::Deleted(gone.clone()), Arc::new(AtomicBool::new(false)));
        let tell = taken.clone();
        // Asked for another event after the first one was taken in.
        let asked = async move {
            tell.store(true, Ordering::Relaxed);
            std::future::pending().await
        };
        let events = futures::stream::iter([(Kind::VirtualService, event)]);
        let events = events.chain(futures::stream::once(asked)).boxed();
        writer.events = std::iter::once(events).collect();

        // The state is empty: no object should have these conditions any more.
        let skipped = async {
            while replicas.metrics.skipped.get() == 0 || !taken.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            ended = writer.run() => panic!("{ended:?}"),
            () = skipped => {}
        }
        assert_eq!((replicas.metrics.writes.get(), replicas.metrics.errors.get()), (1, 0));
        assert!(!writer.kinds[&Kind::VirtualService].objects.contains_key(&gone));
        assert!(!writer.wanted.contains_key(&queued), "it would have been written");
        let writing = writer.writing.as_ref().unwrap();
        assert!(writing.key == first && writing.left_out);

        // What the evaluation left out is evaluated after the write.
        writer.evaluate_at = None;
        writer.written(Err(WriteError::Conflict));
        assert!(writer.evaluate_at.is_some() && writer.writing.is_none());
    }

    #[tokio::test]
    async fn a_conflict_with_a_change_that_the_watch_has_delivered_is_not_waited_for() {
        let replicas = replicas();
        let until = tokio::time::Instant::now() + Duration::from_secs(60);
        for delivered in [false, true] {
            let (mut writer, key) = writer(&replicas, until);
            writer.write(&key);
            if delivered {
                let found = ObjectEvent::Found(key.clone(), Box::default());
                writer.object(Kind::VirtualService, found);
            }
            writer.written(Err(WriteError::Conflict));
            let next = writer.queue.next(Instant::now());
            assert_eq!(next == Next::Write(key), delivered, "{next:?}");
        }
    }
}
