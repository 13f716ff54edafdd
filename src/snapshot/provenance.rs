//! The objects that resources are made from.

use std::sync::Arc;

use crate::api::ObjectKey;

/// The objects that a resource was made from, each once.
pub(crate) type Provenance = Arc<[ObjectKey]>;

/// These objects, each once.
pub(crate) fn provenance(objects: impl IntoIterator<Item = ObjectKey>) -> Provenance {
    let sorted: std::collections::BTreeSet<ObjectKey> = objects.into_iter().collect();
    sorted.into_iter().collect()
}
