//! The canary in a real Kubernetes API, served by any number of replicas of weir.
//!
//! The service is a ServiceEntry, because the API refuses loopback addresses in an EndpointSlice.

use std::path::Path;
use std::process::Command;

use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use weir::canary::live::Service;
use weir::canary::objects::{self, NAMESPACE, Ports};
use weir::canary::patterns::{State, Write};
use weir::envoy::{EnvoyBinary, EnvoyProcess, SpawnOptions};

use super::canary::Load;
use super::kube::{KubeCluster, istio_api};
use super::mesh::{Backends, DEADLINE, Serve, until};
use super::process::free_port;

/// The cluster with the objects, and what they say.
pub(crate) struct KubeCanary {
    pub cluster: KubeCluster,
    pub client: kube::Client,
    pub ports: Ports,
    pub state: State,
}

impl KubeCanary {
    /// Starts with both versions and all requests to v1; `None` if this machine cannot.
    pub(crate) async fn start(test: &str) -> Option<Self> {
        let cluster = KubeCluster::start(test)?;
        cluster.apply_crds();
        cluster.kubectl_ok(&["create", "namespace", NAMESPACE]);
        cluster.kubectl_ok(&["create", "namespace", "weir-system"]);
        let client = cluster.client().await;
        let ports = Ports { service: free_port(), backend: Backends::start().port };
        let mut this = Self { cluster, client, ports, state: State::default() };
        this.write(Write::Endpoints(vec![1, 2])).await;
        this.write(Write::Rule(vec![("v1", "v1"), ("v2", "v2")])).await;
        this.route(100).await;
        Some(this)
    }

    /// The objects of a kind in the namespace of the canary.
    pub(crate) fn api(&self, kind: &str) -> Api<DynamicObject> {
        istio_api(&self.client, NAMESPACE, kind)
    }

    pub(crate) async fn write(&mut self, write: Write) {
        let (kind, text) = match &write {
            Write::Rule(subsets) => ("DestinationRule", objects::rule(NAMESPACE, subsets)),
            Write::Route(weights) => ("VirtualService", objects::route(NAMESPACE, weights)),
            Write::Endpoints(versions) => {
                ("ServiceEntry", objects::service_entry(NAMESPACE, self.ports, versions))
            }
        };
        let document: Value = serde_saphyr::from_str(&text).unwrap();
        let params = PatchParams::apply("test").force();
        self.api(kind).patch("my-app", &params, &Patch::Apply(document)).await.unwrap();
        self.state.apply(&write);
    }

    /// Writes this weight of v1, and the rest to v2.
    pub(crate) async fn route(&mut self, v1: u32) {
        self.write(Write::Route(vec![("v1", v1), ("v2", 100 - v1)])).await;
    }

    /// Deletes the objects of a kind that have this label, in one request.
    pub(crate) async fn delete_all(&self, kind: &str, label: &str) {
        let params = kube::api::ListParams::default().labels(label);
        self.api(kind).delete_collection(&DeleteParams::default(), &params).await.unwrap();
    }

    /// A replica on these ports, which writes the status of objects if it has a name.
    pub(crate) fn weir(&self, (xds, admin): (u16, u16), more: &[&str]) -> Serve {
        let kubeconfig = self.cluster.kubeconfig_path().to_str().unwrap();
        Serve::start(&[&["--kubeconfig", kubeconfig], more].concat(), xds, admin)
    }

    /// An Envoy that knows the replicas on these ports.
    pub(crate) async fn envoy(
        &self,
        folder: &Path,
        replicas: &[u16],
        more: &[&str],
    ) -> EnvoyProcess {
        let printed = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["bootstrap", "-o", "json", "--namespace", NAMESPACE, "--label", "app=client"])
            .args(["--xds", &format!("127.0.0.1:{}", replicas[0])])
            .args(more)
            .output()
            .unwrap();
        assert!(printed.status.success(), "{printed:?}");
        let mut bootstrap: Value = serde_json::from_slice(&printed.stdout).unwrap();
        let endpoints = bootstrap
            .pointer_mut("/static_resources/clusters/0/load_assignment/endpoints/0/lb_endpoints")
            .unwrap();
        let endpoint = |port: &u16| {
            let address = json!({"address": "127.0.0.1", "port_value": port});
            json!({"endpoint": {"address": {"socket_address": address}}})
        };
        *endpoints = replicas.iter().map(endpoint).collect();
        let file = folder.join(format!("{}.json", replicas[0]));
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let binary =
            tokio::task::spawn_blocking(|| EnvoyBinary::find(None)).await.unwrap().unwrap();
        let mut process = binary.spawn(&SpawnOptions::new(file)).unwrap();
        process.ready(DEADLINE).await.unwrap();
        process
    }

    /// Waits until Envoy has what was written, by its own account.
    pub(crate) async fn live(&self, envoy: &EnvoyProcess) {
        let service = Service { namespace: NAMESPACE.to_owned(), port: self.ports.service };
        let admin = envoy.admin().unwrap();
        until(&format!("Envoy has {:?}", self.state), async || {
            service.is_live(admin, &self.state).await.unwrap_or(false)
        })
        .await;
    }

    /// Continuous requests until stopped.
    pub(crate) fn load(&self) -> Load {
        Load::start(self.ports.service)
    }
}
