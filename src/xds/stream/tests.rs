use super::*;
use crate::snapshot::ResourceType::{Cluster, Endpoints, Listener, Route};
use bytes::Bytes;
use prost::Message;

type Parts<'a> = &'a [(ResourceType, &'a str, &'a str)];

fn snapshot(revision: u64, parts: Parts<'_>) -> Arc<Snapshot> {
    let of = |kind: ResourceType| -> Resources {
        let wanted = parts.iter().filter(|(one, ..)| *one == kind);
        wanted
            .map(|(_, name, body)| ((*name).into(), Resource::new(name, vec![Bytes::copy_from_slice(body.as_bytes())])))
            .collect()
    };
    Arc::new(Snapshot::new(revision, [of(Cluster), of(Endpoints), of(Listener), of(Route)]))
}

/// A client that keeps what it is sent, and acks when told.
struct Client {
    stream: Stream,
    now: Instant,
    unanswered: Vec<(ResourceType, String)>,
    has: BTreeMap<(usize, String), Vec<u8>>,
    log: Vec<String>,
}

impl Client {
    fn new(variant: Variant) -> Self {
        Self {
            stream: Stream::new(variant, Duration::from_secs(1)),
            now: Instant::now(),
            unanswered: Vec::new(),
            has: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    fn ask(&mut self, kind: ResourceType, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.stream.on_request(Request { type_url: kind.type_url().into(), names, ..Default::default() });
        self.pump();
    }

    fn give(&mut self, snapshot: Arc<Snapshot>) {
        self.stream.on_snapshot(snapshot);
        self.pump();
    }

    fn pump(&mut self) {
        for response in self.stream.responses(self.now) {
            let mut names = Vec::new();
            let nonce = match self.stream.variant {
                Variant::Delta => {
                    let message = pb::DeltaDiscoveryResponse::decode(Bytes::from(response.frame.bytes())).unwrap();
                    for one in message.resources {
                        names.push(format!("+{}", one.name));
                        self.has.insert((response.kind.index(), one.name), one.resource.unwrap().value);
                    }
                    for name in message.removed_resources {
                        names.push(format!("-{name}"));
                        self.has.remove(&(response.kind.index(), name));
                    }
                    message.nonce
                }
                Variant::Sotw => {
                    let message = pb::DiscoveryResponse::decode(Bytes::from(response.frame.bytes())).unwrap();
                    names = message.resources.iter().map(|any| String::from_utf8_lossy(&any.value).into()).collect();
                    message.nonce
                }
            };
            self.log.push(format!("{} {}", response.kind.short_name(), names.join(" ")));
            self.unanswered.push((response.kind, nonce));
        }
    }

    fn answer(&mut self, error: Option<&str>, names: &[&str]) -> Option<Answer> {
        let (kind, nonce) = self.unanswered.remove(0);
        let delta = self.stream.variant == Variant::Delta;
        let names = if delta { Vec::new() } else { names.iter().map(|name| (*name).to_owned()).collect() };
        let error = error.map(Into::into);
        let answer = self.stream.on_request(Request {
            type_url: kind.type_url().into(),
            nonce,
            error,
            names,
            ..Default::default()
        });
        self.pump();
        answer
    }

    fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }
}

const V1: Parts<'_> = &[(Cluster, "c1", "C1"), (Endpoints, "c1", "E1"), (Listener, "l", "L"), (Route, "80", "to c1")];
const V2: Parts<'_> = &[(Cluster, "c2", "C2"), (Endpoints, "c2", "E2"), (Listener, "l", "L"), (Route, "80", "to c2")];

fn started() -> Client {
    let mut client = Client::new(Variant::Delta);
    client.give(snapshot(1, V1));
    client.ask(Cluster, &[]);
    client.answer(None, &[]);
    client.ask(Endpoints, &["c1"]);
    client.answer(None, &[]);
    client.ask(Listener, &[]);
    client.answer(None, &[]);
    client.ask(Route, &["80"]);
    client.answer(None, &[]);
    assert_eq!(client.take_log(), ["cds +c1", "eds +c1", "lds +l", "rds +80"]);
    assert_eq!(client.stream.settled(), Some(1));
    client
}

#[test]
fn routes_wait_for_the_clusters_they_use_and_for_their_endpoints() {
    let mut client = started();
    client.give(snapshot(2, V2));
    assert_eq!(client.take_log(), ["cds +c2"], "nothing is removed, and the route stays");
    client.answer(None, &[]);
    assert_eq!(client.take_log(), [""; 0], "the client has not asked for the endpoints yet");
    client.ask(Endpoints, &["c2"]);
    assert_eq!(client.take_log(), ["eds +c2"]);
    client.answer(None, &[]);
    assert_eq!(client.take_log(), ["rds +80"]);
    assert_eq!(client.stream.settled(), None);
    client.answer(None, &[]);
    let at = client.stream.wake_at().expect("what is left over is to be dropped");
    assert_eq!(client.take_log(), [""; 0], "not before the grace is over");
    client.now = at;
    client.pump();
    assert_eq!(client.take_log(), ["cds -c1", "eds -c1"]);
}

#[test]
fn a_refused_cluster_keeps_the_routes_where_they_are_and_is_not_sent_again() {
    let mut client = started();
    client.give(snapshot(2, V2));
    client.take_log();
    assert_eq!(client.answer(Some("no such thing"), &[]), Some(Answer::Refused(Cluster, "no such thing".into())));
    assert_eq!(client.take_log(), [""; 0]);
    client.give(snapshot(3, V1));
    assert_eq!(client.stream.settled(), None, "c2 is still to be dropped");
}

#[test]
fn what_did_not_change_is_not_sent_again() {
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut client = Client::new(variant);
        client.give(snapshot(1, V1));
        client.ask(Cluster, &[]);
        client.answer(None, &[]);
        client.take_log();
        client.give(snapshot(2, V1));
        assert_eq!(client.take_log(), [""; 0], "{variant:?}");
        assert_eq!(client.stream.settled(), Some(2));
    }
}

#[test]
fn a_client_that_has_not_answered_gets_the_latest_state_and_none_between() {
    let mut client = started();
    client.give(snapshot(2, &[(Cluster, "c1", "C1a"), (Endpoints, "c1", "E1")]));
    client.give(snapshot(3, &[(Cluster, "c1", "C1b"), (Endpoints, "c1", "E1")]));
    client.give(snapshot(4, &[(Cluster, "c1", "C1c"), (Endpoints, "c1", "E1")]));
    assert_eq!(client.take_log(), ["cds +c1"]);
    client.answer(None, &[]);
    assert_eq!(client.has[&(Cluster.index(), "c1".to_owned())], b"C1c");
}

#[test]
fn a_stale_nonce_is_no_answer() {
    let mut client = Client::new(Variant::Sotw);
    client.give(snapshot(1, V1));
    client.ask(Cluster, &[]);
    let stale = Request { type_url: Cluster.type_url().into(), nonce: "0".into(), ..Default::default() };
    assert_eq!(client.stream.on_request(stale), None);
    assert_eq!(client.stream.settled(), None);
    assert_eq!(client.answer(None, &[]), Some(Answer::Acked(Cluster)));
}

#[test]
fn a_name_that_does_not_exist_is_answered_so_that_nobody_waits_for_it() {
    let mut client = Client::new(Variant::Delta);
    client.give(snapshot(1, V1));
    client.ask(Endpoints, &["nothing"]);
    assert_eq!(client.take_log(), ["eds -nothing"]);
}

#[test]
fn a_name_asked_for_again_is_sent_again() {
    let mut client = started();
    client.ask(Endpoints, &["c1"]);
    assert_eq!(client.take_log(), ["eds +c1"]);
}

#[test]
fn a_client_that_comes_back_gets_only_what_it_lacks_and_is_told_what_is_gone() {
    let mut client = Client::new(Variant::Delta);
    let state = snapshot(1, V1);
    let version = wire::version_text(state.get(Cluster)["c1"].version);
    client.give(state);
    let initial_versions = BTreeMap::from([("c1".to_owned(), version), ("old".to_owned(), "5".to_owned())]);
    let request = Request { type_url: Cluster.type_url().into(), initial_versions, ..Default::default() };
    client.stream.on_request(request);
    client.pump();
    assert_eq!(client.take_log(), ["cds -old"]);
}

#[test]
fn sotw_sends_all_clusters_but_only_the_endpoints_that_changed() {
    let mut client = Client::new(Variant::Sotw);
    client
        .give(snapshot(1, &[(Cluster, "a", "A"), (Cluster, "b", "B"), (Endpoints, "a", "EA"), (Endpoints, "b", "EB")]));
    client.ask(Cluster, &[]);
    client.answer(None, &[]);
    client.ask(Endpoints, &["a", "b"]);
    client.answer(None, &["a", "b"]);
    assert_eq!(client.take_log(), ["cds A B", "eds EA EB"]);
    client.give(snapshot(
        2,
        &[(Cluster, "a", "A"), (Cluster, "b", "B2"), (Endpoints, "a", "EA2"), (Endpoints, "b", "EB")],
    ));
    assert_eq!(client.take_log(), ["cds A B2", "eds EA2"]);
}
