//! A mesh on loopback: a folder of objects, backends that report their version, `weir serve`, and a real Envoy.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use weir::admin::api::v1;
use weir::canary::objects::{self, NAMESPACE, Ports};
use weir::envoy::{Admin, EnvoyBinary, EnvoyProcess, SpawnOptions};
use weir::proto_json;

/// The timeout of every wait; far longer than a successful wait takes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Backends: three of v1 on 127.0.1.1 to 3, three of v2 on 127.0.2.1 to 3, all on one port.
pub(crate) struct Backends {
    pub port: u16,
}

impl Backends {
    /// Starts them on a thread of their own, so that a test may block. They run until the test program ends.
    pub(crate) fn start() -> Self {
        let (sender, port) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let backends = weir::canary::backends::start().await.unwrap();
                sender.send(backends.port).unwrap();
                std::future::pending::<()>().await;
            });
        });
        Self { port: port.recv().expect("the backends start") }
    }
}

/// `weir serve` as a child process; killed on drop.
pub(crate) struct Serve {
    child: Child,
    pub xds: u16,
    pub admin: u16,
}

impl Serve {
    pub(crate) fn start(args: &[&str], xds: u16, admin: u16) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, args, xds, admin)
    }

    /// The same with the admin port at this address.
    pub(crate) fn start_at(address: Ipv4Addr, args: &[&str], xds: u16, admin: u16) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .arg("serve")
            .args(args)
            .args([
                "--xds-listen",
                &format!("127.0.0.1:{xds}"),
                "--admin-listen",
                &format!("{address}:{admin}"),
            ])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self::of(child, xds, admin)
    }

    /// One that was started already.
    pub(crate) fn of(child: Child, xds: u16, admin: u16) -> Self {
        Self { child, xds, admin }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn admin(&self) -> Admin {
        Admin::new(SocketAddr::from(([127, 0, 0, 1], self.admin)))
    }

    pub(crate) async fn ready(&self) {
        until("weir is ready", async || {
            assert!(!self.has_ended(), "weir ended before it was ready");
            self.admin().get("/ready").await.is_ok()
        })
        .await;
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&self) {
        until("weir has ended", async || self.has_ended()).await;
    }

    /// The bytes of all responses so far, by type.
    pub(crate) async fn sent_bytes(&self) -> BTreeMap<String, u64> {
        let text = self.admin().get("/metrics").await.unwrap();
        let text = String::from_utf8(text.to_vec()).unwrap();
        let own = text.lines().filter_map(|line| {
            let (of, bytes) = line.strip_prefix("weir_xds_sent_bytes_total")?.rsplit_once(' ')?;
            Some((of.to_owned(), bytes.parse().ok()?))
        });
        own.collect()
    }

    fn has_ended(&self) -> bool {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        !matches!(waitid(Id::Pid(pid), flags), Ok(WaitStatus::StillAlive))
    }

    /// A value from `/metrics`.
    pub(crate) async fn metric(&self, name: &str) -> Option<u64> {
        let text = self.admin().get("/metrics").await.ok()?;
        let text = String::from_utf8(text.to_vec()).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    pub(crate) async fn revision(&self) -> u64 {
        self.metric("weir_mesh_revision ").await.expect("the metric weir_mesh_revision")
    }

    /// Waits until the only proxy has ACKed everything of a revision newer than `revision`.
    pub(crate) async fn acked_after(&self, revision: u64) {
        self.proxies_until("the proxy has acked the newest state", async |list| {
            let Some(proxy) = list.first() else {
                return false;
            };
            proxy.acked.is_some() && proxy.acked == proxy.wanted && proxy.acked > Some(revision)
        })
        .await;
    }

    /// What weir tells of its proxies.
    pub(crate) async fn proxies(&self) -> Option<Vec<v1::Proxy>> {
        proxies(&self.admin()).await
    }

    /// Waits until weir's report about its proxies satisfies a condition.
    async fn proxies_until(&self, what: &str, mut holds: impl AsyncFnMut(&[v1::Proxy]) -> bool) {
        let begun = Instant::now();
        let mut seen = Vec::new();
        loop {
            if let Some(list) = self.proxies().await {
                seen = list;
                if holds(&seen).await {
                    return;
                }
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "waited {DEADLINE:?} for: {what}; the proxies: {seen:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends SIGTERM, like a supervisor.
    pub(crate) fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    /// The number of object changes received.
    pub(crate) async fn events(&self) -> u64 {
        self.metric("pilot_k8s_cfg_events_total ")
            .await
            .expect("the metric pilot_k8s_cfg_events_total")
    }

    /// Waits until this many object changes were received and the proxy of pod `client-0` has ACKed all of them.
    pub(crate) async fn live_with(&self, events: u64) {
        self.proxies_until("the proxy has acked all that was written", async |list| {
            if self.metric("pilot_k8s_cfg_events_total ").await.is_none_or(|seen| seen < events) {
                return false;
            }
            let revision = self.metric("weir_mesh_revision ").await;
            let own = list.iter().find(|proxy| proxy.pod == "client-0");
            own.is_some_and(|own| own.acked.is_some() && own.acked == revision)
        })
        .await;
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Posts to a port on loopback. Returns the status and the body of the answer.
pub(crate) async fn post(port: u16, path: &str, body: &str) -> (http::StatusCode, String) {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = http::Request::post(format!("http://127.0.0.1:{port}{path}"))
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .unwrap();
    let answer = client.request(request).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// What the weir with this admin port tells of its proxies; `None` where it does not answer.
pub(crate) async fn proxies(weir: &Admin) -> Option<Vec<v1::Proxy>> {
    let body = weir.get("/api/v1/proxies").await.ok()?;
    let answer: v1::ListProxiesResponse =
        proto_json::message_from_json(&serde_json::from_slice(&body).unwrap()).unwrap();
    Some(answer.proxies)
}

impl Drop for Serve {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for a condition and fails with its description on timeout.
pub(crate) async fn until(what: &str, holds: impl AsyncFnMut() -> bool) {
    until_within(DEADLINE, what, holds).await;
}

/// Waits for a condition at most this long, and fails with its description on timeout.
pub(crate) async fn until_within(
    limit: Duration,
    what: &str,
    mut holds: impl AsyncFnMut() -> bool,
) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < limit, "waited {limit:?} for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The canary's objects in a folder, for clients on the port `service`.
pub(crate) struct Objects {
    pub folder: PathBuf,
    pub service: u16,
    pub backend: u16,
}

impl Objects {
    pub(crate) fn write_all(&self, v1: u32, v2: u32) {
        self.write("service.yaml", &self.service_yaml());
        self.write("endpoints.yaml", &self.endpoints_yaml());
        self.write("destination-rule.yaml", &rule_yaml(&["v1", "v2"]));
        self.write("virtual-service.yaml", &route_yaml(v1, v2));
    }

    /// Writes a file atomically by rename.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let temporary = self.folder.join(format!(".{name}.new"));
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, self.folder.join(name)).unwrap();
    }

    fn ports(&self) -> Ports {
        Ports { service: self.service, backend: self.backend }
    }

    pub(crate) fn service_yaml(&self) -> String {
        objects::service(NAMESPACE, self.ports())
    }

    pub(crate) fn endpoints_yaml(&self) -> String {
        self.endpoints_of(&[1, 2])
    }

    /// The endpoints and pods of only these versions.
    pub(crate) fn endpoints_of(&self, versions: &[u8]) -> String {
        objects::endpoints(NAMESPACE, self.ports(), versions)
    }
}

/// A rule with these subsets, each of which selects the version of its name.
pub(crate) fn rule_yaml(subsets: &[&str]) -> String {
    let subsets: Vec<(&str, &str)> = subsets.iter().map(|name| (*name, *name)).collect();
    objects::rule(NAMESPACE, &subsets)
}

pub(crate) fn route_yaml(v1: u32, v2: u32) -> String {
    objects::route(NAMESPACE, &[("v1", v1), ("v2", v2)])
}

/// Starts Envoy on the bootstrap that `weir bootstrap` prints.
pub(crate) async fn start_envoy(folder: &Path, xds: u16, more: &[&str]) -> EnvoyProcess {
    start_envoy_from(None, folder, xds, more).await
}

/// The same with this program for Envoy; `None` for the usual one.
pub(crate) async fn start_envoy_from(
    program: Option<PathBuf>,
    folder: &Path,
    xds: u16,
    more: &[&str],
) -> EnvoyProcess {
    let printed = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args([
            "bootstrap",
            "--xds",
            &format!("127.0.0.1:{xds}"),
            "--namespace",
            "shop",
            "--label",
            "app=client",
        ])
        .args(if more.contains(&"--pod") { [""; 0].as_slice() } else { &["--pod", "client-0"] })
        .args(if more.contains(&"--intercept") {
            [""; 0].as_slice()
        } else {
            &["--intercept", "none"]
        })
        .args(more)
        .output()
        .unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let file = folder.join("bootstrap.yaml");
    std::fs::write(&file, printed.stdout).unwrap();
    let envoy = tokio::task::spawn_blocking(move || EnvoyBinary::find(program.as_deref()))
        .await
        .unwrap()
        .unwrap();
    let mut process = envoy.spawn(&SpawnOptions::new(file)).unwrap();
    process.ready(DEADLINE).await.unwrap();
    process
}

/// The route with all traffic to `v1` or `v2`, without mentioning the other.
pub(crate) fn only_yaml(subset: &str) -> String {
    objects::route(NAMESPACE, &[(subset, 100)])
}

/// Responses counted by body, status or kind of failure.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub answers: BTreeMap<String, u64>,
}

impl Tally {
    pub(crate) fn total(&self) -> u64 {
        self.answers.values().sum()
    }

    pub(crate) fn of(&self, answer: &str) -> u64 {
        self.answers.get(answer).copied().unwrap_or(0)
    }

    /// Everything that is neither v1 nor v2.
    pub(crate) fn failed(&self) -> u64 {
        self.total() - self.of("v1") - self.of("v2")
    }

    /// Fails unless the share of v2 is within 4.4 standard deviations of `percent`, which one correct split in 100 000
    /// would exceed. 0 and 100 percent are exact.
    pub(crate) fn assert_split(&self, percent: u32) {
        assert_eq!(self.failed(), 0, "{self:?}");
        assert_share(self.of("v2"), self.total(), percent);
    }
}

/// Fails unless `seen` of `total` is within 4.4 standard deviations of `percent`.
pub(crate) fn assert_share(seen: u64, total: u64, percent: u32) {
    let (n, p) = (total as f64, f64::from(percent) / 100.0);
    let bound = 4.4 * (p * (1.0 - p) / n).sqrt();
    let seen = seen as f64 / n;
    assert!(
        (seen - p).abs() <= bound,
        "expected {percent} % of v2 within ±{bound:.4}, got {seen:.4} of {n} requests"
    );
}

/// Sends `count` requests, 50 on a connection.
pub(crate) fn send(port: u16, count: u64) -> Tally {
    let mut tally = Tally::default();
    let mut left = count;
    while left > 0 {
        let on_this = left.min(50);
        left -= on_this;
        match TcpStream::connect(("127.0.0.1", port)) {
            Err(error) => {
                *tally.answers.entry(format!("connect: {error}")).or_default() += on_this;
            }
            Ok(stream) => exchange(stream, on_this, &mut tally),
        }
    }
    tally
}

fn exchange(stream: TcpStream, count: u64, tally: &mut Tally) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut out = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    for _ in 0..count {
        let answer = one(&mut out, &mut reader).unwrap_or_else(|error| format!("error: {error}"));
        *tally.answers.entry(answer).or_default() += 1;
    }
}

fn one(out: &mut TcpStream, reader: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    out.write_all(b"GET / HTTP/1.1\r\nhost: my-app.shop\r\n\r\n")?;
    let (mut status, mut length, mut line) = (String::new(), 0usize, String::new());
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let lower = line.trim().to_ascii_lowercase();
        if status.is_empty() {
            status = lower.split(' ').nth(1).unwrap_or_default().to_owned();
        } else if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        } else if lower.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(if status == "200" { String::from_utf8_lossy(&body).into_owned() } else { status })
}
