//! `weir wait`: waits until an object is live on every proxy that sees it.

use std::process::ExitCode;
use std::time::Duration;

use super::remote::{AdminArgs, Output, status_error};
use crate::admin::api::v1;
use crate::admin::api::v1::proxy_state::State;
use crate::proto_json;

/// Wait until an object is live: ACKed by every proxy that sees it, with nothing held back
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir wait virtualservice/my-app -n shop
  kubectl apply -f canary.yaml && weir wait vs/my-app -n shop --timeout 30s && ./next-step
  weir wait vs/my-app -n shop -o json | jq -r '.proxies[] | select(.state != \"LIVE\") | .id'

Counts the proxies of the replica that is asked. Those of all replicas, in a cluster:
  kubectl wait --for=condition=Programmed virtualservice/my-app -n shop

Exit status: 0 the current version of the object is live; 1 timeout, with what is missing on which
proxy, or the object does not exist; 2 usage error.")]
pub(crate) struct Args {
    /// The object: virtualservice/NAME (vs) or destinationrule/NAME (dr)
    #[arg(value_name = "KIND/NAME")]
    object: String,
    /// Its namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    /// How long to wait, for example 30s or 2m
    #[arg(long, value_name = "TIME", default_value = "60s", allow_hyphen_values = true, value_parser = time)]
    timeout: Duration,
    /// Wait for this generation (metadata.generation) or a later one
    #[arg(long, value_name = "N")]
    generation: Option<i64>,
    #[command(flatten)]
    admin: AdminArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

fn time(text: &str) -> Result<Duration, String> {
    crate::api::Duration::parse(text).map(|duration| duration.0)
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Some((kind, name)) = args.object.split_once('/').filter(|(_, name)| !name.is_empty())
    else {
        return Err(super::usage(format!("`{}`: expected KIND/NAME", args.object)));
    };
    if crate::admin::convert::object_kind(kind).is_none() {
        return Err(super::usage(format!(
            "kind `{kind}`: expected virtualservice (vs) or destinationrule (dr)"
        )));
    }
    let request = v1::GetObjectRequest {
        kind: kind.to_owned(),
        namespace: args.namespace.clone(),
        name: name.to_owned(),
    };
    let mut client = args.admin.client().await?;
    let mut last: Option<v1::ObjectStatus> = None;
    // At least one report is read, regardless of the timeout.
    let time = args.timeout.max(Duration::from_secs(1));
    let waited = tokio::time::timeout(time, async {
        let mut updates = client.watch_object(request).await.map_err(status_error)?.into_inner();
        while let Some(status) = updates.message().await.map_err(status_error)? {
            let new_enough = args.generation.is_none_or(|wanted| status.generation >= wanted);
            if status.live && new_enough {
                return Ok(status);
            }
            last = Some(status);
        }
        anyhow::bail!("weir closed the stream")
    })
    .await;
    let (status, code) = match waited {
        Ok(live) => (Some(live?), ExitCode::SUCCESS),
        Err(_) => (last, ExitCode::FAILURE),
    };
    match (&status, args.output) {
        (Some(status), Output::Table) if code == ExitCode::SUCCESS => super::print(&live(status))?,
        (status, Output::Table) => eprint!("{}", missing(&args, status.as_ref())),
        (None, _) => eprint!("{}", missing(&args, None)),
        (Some(status), output) => {
            output.print(&proto_json::message_to_json(status)?, String::new)?;
        }
    }
    Ok(code)
}

fn name(status: &v1::ObjectStatus) -> String {
    status.object.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn live(status: &v1::ObjectStatus) -> String {
    let generation = if status.generation > 0 {
        format!(" generation {}", status.generation)
    } else {
        String::new()
    };
    let number = match status.proxies.len() {
        0 => "0 proxies: no connected proxy sees it".to_owned(),
        1 => "1 proxy".to_owned(),
        n => format!("{n} proxies"),
    };
    format!("{}{generation} is live on {number}\n", name(status))
}

fn missing(args: &Args, status: Option<&v1::ObjectStatus>) -> String {
    let seconds = args.timeout.as_secs_f64();
    let Some(status) = status else {
        return format!(
            "weir did not report on {} within {seconds} s; it may not be ready\n",
            args.object
        );
    };
    let mut lines = vec![format!("{} is not live after {seconds} s", name(status))];
    if let Some(wanted) = args.generation.filter(|wanted| status.generation < *wanted) {
        lines.push(format!("  weir has generation {}, expected {wanted}", status.generation));
    } else if status.generation < status.newest_generation && status.invalid.is_empty() {
        let newest = status.newest_generation;
        lines.push(format!(
            "  weir has generation {} and has not received {newest} yet",
            status.generation
        ));
    }
    lines.extend(status.invalid.iter().map(|problem| format!("  refused: {problem}")));
    lines.extend(status.held.iter().map(|held| format!("  held: {held}")));
    for proxy in status.proxies.iter().filter(|proxy| proxy.state() != State::Live) {
        lines.push(format!("  {} {}: {}", proxy.id, state_word(proxy.state()), proxy.reason));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn state_word(state: State) -> &'static str {
    match state {
        State::Live => "live",
        State::Lagging => "lagging",
        State::Held => "held",
        State::Rejected => "rejected",
        State::Unspecified => "in a state that this program does not know",
    }
}
