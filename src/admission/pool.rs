//! A resource shared by peers.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio_util::sync::CancellationToken;

use super::Peer;
use crate::metrics::PoolMetrics;

/// The kind of resource in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// Connections.
    Connections,
    /// Open requests.
    Streams,
    /// Bytes.
    Memory,
}

impl Resource {
    /// The name in metrics and messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Streams => "streams",
            Self::Memory => "memory",
        }
    }

    /// Describes an amount.
    fn amount(self, amount: usize) -> String {
        match self {
            Self::Memory if amount >= 1 << 20 => {
                format!("{} MiB of memory for clients", amount >> 20)
            }
            Self::Memory => format!("{amount} bytes of memory for clients"),
            _ => format!("{amount} {}", self.name()),
        }
    }
}

/// The pool cannot satisfy a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Exhausted {
    /// The peer would exceed its share.
    Peer {
        /// The resource.
        resource: Resource,
        /// The peer.
        peer: Peer,
        /// The share.
        limit: usize,
    },
    /// The pool is exhausted, and no other peer has more than this one would have.
    All {
        /// The resource.
        resource: Resource,
        /// How much there is.
        limit: usize,
    },
    /// The pool was exhausted, and the peer had the most.
    Revoked {
        /// The resource.
        resource: Resource,
        /// The peer.
        peer: Peer,
    },
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer { resource, peer, limit } => write!(
                f,
                "{peer} has reached its share of {}, {} (--peer-share)",
                resource.name(),
                resource.amount(*limit)
            ),
            Self::All { resource, limit } => {
                let flag = match resource {
                    Resource::Connections => "the limit of file descriptors or --max-streams",
                    Resource::Streams => "--max-streams",
                    Resource::Memory => "--client-memory",
                };
                write!(f, "all of the {} are in use ({flag})", resource.amount(*limit))
            }
            Self::Revoked { resource, peer } => {
                write!(f, "{} are exhausted, and {peer} has the most", resource.name())
            }
        }
    }
}

/// A resource with a total limit and a limit per peer.
///
/// When it is exhausted, a peer that requests more takes it from the peer that has the most, as long as it stays below
/// that peer's amount. This converges to equal shares.
#[derive(Debug)]
pub(crate) struct Pool {
    resource: Resource,
    limit: usize,
    share: usize,
    metrics: PoolMetrics,
    inner: Mutex<Inner>,
    /// Notified when something is returned.
    returned: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    used: usize,
    /// Revoked permits whose holders have not yet returned their resources.
    revoked: HashMap<u64, usize>,
    last_id: u64,
    peers: HashMap<Peer, Holdings>,
    /// The peers by usage.
    by_use: BTreeSet<(usize, Peer)>,
}

/// The usage of one peer.
#[derive(Debug, Default)]
struct Holdings {
    used: usize,
    permits: HashMap<u64, (usize, CancellationToken)>,
    /// The permits by amount, then by age.
    by_amount: BTreeSet<(usize, u64)>,
}

/// An amount taken from a pool, returned on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    pool: Arc<Pool>,
    peer: Peer,
    id: u64,
}

impl Pool {
    /// A pool of `limit`, of which one peer may use `share` percent.
    pub(crate) fn new(resource: Resource, limit: usize, share: u8, metrics: PoolMetrics) -> Self {
        let share = limit.saturating_mul(usize::from(share)).div_ceil(100).max(1);
        Self { resource, limit, share, metrics, inner: Mutex::default(), returned: Notify::new() }
    }

    /// No operation under the lock can fail halfway, so the state is valid even if the lock is poisoned.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// The amount in use.
    pub(crate) fn used(&self) -> usize {
        self.lock().used
    }

    /// Acquires `amount` for a peer. `revoked` is cancelled if another peer gets it instead; its holder must then stop.
    ///
    /// # Errors
    /// The limit would be exceeded.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        peer: Peer,
        amount: usize,
        revoked: &CancellationToken,
    ) -> Result<Permit, Exhausted> {
        let mut inner = self.lock();
        self.make_room(&mut inner, peer, amount).inspect_err(|error| self.count(error))?;
        inner.last_id += 1;
        let id = inner.last_id;
        let holdings = inner.peers.entry(peer).or_default();
        holdings.permits.insert(id, (0, revoked.clone()));
        holdings.by_amount.insert((0, id));
        inner.set(peer, id, amount);
        self.show_use(&inner);
        Ok(Permit { pool: self.clone(), peer, id })
    }

    /// Counts a refusal in the metrics.
    pub(crate) fn count(&self, refusal: &Exhausted) {
        match refusal {
            Exhausted::Peer { .. } => {
                self.metrics.over_share.inc();
            }
            Exhausted::All { .. } => {
                self.metrics.exhausted.inc();
            }
            // Counted when it was revoked.
            Exhausted::Revoked { .. } => {}
        }
    }

    /// Resolves when something is returned after this call, even before it is first polled.
    pub(crate) fn returned(&self) -> Notified<'_> {
        self.returned.notified()
    }

    /// Waits until usage is within the limit, including revoked permits that their holders have not yet returned.
    pub(crate) async fn within_limit(&self) {
        loop {
            let returned = self.returned.notified();
            {
                let inner = self.lock();
                if inner.used + inner.revoked.values().sum::<usize>() <= self.limit {
                    return;
                }
            }
            returned.await;
        }
    }

    fn show_use(&self, inner: &Inner) {
        self.metrics.used.set(i64::try_from(inner.used).unwrap_or(i64::MAX));
    }

    /// Ensures that a peer can have `more`, if necessary by revoking permits of the peers that have the most.
    fn make_room(&self, inner: &mut Inner, peer: Peer, more: usize) -> Result<(), Exhausted> {
        let wanted =
            inner.peers.get(&peer).map_or(0, |holdings| holdings.used).saturating_add(more);
        if wanted > self.share {
            return Err(Exhausted::Peer { resource: self.resource, peer, limit: self.share });
        }
        while inner.used.saturating_add(more) > self.limit {
            let most = inner
                .by_use
                .last()
                .copied()
                .filter(|(most, other)| *other != peer && *most > wanted);
            let Some((_, other)) = most else {
                return Err(Exhausted::All { resource: self.resource, limit: self.limit });
            };
            self.metrics.revoked.inc();
            inner.revoke_from(other);
        }
        Ok(())
    }
}

impl Inner {
    /// Changes the amount of a valid permit; an amount of 0 does not release it.
    fn set(&mut self, peer: Peer, id: u64, amount: usize) {
        let Some(holdings) = self.peers.get_mut(&peer) else {
            return;
        };
        let Some((before, _)) = holdings.permits.get_mut(&id) else {
            return;
        };
        let old = std::mem::replace(before, amount);
        holdings.by_amount.remove(&(old, id));
        holdings.by_amount.insert((amount, id));
        self.by_use.remove(&(holdings.used, peer));
        holdings.used = holdings.used.saturating_sub(old).saturating_add(amount);
        self.by_use.insert((holdings.used, peer));
        self.used = self.used.saturating_sub(old).saturating_add(amount);
    }

    /// Releases a permit. Does nothing if it is no longer valid.
    fn remove(&mut self, peer: Peer, id: u64) -> Option<CancellationToken> {
        self.set(peer, id, 0);
        let holdings = self.peers.get_mut(&peer)?;
        let (_, revoked) = holdings.permits.remove(&id)?;
        holdings.by_amount.remove(&(0, id));
        if holdings.permits.is_empty() {
            self.by_use.remove(&(0, peer));
            self.peers.remove(&peer);
        }
        Some(revoked)
    }

    /// Revokes the largest permit of a peer; among equally large ones the newest.
    fn revoke_from(&mut self, peer: Peer) {
        let largest = self.peers.get(&peer).and_then(|holdings| holdings.by_amount.last().copied());
        let Some((amount, id)) = largest else {
            return;
        };
        if let Some(revoked) = self.remove(peer, id) {
            self.revoked.insert(id, amount);
            revoked.cancel();
        }
    }
}

impl Permit {
    /// Changes its amount.
    ///
    /// # Errors
    /// The peer's limit would be exceeded, or the permit was revoked. Its amount then stays unchanged.
    pub(crate) fn resize(&self, amount: usize) -> Result<(), Exhausted> {
        self.try_resize(amount).inspect_err(|error| self.pool.count(error))
    }

    /// The same for a caller that tries again: a failure does not count as a refusal.
    ///
    /// # Errors
    /// As for [`Permit::resize`].
    pub(crate) fn try_resize(&self, amount: usize) -> Result<(), Exhausted> {
        let mut inner = self.pool.lock();
        let held = inner.peers.get(&self.peer).and_then(|holdings| holdings.permits.get(&self.id));
        let Some((before, _)) = held else {
            if let Some(left) = inner.revoked.get_mut(&self.id) {
                *left = amount.min(*left);
                self.pool.returned.notify_waiters();
            }
            return Err(self.revoked());
        };
        let (more, shrinks) = (amount.saturating_sub(*before), amount < *before);
        if more > 0 {
            self.pool.make_room(&mut inner, self.peer, more)?;
        }
        inner.set(self.peer, self.id, amount);
        self.pool.show_use(&inner);
        if shrinks {
            self.pool.returned.notify_waiters();
        }
        Ok(())
    }

    /// Why it was revoked; `None` if it is valid.
    pub(crate) fn why_revoked(&self) -> Option<Exhausted> {
        let inner = self.pool.lock();
        let active = inner
            .peers
            .get(&self.peer)
            .is_some_and(|holdings| holdings.permits.contains_key(&self.id));
        (!active).then(|| self.revoked())
    }

    fn revoked(&self) -> Exhausted {
        Exhausted::Revoked { resource: self.pool.resource, peer: self.peer }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inner = self.pool.lock();
        inner.remove(self.peer, self.id);
        inner.revoked.remove(&self.id);
        self.pool.show_use(&inner);
        self.pool.returned.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn pool(limit: usize, share: u8) -> Arc<Pool> {
        Arc::new(Pool::new(Resource::Streams, limit, share, PoolMetrics::default()))
    }

    fn peer(n: u8) -> Peer {
        Peer::from(IpAddr::from([127, 0, 0, n]))
    }

    fn acquire(pool: &Arc<Pool>, n: u8, amount: usize) -> Result<Permit, Exhausted> {
        pool.acquire(peer(n), amount, &CancellationToken::new())
    }

    fn is_revoked(permit: &Permit) -> bool {
        permit.why_revoked().is_some()
    }

    #[test]
    fn a_permit_is_returned_when_it_is_dropped() {
        let pool = pool(10, 100);
        let permits = [acquire(&pool, 1, 3).unwrap(), acquire(&pool, 1, 4).unwrap()];
        assert_eq!(pool.used(), 7);
        permits[0].resize(5).unwrap();
        assert_eq!(pool.used(), 9);
        permits[0].resize(0).unwrap();
        assert_eq!(pool.used(), 4);
        drop(permits);
        assert_eq!(pool.used(), 0);
        let inner = pool.lock();
        assert!(
            inner.peers.is_empty() && inner.by_use.is_empty(),
            "a peer without anything takes no room: {inner:?}"
        );
    }

    #[test]
    fn a_peer_gets_at_most_its_share() {
        let pool = pool(8, 25);
        let _permits = [acquire(&pool, 1, 1).unwrap(), acquire(&pool, 1, 1).unwrap()];
        let rejected = acquire(&pool, 1, 1).unwrap_err();
        assert_eq!(
            rejected,
            Exhausted::Peer { resource: Resource::Streams, peer: peer(1), limit: 2 }
        );
        assert!(acquire(&pool, 2, 2).is_ok());
        assert_eq!(
            acquire(&pool, 2, 3).map(|_| ()),
            Err(Exhausted::Peer { resource: Resource::Streams, peer: peer(2), limit: 2 })
        );
    }

    #[test]
    fn a_share_is_never_zero() {
        assert!(acquire(&pool(1, 1), 1, 1).is_ok());
    }

    #[test]
    fn a_peer_with_less_takes_from_the_peer_with_the_most() {
        let pool = pool(6, 100);
        let greedy: Vec<_> = (0..5).map(|_| acquire(&pool, 1, 1).unwrap()).collect();
        let modest = acquire(&pool, 2, 1).unwrap();
        let late = acquire(&pool, 3, 1).unwrap();
        assert!(!is_revoked(&modest) && !is_revoked(&late));
        assert_eq!(
            greedy.iter().map(is_revoked).collect::<Vec<_>>(),
            [false, false, false, false, true]
        );
        assert_eq!(pool.used(), 6);
        drop(greedy);
        assert_eq!(pool.used(), 2, "a permit that was revoked has nothing to give back");
    }

    #[tokio::test]
    async fn a_revoked_permit_is_in_use_until_it_is_returned() {
        let pool = pool(10, 100);
        let greedy = acquire(&pool, 1, 8).unwrap();
        let modest = acquire(&pool, 2, 6).unwrap();
        assert!(is_revoked(&greedy) && !is_revoked(&modest));
        let mut waiting = std::pin::pin!(pool.within_limit());
        assert!(futures::poll!(&mut waiting).is_pending());
        // The first part that it returns is not enough, the second is.
        assert!(greedy.resize(5).is_err());
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(greedy.resize(4).is_err());
        assert!(futures::poll!(&mut waiting).is_ready());
        drop(greedy);
        assert!(pool.lock().revoked.is_empty());
        pool.within_limit().await;
    }

    #[test]
    fn peers_with_equal_amounts_do_not_take_from_each_other() {
        let pool = pool(4, 100);
        let all = [1, 1, 2, 2].map(|n| acquire(&pool, n, 1).unwrap());
        for n in [1, 2] {
            let rejected = acquire(&pool, n, 1).unwrap_err();
            assert_eq!(rejected, Exhausted::All { resource: Resource::Streams, limit: 4 });
        }
        assert!(!all.iter().any(is_revoked));
        let third = acquire(&pool, 3, 1).unwrap();
        assert!(!is_revoked(&third));
        assert_eq!(all.iter().filter(|item| is_revoked(item)).count(), 1);
        assert!(acquire(&pool, 3, 1).is_err(), "now nobody has more than it would have");
    }

    #[test]
    fn the_largest_permit_of_a_peer_is_revoked_first() {
        let pool = pool(100, 100);
        let [small, large] = [10, 60].map(|amount| acquire(&pool, 1, amount).unwrap());
        let other = acquire(&pool, 2, 30).unwrap();
        other.resize(50).unwrap();
        assert!(is_revoked(&large) && !is_revoked(&small));
        assert_eq!(pool.used(), 60);
        assert_eq!(large.resize(1), Err(large.why_revoked().unwrap()));
    }

    #[test]
    fn a_permit_that_cannot_grow_stays_unchanged() {
        let pool = pool(10, 50);
        let permit = acquire(&pool, 1, 4).unwrap();
        assert!(permit.resize(6).is_err());
        assert_eq!(pool.used(), 4);
        permit.resize(5).unwrap();
    }

    proptest::proptest! {
        /// In any order of requests, neither the total nor a peer's share is exceeded, and everything is returned.
        #[test]
        fn totals_and_shares_are_never_exceeded(
            limit in 1usize..50,
            share in 1u8..=100,
            steps in proptest::collection::vec((0u8..4, 0usize..20, 0usize..8), 1..60),
        ) {
            let pool = pool(limit, share);
            let mut permits: Vec<Permit> = Vec::new();
            for (who, amount, what) in steps {
                match (what, permits.len()) {
                    (0, 1..) => drop(permits.swap_remove(amount % permits.len())),
                    (1, 1..) => { let _ = permits[usize::from(who) % permits.len()].resize(amount); }
                    _ => permits.extend(acquire(&pool, who, amount)),
                }
                let inner = pool.lock();
                let sum: usize = inner.peers.values().map(|holdings| holdings.used).sum();
                proptest::prop_assert_eq!(sum, inner.used);
                proptest::prop_assert!(inner.used <= limit);
                for holdings in inner.peers.values() {
                    let own: usize = holdings.permits.values().map(|(amount, _)| amount).sum();
                    proptest::prop_assert_eq!(own, holdings.used);
                    proptest::prop_assert!(own <= pool.share);
                    proptest::prop_assert_eq!(holdings.by_amount.len(), holdings.permits.len());
                }
                proptest::prop_assert_eq!(inner.by_use.len(), inner.peers.len());
            }
            drop(permits);
            let inner = pool.lock();
            proptest::prop_assert!(inner.used == 0 && inner.peers.is_empty() && inner.by_use.is_empty());
            proptest::prop_assert!(inner.revoked.is_empty());
        }
    }
}
