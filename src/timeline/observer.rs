//! What becomes of objects on the proxies, as entries. Pure: from a published state and the status of the proxies.
//!
//! Only what was published and is not ACKed by all is looked at, so nothing is done while nothing changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use xxhash_rust::xxh3::Xxh3;

use super::entry::{EntryKind, Note};
use crate::api::ObjectKey;
use crate::revision::MeshRevision;
use crate::status::{
    MissingProxy, NAMED, ObjectState, ProxiesByViewpoint, State, Verdict, VisibleObjects,
};
use crate::text::prefix;
use crate::xds::connections::ProxyStatus;

/// How long an object that no proxy sees is followed: after a start, proxies connect again.
const UNSEEN: Duration = Duration::from_secs(30);

/// The longest reason that is quoted, in bytes.
const LONGEST: usize = 400;

/// When an object came into force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Publication {
    /// With which mesh.
    pub revision: MeshRevision,
    /// When.
    pub at: Timestamp,
}

/// An object that not all proxies have ACKed.
#[derive(Debug)]
struct Open {
    published: Publication,
    /// What was recorded last of the progress.
    told: Option<EntryKind>,
    /// How many lagging proxies were recorded.
    lagging: usize,
}

/// What was recorded of a proxy.
#[derive(Debug)]
struct Known {
    name: String,
    since: Option<Timestamp>,
    lagging: bool,
    /// Hashes of what it rejected or keeps.
    problems: Vec<u64>,
}

/// The proxies that have something in common.
#[derive(Debug, Default)]
struct Named {
    count: usize,
    first: Vec<MissingProxy>,
}

impl Named {
    fn add(&mut self, proxy: &ProxyStatus, state: ObjectState, reason: &str) {
        self.count += 1;
        if self.first.len() < NAMED {
            let reason = prefix(reason, LONGEST).to_owned();
            self.first.push(MissingProxy { proxy: name(proxy), state, reason });
        }
    }

    /// `shop/a (reason), shop/b and 3 more`.
    fn text(&self) -> String {
        let first = self.first.iter().map(|proxy| match proxy.reason.as_str() {
            "" => proxy.proxy.clone(),
            reason => format!("{} ({reason})", proxy.proxy),
        });
        let first = first.collect::<Vec<_>>().join(", ");
        match self.count.saturating_sub(self.first.len()) {
            0 => first,
            more => format!("{first} and {more} more"),
        }
    }
}

fn name(proxy: &ProxyStatus) -> String {
    format!("{}/{}", proxy.proxy.namespace, proxy.proxy.name)
}

/// `1 proxy`, `2 proxies`.
fn proxies(count: usize) -> String {
    if count == 1 { "1 proxy".to_owned() } else { format!("{count} proxies") }
}

/// How far an object is.
#[derive(Default)]
struct Progress<'a> {
    in_scope: usize,
    live: usize,
    /// How many are being sent it.
    wanted: usize,
    /// The times of the first and the last ACK, with the proxy.
    first: Option<(Timestamp, &'a ProxyStatus)>,
    last: Option<(Timestamp, &'a ProxyStatus)>,
    lagging: Named,
}

impl<'a> Progress<'a> {
    fn acked(&mut self, proxy: &'a ProxyStatus) {
        self.live += 1;
        let Some(at) = proxy.acked_at else { return };
        if self.first.is_none_or(|(first, _)| at < first) {
            self.first = Some((at, proxy));
        }
        if self.last.is_none_or(|(last, _)| at > last) {
            self.last = Some((at, proxy));
        }
    }
}

/// Follows the proxies, and the objects that were published.
#[derive(Debug, Default)]
pub(super) struct Observer {
    open: BTreeMap<ObjectKey, Open>,
    known: HashMap<Arc<str>, Known>,
    /// Publications of a state that is not there yet.
    waiting: BTreeMap<ObjectKey, Publication>,
    visible: VisibleObjects,
}

impl Observer {
    /// Whether entries may follow although nothing changes.
    pub(super) fn waits(&self) -> bool {
        !self.open.is_empty() || !self.waiting.is_empty()
    }

    /// The entries for what has changed since the last call. `publications` is what was published since.
    pub(super) fn observe(
        &mut self,
        state: &State,
        connected: &[ProxyStatus],
        publications: BTreeMap<ObjectKey, Publication>,
        now: Timestamp,
    ) -> Vec<Note> {
        let mut notes = Vec::new();
        self.connections(connected, &mut notes);
        self.problems(state, connected, &mut notes);
        self.open(state, publications);
        let lagging = self.progress(state, connected, now, &mut notes);
        self.lagging(connected, &lagging, &mut notes);
        notes
    }

    /// Who connected and who disconnected.
    fn connections(&mut self, connected: &[ProxyStatus], notes: &mut Vec<Note>) {
        let mut here: HashMap<&Arc<str>, Option<Timestamp>> = HashMap::new();
        let (mut came, mut left) = (Named::default(), Named::default());
        for proxy in connected {
            let since = proxy.streams.iter().map(|stream| stream.since).min();
            here.insert(&proxy.id, since);
            let known = self.known.get(&proxy.id);
            let is_new = known.is_none_or(|known| known.since < since);
            if is_new {
                came.add(proxy, ObjectState::Lagging, "");
                if known.is_some() {
                    left.add(proxy, ObjectState::Lagging, "connected again");
                }
                let (name, problems) = (name(proxy), Vec::new());
                let known = Known { name, since, lagging: false, problems };
                self.known.insert(proxy.id.clone(), known);
            }
        }
        self.known.retain(|id, known| {
            let stays = here.contains_key(id);
            if !stays {
                left.count += 1;
                if left.first.len() < NAMED {
                    let (proxy, reason) = (known.name.clone(), String::new());
                    left.first.push(MissingProxy { proxy, state: ObjectState::Lagging, reason });
                }
            }
            stays
        });
        let now = connected.len();
        for (kind, verb, list) in [
            (EntryKind::Disconnected, "disconnected", left),
            (EntryKind::Connected, "connected", came),
        ] {
            if list.count > 0 {
                let (count, names) = (proxies(list.count), list.text());
                let text = format!("{count} {verb}: {names}; connected now: {now}");
                notes.push(about(Note::new(kind, text), list));
            }
        }
    }

    /// What proxies newly reject, or keep because a cluster is missing.
    fn problems(&mut self, state: &State, connected: &[ProxyStatus], notes: &mut Vec<Note>) {
        let mut nacked: BTreeMap<&ObjectKey, Named> = BTreeMap::new();
        let mut missing: BTreeMap<&ObjectKey, Named> = BTreeMap::new();
        for proxy in connected {
            let Some(known) = self.known.get_mut(&proxy.id) else { continue };
            if proxy.rejected.is_empty() && proxy.held.is_empty() && known.problems.is_empty() {
                continue;
            }
            let mut problems = Vec::new();
            for item in &proxy.rejected {
                let hash = hash(&(item.kind, &item.name, &item.virtual_host, &item.version));
                problems.push(hash);
                if !known.problems.contains(&hash) {
                    let reason = format!("{} {}: {}", item.kind, item.name, item.message);
                    for object in item.objects.iter().filter(|object| object.kind.is_of_istio()) {
                        nacked.entry(object).or_default().add(
                            proxy,
                            ObjectState::Rejected,
                            &reason,
                        );
                    }
                }
            }
            for item in &proxy.held {
                let hash =
                    hash(&(item.kind, &item.name, &item.virtual_host, &item.missing_cluster));
                problems.push(hash);
                if !known.problems.contains(&hash) {
                    let reason = format!("there is no cluster {}", item.missing_cluster);
                    for object in item.objects.iter().filter(|object| object.kind.is_of_istio()) {
                        missing.entry(object).or_default().add(proxy, ObjectState::Held, &reason);
                    }
                }
            }
            known.problems = problems;
        }
        for (kind, verb, lists) in [
            (EntryKind::Nacked, "rejected it", nacked),
            (EntryKind::MissingCluster, "did not get it", missing),
        ] {
            for (object, list) in lists {
                let (count, names) = (proxies(list.count), list.text());
                let text = format!("{count} {verb} and kept the version before: {names}");
                let note = of_object(state, object, kind, text);
                notes.push(about(note, list));
            }
        }
    }

    /// Begins to follow what was published, as soon as the state is there.
    fn open(&mut self, state: &State, publications: BTreeMap<ObjectKey, Publication>) {
        self.waiting.extend(publications);
        let due: Vec<ObjectKey> = self
            .waiting
            .iter()
            .filter(|(_, published)| published.revision <= state.revision)
            .map(|(object, _)| object.clone())
            .collect();
        for object in due {
            if let Some(published) = self.waiting.remove(&object) {
                self.open.insert(object, Open { published, told: None, lagging: 0 });
            }
        }
        // Only VirtualServices and DestinationRules are followed, until they are deleted.
        self.open.retain(|object, _| state.active.contains_key(object));
    }

    /// How far each object is that is followed. Returns the proxies of which entries say that they lag.
    fn progress(
        &mut self,
        state: &State,
        connected: &[ProxyStatus],
        now: Timestamp,
        notes: &mut Vec<Note>,
    ) -> BTreeSet<Arc<str>> {
        let mut told_of = BTreeSet::new();
        if self.open.is_empty() {
            // What is remembered keeps a mesh in memory.
            self.visible = VisibleObjects::default();
            return told_of;
        }
        let Some(mesh) = &state.mesh else { return told_of };
        let mut proxies = self.visible.by_viewpoint(mesh, connected);
        self.open.retain(|object, open| {
            let since = state.active.get(object).map(|active| active.since).unwrap_or_default();
            let progress = progress(object, since, &mut proxies);
            if progress.lagging.count > open.lagging {
                let lagging = proxies.proxies(object).filter(|proxy| proxy.lagging.is_some());
                told_of.extend(lagging.map(|proxy| proxy.id.clone()));
            }
            step(object, open, progress, state, now, notes)
        });
        told_of
    }

    /// Which proxies began to lag, unless entries of objects tell of it, and which caught up.
    fn lagging(
        &mut self,
        connected: &[ProxyStatus],
        told_of: &BTreeSet<Arc<str>>,
        notes: &mut Vec<Note>,
    ) {
        let (mut lagging, mut caught_up) = (Named::default(), Named::default());
        for proxy in connected {
            let Some(known) = self.known.get_mut(&proxy.id) else { continue };
            match &proxy.lagging {
                Some(reason) if !known.lagging && !told_of.contains(&proxy.id) => {
                    lagging.add(proxy, ObjectState::Lagging, reason);
                }
                None if known.lagging => caught_up.add(proxy, ObjectState::Live, ""),
                _ => {}
            }
            known.lagging = proxy.lagging.is_some();
        }
        for (kind, verb, list) in [
            (EntryKind::Lagging, "lag", lagging),
            (EntryKind::CaughtUp, "answered again", caught_up),
        ] {
            if list.count > 0 {
                let s = if kind == EntryKind::Lagging && list.count == 1 { "s" } else { "" };
                let text = format!("{} {verb}{s}: {}", proxies(list.count), list.text());
                notes.push(about(Note::new(kind, text), list));
            }
        }
    }
}

/// How far an object is that came into its present form with mesh `since`.
fn progress<'a>(
    object: &ObjectKey,
    since: MeshRevision,
    proxies: &mut ProxiesByViewpoint<'_, 'a>,
) -> Progress<'a> {
    let mut progress = Progress::default();
    for group in proxies.groups(object) {
        progress.in_scope += group.proxies.len();
        for &proxy in &group.proxies {
            if proxy.wanted.is_some_and(|wanted| wanted >= since) {
                progress.wanted += 1;
            }
            match (Verdict::of(proxy, object, since), &proxy.lagging) {
                (Verdict::Live, _) => progress.acked(proxy),
                (Verdict::Lagging(_), Some(reason)) => {
                    progress.lagging.add(proxy, ObjectState::Lagging, reason);
                }
                _ => {}
            }
        }
    }
    progress
}

/// Records how far an object is, if that is news. Returns whether it is followed further.
fn step(
    object: &ObjectKey,
    open: &mut Open,
    progress: Progress<'_>,
    state: &State,
    now: Timestamp,
    notes: &mut Vec<Note>,
) -> bool {
    let Progress { in_scope, live, wanted, first, last, lagging } = progress;
    let (revision, begun) = (open.published.revision, open.published.at);
    let (kind, at, text) = if in_scope == 0 {
        if now.duration_since(begun) < UNSEEN.try_into().unwrap_or_default() {
            return true;
        }
        (EntryKind::Unseen, None, "no connected proxy sees it".to_owned())
    } else if live == in_scope {
        let (at, text) = acked(first, last, begun, (live, in_scope), revision);
        (EntryKind::Acked, at, text)
    } else if live > 0 && open.told != Some(EntryKind::FirstAck) {
        let after = first.map(|(at, _)| after(begun, at)).unwrap_or_default();
        let text =
            format!("{live} of {} ACKed revision {revision}, the first{after}", proxies(in_scope));
        (EntryKind::FirstAck, first.map(|(at, _)| at), text)
    } else if wanted > 0 && open.told.is_none() {
        let text = format!("being sent to {wanted} of {}, none has answered", proxies(in_scope));
        (EntryKind::Sent, None, text)
    } else {
        lag(object, open, (live, in_scope), lagging, state, notes);
        return true;
    };
    open.told = Some(kind);
    let first_ack = first.map(|(at, _)| at).filter(|_| kind == EntryKind::Acked);
    let note = Note { at, live, in_scope, first_ack, ..of_object(state, object, kind, text) };
    notes.push(note);
    let is_done = matches!(kind, EntryKind::Acked | EntryKind::Unseen);
    if !is_done {
        lag(object, open, (live, in_scope), lagging, state, notes);
    }
    !is_done
}

/// When all ACKed, and that in words.
fn acked(
    first: Option<(Timestamp, &ProxyStatus)>,
    last: Option<(Timestamp, &ProxyStatus)>,
    begun: Timestamp,
    (live, in_scope): (usize, usize),
    revision: MeshRevision,
) -> (Option<Timestamp>, String) {
    let count = format!("{live} of {}", proxies(in_scope));
    let text = format!("{count} ACKed revision {revision}");
    match (first, last) {
        (Some((_, _)), Some((at, proxy))) if in_scope == 1 => {
            (Some(at), format!("{text}: {}{}", name(proxy), after(begun, at)))
        }
        (Some((first, _)), Some((at, proxy))) => {
            let (first, last, name) = (after(begun, first), after(begun, at), name(proxy));
            (Some(at), format!("{text}, the first{first}, the last, {name},{last}"))
        }
        _ => (None, text),
    }
}

/// Records that more proxies lag than before.
fn lag(
    object: &ObjectKey,
    open: &mut Open,
    (live, in_scope): (usize, usize),
    lagging: Named,
    state: &State,
    notes: &mut Vec<Note>,
) {
    if lagging.count <= open.lagging {
        return;
    }
    open.lagging = lagging.count;
    let (lag, names) = (if lagging.count == 1 { "lags" } else { "lag" }, lagging.text());
    let text = format!(
        "{live} of {} have it; {} {lag}: {names}",
        proxies(in_scope),
        proxies(lagging.count)
    );
    let note = of_object(state, object, EntryKind::Lagging, text);
    notes.push(about(Note { live, in_scope, ..note }, lagging));
}

/// An entry about the version of an object that is in force.
fn of_object(state: &State, object: &ObjectKey, kind: EntryKind, text: String) -> Note {
    let active = state.active.get(object);
    let generation = active.map_or(0, |active| active.version.generation);
    let revision = active.map(|active| active.since).unwrap_or_default();
    Note { generation, revision, ..Note::of(object, kind, text) }
}

/// The entry with the proxies that it is about.
fn about(note: Note, proxies: Named) -> Note {
    Note { proxies: proxies.first, proxy_count: proxies.count, ..note }
}

/// ` after 12 ms`.
fn after(begun: Timestamp, at: Timestamp) -> String {
    let milliseconds = at.duration_since(begun).as_millis().max(0);
    match milliseconds {
        ..10_000 => format!(" after {milliseconds} ms"),
        _ => format!(" after {} s", milliseconds / 1000),
    }
}

fn hash(item: &impl Hash) -> u64 {
    let mut hasher = Xxh3::new();
    item.hash(&mut hasher);
    hasher.finish()
}
