//! The bootstrap of an Envoy that gets its configuration from weir: the node and the xDS address.
//!
//! Pure: builds JSON or YAML from its parts, each of which parses with a descriptive error.

mod identity;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde_json::{Value, json};

use crate::mesh::{Interception, Locality, WeightDelivery};
use crate::xds::stream::{Variant, runtime_layers};

pub(crate) use identity::XdsIdentity;

/// The name of the xDS cluster, as in Istio.
const XDS_CLUSTER: &str = "xds-grpc";

/// The name of the listener and of the cluster that serve statistics, as in Istio.
const STATS: &str = "prometheus_stats";

/// The contents of a bootstrap.
#[derive(Debug, Clone)]
pub(crate) struct Bootstrap {
    /// The node id.
    pub node: NodeId,
    /// The labels of its workload (node metadata LABELS).
    pub labels: BTreeMap<String, String>,
    /// The proxy's cluster (node metadata CLUSTER_ID).
    pub cluster_id: String,
    /// Its addresses beside the one of its id (node metadata INSTANCE_IPS).
    pub other_ips: Vec<IpAddr>,
    /// The node it runs on, if known (node metadata NODE_NAME).
    pub node_name: Option<String>,
    /// The locality, if known.
    pub locality: Option<Locality>,
    /// How traffic is intercepted (node metadata INTERCEPTION_MODE).
    pub interception: Interception,
    /// The address of weir.
    pub xds: XdsAddress,
    /// How Envoy and weir identify each other; `None` on the port in plain text.
    pub identity: Option<XdsIdentity>,
    /// The ADS variant.
    pub variant: AdsVariant,
    /// Whether the proxy takes weights as runtime values.
    pub weights: WeightDelivery,
    /// Whether the proxy tells weir how many requests it sent to which cluster, and how they ended.
    pub load_reports: bool,
    /// The address of Envoy's admin interface.
    pub admin: SocketAddr,
    /// The address where Envoy serves its statistics for Prometheus and nothing else, if anywhere.
    pub stats: Option<SocketAddr>,
}

/// The two variants of the aggregated discovery service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdsVariant {
    /// Only changes are sent.
    Delta,
    /// State of the world: every response contains all resources of its type.
    Sotw,
}

impl From<AdsVariant> for Variant {
    fn from(variant: AdsVariant) -> Self {
        match variant {
            AdsVariant::Delta => Self::Delta,
            AdsVariant::Sotw => Self::Sotw,
        }
    }
}

/// A node id, `sidecar~IP~POD.NAMESPACE~DNSDOMAIN`, as in Istio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeId {
    /// The proxy's address.
    pub ip: IpAddr,
    /// The pod's name.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// The DNS domain for short names.
    pub dns_domain: String,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sidecar~{}~{}.{}~{}", self.ip, self.pod, self.namespace, self.dns_domain)
    }
}

impl FromStr for NodeId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('~').collect();
        let [kind, ip, name, dns_domain] = parts.as_slice() else {
            return Err(format!(
                "it has {} parts where TYPE~IP~POD.NAMESPACE~DNSDOMAIN has 4",
                parts.len()
            ));
        };
        if *kind != "sidecar" {
            return Err(format!("the type is {kind:?}; only \"sidecar\" is served"));
        }
        // A pod name may contain dots, a namespace may not.
        let (pod, namespace) = name
            .rsplit_once('.')
            .ok_or_else(|| format!("{name:?} is not of the form POD.NAMESPACE"))?;
        Ok(Self {
            ip: ip.parse().map_err(|_| format!("{ip:?} is not an IP address"))?,
            pod: dns_name(pod)?,
            namespace: dns_label(namespace)?,
            dns_domain: dns_name(dns_domain)?,
        })
    }
}

/// The address of weir's xDS port: `HOST:PORT` with an IP address (IPv6 in brackets) or a DNS name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct XdsAddress {
    host: XdsHost,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum XdsHost {
    Ip(IpAddr),
    Name(String),
}

impl fmt::Display for XdsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        match host {
            XdsHost::Ip(ip) => SocketAddr::new(*ip, *port).fmt(f),
            XdsHost::Name(name) => write!(f, "{name}:{port}"),
        }
    }
}

impl From<SocketAddr> for XdsAddress {
    fn from(address: SocketAddr) -> Self {
        Self { host: XdsHost::Ip(address.ip()), port: address.port() }
    }
}

impl FromStr for XdsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) =
            text.rsplit_once(':').ok_or("it is not of the form HOST:PORT, as 127.0.0.1:15010")?;
        let port = match port.parse() {
            Ok(port) if port > 0 => port,
            _ => return Err(format!("{port:?} is not a port (1 to 65535)")),
        };
        let host =
            if let Some(host) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
                let ip: Ipv6Addr =
                    host.parse().map_err(|_| format!("{host:?} is not an IPv6 address"))?;
                XdsHost::Ip(ip.into())
            } else if let Ok(ip) = host.parse::<IpAddr>() {
                if ip.is_ipv6() {
                    return Err(format!("an IPv6 address goes in brackets: [{host}]:{port}"));
                }
                XdsHost::Ip(ip)
            } else {
                XdsHost::Name(dns_name(host)?)
            };
        Ok(Self { host, port })
    }
}

/// Parses a DNS label (RFC 1123), such as a namespace: at most 63 of a-z, 0-9 and inner `-`.
///
/// # Errors
/// A description of what is wrong.
pub(crate) fn dns_label(text: &str) -> Result<String, String> {
    if text.is_empty()
        || text.len() > 63
        || !text.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'))
        || text.starts_with('-')
        || text.ends_with('-')
    {
        return Err(format!(
            "{text:?} is not a DNS label: 1 to 63 of a-z, 0-9 and \"-\", no \"-\" at either end"
        ));
    }
    Ok(text.to_owned())
}

/// Parses a DNS name (RFC 1123): labels joined by dots, at most 253 characters.
///
/// # Errors
/// A description of what is wrong.
pub(crate) fn dns_name(text: &str) -> Result<String, String> {
    if text.len() > 253 {
        return Err(format!("{text:?} is longer than the 253 characters of a DNS name"));
    }
    if text.split('.').any(|label| dns_label(label).is_err()) {
        return Err(format!(
            "{text:?} is not a DNS name: labels of a-z, 0-9 and inner \"-\", joined by \".\""
        ));
    }
    Ok(text.to_owned())
}

/// Parses a workload label, `KEY=VALUE`, by Kubernetes' rules: the value, and the key without its optional DNS prefix
/// and `/`, have at most 63 of A-Z, a-z, 0-9, `-`, `_` and `.`, and start and end with a letter or digit; only the
/// value may be empty.
///
/// # Errors
/// A description of what is wrong.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or("it is not of the form KEY=VALUE, as app=reviews")?;
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            dns_name(prefix).map_err(|reason| format!("the prefix of the key: {reason}"))?;
            name
        }
        None => key,
    };
    let rule = "1 to 63 of A-Z, a-z, 0-9, \"-\", \"_\" and \".\", a letter or digit at both ends";
    if !is_qualified(name) {
        return Err(format!("{key:?} is not the key of a label: {rule}"));
    }
    if !value.is_empty() && !is_qualified(value) {
        return Err(format!("{value:?} is not the value of a label: nothing, or {rule}"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Whether this has 1 to 63 of the characters of a label, and a letter or digit at both ends.
fn is_qualified(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// Parses a locality, `REGION[/ZONE[/SUBZONE]]`, without empty parts.
///
/// # Errors
/// A description of what is wrong.
pub(crate) fn locality(text: &str) -> Result<Locality, String> {
    let parts: Vec<&str> = text.split('/').collect();
    if parts.len() > 3 || parts.iter().any(|part| part.trim().is_empty()) {
        return Err("expected REGION/ZONE/SUBZONE, of which the last two are optional".to_owned());
    }
    Ok(Locality::parse(text))
}

impl Bootstrap {
    /// The bootstrap as JSON of `envoy.config.bootstrap.v3.Bootstrap`, with the field names of Envoy's documentation.
    pub(crate) fn to_json(&self) -> Value {
        // Without a timeout Envoy waits for weir before it accepts traffic and never serves a partial mesh.
        let over_ads =
            json!({ "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3" });
        let mut bootstrap = json!({
            "node": self.node(),
            "admin": { "address": socket_address(&self.admin.ip().to_string(), self.admin.port()) },
            "dynamic_resources": {
                "ads_config": {
                    "api_type": match self.variant {
                        AdsVariant::Delta => "DELTA_GRPC",
                        AdsVariant::Sotw => "GRPC",
                    },
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{
                        "envoy_grpc": {
                            "cluster_name": XDS_CLUSTER,
                            // Envoy's default back-off grows to 30 s, which would delay the reconnect after a restart
                            // of weir.
                            "retry_policy": { "retry_back_off": { "base_interval": "0.1s", "max_interval": "2s" } },
                        },
                    }],
                },
                "lds_config": over_ads,
                "cds_config": over_ads,
            },
            "static_resources": self.static_resources(),
            "layered_runtime": { "layers": self.runtime_layers() },
            "stats_config": { "stats_tags": stats_tags() },
        });
        if self.load_reports {
            bootstrap["cluster_manager"] = json!({
                "load_stats_config": {
                    "api_type": "GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{ "envoy_grpc": { "cluster_name": XDS_CLUSTER } }],
                },
            });
        }
        bootstrap
    }

    /// [`Bootstrap::to_json`] as YAML.
    ///
    /// # Errors
    /// A value has no YAML form, which cannot happen.
    pub(crate) fn to_yaml(&self) -> Result<String, serde_saphyr::ser::Error> {
        let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
        serde_saphyr::to_string_with_options(&self.to_json(), options)
    }

    /// Runtime layers; a later one overrides those before it.
    fn runtime_layers(&self) -> Vec<Value> {
        // Envoy's default limit (100) rejects a route table because of one ordinary expression or one path of that
        // length.
        let limit = json!({
            "name": "static",
            "static_layer": { "re2.max_program_size.error_level": 32768 },
        });
        // Lets a person override a value by Envoy's `/runtime_modify`.
        let admin = json!({ "name": "admin", "admin_layer": {} });
        let names = match self.weights {
            WeightDelivery::Runtime => runtime_layers(self.variant.into()),
            WeightDelivery::Routes => &[],
        };
        [limit]
            .into_iter()
            .chain(names.iter().map(|name| rtds_layer(name)))
            .chain([admin])
            .collect()
    }

    fn static_resources(&self) -> Value {
        let xds = self.xds.cluster(self.identity.as_ref());
        match self.stats {
            Some(address) => json!({
                "listeners": [stats_listener(address)],
                "clusters": [xds, stats_cluster(self.admin)],
            }),
            None => json!({ "clusters": [xds] }),
        }
    }

    fn node(&self) -> Value {
        let NodeId { ip, pod, namespace, .. } = &self.node;
        let workload = self.labels.get("app").unwrap_or(pod);
        let ips: Vec<String> =
            std::iter::once(ip).chain(&self.other_ips).map(ToString::to_string).collect();
        let mut node = json!({
            "id": self.node.to_string(),
            "cluster": format!("{workload}.{namespace}"),
            "metadata": {
                "NAMESPACE": namespace,
                "LABELS": self.labels,
                "CLUSTER_ID": self.cluster_id,
                "INSTANCE_IPS": ips.join(","),
                "INTERCEPTION_MODE": self.interception.as_str(),
            },
        });
        if let Some(name) = &self.node_name {
            node["metadata"]["NODE_NAME"] = name.as_str().into();
        }
        let account =
            self.identity.as_ref().and_then(|identity| identity.service_account.as_deref());
        if let Some(account) = account {
            node["metadata"]["SERVICE_ACCOUNT"] = account.into();
        }
        if let Some(Locality { region, zone, sub_zone }) = &self.locality {
            let parts = [("region", region), ("zone", zone), ("sub_zone", sub_zone)];
            node["locality"] = parts
                .into_iter()
                .filter(|(_, part)| !part.is_empty())
                .map(|(name, part)| (name.to_owned(), Value::from(part.as_str())))
                .collect();
        }
        node
    }
}

/// Tags beside Envoy's own, which end at the first dot of a name. weir ends the names of clusters and HTTP connection
/// managers in statistics with a semicolon.
fn stats_tags() -> Value {
    json!([
        { "tag_name": "cluster_name", "regex": r"^cluster\.((.+?);\.)" },
        { "tag_name": "http_conn_manager_prefix", "regex": r"^http\.((.+?);\.)" },
    ])
}

/// A layer of runtime values from weir. Envoy waits for it before it asks for clusters. weir always answers at once; what
/// else may be at that address does not keep the proxy from starting.
fn rtds_layer(name: &str) -> Value {
    json!({
        "name": name,
        "rtds_layer": {
            "name": name,
            "rtds_config": {
                "ads": {}, "initial_fetch_timeout": "1s", "resource_api_version": "V3",
            },
        },
    })
}

/// Leads to the page of statistics of the admin interface, and to none of the pages that change Envoy or show secrets.
fn stats_listener(address: SocketAddr) -> Value {
    let types = "type.googleapis.com/envoy.extensions.filters";
    json!({
        "name": STATS,
        "address": socket_address(&address.ip().to_string(), address.port()),
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": format!("{types}.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": STATS,
                "route_config": { "virtual_hosts": [{
                    "name": STATS,
                    "domains": ["*"],
                    "routes": [{ "match": { "path": "/stats/prometheus" }, "route": { "cluster": STATS } }],
                }] },
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": { "@type": format!("{types}.http.router.v3.Router") },
                }],
            },
        }] }],
    })
}

fn stats_cluster(admin: SocketAddr) -> Value {
    let endpoint = json!({ "address": socket_address(&admin.ip().to_string(), admin.port()) });
    json!({
        "name": STATS,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": STATS,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": endpoint }] }],
        },
    })
}

impl XdsAddress {
    fn cluster(&self, identity: Option<&XdsIdentity>) -> Value {
        let host = match &self.host {
            XdsHost::Ip(ip) => ip.to_string(),
            XdsHost::Name(name) => name.clone(),
        };
        let mut cluster = json!({
            "name": XDS_CLUSTER,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {
                "cluster_name": XDS_CLUSTER,
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket_address(&host, self.port) } }] }],
            },
            // If weir's machine disappears, no connection is closed: both keepalives detect this, and HTTP/2's also
            // checks the process.
            "upstream_connection_options": {
                "tcp_keepalive": { "keepalive_time": 30, "keepalive_interval": 5, "keepalive_probes": 3 },
            },
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {
                        "http2_protocol_options": { "connection_keepalive": { "interval": "30s", "timeout": "10s" } },
                    },
                },
            },
        });
        if let Some(identity) = identity {
            cluster["transport_socket"] = identity.transport_socket(self);
            let options = &mut cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
            options["http_filters"] = identity.http_filters();
        }
        if let XdsHost::Name(_) = self.host {
            cluster["type"] = "STRICT_DNS".into();
            // Both families, because by default IPv4 is used only if there is no IPv6 at all.
            cluster["dns_lookup_family"] = "ALL".into();
            cluster["respect_dns_ttl"] = true.into();
        }
        cluster
    }
}

fn socket_address(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::EnvoyBinary;
    use crate::mesh::{NodeMetadata, Proxy};
    use crate::proto_json::json_to_any;

    fn bootstrap() -> Bootstrap {
        Bootstrap {
            node: "sidecar~10.9.0.1~client-0.shop~shop.svc.cluster.local".parse().unwrap(),
            labels: [("app", "client"), ("version", "1"), ("on", "true")]
                .map(|(k, v)| (k.into(), v.into()))
                .into(),
            cluster_id: "Kubernetes".into(),
            other_ips: Vec::new(),
            node_name: None,
            locality: Some(locality("eu/eu-a").unwrap()),
            interception: Interception::Redirect,
            xds: "127.0.0.1:15010".parse().unwrap(),
            identity: None,
            variant: AdsVariant::Delta,
            weights: WeightDelivery::Runtime,
            load_reports: true,
            admin: "127.0.0.1:15000".parse().unwrap(),
            stats: None,
        }
    }

    #[test]
    fn yaml_is_readable_and_says_the_same_as_the_json() {
        let bootstrap = bootstrap();
        let yaml = bootstrap.to_yaml().unwrap();
        let node = r#"node:
  id: sidecar~10.9.0.1~client-0.shop~shop.svc.cluster.local
  cluster: client.shop
  metadata:
    NAMESPACE: shop
    LABELS:
      app: client
      "on": "true"
      version: "1"
    CLUSTER_ID: Kubernetes
    INSTANCE_IPS: "10.9.0.1"
    INTERCEPTION_MODE: REDIRECT
  locality:
    region: eu
    zone: eu-a
admin:
"#;
        assert!(yaml.starts_with(node), "{yaml}");
        assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), bootstrap.to_json());
    }

    #[test]
    fn node_is_understood_by_the_control_plane() {
        for interception in [Interception::None, Interception::Redirect] {
            let bootstrap = Bootstrap { interception, ..bootstrap() };
            let node = &bootstrap.to_json()["node"];
            let metadata = NodeMetadata::from_json(&node["metadata"]);
            let proxy =
                Proxy::new(node["id"].as_str().unwrap(), metadata, Locality::default()).unwrap();
            assert_eq!((&*proxy.name, &*proxy.namespace), ("client-0", "shop"));
            assert_eq!(proxy.addresses, ["10.9.0.1".into()]);
            assert_eq!(proxy.labels["app"], "client");
            assert_eq!(proxy.interception, interception);
        }
    }

    #[test]
    fn envoy_accepts_every_combination() {
        let folder = tempfile::TempDir::new().unwrap();
        let envoy = EnvoyBinary::find(None).unwrap();
        for variant in [AdsVariant::Delta, AdsVariant::Sotw] {
            for interception in [Interception::None, Interception::Redirect] {
                for xds in ["127.0.0.1:15010", "[::1]:15010", "localhost:15010"] {
                    let stats = Some("[::]:15090".parse().unwrap());
                    let mut bootstrap = Bootstrap { variant, interception, stats, ..bootstrap() };
                    bootstrap.xds = xds.parse().unwrap();
                    bootstrap.identity =
                        (variant == AdsVariant::Delta).then(|| identity(folder.path()));
                    // The descriptors accept these field names. They do not know the filter that presents a token.
                    if bootstrap.identity.is_none() {
                        json_to_any("envoy.config.bootstrap.v3.Bootstrap", &bootstrap.to_json())
                            .unwrap();
                    }
                    for (name, text) in [
                        ("b.json", bootstrap.to_json().to_string()),
                        ("b.yaml", bootstrap.to_yaml().unwrap()),
                    ] {
                        let path = folder.path().join(name);
                        std::fs::write(&path, &text).unwrap();
                        envoy
                            .validate(&path)
                            .unwrap_or_else(|error| panic!("{xds}: {error}\n{text}"));
                    }
                }
            }
        }
    }

    fn identity(folder: &std::path::Path) -> XdsIdentity {
        let made = crate::tls::issue(
            &["localhost".to_owned()],
            std::time::SystemTime::now(),
            std::time::Duration::from_secs(3600),
        );
        let roots = folder.join("root-cert.pem");
        std::fs::write(&roots, made.unwrap().authority).unwrap();
        let identity = XdsIdentity {
            token: folder.join("istio-token"),
            roots,
            token_secret: folder.join("token.yaml"),
            service_account: Some("web".to_owned()),
        };
        std::fs::write(&identity.token, "token").unwrap();
        std::fs::write(&identity.token_secret, identity.token_secret().to_string()).unwrap();
        identity
    }

    fn summary(xds: &str, variant: AdsVariant) -> [String; 3] {
        let json = Bootstrap { xds: xds.parse().unwrap(), variant, ..bootstrap() }.to_json();
        let cluster = &json["static_resources"]["clusters"][0];
        let endpoint = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
        let texts = [
            &json["dynamic_resources"]["ads_config"]["api_type"],
            &cluster["type"],
            &endpoint["address"]["socket_address"]["address"],
        ];
        texts.map(|text| text.as_str().unwrap().to_owned())
    }

    #[test]
    fn what_differs_between_the_combinations() {
        assert_eq!(summary("10.0.0.1:1", AdsVariant::Delta), ["DELTA_GRPC", "STATIC", "10.0.0.1"]);
        assert_eq!(summary("[::1]:1", AdsVariant::Sotw), ["GRPC", "STATIC", "::1"]);
        let name = "weir.weir-system.svc";
        assert_eq!(
            summary(&format!("{name}:1"), AdsVariant::Delta),
            ["DELTA_GRPC", "STRICT_DNS", name]
        );
    }

    #[test]
    fn load_is_reported_where_the_configuration_comes_from_or_nowhere() {
        let json = bootstrap().to_json();
        let service = &json["cluster_manager"]["load_stats_config"]["grpc_services"][0];
        assert_eq!(service["envoy_grpc"]["cluster_name"], XDS_CLUSTER);
        let json = Bootstrap { load_reports: false, ..bootstrap() }.to_json();
        assert_eq!(json["cluster_manager"], Value::Null);
    }

    #[test]
    fn node_id_survives_its_text() {
        let text = "sidecar~fd00::7~web-0.v2.shop~shop.svc.cluster.local";
        let id: NodeId = text.parse().unwrap();
        assert_eq!((id.pod.as_str(), id.namespace.as_str()), ("web-0.v2", "shop"));
        assert_eq!(id.to_string(), text);
    }

    fn node_id_error(text: &str) -> String {
        text.parse::<NodeId>().unwrap_err()
    }

    fn xds_error(text: &str) -> String {
        text.parse::<XdsAddress>().unwrap_err()
    }

    #[test]
    fn errors_describe_what_was_found() {
        assert_eq!(
            node_id_error("sidecar~1.2.3.4"),
            "it has 2 parts where TYPE~IP~POD.NAMESPACE~DNSDOMAIN has 4"
        );
        assert_eq!(
            node_id_error("router~1.2.3.4~a.b~c"),
            r#"the type is "router"; only "sidecar" is served"#
        );
        assert_eq!(node_id_error("sidecar~1.2.3~a.b~c"), r#""1.2.3" is not an IP address"#);
        assert_eq!(node_id_error("sidecar~1.2.3.4~a~c"), r#""a" is not of the form POD.NAMESPACE"#);
        assert!(xds_error("weir").starts_with("it is not of the form HOST:PORT"));
        assert_eq!(xds_error("weir:0"), r#""0" is not a port (1 to 65535)"#);
        assert_eq!(xds_error("::1:15010"), "an IPv6 address goes in brackets: [::1]:15010");
        assert!(xds_error("we_ir:1").starts_with(r#""we_ir" is not a DNS name"#));
        assert!(label("app").unwrap_err().starts_with("it is not of the form KEY=VALUE"));
        assert!(label("=x").unwrap_err().starts_with(r#""" is not the key"#));
        assert!(label("app=a b").unwrap_err().starts_with(r#""a b" is not the value"#));
        assert!(label("No_Name/app=a").unwrap_err().starts_with("the prefix of the key"));
        assert_eq!(label("istio.io/rev=").unwrap(), ("istio.io/rev".into(), String::new()));
        for bad in ["", "a/", "/b", "a/b/c/d"] {
            locality(bad).unwrap_err();
        }
    }
}
