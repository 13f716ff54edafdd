//! What the elected replica does for the certificate authority: makes a root if there is none, and writes the roots to
//! trust into each namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::retired;
use super::secret::{self, Stored};
use super::signing::{CaOptions, Current};
use crate::source::kubernetes::reason;
use crate::timer::at;

/// The ConfigMap with the roots to trust, in each namespace, and its key, as in Istio.
pub(super) const ROOTS: &str = "istio-ca-root-cert";
pub(super) const ROOTS_KEY: &str = "root-cert.pem";

/// The label of the ConfigMaps that weir has written. It does not overwrite those of others, such as Istiod's, whose proxies
/// would no longer trust it.
const OWNER: (&str, &str) = ("app.kubernetes.io/managed-by", "weir");

/// The namespaces without the ConfigMap, as in Istio.
const WITHOUT_ROOTS: [&str; 3] = ["kube-public", "kube-node-lease", "local-path-storage"];

/// The field manager of the ConfigMaps.
const MANAGER: &str = "weir";

/// How long a write may take.
const WRITE: Duration = Duration::from_secs(10);

/// The time between two writes in one namespace: what fails, or what somebody else overwrites, is written again.
const AGAIN: Duration = Duration::from_secs(5);

/// How many ConfigMaps are written at a time.
const CONCURRENT: usize = 8;

/// Keeps the root and the ConfigMaps while this replica is elected.
pub(crate) struct Keeper {
    client: Client,
    options: CaOptions,
    /// The only namespace that weir serves, if it serves one.
    only: Option<Arc<str>>,
    current: watch::Receiver<Option<Arc<Current>>>,
    stored: watch::Receiver<Stored>,
}

impl Keeper {
    /// Keeps what [`follow`](super::follow) reports.
    pub(crate) fn new(
        client: Client,
        options: CaOptions,
        only: Option<Arc<str>>,
        current: watch::Receiver<Option<Arc<Current>>>,
        stored: watch::Receiver<Stored>,
    ) -> Self {
        Self { client, options, only, current, stored }
    }

    /// Keeps them until this replica is no longer elected, as `valid` says.
    pub(crate) async fn run(&self, valid: watch::Receiver<Instant>) {
        tokio::join!(self.make(&valid), self.distribute(&valid));
    }

    /// Makes a root whenever there is no Secret, and another one when weir's own is near its end.
    async fn make(&self, valid: &watch::Receiver<Instant>) {
        let mut stored = self.stored.clone();
        loop {
            let due =
                stored.wait_for(|known| matches!(known, Stored::Absent | Stored::Aging)).await;
            let made = match due.map(|known| *known) {
                Ok(Stored::Aging) => self.renew(deadline(valid)).await,
                Ok(_) => self.create(deadline(valid)).await,
                Err(_) => return std::future::pending().await,
            };
            if let Err(reason) = made {
                tracing::error!(
                    secret = %format_args!("{}/{}", self.options.namespace, secret::MADE), reason,
                    "cannot write the Secret of the certificate authority; retrying"
                );
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn made(&self) -> Result<Secret, String> {
        let CaOptions { trust_domain, root_lifetime, .. } = &self.options;
        let made = secret::make(trust_domain, std::time::SystemTime::now(), *root_lifetime);
        made.map_err(|error| error.to_string())
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.options.namespace)
    }

    async fn create(&self, deadline: Instant) -> Result<(), String> {
        let made = self.made()?;
        let created = async { self.secrets().create(&PostParams::default(), &made).await };
        answered(deadline, created).await
    }

    /// Replaces the root. All replicas trust the new one before it signs, and the old one for long enough.
    async fn renew(&self, deadline: Instant) -> Result<(), String> {
        let made = self.made()?;
        let replaced = async {
            let old = self.secrets().get(secret::MADE).await?;
            if !secret::is_own(&old) {
                tracing::warn!(
                    secret = %format_args!("{}/{}", self.options.namespace, secret::MADE),
                    "the root is near its end, and weir has not made it; replace it"
                );
                return Ok(old);
            }
            let mut new = made;
            // Another replica may be faster.
            new.metadata.resource_version = old.metadata.resource_version;
            self.secrets().replace(secret::MADE, &PostParams::default(), &new).await
        };
        answered(deadline, replaced).await
    }

    /// Writes the roots into each namespace.
    async fn distribute(&self, valid: &watch::Receiver<Instant>) {
        let (mut namespaces, mut maps) = (self.namespaces(), self.maps());
        let mut current = self.current.clone();
        let mut distribution =
            Distribution { takes_over: self.options.take_over, ..Distribution::default() };
        loop {
            let latest = current.borrow_and_update().clone().filter(|latest| latest.complete);
            let now = Instant::now();
            let (due, again_at) = match &latest {
                Some(latest) => distribution.due(&latest.roots, now),
                None => (Vec::new(), None),
            };
            if let Some(latest) = latest.filter(|_| !due.is_empty()) {
                self.write_all(due, &latest, valid).await;
                continue;
            }
            tokio::select! {
                changed = current.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                Some(event) = namespaces.next() => distribution.on_namespace(event),
                Some(event) = maps.next() => distribution.on_map(event),
                () = at(again_at) => {}
            }
        }
    }

    async fn write_all(
        &self,
        namespaces: Vec<String>,
        latest: &Current,
        valid: &watch::Receiver<Instant>,
    ) {
        let writes: Vec<_> =
            namespaces.into_iter().map(|at| self.write_in(at, latest, valid)).collect();
        futures::stream::iter(writes).buffer_unordered(CONCURRENT).collect::<()>().await;
    }

    async fn write_in(
        &self,
        namespace: String,
        latest: &Current,
        valid: &watch::Receiver<Instant>,
    ) {
        let written = timeout_at(deadline(valid), self.write(&namespace, latest)).await;
        let written = written.unwrap_or_else(|_| Err("the API server does not answer".to_owned()));
        if let Err(reason) = written {
            tracing::warn!(configmap = ROOTS, namespace, reason, "cannot write; retrying");
        }
    }

    async fn write(&self, namespace: &str, latest: &Current) -> Result<(), String> {
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": ROOTS,
                "labels": {"istio.io/config": "true", OWNER.0: OWNER.1},
                "annotations": {retired::ANNOTATION: latest.retired},
            },
            "data": {ROOTS_KEY: latest.roots},
        });
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        let params = PatchParams::apply(MANAGER).force();
        match api.patch(ROOTS, &params, &Patch::Apply(map)).await {
            Ok(_) => Ok(()),
            // The namespace is gone, or goes.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(kube::Error::Api(status)) if status.message.contains("being terminated") => Ok(()),
            Err(error) => Err(reason(&error)),
        }
    }

    fn namespaces(&self) -> BoxStream<'static, Event<Namespace>> {
        let config = match &self.only {
            Some(only) => watcher::Config::default().fields(&format!("metadata.name={only}")),
            None => watcher::Config::default(),
        };
        events(Api::all(self.client.clone()), config)
    }

    fn maps(&self) -> BoxStream<'static, Event<ConfigMap>> {
        let api = match &self.only {
            Some(only) => Api::namespaced(self.client.clone(), only),
            None => Api::all(self.client.clone()),
        };
        events(api, watcher::Config::default().fields(&format!("metadata.name={ROOTS}")))
    }
}

/// What came of a write. If another replica was faster, nothing is left to do.
async fn answered<T>(
    deadline: Instant,
    write: impl Future<Output = kube::Result<T>>,
) -> Result<(), String> {
    match timeout_at(deadline, write).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(()),
        Ok(Err(error)) => Err(reason(&error)),
        Err(_) => Err("the API server does not answer".to_owned()),
    }
}

type Event<K> = watcher::Event<K>;

/// The events of a watch. Failures are logged and tried again.
fn events<K>(api: Api<K>, config: watcher::Config) -> BoxStream<'static, Event<K>>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let events = watcher(api, config).default_backoff().filter_map(move |event| {
        let event =
            event.inspect_err(|error| tracing::warn!(kind, %error, "cannot watch; retrying")).ok();
        std::future::ready(event)
    });
    events.boxed()
}

/// Which namespaces have which roots.
#[derive(Debug, Default)]
struct Distribution {
    namespaces: BTreeSet<String>,
    /// The namespaces of the list in progress.
    listed: Option<BTreeSet<String>>,
    maps: BTreeMap<String, Map>,
    /// The ConfigMaps of the list in progress.
    listed_maps: Option<BTreeMap<String, Map>>,
    /// Whether all ConfigMaps are known.
    known: bool,
    /// When each was written last.
    written: BTreeMap<String, Instant>,
    /// Whether ConfigMaps of others are overwritten.
    takes_over: bool,
    /// The namespaces with ConfigMaps of others that were reported.
    reported: BTreeSet<String>,
}

/// A ConfigMap in the API.
#[derive(Debug)]
struct Map {
    roots: String,
    /// Whether weir has written it.
    ours: bool,
}

impl Distribution {
    fn on_namespace(&mut self, event: Event<Namespace>) {
        match event {
            Event::Init => self.listed = Some(BTreeSet::new()),
            Event::InitApply(namespace) => {
                let name = wants_roots(&namespace).then(|| namespace.name_any());
                self.listed.get_or_insert_default().extend(name);
            }
            Event::InitDone => self.namespaces = self.listed.take().unwrap_or_default(),
            Event::Apply(namespace) if wants_roots(&namespace) => {
                self.namespaces.insert(namespace.name_any());
            }
            Event::Apply(namespace) | Event::Delete(namespace) => {
                self.namespaces.remove(&namespace.name_any());
            }
        }
    }

    fn on_map(&mut self, event: Event<ConfigMap>) {
        match event {
            Event::Init => self.listed_maps = Some(BTreeMap::new()),
            Event::InitApply(map) => {
                let (namespace, map) = contents(map);
                self.listed_maps.get_or_insert_default().insert(namespace, map);
            }
            Event::InitDone => {
                self.maps = self.listed_maps.take().unwrap_or_default();
                self.known = true;
            }
            Event::Apply(map) => {
                let (namespace, map) = contents(map);
                self.maps.insert(namespace, map);
            }
            Event::Delete(map) => {
                self.maps.remove(&map.namespace().unwrap_or_default());
            }
        }
    }

    /// The namespaces to write now, which count as written, and when there will be others if nothing changes.
    fn due(&mut self, roots: &str, now: Instant) -> (Vec<String>, Option<Instant>) {
        let (mut due, mut again_at) = (Vec::new(), None::<Instant>);
        if !self.known {
            return (due, again_at);
        }
        self.written.retain(|_, at| *at + AGAIN > now);
        for namespace in &self.namespaces {
            match self.maps.get(namespace) {
                Some(map) if map.roots == roots => continue,
                Some(map) if !map.ours && !self.takes_over => {
                    if self.reported.insert(namespace.clone()) {
                        tracing::warn!(
                            namespace,
                            configmap = ROOTS,
                            "another controller has written other roots, which stay: give weir the same authority, or start \
                             it with --take-over-roots"
                        );
                    }
                    continue;
                }
                _ => {}
            }
            match self.written.get(namespace) {
                Some(at) => {
                    again_at = Some(again_at.map_or(*at + AGAIN, |again| again.min(*at + AGAIN)))
                }
                None => due.push(namespace.clone()),
            }
        }
        self.written.extend(due.iter().map(|namespace| (namespace.clone(), now)));
        (due, again_at)
    }
}

fn wants_roots(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    phase != Some("Terminating") && !WITHOUT_ROOTS.contains(&namespace.name_any().as_str())
}

/// The namespace of a ConfigMap, and what is in it.
fn contents(map: ConfigMap) -> (String, Map) {
    let ours = map.labels().get(OWNER.0).is_some_and(|owner| owner == OWNER.1);
    let roots = map.data.and_then(|mut data| data.remove(ROOTS_KEY)).unwrap_or_default();
    (map.metadata.namespace.unwrap_or_default(), Map { roots, ours })
}

/// Until when a write counts as this replica's.
fn deadline(valid: &watch::Receiver<Instant>) -> Instant {
    (Instant::now() + WRITE).min(*valid.borrow())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str, phase: &str) -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"phase": phase}}))
            .unwrap()
    }

    fn map(namespace: &str, roots: &str) -> ConfigMap {
        let metadata = json!({"name": ROOTS, "namespace": namespace, "labels": {OWNER.0: OWNER.1}});
        serde_json::from_value(json!({"metadata": metadata, "data": {ROOTS_KEY: roots}})).unwrap()
    }

    #[test]
    fn each_namespace_that_has_other_roots_is_written_once_in_a_while() {
        let (mut state, now) = (Distribution::default(), Instant::now());
        for name in ["shop", "pay", "kube-public"] {
            state.on_namespace(Event::InitApply(namespace(name, "Active")));
        }
        state.on_namespace(Event::InitDone);
        assert!(state.due("a", now).0.is_empty(), "the ConfigMaps are not known yet");
        state.on_map(Event::InitApply(map("pay", "a")));
        state.on_map(Event::InitDone);
        assert_eq!(state.due("a", now).0, ["shop"]);
        assert_eq!(state.due("a", now), (vec![], Some(now + AGAIN)));
        state.on_map(Event::Apply(map("shop", "a")));
        assert_eq!(state.due("a", now), (vec![], None));

        // Other roots, and somebody who overwrites them.
        assert_eq!(state.due("b", now).0, ["pay"]);
        assert_eq!(state.due("b", now + AGAIN).0, ["pay", "shop"]);
        state.on_map(Event::Delete(map("pay", "b")));
        state.on_namespace(Event::Apply(namespace("shop", "Terminating")));
        assert_eq!(state.due("b", now + AGAIN * 2).0, ["pay"]);
    }

    #[test]
    fn roots_of_another_controller_stay_unless_weir_is_to_take_over() {
        let now = Instant::now();
        for takes_over in [false, true] {
            let mut state = Distribution { takes_over, ..Distribution::default() };
            state.on_namespace(Event::InitApply(namespace("shop", "Active")));
            state.on_namespace(Event::InitDone);
            let mut foreign = map("shop", "a");
            foreign.metadata.labels = None;
            state.on_map(Event::InitApply(foreign));
            state.on_map(Event::InitDone);
            assert_eq!(state.due("b", now).0.len(), usize::from(takes_over));
        }
    }
}
