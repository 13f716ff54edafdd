//! The validating webhook: with a real API server that calls it at the endpoints of its Service, and by itself with clients
//! that send anything.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::api::{Api, DynamicObject, PostParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;
use weir::api::{Identity, identify, parse};
use weir::source::yaml;

use crate::support::kube::{KubeCluster, istio_api};
use crate::support::mesh::{DEADLINE, Serve, until};
use crate::support::network;
use crate::support::process::free_port;

const NAMESPACE: &str = "your-namespace";

/// The name for which the API server checks the certificate.
const NAME: &str = "weir.weir-system.svc";

/// In the network of [`network::is_inside`].
const ADDRESSES: [&str; 2] = ["10.1.0.1", "10.1.0.2"];

/// An API server with weir's manifests and the canary of the examples.
pub(crate) struct World {
    pub cluster: KubeCluster,
    pub client: kube::Client,
    account: std::path::PathBuf,
}

impl World {
    pub(crate) async fn start(test: &str) -> Option<Self> {
        let cluster = KubeCluster::start(test)?;
        cluster.apply_crds();
        cluster.apply_kustomization("deploy", &[]);
        cluster.apply_folder("deploy/examples/canary");
        let client = cluster.client().await;
        let account = cluster.kubeconfig_for_service_account("weir-system", "weir");
        Some(Self { cluster, client, account })
    }

    /// A replica with the permissions of the manifests, and an endpoint of the Service.
    pub(crate) async fn replica(&self, n: usize, more: &[&str]) -> Replica {
        let (xds, admin, webhook) = (free_port(), free_port(), free_port());
        let pod = format!("weir-{n}");
        let listen = format!("0.0.0.0:{webhook}");
        let args = ["--kubeconfig", self.account.to_str().unwrap(), "--webhook", "on"];
        let pod_args =
            ["--pod-namespace", "weir-system", "--pod-name", &pod, "--status-lease", "6"];
        let args = [&args[..], &["--webhook-listen", &listen], &pod_args, more].concat();
        let serve = Serve::start(&args, xds, admin);
        let replica = Replica { pod, serve, webhook };
        replica.serve.ready().await;
        self.cluster.apply(&slice(&replica.pod, ADDRESSES[n], webhook));
        replica
    }

    /// Takes a replica out of the Service.
    fn leave(&self, replica: &Replica) {
        self.cluster.kubectl_ok(&["-n", "weir-system", "delete", "endpointslice", &replica.pod]);
    }

    pub(crate) fn apply(&self, object: &Value, more: &[&str]) -> Output {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), object.to_string()).unwrap();
        let args = ["apply", "-f", file.path().to_str().unwrap()];
        self.cluster.kubectl(&[&args[..], more].concat())
    }

    /// Waits until the API server gets answers from weir.
    async fn reviewed(&self) {
        let bad = virtual_service("probe", "my-app", -5);
        until("the API server asks weir", async || {
            !self.apply(&bad, &["--dry-run=server"]).status.success()
        })
        .await;
    }

    fn api(&self) -> Api<DynamicObject> {
        istio_api(&self.client, NAMESPACE, "VirtualService")
    }

    /// The authorities in the configuration.
    async fn authorities(&self) -> Vec<u8> {
        let api = Api::<ValidatingWebhookConfiguration>::all(self.client.clone());
        let webhooks = api.get("weir").await.unwrap().webhooks.unwrap();
        webhooks[0].client_config.ca_bundle.clone().unwrap_or_default().0
    }
}

/// A replica and the port of its webhook.
pub(crate) struct Replica {
    pod: String,
    pub serve: Serve,
    webhook: u16,
}

/// The endpoint of the Service `weir` that a replica is.
fn slice(pod: &str, address: &str, port: u16) -> String {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": pod, "namespace": "weir-system", "labels": {"kubernetes.io/service-name": "weir"}},
        "ports": [{"name": "https-webhook", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false}}]})
    .to_string()
}

fn virtual_service(name: &str, host: &str, weight: i64) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"hosts": [format!("{name}.example")],
                 "http": [{"route": [{"destination": {"host": host}, "weight": weight}]}]},
    })
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_shows_what_is_refused_and_what_is_doubtful() {
    if !network::is_inside() {
        return;
    }
    let test = "kubectl_shows_what_is_refused_and_what_is_doubtful";
    let Some(world) = World::start(test).await else { return };
    let replica = world.replica(0, &["--revision", "weir"]).await;
    world.reviewed().await;

    // What weir would reject is refused, and names the object, the field, what was found and what would be right.
    let refused = world.apply(&virtual_service("bad", "my-app", -5), &[]);
    assert!(!refused.status.success(), "{refused:?}");
    let message = "admission webhook \"validation.weir.dev\" denied the request: VirtualService your-namespace/bad: \
                   spec.http[0].route[0].weight: is -5; expected ";
    assert!(said(&refused).contains(message), "{}", said(&refused));
    assert!(!world.cluster.kubectl(&["-n", NAMESPACE, "get", "vs", "bad"]).status.success());
    let patch = r#"[{"op": "replace", "path": "/spec/host", "value": "my app"}]"#;
    let patch = ["-n", NAMESPACE, "patch", "dr", "my-app", "--type=json", "-p", patch];
    let refused = world.cluster.kubectl(&patch);
    assert!(
        said(&refused).contains("DestinationRule your-namespace/my-app: spec.host: "),
        "{refused:?}"
    );

    // What is doubtful is stored, with a warning.
    let doubtful = world.apply(&virtual_service("doubtful", "nobody", 5), &[]);
    assert!(doubtful.status.success(), "{doubtful:?}");
    let warning = "Warning: VirtualService your-namespace/doubtful: spec.http[0].route[0].destination.host: service `nobody.";
    assert!(said(&doubtful).contains(warning), "{}", said(&doubtful));
    let folder = format!("{}/deploy/examples/canary", env!("CARGO_MANIFEST_DIR"));
    let applied = world.cluster.kubectl(&["apply", "-f", &folder]);
    assert!(applied.status.success() && said(&applied).is_empty(), "{applied:?}");
    // The status that weir writes is not reviewed, and what is written can be deleted.
    let deleted = world.cluster.kubectl(&["-n", NAMESPACE, "delete", "vs", "doubtful"]);
    assert!(deleted.status.success() && said(&deleted).is_empty(), "{deleted:?}");

    // The objects of another revision are not weir's to judge.
    let mut foreign = virtual_service("foreign", "nobody", -5);
    foreign["metadata"]["labels"] = json!({"istio.io/rev": "stable"});
    let applied = world.apply(&foreign, &[]);
    assert!(applied.status.success() && said(&applied).is_empty(), "{applied:?}");

    for (result, least) in [("refused", 3), ("warned", 1), ("skipped", 1), ("failed", 0)] {
        let metric = format!("weir_webhook_requests_total{{result=\"{result}\"}} ");
        let count = replica.serve.metric(&metric).await.unwrap_or_default();
        assert!(count >= least, "{result}: {count}");
        assert!(result != "failed" || count == 0, "{count} failed");
    }
    let verbose = replica.serve.admin().get("/ready?verbose").await.unwrap();
    let verbose = String::from_utf8(verbose.to_vec()).unwrap();
    assert!(verbose.contains("[+] webhook: certificate valid until 20"), "{verbose}");

    // Without weir, objects can be written.
    let mut replica = replica;
    replica.serve.kill();
    let applied = world.apply(&virtual_service("bad", "my-app", -5), &[]);
    assert!(applied.status.success(), "{applied:?}");
}

/// A TLS connection to a webhook by one who trusts these authorities, and the certificate that was presented.
async fn connect(
    from: [u8; 4],
    to: SocketAddr,
    authorities: &[u8],
    name: &str,
) -> Result<(SendRequest<Full<Bytes>>, CertificateDer<'static>), String> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(authorities) {
        roots
            .add(authority.map_err(|error| error.to_string())?)
            .map_err(|error| error.to_string())?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    let socket = connected(from, to).await.map_err(|error| error.to_string())?;
    let name = name.to_owned().try_into().unwrap();
    let tls = TlsConnector::from(Arc::new(config)).connect(name, socket);
    let tls = tls.await.map_err(|error| error.to_string())?;
    let presented = tls.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await;
    let (requests, connection) = handshake.map_err(|error| error.to_string())?;
    // Ends with the connection.
    tokio::spawn(connection);
    Ok((requests, presented))
}

async fn connected(from: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

async fn post(requests: &mut SendRequest<Full<Bytes>>, body: impl Into<Bytes>) -> (u16, String) {
    let request = http::Request::post("/validate")
        .header("host", NAME)
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap();
    requests.ready().await.unwrap();
    let response = requests.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn review(object: &Value) -> String {
    let request = json!({"uid": "1", "operation": "UPDATE", "object": object});
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
        .to_string()
}

/// Why an object is refused; `None` if it is admitted.
async fn refusal(requests: &mut SendRequest<Full<Bytes>>, object: &Value) -> Option<String> {
    let (status, body) = post(requests, review(object)).await;
    assert_eq!(status, 200, "{body}");
    let review: Value = serde_json::from_str(&body).unwrap();
    let response = &review["response"];
    match response["allowed"].as_bool().unwrap() {
        true => None,
        false => Some(response["status"]["message"].as_str().unwrap().to_owned()),
    }
}

/// Writes again and again until it is stopped, and fails if a request fails.
struct Writing {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Writing {
    fn start(world: &World) -> Self {
        let (api, stop) = (world.api(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            while !stopped.is_cancelled() {
                create(&api).await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no request failed");
    }
}

/// Has the API server review an object, which it does not store.
async fn create(api: &Api<DynamicObject>) -> Result<DynamicObject, kube::Error> {
    let good = serde_json::from_value(virtual_service("good", "my-app", 5)).unwrap();
    api.create(&PostParams { dry_run: true, ..Default::default() }, &good).await
}

/// The certificate of each replica, for one who trusts what the configuration says at that time.
async fn presented(
    world: &World,
    replicas: &[&Replica],
) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut seen = Vec::new();
    for replica in replicas {
        let authorities = world.authorities().await;
        let to = SocketAddr::from(([127, 0, 0, 1], replica.webhook));
        let (mut requests, certificate) = connect([127, 0, 0, 1], to, &authorities, NAME).await?;
        let good = virtual_service("good", "my-app", 5);
        assert_eq!(refusal(&mut requests, &good).await, None);
        seen.push(certificate);
    }
    Ok(seen)
}

// Clients go on while kubectl runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_replicas_renew_the_certificate_one_after_the_other() {
    if !network::is_inside() {
        return;
    }
    let test = "no_request_fails_while_replicas_renew_the_certificate_one_after_the_other";
    let Some(world) = World::start(test).await else { return };
    let lifetime = ["--webhook-cert-lifetime", "40"];
    let mut replicas = [world.replica(0, &lifetime).await, world.replica(1, &lifetime).await];
    let both = [&replicas[0], &replicas[1]];
    world.reviewed().await;
    until("both serve", async || presented(&world, &both).await.is_ok()).await;
    let strict = r#"[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"}]"#;
    let patch = ["patch", "validatingwebhookconfiguration", "weir", "--type=json", "-p", strict];
    world.cluster.kubectl_ok(&patch);

    // From now on each handshake succeeds, and so does each request of the API server.
    let before = presented(&world, &both).await.unwrap();
    let writing = Writing::start(&world);
    until("both have another certificate", async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = presented(&world, &both).await.unwrap();
        now[0] == now[1] && !before.contains(&now[0])
    })
    .await;
    writing.stop().await;

    // The one that is elected is killed, and the other one renews the next certificate.
    let leader = usize::from(replicas[1].serve.metric("weir_status_leader ").await == Some(1));
    world.leave(&replicas[leader]);
    replicas[leader].serve.kill();
    let other = &replicas[1 - leader];
    let api = world.api();
    until("the API server asks the other one", async || create(&api).await.is_ok()).await;
    let between = presented(&world, &[other]).await.unwrap();
    let writing = Writing::start(&world);
    until("the other one renews it", async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        presented(&world, &[other]).await.unwrap() != between
    })
    .await;
    assert_eq!(other.serve.metric("weir_status_leader ").await, Some(1));
    writing.stop().await;
}

/// weir with objects from a folder, and a webhook with a certificate from another one.
struct Alone {
    serve: Serve,
    address: SocketAddr,
    certificates: tempfile::TempDir,
    authority: Vec<u8>,
    _objects: tempfile::TempDir,
}

impl Alone {
    async fn start() -> Self {
        let (objects, certificates) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(objects.path().join("none.yaml"), "# nothing\n").unwrap();
        let authority = certificate(certificates.path());
        let (xds, admin, webhook) = (free_port(), free_port(), free_port());
        let address = SocketAddr::from(([127, 0, 0, 1], webhook));
        let (folder, files) = (objects.path().to_str().unwrap(), certificates.path());
        let args = ["--config-dir", folder, "--webhook", "on", "--webhook-cert-dir"];
        let listen = ["--webhook-listen", &address.to_string()];
        let args = [&args[..], &[files.to_str().unwrap()], &listen].concat();
        let serve = Serve::start(&args, xds, admin);
        serve.ready().await;
        let alone = Self { serve, address, certificates, authority, _objects: objects };
        until("the certificate is served", async || alone.connect().await.is_ok()).await;
        alone
    }

    async fn connect(&self) -> Result<(SendRequest<Full<Bytes>>, CertificateDer<'static>), String> {
        connect([127, 0, 0, 1], self.address, &self.authority, NAME).await
    }
}

/// Writes a new certificate into a folder, and returns it: it is its own authority.
fn certificate(folder: &Path) -> Vec<u8> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let pem = made.cert.pem();
    std::fs::write(folder.join("tls.crt"), &pem).unwrap();
    std::fs::write(folder.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    pem.into_bytes()
}

#[tokio::test]
async fn a_replaced_certificate_is_presented_and_open_connections_continue() {
    let mut weir = Alone::start().await;
    let good = virtual_service("good", "my-app", 5);
    let (mut open, before) = weir.connect().await.unwrap();
    assert_eq!(refusal(&mut open, &good).await, None);
    let old = std::mem::replace(&mut weir.authority, certificate(weir.certificates.path()));
    until("the new certificate is presented", async || weir.connect().await.is_ok()).await;
    let (_, after) = weir.connect().await.unwrap();
    assert_ne!(before, after);
    assert!(connect([127, 0, 0, 1], weir.address, &old, NAME).await.is_err());
    assert_eq!(refusal(&mut open, &good).await, None, "the connection is still open");
}

/// The documents of the cases that weir's translation is tested with, as JSON.
fn documents() -> Vec<Value> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut files: Vec<_> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path().join("input.yaml"))
        .collect();
    files.sort();
    let texts = files.iter().map(|file| std::fs::read(file).unwrap());
    texts
        .flat_map(|text| yaml::documents(&text).unwrap())
        .map(|document| document.value)
        .filter(|value| value["apiVersion"].as_str().is_some_and(|of| of.contains("istio.io")))
        .collect()
}

/// The places of the values in a document's `spec`.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(name, inner)| {
                places(inner, &format!("{at}/{}", name.replace('/', "~1")), found)
            });
        }
        Value::Array(list) => {
            list.iter()
                .enumerate()
                .for_each(|(n, inner)| places(inner, &format!("{at}/{n}"), found));
        }
        _ => found.push(at.to_owned()),
    }
}

/// The problems for which weir rejects a document when it reads it.
fn rejected(document: &Value) -> Option<String> {
    let Ok(Identity::Known(key)) = identify(document) else {
        return None;
    };
    let error = parse(&key, document.clone(), 0).err()?;
    let problems: Vec<_> = error.problems.iter().map(ToString::to_string).collect();
    Some(format!("{key}: {}", problems.join("\n")))
}

#[tokio::test]
async fn the_webhook_refuses_exactly_what_weir_rejects_when_it_reads_it() {
    let weir = Alone::start().await;
    let (mut requests, _) = weir.connect().await.unwrap();
    let (mut refused, mut admitted, mut kinds) = (0, 0, BTreeSet::new());
    for document in documents() {
        kinds.insert(document["kind"].as_str().unwrap().to_owned());
        assert_eq!(refusal(&mut requests, &document).await, None, "{document}");
        let mut spots = Vec::new();
        places(&document["spec"], "/spec", &mut spots);
        // Some of its values are replaced by others, most of which are wrong.
        for (n, spot) in spots.iter().enumerate() {
            let values = [json!(-1), json!(""), json!({"a": []}), json!("a b"), json!(70_000)];
            let mut changed = document.clone();
            *changed.pointer_mut(spot).unwrap() = values[n % values.len()].clone();
            let expected = rejected(&changed);
            assert_eq!(refusal(&mut requests, &changed).await, expected, "{changed}");
            *(if expected.is_some() { &mut refused } else { &mut admitted }) += 1;
        }
    }
    assert!(refused > 200 && admitted > 50, "{refused} refused, {admitted} admitted");
    for kind in ["VirtualService", "DestinationRule", "ServiceEntry", "Sidecar", "WorkloadEntry"] {
        assert!(kinds.contains(kind), "no {kind} in {kinds:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_review_harm_nobody() {
    let weir = Alone::start().await;
    let (mut good, _) = weir.connect().await.unwrap();
    let object = virtual_service("good", "my-app", 5);
    let other = [127, 0, 0, 2];

    // No TLS at all, and handshakes that end in the middle.
    let hello = [&[0x16, 3, 1, 2, 0, 1][..], &[0; 100]].concat();
    for bytes in [&b"GET /validate HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"", &hello] {
        let mut socket = connected(other, weir.address).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // It may be reset, too.
        let ended = tokio::time::timeout(DEADLINE, socket.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "the connection stays open after {} bytes", bytes.len());
        assert_eq!(refusal(&mut good, &object).await, None);
    }
    // More connections than one address may have, all of them silent, leave room for others.
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(connected(other, weir.address).await.unwrap());
    }
    let (mut another, _) = weir.connect().await.unwrap();
    assert_eq!(refusal(&mut another, &object).await, None);
    drop(silent);

    // Requests that are no reviews, on a connection that goes on.
    let endless = format!("{{\"apiVersion\": {}", "[".repeat(1 << 20));
    for (body, status, text) in [
        (String::new(), 400, "the body is not an AdmissionReview"),
        ("{}".to_owned(), 400, "the body is not an AdmissionReview: missing field `apiVersion`"),
        ("\u{0}".repeat(1000), 400, "the body is not an AdmissionReview"),
        (endless, 400, "the body is not an AdmissionReview"),
        (json!({"apiVersion": "v1", "kind": "Pod"}).to_string(), 400, "the body is Pod of v1"),
    ] {
        let (got, said) = post(&mut good, body).await;
        assert_eq!(got, status, "{said}");
        assert!(said.starts_with(text), "{said}");
    }
    let (got, said) = post(&mut another, vec![b' '; (7 << 20) + 1]).await;
    assert_eq!(got, 413, "{said}");
    assert_eq!(refusal(&mut good, &object).await, None);
    let mut wrong = http::Request::get("/validate").body(Full::<Bytes>::default()).unwrap();
    for (path, status) in [("/validate", 405), ("/inject", 404)] {
        *wrong.uri_mut() = path.parse().unwrap();
        // Even after the last byte of a response, the connection takes a moment.
        good.ready().await.unwrap();
        let response = good.send_request(wrong.clone()).await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(
        weir.serve.metric("weir_webhook_requests_total{result=\"malformed\"} ").await,
        Some(6)
    );
    assert_eq!(weir.serve.metric("weir_webhook_requests_total{result=\"failed\"} ").await, None);
}
