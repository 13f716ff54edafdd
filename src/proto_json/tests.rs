use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use envoy_types::pb::envoy::config::core::v3::{
    Address, Http2ProtocolOptions, Metadata, RuntimeFractionalPercent, SocketAddress, address,
    socket_address,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::{
    RedirectAction, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
    WeightedCluster, redirect_action, route, route_action, route_match, weighted_cluster,
};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_connection_manager, http_filter,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions, http_protocol_options,
};
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::google::protobuf::{
    Any, Duration, StringValue, Struct, UInt32Value, UInt64Value, Value as ProtoValue, value,
};
use envoy_types::util::pack_any;
use prost::{Message, Name};
use serde_json::{Value, json};

use super::{
    Error, TYPES, bytes_to_json, json_to_any, message_from_json, message_to_json, pool, print,
};
use crate::admin::api::v1;

fn any_to_json(type_url: &str, bytes: &[u8]) -> Result<Value, Error> {
    print::any(&TYPES, type_url, bytes, 0)
}

/// Converts the message, checks the round trip, and returns the text, which shows the order of the keys.
fn round_trip<M: Message + Name + Default + PartialEq + std::fmt::Debug>(message: &M) -> String {
    let json = message_to_json(message).unwrap();
    let bytes = json_to_any(&M::full_name(), &json).unwrap();
    assert_eq!(&M::decode(bytes.as_slice()).unwrap(), message, "{json:#}");
    json.to_string()
}

fn duration(seconds: i64, nanos: i32) -> Option<Duration> {
    Some(Duration { seconds, nanos })
}

#[test]
fn listener_expands_every_any_with_the_type_first() {
    let manager = HttpConnectionManager {
        stat_prefix: "outbound".into(),
        codec_type: http_connection_manager::CodecType::Http2.into(),
        stream_idle_timeout: duration(0, 0),
        route_specifier: Some(http_connection_manager::RouteSpecifier::Rds(Rds {
            route_config_name: "80".into(),
            ..Default::default()
        })),
        http_filters: vec![
            http_filter("envoy.filters.http.fault", pack_any(HttpFault::default())),
            http_filter(
                "envoy.filters.http.router",
                pack_any(Router { suppress_envoy_headers: true, ..Default::default() }),
            ),
        ],
        ..Default::default()
    };
    let listener = Listener {
        name: "0.0.0.0_80".into(),
        address: Some(Address {
            address: Some(address::Address::SocketAddress(SocketAddress {
                address: "0.0.0.0".into(),
                port_specifier: Some(socket_address::PortSpecifier::PortValue(0)),
                ..Default::default()
            })),
        }),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "envoy.filters.network.http_connection_manager".into(),
                config_type: Some(filter::ConfigType::TypedConfig(pack_any(manager))),
            }],
            ..Default::default()
        }],
        ..Default::default()
    };

    let chain = concat!(
        r#"[{"filters":[{"name":"envoy.filters.network.http_connection_manager","typedConfig":{"#,
        r#""@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager","#,
        r#""codecType":"HTTP2","httpFilters":["#,
        r#"{"name":"envoy.filters.http.fault","typedConfig":{"@type":"type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}},"#,
        r#"{"name":"envoy.filters.http.router","typedConfig":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router","suppressEnvoyHeaders":true}}],"#,
        r#""rds":{"routeConfigName":"80"},"statPrefix":"outbound","streamIdleTimeout":"0s"}}]}]"#,
    );
    assert_eq!(
        round_trip(&listener),
        // Port 0 is set in a oneof, so it is printed; the protocol TCP is the default enum value, so it is not.
        format!(
            r#"{{"address":{{"socketAddress":{{"address":"0.0.0.0","portValue":0}}}},"filterChains":{chain},"name":"0.0.0.0_80"}}"#
        ),
    );
}

fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

#[test]
fn cluster_with_a_map_of_any_wrappers_and_durations() {
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(http_protocol_options::UpstreamProtocolOptions::ExplicitHttpConfig(
            http_protocol_options::ExplicitHttpConfig {
                protocol_config: Some(
                    http_protocol_options::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(
                        Http2ProtocolOptions {
                            max_concurrent_streams: Some(UInt32Value { value: 0 }),
                            ..Default::default()
                        },
                    ),
                ),
            },
        )),
        ..Default::default()
    };
    let cluster = Cluster {
        name: "outbound|80|v1|reviews.default.svc.cluster.local".into(),
        connect_timeout: duration(10, 0),
        common_lb_config: Some(cluster::CommonLbConfig {
            update_merge_window: duration(0, 250_000_000),
            ..Default::default()
        }),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::Static.into(),
        )),
        lb_policy: cluster::LbPolicy::LeastRequest.into(),
        lb_config: Some(cluster::LbConfig::RingHashLbConfig(cluster::RingHashLbConfig {
            minimum_ring_size: Some(UInt64Value { value: 9_007_199_254_740_993 }),
            ..Default::default()
        })),
        metadata: Some(metadata()),
        typed_extension_protocol_options: [(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            pack_any(options),
        )]
        .into(),
        ..Default::default()
    };

    assert_eq!(
        round_trip(&cluster),
        concat!(
            r#"{"commonLbConfig":{"updateMergeWindow":"0.250s"},"connectTimeout":"10s","lbPolicy":"LEAST_REQUEST","#,
            r#""metadata":{"filterMetadata":{"istio":{"a":null,"list":[0.5,3],"z":"last"}}},"#,
            r#""name":"outbound|80|v1|reviews.default.svc.cluster.local","#,
            r#""ringHashLbConfig":{"minimumRingSize":"9007199254740993"},"type":"STATIC","#,
            r#""typedExtensionProtocolOptions":{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions":{"#,
            r#""@type":"type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions","#,
            r#""explicitHttpConfig":{"http2ProtocolOptions":{"maxConcurrentStreams":0}}}}}"#,
        )
    );
}

fn proto_value(kind: value::Kind) -> ProtoValue {
    ProtoValue { kind: Some(kind) }
}

fn metadata() -> Metadata {
    let numbers = [0.5, 3.0].map(|number| proto_value(value::Kind::NumberValue(number)));
    let list = envoy_types::pb::google::protobuf::ListValue { values: numbers.into() };
    let fields = [
        ("z".to_owned(), proto_value(value::Kind::StringValue("last".into()))),
        ("list".to_owned(), proto_value(value::Kind::ListValue(list))),
        ("a".to_owned(), proto_value(value::Kind::NullValue(0))),
    ];
    Metadata {
        filter_metadata: [("istio".to_owned(), Struct { fields: fields.into() })].into(),
        ..Default::default()
    }
}

fn split_and_redirect() -> Vec<Route> {
    let split = [("v1", 90), ("v2", 10)].map(|(name, weight)| weighted_cluster::ClusterWeight {
        name: name.into(),
        weight: Some(UInt32Value { value: weight }),
        ..Default::default()
    });
    vec![
        Route {
            r#match: Some(RouteMatch {
                path_specifier: Some(route_match::PathSpecifier::Prefix(String::new())),
                runtime_fraction: Some(RuntimeFractionalPercent {
                    default_value: Some(FractionalPercent { numerator: 100, denominator: 0 }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            action: Some(route::Action::Route(RouteAction {
                timeout: duration(2, 500_000_000),
                cluster_specifier: Some(route_action::ClusterSpecifier::WeightedClusters(
                    WeightedCluster { clusters: split.into(), ..Default::default() },
                )),
                ..Default::default()
            })),
            ..Default::default()
        },
        Route {
            r#match: Some(RouteMatch {
                path_specifier: Some(route_match::PathSpecifier::Path("/old".into())),
                ..Default::default()
            }),
            action: Some(route::Action::Redirect(RedirectAction {
                response_code: redirect_action::RedirectResponseCode::Found.into(),
                path_rewrite_specifier: Some(redirect_action::PathRewriteSpecifier::PathRedirect(
                    "/new".into(),
                )),
                ..Default::default()
            })),
            ..Default::default()
        },
    ]
}

#[test]
fn route_configuration_omits_default_values() {
    let configuration = RouteConfiguration {
        name: "80".into(),
        virtual_hosts: vec![VirtualHost {
            name: "reviews:80".into(),
            domains: vec!["reviews".into()],
            routes: split_and_redirect(),
            ..Default::default()
        }],
        ..Default::default()
    };

    assert_eq!(
        round_trip(&configuration),
        concat!(
            r#"{"name":"80","virtualHosts":[{"domains":["reviews"],"name":"reviews:80","routes":["#,
            r#"{"match":{"prefix":"","runtimeFraction":{"defaultValue":{"numerator":100}}},"#,
            r#""route":{"timeout":"2.500s","weightedClusters":{"clusters":[{"name":"v1","weight":90},{"name":"v2","weight":10}]}}},"#,
            r#"{"match":{"path":"/old"},"redirect":{"pathRedirect":"/new","responseCode":"FOUND"}}]}]}"#,
        )
    );
}

fn packed(value: &[u8], url: &str) -> String {
    any_to_json(url, value).unwrap().to_string()
}

#[test]
fn any_contains_well_known_types_under_value_and_unknown_ones_as_base64() {
    let wrapper = StringValue { value: "x".into() }.encode_to_vec();
    assert_eq!(
        packed(&wrapper, "type.googleapis.com/google.protobuf.StringValue"),
        r#"{"@type":"type.googleapis.com/google.protobuf.StringValue","value":"x"}"#
    );
    assert_eq!(
        packed(b"", "type.googleapis.com/google.protobuf.Struct"),
        r#"{"@type":"type.googleapis.com/google.protobuf.Struct","value":{}}"#
    );
    assert_eq!(
        packed(
            &[0xfb, 0xff],
            "type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"
        ),
        r#"{"@type":"type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig","value":"+/8="}"#
    );
    assert_eq!(packed(b"", ""), "{}");
}

#[test]
fn unknown_any_inside_a_message_does_not_hide_the_rest() {
    let listener = Listener {
        name: "l".into(),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "f".into(),
                config_type: Some(filter::ConfigType::TypedConfig(Any {
                    type_url: "type.googleapis.com/acme.Filter".into(),
                    value: vec![1],
                })),
            }],
            ..Default::default()
        }],
        ..Default::default()
    };

    assert_eq!(
        message_to_json(&listener).unwrap(),
        json!({
            "name": "l",
            "filterChains": [{ "filters": [{
                "name": "f",
                "typedConfig": { "@type": "type.googleapis.com/acme.Filter", "value": "AQ==" },
            }]}],
        })
    );
}

fn float(value: f32) -> Value {
    let bytes = envoy_types::pb::google::protobuf::FloatValue { value }.encode_to_vec();
    bytes_to_json("google.protobuf.FloatValue", &bytes).unwrap()
}

#[test]
fn numbers_keep_their_shortest_form() {
    let load_balancing = cluster::CommonLbConfig {
        healthy_panic_threshold: Some(envoy_types::pb::envoy::r#type::v3::Percent { value: 0.1 }),
        ..Default::default()
    };
    assert_eq!(round_trip(&load_balancing), r#"{"healthyPanicThreshold":{"value":0.1}}"#);
    assert_eq!(float(0.1), json!(0.1));
    assert_eq!(float(3.0), json!(3));
    assert_eq!(float(f32::NAN), json!("NaN"));
    assert_eq!(float(f32::NEG_INFINITY), json!("-Infinity"));
}

#[test]
fn enum_number_without_a_name_is_printed_as_the_number() {
    let cluster = Cluster { lb_policy: 4711, ..Default::default() };
    assert_eq!(round_trip(&cluster), r#"{"lbPolicy":4711}"#);
}

#[test]
fn errors_say_which_type_and_where() {
    let decode = any_to_json(&Cluster::type_url(), &[0xff]).unwrap_err();
    assert!(matches!(decode, Error::Decode { .. }), "{decode:?}");
    assert!(decode.to_string().starts_with("envoy.config.cluster.v3.Cluster: "), "{decode}");

    let endless = Cluster { connect_timeout: duration(i64::MAX, 0), ..Default::default() };
    assert_eq!(
        message_to_json(&endless).unwrap_err().to_string(),
        "google.protobuf.Duration: duration out of range"
    );

    let unknown = json_to_any("acme.Filter", &json!({})).unwrap_err();
    assert!(matches!(unknown, Error::UnknownType(name) if name == "acme.Filter"));

    let misspelt = json!({ "virtualHosts": [{ "name": "a", "domain": ["b"] }] });
    let error = json_to_any("envoy.config.route.v3.RouteConfiguration", &misspelt).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("envoy.config.route.v3.RouteConfiguration: virtualHosts[0]"),
        "{text}"
    );
    assert!(text.contains("domain"), "{text}");
}

#[test]
fn deeply_nested_any_is_rejected() {
    let mut any = Any::default();
    for _ in 0..100 {
        any = Any {
            type_url: "type.googleapis.com/google.protobuf.Any".into(),
            value: any.encode_to_vec(),
        };
    }
    let error = any_to_json(&any.type_url, &any.value).unwrap_err();
    assert!(matches!(error, Error::NoJsonForm { .. }), "{error:?}");
}

#[test]
fn json_with_snake_case_names_is_read_too() {
    let json =
        json!({ "name": "c", "connect_timeout": "0.25s", "typed_extension_protocol_options": {} });
    let bytes = json_to_any("envoy.config.cluster.v3.Cluster", &json).unwrap();
    let cluster = Cluster::decode(bytes.as_slice()).unwrap();
    assert_eq!(cluster.connect_timeout, duration(0, 250_000_000));
}

#[test]
fn descriptors_include_the_rules_of_protoc_gen_validate() {
    let pool = pool().unwrap();
    let rules = pool.get_extension_by_name("validate.rules").unwrap();
    let cluster = pool.get_message_by_name("envoy.config.cluster.v3.Cluster").unwrap();
    let options = cluster.get_field_by_name("connect_timeout").unwrap().options();
    let rule = options.get_extension(&rules);
    let duration = rule.as_message().unwrap().get_field_by_name("duration").unwrap();
    assert!(duration.as_message().unwrap().has_field_by_name("gt"));
}

#[test]
fn every_type_of_a_bootstrap_and_of_discovery_is_known() {
    for name in [
        "envoy.config.bootstrap.v3.Bootstrap",
        "envoy.service.discovery.v3.DiscoveryResponse",
        "envoy.service.discovery.v3.DeltaDiscoveryResponse",
        "envoy.service.runtime.v3.Runtime",
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        "envoy.extensions.clusters.dns.v3.DnsCluster",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
        "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
    ] {
        assert_eq!(bytes_to_json(name, b"").unwrap(), Value::Object(Default::default()), "{name}");
    }
}

#[test]
fn own_messages_show_every_field_without_presence_in_the_order_of_their_numbers() {
    let message = v1::Resource {
        r#type: v1::ResourceType::Cds.into(),
        state: v1::resource::State::Unspecified.into(),
        resource: Some(pack_any(Cluster { name: "web".into(), ..Default::default() })),
        ..Default::default()
    };
    let text = message_to_json(&message).unwrap().to_string();
    assert_eq!(
        text,
        r#"{"type":"CDS","name":"","version":"","state":"STATE_UNSPECIFIED","resource":{"@type":"type.googleapis.com/envoy.config.cluster.v3.Cluster","name":"web"}}"#
    );
    let proxies = v1::ListProxiesResponse {
        proxies: vec![v1::Proxy { acked: Some(0), ..Default::default() }],
        mesh_revision: 1 << 60,
        unanswered: vec![],
    };
    let json = message_to_json(&proxies).unwrap();
    assert_eq!(json["meshRevision"], "1152921504606846976");
    assert_eq!(
        (&json["proxies"][0]["acked"], json["proxies"][0].get("wanted")),
        (&"0".into(), None)
    );
    assert_eq!(json["proxies"][0]["rejected"], json!([]));
    assert_eq!(message_from_json::<v1::ListProxiesResponse>(&json).unwrap(), proxies);
}
