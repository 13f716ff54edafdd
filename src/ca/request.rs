//! Reads certificate signing requests. Only the public key is taken from one: whose it is, the caller's token says.

use rcgen::SubjectPublicKeyInfo;
use tokio_rustls::rustls::pki_types::CertificateSigningRequestDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;

/// The largest request in bytes. One with an RSA key of 8192 bits takes half of it.
const LONGEST: usize = 8 << 10;

/// The sizes of RSA keys, in bits. Smaller ones are insecure, and larger ones cost too much to check.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The public key of a certificate signing request in PEM, whose signature proves that the sender has the private key.
///
/// # Errors
/// What is wrong with the request.
pub(super) fn public_key(pem: &str) -> Result<SubjectPublicKeyInfo, String> {
    if pem.len() > LONGEST {
        return Err(format!("it has {} bytes, and at most {LONGEST} are read", pem.len()));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| "it is not a CERTIFICATE REQUEST in PEM".to_owned())?;
    let request = match X509CertificationRequest::from_der(&der) {
        Ok(([], request)) => request,
        Ok(_) => return Err("bytes follow the PKCS #10 request".to_owned()),
        Err(_) => return Err("it is not a PKCS #10 request".to_owned()),
    };
    let key = &request.certification_request_info.subject_pki;
    if let Ok(PublicKey::RSA(rsa)) = key.parsed()
        && !RSA_BITS.contains(&rsa.key_size())
    {
        return Err(format!(
            "its RSA key has {} bits; {} to {} are accepted",
            rsa.key_size(),
            RSA_BITS.start(),
            RSA_BITS.end()
        ));
    }
    request.verify_signature().map_err(|_| {
        "its signature is not by its key, or of a kind that is not supported (use RSA, ECDSA with P-256 or P-384, or \
         Ed25519)"
            .to_owned()
    })?;
    SubjectPublicKeyInfo::from_der(key.raw)
        .map_err(|_| "its key is of a kind that is not supported".to_owned())
}
