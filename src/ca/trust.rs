//! Which authority signs, and which roots are trusted, while authorities come and go. Pure decisions.
//!
//! A new root is trusted first. Its authority signs when all proxies have had time to learn of the root, and the old root is
//! trusted until the last certificate that it has signed has expired. So at any time everyone accepts everyone's
//! certificate.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

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

/// The authorities and roots at some time.
#[derive(Debug)]
pub(super) struct Trust {
    times: Times,
    signing: Option<Arc<Authority>>,
    /// The authority that will sign, and from when.
    next: Option<(Arc<Authority>, SystemTime)>,
    /// The roots that no longer sign, and until when they are trusted.
    retired: Vec<(CertificateDer<'static>, SystemTime)>,
    /// Since when each root is trusted.
    since: Vec<(CertificateDer<'static>, SystemTime)>,
}

impl Trust {
    /// Without any authority.
    pub(super) fn new(times: Times) -> Self {
        Self { times, signing: None, next: None, retired: Vec::new(), since: Vec::new() }
    }

    /// Trusts roots that were trusted before weir started, for as long as certificates by them may be valid. Proxies have
    /// learned of them.
    pub(super) fn remember(&mut self, roots: &[CertificateDer<'static>], now: SystemTime) {
        let known = self.roots();
        for root in roots {
            if !known.contains(root) {
                self.retire(root.clone(), now);
            }
            self.since.retain(|(known, _)| known != root);
            self.since.push((root.clone(), SystemTime::UNIX_EPOCH));
        }
    }

    /// Takes in the authority that is to sign from now on.
    pub(super) fn change(&mut self, authority: Arc<Authority>, now: SystemTime) {
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
        let since = since.map_or(now, |(_, since)| *since);
        self.next = Some((authority, since + self.times.learn));
        self.advance(now);
    }

    /// Does what is due, and returns when something is due again.
    pub(super) fn advance(&mut self, now: SystemTime) -> Option<SystemTime> {
        if let Some((next, _)) = self.next.take_if(|(_, at)| *at <= now) {
            self.sign_with(next, now);
        }
        self.retired.retain(|(_, until)| *until > now);
        let roots = self.roots();
        self.since.retain(|(root, _)| roots.contains(root));
        for root in roots {
            if !self.since.iter().any(|(known, _)| *known == root) {
                self.since.push((root, now));
            }
        }
        let next = self.next.as_ref().map(|(_, at)| *at);
        self.retired.iter().map(|(_, until)| *until).chain(next).min()
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

    fn sign_with(&mut self, authority: Arc<Authority>, now: SystemTime) {
        self.next = None;
        let root = authority.root().clone();
        self.retired.retain(|(retired, _)| *retired != root);
        if let Some(old) = self.signing.replace(authority)
            && *old.root() != root
        {
            self.retire(old.root().clone(), now);
        }
    }

    fn retire(&mut self, root: CertificateDer<'static>, now: SystemTime) {
        let until = now + self.times.lifetime;
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

    fn signs(trust: &Trust, authority: &Arc<Authority>) -> bool {
        trust.signing().is_some_and(|signing| Arc::ptr_eq(signing, authority))
    }

    #[test]
    fn the_first_authority_signs_at_once() {
        let (mut trust, now) = (Trust::new(TIMES), SystemTime::now());
        let first = root(now);
        trust.change(first.clone(), now);
        assert!(signs(&trust, &first));
        assert_eq!(trust.roots(), first.roots());
        assert_eq!(trust.advance(now), None);
    }

    #[test]
    fn a_new_root_is_trusted_before_it_signs_and_the_old_one_as_long_as_its_certificates_are_valid()
    {
        let (mut trust, now) = (Trust::new(TIMES), SystemTime::now());
        let [first, second] = [root(now), root(now + MINUTE)];
        trust.change(first.clone(), now);
        trust.change(second.clone(), now);
        let both = [first.roots(), second.roots()].concat();
        assert!(signs(&trust, &first));
        assert_eq!(trust.roots(), both);

        // The Secret may be reported again.
        trust.change(second.clone(), now + MINUTE / 2);
        assert_eq!(trust.advance(now + MINUTE / 2), Some(now + MINUTE));
        assert!(signs(&trust, &first));

        let later = now + MINUTE;
        assert_eq!(trust.advance(later), Some(later + TIMES.lifetime));
        assert!(signs(&trust, &second));
        assert_eq!(trust.roots().len(), 2);

        assert_eq!(trust.advance(later + TIMES.lifetime), None);
        assert_eq!(trust.roots(), second.roots());
    }

    #[test]
    fn an_authority_that_is_taken_back_before_it_signs_leaves_nothing() {
        let (mut trust, now) = (Trust::new(TIMES), SystemTime::now());
        let [first, second] = [root(now), root(now + MINUTE)];
        trust.change(first.clone(), now);
        trust.change(second, now);
        trust.change(first.clone(), now);
        assert_eq!(trust.advance(now + MINUTE), None);
        assert!(signs(&trust, &first));
        assert_eq!(trust.roots(), first.roots());
    }

    #[test]
    fn an_authority_signs_at_once_if_its_root_has_been_trusted_for_long_enough() {
        let (mut trust, now) = (Trust::new(TIMES), SystemTime::now());
        let [first, second] = [root(now), root(now + MINUTE)];
        trust.change(first.clone(), now);
        trust.remember(second.roots(), now);
        trust.change(second.clone(), now);
        assert!(signs(&trust, &second), "it was trusted before weir started");

        let mut trust = Trust::new(TIMES);
        trust.change(first.clone(), now);
        trust.change(second.clone(), now);
        trust.change(first.clone(), now + MINUTE / 2);
        trust.change(second.clone(), now + MINUTE / 2);
        assert!(signs(&trust, &first), "what was taken back is no longer known");
        trust.advance(now + MINUTE * 3 / 2);
        assert!(signs(&trust, &second));
        trust.change(first.clone(), now + MINUTE * 2);
        assert!(signs(&trust, &first), "its root is still trusted");
    }

    #[test]
    fn roots_of_the_time_before_a_restart_stay_trusted() {
        let (mut trust, now) = (Trust::new(TIMES), SystemTime::now());
        let [old, new] = [root(now), root(now + MINUTE)];
        trust.change(new.clone(), now);
        trust.remember(&[old.roots(), new.roots()].concat(), now);
        assert_eq!(trust.roots(), [new.roots(), old.roots()].concat());
        trust.advance(now + TIMES.lifetime);
        assert_eq!(trust.roots(), new.roots());
    }
}
