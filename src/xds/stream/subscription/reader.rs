//! Looks up many names in a subscription. In about the order of names, each costs a few steps instead of a search.

use std::sync::Arc;

use super::Subscription;
use crate::snapshot::{Cursor, Resource};

/// Looks up what a client asks for and has.
pub(in super::super) struct Reader<'a> {
    subscription: &'a Subscription,
    names: Option<Cursor<'a>>,
    acked: Option<Cursor<'a>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(subscription: &'a Subscription) -> Self {
        let Subscription { names, acked, .. } = subscription;
        Self { names: names.cursor(), acked: acked.cursor(), subscription }
    }

    /// As [`Subscription::wants`].
    pub(crate) fn wants(&mut self, name: &str) -> bool {
        let Subscription { subscribed, wildcard, names, .. } = self.subscription;
        *subscribed && (*wildcard || names.contains_at(&mut self.names, name))
    }

    /// As [`Subscription::has`].
    pub(crate) fn has(&mut self, name: &str) -> bool {
        self.had(name).is_some()
    }

    /// As [`Subscription::last_sent`].
    pub(crate) fn last_sent(&mut self, name: &str) -> Option<&'a Arc<Resource>> {
        let in_flight = self.subscription.in_flight(name);
        in_flight.and_then(|change| change.resource.as_ref()).or_else(|| self.had(name)?)
    }

    fn had(&mut self, name: &str) -> Option<Option<&'a Arc<Resource>>> {
        let acked = &self.subscription.acked;
        if !acked.is_empty() && self.wants(name) {
            acked.get_at(&mut self.acked, name)
        } else {
            None
        }
    }
}
