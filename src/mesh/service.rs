//! Services: host, addresses and ports with protocols.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::host::{Host, without_brackets};
use super::topology::{HOSTNAME, NETWORK, REGION, SUBZONE, ZONE};
use super::visibility::Visibility;
use crate::api::{self, EntryResolution, IntOrString, Labels, Location, Meta};

/// The protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC, which is HTTP/2.
    Grpc,
    /// gRPC-Web, which Istio also forwards to endpoints as HTTP/2.
    GrpcWeb,
    /// HTTPS, passed through.
    Https,
    /// TLS, passed through.
    Tls,
    /// Opaque TCP, including Mongo, MySQL and Redis.
    Tcp,
    /// Unspecified: HTTP if detected by inspection, else TCP.
    Unknown,
}

impl Protocol {
    /// The protocol of a service port, or `None` for UDP and SCTP, which Envoy sidecars do not carry. Source: Istio's
    /// documentation, "Protocol Selection": `appProtocol`, or without one the name, up to its first `-`.
    pub(crate) fn of(port: &api::ServicePort) -> Option<Self> {
        if !matches!(port.protocol.as_str(), "" | "TCP") {
            return None;
        }
        match port.app_protocol.as_deref() {
            Some("kubernetes.io/h2c") => return Some(Protocol::Http2),
            Some("kubernetes.io/ws") => return Some(Protocol::Http),
            Some("kubernetes.io/wss") => return Some(Protocol::Https),
            _ => {}
        }
        let name = port.app_protocol.as_ref().unwrap_or(&port.name).to_ascii_lowercase();
        let word = if name.starts_with("grpc-web") {
            "grpc-web"
        } else {
            name.split('-').next().unwrap_or_default()
        };
        // Inspection would hang on server-first protocols, so their well-known ports default to TCP.
        let server_first = matches!(port.port, 25 | 53 | 3306 | 27017);
        Self::named(word).unwrap_or(Some(if server_first {
            Protocol::Tcp
        } else {
            Protocol::Unknown
        }))
    }

    /// `None` if the word is not a protocol, `Some(None)` for UDP.
    fn named(word: &str) -> Option<Option<Self>> {
        Some(Some(match word {
            "http" | "http_proxy" => Protocol::Http,
            "http2" => Protocol::Http2,
            "grpc" => Protocol::Grpc,
            "grpc-web" => Protocol::GrpcWeb,
            "https" => Protocol::Https,
            "tls" => Protocol::Tls,
            "tcp" | "mongo" | "mysql" | "redis" => Protocol::Tcp,
            "udp" => return Some(None),
            _ => return None,
        }))
    }

    /// Whether it is HTTP.
    pub(crate) fn is_http(self) -> bool {
        matches!(self, Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb)
    }

    /// Whether it is HTTP or may be detected as HTTP.
    pub(crate) fn may_be_http(self) -> bool {
        self.is_http() || self == Protocol::Unknown
    }

    /// Whether HTTP/2 is used towards the endpoints.
    pub(crate) fn is_http2(self) -> bool {
        matches!(self, Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb)
    }

    /// Whether it is gRPC, whose clients retry by themselves.
    pub(crate) fn is_grpc(self) -> bool {
        matches!(self, Protocol::Grpc | Protocol::GrpcWeb)
    }
}

/// The address of a headless service.
const HEADLESS: &str = "None";

/// Where a service's endpoints come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// From the cluster's endpoints over EDS.
    Endpoints,
    /// From the original destination: a headless service, or a ServiceEntry with resolution NONE.
    Passthrough,
    /// From DNS, using all addresses.
    Dns,
    /// From DNS, using one address at a time.
    DnsRoundRobin,
}

/// The kind of object that defines a service. If two services share a host, the first kind wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Registry {
    /// A Kubernetes Service.
    Kubernetes,
    /// A ServiceEntry.
    ServiceEntry,
}

/// Which endpoints are preferred if no rule says otherwise. Source: Kubernetes' Service, `spec.trafficDistribution`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Preference {
    /// Those in the client's zone.
    Zone,
    /// Those on the client's node.
    Node,
}

impl Preference {
    /// The preference of a service: from its spec, else from its annotation, else from the annotation of its namespace.
    /// An annotation with any other value means no preference. Source: Istio's GetTrafficDistribution.
    fn new(spec: &str, service: &Meta, namespace: Option<&Meta>) -> Option<Self> {
        match spec {
            "PreferClose" | "PreferSameZone" => return Some(Preference::Zone),
            "PreferSameNode" => return Some(Preference::Node),
            _ => {}
        }
        let annotated = std::iter::once(service).chain(namespace).find_map(|meta| {
            let value = meta.annotations.get("networking.istio.io/traffic-distribution")?;
            Some(value.to_ascii_lowercase()).filter(|value| !value.is_empty())
        });
        match annotated?.as_str() {
            "preferclose" | "prefersamezone" => Some(Preference::Zone),
            "prefersamenode" => Some(Preference::Node),
            _ => None,
        }
    }

    /// The labels that rank endpoints: the more of them, counted from the first, equal the client's, the better.
    pub(crate) fn labels(self) -> &'static [&'static str] {
        match self {
            Preference::Zone => &[NETWORK, REGION, ZONE],
            Preference::Node => &[NETWORK, REGION, ZONE, SUBZONE, HOSTNAME],
        }
    }
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The number clients use.
    pub number: u16,
    /// The name, which endpoints reference.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The target port number; 0 if the service names the port instead.
    pub target: u16,
}

/// A service. Its endpoints are stored separately because they change independently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The full host name in lower case.
    pub host: Host,
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name in its namespace.
    pub name: Arc<str>,
    /// The addresses that clients connect to; empty for a headless service or for one from a file without an address.
    /// Those of a ServiceEntry may have a prefix length.
    pub addresses: Vec<Arc<str>>,
    /// Where its endpoints come from.
    pub resolution: Resolution,
    /// The ports that sidecars proxy, in the order of the object.
    pub ports: Vec<Port>,
    /// Who sees it.
    pub visibility: Visibility,
    /// Its age; the older service wins a contested listener.
    pub age: api::Age,
    /// The host that this service is an alias of (`ExternalName`).
    pub alias_of: Option<Host>,
    /// What kind of object it comes from.
    pub registry: Registry,
    /// Whether its workloads are outside the mesh.
    pub is_external: bool,
    /// The selector of its workloads; empty if the endpoints are listed.
    pub selector: Labels,
    /// Which endpoints are preferred if no rule says otherwise.
    pub preference: Option<Preference>,
    /// Whether clients use only endpoints on their own node. Source: Kubernetes' Service, `spec.internalTrafficPolicy`.
    pub node_local: bool,
    /// The accepted subject alternative names of its servers.
    pub subject_alt_names: Vec<String>,
    /// The labels of a ServiceEntry; entries with different labels are not merged.
    pub labels: Labels,
    /// The services it was merged from, one per ServiceEntry, oldest first; empty if there is only one entry.
    pub merged_from: Vec<Arc<Service>>,
}

/// The canonical form of an address or address range. Two spellings of one address would become two listeners at the
/// same address, and Envoy would reject one of them. A full-length prefix is dropped.
pub(crate) fn canonical_address(address: &str) -> Arc<str> {
    let (plain, length) = address.split_once('/').unwrap_or((address, ""));
    match (plain.parse::<IpAddr>(), length.parse::<u32>()) {
        (Ok(IpAddr::V4(ip)), Ok(length)) if length < 32 => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or_default();
            format!("{}/{length}", Ipv4Addr::from_bits(ip.to_bits() & mask)).into()
        }
        (Ok(IpAddr::V6(ip)), Ok(length)) if length < 128 => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or_default();
            format!("{}/{length}", Ipv6Addr::from_bits(ip.to_bits() & mask)).into()
        }
        (Ok(ip), _) => ip.to_string().into(),
        (Err(_), _) => address.into(),
    }
}

impl Service {
    /// The precedence among the services of a host: the lowest wins.
    pub(super) fn rank(&self) -> (Registry, api::Age, &str, &str) {
        (self.registry, self.age, &self.namespace, &self.name)
    }

    /// Whether it comes from the object of this registry with this name.
    pub(super) fn is_from(&self, registry: Registry, namespace: &str, name: &str) -> bool {
        self.registry == registry && *self.namespace == *namespace && *self.name == *name
    }

    /// The service of a Kubernetes object; `domain` is the cluster's, like `cluster.local`.
    pub(crate) fn from_kubernetes(
        meta: &Meta,
        spec: &api::Service,
        namespace: Option<&Meta>,
        domain: &str,
    ) -> Self {
        let alias_of = (spec.type_ == "ExternalName")
            .then(|| Host::from(spec.external_name.trim_end_matches('.').to_ascii_lowercase()));
        let mut addresses: Vec<Arc<str>> = Vec::new();
        for address in std::iter::once(&spec.cluster_ip).chain(&spec.cluster_ips) {
            if let Some(address) =
                address.parse::<IpAddr>().ok().map(|_| canonical_address(address))
                && !addresses.contains(&address)
            {
                addresses.push(address);
            }
        }
        let ports = spec.ports.iter().filter_map(|port| {
            let target = match &port.target_port {
                None => port.port,
                Some(IntOrString::Int(number)) => *number,
                Some(IntOrString::String(_)) => 0,
            };
            let protocol = Protocol::of(port)?;
            Some(Port { number: port.port, name: port.name.as_str().into(), protocol, target })
        });
        let export_to =
            meta.annotations.get("networking.istio.io/exportTo").map_or("", String::as_str);
        Service {
            host: format!("{}.{}.svc.{domain}", meta.name, meta.namespace)
                .to_ascii_lowercase()
                .into(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            // A service without an address, as commonly written in files, is not headless: the API server would assign
            // an address.
            resolution: if spec.cluster_ip == HEADLESS && alias_of.is_none() {
                Resolution::Passthrough
            } else {
                Resolution::Endpoints
            },
            addresses,
            ports: ports.collect(),
            visibility: Visibility::new(export_to.split(','), &meta.namespace),
            age: meta.age,
            alias_of,
            registry: Registry::Kubernetes,
            is_external: false,
            selector: spec.selector.clone(),
            preference: Preference::new(&spec.traffic_distribution, meta, namespace),
            node_local: spec.internal_traffic_policy == "Local",
            subject_alt_names: Vec::new(),
            labels: Labels::new(),
            merged_from: Vec::new(),
        }
    }

    /// The service of one host of a ServiceEntry.
    pub(crate) fn from_service_entry(
        meta: &Meta,
        spec: &api::ServiceEntry,
        namespace: Option<&Meta>,
        host: &str,
    ) -> Self {
        let ports = spec.ports.iter().filter_map(|port| {
            let number = u16::try_from(port.number).ok().filter(|number| *number > 0)?;
            let target = u16::try_from(port.target_port).ok().filter(|target| *target > 0);
            let protocol = Protocol::named(&port.protocol.to_ascii_lowercase())
                .unwrap_or(Some(Protocol::Unknown))?;
            Some(Port {
                number,
                name: port.name.as_str().into(),
                protocol,
                target: target.unwrap_or(number),
            })
        });
        let mut addresses: Vec<Arc<str>> = Vec::new();
        for address in spec.addresses.iter().map(|address| canonical_address(address)) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Service {
            host: without_brackets(host).to_ascii_lowercase().into(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            addresses,
            resolution: match spec.resolution {
                EntryResolution::None | EntryResolution::DynamicDns => Resolution::Passthrough,
                EntryResolution::Static => Resolution::Endpoints,
                EntryResolution::Dns => Resolution::Dns,
                EntryResolution::DnsRoundRobin => Resolution::DnsRoundRobin,
            },
            ports: ports.collect(),
            visibility: Visibility::new(spec.export_to.iter().map(String::as_str), &meta.namespace),
            age: meta.age,
            alias_of: None,
            registry: Registry::ServiceEntry,
            is_external: spec.location == Location::MeshExternal,
            selector: spec
                .workload_selector
                .as_ref()
                .map(|selector| selector.labels.clone())
                .unwrap_or_default(),
            preference: Preference::new("", meta, namespace),
            node_local: false,
            subject_alt_names: spec.subject_alt_names.clone(),
            labels: (*meta.labels).clone(),
            merged_from: Vec::new(),
        }
    }

    /// The services it was merged from that have a port with this number; itself if it was not merged.
    pub(crate) fn declaring(&self, port: u16) -> impl Iterator<Item = &Service> {
        let own = self.merged_from.is_empty().then_some(self);
        own.into_iter()
            .chain(self.merged_from.iter().map(Arc::as_ref))
            .filter(move |from| from.port(port).is_some())
    }

    /// The port with this number.
    pub(crate) fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, app: Option<&str>, number: u16, protocol: &str) -> api::ServicePort {
        api::ServicePort {
            name: name.into(),
            port: number,
            protocol: protocol.into(),
            app_protocol: app.map(Into::into),
            target_port: None,
        }
    }

    #[test]
    fn the_protocol_is_chosen_as_istio_does() {
        for (name, app, number, expected) in [
            ("http", None, 80, Some(Protocol::Http)),
            ("http-web", None, 80, Some(Protocol::Http)),
            ("HTTP2-x", None, 80, Some(Protocol::Http2)),
            ("grpc-web-x", None, 80, Some(Protocol::GrpcWeb)),
            ("grpc-x", None, 80, Some(Protocol::Grpc)),
            ("x", Some("http"), 80, Some(Protocol::Http)),
            ("tcp", Some("kubernetes.io/h2c"), 80, Some(Protocol::Http2)),
            ("http", Some("unknown-thing"), 80, Some(Protocol::Unknown)),
            ("tcp", Some("http-web"), 80, Some(Protocol::Http)),
            ("tcp", Some("gRPC-Web"), 80, Some(Protocol::GrpcWeb)),
            ("redis-a", None, 6379, Some(Protocol::Tcp)),
            ("plain", None, 7000, Some(Protocol::Unknown)),
            ("", None, 3306, Some(Protocol::Tcp)),
            ("udp-x", None, 53, None),
            ("https", None, 443, Some(Protocol::Https)),
        ] {
            assert_eq!(Protocol::of(&port(name, app, number, "TCP")), expected, "{name} {app:?}");
        }
        assert_eq!(Protocol::of(&port("http", None, 80, "UDP")), None);
    }

    fn resolution(cluster_ip: &str) -> Resolution {
        let meta = Meta {
            namespace: "shop".into(),
            name: "web".into(),
            labels: Arc::default(),
            annotations: Labels::default(),
            age: api::Age { created: 0, order: 0 },
            generation: 0,
        };
        let spec = api::Service { cluster_ip: cluster_ip.into(), ..Default::default() };
        Service::from_kubernetes(&meta, &spec, None, "cluster.local").resolution
    }

    #[test]
    fn only_the_word_none_makes_a_service_headless() {
        assert_eq!(resolution("None"), Resolution::Passthrough);
        // The second is what people write into files.
        assert_eq!([resolution("10.96.0.10"), resolution("")], [Resolution::Endpoints; 2]);
    }
}
