//! `weir splits`: each weighted route, as wanted, as effective, and where it is live.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::remote::{AdminArgs, Output, refused, table};
use crate::admin::api::v1;

/// Show each weighted route: the weights wanted, effective, and on how many proxies they are live
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir splits
  weir splits -n shop -w

EFFECTIVE differs from WANTED while a subset has no ready endpoint: see --empty-subset of weir serve.
LIVE counts the proxies that have acked the effective weights, of those connected that see them.

Exit status 0, or 1 where weir can not be asked.")]
pub struct Args {
    #[command(flatten)]
    admin: AdminArgs,
    /// Only this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Go on, and print again whenever something changes
    #[arg(short, long)]
    watch: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut client = args.admin.client().await?;
    let request = v1::ListSplitsRequest { namespace: args.namespace.unwrap_or_default() };
    if !args.watch {
        let answer = client.list_splits(request).await.map_err(refused)?.into_inner();
        args.output.print(&to_json(&answer), || text(&answer))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut updates = client.watch_splits(request).await.map_err(refused)?.into_inner();
    let mut first = true;
    loop {
        tokio::select! {
            update = updates.message() => match update.map_err(refused)? {
                Some(answer) => {
                    match args.output {
                        _ if std::mem::take(&mut first) => {}
                        Output::Table => super::print("\n")?,
                        Output::Yaml => super::print("---\n")?,
                        Output::Json => {}
                    }
                    args.output.print(&to_json(&answer), || text(&answer))?;
                }
                None => anyhow::bail!("weir ended the stream"),
            },
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
    }
}

fn text(answer: &v1::ListSplitsResponse) -> String {
    if answer.splits.is_empty() {
        return "no route shares requests among several destinations\n".to_owned();
    }
    let mut rows = vec![["ROUTE", "DESTINATION", "WANTED", "EFFECTIVE", "LIVE"].map(str::to_owned).to_vec()];
    for split in &answer.splits {
        let name = split.object.trim_start_matches("VirtualService ");
        for (n, share) in split.shares.iter().enumerate() {
            let (route, live) = match n {
                0 => (format!("{name} {}", split.field.trim_start_matches("spec.")), live(split)),
                1 if !split.name.is_empty() => (format!("  {}", split.name), String::new()),
                _ => (String::new(), String::new()),
            };
            let port = if share.port > 0 { format!(":{}", share.port) } else { String::new() };
            let subset = if share.subset.is_empty() { String::new() } else { format!(" {}", share.subset) };
            let percent = |value: f64| format!("{:>6} %", (value * 100.0).round() / 100.0);
            rows.push(vec![
                route,
                format!("{}{port}{subset}", share.host),
                percent(share.wanted),
                percent(share.effective),
                live,
            ]);
        }
    }
    let mut out = table(&rows);
    let invalid: BTreeMap<&str, &[String]> =
        answer.splits.iter().map(|split| (split.object.as_str(), split.invalid.as_slice())).collect();
    for (object, problems) in invalid {
        problems.iter().for_each(|one| out.push_str(&format!("{object}: the newest form is refused: {one}\n")));
    }
    out
}

fn live(split: &v1::Split) -> String {
    format!("{}/{}", split.live, split.in_scope)
}

fn to_json(answer: &v1::ListSplitsResponse) -> Value {
    let split = |one: &v1::Split| {
        let shares = one.shares.iter().map(|share| {
            json!({"host": share.host, "subset": share.subset, "port": share.port, "wanted": share.wanted,
                "effective": share.effective})
        });
        json!({"object": one.object, "field": one.field, "name": one.name, "shares": shares.collect::<Vec<_>>(),
            "live": one.live, "inScope": one.in_scope, "invalid": one.invalid})
    };
    answer.splits.iter().map(split).collect()
}
