//! Limits how many streams take in their first configuration at once.
//!
//! When weir starts, all of its clients connect. If all of them were served side by side, each would be done only at the
//! very end, and the requests and responses of all would be in memory at once. So a few are served and the others wait,
//! which makes none later than it would have been.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Peer;

/// How many streams may start at once for each core. A start occupies a core for 10 ms to 0.3 s, and waits for its client
/// between responses.
const PER_CORE: usize = 8;

/// The limits of how many streams may start at once, whatever the number of cores.
const FEWEST: usize = 16;
const MOST: usize = 64;

/// The divisor of the places that a single peer may have: a peer whose streams do not progress holds up itself alone.
const PEER: usize = 4;

/// How long a stream may keep its place without a request from its client: one that is slow or does not answer must not
/// hold up others.
const PATIENCE: Duration = Duration::from_secs(3);

/// The maximum time for which a stream keeps its place, about twice what it needs with 10 000 services: clients that send just
/// enough to keep their places must not keep new proxies waiting.
const LONGEST: Duration = Duration::from_secs(6);

/// The number of peers up to which those that have no stream any more are not looked for.
const FEW: usize = 64;

/// Hands out places.
#[derive(Debug)]
pub(crate) struct Starts {
    all: Arc<Semaphore>,
    /// How many places one peer may have.
    each: usize,
    peers: Mutex<Peers>,
}

#[derive(Debug)]
struct Peers {
    places: HashMap<Peer, Weak<Semaphore>>,
    /// The number of entries at which those of peers without a stream are dropped.
    clean_at: usize,
}

/// The start of a stream. It has a place until the place is due, the start ends, or this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Start {
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    _permits: [Option<OwnedSemaphorePermit>; 2],
    begun: Instant,
    due: Instant,
}

impl Default for Starts {
    fn default() -> Self {
        Self::new(std::thread::available_parallelism().map_or(1, usize::from))
    }
}

impl Starts {
    /// The places that this number of cores can serve.
    fn new(cores: usize) -> Self {
        let all = cores.saturating_mul(PER_CORE).clamp(FEWEST, MOST);
        let peers = Peers { places: HashMap::new(), clean_at: FEW };
        Self { all: Arc::new(Semaphore::new(all)), each: all / PEER, peers: Mutex::new(peers) }
    }

    /// Waits for a place: first among the streams of the same peer, then among all.
    pub(crate) async fn place(&self, peer: Peer) -> Start {
        let own = self.peers.lock().places_of(peer, self.each);
        // The semaphores are never closed, which is the only error.
        let own = own.acquire_owned().await.ok();
        let of_all = self.all.clone().acquire_owned().await.ok();
        let begun = Instant::now();
        let place = Place { _permits: [own, of_all], begun, due: begun + PATIENCE };
        Start { place: Some(place) }
    }
}

impl Start {
    /// Runs a part of the stream's work, and gives the place back if it becomes due meanwhile.
    pub(crate) async fn during<F: Future>(&mut self, work: F) -> F::Output {
        let mut work = std::pin::pin!(work);
        if let Some(due) = self.due() {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep_until(due) => self.end(),
            }
        }
        work.await
    }

    /// Gives the place back.
    pub(crate) fn end(&mut self) {
        self.place = None;
    }

    /// The client sent a request at this time, so it may keep its place for longer.
    pub(crate) fn progressed(&mut self, now: Instant) {
        if let Some(place) = &mut self.place {
            place.due = (now + PATIENCE).min(place.begun + LONGEST);
        }
    }

    /// When the place is to be given back; `None` once it is.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.place.as_ref().map(|place| place.due)
    }
}

impl Peers {
    fn places_of(&mut self, peer: Peer, each: usize) -> Arc<Semaphore> {
        if let Some(places) = self.places.get(&peer).and_then(Weak::upgrade) {
            return places;
        }
        if self.places.len() >= self.clean_at {
            self.places.retain(|_, places| places.strong_count() > 0);
            self.clean_at = (self.places.len() * 2).max(FEW);
        }
        let places = Arc::new(Semaphore::new(each));
        self.places.insert(peer, Arc::downgrade(&places));
        places
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use futures::FutureExt;

    use super::*;

    fn peer(n: u8) -> Peer {
        Peer::from(IpAddr::from([127, 0, 0, n]))
    }

    #[test]
    fn a_peer_that_does_not_progress_leaves_places_for_others() {
        let starts = Starts::new(2);
        let held: Vec<_> =
            (0..starts.each).map(|_| starts.place(peer(1)).now_or_never().unwrap()).collect();
        assert!(starts.place(peer(1)).now_or_never().is_none());
        assert!(starts.place(peer(2)).now_or_never().is_some());
        drop(held);
        assert!(starts.place(peer(1)).now_or_never().is_some());
    }

    #[test]
    fn no_more_than_all_places_are_taken_and_who_gave_up_takes_none() {
        let starts = Starts::new(2);
        let mut held: Vec<_> = (0..16)
            .map(|n| starts.place(peer((n / starts.each) as u8)).now_or_never().unwrap())
            .collect();
        let mut gone = Box::pin(starts.place(peer(9)));
        let mut stays = Box::pin(starts.place(peer(9)));
        assert!((&mut gone).now_or_never().is_none() && (&mut stays).now_or_never().is_none());
        drop(gone);
        held.pop();
        assert!(stays.now_or_never().is_some());
    }

    #[test]
    fn places_follow_the_number_of_cores() {
        for (cores, all) in [(0, 16), (1, 16), (2, 16), (3, 24), (8, 64), (usize::MAX, 64)] {
            let starts = Starts::new(cores);
            assert_eq!(starts.all.available_permits(), all, "{cores}");
            assert_eq!(starts.each, all / 4);
        }
    }

    #[test]
    fn a_stream_keeps_its_place_as_long_as_its_client_answers_and_no_longer_than_the_limit() {
        let mut start = Starts::new(2).place(peer(1)).now_or_never().unwrap();
        let begun = start.place.as_ref().unwrap().begun;
        assert_eq!(start.due(), Some(begun + PATIENCE));
        for (after, due) in [(0, 3), (2, 5), (4, 6), (6, 6), (20, 6)] {
            start.progressed(begun + Duration::from_secs(after));
            assert_eq!(start.due(), Some(begun + Duration::from_secs(due)), "{after}");
        }
    }

    #[tokio::test]
    async fn work_that_takes_too_long_goes_on_without_its_place() {
        let starts = Starts::new(2);
        let mut start = starts.place(peer(1)).await;
        assert_eq!(starts.all.available_permits(), 15);
        // It is due at once.
        let place = start.place.as_mut().unwrap();
        place.due = place.begun;
        let mut waits = std::pin::pin!(start.during(std::future::pending::<()>()));
        let mut others = std::pin::pin!(starts.all.acquire_many(16));
        tokio::select! {
            () = &mut waits => unreachable!("it never ends"),
            all = &mut others => assert!(all.is_ok()),
        }
    }

    #[tokio::test]
    async fn work_that_ends_in_time_keeps_the_place_until_the_end_of_the_start() {
        let starts = Starts::new(2);
        let mut start = starts.place(peer(1)).await;
        assert_eq!(start.during(async { 7 }).await, 7);
        assert!(start.due().is_some());
        start.end();
        assert_eq!((start.due(), starts.all.available_permits()), (None, 16));
    }

    #[test]
    fn peers_without_a_stream_are_forgotten() {
        let starts = Starts::new(2);
        for a in 0..=255 {
            for b in 0..=255 {
                let peer = Peer::from(IpAddr::from([10, 0, a, b]));
                assert!(starts.place(peer).now_or_never().is_some());
            }
        }
        assert!(starts.peers.lock().places.len() <= FEW);
    }
}
