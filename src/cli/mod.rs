//! The commands, a file each: what they take, and what they print.

pub mod analyze;
pub mod bootstrap;
pub mod demo;
pub mod serve;
pub mod translate;

use crate::mesh::{MeshConfig, OutboundPolicy};

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
}

impl MeshArgs {
    /// The configuration they make.
    pub fn config(&self) -> MeshConfig {
        MeshConfig {
            domain: self.domain.trim_matches('.').to_ascii_lowercase().into(),
            root_namespace: self.root_namespace.as_str().into(),
            outbound: self.outbound_policy,
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
