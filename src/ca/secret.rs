//! The Secrets that hold an authority, by the names and keys that Istio and cert-manager use.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::authority::{Authority, AuthorityError, Part, Parts};

/// The Secret with an authority that people or cert-manager provide. It comes first.
pub(super) const PROVIDED: &str = "cacerts";

/// The Secret with a root that weir, or Istio before it, has made.
pub(super) const MADE: &str = "istio-ca-secret";

/// The type of [`MADE`], as in Istio.
const MADE_TYPE: &str = "istio.io/ca-root";

/// What is known about the Secrets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Nothing yet.
    #[default]
    Unknown,
    /// None of them exists.
    Absent,
    /// One of them exists.
    Present,
    /// Only [`MADE`] exists, and it is near its end.
    Aging,
}

/// The keys of the parts: Istio's, and those of cert-manager, which has no chain of its own.
const ISTIO: Keys = Keys {
    certificate: "ca-cert.pem",
    private_key: "ca-key.pem",
    chain: "cert-chain.pem",
    roots: "root-cert.pem",
};
const CERT_MANAGER: Keys =
    Keys { certificate: "tls.crt", private_key: "tls.key", chain: "", roots: "ca.crt" };

struct Keys {
    certificate: &'static str,
    private_key: &'static str,
    chain: &'static str,
    roots: &'static str,
}

/// Reads the authority in a Secret.
///
/// # Errors
/// Which key of the Secret is wrong, and how.
pub(super) fn read(secret: &Secret, now: SystemTime) -> Result<Authority, AuthorityError> {
    let none = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&none);
    let keys = match data.contains_key(CERT_MANAGER.certificate) {
        true => CERT_MANAGER,
        false => ISTIO,
    };
    let part = |key: &'static str| Part {
        key,
        pem: data.get(key).map(|value| value.0.as_slice()).unwrap_or_default(),
    };
    let parts = Parts {
        certificate: part(keys.certificate),
        private_key: part(keys.private_key),
        chain: part(keys.chain),
        roots: part(keys.roots),
    };
    Authority::read(&parts, now)
}

/// The label of a Secret that weir has made.
const OWNER: (&str, &str) = ("app.kubernetes.io/name", "weir");

/// Whether weir has made a Secret. It leaves the root of Istiod to Istiod.
pub(super) fn is_own(secret: &Secret) -> bool {
    let labels = secret.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(OWNER.0)).is_some_and(|name| name == OWNER.1)
}

/// Makes a root that is valid for some time, in the Secret that is to hold it.
///
/// # Errors
/// The system provides no randomness.
pub(super) fn make(
    trust_domain: &str,
    now: SystemTime,
    lifetime: Duration,
) -> Result<Secret, AuthorityError> {
    let (certificate, key) = Authority::make(trust_domain, now, lifetime)?;
    let labels = [(OWNER.0.to_owned(), OWNER.1.to_owned())];
    let data = [
        (ISTIO.certificate.to_owned(), ByteString(certificate.into_bytes())),
        (ISTIO.private_key.to_owned(), ByteString(key.into_bytes())),
    ];
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(MADE.to_owned()),
            labels: Some(labels.into()),
            ..ObjectMeta::default()
        },
        type_: Some(MADE_TYPE.to_owned()),
        data: Some(data.into()),
        ..Secret::default()
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;

    use super::super::request;
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A root that weir makes.
    pub(crate) fn root(now: SystemTime) -> Arc<Authority> {
        let made = make("cluster.local", now, HOUR * 24 * 3650).unwrap();
        read(&made, SystemTime::now()).unwrap().into()
    }

    fn secret<const N: usize>(data: [(&str, &str); N]) -> Secret {
        let data = data.map(|(key, value)| (key.to_owned(), ByteString(value.into())));
        Secret { data: Some(data.into()), ..Secret::default() }
    }

    fn problem(secret: &Secret) -> String {
        read(secret, SystemTime::now()).unwrap_err().to_string()
    }

    /// A CA named `name` with a new key.
    fn ca_params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    /// A root, an intermediate authority, and its key, in PEM.
    fn intermediate() -> (String, String, String) {
        let root =
            CertifiedIssuer::self_signed(ca_params("root"), KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let signing = ca_params("intermediate").signed_by(&key, &root).unwrap();
        (root.pem(), signing.pem(), key.serialize_pem())
    }

    #[test]
    fn an_intermediate_authority_signs_with_its_chain() {
        let (root, signing, key) = intermediate();
        let chain = format!("{signing}{root}");
        let istio = secret([
            ("ca-cert.pem", signing.as_str()),
            ("ca-key.pem", &key),
            ("cert-chain.pem", &chain),
            ("root-cert.pem", &root),
        ]);
        let cert_manager =
            secret([("tls.crt", signing.as_str()), ("tls.key", &key), ("ca.crt", &root)]);
        for stored in [istio, cert_manager] {
            let now = SystemTime::now();
            let authority = read(&stored, now).unwrap();
            let leaf = KeyPair::generate().unwrap();
            let issued = authority
                .sign_workload("spiffe://cluster.local/ns/shop/sa/web", &leaf, HOUR, now)
                .unwrap();
            let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            let chain: Vec<_> = issued.chain.iter().map(|pem| der(pem)).collect();
            assert_eq!(chain[1..], [der(&signing)]);
            let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
            assert!(leaf.subject().iter().next().is_none());
            let names = leaf.subject_alternative_name().unwrap().unwrap();
            assert!(names.critical);
            assert_eq!(
                format!("{:?}", names.value.general_names),
                r#"[URI("spiffe://cluster.local/ns/shop/sa/web")]"#
            );
        }
    }

    #[test]
    fn a_certificate_does_not_outlive_its_authority_or_90_days() {
        let now = SystemTime::now();
        let root = root(now);
        let key = KeyPair::generate().unwrap();
        let until = |lifetime, now| root.sign_workload("spiffe://a/b", &key, lifetime, now);
        assert_eq!(until(HOUR, now).unwrap().valid_until, now + HOUR);
        assert_eq!(until(HOUR * 24 * 1000, now).unwrap().valid_until, now + HOUR * 24 * 90);
        let late = root.valid_until() - HOUR / 2;
        assert_eq!(until(HOUR, late).unwrap().valid_until, root.valid_until());
        let expired = until(HOUR, root.valid_until()).unwrap_err().to_string();
        assert_eq!(expired, "cannot make a certificate: the authority's certificate has expired");
    }

    #[test]
    fn a_part_that_is_wrong_is_named() {
        let (root, signing, key) = intermediate();
        let (other_root, _, other_key) = intermediate();
        let istio = |certificate: &str, key: &str, root: &str| {
            problem(&secret([
                ("ca-cert.pem", certificate),
                ("ca-key.pem", key),
                ("root-cert.pem", root),
            ]))
        };
        assert_eq!(
            problem(&Secret::default()),
            "ca-key.pem: not a private key in PEM (an encrypted key cannot be read)"
        );
        assert_eq!(istio("", &key, &root), "ca-cert.pem: contains no certificate");
        assert_eq!(
            istio(&signing, &key, ""),
            "root-cert.pem: missing, though the certificate in ca-cert.pem is not a root"
        );
        assert_eq!(
            istio(&signing, &other_key, &root),
            "ca-key.pem: does not fit the certificate in ca-cert.pem"
        );
        assert_eq!(
            istio(&signing, &key, &other_root),
            "root-cert.pem: contains no root that signed the chain"
        );
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::default().self_signed(&leaf_key).unwrap().pem();
        assert_eq!(
            istio(&leaf, &leaf_key.serialize_pem(), &root),
            "ca-cert.pem: not the certificate of an authority (basic constraint CA)"
        );
        let mut expired = ca_params("expired");
        expired.not_after = time::OffsetDateTime::now_utc() - HOUR;
        let expired = expired.self_signed(&leaf_key).unwrap().pem();
        assert!(
            istio(&expired, &leaf_key.serialize_pem(), "")
                .starts_with("ca-cert.pem: cannot make a certificate: the authority's certificate"),
        );
    }

    #[test]
    fn a_request_proves_that_its_sender_has_the_key() {
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::new(["evil.example".to_owned()]).unwrap();
        let request = request.serialize_request(&key).unwrap().pem().unwrap();
        assert!(request::public_key(&request).is_ok());
        let wrong = |text: &str| request::public_key(text).unwrap_err();
        assert_eq!(wrong(""), "it is not a CERTIFICATE REQUEST in PEM");
        assert_eq!(wrong(&key.serialize_pem()), "it is not a CERTIFICATE REQUEST in PEM");
        assert!(wrong(&"x".repeat(9000)).starts_with("it has 9000 bytes"));
        let mut changed = pem::parse(&request).unwrap().into_contents();
        *changed.last_mut().unwrap() ^= 1;
        let changed = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", changed));
        assert!(
            wrong(&changed).starts_with("its signature is not by its key"),
            "{}",
            wrong(&changed)
        );
    }
}
