//! weir's own admin API over gRPC: the reports of [`crate::status`] as messages of `proto/weir/admin/v1`.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Admin;
use crate::api::{Kind, ObjectKey};
use crate::snapshot::{ResourceType, SnapshotBuilder};
use crate::source::newest::Newest;
use crate::status::{self, ObjectReport, ProxyReport, SplitReport};
use crate::xds::stream::Progress;

/// The generated messages, client and server.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("weir.admin.v1");
}

use v1::admin_server::AdminServer;

/// Reports that may wait for a client to read them; one that reads none gets none.
const WAITING: usize = 4;

/// The service.
pub fn service(admin: Admin) -> AdminServer<Admin> {
    // A dump holds whole meshes.
    AdminServer::new(admin).max_encoding_message_size(usize::MAX)
}

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Admin {
    /// Refuses to speak of a state that is not complete yet.
    fn complete(&self) -> Result<(), Status> {
        if *self.ready.borrow() {
            return Ok(());
        }
        Err(Status::unavailable(super::NOT_READY))
    }

    /// What `make` makes of the outcome of `before`, as soon as weir is ready, and again whenever a proxy or the mesh changes and it says something else.
    fn updates<T: Clone + PartialEq + Send + 'static, P: Send + Sync + 'static>(
        &self,
        before: impl Future<Output = Result<P, Status>> + Send + 'static,
        make: impl Fn(&Admin, &P) -> Result<T, Status> + Send + 'static,
    ) -> Updates<T> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let admin = self.clone();
        tokio::spawn(async move {
            // Ends with the client, when nobody receives, and with weir.
            tokio::select! {
                () = admin.closing.cancelled() => {
                    let _ = sender.try_send(Err(Status::unavailable("weir has ended")));
                }
                () = sender.closed() => {}
                () = admin.tell(before, make, &sender) => {}
            }
        });
        Box::pin(ReceiverStream::new(receiver))
    }

    async fn tell<T: Clone + PartialEq, P>(
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
        let (mut proxies, mut states) = (self.board.changes(), self.ledger.changes());
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

    fn splits(&self, namespace: &str) -> v1::ListSplitsResponse {
        let found = status::splits(&self.ledger.state(), &self.board.list(), namespace);
        v1::ListSplitsResponse { splits: found.into_iter().map(Into::into).collect() }
    }

    fn object(&self, request: &v1::GetObjectRequest) -> Result<v1::ObjectStatus, Status> {
        let key = object_key(request)?;
        let found = status::object(&self.ledger.state(), &self.board.list(), &key);
        found.map(Into::into).ok_or_else(|| no_such(&key))
    }

    /// The stream of a proxy, by `NAMESPACE/POD`, a pod's name or a node id.
    fn find(&self, name: &str) -> Result<(u64, ProxyReport), Status> {
        let streams = self.board.streams();
        let fits = |id: &str, namespace: &str, pod: &str| {
            name == id || name == pod || name.split_once('/') == Some((namespace, pod))
        };
        let state = self.ledger.state();
        let all = streams.iter().flat_map(|(stream, status)| {
            status::proxies(&state, std::slice::from_ref(status)).into_iter().map(move |report| (*stream, report))
        });
        let mut found: Vec<_> = all.filter(|(_, one)| fits(&one.status.id, &one.namespace, &one.pod)).collect();
        let different = found.iter().any(|(_, one)| found.iter().any(|(_, other)| other.status.id != one.status.id));
        match (found.pop(), different) {
            (None, _) => Err(Status::not_found(format!("no proxy `{name}` is connected; weir ps lists them"))),
            (Some(_), true) => {
                Err(Status::invalid_argument(format!("`{name}` is the name of several pods; say NAMESPACE/POD")))
            }
            (Some(found), false) => Ok(found),
        }
    }
}

fn object_key(request: &v1::GetObjectRequest) -> Result<ObjectKey, Status> {
    let kind = object_kind(&request.kind).ok_or_else(|| {
        let found = &request.kind;
        Status::invalid_argument(format!("kind `{found}`: expected virtualservice or destinationrule"))
    })?;
    Ok(ObjectKey::new(kind, &request.namespace, &request.name))
}

fn no_such(key: &ObjectKey) -> Status {
    Status::not_found(format!("there is no {key}"))
}

/// A kind as people write it.
pub fn object_kind(text: &str) -> Option<Kind> {
    match text.to_ascii_lowercase().as_str() {
        "virtualservice" | "virtualservices" | "vs" => Some(Kind::VirtualService),
        "destinationrule" | "destinationrules" | "dr" => Some(Kind::DestinationRule),
        _ => None,
    }
}

#[tonic::async_trait]
impl v1::admin_server::Admin for Admin {
    async fn list_proxies(
        &self,
        _: Request<v1::ListProxiesRequest>,
    ) -> Result<Response<v1::ListProxiesResponse>, Status> {
        self.complete()?;
        let state = self.ledger.state();
        let proxies = status::proxies(&state, &self.board.list()).into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ListProxiesResponse { proxies, revision: state.revision }))
    }

    async fn dump_proxy(
        &self,
        request: Request<v1::DumpProxyRequest>,
    ) -> Result<Response<v1::DumpProxyResponse>, Status> {
        self.complete()?;
        let request = request.into_inner();
        let (stream, report) = self.find(&request.proxy)?;
        let gone = || Status::not_found(format!("proxy `{}` has just left", request.proxy));
        let refused = report.status.refused.clone();
        let sent = self.board.inventory(stream).await.ok_or_else(gone)?;
        let sent = sent.into_iter().map(|item| {
            let is_refused =
                refused.iter().any(|one| one.kind == item.kind.short_name() && one.name == item.resource.name);
            let state = if is_refused {
                "refused"
            } else if item.acked {
                "acked"
            } else {
                "sent"
            };
            resource(item.kind, &item.resource, state)
        });
        let sent = sent.collect();
        let mut fresh = Vec::new();
        if request.fresh
            && let Some(mesh) = self.ledger.state().mesh
        {
            // From scratch, so that a mistake of what is kept between changes would show.
            let snapshot = SnapshotBuilder::default().snapshot(&mesh, &mesh.scope(&report.status.proxy), 0);
            for kind in ResourceType::ALL {
                fresh.extend(snapshot.get(kind).values().map(|one| resource(kind, one, "")));
            }
        }
        Ok(Response::new(v1::DumpProxyResponse { proxy: Some(report.into()), sent, fresh }))
    }

    async fn list_splits(
        &self,
        request: Request<v1::ListSplitsRequest>,
    ) -> Result<Response<v1::ListSplitsResponse>, Status> {
        self.complete()?;
        Ok(Response::new(self.splits(&request.get_ref().namespace)))
    }

    type WatchSplitsStream = Updates<v1::ListSplitsResponse>;

    async fn watch_splits(
        &self,
        request: Request<v1::ListSplitsRequest>,
    ) -> Result<Response<Self::WatchSplitsStream>, Status> {
        let namespace = request.into_inner().namespace;
        Ok(Response::new(self.updates(async { Ok(()) }, move |admin, ()| Ok(admin.splits(&namespace)))))
    }

    async fn get_object(&self, request: Request<v1::GetObjectRequest>) -> Result<Response<v1::ObjectStatus>, Status> {
        self.complete()?;
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
        // What was written before this was asked must not be missed, or an older form would be called live.
        let before = async move {
            let newest = admin.asker.newest(&key).await;
            if let Ok(Newest::Mark(mark)) = newest {
                admin.ledger.marked(mark).await;
            }
            newest
                .map_err(|error| Status::unavailable(format!("what is the newest form of {key} is not known: {error}")))
        };
        Ok(Response::new(self.updates(before, move |admin, newest| match newest {
            Newest::Mark(_) => admin.object(&request),
            Newest::Absent => Err(no_such(&object_key(&request)?)),
            Newest::Generation(newest) => {
                let key = object_key(&request)?;
                let mut status = admin
                    .object(&request)
                    .unwrap_or_else(|_| v1::ObjectStatus { object: key.to_string(), ..Default::default() });
                status.newest_generation = *newest;
                status.live &= status.generation >= *newest;
                Ok(status)
            }
        })))
    }
}

fn resource(kind: ResourceType, from: &Arc<crate::snapshot::Resource>, state: &str) -> v1::Resource {
    v1::Resource {
        type_url: kind.type_url().to_owned(),
        name: from.name.to_string(),
        version: crate::xds::wire::version_text(from.version),
        value: from.bytes(),
        state: state.to_owned(),
    }
}

impl From<ProxyReport> for v1::Proxy {
    fn from(report: ProxyReport) -> Self {
        let status = report.status;
        let types = ResourceType::ALL.into_iter().zip(status.types).map(|(kind, progress)| v1::TypeStatus {
            r#type: kind.short_name().to_owned(),
            state: match progress {
                Progress::None => "none",
                Progress::Synced => "synced",
                Progress::Stale => "stale",
                Progress::Refused => "refused",
            }
            .to_owned(),
        });
        Self {
            id: status.id.to_string(),
            namespace: report.namespace.to_string(),
            pod: report.pod.to_string(),
            since: status.since.to_string(),
            service: status.service.to_owned(),
            variant: status.variant.to_owned(),
            scope: report.scope,
            types: types.collect(),
            acked: status.acked,
            wanted: status.wanted,
            lagging: status.lagging.unwrap_or_default(),
            refused: status
                .refused
                .into_iter()
                .map(|one| v1::RefusedResource {
                    r#type: one.kind.to_owned(),
                    name: one.name.to_string(),
                    version: one.version,
                    message: one.message.to_string(),
                })
                .collect(),
            held: status
                .held
                .into_iter()
                .map(|one| v1::HeldResource {
                    r#type: one.kind.to_owned(),
                    name: one.name.to_string(),
                    virtual_host: one.virtual_host.unwrap_or_default().to_string(),
                    missing_cluster: one.missing_cluster.to_string(),
                })
                .collect(),
            kept: status.kept.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<SplitReport> for v1::Split {
    fn from(report: SplitReport) -> Self {
        let shares = report.shares.into_iter().map(|share| v1::Share {
            host: share.host,
            subset: share.subset,
            port: share.port,
            wanted: share.wanted,
            effective: share.effective,
        });
        Self {
            object: report.object,
            field: report.field,
            name: report.name,
            shares: shares.collect(),
            live: u32::try_from(report.live).unwrap_or(u32::MAX),
            in_scope: u32::try_from(report.in_scope).unwrap_or(u32::MAX),
            invalid: report.invalid,
        }
    }
}

impl From<ObjectReport> for v1::ObjectStatus {
    fn from(report: ObjectReport) -> Self {
        let proxies = report.proxies.into_iter().map(|proxy| v1::ProxyState {
            id: proxy.id.to_string(),
            state: proxy.state.as_str().to_owned(),
            reason: proxy.reason,
        });
        Self {
            object: report.object,
            generation: report.generation,
            revision: report.revision,
            live: report.live,
            proxies: proxies.collect(),
            invalid: report.invalid,
            held: report.held,
            newest_generation: 0,
        }
    }
}
