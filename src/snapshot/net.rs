//! The last look at what was made, before it may be sent: what Envoy would refuse is left out, and reported.
//!
//! Objects that lead here are refused when they come in ([`crate::api::parse`]), so that this finds nothing as long as
//! translation is right.

use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3 as route;
use prost::{Message, Name};

use super::EncodedVirtualHost;
use super::resource::Provenance;
use crate::api::ObjectKey;
use crate::proto_rules;
use crate::translate::virtual_host::Made;

/// Something that Envoy would refuse and that is not sent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeftOut {
    /// The resource, as `cds outbound|80||web.shop.svc.cluster.local`, and what of it.
    pub resource: String,
    /// The object that leads to it, where one does by itself.
    pub object: Option<ObjectKey>,
    /// What Envoy would say.
    pub reason: String,
}

/// What was left out of a part, mostly nothing.
pub(super) type Left = Arc<[LeftOut]>;

/// Takes note of what is left out while a part is made.
#[derive(Debug, Default)]
pub(super) struct Net(Vec<LeftOut>);

impl Net {
    pub(super) fn finish(self) -> Left {
        self.0.into()
    }

    fn report(&mut self, resource: String, object: Option<&ObjectKey>, reason: String) {
        match object {
            Some(object) => tracing::error!("{resource}: left out, Envoy would refuse it: {reason} (by {object})"),
            None => tracing::error!("{resource}: left out, Envoy would refuse it: {reason}"),
        }
        self.0.push(LeftOut { resource, object: object.cloned(), reason });
    }

    /// The encoded message, or nothing where Envoy would refuse it.
    pub(super) fn pass<M: Message + Name>(
        &mut self,
        kind: &str,
        name: &str,
        message: &M,
        object: Option<&ObjectKey>,
    ) -> Option<Bytes> {
        let bytes = message.encode_to_vec();
        match wrong::<M>(&bytes) {
            None => Some(bytes.into()),
            Some(reason) => {
                self.report(format!("{kind} {name}"), object, reason);
                None
            }
        }
    }

    /// The assignment without the localities that Envoy would refuse: a cluster without any answer would wait for ever.
    pub(super) fn pass_assignment(&mut self, mut message: ClusterLoadAssignment, object: Option<&ObjectKey>) -> Bytes {
        let bytes = message.encode_to_vec();
        let Some(reason) = wrong::<ClusterLoadAssignment>(&bytes) else { return bytes.into() };
        self.report(format!("eds {}", message.cluster_name), object, reason);
        message.endpoints.retain(|locality| {
            let alone = ClusterLoadAssignment { endpoints: vec![locality.clone()], ..Default::default() };
            let named = ClusterLoadAssignment { cluster_name: message.cluster_name.clone(), ..alone };
            wrong::<ClusterLoadAssignment>(&named.encode_to_vec()).is_none()
        });
        let bytes = message.encode_to_vec();
        match wrong::<ClusterLoadAssignment>(&bytes) {
            None => bytes.into(),
            Some(_) => {
                message.endpoints.clear();
                message.encode_to_vec().into()
            }
        }
    }

    /// The listener without the filter chains that Envoy would refuse, if there is any other: several services may share
    /// it, and one of them does the others no harm.
    pub(super) fn pass_listener(&mut self, mut message: Listener) -> Option<(Listener, Bytes)> {
        loop {
            let bytes = message.encode_to_vec();
            let found = proto_rules::check(&Listener::full_name(), &bytes);
            let Some(first) = found.first() else { return Some((message, bytes.into())) };
            let chain = index(&first.path, "filter_chains[").filter(|at| *at < message.filter_chains.len());
            let of = chain.map(|at| format!(" filter chain {at}")).unwrap_or_default();
            self.report(format!("lds {}{of}", message.name), None, first.to_string());
            message.filter_chains.remove(chain?);
        }
    }

    /// The virtual host as a field of the route configuration `head`. A bad route whose match is good answers 503, so that
    /// no other route takes what was meant for it; one whose match is bad is left out.
    pub(super) fn pass_host(&mut self, head: &[u8], made: Made, objects: &Provenance) -> Option<EncodedVirtualHost> {
        let Made { mut host, said_by } = made;
        let part = EncodedVirtualHost::new(host.clone(), objects.clone());
        if wrong_host(head, &part).is_none() {
            return Some(part);
        }
        let (routes, mut kept) = (std::mem::take(&mut host.routes), Vec::new());
        for (at, one) in routes.into_iter().enumerate() {
            let object = said_by.get(at).and_then(Option::as_ref);
            let alone = |one: &route::Route| {
                let host = route::VirtualHost {
                    name: "one".to_owned(),
                    domains: vec!["*".to_owned()],
                    routes: vec![one.clone()],
                    ..Default::default()
                };
                wrong_host(head, &EncodedVirtualHost::new(host, Provenance::default()))
            };
            let Some(reason) = alone(&one) else {
                kept.push(one);
                continue;
            };
            self.report(format!("rds {} route {at} `{}`", host.name, one.name), object, reason.clone());
            let object = object.map(|object| format!(" of {object}")).unwrap_or_default();
            let answer = out_of_order(one, &format!("this route{object} is out of order: {reason}"));
            kept.extend(alone(&answer).is_none().then_some(answer));
        }
        host.routes = kept;
        let part = EncodedVirtualHost::new(host, objects.clone());
        match wrong_host(head, &part) {
            None => Some(part).filter(|part| !part.is_empty()),
            Some(reason) => {
                self.report(format!("rds {}", part.name), said_by.into_iter().flatten().next().as_ref(), reason);
                None
            }
        }
    }
}

/// A route that answers 503 to what `instead_of` matches.
fn out_of_order(instead_of: route::Route, says: &str) -> route::Route {
    let body = core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(says.chars().take(1000).collect())),
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

fn wrong<M: Name>(bytes: &[u8]) -> Option<String> {
    proto_rules::check(&M::full_name(), bytes).first().map(ToString::to_string)
}

/// What is wrong with a virtual host as part of a route configuration: some rules are about both.
fn wrong_host(head: &[u8], part: &EncodedVirtualHost) -> Option<String> {
    wrong::<route::RouteConfiguration>(&[head, &part.field].concat())
}

/// The number behind `prefix` at the beginning of `path`.
fn index(path: &str, prefix: &str) -> Option<usize> {
    path.strip_prefix(prefix)?.split_once(']')?.0.parse().ok()
}
