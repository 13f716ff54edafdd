//! Questions about the objects that weir reads: how a request is routed, what is wrong with them, and
//! what would change with others.

use std::collections::BTreeMap;
use std::sync::Arc;

use tonic::Status;

use super::api::v1;
use super::diff::value;
use super::grpc::{checked_namespace, invalid};
use super::{Admin, NOT_READY};
use crate::analyze::{self, Finding, Severity};
use crate::api::{Object, ObjectKey};
use crate::explain::{self, ServersWithoutCertificates, TrafficQuery};
use crate::mesh::{self, Certificates, Interception, Mesh, Proxy, ScopeView};
use crate::preview::{
    Move, ObjectChange, Preview, Recorded, Replay, Requests, ResourceChange, ResourceDifference,
    Sample, preview,
};
use crate::rollout_guard::HeldChange;
use crate::snapshot::SnapshotBuilder;
use crate::source::Origin;
use crate::store::Store;
use crate::timeline;

/// How many different recorded requests a preview may have. Each costs about as much as a question to `weir explain`.
pub(crate) const MAX_RECORDED: usize = 10_000;

impl Admin {
    /// Explains how a request is routed. Takes long in a large mesh: everything that the client's proxy gets is made.
    pub(super) fn explanation(
        &self,
        request: &v1::ExplainRequest,
    ) -> Result<v1::ExplainResponse, Status> {
        let traffic = traffic(request)?;
        let (mesh, held) = self.mesh()?;
        let (proxy, id) = self.client(&request.from, &mesh)?;
        let scope = mesh.scope(&proxy);
        let snapshot = SnapshotBuilder::default().snapshot(&mesh, &scope);
        let view = ScopeView::new(&mesh, &scope);
        let servers = self.servers_without_certificates(&mesh);
        let mut answer = explain::explain_with(&view, &snapshot, &traffic, &servers);
        answer.add_held(&held);
        let json =
            serde_json::to_value(&answer).map_err(|error| Status::internal(error.to_string()))?;
        Ok(v1::ExplainResponse {
            explanation: Some(value(&json)),
            text: explain::text(&answer),
            succeeds: explain::succeeds(&answer.outcome),
            proxy: id,
        })
    }

    /// The connected sidecars without certificates, where others have them.
    fn servers_without_certificates(&self, mesh: &Mesh) -> ServersWithoutCertificates {
        let connected = if mesh.config.identities { self.connections.list() } else { Vec::new() };
        let proxies = connected.iter().map(|status| &status.proxy).filter(|proxy| {
            proxy.certificates == Certificates::None && proxy.interception == Interception::Redirect
        });
        proxies.flat_map(|proxy| proxy.addresses.iter().cloned()).collect()
    }

    fn mesh(&self) -> Result<(Mesh, Arc<[HeldChange]>), Status> {
        let state = self.published.state();
        Ok((state.mesh.ok_or_else(|| Status::unavailable(NOT_READY))?, state.held))
    }

    fn store(&self) -> Result<Store, Status> {
        self.stores.borrow().clone().ok_or_else(|| Status::unavailable(NOT_READY))
    }

    /// The proxy of a pod, and its node id if it is connected.
    fn client(&self, name: &str, mesh: &Mesh) -> Result<(Proxy, String), Status> {
        let (namespace, pod) = mesh::pod_name(name).map_err(|why| invalid("from", why))?;
        let connected = self.connections.list();
        let own = connected
            .iter()
            .find(|status| (&*status.proxy.namespace, &*status.proxy.name) == (namespace, pod));
        if let Some(status) = own {
            return Ok(((*status.proxy).clone(), status.id.to_string()));
        }
        let proxy = mesh::proxy_of_pod(&self.store()?, &mesh.config, namespace, pod);
        Ok((proxy.map_err(|why| invalid("from", why))?, String::new()))
    }

    /// What `weir analyze` finds. Takes long in a large mesh.
    pub(super) fn findings(&self, namespace: &str) -> Result<v1::ListFindingsResponse, Status> {
        checked_namespace(namespace)?;
        let (mesh, store) = (self.mesh()?.0, self.store()?);
        let found = analyze::analyze(&store, &mesh.config).into_iter().filter(|finding| {
            let object = finding.object.as_ref();
            namespace.is_empty() || object.is_some_and(|key| *key.namespace == *namespace)
        });
        let mut findings: Vec<v1::Finding> = found.map(Into::into).collect();
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Ok(v1::ListFindingsResponse { findings })
    }
}

impl Admin {
    /// What applying these files would change. Takes long in a large mesh.
    pub(super) fn preview(
        &self,
        request: v1::PreviewObjectsRequest,
    ) -> Result<v1::PreviewObjectsResponse, Status> {
        let (mesh, store) = (self.mesh()?.0, self.store()?);
        if request.recorded.len() > MAX_RECORDED {
            let found = request.recorded.len();
            return Err(invalid("recorded", format!("{found} requests; at most {MAX_RECORDED}")));
        }
        let mut clients = BTreeMap::new();
        let samples = request.samples.iter();
        let samples = samples
            .map(|sample| self.sample(sample, &mesh, &mut clients))
            .collect::<Result<Vec<_>, _>>()?;
        let recorded = request.recorded.iter().map(|item| {
            let asked = item.request.as_ref().ok_or_else(|| invalid("recorded", "no request"))?;
            let sample = self.sample(asked, &mesh, &mut clients)?;
            Ok(Recorded { sample, count: item.count })
        });
        let recorded = recorded.collect::<Result<Vec<_>, Status>>()?;
        let files = request.files.into_iter().map(|file| (file.path.into(), file.content));
        let proxies: Vec<_> =
            self.connections.list().into_iter().map(|status| status.proxy).collect();
        let asked =
            Requests { samples: &samples, recorded: &recorded, alone: request.requests_only };
        let mut found = preview(&store, &mesh.config, files.collect(), &proxies, asked);
        let replay = std::mem::take(&mut found.replay);
        let replay = (!recorded.is_empty()).then(|| replayed(replay, request.recorded));
        Ok(v1::PreviewObjectsResponse {
            proxies: proxies.len().try_into().unwrap_or(u32::MAX),
            replay,
            ..found.into()
        })
    }

    /// The request with its client. `clients` are those that were found so far, by name.
    fn sample<'a>(
        &self,
        asked: &'a v1::ExplainRequest,
        mesh: &Mesh,
        clients: &mut BTreeMap<&'a str, Arc<Proxy>>,
    ) -> Result<Sample, Status> {
        let proxy = match clients.get(&*asked.from) {
            Some(known) => known.clone(),
            None => {
                let found = Arc::new(self.client(&asked.from, mesh)?.0);
                clients.entry(&asked.from).or_insert(found).clone()
            }
        };
        Ok(Sample { proxy, traffic: traffic(asked)? })
    }
}

/// The answer about recorded requests, with the words in which they were asked about.
fn replayed(replay: Replay, mut recorded: Vec<v1::RecordedRequest>) -> v1::Replay {
    let elsewhere = replay.moves.iter().map(|group| group.requests);
    let elsewhere = elsewhere.fold(0, u64::saturating_add);
    let moves = replay.moves.into_iter().map(|Move { before, after, requests, example }| {
        let example = recorded.get_mut(example).and_then(|item| item.request.take());
        v1::replay::Move { before, after, requests, example }
    });
    let moves = moves.collect();
    let Replay { requests, other_settings, .. } = replay;
    v1::Replay { requests, elsewhere, other_settings, moves }
}

impl From<Preview> for v1::PreviewObjectsResponse {
    fn from(preview: Preview) -> Self {
        let samples = preview.samples.into_iter().map(|[before, after]| v1::SamplePreview {
            changed: before != after,
            before,
            after,
        });
        Self {
            objects: preview.objects.into_iter().map(Into::into).collect(),
            problems: preview.problems.iter().map(ToString::to_string).collect(),
            changed_proxies: preview.proxies.try_into().unwrap_or(u32::MAX),
            proxies: 0,
            resources: preview.resources.into_iter().map(Into::into).collect(),
            samples: samples.collect(),
            findings: preview.findings.into_iter().map(Into::into).collect(),
            held: preview.held.iter().map(ToString::to_string).collect(),
            replay: None,
        }
    }
}

/// What changes in a few words, if there are any.
fn words(old: Option<&Object>, new: &Object) -> Vec<String> {
    let text = timeline::between(old, new).text;
    if text.is_empty() { Vec::new() } else { vec![text] }
}

impl From<(ObjectKey, ObjectChange)> for v1::ObjectPreview {
    fn from((key, change): (ObjectKey, ObjectChange)) -> Self {
        use v1::object_preview::Change;
        let (kind, details) = match change {
            ObjectChange::Created(new) => (Change::Created, words(None, &new)),
            ObjectChange::Changed(old, new) => (Change::Changed, words(Some(&old), &new)),
            ObjectChange::Unchanged => (Change::Unchanged, Vec::new()),
            ObjectChange::Invalid(problems) => {
                (Change::Invalid, problems.iter().map(ToString::to_string).collect())
            }
        };
        Self { object: Some((&key).into()), change: kind.into(), details }
    }
}

impl From<ResourceDifference> for v1::ResourcePreview {
    fn from(difference: ResourceDifference) -> Self {
        use v1::resource_preview::Change;
        let change = match difference.change {
            ResourceChange::Added => Change::Added,
            ResourceChange::Changed => Change::Changed,
            ResourceChange::Removed => Change::Removed,
        };
        Self {
            r#type: v1::ResourceType::from(difference.kind).into(),
            name: difference.name,
            virtual_host: difference.virtual_host,
            change: change.into(),
            proxies: difference.proxies.try_into().unwrap_or(u32::MAX),
        }
    }
}

fn traffic(request: &v1::ExplainRequest) -> Result<TrafficQuery, Status> {
    match (&*request.request, &*request.tcp) {
        ("", "") => Err(invalid("request", "is empty, and so is `tcp`; expected one of them")),
        (_, "") => explain::Request::parse(&request.request, &request.headers)
            .map(TrafficQuery::Http)
            .map_err(|why| invalid("request", why)),
        ("", to) => {
            let sni = Some(request.sni.clone()).filter(|sni| !sni.is_empty());
            TrafficQuery::tcp(to, sni).map_err(|why| invalid("tcp", why))
        }
        _ => Err(invalid("tcp", "is given together with `request`; expected one of them")),
    }
}

impl From<Finding> for v1::Finding {
    fn from(finding: Finding) -> Self {
        let severity = match finding.code.severity {
            Severity::Info => v1::finding::Severity::Info,
            Severity::Warning => v1::finding::Severity::Warning,
            Severity::Error => v1::finding::Severity::Error,
        };
        Self {
            severity: severity.into(),
            code: finding.code.id.to_owned(),
            object: finding.object.as_ref().map(Into::into),
            origin: match finding.origin {
                Origin::Cluster => String::new(),
                origin => origin.to_string(),
            },
            field: finding.path,
            message: finding.message,
            advice: finding.advice,
        }
    }
}
