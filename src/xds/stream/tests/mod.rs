mod layers;
mod model;
mod resources;
mod resuming;
mod trials;
mod weights;

use super::runtime::RUNTIME_LAYER;
use super::*;
use crate::snapshot::ResourceType::{Cluster, Endpoints, Listener, Route, Runtime};
use crate::xds::wire;
use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::service::discovery::v3 as pb;
use prost::Message;
use resources::{Parts, show, snapshot};

/// A client that records what it gets, and answers only when the test calls for it.
struct Client {
    stream: Stream,
    now: Instant,
    unanswered: Vec<(ResourceType, String)>,
    log: Vec<String>,
}

impl Client {
    fn new(variant: Variant) -> Self {
        let stream = Stream::new(variant, StreamSettings::default());
        Self { stream, now: Instant::now(), unanswered: Vec::new(), log: Vec::new() }
    }

    fn send(&mut self, request: Request) -> Option<Answer> {
        let answer = self.stream.on_request(request).unwrap();
        self.pump();
        answer
    }

    fn ask(&mut self, kind: ResourceType, names: &[&str]) {
        self.send(request_for(kind, names));
    }

    fn give(&mut self, snapshot: Arc<Snapshot>) {
        self.stream.on_snapshot(snapshot);
        self.pump();
    }

    /// Logs every response, as `cds +NEW -REMOVED` in delta and as `cds ALL-RESOURCES` in SotW.
    fn pump(&mut self) {
        for response in self.stream.responses(self.now) {
            let frame = Bytes::from(response.frame.bytes());
            let mut words = vec![response.kind.short_name().to_owned()];
            let nonce = match self.stream.variant {
                Variant::Delta => {
                    let message = pb::DeltaDiscoveryResponse::decode(frame).unwrap();
                    words.extend(message.resources.iter().map(|resource| {
                        let any = resource.resource.as_ref().unwrap();
                        format!("+{}={}", resource.name, show(response.kind, &any.value))
                    }));
                    words.extend(message.removed_resources.iter().map(|name| format!("-{name}")));
                    message.nonce
                }
                Variant::Sotw => {
                    let message = pb::DiscoveryResponse::decode(frame).unwrap();
                    words.extend(
                        message.resources.iter().map(|any| show(response.kind, &any.value)),
                    );
                    message.nonce
                }
            };
            self.log.push(words.join(" "));
            self.unanswered.push((response.kind, nonce));
        }
    }

    /// Answers the oldest response; in SotW with these names.
    fn answer(&mut self, error: Option<&str>, names: &[&str]) -> Option<Answer> {
        let (kind, nonce) = self.unanswered.remove(0);
        let names = if self.stream.variant == Variant::Delta { Vec::new() } else { owned(names) };
        let error = error.map(Into::into);
        self.send(Request {
            type_url: kind.type_url().into(),
            nonce,
            error,
            names,
            ..Default::default()
        })
    }

    fn ack(&mut self) {
        assert!(matches!(self.answer(None, &[]), Some(Answer::Acked(_))));
    }

    fn ack_all(&mut self) {
        while !self.unanswered.is_empty() {
            self.ack();
        }
    }

    fn wait(&mut self) {
        self.now = self.stream.wake_at().expect("nothing is due");
        self.pump();
    }

    fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn request_for(kind: ResourceType, names: &[&str]) -> Request {
    Request { type_url: kind.type_url().into(), names: owned(names), ..Default::default() }
}

const NOTHING: [&str; 0] = [];
const V1: Parts<'_> =
    &[(Cluster, "c1", "C1"), (Endpoints, "c1", "E1"), (Listener, "l", "L"), (Route, "80", "a>c1")];
const V2: Parts<'_> =
    &[(Cluster, "c2", "C2"), (Endpoints, "c2", "E2"), (Listener, "l", "L"), (Route, "80", "a>c2")];

/// A delta client that ACKed all of `parts`. Their endpoints belong to the clusters of the same name.
fn started_with(parts: Parts<'_>) -> Client {
    let mut client = Client::new(Variant::Delta);
    client.give(snapshot(1, parts));
    client.ask(Cluster, &[]);
    client.ask(Endpoints, &names_of(parts, Endpoints));
    client.ack_all();
    client.ask(Listener, &[]);
    client.ask(Route, &names_of(parts, Route));
    client.ack_all();
    client.take_log();
    client
}

/// The names of the parts of one type.
fn names_of<'a>(parts: Parts<'a>, kind: ResourceType) -> Vec<&'a str> {
    parts.iter().filter(|(other, ..)| *other == kind).map(|(_, name, _)| *name).collect()
}

fn started() -> Client {
    let client = started_with(V1);
    assert_eq!(client.stream.settled(), Some(1.into()));
    client
}

#[test]
fn a_client_starts_with_clusters_then_endpoints_then_listeners_then_routes() {
    let mut client = Client::new(Variant::Delta);
    client.give(snapshot(1, V1));
    client.ask(Cluster, &[]);
    client.ask(Endpoints, &["c1"]);
    client.ask(Listener, &[]);
    client.ask(Route, &["80"]);
    assert_eq!(
        client.take_log(),
        ["cds +c1=C1", "eds +c1=E1"],
        "the request of a new client shows that it has the cluster"
    );
    client.ack();
    assert_eq!(client.take_log(), NOTHING, "the cluster still warms");
    client.ack();
    assert_eq!(client.take_log(), ["lds +l=L", "rds +80=a>c1"]);
    assert_eq!(client.stream.settled(), None);
    client.ack_all();
    assert_eq!(client.stream.settled(), Some(1.into()));
}

#[test]
fn routes_wait_for_the_clusters_they_use_and_for_their_endpoints() {
    let mut client = started();
    client.give(snapshot(2, V2));
    assert_eq!(client.take_log(), ["cds +c2=C2"], "nothing is removed, and the route stays");
    client.ask(Endpoints, &["c2"]);
    assert_eq!(client.take_log(), ["eds +c2=E2"]);
    client.ack();
    assert_eq!(client.take_log(), NOTHING, "the endpoints are not ACKed");
    client.ack();
    assert_eq!(client.take_log(), ["rds +80=a>c2"]);
    assert_eq!(client.stream.settled(), None);
    client.ack();
    assert_eq!(client.stream.settled(), Some(2.into()));
    assert_eq!(client.take_log(), NOTHING, "not before the grace period is over");
    client.wait();
    assert_eq!(client.take_log(), ["cds -c1"], "its endpoints go with it");
    client.ack();
    assert_eq!(client.take_log(), ["eds -c1"], "unless the client is still subscribed to them");
}

#[test]
fn routes_wait_until_the_client_asks_for_the_endpoints_of_a_new_cluster() {
    let mut client = started();
    client.give(snapshot(2, V2));
    client.ack();
    assert_eq!(client.take_log(), ["cds +c2=C2"]);
    assert_eq!(client.stream.reached(), None);
    client.ask(Endpoints, &["c2"]);
    client.ack();
    assert_eq!(client.take_log(), ["eds +c2=E2", "rds +80=a>c2"]);
}

#[test]
fn a_change_without_new_clusters_is_sent_at_once_while_another_waits() {
    let both: Parts<'_> = &[
        (Cluster, "c1", "C1"),
        (Endpoints, "c1", "E1"),
        (Listener, "l", "L"),
        (Route, "80", "a>c1 b>c1"),
    ];
    let mut client = started_with(both);
    client.give(snapshot(
        2,
        &[
            (Cluster, "c1", "C1"),
            (Cluster, "c2", "C2"),
            (Endpoints, "c1", "E1b"),
            (Endpoints, "c2", "E2"),
            (Listener, "l", "L"),
            (Route, "80", "a>c1*9 b>c2"),
        ],
    ));
    assert_eq!(client.take_log(), ["cds +c2=C2", "eds +c1=E1b", "rds +80=a>c1*9 b>c1"]);
    client.ask(Endpoints, &["c2"]);
    client.ack_all();
    assert_eq!(client.take_log(), ["eds +c2=E2", "rds +80=a>c1*9 b>c2"]);
    assert_eq!(client.stream.settled(), Some(2.into()));
}

#[test]
fn snapshots_that_arrive_during_a_rollout_merge_and_the_latest_wins() {
    let mut client = started();
    client.give(snapshot(2, V2));
    client.give(snapshot(3, V1));
    client.ask(Endpoints, &["c2"]);
    client.ack_all();
    assert_eq!(client.take_log(), ["cds +c2=C2", "eds +c2=E2"], "the route never moved");
    client.wait();
    assert_eq!(client.take_log(), ["cds -c2"]);
    client.ack_all();
    assert_eq!(client.stream.settled(), Some(3.into()));
}

#[test]
fn endpoints_removed_by_the_change_that_moves_the_traffic_are_removed_after_it() {
    let before: Parts<'_> = &[
        (Cluster, "c1", "C1"),
        (Cluster, "c2", "C2"),
        (Endpoints, "c1", "E1"),
        (Endpoints, "c2", "E2"),
        (Listener, "l", "L"),
        (Route, "80", "a>c1"),
    ];
    let after: Parts<'_> = &[
        (Cluster, "c1", "C1"),
        (Cluster, "c2", "C2"),
        (Endpoints, "c1", "none"),
        (Endpoints, "c2", "E3"),
        (Listener, "l", "L"),
        (Route, "80", "a>c2"),
    ];
    let mut client = started_with(before);
    client.give(snapshot(2, after));
    assert_eq!(client.take_log(), ["eds +c2=E3", "rds +80=a>c2"]);
    client.ack_all();
    assert_eq!(client.take_log(), ["eds +c1=none"]);
    assert_eq!(client.stream.settled(), Some(2.into()));
}

/// A mesh whose route leads to `c2`, and in which `c1` has these endpoints.
fn moved_to_c2(revision: u64, c1: &str) -> Arc<Snapshot> {
    snapshot(
        revision,
        &[
            (Cluster, "c1", "C1"),
            (Cluster, "c2", "C2"),
            (Endpoints, "c1", c1),
            (Endpoints, "c2", "E2"),
            (Listener, "l", "L"),
            (Route, "80", "a>c2"),
        ],
    )
}

#[test]
fn the_last_endpoints_stay_while_the_routes_away_from_them_wait_for_a_cluster() {
    let mut client = started();
    client.give(moved_to_c2(2, "E1"));
    assert_eq!(client.take_log(), ["cds +c2=C2"]);
    client.give(moved_to_c2(3, "E3"));
    assert_eq!(client.take_log(), ["eds +c1=E3"], "the client may take long to get c2");
    client.ack_all();
    // An empty text reads as an assignment without endpoints.
    client.give(moved_to_c2(4, ""));
    assert_eq!(client.take_log(), NOTHING);
    client.ask(Endpoints, &["c2"]);
    client.ack();
    assert_eq!(client.take_log(), ["eds +c2=E2", "rds +80=a>c2"]);
    client.ack();
    assert_eq!(client.take_log(), ["eds +c1= none"]);
    client.ack();
    assert_eq!(client.stream.settled(), Some(4.into()));
}

#[test]
fn a_route_written_before_its_subset_is_held_back_and_the_others_are_not() {
    let before: Parts<'_> = &[
        (Cluster, "c1", "C1"),
        (Endpoints, "c1", "E1"),
        (Listener, "l", "L"),
        (Route, "80", "a>c1 b>c1"),
    ];
    let mut client = started_with(before);
    let route_first: Parts<'_> = &[
        (Cluster, "c1", "C1"),
        (Endpoints, "c1", "E1"),
        (Listener, "l", "L"),
        (Route, "80", "a>c1,c2 b>c1*7 d>c2"),
    ];
    client.give(snapshot(2, route_first));
    assert_eq!(
        client.take_log(),
        ["rds +80=a>c1 b>c1*7 d>c2"],
        "d is new and has no previous version to keep"
    );
    client.ack();
    assert_eq!((client.stream.settled(), client.stream.reached()), (None, Some(2.into())));
    let held = client.stream.held();
    assert_eq!(held.len(), 1);
    assert_eq!((held[0].virtual_host.as_deref(), &*held[0].missing_cluster), (Some("a"), "c2"));
    let then_the_rule: Parts<'_> = &[
        (Cluster, "c1", "C1"),
        (Cluster, "c2", "C2"),
        (Endpoints, "c1", "E1"),
        (Endpoints, "c2", "E2"),
        (Listener, "l", "L"),
        (Route, "80", "a>c1,c2 b>c1*7 d>c2"),
    ];
    client.give(snapshot(3, then_the_rule));
    client.ask(Endpoints, &["c2"]);
    client.ack_all();
    assert_eq!(client.take_log(), ["cds +c2=C2", "eds +c2=E2", "rds +80=a>c1,c2 b>c1*7 d>c2"]);
    assert_eq!((client.stream.settled(), client.stream.held()), (Some(3.into()), Vec::new()));
}

#[test]
fn a_subset_deleted_before_its_route_stays_while_the_route_references_it() {
    let before: Parts<'_> = &[
        (Cluster, "c1", "C1"),
        (Cluster, "c2", "C2"),
        (Endpoints, "c1", "E1"),
        (Endpoints, "c2", "E2"),
        (Listener, "l", "L"),
        (Route, "80", "a>c1"),
    ];
    let mut client = started_with(before);
    let rule_first: Parts<'_> = &[
        (Cluster, "c2", "C2"),
        (Endpoints, "c2", "E2"),
        (Listener, "l", "L"),
        (Route, "80", "a>c1"),
    ];
    client.give(snapshot(2, rule_first));
    assert_eq!((client.take_log(), client.stream.wake_at()), (Vec::new(), None));
    assert_eq!(client.stream.kept(), ["c1".into()]);
    client.ask(Endpoints, &["c1"]);
    assert_eq!(client.take_log(), ["eds +c1=E1"], "its last endpoints stay as well");
    client.ack();
    let then_the_route: Parts<'_> = &[
        (Cluster, "c2", "C2"),
        (Endpoints, "c2", "E2"),
        (Listener, "l", "L"),
        (Route, "80", "a>c2"),
    ];
    client.give(snapshot(3, then_the_route));
    assert_eq!(
        (client.take_log(), client.stream.wake_at().is_some()),
        (vec!["rds +80=a>c2".to_owned()], true)
    );
    client.ack();
    client.wait();
    assert_eq!(client.take_log(), ["cds -c1"]);
}

#[test]
fn a_listener_that_references_a_cluster_is_held_back_like_a_route() {
    let mut client =
        started_with(&[(Cluster, "c1", "C1"), (Endpoints, "c1", "E1"), (Listener, "l", "L>c1")]);
    client.give(snapshot(
        2,
        &[(Cluster, "c1", "C1"), (Endpoints, "c1", "E1"), (Listener, "l", "L>c2")],
    ));
    assert_eq!(client.take_log(), NOTHING);
    assert_eq!((client.stream.held()[0].kind, &*client.stream.held()[0].name), ("lds", "l"));
    client.give(snapshot(
        3,
        &[(Cluster, "c2", "C2"), (Endpoints, "c2", "E2"), (Listener, "l", "L>c2")],
    ));
    client.ask(Endpoints, &["c2"]);
    client.ack();
    client.ack();
    assert_eq!(client.take_log(), ["cds +c2=C2", "eds +c2=E2", "lds +l=L>c2"]);
}

/// The responses with a new version of `c1` and with its endpoints `E1b`.
fn cluster_and_endpoints(variant: Variant, cluster: &str) -> [String; 2] {
    match variant {
        Variant::Sotw => [format!("cds {cluster}"), "eds E1b".to_owned()],
        Variant::Delta => [format!("cds +c1={cluster}"), "eds +c1=E1b".to_owned()],
    }
}

#[test]
fn a_changed_cluster_gets_its_endpoints_again_so_that_its_warming_ends() {
    for variant in [Variant::Delta, Variant::Sotw] {
        let mut client = Client::new(variant);
        client.give(snapshot(1, V1));
        client.ask(Cluster, &[]);
        client.answer(None, &[]);
        client.ask(Endpoints, &["c1"]);
        client.answer(None, &["c1"]);
        client.take_log();
        client.give(snapshot(2, &[(Cluster, "c1", "C1b"), (Endpoints, "c1", "E1b")]));
        assert_eq!(
            client.take_log(),
            cluster_and_endpoints(variant, "C1b"),
            "Envoy does not ACK the change before it has them"
        );
        client.answer(None, &[]);
        client.answer(None, &["c1"]);
        assert_eq!(client.take_log(), NOTHING);
        client.give(snapshot(3, &[(Cluster, "c1", "C1c"), (Endpoints, "c1", "E1b")]));
        assert_eq!(
            client.take_log(),
            cluster_and_endpoints(variant, "C1c"),
            "even if they are the same"
        );
    }
}

#[test]
fn a_changed_cluster_gets_its_old_endpoints_when_its_new_ones_are_rejected() {
    let mut client = started();
    client.give(snapshot(
        2,
        &[(Cluster, "c1", "C1b"), (Endpoints, "c1", "bad"), (Listener, "l", "L"), V1[3]],
    ));
    client.ack();
    assert_eq!(client.take_log(), ["cds +c1=C1b", "eds +c1=bad"]);
    client.answer(Some("no"), &[]);
    assert_eq!(client.take_log(), ["eds +c1=E1"], "they end its warming");
    client.answer(Some("not those either"), &[]);
    assert_eq!(client.take_log(), NOTHING, "and they are not sent again");
}

#[test]
fn a_cluster_that_is_removed_and_added_again_is_made_again() {
    let mut client = started();
    client.give(snapshot(2, &[(Listener, "l", "L"), (Route, "80", "a>")]));
    client.ack();
    client.wait();
    assert_eq!(client.take_log(), ["rds +80=a>", "cds -c1"]);
    client.give(snapshot(3, V1));
    client.ack();
    assert_eq!(client.take_log(), ["cds +c1=C1"], "no route before it is made");
    client.ack();
    assert_eq!(client.take_log(), ["eds +c1=E1"]);
    client.ack();
    assert_eq!(client.take_log(), ["rds +80=a>c1"]);
}

#[test]
fn a_rejected_cluster_holds_the_routes_back_and_is_not_sent_again() {
    let mut client = started();
    client.give(snapshot(2, V2));
    client.take_log();
    assert_eq!(
        client.answer(Some("no such thing"), &[]),
        Some(Answer::Rejected(Cluster, "no such thing".into()))
    );
    assert_eq!(client.take_log(), NOTHING);
    assert_eq!((client.stream.settled(), client.stream.reached()), (None, Some(2.into())));
    let rejected = client.stream.rejected();
    assert_eq!(
        (rejected[0].kind, &*rejected[0].name, &*rejected[0].message),
        ("cds", "c2", "no such thing")
    );
    client.give(snapshot(3, V1));
    assert_eq!((client.stream.settled(), client.stream.rejected()), (Some(3.into()), Vec::new()));
}

#[test]
fn a_rejected_resource_is_sent_again_when_it_changes() {
    let mut client = started();
    client.give(snapshot(
        2,
        &[(Cluster, "c1", "bad"), (Endpoints, "c1", "E1"), (Route, "80", "a>c1*2")],
    ));
    client.answer(Some("c1"), &[]);
    client.ack_all();
    client.take_log();
    client.give(snapshot(
        3,
        &[(Cluster, "c1", "good"), (Endpoints, "c1", "E1"), (Route, "80", "a>c1*2")],
    ));
    assert_eq!(client.take_log(), ["cds +c1=good", "eds +c1=E1"]);
}

/// Five clusters, of which the second has this body.
fn five_clusters(second: &'static str) -> Vec<(ResourceType, &'static str, &'static str)> {
    ["first", "second", "third", "fourth", "fifth"]
        .map(|name| (Cluster, name, if name == "second" { second } else { name }))
        .to_vec()
}

/// Rejects responses until only the bad cluster is left out. Returns how often, and what was sent.
fn contained(variant: Variant, message: &str) -> (usize, Vec<String>, Client) {
    let mut client = Client::new(variant);
    client.give(snapshot(1, &five_clusters("old")));
    client.ask(Cluster, &[]);
    client.ack();
    client.take_log();
    let mut all = five_clusters("bad");
    all.retain(|(_, name, _)| *name != "fifth");
    all.push((Cluster, "fifth", "new"));
    all.push((Cluster, "sixth", "new"));
    client.give(snapshot(2, &all));
    let mut refusals = 0;
    while !client.unanswered.is_empty() {
        assert!(refusals < 10, "{:?}", client.log);
        let last = client.log.last().unwrap().clone();
        if last.contains("bad") {
            refusals += 1;
            client.answer(Some(message), &[]);
        } else {
            client.ack();
        }
    }
    (refusals, client.take_log(), client)
}

#[test]
fn a_resource_named_in_a_nack_is_left_out_and_the_others_are_sent() {
    let message = "Error adding/updating cluster(s) second: no";
    let (refusals, log, client) = contained(Variant::Delta, message);
    assert_eq!((refusals, log.last().unwrap().as_str()), (1, "cds +fifth=new +sixth=new"));
    assert_eq!(client.stream.rejected().len(), 1);
    let (refusals, log, client) = contained(Variant::Sotw, message);
    let last = log.last().unwrap();
    assert_eq!(
        (refusals, last.as_str()),
        (1, "cds new first fourth old new third"),
        "the last accepted version"
    );
    assert_eq!((client.stream.rejected().len(), client.stream.reached()), (1, Some(2.into())));
}

#[test]
fn a_nack_without_a_name_is_narrowed_down_to_one_resource() {
    for variant in [Variant::Delta, Variant::Sotw] {
        let (refusals, log, client) = contained(variant, "something is wrong");
        assert!((2..=3).contains(&refusals), "{log:?}");
        let rejected = client.stream.rejected();
        assert_eq!((rejected.len(), &*rejected[0].name), (1, "second"), "{variant:?}: {log:?}");
        let sent = log.join(" ");
        assert!(sent.contains("sixth") || variant == Variant::Sotw, "{log:?}");
        assert_eq!(client.stream.reached(), Some(2.into()));
    }
}

#[test]
fn a_rejected_route_configuration_keeps_the_clusters_of_its_accepted_version() {
    let mut client = started();
    client.give(snapshot(2, V2));
    client.ask(Endpoints, &["c2"]);
    client.ack();
    client.ack();
    assert_eq!(client.answer(Some("no"), &[]), Some(Answer::Rejected(Route, "no".into())));
    assert_eq!(client.stream.wake_at(), None, "the client still uses c1");
    assert_eq!((client.stream.kept(), client.stream.rejected().len()), (vec!["c1".into()], 1));
}

#[test]
fn an_unchanged_resource_is_not_sent_again() {
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut client = Client::new(variant);
        client.give(snapshot(1, V1));
        client.ask(Cluster, &[]);
        client.answer(None, &[]);
        client.take_log();
        client.give(snapshot(2, V1));
        assert_eq!(client.take_log(), NOTHING, "{variant:?}");
        assert_eq!(client.stream.settled(), Some(2.into()));
    }
}

#[test]
fn a_client_that_has_not_answered_gets_only_the_latest_snapshot() {
    let mut client = started();
    for (revision, body) in [(2, "C1a"), (3, "C1b"), (4, "C1c")] {
        client.give(snapshot(
            revision,
            &[(Cluster, "c1", body), (Endpoints, "c1", "E1"), (Route, "80", "a>c1")],
        ));
    }
    assert_eq!(client.take_log(), ["cds +c1=C1a", "eds +c1=E1", "lds -l"]);
    client.ack();
    assert_eq!(client.take_log(), ["cds +c1=C1c"]);
    client.ack();
    assert_eq!(client.take_log(), ["eds +c1=E1"], "again for the newer version");
}

#[test]
fn a_client_that_does_not_answer_lags_and_says_why() {
    let mut client = started();
    client.give(snapshot(2, V2));
    assert_eq!(client.stream.lag(client.now), None);
    client.wait();
    let reason = client.stream.lag(client.now).unwrap();
    assert!(reason.contains("cds response"), "{reason}");
    assert_eq!(client.stream.wake_at(), None, "it is not polled");
    client.ack();
    assert_eq!(client.stream.lag(client.now), None);
    client.wait();
    assert_eq!(
        client.stream.lag(client.now).unwrap(),
        "no request for the endpoints of cluster c2"
    );
    client.ask(Endpoints, &["c2"]);
    client.ack_all();
    assert_eq!((client.stream.lag(client.now), client.stream.settled()), (None, Some(2.into())));
}

#[test]
fn a_request_with_a_stale_nonce_is_not_an_answer() {
    let mut client = Client::new(Variant::Sotw);
    client.give(snapshot(1, V1));
    client.ask(Cluster, &[]);
    let stale =
        Request { type_url: Cluster.type_url().into(), nonce: "0".into(), ..Default::default() };
    assert_eq!(client.send(stale), None);
    assert_eq!(client.stream.settled(), None);
    assert_eq!(client.answer(None, &[]), Some(Answer::Acked(Cluster)));
}

#[test]
fn a_request_for_a_missing_name_is_answered() {
    let mut client = Client::new(Variant::Delta);
    client.give(snapshot(1, V1));
    client.ask(Endpoints, &["nothing"]);
    assert_eq!(client.take_log(), ["eds -nothing"]);
}

#[test]
fn a_name_asked_for_again_is_sent_again() {
    let mut client = started();
    client.ask(Endpoints, &["c1"]);
    assert_eq!(client.take_log(), ["eds +c1=E1"]);
}

#[test]
fn sotw_sends_all_clusters_but_only_the_endpoints_that_changed() {
    let mut client = Client::new(Variant::Sotw);
    client.give(snapshot(
        1,
        &[(Cluster, "a", "A"), (Cluster, "b", "B"), (Endpoints, "a", "EA"), (Endpoints, "b", "EB")],
    ));
    client.ask(Cluster, &[]);
    client.answer(None, &[]);
    client.ask(Endpoints, &["a", "b"]);
    client.answer(None, &["a", "b"]);
    assert_eq!(client.take_log(), ["cds A B", "eds EA EB"]);
    client.give(snapshot(
        2,
        &[
            (Cluster, "a", "A"),
            (Cluster, "b", "B2"),
            (Endpoints, "a", "EA2"),
            (Endpoints, "b", "EB"),
        ],
    ));
    assert_eq!(
        client.take_log(),
        ["cds A B2", "eds EA2 EB"],
        "those of the changed cluster as well"
    );
    client.answer(None, &[]);
    client.answer(None, &["a", "b"]);
    assert_eq!(client.take_log(), NOTHING);
}

#[test]
fn more_names_than_the_limit_end_the_stream() {
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut stream =
            Stream::new(variant, StreamSettings { max_names: 3, ..Default::default() });
        assert_eq!(stream.on_request(request_for(Endpoints, &["a", "b"])), Ok(None));
        let long = "n".repeat(3 * BYTES_PER_NAME);
        assert!(
            matches!(
                stream.on_request(request_for(Route, &[&long])),
                Err(RequestError::NamesTooLong { .. })
            ),
            "{variant:?}"
        );
        let mut stream =
            Stream::new(variant, StreamSettings { max_names: 3, ..Default::default() });
        assert_eq!(stream.on_request(request_for(Endpoints, &["a", "b"])), Ok(None));
        assert_eq!(stream.on_request(request_for(Route, &["80"])), Ok(None));
        assert_eq!(
            stream.on_request(request_for(Cluster, &["c"])),
            Err(RequestError::TooManyNames { limit: 0 }),
            "{variant:?}"
        );
    }
}
