//! `weir diff`: what would change in the running mesh if objects in files were applied.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;

use super::remote::{AdminArgs, Output, status_error};
use super::table::{table, width, wrapped};
use crate::admin::api::v1;
use crate::proto_json;
use crate::source::directory;

/// Show what would change in the running mesh if objects were applied; nothing is written
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir diff -f canary.yaml
  weir diff -f deploy/ --from shop/client-0 --request 'GET http://web/' --request 'GET http://web/api'

The running weir compares the files with the objects that it reads: which objects are new or different,
which resources would be added, changed or removed on how many of the proxies that are connected to the
replica that is asked, what becomes of the given requests, and what weir analyze would find in addition.
Objects that are not in the files stay as they are.

Exit status: 0 nothing would change, 1 something would change or is invalid, 2 usage error, 3 weir cannot
be reached.")]
pub(crate) struct Args {
    /// A YAML or JSON file, or a folder of them, with the objects
    #[arg(short, long, value_name = "FILE|DIR")]
    file: PathBuf,
    /// The client pod of the requests
    #[arg(long, value_name = "NAMESPACE/POD", requires = "request")]
    from: Option<String>,
    /// A request whose fate before and after is compared; may be repeated
    #[arg(long, value_name = "METHOD URL", requires = "from")]
    request: Vec<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    admin: AdminArgs,
}

/// The exit status if weir cannot be asked: 1 says that something would change.
const NO_ANSWER: u8 = 3;

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (files, unreadable) =
        directory::files(&args.file).map_err(|error| super::usage(error.to_string()))?;
    if let Some(problem) = unreadable.first() {
        bail!(super::usage(problem.to_string()));
    }
    if files.is_empty() {
        let name = args.file.display();
        return Err(super::usage(format!("{name}: there is no .yaml, .yml or .json file in it")));
    }
    let answer = match ask(&args, files).await {
        Ok(answer) => answer,
        Err(error) if error.is::<super::Usage>() => return Err(error),
        Err(error) => {
            eprintln!("weir: {error:#}");
            return Ok(ExitCode::from(NO_ANSWER));
        }
    };
    args.output.print(&proto_json::message_to_json(&answer)?, || report(&answer, &args.request))?;
    Ok(if changes(&answer) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn ask(
    args: &Args,
    files: Vec<(PathBuf, Vec<u8>)>,
) -> anyhow::Result<v1::PreviewObjectsResponse> {
    let from = args.from.clone().unwrap_or_default();
    let samples = args.request.iter().map(|request| v1::ExplainRequest {
        from: from.clone(),
        request: request.clone(),
        ..Default::default()
    });
    let files = files
        .into_iter()
        .map(|(path, content)| v1::File { path: path.display().to_string(), content });
    let request = v1::PreviewObjectsRequest { files: files.collect(), samples: samples.collect() };
    let mut client = args.admin.client().await?;
    Ok(client.preview_objects(request).await.map_err(status_error)?.into_inner())
}

fn changes(answer: &v1::PreviewObjectsResponse) -> bool {
    let unchanged = v1::object_preview::Change::Unchanged;
    !answer.problems.is_empty() || answer.objects.iter().any(|item| item.change() != unchanged)
}

fn report(answer: &v1::PreviewObjectsResponse, requests: &[String]) -> String {
    let mut out = objects(answer);
    let [changed, all] = [answer.changed_proxies, answer.proxies];
    out += &format!("\n{changed} of {all} connected proxies would get something else.\n");
    if !answer.resources.is_empty() {
        let head = ["TYPE", "RESOURCE", "CHANGE", " PROXIES"];
        out += &table(head, answer.resources.iter().map(resource));
    }
    for (sample, request) in answer.samples.iter().zip(requests) {
        out += &match sample.changed {
            false => format!("\n{request}: the same as now\n"),
            true => format!(
                "\n{request}, now:\n{}{request}, then:\n{}",
                indented(&sample.before),
                indented(&sample.after)
            ),
        };
    }
    if !answer.held.is_empty() {
        out += "\nHeld back until an endpoint is ready:\n";
        answer.held.iter().for_each(|held| out += &line(held));
    }
    if !answer.findings.is_empty() {
        out += "\nNew findings:\n";
        answer.findings.iter().for_each(|finding| out += &line(&found(finding)));
    }
    out
}

fn objects(answer: &v1::PreviewObjectsResponse) -> String {
    let unchanged = v1::object_preview::Change::Unchanged;
    let mut out = String::new();
    answer.problems.iter().for_each(|problem| out += &line(problem));
    for item in answer.objects.iter().filter(|item| item.change() != unchanged) {
        let object = item.object.clone().unwrap_or_default();
        let change = item.change().as_str_name().to_ascii_lowercase();
        out += &format!("{change:<8} {} {}/{}\n", object.kind, object.namespace, object.name);
        item.details.iter().for_each(|detail| out += &line(detail));
    }
    let same = answer.objects.iter().filter(|item| item.change() == unchanged).count();
    if same > 0 {
        out += &format!("as now   {same} of {} objects\n", answer.objects.len());
    }
    out
}

fn resource(item: &v1::ResourcePreview) -> [String; 4] {
    let name = match item.virtual_host.as_str() {
        "" => item.name.clone(),
        host => format!("{}: {host}", item.name),
    };
    let change = item.change().as_str_name().to_ascii_lowercase();
    [item.r#type().as_str_name().to_owned(), name, change, item.proxies.to_string()]
}

fn found(finding: &v1::Finding) -> String {
    let object = finding.object.clone().unwrap_or_default();
    let place = format!("{} {}/{} {}", object.kind, object.namespace, object.name, finding.field);
    let severity = finding.severity().as_str_name().to_ascii_lowercase();
    format!("{severity} {}: {}: {}", finding.code, place.trim(), finding.message)
}

/// A line of its own below what it belongs to.
fn line(text: &str) -> String {
    indented(&wrapped(text, &[' '], width().saturating_sub(2)))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
