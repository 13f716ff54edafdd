//! The authority that signs the certificates of workloads and of weir's own TLS ports.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use time::OffsetDateTime;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use x509_parser::certificate::X509Certificate;
use x509_parser::parse_x509_certificate;

use super::key::AuthorityKey;
use crate::tls;

/// How much earlier than now a certificate becomes valid, as in Istio: clocks of nodes differ.
const BACKDATED: Duration = Duration::from_secs(2 * 60);

/// The longest life of a workload's certificate, as in Istio.
pub(crate) const LONGEST_LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// Why there is no authority, or no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthorityError {
    /// A part of the Secret cannot be used.
    #[error("{key}: {problem}")]
    Part {
        /// The key in the Secret.
        key: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(String),
}

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> Self {
        Self::Make(error.to_string())
    }
}

/// A part of an authority in PEM, and the key under which its Secret holds it.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    /// The key in the Secret.
    pub key: &'static str,
    /// The value; empty if there is none.
    pub pem: &'a [u8],
}

impl Part<'_> {
    fn wrong(&self, problem: impl Into<String>) -> AuthorityError {
        AuthorityError::Part { key: self.key, problem: problem.into() }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        tls::certificates(self.pem).ok_or_else(|| self.wrong("not certificates in PEM"))
    }
}

/// The parts of an authority.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    /// The certificate whose key signs.
    pub certificate: Part<'a>,
    /// Its private key.
    pub private_key: Part<'a>,
    /// The certificates from the signing one to the root; may be empty if the root signs.
    pub chain: Part<'a>,
    /// The roots to trust; may be empty if the root signs.
    pub roots: Part<'a>,
}

/// An authority. Its private key never leaves it.
pub(crate) struct Authority {
    issuer: Issuer<'static, AuthorityKey>,
    /// The certificate of its key.
    own: CertificateDer<'static>,
    /// The certificates that follow a workload's in its chain, without the root.
    intermediates: Vec<CertificateDer<'static>>,
    /// The root that signed the first of them.
    root: CertificateDer<'static>,
    /// All roots to trust, that one included.
    roots: Vec<CertificateDer<'static>>,
    /// Until when all certificates of the chain are valid.
    valid_until: SystemTime,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("valid_until", &self.valid_until).finish_non_exhaustive()
    }
}

/// A certificate that an authority has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Issued {
    /// The certificate and its intermediates, each in PEM.
    pub chain: Vec<String>,
    /// Until when it is valid.
    pub valid_until: SystemTime,
}

impl Authority {
    /// Reads an authority, and checks that those who trust its roots accept the certificates that it signs.
    ///
    /// # Errors
    /// Which part is wrong, and how.
    pub(super) fn read(parts: &Parts<'_>, now: SystemTime) -> Result<Self, AuthorityError> {
        let Parts { certificate, private_key, chain, roots } = parts;
        let key = AuthorityKey::from_pem(private_key.pem)
            .map_err(|problem| private_key.wrong(problem))?;
        let own = certificate.certificates()?;
        let signing = own.first().ok_or_else(|| certificate.wrong("contains no certificate"))?;
        let x509 = x509(signing).ok_or_else(|| certificate.wrong("not an X.509 certificate"))?;
        check_signing(&x509).map_err(|problem| certificate.wrong(problem))?;
        if x509.public_key().raw != key.public_key() {
            return Err(
                private_key.wrong(format!("does not fit the certificate in {}", certificate.key))
            );
        }
        let self_signed = x509.subject() == x509.issuer();
        let mut trusted = roots.certificates()?;
        if trusted.is_empty() {
            if !self_signed {
                return Err(roots.wrong(format!(
                    "missing, though the certificate in {} is not a root",
                    certificate.key
                )));
            }
            trusted.push(signing.clone());
        }
        let mut intermediates: Vec<CertificateDer<'static>> = Vec::new();
        for next in own.iter().cloned().chain(chain.certificates()?) {
            if !trusted.contains(&next) && !intermediates.contains(&next) {
                intermediates.push(next);
            }
        }
        let root = root_of(intermediates.last().unwrap_or(signing), &trusted)
            .ok_or_else(|| roots.wrong("contains no root that signed the chain"))?;
        let valid_until = intermediates.iter().chain([&root]).filter_map(|der| end(der)).min();
        let authority = Self {
            issuer: Issuer::from_ca_cert_der(signing, key)?,
            own: signing.clone(),
            intermediates,
            root,
            roots: trusted,
            valid_until: valid_until.unwrap_or(now),
        };
        authority.check(now).map_err(|problem| certificate.wrong(problem))?;
        Ok(authority)
    }

    /// Makes a root that is valid for some time, and returns its certificate and its key in PEM.
    ///
    /// # Errors
    /// The system provides no randomness.
    pub(super) fn make(
        trust_domain: &str,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<(String, String), AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain);
        // Roots that are trusted at the same time have different names.
        let number = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        params.distinguished_name.push(DnType::CommonName, format!("weir root {number}"));
        params.not_before = OffsetDateTime::from(now - BACKDATED);
        params.not_after = OffsetDateTime::from(now + lifetime);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial_number()?);
        Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
    }

    /// Signs a certificate for a workload: for its SPIFFE ID, as client and as server.
    ///
    /// # Errors
    /// The authority has expired, or the id is not ASCII.
    pub(crate) fn sign_workload(
        &self,
        spiffe_id: &str,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        self.sign(vec![SanType::URI(Ia5String::try_from(spiffe_id)?)], key, lifetime, now)
    }

    /// Signs a certificate for a server with these DNS names or addresses.
    ///
    /// # Errors
    /// The authority has expired, or a name is not valid.
    pub(crate) fn sign_server(
        &self,
        names: &[String],
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        let names = CertificateParams::new(names)?.subject_alt_names;
        self.sign(names, key, lifetime, now)
    }

    fn sign(
        &self,
        names: Vec<SanType>,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        if self.valid_until <= now {
            return Err(AuthorityError::Make("the authority's certificate has expired".to_owned()));
        }
        let valid_until = (now + lifetime.min(LONGEST_LIFETIME)).min(self.valid_until);
        let mut params = CertificateParams::default();
        // Without a subject the names are critical, as SPIFFE's X.509-SVID, section 2, wants it.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.not_before = OffsetDateTime::from(now - BACKDATED);
        params.not_after = OffsetDateTime::from(valid_until);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial_number()?);
        let certificate = params.signed_by(key, &self.issuer)?;
        let rest = self.intermediates.iter().map(|der| pem(der));
        let chain = std::iter::once(certificate.pem()).chain(rest).collect();
        Ok(Issued { chain, valid_until })
    }

    /// Whether another authority signs and is trusted in the same way.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.own == other.own
            && self.intermediates == other.intermediates
            && self.root == other.root
            && self.roots == other.roots
    }

    /// The root of its chain.
    pub(super) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The roots to trust.
    pub(crate) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Until when all certificates of its chain are valid.
    pub(crate) fn valid_until(&self) -> SystemTime {
        self.valid_until
    }

    /// Makes a certificate and checks it as its peers would, whose clocks may be ahead.
    fn check(&self, now: SystemTime) -> Result<(), String> {
        let left = self.valid_until.duration_since(now).unwrap_or_default();
        let now = now + BACKDATED.min(left / 2);
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let probe = self
            .sign_workload("spiffe://probe/ns/probe/sa/probe", &key, Duration::from_secs(600), now)
            .map_err(|error| error.to_string())?;
        let leaf = probe
            .chain
            .first()
            .and_then(|leaf| CertificateDer::from_pem_slice(leaf.as_bytes()).ok());
        let leaf = leaf.ok_or("the certificates that it signs cannot be read")?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates([self.root.clone()]);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider())
                .build()
                .map_err(|error| error.to_string())?;
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        verifier
            .verify_client_cert(&leaf, &self.intermediates, UnixTime::since_unix_epoch(since))
            .map(|_| ())
            .map_err(|error| format!("the certificates that it signs are not accepted: {error}"))
    }
}

/// A certificate in PEM.
pub(crate) fn pem(certificate: &CertificateDer<'_>) -> String {
    ::pem::encode_config(
        &::pem::Pem::new("CERTIFICATE", certificate.as_ref()),
        ::pem::EncodeConfig::new().set_line_ending(::pem::LineEnding::LF),
    )
}

/// When a certificate stops being valid; `None` if it cannot be parsed.
pub(crate) fn end(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let seconds = u64::try_from(x509(certificate)?.validity().not_after.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

fn x509<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    Some(parse_x509_certificate(certificate).ok()?.1)
}

/// Whether a certificate is one of an authority that is still valid.
pub(super) fn is_valid_root(certificate: &CertificateDer<'_>, now: SystemTime) -> bool {
    let may_sign = x509(certificate).is_some_and(|x509| check_signing(&x509).is_ok());
    may_sign && end(certificate).is_some_and(|end| end > now)
}

/// Checks that a certificate may sign others.
fn check_signing(certificate: &X509Certificate<'_>) -> Result<(), String> {
    if !certificate.is_ca() {
        return Err("not the certificate of an authority (basic constraint CA)".to_owned());
    }
    let usage = certificate.key_usage().map_err(|error| format!("key usage: {error}"))?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("its key usage does not allow it to sign certificates".to_owned());
    }
    Ok(())
}

/// The root that signed a certificate, which may be a root itself.
fn root_of(
    certificate: &CertificateDer<'_>,
    roots: &[CertificateDer<'static>],
) -> Option<CertificateDer<'static>> {
    let signed = x509(certificate)?;
    roots
        .iter()
        .find(|root| {
            x509(root).is_some_and(|root| {
                root.subject() == signed.issuer()
                    && signed.verify_signature(Some(root.public_key())).is_ok()
            })
        })
        .cloned()
}

/// A random serial number of 128 bits. Source: RFC 5280, section 4.1.2.2.
fn serial_number() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| AuthorityError::Make("the system provides no randomness".to_owned()))?;
    Ok(SerialNumber::from(bytes.to_vec()))
}
