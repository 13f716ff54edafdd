//! Mutual TLS between two real Envoys that have their certificates from weir, with a real API server: a client whose
//! listeners bind, and a server whose inbound connections are redirected.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use weir::envoy::Admin;

use crate::identity::{Files, World};
use crate::support::mesh::until;
use crate::support::network::is_inside_of_a_server;
use crate::support::process::Supervised;
use crate::support::sidecar::{admin_address, start_envoy};

/// The pod of the server, and the port of its application.
const SERVER: &str = "10.2.0.5";
const APPLICATION: u16 = 8080;

/// The port of the Service, at which the client's sidecar listens.
const PORT: u16 = 7080;

/// What the application sees of the client in mutual TLS.
const CLIENT: &str = "URI=spiffe://cluster.local/ns/shop/sa/pay";

/// Answers every request with the headers that arrived.
async fn application() -> tokio::task::JoinHandle<()> {
    let listener = TcpListener::bind((SERVER, APPLICATION)).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut socket = BufReader::new(socket);
                loop {
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if socket.read_line(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let answer =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
                    if socket.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

/// The whole answer to a request on a connection of its own.
async fn get(address: (&str, u16)) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(b"GET / HTTP/1.1\r\nhost: web.shop\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Who called, as the application of a request through the client's sidecar sees it; empty in plain text.
async fn through_the_mesh(port: u16) -> Result<String, String> {
    let answer = get(("127.0.0.1", port)).await.map_err(|error| error.to_string())?;
    if !answer.starts_with("HTTP/1.1 200") {
        return Err(answer);
    }
    let lines = answer.lines().map(str::to_ascii_lowercase);
    let mut callers =
        lines.filter_map(|line| line.strip_prefix("x-forwarded-client-cert:").map(str::to_owned));
    Ok(callers.next().unwrap_or_default())
}

/// Whether the server takes a request in plain text.
async fn takes_plain_text() -> bool {
    get((SERVER, APPLICATION)).await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// An Envoy of the first pod of a service account in `shop`.
async fn sidecar(world: &World, account: &str, more: &[&str]) -> (Files, Supervised) {
    let token = world.token(account, Some(&format!("{account}-0")), "istio-ca");
    let files = Files::new(&token, &world.roots);
    let bootstrap = files.bootstrap_of(world, account, more, json!({}));
    let envoy = start_envoy(files.0.path(), "envoy", &bootstrap).await;
    (files, envoy)
}

/// `web` with the pod of the server, which has certificates and this service account.
fn service(account: &str) -> String {
    let objects = [
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web-0", "namespace": "shop",
                "labels": {"app": "web", "security.istio.io/tlsMode": "istio"},
                "annotations": {"weir.dev/service-account": account},
            },
            "spec": {"serviceAccountName": "web", "containers": [{"name": "app", "image": "app"}]},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"ports": [{"name": "http", "port": PORT, "targetPort": APPLICATION}]},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "web-0", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": APPLICATION}],
            "endpoints": [{
                "addresses": [SERVER], "targetRef": {"kind": "Pod", "name": "web-0", "namespace": "shop"},
            }],
        }),
    ];
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

/// How clients connect to `web`. Connections that are open stay as they are, so each request gets one of its own.
fn rule(tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{host: web, trafficPolicy: {{connectionPool: {{http: {{maxRequestsPerConnection: 1}}}}, tls: {tls}}}}}\n"
    )
}

/// A policy for the pods of `shop` with the label `tier: pci`.
fn peers_of(label: &str, mode: &str) -> String {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": label, "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {label: "pci"}}, "mtls": {"mode": mode}},
    })
    .to_string()
}

/// How many updates of listeners Envoy has taken.
async fn listener_updates(files: &Files) -> u64 {
    let admin = Admin::new(admin_address(files.0.path(), "envoy").unwrap());
    let name = "listener_manager.lds.update_success";
    admin.stats(&format!("^{name}$")).await.unwrap().get(name).copied().unwrap_or_default()
}

fn peers(mode: &str) -> String {
    let spec = json!({"mtls": {"mode": mode}});
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "shop"}, "spec": spec,
    })
    .to_string()
}

/// Requests through the mesh, one after the other, until told to stop.
struct Load {
    ends: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Load {
    fn start(port: u16) -> Self {
        let (ends, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (until, count) = (ends.clone(), sent.clone());
        let task = tokio::spawn(async move {
            let mut failed = Vec::new();
            while !until.load(Ordering::Relaxed) {
                failed.extend(through_the_mesh(port).await.err());
                count.fetch_add(1, Ordering::Relaxed);
            }
            failed
        });
        Self { ends, sent, task }
    }

    /// Waits for some more requests, so that what has just changed has met some.
    async fn goes_on(&self) {
        let before = self.sent.load(Ordering::Relaxed);
        until("the load goes on", async || self.sent.load(Ordering::Relaxed) > before + 20).await;
    }

    async fn end(self) -> Vec<String> {
        self.ends.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_encrypt_and_a_peer_authentication_decides_what_else_is_taken() {
    if !is_inside_of_a_server() {
        return;
    }
    let test = "sidecars_encrypt_and_a_peer_authentication_decides_what_else_is_taken";
    let Some(world) = World::start(test, &["--tls-name", "127.0.0.1"]).await else {
        return;
    };
    let _application = application().await;
    world.cluster.apply(&service("web"));
    world.cluster.apply(&rule("null"));
    let (server, _envoy) = sidecar(&world, "web", &["--ip", SERVER]).await;
    let _client = sidecar(&world, "pay", &["--ip", "10.2.0.9", "--intercept", "none"]).await;

    // Without a policy sidecars encrypt, and others need not.
    requests_are_encrypted(true).await;
    until("plain text is taken", async || takes_plain_text().await).await;

    strict_and_back(&world).await;

    // A server that is not one of the service's accounts is not talked to.
    world.cluster.apply(&service("other"));
    until("the server is not accepted", async || {
        through_the_mesh(PORT).await.is_err_and(|answer| answer.contains("503"))
    })
    .await;
    world.cluster.apply(&service("web"));
    until("the server is accepted again", async || through_the_mesh(PORT).await.is_ok()).await;

    disable_and_back(&world, &server).await;

    // A policy for a label is for the pods that have it now.
    world.cluster.apply(&peers_of("tier", "STRICT"));
    assert!(takes_plain_text().await);
    world.cluster.kubectl_ok(&["-n", "shop", "label", "pod", "web-0", "tier=pci"]);
    until("plain text is refused", async || !takes_plain_text().await).await;
}

/// Waits until the requests of the mesh are encrypted, or are not.
async fn requests_are_encrypted(encrypted: bool) {
    until("requests of the mesh are as they should be", async || {
        let who = through_the_mesh(PORT).await;
        who.is_ok_and(|who| who.contains(&CLIENT.to_ascii_lowercase()) == encrypted)
    })
    .await;
}

/// No request of the mesh fails, and none is in plain text.
async fn strict_and_back(world: &World) {
    let load = Load::start(PORT);
    world.cluster.apply(&peers("STRICT"));
    until("plain text is refused", async || !takes_plain_text().await).await;
    load.goes_on().await;
    requests_are_encrypted(true).await;
    world.cluster.apply(&peers("PERMISSIVE"));
    until("plain text is taken again", async || takes_plain_text().await).await;
    load.goes_on().await;
    assert_eq!(load.end().await, [""; 0]);
}

/// As the documentation says: first the clients, then the servers. No request fails.
async fn disable_and_back(world: &World, server: &Files) {
    let load = Load::start(PORT);
    world.cluster.apply(&rule("{mode: DISABLE}"));
    requests_are_encrypted(false).await;
    for mode in ["DISABLE", "PERMISSIVE"] {
        let before = listener_updates(server).await;
        world.cluster.apply(&peers(mode));
        until("the server knows", async || listener_updates(server).await > before).await;
        load.goes_on().await;
        world.cluster.apply(&rule("null"));
        requests_are_encrypted(mode == "PERMISSIVE").await;
        load.goes_on().await;
        world.cluster.apply(&rule("{mode: DISABLE}"));
        requests_are_encrypted(false).await;
    }
    assert_eq!(load.end().await, [""; 0]);
}
