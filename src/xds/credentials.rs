//! The certificate of one client: made when it asks for secrets, and again halfway through its life and whenever another
//! authority signs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::secrets::{Secrets, TooManySecrets};
use super::stream::{Request, Variant};
use crate::ca::{CertificateAuthority, Current, KeyedChain};
use crate::identity::Identity;
use crate::timer::at;

/// The delay before a failed attempt is repeated.
const RETRY: Duration = Duration::from_secs(5);

/// The time over which the certificates of all clients are replaced when another authority signs.
const REISSUE: Duration = Duration::from_secs(30);

/// The longest time between two looks at the clock, which may be set.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The certificate of one client, and what it has of it.
pub(super) struct Credentials {
    secrets: Secrets,
    identity: Identity,
    authority: CertificateAuthority,
    current: watch::Receiver<Option<Arc<Current>>>,
    made: Option<Made>,
    /// When a failed attempt is repeated.
    retry_at: Option<Instant>,
    /// From 0 to 1: how late a certificate is renewed. It differs between clients, which would otherwise renew all at once.
    spread: f64,
}

/// A certificate in use.
struct Made {
    certificate: KeyedChain,
    renew_at: SystemTime,
    /// What signed and was trusted when it was made or kept.
    current: Arc<Current>,
}

impl Credentials {
    /// For a client with this identity. `spread` from 0 to 1 says how late it renews its certificate.
    pub(super) fn new(
        variant: Variant,
        identity: Identity,
        authority: CertificateAuthority,
        spread: f64,
    ) -> Self {
        let current = authority.watch();
        let secrets = Secrets::new(variant);
        Self { secrets, identity, authority, current, made: None, retry_at: None, spread }
    }

    /// Takes in a request for secrets. Returns why the client rejected the last response, if it did.
    ///
    /// # Errors
    /// Too many names.
    pub(super) fn on_request(
        &mut self,
        request: Request,
    ) -> Result<Option<String>, TooManySecrets> {
        self.secrets.on_request(request)
    }

    /// The response that is due, encoded.
    pub(super) fn response(&mut self) -> Option<Bytes> {
        if !self.secrets.are_wanted() {
            return None;
        }
        let current = self.current.borrow_and_update().clone();
        if let Some(current) = current {
            self.refresh(current);
        }
        self.secrets.response()
    }

    fn refresh(&mut self, current: Arc<Current>) {
        let now = SystemTime::now();
        if let Some(made) = &mut self.made
            && made.renew_at > now
        {
            if made.current.is_same(&current) {
                return;
            }
            if !made.current.signs_like(&current) {
                // All roots are trusted for longer than that.
                made.renew_at = made.renew_at.min(now + REISSUE.mul_f64(self.spread));
            }
            made.current = current;
        } else {
            match self.authority.make(&self.identity) {
                Ok(certificate) => {
                    let left = certificate.valid_until.duration_since(now).unwrap_or_default();
                    let used = left.mul_f64(0.5 + self.spread * 0.1).max(RETRY);
                    self.made = Some(Made { certificate, renew_at: now + used, current });
                }
                Err(error) => {
                    tracing::error!(identity = %self.identity, %error, "cannot make a certificate; retrying");
                    self.retry_at = Some(Instant::now() + RETRY);
                    return;
                }
            }
        }
        self.retry_at = None;
        if let Some(made) = &self.made {
            let KeyedChain { chain, key, .. } = &made.certificate;
            self.secrets.set(chain, key, &made.current.roots);
        }
    }

    /// The bytes of its certificate, its key and the roots: those that are served, and those that they are made from.
    pub(super) fn held_bytes(&self) -> usize {
        let made = self.made.as_ref().map_or(0, |made| {
            let KeyedChain { chain, key, .. } = &made.certificate;
            chain.len() + key.len()
        });
        made + self.secrets.held_bytes()
    }

    /// Waits until another response may be due. Cancel safe.
    pub(super) async fn changed(&mut self) {
        if !self.secrets.are_wanted() {
            return std::future::pending().await;
        }
        let now = SystemTime::now();
        let left =
            self.made.as_ref().map(|made| made.renew_at.duration_since(now).unwrap_or_default());
        let due = left.map(|left| Instant::now() + left.min(LONGEST_WAIT));
        let due = self.retry_at.or(due);
        tokio::select! {
            Ok(()) = self.current.changed() => {}
            () = at(due) => {}
            else => std::future::pending().await,
        }
    }
}
