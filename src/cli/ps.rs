//! `weir ps`: which proxies are connected, and what they have.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::remote::{AdminArgs, Output, refused, table};
use crate::admin::api::v1;

/// List the proxies that are connected, and what they have
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir ps
  weir ps -o json

CDS, EDS, LDS and RDS are `synced` (the proxy acked everything), `stale` (something is under way),
`refused` (everything but what it refused) or `-` (it did not ask). Exit status 1 where a proxy lags,
refused something, or where something is held back from it.")]
pub struct Args {
    #[command(flatten)]
    admin: AdminArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut client = args.admin.client().await?;
    let answer = client.list_proxies(v1::ListProxiesRequest {}).await.map_err(refused)?.into_inner();
    let all: Vec<Value> = answer.proxies.iter().map(to_json).collect();
    args.output.print(&all.into(), || text(&answer))?;
    let well = |one: &v1::Proxy| one.lagging.is_empty() && one.refused.is_empty() && one.held.is_empty();
    Ok(if answer.proxies.iter().all(well) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(answer: &v1::ListProxiesResponse) -> String {
    if answer.proxies.is_empty() {
        return "no proxy is connected\n".to_owned();
    }
    let head = ["PROXY", "SINCE", "CDS", "EDS", "LDS", "RDS", "SCOPE", "STATE"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    for one in &answer.proxies {
        let state = |kind: &str| {
            let found = one.types.iter().find(|status| status.r#type == kind).map_or("none", |status| &status.state);
            if found == "none" { "-".to_owned() } else { found.to_owned() }
        };
        let version = match (one.acked, one.wanted) {
            (Some(acked), Some(wanted)) if acked == wanted => acked.to_string(),
            (Some(acked), Some(wanted)) => format!("{acked} of {wanted}"),
            (None, Some(wanted)) => format!("- of {wanted}"),
            _ => "-".to_owned(),
        };
        let name = format!("{}/{}", one.namespace, one.pod);
        let since = one.since.trim_end_matches('Z').replace('T', " ");
        rows.push(vec![
            name,
            since,
            state("cds"),
            state("eds"),
            state("lds"),
            state("rds"),
            one.scope.clone(),
            version,
        ]);
    }
    let mut out = table(&rows);
    for one in &answer.proxies {
        let name = format!("{}/{}", one.namespace, one.pod);
        if !one.lagging.is_empty() {
            out.push_str(&format!("{name} lags: {}\n", one.lagging));
        }
        for refused in &one.refused {
            out.push_str(&format!("{name} refused {} {}: {}\n", refused.r#type, refused.name, refused.message));
        }
        for held in &one.held {
            let what = if held.virtual_host.is_empty() { &held.name } else { &held.virtual_host };
            let missing = &held.missing_cluster;
            out.push_str(&format!("{name} keeps the last form of {what}: there is no cluster {missing}\n"));
        }
    }
    out
}

pub(super) fn to_json(one: &v1::Proxy) -> Value {
    let types = one.types.iter().map(|status| (status.r#type.clone(), Value::from(status.state.clone())));
    let refused = one.refused.iter().map(|refused| {
        json!({"type": refused.r#type, "name": refused.name, "version": refused.version, "message": refused.message})
    });
    let held = one.held.iter().map(|held| {
        json!({"type": held.r#type, "name": held.name, "virtualHost": held.virtual_host,
            "missingCluster": held.missing_cluster})
    });
    json!({
        "id": one.id,
        "namespace": one.namespace,
        "pod": one.pod,
        "since": one.since,
        "service": one.service,
        "variant": one.variant,
        "scope": one.scope,
        "types": types.collect::<serde_json::Map<_, _>>(),
        "acked": one.acked,
        "wanted": one.wanted,
        "lagging": one.lagging,
        "refused": refused.collect::<Vec<_>>(),
        "held": held.collect::<Vec<_>>(),
        "kept": one.kept,
    })
}
