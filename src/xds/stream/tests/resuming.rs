//! Clients that resume with the clusters and routes of an earlier stream.

use std::collections::BTreeMap;

use super::super::session::ASKS_WITHIN;
use super::*;
use crate::snapshot::Resources;

/// The version of a resource as a client reports it.
fn version(state: &Snapshot, kind: ResourceType, name: &str) -> String {
    wire::version_text(state.get(kind).get(name).unwrap().version)
}

/// The first request for a type from a client that resumes with these names and versions.
fn first_request(variant: Variant, kind: ResourceType, had: &[(&str, String)]) -> Request {
    let names = had.iter().filter(|_| !kind.has_wildcard()).map(|(name, _)| (*name).to_owned());
    let request =
        Request { type_url: kind.type_url().into(), names: names.collect(), ..Default::default() };
    match variant {
        Variant::Sotw => Request { version: "1".into(), ..request },
        Variant::Delta => {
            let versions = had.iter().map(|(name, version)| ((*name).to_owned(), version.clone()));
            Request { initial_versions: versions.collect(), ..request }
        }
    }
}

#[test]
fn a_resuming_client_gets_only_what_it_lacks_and_loses_nothing_before_its_routes_have_moved() {
    let mut client = Client::new(Variant::Delta);
    let state = snapshot(1, V1);
    let endpoints = state.get(Endpoints).get("c1").unwrap().version
        ^ state.get(Cluster).get("c1").unwrap().version.rotate_left(32);
    let had: [(ResourceType, &[(&str, String)]); 4] = [
        (Cluster, &[("c1", version(&state, Cluster, "c1")), ("old", "5".into())]),
        (Endpoints, &[("c1", wire::version_text(endpoints)), ("old", "5".into())]),
        (Listener, &[("l", version(&state, Listener, "l"))]),
        (Route, &[("80", "7".into())]),
    ];
    client.give(state.clone());
    for (kind, had) in had {
        client.send(first_request(Variant::Delta, kind, had));
    }
    assert_eq!(client.take_log(), ["rds +80=a>c1"]);
    client.ack();
    client.wait();
    assert_eq!(client.take_log(), ["cds -old"]);
    client.ack();
    assert_eq!(client.take_log(), ["eds -old"]);
}

/// A client that resumes with unknown routes to `c1`. The mesh has removed the pods of `c1` and the routes to it
/// meanwhile.
fn resumed_from_v1(variant: Variant, next: &Arc<Snapshot>) -> Client {
    let before = snapshot(1, V1);
    let had = [
        (Cluster, "c1", version(&before, Cluster, "c1")),
        (Endpoints, "c1", "5".into()),
        (Listener, "l", version(&before, Listener, "l")),
        (Route, "80", version(&before, Route, "80")),
    ];
    let mut client = Client::new(variant);
    client.give(next.clone());
    for (kind, name, version) in had {
        client.send(first_request(variant, kind, &[(name, version)]));
    }
    client
}

#[test]
fn a_resuming_client_keeps_the_endpoints_of_its_old_routes_until_it_has_the_new_ones() {
    let next = snapshot(
        2,
        &[
            (Cluster, "c1", "C1"),
            (Endpoints, "c1", "none"),
            (Cluster, "c2", "C2"),
            (Listener, "l", "L"),
            (Route, "80", "a>c2"),
        ],
    );
    let mut delta = resumed_from_v1(Variant::Delta, &next);
    assert_eq!(delta.take_log(), ["cds +c2=C2"]);
    delta.ack();
    assert_eq!(delta.take_log(), ["rds +80=a>c2"]);
    assert_eq!(delta.stream.settled(), None, "there is more to come");
    delta.ack();
    assert_eq!(delta.take_log(), ["eds +c1=none"]);
    delta.ack();
    assert_eq!(delta.stream.settled(), Some(2.into()));

    let mut sotw = resumed_from_v1(Variant::Sotw, &next);
    assert_eq!(sotw.take_log(), ["cds C1 C2"]);
    sotw.answer(None, &[]);
    assert_eq!(sotw.take_log(), ["lds L", "rds a>c2"]);
    sotw.answer(None, &[]);
    sotw.answer(None, &["80"]);
    assert_eq!(sotw.take_log(), ["eds none"]);
    sotw.answer(None, &["c1"]);
    assert_eq!(sotw.stream.settled(), Some(2.into()));
}

/// A cluster whose endpoints come by EDS.
fn cluster(name: &str) -> Arc<Resource> {
    let eds =
        cluster::cluster::EdsClusterConfig { service_name: name.to_owned(), ..Default::default() };
    let message = cluster::Cluster {
        name: name.to_owned(),
        alt_stat_name: format!("{name};"),
        eds_cluster_config: Some(eds),
        ..Default::default()
    };
    Resource::new(name, message.encode_to_vec().into(), Arc::default())
}

/// An assignment without endpoints.
fn endpoints(name: &str) -> Arc<Resource> {
    let message =
        endpoint::ClusterLoadAssignment { cluster_name: name.to_owned(), ..Default::default() };
    Resource::new(name, message.encode_to_vec().into(), Arc::default())
}

const WEB: &str = "outbound|80||web";
const WEB_V1: &str = "outbound|80|v1|web";
const WEB_V2: &str = "outbound|80|v2|web";

/// The subset `v1` no longer exists, and the routes lead to `v2`.
fn moved_to_v2() -> Arc<Snapshot> {
    let rest = snapshot(1, &[(Listener, "l", "L"), (Route, "80", &format!("a>{WEB_V2}"))]);
    Arc::new(Snapshot::new(
        1.into(),
        [
            Resources::from_iter([cluster(WEB), cluster(WEB_V2)]),
            Resources::from_iter([endpoints(WEB), endpoints(WEB_V2)]),
            rest.get(Listener).clone(),
            rest.get(Route).clone(),
        ],
    ))
}

/// A response with its resources as bytes.
#[derive(Debug, PartialEq)]
struct Sent {
    kind: ResourceType,
    resources: Vec<Vec<u8>>,
    nonce: String,
}

/// The nonce of the response of this type; empty without one.
fn nonce(all: &[Sent], kind: ResourceType) -> String {
    let found = all.iter().find(|sent| sent.kind == kind);
    found.map(|sent| sent.nonce.clone()).unwrap_or_default()
}

/// A SotW client that resumes from version 1.
struct Resuming {
    stream: Stream,
    now: Instant,
}

impl Resuming {
    fn new(state: Arc<Snapshot>) -> Self {
        let mut stream = Stream::new(Variant::Sotw, StreamSettings::default());
        stream.on_snapshot(state);
        Self { stream, now: Instant::now() }
    }

    fn send(&mut self, kind: ResourceType, names: &[&str], nonce: &str) -> Vec<Sent> {
        let request = Request {
            type_url: kind.type_url().into(),
            names: owned(names),
            version: "1".into(),
            nonce: nonce.into(),
            ..Default::default()
        };
        self.stream.on_request(request).unwrap();
        let sent = self.stream.responses(self.now).into_iter().map(|response| {
            let message =
                pb::DiscoveryResponse::decode(Bytes::from(response.frame.bytes())).unwrap();
            Sent {
                kind: response.kind,
                resources: message.resources.into_iter().map(|any| any.value).collect(),
                nonce: message.nonce,
            }
        });
        sent.collect()
    }
}

#[test]
fn a_resuming_sotw_client_keeps_its_clusters_until_its_routes_have_moved() {
    let mut client = Resuming::new(moved_to_v2());
    assert_eq!(client.send(Cluster, &[], ""), [], "it has not reported its clusters yet");
    let first = client.send(Endpoints, &[WEB, WEB_V1], "");
    assert_eq!(first.len(), 2, "clusters, and the endpoints of the substitute: {first:?}");
    assert_eq!(
        first[0].resources,
        [cluster(WEB_V2).bytes(), cluster(WEB).bytes(), cluster(WEB_V1).bytes()]
    );
    assert_eq!(first[1].resources, [endpoints(WEB_V1).bytes()]);
    client.send(Listener, &[], "");
    client.send(Route, &["80"], "");
    // Envoy asks for the endpoints of the new cluster, and ACKs the clusters when none of them warms any more.
    let all = [WEB, WEB_V1, WEB_V2];
    let more = client.send(Endpoints, &all, &first[1].nonce);
    assert!(
        more.iter().any(|sent| sent.resources.contains(&endpoints(WEB_V2).bytes())),
        "{more:?}"
    );
    client.send(Endpoints, &all, &more[0].nonce);
    let moved = client.send(Cluster, &[], &first[0].nonce);
    let again = client.send(Endpoints, &all, &nonce(&moved, Endpoints));
    let routes = [nonce(&moved, Route), nonce(&again, Route)].concat();
    let listeners = [nonce(&moved, Listener), nonce(&again, Listener)].concat();
    assert!(!routes.is_empty() && !listeners.is_empty(), "{moved:?} {again:?}");
    client.send(Listener, &[], &listeners);
    client.send(Route, &["80"], &routes);
    client.now += StreamSettings::default().grace;
    let last = client.send(Route, &["80"], "stale");
    assert_eq!(last[0].resources, [cluster(WEB_V2).bytes(), cluster(WEB).bytes()], "{last:?}");
}

#[test]
fn a_resuming_client_does_not_wait_for_the_endpoints_of_a_warming_cluster_that_no_longer_exists() {
    let mut client = Client::new(Variant::Delta);
    client.give(snapshot(1, V1));
    for (kind, names, had) in [
        (Cluster, NOTHING.as_slice(), ["c1", "old"].as_slice()),
        (Endpoints, &["c1", "old"], &["c1"]),
        (Listener, &[], &["l"]),
    ] {
        let had = had.iter().map(|name| ((*name).to_owned(), "5".to_owned()));
        client.send(Request {
            type_url: kind.type_url().into(),
            names: owned(names),
            initial_versions: had.collect(),
            ..Default::default()
        });
    }
    let log = client.take_log();
    assert!(
        log.contains(&"eds +c1=E1 -old".to_owned()),
        "{log:?}: its listener may reference it, so it stays"
    );
    assert!(!log.join(" ").contains("cds -old"), "{log:?}");
}

#[test]
fn a_resuming_client_that_asks_for_no_routes_gets_its_endpoints_after_a_while() {
    let next = snapshot(2, &[(Cluster, "c1", "C1"), (Endpoints, "c1", "none")]);
    let mut client = Client::new(Variant::Delta);
    let begun = client.now;
    client.give(next.clone());
    for (kind, names, version) in [
        (Cluster, NOTHING.as_slice(), next.get(Cluster).get("c1").unwrap().version),
        (Endpoints, &["c1"], 5),
    ] {
        let initial_versions = BTreeMap::from([("c1".to_owned(), wire::version_text(version))]);
        let names = owned(names);
        client.send(Request {
            type_url: kind.type_url().into(),
            names,
            initial_versions,
            ..Default::default()
        });
    }
    while client.log.is_empty() {
        client.wait();
    }
    assert_eq!(
        (client.take_log(), client.now - begun),
        (vec!["eds +c1=none".to_owned()], ASKS_WITHIN)
    );
}

#[test]
fn a_client_that_asks_for_listeners_first_is_given_time_to_ask_for_clusters() {
    let mut client = Client::new(Variant::Delta);
    let begun = client.now;
    client.give(snapshot(1, V1));
    client.ask(Listener, &[]);
    assert_eq!(client.take_log(), NOTHING, "it may resume with a warming cluster");
    while client.log.is_empty() {
        client.wait();
    }
    assert_eq!(
        (client.take_log(), client.now - begun),
        (vec!["lds +l=L".to_owned()], ASKS_WITHIN),
        "it has its clusters from elsewhere"
    );
}
