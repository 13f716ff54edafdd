//! Certificates for a test: two authorities, and what servers and clients show, as PEM files in one folder.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

/// Who mesh workloads of the test run as.
pub const WORKLOAD: &str = "spiffe://cluster.local/ns/shop/sa/server";

/// The folder with the files:
///
/// | files | what |
/// |---|---|
/// | `ca.pem`, `other-ca.pem` | the authorities; the second has signed nothing |
/// | `server.pem`, `server-key.pem` | for `secure.test` and `www.secure.test` |
/// | `client.pem`, `client-key.pem` | for `client.test` |
/// | `workload.pem`, `workload-key.pem` | for [`WORKLOAD`] |
#[derive(Debug, Clone)]
pub struct Certificates {
    pub folder: PathBuf,
}

impl Certificates {
    pub fn make(folder: &Path) -> Self {
        let this = Self { folder: folder.to_owned() };
        let ca = this.authority("ca");
        this.authority("other-ca");
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        this.signed("server", &ca, vec![dns("secure.test"), dns("www.secure.test")]);
        this.signed("client", &ca, vec![dns("client.test")]);
        this.signed("workload", &ca, vec![SanType::URI(WORKLOAD.try_into().unwrap())]);
        this
    }

    /// The path of one of the files.
    pub fn file(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// What is in one of the files.
    pub fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).unwrap()
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
