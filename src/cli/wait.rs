//! `weir wait`: returns when an object is live on every proxy that sees it.

use std::process::ExitCode;
use std::time::Duration;

use super::remote::{AdminArgs, refused};
use crate::admin::api::v1;

/// Wait until an object is live: acked by every proxy that sees it, and nothing of it held back
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir wait virtualservice/my-app -n shop
  kubectl apply -f canary.yaml && weir wait vs/my-app -n shop --timeout 30s && ./next-step

Exit status 0 when the object's present form is live, 1 when the time is over, with what is missing
where, or when there is no such object, 2 for wrong usage.")]
pub struct Args {
    /// The object: virtualservice/NAME (vs) or destinationrule/NAME (dr)
    #[arg(value_name = "KIND/NAME")]
    object: String,
    /// Its namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    /// How long to wait, like 30s or 2m
    #[arg(long, value_name = "TIME", default_value = "60s", allow_hyphen_values = true, value_parser = time)]
    timeout: Duration,
    /// Wait for this generation or a later one, as the API server counts (metadata.generation)
    #[arg(long, value_name = "N")]
    generation: Option<i64>,
    #[command(flatten)]
    admin: AdminArgs,
}

fn time(text: &str) -> Result<Duration, String> {
    crate::api::Duration::parse(text).map(|duration| duration.0)
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Some((kind, name)) = args.object.split_once('/').filter(|(_, name)| !name.is_empty()) else {
        return Err(super::usage(format!("`{}` is not of the form KIND/NAME", args.object)));
    };
    if crate::admin::api::object_kind(kind).is_none() {
        return Err(super::usage(format!("kind `{kind}`: expected virtualservice (vs) or destinationrule (dr)")));
    }
    let request =
        v1::GetObjectRequest { kind: kind.to_owned(), namespace: args.namespace.clone(), name: name.to_owned() };
    let mut client = args.admin.client().await?;
    let mut last: Option<v1::ObjectStatus> = None;
    // Whatever the time, one answer is taken.
    let time = args.timeout.max(Duration::from_secs(1));
    let waited = tokio::time::timeout(time, async {
        let mut updates = client.watch_object(request).await.map_err(refused)?.into_inner();
        while let Some(status) = updates.message().await.map_err(refused)? {
            let new_enough = args.generation.is_none_or(|wanted| status.generation >= wanted);
            if status.live && new_enough {
                return Ok(status);
            }
            last = Some(status);
        }
        anyhow::bail!("weir ended the stream")
    })
    .await;
    match waited {
        Ok(status) => {
            let status = status?;
            let generation =
                if status.generation > 0 { format!(" generation {}", status.generation) } else { String::new() };
            let number = match status.proxies.len() {
                0 => "0 proxies: none that sees it is connected".to_owned(),
                1 => "1 proxy".to_owned(),
                n => format!("{n} proxies"),
            };
            super::print(&format!("{}{generation} is live on {number}\n", status.object))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(_) => {
            eprint!("{}", missing(&args, last.as_ref()));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn missing(args: &Args, status: Option<&v1::ObjectStatus>) -> String {
    let seconds = args.timeout.as_secs_f64();
    let Some(status) = status else {
        return format!("weir said nothing of {} in {seconds} s; it may not be ready\n", args.object);
    };
    let mut out = format!("{} is not live after {seconds} s\n", status.object);
    if let Some(wanted) = args.generation.filter(|wanted| status.generation < *wanted) {
        out.push_str(&format!("  weir has generation {}, wanted {wanted}\n", status.generation));
    } else if status.generation < status.newest_generation && status.invalid.is_empty() {
        let newest = status.newest_generation;
        out.push_str(&format!("  weir has generation {} and has not heard of {newest} yet\n", status.generation));
    }
    status.invalid.iter().for_each(|one| out.push_str(&format!("  refused: {one}\n")));
    status.held.iter().for_each(|one| out.push_str(&format!("  held: {one}\n")));
    for proxy in status.proxies.iter().filter(|proxy| proxy.state != "live") {
        out.push_str(&format!("  {} {}: {}\n", proxy.id, proxy.state, proxy.reason));
    }
    out
}
