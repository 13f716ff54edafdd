//! One pod, from its creation to its end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::container::{Mount, Plan, Process, Running, privileges};
use super::environment::{self, expanded};
use super::network::Sandbox;
use super::{ADDRESS, Ended, NODE, Shared, probe, volumes};

/// The pause between readiness probes of a container that has not been ready yet.
const SOON: Duration = Duration::from_millis(200);

/// Whether a pod is to end, and within how many seconds.
pub(crate) type Deletion = watch::Receiver<Option<u64>>;

/// A container of a pod that runs, or did.
struct Member {
    spec: Container,
    running: Arc<Running>,
    /// A native sidecar ends after the application, and a container that is neither is gone already.
    is_sidecar: bool,
}

struct Life {
    shared: Arc<Shared>,
    pod: Pod,
    spec: PodSpec,
    api: Api<Pod>,
    sandbox: Sandbox,
    folder: PathBuf,
    volumes: BTreeMap<String, PathBuf>,
    members: Mutex<Vec<Member>>,
}

/// Runs a pod until it is deleted.
pub(crate) async fn run(shared: Arc<Shared>, pod: Pod, number: u16, mut deletion: Deletion) {
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    match live(shared.clone(), pod, number, &mut deletion).await {
        Ok(()) => {}
        Err(why) => shared.fault(format!("pod {name}: {why}")),
    }
}

async fn live(
    shared: Arc<Shared>,
    pod: Pod,
    number: u16,
    deletion: &mut Deletion,
) -> Result<(), String> {
    let namespace = pod.namespace().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &namespace);
    let spec = pod.spec.clone().ok_or("it has no spec")?;
    let sandbox = Sandbox::new(number).await?;
    let folder = shared.folder.join(format!("{namespace}.{}", pod.name_any()));
    let life = Life {
        shared,
        spec,
        api,
        sandbox,
        folder,
        volumes: BTreeMap::new(),
        members: Mutex::default(),
        pod,
    };
    life.until_the_end(deletion).await
}

impl Life {
    async fn until_the_end(mut self, deletion: &mut Deletion) -> Result<(), String> {
        let mut asked = deletion.clone();
        let up = async {
            self.bind().await;
            self.report("Pending", false).await;
            self.make_volumes().await?;
            self.start_all().await?;
            self.watch_over().await
        };
        let failed = tokio::select! {
            result = up => result,
            _ = asked.wait_for(Option::is_some) => Ok(()),
        };
        if let Err(why) = failed {
            self.shared.fault(format!("pod {}: {why}", self.pod.name_any()));
            // It stays until somebody deletes it.
            let _ = asked.wait_for(Option::is_some).await;
        }
        let grace = deletion.borrow().unwrap_or(0);
        self.stop(Duration::from_secs(grace)).await;
        self.sandbox.end().await;
        let only = Preconditions { uid: self.pod.uid(), ..Default::default() };
        let params = DeleteParams::default().grace_period(0).preconditions(only);
        // It may be gone already.
        let _ = self.api.delete(&self.pod.name_any(), &params).await;
        Ok(())
    }

    /// Assigns the pod to the node, as the scheduler does.
    async fn bind(&self) {
        let (namespace, name) = (self.pod.namespace().unwrap_or_default(), self.pod.name_any());
        let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                          "target": {"apiVersion": "v1", "kind": "Node", "name": NODE}});
        let request =
            http::Request::post(format!("/api/v1/namespaces/{namespace}/pods/{name}/binding"))
                .header("content-type", "application/json")
                .body(body.to_string().into_bytes())
                .expect("a request");
        // A pod that is deleted meanwhile is told so.
        let _ = self.shared.client.request::<Status>(request).await;
    }

    async fn report(&self, phase: &str, ready: bool) {
        let since = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let address = self.sandbox.address;
        let is_running = phase == "Running";
        let conditions: Vec<_> = [
            ("PodScheduled", true),
            ("Initialized", is_running),
            ("ContainersReady", ready),
            ("Ready", ready),
        ]
        .into_iter()
        .map(|(kind, holds)| {
            let status = if holds { "True" } else { "False" };
            json!({"type": kind, "status": status, "lastTransitionTime": since})
        })
        .collect();
        let status = json!({"status": {
            "phase": phase,
            "hostIP": ADDRESS,
            "podIP": address,
            "podIPs": [{"ip": address}],
            "startTime": since,
            "conditions": conditions,
        }});
        let params = PatchParams::default();
        // A pod that is gone has no status.
        let _ = self.api.patch_status(&self.pod.name_any(), &params, &Patch::Merge(status)).await;
    }

    async fn make_volumes(&mut self) -> Result<(), String> {
        let parent = self.folder.join("volumes");
        for volume in self.spec.volumes.iter().flatten() {
            let made = volumes::make(&self.shared.client, &self.pod, volume, &parent).await?;
            self.volumes.insert(volume.name.clone(), made);
        }
        Ok(())
    }

    /// Runs the init containers one after the other, and starts the others. A native sidecar counts as done once its
    /// hook and its startup probe have succeeded.
    async fn start_all(&self) -> Result<(), String> {
        for container in self.spec.init_containers.iter().flatten() {
            let is_sidecar = container.restart_policy.as_deref() == Some("Always");
            if is_sidecar {
                self.start(container, true).await?;
                self.has_started(container).await?;
                continue;
            }
            let running = self.launch(container)?;
            let status = running.ended().await;
            if !status.success() {
                return Err(format!("init container {}: {status}", container.name));
            }
        }
        for container in &self.spec.containers {
            self.start(container, false).await?;
        }
        for container in &self.spec.containers {
            self.has_started(container).await?;
        }
        Ok(())
    }

    async fn start(&self, spec: &Container, is_sidecar: bool) -> Result<(), String> {
        let running = Arc::new(self.launch(spec)?);
        let member = Member { spec: spec.clone(), running: running.clone(), is_sidecar };
        self.members.lock().push(member);
        let hook = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
        match hook {
            Some(hook) => probe::hook(hook, spec, &running, self.sandbox.address)
                .await
                .map_err(|why| format!("the postStart hook of {}: {why}", spec.name)),
            None => Ok(()),
        }
    }

    /// Waits until the startup probe of a container succeeds.
    async fn has_started(&self, spec: &Container) -> Result<(), String> {
        let Some(wanted) = &spec.startup_probe else { return Ok(()) };
        let running = self.member(&spec.name);
        let mut failures = 0;
        tokio::time::sleep(probe::seconds(wanted.initial_delay_seconds, 0)).await;
        loop {
            let attempt = probe::once(wanted, spec, &running, self.sandbox.address);
            let why = tokio::select! {
                result = attempt => match result {
                    Ok(()) => return Ok(()),
                    Err(why) => why,
                },
                status = running.ended() => return Err(format!("{} ended: {status}", spec.name)),
            };
            failures += 1;
            if failures >= wanted.failure_threshold.unwrap_or(3) {
                return Err(format!("the startup probe of {}: {why}", spec.name));
            }
            tokio::time::sleep(probe::seconds(wanted.period_seconds, 10)).await;
        }
    }

    fn member(&self, name: &str) -> Arc<Running> {
        let members = self.members.lock();
        let member = members.iter().find(|member| member.spec.name == name);
        member.expect("it was started").running.clone()
    }

    /// Starts the process of a container.
    fn launch(&self, spec: &Container) -> Result<Running, String> {
        self.plan_and_start(spec).map_err(|why| format!("container {}: {why}", spec.name))
    }

    fn plan_and_start(&self, spec: &Container) -> Result<Running, String> {
        let image = self.shared.images.find(spec.image.as_deref().unwrap_or_default())?;
        let (host, port) = &self.shared.api;
        let mut first = image.env.clone();
        first.extend([
            ("HOSTNAME".to_owned(), self.pod.name_any()),
            ("KUBERNETES_SERVICE_HOST".to_owned(), host.clone()),
            ("KUBERNETES_SERVICE_PORT".to_owned(), port.to_string()),
        ]);
        let env = environment::of(spec, &self.pod, self.sandbox.address, first)?;
        let entrypoint = spec.command.as_ref().unwrap_or(&image.entrypoint);
        let arguments = spec.args.iter().flatten();
        let command = entrypoint.iter().chain(arguments).map(|text| expanded(text, &env)).collect();
        let security = spec.security_context.as_ref();
        let privileges = privileges(self.spec.security_context.as_ref(), security, image)?;
        let folder = self.folder.join(&spec.name);
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        Running::start(Plan {
            sandbox: self.sandbox.id,
            folder: &folder,
            read_only: security.and_then(|own| own.read_only_root_filesystem) == Some(true),
            mounts: self.mounts(spec, &image.program)?,
            process: Process { privileges, env, command },
        })
    }

    fn mounts(&self, spec: &Container, program: &(PathBuf, String)) -> Result<Vec<Mount>, String> {
        let resolver = self.folder.join("resolv.conf");
        let namespace = self.pod.namespace().unwrap_or_default();
        let text = format!(
            "nameserver {ADDRESS}\nsearch {namespace}.svc.cluster.local svc.cluster.local cluster.local\n\
             options ndots:5\n"
        );
        std::fs::write(&resolver, text).map_err(|error| error.to_string())?;
        let hosts = self.folder.join("hosts");
        let text =
            format!("127.0.0.1 localhost\n{} {}\n", self.sandbox.address, self.pod.name_any());
        std::fs::write(&hosts, text).map_err(|error| error.to_string())?;
        let (from, to) = program.clone();
        let mut mounts = vec![
            Mount { from, to, read_only: true },
            Mount { from: resolver, to: "/etc/resolv.conf".to_owned(), read_only: true },
            Mount { from: hosts, to: "/etc/hosts".to_owned(), read_only: true },
        ];
        for mount in spec.volume_mounts.iter().flatten() {
            let Some(from) = self.volumes.get(&mount.name) else {
                return Err(format!("it has no volume {}", mount.name));
            };
            let from = from.join(mount.sub_path.as_deref().unwrap_or_default());
            let read_only = mount.read_only == Some(true);
            mounts.push(Mount { from, to: mount.mount_path.clone(), read_only });
        }
        Ok(mounts)
    }

    /// Reports whether the pod is ready, until one of its containers ends or fails its liveness probe too often.
    async fn watch_over(&self) -> Result<(), String> {
        let members: Vec<(Container, Arc<Running>)> = {
            let members = self.members.lock();
            members.iter().map(|member| (member.spec.clone(), member.running.clone())).collect()
        };
        let (tell, mut readiness) = watch::channel(vec![false; members.len()]);
        let mut tasks = FuturesUnordered::new();
        for (n, (spec, running)) in members.iter().enumerate() {
            let tell = tell.clone();
            let task = async move {
                tokio::select! {
                    () = self.probe_readiness(spec, running, |ready| {
                        tell.send_if_modified(|all| std::mem::replace(&mut all[n], ready) != ready);
                    }) => unreachable!("it goes on"),
                    why = self.probe_liveness(spec, running) => why,
                    status = running.ended() => format!("container {} ended: {status}", spec.name),
                }
            };
            tasks.push(task);
        }
        let report = async {
            let mut last = None;
            loop {
                let ready = readiness.borrow_and_update().iter().all(|ready| *ready);
                if last.replace(ready) != Some(ready) {
                    self.report("Running", ready).await;
                }
                if readiness.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            why = tasks.next() => Err(why.unwrap_or_else(|| "it has no containers".to_owned())),
            () = report => Err("nobody reports".to_owned()),
        }
    }

    async fn probe_readiness(&self, spec: &Container, running: &Running, tell: impl Fn(bool)) {
        let Some(wanted) = &spec.readiness_probe else {
            tell(true);
            return std::future::pending().await;
        };
        let (mut good, mut bad, mut was_ready) = (0, 0, false);
        tokio::time::sleep(probe::seconds(wanted.initial_delay_seconds, 0)).await;
        loop {
            match probe::once(wanted, spec, running, self.sandbox.address).await {
                Ok(()) => (good, bad) = (good + 1, 0),
                Err(_) => (good, bad) = (0, bad + 1),
            }
            if good >= wanted.success_threshold.unwrap_or(1) {
                was_ready = true;
                tell(true);
            } else if bad >= wanted.failure_threshold.unwrap_or(3) {
                tell(false);
            }
            let period = probe::seconds(wanted.period_seconds, 10);
            // A kubelet looks again soon at a container that has just been started.
            tokio::time::sleep(if was_ready { period } else { period.min(SOON) }).await;
        }
    }

    /// Returns why a container is not alive.
    async fn probe_liveness(&self, spec: &Container, running: &Running) -> String {
        let Some(wanted) = &spec.liveness_probe else { return std::future::pending().await };
        let mut failures = 0;
        loop {
            tokio::time::sleep(probe::seconds(wanted.period_seconds, 10)).await;
            match probe::once(wanted, spec, running, self.sandbox.address).await {
                Ok(()) => failures = 0,
                Err(why) => {
                    failures += 1;
                    if failures >= wanted.failure_threshold.unwrap_or(3) {
                        return format!("the liveness probe of {}: {why}", spec.name);
                    }
                }
            }
        }
    }

    /// Ends the containers as a kubelet does: the hooks of all run at once, the application gets SIGTERM after its own, and
    /// when it has ended the sidecars do, the last first. Who is left after the grace period is killed.
    async fn stop(&self, grace: Duration) {
        let members = std::mem::take(&mut *self.members.lock());
        let deadline = Instant::now() + grace;
        let (sidecars, applications): (Vec<_>, Vec<_>) =
            members.iter().partition(|member| member.is_sidecar);
        let orderly = async {
            let applications = applications.into_iter().map(async |member| {
                self.pre_stop(member).await;
                terminate(member).await;
            });
            let hooks = sidecars.iter().map(|member| self.pre_stop(member));
            futures::join!(join_all(applications), join_all(hooks));
            for member in sidecars.iter().rev() {
                terminate(member).await;
            }
        };
        let in_time = tokio::time::timeout_at(deadline, orderly).await.is_ok();
        for member in &members {
            member.running.kill();
            let status = member.running.ended().await;
            self.shared.ended.lock().push(Ended {
                pod: self.pod.name_any(),
                container: member.spec.name.clone(),
                status,
                in_time,
            });
        }
    }

    async fn pre_stop(&self, member: &Member) {
        let lifecycle = member.spec.lifecycle.as_ref();
        if let Some(hook) = lifecycle.and_then(|lifecycle| lifecycle.pre_stop.as_ref())
            && let Err(why) =
                probe::hook(hook, &member.spec, &member.running, self.sandbox.address).await
        {
            let (pod, container) = (self.pod.name_any(), &member.spec.name);
            self.shared.fault(format!("pod {pod}: the preStop hook of {container}: {why}"));
        }
    }
}

async fn terminate(member: &Member) {
    member.running.terminate();
    member.running.ended().await;
}
