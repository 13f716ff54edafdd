//! The status of VirtualServices and DestinationRules that `weir serve` writes, on a real API server, with scripted
//! proxies.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Output;
use std::time::Instant;

use http::StatusCode;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};
use tokio::sync::watch;
use tonic::transport::Channel;
use weir::replicas::{BURST, WRITES_PER_SECOND};

use crate::support::ads::{Ask, CDS, Client, EDS, LDS, RDS, Variant, ask};
use crate::support::kube::{KubeCluster, istio_api};
use crate::support::mesh::{DEADLINE, Serve, post, until};
use crate::support::network;
use crate::support::process::free_port;

const NAMESPACE: &str = "your-namespace";

/// Short, so that a test need not wait long for another replica to take over.
const LEASE: &str = "6";

/// A cluster with the canary of the examples, and a client of its API.
struct World {
    cluster: KubeCluster,
    client: kube::Client,
}

impl World {
    async fn start(test: &str) -> Option<Self> {
        let cluster = KubeCluster::start(test)?;
        cluster.apply_crds();
        cluster.kubectl_ok(&["create", "namespace", "weir-system"]);
        cluster.apply_folder("deploy/examples/canary");
        let client = cluster.client().await;
        Some(Self { cluster, client })
    }

    fn weir(&self, pod: &str, more: &[&str]) -> Serve {
        weir(self.cluster.kubeconfig_path(), pod, (free_port(), free_port()), more)
    }

    fn api(&self, kind: &str) -> Api<DynamicObject> {
        istio_api(&self.client, NAMESPACE, kind)
    }

    /// Waits until `holds` is true of the object, and returns it.
    async fn until(
        &self,
        what: &str,
        kind: &str,
        name: &str,
        holds: impl Fn(&Seen) -> bool + Sync,
    ) -> Seen {
        let last = std::sync::Mutex::new(None);
        let found = |object: Option<&DynamicObject>| {
            let seen = object.map(Seen::of);
            let found = seen.as_ref().is_some_and(&holds);
            *last.lock().unwrap() = seen;
            found
        };
        let waited =
            tokio::time::timeout(DEADLINE, await_condition(self.api(kind), name, found)).await;
        let last = last.into_inner().unwrap();
        let Ok(found) = waited else {
            panic!("waited {DEADLINE:?} for: {what}; it has: {last:#?}")
        };
        Seen::of(&found.unwrap().expect("the object"))
    }

    /// Waits until the route of the canary has a condition with this status and a message like this.
    async fn until_condition(&self, kind: &str, status: &str, message: &str) -> Seen {
        let what = format!("{kind}={status} with `{message}`");
        self.until(&what, "VirtualService", "my-app", |seen| {
            let condition = seen.condition(kind);
            condition["status"] == status
                && condition["message"].as_str().is_some_and(|text| text.contains(message))
        })
        .await
    }

    fn patch(&self, object: &str, patch: &Value) {
        let patch = patch.to_string();
        self.cluster.kubectl_ok(&["-n", NAMESPACE, "patch", object, "--type=merge", "-p", &patch]);
    }

    fn weights(&self, weights: &[(&str, i64)]) {
        self.patch("vs/my-app", &json!({"spec": spec(weights)}));
    }

    /// `kubectl wait` for the condition Programmed.
    fn wait(&self, object: &str, timeout: &str) -> Output {
        let (condition, timeout) = ("--for=condition=Programmed", format!("--timeout={timeout}"));
        self.cluster.kubectl(&["-n", NAMESPACE, "wait", condition, object, &timeout])
    }
}

/// The routes of the canary with these weights.
fn spec(weights: &[(&str, i64)]) -> Value {
    let routes = weights.iter().map(|(subset, weight)| {
        json!({"destination": {"host": "my-app", "subset": subset}, "weight": weight})
    });
    json!({"hosts": ["my-app"], "http": [{"route": routes.collect::<Vec<_>>()}]})
}

fn weir(kubeconfig: &Path, pod: &str, (xds, admin): (u16, u16), more: &[&str]) -> Serve {
    let args = ["--kubeconfig", kubeconfig.to_str().unwrap(), "--pod-namespace", "weir-system"];
    let args = [&args[..], &["--pod-name", pod, "--status-lease", LEASE], more].concat();
    // Replicas ask one another.
    Serve::start_at(Ipv4Addr::UNSPECIFIED, &args, xds, admin)
}

/// An object as the API has it.
#[derive(Debug)]
struct Seen {
    generation: i64,
    version: String,
    spec: Value,
    status: Value,
}

impl Seen {
    fn of(object: &DynamicObject) -> Self {
        Self {
            generation: object.metadata.generation.unwrap(),
            version: object.metadata.resource_version.clone().unwrap(),
            spec: object.data["spec"].clone(),
            status: object.data["status"].clone(),
        }
    }

    fn condition(&self, kind: &str) -> Value {
        let mut all = self.status["conditions"].as_array().into_iter().flatten();
        all.find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
    }
}

/// A proxy that requests everything, and ACKs it as long as `acks` says so.
struct Proxy {
    acks: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    async fn start(pod: &str, xds: u16, acks: bool) -> Self {
        let channel = Channel::from_shared(format!("http://127.0.0.1:{xds}")).unwrap();
        let mut client = Client::open(channel.connect().await.unwrap(), Variant::Delta, None).await;
        let node = format!("sidecar~127.0.0.1~{pod}.shop~shop.svc.cluster.local");
        client.send(Ask { node: Some(node), ..ask(CDS, &[]) }).await;
        let (acks, mut may_ack) = watch::channel(acks);
        let task = tokio::spawn(async move {
            let mut subscribed = false;
            // Ends with the stream, or with the proxy.
            while let Ok(got) = client.message().await {
                if may_ack.wait_for(|may| *may).await.is_err() {
                    return;
                }
                client.ack(&got).await;
                if got.type_url != CDS {
                    continue;
                }
                let has_endpoints = |name: &&str| name.starts_with("outbound|");
                let names: Vec<&str> = got.names().into_iter().filter(has_endpoints).collect();
                client.send(ask(EDS, &names)).await;
                if !std::mem::replace(&mut subscribed, true) {
                    client.send(ask(LDS, &[])).await;
                    client.send(ask(RDS, &["80"])).await;
                }
            }
        });
        Self { acks, task }
    }

    fn ack(&self, may: bool) {
        self.acks.send_replace(may);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether this replica writes the status.
async fn leads(weir: &Serve) -> bool {
    weir.metric("weir_status_leader ").await == Some(1)
}

async fn writes(weir: &Serve) -> u64 {
    weir.metric("weir_status_writes_total ").await.unwrap()
}

// The proxies go on while kubectl waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_tell_what_becomes_of_a_version_of_an_object() {
    let name = "conditions_tell_what_becomes_of_a_version_of_an_object";
    let Some(world) = World::start(name).await else { return };
    let weir = world.weir("weir-0", &[]);
    let first = world
        .until_condition("Programmed", "True", "0/0 proxies; no connected proxy sees it")
        .await;
    assert_eq!(first.condition("Accepted")["status"], "True");
    assert_eq!(first.condition("Held")["status"], "False");
    assert_eq!(first.condition("Programmed")["observedGeneration"], 1);
    assert!(world.wait("vs/my-app", "60s").status.success());

    // It is false while a proxy does not answer, and says which.
    let proxy = Proxy::start("client-0", weir.xds, true).await;
    world.until_condition("Programmed", "True", "1/1 proxy").await;
    proxy.ack(false);
    world.weights(&[("v1", 80), ("v2", 20)]);
    let pending =
        world.until_condition("Programmed", "False", "0/1 proxy; waiting for shop/client-0").await;
    assert_eq!(pending.condition("Programmed")["reason"], "Pending");
    assert_eq!(pending.condition("Programmed")["observedGeneration"], 2);
    assert!(!world.wait("vs/my-app", "1s").status.success());
    proxy.ack(true);
    let waited = world.wait("vs/my-app", "60s");
    assert!(waited.status.success(), "{waited:?}");
    let live = world.until_condition("Programmed", "True", "1/1 proxy").await;
    assert_eq!(live.condition("Programmed")["observedGeneration"], 2);
    assert_eq!((live.generation, &live.spec), (2, &spec(&[("v1", 80), ("v2", 20)])));
    let columns = world.cluster.kubectl_ok(&["-n", NAMESPACE, "get", "vs,dr", "--no-headers"]);
    let shows_both =
        |line: &str| line.split_whitespace().filter(|word| *word == "True").count() == 2;
    assert!(columns.lines().all(shows_both), "{columns}");

    // The API refuses what was decided on an older version, as by a replica that is no longer elected.
    let stale = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "my-app", "namespace": NAMESPACE, "resourceVersion": pending.version},
        "status": {"conditions": [{"type": "Programmed", "status": "Unknown"}]}});
    let refused = world
        .api("VirtualService")
        .patch_status("my-app", &PatchParams::apply("weir").force(), &Patch::Apply(stale))
        .await;
    assert!(matches!(&refused, Err(kube::Error::Api(status)) if status.code == 409), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_name_the_field_that_is_wrong_and_what_is_held_back() {
    let name = "conditions_name_the_field_that_is_wrong_and_what_is_held_back";
    let Some(world) = World::start(name).await else { return };
    let weir = world.weir("weir-0", &[]);
    weir.ready().await;
    let _proxy = Proxy::start("client-0", weir.xds, true).await;
    world.until_condition("Programmed", "True", "1/1 proxy").await;

    // A rejected version changes nothing, and its field is named.
    world.weights(&[("v1", 80), ("v2", -5)]);
    let rejected =
        world.until_condition("Accepted", "False", "spec.http[0].route[1].weight: is -5").await;
    let programmed = rejected.condition("Programmed");
    assert_eq!(
        (&programmed["status"], &programmed["reason"]),
        (&json!("False"), &json!("Invalid"))
    );
    assert_eq!(programmed["observedGeneration"], 2);
    let message = programmed["message"].as_str().unwrap();
    assert!(message.contains("generation 1 stays in force: 1/1 proxy"), "{message}");
    assert_eq!(weir.metric("weir_config_problems ").await, Some(1));

    // Weight for a subset without a ready endpoint is held back.
    let subsets = ["v1", "v2", "v3"].map(|name| json!({"name": name, "labels": {"version": name}}));
    world.patch("dr/my-app", &json!({"spec": {"subsets": subsets}}));
    world.weights(&[("v1", 80), ("v3", 20)]);
    world.until_condition("Held", "True", "weight 20 for subset `v3`").await;
    let held = |seen: &Seen| {
        seen.condition("Programmed")["reason"] == "Held"
            && seen.condition("Accepted")["status"] == "True"
    };
    world.until("the reason of both", "VirtualService", "my-app", held).await;
    assert!(!world.wait("vs/my-app", "1s").status.success());
    let label = ["-n", NAMESPACE, "label", "pod", "my-app-v1-0", "version=v3", "--overwrite"];
    world.cluster.kubectl_ok(&label);
    assert!(world.wait("vs/my-app", "60s").status.success());
    let held = world.until_condition("Held", "False", "").await;
    assert_eq!(held.condition("Held")["observedGeneration"], 3);
    assert!(world.wait("dr/my-app", "60s").status.success());
}

/// Adds a condition of another writer.
async fn foreign(world: &World, status: &str) {
    let status = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "my-app", "namespace": NAMESPACE},
        "status": {"conditions": [{"type": "Reconciled", "status": status, "reason": "Other", "message": "",
                                   "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let params = PatchParams::apply("other").force();
    let api = world.api("VirtualService");
    api.patch_status("my-app", &params, &Patch::Apply(status)).await.unwrap();
}

#[tokio::test]
async fn conditions_of_other_writers_stay_whatever_the_definition() {
    let name = "conditions_of_other_writers_stay_whatever_the_definition";
    let Some(world) = World::start(name).await else { return };
    foreign(&world, "True").await;
    let weir = world.weir("weir-0", &[]);
    let seen = world.until_condition("Programmed", "True", "0/0").await;
    assert_eq!(seen.condition("Reconciled")["status"], "True");
    // Each owns its own conditions only: the other can change and remove its own.
    foreign(&world, "False").await;
    world.weights(&[("v1", 70), ("v2", 30)]);
    let both = |seen: &Seen| {
        seen.condition("Reconciled")["status"] == "False"
            && seen.condition("Programmed")["observedGeneration"] == seen.generation
    };
    world.until("both writers' conditions", "VirtualService", "my-app", both).await;

    // What somebody takes away is written again.
    let emptied = json!({"status": {"conditions": []}});
    let api = world.api("VirtualService");
    api.patch_status("my-app", &PatchParams::default(), &Patch::Merge(emptied)).await.unwrap();
    let seen = world.until_condition("Programmed", "True", "0/0").await;
    assert_eq!(seen.condition("Reconciled"), Value::Null);
    drop(weir);

    // Istio's definitions have an atomic list, and older ones drop the generation of a condition.
    atomic_conditions(&world);
    let weir = world.weir("weir-0", &[]);
    weir.ready().await;
    let condition = json!({"status": {"conditions": [{"type": "Reconciled", "status": "True"}]}});
    api.patch_status("my-app", &PatchParams::default(), &Patch::Merge(condition)).await.unwrap();
    let both = |seen: &Seen| {
        seen.condition("Reconciled")["status"] == "True"
            && seen.condition("Programmed")["status"] == "True"
    };
    world.until("both writers' conditions", "VirtualService", "my-app", both).await;
    for n in [31, 32] {
        world.weights(&[("v1", 100 - n), ("v2", n)]);
        let of_this =
            |seen: &Seen| both(seen) && seen.status["observedGeneration"] == seen.generation;
        let seen = world.until("the generation", "VirtualService", "my-app", of_this).await;
        assert_eq!(seen.condition("Programmed").get("observedGeneration"), None);
        assert!(world.wait("vs/my-app", "60s").status.success());
    }
    // Although the API does not keep what is written as it is, it is written once: this is what it cost.
    let before = writes(&weir).await;
    world.patch(
        "dr/my-app",
        &json!({"metadata": {"labels": {"a": "b"}}, "spec": {"host": "my-app.your-namespace"}}),
    );
    let newest = |seen: &Seen| seen.condition("Programmed")["observedGeneration"] == 2;
    world.until("the rule's generation", "DestinationRule", "my-app", newest).await;
    assert_eq!(writes(&weir).await, before + 1);
}

/// Makes the definition's list of conditions as older definitions of Istio have it.
fn atomic_conditions(world: &World) {
    let crd = "virtualservices.networking.istio.io";
    let text = world.cluster.kubectl_ok(&["get", "crd", crd, "-o", "json"]);
    let mut definition: Value = serde_json::from_str(&text).unwrap();
    let string = json!({"type": "string"});
    for version in definition["spec"]["versions"].as_array_mut().unwrap() {
        version["schema"]["openAPIV3Schema"]["properties"]["status"] = json!({
            "type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "conditions": {"type": "array", "items": {"type": "object", "properties": {
                    "type": string, "status": string, "reason": string, "message": string,
                    "lastProbeTime": string, "lastTransitionTime": string}}},
                "validationMessages": {"type": "array",
                    "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
                "observedGeneration": {"x-kubernetes-int-or-string": true}}});
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), definition.to_string()).unwrap();
    world.cluster.kubectl_ok(&["replace", "-f", file.path().to_str().unwrap()]);
}

/// The headless Service's slice of a replica.
fn slice(pod: &str, address: &str, port: u16, serving: bool) -> String {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": pod, "namespace": "weir-system",
                     "labels": {"kubernetes.io/service-name": "weir-replicas"}},
        "ports": [{"name": "http-monitoring", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "targetRef": {"kind": "Pod", "name": pod, "namespace": "weir-system"},
                       "conditions": {"ready": serving, "serving": serving, "terminating": false}}]})
    .to_string()
}

const PODS: [&str; 2] = ["weir-0", "weir-1"];

/// In the network of [`network::is_inside`]. The API does not accept loopback addresses in slices.
const ADDRESSES: [&str; 2] = ["10.1.0.1", "10.1.0.2"];

/// Two replicas that know of each other, each with a proxy.
struct Pair {
    world: World,
    ports: [(u16, u16); 2],
    replicas: [Serve; 2],
    proxies: [Proxy; 2],
}

impl Pair {
    async fn start(test: &str) -> Option<Self> {
        let world = World::start(test).await?;
        let ports = [0, 1].map(|_| (free_port(), free_port()));
        let replicas = [0, 1].map(|n| Self::replica(&world, n, ports));
        let mut proxies = Vec::new();
        for (n, replica) in replicas.iter().enumerate() {
            replica.ready().await;
            proxies.push(Proxy::start(&format!("client-{n}"), replica.xds, true).await);
        }
        let proxies = proxies.try_into().ok().unwrap();
        let pair = Self { world, ports, replicas, proxies };
        [0, 1].into_iter().for_each(|n| pair.serving(n, true));
        pair.world.until_condition("Programmed", "True", "2/2 proxies").await;
        Some(pair)
    }

    fn replica(world: &World, n: usize, ports: [(u16, u16); 2]) -> Serve {
        weir(
            world.cluster.kubeconfig_path(),
            PODS[n],
            ports[n],
            &["--replicas-service", "weir-replicas"],
        )
    }

    /// Starts a replica that was killed, and its proxy.
    async fn restart(&mut self, n: usize) {
        self.replicas[n] = Self::replica(&self.world, n, self.ports);
        self.replicas[n].ready().await;
        self.serving(n, true);
        self.proxies[n] = Proxy::start(&format!("client-{n}"), self.replicas[n].xds, true).await;
    }

    /// Writes whether a replica is ready.
    fn serving(&self, n: usize, serving: bool) {
        self.world.cluster.apply(&slice(PODS[n], ADDRESSES[n], self.ports[n].1, serving));
    }

    /// The replica that writes the status, and the other one.
    async fn leader(&self) -> (usize, usize) {
        let mut leader = 0;
        until("one of them writes", async || {
            leader = usize::from(leads(&self.replicas[1]).await);
            leads(&self.replicas[leader]).await
        })
        .await;
        (leader, 1 - leader)
    }
}

// The proxies go on while kubectl waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_counts_whichever_replica_it_is_connected_to() {
    if !network::is_inside() {
        return;
    }
    let name = "a_proxy_counts_whichever_replica_it_is_connected_to";
    let Some(pair) = Pair::start(name).await else { return };
    for (n, weights) in [(0, [75, 25]), (1, [80, 20]), (0, [70, 30]), (1, [60, 40])] {
        pair.proxies[n].ack(false);
        pair.world.weights(&[("v1", weights[0]), ("v2", weights[1])]);
        let missing = format!("1/2 proxies; waiting for shop/client-{n}");
        let report = pair.world.until_condition("Programmed", "False", &missing).await;
        assert_eq!(report.condition("Programmed")["observedGeneration"], report.generation);
        // So do the gates of rollout tools, at whichever replica they ask.
        for replica in &pair.replicas {
            until("the gate names the proxy", async || {
                let (status, answer) = gate(replica.admin, "0s").await;
                status == StatusCode::CONFLICT && answer.contains(&missing)
            })
            .await;
        }
        let waiting =
            pair.replicas.each_ref().map(|replica| tokio::spawn(gate(replica.admin, "20s")));
        pair.proxies[n].ack(true);
        for answer in waiting {
            let (status, answer) = answer.await.unwrap();
            assert_eq!(status, StatusCode::OK, "{answer}");
            assert!(answer.ends_with("is live: 2/2 proxies\n"), "{answer}");
        }
        let waited = pair.world.wait("vs/my-app", "60s");
        assert!(waited.status.success(), "{waited:?}");
        pair.world.until_condition("Programmed", "True", "2/2 proxies").await;
    }
}

/// What a replica's gate for Flagger answers about the canary of the examples within a time.
async fn gate(admin: u16, timeout: &str) -> (StatusCode, String) {
    let body = json!({"name": "my-app", "namespace": NAMESPACE, "phase": "Progressing",
                      "checksum": "1", "metadata": {"timeout": timeout}});
    post(admin, "/gates/flagger", &body.to_string()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_killed_is_named_and_another_takes_over() {
    if !network::is_inside() {
        return;
    }
    let name = "a_replica_that_is_killed_is_named_and_another_takes_over";
    let Some(mut pair) = Pair::start(name).await else { return };
    // It is named until its readiness says that it does not serve.
    let (leader, other) = pair.leader().await;
    pair.replicas[other].kill();
    let (pod, address) = (PODS[other], ADDRESSES[other]);
    let message = format!("1/1 proxy; replica {pod} cannot be asked: {address}");
    until("the gate names the replica", async || {
        let (status, answer) = gate(pair.replicas[leader].admin, "0s").await;
        status == StatusCode::CONFLICT && answer.contains(&message)
    })
    .await;
    let report = pair.world.until_condition("Programmed", "Unknown", &message).await;
    assert_eq!(report.condition("Programmed")["reason"], "ReplicaUnreachable");
    assert_eq!(pair.replicas[leader].metric("weir_replicas_unreachable ").await, Some(1));
    pair.serving(other, false);
    pair.world.until_condition("Programmed", "True", "1/1 proxy").await;
    pair.restart(other).await;
    pair.world.until_condition("Programmed", "True", "2/2 proxies").await;

    // The one that writes is killed in the middle of a canary.
    let (leader, other) = pair.leader().await;
    pair.world.weights(&[("v1", 80), ("v2", 20)]);
    pair.replicas[leader].kill();
    pair.world.weights(&[("v1", 70), ("v2", 30)]);
    until("the other one writes", async || leads(&pair.replicas[other]).await).await;
    let newest = |seen: &Seen| {
        let programmed = seen.condition("Programmed");
        programmed["status"] == "Unknown" && programmed["observedGeneration"] == 3
    };
    let report = pair.world.until("the answer", "VirtualService", "my-app", newest).await;
    let message = report.condition("Programmed")["message"].to_string();
    assert!(message.contains(PODS[leader]), "{message}");
    let gone = ["-n", "weir-system", "delete", "endpointslice", PODS[leader]];
    pair.world.cluster.kubectl_ok(&gone);
    pair.world.until_condition("Programmed", "True", "1/1 proxy").await;
    assert!(pair.world.wait("vs/my-app", "60s").status.success());
}

/// More VirtualServices, each for a host of its own.
fn many(count: usize) -> String {
    let item = |n: usize| {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": format!("many-{n}"), "namespace": NAMESPACE},
            "spec": {"hosts": [format!("many-{n}.example")], "http": [{"route": [{"destination": {"host": "my-app"}}]}]}})
    };
    json!({"apiVersion": "v1", "kind": "List", "items": (0..count).map(item).collect::<Vec<_>>()})
        .to_string()
}

#[tokio::test]
async fn a_storm_costs_no_more_writes_than_stated_and_no_change_costs_none() {
    let name = "a_storm_costs_no_more_writes_than_stated_and_no_change_costs_none";
    let Some(world) = World::start(name).await else { return };
    const COUNT: usize = 200;
    world.cluster.apply(&many(COUNT));
    let begun = Instant::now();
    let allowed = || {
        let seconds = begun.elapsed().as_secs_f64();
        u64::from(BURST) + 1 + (seconds * f64::from(WRITES_PER_SECOND)).ceil() as u64
    };
    let weir = world.weir("weir-0", &[]);
    weir.ready().await;
    // Each costs one write, and so do the two objects of the canary.
    until("everything is written", async || {
        let written = writes(&weir).await;
        assert!(written <= allowed(), "{written} writes");
        written == COUNT as u64 + 2 && weir.metric("weir_status_pending ").await == Some(0)
    })
    .await;

    // Many versions of one object in a short time do not cost a write each.
    for n in 1..=30 {
        world.weights(&[("v1", 100 - n), ("v2", n)]);
    }
    let newest = |seen: &Seen| {
        seen.generation == 31 && seen.condition("Programmed")["observedGeneration"] == 31
    };
    world.until("the newest version", "VirtualService", "my-app", newest).await;
    let written = writes(&weir).await;
    assert!(written <= allowed(), "{written} writes");
    assert_eq!(weir.metric("weir_status_write_errors_total ").await, Some(0));

    // A replica that takes over finds that nothing is to be written.
    weir.terminate();
    let next = world.weir("weir-1", &[]);
    until("the next one writes", async || leads(&next).await).await;
    world.weights(&[("v1", 50), ("v2", 50)]);
    let newest = |seen: &Seen| {
        seen.generation == 32 && seen.condition("Programmed")["observedGeneration"] == 32
    };
    world.until("the newest version", "VirtualService", "my-app", newest).await;
    assert_eq!(writes(&next).await, 1);
}

#[tokio::test]
async fn a_replica_that_was_stopped_in_its_writes_does_not_write_when_it_goes_on() {
    let name = "a_replica_that_was_stopped_in_its_writes_does_not_write_when_it_goes_on";
    let Some(world) = World::start(name).await else { return };
    const COUNT: u64 = 150;
    world.cluster.apply(&many(COUNT as usize));
    let first = world.weir("weir-0", &[]);
    until("it is in the middle of its writes", async || {
        first
            .metric("weir_status_pending ")
            .await
            .is_some_and(|pending| (1..COUNT).contains(&pending))
    })
    .await;
    signal(&first, nix::sys::signal::Signal::SIGSTOP);
    let second = world.weir("weir-1", &[]);
    until("another one takes over", async || leads(&second).await).await;
    until("the other one has written the rest", async || {
        writes(&second).await > 0 && second.metric("weir_status_pending ").await == Some(0)
    })
    .await;
    world.weights(&[("v1", 50), ("v2", 50)]);
    let report = world
        .until("the newest version", "VirtualService", "my-app", |seen| {
            seen.condition("Programmed")["observedGeneration"] == 2
        })
        .await;

    signal(&first, nix::sys::signal::Signal::SIGCONT);
    until("the first one notices", async || !leads(&first).await).await;
    assert!(leads(&second).await);
    let now = world.until_condition("Programmed", "True", "").await;
    assert_eq!((&now.status, &now.version), (&report.status, &report.version));
    assert_eq!(first.metric("weir_status_pending ").await, Some(0));
    // All of it was written by one or the other.
    let listed = world.api("VirtualService").list(&Default::default()).await.unwrap();
    let programmed =
        |object: &DynamicObject| Seen::of(object).condition("Programmed")["status"] == "True";
    assert!(listed.items.iter().all(programmed));
    assert_eq!(listed.items.len() as u64, COUNT + 1);
}

fn signal(weir: &Serve, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(weir.id().cast_signed());
    nix::sys::signal::kill(pid, signal).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_of_the_api_the_status_is_true_again() {
    let name = "after_an_outage_of_the_api_the_status_is_true_again";
    let Some(mut world) = World::start(name).await else { return };
    let weir = world.weir("weir-0", &[]);
    weir.ready().await;
    let proxy = Proxy::start("client-0", weir.xds, true).await;
    world.until_condition("Programmed", "True", "1/1 proxy").await;
    // The Lease cannot be renewed, so it no longer writes; what proxies do meanwhile is not lost.
    world.cluster.stop_apiserver();
    until("the replica stops writing", async || !leads(&weir).await).await;
    drop(proxy);
    let gone = async || weir.proxies().await.is_some_and(|proxies| proxies.is_empty());
    until("the proxy has left", gone).await;
    world.cluster.start_apiserver();
    until("the replica writes again", async || leads(&weir).await).await;
    world.until_condition("Programmed", "True", "0/0 proxies").await;
    world.weights(&[("v1", 50), ("v2", 50)]);
    assert!(world.wait("vs/my-app", "60s").status.success());
}

#[tokio::test]
async fn nothing_is_written_if_that_is_turned_off() {
    let Some(world) = World::start("nothing_is_written_if_that_is_turned_off").await else {
        return;
    };
    let weir = world.weir("weir-0", &["--status", "off"]);
    weir.ready().await;
    let before = weir.revision().await;
    world.weights(&[("v1", 50), ("v2", 50)]);
    until("the change is in force", async || weir.revision().await > before).await;
    assert_eq!((writes(&weir).await, leads(&weir).await), (0, false));
    assert!(
        !world
            .cluster
            .kubectl(&["-n", "weir-system", "get", "lease", "weir-status"])
            .status
            .success()
    );
}
