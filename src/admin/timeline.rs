//! The time lines over the admin API.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::mpsc;
use tonic::Status;

use super::Admin;
use super::api::v1;
use super::api::v1::timeline_entry::Kind as Told;
use super::convert::{any_kind, timestamp, to_u32};
use super::grpc::{invalid, not_found};
use crate::api::{Kind, ObjectKey};
use crate::bootstrap::dns_label;
use crate::status;
use crate::text::listed;
use crate::timeline::{Entry, EntryKind, Of, Reading, ShareChange};

/// The shortest time between two messages of a stream. What happens meanwhile is sent together.
const PACE: Duration = Duration::from_millis(250);

/// Which entries are asked for.
#[derive(Clone, Debug)]
pub(super) struct Question {
    of: Of,
    since: Option<Timestamp>,
}

impl Question {
    /// Reads a request that arrives at this time.
    ///
    /// # Errors
    /// A field is invalid; the message names it.
    pub(super) fn new(request: &v1::GetTimelineRequest, now: Timestamp) -> Result<Self, Status> {
        let v1::GetTimelineRequest { kind, namespace, name, since } = request;
        let since = match since.as_str() {
            "" => None,
            text => {
                let age = crate::api::Duration::parse(text).map_err(|why| invalid("since", why))?;
                Some(now.checked_sub(age.0).unwrap_or(Timestamp::MIN))
            }
        };
        let of = match (kind.as_str(), namespace.as_str(), name.as_str()) {
            ("", "", "") => Of::All,
            ("", namespace, "") => Of::Namespace(label(namespace)?.into()),
            (_, _, "") => return Err(invalid("name", "is empty; expected the name of an object")),
            (kind, namespace, name) => {
                let Some(found) = any_kind(kind) else {
                    let known: Vec<String> =
                        Kind::ALL.iter().map(|kind| kind.as_str().to_lowercase()).collect();
                    let right = listed(&known, "or");
                    return Err(invalid("kind", format!("is `{kind}`; expected {right}")));
                };
                let namespace = if found.namespaced() { label(namespace)? } else { "" };
                Of::Object(ObjectKey::new(found, namespace, name))
            }
        };
        Ok(Self { of, since })
    }

    fn object(&self) -> Option<&ObjectKey> {
        match &self.of {
            Of::Object(key) => Some(key),
            Of::All | Of::Namespace(_) => None,
        }
    }
}

fn label(namespace: &str) -> Result<&str, Status> {
    dns_label(namespace).map_err(|why| invalid("namespace", why))?;
    Ok(namespace)
}

/// The time line now.
///
/// # Errors
/// Nothing is known of the object.
pub(super) fn read(admin: &Admin, question: &Question) -> Result<v1::Timeline, Status> {
    let (timeline, _) = read_after(admin, question, 0);
    let of_it = timeline.entries.iter().any(|entry| entry.object.is_some());
    match question.object() {
        // With a time, older entries are not looked at.
        Some(key) if !of_it && !is_known(admin, key) && question.since.is_none() => {
            Err(not_found(key))
        }
        _ => Ok(timeline),
    }
}

fn is_known(admin: &Admin, key: &ObjectKey) -> bool {
    let state = admin.published.state();
    // Of other kinds only versions of Istio's are recorded, so that nothing can be said of the others.
    !key.kind.is_of_istio() || state.active.contains_key(key) || state.invalid.contains_key(key)
}

/// The entries with a greater number than `after`, and the number of the newest entry.
fn read_after(admin: &Admin, question: &Question, after: u64) -> (v1::Timeline, u64) {
    let Reading { mut entries, whole_since, newest } = admin.timeline.read(&question.of, after);
    if let Some(since) = question.since {
        entries.retain(|entry| entry.at >= since);
    }
    let now = question.object().and_then(|key| {
        let summary = status::summary(&admin.published.state(), &admin.connections.list(), key)?;
        Some(v1::ObjectSummary::of(key, &summary))
    });
    let timeline = v1::Timeline {
        object: question.object().map(Into::into),
        entries: entries.iter().map(|entry| (&**entry).into()).collect(),
        whole_since: Some(timestamp(whole_since)),
        replica: admin.peers.pod().to_owned(),
        now,
    };
    (timeline, newest)
}

/// Sends the time line, and then what is new, no faster than it is read.
pub(super) async fn send(
    admin: &Admin,
    question: &Question,
    to: &mpsc::Sender<Result<v1::Timeline, Status>>,
) {
    let mut changes = admin.timeline.changes();
    let mut after = 0;
    let mut is_first = true;
    loop {
        changes.mark_unchanged();
        let (timeline, newest) = read_after(admin, question, after);
        after = newest;
        // The first is sent even if there is no entry: it says that the object is known, and how it is now.
        let is_news = std::mem::take(&mut is_first) || !timeline.entries.is_empty();
        if is_news && to.send(Ok(timeline)).await.is_err() {
            return;
        }
        tokio::time::sleep(PACE).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

impl From<&Entry> for v1::TimelineEntry {
    fn from(entry: &Entry) -> Self {
        let note = &entry.note;
        let revision = note.revision.get();
        Self {
            number: entry.number,
            time: Some(timestamp(entry.at)),
            kind: Told::from(note.kind).into(),
            object: note.object.as_ref().map(Into::into),
            generation: note.generation,
            mesh_revision: (revision > 0).then_some(revision),
            text: note.text.clone(),
            proxies: note.proxies.iter().map(Into::into).collect(),
            proxy_count: to_u32(note.proxy_count),
            live: to_u32(note.live),
            in_scope: to_u32(note.in_scope),
            written: note.written.map(timestamp),
            shares: note.shares.iter().map(Into::into).collect(),
        }
    }
}

impl From<&ShareChange> for v1::ShareChange {
    fn from(share: &ShareChange) -> Self {
        Self {
            field: share.field.clone(),
            host: share.host.clone(),
            subset: share.subset.clone(),
            before: share.before,
            after: share.after,
        }
    }
}

impl From<EntryKind> for Told {
    fn from(kind: EntryKind) -> Self {
        match kind {
            EntryKind::Accepted => Self::Accepted,
            EntryKind::Rejected => Self::Rejected,
            EntryKind::Deleted => Self::Deleted,
            EntryKind::Held => Self::Held,
            EntryKind::Released => Self::Released,
            EntryKind::Published => Self::Published,
            EntryKind::Sent => Self::Sent,
            EntryKind::FirstAck => Self::FirstAck,
            EntryKind::Acked => Self::Acked,
            EntryKind::Nacked => Self::Nacked,
            EntryKind::MissingCluster => Self::MissingCluster,
            EntryKind::Lagging => Self::Lagging,
            EntryKind::CaughtUp => Self::CaughtUp,
            EntryKind::Unseen => Self::Unseen,
            EntryKind::NoEndpoints => Self::NoEndpoints,
            EntryKind::Endpoints => Self::Endpoints,
            EntryKind::NoRequests => Self::NoRequests,
            EntryKind::Requests => Self::Requests,
            EntryKind::Started => Self::Started,
            EntryKind::ApiSilent => Self::ApiSilent,
            EntryKind::ApiFailing => Self::ApiFailing,
            EntryKind::ApiForbidden => Self::ApiForbidden,
            EntryKind::ApiAbsent => Self::ApiAbsent,
            EntryKind::ApiAnswers => Self::ApiAnswers,
            EntryKind::FileUnreadable => Self::FileUnreadable,
            EntryKind::FileReadable => Self::FileReadable,
            EntryKind::Connected => Self::Connected,
            EntryKind::Disconnected => Self::Disconnected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(fields: [&str; 4]) -> Result<Question, String> {
        let [kind, namespace, name, since] = fields.map(str::to_owned);
        let request = v1::GetTimelineRequest { kind, namespace, name, since };
        let now = Timestamp::UNIX_EPOCH + Duration::from_secs(7200);
        Question::new(&request, now).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn a_request_is_about_an_object_a_namespace_or_all() {
        let web = ObjectKey::new(Kind::VirtualService, "shop", "web");
        for kind in ["vs", "VirtualService", "virtualservices"] {
            assert_eq!(question([kind, "shop", "web", ""]).unwrap().of, Of::Object(web.clone()));
        }
        assert_eq!(question(["", "", "", ""]).unwrap().of, Of::All);
        assert_eq!(question(["", "shop", "", ""]).unwrap().of, Of::Namespace("shop".into()));
        let hour = question(["", "", "", "1h"]).unwrap().since;
        assert_eq!(hour, Some(Timestamp::UNIX_EPOCH + Duration::from_secs(3600)));
        for (fields, said) in [
            (["vs", "shop", "", ""], "name: is empty"),
            (["gateway", "shop", "web", ""], "kind: is `gateway`; expected node, namespace"),
            (["", "shop", "web", ""], "kind: is ``"),
            (["vs", "Shop!", "web", ""], "namespace: "),
            (["", "", "", "soon"], "since: `soon` is not a duration"),
        ] {
            let wrong = question(fields).unwrap_err();
            assert!(wrong.starts_with(said), "{fields:?}: {wrong}");
        }
    }
}
