//! `weir serve`, `explain`, `translate` and `analyze` give one answer for the same files.
//!
//! Meshes are made up at random: with subsets that nothing defines, subsets and services without a ready endpoint, hosts
//! of no service, ExternalNames that lead nowhere, and several VirtualServices for one host. Each is served to a real
//! Envoy by a real `weir serve`; what `explain` says of a request must be what Envoy's `/config_dump` has and what Envoy
//! answers, and `analyze` must have reported every destination that is missing.
//!
//! `WEIR_MESHES=100` makes more of them, and `WEIR_SEED` others.

mod mesh;
mod served;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use crate::support::mesh::{Backends, DEADLINE};
use crate::support::process::{Reserved, free_port};
use crate::support::sidecar::{Options, Sidecar};
use mesh::{Asked, Generated};
use serde_json::Value;
use served::Served;
use weir::analyze::{self, Finding};
use weir::cli::objects::Objects;
use weir::explain::{self, Destination, Explanation, Outcome, Request, TrafficQuery};
use weir::mesh::{
    EmptySubset, Locality, MeshConfig, NodeMetadata, OutboundPolicy, Proxy, Scope, ScopeView,
    WeightDelivery,
};
use weir::snapshot::{Snapshot, SnapshotBuilder};

/// What the meshes held, so that a generator that makes nothing of interest is found out.
#[derive(Debug, Default)]
struct Seen {
    questions: usize,
    forwards: usize,
    missing: usize,
    without_endpoint: usize,
    held: usize,
    overruled: usize,
    unknown_hosts: usize,
}

#[tokio::test]
async fn serve_explain_translate_and_analyze_never_contradict_each_other() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap())
    };
    let (seed, count) = (number("WEIR_SEED", 1), number("WEIR_MESHES", 4));
    let backends = Backends::start();
    let mut seen = Seen::default();
    for seed in seed..seed + count {
        let wrong = one_mesh(seed, backends.port, &mut seen).await;
        assert!(
            wrong.is_empty(),
            "{} contradictions with WEIR_SEED={seed} WEIR_MESHES=1:\n{}",
            wrong.len(),
            wrong[..wrong.len().min(10)].join("\n")
        );
    }
    if count >= 4 {
        let all = [
            seen.forwards,
            seen.missing,
            seen.without_endpoint,
            seen.held,
            seen.overruled,
            seen.unknown_hosts,
        ];
        assert!(seen.questions >= 100 && all.iter().all(|count| *count > 0), "{seen:?}");
    }
}

/// Ports that Envoy binds and nobody else can take.
fn ports() -> ([u16; 3], Vec<Reserved>) {
    let mut reserved = Vec::new();
    let ports = [(); 3].map(|()| {
        loop {
            let port = free_port();
            if let Ok(own) = Reserved::new(SocketAddr::from(([127, 0, 0, 1], port))) {
                reserved.push(own);
                return port;
            }
        }
    });
    (ports, reserved)
}

/// The contradictions in one mesh.
async fn one_mesh(seed: u64, backend: u16, seen: &mut Seen) -> Vec<String> {
    let (ports, _reserved) = ports();
    let generated = Generated::new(seed, ports, backend);
    let folder = tempfile::tempdir().unwrap().keep();
    std::fs::create_dir(folder.join("config")).unwrap();
    std::fs::write(folder.join("config/objects.yaml"), generated.text()).unwrap();
    // Sidecar removes its folder when it ends, so that what is asked here is asked of a folder of its own.
    let own = tempfile::tempdir().unwrap();
    let file = own.path().join("objects.yaml");
    std::fs::write(&file, generated.text()).unwrap();
    let flags = ["--empty-subset", generated.mode, "--outbound-policy", "registry-only"];
    let bootstrap = [
        "--namespace",
        "shop",
        "--pod",
        "client-0",
        "--label",
        "app=client",
        "--intercept",
        "none",
    ];
    let options = Options { serve: &flags, bootstrap: &bootstrap, clusters: Vec::new() };
    let sidecar = Sidecar::start(&folder, options).await;
    let served = Served::new(&sidecar.envoy().config_dump().await.unwrap());
    let node: Value =
        serde_json::from_slice(&std::fs::read(folder.join("bootstrap.json")).unwrap()).unwrap();
    let held = metric(&sidecar, "weir_held ").await;
    let reported = Reported::new(&file, &generated, &node["node"]);
    let mut wrong = Vec::new();
    if held != reported.objects.held.len() {
        wrong.push(format!(
            "serve holds {held} weights, explain and translate {:?}",
            reported.objects.held
        ));
    }
    wrong.extend(served.differences(&translated(&file, &flags, &node["node"])));
    let (questions, answers): (Vec<_>, Vec<_>) = generated
        .questions()
        .into_iter()
        .map(|asked| (asked.clone(), reported.answer(&asked)))
        .unzip();
    for (asked, answer) in questions.iter().zip(&answers) {
        seen.count(answer);
        let found =
            served.contradictions(answer).into_iter().chain(reported.contradictions(answer));
        wrong.extend(found.map(|what| format!("{asked:?}: {what}\n  {answer:?}")));
    }
    for (asked, answer) in questions.iter().zip(&answers).step_by(questions.len().div_ceil(4)) {
        wrong.extend(printed_by_command(&file, &flags, asked, answer));
    }
    wrong.extend(reported.unknown_hosts(&questions, &answers, seen));
    let requests = questions.into_iter().zip(answers).collect();
    wrong.extend(tokio::task::spawn_blocking(move || sent(requests)).await.unwrap());
    wrong.into_iter().map(|what| format!("{what}\n{}", generated.text_if_asked())).collect()
}

async fn metric(sidecar: &Sidecar, name: &str) -> usize {
    let text = sidecar.weir().get("/metrics").await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).expect("the metric")
}

impl Seen {
    fn count(&mut self, answer: &Explanation) {
        self.questions += 1;
        self.held += usize::from(!answer.held.is_empty());
        self.overruled += usize::from(!answer.overruled.is_empty());
        if let Outcome::Forward { destinations, .. } = &answer.outcome {
            self.forwards += 1;
            self.missing += usize::from(destinations.iter().any(|to| to.missing));
            self.without_endpoint +=
                usize::from(destinations.iter().any(|to| !to.missing && !has_endpoint(to)));
        }
    }
}

fn has_endpoint(to: &Destination) -> bool {
    to.endpoints.iter().any(|endpoint| endpoint.healthy)
}

/// What the commands say of a file.
struct Reported {
    objects: Objects,
    scope: Scope,
    snapshot: Snapshot,
    findings: Vec<Finding>,
}

impl Reported {
    fn new(file: &Path, generated: &Generated, node: &Value) -> Self {
        let config = MeshConfig {
            outbound: OutboundPolicy::RegistryOnly,
            empty_subset: if generated.mode == "hold" {
                EmptySubset::Hold
            } else {
                EmptySubset::Allow
            },
            weights: WeightDelivery::Runtime,
            ..MeshConfig::default()
        };
        let objects = Objects::load(file, config.clone()).unwrap();
        let metadata = NodeMetadata::from_json(&node["metadata"]);
        let proxy =
            Proxy::new(node["id"].as_str().unwrap(), metadata, Locality::default()).unwrap();
        let scope = objects.mesh.scope(&proxy);
        let snapshot = SnapshotBuilder::default().snapshot(&objects.mesh, &scope);
        let findings = analyze::analyze(&objects.store, &config);
        Self { objects, scope, snapshot, findings }
    }

    fn answer(&self, asked: &Asked) -> Explanation {
        let traffic = match asked {
            Asked::Http { .. } => {
                let (request, headers) = asked.request();
                TrafficQuery::Http(Request::parse(&request, &headers).unwrap())
            }
            Asked::Tcp { host, port } => {
                TrafficQuery::Tcp { host: host.clone(), port: *port, sni: None }
            }
        };
        let view = ScopeView::new(&self.objects.mesh, &self.scope);
        let mut answer = explain::explain(&view, &self.snapshot, &traffic);
        answer.add_held(&self.objects.held);
        answer
    }

    /// What `analyze` found at a field of an object, or below it.
    fn found_at<'a>(&'a self, object: &'a str, path: &'a str) -> impl Iterator<Item = &'a Finding> {
        self.findings.iter().filter(move |finding| {
            finding.object.as_ref().is_some_and(|key| key.to_string() == object)
                && finding.path.starts_with(path)
        })
    }

    /// Where what `explain` says of a request contradicts what `analyze` says of the objects.
    fn contradictions(&self, answer: &Explanation) -> Vec<String> {
        let mut wrong = Vec::new();
        for overruled in &answer.overruled {
            let reported = self
                .found_at(overruled, "spec.hosts")
                .any(|item| matches!(item.code.id, "IST0109" | "WEIR0114"));
            if self.names_host(overruled, answer) && !reported {
                wrong.push(format!("analyze does not say that {overruled} is overruled"));
            }
        }
        let Some(taken) = answer.considered.iter().find(|item| item.not.is_none()) else {
            return wrong;
        };
        let (Some(object), Outcome::Forward { destinations, copies, .. }) =
            (&taken.object, &answer.outcome)
        else {
            return wrong;
        };
        let route = taken.field.split(".match[").next().unwrap().to_owned();
        let gone = |list: &[Destination]| list.iter().any(|to| to.missing);
        for (list, place) in [(destinations, ".route["), (copies, ".mirror")] {
            let path = format!("{route}{place}");
            let mut reported = self.found_at(object, &path);
            let reported = reported.any(|item| {
                matches!(item.code.id, "IST0101" | "IST0112" | "WEIR0104" | "WEIR0115")
            });
            if gone(list) && !reported {
                wrong.push(format!(
                    "analyze does not say that a destination of {object} {path} is not there"
                ));
            }
        }
        // What counts for clients of the object's own namespace is reported as such.
        if object.starts_with("VirtualService shop/")
            && answer.held.is_empty()
            && !gone(destinations)
        {
            let path = format!("{route}.route[");
            let dead = self.found_at(object, &path);
            let dead = dead
                .filter(|item| item.code.id == "IST0101" && self.has_weight(object, &item.path));
            wrong.extend(dead.map(|item| {
                format!("analyze calls {object} {} dead: {}", item.path, item.message)
            }));
        }
        wrong
    }

    fn virtual_service(&self, object: &str) -> Option<&weir::api::VirtualService> {
        let all = self.objects.store.all(weir::api::Kind::VirtualService);
        let entry = all.into_iter().find(|entry| entry.object.key().to_string() == object)?;
        match &entry.object.spec {
            weir::api::Spec::VirtualService(spec) => Some(spec),
            _ => None,
        }
    }

    /// Whether a VirtualService names the host of an answer itself, and not by a wildcard.
    fn names_host(&self, object: &str, answer: &Explanation) -> bool {
        let Some(spec) = self.virtual_service(object) else {
            return false;
        };
        let own = answer
            .virtual_host
            .as_deref()
            .and_then(|name| name.rsplit_once(':'))
            .map(|(host, _)| host);
        let namespace = object.split([' ', '/']).nth(1).unwrap_or_default();
        spec.hosts
            .iter()
            .any(|host| Some(&*weir::mesh::resolve(host, namespace, "cluster.local")) == own)
    }

    /// Whether the destination at a path gets requests.
    fn has_weight(&self, object: &str, path: &str) -> bool {
        let mut numbers = path.split(['[', ']']).filter_map(|part| part.parse::<usize>().ok());
        let routes = self.virtual_service(object).and_then(|spec| spec.http.get(numbers.next()?));
        let Some(routes) = routes.map(|route| &route.route) else {
            return false;
        };
        let to = numbers.next().and_then(|n| routes.get(n));
        to.is_some_and(|to| routes.len() == 1 || to.weight > 0)
    }

    /// Of hosts that no service has, the ports on which they are answered must be those that `analyze` names.
    fn unknown_hosts(
        &self,
        questions: &[Asked],
        answers: &[Explanation],
        seen: &mut Seen,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        for (object, name, finding) in self.findings.iter().filter_map(|finding| {
            let name = finding.message.strip_prefix('`')?.split_once("` is not a known service")?.0;
            let reported = finding.path.starts_with("spec.hosts[")
                && matches!(finding.code.id, "WEIR0110" | "WEIR0203");
            reported.then(|| Some((finding.object.as_ref()?, name, finding))).flatten()
        }) {
            let (_, rest) = finding.message.split_once("service").unwrap();
            let listed: BTreeSet<u16> = rest
                .split(|c: char| !c.is_ascii_digit())
                .filter_map(|number| number.parse().ok())
                .collect();
            for (asked, answer) in questions.iter().zip(answers) {
                let Asked::Http { host, port, .. } = asked else {
                    continue;
                };
                if host != name || *object.namespace != *"shop" {
                    continue;
                }
                seen.unknown_hosts += 1;
                let has = answer.virtual_host.as_deref() == Some(format!("{name}:{port}").as_str());
                if has != listed.contains(port) {
                    wrong.push(format!(
                        "{asked:?}: has routes {has}, and analyze says of {object}: {}",
                        finding.message
                    ));
                }
            }
        }
        wrong
    }
}

/// What `weir translate` prints for the proxy that Envoy is.
fn translated(file: &Path, flags: &[&str], node: &Value) -> Value {
    let (id, metadata) = (node["id"].as_str().unwrap(), node["metadata"].to_string());
    let output = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["translate", "-o", "json", "--node-id", id, "--node-metadata", &metadata, "-f"])
        .arg(file)
        .args(flags)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// `weir explain` itself must say what the library says. Its client's traffic is redirected, which changes the listener.
fn printed_by_command(
    file: &Path,
    flags: &[&str],
    asked: &Asked,
    answer: &Explanation,
) -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(["explain", "-o", "json", "--from", "shop/client-0", "-f"]).arg(file).args(flags);
    match asked {
        Asked::Http { .. } => {
            let (request, headers) = asked.request();
            command.args(["--request", &request]);
            headers.iter().for_each(|header| {
                command.args(["-H", header]);
            });
        }
        Asked::Tcp { host, port } => {
            command.args(["--tcp", &format!("{host}:{port}")]);
        }
    }
    let output = command.output().unwrap();
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{asked:?}: {error}: {}", String::from_utf8_lossy(&output.stderr))
    });
    // By way of text, as what is printed: a number may lose its last digit.
    let own: Value = serde_json::from_str(&serde_json::to_string(answer).unwrap()).unwrap();
    let differs =
        ["outcome", "considered", "held"].into_iter().filter(|field| printed[field] != own[field]);
    differs
        .map(|field| {
            format!("{asked:?}: weir explain says {} and not {}", printed[field], own[field])
        })
        .collect()
}

/// Sends each request, and gives back those that Envoy answers otherwise than `explain` says.
fn sent(requests: Vec<(Asked, Explanation)>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (asked, answer) in requests {
        let Asked::Http { port, .. } = &asked else {
            continue;
        };
        let (allowed, status) = (statuses(&answer.outcome), status(*port, &asked.text()));
        if !allowed.contains(&status) {
            wrong.push(format!(
                "{asked:?}: Envoy answers {status}, and explain says {allowed:?}\n  {answer:?}"
            ));
        }
    }
    wrong
}

/// The statuses that a request may be answered with.
fn statuses(outcome: &Outcome) -> BTreeSet<u32> {
    match outcome {
        Outcome::Forward { destinations, .. } => {
            let fed = destinations.iter().filter(|to| to.percent > 0.0);
            fed.map(|to| if !to.missing && has_endpoint(to) { 200 } else { 503 }).collect()
        }
        Outcome::Redirect { status, .. } | Outcome::Respond { status, .. } => {
            BTreeSet::from([*status])
        }
        Outcome::NoRoute => BTreeSet::from([404]),
        Outcome::Closed => BTreeSet::new(),
    }
}

/// Not until the end of the connection, which Envoy leaves to the client for a second.
fn status(port: u16, request: &str) -> u32 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("no answer to {request:?}: {line:?}"))
}

/// Shares in percent by cluster.
fn shares<'a>(clusters: impl Iterator<Item = (&'a str, f64)>) -> BTreeMap<String, i64> {
    let mut shares = BTreeMap::new();
    for (cluster, percent) in clusters {
        // Fine enough for any weights, and no more than floating point can tell.
        *shares.entry(cluster.to_owned()).or_default() += (percent * 10_000.0).round() as i64;
    }
    // A cluster of weight 0 gets no requests.
    shares.retain(|_, share| *share > 0);
    shares
}
