//! `weir ps`: which proxies are connected, and what they have.

use std::process::ExitCode;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::remote::{AdminArgs, Output, refused, table};
use crate::admin::api::v1;

/// List the proxies that are connected, and what they have
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir ps
  weir ps -o json

CDS, EDS, LDS and RDS are `synced` (the proxy acked everything), `stale` (something is under way),
`refused` (everything but what it refused) or `-` (it did not ask). Proxies of one SCOPE get the same.
REVISION counts the states of the mesh: `7` has acked the newest, `5 of 7` is on its way there.

Exit status 0, or 1 where a proxy lags, refused something, or where something is held back from it.")]
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
    let head = ["PROXY", "AGE", "CDS", "EDS", "LDS", "RDS", "SCOPE", "REVISION"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    let now = Timestamp::now();
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
        // The namespace stands in front already.
        let scope = one.scope.strip_prefix(&one.namespace).map_or(&*one.scope, |hash| hash.trim_start_matches('-'));
        rows.push(vec![
            name,
            age(&one.since, now),
            state("cds"),
            state("eds"),
            state("lds"),
            state("rds"),
            scope.to_owned(),
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

/// How long ago that was, in its two largest units at the most: `9s`, `4m32s`, `5h12m`, `3d7h`.
fn age(since: &str, now: Timestamp) -> String {
    let Ok(since) = since.parse::<Timestamp>() else { return since.to_owned() };
    let seconds = now.as_second().saturating_sub(since.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86_400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units_at_the_most() {
        let now: Timestamp = "2026-01-10T12:00:00Z".parse().unwrap();
        for (since, shown) in [
            ("2026-01-10T11:59:51.9Z", "9s"),
            ("2026-01-10T11:55:28Z", "4m32s"),
            ("2026-01-10T06:48:00Z", "5h12m"),
            ("2026-01-07T05:00:00Z", "3d7h"),
            ("2026-01-10T12:00:05Z", "0s"),
            ("then", "then"),
        ] {
            assert_eq!(age(since, now), shown, "{since}");
        }
    }
}
