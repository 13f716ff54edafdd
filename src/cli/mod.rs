//! The commands, one file each: arguments and output.

pub(crate) mod agent;
pub(crate) mod analyze;
pub(crate) mod bench;
pub(crate) mod bootstrap;
pub(crate) mod bug_report;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod dump;
mod envoy;
pub(crate) mod explain;
pub(crate) mod inject;
pub(crate) mod log;
mod logging;
pub mod objects;
pub(crate) mod preflight;
mod program;
pub(crate) mod progress;
pub(crate) mod ps;
mod recorded;
pub(crate) mod redirect;
pub(crate) mod remote;
pub(crate) mod serve;
mod signals;
pub(crate) mod splits;
pub(crate) mod table;
pub(crate) mod top;
pub mod translate;
pub(crate) mod wait;

use std::io::Write as _;

pub use self::program::main;
use crate::bootstrap::{dns_label, dns_name};
use crate::mesh::{EmptySubset, MeshConfig, OutboundPolicy, WeightDelivery};

/// Flags for mesh-wide settings.
#[derive(Debug, clap::Args)]
pub(crate) struct MeshArgs {
    /// The cluster's DNS domain
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", value_parser = domain)]
    domain: String,
    /// The cluster id, which workloads have as the label topology.istio.io/cluster
    #[arg(long, value_name = "ID", default_value = "Kubernetes")]
    cluster_id: String,
    /// The namespace whose DestinationRules, Sidecar and PeerAuthentication apply to all namespaces
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system", value_parser = dns_label)]
    root_namespace: String,
    /// What happens to traffic for unknown hosts
    #[arg(long, value_enum, value_name = "POLICY", default_value = "allow-any")]
    outbound_policy: OutboundPolicy,
    /// What happens to weight for a subset without a ready endpoint, unless a VirtualService overrides it with the
    /// annotation weir.dev/empty-subset
    #[arg(long, value_enum, value_name = "WAY", default_value = "hold")]
    empty_subset: EmptySubset,
    /// The revision of this control plane: Istio objects that have the label istio.io/rev with another value are not
    /// read [default: all are read]
    #[arg(long, value_name = "REVISION", value_parser = dns_label)]
    revision: Option<String>,
    /// How a change of weights reaches proxies: as runtime values to those that subscribe to them (weir bootstrap does),
    /// or only in their routes
    #[arg(long, value_enum, value_name = "WAY", default_value = "runtime")]
    weights: WeightDelivery,
    /// Whether proxies identify themselves over TLS by their service account tokens, and weir signs their certificates:
    /// connections between proxies with a certificate are encrypted. For `weir serve` this needs --pod-namespace, where the
    /// authority is in the Secret cacerts or istio-ca-secret; the elected replica makes a root if there is none
    #[arg(long, value_enum, value_name = "WHETHER", default_value = "off")]
    identity: Switch,
    /// The trust domain of the identities in certificates [default: the cluster's domain]
    #[arg(long, value_name = "NAME", value_parser = dns_name)]
    trust_domain: Option<String>,
}

impl MeshArgs {
    /// The resulting configuration.
    pub(crate) fn config(&self) -> MeshConfig {
        MeshConfig {
            domain: self.domain.as_str().into(),
            cluster: self.cluster_id.as_str().into(),
            root_namespace: self.root_namespace.as_str().into(),
            outbound: self.outbound_policy,
            empty_subset: self.empty_subset,
            revision: self.revision.as_deref().map(Into::into),
            weights: self.weights,
            trust_domain: self.trust_domain.as_ref().unwrap_or(&self.domain).as_str().into(),
            identities: self.identity.is_on(),
        }
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

impl Switch {
    /// Whether it is on.
    pub(crate) fn is_on(self) -> bool {
        self == Self::On
    }
}

/// Normalizes a DNS domain: lower-case, without leading or trailing dots.
fn domain(text: &str) -> Result<String, String> {
    dns_name(&text.trim_matches('.').to_ascii_lowercase())
}

/// Writes to standard output.
///
/// # Errors
/// It cannot be written to; [`OutputClosed`] if the pipe was closed, as by `| head`.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        written => Ok(written?),
    }
}

/// The reader closed the pipe: the program exits quietly.
#[derive(Debug, thiserror::Error)]
#[error("the output was closed")]
pub struct OutputClosed;

/// A JSON value as YAML.
///
/// # Errors
/// The value has no YAML form, which cannot happen.
pub(crate) fn to_yaml(value: &serde_json::Value) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(value)?)
}

/// A usage error that only the command itself can detect; the program exits with status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// A [`Usage`] as an error.
pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}
