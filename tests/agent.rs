//! `weir agent` with a real Envoy and a real weir, in a network like that of a pod.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use weir::envoy::{Admin, EnvoyBinary};

use crate::support::certs::Certificates;
use crate::support::mesh::{Serve, until};
use crate::support::network::is_inside_of_pods;
use crate::support::process::{Launch, Supervised};

const POD: &str = "10.2.0.1";
const READY: &str = "127.0.0.1:15021";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.2.96.1, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.2.0.1], conditions: {ready: true}}]
ports: [{name: http, port: 8080}]
";

/// `weir agent run`, and what it supervises.
struct Agent {
    process: Supervised,
    folder: tempfile::TempDir,
}

impl Agent {
    async fn start(more: &[&str]) -> Self {
        Self::start_by(&[], more).await
    }

    /// Starts it as an argument of another program.
    async fn start_by(wrapper: &[&str], more: &[&str]) -> Self {
        let envoy = tokio::task::spawn_blocking(|| EnvoyBinary::find(None)).await.unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("labels"), "app=\"web\"\n").unwrap();
        let (weir, envoy) = (env!("CARGO_BIN_EXE_weir"), envoy.path().to_str().unwrap());
        let at = folder.path().to_str().unwrap();
        let labels = format!("{at}/labels");
        let fixed = [
            weir,
            "agent",
            "run",
            "--xds",
            "127.0.0.1:15010",
            "--xds-tls",
            "off",
            "--pod",
            "web-0",
            "--namespace",
            "shop",
            "--ip",
            POD,
            "--interception",
            "NONE",
            "--concurrency",
            "1",
            "--labels-file",
            &labels,
            "--config-dir",
            at,
            "--envoy",
            envoy,
        ];
        let all: Vec<&str> = wrapper.iter().chain(&fixed).chain(more).copied().collect();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let process = Supervised::spawn(Launch {
            program: Path::new(all[0]),
            args: all[1..].iter().map(|arg| (*arg).to_owned()).collect(),
            stdout: log.try_clone().unwrap().into(),
            stderr: log.into(),
            grace_tenths: 80,
            remove: None,
        })
        .unwrap();
        let this = Self { process, folder };
        until("Envoy runs", async || this.log().contains("Envoy is running")).await;
        this
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// The process of Envoy: what has this agent's bootstrap as an argument.
    async fn envoy(&self) -> Pid {
        let config = self.folder.path().join("envoy.json");
        let mut found = None;
        // While a process becomes another, it has no arguments.
        until("the process of Envoy is there", async || {
            found = find(|args| args.iter().any(|arg| Path::new(arg) == config));
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// The agent's own process.
    fn id(&self) -> Pid {
        let folder = self.folder.path().to_str().unwrap();
        find(|args| {
            args.first().is_some_and(|program| program == env!("CARGO_BIN_EXE_weir"))
                && args.iter().any(|arg| arg == folder)
        })
        .expect("the agent runs")
    }

    fn signal(&self, signal: Signal) {
        kill(self.id(), signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the agent has ended", async || {
            status = self.process.exited().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// The first process with such arguments.
fn find(fits: impl Fn(&[String]) -> bool) -> Option<Pid> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|id: &i32| {
            let args = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let args: Vec<String> =
                String::from_utf8_lossy(&args).split('\0').map(str::to_owned).collect();
            fits(&args)
        })
        .map(Pid::from_raw)
}

fn is_gone(id: Pid) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    state.is_empty() || state.contains(") Z ")
}

/// `weir serve` on a folder, which is empty but for `files`.
struct Weir {
    _serve: Serve,
    folder: tempfile::TempDir,
}

impl Weir {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let this = Self {
            _serve: Serve::start(&["--config-dir", folder.path().to_str().unwrap()], 15010, 15014),
            folder,
        };
        this.write("web.yaml", SERVICE);
        this
    }

    fn write(&self, name: &str, text: &str) {
        let temporary: PathBuf = self.folder.path().join(format!(".{name}.new"));
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(&temporary, self.folder.path().join(name)).unwrap();
    }
}

/// The application: `/held` answers when the semaphore has a permit.
async fn application(held: Arc<Semaphore>) -> Arc<AtomicUsize> {
    let waiting = Arc::new(AtomicUsize::new(0));
    let counted = waiting.clone();
    let router = Router::new()
        .route("/", get(async || "web\n"))
        .route("/bad", get(async || StatusCode::SERVICE_UNAVAILABLE))
        .route("/metrics", get(async || "app_up 1\n"))
        .route("/moved", get(async || (StatusCode::FOUND, [("location", "/bad")])))
        .route("/login", get(async || (StatusCode::FOUND, [("location", "https://id.test/")])))
        .route(
            "/who",
            get(async |headers: HeaderMap| {
                let is = |name: &str, value: &str| headers.get(name).is_some_and(|is| is == value);
                match is("x-probe", "yes")
                    && is("host", "web.test")
                    && is("user-agent", "kube-probe/1")
                {
                    true => StatusCode::NO_CONTENT,
                    false => StatusCode::BAD_REQUEST,
                }
            }),
        )
        .route(
            "/held",
            get(async move || {
                counted.fetch_add(1, Ordering::Relaxed);
                held.acquire().await.unwrap().forget();
                "held\n"
            }),
        );
    let listener = TcpListener::bind("0.0.0.0:8080").await.unwrap();
    tokio::spawn(async { axum::serve(listener, router).await });
    waiting
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

async fn open(from: &str, to: &str) -> Sender {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    let stream = socket.connect(to.parse().unwrap()).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// The status and the body of a response, and whether it closes its connection.
async fn send(sender: &mut Sender, method: &str, path: &str) -> (u16, String, bool) {
    sender.ready().await.unwrap();
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "web.shop")
        .header("user-agent", "kube-probe/1")
        .body(Full::default())
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    let closes = answer.headers().get("connection").is_some_and(|value| value == "close");
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap(), closes)
}

async fn page(to: &str, path: &str) -> (u16, String) {
    let (status, body, _) = send(&mut open("127.0.0.1", to).await, "GET", path).await;
    (status, body)
}

async fn ready() {
    until("the agent is ready", async || page(READY, "/healthz/ready").await.0 == 200).await;
}

#[tokio::test]
async fn it_is_ready_with_configuration_from_weir_and_stays_so() {
    if !is_inside_of_pods() {
        return;
    }
    let _waiting = application(Arc::new(Semaphore::new(0))).await;
    let agent = Agent::start(&[]).await;
    until("Envoy answers", async || page(READY, "/healthz/ready").await.1.contains("INITIALIZING"))
        .await;
    assert_eq!(page(READY, "/healthz/ready").await.0, 503);
    let waits = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["agent", "wait", "--timeout", "0"])
        .output()
        .unwrap();
    assert_eq!(waits.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&waits.stderr).contains("not ready after 0 s"), "{waits:?}");

    let weir = Weir::start();
    let waits = tokio::task::spawn_blocking(|| {
        Command::new(env!("CARGO_BIN_EXE_weir")).args(["agent", "wait"]).status().unwrap()
    });
    assert!(waits.await.unwrap().success());
    for port in ["15020", "15021"] {
        assert_eq!(page(&format!("{POD}:{port}"), "/healthz/ready").await, (200, "ready\n".into()));
    }
    assert_eq!(page("127.0.0.1:80", "/").await, (200, "web\n".into()));
    assert_eq!(page(READY, "/stats/prometheus").await.0, 404);

    let envoy = Admin::new("127.0.0.1:15000".parse().unwrap());
    for n in 1..=20 {
        let more = SERVICE.replace("web", &format!("more-{n}")).replace("96.1", &format!("97.{n}"));
        weir.write(&format!("more-{n}.yaml"), &more);
        until("Envoy has the cluster", async || {
            assert_eq!(page(READY, "/healthz/ready").await.0, 200);
            let clusters = envoy.get("/clusters").await.unwrap();
            String::from_utf8_lossy(&clusters).contains(&format!("more-{n}."))
        })
        .await;
    }
    // A weir that is away changes nothing.
    drop(weir);
    assert_eq!(page(READY, "/healthz/ready").await.0, 200);
    drop(agent);
}

/// A server over TLS with a certificate that nobody trusts; answers every request with 200.
async fn secure_application(folder: &Path) {
    let acceptor = Certificates::make(folder).acceptor();
    let listener = TcpListener::bind("0.0.0.0:8443").await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut bytes = [0; 4096];
                let _ = stream.read(&mut bytes).await.unwrap();
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.unwrap();
                let _ = stream.shutdown().await;
            });
        }
    });
}

async fn grpc_application() {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("good", tonic_health::ServingStatus::Serving).await;
    reporter.set_service_status("bad", tonic_health::ServingStatus::NotServing).await;
    let address = "0.0.0.0:9000".parse().unwrap();
    let server = tonic::transport::Server::builder().add_service(health).serve(address);
    tokio::spawn(async { server.await.map(|()| reporter) });
    until("the gRPC server listens", async || TcpStream::connect(("10.2.0.1", 9000)).await.is_ok())
        .await;
}

const PROBES: &str = r#"{
  "/app-health/web/livez": {"httpGet": {"path": "/", "port": 8080}},
  "/app-health/web/readyz": {"httpGet": {"path": "bad", "port": 8080}},
  "/app-health/web/startupz": {"tcpSocket": {"port": 8080}},
  "/app-health/who/livez": {"httpGet": {"path": "/who", "port": 8080, "httpHeaders": [
    {"name": "X-Probe", "value": "yes"}, {"name": "Host", "value": "web.test"}]}},
  "/app-health/who/readyz": {"httpGet": {"path": "/moved", "port": 8080}},
  "/app-health/who/startupz": {"httpGet": {"path": "/login", "port": 8080}},
  "/app-health/secure/livez": {"httpGet": {"path": "/", "port": 8443, "scheme": "HTTPS"}},
  "/app-health/secure/readyz": {"httpGet": {"path": "/", "port": 8080, "scheme": "HTTPS"}},
  "/app-health/secure/startupz": {"tcpSocket": {"port": 8081}},
  "/app-health/grpc/livez": {"grpc": {"port": 9000, "service": "good"}},
  "/app-health/grpc/readyz": {"grpc": {"port": 9000, "service": "bad"}},
  "/app-health/grpc/startupz": {"grpc": {"port": 9000, "service": "none"}},
  "/app-health/slow/livez": {"httpGet": {"path": "/held", "port": 8080}, "timeoutSeconds": 1},
  "/app-health/elsewhere/livez": {"httpGet": {"path": "/", "port": 8080, "host": "127.0.0.1"}},
  "/app-lifecycle/web/prestopz": {"httpGet": {"path": "/held", "port": 8080}}
}"#;

#[tokio::test]
async fn the_application_is_probed_as_the_kubelet_would() {
    if !is_inside_of_pods() {
        return;
    }
    let held = Arc::new(Semaphore::new(0));
    let waiting = application(held.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    secure_application(folder.path()).await;
    grpc_application().await;
    let agent = Agent::start(&["--probes", PROBES, "--metrics", r#"{"port": "8080"}"#]).await;
    let at = format!("{POD}:15020");
    for (name, status, says) in [
        ("web/livez", 200, "200 OK"),
        ("web/readyz", 503, "503"),
        ("web/startupz", 200, "200 OK"),
        ("who/livez", 204, ""),
        ("who/readyz", 503, "503"),
        ("who/startupz", 200, "200 OK"),
        ("secure/livez", 200, "200 OK"),
        ("secure/readyz", 500, "TLS: "),
        ("secure/startupz", 500, "connecting to port 8081: "),
        ("grpc/livez", 200, "200 OK"),
        ("grpc/readyz", 500, "NOT_SERVING"),
        ("grpc/startupz", 500, "not registered"),
        ("slow/livez", 500, "no answer within 1s"),
        ("elsewhere/livez", 200, "200 OK"),
        ("nobody/livez", 404, "ISTIO_KUBE_APP_PROBERS has no /app-health/nobody/livez"),
    ] {
        let (got, said) = page(&at, &format!("/app-health/{name}")).await;
        assert!(got == status && said.contains(says), "{name}: {got} {said}");
    }
    let before = waiting.load(Ordering::Relaxed);
    let hook = tokio::spawn(async move { page(&at, "/app-lifecycle/web/prestopz").await });
    until("the hook waits", async || waiting.load(Ordering::Relaxed) > before).await;
    held.add_permits(1);
    assert_eq!(hook.await.unwrap().0, 200);

    let (status, metrics) = page(&format!("{POD}:15020"), "/stats/prometheus").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("envoy_server_live") && metrics.ends_with("app_up 1\n"), "{metrics}");
    let (_, metrics) = page(&format!("{POD}:15020"), "/stats/prometheus?filter=server.live").await;
    assert!(metrics.contains("envoy_server_live") && !metrics.contains("envoy_cluster"));
    drop(agent);
}

#[tokio::test]
async fn no_request_fails_while_it_stops() {
    if !is_inside_of_pods() {
        return;
    }
    let held = Arc::new(Semaphore::new(0));
    let waiting = application(held.clone()).await;
    let _weir = Weir::start();
    let mut agent = Agent::start(&["--drain", "50"]).await;
    ready().await;
    let envoy = agent.envoy().await;
    let answered = Arc::new(AtomicUsize::new(0));
    // Each client sends requests on one connection until it is asked to leave, as it does when it has another pod.
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let answered = answered.clone();
            tokio::spawn(async move {
                let mut sender = open("127.0.0.1", "127.0.0.1:80").await;
                loop {
                    let (status, _, closes) = send(&mut sender, "GET", "/").await;
                    assert_eq!(status, 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                    if closes {
                        return;
                    }
                }
            })
        })
        .collect();
    let long = tokio::spawn(async { page("127.0.0.1:80", "/held").await });
    until("the clients send", async || answered.load(Ordering::Relaxed) > 100).await;
    until("a long request is under way", async || waiting.load(Ordering::Relaxed) == 1).await;
    assert!(clients.iter().all(|client| !client.is_finished()));

    agent.signal(Signal::SIGTERM);
    until("it is not ready", async || page(READY, "/healthz/ready").await.0 == 503).await;
    for client in clients {
        client.await.unwrap();
    }
    // Who has not learned of it is still served.
    assert_eq!(page("127.0.0.1:80", "/").await, (200, "web\n".into()));
    assert!(!is_gone(envoy), "a request is under way");
    held.add_permits(1);
    assert_eq!(long.await.unwrap(), (200, "held\n".into()));
    assert_eq!(agent.ended().await.code(), Some(0));
    assert!(is_gone(envoy));
    assert!(!agent.log().contains("have not ended within"), "{}", agent.log());
}

#[tokio::test]
async fn connections_that_stay_are_cut_after_the_drain_time_or_by_a_second_signal() {
    if !is_inside_of_pods() {
        return;
    }
    let waiting = application(Arc::new(Semaphore::new(0))).await;
    let _weir = Weir::start();
    for (drain, signals, status) in [("2", 1, 0), ("50", 2, 130)] {
        let mut agent = Agent::start(&["--drain", drain]).await;
        ready().await;
        let (envoy, before) = (agent.envoy().await, waiting.load(Ordering::Relaxed));
        let mut sender = open("127.0.0.1", "127.0.0.1:80").await;
        let stays = tokio::spawn(async move {
            let request = hyper::Request::get("/held").header("host", "web.shop");
            sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.is_ok()
        });
        until("a request is under way", async || waiting.load(Ordering::Relaxed) > before).await;
        agent.signal(Signal::SIGINT);
        if signals == 2 {
            until("it stops", async || agent.log().contains("stopping; ")).await;
            agent.signal(Signal::SIGINT);
        }
        assert_eq!(agent.ended().await.code(), Some(status), "{drain}");
        assert!(is_gone(envoy));
        assert!(!stays.await.unwrap());
    }
}

#[tokio::test]
async fn it_ends_with_envoy_and_envoy_with_it() {
    if !is_inside_of_pods() {
        return;
    }
    let mut agent = Agent::start(&[]).await;
    kill(agent.envoy().await, Signal::SIGKILL).unwrap();
    assert_eq!(agent.ended().await.code(), Some(128 + 9));

    let mut agent = Agent::start(&["--", "--no-such-flag"]).await;
    assert_eq!(agent.ended().await.code(), Some(1), "Envoy's own status");

    let mut agent = Agent::start(&[]).await;
    let envoy = agent.envoy().await;
    agent.signal(Signal::SIGKILL);
    agent.ended().await;
    until("the kernel has killed Envoy", async || is_gone(envoy)).await;

    let mut agent = Agent::start(&[]).await;
    let quit = async |from: &str, method: &str| {
        send(&mut open(from, &format!("{POD}:15020")).await, method, "/quitquitquit").await.0
    };
    assert_eq!(quit("10.2.0.9", "POST").await, 403);
    assert_eq!(quit("127.0.0.1", "GET").await, 405);
    assert_eq!(quit("127.0.0.1", "POST").await, 200);
    assert_eq!(agent.ended().await.code(), Some(0));
}

#[tokio::test]
async fn as_the_first_process_it_reaps_orphans() {
    if !is_inside_of_pods() {
        return;
    }
    let agent =
        Agent::start_by(&["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"], &[]).await;
    let (id, envoy) = (agent.id(), agent.envoy().await);
    // Its parent ends before it does.
    let orphan = Command::new("nsenter")
        .args(["--target", &id.to_string(), "--pid", "--mount"])
        .args(["sh", "-c", "sh -c 'exec sleep 0.2' >/dev/null 2>&1 & echo $!"])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(orphan.status.success());
    let children = || std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    until("only Envoy is left", async || children().trim() == envoy.to_string()).await;
}

#[test]
fn it_installs_itself_and_runs_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("of/weir");
    let parent = target.parent().unwrap();
    for _ in 0..2 {
        let output = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["agent", "install"])
            .arg(parent)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), target.to_str().unwrap());
    }
    let version = Command::new(&target).arg("--version").output().unwrap();
    assert!(version.status.success());
    let names = std::fs::read_dir(parent).unwrap().count();
    assert_eq!(names, 1, "only the program");
}
