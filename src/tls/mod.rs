//! Makes certificates, reads them, and presents the newest one in TLS handshakes. Private keys are never printed.

mod folder;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;
use parking_lot::RwLock;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::OffsetDateTime;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier as _;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use x509_parser::parse_x509_certificate;

pub(crate) use folder::follow_folder;

/// The protocols that the listener speaks.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// How much earlier than now a certificate becomes valid: clocks of nodes differ.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    /// It cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// It is not PEM, or contains none.
    #[error("{0} is not a PEM file with a {1}")]
    Pem(&'static str, &'static str),
    /// It cannot be read, or does not fit its key.
    #[error("{0}")]
    Unusable(String),
}

/// A certificate with its key, both in PEM.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct KeyedCertificate {
    /// The certificate chain.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

impl fmt::Debug for KeyedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedCertificate").finish_non_exhaustive()
    }
}

/// A certificate, and the authority that has signed it. The authority's key is gone: it signs nothing else.
#[derive(Clone, Debug)]
pub(crate) struct IssuedCertificate {
    pub certificate: KeyedCertificate,
    /// The authority's certificate in PEM.
    pub authority: String,
}

/// Makes an authority, and a certificate for a server with these names.
pub(crate) fn issue(
    names: &[String],
    now: SystemTime,
    lifetime: Duration,
) -> Result<IssuedCertificate, CertificateError> {
    let key = KeyPair::generate()?;
    let mut authority = params(&[], now, lifetime)?;
    // Authorities that are trusted at the same time have different names.
    let number = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    authority.distinguished_name.push(DnType::CommonName, format!("weir webhook {number}"));
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_pem = authority.self_signed(&key)?.pem();
    let issuer = Issuer::new(authority, key);

    let key = KeyPair::generate()?;
    let mut server = params(names, now, lifetime)?;
    server.distinguished_name.push(DnType::CommonName, "weir webhook");
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;
    let certificate = server.signed_by(&key, &issuer)?.pem();
    let certificate = KeyedCertificate { certificate, key: key.serialize_pem() };
    Ok(IssuedCertificate { certificate, authority: authority_pem })
}

fn params(
    names: &[String],
    now: SystemTime,
    lifetime: Duration,
) -> Result<CertificateParams, CertificateError> {
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = OffsetDateTime::from(now - BACKDATED);
    params.not_after = OffsetDateTime::from(now + lifetime);
    Ok(params)
}

/// A certificate that TLS can use.
#[derive(Clone, Debug)]
pub(crate) struct ServedCertificate {
    key: Arc<CertifiedKey>,
    /// Until when it is valid.
    pub valid_until: Timestamp,
}

impl ServedCertificate {
    /// Reads a certificate chain and its key, in PEM.
    ///
    /// # Errors
    /// They cannot be read, or do not belong together.
    pub(crate) fn read(certificate: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain =
            certificates(certificate).ok_or(CertificateError::Pem("tls.crt", "certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| CertificateError::Pem("tls.key", "private key"))?;
        let first = chain.first().ok_or(CertificateError::Pem("tls.crt", "certificate"))?;
        let valid_until = valid_until(first).ok_or_else(|| {
            CertificateError::Unusable("tls.crt is not an X.509 certificate".to_owned())
        })?;
        let key =
            CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| {
                CertificateError::Unusable(format!("tls.key does not fit tls.crt: {error}"))
            })?;
        Ok(Self { key: Arc::new(key), valid_until })
    }

    pub(crate) fn of(pair: &KeyedCertificate) -> Result<Self, CertificateError> {
        Self::read(pair.certificate.as_bytes(), pair.key.as_bytes())
    }

    /// Whether a client that trusts these authorities, in PEM, accepts it for all of these names. This is the check that
    /// the API server makes.
    pub(crate) fn is_accepted(&self, authorities: &str, names: &[String], now: SystemTime) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates(authorities.as_bytes()).unwrap_or_default());
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let Ok(verifier) =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()
        else {
            // Without any authority.
            return false;
        };
        let Some((server, chain)) = self.key.cert.split_first() else {
            return false;
        };
        names.iter().all(|name| {
            let name = ServerName::try_from(name.as_str());
            name.is_ok_and(|name| {
                let now = UnixTime::since_unix_epoch(since);
                verifier.verify_server_cert(server, chain, &name, &[], now).is_ok()
            })
        })
    }
}

/// The certificates of a PEM file; `None` if it is not one.
pub(crate) fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()
}

fn valid_until(certificate: &[u8]) -> Option<Timestamp> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

/// The authorities among these, in PEM, that are still valid. What is not a certificate is dropped.
pub(crate) fn still_valid(authorities: &str, now: SystemTime) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    let now = Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH);
    let each = authorities.split_inclusive(END).filter_map(|text| {
        let text = text.get(text.find("-----BEGIN CERTIFICATE-----")?..)?;
        let certificate = CertificateDer::from_pem_slice(text.as_bytes()).ok()?;
        (valid_until(&certificate)? > now).then(|| format!("{text}\n"))
    });
    each.collect()
}

/// Presents the newest certificate.
#[derive(Debug, Default)]
pub(crate) struct Presenter(RwLock<Option<Arc<CertifiedKey>>>);

impl Presenter {
    /// Presents another certificate from now on. Returns whether it is another one.
    pub(crate) fn present(&self, certificate: ServedCertificate) -> bool {
        let mut current = self.0.write();
        let same = current.as_ref().is_some_and(|current| current.cert == certificate.key.cert);
        *current = Some(certificate.key);
        !same
    }
}

impl ResolvesServerCert for Presenter {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().clone()
    }
}

/// The cryptography of all TLS.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// TLS without client certificates: what the webhook answers is not secret, and the API server presents none by default.
pub(crate) fn server_config(
    presenter: Arc<Presenter>,
) -> Result<Arc<ServerConfig>, CertificateError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| CertificateError::Unusable(error.to_string()))?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(presenter);
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn names() -> Vec<String> {
        vec!["weir.weir-system.svc".to_owned()]
    }

    #[test]
    fn a_certificate_is_accepted_by_who_trusts_its_authority_and_as_long_as_it_is_valid() {
        let now = SystemTime::now();
        let [made, other] = [0, 1].map(|_| issue(&names(), now, DAY).unwrap());
        let served = ServedCertificate::of(&made.certificate).unwrap();
        let both = format!("{}{}", other.authority, made.authority);
        assert!(served.is_accepted(&made.authority, &names(), now));
        assert!(served.is_accepted(&both, &names(), now));
        assert!(!served.is_accepted(&other.authority, &names(), now));
        assert!(!served.is_accepted("", &names(), now));
        assert!(!served.is_accepted(&both, &["weir.other.svc".to_owned()], now));
        assert!(!served.is_accepted(&both, &names(), now + 2 * DAY));
        assert!(served.is_accepted(&both, &names(), now - DAY / 48), "clocks differ");
        let left = served.valid_until.as_second() - Timestamp::now().as_second();
        assert!((86_390..=86_400).contains(&left), "{left}");
    }

    fn error(certificate: &str, key: &str) -> String {
        ServedCertificate::read(certificate.as_bytes(), key.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_served_says_which_file_is_wrong_and_never_shows_a_key() {
        let now = SystemTime::now();
        let [a, b] = [0, 1].map(|_| issue(&names(), now, DAY).unwrap().certificate);
        assert!(error(&a.certificate, &b.key).starts_with("tls.key does not fit tls.crt"));
        assert_eq!(error("", &a.key), "tls.crt is not a PEM file with a certificate");
        assert_eq!(error(&a.certificate, "x"), "tls.key is not a PEM file with a private key");
        assert_eq!(error(&a.key, &a.key), "tls.crt is not a PEM file with a certificate");
        assert!(!format!("{a:?}").contains("PRIVATE"), "{a:?}");
    }

    #[test]
    fn authorities_that_have_expired_are_dropped() {
        let now = SystemTime::now();
        let [old, new] = [DAY, 3 * DAY].map(|time| issue(&names(), now, time).unwrap().authority);
        let both = format!("{old}not a certificate\n{new}");
        let kept = still_valid(&both, now);
        assert_eq!(kept.matches("BEGIN CERTIFICATE").count(), 2);
        assert_eq!(still_valid(&kept, now), kept);
        let later = still_valid(&both, now + 2 * DAY);
        assert_eq!(later.matches("BEGIN CERTIFICATE").count(), 1);
        assert!(new.contains(later.lines().nth(1).unwrap()));
    }

    #[test]
    fn an_address_can_be_a_name() {
        let made = issue(&["127.0.0.1".to_owned()], SystemTime::now(), DAY).unwrap();
        let served = ServedCertificate::of(&made.certificate).unwrap();
        let names = [IpAddr::from([127, 0, 0, 1]).to_string()];
        assert!(served.is_accepted(&made.authority, &names, SystemTime::now()));
    }
}
