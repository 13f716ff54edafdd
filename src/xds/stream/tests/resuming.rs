//! Clients that resume with the clusters and routes of an earlier stream.

use std::collections::BTreeMap;

use super::super::session::ASKS_WITHIN;
use super::*;

#[test]
fn a_resuming_client_gets_only_what_it_lacks_and_loses_nothing_before_its_routes_have_moved() {
    let mut client = Client::new(Variant::Delta);
    let state = snapshot(1, V1);
    let version = |kind: ResourceType, name: &str| {
        wire::version_text(state.get(kind).get(name).unwrap().version)
    };
    let endpoints = state.get(Endpoints).get("c1").unwrap().version
        ^ state.get(Cluster).get("c1").unwrap().version.rotate_left(32);
    let came = |kind: ResourceType, had: &[(&str, String)]| Request {
        type_url: kind.type_url().into(),
        names: if kind.has_wildcard() {
            Vec::new()
        } else {
            had.iter().map(|(name, _)| (*name).to_owned()).collect()
        },
        initial_versions: had
            .iter()
            .map(|(name, version)| ((*name).to_owned(), version.clone()))
            .collect(),
        ..Default::default()
    };
    let requests = [
        came(Cluster, &[("c1", version(Cluster, "c1")), ("old", "5".into())]),
        came(Endpoints, &[("c1", wire::version_text(endpoints)), ("old", "5".into())]),
        came(Listener, &[("l", version(Listener, "l"))]),
        came(Route, &[("80", "7".into())]),
    ];
    client.give(state.clone());
    for request in requests {
        client.send(request);
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
    let version = |kind: ResourceType, name: &str| {
        wire::version_text(before.get(kind).get(name).unwrap().version)
    };
    let came = |kind: ResourceType, names: &[&str], had: &[(&str, String)]| match variant {
        Variant::Sotw => Request {
            type_url: kind.type_url().into(),
            names: owned(names),
            version: "1".into(),
            ..Default::default()
        },
        Variant::Delta => Request {
            type_url: kind.type_url().into(),
            names: owned(names),
            initial_versions: had
                .iter()
                .map(|(name, version)| ((*name).to_owned(), version.clone()))
                .collect(),
            ..Default::default()
        },
    };
    let mut client = Client::new(variant);
    client.give(next.clone());
    client.send(came(Cluster, &[], &[("c1", version(Cluster, "c1"))]));
    client.send(came(Endpoints, &["c1"], &[("c1", "5".into())]));
    client.send(came(Listener, &[], &[("l", version(Listener, "l"))]));
    client.send(came(Route, &["80"], &[("80", version(Route, "80"))]));
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

#[test]
fn a_resuming_sotw_client_keeps_its_clusters_until_its_routes_have_moved() {
    let (whole, old, new) = ("outbound|80||web", "outbound|80|v1|web", "outbound|80|v2|web");
    let by_name = |all: Vec<Arc<Resource>>| all.into_iter().collect();
    let rest = snapshot(1, &[(Listener, "l", "L"), (Route, "80", &format!("a>{new}"))]);
    let state = Snapshot::new(
        1.into(),
        [
            by_name(vec![cluster(whole), cluster(new)]),
            by_name(vec![endpoints(whole), endpoints(new)]),
            rest.get(Listener).clone(),
            rest.get(Route).clone(),
        ],
    );
    let mut stream = Stream::new(Variant::Sotw, StreamSettings::default());
    stream.on_snapshot(Arc::new(state));
    let begun = Instant::now();
    let mut send = |request: Request, now: Instant| -> Vec<(ResourceType, Vec<Vec<u8>>, String)> {
        stream.on_request(request).unwrap();
        let sent = stream.responses(now).into_iter().map(|response| {
            let message =
                pb::DiscoveryResponse::decode(Bytes::from(response.frame.bytes())).unwrap();
            (
                response.kind,
                message.resources.into_iter().map(|any| any.value).collect(),
                message.nonce,
            )
        });
        sent.collect()
    };
    let request = |kind: ResourceType, names: &[&str], nonce: &str| Request {
        type_url: kind.type_url().into(),
        names: owned(names),
        version: "1".into(),
        nonce: nonce.into(),
        ..Default::default()
    };
    assert_eq!(send(request(Cluster, &[], ""), begun), [], "it has not reported its clusters yet");
    let sent = send(request(Endpoints, &[whole, old], ""), begun);
    assert_eq!(sent.len(), 2, "clusters, and the endpoints of the substitute: {sent:?}");
    assert_eq!(sent[0].1, [cluster(new).bytes(), cluster(whole).bytes(), cluster(old).bytes()]);
    assert_eq!(sent[1].1, [endpoints(old).bytes()]);
    send(request(Listener, &[], ""), begun);
    send(request(Route, &["80"], ""), begun);
    // Envoy asks for the endpoints of the new cluster, and ACKs the clusters when none of them warms any more.
    let more = send(request(Endpoints, &[whole, old, new], &sent[1].2), begun);
    assert!(more.iter().any(|response| response.1.contains(&endpoints(new).bytes())), "{more:?}");
    send(request(Endpoints, &[whole, old, new], &more[0].2), begun);
    let moved = send(request(Cluster, &[], &sent[0].2), begun);
    let nonce = |all: &[(ResourceType, Vec<Vec<u8>>, String)], kind: ResourceType| -> String {
        all.iter()
            .find(|response| response.0 == kind)
            .map(|response| response.2.clone())
            .unwrap_or_default()
    };
    let again = send(request(Endpoints, &[whole, old, new], &nonce(&moved, Endpoints)), begun);
    let routes = [nonce(&moved, Route), nonce(&again, Route)].concat();
    let listeners = [nonce(&moved, Listener), nonce(&again, Listener)].concat();
    assert!(!routes.is_empty() && !listeners.is_empty(), "{moved:?} {again:?}");
    send(request(Listener, &[], &listeners), begun);
    send(request(Route, &["80"], &routes), begun);
    let last = send(request(Route, &["80"], "stale"), begun + StreamSettings::default().grace);
    assert_eq!(last[0].1, [cluster(new).bytes(), cluster(whole).bytes()], "{last:?}");
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
