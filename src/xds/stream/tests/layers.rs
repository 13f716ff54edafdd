//! Which runtime layers a change of weights sends.

use std::collections::BTreeSet;

use super::*;
use crate::snapshot::RouteTable;

const HOSTS: u32 = 64;

/// [`HOSTS`] virtual hosts with these weights.
fn state(revision: u64, weight: impl Fn(u32) -> u32) -> Arc<Snapshot> {
    state_of(HOSTS, revision, weight)
}

/// So many virtual hosts with these weights.
fn state_of(hosts: u32, revision: u64, weight: impl Fn(u32) -> u32) -> Arc<Snapshot> {
    let hosts: Vec<String> = (0..hosts).map(|n| format!("h{n}>a,b*{}", weight(n))).collect();
    let table = hosts.join(" ");
    let parts =
        [(Cluster, "a", "A"), (Cluster, "b", "B"), (Endpoints, "a", "E"), (Endpoints, "b", "E")];
    snapshot(revision, &[&parts[..], &[(Route, "80", table.as_str())]].concat())
}

/// A client that asks for these layers and has weight 1 everywhere.
fn client(variant: Variant, layers: &[Arc<str>]) -> Client {
    client_with(state(1, |_| 1), variant, layers)
}

fn client_with(state: Arc<Snapshot>, variant: Variant, layers: &[Arc<str>]) -> Client {
    let layers: Vec<&str> = layers.iter().map(|name| &**name).collect();
    let mut client = Client::new(variant);
    client.give(state);
    client.ask(Runtime, &layers);
    client.ask(Cluster, &[]);
    client.ask(Endpoints, &["a", "b"]);
    client.ask(Route, &["80"]);
    while let Some((kind, _)) = client.unanswered.first() {
        let names: &[&str] = match kind {
            Runtime => &layers,
            Endpoints => &["a", "b"],
            Route => &["80"],
            _ => &[],
        };
        client.answer(None, names);
    }
    client.take_log();
    client
}

/// The layers in a delta response, and the keys in it.
fn layers_and_keys(log: &[String]) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let [response] = log else { panic!("{log:?}") };
    let words = response.strip_prefix("rtds ").unwrap().split(' ');
    let layers = words.clone().filter(|word| word.starts_with('+'));
    let layers = layers.map(|word| word.split('=').next().unwrap());
    let keys = words.map(|word| word.split_once("=weir").map_or(word, |(_, rest)| rest));
    (layers.collect(), keys.filter(|key| key.contains(".a=") || key.contains(".b=")).collect())
}

#[test]
fn a_change_of_one_weight_sends_one_layer_when_all_weights_have_changed() {
    let mut client = client(Variant::Delta, runtime_layers(Variant::Delta));
    client.give(state(2, |_| 2));
    let log = client.take_log();
    let (layers, keys) = layers_and_keys(&log);
    assert_eq!(layers.len(), runtime_layers(Variant::Delta).len(), "{log:?}");
    assert_eq!(keys.len(), 2 * HOSTS as usize, "each key is in one layer");
    client.ack();
    client.give(state(3, |n| if n == 7 { 3 } else { 2 }));
    let log = client.take_log();
    let (layers, keys) = layers_and_keys(&log);
    assert_eq!(layers.len(), 1, "{log:?}");
    assert!(keys.len() < HOSTS as usize / 2, "{log:?}");
    assert!(log[0].contains(".a=3"), "{log:?}");
}

#[test]
fn a_client_that_asks_for_one_layer_gets_all_values_in_it() {
    for variant in [Variant::Delta, Variant::Sotw] {
        let mut client = client(variant, &runtime_layers(Variant::Delta)[..1]);
        client.give(state(2, |_| 2));
        let log = client.take_log();
        assert_eq!((log.len(), log[0].matches(".a=2").count()), (1, HOSTS as usize), "{log:?}");
    }
}

#[test]
fn a_sotw_response_has_all_layers_and_values_in_one() {
    let layers = runtime_layers(Variant::Delta);
    let mut client = client(Variant::Sotw, layers);
    client.give(state(2, |n| 1 + u32::from(n == 7)));
    // An empty layer is an empty word.
    let log = client.take_log();
    let words: Vec<&str> = log[0].strip_prefix("rtds ").unwrap().split(' ').collect();
    assert_eq!(words.len(), layers.len() - 1 + 2, "{log:?}");
    assert_eq!(words.iter().filter(|word| !word.is_empty()).count(), 2, "{log:?}");
}

#[test]
fn the_values_move_with_the_layers_that_the_client_asks_for() {
    let layers = runtime_layers(Variant::Delta);
    let mut client = client(Variant::Delta, &layers[..1]);
    client.give(state(2, |_| 2));
    client.ack();
    client.take_log();
    client.ask(Runtime, &[&layers[1]]);
    let log = client.take_log();
    let (sent, keys) = layers_and_keys(&log);
    assert_eq!((sent.len(), keys.len()), (2, 2 * HOSTS as usize), "{log:?}");
}

#[test]
fn the_allocations_for_a_weight_hardly_depend_on_the_virtual_hosts() {
    for (way, layers) in [("runtime", runtime_layers(Variant::Delta)), ("routes", &[])] {
        let [few, many] = [16, 1024].map(|hosts| allocations_for_a_weight(hosts, layers));
        println!("by {way}: {few} with 16 virtual hosts, {many} with 1024");
        assert!(many <= few + 20, "by {way}: {few} with 16 virtual hosts, {many} with 1024");
        assert!(few <= 100, "by {way}: {few}");
    }
}

fn allocations_for_a_weight(hosts: u32, layers: &[Arc<str>]) -> u64 {
    let first = state_of(hosts, 1, |_| 1);
    let next = changed(&first);
    let mut client = client_with(first, Variant::Delta, layers);
    let measured = allocation_counter::measure(|| {
        client.stream.on_snapshot(next);
        let responses = client.stream.responses(client.now);
        assert_eq!(responses.len(), 1);
    });
    measured.count_total
}

/// The state with one other weight, which shares everything else with it.
fn changed(state: &Snapshot) -> Arc<Snapshot> {
    let other = state_of(16, 2, |n| 1 + u32::from(n == 7));
    let mut routes = route_table(state).clone();
    let host = route_table(&other).get("h7").unwrap().clone();
    routes.set(&host.name.clone(), Some(host));
    let mut all = ResourceType::OF_SNAPSHOT.map(|kind| state.get(kind).clone());
    all[Route.index()].insert(Resource::routes("80", routes));
    Arc::new(Snapshot::new(2.into(), all))
}

fn route_table(state: &Snapshot) -> &RouteTable {
    state.get(Route).get("80").unwrap().table().unwrap()
}
