//! Questions about the objects that weir reads: how a request is routed, and what is wrong with them.

use std::sync::Arc;

use tonic::Status;

use super::api::v1;
use super::diff::value;
use super::grpc::{checked_namespace, invalid};
use super::{Admin, NOT_READY};
use crate::analyze::{self, Finding, Severity};
use crate::explain::{self, TrafficQuery};
use crate::mesh::{self, Mesh, Proxy, ScopeView};
use crate::rollout_guard::HeldChange;
use crate::snapshot::SnapshotBuilder;
use crate::source::Origin;
use crate::store::Store;

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
        let mut answer = explain::explain(&ScopeView::new(&mesh, &scope), &snapshot, &traffic);
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
