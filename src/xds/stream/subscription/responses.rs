//! Responses and their versions. The delta variant has a version for each resource. SotW has one for everything that the
//! client has after a response: the same state has the same version in every process, so a client that resumes with it
//! needs nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::change::Change;
use super::super::delivery::{Delivery, View};
use super::Subscription;
use crate::snapshot::{Resource, ResourceType, empty_endpoints};
use crate::xds::wire::{Frame, Item};

impl Subscription {
    /// Takes in the version that the client reports of all that it has from an earlier stream over SotW.
    pub(super) fn claim_version(&mut self, version: &str) {
        // A version that weir did not create differs from every version of weir's. Clusters on a stream of their own are
        // ACKed before they are warm, so their version does not tell whether they are.
        let version = u64::from_str_radix(version, 16).ok();
        self.claimed_version = version.filter(|_| !self.alone);
    }

    /// A client that resumes over SotW with the version of exactly what there is has all of it.
    pub(super) fn compare_version(&mut self, kind: ResourceType, view: &View, version: u64) {
        self.learn(&view.base, Some(view));
        let all: Vec<_> = self.wanted(view).cloned().collect();
        let current = match kind.has_wildcard() {
            true => version_of_list(all.iter().map(|resource| resource.version)),
            false => version_of_names(all.iter()),
        };
        if current != version {
            return;
        }
        all.iter().for_each(|resource| self.acked.set(&resource.name, Some(resource.clone())));
        self.acked.share(&view.base, &[], (!self.wildcard).then(|| self.names.known()));
        self.again.clear();
        (self.owed, self.resumed) = (false, true);
    }

    /// The version of all that the client has by name after these changes; `None` if some of it is unknown.
    pub(super) fn version_after(&self, changes: &[Change]) -> Option<u64> {
        let mut version = self.version.or_else(|| {
            self.acked.unknown().next().is_none().then(|| version_of_names(self.taken()))
        })?;
        for change in changes {
            if let Some(had) = self.had(&change.name) {
                version = version.wrapping_sub(version_of_name(had?));
            }
            if let Some(resource) = &change.resource {
                version = version.wrapping_add(version_of_name(resource));
            }
        }
        Some(version)
    }

    /// The resources that the client asks for.
    pub(super) fn wanted<'a>(
        &'a self,
        view: &'a View,
    ) -> Box<dyn Iterator<Item = &'a Arc<Resource>> + 'a> {
        if self.wildcard || (view.kept.is_empty() && self.names.are_those_of(&view.base)) {
            Box::new(view.all())
        } else {
            Box::new(self.names.known().filter_map(|name| view.get(name)))
        }
    }

    /// The version of a resource that the client may have: the last one that it accepted if it rejected this one.
    pub(super) fn allowed(
        &self,
        kind: ResourceType,
        resource: &Arc<Resource>,
    ) -> Option<Arc<Resource>> {
        if !self.rejects(resource) {
            return Some(resource.clone());
        }
        self.had(&resource.name)
            .flatten()
            .cloned()
            .or_else(|| (kind == ResourceType::Endpoints).then(|| empty_endpoints(&resource.name)))
    }

    /// What the client has, with these in their new version.
    pub(super) fn with(&self, group: Vec<Arc<Resource>>) -> Vec<Arc<Resource>> {
        let mut all: BTreeMap<&Arc<str>, &Arc<Resource>> =
            self.taken().map(|resource| (&resource.name, resource)).collect();
        all.extend(group.iter().map(|resource| (&resource.name, resource)));
        all.into_values().cloned().collect()
    }
}

/// A response of the delta variant. The names in `never` do not exist.
pub(super) fn delta(
    kind: ResourceType,
    nonce: &str,
    changes: &[Change],
    never: Vec<Arc<str>>,
    delivery: &dyn Delivery,
) -> Frame {
    let sent: Vec<_> = changes.iter().filter_map(|change| change.resource.as_ref()).collect();
    let versions = delivery.versions_of(&sent);
    let resources = sent.into_iter().cloned().zip(versions);
    let resources: Vec<_> =
        resources.map(|(resource, version)| Item::Resource(resource, version)).collect();
    let gone = changes.iter().filter(|change| change.resource.is_none());
    let removed: Vec<_> = gone.map(|change| change.name.clone()).chain(never).collect();
    Frame::delta(kind, nonce, resources, &removed)
}

/// A response of the SotW variant. `version` is that of all that the client has then,
/// where the response does not have all of it. The same state has the same version in every process.
pub(super) fn sotw(
    kind: ResourceType,
    nonce: &str,
    version: Option<u64>,
    resources: Vec<Item>,
) -> Frame {
    let version = version.unwrap_or_else(|| version_of_list(resources.iter().map(Item::version)));
    Frame::sotw(kind, version, nonce, resources)
}

/// The version of a response that has everything, from the versions of its resources in order.
fn version_of_list(versions: impl Iterator<Item = u64>) -> u64 {
    versions.fold(0, |sum, version| sum.rotate_left(1) ^ version)
}

/// The version of resources that a client has by name, in any order.
fn version_of_names<'a>(all: impl Iterator<Item = &'a Arc<Resource>>) -> u64 {
    all.fold(0, |sum, resource| sum.wrapping_add(version_of_name(resource)))
}

/// What one of them adds to it.
fn version_of_name(resource: &Arc<Resource>) -> u64 {
    xxh3_64_with_seed(resource.name.as_bytes(), resource.version)
}
