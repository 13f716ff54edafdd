//! Tests `weir serve` against the rules of Envoy's "xDS REST and gRPC protocol" document. Quoted names are sections of
//! that document. Rules that apply to both variants are tested in both.

use std::collections::BTreeSet;

use crate::support::ads::{Ask, CDS, Client, EDS, Got, LDS, RDS, Variant, Weir, ask};
use crate::support::mesh::{route_yaml, rule_yaml, until};
use tonic::{Code, Status};
use weir::admin::api::v1;

mod of_one_variant;

/// Runs each of these rules in both variants.
macro_rules! both {
    ($($rule:ident)*) => {
        mod sotw {
            $(#[tokio::test] async fn $rule() { super::$rule(super::Variant::Sotw).await; })*
        }
        mod delta {
            $(#[tokio::test] async fn $rule() { super::$rule(super::Variant::Delta).await; })*
        }
    };
}

both! {
    the_first_request_carries_a_node
    a_malformed_node_id_is_rejected
    later_requests_need_no_node
    a_node_that_comes_again_is_not_looked_at
    a_request_on_the_aggregated_stream_says_its_type
    an_unknown_type_is_left_alone_and_the_others_go_on
    naming_nothing_at_first_asks_for_all
    a_star_asks_for_all
    clusters_can_be_asked_for_by_name
    endpoints_come_for_the_names_asked_for
    a_name_added_later_is_sent
    routes_come_for_the_names_asked_for
    endpoints_asked_for_before_clusters_are_answered
    routes_asked_for_before_listeners_are_answered
    each_response_has_a_nonce_of_its_own
    types_on_one_stream_do_not_share_nonces
    what_is_acked_is_not_sent_again
    what_changed_is_sent_and_nothing_else
    one_response_of_a_type_is_under_way_at_a_time
    the_latest_state_follows_an_answer
    a_rejected_response_is_not_repeated
    a_rejected_resource_is_sent_again_when_it_changes
    a_nack_of_one_type_does_not_stop_the_others
    a_nack_is_reported_with_type_name_and_message
    a_nack_of_a_route_table_concerns_what_changed_in_it
    an_answer_that_comes_twice_counts_once
    each_type_has_a_service_of_its_own
    a_service_of_one_type_needs_no_type_url
    a_per_type_service_rejects_other_types
    clients_do_not_wait_for_each_other
    a_request_above_the_size_limit_is_rejected
    more_names_than_the_limit_are_rejected
    streams_above_the_limit_are_rejected
    a_client_that_does_not_answer_is_shown_as_lagging
    streams_end_with_unavailable_when_weir_does
    a_route_waits_for_its_new_cluster_and_its_endpoints
    a_cluster_goes_after_its_route
    a_route_written_before_its_subset_is_held
    a_subset_dropped_before_its_route_is_kept
    a_changed_cluster_gets_its_endpoints_again
}

fn service_url(weir: &Weir, protocol: &str) -> String {
    weir.objects
        .service_yaml()
        .replace("name: http,", &format!("name: http, appProtocol: {protocol},"))
}

async fn end(client: &mut Client) -> Status {
    loop {
        if let Err(status) = client.next().await {
            return status;
        }
    }
}

/// "Basic Protocol Overview": only the first request is guaranteed to carry the node.
async fn the_first_request_carries_a_node(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.send_as_it_is(ask(CDS, &[])).await;
    let status = end(&mut client).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("node"), "{status:?}");
}

/// weir's own rule: the id identifies the proxy, so a proxy without a valid id gets nothing.
async fn a_malformed_node_id_is_rejected(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.send(Ask { node: Some("somebody".to_owned()), ..ask(CDS, &[]) }).await;
    let status = end(&mut client).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("somebody"), "{status:?}");
}

/// "Basic Protocol Overview": subsequent requests may carry no node.
async fn later_requests_need_no_node(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.fetch(CDS, &[]).await;
    client.send_as_it_is(ask(RDS, &[&weir.routes()])).await;
    assert!(client.got(RDS).await.has(&weir.routes()));
}

/// "Basic Protocol Overview": it is enough to check the first message for the node.
async fn a_node_that_comes_again_is_not_looked_at(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.fetch(CDS, &[]).await;
    client.send(Ask { node: Some("somebody".to_owned()), ..ask(RDS, &[&weir.routes()]) }).await;
    assert!(client.got(RDS).await.has(&weir.routes()));
}

/// "Aggregated Discovery Service": requests are multiplexed by type URL.
async fn a_request_on_the_aggregated_stream_says_its_type(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.send(ask("", &[])).await;
    let status = end(&mut client).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("type_url"), "{status:?}");
}

/// "Aggregated Discovery Service": each type is a separate logical stream.
async fn an_unknown_type_is_left_alone_and_the_others_go_on(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    // What istio-proxy may ask for, or report, besides what it is served; here without an identity.
    let unknown = [
        ("envoy.extensions.transport_sockets.tls.v3.Secret", "default"),
        ("envoy.config.core.v3.TypedExtensionConfig", "filter"),
        ("istio.mesh.v1alpha1.ProxyConfig", ""),
        ("istio.v1.HealthInformation", ""),
        ("istio.workload.Workload", "*"),
        ("istio.workload.Address", "*"),
    ];
    for (unknown, name) in unknown {
        let names = [name].into_iter().filter(|name| !name.is_empty()).collect::<Vec<_>>();
        let unknown = ask(&format!("type.googleapis.com/{unknown}"), &names);
        client.send(unknown.clone()).await;
        client.send(Ask { error: Some("unhealthy".to_owned()), ..unknown }).await;
    }
    assert!(client.fetch(CDS, &[]).await.has(&weir.cluster("v1")));
    client.nothing_more("x").await;
}

/// "How the client specifies what resources to return": the legacy wildcard.
async fn naming_nothing_at_first_asks_for_all(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    let got = client.fetch(CDS, &[]).await;
    assert!(
        ["", "v1", "v2"].iter().all(|subset| got.has(&weir.cluster(subset))),
        "{:?}",
        got.names()
    );
    assert!(!client.fetch(LDS, &[]).await.resources.is_empty());
}

/// "How the client specifies what resources to return": the special name "*".
async fn a_star_asks_for_all(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    let all = client.fetch(CDS, &["*"]).await;
    let mut other = weir.ads(variant).await;
    assert_eq!(all.names(), other.fetch(CDS, &[]).await.names());
}

/// "How the client specifies what resources to return": any type may be requested by name.
async fn clusters_can_be_asked_for_by_name(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    let v1 = weir.cluster("v1");
    assert_eq!(client.fetch(CDS, &[&v1]).await.names(), BTreeSet::from([v1.as_str()]));
}

/// "How the client specifies what resources to return": the requested resources must be supplied if they exist.
async fn endpoints_come_for_the_names_asked_for(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    let (v1, v2) = (weir.cluster("v1"), weir.cluster("v2"));
    assert_eq!(
        client.fetch(EDS, &[&v1, &v2]).await.names(),
        BTreeSet::from([v1.as_str(), v2.as_str()])
    );
}

/// "Resource updates": the client may add names later.
async fn a_name_added_later_is_sent(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    let (v1, v2) = (weir.cluster("v1"), weir.cluster("v2"));
    let first = client.fetch(EDS, &[&v1]).await;
    let names: &[&str] = if variant == Variant::Sotw { &[&v1, &v2] } else { &[&v2] };
    let nonce = if variant == Variant::Sotw { first.nonce } else { String::new() };
    client.send(Ask { nonce, version: first.version, ..ask(EDS, names) }).await;
    assert_eq!(
        client.got(EDS).await.names(),
        BTreeSet::from([v2.as_str()]),
        "what it has is not sent again"
    );
}

/// "How the client specifies what resources to return", for routes.
async fn routes_come_for_the_names_asked_for(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    let routes = weir.routes();
    assert_eq!(client.fetch(RDS, &[&routes]).await.names(), BTreeSet::from([routes.as_str()]));
}

/// "API flow": a client may start with any type.
async fn endpoints_asked_for_before_clusters_are_answered(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    let v1 = weir.cluster("v1");
    assert!(client.fetch(EDS, &[&v1]).await.has(&v1));
    assert!(client.fetch(CDS, &[]).await.has(&v1));
}

/// "API flow": a gRPC client fetches routes, then what they need.
async fn routes_asked_for_before_listeners_are_answered(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    assert!(client.fetch(RDS, &[&weir.routes()]).await.has(&weir.routes()));
    assert!(!client.fetch(LDS, &[]).await.resources.is_empty());
}

/// "Basic Protocol Overview": all server responses contain a nonce.
async fn each_response_has_a_nonce_of_its_own(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    let mut nonces = BTreeSet::new();
    for subset in ["", "v1", "v2"] {
        nonces.insert(client.fetch(CDS, &[&weir.cluster(subset)]).await.nonce);
    }
    assert!(nonces.len() == 3 && !nonces.contains(""), "{nonces:?}");
}

/// "ACK/NACK and resource type instance version": versions and nonces are separate for each type.
async fn types_on_one_stream_do_not_share_nonces(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.send(ask(RDS, &[&weir.routes()])).await;
    let routes = client.got(RDS).await;
    let clusters = client.fetch(CDS, &[&weir.cluster("v1")]).await;
    assert_ne!(routes.nonce, clusters.nonce);
    // An ACK of the clusters does not ACK the routes: a change of routes waits.
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    client.nothing_more("probe").await;
    client.ack(&routes).await;
    assert!(client.got(RDS).await.has(&weir.routes()));
}

/// "When to send an update": only when the resources have changed.
async fn what_is_acked_is_not_sent_again(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.start(&weir).await;
    // A change of the mesh that does not affect this proxy.
    weir.edit("other.yaml", &rule_yaml(&["v9"]).replace("my-app", "nobody")).await;
    client.nothing_more("probe").await;
}

/// "When to send an update" and "Grouping Resources into Responses".
async fn what_changed_is_sent_and_nothing_else(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    let before = client.start(&weir).await;
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    let after = client.got(RDS).await;
    assert_ne!(before.resources, after.resources);
    client.ack(&after).await;
    client.nothing_more("probe").await;
}

/// "Resource updates": a newer nonce makes older ones stale, so answers would be lost if several responses were in
/// flight.
async fn one_response_of_a_type_is_under_way_at_a_time(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.fetch(CDS, &[&weir.cluster("v1")]).await;
    client.send(ask(RDS, &[&weir.routes()])).await;
    let first = client.got(RDS).await;
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    client.nothing_more("probe").await;
    client.ack(&first).await;
    assert_ne!(client.got(RDS).await.resources, first.resources);
}

/// "When to send an update": intermediate states are skipped.
async fn the_latest_state_follows_an_answer(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.send(ask(RDS, &[&weir.routes()])).await;
    let first = client.got(RDS).await;
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    weir.edit("virtual-service.yaml", &route_yaml(0, 100)).await;
    client.ack(&first).await;
    let last = client.got(RDS).await;
    let mut fresh = weir.ads(variant).await;
    assert_eq!(bodies(&last), bodies(&fresh.fetch(RDS, &[&weir.routes()]).await));
    client.ack(&last).await;
}

fn bodies(got: &Got) -> Vec<&[u8]> {
    got.resources.values().map(|(_, bytes)| bytes.as_slice()).collect()
}

/// "NACK": the client keeps what it has; the same bytes would be rejected again.
async fn a_rejected_response_is_not_repeated(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.start(&weir).await;
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    let got = client.got(RDS).await;
    client.answer(&got, Some("no")).await;
    client.nothing_more("probe").await;
}

/// "NACK": an update may succeed at a new version.
async fn a_rejected_resource_is_sent_again_when_it_changes(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.start(&weir).await;
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    let got = client.got(RDS).await;
    client.answer(&got, Some("no")).await;
    weir.edit("virtual-service.yaml", &route_yaml(0, 100)).await;
    let next = client.got(RDS).await;
    assert_ne!(bodies(&got), bodies(&next));
    client.ack(&next).await;
    until("nothing is rejected any more", async || weir.status().await.rejected.is_empty()).await;
}

/// "ACK/NACK and resource type instance version": each type is independent.
async fn a_nack_of_one_type_does_not_stop_the_others(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.start(&weir).await;
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    let got = client.got(RDS).await;
    client.answer(&got, Some("no")).await;
    weir.fail_endpoints().await;
    assert_eq!(client.got(EDS).await.resources.len(), 3);
}

/// "NACK": `error_detail` contains the reason, which weir reports.
async fn a_nack_is_reported_with_type_name_and_message(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.start(&weir).await;
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    let got = client.got(RDS).await;
    client.answer(&got, Some("the seventh route is odd")).await;
    until("the rejection is reported", async || !weir.status().await.rejected.is_empty()).await;
    let rejected = &weir.status().await.rejected[0];
    assert_eq!(
        (rejected.r#type(), &*rejected.name, &*rejected.message),
        (v1::ResourceType::Rds, &*weir.routes(), "the seventh route is odd")
    );
    assert!(!rejected.version.is_empty());
}

/// "NACK": of two VirtualServices in one route configuration, the one that did not change in it is live.
async fn a_nack_of_a_route_table_concerns_what_changed_in_it(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    let other = |timeout: u32| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: other, namespace: shop}}\nspec:\n  clusterIP: \
             10.96.0.11\n  ports: [{{name: http, port: {}}}]\n---\napiVersion: \
             networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: other, namespace: shop}}\nspec:\n  \
             hosts: [other]\n  http: [{{timeout: {timeout}s, route: [{{destination: {{host: other}}}}]}}]\n",
            weir.objects.service
        )
    };
    weir.edit("other.yaml", &other(1)).await;
    let clusters = client.fetch(CDS, &[]).await;
    let names: Vec<&str> =
        clusters.names().into_iter().filter(|name| name.starts_with("outbound|")).collect();
    client.fetch(EDS, &names).await;
    client.fetch(LDS, &[]).await;
    client.fetch(RDS, &[&weir.routes()]).await;
    weir.edit("other.yaml", &other(2)).await;
    let got = client.got(RDS).await;
    client.ack(&got).await;
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    let got = client.got(RDS).await;
    client.answer(&got, Some("a route is odd")).await;
    until("the rejection is reported", async || !weir.status().await.rejected.is_empty()).await;
    let objects: Vec<_> =
        weir.status().await.rejected[0].objects.iter().map(ToString::to_string).collect();
    assert!(
        objects.contains(&"VirtualService shop/my-app".to_owned())
            && !objects.contains(&"VirtualService shop/other".to_owned()),
        "{objects:?}"
    );
    for (name, state) in [("my-app", "REJECTED"), ("other", "LIVE")] {
        let path = format!("/api/v1/objects/virtualservice/shop/{name}");
        let body = weir.serve.admin().get(&path).await.unwrap();
        let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(status["proxies"][0]["state"], state, "{status}");
    }
}

/// "Resource updates": earlier requests become stale.
async fn an_answer_that_comes_twice_counts_once(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    let got = client.start(&weir).await;
    client.ack(&got).await;
    client.answer(&got, Some("a NACK of an accepted response is invalid")).await;
    client.nothing_more("probe").await;
    assert_eq!(weir.status().await.rejected, []);
}

/// "RPC Services and Methods for Each Variant".
async fn each_type_has_a_service_of_its_own(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let (v1, routes) = (weir.cluster("v1"), weir.routes());
    for (kind, names) in
        [(CDS, vec![]), (EDS, vec![v1.as_str()]), (LDS, vec![]), (RDS, vec![routes.as_str()])]
    {
        let mut client = weir.connect(variant, Some(kind)).await;
        let got = client.fetch(kind, &names).await;
        assert!(
            !got.resources.is_empty() && names.iter().all(|name| got.has(name)),
            "{kind}: {:?}",
            got.names()
        );
    }
}

/// "RPC Services and Methods for Each Variant": the method determines the type.
async fn a_service_of_one_type_needs_no_type_url(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.connect(variant, Some(RDS)).await;
    client.send(ask("", &[&weir.routes()])).await;
    assert!(client.got(RDS).await.has(&weir.routes()));
}

/// "RPC Services and Methods for Each Variant": one type each.
async fn a_per_type_service_rejects_other_types(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.connect(variant, Some(RDS)).await;
    client.send(ask(CDS, &[])).await;
    let status = end(&mut client).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
}

/// "Eventual consistency considerations": each client has its own pace.
async fn clients_do_not_wait_for_each_other(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut silent = weir.ads(variant).await;
    silent.send(ask(RDS, &[&weir.routes()])).await;
    silent.got(RDS).await;
    let mut client = weir.ads(variant).await;
    client.fetch(RDS, &[&weir.routes()]).await;
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    assert!(client.got(RDS).await.has(&weir.routes()));
}

/// weir's own limit: the size of a request.
async fn a_request_above_the_size_limit_is_rejected(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.fetch(CDS, &[&weir.cluster("v1")]).await;
    let name = "n".repeat(100_000);
    let names: Vec<&str> = (0..100).map(|_| name.as_str()).collect();
    client.send(ask(EDS, &names)).await;
    let status = end(&mut client).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
}

/// weir's own limit: the names of one stream.
async fn more_names_than_the_limit_are_rejected(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    let names: Vec<String> = (0..100_001).map(|n| format!("c{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    client.send(ask(EDS, &names)).await;
    let status = end(&mut client).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("100000"), "{status:?}");
}

/// weir's own limit: the number of streams.
async fn streams_above_the_limit_are_rejected(variant: Variant) {
    let weir = Weir::start(&["--max-streams", "1"]).await;
    let mut first = weir.ads(variant).await;
    first.fetch(CDS, &[]).await;
    let rejected = Client::try_open(first.channel.clone(), variant, None)
        .await
        .err()
        .expect("the limit is reached");
    assert_eq!(rejected.code(), Code::ResourceExhausted, "{rejected:?}");
    let channel = first.channel.clone();
    drop(first);
    until("the permit is released", async || {
        Client::try_open(channel.clone(), variant, None).await.is_ok()
    })
    .await;
}

/// weir's own rule: a client that does not answer keeps its state and is reported with the reason.
async fn a_client_that_does_not_answer_is_shown_as_lagging(variant: Variant) {
    let weir = Weir::start(&["--ack-timeout", "0.05"]).await;
    let mut client = weir.ads(variant).await;
    client.send(ask(CDS, &[])).await;
    let got = client.got(CDS).await;
    until("it lags", async || weir.status().await.lagging.contains("cds")).await;
    client.ack(&got).await;
    until("it is no longer lagging", async || weir.status().await.lagging.is_empty()).await;
}

/// "TTL": a client keeps what it has while the server is down, and reconnects.
async fn streams_end_with_unavailable_when_weir_does(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.fetch(CDS, &[]).await;
    weir.serve.terminate();
    let status = end(&mut client).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

/// A mesh with v1 only, and an up-to-date client.
async fn only_v1(variant: Variant) -> (Weir, Client) {
    let weir = Weir::start(&[]).await;
    weir.edit("virtual-service.yaml", &without("v2", &route_yaml(100, 0))).await;
    weir.edit("destination-rule.yaml", &rule_yaml(&["v1"])).await;
    let mut client = weir.ads(variant).await;
    client.start(&weir).await;
    (weir, client)
}

fn without(subset: &str, route: &str) -> String {
    let lines: Vec<&str> =
        route.lines().filter(|line| !line.contains(&format!("subset: {subset}"))).collect();
    lines.join("\n")
}

/// Requests the endpoints of these clusters as Envoy does after it accepted a new one.
async fn ask_endpoints(client: &mut Client, last: &Got, all: &[&str], new: &str) {
    let names = if client.variant() == Variant::Sotw { all } else { &[new][..] };
    let nonce = if client.variant() == Variant::Sotw { last.nonce.clone() } else { String::new() };
    client.send(Ask { nonce, ..ask(EDS, names) }).await;
}

/// "Eventual consistency considerations": make before break; and "Resource warming".
async fn a_route_waits_for_its_new_cluster_and_its_endpoints(variant: Variant) {
    let (weir, mut client) = only_v1(variant).await;
    let [all, v1, v2] = ["", "v1", "v2"].map(|subset| weir.cluster(subset));
    weir.edit("destination-rule.yaml", &rule_yaml(&["v1", "v2"])).await;
    let clusters = client.got(CDS).await;
    assert!(clusters.has(&v2));
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    client.ack(&clusters).await;
    let none = Got { nonce: String::new(), ..clusters };
    ask_endpoints(&mut client, &none, &[&all, &v1, &v2], &v2).await;
    let endpoints = client.got(EDS).await;
    assert!(endpoints.has(&v2));
    client.ack(&endpoints).await;
    assert!(client.got(RDS).await.has(&weir.routes()), "only now");
}

/// "Eventual consistency considerations": stale clusters can then be removed.
async fn a_cluster_goes_after_its_route(variant: Variant) {
    let weir = Weir::start(&["--grace", "0.01"]).await;
    let mut client = weir.ads(variant).await;
    client.start(&weir).await;
    weir.edit("virtual-service.yaml", &without("v1", &route_yaml(0, 100))).await;
    let routes = client.got(RDS).await;
    weir.edit("destination-rule.yaml", &rule_yaml(&["v2"])).await;
    client.ack(&routes).await;
    let clusters = client.got(CDS).await;
    let v1 = weir.cluster("v1");
    assert!(
        if variant == Variant::Sotw { !clusters.has(&v1) } else { clusters.removed == [v1] },
        "{clusters:?}"
    );
}

/// weir's own rule: objects may be written in any order.
async fn a_route_written_before_its_subset_is_held(variant: Variant) {
    let (weir, mut client) = only_v1(variant).await;
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    until("it is reported as held", async || {
        weir.status().await.held.iter().any(|held| held.missing_cluster == weir.cluster("v2"))
    })
    .await;
    client.nothing_more("probe").await;
}

/// weir's own rule: objects may be written in any order.
async fn a_subset_dropped_before_its_route_is_kept(variant: Variant) {
    let weir = Weir::start(&["--grace", "0"]).await;
    let mut client = weir.ads(variant).await;
    client.start(&weir).await;
    weir.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    let routes = client.got(RDS).await;
    client.ack(&routes).await;
    weir.edit("destination-rule.yaml", &rule_yaml(&["v1"])).await;
    until("it is shown as kept", async || weir.status().await.kept == [weir.cluster("v2")]).await;
    client.nothing_more("probe").await;
}

/// "Resource warming": a changed cluster warms until its endpoints are supplied, even if they did not change.
async fn a_changed_cluster_gets_its_endpoints_again(variant: Variant) {
    let weir = Weir::start(&[]).await;
    let mut client = weir.ads(variant).await;
    client.start(&weir).await;
    weir.edit("service.yaml", &service_url(&weir, "http2")).await;
    let clusters = client.got(CDS).await;
    client.ack(&clusters).await;
    let endpoints = client.got(EDS).await;
    assert!(
        ["", "v1", "v2"].iter().all(|subset| endpoints.has(&weir.cluster(subset))),
        "{:?}",
        endpoints.names()
    );
}
