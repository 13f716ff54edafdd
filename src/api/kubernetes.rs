//! The parts of Kubernetes objects that affect traffic.

use serde::{Deserialize, Deserializer};

use super::Labels;

/// `Service.spec`. Source: Kubernetes API, core/v1 ServiceSpec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// The cluster IP; the string `None` for a headless service.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// All cluster IPs, starting with `clusterIP`.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// ClusterIP (default), NodePort, LoadBalancer or ExternalName.
    #[serde(rename = "type")]
    pub type_: String,
    /// The host that an ExternalName service is an alias of.
    pub external_name: String,
    /// The labels of the pods behind the service.
    pub selector: Labels,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// Which endpoints are preferred: PreferClose, PreferSameZone or PreferSameNode.
    pub traffic_distribution: String,
    /// Cluster (default), or Local: clients reach only the endpoints on their own node.
    pub internal_traffic_policy: String,
}

/// The Pod fields besides metadata. Only metadata is requested from the API server, so these are known only for pods
/// read from files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// The node it runs on.
    pub node_name: String,
    /// Its service account.
    pub service_account: String,
    /// Its addresses: one per family, starting with the cluster's primary family.
    pub ips: Vec<String>,
}

/// One port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// The name, which EndpointSlices reference; may be empty if the service has a single port.
    pub name: String,
    /// The port clients use, 1 to 65535.
    pub port: u16,
    /// TCP (default), UDP or SCTP.
    pub protocol: String,
    /// The application protocol, if set.
    pub app_protocol: Option<String>,
    /// The pods' port, by number or name. Absent means the same as `port`.
    pub target_port: Option<IntOrString>,
}

/// A port given by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntOrString {
    /// By number.
    Int(u16),
    /// By the name of a container's port.
    String(String),
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl serde::de::Visitor<'_> for Either {
            type Value = IntOrString;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a port number from 1 to 65535 or a port name")
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<IntOrString, E> {
                u16::try_from(n)
                    .map(IntOrString::Int)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(n), &self))
            }
            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<IntOrString, E> {
                Err(E::invalid_value(serde::de::Unexpected::Signed(n), &self))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<IntOrString, E> {
                Ok(text
                    .parse()
                    .map_or_else(|_| IntOrString::String(text.to_owned()), IntOrString::Int))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// An EndpointSlice, whose content is not nested in a spec. Source: Kubernetes API, discovery.k8s.io/v1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// IPv4, IPv6 or FQDN.
    pub address_type: String,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// The ports that every endpoint of this slice has.
    pub ports: Vec<EndpointPort>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    /// Its addresses; all of them belong to the same endpoint, and the first is used.
    pub addresses: Vec<String>,
    /// Its conditions.
    pub conditions: EndpointConditions,
    /// Its DNS name below that of its service.
    pub hostname: Option<String>,
    /// The node it runs on.
    pub node_name: Option<String>,
    /// The zone it runs in.
    pub zone: Option<String>,
    /// The object behind it, usually a Pod.
    pub target_ref: Option<TargetRef>,
}

/// The conditions of an endpoint; absent means unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointConditions {
    /// Accepts traffic.
    pub ready: Option<bool>,
    /// Serves, whether or not it is terminating.
    pub serving: Option<bool>,
    /// Is terminating.
    pub terminating: Option<bool>,
}

/// The object behind an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    /// Usually `Pod`.
    pub kind: String,
    /// Its namespace; empty means that of the slice.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, which distinguishes it from earlier objects of the same name.
    pub uid: String,
}

/// One port of a slice or of an Endpoints subset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPort {
    /// The name of the service port; empty if it has none.
    pub name: String,
    /// The port of the endpoints; absent means all ports, which is unused here.
    pub port: Option<u16>,
    /// TCP (default), UDP or SCTP.
    pub protocol: String,
}

/// An Endpoints object, whose content is not nested in a spec. Source: Kubernetes API, core/v1 Endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoints {
    /// Groups of addresses with the same ports.
    pub subsets: Vec<EndpointSubset>,
}

/// Addresses with the same ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSubset {
    /// The ready addresses.
    pub addresses: Vec<EndpointAddress>,
    /// The addresses that are not ready.
    pub not_ready_addresses: Vec<EndpointAddress>,
    /// The ports.
    pub ports: Vec<EndpointPort>,
}

/// One address of an Endpoints subset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointAddress {
    /// The IP address.
    pub ip: String,
    /// Its DNS name below that of its service.
    pub hostname: Option<String>,
    /// The node it runs on.
    pub node_name: Option<String>,
    /// The object behind it, usually a Pod.
    pub target_ref: Option<TargetRef>,
}
