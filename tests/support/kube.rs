//! A real Kubernetes API for a test: etcd and kube-apiserver on loopback, in a temporary folder, removed with the test.
//!
//! There is no controller manager, scheduler or kubelet: objects stay as written, EndpointSlices and ServiceAccounts
//! are not created, pods do not run, a deleted Namespace stays in `Terminating`, and the aggregated roles `view`,
//! `edit` and `admin` contain no rules. [`super::node`] adds some controllers, and runs pods.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ::kube::Client;
use ::kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use serde_json::json;
use tempfile::TempDir;

use super::cache::at;
use super::kube_binaries::KubeBinaries;
use super::process::{Launch, Supervised, free_port, random};

/// How long a server may take to become ready: seconds on an idle machine, much longer on a busy one.
const READY_WITHIN: Duration = Duration::from_secs(180);
/// The polling interval.
const POLL: Duration = Duration::from_millis(50);
/// How many ports to try, because another process may take a port first.
const PORT_TRIES: usize = 10;

const ADMIN: &str = "admin";

/// A running Kubernetes API. Dropping it stops its processes and removes its folder.
#[derive(Debug)]
pub(crate) struct KubeCluster {
    parts: KubeBinaries,
    address: Ipv4Addr,
    /// Whether pods get what the API server gives them where there are controllers and kubelets.
    runs_pods: bool,
    port: u16,
    apiserver: Option<Supervised>,
    etcd: Supervised,
    kubeconfig: PathBuf,
    dir: TempDir,
}

impl KubeCluster {
    /// Starts a cluster for the test called `test`; `None` if this machine cannot, which is then reported as skipped.
    ///
    /// # Panics
    /// If the servers start but do not become ready; the message contains the end of their log.
    pub(crate) fn start(test: &str) -> Option<Self> {
        Self::start_with_users(test, &[])
    }

    /// Like [`KubeCluster::start`], with additional users as (name, groups) for [`KubeCluster::kubeconfig_for`]. They
    /// have no permissions until a role binding grants them, which the API server notices shortly after it is written.
    pub(crate) fn start_with_users(test: &str, users: &[(&str, &[&str])]) -> Option<Self> {
        let parts = match KubeBinaries::find() {
            Ok(parts) => parts,
            Err(skip) => {
                skip.report(test);
                return None;
            }
        };
        let started = Self::launch(parts, users, None);
        Some(started.unwrap_or_else(|why| panic!("{test}: {why}")))
    }

    /// Like [`KubeCluster::start`], for pods that run: the API is at this address, which they can reach, and gives them
    /// their service accounts.
    ///
    /// # Panics
    /// If it does not become ready.
    pub(crate) fn start_for_pods(parts: KubeBinaries, address: Ipv4Addr) -> Self {
        Self::launch(parts, &[], Some(address)).unwrap_or_else(|why| panic!("{why}"))
    }

    fn launch(
        parts: KubeBinaries,
        users: &[(&str, &[&str])],
        for_pods: Option<Ipv4Addr>,
    ) -> Result<Self, String> {
        let dir = tempfile::Builder::new()
            .prefix("weir-kube-")
            .tempdir()
            .map_err(at(&std::env::temp_dir()))?;
        let admin: (&str, &[&str]) = (ADMIN, &["system:masters"]);
        let mut tokens = String::new();
        let mut named = Vec::new();
        for (name, groups) in std::iter::once(&admin).chain(users) {
            let token = format!("{:016x}{:016x}", random(), random());
            let groups = groups.join(",");
            tokens += &format!("{token},{name},{name},\"{groups}\"\n");
            named.push((*name, token));
        }
        write(&dir.path().join("tokens.csv"), &tokens)?;

        let etcd = start_etcd(&parts, dir.path())?;
        let mut cluster = Self {
            kubeconfig: kubeconfig_path(dir.path(), ADMIN),
            parts,
            address: for_pods.unwrap_or(Ipv4Addr::LOCALHOST),
            runs_pods: for_pods.is_some(),
            port: 0,
            apiserver: None,
            etcd,
            dir,
        };
        for attempt in 1.. {
            cluster.port = free_port();
            for (name, token) in &named {
                cluster.write_kubeconfig(name, token)?;
            }
            match cluster.launch_apiserver() {
                Ok(()) => break,
                Err(Failure::PortTaken) if attempt < PORT_TRIES => {}
                Err(failure) => return Err(failure.to_string()),
            }
        }
        Ok(cluster)
    }

    /// A client with all permissions.
    pub(crate) async fn client(&self) -> Client {
        client(self.kubeconfig_path()).await.unwrap()
    }

    /// The kubeconfig of a cluster administrator.
    pub(crate) fn kubeconfig_path(&self) -> &Path {
        &self.kubeconfig
    }

    /// The kubeconfig of one of the additional users.
    pub(crate) fn kubeconfig_for(&self, user: &str) -> PathBuf {
        let path = kubeconfig_path(self.dir.path(), user);
        assert!(path.is_file(), "the cluster was started without user {user}");
        path
    }

    /// The kubeconfig of an existing ServiceAccount, with a token as in a pod.
    pub(crate) fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> PathBuf {
        let token = self.kubectl_ok(&["create", "token", name, "--namespace", namespace]);
        self.write_kubeconfig(&format!("{namespace}.{name}"), token.trim())
            .unwrap_or_else(|why| panic!("{why}"))
    }

    /// The address of the API, like `https://127.0.0.1:20000`.
    pub(crate) fn url(&self) -> String {
        format!("https://{}:{}", self.address, self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The file with the certificate by which the API is verified.
    pub(crate) fn authority(&self) -> PathBuf {
        self.dir.path().join("certs/apiserver.crt")
    }

    /// The key in PEM with which the API server signs the tokens of service accounts.
    pub(crate) fn token_key(&self) -> Vec<u8> {
        fs::read(self.dir.path().join("certs/apiserver.key")).unwrap()
    }

    /// Runs kubectl as the administrator and returns its output, for commands that may fail.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Output {
        self.run_kubectl(args, "")
    }

    /// Runs kubectl as the administrator and returns its stdout.
    ///
    /// # Panics
    /// If the command fails.
    pub(crate) fn kubectl_ok(&self, args: &[&str]) -> String {
        expect_success(args, self.run_kubectl(args, ""))
    }

    /// Applies YAML, possibly several documents, and returns kubectl's output.
    ///
    /// # Panics
    /// If the API server does not accept all of them.
    pub(crate) fn apply(&self, yaml: &str) -> String {
        let args = ["apply", "-f", "-"];
        expect_success(&args, self.run_kubectl(&args, yaml))
    }

    /// Applies the files of a folder, given relative to the repository, in name order.
    ///
    /// # Panics
    /// If the API server does not accept all of them.
    pub(crate) fn apply_folder(&self, folder: &str) -> String {
        self.kubectl_ok(&["apply", "-f", &in_repository(folder)])
    }

    /// Applies a kustomization, given relative to the repository.
    ///
    /// # Panics
    /// If the API server does not accept all of it.
    pub(crate) fn apply_kustomization(&self, folder: &str, more: &[&str]) -> String {
        self.kubectl_ok(&[&["apply", "-k", &in_repository(folder)], more].concat())
    }

    /// Applies weir's CRDs for the Istio kinds and waits until the API serves them.
    pub(crate) fn apply_crds(&self) {
        self.apply_kustomization("deploy/crds", &[]);
        let crds = self.kubectl_ok(&["get", "crds", "-o", "name"]);
        let mut wait = vec!["wait", "--for=condition=Established", "--timeout=120s"];
        wait.extend(crds.lines());
        self.kubectl_ok(&wait);
        // A CRD is served shortly before discovery, which kubectl uses, lists it.
        let listed = ["api-resources", "--categories=istio-io", "--cached=false", "--no-headers"];
        poll("discovery to list the Istio kinds", || {
            let lines = self.kubectl_ok(&listed).lines().count();
            Ok((lines == crds.lines().count()).then_some(()))
        })
        .unwrap_or_else(|why: Failure| panic!("{why}"));
    }

    /// Gives a user a new ClusterRole with these verbs for these resources, both separated by commas. The API server
    /// applies it shortly after it is written.
    pub(crate) fn allow(&self, user: &str, role: &str, verbs: &str, resources: &str) {
        let (verbs, resources) = (format!("--verb={verbs}"), format!("--resource={resources}"));
        self.kubectl_ok(&["create", "clusterrole", role, &verbs, &resources]);
        let (of_role, to_user) = (format!("--clusterrole={role}"), format!("--user={user}"));
        self.kubectl_ok(&["create", "clusterrolebinding", role, &of_role, &to_user]);
    }

    /// Stops the API server, to test an outage. Its state stays in etcd.
    pub(crate) fn stop_apiserver(&mut self) {
        self.apiserver = None;
    }

    /// Has the API server answer nothing, without closing a connection, or go on.
    #[cfg(target_os = "linux")]
    pub(crate) fn pause_apiserver(&self, pause: bool) {
        use nix::sys::signal::Signal;
        let signal = if pause { Signal::SIGSTOP } else { Signal::SIGCONT };
        self.apiserver.as_ref().expect("it runs").signal("kube-apiserver", signal);
    }

    /// Starts the API server again on the same port, with the same credentials, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    pub(crate) fn start_apiserver(&mut self) {
        if self.apiserver.is_none() {
            self.launch_apiserver().unwrap_or_else(|why| panic!("{why}"));
        }
    }

    fn launch_apiserver(&mut self) -> Result<(), Failure> {
        let log = self.dir.path().join("kube-apiserver.log");
        let log_start = fs::metadata(&log).map_or(0, |meta| meta.len());
        let mut server = spawn(&self.parts.kube_apiserver, self.apiserver_args(), &log, 10, None)?;
        let ready = std::thread::scope(|scope| {
            // On its own thread, so that async tests can call this too.
            scope.spawn(|| self.wait_until_ready(&mut server, &log, log_start)).join()
        });
        match ready {
            Ok(Ok(())) => {
                self.apiserver = Some(server);
                Ok(())
            }
            Ok(Err(Failure::TimedOut(what))) => Err(Failure::Other(format!(
                "timed out waiting for {what}:\n{}",
                tail(&log, log_start)
            ))),
            Ok(Err(failure)) => Err(failure),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn apiserver_args(&self) -> Vec<String> {
        let dir = self.dir.path();
        let file = |name: &str| format!("{}/{name}", dir.display());
        // The server creates its certificate before it reads the token signing key, so one key serves for both.
        let key = file("certs/apiserver.key");
        let mut args = vec![
            format!("--etcd-servers={}", etcd_url(dir)),
            format!("--cert-dir={}", file("certs")),
            format!("--bind-address={}", self.address),
            format!("--advertise-address={}", self.address),
            format!("--secure-port={}", self.port),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=RBAC".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-signing-key-file={key}"),
            format!("--service-account-key-file={key}"),
            // Room for a thousand Services and more.
            "--service-cluster-ip-range=10.96.0.0/12".into(),
            // Nothing forwards the addresses of Services here: a webhook is called at the endpoints of its Service.
            "--enable-aggregator-routing=true".into(),
            // Loopback addresses must not be published.
            "--endpoint-reconciler-type=none".into(),
            "--allow-privileged=true".into(),
        ];
        if !self.runs_pods {
            // It rejects pods until a controller, which does not run here, has created their service account.
            args.push("--disable-admission-plugins=ServiceAccount".into());
        }
        args
    }

    /// Waits until a server that has just been started is ready. It writes to `log` from the byte `log_start` on.
    fn wait_until_ready(
        &self,
        server: &mut Supervised,
        log: &Path,
        log_start: u64,
    ) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::Other(error.to_string()))?;
        poll("the API server to be ready", || {
            if let Some(status) = server.exited().map_err(at(log))? {
                let tail = tail(log, log_start);
                if tail.contains("address already in use") {
                    return Err(Failure::PortTaken);
                }
                return Err(Failure::Other(format!("kube-apiserver ended ({status}):\n{tail}")));
            }
            let ready = runtime.block_on(is_ready(&self.kubeconfig));
            Ok(ready.is_ok_and(|ready| ready).then_some(()))
        })
    }

    fn run_kubectl(&self, args: &[&str], stdin: &str) -> Output {
        let kubectl = &self.parts.kubectl;
        let mut child = Command::new(kubectl)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--cache-dir")
            .arg(self.dir.path().join("kubectl"))
            .arg("--request-timeout=60s")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", kubectl.display()));
        let pipe = child.stdin.take();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // A command that does not read all of its input reports why.
                pipe.and_then(|mut pipe| pipe.write_all(stdin.as_bytes()).ok())
            });
            child
                .wait_with_output()
                .unwrap_or_else(|error| panic!("{}: {error}", kubectl.display()))
        })
    }

    fn write_kubeconfig(&self, user: &str, token: &str) -> Result<PathBuf, String> {
        let path = kubeconfig_path(self.dir.path(), user);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "weir", "cluster": {
                "server": self.url(),
                "certificate-authority": self.authority(),
            }}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "weir", "context": {"cluster": "weir", "user": user}}],
            "current-context": "weir",
        });
        write(&path, &config.to_string())?;
        Ok(path)
    }
}

/// The path of a folder that is given relative to the repository.
fn in_repository(folder: &str) -> String {
    format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"))
}

impl Drop for KubeCluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.dir.path().join("kube-apiserver.log");
            eprintln!("the end of kube-apiserver's log:\n{}", tail(&log, 0));
        }
        // Signals both, then waits for each as its field is dropped.
        if let Some(apiserver) = &mut self.apiserver {
            apiserver.begin_stop();
        }
        self.etcd.begin_stop();
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the port is taken by another process")]
    PortTaken,
    #[error("timed out waiting for {0}")]
    TimedOut(String),
    #[error("{0}")]
    Other(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

/// Calls `look` until it returns a value or an error, at most as long as a server may take to become ready.
fn poll<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>, Failure>) -> Result<T, Failure> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(Failure::TimedOut(format!("{what} ({} s)", READY_WITHIN.as_secs())));
        }
        std::thread::sleep(POLL);
    }
}

async fn client(kubeconfig: &Path) -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
    let config = ::kube::config::Kubeconfig::read_from(kubeconfig)?;
    let config = ::kube::Config::from_custom_kubeconfig(config, &Default::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The objects of an Istio kind in a namespace.
pub(crate) fn istio_api(client: &Client, namespace: &str, kind: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("networking.istio.io", "v1", kind);
    Api::namespaced_with(client.clone(), namespace, &ApiResource::from_gvk(&kind))
}

/// Whether the API server is ready and has created the namespace `default`, which happens slightly later.
async fn is_ready(kubeconfig: &Path) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let client = client(kubeconfig).await?;
    for path in ["/readyz", "/api/v1/namespaces/default"] {
        client.request_text(http::Request::get(path).body(Vec::new())?).await?;
    }
    Ok(true)
}

/// Starts etcd on Unix sockets in `dir`, so that it cannot be confused with another server, and waits for it.
fn start_etcd(parts: &KubeBinaries, dir: &Path) -> Result<Supervised, String> {
    let log = dir.join("etcd.log");
    let client = etcd_url(dir);
    let peer = format!("unix://{}/peer.sock", dir.display());
    let args = [
        "--name=weir".into(),
        format!("--data-dir={}/etcd", dir.display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=weir={peer}"),
        // The data need not survive the machine.
        "--unsafe-no-fsync".into(),
    ];
    let mut etcd = spawn(&parts.etcd, args.to_vec(), &log, 10, Some(dir))
        .map_err(|failure| failure.to_string())?;
    let socket = dir.join("etcd.sock");
    poll("etcd to listen", || {
        if let Some(status) = etcd.exited().map_err(at(&log))? {
            let tail = tail(&log, 0);
            return Err(Failure::Other(format!("etcd ended ({status}):\n{tail}")));
        }
        let connected = std::os::unix::net::UnixStream::connect(&socket);
        Ok(connected.is_ok().then_some(()))
    })
    .map_err(|failure| format!("{failure}\n{}", tail(&log, 0)))?;
    Ok(etcd)
}

fn etcd_url(dir: &Path) -> String {
    format!("unix://{}/etcd.sock", dir.display())
}

fn kubeconfig_path(dir: &Path, user: &str) -> PathBuf {
    dir.join(format!("{user}.kubeconfig"))
}

fn spawn(
    program: &Path,
    args: Vec<String>,
    log: &Path,
    grace_tenths: u32,
    remove: Option<&Path>,
) -> Result<Supervised, Failure> {
    let output = File::options().create(true).append(true).open(log).map_err(at(log))?;
    let launch = Launch {
        program,
        args,
        stdout: output.try_clone().map_err(at(log))?.into(),
        stderr: output.into(),
        grace_tenths,
        remove,
    };
    Ok(Supervised::spawn(launch).map_err(at(program))?)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(at(path))
}

/// The last lines of a file after its first `from` bytes.
fn tail(path: &Path, from: u64) -> String {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut text)
    });
    if let Err(error) = read {
        return format!("{}: {error}", path.display());
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn expect_success(args: &[&str], output: Output) -> String {
    assert!(
        output.status.success(),
        "kubectl {}: {}\n{}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("kubectl writes UTF-8")
}
