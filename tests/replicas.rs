//! Several replicas of weir on one real Kubernetes API: each serves by itself, and a proxy may move from one to another at
//! any time without getting again what it has, and without a failed request.

use std::collections::BTreeMap;

use tonic::transport::Channel;
use weir::canary::patterns::Write;
use weir::envoy::EnvoyProcess;

use crate::support::ads::{Ask, CDS, Client, EDS, LDS, RDS, Variant, ask};
use crate::support::kube_canary::KubeCanary;
use crate::support::mesh::{Serve, until};
use crate::support::process::free_port;

/// Short, so that what is dropped is dropped during the test.
const GRACE: [&str; 2] = ["--grace", "0.05"];

fn ports() -> (u16, u16) {
    (free_port(), free_port())
}

/// A stream of a sidecar.
async fn connect(weir: &Serve, variant: Variant) -> Client {
    let to = Channel::from_shared(format!("http://127.0.0.1:{}", weir.xds)).unwrap();
    Client::open(to.connect().await.unwrap(), variant, None).await
}

/// A resource's or a response's version, by name.
type Versions = BTreeMap<String, String>;

/// What a client has of each type, and which names it asked for.
struct Has {
    kind: &'static str,
    names: Vec<String>,
    /// The common version (SotW).
    version: String,
    /// That of each resource (delta).
    versions: Versions,
}

/// Fetches everything in the order in which Envoy requests it.
async fn fetch_all(client: &mut Client, routes: &str) -> Vec<Has> {
    let mut all: Vec<Has> = Vec::new();
    for kind in [CDS, EDS, LDS, RDS] {
        let names = match kind {
            EDS => {
                let clusters = all[0].versions.keys();
                clusters.filter(|name| name.starts_with("outbound|")).cloned().collect()
            }
            RDS => vec![routes.to_owned()],
            _ => Vec::new(),
        };
        let got = client.fetch(kind, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let versions = got.resources.iter().map(|(name, (version, _))| (name, version));
        let versions = versions.map(|(name, version)| (name.clone(), version.clone())).collect();
        all.push(Has { kind, names, version: got.version, versions });
    }
    all
}

/// Asks for everything as a client does that has it from another replica.
async fn resume(client: &mut Client, has: &[Has]) {
    for Has { kind, names, version, versions } in has {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let more = match client.variant() {
            Variant::Sotw => Ask { version: version.clone(), ..ask(kind, &names) },
            Variant::Delta => Ask { initial: versions.clone(), ..ask(kind, &names) },
        };
        client.send(more).await;
    }
}

#[tokio::test]
async fn a_client_gets_nothing_again_from_another_replica() {
    let name = "a_client_gets_nothing_again_from_another_replica";
    let Some(mut canary) = KubeCanary::start(name).await else { return };
    let old = canary.weir(ports(), &GRACE);
    old.ready().await;
    // The first one has seen more of the past than the second one.
    let events = old.events().await;
    canary.write(Write::Endpoints(vec![1])).await;
    canary.route(70).await;
    canary.write(Write::Endpoints(vec![1, 2])).await;
    until("all of it is read", async || old.events().await >= events + 3).await;
    let young = canary.weir(ports(), &GRACE);
    young.ready().await;
    let routes = canary.ports.service.to_string();
    for variant in [Variant::Delta, Variant::Sotw] {
        for (from, to) in [(&old, &young), (&young, &old)] {
            let mut client = connect(from, variant).await;
            let has = fetch_all(&mut client, &routes).await;
            assert!(has.iter().all(|of| !of.versions.is_empty()), "{variant:?}");
            drop(client);
            let sent = to.sent_bytes().await;
            let mut client = connect(to, variant).await;
            resume(&mut client, &has).await;
            let mut proxies = Vec::new();
            until("the proxy counts as synced", async || {
                proxies = to.proxies().await.unwrap();
                proxies.iter().any(|proxy| proxy.acked.is_some() && proxy.acked == proxy.wanted)
            })
            .await;
            assert_eq!(to.sent_bytes().await, sent, "{variant:?}: {proxies:?}");
            client.nothing_more("no such cluster").await;
            drop(client);
            until("it is gone", async || to.proxies().await.unwrap().is_empty()).await;
        }
    }
}

/// Waits until both Envoys are connected to this replica and have everything.
async fn serves_both(weir: &Serve) {
    until("both Envoys are here and have everything", async || {
        let proxies = weir.proxies().await.unwrap_or_default();
        let synced = |pod: &str| {
            proxies.iter().any(|proxy| {
                proxy.pod == pod && proxy.acked.is_some() && proxy.acked == proxy.wanted
            })
        };
        synced("client-0") && synced("client-1")
    })
    .await;
}

/// Two Envoys that know these replicas; the first one takes requests.
async fn envoys(
    canary: &KubeCanary,
    folder: &tempfile::TempDir,
    replicas: &[u16],
    more: &[&str],
) -> [EnvoyProcess; 2] {
    let first = [&["--pod", "client-0", "--intercept", "none"], more].concat();
    let second = [&["--pod", "client-1", "--intercept", "redirect"], more].concat();
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    [
        canary.envoy(folder.path(), replicas, &first).await,
        canary.envoy(&other, replicas, &second).await,
    ]
}

/// Kills the only replica that there is, while another one starts.
async fn moves_without_resending(more: &[&str]) {
    let name = "moves_without_resending";
    let Some(mut canary) = KubeCanary::start(name).await else { return };
    let flags = [&GRACE[..], &["--routes-follow", "0.05"]].concat();
    let mut first = canary.weir(ports(), &flags);
    first.ready().await;
    let second = ports();
    let folder = tempfile::tempdir().unwrap();
    let envoys = envoys(&canary, &folder, &[first.xds, second.0], more).await;
    canary.route(60).await;
    for envoy in &envoys {
        canary.live(envoy).await;
    }
    // Until the numbers in the routes have followed, a proxy has older routes than a fresh replica would send.
    for envoy in &envoys {
        until("the routes have followed", async || {
            let dump = envoy.config_dump().await.unwrap().to_string();
            let runtime = envoy.admin_get("/runtime").await.unwrap();
            dump.contains("\"weight\":60") && !String::from_utf8_lossy(&runtime).contains("|v1|")
        })
        .await;
    }
    serves_both(&first).await;
    let load = canary.load();
    let second = canary.weir(second, &flags);
    second.ready().await;
    let updates = async || {
        let mut sum = 0;
        for envoy in &envoys {
            // What Envoy took in of routes, clusters and endpoints.
            let stats = envoy.stats("(config_reload|update_success|cluster_modified)$").await;
            sum += stats.unwrap().values().sum::<u64>();
        }
        sum
    };
    let before = updates().await;
    first.kill();
    serves_both(&second).await;
    let (after, sent) = (updates().await, second.sent_bytes().await);
    let tally = load.end();
    assert_eq!(tally.failed(), 0, "{tally:?}");
    assert_eq!(sent, BTreeMap::new(), "bytes sent by the other replica");
    assert_eq!(after, before, "what Envoys took in");
}

#[tokio::test]
async fn envoys_get_nothing_again_from_another_replica_over_delta() {
    moves_without_resending(&[]).await;
}

#[tokio::test]
async fn envoys_get_nothing_again_from_another_replica_over_sotw() {
    moves_without_resending(&["--sotw"]).await;
}

/// Replaces every replica, one after the other, in the middle of a canary.
async fn rolling_upgrade(more: &[&str]) {
    let Some(mut canary) = KubeCanary::start("rolling_upgrade").await else { return };
    // As many as there are replicas, and one more for the one that is started first.
    let mut addresses = [ports(), ports(), ports()].into_iter().collect::<Vec<_>>();
    let known: Vec<u16> = addresses.iter().map(|(xds, _)| *xds).collect();
    let mut replicas: Vec<Serve> =
        addresses.drain(..2).map(|address| canary.weir(address, &GRACE)).collect();
    let mut free = addresses.remove(0);
    for replica in &replicas {
        replica.ready().await;
    }
    let folder = tempfile::tempdir().unwrap();
    let envoys = envoys(&canary, &folder, &known, more).await;
    let load = canary.load();
    for new_one_first in [true, false] {
        for replica in &mut replicas {
            // Each writes as rollout tools do while a replica comes or goes.
            let old = &*replica;
            let address = (old.xds, old.admin);
            canary.route(80).await;
            let new = if new_one_first {
                let new = canary.weir(free, &GRACE);
                canary.route(40).await;
                new.ready().await;
                old.terminate();
                canary.write(Write::Route(vec![("v2", 100)])).await;
                old.ended().await;
                new
            } else {
                old.terminate();
                canary.route(40).await;
                old.ended().await;
                let new = canary.weir(address, &GRACE);
                canary.write(Write::Route(vec![("v2", 100)])).await;
                new.ready().await;
                new
            };
            free = if new_one_first { address } else { free };
            *replica = new;
            canary.write(Write::Rule(vec![("v2", "v2")])).await;
            for envoy in &envoys {
                canary.live(envoy).await;
            }
            canary.write(Write::Rule(vec![("v1", "v1"), ("v2", "v2")])).await;
            canary.route(100).await;
            for envoy in &envoys {
                canary.live(envoy).await;
            }
        }
    }
    let tally = load.end();
    assert_eq!(tally.failed(), 0, "{tally:?}");
    for envoy in &envoys {
        let rejected = envoy.stats("update_rejected").await.unwrap();
        assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
    }
}

#[tokio::test]
async fn a_rolling_upgrade_fails_no_request_over_delta() {
    rolling_upgrade(&[]).await;
}

#[tokio::test]
async fn a_rolling_upgrade_fails_no_request_over_sotw() {
    rolling_upgrade(&["--sotw"]).await;
}

/// The age of a resource's watch in seconds.
async fn age(weir: &Serve, resource: &str) -> Option<f64> {
    let text = weir.admin().get("/metrics").await.ok()?;
    let name = format!("weir_watch_age_seconds{{resource=\"{resource}\"}} ");
    let text = String::from_utf8(text.to_vec()).unwrap();
    text.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok())
}

#[tokio::test]
async fn the_age_of_a_watch_grows_until_the_api_answers_it() {
    let name = "the_age_of_a_watch_grows_until_the_api_answers_it";
    let Some(mut canary) = KubeCanary::start(name).await else { return };
    let weir = canary.weir(ports(), &[]);
    weir.ready().await;
    for resource in ["pods", "services", "endpointslices.discovery.k8s.io", "namespaces"] {
        assert!(age(&weir, resource).await.is_some(), "{resource}");
    }
    let routes = "virtualservices.networking.istio.io";
    let older_than = async |seconds: f64| {
        until("the watch gets older", async || {
            age(&weir, routes).await.is_some_and(|age| age > seconds)
        })
        .await;
    };
    older_than(2.0).await;
    let younger_than = async |seconds: f64| {
        until("the watch is answered", async || {
            age(&weir, routes).await.is_some_and(|age| age < seconds)
        })
        .await;
    };
    // An event is a sign of life.
    canary.route(50).await;
    younger_than(2.0).await;
    // An API server that is gone gives none.
    canary.cluster.stop_apiserver();
    older_than(3.0).await;
    canary.cluster.start_apiserver();
    younger_than(3.0).await;
}
