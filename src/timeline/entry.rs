//! One entry of a time line.

use std::mem::size_of;

use k8s_openapi::jiff::Timestamp;

use crate::api::ObjectKey;
use crate::revision::MeshRevision;
use crate::status::MissingProxy;

/// What an entry tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A new version of the object was read and is valid.
    Accepted,
    /// A new version was read and is not valid; the last valid one stays in force.
    Rejected,
    /// The object was deleted.
    Deleted,
    /// A change of it is held back until an endpoint is ready.
    Held,
    /// It is no longer held back.
    Released,
    /// It came into force with a revision of the mesh.
    Published,
    /// Proxies are being sent it, and none has answered.
    Sent,
    /// The first proxy has ACKed it, and not all have.
    FirstAck,
    /// All proxies that see it have ACKed it.
    Acked,
    /// Proxies rejected it.
    Nacked,
    /// Proxies keep the previous version, because the new one references a cluster that does not exist.
    MissingCluster,
    /// Proxies do not answer.
    Lagging,
    /// Proxies that did not answer do.
    CaughtUp,
    /// No connected proxy sees it.
    Unseen,
    /// A destination that gets requests has no ready endpoint any more.
    NoEndpoints,
    /// It has one again.
    Endpoints,
    /// No proxy sends requests to the destinations of a weighted route.
    NoRequests,
    /// Proxies do again.
    Requests,
    /// weir started.
    Started,
    /// The API has not answered the watches of kinds for long.
    ApiSilent,
    /// Kinds cannot be read: the API or the connection to it fails.
    ApiFailing,
    /// weir is not permitted to read kinds.
    ApiForbidden,
    /// The API does not serve kinds.
    ApiAbsent,
    /// Kinds can be read again.
    ApiAnswers,
    /// A file cannot be read.
    FileUnreadable,
    /// It can be read again.
    FileReadable,
    /// Proxies connected.
    Connected,
    /// Proxies disconnected.
    Disconnected,
}

impl EntryKind {
    /// Whether it tells of a condition that may come and go again and again without a new version of the object.
    pub(super) fn is_condition(self) -> bool {
        matches!(
            self,
            Self::Lagging
                | Self::CaughtUp
                | Self::NoEndpoints
                | Self::Endpoints
                | Self::NoRequests
                | Self::Requests
                | Self::Connected
                | Self::Disconnected
        )
    }
}

/// A destination's share before and after a change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ShareChange {
    /// The route, like `spec.http[0]`.
    pub field: String,
    /// The host, as written.
    pub host: String,
    /// The subset; empty for the whole service.
    pub subset: String,
    /// The share before, in percent; `None` if there was none.
    pub before: Option<f64>,
    /// The share after, in percent; `None` if there is none any more.
    pub after: Option<f64>,
}

/// An entry before it is recorded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Note {
    /// When it happened; `None` for the time at which it is recorded.
    pub at: Option<Timestamp>,
    /// What it tells.
    pub kind: EntryKind,
    /// The object; `None` if it concerns all.
    pub object: Option<ObjectKey>,
    /// `metadata.generation`; 0 if there is none.
    pub generation: i64,
    /// The mesh; [`MeshRevision::NONE`] if it concerns none.
    pub revision: MeshRevision,
    /// For people: a clause that does not name the object.
    pub text: String,
    /// When the first proxy ACKed it, if this tells that all have.
    pub first_ack: Option<Timestamp>,
    /// When the source says that the version was written.
    pub written: Option<Timestamp>,
    /// Some of the proxies that it is about.
    pub proxies: Vec<MissingProxy>,
    /// How many proxies it is about.
    pub proxy_count: usize,
    /// How many proxies have the object.
    pub live: usize,
    /// How many see it.
    pub in_scope: usize,
    /// The weights that changed.
    pub shares: Vec<ShareChange>,
    /// Where in the object something is held back or released, such as `spec.http[0].route[1]`.
    pub place: String,
    /// Whether the object comes into force with the next mesh because of this, be it as it is or as being gone.
    pub publishes: bool,
}

impl Note {
    /// An entry about all objects.
    pub(crate) fn new(kind: EntryKind, text: String) -> Self {
        Self {
            at: None,
            kind,
            object: None,
            generation: 0,
            revision: MeshRevision::NONE,
            text,
            first_ack: None,
            written: None,
            proxies: Vec::new(),
            proxy_count: 0,
            live: 0,
            in_scope: 0,
            shares: Vec::new(),
            place: String::new(),
            publishes: false,
        }
    }

    /// An entry about one object.
    pub(crate) fn of(object: &ObjectKey, kind: EntryKind, text: String) -> Self {
        Self { object: Some(object.clone()), ..Self::new(kind, text) }
    }

    /// The memory that it takes as an [`Entry`], in bytes.
    pub(super) fn size(&self) -> usize {
        let proxies = self.proxies.iter().map(|proxy| {
            size_of::<MissingProxy>() + proxy.proxy.capacity() + proxy.reason.capacity()
        });
        let shares = self.shares.iter().map(|share| {
            let texts = [&share.field, &share.host, &share.subset].map(String::capacity);
            size_of::<ShareChange>() + texts.iter().sum::<usize>()
        });
        let texts = self.text.capacity() + self.place.capacity();
        size_of::<Entry>() + texts + proxies.sum::<usize>() + shares.sum::<usize>()
    }
}

/// An entry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// Counts the entries of this process, from 1.
    pub number: u64,
    /// When it happened.
    pub at: Timestamp,
    /// What it says.
    pub note: Note,
}
