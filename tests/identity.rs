//! The TLS port: who is served what, with tokens of a real API server, and certificates by Istio's certificate API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3 as pb;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::google::protobuf::{Struct, Value as PbValue, value::Kind};

use weir::envoy::{Admin, EnvoyBinary};

use crate::support::ads::CDS;
use crate::support::kube::KubeCluster;
use crate::support::mesh::{DEADLINE, Serve, until};
use crate::support::network::is_inside_of_pods;
use crate::support::process::{Launch, Supervised, free_port};
use crate::support::sidecar::start_envoy;

/// The name by which the tests know weir.
pub(crate) const NAME: &str = "weir.weir-system.svc";

const HOUR: Duration = Duration::from_secs(3600);

/// An API server with weir's manifests, the pods `web-0` and `web-1` of service account `web`, and `pay-0` of `pay`, in
/// namespace `shop`; and weir.
pub(crate) struct World {
    pub cluster: KubeCluster,
    pub serve: Serve,
    pub port: u16,
    pub roots: String,
}

impl World {
    pub(crate) async fn start(test: &str, more: &[&str]) -> Option<Self> {
        let cluster = KubeCluster::start(test)?;
        cluster.apply_crds();
        cluster.apply_kustomization("deploy", &[]);
        cluster.kubectl_ok(&["create", "namespace", "shop"]);
        for account in ["web", "pay"] {
            cluster.kubectl_ok(&["-n", "shop", "create", "serviceaccount", account]);
        }
        for (pod, account) in [("web-0", "web"), ("web-1", "web"), ("pay-0", "pay")] {
            cluster.apply(&pod_of(pod, account).to_string());
        }
        let account = cluster.kubeconfig_for_service_account("weir-system", "weir");
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let identity = ["--identity", "on", "--tls-listen", &listen, "--status-lease", "6"];
        let place = ["--kubeconfig", account.to_str().unwrap(), "--pod-namespace", "weir-system"];
        let serve = Serve::start(&[&identity[..], &place, more].concat(), free_port(), free_port());
        serve.ready().await;
        let mut world = Self { cluster, serve, port, roots: String::new() };
        world.roots = world.roots_in("shop", |roots| !roots.is_empty()).await;
        Some(world)
    }

    /// The roots that pods in a namespace are given, once they are as expected.
    pub(crate) async fn roots_in(
        &self,
        namespace: &str,
        expected: impl Fn(&str) -> bool,
    ) -> String {
        let api = Api::<ConfigMap>::namespaced(self.cluster.client().await, namespace);
        let mut roots = String::new();
        until("the roots are in the namespace", async || {
            let map = api.get_opt("istio-ca-root-cert").await.unwrap();
            let data = map.and_then(|map| map.data).unwrap_or_default();
            roots = data.get("root-cert.pem").cloned().unwrap_or_default();
            expected(&roots)
        })
        .await;
        roots
    }

    /// A token for a service account of `shop`, as kubelet would mount it into a pod.
    pub(crate) fn token(&self, account: &str, pod: Option<&str>, audience: &str) -> String {
        let mut args = vec!["create", "token", account, "-n", "shop", "--audience", audience];
        args.extend(
            ["--bound-object-kind", "Pod", "--bound-object-name"].iter().filter(|_| pod.is_some()),
        );
        args.extend(pod);
        self.cluster.kubectl_ok(&args).trim().to_owned()
    }

    async fn channel(&self) -> Channel {
        let (port, tls) = (self.port, TlsConnector::from(trusting(&self.roots)));
        let connect = tower_service_fn(move || {
            let tls = tls.clone();
            async move {
                let socket = TcpStream::connect(("127.0.0.1", port)).await?;
                let name = ServerName::try_from(NAME).unwrap();
                Ok(TokioIo::new(tls.connect(name, socket).await?))
            }
        });
        let endpoint = Endpoint::from_shared(format!("http://{NAME}")).unwrap();
        let mut connected = None;
        until("weir presents a certificate", async || {
            connected = endpoint.connect_with_connector(connect.clone()).await.ok();
            connected.is_some()
        })
        .await;
        connected.unwrap()
    }

    /// Asks for the clusters of a node, and returns how the stream goes on.
    pub(crate) async fn ask(&self, token: Option<&str>, node: &Node<'_>) -> Result<Stream, Status> {
        let mut client = AggregatedDiscoveryServiceClient::with_interceptor(
            self.channel().await,
            Bearer::new(token),
        );
        let (sender, requests) = tokio::sync::mpsc::channel(1);
        let request = pb::DiscoveryRequest {
            node: Some(node.encode()),
            type_url: CDS.to_owned(),
            ..Default::default()
        };
        sender.send(request).await.unwrap();
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut responses = client.stream_aggregated_resources(requests).await?.into_inner();
        let first = tokio::time::timeout(DEADLINE, responses.message()).await.unwrap()?;
        assert_eq!(first.unwrap().type_url, CDS);
        Ok(Stream { _sender: sender, responses })
    }

    async fn refused(&self, token: Option<&str>, node: &Node<'_>) -> String {
        let status = self.ask(token, node).await.err().expect("the node is refused");
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        status.message().to_owned()
    }

    pub(crate) async fn sign(
        &self,
        token: Option<&str>,
        csr: &str,
        seconds: i64,
    ) -> Result<Vec<String>, Status> {
        let mut client = tonic::client::Grpc::new(InterceptedService::new(
            self.channel().await,
            Bearer::new(token),
        ));
        client.ready().await.unwrap();
        let path = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
        let request = CertificateRequest { csr: csr.to_owned(), validity_duration: seconds };
        let codec = tonic_prost::ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let path = http::uri::PathAndQuery::from_static(path);
        let response = client.unary(Request::new(request), path, codec).await?;
        Ok(response.into_inner().cert_chain)
    }

    /// How many TokenReviews the API server has answered.
    async fn reviews(&self) -> u64 {
        let metrics = self.cluster.kubectl_ok(&["get", "--raw", "/metrics"]);
        let counts = metrics.lines().filter(|line| {
            line.starts_with("apiserver_request_total{") && line.contains("\"tokenreviews\"")
        });
        counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    }

    /// Provides a root in a Secret, and returns its certificate in the form in which weir writes it.
    pub(crate) fn provide(&self) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "provided");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem().replace('\r', "");
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "cacerts", "namespace": "weir-system"},
            "stringData": {
                "ca-cert.pem": certificate, "ca-key.pem": key.serialize_pem(), "root-cert.pem": certificate,
            },
        });
        self.cluster.apply(&secret.to_string());
        certificate
    }

    /// The same token with another time of expiry, signed as the API server does.
    fn expiring(&self, token: &str, at: SystemTime) -> String {
        let parts: Vec<&str> = token.split('.').collect();
        let mut claims: Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        claims["exp"] = seconds.into();
        let (past, issued) = (seconds - 3600, "iat");
        (claims[issued], claims["nbf"]) = (past.into(), past.into());
        let signed = format!("{}.{}", parts[0], URL_SAFE_NO_PAD.encode(claims.to_string()));
        let key = PrivateKeyDer::from_pem_slice(&self.cluster.token_key()).unwrap();
        let key = ring::sign::any_supported_type(&key).unwrap();
        let signer = key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]).unwrap();
        let signature = signer.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A stream that is served.
pub(crate) struct Stream {
    _sender: tokio::sync::mpsc::Sender<pb::DiscoveryRequest>,
    responses: tonic::Streaming<pb::DiscoveryResponse>,
}

/// What a client says of itself.
#[derive(Clone, Copy)]
pub(crate) struct Node<'a> {
    namespace: &'a str,
    pod: &'a str,
    account: Option<&'a str>,
}

pub(crate) const WEB_0: Node<'_> = Node { namespace: "shop", pod: "web-0", account: Some("web") };

impl Node<'_> {
    fn encode(&self) -> core::Node {
        let Self { namespace, pod, account } = self;
        let text = |text: &str| PbValue { kind: Some(Kind::StringValue(text.to_owned())) };
        let account = account.map(|account| ("SERVICE_ACCOUNT".to_owned(), text(account)));
        core::Node {
            id: format!("sidecar~10.1.0.1~{pod}.{namespace}~{namespace}.svc.cluster.local"),
            metadata: Some(Struct { fields: account.into_iter().collect() }),
            ..Default::default()
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct CertificateRequest {
    #[prost(string, tag = "1")]
    csr: String,
    #[prost(int64, tag = "3")]
    validity_duration: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CertificateResponse {
    #[prost(string, repeated, tag = "1")]
    cert_chain: Vec<String>,
}

/// Presents a token.
#[derive(Clone)]
struct Bearer(Option<MetadataValue<tonic::metadata::Ascii>>);

impl Bearer {
    fn new(token: Option<&str>) -> Self {
        Self(token.map(|token| format!("Bearer {token}").parse().unwrap()))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = self.0.clone() {
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

fn pod_of(name: &str, account: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"serviceAccountName": account, "containers": [{"name": "app", "image": "app"}]}})
}

/// TLS that trusts the authorities in this PEM.
pub(crate) fn trusting(roots: &str) -> Arc<ClientConfig> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(CertificateDer::pem_slice_iter(roots.as_bytes()).flatten());
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.into()
}

/// A connector for tonic.
fn tower_service_fn<F, T>(connect: F) -> Connector<F>
where
    F: Fn() -> T,
{
    Connector(connect)
}

#[derive(Clone)]
struct Connector<F>(F);

type Connected = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;

impl<F, T> tower_service::Service<http::Uri> for Connector<F>
where
    F: Fn() -> T,
    T: Future<Output = std::io::Result<Connected>> + Send + 'static,
{
    type Response = Connected;
    type Error = std::io::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = std::io::Result<Connected>> + Send>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), std::io::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        Box::pin((self.0)())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_belongs_to_whom_its_token_says() {
    let Some(world) = World::start("a_stream_belongs_to_whom_its_token_says", &[]).await else {
        return;
    };
    let token = world.token("web", Some("web-0"), "istio-ca");
    world.ask(Some(&token), &WEB_0).await.unwrap();
    world.ask(Some(&token), &Node { account: None, ..WEB_0 }).await.unwrap();
    // A token that names no pod speaks for each pod of its service account.
    let any = world.token("web", None, "istio-ca");
    world.ask(Some(&any), &Node { pod: "web-1", ..WEB_0 }).await.unwrap();

    let missing = world.refused(None, &WEB_0).await;
    assert!(missing.starts_with("a service account token is needed"), "{missing}");
    let invalid = world.refused(Some("a.b.c"), &WEB_0).await;
    assert!(invalid.starts_with("the token is not valid"), "{invalid}");
    let audience = world.token("web", Some("web-0"), "https://kubernetes.default.svc");
    let audience = world.refused(Some(&audience), &WEB_0).await;
    assert!(audience.starts_with("the token is not valid"), "{audience}");

    let stolen = world.refused(Some(&token), &Node { pod: "web-1", ..WEB_0 }).await;
    let whose = "its token belongs to service account shop/web of pod web-0";
    assert_eq!(stolen, format!("the node is pod \"web-1\", and {whose}"));
    let namespace = world.refused(Some(&token), &Node { namespace: "pay", ..WEB_0 }).await;
    assert_eq!(namespace, format!("the node is in namespace \"pay\", and {whose}"));
    let account = world.refused(Some(&token), &Node { account: Some("pay"), ..WEB_0 }).await;
    assert_eq!(account, format!("the node's SERVICE_ACCOUNT is \"pay\", and {whose}"));

    // What was served with a token that is no longer good cannot be asked for again.
    let old = world.token("pay", Some("pay-0"), "istio-ca");
    world.cluster.kubectl_ok(&["-n", "shop", "delete", "pod", "pay-0", "--now"]);
    let (begun, asked) = (Instant::now(), world.reviews().await);
    for _ in 0..12 {
        let gone = world.refused(Some(&old), &Node { pod: "pay-0", account: None, ..WEB_0 }).await;
        assert!(gone.starts_with("the token is not valid"), "{gone}");
    }
    // What the API server has refused is not asked again for 5 s.
    let asked = world.reviews().await - asked;
    assert!(asked <= 1 + begun.elapsed().as_secs() / 5, "{asked} questions about one wrong token");
    let expired = world.expiring(&token, SystemTime::now() - Duration::from_secs(5));
    let expired = world.refused(Some(&expired), &WEB_0).await;
    assert!(expired.starts_with("the token is not valid"), "{expired}");

    let state = world.serve.admin().get("/ready?verbose").await.unwrap();
    let state = String::from_utf8_lossy(&state).into_owned();
    assert!(state.contains("[+] certificate authority: valid until "), "{state}");
    assert!(state.contains("; trusted roots: 1\n"), "{state}");
    let metrics = world.serve.admin().get("/metrics").await.unwrap();
    let metrics = String::from_utf8_lossy(&metrics).into_owned();
    assert!(metrics.contains("weir_tokens_total{result=\"accepted\"}"), "{metrics}");
    assert!(metrics.contains("weir_tokens_total{result=\"refused\"}"), "{metrics}");
    // The port in plain text serves whoever reaches it.
    let plain = format!("http://127.0.0.1:{}", world.serve.xds);
    AggregatedDiscoveryServiceClient::connect(plain).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_when_its_token_expires() {
    let Some(world) = World::start("a_stream_ends_when_its_token_expires", &[]).await else {
        return;
    };
    let token = world.token("web", Some("web-0"), "istio-ca");
    let short = world.expiring(&token, SystemTime::now() + Duration::from_secs(4));
    let mut stream = world.ask(Some(&short), &WEB_0).await.unwrap();
    let ended = tokio::time::timeout(DEADLINE, stream.responses.message()).await.unwrap();
    let status = ended.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(status.message(), "the token of this stream has expired; connect with a new one");
    world.refused(Some(&short), &WEB_0).await;
    world.ask(Some(&token), &WEB_0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_for_whom_the_token_says_whatever_the_request_says() {
    let test = "a_certificate_is_for_whom_the_token_says_whatever_the_request_says";
    let Some(world) = World::start(test, &[]).await else {
        return;
    };
    let token = world.token("web", Some("web-0"), "istio-ca");
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["evil.example".to_owned()]).unwrap();
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let chain = world.sign(Some(&token), &csr, 3600).await.unwrap();
    assert!(chain.len() >= 2);
    assert_eq!(chain.last().unwrap(), &world.roots, "the root is the last one");
    let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    let id = "spiffe://cluster.local/ns/shop/sa/web";
    assert_eq!(format!("{:?}", names.value.general_names), format!("[URI({id:?})]"));
    let left = leaf.validity().time_to_expiration().unwrap();
    assert!(left <= HOUR && left > HOUR - Duration::from_secs(60), "{left:?}");
    assert_eq!(leaf.public_key().subject_public_key.data, key.public_key_raw());

    for (token, csr, seconds, code, words) in [
        (None, csr.as_str(), 0, Code::PermissionDenied, "a service account token is needed"),
        (Some("x"), csr.as_str(), 0, Code::PermissionDenied, "the token is not valid"),
        (Some(token.as_str()), "x", 0, Code::InvalidArgument, "the certificate signing request"),
        (Some(token.as_str()), &csr, 7_776_001, Code::InvalidArgument, "validity_duration is"),
        (Some(token.as_str()), &csr, -1, Code::InvalidArgument, "validity_duration is -1 s"),
    ] {
        let status = world.sign(token, csr, seconds).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().starts_with(words), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_is_made_once_and_a_provided_one_follows_it_without_a_gap() {
    let test = "a_root_is_made_once_and_a_provided_one_follows_it_without_a_gap";
    let Some(mut world) = World::start(test, &["--root-delay", "3"]).await else {
        return;
    };
    let made = world.roots.clone();
    world.roots_in("weir-system", |roots| roots == made).await;
    world.cluster.kubectl_ok(&["create", "namespace", "later"]);
    world.roots_in("later", |roots| roots == made).await;
    assert!(
        !world
            .cluster
            .kubectl(&["-n", "kube-public", "get", "configmap", "istio-ca-root-cert"])
            .status
            .success()
    );
    // What somebody else writes into the ConfigMap does not stay.
    let patch = r#"{"data":{"root-cert.pem":"no root"}}"#;
    world.cluster.kubectl_ok(&[
        "-n",
        "later",
        "patch",
        "configmap",
        "istio-ca-root-cert",
        "-p",
        patch,
    ]);
    world.roots_in("later", |roots| roots == made).await;

    let token = world.token("web", Some("web-0"), "istio-ca");
    let key_of_pod = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key_of_pod).unwrap().pem().unwrap();
    let provided = world.provide();
    // Both are trusted while the old one still signs, and after the new one does.
    let both = format!("{made}{provided}");
    world.roots = world.roots_in("shop", |roots| roots == both).await;
    assert!(issuer(&world.sign(Some(&token), &csr, 0).await.unwrap()).contains("weir root"));
    until("the provided authority signs", async || {
        let chain = world.sign(Some(&token), &csr, 0).await.unwrap();
        assert_eq!(
            chain.last().unwrap().matches("BEGIN CERTIFICATE").count(),
            2,
            "agents trust both"
        );
        issuer(&chain).contains("CN=provided")
    })
    .await;
    world.roots_in("shop", |roots| roots == format!("{provided}{made}")).await;
    world.ask(Some(&token), &WEB_0).await.unwrap();

    // One that cannot be used changes nothing.
    let broken = r#"{"data":{"ca-key.pem":"bm8ga2V5"}}"#;
    world.cluster.kubectl_ok(&["-n", "weir-system", "patch", "secret", "cacerts", "-p", broken]);
    assert!(issuer(&world.sign(Some(&token), &csr, 0).await.unwrap()).contains("CN=provided"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_that_weir_has_made_is_replaced_before_its_end_without_a_gap() {
    let test = "a_root_that_weir_has_made_is_replaced_before_its_end_without_a_gap";
    let more = ["--root-lifetime", "40", "--root-delay", "3", "--certificate-lifetime", "10"];
    let Some(mut world) = World::start(test, &more).await else {
        return;
    };
    let token = world.token("web", Some("web-0"), "istio-ca");
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let mut issuers = std::collections::BTreeSet::new();
    until("another root signs", async || {
        let chain = world.sign(Some(&token), &csr, 0).await.expect("each request is signed");
        issuers.insert(issuer(&chain));
        // What an agent trusts from then on, which verifies weir as well.
        world.roots.clone_from(chain.last().unwrap());
        issuers.len() > 1
    })
    .await;
    let annotation = r"jsonpath={.metadata.annotations.weir\.dev/retired-roots}";
    let get = ["-n", "shop", "get", "configmap", "istio-ca-root-cert", "-o", annotation];
    until("its end is written down for the next weir", async || {
        let ends: Value = serde_json::from_str(&world.cluster.kubectl_ok(&get)).unwrap();
        ends.as_object().is_some_and(|ends| !ends.is_empty())
    })
    .await;
}

/// Who has signed the first certificate of a chain.
fn issuer(chain: &[String]) -> String {
    let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
    x509_parser::parse_x509_certificate(&leaf).unwrap().1.issuer().to_string()
}

/// The files that kubelet puts into a pod.
pub(crate) struct Files(pub tempfile::TempDir);

impl Files {
    pub(crate) fn new(token: &str, roots: &str) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        std::fs::write(files.path("root-cert.pem"), roots).unwrap();
        std::os::unix::fs::symlink("..data/istio-token", files.path("istio-token")).unwrap();
        files.set_token("first", token);
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Replaces the token as kubelet does: what the link leads to is another folder at once.
    fn set_token(&self, folder: &str, token: &str) {
        std::fs::create_dir(self.path(folder)).unwrap();
        std::fs::write(self.path(folder).join("istio-token"), token).unwrap();
        std::os::unix::fs::symlink(folder, self.path("..next")).unwrap();
        std::fs::rename(self.path("..next"), self.path("..data")).unwrap();
    }

    /// The bootstrap of `shop/web-0`, with a listener that presents its certificate.
    fn bootstrap(&self, world: &World, port: u16) -> PathBuf {
        let resources = json!({"listeners": [tls_listener(port)]});
        self.bootstrap_of(world, "web", &[], resources)
    }

    /// The bootstrap of the first pod of an account in `shop`, with these static resources added.
    pub(crate) fn bootstrap_of(
        &self,
        world: &World,
        account: &str,
        more: &[&str],
        resources: Value,
    ) -> PathBuf {
        let file = self.path("envoy.json");
        let pod = format!("{account}-0");
        let printed = std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["bootstrap", "-o", "json", "--xds", &format!("127.0.0.1:{}", world.port)])
            .args(["--pod", &pod, "-n", "shop", "--service-account", account])
            .args(["--token-file", self.path("istio-token").to_str().unwrap()])
            .args(["--root-cert", self.path("root-cert.pem").to_str().unwrap()])
            .args(["--file", file.to_str().unwrap()])
            .args(more)
            .output()
            .unwrap();
        assert!(printed.status.success(), "{printed:?}");
        let mut bootstrap: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        bootstrap["admin"]["address"]["socket_address"]["port_value"] = 0.into();
        let into = bootstrap["static_resources"].as_object_mut().unwrap();
        for (kind, more) in resources.as_object().unwrap() {
            let list = into.entry(kind).or_insert_with(|| json!([])).as_array_mut().unwrap();
            list.extend(more.as_array().unwrap().iter().cloned());
        }
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        file
    }
}

/// A listener that presents the certificate it gets over ADS, wants one by the same roots, and answers with 200.
pub(crate) fn tls_listener(port: u16) -> Value {
    let types = "type.googleapis.com/envoy.extensions";
    // Exactly as weir's listeners have it: Envoy gets a secret only once over one stream, and shares it if the source is equal.
    let source = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
    let secret = |name: &str| json!({"name": name, "sds_config": source});
    json!({
        "name": "tls",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
                "@type": format!("{types}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "tls",
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "direct_response": {"status": 200}},
                ]}]},
                "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                    "@type": format!("{types}.filters.http.router.v3.Router"),
                }}],
            }}],
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
                "@type": format!("{types}.transport_sockets.tls.v3.DownstreamTlsContext"),
                "common_tls_context": {
                    "tls_certificate_sds_secret_configs": [secret("default")],
                    "validation_context_sds_secret_config": secret("ROOTCA"),
                },
            }},
        }],
    })
}

/// Connects, and returns the serial number of the certificate, which a client with these roots accepts.
async fn presented(port: u16, roots: &str) -> std::io::Result<String> {
    let accepted = Arc::new(ByRoots::new(roots));
    let mut config = (*trusting(roots)).clone();
    config.dangerous().set_certificate_verifier(accepted);
    let socket = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from(NAME).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await?;
    assert!(said.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&said));
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).unwrap();
    Ok(certificate.raw_serial_as_string())
}

/// Accepts a peer by its roots and its SPIFFE ID, as sidecars do, and not by a DNS name.
#[derive(Debug)]
pub(crate) struct ByRoots(Arc<dyn ClientCertVerifier>);

impl ByRoots {
    pub(crate) fn new(roots: &str) -> Self {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(CertificateDer::pem_slice_iter(roots.as_bytes()).flatten());
        let provider = Arc::new(ring::default_provider());
        Self(WebPkiClientVerifier::builder_with_provider(store.into(), provider).build().unwrap())
    }
}

impl ServerCertVerifier for ByRoots {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, tokio_rustls::rustls::Error> {
        self.0.verify_client_cert(certificate, chain, now)?;
        let (_, x509) = x509_parser::parse_x509_certificate(certificate).unwrap();
        let names = x509.subject_alternative_name().unwrap().unwrap();
        let expected = r#"[URI("spiffe://cluster.local/ns/shop/sa/web")]"#;
        assert_eq!(format!("{:?}", names.value.general_names), expected);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_renews_its_token_and_its_certificate_without_a_failed_handshake() {
    let test = "envoy_renews_its_token_and_its_certificate_without_a_failed_handshake";
    let more = ["--tls-name", "127.0.0.1", "--certificate-lifetime", "10"];
    let Some(world) = World::start(test, &more).await else {
        return;
    };
    let token = world.token("web", Some("web-0"), "istio-ca");
    let expires = SystemTime::now() + Duration::from_secs(10);
    let files = Files::new(&world.expiring(&token, expires), &world.roots);
    let port = free_port();
    let bootstrap = files.bootstrap(&world, port);
    let _envoy = start_envoy(files.0.path(), "envoy", &bootstrap).await;
    until("Envoy presents a certificate", async || presented(port, &world.roots).await.is_ok())
        .await;
    let first = world.serve.proxies().await.unwrap();
    assert_eq!(first.len(), 1, "{first:?}");
    files.set_token("second", &token);

    // Each is used for half of its life or a little more.
    let mut serials = std::collections::BTreeSet::new();
    until("three certificates were presented", async || {
        serials.insert(presented(port, &world.roots).await.expect("each handshake succeeds"));
        serials.len() >= 3
    })
    .await;
    until(
        "the stream with the old token has ended, and Envoy has come back with the new one",
        async || {
            let proxies = world.serve.proxies().await.unwrap();
            SystemTime::now() > expires
                && proxies.iter().any(|proxy| proxy.streams != first[0].streams)
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_of_a_pod_gets_its_configuration_over_tls() {
    if !is_inside_of_pods() {
        return;
    }
    let test = "the_agent_of_a_pod_gets_its_configuration_over_tls";
    let Some(world) = World::start(test, &["--tls-name", "127.0.0.1"]).await else {
        return;
    };
    let files = Files::new(&world.token("web", Some("web-0"), "istio-ca"), &world.roots);
    let envoy = tokio::task::spawn_blocking(|| EnvoyBinary::find(None)).await.unwrap().unwrap();
    let (xds, envoy) = (format!("127.0.0.1:{}", world.port), envoy.path().to_str().unwrap());
    let [token, roots, config] =
        ["istio-token", "root-cert.pem", "proxy"].map(|name| files.path(name));
    std::fs::create_dir(&config).unwrap();
    let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let args = [
        "agent",
        "run",
        "--xds",
        &xds,
        "--pod",
        "web-0",
        "--namespace",
        "shop",
        "--ip",
        "10.2.0.1",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain(
        ["--service-account", "web", "--interception", "NONE", "--envoy", envoy].map(str::to_owned),
    )
    .chain(["--token-file".to_owned(), path(&token), "--root-cert".to_owned(), path(&roots)])
    .chain(["--config-dir".to_owned(), path(&config)]);
    let log = std::fs::File::create(files.path("agent.log")).unwrap();
    let _agent = Supervised::spawn(Launch {
        program: Path::new(env!("CARGO_BIN_EXE_weir")),
        args: args.collect(),
        stdout: log.try_clone().unwrap().into(),
        stderr: log.into(),
        grace_tenths: 80,
        remove: None,
    })
    .unwrap();
    let readiness = Admin::new(SocketAddr::from(([127, 0, 0, 1], 15021)));
    until("the agent is ready", async || readiness.get("/healthz/ready").await.is_ok()).await;
    let proxies = world.serve.proxies().await.unwrap();
    assert_eq!(proxies.len(), 1, "{proxies:?}");
}
