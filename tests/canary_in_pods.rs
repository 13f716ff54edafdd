//! A canary in pods that weir injects, from `kubectl apply -k deploy/` to the clean-up, with a restart of everything on the
//! way, and no failed request. The pods run on a node of the tests' own ([`crate::support::node`]).

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use weir::canary::objects::{route, rule};
use weir::envoy::EnvoyBinary;

use crate::support::Skip;
use crate::support::kube::KubeCluster;
use crate::support::kube_binaries::{KubeBinaries, kube_controller_manager};
use crate::support::mesh::{assert_share, until_within};
use crate::support::network::is_inside_of_a_node;
use crate::support::node::application::{self, Latency, REPORT, Report, SERVER};
use crate::support::node::images::Images;
use crate::support::node::{ADDRESS, Node};

/// The namespace of the application.
const SHOP: &str = "shop";

/// How long anything may take, on a busy machine.
const WITHIN: Duration = Duration::from_secs(150);

/// How many answers a split is judged by.
const ANSWERS: u64 = 600;

/// Everything that takes minutes to get, outside the network of the test, which leads nowhere.
struct Parts {
    kube: KubeBinaries,
    manager: PathBuf,
    envoy: PathBuf,
}

/// The parts if this process is on the node of the test. Otherwise the test runs on one, or is skipped.
fn parts(test: &str) -> Option<Parts> {
    let found = KubeBinaries::find().map_err(|skip| skip.why).and_then(|kube| {
        let envoy = EnvoyBinary::find(None).map_err(|error| error.to_string())?;
        let envoy = envoy.path().to_owned();
        Ok(Parts { kube, manager: kube_controller_manager()?, envoy })
    });
    match found {
        Ok(parts) => is_inside_of_a_node().then_some(parts),
        Err(why) => {
            Skip { why }.report(test);
            None
        }
    }
}

/// What differs between the runs of the canary.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// The mode of the namespace's PeerAuthentication, if there is one.
    mode: Option<&'static str>,
    /// Whether servers see the certificates of their clients.
    encrypted: bool,
    /// An annotation of all pods.
    annotation: &'static str,
}

impl Run {
    /// A Deployment of the application.
    fn deployment(self, name: &str, labels: &str, replicas: u8, more: &str) -> String {
        let own = self.annotation;
        format!(
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: {SHOP}}}\n\
             spec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{{labels}}}}}\n  template:\n    metadata:\n      \
             labels: {{{labels}}}\n      annotations: {{{own}traffic.sidecar.istio.io/excludeInboundPorts: \"{REPORT}\"}}\n    \
             spec:\n      containers:\n      - name: app\n        image: application:1\n{more}"
        )
    }

    /// A server of a version. It goes on for a while when it is told to end, because clients hear of that later.
    fn server(self, version: &str) -> String {
        let more = format!(
            "        env: {}\n        ports: [{{name: http, containerPort: {SERVER}}}]\n        \
             readinessProbe: {{httpGet: {{path: /healthz, port: http}}, periodSeconds: 1, timeoutSeconds: 5}}\n        \
             lifecycle: {{preStop: {{sleep: {{seconds: 3}}}}}}\n",
            application::environment(&format!("server {version}"))
        );
        let labels = format!("app: my-app, version: {version}");
        self.deployment(&format!("my-app-{version}"), &labels, 2, &more)
    }

    /// The Service and both versions of it.
    fn servers(self) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: my-app, namespace: {SHOP}}}\n\
             spec: {{selector: {{app: my-app}}, ports: [{{name: http, port: 80, targetPort: http}}]}}\n{}{}",
            self.server("v1"),
            self.server("v2")
        )
    }

    fn client(self) -> String {
        let role = format!("client http://my-app.{SHOP}/");
        let more = format!("        env: {}\n", application::environment(&role));
        self.deployment("client", "app: client", 1, &more)
    }

    fn peer_authentication(self) -> Option<String> {
        let mode = self.mode?;
        Some(format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: default, namespace: {SHOP}}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
        ))
    }
}

/// The cluster with its node.
struct World {
    node: Node,
    cluster: KubeCluster,
    _folder: tempfile::TempDir,
}

impl World {
    async fn start(parts: Parts, test: &str) -> Self {
        let cluster = KubeCluster::start_for_pods(parts.kube, ADDRESS);
        let folder = tempfile::tempdir().unwrap();
        let images = Images::of_the_mesh(parts.envoy).with("application", application::image(test));
        let node = Node::start(&cluster, &parts.manager, images, folder.path()).await;
        Self { node, cluster, _folder: folder }
    }

    /// Runs kubectl until it succeeds, and fails if a pod has failed.
    async fn kubectl(&self, args: &[&str]) {
        let mut said = String::new();
        until_within(WITHIN, &format!("kubectl {}", args.join(" ")), async || {
            assert_eq!(self.node.faults(), [""; 0]);
            let output = self.cluster.kubectl(args);
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            if !output.status.success() && errors != said {
                eprintln!("{errors}");
                said = errors;
            }
            output.status.success()
        })
        .await;
    }

    async fn rolled_out(&self, namespace: &str, deployment: &str) {
        let of = format!("deployment/{deployment}");
        let wait = ["-n", namespace, "rollout", "status", &of, "--timeout=2s"];
        self.kubectl(&wait).await;
    }

    /// Applies objects, and waits until every proxy has them.
    async fn apply(&self, yaml: &str) {
        self.cluster.apply(yaml);
        for object in ["vs/my-app", "dr/my-app"] {
            let wait = ["-n", SHOP, "wait", "--for=condition=Programmed", object, "--timeout=2s"];
            self.kubectl(&wait).await;
        }
    }

    fn delete(&self, kind: &str, name: &str) {
        self.cluster.kubectl_ok(&["-n", SHOP, "delete", kind, name]);
    }

    /// The address of the newest pod with these labels.
    fn newest(&self, labels: &str) -> String {
        let path = "jsonpath={.items[-1:].status.podIP}";
        let get = ["-n", SHOP, "get", "pods", "-l", labels, "-o", path];
        let sorted = "--sort-by=.metadata.creationTimestamp";
        self.cluster.kubectl_ok(&[&get[..], &[sorted]].concat())
    }

    /// What a client says.
    async fn ask(&self, method: &str, path: &str) -> Bytes {
        let url = format!("http://{}:{REPORT}{path}", self.newest("app=client"));
        send(method, &url).await.unwrap()
    }

    /// Whether a server answers somebody who has no sidecar.
    async fn takes_plain_text(&self) -> bool {
        let url = format!("http://{}:{SERVER}/healthz", self.newest("version=v2"));
        send("GET", &url).await.is_ok_and(|body| body == "ok")
    }

    async fn report(&self) -> Report {
        serde_json::from_slice(&self.ask("GET", "/report").await).unwrap()
    }

    /// Fails unless this share of requests, in percent, reaches v2, and none has failed.
    async fn assert_split(&self, percent: u32) {
        self.ask("POST", "/step").await;
        let mut report = Report::default();
        until_within(WITHIN, &format!("{ANSWERS} answers"), async || {
            assert_eq!(self.node.faults(), [""; 0]);
            report = self.report().await;
            assert!(report.failures.is_empty(), "{report:?}");
            report.step.values().sum::<u64>() >= ANSWERS
        })
        .await;
        let seen = report.step.get("v2").copied().unwrap_or(0);
        assert_share(seen, report.step.values().sum(), percent);
    }

    /// The last words of all clients that have ended.
    fn last_reports(&self) -> Vec<Report> {
        self.node.logs("app").values().filter_map(|log| application::last_report(log)).collect()
    }
}

/// Sends a request from the node.
async fn send(method: &str, url: &str) -> Result<Bytes, Box<dyn std::error::Error>> {
    let request = http::Request::builder().method(method).uri(url).body(Empty::<Bytes>::new())?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    Ok(client.request(request).await?.into_body().collect().await?.to_bytes())
}

// On threads of its own the node goes on while kubectl runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_and_a_restart_of_everything_lose_no_request() {
    const TEST: &str = "canary_in_pods::a_canary_and_a_restart_of_everything_lose_no_request";
    canary(TEST, Run { mode: Some("PERMISSIVE"), encrypted: true, annotation: "" }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_where_only_encrypted_traffic_is_taken_loses_no_request() {
    const TEST: &str =
        "canary_in_pods::a_canary_where_only_encrypted_traffic_is_taken_loses_no_request";
    canary(TEST, Run { mode: Some("STRICT"), encrypted: true, annotation: "" }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_in_plain_text_with_ordinary_containers_as_sidecars_loses_no_request() {
    const TEST: &str = "canary_in_pods::\
         a_canary_in_plain_text_with_ordinary_containers_as_sidecars_loses_no_request";
    let annotation = "sidecar.istio.io/nativeSidecar: \"false\", ";
    canary(TEST, Run { mode: Some("DISABLE"), encrypted: false, annotation }).await;
}

async fn canary(test: &str, run: Run) {
    if application::run_if_wanted().await {
        return;
    }
    let Some(parts) = parts(test) else { return };
    let world = World::start(parts, test).await;
    world.install(run).await;
    let node = &world.node;
    for v2 in [0, 10, 50] {
        world.apply(&route(SHOP, &[("v1", 100 - v2), ("v2", v2)])).await;
        world.assert_split(v2).await;
    }
    world.restart_everything().await;
    world.assert_split(50).await;
    assert_eq!(world.takes_plain_text().await, run.mode != Some("STRICT"));
    world.apply(&route(SHOP, &[("v1", 0), ("v2", 100)])).await;
    world.assert_split(100).await;
    world.clean_up().await;

    world.delete("deployment", "client");
    until_within(WITHIN, "both clients have ended", async || world.last_reports().len() == 2).await;
    for report in world.last_reports() {
        assert_no_difference(run, &report);
    }
    for ended in node.ended() {
        assert!(ended.in_time && ended.status.success(), "{ended:?}");
    }
    assert_eq!(node.faults(), [""; 0]);
    for (pod, log) in node.logs("istio-proxy") {
        assert!(!log.contains("Deprecated field"), "{pod}: {log}");
    }
}

/// Fails unless all requests of a client reached the server as they were sent, and as this run has it.
fn assert_no_difference(run: Run, report: &Report) {
    assert!(report.failures.is_empty(), "{report:?}");
    for seen in &report.seen {
        // With redirection, the sidecar connects to its application from this address.
        assert_eq!((seen.source.as_str(), seen.host.as_str()), ("127.0.0.6", "my-app.shop"));
        assert_eq!(seen.forwarded_for, "");
    }
    let with_certificate = if run.encrypted { report.sent } else { 0 };
    assert_eq!(report.with_certificate, with_certificate, "of {} requests", report.sent);
}

impl World {
    /// Installs weir, and then the application.
    async fn install(&self, run: Run) {
        let cluster = &self.cluster;
        cluster.apply_crds();
        cluster.apply_kustomization("deploy", &[]);
        self.rolled_out("weir-system", "weir").await;
        cluster.kubectl_ok(&["create", "namespace", SHOP]);
        cluster.kubectl_ok(&["label", "namespace", SHOP, "istio-injection=enabled"]);
        if let Some(policy) = run.peer_authentication() {
            cluster.apply(&policy);
        }
        cluster.apply(&rule(SHOP, &[("v1", "v1"), ("v2", "v2")]));
        cluster.apply(&route(SHOP, &[("v1", 100), ("v2", 0)]));
        cluster.apply(&run.servers());
        self.rolled_out(SHOP, "my-app-v1").await;
        self.rolled_out(SHOP, "my-app-v2").await;
        // Its first request is one that must not fail.
        cluster.apply(&run.client());
        self.rolled_out(SHOP, "client").await;
    }

    /// Restarts both versions, the client and weir at the same time.
    async fn restart_everything(&self) {
        self.cluster.kubectl_ok(&["-n", SHOP, "rollout", "restart", "deployment"]);
        self.cluster.kubectl_ok(&["-n", "weir-system", "rollout", "restart", "deployment"]);
        for name in ["my-app-v1", "my-app-v2", "client"] {
            self.rolled_out(SHOP, name).await;
        }
        self.rolled_out("weir-system", "weir").await;
        until_within(WITHIN, "the first client has ended", async || self.last_reports().len() == 1)
            .await;
    }

    /// The old version goes, and then the objects that chose between the two.
    async fn clean_up(&self) {
        self.apply(&route(SHOP, &[("v2", 100)])).await;
        self.delete("deployment", "my-app-v1");
        let gone = ["-n", SHOP, "wait", "--for=delete", "pods", "-l", "version=v1", "--timeout=2s"];
        self.kubectl(&gone).await;
        self.apply(&rule(SHOP, &[("v2", "v2")])).await;
        self.assert_split(100).await;
        self.delete("virtualservice", "my-app");
        self.delete("destinationrule", "my-app");
        self.assert_split(100).await;
    }
}

/// How a pod is given a sidecar, or not, and what its namespace says of encryption.
const WAYS: [(&str, &str, Option<&str>); 3] = [
    ("without sidecars", "sidecar.istio.io/inject: \"false\", ", None),
    ("with sidecars, plain text", "", Some("DISABLE")),
    ("with sidecars, mutual TLS", "", Some("STRICT")),
];

/// `cargo test --release --test weir -- --ignored --nocapture sidecars_cost` on an idle machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints what sidecars cost: the start of a pod, latency and memory"]
async fn sidecars_cost() {
    if application::run_if_wanted().await {
        return;
    }
    let Some(parts) = parts("canary_in_pods::sidecars_cost") else { return };
    let world = World::start(parts, "canary_in_pods::sidecars_cost").await;
    world.cluster.apply_crds();
    world.cluster.apply_kustomization("deploy", &[]);
    world.rolled_out("weir-system", "weir").await;
    world.cluster.kubectl_ok(&["create", "namespace", SHOP]);
    world.cluster.kubectl_ok(&["label", "namespace", SHOP, "istio-injection=enabled"]);
    for (way, annotation, mode) in WAYS {
        let run = Run { mode, encrypted: mode == Some("STRICT"), annotation };
        if let Some(policy) = run.peer_authentication() {
            world.cluster.apply(&policy);
        }
        world.cluster.apply(&run.servers());
        world.rolled_out(SHOP, "my-app-v1").await;
        world.rolled_out(SHOP, "my-app-v2").await;
        let begun = application::unix_millis();
        world.cluster.apply(&run.client());
        world.rolled_out(SHOP, "client").await;
        let mut report = Report::default();
        until_within(WITHIN, "the first answer", async || {
            report = world.report().await;
            report.first_answer > 0
        })
        .await;
        let first = report.first_answer - begun;
        let Latency { median, p99 } =
            serde_json::from_slice(&world.ask("POST", "/measure").await).unwrap();
        println!("{way}: first answer {first} ms, a request {median} us, p99 {p99} us");
        for (program, sizes) in memory() {
            println!("  {program}: {sizes:?} KB");
        }
        world.cluster.kubectl_ok(&["-n", SHOP, "delete", "deployments", "--all"]);
        let gone = ["-n", SHOP, "wait", "--for=delete", "pods", "--all", "--timeout=2s"];
        world.kubectl(&gone).await;
    }
}

/// The resident memory of each sidecar's Envoy and agent, in kilobytes.
fn memory() -> [(&'static str, Vec<u64>); 2] {
    [("envoy", "/usr/local/bin/envoy\0"), ("agent", "weir\0agent\0run\0")].map(|(name, command)| {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let of_sidecars = processes.filter(|process| {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(command)
        });
        let sizes = of_sidecars.filter_map(|process| {
            let status = std::fs::read_to_string(process.path().join("status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.to_owned();
            line.trim().split(' ').next()?.parse().ok()
        });
        (name, sizes.collect())
    })
}
