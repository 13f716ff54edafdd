//! weir's own admin API over gRPC, as specified in `proto/weir/admin/v1/admin.proto`.

use std::pin::Pin;

use futures::Stream;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::api::v1::{self, admin_server::AdminServer};
use super::convert::object_kind;
use super::{Admin, diff, summaries, timeline};
use crate::api::{Kind, ObjectKey};
use crate::bootstrap::dns_label;
use crate::snapshot::{ResourceType, Snapshot, SnapshotBuilder};
use crate::source::freshness::Freshness;
use crate::status::{self, ProxyReport, SplitSelection};
use crate::xds::stream::SentResource;

/// How many reports may be queued for a client. A client that does not read gets no further reports.
const WAITING: usize = 4;

/// The maximum request size in bytes, for the files of a preview.
const MAX_REQUEST: usize = 16 << 20;

/// The gRPC service.
pub(crate) fn service(admin: Admin) -> AdminServer<Admin> {
    // A dump contains the configuration of an entire mesh.
    AdminServer::new(admin)
        .max_encoding_message_size(usize::MAX)
        .max_decoding_message_size(MAX_REQUEST)
}

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Admin {
    /// Fails while the state is not complete yet.
    pub(super) fn ensure_ready(&self) -> Result<(), Status> {
        if *self.ready.borrow() {
            return Ok(());
        }
        Err(Status::unavailable(super::NOT_READY))
    }

    /// A stream of what `send` sends. It ends when `send` does, when the client disconnects, or when weir shuts down.
    pub(super) fn stream<T, F>(
        &self,
        send: impl FnOnce(Admin, mpsc::Sender<Result<T, Status>>) -> F,
    ) -> Updates<T>
    where
        T: Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(WAITING);
        let closing = self.closing.clone();
        let sent = send(self.clone(), sender.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = closing.cancelled() => {
                    let _ = sender.try_send(Err(Status::unavailable("weir is shutting down")));
                }
                () = sender.closed() => {}
                () = sent => {}
            }
        });
        Box::pin(ReceiverStream::new(receiver))
    }

    /// Streams what `make` builds from the outcome of `before`: first as soon as weir is ready, then whenever a proxy
    /// or the mesh changes and the result differs.
    fn updates<T: Clone + PartialEq + Send + 'static, P: Send + Sync + 'static>(
        &self,
        before: impl Future<Output = Result<P, Status>> + Send + 'static,
        make: impl Fn(&Admin, &P) -> Result<T, Status> + Send + 'static,
    ) -> Updates<T> {
        self.stream(|admin, sender| async move {
            admin.stream_updates(before, make, &sender).await;
        })
    }

    async fn stream_updates<T: Clone + PartialEq, P>(
        &self,
        before: impl Future<Output = Result<P, Status>>,
        make: impl Fn(&Admin, &P) -> Result<T, Status>,
        to: &mpsc::Sender<Result<T, Status>>,
    ) {
        let mut ready = self.ready.clone();
        if ready.wait_for(|ready| *ready).await.is_err() {
            return;
        }
        let before = match before.await {
            Ok(before) => before,
            Err(status) => {
                let _ = to.send(Err(status)).await;
                return;
            }
        };
        let (mut proxies, mut states) = (self.connections.changes(), self.published.changes());
        let mut last: Option<T> = None;
        loop {
            proxies.mark_unchanged();
            states.mark_unchanged();
            let next = make(self, &before);
            let ends = next.is_err();
            if ends || last.as_ref() != next.as_ref().ok() {
                last = next.as_ref().ok().cloned();
                if to.send(next).await.is_err() {
                    return;
                }
            }
            if ends {
                return;
            }
            let changed = tokio::select! {
                changed = proxies.changed() => changed,
                changed = states.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    fn object(&self, request: &v1::GetObjectRequest) -> Result<v1::ObjectStatus, Status> {
        let key = object_key(request)?;
        let found = status::object(&self.published.state(), &self.connections.list(), &key);
        found.map(Into::into).ok_or_else(|| not_found(&key))
    }

    /// How fresh an object is at its source. Anything written before this call is included, or an older version would be
    /// reported as live.
    pub(super) async fn newest(&self, key: &ObjectKey) -> Result<Freshness, Status> {
        let freshness = self.freshness_probe.freshness(key).await;
        if let Ok(Freshness::Barrier(barrier)) = freshness {
            self.published.barrier_reached(barrier).await;
        }
        freshness.map_err(|error| {
            Status::unavailable(format!(
                "the newest version of {key} cannot be determined: {error}"
            ))
        })
    }

    /// The streams of a proxy, by `NAMESPACE/POD`, a pod's name or a node id.
    fn find(&self, name: &str) -> Result<(Vec<u64>, ProxyReport), Status> {
        if name.is_empty() {
            return Err(invalid(
                "proxy",
                "is empty; expected NAMESPACE/POD, the name of a pod or the id of a node",
            ));
        }
        let state = self.published.state();
        let all = self.connections.proxies().into_iter().flat_map(|(streams, status)| {
            let reports = status::proxies(&state, std::slice::from_ref(&status));
            reports.into_iter().map(move |report| (streams.clone(), report))
        });
        let mut found: Vec<_> = all
            .filter(|(_, report)| {
                let by_pod = name.split_once('/') == Some((&report.namespace, &report.pod));
                *name == *report.status.id || *name == *report.pod || by_pod
            })
            .collect();
        let several = found
            .windows(2)
            .any(|pair| matches!(pair, [(_, a), (_, b)] if a.status.id != b.status.id));
        match found.pop() {
            None => Err(Status::not_found(format!(
                "no proxy `{name}` is connected; `weir ps` lists the connected \
                proxies"
            ))),
            Some(_) if several => Err(invalid(
                "proxy",
                format!("`{name}` is the name of several pods; expected NAMESPACE/POD"),
            )),
            Some(found) => Ok(found),
        }
    }

    /// A proxy, and what it was sent of these types, by type and name.
    async fn inventory(
        &self,
        proxy: &str,
        types: &[ResourceType],
    ) -> Result<(ProxyReport, Vec<SentResource>), Status> {
        let (streams, report) = self.find(proxy)?;
        let mut items = Vec::new();
        for stream in streams {
            let Some(sent) = self.connections.inventory(stream).await else {
                return Err(Status::not_found(format!("proxy `{proxy}` has just disconnected")));
            };
            items.extend(sent);
        }
        items.retain(|sent| types.contains(&sent.kind));
        items.sort_by(|a, b| (a.kind, &a.resource.name).cmp(&(b.kind, &b.resource.name)));
        Ok((report, items))
    }
}

/// A field with an invalid value.
pub(super) fn invalid(field: &str, why: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {why}"))
}

pub(super) fn object_key(request: &v1::GetObjectRequest) -> Result<ObjectKey, Status> {
    let kind = object_kind(&request.kind).ok_or_else(|| {
        invalid(
            "kind",
            format!("is `{}`; expected virtualservice or destinationrule", request.kind),
        )
    })?;
    dns_label(&request.namespace).map_err(|why| invalid("namespace", why))?;
    if request.name.is_empty() {
        return Err(invalid("name", "is empty; expected the name of an object"));
    }
    Ok(ObjectKey::new(kind, &request.namespace, &request.name))
}

/// Which types a request is about.
fn types(only: i32) -> Result<Vec<ResourceType>, Status> {
    let only = v1::ResourceType::try_from(only)
        .map_err(|_| invalid("type", format!("is {only}; expected CDS, EDS, LDS, RDS or RTDS")))?;
    let requested = ResourceType::ALL
        .into_iter()
        .filter(|kind| only == v1::ResourceType::Unspecified || only == (*kind).into());
    Ok(requested.collect())
}

/// Whether a proxy has accepted a resource that it was sent.
fn state(sent: &SentResource, report: &ProxyReport) -> v1::resource::State {
    let (kind, name) = (sent.kind.short_name(), &sent.resource.name);
    if report.status.rejected.iter().any(|other| other.kind == kind && *other.name == **name) {
        v1::resource::State::Rejected
    } else if sent.acked {
        v1::resource::State::Acked
    } else {
        v1::resource::State::Sent
    }
}

/// The namespaces of a list: a name, or all if it is empty.
pub(super) fn checked_namespace(namespace: &str) -> Result<(), Status> {
    if namespace.is_empty() {
        return Ok(());
    }
    dns_label(namespace).map(|_| ()).map_err(|why| invalid("namespace", why))
}

pub(super) fn not_found(key: &ObjectKey) -> Status {
    Status::not_found(format!("{key} does not exist"))
}

/// Runs what takes long on a thread of its own, so that it does not delay streams.
async fn in_background<T: Send + 'static>(
    make: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<Response<T>, Status> {
    let made = tokio::task::spawn_blocking(make).await;
    made.map_err(|error| Status::internal(error.to_string()))?.map(Response::new)
}

#[tonic::async_trait]
impl v1::admin_server::Admin for Admin {
    async fn list_proxies(
        &self,
        _: Request<v1::ListProxiesRequest>,
    ) -> Result<Response<v1::ListProxiesResponse>, Status> {
        self.ensure_ready()?;
        let state = self.published.state();
        let proxies =
            status::proxies(&state, &self.connections.list()).into_iter().map(Into::into).collect();
        let unanswered =
            self.sync.borrow().iter().filter(|kind| kind.is_old()).map(Into::into).collect();
        let mesh_revision = state.revision.get();
        Ok(Response::new(v1::ListProxiesResponse { proxies, mesh_revision, unanswered }))
    }

    async fn get_readiness(
        &self,
        _: Request<v1::GetReadinessRequest>,
    ) -> Result<Response<v1::GetReadinessResponse>, Status> {
        let kinds = self.sync.borrow().iter().map(Into::into).collect();
        let webhook = self.webhook.as_ref().map(|health| v1::Webhook::from(&*health.borrow()));
        let authority = self.authority.as_ref().map(|current| current.borrow().as_deref().into());
        let ready = *self.ready.borrow();
        Ok(Response::new(v1::GetReadinessResponse { ready, kinds, webhook, authority }))
    }

    async fn dump_proxy(
        &self,
        request: Request<v1::DumpProxyRequest>,
    ) -> Result<Response<v1::DumpProxyResponse>, Status> {
        self.ensure_ready()?;
        let request = request.into_inner();
        let (report, items) = self.inventory(&request.proxy, &types(request.r#type)?).await?;
        let resources = items
            .iter()
            .map(|sent| v1::Resource::new(sent.kind, &sent.resource, state(sent, &report)))
            .collect();
        Ok(Response::new(v1::DumpProxyResponse { resources, proxy: Some(report.into()) }))
    }

    async fn diff_proxy(
        &self,
        request: Request<v1::DiffProxyRequest>,
    ) -> Result<Response<v1::DiffProxyResponse>, Status> {
        self.ensure_ready()?;
        let request = request.into_inner();
        let types = types(request.r#type)?;
        let (report, items) = self.inventory(&request.proxy, &types).await?;
        // Built from scratch, so that a stale cache entry would show up as a difference.
        let fresh = match self.published.state().mesh {
            Some(mesh) => {
                SnapshotBuilder::default().snapshot(&mesh, &mesh.scope(&report.status.proxy))
            }
            None => Snapshot::default(),
        };
        let mut differences = Vec::new();
        // The runtime layer is not of the mesh: its weights are in the routes that are compared.
        for kind in types.into_iter().filter(|kind| *kind != ResourceType::Runtime) {
            let sent = items
                .iter()
                .filter(|resource| resource.kind == kind)
                .map(|resource| &resource.resource);
            let found = diff::resources(kind, sent, fresh.get(kind))
                .map_err(|error| Status::internal(error.to_string()))?;
            differences.extend(found);
        }
        Ok(Response::new(v1::DiffProxyResponse { proxy: Some(report.into()), differences }))
    }

    async fn list_splits(
        &self,
        request: Request<v1::ListSplitsRequest>,
    ) -> Result<Response<v1::ListSplitsResponse>, Status> {
        checked_namespace(&request.get_ref().namespace)?;
        self.ensure_ready()?;
        self.all_splits(SplitSelection::of_namespace(&request.get_ref().namespace))
            .await
            .map(Response::new)
    }

    type WatchSplitsStream = Updates<v1::ListSplitsResponse>;

    async fn watch_splits(
        &self,
        request: Request<v1::ListSplitsRequest>,
    ) -> Result<Response<Self::WatchSplitsStream>, Status> {
        let namespace = request.into_inner().namespace;
        checked_namespace(&namespace)?;
        Ok(Response::new(self.stream(|admin, sender| async move {
            admin.send_splits(&namespace, &sender).await;
        })))
    }

    async fn get_observed(
        &self,
        request: Request<v1::GetObservedRequest>,
    ) -> Result<Response<v1::GetObservedResponse>, Status> {
        self.ensure_ready()?;
        self.observed(request.get_ref()).await.map(Response::new)
    }

    async fn list_observed(
        &self,
        request: Request<v1::ListObservedRequest>,
    ) -> Result<Response<v1::ListObservedResponse>, Status> {
        checked_namespace(&request.get_ref().namespace)?;
        self.ensure_ready()?;
        self.own_observed(request.get_ref()).await.map(Response::new)
    }

    async fn get_object(
        &self,
        request: Request<v1::GetObjectRequest>,
    ) -> Result<Response<v1::ObjectStatus>, Status> {
        self.ensure_ready()?;
        self.object(request.get_ref()).map(Response::new)
    }

    type WatchObjectStream = Updates<v1::ObjectStatus>;

    async fn watch_object(
        &self,
        request: Request<v1::GetObjectRequest>,
    ) -> Result<Response<Self::WatchObjectStream>, Status> {
        let request = request.into_inner();
        let key = object_key(&request)?;
        let admin = self.clone();
        let before = async move { admin.newest(&key).await };
        Ok(Response::new(self.updates(before, move |admin, freshness| match freshness {
            Freshness::Barrier(_) => admin.object(&request),
            Freshness::Absent => Err(not_found(&object_key(&request)?)),
            Freshness::Generation(freshness) => {
                let key = object_key(&request)?;
                let mut status = admin.object(&request).unwrap_or_else(|_| v1::ObjectStatus {
                    object: Some((&key).into()),
                    ..Default::default()
                });
                status.newest_generation = *freshness;
                status.live &= status.generation >= *freshness;
                Ok(status)
            }
        })))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        self.ensure_ready()?;
        let admin = self.clone();
        in_background(move || admin.explanation(request.get_ref())).await
    }

    async fn list_findings(
        &self,
        request: Request<v1::ListFindingsRequest>,
    ) -> Result<Response<v1::ListFindingsResponse>, Status> {
        self.ensure_ready()?;
        let admin = self.clone();
        in_background(move || admin.findings(&request.get_ref().namespace)).await
    }

    async fn preview_objects(
        &self,
        request: Request<v1::PreviewObjectsRequest>,
    ) -> Result<Response<v1::PreviewObjectsResponse>, Status> {
        self.ensure_ready()?;
        let admin = self.clone();
        in_background(move || admin.preview(request.into_inner())).await
    }

    async fn get_history(
        &self,
        request: Request<v1::GetHistoryRequest>,
    ) -> Result<Response<v1::GetHistoryResponse>, Status> {
        self.ensure_ready()?;
        let v1::GetHistoryRequest { namespace, name } = request.into_inner();
        dns_label(&namespace).map_err(|why| invalid("namespace", why))?;
        let object = ObjectKey::new(Kind::VirtualService, &namespace, &name);
        Ok(Response::new(self.history.of(&object)))
    }

    type WatchSummariesStream = Updates<v1::SummariesUpdate>;

    async fn watch_summaries(
        &self,
        _: Request<v1::WatchSummariesRequest>,
    ) -> Result<Response<Self::WatchSummariesStream>, Status> {
        // The replica that asks must not wait for one that does not serve any proxy yet.
        self.ensure_ready()?;
        Ok(Response::new(self.stream(|admin, sender| async move {
            summaries::send(&admin, &sender).await;
        })))
    }

    async fn get_timeline(
        &self,
        request: Request<v1::GetTimelineRequest>,
    ) -> Result<Response<v1::Timeline>, Status> {
        let question = timeline::Question::new(request.get_ref(), Timestamp::now())?;
        timeline::read(self, &question).map(Response::new)
    }

    type WatchTimelineStream = Updates<v1::Timeline>;

    async fn watch_timeline(
        &self,
        request: Request<v1::GetTimelineRequest>,
    ) -> Result<Response<Self::WatchTimelineStream>, Status> {
        let question = timeline::Question::new(request.get_ref(), Timestamp::now())?;
        Ok(Response::new(self.stream(|admin, sender| async move {
            timeline::send(&admin, &question, &sender).await;
        })))
    }
}
