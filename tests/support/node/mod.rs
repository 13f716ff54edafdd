//! A node of a cluster: it runs the pods of a real API server as a kubelet and a container runtime do.
//!
//! Each pod has a network namespace with an address, each container a process namespace, files of its own, its user and its
//! capabilities. Images are programs of this machine ([`images::Images`]). Volumes have real tokens and the objects of the
//! API; they do not change afterwards. Services lead to their endpoints and have names. NetworkPolicies, limits of resources,
//! seccomp profiles and restarts of containers are not there: a container that ends by itself is a fault ([`Node::faults`]).

pub(crate) mod application;
mod container;
mod environment;
pub(crate) mod images;
mod network;
mod pod;
mod probe;
mod services;
mod volumes;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::kube::KubeCluster;
use super::process::Supervised;
use super::workloads::supervised;
use images::Images;

/// The address of the node, at which the API and DNS are.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 1);

/// The name of the node.
const NODE: &str = "node";

/// How a container that was told to end did so.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub pod: String,
    pub container: String,
    pub status: ExitStatus,
    /// Whether all of its pod ended before the grace period did.
    pub in_time: bool,
}

/// What the tasks of the node share.
struct Shared {
    client: Client,
    /// Host and port of the API.
    api: (String, u16),
    images: Images,
    folder: PathBuf,
    faults: Mutex<Vec<String>>,
    ended: Mutex<Vec<Ended>>,
}

impl Shared {
    fn fault(&self, fault: String) {
        self.faults.lock().push(fault);
    }
}

/// A running node with the controllers of the cluster. Its pods end with the process.
pub(crate) struct Node {
    shared: Arc<Shared>,
    _controllers: Supervised,
    _tasks: JoinSet<()>,
}

impl Node {
    /// Starts it in the network of [`super::network::is_inside_of_a_node`]. `manager` is kube-controller-manager, and
    /// `folder` gets the files of the pods.
    pub(crate) async fn start(
        cluster: &KubeCluster,
        manager: &Path,
        images: Images,
        folder: &Path,
    ) -> Self {
        let client = cluster.client().await;
        cluster.apply(
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}).to_string(),
        );
        let args = [
            format!("--kubeconfig={}", cluster.kubeconfig_path().display()),
            "--controllers=deployment-controller,replicaset-controller,endpointslice-controller,\
             serviceaccount-controller,root-ca-certificate-publisher-controller,\
             garbage-collector-controller"
                .to_owned(),
            format!("--root-ca-file={}", cluster.authority().display()),
            "--leader-elect=false".to_owned(),
            // It serves nothing.
            "--secure-port=0".to_owned(),
        ];
        let shared = Arc::new(Shared {
            client: client.clone(),
            api: (ADDRESS.to_string(), cluster.port()),
            images,
            folder: folder.to_owned(),
            faults: Mutex::default(),
            ended: Mutex::default(),
        });
        let names = services::Names::default();
        let socket = UdpSocket::bind((ADDRESS, 53)).await.expect("the port of DNS");
        let mut tasks = JoinSet::new();
        tasks.spawn(services::answer(socket, names.clone()));
        tasks.spawn(services::follow(client, names));
        tasks.spawn(run_pods(shared.clone()));
        Self { shared, _controllers: supervised(manager, args.to_vec()), _tasks: tasks }
    }

    /// What has gone wrong with pods so far.
    pub(crate) fn faults(&self) -> Vec<String> {
        self.shared.faults.lock().clone()
    }

    /// The containers that have ended because their pods were deleted.
    pub(crate) fn ended(&self) -> Vec<Ended> {
        self.shared.ended.lock().clone()
    }

    /// The output of every container with this name so far, by pod.
    pub(crate) fn logs(&self, container: &str) -> BTreeMap<String, String> {
        let pods = std::fs::read_dir(&self.shared.folder).into_iter().flatten().flatten();
        pods.filter_map(|pod| {
            let log = std::fs::read(pod.path().join(container).join("log")).ok()?;
            let name = pod.file_name().to_string_lossy().into_owned();
            Some((name, String::from_utf8_lossy(&log).into_owned()))
        })
        .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("faults: {:#?}", self.faults());
        eprintln!("ended: {:#?}", self.ended());
        for pod in std::fs::read_dir(&self.shared.folder).into_iter().flatten().flatten() {
            for container in std::fs::read_dir(pod.path()).into_iter().flatten().flatten() {
                let log = std::fs::read(container.path().join("log")).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                // Envoy warns of the same deprecated fields over and over.
                let lines: Vec<_> =
                    log.lines().filter(|line| !line.contains("Deprecated")).collect();
                let last = lines[lines.len().saturating_sub(20)..].join("\n");
                if !last.is_empty() {
                    eprintln!("== {}\n{last}", container.path().display());
                }
            }
        }
    }
}

/// Runs every pod, and tells it when it is deleted.
async fn run_pods(shared: Arc<Shared>) {
    let pods: Api<Pod> = Api::all(shared.client.clone());
    let mut events = watcher::watcher(pods, watcher::Config::default()).default_backoff().boxed();
    let mut lives = JoinSet::new();
    let mut deletions: BTreeMap<String, watch::Sender<Option<u64>>> = BTreeMap::new();
    while let Some(event) = events.next().await {
        let (pod, is_gone) = match event {
            Ok(Event::Apply(pod) | Event::InitApply(pod)) => (pod, false),
            Ok(Event::Delete(pod)) => (pod, true),
            // The watch goes on by itself.
            _ => continue,
        };
        let uid = pod.uid().unwrap_or_default();
        let number = u16::try_from(deletions.len() + 1).expect("fewer pods than addresses");
        let grace = match (is_gone, pod.metadata.deletion_timestamp.is_some()) {
            (true, _) => Some(0),
            (_, true) => {
                let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
                Some(u64::try_from(seconds).unwrap_or(0))
            }
            _ => None,
        };
        let deletion = deletions.entry(uid).or_insert_with(|| {
            let (tell, told) = watch::channel(None);
            lives.spawn(pod::run(shared.clone(), pod, number, told));
            tell
        });
        if grace.is_some() {
            deletion
                .send_if_modified(|last| last.is_none() && std::mem::replace(last, grace) != grace);
        }
    }
}
