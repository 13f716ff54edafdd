//! Which object's status is written next, and when. Pure: the caller passes the time.
//!
//! There is one entry for each object whose status in the API differs from what it should be, so the queue is never
//! longer than the list of objects, and an object that changes again before its turn costs one write.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::api::ObjectKey;

/// The number of writes per second, over any longer time.
pub const WRITES_PER_SECOND: u32 = 20;

/// The number of writes that may be made at once after a pause.
pub const BURST: u32 = 20;

/// The number of writes per second, of the above, that nobody waits for.
pub(crate) const LATER_PER_SECOND: u32 = 5;

/// How long a difference that nobody waits for must last before it is written.
const LATER: Duration = Duration::from_secs(5);

/// The delay after a first failed write of an object; it doubles with each further failure.
const RETRY: Duration = Duration::from_secs(1);

/// The maximum delay.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// How soon a difference has to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// Someone may wait for it.
    Now,
    /// It may go away by itself, like a proxy that has just connected; or only a message differs.
    Later,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Write the status of this object now. It stays queued until the outcome is told.
    Write(ObjectKey),
    /// There is nothing to do before this time.
    At(Instant),
    /// There is nothing to do.
    Idle,
}

#[derive(Debug)]
struct Entry {
    urgency: Urgency,
    since: Instant,
    /// Not before this time, after a failure.
    retry_at: Option<Instant>,
    failures: u32,
}

impl Entry {
    fn due(&self) -> Instant {
        let due = match self.urgency {
            Urgency::Now => self.since,
            Urgency::Later => self.since + LATER,
        };
        self.retry_at.map_or(due, |retry_at| retry_at.max(due))
    }
}

/// Permits that accumulate up to a number. `free` is the time at which the last permit that was given out is paid for.
#[derive(Debug)]
struct Bucket {
    interval: Duration,
    capacity: Duration,
    free: Option<Instant>,
}

impl Bucket {
    fn new(per_second: u32, capacity: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second;
        Self { interval, capacity: interval * capacity, free: None }
    }

    /// When the next permit is there.
    fn next(&self, now: Instant) -> Instant {
        self.free
            .and_then(|free| (free + self.interval).checked_sub(self.capacity))
            .map_or(now, |at| at.max(now))
    }

    fn take(&mut self, now: Instant) {
        self.free = Some(self.free.map_or(now, |free| free.max(now)) + self.interval);
    }
}

/// The objects whose status has to be written.
#[derive(Debug)]
pub(crate) struct Queue {
    entries: BTreeMap<ObjectKey, Entry>,
    all: Bucket,
    later: Bucket,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            all: Bucket::new(WRITES_PER_SECOND, BURST),
            later: Bucket::new(LATER_PER_SECOND, LATER_PER_SECOND),
        }
    }
}

impl Queue {
    /// The status of an object differs. Keeps its place if it is queued already.
    pub(crate) fn set(&mut self, key: &ObjectKey, urgency: Urgency, now: Instant) {
        match self.entries.get_mut(key) {
            Some(entry) if entry.urgency <= urgency => entry.urgency = urgency,
            Some(entry) => (entry.urgency, entry.since) = (urgency, now),
            None => {
                let entry = Entry { urgency, since: now, retry_at: None, failures: 0 };
                self.entries.insert(key.clone(), entry);
            }
        }
    }

    /// The status of an object no longer differs, or the object is gone. Returns whether it was queued.
    pub(crate) fn clear(&mut self, key: &ObjectKey) -> bool {
        self.entries.remove(key).is_some()
    }

    /// A write of an object failed: it is tried again later.
    pub(crate) fn failed(&mut self, key: &ObjectKey, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            let delay = RETRY.saturating_mul(1 << entry.failures.min(16)).min(LONGEST_RETRY);
            entry.failures = entry.failures.saturating_add(1);
            entry.retry_at = Some(now + delay);
        }
    }

    /// The object changed in the API, so that a write which failed before may succeed now.
    pub(crate) fn changed(&mut self, key: &ObjectKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.retry_at = None;
        }
    }

    /// The number of queued objects.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The object of this urgency that is due first, and when.
    fn oldest(&self, urgency: Urgency) -> Option<(ObjectKey, Instant)> {
        let all = self.entries.iter().filter(|(_, entry)| entry.urgency == urgency);
        all.min_by_key(|(_, entry)| entry.due()).map(|(key, entry)| (key.clone(), entry.due()))
    }

    /// What to do next. Takes a permit for what is to be written.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        let any = self.all.next(now);
        let urgent = self.oldest(Urgency::Now).map(|(key, due)| (key, due.max(any)));
        let later = self
            .oldest(Urgency::Later)
            .map(|(key, due)| (key, due.max(any).max(self.later.next(now))));
        // Both may be due; then the urgent one goes first.
        let first = match (urgent, later) {
            (Some((key, at)), Some((_, other))) if at <= now || at <= other => {
                (key, at, Urgency::Now)
            }
            (Some((key, at)), None) => (key, at, Urgency::Now),
            (_, Some((key, at))) => (key, at, Urgency::Later),
            (None, None) => return Next::Idle,
        };
        let (key, at, urgency) = first;
        if at > now {
            return Next::At(at);
        }
        self.all.take(now);
        if urgency == Urgency::Later {
            self.later.take(now);
        }
        Next::Write(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Kind;

    fn key(name: usize) -> ObjectKey {
        ObjectKey::new(Kind::VirtualService, "shop", &format!("web-{name}"))
    }

    /// Plays the queue until nothing is left to do or `end`, and returns what was written after how many milliseconds.
    fn play(queue: &mut Queue, begun: Instant, end: Duration) -> Vec<(ObjectKey, u128)> {
        let (mut now, mut written) = (begun, Vec::new());
        loop {
            match queue.next(now) {
                Next::Write(key) => {
                    queue.clear(&key);
                    written.push((key, (now - begun).as_millis()));
                }
                Next::At(at) if at <= begun + end => now = at,
                Next::At(_) | Next::Idle => return written,
            }
        }
    }

    #[test]
    fn a_storm_of_changes_is_written_at_the_stated_rate() {
        let (mut queue, begun) = (Queue::default(), Instant::now());
        (0..1000).for_each(|n| queue.set(&key(n), Urgency::Now, begun));
        let written = play(&mut queue, begun, Duration::from_secs(3600));
        assert_eq!((written.len(), queue.len()), (1000, 0));
        for window in 0..50u128 {
            let count = written.iter().filter(|(_, at)| at / 1000 == window).count();
            let bound = WRITES_PER_SECOND + if window == 0 { BURST } else { 0 };
            assert!(count <= bound as usize, "{count} writes in second {window}");
        }
        assert_eq!(written.last().unwrap().1, u128::from((1000 - BURST) * 1000 / 20));
    }

    #[test]
    fn an_object_that_changes_again_and_again_is_written_once_for_each_turn() {
        let (mut queue, begun) = (Queue::default(), Instant::now());
        (0..100).for_each(|_| queue.set(&key(0), Urgency::Now, begun));
        assert_eq!(play(&mut queue, begun, Duration::from_secs(1)), [(key(0), 0)]);
        assert_eq!(queue.next(begun), Next::Idle);
    }

    #[test]
    fn what_nobody_waits_for_waits_and_goes_away_by_itself() {
        let (mut queue, begun) = (Queue::default(), Instant::now());
        queue.set(&key(0), Urgency::Later, begun);
        queue.set(&key(1), Urgency::Later, begun);
        assert!(queue.clear(&key(1)), "it was put right before it was written");
        assert_eq!(play(&mut queue, begun, Duration::from_secs(9)), [(key(0), LATER.as_millis())]);

        // It never takes more than its own share, and what is urgent overtakes it.
        (0..50).for_each(|n| queue.set(&key(n), Urgency::Later, begun));
        let later = begun + LATER;
        queue.set(&key(99), Urgency::Now, later);
        let written = play(&mut queue, later, Duration::from_secs(60));
        assert_eq!(written.first(), Some(&(key(99), 0)));
        let in_a_second = written.iter().filter(|(_, at)| *at < 1000).count();
        assert!(in_a_second <= 1 + 2 * LATER_PER_SECOND as usize, "{written:?}");
        assert_eq!(written.len(), 51);
    }

    #[test]
    fn an_urgent_change_does_not_wait_as_a_later_one() {
        let (mut queue, begun) = (Queue::default(), Instant::now());
        queue.set(&key(0), Urgency::Later, begun);
        queue.set(&key(0), Urgency::Now, begun);
        assert_eq!(queue.next(begun), Next::Write(key(0)));
    }

    #[test]
    fn a_failed_write_is_tried_again_ever_later_or_as_soon_as_the_object_changed() {
        let (mut queue, begun) = (Queue::default(), Instant::now());
        queue.set(&key(0), Urgency::Now, begun);
        let mut now = begun;
        for delay in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(queue.next(now), Next::Write(key(0)));
            queue.failed(&key(0), now);
            // It stays queued, whatever differs meanwhile.
            queue.set(&key(0), Urgency::Now, now);
            assert_eq!(queue.next(now), Next::At(now + Duration::from_secs(delay)));
            now += Duration::from_secs(delay);
        }
        queue.next(now);
        queue.failed(&key(0), now);
        queue.changed(&key(0));
        assert_eq!(queue.next(now), Next::Write(key(0)));
    }
}
