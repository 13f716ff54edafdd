//! The listener for redirected inbound connections: a filter chain for each way in which a port takes connections.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst,
    tls_inspector::v3::TlsInspector,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::r#type::v3::Int32Range;

use super::listener::{
    HTTP, additional_addresses, black_hole, filter, http_manager, listener_filter, tcp,
};
use super::listener_plan::any_address;
use super::tls::{self, MESH_ANY, MESH_BYTES, MESH_HTTP};
use super::{
    BLACK_HOLE, INBOUND_PASSTHROUGH, INBOUND_PORT, bool_value, inbound_cluster_name, route_match,
    seconds, socket_address, u32_value,
};
use crate::mesh::{Accepts, Certificates, Families, InboundPort, Protocol, Scope};

/// What the TLS inspector says of a connection.
const TLS: &str = "tls";
const RAW: &str = "raw_buffer";

/// The listener for redirected inbound connections: chains for each port of a service, and for everything else.
pub(crate) fn virtual_inbound(scope: &Scope, trust_domain: &str) -> pb::Listener {
    let mut ports: Vec<Taken<'_>> = vec![Taken::any(scope, None)];
    // Its own port leads nowhere, whatever a service or a policy says of it.
    let of_services = || scope.inbound.iter().filter(|port| port.target != INBOUND_PORT);
    let others =
        scope.peers.ports.keys().filter(|port| {
            **port != INBOUND_PORT && of_services().all(|known| known.target != **port)
        });
    ports.extend(others.map(|port| Taken::any(scope, Some(*port))));
    ports.extend(of_services().map(|port| Taken::port(scope, port)));

    let mut chains = vec![black_hole("virtualInbound-blackhole", INBOUND_PORT)];
    let socket = tls::inbound(trust_domain, scope.certificates);
    chains.extend(ports.iter().flat_map(|port| port.chains(&socket)));

    pb::Listener {
        name: "virtualInbound".to_owned(),
        address: Some(socket_address(any_address(scope.families), INBOUND_PORT)),
        additional_addresses: additional_addresses(scope.families == Families::Both, INBOUND_PORT),
        traffic_direction: core::TrafficDirection::Inbound as i32,
        filter_chains: chains,
        listener_filters: inspectors(&ports),
        listener_filters_timeout: seconds(0),
        continue_on_listener_filters_timeout: true,
        max_connections_to_accept_per_socket_event: u32_value(1),
        ..Default::default()
    }
}

/// How connections to one port of the workload, or to every other port, are taken.
struct Taken<'a> {
    name: String,
    http_name: String,
    /// `None` for every port without chains of its own.
    number: Option<u16>,
    protocol: Protocol,
    cluster: String,
    /// Where HTTP goes by statistics and route names.
    stat_prefix: String,
    virtual_host: String,
    accepts: Accepts,
    scope: &'a Scope,
}

impl<'a> Taken<'a> {
    /// A port of a service.
    fn port(scope: &'a Scope, port: &InboundPort) -> Self {
        let name = format!("0.0.0.0_{}", port.target);
        Self {
            http_name: name.clone(),
            number: Some(port.target),
            protocol: port.protocol,
            cluster: inbound_cluster_name(port.target),
            stat_prefix: format!("inbound_{name};"),
            virtual_host: format!("inbound|http|{}", port.port),
            accepts: scope.peers.at(port.target),
            name,
            scope,
        }
    }

    /// A port that belongs to no service, or all of them.
    fn any(scope: &'a Scope, number: Option<u16>) -> Self {
        let suffix = number.map(|number| format!("-{number}")).unwrap_or_default();
        Self {
            name: format!("virtualInbound{suffix}"),
            http_name: format!("virtualInbound-catchall-http{suffix}"),
            number,
            protocol: Protocol::Unknown,
            cluster: INBOUND_PASSTHROUGH.to_owned(),
            stat_prefix: "InboundPassthroughCluster;".to_owned(),
            virtual_host: "inbound|http|0".to_owned(),
            accepts: number.map_or(scope.peers.default, |number| scope.peers.at(number)),
            scope,
        }
    }

    /// Whether connections in mutual TLS are decrypted.
    fn takes_mutual_tls(&self) -> bool {
        self.scope.certificates != Certificates::None && self.accepts != Accepts::PlainText
    }

    /// Whether connections in plain text are taken.
    fn takes_plain_text(&self) -> bool {
        self.accepts != Accepts::MutualTls
    }

    /// The chains, those for mutual TLS with this transport socket.
    fn chains(&self, mesh: &core::TransportSocket) -> Vec<pb::FilterChain> {
        if !self.takes_plain_text() && !self.takes_mutual_tls() {
            // Without certificates it can tell nobody from anybody.
            return vec![self.chain(&self.name, self.matches("", &[]), tcp(BLACK_HOLE))];
        }
        let mut chains = Vec::new();
        if self.takes_mutual_tls() {
            let encrypted = self.encrypted().into_iter();
            chains.extend(
                encrypted
                    .map(|chain| pb::FilterChain { transport_socket: Some(mesh.clone()), ..chain }),
            );
        }
        if self.takes_plain_text() {
            chains.extend(self.plain());
        }
        chains
    }

    /// The chains for mutual TLS. Where plain text is taken as well, TLS that does not come from the mesh is the
    /// application's own.
    fn encrypted(&self) -> Vec<pb::FilterChain> {
        let both: &[&str] = if self.takes_plain_text() { &MESH_ANY } else { &[] };
        match self.protocol {
            Protocol::Unknown => {
                let bytes: &[&str] = if self.takes_plain_text() { &MESH_BYTES } else { &[] };
                vec![
                    self.chain(&self.http_name, self.matches(TLS, &MESH_HTTP), self.http()),
                    self.chain(&self.name, self.matches(TLS, bytes), tcp(&self.cluster)),
                ]
            }
            protocol if protocol.is_http() => {
                vec![self.chain(&self.name, self.matches(TLS, both), self.http())]
            }
            _ => vec![self.chain(&self.name, self.matches(TLS, both), tcp(&self.cluster))],
        }
    }

    /// The chains for everything that is not mutual TLS.
    fn plain(&self) -> Vec<pb::FilterChain> {
        let bytes =
            |transport| self.chain(&self.name, self.matches(transport, &[]), tcp(&self.cluster));
        match self.protocol {
            Protocol::Unknown => {
                let looks_like_http = self.matches(RAW, &["http/1.1", "h2c"]);
                vec![
                    self.chain(&self.http_name, looks_like_http, self.http()),
                    bytes(RAW),
                    bytes(TLS),
                ]
            }
            protocol if protocol.is_http() => {
                vec![self.chain(&self.name, self.matches(RAW, &[]), self.http())]
            }
            _ => vec![bytes(TLS), bytes(RAW)],
        }
    }

    fn chain(
        &self,
        name: &str,
        matches: pb::FilterChainMatch,
        filter: pb::Filter,
    ) -> pb::FilterChain {
        pb::FilterChain {
            name: name.to_owned(),
            filter_chain_match: Some(matches),
            filters: vec![filter],
            ..Default::default()
        }
    }

    /// Connections to this port over a transport (empty for any) whose clients offer one of these protocols (none for
    /// any).
    fn matches(&self, transport: &str, protocols: &[&str]) -> pb::FilterChainMatch {
        pb::FilterChainMatch {
            application_protocols: protocols.iter().map(|name| (*name).to_owned()).collect(),
            transport_protocol: transport.to_owned(),
            destination_port: self.number.and_then(|number| u32_value(u32::from(number))),
            ..Default::default()
        }
    }

    /// HTTP: every request goes to the cluster.
    fn http(&self) -> pb::Filter {
        let Self { stat_prefix, cluster, virtual_host, protocol, .. } = self;
        // A request that was reset before it was sent cannot have had an effect; gRPC clients retry by themselves.
        let retry = (!protocol.is_grpc()).then(|| route::RetryPolicy {
            retry_on: "reset-before-request".to_owned(),
            num_retries: u32_value(2),
            ..Default::default()
        });
        let action = route::RouteAction {
            timeout: seconds(0),
            max_stream_duration: Some(route::route_action::MaxStreamDuration {
                max_stream_duration: seconds(0),
                grpc_timeout_header_max: seconds(0),
                ..Default::default()
            }),
            retry_policy: retry,
            cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(
                cluster.clone(),
            )),
            ..Default::default()
        };
        let routes = route::RouteConfiguration {
            name: cluster.clone(),
            validate_clusters: bool_value(false),
            virtual_hosts: vec![route::VirtualHost {
                name: virtual_host.clone(),
                domains: vec!["*".to_owned()],
                routes: vec![route::Route {
                    name: "default".to_owned(),
                    r#match: Some(route_match::translate(None)),
                    action: Some(route::route::Action::Route(action)),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        };
        let routes = hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes);
        let grpc_web = *protocol == Protocol::GrpcWeb;
        filter(HTTP, &http_manager(stat_prefix.clone(), routes, Some(*protocol), grpc_web))
    }
}

/// Finds out what arrives, where that makes a difference: an inspector waits for the first bytes of the client, so a port
/// where the server speaks first must not have one.
fn inspectors(ports: &[Taken<'_>]) -> Vec<pb::ListenerFilter> {
    let of_services = || ports.iter().filter(|port| port.number.is_some());
    let known = of_services().filter(|port| port.protocol != Protocol::Unknown);
    let not_http: Vec<u16> = known.filter_map(|port| port.number).chain([INBOUND_PORT]).collect();
    let bytes =
        of_services().filter(|port| port.protocol == Protocol::Tcp && !port.takes_mutual_tls());
    let not_tls: Vec<u16> = bytes.filter_map(|port| port.number).chain([INBOUND_PORT]).collect();
    let tls = TlsInspector { initial_read_buffer_size: u32_value(512), ..Default::default() };
    vec![
        listener_filter("envoy.filters.listener.original_dst", &OriginalDst::default(), None),
        listener_filter("envoy.filters.listener.tls_inspector", &tls, disabled_at(&not_tls)),
        listener_filter(
            "envoy.filters.listener.http_inspector",
            &HttpInspector::default(),
            disabled_at(&not_http),
        ),
    ]
}

fn disabled_at(ports: &[u16]) -> Option<pb::ListenerFilterChainMatchPredicate> {
    use pb::listener_filter_chain_match_predicate::{MatchSet, Rule};
    let mut rules: Vec<_> = ports
        .iter()
        .map(|port| pb::ListenerFilterChainMatchPredicate {
            rule: Some(Rule::DestinationPortRange(Int32Range {
                start: i32::from(*port),
                end: i32::from(*port) + 1,
            })),
        })
        .collect();
    if rules.len() > 1 {
        return Some(pb::ListenerFilterChainMatchPredicate {
            rule: Some(Rule::OrMatch(MatchSet { rules })),
        });
    }
    rules.pop()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::PeerPolicy;

    fn scope(certificates: Certificates, peers: PeerPolicy, protocol: Protocol) -> Scope {
        let host = "web.shop.svc.cluster.local".into();
        Scope {
            certificates,
            inbound: vec![InboundPort { target: 8080, host, port: 80, protocol }],
            peers,
            ..Scope::of_shop()
        }
    }

    fn accepting(default: Accepts) -> PeerPolicy {
        PeerPolicy { default, ..PeerPolicy::default() }
    }

    /// The chains of a port (0 for every other one): transport, protocols, whether mutual TLS is taken, and what follows.
    fn chains(scope: &Scope, port: u32) -> Vec<String> {
        let listener = virtual_inbound(scope, "cluster.local");
        let of_port = listener.filter_chains.iter().filter(|chain| {
            let at = chain.filter_chain_match.as_ref().and_then(|it| it.destination_port);
            at.map_or(0, |at| at.value) == port
        });
        let described = of_port.map(|chain| {
            let matches = chain.filter_chain_match.clone().unwrap_or_default();
            let filter = &chain.filters[0];
            let what = if filter.name == HTTP {
                "http"
            } else if *filter == tcp(BLACK_HOLE) {
                "refused"
            } else {
                "bytes"
            };
            format!(
                "{} [{}]{} {what}",
                matches.transport_protocol,
                matches.application_protocols.join(" "),
                if chain.transport_socket.is_some() { " decrypted" } else { "" },
            )
        });
        described.collect()
    }

    /// Those of a proxy with certificates.
    fn at(accepts: Accepts, protocol: Protocol) -> Vec<String> {
        chains(&scope(Certificates::Ads, accepting(accepts), protocol), 8080)
    }

    const ANY: &str = "istio istio-peer-exchange istio-http/1.0 istio-http/1.1 istio-h2";

    /// What Istiod's listener has, as captured from it.
    #[test]
    fn a_permissive_port_takes_both_as_under_istiod() {
        assert_eq!(
            at(Accepts::Both, Protocol::Http),
            [&format!("tls [{ANY}] decrypted http"), "raw_buffer [] http"]
        );
        assert_eq!(
            at(Accepts::Both, Protocol::Tcp),
            [&format!("tls [{ANY}] decrypted bytes"), "tls [] bytes", "raw_buffer [] bytes"]
        );
        assert_eq!(
            at(Accepts::Both, Protocol::Unknown),
            [
                "tls [istio-http/1.0 istio-http/1.1 istio-h2] decrypted http",
                "tls [istio-peer-exchange istio] decrypted bytes",
                "raw_buffer [http/1.1 h2c] http",
                "raw_buffer [] bytes",
                "tls [] bytes",
            ]
        );
    }

    #[test]
    fn a_strict_port_takes_no_plain_text() {
        let strict = Accepts::MutualTls;
        assert_eq!(at(strict, Protocol::Http), ["tls [] decrypted http"]);
        assert_eq!(at(strict, Protocol::Tcp), ["tls [] decrypted bytes"]);
        assert_eq!(
            at(strict, Protocol::Unknown),
            [
                "tls [istio-http/1.0 istio-http/1.1 istio-h2] decrypted http",
                "tls [] decrypted bytes",
            ]
        );
        let without = scope(Certificates::None, accepting(Accepts::MutualTls), Protocol::Http);
        assert_eq!(chains(&without, 8080), [" [] refused"]);
    }

    #[test]
    fn without_certificates_or_with_disable_nothing_is_decrypted() {
        for (certificates, accepts) in
            [(Certificates::None, Accepts::Both), (Certificates::Ads, Accepts::PlainText)]
        {
            for (protocol, expected) in [
                (Protocol::Http, &["raw_buffer [] http"][..]),
                (Protocol::Tcp, &["tls [] bytes", "raw_buffer [] bytes"]),
                (
                    Protocol::Unknown,
                    &["raw_buffer [http/1.1 h2c] http", "raw_buffer [] bytes", "tls [] bytes"],
                ),
            ] {
                let scope = scope(certificates, accepting(accepts), protocol);
                assert_eq!(chains(&scope, 8080), expected);
            }
        }
    }

    #[test]
    fn ports_that_belong_to_no_service_follow_the_workload_or_have_their_own_mode() {
        let ports = [(9090, Accepts::PlainText), (15006, Accepts::PlainText)].into();
        let peers = PeerPolicy { default: Accepts::MutualTls, ports, objects: Vec::new() };
        let scope = scope(Certificates::Ads, peers, Protocol::Http);
        assert_eq!(chains(&scope, 8080), ["tls [] decrypted http"]);
        assert_eq!(chains(&scope, 9090).len(), 3);
        assert_eq!(chains(&scope, 15006), [" [] refused"]);
        assert!(chains(&scope, 0).iter().all(|chain| chain.contains(" decrypted ")));
    }

    fn waits_at(scope: &Scope, filter: usize, port: i32) -> bool {
        let listener = virtual_inbound(scope, "cluster.local");
        let disabled = format!("{:?}", listener.listener_filters[filter].filter_disabled);
        !disabled.contains(&format!("start: {port},"))
    }

    #[test]
    fn where_the_server_may_speak_first_only_mutual_tls_makes_it_wait() {
        for (accepts, waits) in
            [(Accepts::PlainText, false), (Accepts::Both, true), (Accepts::MutualTls, true)]
        {
            let scope = scope(Certificates::Ads, accepting(accepts), Protocol::Tcp);
            assert_eq!(waits_at(&scope, 1, 8080), waits, "{accepts:?}");
            assert!(!waits_at(&scope, 2, 8080));
        }
        let without = scope(Certificates::None, accepting(Accepts::Both), Protocol::Tcp);
        assert!(!waits_at(&without, 1, 8080));
    }
}
