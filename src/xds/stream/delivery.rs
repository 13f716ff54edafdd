//! What a client gets of one type, and how: which resources, and which of them wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::request::Variant;
use crate::snapshot::{Cursor, Resource, Resources};

/// What a client gets of a type: the resources of a snapshot, and those that it keeps for a while, in addition or
/// instead of one with the same name. A kept one without a body comes from an earlier stream: the client has it, and
/// its content is unknown.
#[derive(Debug)]
pub(super) struct View {
    pub base: Resources,
    /// The resources that it gets in the end.
    pub target: Resources,
    pub kept: BTreeMap<Arc<str>, Option<Arc<Resource>>>,
}

impl View {
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        match self.kept.get(name) {
            Some(kept) => kept.as_ref(),
            None => self.base.get(name),
        }
    }

    /// Like [`View::get`], with a cursor over the base.
    pub(crate) fn get_at<'a>(
        &'a self,
        base: &mut Cursor<'a>,
        name: &str,
    ) -> Option<&'a Arc<Resource>> {
        match self.kept.get(name) {
            Some(kept) => kept.as_ref(),
            None => base.get(name),
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        let base = self.base.iter().filter(|(name, _)| !self.kept.contains_key(*name));
        base.map(|(_, resource)| resource).chain(self.kept.values().flatten())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.base.contains_key(name) || self.kept.contains_key(name)
    }
}

/// Decides how the resources of one type reach a client. By default each is sent when it changes.
pub(super) trait Delivery {
    /// Whether the new version of a resource waits, or its removal if there is no new version. `has` says whether the
    /// client has any version of it.
    fn defers(&self, _name: &str, _form: Option<&Resource>, _has: bool) -> bool {
        false
    }

    /// Whether the client waits for endpoints because their cluster changes.
    fn is_awaited(&self, _cluster: &str) -> bool {
        false
    }

    /// Endpoints that can take requests, for a cluster whose current ones are unknown.
    fn meanwhile(&self, _cluster: &str) -> Option<Arc<Resource>> {
        None
    }

    /// The versions to report of resources.
    fn versions_of(&self, resources: &[&Arc<Resource>]) -> Vec<u64> {
        resources.iter().map(|resource| resource.version).collect()
    }

    /// Whether names of resources that do not exist are answered over SotW. The delta variant always answers them.
    fn answers_missing(&self) -> bool {
        false
    }
}

/// Sends each resource when it changes.
pub(super) struct Immediately;

impl Delivery for Immediately {}

/// What a response is made from.
#[derive(Clone, Copy)]
pub(super) struct Turn<'a> {
    pub variant: Variant,
    pub view: &'a View,
    pub nonce: &'a str,
    pub now: Instant,
    pub delivery: &'a dyn Delivery,
}
