//! Istio's agent with a plain Envoy, against weir's TLS port: it is ready, and has its certificate and the names for DNS.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::json;
use tokio::net::UdpSocket;
use weir::envoy::{Admin, EnvoyBinary};

use crate::identity::World;
use crate::support::mesh::until;
use crate::support::network::is_inside_of_pods;
use crate::support::process::{Launch, Supervised};
use crate::support::rollout_tools::{PilotAgent, pilot_agent};
use crate::support::{Skip, say};

const LOG: &str = "agent.log";

/// The log of the agent, whose end is shown if the test fails.
struct Log(PathBuf);

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.0).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let last = lines.get(lines.len().saturating_sub(30)..).unwrap_or_default();
            say(&format!("the end of the agent's log:\n{}", last.join("\n")));
        }
    }
}

/// Starts the agent as Istio's template for sidecars does, in a folder with what kubelet mounts.
fn start(agent: &PilotAgent, envoy: &Path, folder: &Path, world: &World) -> Supervised {
    for (path, text) in [
        ("var/run/secrets/tokens/istio-token", world.token("web", Some("web-0"), "istio-ca")),
        ("var/run/secrets/istio/root-cert.pem", world.roots.clone()),
        ("etc/istio/pod/labels", "app=\"web\"\n".to_owned()),
    ] {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    for made in ["etc/istio/proxy", "certs"] {
        fs::create_dir_all(folder.join(made)).unwrap();
    }
    let weir = format!("127.0.0.1:{}", world.port);
    let config = json!({"discoveryAddress": weir, "binaryPath": envoy, "statusPort": 15020});
    let args = [
        format!("--chdir={}", folder.display()),
        format!("CA_ADDR={weir}"),
        format!("PROXY_CONFIG={config}"),
        // weir is also known as the Istiod that it replaces.
        "ISTIOD_SAN=istiod.istio-system.svc".to_owned(),
        "POD_NAME=web-0".to_owned(),
        "POD_NAMESPACE=shop".to_owned(),
        "SERVICE_ACCOUNT=web".to_owned(),
        "INSTANCE_IP=10.2.0.1".to_owned(),
        "TRUST_DOMAIN=cluster.local".to_owned(),
        "ISTIO_META_CLUSTER_ID=Kubernetes".to_owned(),
        "ISTIO_META_DNS_CAPTURE=true".to_owned(),
        "ISTIO_META_INTERCEPTION_MODE=REDIRECT".to_owned(),
        // Asked for and not served.
        "PROXY_CONFIG_XDS_AGENT=true".to_owned(),
        "OUTPUT_CERTS=./certs".to_owned(),
        agent.program.to_str().unwrap().to_owned(),
        "proxy".to_owned(),
        "sidecar".to_owned(),
        "--domain=shop.svc.cluster.local".to_owned(),
        format!("--templateFile={}", agent.template.display()),
        "--concurrency=1".to_owned(),
    ];
    let log = File::create(folder.join(LOG)).unwrap();
    Supervised::spawn(Launch {
        program: Path::new("env"),
        args: args.to_vec(),
        stdout: Stdio::from(log.try_clone().unwrap()),
        stderr: log.into(),
        grace_tenths: 100,
        remove: None,
    })
    .unwrap()
}

/// The IPv4 addresses by which the agent answers for a name; `None` if it does not answer.
async fn resolve(name: &str) -> Option<Vec<Ipv4Addr>> {
    // One question of type A and class IN, recursion desired (RFC 1035, section 4.1).
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len().try_into().unwrap());
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect("127.0.0.1:15053").await.unwrap();
    socket.send(&question).await.ok()?;
    let mut answer = [0; 1500];
    let wait = std::time::Duration::from_secs(5);
    let length = tokio::time::timeout(wait, socket.recv(&mut answer)).await.ok()?.ok()?;
    let answer = &answer[..length];
    // Each answer ends with its type, class, time to live, length, and address.
    let count = usize::from(answer[7]);
    let records = answer[question.len()..].windows(14).filter_map(|record| {
        let is_address = record[..4] == [0, 1, 0, 1] && record[8..10] == [0, 4];
        is_address.then(|| Ipv4Addr::new(record[10], record[11], record[12], record[13]))
    });
    Some(records.take(count).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn istios_agent_is_ready_and_has_its_certificate_and_names() {
    if !is_inside_of_pods() {
        return;
    }
    let test = "istios_agent_is_ready_and_has_its_certificate_and_names";
    let agent = match tokio::task::spawn_blocking(pilot_agent).await.unwrap() {
        Ok(agent) => agent,
        Err(why) => return Skip { why }.report(test),
    };
    let Some(world) = World::start(test, &["--tls-name", "127.0.0.1"]).await else {
        return;
    };
    let envoy = tokio::task::spawn_blocking(|| EnvoyBinary::find(None)).await.unwrap().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let _log = Log(folder.path().join(LOG));
    let _agent = start(&agent, envoy.path(), folder.path(), &world);
    let readiness = Admin::new(SocketAddr::from(([127, 0, 0, 1], 15021)));
    until("the agent is ready", async || readiness.get("/healthz/ready").await.is_ok()).await;
    let proxies = world.serve.proxies().await.unwrap();
    assert_eq!(proxies.len(), 1, "{proxies:?}");
    assert_eq!((proxies[0].pod.as_str(), proxies[0].namespace.as_str()), ("web-0", "shop"));
    assert!(proxies[0].rejected.is_empty(), "{proxies:?}");

    let certificate = folder.path().join("certs/cert-chain.pem");
    until("the agent has a certificate", async || certificate.exists()).await;
    let roots = fs::read_to_string(folder.path().join("certs/root-cert.pem")).unwrap();
    assert_eq!(roots.trim(), world.roots.trim());

    // What is created while it runs comes, too.
    world.cluster.kubectl_ok(&["-n", "shop", "create", "service", "clusterip", "cart", "--tcp=80"]);
    let of_cart = ["-n", "shop", "get", "service", "cart", "-o", "jsonpath={.spec.clusterIP}"];
    let address: Ipv4Addr = world.cluster.kubectl_ok(&of_cart).trim().parse().unwrap();
    until("the agent resolves the new service", async || {
        resolve("cart.shop.svc.cluster.local").await == Some(vec![address])
    })
    .await;
    // The shorter names that a pod of its namespace uses.
    assert_eq!(resolve("cart.shop").await, Some(vec![address]));
    world.cluster.kubectl_ok(&["-n", "shop", "delete", "service", "cart"]);
    until("the agent no longer resolves it", async || {
        resolve("cart.shop.svc.cluster.local").await != Some(vec![address])
    })
    .await;
    let proxies = world.serve.proxies().await.unwrap();
    assert!(proxies[0].rejected.is_empty(), "{proxies:?}");
}
