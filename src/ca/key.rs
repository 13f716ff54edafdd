//! The private key of an authority, of each kind that Istio's Secrets may hold.

use std::fmt;
use std::sync::Arc;

use rcgen::{
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData,
    SignatureAlgorithm, SubjectPublicKeyInfo,
};
use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::crypto::ring::sign::any_supported_type;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::sign;

/// The signatures that an authority can make. A key fits one of them.
static SIGNATURES: [(SignatureScheme, &SignatureAlgorithm); 4] = [
    (SignatureScheme::ECDSA_NISTP256_SHA256, &PKCS_ECDSA_P256_SHA256),
    (SignatureScheme::ECDSA_NISTP384_SHA384, &PKCS_ECDSA_P384_SHA384),
    (SignatureScheme::ED25519, &PKCS_ED25519),
    (SignatureScheme::RSA_PKCS1_SHA256, &PKCS_RSA_SHA256),
];

/// The private key of an authority. It is never printed.
///
/// rustls reads and uses it, because rcgen reads no PKCS #1, which is the form of RSA keys in Istio's Secrets.
pub(super) struct AuthorityKey {
    key: Arc<dyn sign::SigningKey>,
    scheme: SignatureScheme,
    algorithm: &'static SignatureAlgorithm,
    /// Its public half, as in the certificate.
    public: SubjectPublicKeyInfo,
}

impl fmt::Debug for AuthorityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityKey").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

impl AuthorityKey {
    /// Reads a private key in PEM: PKCS #8, PKCS #1 (RSA) or SEC 1 (ECDSA).
    ///
    /// # Errors
    /// What is wrong with it, in words that do not show it.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = PrivateKeyDer::from_pem_slice(pem)
            .map_err(|_| "not a private key in PEM (an encrypted key cannot be read)".to_owned())?;
        let supported = "RSA of 2048 to 4096 bits, ECDSA with P-256 or P-384, or Ed25519";
        let unsupported =
            || format!("a private key of a kind that is not supported; use {supported}");
        let key = any_supported_type(&der).map_err(|_| unsupported())?;
        let (scheme, algorithm) = SIGNATURES
            .into_iter()
            .find(|(scheme, _)| key.choose_scheme(&[*scheme]).is_some())
            .ok_or_else(unsupported)?;
        let public = key.public_key().ok_or_else(unsupported)?;
        let public = SubjectPublicKeyInfo::from_der(&public).map_err(|_| unsupported())?;
        Ok(Self { key, scheme, algorithm, public })
    }

    /// Its public half, DER of X.509's SubjectPublicKeyInfo.
    pub(super) fn public_key(&self) -> Vec<u8> {
        self.public.subject_public_key_info()
    }
}

impl PublicKeyData for AuthorityKey {
    fn der_bytes(&self) -> &[u8] {
        self.public.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl rcgen::SigningKey for AuthorityKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signer = self
            .key
            .choose_scheme(&[self.scheme])
            .ok_or(rcgen::Error::UnsupportedSignatureAlgorithm)?;
        signer.sign(message).map_err(|error| rcgen::Error::RingKeyRejected(error.to_string()))
    }
}
