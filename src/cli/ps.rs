//! `weir ps`: lists connected proxies and their state.

use std::process::ExitCode;

use k8s_openapi::jiff::Timestamp;

use super::remote::{AdminArgs, Output, status_error};
use super::table::table;
use crate::admin::api::v1;
use crate::admin::api::v1::type_status::State;
use crate::proto_json;
use crate::snapshot::ResourceType;
use crate::text::listed;

/// List the connected proxies and their state
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir ps
  weir ps -o json

CDS, EDS, LDS and RDS are `synced` (the proxy ACKed everything), `stale` (an update is pending),
`rejected` (it ACKed everything except what it rejected) or `-` (it did not subscribe). Proxies with
the same SCOPE get the same resources. REVISION is that of the mesh: `7` has ACKed the newest one,
`5 of 7` has not ACKed it yet. Only the proxies of the replica that is asked are listed. A line above the
table says so if the Kubernetes API has not answered for 90 s, so that newer changes are not known.

Exit status: 0, or 1 if a proxy is lagging, has rejected something, or has something held back, or if the
objects are old.")]
pub(crate) struct Args {
    #[command(flatten)]
    admin: AdminArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut client = args.admin.client().await?;
    let answer =
        client.list_proxies(v1::ListProxiesRequest {}).await.map_err(status_error)?.into_inner();
    args.output.print(&proto_json::message_to_json(&answer)?, || text(&answer))?;
    let all_well = answer.proxies.iter().all(|proxy| {
        proxy.lagging.is_empty() && proxy.rejected.is_empty() && proxy.held.is_empty()
    });
    let all_well = all_well && answer.unanswered.is_empty();
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn text(answer: &v1::ListProxiesResponse) -> String {
    let mut out = old_objects(&answer.unanswered);
    if answer.proxies.is_empty() {
        return out + "no proxies connected\n";
    }
    let now = Timestamp::now();
    let head = ["PROXY", "AGE", "CDS", "EDS", "LDS", "RDS", "SCOPE", "REVISION"];
    out.push_str(&table(head, answer.proxies.iter().map(|proxy| row(proxy, now))));
    let problems: Vec<[String; 2]> = answer.proxies.iter().flat_map(problems).collect();
    if !problems.is_empty() {
        out.push('\n');
        out.push_str(&table(["PROXY", "PROBLEM"], problems));
    }
    out
}

/// A line that says from when the objects are; empty if their watches are answered.
fn old_objects(unanswered: &[v1::KindSync]) -> String {
    let Some(age) = unanswered.iter().map(|kind| kind.answered_seconds_ago).max() else {
        return String::new();
    };
    let names: Vec<&str> = unanswered.iter().map(|kind| kind.resource.as_str()).collect();
    let (watches, are) = if names.len() == 1 { ("watch", "is") } else { ("watches", "are") };
    let names = listed(&names, "and");
    format!("objects as of {age} s ago: the {watches} of {names} {are} not answered\n\n")
}

fn name(proxy: &v1::Proxy) -> String {
    format!("{}/{}", proxy.namespace, proxy.pod)
}

fn row(proxy: &v1::Proxy, now: Timestamp) -> [String; 8] {
    let [cds, eds, lds, rds] = ResourceType::OF_SNAPSHOT.map(|kind| {
        let kind = v1::ResourceType::from(kind);
        let state = proxy
            .types
            .iter()
            .find(|status| status.r#type() == kind)
            .map_or(State::NotSubscribed, |own| own.state());
        state_word(state).to_owned()
    });
    let revision = match (proxy.acked, proxy.wanted) {
        (Some(acked), Some(wanted)) if acked == wanted => acked.to_string(),
        (Some(acked), Some(wanted)) => format!("{acked} of {wanted}"),
        (None, Some(wanted)) => format!("- of {wanted}"),
        _ => "-".to_owned(),
    };
    // The namespace is already printed.
    let scope = proxy
        .scope
        .strip_prefix(&proxy.namespace)
        .map_or(&*proxy.scope, |hash| hash.trim_start_matches('-'));
    let since =
        proxy.streams.iter().filter_map(|stream| stream.since).map(|since| since.seconds).min();
    let age = since.map_or_else(|| "-".to_owned(), |since| age(since, now.as_second()));
    [name(proxy), age, cds, eds, lds, rds, scope.to_owned(), revision]
}

fn state_word(state: State) -> &'static str {
    match state {
        State::NotSubscribed => "-",
        State::Synced => "synced",
        State::Stale => "stale",
        State::Rejected => "rejected",
        State::Unspecified => "?",
    }
}

fn problems(proxy: &v1::Proxy) -> Vec<[String; 2]> {
    let mut found = Vec::new();
    if !proxy.lagging.is_empty() {
        found.push(format!("is lagging: {}", proxy.lagging));
    }
    if proxy.streams.iter().any(|stream| stream.only() != v1::ResourceType::Unspecified) {
        found.push(
            "uses a stream for each type instead of ADS: its routes may arrive before their clusters"
                .to_owned(),
        );
    }
    for rejected in &proxy.rejected {
        let (kind, name) = (rejected.r#type().short_name(), &rejected.name);
        let what = if rejected.virtual_host.is_empty() {
            format!("{kind} {name}")
        } else {
            format!("{kind} {name} virtual host {}", rejected.virtual_host)
        };
        found.push(format!("rejected {what}: {}", rejected.message));
    }
    for held in &proxy.held {
        let what = if held.virtual_host.is_empty() { &held.name } else { &held.virtual_host };
        found.push(format!(
            "keeps the previous version of {what}: there is no cluster {}",
            held.missing_cluster
        ));
    }
    found.into_iter().map(|problem| [name(proxy), problem]).collect()
}

/// The elapsed time in up to two units: `9s`, `4m32s`, `5h12m`, `3d7h`.
fn age(since: i64, now: i64) -> String {
    let seconds = now.saturating_sub(since).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86_400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(resource: &str, age: u32) -> v1::KindSync {
        v1::KindSync {
            resource: resource.to_owned(),
            answered_seconds_ago: age,
            ..Default::default()
        }
    }

    fn answer(unanswered: Vec<v1::KindSync>) -> v1::ListProxiesResponse {
        v1::ListProxiesResponse { unanswered, ..Default::default() }
    }

    #[test]
    fn objects_whose_watch_is_not_answered_are_named_with_their_age() {
        assert_eq!(text(&answer(vec![])), "no proxies connected\n");
        assert_eq!(
            text(&answer(vec![kind("services", 95)])),
            "objects as of 95 s ago: the watch of services is not answered\n\nno proxies connected\n"
        );
        let all = vec![kind("services", 95), kind("pods", 121), kind("nodes", 92)];
        assert_eq!(
            old_objects(&all),
            "objects as of 121 s ago: the watches of services, pods and nodes are not answered\n\n"
        );
    }

    #[test]
    fn ages_have_at_most_two_units() {
        for (seconds, shown) in
            [(9, "9s"), (272, "4m32s"), (18_720, "5h12m"), (284_400, "3d7h"), (-5, "0s")]
        {
            assert_eq!(age(1_768_046_400 - seconds, 1_768_046_400), shown);
        }
    }
}
