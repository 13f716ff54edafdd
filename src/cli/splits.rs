//! `weir splits`: lists weighted routes with desired and effective weights and their liveness.

use std::collections::BTreeMap;
use std::process::ExitCode;

use super::remote::{AdminArgs, Output, status_error};
use super::table::{table, width, wrapped};
use crate::admin::api::v1;
use crate::proto_json;

/// Show each weighted route: desired and effective weights, and on how many proxies it is live
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir splits
  weir splits -n shop -w

EFFECTIVE differs from WANTED while a subset has no ready endpoint: see --empty-subset of weir serve.
LIVE counts the proxies that have ACKed the effective weights, of those connected to the
replica that is asked that see them.

Exit status: 0 success, 1 weir cannot be reached.")]
pub(crate) struct Args {
    #[command(flatten)]
    admin: AdminArgs,
    /// Only this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Keep running and print again on every change
    #[arg(short, long)]
    watch: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut client = args.admin.client().await?;
    let request = v1::ListSplitsRequest { namespace: args.namespace.unwrap_or_default() };
    if !args.watch {
        let answer = client.list_splits(request).await.map_err(status_error)?.into_inner();
        args.output.print(&proto_json::message_to_json(&answer)?, || text(&answer))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut updates = client.watch_splits(request).await.map_err(status_error)?.into_inner();
    let mut first = true;
    loop {
        tokio::select! {
            update = updates.message() => match update.map_err(status_error)? {
                Some(answer) => {
                    match args.output {
                        _ if std::mem::take(&mut first) => {}
                        Output::Table => super::print("\n")?,
                        Output::Yaml => super::print("---\n")?,
                        Output::Json => {}
                    }
                    args.output.print(&proto_json::message_to_json(&answer)?, || text(&answer))?;
                }
                None => anyhow::bail!("weir closed the stream"),
            },
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
    }
}

fn text(answer: &v1::ListSplitsResponse) -> String {
    if answer.splits.is_empty() {
        return "no weighted routes\n".to_owned();
    }
    let head = ["ROUTE", "DESTINATION", " WANTED", " EFFECTIVE", "LIVE"];
    let mut out = table(head, answer.splits.iter().flat_map(rows));
    let invalid: BTreeMap<String, &[String]> = answer
        .splits
        .iter()
        .map(|split| (object(&split.object), split.invalid.as_slice()))
        .collect();
    for (object, problems) in invalid {
        for problem in problems {
            let line =
                format!("VirtualService {object}: the newest version is rejected: {problem}");
            out.push_str(&wrapped(&line, &[' '], width()));
        }
    }
    out
}

/// `NAMESPACE/NAME`: all are VirtualServices.
fn object(object: &Option<v1::ObjectRef>) -> String {
    object
        .as_ref()
        .map(|object| format!("{}/{}", object.namespace, object.name))
        .unwrap_or_default()
}

/// A row for each share; the first row names the route.
fn rows(split: &v1::Split) -> impl Iterator<Item = [String; 5]> {
    let mut names =
        vec![format!("{} {}", object(&split.object), split.field.trim_start_matches("spec."))];
    if split.defined_in != split.object {
        names.push(format!("  in {}", object(&split.defined_in)));
    }
    if !split.name.is_empty() {
        names.push(format!("  {}", split.name));
    }
    let rows = split.shares.len().max(names.len());
    let names = names.into_iter().chain(std::iter::repeat(String::new()));
    let shares = split.shares.iter().map(Some).chain(std::iter::repeat(None));
    names.zip(shares).take(rows).enumerate().map(|(n, (name, share))| {
        let [to, wanted, effective] = share.map(share_cells).unwrap_or_default();
        let live =
            if n == 0 { format!("{}/{}", split.live, split.in_scope) } else { String::new() };
        [name, to, wanted, effective, live]
    })
}

fn share_cells(share: &v1::Share) -> [String; 3] {
    let port = if share.port > 0 { format!(":{}", share.port) } else { String::new() };
    let subset = if share.subset.is_empty() { String::new() } else { format!(" {}", share.subset) };
    [format!("{}{port}{subset}", share.host), percent(share.wanted), percent(share.effective)]
}

fn percent(value: f64) -> String {
    format!("{} %", (value * 100.0).round() / 100.0)
}
