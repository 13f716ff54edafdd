use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message as _;
use prost_reflect::{DynamicMessage, ReflectMessage as _, Value as Field};
use serde_json::{Value as Json, json};

use super::compiled_rules;
use super::rules::Rule;
use super::wire::Value;
use super::{check, re2};
use crate::proto_json::{json_to_any, pool};

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";

/// The violations of a message as strings.
#[track_caller]
fn wrong(full_name: &str, json: Json) -> Vec<String> {
    let bytes = json_to_any(full_name, &json).unwrap();
    check(full_name, &bytes).iter().map(ToString::to_string).collect()
}

/// The paths of the violations of a message.
#[track_caller]
fn paths(full_name: &str, json: Json) -> Vec<String> {
    let bytes = json_to_any(full_name, &json).unwrap();
    check(full_name, &bytes).into_iter().map(|violation| violation.path).collect()
}

/// Every rule in the pool, named as in `validate.proto`, and how often it occurs.
fn rules_in_pool() -> BTreeMap<String, usize> {
    fn walk(prefix: &str, message: &DynamicMessage, out: &mut BTreeMap<String, usize>) {
        for (field, value) in message.fields() {
            let name = format!("{prefix}{}", field.name());
            match value {
                Field::Message(inner) if inner.descriptor().package_name() == "validate" => {
                    walk(&format!("{name}."), inner, out);
                }
                _ => *out.entry(name).or_default() += 1,
            }
        }
    }
    let pool = pool().unwrap();
    let [rules, required, disabled, ignored] =
        ["validate.rules", "validate.required", "validate.disabled", "validate.ignored"]
            .map(|name| pool.get_extension_by_name(name).unwrap());
    let mut out = BTreeMap::new();
    for message in pool.all_messages() {
        for oneof in message.oneofs().filter(|oneof| oneof.options().has_extension(&required)) {
            assert!(oneof.options().get_extension(&required).as_bool().unwrap());
            *out.entry("oneof".to_owned()).or_default() += 1;
        }
        for extension in [&disabled, &ignored] {
            assert!(
                !message.options().has_extension(extension),
                "{}: {}",
                message.full_name(),
                extension.full_name()
            );
        }
        for field in message.fields() {
            let options = field.options();
            if options.has_extension(&rules) {
                walk("", options.get_extension(&rules).as_message().unwrap(), &mut out);
            }
        }
    }
    out
}

#[test]
fn every_rule_in_envoys_protos_is_supported() {
    let rules = rules_in_pool();
    let names: Vec<_> = rules.keys().map(String::as_str).collect();
    let expected = "any.required bool.const bytes.max_len bytes.min_len double.gt double.gte double.lt double.lte \
        duration.gt duration.gte duration.lt duration.lte duration.required enum.defined_only enum.not_in float.gte \
        int32.gt map.keys.string.min_len map.min_pairs message.required message.skip oneof repeated.items.double.gt \
        repeated.items.enum.defined_only repeated.items.string.in repeated.items.string.max_bytes \
        repeated.items.string.min_len repeated.items.string.strict repeated.items.string.well_known_regex \
        repeated.items.uint32.gte repeated.items.uint32.lt repeated.items.uint32.lte repeated.max_items \
        repeated.min_items repeated.unique string.ignore_empty string.in string.max_bytes string.min_len \
        string.pattern string.prefix string.strict string.suffix string.well_known_regex uint32.gt uint32.gte \
        uint32.lt uint32.lte uint64.gt uint64.gte uint64.lt uint64.lte";
    assert_eq!(names, expected.split_ascii_whitespace().collect::<Vec<_>>());
    assert!(rules.values().sum::<usize>() > 600, "{rules:?}");
    let unsupported = &compiled_rules().unwrap().unsupported;
    assert!(unsupported.is_empty(), "{unsupported:#?}");
}

/// Compiles rules and checks values against them: each with whether it is valid.
#[track_caller]
fn rule(kind: &str, rules: Json, values: &[(Value<'_>, bool)]) {
    let field_rules = pool().unwrap().get_message_by_name("validate.FieldRules").unwrap();
    let descriptor = match field_rules.get_field_by_name(kind).unwrap().kind() {
        prost_reflect::Kind::Message(descriptor) => descriptor,
        other => panic!("{other:?}"),
    };
    let message = DynamicMessage::deserialize(descriptor, &rules).unwrap();
    let enumeration =
        pool().unwrap().get_enum_by_name("envoy.config.core.v3.HealthStatus").unwrap();
    let (rule, unknown) = Rule::compile(kind, &message, Some(&enumeration)).unwrap();
    assert!(unknown.is_empty(), "{unknown:?}");
    for (value, fine) in values {
        let wrong = rule.as_ref().and_then(|rule| rule.check(*value).unwrap());
        assert_eq!(
            wrong.is_none(),
            *fine,
            "{kind} {rules}: {value:?} {:?}",
            wrong.map(|wrong| wrong.expected)
        );
    }
}

fn ints(kind: &str, rules: Json, values: &[(i128, bool)]) {
    rule(
        kind,
        rules,
        &values.iter().map(|(value, fine)| (Value::Int(*value), *fine)).collect::<Vec<_>>(),
    );
}

fn floats(kind: &str, rules: Json, values: &[(f64, bool)]) {
    rule(
        kind,
        rules,
        &values.iter().map(|(value, fine)| (Value::Float(*value), *fine)).collect::<Vec<_>>(),
    );
}

fn byte_strings(rules: Json, values: &[(&[u8], bool)]) {
    rule(
        "bytes",
        rules,
        &values.iter().map(|(value, fine)| (Value::Bytes(value), *fine)).collect::<Vec<_>>(),
    );
}

fn texts(rules: Json, values: &[(&str, bool)]) {
    rule(
        "string",
        rules,
        &values
            .iter()
            .map(|(value, fine)| (Value::Bytes(value.as_bytes()), *fine))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn numbers() {
    for kind in [
        "int32", "int64", "uint32", "uint64", "sint32", "sint64", "fixed32", "fixed64", "sfixed32",
        "sfixed64",
    ] {
        ints(kind, json!({"const": 5}), &[(5, true), (0, false)]);
        ints(kind, json!({"lt": 5}), &[(4, true), (5, false)]);
        ints(kind, json!({"lte": 5}), &[(5, true), (6, false)]);
        ints(kind, json!({"gt": 5}), &[(6, true), (5, false)]);
        ints(kind, json!({"gte": 5}), &[(5, true), (4, false)]);
        ints(kind, json!({"gte": 5, "lt": 7}), &[(4, false), (5, true), (6, true), (7, false)]);
        ints(kind, json!({"gt": 7, "lte": 5}), &[(5, true), (6, false), (7, false), (8, true)]);
        ints(kind, json!({"in": [1, 2]}), &[(1, true), (3, false)]);
        ints(kind, json!({"not_in": [1, 2]}), &[(1, false), (3, true)]);
        ints(kind, json!({"gte": 5, "ignore_empty": true}), &[(0, true), (1, false)]);
    }
    for kind in ["float", "double"] {
        floats(
            kind,
            json!({"gte": 0.0, "lte": 100.0}),
            &[(0.0, true), (-0.5, false), (100.5, false), (f64::NAN, false)],
        );
        floats(kind, json!({"gt": 0.0, "lt": 1.0}), &[(0.0, false), (0.5, true), (1.0, false)]);
        floats(kind, json!({"const": 0.5}), &[(0.5, true), (0.25, false)]);
        floats(
            kind,
            json!({"in": [0.5], "ignore_empty": true}),
            &[(0.5, true), (0.25, false), (0.0, true)],
        );
        floats(kind, json!({"not_in": [0.5]}), &[(0.5, false), (0.25, true)]);
    }
    rule("bool", json!({"const": true}), &[(Value::Bool(true), true), (Value::Bool(false), false)]);
    rule("bool", json!({}), &[(Value::Bool(true), true)]);
}

#[test]
fn enums() {
    ints("enum", json!({"const": 2}), &[(2, true), (1, false)]);
    ints("enum", json!({"in": [1, 2]}), &[(2, true), (3, false)]);
    ints("enum", json!({"not_in": [0]}), &[(0, false), (99, true)]);
    ints("enum", json!({"defined_only": true}), &[(0, true), (1, true), (99, false), (-1, false)]);
}

#[test]
fn texts_by_content() {
    texts(json!({"const": "a"}), &[("a", true), ("b", false)]);
    texts(json!({"len": 2}), &[("éé", true), ("a", false), ("abc", false)]);
    texts(
        json!({"min_len": 2, "max_len": 3}),
        &[("é", false), ("éé", true), ("abc", true), ("abcd", false)],
    );
    texts(json!({"len_bytes": 2}), &[("é", true), ("a", false)]);
    texts(json!({"min_bytes": 2, "max_bytes": 3}), &[("a", false), ("é", true), ("éé", false)]);
    texts(json!({"pattern": "[ab]+"}), &[("abba", true), ("xab", false), ("", false)]);
    texts(json!({"prefix": "a", "suffix": "z"}), &[("az", true), ("a", false), ("z", false)]);
    texts(json!({"contains": "oo"}), &[("foo", true), ("fo", false)]);
    texts(json!({"not_contains": "oo"}), &[("foo", false), ("fo", true)]);
    texts(json!({"in": ["a", "b"]}), &[("a", true), ("c", false)]);
    texts(json!({"not_in": ["a", "b"]}), &[("a", false), ("c", true)]);
    texts(json!({"min_len": 2, "ignore_empty": true}), &[("", true), ("a", false)]);
}

#[test]
fn texts_by_form() {
    texts(
        json!({"email": true}),
        &[("a.b@c.d", true), ("a@", false), ("@b", false), ("a b@c", false)],
    );
    let long = "a".repeat(64);
    texts(
        json!({"hostname": true}),
        &[("a-b.c", true), ("a.", true), ("-a", false), ("a..b", false), (&long, false)],
    );
    texts(json!({"ip": true}), &[("1.2.3.4", true), ("::1", true), ("1.2.3", false)]);
    texts(json!({"ipv4": true}), &[("1.2.3.4", true), ("::1", false)]);
    texts(json!({"ipv6": true}), &[("::1", true), ("1.2.3.4", false)]);
    texts(json!({"address": true}), &[("::1", true), ("a.b", true), ("a_b", false)]);
    texts(
        json!({"uri": true}),
        &[("http://a/%20?b#c", true), ("/a", false), ("http://a b", false), ("a:%2", false)],
    );
    texts(json!({"uri_ref": true}), &[("/a", true), ("http://a", true), ("a b", false)]);
    let uuid = "01234567-89ab-cdef-0123-456789abcdef";
    texts(
        json!({"uuid": true}),
        &[(uuid, true), (&uuid[1..], false), (&uuid.replace('-', "0"), false)],
    );
    texts(
        json!({"well_known_regex": "HTTP_HEADER_NAME"}),
        &[
            ("x-a,b", true),
            (":path", true),
            ("", false),
            (":", false),
            ("a b", false),
            ("é", false),
        ],
    );
    texts(
        json!({"well_known_regex": "HTTP_HEADER_VALUE"}),
        &[("", true), ("a\tb é", true), ("a\u{1}", false), ("a\u{7f}", false), ("a\n", false)],
    );
    for name in ["HTTP_HEADER_NAME", "HTTP_HEADER_VALUE"] {
        let rules = json!({"well_known_regex": name, "strict": false});
        texts(
            rules,
            &[("a b\u{1}", true), ("", true), ("a\n", false), ("a\r", false), ("a\0", false)],
        );
    }
}

#[test]
fn octets() {
    byte_strings(json!({"const": "/w=="}), &[(b"\xff", true), (b"", false)]);
    byte_strings(json!({"len": 1}), &[(b"\xff", true), (b"", false)]);
    byte_strings(
        json!({"min_len": 1, "max_len": 2}),
        &[(b"", false), (b"\xff", true), (b"abc", false)],
    );
    byte_strings(json!({"prefix": "/w=="}), &[(b"\xffa", true), (b"a", false)]);
    byte_strings(json!({"suffix": "/w=="}), &[(b"a\xff", true), (b"a", false)]);
    byte_strings(json!({"contains": "/w=="}), &[(b"a\xffb", true), (b"a", false)]);
    byte_strings(json!({"in": ["/w=="]}), &[(b"\xff", true), (b"a", false)]);
    byte_strings(json!({"not_in": ["/w=="]}), &[(b"\xff", false), (b"a", true)]);
    byte_strings(json!({"pattern": "a*"}), &[(b"aa", true), (b"b", false), (b"\xff", false)]);
    byte_strings(json!({"ip": true}), &[(&[1; 4], true), (&[1; 16], true), (&[1; 5], false)]);
    byte_strings(json!({"ipv4": true}), &[(&[1; 4], true), (&[1; 16], false)]);
    byte_strings(json!({"ipv6": true}), &[(&[1; 16], true), (&[1; 4], false)]);
    byte_strings(json!({"len": 1, "ignore_empty": true}), &[(b"", true), (b"ab", false)]);
}

/// A `Duration` or a `Timestamp`.
fn encoded_time(seconds: i64, nanos: i32) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::int64::encode(1, &seconds, &mut out);
    prost::encoding::int32::encode(2, &nanos, &mut out);
    out
}

#[test]
fn times() {
    let (small, item, more) = (encoded_time(0, 5), encoded_time(1, 0), encoded_time(1, 1));
    let (small, item, more) = (Value::Bytes(&small), Value::Bytes(&item), Value::Bytes(&more));
    for (kind, second) in [("duration", "1s"), ("timestamp", "1970-01-01T00:00:01Z")] {
        rule(kind, json!({"const": second}), &[(item, true), (more, false)]);
        rule(kind, json!({"lt": second}), &[(small, true), (item, false)]);
        rule(kind, json!({"lte": second}), &[(item, true), (more, false)]);
        rule(kind, json!({"gt": second}), &[(more, true), (item, false)]);
        rule(kind, json!({"gte": second}), &[(item, true), (small, false)]);
    }
    rule("duration", json!({"in": ["1s"]}), &[(item, true), (more, false)]);
    rule("duration", json!({"not_in": ["1s"]}), &[(item, false), (more, true)]);
}

#[test]
fn type_urls() {
    let any = b"\x0a\x03a/b";
    let value = Value::Bytes(any);
    rule("any", json!({"in": ["a/b"]}), &[(value, true), (Value::Bytes(b""), false)]);
    rule("any", json!({"not_in": ["a/b"]}), &[(value, false), (Value::Bytes(b""), true)]);
}

#[test]
fn a_violation_has_path_found_and_expected() {
    let found = wrong(
        ROUTES,
        json!({"virtualHosts": [{"name": "a", "domains": []}, {"domains": ["b", ""]}]}),
    );
    assert_eq!(
        found,
        [
            "virtual_hosts[0].domains: found 0 items, expected at least 1",
            "virtual_hosts[1].name: found \"\", expected at least 1 characters, not 0",
        ]
    );
}

fn endpoint_at(address: &str) -> Json {
    json!({"endpoint": {"address": {"socketAddress": {"address": address, "portValue": 1}}}})
}

fn weighted_endpoint(weight: u32) -> Json {
    let mut endpoint = endpoint_at("1.1.1.1");
    endpoint["loadBalancingWeight"] = json!(weight);
    endpoint
}

/// The paths of the violations of an assignment with these localities.
#[track_caller]
fn locality_paths(localities: Json) -> Vec<String> {
    paths(ENDPOINTS, json!({"clusterName": "a", "endpoints": localities}))
}

/// A route configuration whose only route has this action.
fn routes_with_action(action: Json) -> Json {
    let route = json!({"match": {"prefix": "/"}, "route": action});
    json!({"virtualHosts": [{"name": "a", "domains": ["*"], "routes": [route]}]})
}

#[test]
fn presence() {
    // A wrapper: no rules while absent, those of the number when present.
    assert!(paths(ENDPOINTS, json!({"clusterName": "a"})).is_empty());
    assert_eq!(
        locality_paths(json!([{"lbEndpoints": [weighted_endpoint(0)]}])),
        ["endpoints[0].lb_endpoints[0].load_balancing_weight"]
    );
    assert!(locality_paths(json!([{"lbEndpoints": [weighted_endpoint(1)]}])).is_empty());
    // A required message, a required oneof, a member of a oneof that is not set, and one that is set to zero.
    assert_eq!(
        paths(ROUTES, json!({"virtualHosts": [{"name": "a", "domains": ["*"], "routes": [{}]}]})),
        ["virtual_hosts[0].routes[0].match", "virtual_hosts[0].routes[0].action"]
    );
    assert_eq!(
        paths(ROUTES, routes_with_action(json!({"cluster": ""}))),
        ["virtual_hosts[0].routes[0].route.cluster"]
    );
    assert_eq!(
        paths(ROUTES, routes_with_action(json!({}))),
        ["virtual_hosts[0].routes[0].route.cluster_specifier"]
    );
    assert!(paths(ROUTES, routes_with_action(json!({"cluster": "a"}))).is_empty());
    // A duration: no rules while absent.
    assert!(paths(CLUSTER, json!({"name": "a"})).is_empty());
    assert_eq!(paths(CLUSTER, json!({"name": "a", "connectTimeout": "0s"})), ["connect_timeout"]);
    assert_eq!(
        paths("envoy.config.core.v3.TypedExtensionConfig", json!({"name": "a"})),
        ["typed_config"],
        "any.required"
    );
}

#[test]
fn lists_and_maps() {
    let redirect = json!({"responseHeadersToCopy": ["a", "b", "a"]});
    assert_eq!(
        paths("envoy.config.route.v3.InternalRedirectPolicy", redirect),
        ["response_headers_to_copy[2]"]
    );
    let metadata = json!({"filterMetadata": {"": {}, "a": {}}});
    assert_eq!(paths("envoy.config.core.v3.Metadata", metadata), [r#"filter_metadata[""]"#]);
    assert_eq!(paths("xds.type.matcher.v3.Matcher.MatcherTree.MatchMap", json!({})), ["map"]);
    let ports = json!({"sourcePorts": [1, 0, 65536]});
    assert_eq!(
        paths("envoy.config.listener.v3.FilterChainMatch", ports),
        ["source_ports[1]", "source_ports[2]"],
        "packed"
    );
    let add = json!({"header": {"key": "a", "value": "b"}});
    let many = json!({"name": "a", "domains": ["*"], "requestHeadersToAdd": vec![add; 1001]});
    assert_eq!(paths("envoy.config.route.v3.VirtualHost", many), ["request_headers_to_add"]);
}

fn tcp_listener(stat_prefix: &str) -> Json {
    let filter = json!({"name": "tcp", "typedConfig": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "statPrefix": stat_prefix, "cluster": "a"}});
    json!({"name": "a", "filterChains": [{"filters": [filter]}]})
}

#[test]
fn an_any_is_checked_by_its_type() {
    assert_eq!(
        paths(LISTENER, tcp_listener("")),
        ["filter_chains[0].filters[0].typed_config.stat_prefix"]
    );
    assert!(paths(LISTENER, tcp_listener("a")).is_empty());
    // An unknown type is not checked.
    let any = b"\x0a\x06a/b.Cx\x12\x01\xff";
    assert!(check("google.protobuf.Any", any).is_empty());
    let any = [b"\x0a\x22a/envoy.config.cluster.v3.Cluster\x12\x01".as_slice(), b"\xff"].concat();
    let any = [&[0x0a, 33], &any[2..]].concat();
    assert_eq!(check("google.protobuf.Any", &any).len(), 1);
}

/// The bytes of several messages of one type, which make up one message.
fn concatenated<const N: usize>(full_name: &str, parts: [Json; N]) -> Vec<u8> {
    parts.map(|part| json_to_any(full_name, &part).unwrap()).concat()
}

#[test]
fn repeated_messages_are_merged_and_the_last_scalar_wins() {
    let parts = [json!({"name": ""}), json!({"connectTimeout": "1s"}), json!({"name": "a"})];
    assert!(check(CLUSTER, &concatenated(CLUSTER, parts)).is_empty());
    // Half of a `common_lb_config` in each part: a percentage of 101 stays wrong, and the rest of the message stays.
    let parts = [
        json!({"name": "a", "commonLbConfig": {"healthyPanicThreshold": {"value": 101.0}}}),
        json!({"name": "a", "commonLbConfig": {"ignoreNewHostsUntilFirstHc": true}}),
    ];
    let found = check(CLUSTER, &concatenated(CLUSTER, parts));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].path, "common_lb_config.healthy_panic_threshold.value");
    // Only the last member of a oneof counts, even if an earlier one is invalid.
    let action = "envoy.config.route.v3.RouteAction";
    let parts = [json!({"cluster": ""}), json!({"clusterHeader": "a"})];
    assert!(check(action, &concatenated(action, parts)).is_empty());
}

#[test]
fn malformed_bytes_are_a_violation() {
    for (bytes, why) in [
        (&b"\x0a\x05a"[..], "shorter than it says"),
        (b"\x0a", "a tag alone"),
        (b"\x00", "field 0"),
        (b"\x0b", "a group"),
        (b"\x08\x01", "a number where a text belongs"),
        (b"\x0a\x01\xff", "no UTF-8"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a varint that does not end"),
    ] {
        let found = check(CLUSTER, bytes);
        assert!(found.iter().any(|item| item.found == "malformed bytes"), "{why}: {found:?}");
    }
    assert!(check("no.such.Type", b"")[0].found.contains("no.such.Type"));
    // An unknown field is none of its business.
    assert!(check("google.protobuf.Duration", b"\xfa\x3f\x01a").is_empty());
}

#[test]
fn nesting_is_limited() {
    let mut predicate =
        json_to_any("envoy.config.common.matcher.v3.MatchPredicate", &json!({"anyMatch": true}))
            .unwrap();
    for _ in 0..150 {
        let mut outer = vec![0x1a];
        prost::encoding::encode_varint(predicate.len() as u64, &mut outer);
        outer.extend(&predicate);
        predicate = outer;
    }
    let found = check("envoy.config.common.matcher.v3.MatchPredicate", &predicate);
    assert!(found.iter().any(|item| item.found.starts_with("more than")), "{found:?}");
    // The number of violations is limited.
    let hosts = vec![json!({}); 1000];
    assert_eq!(wrong(ROUTES, json!({"virtualHosts": hosts})).len(), super::MAX_VIOLATIONS);
}

#[test]
fn a_dynamic_message() {
    let descriptor = pool().unwrap().get_message_by_name(CLUSTER).unwrap();
    let found = check(CLUSTER, &DynamicMessage::new(descriptor).encode_to_vec());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].path, "name");
}

/// The paths of the violations of a virtual host that adds a header with this value.
fn header_paths(value: &str) -> Vec<String> {
    let add = json!([{"header": {"key": "a", "value": value}}]);
    paths(
        "envoy.config.route.v3.VirtualHost",
        json!({"name": "a", "domains": ["a"], "requestHeadersToAdd": add}),
    )
}

#[test]
fn header_values_with_a_percent_sign() {
    for fine in
        ["", "a", "100%%", "%REQ(x)%", "%REQ(x?y):5%", "%DURATION%%PROTOCOL%", "%START_TIME(%s)%"]
    {
        assert!(header_paths(fine).is_empty(), "{fine}");
    }
    for rejected in
        ["%", "100%", "%a%", "%A%", "%PATH", "%REQ(b%", "%REQ(b):x%", "%REQ%", "%%%", "% %"]
    {
        assert_eq!(
            header_paths(rejected),
            ["request_headers_to_add[0].header.value"],
            "{rejected}"
        );
    }
}

/// A locality of this weight, whose endpoints have these weights.
fn locality(weight: u32, endpoints: &[u32]) -> Json {
    let endpoints: Vec<Json> = endpoints.iter().map(|weight| weighted_endpoint(*weight)).collect();
    json!({"loadBalancingWeight": weight, "lbEndpoints": endpoints})
}

#[test]
fn sums_of_endpoint_weights() {
    assert!(locality_paths(json!([locality(1, &[u32::MAX - 1, 1]), locality(1, &[1])])).is_empty());
    assert_eq!(locality_paths(json!([locality(1, &[u32::MAX, 1])])), ["endpoints[0].lb_endpoints"]);
    assert_eq!(
        locality_paths(json!([locality(u32::MAX, &[1]), locality(1, &[1])])),
        ["endpoints[1].load_balancing_weight"]
    );
}

#[test]
fn endpoints_need_addresses() {
    let address = "endpoints[0].lb_endpoints[0].endpoint.address";
    assert_eq!(locality_paths(json!([{"lbEndpoints": [{}]}])), [address]);
    assert_eq!(
        locality_paths(json!([{"lbEndpoints": [endpoint_at("a.b")]}])),
        [format!("{address}.socket_address.address")]
    );
    assert!(locality_paths(json!([{"lbEndpoints": [endpoint_at("fe80::1%eth0")]}])).is_empty());
}

#[test]
fn regular_expression_errors_are_specific() {
    for (pattern, reason) in [
        ("(?=a)", "look-ahead"),
        ("(?<!a)", "look-behind"),
        ("(?>a)", "atomic"),
        (r"(a)\1", "backreference"),
        ("a*+", "directly after another"),
        ("a{1001}", "more than 1000"),
        ("(a", "missing )"),
    ] {
        let found = re2::check(pattern).unwrap_err();
        assert!(found.contains(reason), "{pattern}: {found}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
        let all: Vec<_> = compiled_rules().unwrap().messages.iter().filter(|message_rules| message_rules.active).collect();
        check(&at.get(&all).name, &bytes);
        for name in [CLUSTER, ENDPOINTS, LISTENER, ROUTES] {
            check(name, &bytes);
        }
    }

    /// Uses valid field numbers and wire types, so that a walk goes deeper than with random bytes.
    #[test]
    fn no_fields_make_it_panic(
        steps in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 0_u8..4), 1..40),
    ) {
        let all: Vec<_> = compiled_rules().unwrap().messages.iter().filter(|message_rules| !message_rules.fields.is_empty()).collect();
        let mut bytes = Vec::new();
        for (at, bits, shape) in steps {
            let message_rules = at.get(&all);
            let field = at.get(&message_rules.fields);
            let mut outer = Vec::new();
            prost::encoding::encode_varint(u64::from(field.number) << 3 | [0, 1, 2, 5][usize::from(shape)], &mut outer);
            match shape {
                0 => prost::encoding::encode_varint(bits, &mut outer),
                1 => outer.extend(bits.to_le_bytes()),
                2 => {
                    prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
                    outer.extend(&bytes);
                }
                _ => outer.extend((bits as u32).to_le_bytes()),
            }
            check(&message_rules.name, &outer);
            bytes = if bits % 2 == 0 { outer } else { [bytes, outer].concat() };
        }
    }

    #[test]
    fn no_pattern_makes_it_panic(pattern in r"[a-c0-9\\(){}\[\]^$*+?|,:<>=!P.QEpxé-]{0,24}") {
        // Everything between \Q and \E is literal unless it contains \E.
        let quoted = format!(r"\Q{}\E", pattern.replace('\\', "/"));
        prop_assert_eq!(re2::check(&quoted), Ok(()));
        // What is valid alone is valid in a group.
        if re2::check(&pattern).is_ok() && !pattern.contains(r"\Q") {
            prop_assert_eq!(re2::check(&format!("(?:{pattern})")), Ok(()));
        }
    }
}
