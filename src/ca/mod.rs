//! The certificate authority of the mesh: signs the certificates of workloads and of weir's own TLS port.
//!
//! Its root, or an intermediate authority, is in a Secret that every replica follows ([`follow`]). The elected replica makes
//! a root if there is none, and writes the roots to trust into each namespace ([`Keeper`]). Which authority signs, and
//! what is trusted meanwhile, are pure decisions (`trust.rs`).

mod authority;
mod follow;
mod keeper;
mod key;
mod request;
mod secret;
mod server;
mod service;
mod trust;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData};
use tokio::sync::watch;

use crate::identity::Identity;
use authority::Authority;

pub(crate) use authority::{AuthorityError, Issued, LONGEST_LIFETIME};
pub(crate) use follow::{Stored, follow};
pub(crate) use keeper::Keeper;
pub(crate) use server::present;
pub(crate) use service::CertificateService;

/// Options of the certificate authority.
#[derive(Clone, Debug)]
pub struct CaOptions {
    /// The namespace of its Secret.
    pub namespace: String,
    /// The trust domain of the SPIFFE IDs.
    pub trust_domain: String,
    /// How long a workload's certificate is valid.
    pub lifetime: Duration,
    /// How long proxies have to learn of a new root before it signs.
    pub learn: Duration,
}

/// What is signed and trusted at some time.
#[derive(Debug)]
pub(crate) struct Current {
    signing: Arc<Authority>,
    /// The roots to trust, in PEM.
    pub roots: String,
}

/// Signs certificates. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct CertificateAuthority {
    current: watch::Receiver<Option<Arc<Current>>>,
    trust_domain: Arc<str>,
    lifetime: Duration,
}

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignError {
    /// There is no authority yet.
    #[error("the certificate authority has no root yet")]
    NotReady,
    /// The request is wrong.
    #[error("the certificate signing request is not accepted: {0}")]
    Request(String),
    /// The authority cannot sign.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// A certificate that weir has made together with its key.
#[derive(Clone)]
pub(crate) struct KeyedChain {
    /// The certificate and its intermediates, in PEM, without the root.
    pub chain: String,
    /// The private key in PEM.
    pub key: String,
    /// Until when it is valid.
    pub valid_until: SystemTime,
}

impl CertificateAuthority {
    /// Signs with what `current` has.
    pub(crate) fn new(options: &CaOptions, current: watch::Receiver<Option<Arc<Current>>>) -> Self {
        let trust_domain = options.trust_domain.as_str().into();
        Self { current, trust_domain, lifetime: options.lifetime }
    }

    /// Watches what signs and what is trusted.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Arc<Current>>> {
        self.current.clone()
    }

    /// Signs the key of a certificate signing request in PEM for a workload.
    ///
    /// # Errors
    /// The request is wrong, or the authority cannot sign.
    pub(crate) fn sign_request(
        &self,
        identity: &Identity,
        request: &str,
        lifetime: Option<Duration>,
    ) -> Result<Issued, SignError> {
        let key = request::public_key(request).map_err(SignError::Request)?;
        self.sign(identity, &key, lifetime)
    }

    /// Makes a key and signs it for a workload.
    ///
    /// # Errors
    /// The authority cannot sign.
    pub(crate) fn make(&self, identity: &Identity) -> Result<KeyedChain, SignError> {
        let key = KeyPair::generate().map_err(AuthorityError::from)?;
        let issued = self.sign(identity, &key, None)?;
        Ok(KeyedChain::new(&issued, &key))
    }

    /// Makes a key and signs it for a server with these names.
    ///
    /// # Errors
    /// The authority cannot sign.
    pub(crate) fn make_server(&self, names: &[String]) -> Result<KeyedChain, SignError> {
        let current = self.current.borrow().clone().ok_or(SignError::NotReady)?;
        let key = KeyPair::generate().map_err(AuthorityError::from)?;
        let now = SystemTime::now();
        let issued = current.signing.sign_server(names, &key, self.lifetime, now)?;
        Ok(KeyedChain::new(&issued, &key))
    }

    fn sign(
        &self,
        identity: &Identity,
        key: &impl PublicKeyData,
        lifetime: Option<Duration>,
    ) -> Result<Issued, SignError> {
        let current = self.current.borrow().clone().ok_or(SignError::NotReady)?;
        let (id, lifetime) =
            (identity.spiffe_id(&self.trust_domain), lifetime.unwrap_or(self.lifetime));
        Ok(current.signing.sign_workload(&id, key, lifetime, SystemTime::now())?)
    }
}

impl Current {
    /// Whether the same authority signs.
    pub(crate) fn signs_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.signing, &other.signing)
    }
}

impl KeyedChain {
    fn new(issued: &Issued, key: &KeyPair) -> Self {
        let without_root = issued.chain.len().saturating_sub(1);
        Self {
            chain: issued.chain.iter().take(without_root).map(String::as_str).collect(),
            key: key.serialize_pem(),
            valid_until: issued.valid_until,
        }
    }
}
