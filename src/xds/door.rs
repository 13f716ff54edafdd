//! How many streams there may be, how fast they come in, and how they leave without all coming back at once.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

/// How many clients are served, and how fast they may come.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Streams in all.
    pub streams: usize,
    /// Streams of one connection. Without aggregation Envoy opens one for each cluster's endpoints.
    pub streams_per_connection: usize,
    /// Streams that may begin within a second; those above wait.
    pub streams_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { streams: 20_000, streams_per_connection: 5000, streams_per_second: 1000 }
    }
}

/// Time for each stream to leave in, and the most for all of them.
const LEAVE_EACH: Duration = Duration::from_millis(2);
const LEAVE_ALL: Duration = Duration::from_secs(5);

/// Counts streams in and out.
#[derive(Debug)]
pub(super) struct Door {
    limits: Limits,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    last_id: u64,
    streams: usize,
    by_connection: HashMap<SocketAddr, usize>,
    /// When the next stream may begin.
    next: Instant,
}

/// A stream's place; dropping it gives it up.
#[derive(Debug)]
pub(super) struct Seat {
    door: Arc<Door>,
    id: u64,
    connection: Option<SocketAddr>,
    turn: Instant,
}

impl Door {
    pub fn new(limits: Limits) -> Self {
        let inner = Inner { last_id: 0, streams: 0, by_connection: HashMap::new(), next: Instant::now() };
        Self { limits, inner: Mutex::new(inner) }
    }

    /// Nothing under the lock can fail half way, so that a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more stream of the client at this address.
    pub fn enter(self: &Arc<Self>, connection: Option<SocketAddr>) -> Result<Seat, Status> {
        let mut inner = self.lock();
        if inner.streams >= self.limits.streams {
            return Err(Status::resource_exhausted(format!(
                "there are {} streams, which is the limit; another replica may have room",
                self.limits.streams
            )));
        }
        if let Some(connection) = connection {
            let count = inner.by_connection.entry(connection).or_default();
            if *count >= self.limits.streams_per_connection {
                return Err(Status::resource_exhausted(format!(
                    "this connection has {} streams, which is the limit for one",
                    self.limits.streams_per_connection
                )));
            }
            *count += 1;
        }
        inner.streams += 1;
        inner.last_id += 1;
        // A tenth of a second's worth may come in one go.
        let each = Duration::from_secs(1) / self.limits.streams_per_second.max(1);
        let now = Instant::now();
        let earliest = now.checked_sub(Duration::from_millis(100)).unwrap_or(now);
        let turn = inner.next.max(earliest);
        inner.next = turn + each;
        Ok(Seat { door: self.clone(), id: inner.last_id, connection, turn })
    }

    /// How long a stream waits before it leaves, when all are to leave: some time or other within what all together
    /// may take.
    pub fn leave_after(&self) -> Duration {
        let streams = u32::try_from(self.lock().streams).unwrap_or(u32::MAX);
        let all = LEAVE_EACH.saturating_mul(streams.saturating_sub(1)).min(LEAVE_ALL);
        // The standard library seeds its hash maps from the system's randomness.
        all.mul_f64(RandomState::new().hash_one(()) as f64 / u64::MAX as f64)
    }
}

impl Seat {
    /// Identifies the stream.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Waits until the stream may begin.
    pub async fn turn(&self) {
        if self.turn > Instant::now() {
            tokio::time::sleep_until(self.turn).await;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.door.lock();
        inner.streams = inner.streams.saturating_sub(1);
        if let Some(connection) = self.connection
            && let Some(count) = inner.by_connection.get_mut(&connection)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                inner.by_connection.remove(&connection);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(limits: Limits) -> Arc<Door> {
        Arc::new(Door::new(limits))
    }

    #[test]
    fn streams_above_the_limit_are_refused_until_one_leaves() {
        let door = door(Limits { streams: 2, ..Default::default() });
        let first = door.enter(None).unwrap();
        let _second = door.enter(None).unwrap();
        let refused = door.enter(None).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        drop(first);
        assert!(door.enter(None).is_ok());
    }

    #[test]
    fn one_connection_can_not_take_all_the_room() {
        let door = door(Limits { streams_per_connection: 1, ..Default::default() });
        let [one, other] = [1, 2].map(|port| Some(SocketAddr::from(([127, 0, 0, 1], port))));
        let seat = door.enter(one).unwrap();
        assert_eq!(door.enter(one).unwrap_err().code(), tonic::Code::ResourceExhausted);
        assert!(door.enter(other).is_ok());
        drop(seat);
        assert!(door.enter(one).is_ok());
        assert!(door.lock().by_connection.is_empty(), "a connection without streams takes no room");
    }

    #[test]
    fn streams_that_come_all_at_once_get_turns_one_after_the_other() {
        let door = door(Limits { streams_per_second: 10, ..Default::default() });
        let seats: Vec<_> = (0..5).map(|_| door.enter(None).unwrap()).collect();
        let gaps: Vec<_> = seats.windows(2).map(|pair| pair[1].turn - pair[0].turn).collect();
        assert_eq!(gaps, [Duration::from_millis(100); 4]);
    }

    #[test]
    fn streams_leave_within_what_all_together_may_take() {
        let door = door(Limits::default());
        let _seats: Vec<_> = (0..101).map(|_| door.enter(None).unwrap()).collect();
        let times: Vec<_> = (0..100).map(|_| door.leave_after()).collect();
        assert!(times.iter().all(|time| *time <= LEAVE_EACH * 100));
        assert!(times.iter().max() > times.iter().min(), "not all at the same time");
    }
}
