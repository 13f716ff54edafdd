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
    /// The addresses that clients connect to, with an optional prefix length; empty means any.
    pub addresses: Vec<String>,
    /// The ports.
    pub ports: Vec<ServiceEntryPort>,
    /// Whether it belongs to the mesh.
    pub location: Location,
    /// Where its endpoints come from.
    pub resolution: EntryResolution,
    /// The endpoints.
    pub endpoints: Vec<WorkloadEntry>,
    /// Selects pods and WorkloadEntries of its namespace instead of `endpoints`.
    pub workload_selector: Option<EntrySelector>,
    /// The namespaces that see it: `*`, `.` or names. Empty means all.
    pub export_to: Vec<String>,
    /// The accepted subject alternative names of the servers.
    pub subject_alt_names: Vec<String>,
}

/// A port of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntryPort {
    /// The port clients use, 1 to 65535.
    pub number: u32,
    /// The protocol: HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS and others; empty means unknown.
    pub protocol: String,
    /// Its name.
    pub name: String,
    /// The port of the endpoints; 0 means the same port.
    pub target_port: u32,
}

/// Whether a host belongs to the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// It is outside the mesh.
    #[default]
    MeshExternal,
    /// It is inside the mesh.
    MeshInternal,
}

/// Where the endpoints of a ServiceEntry come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EntryResolution {
    /// From the original destination.
    #[default]
    None,
    /// From `endpoints` or `workloadSelector`.
    Static,
    /// From DNS, using all addresses.
    Dns,
    /// From DNS, using one address at a time.
    DnsRoundRobin,
    /// From DNS, by the host of each request.
    DynamicDns,
}

/// Selects workloads by labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntrySelector {
    /// The labels that must all match.
    pub labels: Labels,
}

/// `WorkloadEntry.spec`, and an endpoint of a ServiceEntry: a workload that is not a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntry {
    /// An IP address, a host name (with DNS resolution), or `unix://` followed by a path.
    pub address: String,
    /// Its port for each service port, by name.
    pub ports: BTreeMap<String, u32>,
    /// Its labels, which subsets select by.
    pub labels: Labels,
    /// The network it is in.
    pub network: String,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Its weight within its locality; 0 means 1.
    pub weight: u32,
    /// Its service account.
    pub service_account: String,
}
