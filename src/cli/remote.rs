//! Commands that ask a running weir: where it is, and how to reach it.

use std::time::Duration;

use anyhow::Context;
use tonic::transport::{Channel, Endpoint};

use crate::admin::api::v1::admin_client::AdminClient;

/// How long it may take to reach weir.
const CONNECT: Duration = Duration::from_secs(5);

/// How long weir may take until it begins to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Where weir's admin port is.
#[derive(Debug, clap::Args)]
pub struct AdminArgs {
    /// weir's admin port; in a cluster: kubectl -n weir-system port-forward deploy/weir 15014
    #[arg(long, value_name = "ADDRESS:PORT", env = "WEIR_ADMIN", default_value = "127.0.0.1:15014")]
    admin: String,
}

impl AdminArgs {
    /// Connects.
    ///
    /// # Errors
    /// The address is none, or nobody answers there.
    pub async fn client(&self) -> anyhow::Result<AdminClient<Channel>> {
        let wrong = || super::usage(format!("--admin `{}` is not of the form ADDRESS:PORT", self.admin));
        let address = self.admin.strip_prefix("http://").unwrap_or(&self.admin).trim_end_matches('/');
        let port = address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
        if port.is_none_or(|port| port.parse::<u16>().is_err()) {
            return Err(wrong());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| wrong())?;
        let channel =
            endpoint.connect_timeout(CONNECT).timeout(ANSWER).connect().await.with_context(|| {
                format!("no weir answers on {}; --admin or $WEIR_ADMIN says where it is", self.admin)
            })?;
        Ok(AdminClient::new(channel).max_decoding_message_size(usize::MAX))
    }
}

/// What weir answered instead of what was asked for.
pub fn refused(status: tonic::Status) -> anyhow::Error {
    use std::error::Error as _;
    // Its own refusals have no cause; what the connection met has.
    if status.source().is_some() {
        return anyhow::anyhow!("what answers there is no weir, or has just ended: {}", status.message());
    }
    match status.code() {
        tonic::Code::InvalidArgument => super::usage(status.message()),
        // What is there speaks HTTP, and not weir's API.
        tonic::Code::Unimplemented | tonic::Code::Unknown if status.message().is_empty() => {
            anyhow::anyhow!("what answers there is no weir ({})", status.code())
        }
        _ => anyhow::anyhow!("{}", status.message()),
    }
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// As JSON.
    Json,
    /// As YAML.
    Yaml,
}

impl Output {
    /// Prints `value`, or `table` where that is wanted.
    ///
    /// # Errors
    /// The value can not be written.
    pub fn print(self, value: &serde_json::Value, table: impl FnOnce() -> String) -> anyhow::Result<()> {
        super::print(&match self {
            Output::Table => table(),
            Output::Json => crate::proto_json::to_text(value),
            Output::Yaml => super::to_yaml(value)?,
        })
    }
}
