//! Validates the built resources before they are sent. Those that Envoy would reject are omitted and reported.
//!
//! Objects that would produce such resources are rejected on input ([`crate::api::parse`]), so this finds nothing as
//! long as the translation is correct.

use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3 as route;
use prost::{Message, Name};

use super::EncodedVirtualHost;
use super::provenance::Provenance;
use crate::api::ObjectKey;
use crate::envoy_validate;
use crate::translate::virtual_host::TranslatedVirtualHost;

/// A resource or part of one that is not sent because Envoy would reject it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OmittedResource {
    /// The resource, like `cds outbound|80||web.shop.svc.cluster.local`, and the part of it.
    pub resource: String,
    /// The object that causes it, if a single one does.
    pub object: Option<ObjectKey>,
    /// The reason that Envoy would give.
    pub reason: String,
}

/// What was omitted from a part; usually nothing.
pub(super) type OmittedResources = Arc<[OmittedResource]>;

/// Validates messages and collects what is omitted.
#[derive(Debug, Default)]
pub(super) struct OutputValidator(Vec<OmittedResource>);

impl OutputValidator {
    pub(super) fn finish(self) -> OmittedResources {
        self.0.into()
    }

    fn report(&mut self, resource: String, object: Option<&ObjectKey>, reason: String) {
        tracing::error!(
            resource,
            object = object.map(tracing::field::display),
            reason,
            "omitted a resource that Envoy would reject"
        );
        self.0.push(OmittedResource { resource, object: object.cloned(), reason });
    }

    /// The encoded message, or `None` if Envoy would reject it.
    pub(super) fn pass<M: Message + Name>(
        &mut self,
        kind: &str,
        name: &str,
        message: &M,
        object: Option<&ObjectKey>,
    ) -> Option<Bytes> {
        let bytes = message.encode_to_vec();
        match first_problem::<M>(&bytes) {
            None => Some(bytes.into()),
            Some(reason) => {
                self.report(format!("{kind} {name}"), object, reason);
                None
            }
        }
    }

    /// The assignment without the localities that Envoy would reject. It is never omitted entirely, because a cluster
    /// without an answer would warm forever.
    pub(super) fn checked_assignment(
        &mut self,
        mut message: ClusterLoadAssignment,
        object: Option<&ObjectKey>,
    ) -> Bytes {
        let bytes = message.encode_to_vec();
        let Some(reason) = first_problem::<ClusterLoadAssignment>(&bytes) else {
            return bytes.into();
        };
        self.report(format!("eds {}", message.cluster_name), object, reason);
        message.endpoints.retain(|locality| {
            let alone =
                ClusterLoadAssignment { endpoints: vec![locality.clone()], ..Default::default() };
            let named =
                ClusterLoadAssignment { cluster_name: message.cluster_name.clone(), ..alone };
            first_problem::<ClusterLoadAssignment>(&named.encode_to_vec()).is_none()
        });
        let bytes = message.encode_to_vec();
        match first_problem::<ClusterLoadAssignment>(&bytes) {
            None => bytes.into(),
            Some(_) => {
                message.endpoints.clear();
                message.encode_to_vec().into()
            }
        }
    }

    /// The listener without the filter chains that Envoy would reject, if any chain is left: several services may share
    /// it, and a bad one must not affect the others.
    pub(super) fn checked_listener(&mut self, mut message: Listener) -> Option<(Listener, Bytes)> {
        loop {
            let bytes = message.encode_to_vec();
            let found = envoy_validate::check(&Listener::full_name(), &bytes);
            let Some(first) = found.first() else {
                return Some((message, bytes.into()));
            };
            let chain =
                index(&first.path, "filter_chains[").filter(|at| *at < message.filter_chains.len());
            let of = chain.map(|at| format!(" filter chain {at}")).unwrap_or_default();
            self.report(format!("lds {}{of}", message.name), None, first.to_string());
            message.filter_chains.remove(chain?);
        }
    }

    /// The virtual host as a field of the route configuration `head`. A bad route whose match is valid answers 503
    /// instead, so that no other route takes its requests; a route whose match is invalid is omitted.
    pub(super) fn checked_virtual_host(
        &mut self,
        head: &[u8],
        made: TranslatedVirtualHost,
        objects: &Provenance,
    ) -> Option<EncodedVirtualHost> {
        let TranslatedVirtualHost { mut host, defined_by } = made;
        let part = EncodedVirtualHost::new(host.clone(), objects.clone());
        if virtual_host_problem(head, &part).is_none() {
            return Some(part);
        }
        let (routes, mut kept) = (std::mem::take(&mut host.routes), Vec::new());
        for (at, entry) in routes.into_iter().enumerate() {
            let object = defined_by.get(at).and_then(Option::as_ref);
            let Some(reason) = route_problem(head, &entry) else {
                kept.push(entry);
                continue;
            };
            self.report(
                format!("rds {} route {at} `{}`", host.name, entry.name),
                object,
                reason.clone(),
            );
            let object = object.map(|object| format!(" of {object}")).unwrap_or_default();
            let answer = unavailable(entry, &format!("this route{object} is invalid: {reason}"));
            kept.extend(route_problem(head, &answer).is_none().then_some(answer));
        }
        host.routes = kept;
        let part = EncodedVirtualHost::new(host, objects.clone());
        match virtual_host_problem(head, &part) {
            None => Some(part).filter(|part| !part.is_empty()),
            Some(reason) => {
                self.report(
                    format!("rds {}", part.name),
                    defined_by.into_iter().flatten().next().as_ref(),
                    reason,
                );
                None
            }
        }
    }
}

/// A route that answers 503 to everything that `instead_of` matches.
fn unavailable(instead_of: route::Route, says: &str) -> route::Route {
    let body = core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(
            says.chars().take(1000).collect(),
        )),
        ..Default::default()
    };
    route::Route {
        name: instead_of.name,
        r#match: instead_of.r#match,
        action: Some(route::route::Action::DirectResponse(route::DirectResponseAction {
            status: 503,
            body: Some(body),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn first_problem<M: Name>(bytes: &[u8]) -> Option<String> {
    envoy_validate::check(&M::full_name(), bytes).first().map(ToString::to_string)
}

/// Validates a route as the only one of a virtual host.
fn route_problem(head: &[u8], item: &route::Route) -> Option<String> {
    let host = route::VirtualHost {
        name: "one".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![item.clone()],
        ..Default::default()
    };
    virtual_host_problem(head, &EncodedVirtualHost::new(host, Provenance::default()))
}

/// Validates a virtual host inside its route configuration, because some rules involve both.
fn virtual_host_problem(head: &[u8], part: &EncodedVirtualHost) -> Option<String> {
    first_problem::<route::RouteConfiguration>(&[head, &part.field].concat())
}

/// Parses the index after `prefix` at the start of `path`.
fn index(path: &str, prefix: &str) -> Option<usize> {
    path.strip_prefix(prefix)?.split_once(']')?.0.parse().ok()
}
