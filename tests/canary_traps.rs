//! What a canary may not break: requests, streams and connections that last longer than any of its steps, labels that
//! move to pods that are not there yet, pods that go in the moment of the last weight, and steps that are taken back
//! before any proxy has ACKed them.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weir::admin::api::v1;
use weir::admin::api::v1::type_status::State as TypeState;
use weir::canary::objects::{self, NAMESPACE};
use weir::canary::patterns::{self, State, Step, Write};

use crate::cuts::same_at_both_ends;
use crate::support::ads::{CDS, EDS, RDS};
use crate::support::backend::BACKEND;
use crate::support::canary::Canary;
use crate::support::cutter::Cutter;
use crate::support::mesh::{DEADLINE, proxies, route_yaml, until};
use crate::support::sidecar::Options;
use crate::support::traffic::{Mesh, entry, greeting};

const RULE: &str = "destination-rule.yaml";
const ROUTE: &str = "virtual-service.yaml";
const ENDPOINTS: &str = "endpoints.yaml";
const RTDS: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";

/// Shorter than everything that lasts here.
const GRACE: [&str; 2] = ["--grace", "0.05"];

/// The rule and the route of a host, with these weights of subsets, and no other subset.
fn split(host: &str, kind: &str, weights: &[(&str, u32)]) -> String {
    let name = host.replace('.', "-");
    let (mut subsets, mut routes) = (String::new(), String::new());
    for (subset, weight) in weights {
        write!(subsets, "{{name: {subset}, labels: {{version: {subset}}}}}, ").unwrap();
        write!(routes, "{{destination: {{host: {host}, subset: {subset}}}, weight: {weight}}}, ")
            .unwrap();
    }
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{host: {host}, subsets: [{subsets}]}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{hosts: [{host}], {kind}: [{{route: [{routes}]}}]}}\n"
    )
}

/// The hosts whose weights move, with the kind of their routes.
const HOSTS: [(&str, &str); 3] =
    [("long.test", "http"), ("stream.test", "http"), ("bytes.test", "tcp")];

/// The splits of all hosts.
fn splits(weights: &[(&str, u32)]) -> String {
    HOSTS.map(|(host, kind)| split(host, kind, weights)).join("---\n")
}

/// The file of [`splits`].
const SPLITS: &str = "3.yaml";

async fn mesh(bootstrap: &[&str]) -> Mesh {
    let objects = [
        entry("long.test", "web", "HTTP", &[1, 2]),
        entry("stream.test", "grpc", "GRPC", &[1, 2]),
        entry("bytes.test", "bytes", "TCP", &[1, 2]),
        splits(&[("v1", 100), ("v2", 0)]),
    ];
    Mesh::start(&objects, Options { serve: &GRACE, bootstrap, ..Options::default() }).await
}

/// Writes the weights of all hosts and waits until Envoy has ACKed them.
async fn write_splits(mesh: &Mesh, weights: &[(&str, u32)]) {
    let weir = mesh.sidecar.weir();
    let acked = async || proxies(&weir).await?.first().map(|proxy| (proxy.acked, proxy.wanted));
    let (before, _) = acked().await.unwrap();
    mesh.write(SPLITS, &splits(weights));
    until("the weights are ACKed", async || {
        acked().await.is_some_and(|(acked, wanted)| acked > before && acked == wanted)
    })
    .await;
}

/// A gRPC stream.
struct Stream {
    messages: mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
    backend: String,
    answers: Incoming,
}

impl Stream {
    async fn open(mesh: &Mesh) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", mesh.port("grpc"))).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let (messages, body) = mpsc::channel(1);
        let request = hyper::Request::post("http://stream.test/echo.Echo/Echo")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(StreamBody::new(ReceiverStream::new(body)))
            .unwrap();
        let answer = tokio::time::timeout(DEADLINE, sender.send_request(request)).await;
        let (head, answers) = answer.expect("an answer").unwrap().into_parts();
        assert_eq!(head.status, 200, "{head:?}");
        let backend = head.headers.get(BACKEND).unwrap_or_else(|| panic!("{head:?}"));
        let backend = backend.to_str().unwrap().to_owned();
        let mut this = Self { messages, backend, answers };
        this.exchange("first").await;
        this
    }

    /// Sends a message and waits for its echo.
    async fn exchange(&mut self, message: &str) {
        let frame = Frame::data(Bytes::copy_from_slice(message.as_bytes()));
        self.messages.send(Ok(frame)).await.expect("the stream takes messages");
        let mut echoed = Vec::new();
        while echoed.len() < message.len() {
            let frame = tokio::time::timeout(DEADLINE, self.answers.frame()).await;
            let frame = frame.expect("an echo").expect("the stream goes on").unwrap();
            echoed.extend_from_slice(frame.data_ref().expect("no trailers yet"));
        }
        assert_eq!(echoed, message.as_bytes());
    }

    /// Ends it, and waits for the other end.
    async fn end(self) {
        let Self { messages, answers, .. } = self;
        drop(messages);
        let rest = tokio::time::timeout(DEADLINE, answers.collect()).await.expect("an end");
        assert_eq!(rest.unwrap().to_bytes(), "");
    }
}

/// A TCP connection and the backend that it reached.
struct Connection {
    backend: u8,
    stream: BufReader<TcpStream>,
}

impl Connection {
    async fn open(mesh: &Mesh) -> Self {
        let stream = mesh.connect("bytes", Ipv4Addr::LOCALHOST).await;
        let (backend, stream) = greeting(stream).await.expect("a greeting");
        Self { backend, stream }
    }

    async fn exchange(&mut self) {
        self.stream.write_all(b"more").await.unwrap();
        let mut echoed = [0; 4];
        let read = tokio::time::timeout(DEADLINE, self.stream.read_exact(&mut echoed)).await;
        read.expect("an echo").expect("the connection goes on");
        assert_eq!(&echoed, b"more");
    }
}

async fn what_lasts_survives(bootstrap: &[&str]) {
    let mut mesh = mesh(bootstrap).await;
    let request = mesh.get("long.test", "/").hold(1);
    let id = request.id.clone();
    let request = request.spawn();
    mesh.backends.wait(&id, 1).await;
    let mut stream = Stream::open(&mesh).await;
    assert_eq!(stream.backend, "1");
    let mut connections = vec![Connection::open(&mesh).await];
    assert_eq!(connections[0].backend, 1);

    // TCP weights are in the listener, which is changed in its place.
    for v2 in [10, 50, 90] {
        write_splits(&mesh, &[("v1", 100 - v2), ("v2", v2)]).await;
        for connection in &mut connections {
            connection.exchange().await;
        }
        connections.push(Connection::open(&mesh).await);
        stream.exchange("during the canary").await;
    }

    // The subset goes, and with it the cluster of each host.
    let removed = mesh.sidecar.stat("cluster_manager.cluster_removed").await;
    write_splits(&mesh, &[("v2", 100)]).await;
    let gone = removed + HOSTS.len() as u64;
    mesh.sidecar.stat_reaches("cluster_manager.cluster_removed", gone).await;
    assert_eq!(mesh.get("long.test", "/").send().await.backend(), 2);
    assert_eq!(Stream::open(&mesh).await.backend, "2");
    assert_eq!(Connection::open(&mesh).await.backend, 2);

    stream.exchange("after the canary").await;
    stream.end().await;
    for connection in &mut connections {
        connection.exchange().await;
    }
    assert!(!request.is_finished());
    mesh.backends.release(&id);
    assert_eq!(request.await.unwrap().backend(), 1);
}

#[tokio::test]
async fn what_lasts_longer_than_the_canary_survives_it_over_delta() {
    what_lasts_survives(&[]).await;
}

#[tokio::test]
async fn what_lasts_longer_than_the_canary_survives_it_over_sotw() {
    what_lasts_survives(&["--sotw"]).await;
}

#[tokio::test]
async fn what_lasts_longer_than_the_canary_survives_it_without_runtime_weights() {
    what_lasts_survives(&["--weights", "routes"]).await;
}

/// A pod of a hash, which runs v1 if `net` is 1, and v2 if it is 2.
struct PodOf {
    hash: &'static str,
    net: u8,
    ready: bool,
}

/// The slice with these pods.
fn slice(canary: &Canary, pods: &[PodOf]) -> String {
    let backend = canary.objects.backend;
    let mut text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: my-app-1, namespace: shop, \
                    labels: {kubernetes.io/service-name: my-app}}\naddressType: IPv4\nendpoints:\n"
        .to_owned();
    for (n, PodOf { hash, net, ready }) in (1..).zip(pods) {
        writeln!(
            text,
            "- {{addresses: [127.0.{net}.{n}], conditions: {{ready: {ready}, terminating: false}}, \
             targetRef: {{kind: Pod, name: {hash}}}}}"
        )
        .unwrap();
    }
    writeln!(text, "ports: [{{name: http, port: {backend}, protocol: TCP}}]").unwrap();
    for PodOf { hash, .. } in pods {
        writeln!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {hash}, namespace: shop, \
             labels: {{app: my-app, version: {hash}}}}}"
        )
        .unwrap();
    }
    text
}

/// All orders of three writes.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// What a rollout tool writes while it believes that the pods of the hash `new` are ready, and they are not: the hash of
/// each subset, and the weight of the canary.
struct Belief {
    stable: &'static str,
    canary: &'static str,
    weight: u32,
}

const BELIEFS: [Belief; 3] = [
    // Another version takes the place of the canary, which keeps, gains or loses its weight.
    Belief { stable: "old", canary: "new", weight: 50 },
    Belief { stable: "old", canary: "new", weight: 80 },
    // It is promoted.
    Belief { stable: "new", canary: "new", weight: 0 },
];

async fn labels_without_pods(more: &[&str]) {
    let canary = Canary::with(more, &GRACE).await;
    let pod = |hash, net, ready| PodOf { hash, net, ready };
    let begin = [
        (ENDPOINTS, slice(&canary, &[pod("old", 1, true), pod("canary", 2, true)])),
        (RULE, objects::rule(NAMESPACE, &[("v1", "old"), ("v2", "canary")])),
        (ROUTE, route_yaml(50, 50)),
    ];
    let held = async || canary.weir.metric("weir_held ").await;
    for (order, belief) in ORDERS.iter().flat_map(|order| BELIEFS.iter().map(move |it| (order, it)))
    {
        let Belief { stable, canary: subset, weight } = *belief;
        let what = format!("{order:?}, {stable} and {subset} at {weight}");
        let events = write_files(&canary, &begin).await;
        canary.weir.live_with(events).await;
        let load = canary.load();
        let not_ready = [pod("old", 1, true), pod("canary", 2, true), pod("new", 2, false)];
        let writes = [
            (RULE, objects::rule(NAMESPACE, &[("v1", stable), ("v2", subset)])),
            (ROUTE, route_yaml(100 - weight, weight)),
            (ENDPOINTS, slice(&canary, &not_ready)),
        ];
        let events = write_files(&canary, &order.map(|n| writes[n].clone())).await;
        canary.weir.live_with(events).await;
        assert!(held().await > Some(0), "nothing is held: {what}");
        assert_eq!(canary.send(100).await.failed(), 0, "{what}");

        // They get ready, and those that they replace go in the same moment.
        let old = (stable == "old").then(|| pod("old", 1, true));
        let rest: Vec<PodOf> = old.into_iter().chain([pod("new", 2, true)]).collect();
        let events = write_files(&canary, &[(ENDPOINTS, slice(&canary, &rest))]).await;
        canary.weir.live_with(events).await;
        assert_eq!(held().await, Some(0), "{what}");
        let tally = load.end();
        assert_eq!(tally.failed(), 0, "{what}: {tally:?}");
    }
}

/// Writes files and waits until weir has read each. Returns the number of object changes that it has read then.
async fn write_files(canary: &Canary, files: &[(&str, String)]) -> u64 {
    for (file, text) in files {
        if !changes(canary, file, text) {
            continue;
        }
        let before = canary.weir.events().await;
        canary.objects.write(file, text);
        // One file may hold several objects, which are read together.
        until("the write is read", async || canary.weir.events().await > before).await;
    }
    canary.weir.events().await
}

/// Whether a write changes the file.
fn changes(canary: &Canary, file: &str, text: &str) -> bool {
    std::fs::read_to_string(canary.objects.folder.join(file)).unwrap() != text
}

#[tokio::test]
async fn labels_that_move_to_pods_that_are_not_ready_wait_in_every_order_of_writes() {
    labels_without_pods(&[]).await;
}

#[tokio::test]
async fn labels_that_move_to_pods_that_are_not_ready_wait_without_runtime_weights() {
    labels_without_pods(&["--weights", "routes"]).await;
}

/// PodOf that go with the last weight, without a pause between both writes.
async fn pods_go_with_the_last_weight(more: &[&str]) {
    let canary = Canary::with(more, &GRACE).await;
    let load = canary.load();
    for _ in 0..20 {
        for (v2, pods) in [(50, [1, 2].as_slice()), (100, &[2]), (50, &[1, 2]), (0, &[1])] {
            let before = canary.weir.revision().await;
            canary.objects.write(ROUTE, &route_yaml(100 - v2, v2));
            canary.objects.write(ENDPOINTS, &canary.objects.endpoints_of(pods));
            canary.weir.acked_after(before).await;
            until("nothing is held", async || canary.weir.metric("weir_held ").await == Some(0))
                .await;
        }
    }
    let tally = load.end();
    assert_eq!(tally.failed(), 0, "{tally:?}");
}

#[tokio::test]
async fn pods_may_go_in_the_moment_of_the_last_weight_over_delta() {
    pods_go_with_the_last_weight(&[]).await;
}

#[tokio::test]
async fn pods_may_go_in_the_moment_of_the_last_weight_over_sotw() {
    pods_go_with_the_last_weight(&["--sotw"]).await;
}

#[tokio::test]
async fn pods_may_go_in_the_moment_of_the_last_weight_without_runtime_weights() {
    pods_go_with_the_last_weight(&["--weights", "routes"]).await;
}

fn text(canary: &Canary, write: &Write) -> (&'static str, String) {
    match write {
        Write::Rule(subsets) => (RULE, objects::rule(NAMESPACE, subsets)),
        Write::Route(weights) => (ROUTE, objects::route(NAMESPACE, weights)),
        Write::Endpoints(versions) => (ENDPOINTS, canary.objects.endpoints_of(versions)),
    }
}

/// The writes that take a step back, as those who abort a rollout make them: weights, subsets, pods.
fn back(before: &State, step: &[Write]) -> Vec<Write> {
    let undo = |write: &Write| match write {
        Write::Rule(_) => Write::Rule(before.rule.iter().map(|(name, of)| (*name, *of)).collect()),
        Write::Route(_) => {
            Write::Route(before.route.iter().map(|(name, weight)| (*name, *weight)).collect())
        }
        Write::Endpoints(_) => Write::Endpoints(before.endpoints.clone()),
    };
    let mut writes: Vec<Write> = step.iter().map(undo).collect();
    writes.sort_by_key(|write| match write {
        Write::Route(_) => 0,
        Write::Rule(_) => 1,
        Write::Endpoints(_) => 2,
    });
    writes
}

/// Makes writes and waits until weir has read them. Returns the number of object changes that it has read then.
async fn write_all(canary: &Canary, writes: &[Write]) -> u64 {
    let files: Vec<_> = writes.iter().map(|write| text(canary, write)).collect();
    write_files(canary, &files).await
}

/// Waits until the proxy has answered everything that so many object changes lead to. It may keep a version, because the
/// next one waits for a cluster that is not defined.
async fn rests(canary: &Canary, events: u64) {
    until("the proxy rests", async || {
        let Some(list) = canary.weir.proxies().await else { return false };
        let revision = canary.weir.metric("weir_mesh_revision ").await;
        let answered = |proxy: &v1::Proxy| {
            proxy.types.iter().all(|of| of.state() != TypeState::Stale)
                && (proxy.acked == revision || !proxy.held.is_empty())
        };
        canary.weir.events().await >= events && list.first().is_some_and(answered)
    })
    .await;
}

/// Begins a step, takes it back while the first response of a type that it leads to is on its way, and then lets go.
async fn take_back(canary: &Canary, cutter: &Cutter, before: &State, step: &[Write], held: &str) {
    cutter.hold(held);
    let events = write_all(canary, step).await;
    // A step that needs no such response is taken back after it.
    tokio::select! {
        () = cutter.holding() => {}
        () = rests(canary, events) => {}
    }
    let events = write_all(canary, &back(before, step)).await;
    cutter.release();
    canary.weir.live_with(events).await;
    until("nothing is held", async || canary.weir.metric("weir_held ").await == Some(0)).await;
}

async fn every_step_is_taken_back(more: &[&str]) {
    let (canary, cutter) = Canary::behind_cutter(more, &GRACE).await;
    let mut state = State::default();
    state.apply(&Write::Endpoints(vec![1, 2]));
    state.apply(&Write::Rule(vec![("v1", "v1"), ("v2", "v2")]));
    state.apply(&Write::Route(vec![("v1", 100), ("v2", 0)]));
    let play = async |state: &mut State, writes: &[Write]| {
        let events = write_all(&canary, writes).await;
        canary.weir.live_with(events).await;
        writes.iter().for_each(|write| state.apply(write));
    };
    for pattern in patterns::all() {
        play(&mut state, &patterns::begin()).await;
        play(&mut state, &pattern.before).await;
        for Step { writes, measured } in &pattern.cycle {
            let writes: Vec<Write> = writes.iter().map(|(_, write)| write.clone()).collect();
            // The way back is none of the pattern's steps.
            let counts = 1..=if *measured { writes.len() } else { 0 };
            for (count, held) in
                counts.flat_map(|count| [CDS, EDS, RDS, RTDS].map(|held| (count, held)))
            {
                let load = canary.load();
                take_back(&canary, &cutter, &state, &writes[..count], held).await;
                let tally = load.end();
                let what = format!("{}: {:?}, {held} held", pattern.name, &writes[..count]);
                assert_eq!(tally.failed(), 0, "{what}: {tally:?}");
            }
            play(&mut state, &writes).await;
        }
    }
    same_at_both_ends(&canary).await;
    let rejected = canary.envoy.stats("update_rejected").await.unwrap();
    assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
}

#[tokio::test]
async fn a_step_may_be_taken_back_before_it_is_acked_over_delta() {
    every_step_is_taken_back(&[]).await;
}

#[tokio::test]
async fn a_step_may_be_taken_back_before_it_is_acked_over_sotw() {
    every_step_is_taken_back(&["--sotw"]).await;
}

#[tokio::test]
async fn a_step_may_be_taken_back_before_it_is_acked_without_runtime_weights() {
    every_step_is_taken_back(&["--weights", "routes"]).await;
}
