//! Certificates that live for a minute or less, under load, with a new root in the middle: no request fails. The server is an
//! Envoy that gets its certificate and roots over ADS, the client one that has its own signed, as Istio's agent does; each
//! request is a handshake.
//!
//! `WEIR_CERTIFICATES=10m` says for how long, with certificates of 60 s; the usual run is short, with certificates of 20 s.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use weir::envoy::Admin;

use crate::identity::{ByRoots, Files, NAME, World, tls_listener};
use crate::support::mesh::until;
use crate::support::process::free_port;
use crate::support::say;
use crate::support::sidecar::{admin_address, start_envoy};

/// How long it lasts, and in seconds how long certificates live, and how long clients have to learn of a new root, which
/// they do at half of that life.
fn times() -> (Duration, u64, u64) {
    match std::env::var("WEIR_CERTIFICATES") {
        Ok(text) => {
            let minutes = text.strip_suffix('m').map(|minutes| (minutes, 60));
            let (number, unit) = minutes.unwrap_or((text.trim_end_matches('s'), 1));
            let number: u64 = number.parse().expect("WEIR_CERTIFICATES is like 10m or 90s");
            (Duration::from_secs(number * unit), 60, 60)
        }
        Err(_) => (Duration::from_secs(60), 20, 20),
    }
}

/// TLS with a chain as the certificate service answers with, whose last part are the roots.
fn mutual(chain: &[String], key: &KeyPair) -> Arc<ClientConfig> {
    let (roots, chain) = chain.split_last().unwrap();
    let chain = chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ByRoots::new(roots)))
        .with_client_auth_cert(chain.collect(), key);
    config.unwrap().into()
}

/// One request over a connection of its own.
async fn request(port: u16, tls: Arc<ClientConfig>) -> std::io::Result<()> {
    let socket = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from(NAME).unwrap();
    let mut stream = TlsConnector::from(tls).connect(name, socket).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await?;
    // Envoy takes its time to close the connection; the answer has no body.
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut said).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    if said.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    Err(std::io::Error::other(String::from_utf8_lossy(&said).into_owned()))
}

/// What the load comes to.
#[derive(Debug, Default)]
struct Load {
    stop: AtomicBool,
    succeeded: AtomicU64,
}

impl Load {
    /// Sends one request after the other until it is to stop.
    async fn run(self: Arc<Self>, port: u16, tls: watch::Receiver<Arc<ClientConfig>>) {
        while !self.stop.load(Ordering::Relaxed) {
            let config = tls.borrow().clone();
            request(port, config).await.expect("each request succeeds");
            self.succeeded.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_certificates_and_the_root_are_replaced() {
    let test = "no_request_fails_while_certificates_and_the_root_are_replaced";
    let (length, life, delay) = times();
    let [life_text, delay] = [life, delay].map(|seconds| seconds.to_string());
    let more =
        ["--tls-name", "127.0.0.1", "--certificate-lifetime", &life_text, "--root-delay", &delay];
    let Some(mut world) = World::start(test, &more).await else {
        return;
    };
    let port = free_port();
    let mut server = tls_listener(port);
    server["filter_chains"][0]["transport_socket"]["typed_config"]["require_client_certificate"] =
        true.into();
    let files = Files::new(&world.token("web", Some("web-0"), "istio-ca"), &world.roots);
    let bootstrap = files.bootstrap_of(&world, "web", &[], json!({"listeners": [server]}));
    let _envoy = start_envoy(files.0.path(), "envoy", &bootstrap).await;

    let token = world.token("pay", Some("pay-0"), "istio-ca");
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let first = mutual(&world.sign(Some(&token), &csr, 0).await.unwrap(), &key);
    let (sender, tls) = watch::channel(first);
    until("the first request succeeds", async || {
        // Envoy may take longer to start than a certificate lives.
        let chain = world.sign(Some(&token), &csr, 0).await.unwrap();
        sender.send_replace(mutual(&chain, &key));
        let config = tls.borrow().clone();
        request(port, config).await.is_ok()
    })
    .await;

    let (load, mut workers) = (Arc::new(Load::default()), JoinSet::new());
    for _ in 0..2 {
        workers.spawn(load.clone().run(port, tls.clone()));
    }
    let (begun, mut provided) = (Instant::now(), None);
    while begun.elapsed() < length {
        let chain = world.sign(Some(&token), &csr, 0).await.unwrap();
        world.roots.clone_from(chain.last().unwrap());
        sender.send_replace(mutual(&chain, &key));
        if begun.elapsed() > length / 3 {
            provided.get_or_insert_with(|| world.provide());
        }
        // As Istio's agent does: half of a life is used.
        tokio::time::sleep(Duration::from_secs(life) / 2).await;
    }
    let provided = provided.unwrap();
    world.roots_in("shop", |roots| roots.starts_with(&provided)).await;
    load.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = workers.join_next().await {
        ended.unwrap();
    }
    let admin = admin_address(files.0.path(), "envoy").unwrap();
    let count = Admin::new(admin).get("/stats?filter=^sds.default.update_success$").await.unwrap();
    let count = String::from_utf8_lossy(&count).trim().to_owned();
    let succeeded = load.succeeded.load(Ordering::Relaxed);
    say(&format!("{succeeded} requests within {} s; {count}", length.as_secs()));
    let certificates: u64 = count.rsplit_once(": ").unwrap().1.parse().unwrap();
    assert!(certificates >= 3, "{count}");
}
