//! Schedules which stream starts next when many are waiting.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::Peer;

/// The burst after a pause: a tenth of the rate per second.
const BURST: Duration = Duration::from_millis(100);

/// Grants turns at a steady rate, round robin over peers, and in order within a peer. Cancelled waiters take no turn.
#[derive(Debug)]
pub(crate) struct Turns {
    queue: Mutex<Queue>,
    /// Someone began to wait.
    waiting: Notify,
}

#[derive(Debug)]
struct Queue {
    interval: Duration,
    /// When the next turn is due.
    next: Instant,
    last_ticket: u64,
    waiting: HashMap<Peer, BTreeMap<u64, oneshot::Sender<()>>>,
    /// The peers in `waiting`, least recently served first.
    order: VecDeque<Peer>,
}

/// A place in the queue, given up on drop.
struct Place<'a> {
    turns: &'a Turns,
    peer: Peer,
    ticket: u64,
}

impl Turns {
    /// A scheduler with this rate per second.
    pub(crate) fn new(per_second: u32) -> Self {
        Self { queue: Mutex::new(Queue::new(per_second, Instant::now())), waiting: Notify::new() }
    }

    /// No operation under the lock can fail halfway, so the state is valid even if the lock is poisoned.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Waits for a turn, which [`Turns::run`] grants unless one is available immediately.
    pub(crate) async fn turn(&self, peer: Peer) {
        let (ticket, granted) = {
            let mut queue = self.lock();
            if queue.take(Instant::now()) {
                return;
            }
            queue.join(peer)
        };
        let place = Place { turns: self, peer, ticket };
        self.waiting.notify_one();
        // The sender is dropped only together with the place.
        let _ = granted.await;
        drop(place);
    }

    /// Grants turns as long as it is polled.
    pub(crate) async fn run(&self) {
        loop {
            let next = self.lock().next_due();
            match next {
                None => self.waiting.notified().await,
                Some(next) => {
                    tokio::time::sleep_until(next).await;
                    self.lock().give(Instant::now());
                }
            }
        }
    }
}

impl Queue {
    fn new(per_second: u32, now: Instant) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self {
            interval,
            next: now,
            last_ticket: 0,
            waiting: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Unused turns do not accumulate.
    fn forget_pause(&mut self, now: Instant) {
        self.next = self.next.max(now.checked_sub(BURST).unwrap_or(now));
    }

    /// Takes a turn if one is due and no one is waiting.
    fn take(&mut self, now: Instant) -> bool {
        self.forget_pause(now);
        let free = self.order.is_empty() && self.next <= now;
        if free {
            self.next += self.interval;
        }
        free
    }

    /// Enqueues a waiter.
    fn join(&mut self, peer: Peer) -> (u64, oneshot::Receiver<()>) {
        self.last_ticket += 1;
        let (sender, granted) = oneshot::channel();
        let Self { waiting, order, .. } = self;
        let own = waiting.entry(peer).or_insert_with(|| {
            order.push_back(peer);
            BTreeMap::new()
        });
        own.insert(self.last_ticket, sender);
        (self.last_ticket, granted)
    }

    /// Removes a waiter.
    fn leave(&mut self, peer: Peer, ticket: u64) {
        if let Some(own) = self.waiting.get_mut(&peer)
            && own.remove(&ticket).is_some()
            && own.is_empty()
        {
            self.waiting.remove(&peer);
            self.order.retain(|other| *other != peer);
        }
    }

    /// When the next turn is due, if anyone is waiting.
    fn next_due(&self) -> Option<Instant> {
        (!self.order.is_empty()).then_some(self.next)
    }

    /// Grants the turns that are due.
    fn give(&mut self, now: Instant) {
        self.forget_pause(now);
        while self.next <= now {
            let Some(waiting) = self.first() else { return };
            if waiting.send(()).is_ok() {
                self.next += self.interval;
            }
        }
    }

    /// Dequeues the first waiter of the next peer.
    fn first(&mut self) -> Option<oneshot::Sender<()>> {
        let peer = self.order.pop_front()?;
        let own = self.waiting.get_mut(&peer)?;
        let (_, first) = own.pop_first()?;
        if own.is_empty() {
            self.waiting.remove(&peer);
        } else {
            self.order.push_back(peer);
        }
        Some(first)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.turns.lock().leave(self.peer, self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn peer(n: u8) -> Peer {
        Peer::from(IpAddr::from([127, 0, 0, n]))
    }

    /// A queue whose first turn is due at `Instant`, followed by one every 100 ms.
    fn busy() -> (Queue, Instant) {
        let now = Instant::now();
        let mut queue = Queue::new(10, now);
        assert!(queue.take(now));
        (queue, now + Duration::from_millis(100))
    }

    fn has_turn(granted: &mut oneshot::Receiver<()>) -> bool {
        granted.try_recv().is_ok()
    }

    #[test]
    fn a_burst_is_a_tenth_of_a_second() {
        let now = Instant::now();
        let mut queue = Queue::new(100, now);
        let later = now + Duration::from_secs(60);
        assert_eq!((0..100).filter(|_| queue.take(later)).count(), 11);
    }

    #[test]
    fn newcomers_wait_behind_others() {
        let (mut queue, now) = busy();
        let _first = queue.join(peer(1));
        assert!(!queue.take(now + Duration::from_secs(1)));
    }

    #[test]
    fn peers_alternate_regardless_of_their_queue_lengths() {
        let (mut queue, mut now) = busy();
        let mut waiting: Vec<_> = (0..50).map(|_| (1, queue.join(peer(1)).1)).collect();
        waiting.push((2, queue.join(peer(2)).1));
        waiting.push((3, queue.join(peer(3)).1));
        let mut order = Vec::new();
        for _ in 0..5 {
            queue.give(now);
            order.extend(
                waiting.iter_mut().filter_map(|(n, granted)| has_turn(granted).then_some(*n)),
            );
            now += Duration::from_millis(100);
        }
        assert_eq!(order, [1, 2, 3, 1, 1]);
    }

    #[test]
    fn a_cancelled_waiter_takes_no_turn() {
        let (mut queue, now) = busy();
        let gone: Vec<_> = (0..10_000).map(|_| queue.join(peer(1))).collect();
        let (ticket, mut stays) = queue.join(peer(1));
        for (ticket, _) in &gone {
            queue.leave(peer(1), *ticket);
        }
        assert_eq!(
            queue.waiting.values().map(BTreeMap::len).sum::<usize>(),
            1,
            "only who waits is in the queue"
        );
        queue.give(now);
        assert!(has_turn(&mut stays));
        queue.leave(peer(1), ticket);
        assert!(queue.order.is_empty() && queue.waiting.is_empty() && queue.next_due().is_none());
    }

    #[test]
    fn a_dropped_waiter_takes_no_turn() {
        let (mut queue, now) = busy();
        drop((0..10_000).map(|_| queue.join(peer(1))).collect::<Vec<_>>());
        let (_, mut stays) = queue.join(peer(1));
        queue.give(now);
        assert!(has_turn(&mut stays));
    }

    #[test]
    fn turns_come_at_the_rate() {
        let (mut queue, begun) = busy();
        let mut waiting: Vec<_> = (0..20).map(|n| queue.join(peer(n)).1).collect();
        let mut given = Vec::new();
        for step in 0..20 {
            queue.give(begun + Duration::from_millis(100) * step);
            given.push(
                waiting.iter_mut().filter_map(|granted| has_turn(granted).then_some(())).count(),
            );
        }
        assert_eq!(given, [1; 20]);
    }

    #[tokio::test]
    async fn turns_go_only_to_present_waiters() {
        let turns = Turns::new(100);
        while turns.lock().take(Instant::now()) {}
        let mut left = Box::pin(turns.turn(peer(1)));
        let mut stays = Box::pin(turns.turn(peer(1)));
        assert!(
            futures::poll!(left.as_mut()).is_pending()
                && futures::poll!(stays.as_mut()).is_pending()
        );
        drop(left);
        tokio::select! {
            () = stays => {}
            () = turns.run() => {}
        }
        assert!(turns.lock().waiting.is_empty());
    }
}
