//! `weir doctor`: how far weir is with each kind of object, and what to do where it is stuck.

use std::process::ExitCode;

use k8s_openapi::jiff::Timestamp;

use super::remote::{AdminArgs, Output, status_error};
use super::table::table;
use crate::admin::api::v1;
use crate::admin::api::v1::kind_sync::State;
use crate::proto_json;
use crate::source::sync::OLD;

/// Report how far weir is with each kind of object that it reads, with advice where it is stuck
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir doctor
  weir doctor -o json

A kind is `synced`, `waiting` (its first list is not complete), `absent` (the API does not serve it; it
counts as empty until it does), `forbidden` (a verb is missing in weir's role) or `failing`. ANSWERED is
how long ago the API sent something about the kind, which it does about every minute. If the
webhook is on, its certificate and what is wrong with it are reported too. The same is at
/ready?verbose on the admin port.

Exit status: 0 weir is ready and nothing is wrong, 1 otherwise, 2 usage error.")]
pub(crate) struct Args {
    #[command(flatten)]
    admin: AdminArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Runs the command.
///
/// # Errors
/// weir cannot be asked, or the result cannot be written.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut client = args.admin.client().await?;
    let request = v1::GetReadinessRequest {};
    let answer = client.get_readiness(request).await.map_err(status_error)?.into_inner();
    args.output.print(&proto_json::message_to_json(&answer)?, || text(&answer))?;
    let webhook = answer.webhook.as_ref().is_none_or(|webhook| webhook.works);
    let signs = answer.authority.as_ref().is_none_or(|authority| authority.valid_until.is_some());
    let all_well = answer.ready && answer.kinds.iter().all(is_well) && webhook && signs;
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn is_well(kind: &v1::KindSync) -> bool {
    matches!(kind.state(), State::Synced | State::Absent) && !is_old(kind)
}

fn text(answer: &v1::GetReadinessResponse) -> String {
    let ready = if answer.ready { "weir is ready\n" } else { "weir is not ready\n" };
    let webhook = answer.webhook.as_ref().map(webhook).unwrap_or_default();
    let parts = webhook + &answer.authority.as_ref().map(authority).unwrap_or_default();
    if answer.kinds.is_empty() {
        return format!("{ready}objects are read from a folder\n{parts}");
    }
    let rows = answer.kinds.iter().map(|kind| {
        [kind.resource.clone(), word(kind.state()).to_owned(), age(kind), advice(kind)]
    });
    format!("{ready}{parts}\n{}", table(["RESOURCE", "STATE", "ANSWERED", "WHAT TO DO"], rows))
}

fn webhook(webhook: &v1::Webhook) -> String {
    let until =
        webhook.valid_until.as_ref().and_then(|until| Timestamp::from_second(until.seconds).ok());
    let certificate = match until {
        Some(until) => format!("its certificate is valid until {until}"),
        None => "it has no certificate yet".to_owned(),
    };
    let works = if webhook.works { "works" } else { "does not work" };
    let lines = webhook.problems.iter().map(|problem| format!("  {problem}\n"));
    format!("the webhook {works}: {certificate}\n{}", lines.collect::<String>())
}

fn authority(authority: &v1::CertificateAuthority) -> String {
    let until = authority.valid_until.as_ref();
    match until.and_then(|until| Timestamp::from_second(until.seconds).ok()) {
        Some(until) => {
            let roots = authority.roots;
            format!(
                "the certificate authority signs: valid until {until}; trusted roots: {roots}\n"
            )
        }
        None => "the certificate authority does not sign: it has no root yet; the log says why\n"
            .to_owned(),
    }
}

/// Whether the API has not answered for so long that changes may be missing.
fn is_old(kind: &v1::KindSync) -> bool {
    u64::from(kind.answered_seconds_ago) >= OLD.as_secs()
}

fn age(kind: &v1::KindSync) -> String {
    format!("{} s ago", kind.answered_seconds_ago)
}

fn word(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::Waiting => "waiting",
        State::Synced => "synced",
        State::Absent => "absent",
        State::Forbidden => "forbidden",
        State::Failing => "failing",
    }
}

fn advice(kind: &v1::KindSync) -> String {
    let kept = match kind.complete {
        true => "what was known before stays in force",
        false => "weir is not ready until it can be listed",
    };
    match kind.state() {
        State::Synced if is_old(kind) => {
            format!("see that the API server answers: changes since then are missing; {kept}")
        }
        State::Synced => "-".to_owned(),
        State::Waiting => kind.reason.clone(),
        State::Absent => {
            "nothing, unless you use it: install its CustomResourceDefinition".to_owned()
        }
        State::Forbidden => format!(
            "allow the verb `{}` on {} in the role of weir's ServiceAccount; {kept}: {}",
            kind.missing_verb, kind.resource, kind.reason
        ),
        State::Failing | State::Unspecified => {
            format!("see that the API server answers; {kept}: {}", kind.reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(age: u32) -> v1::KindSync {
        v1::KindSync {
            resource: "services".to_owned(),
            state: State::Synced.into(),
            complete: true,
            answered_seconds_ago: age,
            ..Default::default()
        }
    }

    fn shown(age: u32) -> String {
        text(&v1::GetReadinessResponse {
            ready: true,
            kinds: vec![kind(age)],
            webhook: None,
            authority: None,
        })
    }

    #[test]
    fn a_kind_whose_watch_is_not_answered_is_reported_as_old() {
        assert!(!is_old(&kind(61)) && shown(61).contains("61 s ago"), "{}", shown(61));
        assert!(is_old(&kind(95)), "{}", shown(95));
        assert!(shown(95).contains("95 s ago  see that the API server answers"), "{}", shown(95));
    }
}
