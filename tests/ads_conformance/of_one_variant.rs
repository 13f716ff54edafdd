//! Rules that exist only in the SotW or only in the incremental variant.

use super::*;

/// "Unsubscribing From Resources": omitting a name from the list ends its subscription.
#[tokio::test]
async fn sotw_an_omitted_name_is_no_longer_sent() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Sotw).await;
    client.fetch(CDS, &[&weir.cluster("v1")]).await;
    let (v1, v2) = (weir.cluster("v1"), weir.cluster("v2"));
    let got = client.fetch(EDS, &[&v1, &v2]).await;
    client.send(Ask { nonce: got.nonce, ..ask(EDS, &[&v2]) }).await;
    weir.fail_endpoints().await;
    assert_eq!(client.got(EDS).await.names(), BTreeSet::from([v2.as_str()]));
}

/// "How the client specifies what resources to return": an empty list unsubscribes from everything.
#[tokio::test]
async fn sotw_no_names_after_some_leave_all_endpoints() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Sotw).await;
    client.fetch(CDS, &[&weir.cluster("v1")]).await;
    let got = client.fetch(EDS, &[&weir.cluster("v1")]).await;
    client.send(Ask { nonce: got.nonce, ..ask(EDS, &[]) }).await;
    weir.fail_endpoints().await;
    client.nothing_more("probe").await;
}

/// "How the client specifies what resources to return": the example of four requests.
#[tokio::test]
async fn sotw_no_names_after_some_is_not_a_wildcard() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Sotw).await;
    let v1 = weir.cluster("v1");
    let got = client.fetch(CDS, &[]).await;
    client.send(Ask { nonce: got.nonce, ..ask(CDS, &["*", &v1]) }).await;
    let got = client.got(CDS).await;
    assert!(got.has(&weir.cluster("v2")));
    client.send(Ask { nonce: got.nonce.clone(), ..ask(CDS, &[&v1]) }).await;
    client.send(Ask { nonce: got.nonce, ..ask(CDS, &[]) }).await;
    weir.edit("destination-rule.yaml", &rule_yaml(&["v1", "v2", "v3"])).await;
    // The next response contains routes, not clusters.
    assert!(client.fetch(RDS, &[&weir.routes()]).await.has(&weir.routes()));
}

/// "Resource updates": no response for a request that has a stale nonce.
#[tokio::test]
async fn sotw_a_request_with_a_stale_nonce_is_ignored() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Sotw).await;
    client.fetch(CDS, &[&weir.cluster("v1")]).await;
    let first = client.fetch(EDS, &[&weir.cluster("v1")]).await;
    weir.fail_endpoints().await;
    let second = client.got(EDS).await;
    client
        .send(Ask { nonce: first.nonce, ..ask(EDS, &[&weir.cluster("v1"), &weir.cluster("v2")]) })
        .await;
    client.nothing_more("probe").await;
    client
        .send(Ask { nonce: second.nonce, ..ask(EDS, &[&weir.cluster("v1"), &weir.cluster("v2")]) })
        .await;
    assert!(
        client.got(EDS).await.has(&weir.cluster("v2")),
        "the same with the nonce of the last response"
    );
}

/// "Grouping Resources into Responses": clusters are sent together.
#[tokio::test]
async fn sotw_every_cluster_response_is_complete() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Sotw).await;
    let before = client.fetch(CDS, &[]).await;
    weir.edit("destination-rule.yaml", &rule_yaml(&["v1", "v2", "v3"])).await;
    let after = client.got(CDS).await;
    assert!(before.names().is_subset(&after.names()) && after.has(&weir.cluster("v3")));
}

/// "Knowing When a Requested Resource Does Not Exist": no response until the resource exists.
#[tokio::test]
async fn sotw_a_missing_resource_is_sent_once_it_exists() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Sotw).await;
    client.fetch(CDS, &[&weir.cluster("v1")]).await;
    client.send(ask(EDS, &[&weir.cluster("v3")])).await;
    client.nothing_more("probe").await;
    weir.edit("destination-rule.yaml", &rule_yaml(&["v1", "v2", "v3"])).await;
    assert!(client.got(EDS).await.has(&weir.cluster("v3")));
}

/// "Knowing When a Requested Resource Does Not Exist" (incremental), and "Deleting Resources".
#[tokio::test]
async fn delta_a_missing_resource_is_reported_and_sent_once_it_exists() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Delta).await;
    let v3 = weir.cluster("v3");
    assert_eq!(client.fetch(EDS, &[&v3]).await.removed, [v3.as_str()]);
    weir.edit("destination-rule.yaml", &rule_yaml(&["v1", "v2", "v3"])).await;
    let got = client.got(EDS).await;
    assert!(got.has(&v3));
    client.ack(&got).await;
    weir.edit("destination-rule.yaml", &rule_yaml(&["v1", "v2"])).await;
    assert_eq!(client.got(EDS).await.removed, [v3]);
}

/// "Subscribing to Resources": a resource must be sent even if the server believes that the client has it.
#[tokio::test]
async fn delta_a_resubscribed_name_is_sent_again() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Delta).await;
    let v1 = weir.cluster("v1");
    let first = client.fetch(EDS, &[&v1]).await;
    assert_eq!(client.fetch(EDS, &[&v1]).await.resources, first.resources);
}

/// "Unsubscribing from Resources".
#[tokio::test]
async fn delta_an_unsubscribed_name_is_no_longer_sent() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Delta).await;
    let (v1, v2) = (weir.cluster("v1"), weir.cluster("v2"));
    client.fetch(EDS, &[&v1, &v2]).await;
    client.send(Ask { unsubscribe: vec![v1], ..ask(EDS, &[]) }).await;
    client.nothing_more("probe").await;
    weir.fail_endpoints().await;
    assert_eq!(client.got(EDS).await.names(), BTreeSet::from([v2.as_str()]));
}

/// "Unsubscribing from Resources": phantom unsubscriptions are ignored.
#[tokio::test]
async fn delta_a_phantom_unsubscription_is_ignored() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Delta).await;
    client.fetch(EDS, &[&weir.cluster("v1")]).await;
    client.send(Ask { unsubscribe: vec!["phantom".to_owned()], ..ask(EDS, &[]) }).await;
    client.nothing_more("probe").await;
}

/// "Unsubscribing from Resources": with a wildcard, the response says whether it still has the resource.
#[tokio::test]
async fn delta_unsubscribing_a_name_beside_a_wildcard_is_answered() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Delta).await;
    let v1 = weir.cluster("v1");
    client.fetch(CDS, &["*", &v1, "nobody"]).await;
    client.send(Ask { unsubscribe: vec![v1.clone()], ..ask(CDS, &[]) }).await;
    let got = client.got(CDS).await;
    assert_eq!(got.names(), BTreeSet::from([v1.as_str()]));
    client.ack(&got).await;
    client.send(Ask { unsubscribe: vec!["nobody".to_owned()], ..ask(CDS, &[]) }).await;
    assert_eq!(client.got(CDS).await.removed, ["nobody"]);
}

/// "How the client specifies what resources to return": the wildcard can be unsubscribed, and an empty subscription
/// does not restore it.
#[tokio::test]
async fn delta_a_wildcard_given_up_is_over() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Delta).await;
    client.fetch(CDS, &[]).await;
    client.send(Ask { unsubscribe: vec!["*".to_owned()], ..ask(CDS, &[]) }).await;
    weir.edit("destination-rule.yaml", &rule_yaml(&["v1", "v2", "v3"])).await;
    client.nothing_more("probe").await;
}

/// "Incremental xDS": subscriptions apply even if the nonce is stale.
#[tokio::test]
async fn delta_a_stale_nonce_does_not_void_a_subscription() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Delta).await;
    let v2 = weir.cluster("v2");
    client.fetch(EDS, &[&weir.cluster("v1")]).await;
    client.send(Ask { nonce: "stale".to_owned(), ..ask(EDS, &[&v2]) }).await;
    assert!(client.got(EDS).await.has(&v2));
}

/// "Incremental xDS": a reconnecting client reports what it has.
#[tokio::test]
async fn delta_initial_versions_are_not_sent_again() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Delta).await;
    let got = client.fetch(CDS, &[]).await;
    drop(client);
    let mut client = weir.ads(Variant::Delta).await;
    let mut initial: std::collections::BTreeMap<_, _> =
        got.resources.iter().map(|(name, (version, _))| (name.clone(), version.clone())).collect();
    let v1 = weir.cluster("v1");
    initial.insert(v1.clone(), "another".to_owned());
    client.send(Ask { initial, ..ask(CDS, &[]) }).await;
    assert_eq!(client.got(CDS).await.names(), BTreeSet::from([v1.as_str()]));
}

/// "ACK/NACK and resource type instance version": a version names what a client has on later streams, too.
#[tokio::test]
async fn sotw_what_a_version_names_is_not_sent_again() {
    let weir = Weir::start(&[]).await;
    let names = ["", "v1", "v2"].map(|subset| weir.cluster(subset));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let routes = weir.routes();
    let kinds: [(&str, &[&str]); 4] = [(CDS, &[]), (EDS, &names), (LDS, &[]), (RDS, &[&routes])];
    // Another version of one type leads to that type alone, and with clusters come their endpoints.
    let cases = [
        (None, &[][..]),
        (Some(RDS), &[]),
        (Some(LDS), &[LDS]),
        (Some(EDS), &[EDS]),
        (Some(CDS), &[CDS, EDS]),
    ];
    for (seconds, (other, expected)) in (10..).zip(cases) {
        let mut client = weir.ads(Variant::Sotw).await;
        let mut versions = Vec::new();
        for (kind, names) in kinds {
            versions.push(client.fetch(kind, names).await.version);
        }
        // Some endpoints are sent again, and the version is still that of all of them.
        weir.edit("endpoints.yaml", &weir.objects.endpoints_of(&[1])).await;
        let got = client.got(EDS).await;
        assert!(!got.has(&weir.cluster("v1")), "{got:?}");
        client.ack(&got).await;
        versions[1] = got.version;
        drop(client);

        let mut client = weir.ads(Variant::Sotw).await;
        for ((kind, names), version) in kinds.into_iter().zip(versions) {
            let version = if Some(kind) == other { "1".to_owned() } else { version };
            client.send(Ask { version, ..ask(kind, names) }).await;
        }
        let route =
            route_yaml(100, 0).replace("- route:", &format!("- timeout: {seconds}s\n    route:"));
        weir.edit("virtual-service.yaml", &route).await;
        let mut kinds = BTreeSet::new();
        while !kinds.contains(RDS) {
            let got = client.next().await.unwrap();
            client.ack(&got).await;
            kinds.insert(got.type_url);
        }
        let expected = expected.iter().chain([&RDS]).map(|kind| (*kind).to_owned()).collect();
        assert_eq!(kinds, expected, "{other:?}");
        weir.edit("endpoints.yaml", &weir.objects.endpoints_of(&[1, 2])).await;
    }
}

/// "Deleting Resources": resources removed while the client was disconnected are reported.
#[tokio::test]
async fn delta_resources_removed_meanwhile_are_reported() {
    let weir = Weir::start(&["--grace", "0"]).await;
    let mut client = weir.ads(Variant::Delta).await;
    let initial = [("gone".to_owned(), "1".to_owned())].into();
    client.send(Ask { initial, ..ask(LDS, &[]) }).await;
    assert_eq!(client.got(LDS).await.removed, ["gone"]);
}

/// "Grouping Resources into Responses": a changed cluster is sent alone.
#[tokio::test]
async fn delta_a_cluster_response_contains_only_changes() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Delta).await;
    client.fetch(CDS, &[]).await;
    weir.edit("destination-rule.yaml", &rule_yaml(&["v1", "v2", "v3"])).await;
    let v3 = weir.cluster("v3");
    assert_eq!(client.got(CDS).await.names(), BTreeSet::from([v3.as_str()]));
}

/// "Incremental xDS": a request without a nonce does not answer the response in flight.
#[tokio::test]
async fn delta_a_request_without_a_nonce_is_not_an_answer() {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(Variant::Delta).await;
    let (v1, v2) = (weir.cluster("v1"), weir.cluster("v2"));
    // A client that asks for endpoints first is taken for an Envoy whose clusters warm, and gets no routes yet.
    client.fetch(CDS, &["none"]).await;
    client.send(ask(EDS, &[&v1])).await;
    let first = client.got(EDS).await;
    client.send(ask(EDS, &[&v2])).await;
    client.fetch(RDS, &[&weir.routes()]).await;
    client.ack(&first).await;
    assert_eq!(client.got(EDS).await.names(), BTreeSet::from([v2.as_str()]));
}
