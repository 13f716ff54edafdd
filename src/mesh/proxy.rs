//! Proxies, and the attributes that affect their configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::peer_authentications::PeerPolicy;
use super::topology::Locality;
use crate::api::{Labels, ObjectKey};
use crate::revision::Revision;

/// A proxy as described by its node message. Source: Istio's node id `TYPE~IP~POD.NAMESPACE~DNSDOMAIN` and the node
/// metadata NAMESPACE, LABELS, CLUSTER_ID, NETWORK, NODE_NAME, INSTANCE_IPS, INTERCEPTION_MODE and ISTIO_VERSION.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// The node id.
    pub id: Arc<str>,
    /// The namespace.
    pub namespace: Arc<str>,
    /// The pod's name.
    pub name: Arc<str>,
    /// The service account of its pod, if it says so.
    pub service_account: Option<Arc<str>>,
    /// Its addresses, the first one from the id.
    pub addresses: Vec<Arc<str>>,
    /// The labels of its workload.
    pub labels: Labels,
    /// Its locality.
    pub locality: Locality,
    /// How traffic is intercepted.
    pub interception: Interception,
    /// Where it gets its certificates.
    pub certificates: Certificates,
    /// The node it runs on; empty if unknown.
    pub node: Arc<str>,
    /// Its cluster id; empty if unknown.
    pub cluster: Arc<str>,
    /// Its network; empty if unknown.
    pub network: Arc<str>,
}

/// How traffic is intercepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Interception {
    /// Redirected to ports 15001 and 15006, as by weir redirect
    #[default]
    Redirect,
    /// Not intercepted: clients connect to the proxy's own listeners, which bind their ports
    None,
}

impl Interception {
    /// By the metadata INTERCEPTION_MODE.
    fn of(mode: Option<&str>) -> Self {
        match mode {
            Some("NONE") => Self::None,
            _ => Self::Redirect,
        }
    }

    /// As in node metadata and annotations.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Redirect => "REDIRECT",
            Self::None => "NONE",
        }
    }
}

/// Where a proxy gets its own certificate and the roots to trust.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Certificates {
    /// Nowhere: it sends and accepts plain text.
    #[default]
    None,
    /// From weir, over its ADS stream.
    Ads,
    /// From Istio's agent beside it.
    Agent,
}

impl Certificates {
    /// By the metadata ISTIO_VERSION.
    fn of(istio_version: Option<&str>) -> Self {
        match istio_version {
            None | Some("") => Self::None,
            Some(_) => Self::Agent,
        }
    }
}

/// Why a node message does not describe a proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The id does not have four parts.
    #[error("node id `{0}` is not of the form TYPE~IP~POD.NAMESPACE~DNSDOMAIN")]
    Id(String),
    /// A name is longer than Kubernetes allows.
    #[error("{what} has {length} bytes; expected at most {limit}")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The largest length in bytes.
        limit: usize,
    },
    /// The proxy type is not supported.
    #[error("node id `{id}` is of type `{found}`; only `sidecar` is supported")]
    Type {
        /// The id.
        id: String,
        /// Its first part.
        found: String,
    },
    /// It is no Envoy.
    #[error(
        "node `{id}` has the metadata GENERATOR: {generator}; weir serves only Envoy sidecars; proxyless gRPC clients \
         are not supported yet"
    )]
    Generator {
        /// The id.
        id: String,
        /// The kind of client that the node message declares.
        generator: String,
    },
    /// The address in the id is invalid.
    #[error("node id `{id}`: `{found}` is not an IP address")]
    Address {
        /// The id.
        id: String,
        /// Its second part.
        found: String,
    },
}

/// The longest name in Kubernetes (RFC 1123, section 2.1), and the longest id, which has three of them. Longer ones would end
/// up in logs and errors.
const LONGEST_NAME: usize = 253;
const LONGEST_ID: usize = 1024;

/// The node metadata that affects the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeMetadata {
    /// NAMESPACE, which overrides the id's.
    pub namespace: Option<String>,
    /// SERVICE_ACCOUNT.
    pub service_account: Option<String>,
    /// LABELS.
    pub labels: Labels,
    /// INSTANCE_IPS.
    pub instance_ips: Vec<String>,
    /// INTERCEPTION_MODE.
    pub interception_mode: Option<String>,
    /// NODE_NAME.
    pub node_name: Option<String>,
    /// GENERATOR, by which clients other than Envoy identify themselves.
    pub generator: Option<String>,
    /// CLUSTER_ID.
    pub cluster_id: Option<String>,
    /// NETWORK.
    pub network: Option<String>,
    /// ISTIO_VERSION, which Istio's agent sets.
    pub istio_version: Option<String>,
}

impl NodeMetadata {
    /// Reads node metadata from JSON. Fields of an unexpected type are ignored, because Istio's agents send much more
    /// than is used.
    pub fn from_json(metadata: &serde_json::Value) -> Self {
        let labels = metadata.get("LABELS").and_then(|labels| labels.as_object());
        let labels = labels
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.into())));
        Self {
            namespace: text(metadata, "NAMESPACE"),
            service_account: text(metadata, "SERVICE_ACCOUNT"),
            labels: labels.collect(),
            instance_ips: text(metadata, "INSTANCE_IPS")
                .map(|ips| ips.split(',').map(|ip| ip.trim().to_owned()).collect())
                .unwrap_or_default(),
            interception_mode: text(metadata, "INTERCEPTION_MODE"),
            node_name: text(metadata, "NODE_NAME"),
            generator: text(metadata, "GENERATOR"),
            cluster_id: text(metadata, "CLUSTER_ID"),
            network: text(metadata, "NETWORK"),
            istio_version: text(metadata, "ISTIO_VERSION"),
        }
    }
}

fn text(metadata: &serde_json::Value, name: &str) -> Option<String> {
    metadata.get(name).and_then(|value| value.as_str()).map(str::to_owned)
}

impl Proxy {
    /// Parses a node id and metadata.
    ///
    /// # Errors
    /// The id is not of the form above or of a type that is not served, or the client is not an Envoy.
    pub fn new(id: &str, metadata: NodeMetadata, locality: Locality) -> Result<Self, ProxyError> {
        check_length("the node id", id, LONGEST_ID)?;
        for (what, name) in [
            ("the metadata NAMESPACE", &metadata.namespace),
            ("the metadata SERVICE_ACCOUNT", &metadata.service_account),
            ("the metadata GENERATOR", &metadata.generator),
        ] {
            check_length(what, name.as_deref().unwrap_or_default(), LONGEST_NAME)?;
        }
        let parts: Vec<&str> = id.split('~').collect();
        let [kind, address, name, _domain] = parts.as_slice() else {
            return Err(ProxyError::Id(id.to_owned()));
        };
        if *kind != "sidecar" {
            return Err(ProxyError::Type { id: id.to_owned(), found: (*kind).to_owned() });
        }
        if let Some(generator) = metadata.generator.filter(|generator| !generator.is_empty()) {
            return Err(ProxyError::Generator { id: id.to_owned(), generator });
        }
        if address.parse::<std::net::IpAddr>().is_err() {
            return Err(ProxyError::Address { id: id.to_owned(), found: (*address).to_owned() });
        }
        let (pod, namespace) = name.rsplit_once('.').unwrap_or((name, ""));
        let namespace = metadata
            .namespace
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or_else(|| namespace.to_owned());
        if namespace.is_empty() {
            return Err(ProxyError::Id(id.to_owned()));
        }
        let mut addresses: Vec<Arc<str>> = vec![Arc::from(*address)];
        for ip in metadata.instance_ips {
            if ip.parse::<std::net::IpAddr>().is_ok()
                && !addresses.iter().any(|known| **known == *ip)
            {
                addresses.push(ip.into());
            }
        }
        Ok(Self {
            id: id.into(),
            namespace: namespace.into(),
            name: pod.into(),
            service_account: metadata
                .service_account
                .filter(|account| !account.is_empty())
                .map(Into::into),
            addresses,
            labels: metadata.labels,
            locality,
            interception: Interception::of(metadata.interception_mode.as_deref()),
            certificates: Certificates::of(metadata.istio_version.as_deref()),
            node: metadata.node_name.unwrap_or_default().into(),
            cluster: metadata.cluster_id.unwrap_or_default().into(),
            network: metadata.network.unwrap_or_default().into(),
        })
    }
}

fn check_length(what: &'static str, name: &str, limit: usize) -> Result<(), ProxyError> {
    match name.len() {
        length if length > limit => Err(ProxyError::TooLong { what, length, limit }),
        _ => Ok(()),
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The attributes of a proxy that can affect its configuration. Proxies with the same scope share the same resources.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    /// The namespace, which determines visibility; [`Scope::OTHER_NAMESPACE`] if no object is in it or names it.
    pub namespace: Arc<str>,
    /// The labels that some rule reads, including locality labels.
    pub labels: BTreeMap<String, String>,
    /// How traffic is intercepted.
    pub interception: Interception,
    /// Where the proxies get their certificates.
    pub certificates: Certificates,
    /// The inbound ports, sorted by number.
    pub inbound: Vec<InboundPort>,
    /// What their ports accept.
    pub peers: PeerPolicy,
    /// The locality, if some rule depends on it.
    pub locality: Locality,
    /// The node, if some service is reachable only on the client's node.
    pub node: Arc<str>,
    /// The supported address families.
    pub families: Families,
    /// Its addresses that are endpoints of headless services; the proxy gets no listeners for them.
    pub headless: Vec<Arc<str>>,
    /// The Sidecar that applies to it, with its revision.
    pub sidecar: Option<(ObjectKey, Revision)>,
}

impl Scope {
    /// Represents all namespaces that no object is in or names, because proxies in them get the same configuration. No
    /// namespace has this name.
    pub(crate) const OTHER_NAMESPACE: &'static str = "";
}

#[cfg(test)]
impl Scope {
    /// Proxies of `shop` with redirection over IPv4, without certificates, ports or labels.
    pub(crate) fn of_shop() -> Self {
        Self {
            namespace: "shop".into(),
            labels: BTreeMap::new(),
            interception: Interception::Redirect,
            certificates: Certificates::None,
            inbound: Vec::new(),
            peers: PeerPolicy::default(),
            locality: Locality::default(),
            node: Arc::default(),
            families: Families::V4,
            headless: Vec::new(),
            sidecar: None,
        }
    }
}

/// The address families that a proxy supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Both,
}

impl Families {
    /// The families of these addresses.
    pub(crate) fn of<'a>(addresses: impl IntoIterator<Item = &'a Arc<str>>) -> Self {
        let (mut v4, mut v6) = (false, false);
        for address in addresses {
            if address.contains(':') {
                v6 = true;
            } else {
                v4 = true;
            }
        }
        match (v4, v6) {
            (false, true) => Families::V6,
            (true, true) => Families::Both,
            _ => Families::V4,
        }
    }

    /// Whether a proxy of these families can connect to `address`, which may be a host name or a path.
    pub(crate) fn reach(self, address: &str) -> bool {
        let plain = address.split('/').next().unwrap_or_default();
        match (self, plain.parse::<std::net::IpAddr>()) {
            (Families::V4, Ok(ip)) => ip.is_ipv4(),
            (Families::V6, Ok(ip)) => ip.is_ipv6(),
            (Families::Both, _) | (_, Err(_)) => true,
        }
    }
}

/// A port that the proxy's own workload serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InboundPort {
    /// The workload's port number.
    pub target: u16,
    /// The service it belongs to.
    pub host: super::Host,
    /// The service port.
    pub port: u16,
    /// The protocol.
    pub protocol: super::Protocol,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read() {
        let metadata = NodeMetadata::from_json(&serde_json::json!({
            "NAMESPACE": "shop", "LABELS": {"app": "client", "odd": 5}, "INSTANCE_IPS": "10.9.0.1,fd00::1",
            "INTERCEPTION_MODE": "NONE", "OTHER": [1]
        }));
        let proxy = Proxy::new(
            "sidecar~10.9.0.1~client-0.shop~shop.svc.cluster.local",
            metadata,
            Locality::parse("eu/eu-a"),
        )
        .unwrap();
        assert_eq!((&*proxy.namespace, &*proxy.name), ("shop", "client-0"));
        assert_eq!(proxy.labels, Labels::from([("app".into(), "client".into())]));
        assert_eq!(proxy.addresses, ["10.9.0.1".into(), "fd00::1".into()]);
        assert_eq!(proxy.interception, Interception::None);
        assert_eq!(proxy.locality.to_string(), "eu/eu-a");
    }

    #[test]
    fn clients_other_than_envoy_are_rejected_with_the_reason() {
        let metadata = NodeMetadata::from_json(&serde_json::json!({ "GENERATOR": "grpc" }));
        let found = Proxy::new("sidecar~10.0.0.1~pod.ns~x", metadata, Locality::default());
        assert!(
            matches!(&found, Err(ProxyError::Generator { generator, .. }) if generator == "grpc"),
            "{found:?}"
        );
        assert!(found.unwrap_err().to_string().contains("not supported yet"));
    }

    fn with_id(id: &str) -> Result<Proxy, ProxyError> {
        Proxy::new(id, NodeMetadata::default(), Locality::default())
    }

    #[test]
    fn invalid_node_ids_are_rejected() {
        assert!(matches!(with_id("x"), Err(ProxyError::Id(_))));
        assert!(matches!(with_id("sidecar~10.0.0.1~pod~x"), Err(ProxyError::Id(_))));
        assert!(matches!(with_id("router~10.0.0.1~pod.ns~x"), Err(ProxyError::Type { .. })));
        assert!(matches!(with_id("sidecar~here~pod.ns~x"), Err(ProxyError::Address { .. })));
    }

    #[test]
    fn names_that_kubernetes_does_not_allow_are_refused_without_being_repeated() {
        let id = |pod: &str| format!("sidecar~10.0.0.1~{pod}.shop~shop.svc.cluster.local");
        let new = |id: &str, metadata| Proxy::new(id, metadata, Locality::default());
        assert!(new(&id(&"a".repeat(253)), NodeMetadata::default()).is_ok());
        let long = new(&id(&"a".repeat(1000)), NodeMetadata::default()).unwrap_err();
        assert_eq!(long.to_string(), "the node id has 1045 bytes; expected at most 1024");
        let namespace = Some("a".repeat(254));
        let metadata = NodeMetadata { namespace, ..NodeMetadata::default() };
        let long = new(&id("web-0"), metadata).unwrap_err();
        let expected = "the metadata NAMESPACE has 254 bytes; expected at most 253";
        assert_eq!(long.to_string(), expected);
    }
}
