//! Virtual hosts that a client rejects.

use super::*;

/// A client that has these virtual hosts in its only route configuration.
fn with_hosts(variant: Variant, hosts: &str) -> Client {
    let mut client = Client::new(variant);
    client.give(snapshot(1, &[(Route, "80", hosts)]));
    client.ask(Cluster, &[]);
    client.ask(Route, &["80"]);
    while !client.unanswered.is_empty() {
        client.answer(None, &["80"]);
    }
    client.take_log();
    client
}

/// Answers until nothing is in flight, and rejects each response that contains `*bad` without naming the culprit.
/// Returns how often.
fn reject_bad(client: &mut Client) -> usize {
    let mut rejections = 0;
    while !client.unanswered.is_empty() {
        let bad = client.log.last().unwrap().contains("*bad");
        rejections += usize::from(bad);
        assert!(rejections < 20, "{:?}", client.log);
        client.answer(bad.then_some("something is wrong"), &["80"]);
    }
    rejections
}

#[test]
fn a_rejected_virtual_host_does_not_hold_back_the_others() {
    for variant in [Variant::Delta, Variant::Sotw] {
        let mut client = with_hosts(variant, "a> b> c> d> e>");
        client.give(snapshot(2, &[(Route, "80", "a>*2 b>*2 c>*bad d>*2 f>*2 g>*bad")]));
        assert!(reject_bad(&mut client) > 1);
        let accepted = client.take_log().into_iter().rfind(|sent| !sent.contains("*bad")).unwrap();
        assert!(accepted.ends_with("a>*2 b>*2 c> d>*2 f>*2"), "{variant:?}: {accepted}");
        let rejected: Vec<_> = client
            .stream
            .rejected()
            .into_iter()
            .map(|rejected| (rejected.name.to_string(), rejected.virtual_host.unwrap().to_string()))
            .collect();
        assert_eq!(rejected, [("80".into(), "c".into()), ("80".into(), "g".into())]);
        assert_eq!((client.stream.reached(), client.stream.settled()), (Some(2.into()), None));

        client.give(snapshot(3, &[(Route, "80", "a>*3 b>*2 c>*bad d>*2 f>*2 g>*bad")]));
        assert_eq!(reject_bad(&mut client), 0, "what was rejected is not sent again");
        assert!(client.take_log().pop().unwrap().ends_with("a>*3 b>*2 c> d>*2 f>*2"));

        client.give(snapshot(4, &[(Route, "80", "a>*3 b>*2 c>*4 d>*2 f>*2")]));
        assert_eq!(reject_bad(&mut client), 0);
        assert_eq!((client.stream.rejected(), client.stream.settled()), (vec![], Some(4.into())));
    }
}

#[test]
fn a_first_route_configuration_is_sent_without_its_rejected_virtual_hosts() {
    let mut client = Client::new(Variant::Delta);
    client.give(snapshot(1, &[(Route, "80", "a> b>*bad c> d>")]));
    client.ask(Cluster, &[]);
    client.ask(Route, &["80"]);
    reject_bad(&mut client);
    assert_eq!(client.take_log().pop().unwrap(), "rds +80=a> c> d>");
}

#[test]
fn a_virtual_host_named_in_a_nack_is_not_searched_for() {
    let mut client = with_hosts(Variant::Delta, "shop:80> cart:80> pay:80>");
    client.give(snapshot(2, &[(Route, "80", "shop:80>*2 cart:80>*bad pay:80>*2")]));
    client.answer(Some("virtual host cart:80: something is wrong"), &[]);
    assert_eq!(reject_bad(&mut client), 0);
    assert!(client.take_log().pop().unwrap().ends_with("cart:80> pay:80>*2 shop:80>*2"));
}

#[test]
fn a_rejected_virtual_host_is_found_beside_one_whose_weights_are_runtime_values() {
    for (weighted, other) in [("a", "b"), ("b", "a")] {
        let mut client = Client::new(Variant::Delta);
        client.give(snapshot(1, &[(Route, "80", &format!("{weighted}>x,y*10 {other}>"))]));
        client.ask(Runtime, &[RUNTIME_LAYER]);
        client.ask(Cluster, &[]);
        client.ask(Route, &["80"]);
        client.ack_all();
        client.take_log();
        client.give(snapshot(2, &[(Route, "80", &format!("{weighted}>x,y*20 {other}>"))]));
        assert!(client.log.iter().all(|sent| sent.starts_with("rtds ")), "{:?}", client.log);
        client.ack_all();
        client.give(snapshot(3, &[(Route, "80", &format!("{weighted}>x,y*20 {other}>*bad"))]));
        assert!(reject_bad(&mut client) > 0);
        assert_eq!(client.stream.rejected().len(), 1, "{weighted}: {:?}", client.log);
        assert_eq!(client.stream.reached(), Some(3.into()));
    }
}

#[test]
fn virtual_hosts_that_wait_for_clusters_do_not_stop_the_search() {
    let mut client = with_hosts(Variant::Delta, "a> b> c>");
    client.give(snapshot(2, &[(Route, "80", "a>*bad b>none c>*2")]));
    reject_bad(&mut client);
    assert_eq!(client.take_log().pop().unwrap(), "rds +80=a> b> c>*2");
    assert_eq!(client.stream.held().len(), 1);
    assert_eq!(client.stream.reached(), Some(2.into()));
}
