//! Istio's ServiceEntry and WorkloadEntry. Source of every field: istio/api, `networking/v1alpha3/service_entry.proto`
//! and `workload_entry.proto`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Labels;

/// `ServiceEntry.spec`: hosts that are not services of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntry {
    /// The hosts: full names or wildcards.
    pub hosts: Vec<String>,
    /// The addresses clients connect to, with or without a prefix length; none means any.
    pub addresses: Vec<String>,
    /// The ports.
    pub ports: Vec<ServiceEntryPort>,
    /// Whether it belongs to the mesh.
    pub location: Location,
    /// Where its endpoints come from.
    pub resolution: EntryResolution,
    /// The endpoints.
    pub endpoints: Vec<WorkloadEntry>,
    /// Pods and WorkloadEntries of its namespace, in place of `endpoints`.
    pub workload_selector: Option<EntrySelector>,
    /// The namespaces that see it: `*`, `.` or names. Empty means all.
    pub export_to: Vec<String>,
    /// The names that the servers' certificates may hold.
    pub subject_alt_names: Vec<String>,
}

/// A port of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntryPort {
    /// The port clients use, 1 to 65535.
    pub number: u32,
    /// What is spoken over it: HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS and others; empty means that it is not known.
    pub protocol: String,
    /// Its name.
    pub name: String,
    /// The port of the endpoints; 0 means the same.
    pub target_port: u32,
}

/// Whether a host belongs to the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// It does not.
    #[default]
    MeshExternal,
    /// It does.
    MeshInternal,
}

/// Where the endpoints of a ServiceEntry come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EntryResolution {
    /// From the address that the client wanted.
    #[default]
    None,
    /// From `endpoints` or `workloadSelector`.
    Static,
    /// From DNS, all addresses at once.
    Dns,
    /// From DNS, one address after the other.
    DnsRoundRobin,
    /// From DNS, by the name in each request.
    DynamicDns,
}

/// Workloads by labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntrySelector {
    /// All of these.
    pub labels: Labels,
}

/// `WorkloadEntry.spec`, and an endpoint of a ServiceEntry: a workload that is no pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntry {
    /// An IP address, a host name (with DNS resolution), or `unix://` and a path.
    pub address: String,
    /// Its port for each of the service's ports, by name.
    pub ports: BTreeMap<String, u32>,
    /// Its labels, by which subsets choose.
    pub labels: Labels,
    /// The network it is in.
    pub network: String,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Its share among the endpoints of its locality; 0 means 1.
    pub weight: u32,
    /// Who it runs as.
    pub service_account: String,
}
