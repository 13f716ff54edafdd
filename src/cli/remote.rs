//! Shared code of commands that query a running weir.

use std::time::Duration;

use anyhow::Context;
use tonic::transport::{Channel, Endpoint};

use crate::admin::api::v1::admin_client::AdminClient;

/// The connect timeout.
const CONNECT: Duration = Duration::from_secs(5);

/// The response timeout.
const ANSWER: Duration = Duration::from_secs(30);

/// The address of weir's admin port.
#[derive(Debug, clap::Args)]
pub(crate) struct AdminArgs {
    /// weir's admin port; in a cluster: kubectl -n weir-system port-forward deploy/weir 15014
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "WEIR_ADMIN",
        default_value = "127.0.0.1:15014"
    )]
    admin: String,
}

impl AdminArgs {
    /// The address and the port, without a scheme.
    ///
    /// # Errors
    /// It is not an address with a port.
    pub(crate) fn address(&self) -> anyhow::Result<&str> {
        let address =
            self.admin.strip_prefix("http://").unwrap_or(&self.admin).trim_end_matches('/');
        let port =
            address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
        let is_port = port.is_some_and(|port| port.parse::<u16>().is_ok());
        let is_valid = is_port && format!("http://{address}/").parse::<http::Uri>().is_ok();
        is_valid
            .then_some(address)
            .ok_or_else(|| super::usage(format!("--admin `{}`: expected ADDRESS:PORT", self.admin)))
    }

    /// Connects.
    ///
    /// # Errors
    /// The address is invalid or nothing listens there.
    pub(crate) async fn client(&self) -> anyhow::Result<AdminClient<Channel>> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address()?))?;
        let channel =
            endpoint.connect_timeout(CONNECT).timeout(ANSWER).connect().await.with_context(
                || format!("cannot connect to weir on {}; set --admin or $WEIR_ADMIN", self.admin),
            )?;
        Ok(AdminClient::new(channel).max_decoding_message_size(usize::MAX))
    }
}

/// Converts an error status of weir.
pub(crate) fn status_error(status: tonic::Status) -> anyhow::Error {
    use std::error::Error as _;
    // weir's own errors have no source; connection errors do.
    if status.source().is_some() {
        return anyhow::anyhow!(
            "the server is not weir, or has just stopped: {}",
            status.message()
        );
    }
    match status.code() {
        tonic::Code::InvalidArgument => super::usage(status.message()),
        // The server speaks HTTP but not weir's API.
        tonic::Code::Unimplemented | tonic::Code::Unknown if status.message().is_empty() => {
            anyhow::anyhow!("the server is not weir ({})", status.code())
        }
        _ => anyhow::anyhow!("{}", status.message()),
    }
}

/// The output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// A table.
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

impl Output {
    /// Prints `value`, or `table` for table output.
    ///
    /// # Errors
    /// The value cannot be written.
    pub(crate) fn print(
        self,
        value: &serde_json::Value,
        table: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        super::print(&match self {
            Output::Table => table(),
            Output::Json => crate::proto_json::to_text(value),
            Output::Yaml => super::to_yaml(value)?,
        })
    }
}
