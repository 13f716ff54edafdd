//! The commands, a file each: what they take, and what they print.

pub mod analyze;
pub mod bootstrap;
pub mod demo;
pub mod dump;
pub mod explain;
pub mod objects;
pub mod ps;
pub mod remote;
pub mod serve;
pub mod splits;
pub mod table;
pub mod translate;
pub mod wait;

use std::io::Write as _;

use crate::bootstrap::{dns_label, dns_name};
use crate::mesh::{EmptySubset, MeshConfig, OutboundPolicy};

/// Flags that say what holds for the whole mesh.
#[derive(Debug, clap::Args)]
pub struct MeshArgs {
    /// The cluster's DNS domain
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", value_parser = domain)]
    domain: String,
    /// The id of the cluster, which workloads have as the label topology.istio.io/cluster
    #[arg(long, value_name = "ID", default_value = "Kubernetes")]
    cluster_id: String,
    /// The namespace whose DestinationRules and Sidecar hold for all others
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system", value_parser = dns_label)]
    root_namespace: String,
    /// What happens to requests for hosts that nobody knows
    #[arg(long, value_enum, value_name = "POLICY", default_value = "allow-any")]
    outbound_policy: OutboundPolicy,
    /// What happens to weight for a subset without a ready endpoint, where a VirtualService's annotation
    /// weir.dev/empty-subset does not say
    #[arg(long, value_enum, value_name = "WAY", default_value = "hold")]
    empty_subset: EmptySubset,
}

impl MeshArgs {
    /// The configuration they make.
    pub fn config(&self) -> MeshConfig {
        MeshConfig {
            domain: self.domain.as_str().into(),
            cluster: self.cluster_id.as_str().into(),
            root_namespace: self.root_namespace.as_str().into(),
            outbound: self.outbound_policy,
            empty_subset: self.empty_subset,
        }
    }
}

/// A DNS domain, in the form that hosts have: in small letters, and without dots around it.
fn domain(text: &str) -> Result<String, String> {
    dns_name(&text.trim_matches('.').to_ascii_lowercase())
}

/// Writes to standard output.
///
/// # Errors
/// It can not be written to; [`ReaderGone`] where nobody reads it any more, as after `| head`.
pub fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        written => Ok(written?),
    }
}

/// Nobody reads the output any more: the program ends quietly.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output")]
pub struct ReaderGone;

/// A JSON value as YAML.
///
/// # Errors
/// The value can not be written, which none does.
pub fn to_yaml(value: &serde_json::Value) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(value)?)
}

/// A command line that is wrong in a way that only the command itself can see; the program ends with status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// A [`Usage`] as an error.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}
