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
pub mod translate;
pub mod wait;

use crate::mesh::{EmptySubset, MeshConfig, OutboundPolicy};

/// Flags that say what holds for the whole mesh.
#[derive(Debug, clap::Args)]
pub struct MeshArgs {
    /// The cluster's DNS domain
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    domain: String,
    /// The namespace whose DestinationRules hold for all others
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system")]
    root_namespace: String,
    /// What happens to requests for hosts that nobody knows
    #[arg(long, value_enum, default_value = "allow-any")]
    outbound_policy: OutboundPolicy,
    /// What happens to weight for a subset without a ready endpoint, where a VirtualService's annotation
    /// weir.dev/empty-subset does not say
    #[arg(long, value_enum, default_value = "hold")]
    empty_subset: EmptySubset,
}

impl MeshArgs {
    /// The configuration they make.
    pub fn config(&self) -> MeshConfig {
        MeshConfig {
            domain: self.domain.trim_matches('.').to_ascii_lowercase().into(),
            root_namespace: self.root_namespace.as_str().into(),
            outbound: self.outbound_policy,
            empty_subset: self.empty_subset,
        }
    }
}

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
