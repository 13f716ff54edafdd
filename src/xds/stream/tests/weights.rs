//! Weights and endpoints that change together: requests go to a cluster only while it has an endpoint.

use super::*;

/// Two clusters with these endpoints, and a host that gives this weight of a million to the first one.
fn split(revision: u64, weight: u32, [c1, c2]: [&str; 2]) -> Arc<Snapshot> {
    let route = format!("a>c1,c2*{weight}");
    snapshot(
        revision,
        &[
            (Cluster, "c1", "C1"),
            (Cluster, "c2", "C2"),
            (Endpoints, "c1", c1),
            (Endpoints, "c2", c2),
            (Route, "80", &route),
        ],
    )
}

const BOTH: [&str; 2] = ["E1", "E2"];
const SECOND: [&str; 2] = ["", "E2"];

/// A client that has such a split, and takes weights as runtime values if `runtime`.
fn started_with_split(runtime: bool, weight: u32, endpoints: [&str; 2]) -> Client {
    let mut client = Client::new(Variant::Delta);
    client.give(split(1, weight, endpoints));
    if runtime {
        client.ask(Runtime, &[RUNTIME_LAYER]);
    }
    client.ask(Cluster, &[]);
    client.ask(Endpoints, &["c1", "c2"]);
    client.ask(Route, &["80"]);
    client.ack_all();
    client.take_log();
    client
}

#[test]
fn the_last_endpoints_of_a_cluster_go_after_the_runtime_value_that_leaves_it() {
    let mut client = started_with_split(true, 900_000, BOTH);
    client.give(split(2, 0, SECOND));
    assert_eq!(client.take_log().len(), 1, "the weights alone");
    client.ack();
    assert_eq!(client.take_log(), ["eds +c1= none"]);
}

#[test]
fn the_last_endpoints_of_a_cluster_go_after_the_runtime_values_that_give_way_to_its_route() {
    let mut client = started_with_split(true, 0, BOTH);
    client.give(split(2, 500_000, BOTH));
    client.ack_all();
    client.give(split(3, 400_000, BOTH));
    client.take_log();
    // The client has not answered yet when its route is right again.
    client.give(split(4, 0, SECOND));
    assert_eq!(client.take_log(), NOTHING);
    client.ack();
    assert_eq!(client.take_log().len(), 1, "the weights alone");
    client.ack();
    assert_eq!(client.take_log(), ["eds +c1= none"]);
}

/// What is sent, one after the other, as the client ACKs: the types alone.
fn order(client: &mut Client) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let sent = client.take_log();
        all.extend(sent.iter().map(|line| line.split(' ').next().unwrap().to_owned()));
        if client.unanswered.is_empty() {
            return all;
        }
        assert_eq!(sent.len(), 1, "{sent:?}");
        client.ack();
    }
}

#[test]
fn weight_follows_the_first_endpoint_of_its_cluster() {
    for (runtime, last) in [(true, "rtds"), (false, "rds")] {
        let mut client = started_with_split(runtime, 0, SECOND);
        client.give(split(2, 500_000, BOTH));
        assert_eq!(order(&mut client), ["eds", last]);
        assert_eq!(client.stream.settled(), Some(2.into()));

        // Other endpoints are on their way, so the first one cannot be sent yet.
        let mut client = started_with_split(runtime, 0, SECOND);
        client.give(split(2, 0, ["", "E3"]));
        client.take_log();
        client.give(split(3, 500_000, ["E1", "E3"]));
        assert_eq!(client.take_log(), NOTHING);
        client.ack();
        assert_eq!(order(&mut client), ["eds", last]);
    }
}

#[test]
fn weight_that_comes_back_follows_the_first_endpoint_of_its_cluster() {
    // The route of the client has weight for the cluster, and the runtime values have none. Then the values change, or
    // go because the route is right.
    for weight in [500_000, 900_000] {
        let mut client = started_with_split(true, 900_000, BOTH);
        client.give(split(2, 0, SECOND));
        client.ack_all();
        client.take_log();
        client.give(split(3, weight, BOTH));
        assert_eq!(order(&mut client), ["eds", "rtds"], "{weight}");
        assert_eq!(client.stream.settled(), Some(3.into()));
    }
}

#[test]
fn weight_does_not_wait_for_endpoints_that_are_rejected_or_stay_away() {
    let mut client = started_with_split(true, 0, SECOND);
    client.give(split(2, 500_000, SECOND));
    assert_eq!(order(&mut client), ["rtds"]);
    let mut client = started_with_split(true, 0, SECOND);
    client.give(split(2, 500_000, BOTH));
    assert_eq!(client.take_log().len(), 1);
    client.answer(Some("c1 is bad"), &[]);
    assert_eq!(order(&mut client), ["rtds"]);
}

#[test]
fn weight_waits_while_the_removal_of_the_last_endpoints_is_in_flight() {
    for (runtime, weight) in [(true, 500_000), (true, 900_000), (false, 900_000)] {
        let mut client = started_with_split(runtime, 900_000, BOTH);
        client.give(split(2, 0, SECOND));
        client.ack();
        client.take_log();
        // The client still has the endpoints, and loses them before it gets what is sent now.
        client.give(split(3, weight, BOTH));
        assert_eq!(client.take_log(), NOTHING);
        client.ack();
        let last = if runtime { "rtds" } else { "rds" };
        assert_eq!(order(&mut client), ["eds", last], "{weight}");
    }
}
