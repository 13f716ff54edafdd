//! Commands that ask a running weir: where it is, and how to reach it.

use anyhow::Context;
use tonic::transport::{Channel, Endpoint};

use crate::admin::api::v1::admin_client::AdminClient;

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
        let endpoint = Endpoint::from_shared(format!("http://{}", self.admin))
            .map_err(|_| super::usage(format!("--admin `{}` is not of the form ADDRESS:PORT", self.admin)))?;
        let channel = endpoint
            .connect_timeout(std::time::Duration::from_secs(5))
            .connect()
            .await
            .with_context(|| format!("no weir answers on {} (--admin)", self.admin))?;
        Ok(AdminClient::new(channel).max_decoding_message_size(usize::MAX))
    }
}

/// What weir answered instead of what was asked for.
pub fn refused(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
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
        match self {
            Output::Table => print!("{}", table()),
            Output::Json => println!("{}", serde_json::to_string_pretty(value)?),
            Output::Yaml => print!("{}", super::to_yaml(value)?),
        }
        Ok(())
    }
}

/// Rows with their columns aligned, the last one as long as it is.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
