//! Test certificates: two authorities, and server and client certificates, as PEM files in one folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The identity of the test's mesh workloads.
pub(crate) const WORKLOAD: &str = "spiffe://cluster.local/ns/shop/sa/server";

/// The folder with the files:
///
/// | files | what |
/// |---|---|
/// | `ca.pem`, `other-ca.pem` | the authorities; the second has signed nothing |
/// | `server.pem`, `server-key.pem` | for `secure.test`, `*.secure.test` and `*.wild.secure.test` |
/// | `client.pem`, `client-key.pem` | for `client.test` |
/// | `collector.pem`, `collector-key.pem` | for `localhost` |
/// | `workload.pem`, `workload-key.pem` | for [`WORKLOAD`] |
#[derive(Debug, Clone)]
pub(crate) struct Certificates {
    pub folder: PathBuf,
}

impl Certificates {
    pub(crate) fn make(folder: &Path) -> Self {
        let this = Self { folder: folder.to_owned() };
        let ca = this.authority("ca");
        this.authority("other-ca");
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        this.signed(
            "server",
            &ca,
            ["secure.test", "*.secure.test", "*.wild.secure.test"].map(dns).to_vec(),
        );
        this.signed("client", &ca, vec![dns("client.test")]);
        this.signed("collector", &ca, vec![dns("localhost")]);
        this.signed("workload", &ca, vec![SanType::URI(WORKLOAD.try_into().unwrap())]);
        this
    }

    /// The path of one of the files.
    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// The content of one of the files.
    pub(crate) fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).unwrap()
    }

    /// The certificate in one of the files.
    pub(crate) fn certificate(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.folder.join(name)).unwrap()
    }

    /// Server-side TLS: presents the workload certificate for mesh SNIs and the server certificate otherwise; client
    /// certificates are optional but must be signed by the authority.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), provider.clone());
        let verifier = verifier.allow_unauthenticated().build().unwrap();
        let key = |name: &str| {
            let key =
                PrivateKeyDer::from_pem_file(self.folder.join(format!("{name}-key.pem"))).unwrap();
            let certificate = self.certificate(&format!("{name}.pem"));
            Arc::new(CertifiedKey::from_der(vec![certificate], key, &provider).unwrap())
        };
        let shown = Arc::new(BySni { server: key("server"), workload: key("workload") });
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions();
        let mut config =
            builder.unwrap().with_client_cert_verifier(verifier).with_cert_resolver(shown);
        config.alpn_protocols = ["h2", "http/1.1", "istio"].map(Into::into).to_vec();
        Arc::new(config).into()
    }

    /// Client-side TLS that trusts the authority.
    pub(crate) fn connector(&self) -> TlsConnector {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(self.roots()).with_no_client_auth()).into()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate("ca.pem")).unwrap();
        roots
    }

    fn authority(&self, name: &str) -> Issuer<'static, KeyPair> {
        let key = KeyPair::generate().unwrap();
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        self.write(name, &params.self_signed(&key).unwrap().pem());
        Issuer::new(params, key)
    }

    fn signed(&self, name: &str, by: &Issuer<'_, KeyPair>, names: Vec<SanType>) {
        let key = KeyPair::generate().unwrap();
        let mut params = named(name);
        params.subject_alt_names = names;
        self.write(name, &params.signed_by(&key, by).unwrap().pem());
        self.write(&format!("{name}-key"), &key.serialize_pem());
    }

    fn write(&self, name: &str, pem: &str) {
        std::fs::write(self.folder.join(format!("{name}.pem")), pem).unwrap();
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

#[derive(Debug)]
struct BySni {
    server: Arc<CertifiedKey>,
    workload: Arc<CertifiedKey>,
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let of_mesh = hello.server_name().is_some_and(|name| name.starts_with("outbound_"));
        Some(if of_mesh { self.workload.clone() } else { self.server.clone() })
    }
}

/// The TLS parameters that a client presented.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub sni: Option<String>,
    pub alpn: Option<String>,
    pub certificate: Option<CertificateDer<'static>>,
}

impl Shown {
    pub(crate) fn of(connection: &ServerConnection) -> Self {
        let first = connection.peer_certificates().and_then(<[_]>::first);
        Self {
            sni: connection.server_name().map(str::to_owned),
            alpn: connection.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
            certificate: first.cloned(),
        }
    }
}
