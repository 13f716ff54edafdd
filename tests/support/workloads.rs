//! Workloads on a real API server: the real controllers of Deployments, ReplicaSets and EndpointSlices, and pods that are
//! made ready by a stand-in for the kubelet, each with an address of 10.2.0.0/16 on which a backend answers.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;

use axum::Router;
use axum::routing::any;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::process::{Launch, Supervised};

/// The port of every pod.
const PORT: u16 = 8080;

/// The node of every pod.
const NODE: &str = "node";

/// Running controllers and pods; they stop when dropped.
pub(crate) struct Workloads {
    _controllers: Supervised,
    _kubelet: JoinSet<()>,
}

impl Workloads {
    /// Starts them in the network of [`super::network::is_inside_of_pods`]. `manager` is kube-controller-manager.
    pub(crate) async fn start(client: &Client, kubeconfig: &Path, manager: &Path) -> Self {
        // A pod without a node is in no slice.
        let node = json!({"metadata": {"name": NODE}});
        let node: Node = serde_json::from_value(node).expect("a Node");
        let nodes: Api<Node> = Api::all(client.clone());
        nodes.create(&PostParams::default(), &node).await.expect("the Node");
        let args = [
            format!("--kubeconfig={}", kubeconfig.display()),
            "--controllers=deployment-controller,replicaset-controller,endpointslice-controller"
                .into(),
            "--leader-elect=false".into(),
            // It serves nothing.
            "--secure-port=0".into(),
            // Changes of pods reach slices at once.
            "--endpointslice-updates-batch-period=0s".into(),
        ];
        let mut kubelet = JoinSet::new();
        kubelet.spawn(run_pods(client.clone()));
        Self { _controllers: supervised(manager, args.to_vec()), _kubelet: kubelet }
    }
}

/// Starts a program whose output is not looked at.
pub(crate) fn supervised(program: &Path, args: Vec<String>) -> Supervised {
    let (stdout, stderr) = match std::env::var_os("WEIR_TEST_LOGS") {
        Some(_) => (Stdio::inherit(), Stdio::inherit()),
        None => (Stdio::null(), Stdio::null()),
    };
    let launch = Launch { program, args, stdout, stderr, grace_tenths: 20, remove: None };
    Supervised::spawn(launch).unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

/// Makes every pod ready as soon as its backend listens, and lets deleted pods go. A backend that no pod needs any more goes on, as one that drains
/// does.
async fn run_pods(client: Client) {
    let pods: Api<Pod> = Api::all(client.clone());
    let mut events =
        watcher(pods, watcher::Config::default()).default_backoff().applied_objects().boxed();
    let mut backends = JoinSet::new();
    let mut running = BTreeSet::new();
    while let Some(event) = events.next().await {
        // The watch goes on by itself.
        let Ok(pod) = event else { continue };
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
        // Requests about a pod fail if it is deleted meanwhile.
        if pod.metadata.deletion_timestamp.is_some() {
            let _ = api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
            continue;
        }
        if !running.insert(pod.uid()) {
            continue;
        }
        let number = u16::try_from(running.len()).expect("fewer pods than addresses");
        let [high, low] = number.to_be_bytes();
        let address = Ipv4Addr::new(10, 2, high, low);
        let listener = TcpListener::bind((address, PORT)).await.expect("the address of a pod");
        backends.spawn(serve(listener, version(&pod)));
        let _ = client.request::<Status>(binding(&pod)).await;
        let status = Patch::Merge(status(address));
        let _ = api.patch_status(&pod.name_any(), &PatchParams::default(), &status).await;
    }
}

/// Assigns a pod to the node, as the scheduler does.
fn binding(pod: &Pod) -> http::Request<Vec<u8>> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                      "target": {"apiVersion": "v1", "kind": "Node", "name": NODE}});
    http::Request::post(format!("/api/v1/namespaces/{namespace}/pods/{name}/binding"))
        .header("content-type", "application/json")
        .body(body.to_string().into_bytes())
        .expect("a request")
}

fn status(address: Ipv4Addr) -> serde_json::Value {
    let since = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition =
        |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": since});
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
    json!({"status": {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": since,
        "conditions": conditions,
    }})
}

/// The tag of the image of the pod.
fn version(pod: &Pod) -> String {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let image = containers.first().and_then(|container| container.image.as_deref());
    image.and_then(|image| image.rsplit(':').next()).unwrap_or_default().to_owned()
}

/// Answers with the version.
async fn serve(listener: TcpListener, version: String) {
    let router = Router::new().fallback(any(move || {
        let version = version.clone();
        async move { version }
    }));
    axum::serve(listener, router).await.expect("a backend");
}
