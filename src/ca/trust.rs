//! Which authority signs, and which roots are trusted, while authorities come and go. Pure decisions.
//!
//! A new root is trusted first. Its authority signs when all proxies have had time to learn of the root, and the old root is
//! trusted until the last certificate that it has signed has expired. So at any time everyone accepts everyone's
//! certificate.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio_rustls::rustls::pki_types::CertificateDer;

use super::authority::{Authority, end};

/// How long each state of a rotation lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// How long proxies have to learn of a new root before certificates are signed by it.
    pub learn: Duration,
    /// The longest life of a certificate, and so how long a root is trusted after its authority has stopped signing.
    pub lifetime: Duration,
}

/// A time by both clocks. Validity is a matter of the wall clock; proxies learn of a root in time that passes, whatever
/// somebody sets that clock to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// By the wall clock.
    pub wall: SystemTime,
    /// By the clock that nobody sets.
    pub steady: Instant,
}

impl Now {
    /// At this moment.
    pub(super) fn read() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }
}

/// A root that was trusted before weir started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remembered {
    /// The root.
    pub root: CertificateDer<'static>,
    /// Until when it is trusted, if it was no longer signing.
    pub until: Option<SystemTime>,
}

/// The authorities and roots at some time.
#[derive(Debug)]
pub(super) struct Trust {
    times: Times,
    signing: Option<Arc<Authority>>,
    /// The authority that will sign, and from when.
    next: Option<(Arc<Authority>, Instant)>,
    /// The roots that no longer sign, and until when they are trusted.
    retired: Vec<(CertificateDer<'static>, SystemTime)>,
    /// Since when each root is trusted; `None` if since before weir started.
    since: Vec<(CertificateDer<'static>, Option<Instant>)>,
}

impl Trust {
    /// Without any authority.
    pub(super) fn new(times: Times) -> Self {
        Self { times, signing: None, next: None, retired: Vec::new(), since: Vec::new() }
    }

    /// Trusts roots that were trusted before weir started, for as long as certificates by them may be valid. Proxies have
    /// learned of them. A restart does not extend the time of a root that had stopped signing before.
    pub(super) fn remember(&mut self, roots: &[Remembered], now: Now) {
        let known = self.roots();
        for Remembered { root, until } in roots {
            if !known.contains(root) {
                let longest = now.wall + self.times.lifetime;
                self.retire(root.clone(), until.map_or(longest, |until| until.min(longest)));
            }
            self.since.retain(|(known, _)| known != root);
            self.since.push((root.clone(), None));
        }
        self.retired.retain(|(_, until)| *until > now.wall);
    }

    /// Takes in the authority that is to sign from now on.
    pub(super) fn change(&mut self, authority: Arc<Authority>, now: Now) {
        self.advance(now);
        let Some(signing) = &self.signing else {
            self.sign_with(authority, now);
            return;
        };
        if signing.is_same(&authority) {
            self.next = None;
            return;
        }
        if self.next.as_ref().is_some_and(|(next, _)| next.is_same(&authority)) {
            return;
        }
        let since = self.since.iter().find(|(root, _)| root == authority.root());
        let learned = match since {
            Some((_, None)) => now.steady,
            Some((_, Some(since))) => *since + self.times.learn,
            None => now.steady + self.times.learn,
        };
        self.next = Some((authority, learned));
        self.advance(now);
    }

    /// Does what is due, and returns after what time something is due again.
    pub(super) fn advance(&mut self, now: Now) -> Option<Duration> {
        if let Some((next, _)) = self.next.take_if(|(_, at)| *at <= now.steady) {
            self.sign_with(next, now);
        }
        self.retired.retain(|(_, until)| *until > now.wall);
        let roots = self.roots();
        self.since.retain(|(root, _)| roots.contains(root));
        for root in roots {
            if !self.since.iter().any(|(known, _)| *known == root) {
                self.since.push((root, Some(now.steady)));
            }
        }
        let next = self.next.as_ref().map(|(_, at)| at.saturating_duration_since(now.steady));
        let retired = self.retired.iter();
        let ends = retired.map(|(_, until)| until.duration_since(now.wall).unwrap_or_default());
        ends.chain(next).min()
    }

    /// The roots that no longer sign, and until when they are trusted.
    pub(super) fn retired(&self) -> &[(CertificateDer<'static>, SystemTime)] {
        &self.retired
    }

    /// The authority that signs.
    pub(super) fn signing(&self) -> Option<&Arc<Authority>> {
        self.signing.as_ref()
    }

    /// All roots to trust, without duplicates: the signing one first.
    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        let next = self.next.as_ref().map(|(next, _)| next);
        let current = self.signing.iter().chain(next).flat_map(|authority| authority.roots());
        let mut roots: Vec<CertificateDer<'static>> = Vec::new();
        for root in current.chain(self.retired.iter().map(|(root, _)| root)) {
            if !roots.contains(root) {
                roots.push(root.clone());
            }
        }
        roots
    }

    fn sign_with(&mut self, authority: Arc<Authority>, now: Now) {
        self.next = None;
        let root = authority.root().clone();
        self.retired.retain(|(retired, _)| *retired != root);
        if let Some(old) = self.signing.replace(authority)
            && *old.root() != root
        {
            self.retire(old.root().clone(), now.wall + self.times.lifetime);
        }
    }

    fn retire(&mut self, root: CertificateDer<'static>, until: SystemTime) {
        let until = end(&root).map_or(until, |end| end.min(until));
        self.retired.retain(|(retired, _)| *retired != root);
        self.retired.push((root, until));
    }
}

#[cfg(test)]
mod tests {
    use super::super::secret::tests::root;
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const TIMES: Times = Times { learn: MINUTE, lifetime: Duration::from_secs(24 * 60 * 60) };

    /// What `now` is after some time.
    fn after(now: Now, time: Duration) -> Now {
        Now { wall: now.wall + time, steady: now.steady + time }
    }

    fn remembered(roots: &[CertificateDer<'static>]) -> Vec<Remembered> {
        roots.iter().map(|root| Remembered { root: root.clone(), until: None }).collect()
    }

    fn signs(trust: &Trust, authority: &Arc<Authority>) -> bool {
        trust.signing().is_some_and(|signing| Arc::ptr_eq(signing, authority))
    }

    #[test]
    fn the_first_authority_signs_at_once() {
        let (mut trust, now) = (Trust::new(TIMES), Now::read());
        let first = root(now.wall);
        trust.change(first.clone(), now);
        assert!(signs(&trust, &first));
        assert_eq!(trust.roots(), first.roots());
        assert_eq!(trust.advance(now), None);
    }

    #[test]
    fn a_new_root_is_trusted_before_it_signs_and_the_old_one_as_long_as_its_certificates_are_valid()
    {
        let (mut trust, now) = (Trust::new(TIMES), Now::read());
        let [first, second] = [root(now.wall), root(now.wall + MINUTE)];
        trust.change(first.clone(), now);
        trust.change(second.clone(), now);
        let both = [first.roots(), second.roots()].concat();
        assert!(signs(&trust, &first));
        assert_eq!(trust.roots(), both);

        // The Secret may be reported again.
        trust.change(second.clone(), after(now, MINUTE / 2));
        assert_eq!(trust.advance(after(now, MINUTE / 2)), Some(MINUTE / 2));
        assert!(signs(&trust, &first));

        let later = after(now, MINUTE);
        assert_eq!(trust.advance(later), Some(TIMES.lifetime));
        assert!(signs(&trust, &second));
        assert_eq!(trust.roots().len(), 2);

        assert_eq!(trust.advance(after(later, TIMES.lifetime)), None);
        assert_eq!(trust.roots(), second.roots());
    }

    #[test]
    fn an_authority_that_is_taken_back_before_it_signs_leaves_nothing() {
        let (mut trust, now) = (Trust::new(TIMES), Now::read());
        let [first, second] = [root(now.wall), root(now.wall + MINUTE)];
        trust.change(first.clone(), now);
        trust.change(second, now);
        trust.change(first.clone(), now);
        assert_eq!(trust.advance(after(now, MINUTE)), None);
        assert!(signs(&trust, &first));
        assert_eq!(trust.roots(), first.roots());
    }

    #[test]
    fn an_authority_signs_at_once_if_its_root_has_been_trusted_for_long_enough() {
        let (mut trust, now) = (Trust::new(TIMES), Now::read());
        let [first, second] = [root(now.wall), root(now.wall + MINUTE)];
        trust.change(first.clone(), now);
        trust.remember(&remembered(second.roots()), now);
        trust.change(second.clone(), now);
        assert!(signs(&trust, &second), "it was trusted before weir started");

        let mut trust = Trust::new(TIMES);
        trust.change(first.clone(), now);
        trust.change(second.clone(), now);
        trust.change(first.clone(), after(now, MINUTE / 2));
        trust.change(second.clone(), after(now, MINUTE / 2));
        assert!(signs(&trust, &first), "what was taken back is no longer known");
        trust.advance(after(now, MINUTE * 3 / 2));
        assert!(signs(&trust, &second));
        trust.change(first.clone(), after(now, MINUTE * 2));
        assert!(signs(&trust, &first), "its root is still trusted");
    }

    #[test]
    fn roots_of_the_time_before_a_restart_stay_trusted() {
        let (mut trust, now) = (Trust::new(TIMES), Now::read());
        let [old, new] = [root(now.wall), root(now.wall + MINUTE)];
        trust.change(new.clone(), now);
        trust.remember(&remembered(&[old.roots(), new.roots()].concat()), now);
        assert_eq!(trust.roots(), [new.roots(), old.roots()].concat());
        trust.advance(after(now, TIMES.lifetime));
        assert_eq!(trust.roots(), new.roots());
    }

    #[test]
    fn a_restart_does_not_extend_the_time_of_a_retired_root() {
        let (mut trust, now) = (Trust::new(TIMES), Now::read());
        let [old, new] = [root(now.wall), root(now.wall + MINUTE)];
        trust.change(new.clone(), now);
        let [gone, later] = [now.wall - MINUTE, now.wall + TIMES.lifetime * 2];
        let old = old.root().clone();
        trust.remember(&[Remembered { root: old.clone(), until: Some(gone) }], now);
        assert_eq!(trust.roots(), new.roots());
        trust.remember(&[Remembered { root: old.clone(), until: Some(later) }], now);
        assert_eq!(trust.retired(), [(old.clone(), now.wall + TIMES.lifetime)]);
        let mut trust = Trust::new(TIMES);
        trust.change(new.clone(), now);
        trust.remember(&[Remembered { root: old, until: Some(now.wall + MINUTE) }], now);
        assert_eq!(trust.roots().len(), 2);
        trust.advance(after(now, MINUTE));
        assert_eq!(trust.roots(), new.roots());
    }

    #[test]
    fn a_clock_that_is_set_does_not_shorten_the_time_to_learn() {
        let (mut trust, now) = (Trust::new(TIMES), Now::read());
        let [first, second] = [root(now.wall), root(now.wall + MINUTE)];
        trust.change(first.clone(), now);
        trust.change(second.clone(), now);
        let set = Now { wall: now.wall + TIMES.lifetime, ..now };
        assert_eq!(trust.advance(set), Some(MINUTE));
        assert!(signs(&trust, &first));
        let back = after(Now { wall: now.wall - TIMES.lifetime, ..now }, MINUTE);
        trust.advance(back);
        assert!(signs(&trust, &second));
    }
}
