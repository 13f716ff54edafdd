//! `weir dump`: prints what was sent to a proxy.

use std::process::ExitCode;

use envoy_types::pb::google::protobuf as pb;

use super::remote::{AdminArgs, Output, status_error};
use super::table::table;
use crate::admin::api::v1;
use crate::admin::api::v1::resource::State;
use crate::proto_json;

/// Print what was sent to a proxy and which of it was ACKed
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir dump shop/client-0 --type routes
  weir dump client-0 -o table
  weir dump client-0 --type clusters | jq '.resources[].resource | {name, type}'
  weir dump shop/client-0 --diff

--diff prints the differences to a fresh translation. They exist while an update is in flight, while
something is held back, or because of a bug in weir.

Exit status: 0 success, 1 the proxy is not connected or --diff found a difference.")]
pub(crate) struct Args {
    /// The proxy: NAMESPACE/POD, a unique pod name, or a node id
    #[arg(value_name = "POD")]
    pod: String,
    /// Only this type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<SentType>,
    /// Print the differences to a fresh translation instead
    #[arg(long)]
    diff: bool,
    #[command(flatten)]
    admin: AdminArgs,
    /// Output format [default: json; with --diff table, one line per difference]
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

/// A resource type that proxies are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SentType {
    /// CDS
    Clusters,
    /// EDS
    Endpoints,
    /// LDS
    Listeners,
    /// RDS
    Routes,
    /// RTDS: the weights that the proxy has as runtime values
    Runtime,
}

impl From<SentType> for v1::ResourceType {
    fn from(kind: SentType) -> Self {
        match kind {
            SentType::Clusters => Self::Cds,
            SentType::Endpoints => Self::Eds,
            SentType::Listeners => Self::Lds,
            SentType::Routes => Self::Rds,
            SentType::Runtime => Self::Rtds,
        }
    }
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut client = args.admin.client().await?;
    let kind = args.kind.map_or(v1::ResourceType::Unspecified, v1::ResourceType::from).into();
    if args.diff {
        let request = v1::DiffProxyRequest { proxy: args.pod, r#type: kind };
        let answer = client.diff_proxy(request).await.map_err(status_error)?.into_inner();
        let output = args.output.unwrap_or(Output::Table);
        output
            .print(&proto_json::message_to_json(&answer)?, || differences(&answer.differences))?;
        return Ok(if answer.differences.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let request = v1::DumpProxyRequest { proxy: args.pod, r#type: kind };
    let answer = client.dump_proxy(request).await.map_err(status_error)?.into_inner();
    match args.output.unwrap_or(Output::Json) {
        // The table does not need the contents of the messages.
        Output::Table => super::print(&resources(&answer.resources))?,
        output => output.print(&proto_json::message_to_json(&answer)?, String::new)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn resources(all: &[v1::Resource]) -> String {
    let rows = all.iter().map(|resource| {
        let bytes = resource.resource.as_ref().map_or(0, |any| any.value.len()).to_string();
        [
            resource.r#type().short_name().to_owned(),
            resource.name.clone(),
            resource.version.clone(),
            state_word(resource).to_owned(),
            bytes,
        ]
    });
    table(["TYPE", "NAME", "VERSION", "STATE", " BYTES"], rows)
}

fn state_word(resource: &v1::Resource) -> &'static str {
    match resource.state() {
        State::Acked => "acked",
        State::Sent => "sent",
        State::Rejected => "rejected",
        State::Unspecified => "?",
    }
}

/// A row for each difference; empty if there are none.
fn differences(all: &[v1::Difference]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let rows = all.iter().map(|difference| {
        let is_whole = difference.field.is_empty();
        [
            format!("{} {}", difference.r#type().short_name(), difference.name),
            difference.field.clone(),
            side(difference.sent.as_ref(), is_whole),
            side(difference.fresh.as_ref(), is_whole),
        ]
    });
    table(["RESOURCE", "FIELD", "SENT", "FRESH"], rows)
}

/// A value on one side of a difference; `is_whole` if it is an entire resource, which is too long for a table.
fn side(value: Option<&pb::Value>, is_whole: bool) -> String {
    match value {
        Some(_) if is_whole => "present".to_owned(),
        Some(value) => proto_json::message_to_json(value)
            .map_or_else(|error| error.to_string(), |json| json.to_string()),
        None => "missing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Option<pb::Value> {
        Some(pb::Value { kind: Some(pb::value::Kind::StringValue(text.to_owned())) })
    }

    fn item(field: &str, sent: Option<pb::Value>, fresh: Option<pb::Value>) -> v1::Difference {
        v1::Difference {
            r#type: v1::ResourceType::Rds.into(),
            name: "80".to_owned(),
            field: field.to_owned(),
            sent,
            fresh,
        }
    }

    #[test]
    fn a_difference_shows_both_sides_and_which_one_lacks_a_resource() {
        let table =
            differences(&[item("name", text("a"), text("b")), item("", text("all of it"), None)]);
        let lines: Vec<Vec<&str>> =
            table.lines().map(|line| line.split("  ").map(str::trim).collect()).collect();
        assert!(table.contains("rds 80    name   \"a\"      \"b\""), "{table}");
        assert!(table.contains("present  missing") && lines.len() == 3, "{table}");
        assert_eq!(differences(&[]), "");
    }
}
