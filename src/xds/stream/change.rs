//! What a response changes at a client.

use std::sync::Arc;

use crate::snapshot::Resource;
use crate::xds::wire::Item;

/// A change in a response: the new version of a resource, or its removal.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub name: Arc<str>,
    pub resource: Option<Arc<Resource>>,
    /// Whether the client had no version of it.
    pub new: bool,
    /// Whether it is due even if it did not change.
    pub asked: bool,
    /// For a cluster: the client has asked for its endpoints, which shows that it accepted the cluster even before it
    /// ACKs.
    pub taken: bool,
    /// For a cluster: its endpoints are ACKed as well. For endpoints: the client had the cluster when they were sent.
    pub warms: bool,
}

impl Change {
    /// What SotW sends. It cannot remove endpoints; it can only send an empty assignment.
    pub(super) fn sotw_item(&self) -> Item {
        match &self.resource {
            Some(resource) => resource.clone().into(),
            None => Item::NoEndpoints(self.name.clone()),
        }
    }
}
