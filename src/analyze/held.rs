//! Reports weight that a weir started with these objects would hold back.

use super::index::Index;
use super::{Findings, code};
use crate::rollout_guard::HeldValue;

pub(super) fn check(index: &Index<'_>, found: &mut Findings) {
    for held in index.held.iter().filter(|held| matches!(held.value, HeldValue::Weight { .. })) {
        // Without any endpoint of the service among the objects, nothing is known about its subsets.
        let known = index
            .mesh
            .any_service(&held.host)
            .is_some_and(|known| !known.endpoints.list.is_empty());
        let mut services =
            index.virtual_services.iter().map(|virtual_service| virtual_service.entry);
        let entry = services.find(|entry| known && entry.object.key() == held.object);
        if let Some(entry) = entry {
            let advice = "start the pods first, or set the annotation weir.dev/empty-subset: allow";
            found.add(
                &code::WEIGHT_HELD,
                entry,
                format!("{}.weight", held.field),
                held.reason(),
                advice,
            );
        }
    }
}
