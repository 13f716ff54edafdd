//! Signs certificates by the authority that signs at the time.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData};
use tokio::sync::watch;

use super::authority::{Authority, AuthorityError, Issued, pem};
use super::trust::Trust;
use super::{request, retired};
use crate::identity::Identity;
use crate::metrics::IdentityMetrics;

/// Options of the certificate authority.
#[derive(Clone, Debug)]
pub struct CaOptions {
    /// The namespace of its Secret.
    pub namespace: String,
    /// The trust domain of the SPIFFE IDs.
    pub trust_domain: String,
    /// How long a workload's certificate is valid at most.
    pub lifetime: Duration,
    /// How long proxies have to learn of a new root before it signs.
    pub learn: Duration,
    /// How long a root that weir makes is valid.
    pub root_lifetime: Duration,
    /// Whether the roots that another controller has written into namespaces are overwritten.
    pub take_over: bool,
}

/// What is signed and trusted at some time.
#[derive(Debug)]
pub(crate) struct Current {
    /// The authority that signs.
    pub(super) signing: Arc<Authority>,
    /// The roots to trust, in PEM.
    pub roots: String,
    count: u32,
    /// Until when the roots that no longer sign are trusted, as the ConfigMap says it to the next weir.
    pub(super) retired: String,
    /// Whether the roots that were trusted before weir started are known. Until then nobody else is told of these.
    pub complete: bool,
}

impl fmt::Display for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let until = Timestamp::try_from(self.valid_until()).unwrap_or(Timestamp::MAX);
        write!(f, "valid until {until}; trusted roots: {}", self.count)
    }
}

/// Signs certificates. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct CertificateAuthority {
    current: watch::Receiver<Option<Arc<Current>>>,
    metrics: IdentityMetrics,
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
pub(crate) struct KeyedChain {
    /// The certificate and its intermediates, in PEM.
    pub chain: String,
    /// The private key in PEM.
    pub key: String,
    /// Until when it is valid.
    pub valid_until: SystemTime,
}

impl CertificateAuthority {
    /// Signs with what `current` has.
    pub(crate) fn new(
        options: &CaOptions,
        current: watch::Receiver<Option<Arc<Current>>>,
        metrics: IdentityMetrics,
    ) -> Self {
        let trust_domain = options.trust_domain.as_str().into();
        Self { current, metrics, trust_domain, lifetime: options.lifetime }
    }

    /// Watches what signs and what is trusted.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Arc<Current>>> {
        self.current.clone()
    }

    /// Signs the key of a certificate signing request in PEM for a workload, for the time that it wants, and for no longer
    /// than others. Returns the certificate, its intermediates, and all roots to trust last, because Istio's agent knows no
    /// others.
    ///
    /// # Errors
    /// The request is wrong, or the authority cannot sign.
    pub(crate) fn sign_request(
        &self,
        identity: &Identity,
        request: &str,
        lifetime: Option<Duration>,
    ) -> Result<Vec<String>, SignError> {
        let key = request::public_key(request).map_err(SignError::Request)?;
        let current = self.current()?;
        let mut chain = self.sign(&current, identity, &key, lifetime)?.chain;
        chain.push(current.roots.clone());
        Ok(chain)
    }

    /// Makes a key and signs it for a workload.
    ///
    /// # Errors
    /// The authority cannot sign.
    pub(crate) fn make(&self, identity: &Identity) -> Result<KeyedChain, SignError> {
        let key = KeyPair::generate().map_err(AuthorityError::from)?;
        let issued = self.sign(&*self.current()?, identity, &key, None)?;
        Ok(KeyedChain::new(&issued, &key))
    }

    /// Makes a key and signs it for a server with these names.
    ///
    /// # Errors
    /// The authority cannot sign.
    pub(crate) fn make_server(&self, names: &[String]) -> Result<KeyedChain, SignError> {
        let current = self.current()?;
        let key = KeyPair::generate().map_err(AuthorityError::from)?;
        let now = SystemTime::now();
        let issued = current.signing.sign_server(names, &key, self.lifetime, now)?;
        Ok(KeyedChain::new(&issued, &key))
    }

    fn current(&self) -> Result<Arc<Current>, SignError> {
        self.current.borrow().clone().ok_or(SignError::NotReady)
    }

    fn sign(
        &self,
        current: &Current,
        identity: &Identity,
        key: &impl PublicKeyData,
        lifetime: Option<Duration>,
    ) -> Result<Issued, SignError> {
        let id = identity.spiffe_id(&self.trust_domain);
        // Roots are trusted for this time after they have stopped signing.
        let lifetime = lifetime.map_or(self.lifetime, |wanted| wanted.min(self.lifetime));
        let issued = current.signing.sign_workload(&id, key, lifetime, SystemTime::now())?;
        self.metrics.certificates.inc();
        Ok(issued)
    }
}

impl Current {
    /// What `signing` signs and `trust` trusts.
    pub(super) fn new(signing: Arc<Authority>, trust: &Trust, complete: bool) -> Self {
        let roots = trust.roots();
        let count = u32::try_from(roots.len()).unwrap_or(u32::MAX);
        let retired = retired::write(trust.retired());
        let roots = roots.iter().map(|root| pem(root)).collect();
        Self { signing, roots, count, retired, complete }
    }

    /// Until when the certificates of the authority are valid.
    pub(crate) fn valid_until(&self) -> SystemTime {
        self.signing.valid_until()
    }

    /// How many roots are trusted: more than one while one replaces another.
    pub(crate) fn root_count(&self) -> u32 {
        self.count
    }

    /// Whether the same authority signs and the same roots are trusted.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.signs_like(other) && self.roots == other.roots && self.complete == other.complete
    }

    /// Whether the same authority signs.
    pub(crate) fn signs_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.signing, &other.signing)
    }
}

impl KeyedChain {
    fn new(issued: &Issued, key: &KeyPair) -> Self {
        Self {
            chain: issued.chain.concat(),
            key: key.serialize_pem(),
            valid_until: issued.valid_until,
        }
    }
}
