//! The reports of [`crate::status`] as messages of the admin API.

use k8s_openapi::jiff;

use envoy_types::pb::google::protobuf::{Any, Timestamp};

use super::api::v1;
use crate::api::{Kind, ObjectKey};
use crate::ca::Current;
use crate::load::interval::Verdict;
use crate::revision::MeshRevision;
use crate::snapshot::{Resource, ResourceType};
use crate::source::sync::{KindSync, SyncState};
use crate::status::{
    DestinationShare, MissingProxy, NAMED, ObjectReport, ObjectState, ObjectSummary, ObjectVersion,
    OtherRoute, ProxyReport, SplitReport,
};
use crate::webhook::Health;
use crate::xds::connections::StreamInfo;
use crate::xds::stream::{HeldResource, Progress, RejectedResource, Variant};

impl From<&KindSync> for v1::KindSync {
    fn from(sync: &KindSync) -> Self {
        use v1::kind_sync::State;
        let state = match sync.state {
            SyncState::Waiting => State::Waiting,
            SyncState::Synced => State::Synced,
            SyncState::Absent => State::Absent,
            SyncState::Forbidden(..) => State::Forbidden,
            SyncState::Failing(_) => State::Failing,
        };
        Self {
            resource: sync.kind.resource(),
            state: state.into(),
            missing_verb: sync.missing_verb().map(|verb| verb.to_string()).unwrap_or_default(),
            reason: sync.reason().to_owned(),
            complete: sync.complete,
            answered_seconds_ago: u32::try_from(sync.answered.age().as_secs()).unwrap_or(u32::MAX),
        }
    }
}

impl From<&Health> for v1::Webhook {
    fn from(health: &Health) -> Self {
        let valid_until = health.valid_until.map(timestamp);
        Self { works: health.works(), valid_until, problems: health.problems.clone() }
    }
}

impl From<Option<&Current>> for v1::CertificateAuthority {
    fn from(current: Option<&Current>) -> Self {
        let valid_until = current.and_then(|at| jiff::Timestamp::try_from(at.valid_until()).ok());
        Self {
            valid_until: valid_until.map(timestamp),
            roots: current.map_or(0, Current::root_count),
        }
    }
}

impl From<ResourceType> for v1::ResourceType {
    fn from(kind: ResourceType) -> Self {
        match kind {
            ResourceType::Cluster => v1::ResourceType::Cds,
            ResourceType::Endpoints => v1::ResourceType::Eds,
            ResourceType::Listener => v1::ResourceType::Lds,
            ResourceType::Route => v1::ResourceType::Rds,
            ResourceType::Runtime => v1::ResourceType::Rtds,
        }
    }
}

impl v1::ResourceType {
    /// The name in tables: `cds`, `eds`, `lds` or `rds`; `?` if unspecified.
    pub(crate) fn short_name(self) -> &'static str {
        let same = ResourceType::ALL.into_iter().find(|kind| self == (*kind).into());
        same.map_or("?", ResourceType::short_name)
    }

    /// The type with this [`ResourceType::short_name`]; unspecified if there is none.
    fn from_short_name(name: &str) -> Self {
        let named = ResourceType::ALL.into_iter().find(|kind| kind.short_name() == name);
        named.map_or(v1::ResourceType::Unspecified, Into::into)
    }
}

impl v1::Resource {
    /// The message for `from`, which is in `state`.
    pub(super) fn new(kind: ResourceType, from: &Resource, state: v1::resource::State) -> Self {
        Self {
            r#type: v1::ResourceType::from(kind).into(),
            name: from.name.to_string(),
            version: crate::xds::wire::version_text(from.version),
            state: state.into(),
            resource: Some(Any { type_url: kind.type_url().to_owned(), value: from.bytes() }),
        }
    }
}

impl From<&ObjectKey> for v1::ObjectRef {
    fn from(key: &ObjectKey) -> Self {
        Self {
            kind: key.kind.as_str().to_owned(),
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
        }
    }
}

/// The form of an object's name in errors and tables: `VirtualService shop/web`.
impl std::fmt::Display for v1::ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, namespace, name } = self;
        write!(f, "{kind} {namespace}/{name}")
    }
}

impl From<Progress> for v1::type_status::State {
    fn from(progress: Progress) -> Self {
        match progress {
            Progress::None => Self::NotSubscribed,
            Progress::Synced => Self::Synced,
            Progress::Stale => Self::Stale,
            Progress::Rejected => Self::Rejected,
        }
    }
}

impl From<ProxyReport> for v1::Proxy {
    fn from(report: ProxyReport) -> Self {
        let status = report.status;
        let types = ResourceType::ALL.into_iter().zip(status.types).map(|(kind, progress)| {
            v1::TypeStatus {
                r#type: v1::ResourceType::from(kind).into(),
                state: v1::type_status::State::from(progress).into(),
            }
        });
        Self {
            id: status.id.to_string(),
            namespace: report.namespace.to_string(),
            pod: report.pod.to_string(),
            scope: report.scope,
            streams: status.streams.into_iter().map(Into::into).collect(),
            types: types.collect(),
            acked: status.acked.map(MeshRevision::get),
            wanted: status.wanted.map(MeshRevision::get),
            lagging: status.lagging.unwrap_or_default(),
            rejected: status.rejected.into_iter().map(Into::into).collect(),
            held: status.held.into_iter().map(Into::into).collect(),
            kept: status.kept.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<StreamInfo> for v1::Stream {
    fn from(stream: StreamInfo) -> Self {
        Self {
            since: Some(timestamp(stream.since)),
            variant: match stream.variant {
                Variant::Sotw => v1::stream::Variant::Sotw,
                Variant::Delta => v1::stream::Variant::Delta,
            }
            .into(),
            only: stream.only.map_or(v1::ResourceType::Unspecified, Into::into).into(),
        }
    }
}

/// A time as a message.
pub(super) fn timestamp(time: jiff::Timestamp) -> Timestamp {
    // Before 1970 one of them counts the fraction backwards and the other forwards.
    let nanoseconds = time.subsec_nanosecond();
    let borrowed = i64::from(nanoseconds < 0);
    Timestamp {
        seconds: time.as_second() - borrowed,
        nanos: if borrowed == 1 { nanoseconds + 1_000_000_000 } else { nanoseconds },
    }
}

impl From<RejectedResource> for v1::RejectedResource {
    fn from(rejected: RejectedResource) -> Self {
        Self {
            r#type: v1::ResourceType::from_short_name(rejected.kind).into(),
            name: rejected.name.to_string(),
            version: rejected.version,
            message: rejected.message.to_string(),
            objects: rejected.objects.iter().map(Into::into).collect(),
            virtual_host: rejected.virtual_host.unwrap_or_default().to_string(),
        }
    }
}

impl From<HeldResource> for v1::HeldResource {
    fn from(held: HeldResource) -> Self {
        Self {
            r#type: v1::ResourceType::from_short_name(held.kind).into(),
            name: held.name.to_string(),
            virtual_host: held.virtual_host.unwrap_or_default().to_string(),
            missing_cluster: held.missing_cluster.to_string(),
            objects: held.objects.iter().map(Into::into).collect(),
        }
    }
}

impl From<SplitReport> for v1::Split {
    fn from(report: SplitReport) -> Self {
        Self {
            object: Some((&report.object).into()),
            defined_in: Some((&report.defined_in).into()),
            field: report.field,
            name: report.name,
            shares: report.shares.into_iter().map(Into::into).collect(),
            live: u32::try_from(report.live).unwrap_or(u32::MAX),
            in_scope: u32::try_from(report.in_scope).unwrap_or(u32::MAX),
            invalid: report.invalid,
            observation: None,
        }
    }
}

impl From<&OtherRoute> for v1::RouteRef {
    fn from(route: &OtherRoute) -> Self {
        Self { object: Some((&route.object).into()), field: route.field.clone() }
    }
}

impl From<ObjectVersion> for v1::ObjectVersion {
    fn from(version: ObjectVersion) -> Self {
        Self { created_us: version.created, generation: version.generation }
    }
}

impl From<Verdict> for v1::Verdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Worse => Self::Worse,
            Verdict::NoWorse => Self::NoWorse,
            Verdict::TooFew => Self::TooFewRequests,
        }
    }
}

impl From<DestinationShare> for v1::Share {
    fn from(share: DestinationShare) -> Self {
        Self {
            host: share.host,
            subset: share.subset,
            port: share.port,
            wanted: share.wanted,
            effective: share.effective,
            observed: None,
        }
    }
}

impl From<ObjectReport> for v1::ObjectStatus {
    fn from(report: ObjectReport) -> Self {
        let proxies = report.proxies.into_iter().map(|proxy| v1::ProxyState {
            id: proxy.id.to_string(),
            state: v1::proxy_state::State::from(proxy.state).into(),
            reason: proxy.reason,
        });
        Self {
            object: Some((&report.object).into()),
            generation: report.generation,
            mesh_revision: report.revision.get(),
            live: report.live,
            proxies: proxies.collect(),
            invalid: report.invalid,
            held: report.held,
            newest_generation: 0,
        }
    }
}

impl From<&MissingProxy> for v1::MissingProxy {
    fn from(missing: &MissingProxy) -> Self {
        Self {
            proxy: missing.proxy.clone(),
            state: v1::proxy_state::State::from(missing.state).into(),
            reason: missing.reason.clone(),
        }
    }
}

impl v1::ObjectSummary {
    /// What this replica knows of an object.
    pub(crate) fn of(key: &ObjectKey, summary: &ObjectSummary) -> Self {
        Self {
            object: Some(key.into()),
            created_us: summary.version.created,
            generation: summary.version.generation,
            in_scope: to_u32(summary.in_scope),
            live: to_u32(summary.live),
            rejected: to_u32(summary.rejected),
            held: to_u32(summary.held),
            missing: summary.missing.iter().map(Into::into).collect(),
            held_changes: summary.held_changes.clone(),
        }
    }
}

impl v1::ObjectRef {
    /// The object; `None` if it is not of a kind that has summaries.
    pub(crate) fn key(&self) -> Option<ObjectKey> {
        let kind = object_kind(&self.kind)?;
        Some(ObjectKey::new(kind, &self.namespace, &self.name))
    }
}

pub(super) fn to_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn to_usize(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

impl From<v1::ObjectSummary> for ObjectSummary {
    fn from(summary: v1::ObjectSummary) -> Self {
        let missing = summary.missing.into_iter().map(|missing| {
            let state = match missing.state() {
                v1::proxy_state::State::Live => ObjectState::Live,
                v1::proxy_state::State::Held => ObjectState::Held,
                v1::proxy_state::State::Rejected => ObjectState::Rejected,
                v1::proxy_state::State::Lagging | v1::proxy_state::State::Unspecified => {
                    ObjectState::Lagging
                }
            };
            MissingProxy { proxy: missing.proxy, state, reason: missing.reason }
        });
        Self {
            version: ObjectVersion { created: summary.created_us, generation: summary.generation },
            in_scope: to_usize(summary.in_scope),
            live: to_usize(summary.live),
            rejected: to_usize(summary.rejected),
            held: to_usize(summary.held),
            missing: missing.take(NAMED).collect(),
            held_changes: summary.held_changes.into_iter().take(NAMED).collect(),
        }
    }
}

impl From<ObjectState> for v1::proxy_state::State {
    fn from(verdict: ObjectState) -> Self {
        match verdict {
            ObjectState::Live => Self::Live,
            ObjectState::Lagging => Self::Lagging,
            ObjectState::Held => Self::Held,
            ObjectState::Rejected => Self::Rejected,
        }
    }
}

/// Parses a kind as users write it.
pub(crate) fn object_kind(text: &str) -> Option<Kind> {
    match text.to_ascii_lowercase().as_str() {
        "virtualservice" | "virtualservices" | "vs" => Some(Kind::VirtualService),
        "destinationrule" | "destinationrules" | "dr" => Some(Kind::DestinationRule),
        _ => None,
    }
}

/// Parses any kind that weir reads, as users write it: in the singular, in the plural or in short.
pub(crate) fn any_kind(text: &str) -> Option<Kind> {
    let text = text.to_ascii_lowercase();
    Kind::ALL.into_iter().find(|kind| {
        kind.as_str().to_ascii_lowercase() == text
            || kind.plural() == text
            || short(*kind) == Some(&text)
    })
}

/// The short name of a kind, as kubectl knows it.
fn short(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::VirtualService => "vs",
        Kind::DestinationRule => "dr",
        Kind::ServiceEntry => "se",
        Kind::WorkloadEntry => "we",
        Kind::PeerAuthentication => "pa",
        Kind::Service => "svc",
        Kind::Endpoints => "ep",
        Kind::Pod => "po",
        Kind::Namespace => "ns",
        Kind::Node => "no",
        Kind::Sidecar | Kind::EndpointSlice => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_instant_on_either_side_of_1970() {
        for (text, seconds, nanos) in [
            ("2026-01-10T12:00:00.5Z", 1_768_046_400, 500_000_000),
            ("1969-12-31T23:59:59.25Z", -1, 250_000_000),
        ] {
            let time = timestamp(text.parse().unwrap());
            assert_eq!((time.seconds, time.nanos), (seconds, nanos), "{text}");
        }
    }

    #[test]
    fn every_type_has_a_name_in_tables_and_is_found_by_it() {
        for kind in ResourceType::ALL {
            let message = v1::ResourceType::from(kind);
            assert_eq!(message.short_name(), kind.short_name());
            assert_eq!(v1::ResourceType::from_short_name(kind.short_name()), message);
        }
        assert_eq!(v1::ResourceType::from_short_name("ads"), v1::ResourceType::Unspecified);
    }
}
