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

use super::Peer;

/// How many streams may start at once. A start occupies a core for 10 ms to 0.3 s.
const ALL: usize = 64;

/// How many streams of one peer may start at once: a peer whose streams do not progress holds up itself alone.
const PEER: usize = 16;

/// How long a stream may keep its place: a client that is slow or does not answer must not hold up others.
pub(crate) const LONGEST: Duration = Duration::from_secs(3);

/// The number of peers up to which those that have no stream any more are not looked for.
const FEW: usize = 64;

/// Hands out places.
#[derive(Debug)]
pub(crate) struct Starts {
    all: Arc<Semaphore>,
    peers: Mutex<Peers>,
}

#[derive(Debug)]
struct Peers {
    places: HashMap<Peer, Weak<Semaphore>>,
    /// The number of entries at which those of peers without a stream are dropped.
    clean_at: usize,
}

/// The place of a stream that is starting, given back on drop.
#[derive(Debug)]
pub(crate) struct Start {
    _places: [Option<OwnedSemaphorePermit>; 2],
}

impl Default for Starts {
    fn default() -> Self {
        let peers = Peers { places: HashMap::new(), clean_at: FEW };
        Self { all: Arc::new(Semaphore::new(ALL)), peers: Mutex::new(peers) }
    }
}

impl Starts {
    /// Waits for a place: first among the streams of the same peer, then among all.
    pub(crate) async fn place(&self, peer: Peer) -> Start {
        let own = self.peers.lock().places_of(peer);
        // The semaphores are never closed, which is the only error.
        let own = own.acquire_owned().await.ok();
        let of_all = self.all.clone().acquire_owned().await.ok();
        Start { _places: [own, of_all] }
    }
}

impl Peers {
    fn places_of(&mut self, peer: Peer) -> Arc<Semaphore> {
        if let Some(places) = self.places.get(&peer).and_then(Weak::upgrade) {
            return places;
        }
        if self.places.len() >= self.clean_at {
            self.places.retain(|_, places| places.strong_count() > 0);
            self.clean_at = (self.places.len() * 2).max(FEW);
        }
        let places = Arc::new(Semaphore::new(PEER));
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
        let starts = Starts::default();
        let held: Vec<_> =
            (0..PEER).map(|_| starts.place(peer(1)).now_or_never().unwrap()).collect();
        assert!(starts.place(peer(1)).now_or_never().is_none());
        assert!(starts.place(peer(2)).now_or_never().is_some());
        drop(held);
        assert!(starts.place(peer(1)).now_or_never().is_some());
    }

    #[test]
    fn no_more_than_all_places_are_taken_and_who_gave_up_takes_none() {
        let starts = Starts::default();
        let mut held: Vec<_> = (0..ALL)
            .map(|n| starts.place(peer((n / PEER) as u8)).now_or_never().unwrap())
            .collect();
        let mut gone = Box::pin(starts.place(peer(9)));
        let mut stays = Box::pin(starts.place(peer(9)));
        assert!((&mut gone).now_or_never().is_none() && (&mut stays).now_or_never().is_none());
        drop(gone);
        held.pop();
        assert!(stays.now_or_never().is_some());
    }

    #[test]
    fn peers_without_a_stream_are_forgotten() {
        let starts = Starts::default();
        for a in 0..=255 {
            for b in 0..=255 {
                let peer = Peer::from(IpAddr::from([10, 0, a, b]));
                assert!(starts.place(peer).now_or_never().is_some());
            }
        }
        assert!(starts.peers.lock().places.len() <= FEW);
    }
}
