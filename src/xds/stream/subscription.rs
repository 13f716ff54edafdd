//! One type's half of a stream: what the client asked for, what it has, what it rejected, and the next response.
//!
//! Section names in comments are those of Envoy's "xDS REST and gRPC protocol" document.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

mod pending;
mod reader;
mod responses;

pub(super) use self::pending::Pending;
pub(super) use self::reader::Reader;
use self::responses::{delta, sotw};
use super::acked::Acked;
use super::change::Change;
use super::delivery::{Delivery, Turn, View};
use super::in_order::names_in_order;
use super::names::{Names, name_bytes};
use super::rejection::{Rejection, cut, is_named};
use super::request::{Request, RequestError, Variant};
use super::trials::Trials;
use crate::snapshot::{Cursor, Resource, ResourceType, Resources, empty_endpoints};
use crate::xds::wire::{Frame, Item};

/// What a request brought.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The changes that the client accepted.
    pub acked: Option<Vec<Change>>,
    /// Why it rejected the response.
    pub rejected: Option<String>,
    /// The names that the client newly asks for.
    pub news: Vec<Arc<str>>,
    /// Whether it is neither the first request nor an answer: over SotW it asks for all of its names again.
    pub repeated: bool,
}

/// How much one stream may ask for, over all types.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub names: usize,
    pub bytes: usize,
}

#[derive(Debug, Default)]
pub(super) struct Subscription {
    pub subscribed: bool,
    pub wildcard: bool,
    /// The client asks for it on a stream of its own. Envoy then ACKs clusters before they are warm.
    pub alone: bool,
    /// A name was asked for at some time, so that asking for none no longer means all.
    explicit: bool,
    names: Names,
    /// What the client has among the names that it asks for.
    acked: Acked,
    /// What the client reported from an earlier stream, until it is compared.
    claimed: BTreeMap<Arc<str>, u64>,
    /// The version of everything that the client reported from an earlier stream over SotW, until it is compared.
    claimed_version: Option<u64>,
    /// Whether the client resumed over SotW with exactly what there is, and got nothing since.
    pub resumed: bool,
    /// The version of all that the client has by name, as SotW reports it; `None` if it has to be computed.
    version: Option<u64>,
    /// Names to answer even if nothing changed.
    again: BTreeSet<Arc<str>>,
    /// A response must follow even if nothing differs.
    owed: bool,
    pub pending: Option<Pending>,
    last_nonce: String,
    rejected: BTreeMap<Arc<str>, Rejection>,
    /// Changes among which one was rejected, in groups that are tried one after the other.
    suspects: Vec<Vec<(Arc<str>, u64)>>,
    /// Virtual hosts that the client rejected.
    pub trials: Trials,
}

impl Subscription {
    /// Whether a response may be sent: the client subscribed, and answered the last one.
    pub(crate) fn is_open(&self) -> bool {
        self.subscribed && self.pending.is_none()
    }

    /// Whether the client reported resources that are not compared yet.
    pub(crate) fn is_unchecked(&self) -> bool {
        !self.claimed.is_empty() || self.claimed_version.is_some()
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        self.subscribed && (self.wildcard || self.names.contains(name))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.had(name).is_some()
    }

    /// Like [`Subscription::has`], but counts what the client reported and was not compared yet.
    pub(crate) fn has_or_claims(&self, name: &str) -> bool {
        self.has(name) || self.claimed.contains_key(name)
    }

    /// What the client has under a name: `None` if it has nothing, `Some(None)` if it has an unknown version from an
    /// earlier stream.
    fn had(&self, name: &str) -> Option<Option<&Arc<Resource>>> {
        if !self.acked.is_empty() && self.wants(name) { self.acked.get(name) } else { None }
    }

    /// Looks up many names that come in about their order.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader::new(self)
    }

    /// The version that the client ACKed, if it is known.
    pub(crate) fn acked_resource(&self, name: &str) -> Option<&Arc<Resource>> {
        self.had(name).flatten()
    }

    /// The version that the client has or is about to have.
    pub(crate) fn last_sent(&self, name: &str) -> Option<&Arc<Resource>> {
        self.in_flight(name)
            .and_then(|change| change.resource.as_ref())
            .or_else(|| self.had(name)?)
    }

    pub(crate) fn in_flight(&self, name: &str) -> Option<&Change> {
        let pending = self.pending.as_ref()?;
        pending.changes.get(pending.find(name)?)
    }

    pub(crate) fn in_flight_mut(&mut self, name: &str) -> Option<&mut Change> {
        let pending = self.pending.as_mut()?;
        let at = pending.find(name)?;
        pending.changes.get_mut(at)
    }

    /// Whether the client rejected exactly this version.
    pub(crate) fn rejects(&self, resource: &Resource) -> bool {
        self.rejected
            .get(&resource.name)
            .is_some_and(|rejection| rejection.version == resource.version)
    }

    /// What the client rejected: the resource, the virtual host if it rejected only that, and the rejection.
    pub(crate) fn rejected(
        &self,
    ) -> impl Iterator<Item = (&Arc<str>, Option<&Arc<str>>, &Rejection)> {
        let whole = self.rejected.iter().map(|(name, rejection)| (name, None, rejection));
        let hosts = self.trials.rejections();
        whole.chain(hosts.map(|(table, host, rejection)| (table, Some(host), rejection)))
    }

    /// Whether the client rejected anything that it has not received in another version since.
    pub(crate) fn has_rejections(&self) -> bool {
        self.rejected().next().is_some()
    }

    /// Forgets what the client rejected in versions that are not in `target`.
    pub(crate) fn prune_trials(&mut self, target: &Resources) {
        let Self { trials, subscribed, wildcard, names, .. } = self;
        trials.prune(target, |table| *subscribed && (*wildcard || names.contains(table)));
    }

    /// The newest version of each resource that the client has or is about to have, and whether it ACKed it.
    pub(crate) fn all_last_sent(&self) -> impl Iterator<Item = (&Arc<Resource>, bool)> {
        let acked = self.taken().filter(|resource| self.in_flight(&resource.name).is_none());
        let pending = self.pending.iter().flat_map(|pending| &pending.changes);
        acked
            .map(|resource| (resource, true))
            .chain(pending.filter_map(|change| Some((change.resource.as_ref()?, false))))
    }

    /// Every version that may be in use at the client.
    pub(crate) fn in_use(&self) -> impl Iterator<Item = &Arc<Resource>> {
        let pending = self.pending.iter().flat_map(|pending| &pending.changes);
        self.taken().chain(pending.filter_map(|change| change.resource.as_ref()))
    }

    /// Every version that the client ACKed, as far as it is known.
    fn taken(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.acked.resources().filter(|resource| self.wants(&resource.name))
    }

    /// Whether the client has, or asks for, anything that differs from the target of the last response.
    pub(crate) fn differs(&self) -> bool {
        !self.again.is_empty() || self.acked.differing().any(|name| self.wants(name))
    }

    /// Whether the client, which asks for everything, has exactly `resources`: a cheap check, `false` if unknown.
    pub(crate) fn has_exactly(&self, resources: &Resources) -> bool {
        self.pending.is_none() && !self.is_unchecked() && self.acked.is_exactly(resources)
    }

    /// Whether everything that the client has is known.
    pub(crate) fn knows_all(&self) -> bool {
        self.pending.is_none()
            && !self.owed
            && self.again.is_empty()
            && !self.is_unchecked()
            && self.acked.unknown().next().is_none()
            && self.rejected.keys().all(|name| self.had(name).flatten().is_some())
    }

    /// Whether an unknown version at the client may become known. `target` is what the client gets in the end.
    pub(crate) fn expects(&self, target: &Resources) -> bool {
        self.pending.is_some()
            || self.owed
            || !self.suspects.is_empty()
            || self.is_unchecked()
            || self.again.iter().chain(self.acked.unknown()).any(|name| {
                self.rejected.get(name).is_none_or(|rejection| {
                    target.get(name).is_some_and(|resource| resource.version != rejection.version)
                })
            })
    }

    /// The names that the client has in an unknown version.
    pub(crate) fn unknown_forms(&self) -> impl Iterator<Item = &Arc<str>> {
        self.acked.unknown()
    }

    /// Sends `name` again even if it did not change.
    pub(crate) fn send_again(&mut self, name: &Arc<str>) {
        if self.wants(name) {
            self.again.insert(name.clone());
        }
    }

    /// The number of names that it holds, and their length in bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.names.len(), self.names.bytes())
    }

    /// The approximate memory that the client made it hold and that no other stream shares, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        let own = self.again.iter().chain(self.claimed.keys()).chain(self.acked.own());
        let gone = self.pending.as_ref().map_or(0, |pending| pending.gone_bytes);
        self.names.held_bytes() + own.map(name_bytes).sum::<usize>() + gone
    }

    /// Marks the names of the existing resources as known.
    fn learn(&mut self, base: &Resources, kept: Option<&View>) {
        self.names.learn_from(base);
        self.names.learn(kept.into_iter().flat_map(|view| view.kept.keys()));
    }

    /// Handles a request. `known` are the resources of its type; their names are shared instead of copied.
    pub(crate) fn take(
        &mut self,
        kind: ResourceType,
        variant: Variant,
        request: Request,
        room: Room,
        known: Option<&Resources>,
    ) -> Result<Taken, RequestError> {
        let first = !self.subscribed;
        // Section "ACK/NACK and resource type instance version": a nonce that is not that of the last response is
        // stale. In SotW the whole request is then ignored; in delta its subscriptions still count.
        let current = request.nonce == self.last_nonce;
        if variant == Variant::Sotw && !first && !request.nonce.is_empty() && !current {
            return Ok(Taken::default());
        }
        let mut taken = Taken::default();
        if current
            && !request.nonce.is_empty()
            && let Some(pending) = self.pending.take()
        {
            match &request.error {
                None => taken.acked = Some(self.accepted(pending)),
                Some(message) => {
                    self.contain(pending.changes, message);
                    taken.rejected = Some(message.clone());
                }
            }
        }
        self.subscribed = true;
        self.alone |= request.alone;
        taken.repeated = !first && taken.acked.is_none() && taken.rejected.is_none();
        match variant {
            Variant::Sotw => self.ask_sotw(kind, first, &request, room, known, &mut taken)?,
            Variant::Delta => self.ask_delta(kind, first, request, room, known, &mut taken)?,
        }
        Ok(taken)
    }

    fn accepted(&mut self, pending: Pending) -> Vec<Change> {
        let Pending { changes, base, version, .. } = pending;
        self.version = version;
        self.learn(&base, None);
        if self.acked.is_shared() {
            for change in &changes {
                match &change.resource {
                    // A client that has unsubscribed from a name meanwhile no longer has its resource.
                    _ if !self.wants(&change.name) => {}
                    Some(resource) => self.acked.set(&change.name, Some(resource.clone())),
                    None => self.acked.remove(&change.name),
                }
            }
        } else {
            self.acked.share(&base, &changes, (!self.wildcard).then(|| self.names.known()));
        }
        for change in &changes {
            self.rejected.remove(&change.name);
            self.trials.end_group(&change.name);
        }
        changes
    }

    /// Finds out which change was rejected: the only one, those that the message names, or by trying halves.
    fn contain(&mut self, changes: Vec<Change>, message: &str) {
        self.version = None;
        let sent: Vec<&Arc<Resource>> =
            changes.iter().filter_map(|change| change.resource.as_ref()).collect();
        let rejected: BTreeSet<&str> = if let [only] = sent.as_slice() {
            BTreeSet::from([&*only.name])
        } else {
            let names = sent.iter().map(|resource| &*resource.name);
            names.filter(|name| is_named(message, name)).collect()
        };
        let message: Arc<str> = cut(message).into();
        for &resource in sent.iter().filter(|resource| rejected.contains(&*resource.name)) {
            let had = self.had(&resource.name);
            // Without the version that the client has, its virtual hosts cannot be kept while others are tried.
            let is_known = had != Some(None);
            let had = had.flatten().cloned();
            let table = had.as_ref().and_then(|had| had.table());
            if is_known && self.trials.contain(table, resource, &message) {
                continue;
            }
            let rejection = Rejection {
                version: resource.version,
                objects: resource.objects_changed_since(had.as_deref()),
                message: message.clone(),
            };
            if self.has_version(resource) {
                // The client rejected the version that it has when it was sent again: the rejection of a newer one
                // still holds.
                self.rejected.entry(resource.name.clone()).or_insert(rejection);
            } else {
                self.rejected.insert(resource.name.clone(), rejection);
            }
        }
        if sent.is_empty() {
            // A response with nothing but removals has no resource that could be left out of a retry.
            changes.iter().for_each(|change| {
                self.acked.remove(&change.name);
            });
        } else if rejected.is_empty() {
            let all: Vec<_> =
                sent.iter().map(|resource| (resource.name.clone(), resource.version)).collect();
            let (left, right) = all.split_at(all.len() / 2);
            self.suspects.extend([right.to_vec(), left.to_vec()]);
        }
        // What was due without a change is still due: in the same version, or in the client's version if it rejected
        // this one.
        for change in changes.iter().filter(|change| change.asked) {
            let due = match &change.resource {
                Some(resource) => {
                    !(rejected.contains(&*resource.name) && self.has_version(resource))
                }
                // A removal was not what the client rejected.
                None => !sent.is_empty(),
            };
            if due {
                self.again.insert(change.name.clone());
            }
        }
    }

    fn has_version(&self, resource: &Resource) -> bool {
        matches!(self.had(&resource.name), Some(Some(had)) if had.version == resource.version)
    }

    fn check(&self, names: usize, bytes: usize, room: Room) -> Result<(), RequestError> {
        if names > room.names {
            return Err(RequestError::TooManyNames { limit: room.names });
        }
        if bytes > room.bytes {
            return Err(RequestError::NamesTooLong { limit: room.bytes });
        }
        Ok(())
    }

    fn ask_sotw(
        &mut self,
        kind: ResourceType,
        first: bool,
        request: &Request,
        room: Room,
        known: Option<&Resources>,
        taken: &mut Taken,
    ) -> Result<(), RequestError> {
        self.check(request.names.len(), request.names.iter().map(String::len).sum(), room)?;
        let is_answer = !first && !request.nonce.is_empty();
        if is_answer && !self.wildcard && self.names.are(&request.names) {
            // Every SotW request repeats all names.
            return Ok(());
        }
        if first {
            self.claim_version(&request.version);
        }
        self.version = None;
        if let Some(pending) = &mut self.pending {
            pending.version = None;
        }
        let mut known = known.map(Resources::cursor);
        let asked = request.names.iter().filter(|name| *name != "*");
        let mut names = Names::default();
        let asked = names.extend(asked.map(|name| shared(known.as_mut(), name)).collect());
        let news = asked.iter().filter(|name| !self.names.contains(name));
        taken.news = news.cloned().collect();
        let star = request.names.iter().any(|name| name == "*");
        self.explicit |= !request.names.is_empty();
        // Section "How the client specifies what resources to return": an empty list of names asks for everything only
        // until the client has named a resource.
        let wildcard = star || (kind.has_wildcard() && !self.explicit);
        self.owed |= (first && kind.has_wildcard()) || (wildcard && !self.wildcard);
        // A newly requested resource is sent even if it was sent before.
        if !self.wildcard {
            if wildcard {
                self.acked.unshare(|name| self.names.contains(name));
            }
            taken.news.iter().for_each(|name| self.acked.remove(name));
        }
        self.wildcard = wildcard;
        self.acked.retain(|name| wildcard || names.contains(name));
        self.again.retain(|name| wildcard || names.contains(name));
        self.again.extend(taken.news.iter().cloned());
        if !first && request.nonce.is_empty() && self.pending.is_none() {
            // A request without a nonce is not an answer: the client starts over.
            self.owed |= kind.has_wildcard();
            self.again.extend(asked);
        }
        self.owed |= kind.has_wildcard() && !taken.news.is_empty();
        self.names = names;
        Ok(())
    }

    fn ask_delta(
        &mut self,
        kind: ResourceType,
        first: bool,
        request: Request,
        room: Room,
        known: Option<&Resources>,
        taken: &mut Taken,
    ) -> Result<(), RequestError> {
        let Request { mut names, unsubscribe, initial_versions, .. } = request;
        if first {
            self.resume(kind, &names, initial_versions, room)?;
        }
        self.explicit |= !names.is_empty();
        let asked = names.len();
        names.retain(|name| name != "*");
        if names.len() < asked {
            self.owed |= !self.wildcard && !first;
            if !std::mem::replace(&mut self.wildcard, true) {
                self.acked.unshare(|name| self.names.contains(name));
            }
        }
        let mut cursor = known.map(Resources::cursor);
        // The client subscribes by name to what it resumed with.
        let mut due = Vec::with_capacity(names.len());
        let mut asked = Vec::with_capacity(names.len());
        for name in &names {
            let (name, known) = shared(cursor.as_mut(), name);
            let claimed = self.claimed.contains_key(&name);
            // Section "Subscribing to Resources": even a resource that the client should have must be sent.
            if !(first && claimed) {
                due.push(name.clone());
            }
            asked.push((name, known || claimed));
        }
        taken.news = self.names.extend(asked);
        self.check(self.names.len(), self.names.bytes(), room)?;
        if !self.wildcard {
            taken.news.iter().for_each(|name| self.acked.remove(name));
        }
        if self.again.is_empty() {
            // Made at once, like the names.
            self.again = due.into_iter().collect();
        } else {
            self.again.extend(due);
        }
        unsubscribe.iter().for_each(|name| self.unsubscribe(name));
        Ok(())
    }

    /// The first request of the delta variant: the client reports what it has from an earlier stream.
    fn resume(
        &mut self,
        kind: ResourceType,
        names: &[String],
        initial_versions: BTreeMap<String, String>,
        room: Room,
    ) -> Result<(), RequestError> {
        let bytes = initial_versions.keys().map(String::len).sum();
        self.check(initial_versions.len(), bytes, room)?;
        self.wildcard = names.is_empty() && kind.has_wildcard();
        let wildcard = self.wildcard || names.iter().any(|name| name == "*");
        // A client that has nothing waits for an answer, even for an empty one.
        self.owed = wildcard && initial_versions.is_empty();
        for (name, version) in initial_versions {
            // A version that weir did not create differs from every version of weir's.
            let version = u64::from_str_radix(&version, 16).unwrap_or(u64::MAX);
            self.claimed.insert(name.into(), version);
        }
        Ok(())
    }

    fn unsubscribe(&mut self, name: &str) {
        if name == "*" {
            self.wildcard = false;
            let names = &self.names;
            self.acked.retain(|name| names.contains(name));
            self.again.retain(|name| names.contains(name));
        } else if self.names.remove(name) {
            let name: Arc<str> = name.into();
            if self.wildcard {
                // Section "Unsubscribing from Resources": the client does not know whether the wildcard has it.
                self.again.insert(name);
            } else {
                self.again.remove(&name);
                self.acked.forget(&name);
            }
        }
    }

    /// Compares what the client reported with the existing resources. `version_of` is as in [`Delivery`]; without it
    /// all of the client's versions count as different.
    pub(crate) fn compare(
        &mut self,
        kind: ResourceType,
        view: &View,
        mut version_of: Option<&mut dyn FnMut(&Resource) -> u64>,
    ) {
        if let Some(version) = self.claimed_version.take()
            && version_of.is_some()
        {
            self.compare_version(kind, view, version);
        }
        if self.claimed.is_empty() {
            return;
        }
        self.learn(&view.base, Some(view));
        let Self { subscribed, wildcard, names, acked, claimed, .. } = &mut *self;
        let (mut asked, mut base) = (names.cursor(), view.base.cursor());
        for (name, version) in std::mem::take(claimed) {
            let wants = *subscribed && (*wildcard || names.contains_at(&mut asked, &name));
            if wants && acked.get(&name).is_none() {
                let same = view.get_at(&mut base, &name).filter(|resource| {
                    version_of.as_mut().is_some_and(|of| of(resource) == version)
                });
                acked.set(&name, same.cloned());
            }
        }
        if !self.acked.is_shared() {
            self.acked.share(&view.base, &[], (!self.wildcard).then(|| self.names.known()));
        }
    }

    /// The next response; `None` if there is nothing to send, or the client has not yet answered the last one.
    pub(crate) fn respond(&mut self, kind: ResourceType, turn: &Turn<'_>) -> Option<Frame> {
        let Turn { variant, view, nonce, now, delivery } = *turn;
        // One response at a time for a type: what comes up meanwhile goes out together after the answer.
        if !self.is_open() {
            return None;
        }
        self.learn(&view.base, Some(view));
        let Self { acked, names, wildcard, .. } = &mut *self;
        acked.follow(&view.base, |name| *wildcard || names.contains(name));
        self.forget_rejections(view, delivery);
        let trial = self.next_trial(view);
        let (mut changes, never) = match &trial {
            Some(group) => {
                let changes = group
                    .iter()
                    .map(|resource| self.change(&resource.name, Some(resource.clone())));
                (changes.collect(), Vec::new())
            }
            None => self.differences(kind, turn),
        };
        if changes.is_empty() && never.is_empty() && !self.owed {
            return None;
        }
        let mut version = None;
        let frame = match variant {
            Variant::Delta => delta(kind, nonce, &changes, never, delivery),
            Variant::Sotw => {
                if !kind.has_wildcard() {
                    version = self.version_after(&changes);
                }
                // Section "Grouping Resources into Responses": a response always has all listeners or all clusters. So
                // has one with runtime layers: Envoy may take a layer that it lacks for one that is removed.
                let resources: Vec<_> = match trial {
                    _ if !kind.is_sent_whole() => changes.iter().map(Change::sotw_item).collect(),
                    Some(group) => self.with(group).into_iter().map(Item::from).collect(),
                    None => self
                        .wanted(view)
                        .filter_map(|resource| self.allowed(kind, resource).map(Item::from))
                        .collect(),
                };
                sotw(kind, nonce, version, resources)
            }
        };
        self.resumed = false;
        changes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        self.owed = false;
        nonce.clone_into(&mut self.last_nonce);
        self.pending = Some(Pending::new(nonce, changes, view.base.clone(), version, now));
        Some(frame)
    }

    /// Forgets the rejections of versions that will not be sent again. A resource that is still deferred, or that is
    /// sent for the time being, may have the version that was rejected.
    fn forget_rejections(&mut self, view: &View, delivery: &dyn Delivery) {
        self.rejected.retain(|name, rejection| {
            let version = rejection.version;
            view.get(name).is_some_and(|resource| resource.version == version)
                || view.target.get(name).is_some_and(|resource| resource.version == version)
                || (view.has(name)
                    && delivery.meanwhile(name).is_some_and(|sent| sent.version == version))
        });
    }

    fn change(&self, name: &Arc<str>, resource: Option<Arc<Resource>>) -> Change {
        let asked = self.again.contains(name);
        Change {
            name: name.clone(),
            resource,
            new: !self.has(name),
            asked,
            taken: false,
            warms: false,
        }
    }

    fn next_trial(&mut self, view: &View) -> Option<Vec<Arc<Resource>>> {
        while let Some(group) = self.suspects.pop() {
            let group: Vec<_> = group
                .into_iter()
                .filter_map(|(name, version)| {
                    view.get(&name)
                        .filter(|resource| resource.version == version && self.wants(&name))
                        .cloned()
                })
                .collect();
            if !group.is_empty() {
                return Some(group);
            }
        }
        None
    }

    /// Whether the client has endpoints for a cluster other than the empty fallback assignment.
    pub(crate) fn has_good(&self, name: &str) -> bool {
        self.had(name).is_some_and(|acked| {
            acked.is_none_or(|acked| acked.version != empty_endpoints(name).version)
        })
    }

    /// What changes, and the requested names that do not exist and that the client never had. Nothing is remembered
    /// about those once they are answered.
    fn differences(&mut self, kind: ResourceType, turn: &Turn<'_>) -> (Vec<Change>, Vec<Arc<str>>) {
        let Turn { variant, view, delivery, .. } = *turn;
        let due = std::mem::take(&mut self.again);
        // Every name that can differ, if these are known.
        let names: Option<BTreeSet<Arc<str>>> = self
            .acked
            .is_shared()
            .then(|| self.acked.differing().chain(&due).chain(view.kept.keys()).cloned().collect());
        let mut due = names_in_order(due);
        let (mut later, mut changes) = (BTreeSet::new(), Vec::new());
        let named = names.iter().flatten().filter(|name| self.wants(name));
        let all = names.is_none().then(|| self.wanted(view)).into_iter().flatten();
        named.filter_map(|name| view.get(name)).chain(all).for_each(|resource| {
            let asked = due.take(&resource.name).is_some();
            match self.due(kind, resource, asked, delivery) {
                Due::Now(version) => {
                    let change = self.change(&resource.name, Some(version));
                    changes.push(Change { asked, ..change });
                }
                Due::Later if asked => drop(later.insert(resource.name.clone())),
                Due::Later | Due::Never => {}
            }
        });
        // SotW cannot remove endpoints and routes: they go with the resource that references them (section "Deleting
        // Resources").
        if variant == Variant::Delta || kind.has_wildcard() {
            let gone = self
                .acked
                .own()
                .filter(|name| !view.has(name) && !delivery.defers(name, None, true));
            changes.extend(gone.map(|name| self.change(name, None)));
        }
        // Section "Knowing When a Requested Resource Does Not Exist".
        let again: BTreeSet<Arc<str>> = due.rest().map(|(name, ())| name).collect();
        let missing = again.iter().filter(|name| !view.has(name) && !self.has(name)).cloned();
        let mut never = Vec::new();
        match variant {
            Variant::Delta => never.extend(missing),
            Variant::Sotw if delivery.answers_missing() => {
                let missing: Vec<_> = missing.collect();
                let answers =
                    missing.iter().map(|name| Change { asked: true, ..self.change(name, None) });
                changes.extend(answers);
            }
            Variant::Sotw => {}
        }
        // A resource that exists and is still deferred remains due.
        later.extend(again.into_iter().filter(|name| view.has(name)));
        self.again = later;
        (changes, never)
    }

    /// Whether this response has a resource.
    fn due(
        &self,
        kind: ResourceType,
        resource: &Arc<Resource>,
        asked: bool,
        delivery: &dyn Delivery,
    ) -> Due {
        let name = &resource.name;
        let Some(allowed) = self.allowed(kind, resource) else {
            return Due::Never;
        };
        if self.has_version(&allowed) && !asked {
            return Due::Never;
        }
        if !delivery.defers(name, Some(&allowed), self.has(name)) {
            return Due::Now(allowed);
        }
        if !(asked && delivery.is_awaited(name)) {
            return Due::Later;
        }
        // The endpoints that the client has are enough for the change, if they are known.
        let known = self.had(name).flatten().cloned();
        let enough =
            known.or_else(|| delivery.meanwhile(name).filter(|endpoints| !self.rejects(endpoints)));
        Due::Now(enough.unwrap_or(allowed))
    }
}

/// Whether a resource is sent in the next response.
enum Due {
    /// In this version.
    Now(Arc<Resource>),
    /// When it is no longer deferred.
    Later,
    /// Not at all: the client has it, or rejected it and has no other.
    Never,
}

/// The name as the resources have it, so that clients that ask for it share its text, and whether a resource has it.
fn shared(known: Option<&mut Cursor<'_>>, name: &str) -> (Arc<str>, bool) {
    let known = known.and_then(|known| known.get(name));
    known.map_or_else(|| (name.into(), false), |known| (known.name.clone(), true))
}
