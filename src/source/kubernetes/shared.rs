//! Values that many objects have in common, kept once: the namespace, and the labels, which are equal for all pods of a
//! ReplicaSet.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::api::Labels;

/// How many values there are at least before unused ones are looked for.
const FEW: usize = 64;

/// Values of one type, each kept once.
struct Pool<T: ?Sized> {
    values: BTreeSet<Arc<T>>,
    /// Unused values are dropped when there are so many.
    limit: usize,
}

impl<T: Ord + ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { values: BTreeSet::new(), limit: FEW }
    }
}

impl<T: Ord + ?Sized> Pool<T> {
    /// The value that is kept for an equal one.
    fn share(&mut self, value: Arc<T>) -> Arc<T> {
        if let Some(kept) = self.values.get(&value) {
            return kept.clone();
        }
        if self.values.len() >= self.limit {
            self.values.retain(|kept| Arc::strong_count(kept) > 1);
            self.limit = self.values.len().saturating_mul(2).max(FEW);
        }
        self.values.insert(value.clone());
        value
    }
}

/// The namespaces and labels of one kind's objects.
#[derive(Default)]
pub(super) struct Shared {
    namespaces: Pool<str>,
    labels: Pool<Labels>,
}

impl Shared {
    pub(crate) fn namespace(&mut self, namespace: Arc<str>) -> Arc<str> {
        self.namespaces.share(namespace)
    }

    pub(crate) fn labels(&mut self, labels: Arc<Labels>) -> Arc<Labels> {
        self.labels.share(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_unused_ones_are_dropped() {
        let mut shared = Shared::default();
        let first = shared.namespace("shop".into());
        assert!(Arc::ptr_eq(&first, &shared.namespace("shop".into())));
        for n in 0..10 * FEW {
            shared.namespace(n.to_string().into());
        }
        assert!(shared.namespaces.values.len() <= FEW);
        assert!(Arc::ptr_eq(&first, &shared.namespace("shop".into())));
        let kept: Vec<_> = (0..10 * FEW).map(|n| shared.namespace(n.to_string().into())).collect();
        assert_eq!(shared.namespaces.values.len(), kept.len() + 1);
    }
}
