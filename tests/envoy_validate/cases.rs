//! Messages that a real Envoy accepts or rejects.

use serde_json::{Value, json};

use super::{CLUSTER, LISTENER};

const MOST: u32 = u32::MAX;

pub(super) fn cases() -> Vec<Case> {
    [
        virtual_hosts(),
        weighted_clusters(),
        headers(),
        route_actions(),
        other_routes(),
        localities(),
        load_balancers(),
        outlier_detection(),
        clusters(),
        filter_chains(),
        chains_by_address(),
        chains_for_a_matcher(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A test case: a cluster or a listener, and whether it is valid.
pub(super) struct Case {
    pub name: String,
    pub kind: &'static str,
    pub resource: Value,
    pub fine: bool,
}

fn cluster(name: &str, fine: bool, fields: Value) -> Case {
    let mut resource = json!({"name": "c", "connect_timeout": "1s", "type": "STATIC"});
    merge(&mut resource, fields);
    Case { name: name.to_owned(), kind: CLUSTER, resource, fine }
}

fn listener(name: &str, fine: bool, fields: Value) -> Case {
    let mut resource = json!({"name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}});
    merge(&mut resource, fields);
    Case { name: name.to_owned(), kind: LISTENER, resource, fine }
}

fn merge(into: &mut Value, fields: Value) {
    let Value::Object(fields) = fields else { panic!("{fields} is not an object") };
    into.as_object_mut().unwrap().extend(fields);
}

pub(super) fn routes(name: &str, fine: bool, hosts: Value) -> Case {
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "route_config": {"name": "r", "virtual_hosts": hosts},
        "http_filters": [{"name": "router", "typed_config":
            {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    });
    listener(
        name,
        fine,
        json!({"filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}]}),
    )
}

pub(super) fn route(name: &str, fine: bool, fields: Value) -> Case {
    let mut route = json!({"match": {"prefix": "/"}});
    merge(&mut route, fields);
    routes(name, fine, json!([{"name": "v", "domains": ["*"], "routes": [route]}]))
}

fn action(name: &str, fine: bool, fields: Value) -> Case {
    route(name, fine, json!({"route": fields}))
}

fn header(name: &str, fine: bool, key: &str, value: &str) -> Case {
    let add = json!([{"header": {"key": key, "value": value}}]);
    route(name, fine, json!({"route": {"cluster": "c"}, "request_headers_to_add": add}))
}

fn chains(name: &str, fine: bool, matches: &[Value]) -> Case {
    let tcp = json!({"name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "t", "cluster": "c"}});
    let chains = matches.iter().map(
        |request_match| json!({"filter_chain_match": request_match, "filters": [tcp.clone()]}),
    );
    listener(name, fine, json!({"filter_chains": chains.collect::<Vec<_>>()}))
}

fn named(name: &str, fine: bool, names: &[&str]) -> Case {
    let mut case = chains(name, fine, &vec![json!({}); names.len()]);
    for (at, name) in names.iter().enumerate() {
        case.resource["filter_chains"][at]["name"] = json!(name);
    }
    case.resource["filter_chain_matcher"] = json!({"on_no_match": {"action": {"name": "action", "typed_config":
        {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "a"}}}});
    case
}

fn endpoints(name: &str, fine: bool, localities: Value) -> Case {
    cluster(name, fine, json!({"load_assignment": {"cluster_name": "c", "endpoints": localities}}))
}

fn endpoint(address: &str) -> Value {
    json!({"endpoint": {"address": {"socket_address": {"address": address, "port_value": 80}}}})
}

fn weights(weights: &[u32]) -> Value {
    let clusters: Vec<_> =
        weights.iter().map(|weight| json!({"name": "c", "weight": weight})).collect();
    json!({"weighted_clusters": {"clusters": clusters}})
}

fn virtual_hosts() -> Vec<Case> {
    let host = |name: &str, domains: &[&str]| json!({"name": name, "domains": domains});
    vec![
        routes("virtual hosts of one name", true, json!([host("a", &["x"]), host("a", &["y"])])),
        routes("a domain twice", false, json!([host("a", &["x"]), host("b", &["X"])])),
        routes("a domain twice in one host", false, json!([host("a", &["x", "x"])])),
        routes("two catch-alls", false, json!([host("a", &["*"]), host("b", &["*"])])),
        routes("wildcards on either side", true, json!([host("a", &["x*", "*x", "a*b"])])),
        routes("no domain", false, json!([host("a", &[])])),
        routes("no name", false, json!([host("", &["*"])])),
        routes(
            "a matcher together with routes",
            false,
            json!([{"name": "a", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c"}}], "matcher": {}}]),
        ),
    ]
}

fn weighted_clusters() -> Vec<Case> {
    vec![
        action("weights of 0", false, weights(&[0, 0])),
        action("one weight of 0", true, weights(&[0, 1])),
        action("weights over 32 bits", false, weights(&[MOST, 1])),
        action("weights of 32 bits", true, weights(&[MOST - 1, 1])),
        action("no weight", false, json!({"weighted_clusters": {"clusters": [{"name": "c"}]}})),
        action(
            "weight without a name",
            false,
            json!({"weighted_clusters": {"clusters": [{"weight": 1}]}}),
        ),
        action(
            "a header of a weighted cluster",
            false,
            json!({"weighted_clusters": {"clusters": [{"name": "c", "weight": 1,
                "response_headers_to_remove": ["host"]}]}}),
        ),
    ]
}

fn headers() -> Vec<Case> {
    vec![
        header("header", true, "a", "b c\u{1}"),
        header("header name with a space", true, "a b", "c"),
        header("header name with a line end", false, "a\nb", "c"),
        header("header value with a line end", false, "a", "b\nc"),
        header("header value with a percent sign", false, "a", "100%"),
        header("header value with two", true, "a", "100%%"),
        header(
            "header value with a command",
            true,
            "a",
            "%REQ(x)% and %DOWNSTREAM_REMOTE_ADDRESS%",
        ),
        header("header value with a command in lower case", false, "a", "%foo%"),
        header("header value with a command that nobody knows", false, "a", "%FOO%"),
        header("header value with a command without what it needs", false, "a", "%REQ%"),
        header("header value with a command with a length too many", false, "a", "%HOSTNAME:3%"),
        header("header :authority", false, ":authority", "a"),
        header("header Host", false, "Host", "a"),
        route(
            "removal of host",
            false,
            json!({"route": {"cluster": "c"}, "request_headers_to_remove": ["hoSt"]}),
        ),
        route(
            "removal of :path",
            false,
            json!({"route": {"cluster": "c"}, "response_headers_to_remove": [":path"]}),
        ),
    ]
}

fn route_actions() -> Vec<Case> {
    let retry = |base: &str, max: &str| json!({"cluster": "c", "retry_policy": {"retry_back_off": {"base_interval": base, "max_interval": max}}});
    vec![
        action("back-off", true, retry("1s", "1s")),
        action("back-off that shrinks", false, retry("2s", "1s")),
        action("back-off that shrinks within a millisecond", true, retry("0.0019s", "0.0010s")),
        action(
            "mirror to nothing",
            false,
            json!({"cluster": "c", "request_mirror_policies": [{}]}),
        ),
        action(
            "mirror",
            true,
            json!({"cluster": "c", "request_mirror_policies": [{"cluster": "c"}]}),
        ),
        action(
            "two rewrites",
            false,
            json!({"cluster": "c", "prefix_rewrite": "/a", "regex_rewrite": {"pattern": {"regex": "a"}}}),
        ),
        action(
            "an upgrade twice",
            false,
            json!({"cluster": "c", "upgrade_configs": [{"upgrade_type": "a"}, {"upgrade_type": "A"}]}),
        ),
        action("a negative timeout", false, json!({"cluster": "c", "timeout": "-1s"})),
        action("no timeout", true, json!({"cluster": "c", "timeout": "0s"})),
        action(
            "redirect that copies host",
            false,
            json!({"cluster": "c", "internal_redirect_policy": {"response_headers_to_copy": ["host"]}}),
        ),
    ]
}

/// Matches, faults, and answers without a cluster.
fn other_routes() -> Vec<Case> {
    let direct = |size: usize| json!({"direct_response": {"status": 200, "body": {"inline_string": "x".repeat(size)}}});
    vec![
        route("direct response of 4097 bytes", false, direct(4097)),
        route("direct response of 4096 bytes", true, direct(4096)),
        route(
            "direct response with status 700",
            false,
            json!({"direct_response": {"status": 700}}),
        ),
        route("no action", false, json!({})),
        route(
            "path prefix",
            true,
            json!({"match": {"path_separated_prefix": "/a"}, "route": {"cluster": "c"}}),
        ),
        route(
            "path prefix with /",
            false,
            json!({"match": {"path_separated_prefix": "/a/"}, "route": {"cluster": "c"}}),
        ),
        route(
            "fault with status 700",
            false,
            json!({"route": {"cluster": "c"}, "typed_per_filter_config": {
                "envoy.filters.http.fault": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
                    "abort": {"http_status": 700, "percentage": {"numerator": 1}}}}}),
        ),
    ]
}

fn localities() -> Vec<Case> {
    vec![
        endpoints(
            "priorities with gaps",
            true,
            json!([{"priority": 3, "lb_endpoints": [endpoint("1.1.1.1")]}]),
        ),
        endpoints(
            "priority 129",
            false,
            json!([{"priority": 129, "lb_endpoints": [endpoint("1.1.1.1")]}]),
        ),
        endpoints(
            "an endpoint twice",
            true,
            json!([{"lb_endpoints": [endpoint("1.1.1.1"), endpoint("1.1.1.1")]}]),
        ),
        endpoints(
            "a locality twice",
            true,
            json!([{"lb_endpoints": [endpoint("1.1.1.1")]}, {"lb_endpoints": [endpoint("1.1.1.2")]}]),
        ),
        endpoints(
            "a name for an address",
            false,
            json!([{"lb_endpoints": [endpoint("a.example")]}]),
        ),
        endpoints("no address", false, json!([{"lb_endpoints": [{}]}])),
    ]
}

fn load_balancers() -> Vec<Case> {
    let ring = |fields: Value| json!({"lb_policy": "RING_HASH", "ring_hash_lb_config": fields});
    let maglev =
        |size: u32| json!({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": size}});
    let policy = |name: &str, mut fields: Value| {
        let kind = if name == "maglev" { "Maglev" } else { "RingHash" };
        merge(
            &mut fields,
            json!({"@type": format!("type.googleapis.com/envoy.extensions.load_balancing_policies.{name}.v3.{kind}")}),
        );
        let extension = json!({"name": format!("envoy.load_balancing_policies.{name}"), "typed_config": fields});
        json!({"load_balancing_policy": {"policies": [{"typed_extension_config": extension}]}})
    };
    vec![
        cluster("ring", true, ring(json!({"minimum_ring_size": 10, "maximum_ring_size": 10}))),
        cluster(
            "ring with swapped ends",
            false,
            ring(json!({"minimum_ring_size": 100, "maximum_ring_size": 10})),
        ),
        cluster("ring below the default", false, ring(json!({"maximum_ring_size": 100}))),
        cluster("ring above the default", false, ring(json!({"minimum_ring_size": 8_388_609}))),
        cluster("maglev", true, maglev(5_000_011)),
        cluster("maglev without a prime", false, maglev(100)),
        cluster("maglev with too large a prime", false, maglev(5_000_017)),
        cluster(
            "a cluster's own policy that it lacks",
            false,
            json!({"lb_policy": "CLUSTER_PROVIDED"}),
        ),
        cluster(
            "a ring as an extension",
            true,
            policy("ring_hash", json!({"minimum_ring_size": 10})),
        ),
        cluster(
            "a ring as an extension with swapped ends",
            false,
            policy("ring_hash", json!({"maximum_ring_size": 100})),
        ),
        cluster("maglev as an extension", true, policy("maglev", json!({"table_size": 101}))),
        cluster(
            "maglev as an extension without a prime",
            false,
            policy("maglev", json!({"table_size": 100})),
        ),
        cluster(
            "a policy of another's",
            true,
            json!({"ring_hash_lb_config": {"minimum_ring_size": 1}}),
        ),
    ]
}

fn outlier_detection() -> Vec<Case> {
    vec![
        cluster(
            "ejection of 101 %",
            false,
            json!({"outlier_detection": {"max_ejection_percent": 101}}),
        ),
        cluster(
            "ejection that is too long",
            false,
            json!({"outlier_detection": {"base_ejection_time": "10s", "max_ejection_time": "1s"}}),
        ),
        cluster(
            "long ejection",
            true,
            json!({"outlier_detection": {"base_ejection_time": "400s"}}),
        ),
        cluster(
            "ejection that ends before its default beginning",
            false,
            json!({"outlier_detection": {"max_ejection_time": "10s"}}),
        ),
    ]
}

fn clusters() -> Vec<Case> {
    let dns = |hosts: &[&str]| {
        let hosts: Vec<_> = hosts.iter().map(|host| endpoint(host)).collect();
        json!({"type": "LOGICAL_DNS", "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": hosts}]}})
    };
    vec![
        cluster("no name", false, json!({"name": ""})),
        cluster("connect timeout 0", false, json!({"connect_timeout": "0s"})),
        cluster(
            "original destination",
            true,
            json!({"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}),
        ),
        cluster("original destination in turn", false, json!({"type": "ORIGINAL_DST"})),
        cluster("logical DNS without a host", false, json!({"type": "LOGICAL_DNS"})),
        cluster("logical DNS", true, dns(&["a.example"])),
        cluster("logical DNS with two hosts", false, dns(&["a.example", "b.example"])),
        cluster(
            "original destination with endpoints",
            false,
            json!({"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "load_assignment": {"cluster_name": "c"}}),
        ),
    ]
}

fn filter_chains() -> Vec<Case> {
    let tls = |protocols: &[&str], ports: &[u16]| {
        json!({"server_names": ["a"], "transport_protocol": "tls", "application_protocols": protocols,
            "source_type": "EXTERNAL", "source_ports": ports})
    };
    vec![
        listener("no filter chain", false, json!({})),
        chains("two chains by everything", true, &[tls(&["h2"], &[1, 2]), tls(&["h2"], &[3])]),
        chains(
            "two chains by nearly everything",
            false,
            &[tls(&["h2"], &[1, 2]), tls(&["h2", "x"], &[2])],
        ),
        chains("one chain", true, &[json!({})]),
        chains("two chains for everything", false, &[json!({}), json!({})]),
        chains(
            "two chains by port",
            true,
            &[json!({"destination_port": 1}), json!({"destination_port": 2})],
        ),
        chains(
            "two chains of one port",
            false,
            &[json!({"destination_port": 1}), json!({"destination_port": 1})],
        ),
        chains(
            "two chains that share a name",
            false,
            &[json!({"server_names": ["a", "b"]}), json!({"server_names": ["B"]})],
        ),
        chains("a partial wildcard", false, &[json!({"server_names": ["a*"]})]),
        chains("a wildcard alone", false, &[json!({"server_names": ["*"]})]),
        chains("a wildcard", true, &[json!({"server_names": ["*.a"]})]),
        chains("port 0 as a source", false, &[json!({"source_ports": [0]})]),
    ]
}

fn chains_by_address() -> Vec<Case> {
    let range = |ip: &str, length: u32| json!({"prefix_ranges": [{"address_prefix": ip, "prefix_len": length}]});
    vec![
        chains("IPv6 ranges", false, &[range("fd00::1", 16), range("fd00::2", 16)]),
        chains("a suffix", false, &[json!({"suffix_len": 1})]),
        chains("two chains of one range", false, &[range("10.0.0.0", 8), range("10.1.0.0", 8)]),
        chains("two chains of two ranges", true, &[range("10.0.0.0", 8), range("10.1.0.0", 16)]),
        chains("everything and every address", true, &[json!({}), range("0.0.0.0", 0)]),
        chains("a range that is none", false, &[range("a", 8)]),
        chains("a long range", true, &[range("10.0.0.0", 33)]),
    ]
}

fn chains_for_a_matcher() -> Vec<Case> {
    vec![
        named("chains for a matcher", true, &["a", "b"]),
        named("chains for a matcher of one name", false, &["a", "a"]),
        named("a chain for a matcher without a name", false, &[""]),
    ]
}
