//! `weir diff`: what would change in the running mesh if objects in files were applied.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::progress::Progress;
use super::recorded::Recording;
use super::remote::{AdminArgs, Output, status_error};
use super::table::{table, width, wrapped};
use crate::admin::api::v1;
use crate::proto_json;
use crate::source::directory;

/// Show what would change in the running mesh if objects were applied; nothing is written
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("requests").args(["request", "samples"]).multiple(true)))]
#[command(after_help = "Examples:
  weir diff -f canary.yaml
  weir diff -f deploy/ --from shop/client-0 --request 'GET http://web/' --request 'GET http://web/api'
  kubectl logs client-0 -c istio-proxy -n shop | weir diff -f deploy/ --from shop/client-0 --samples -

The running weir compares the files with the objects that it reads: which objects are new or different,
which resources would be added, changed or removed on how many of the proxies that are connected to the
replica that is asked, what becomes of the given requests, and what weir analyze would find in addition.
Objects that are not in the files stay as they are.

--samples reads one request per line: the access log of the client's sidecar, as JSON with Istio's keys or
as text in the default format of Istio or Envoy, or lines of your own, such as
  {\"method\": \"GET\", \"host\": \"web\", \"port\": 80, \"path\": \"/api\", \"headers\": {\"x-user\": \"alice\"}}
Lines about received requests, about connections without HTTP and of any other kind are skipped; their
number and the first one go to standard error. A log has few of a request's headers: routes are chosen
as if it had no others.

Exit status: 0 nothing would change, 1 something would change or is invalid, 2 usage error, 3 weir cannot
be reached.")]
pub(crate) struct Args {
    /// A YAML or JSON file, or a folder of them, with the objects
    #[arg(short, long, value_name = "FILE|DIR")]
    file: PathBuf,
    /// The client pod of the requests
    #[arg(long, value_name = "NAMESPACE/POD", requires = "requests")]
    from: Option<String>,
    /// A request whose fate before and after is compared; may be repeated
    #[arg(long, value_name = "METHOD URL", requires = "from")]
    request: Vec<String>,
    /// A file of requests that the client sent before, one per line, such as its sidecar's access log; - is standard input
    #[arg(long, value_name = "FILE", requires = "from")]
    samples: Option<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    admin: AdminArgs,
}

/// The exit status if weir cannot be asked: 1 says that something would change.
const NO_ANSWER: u8 = 3;

/// How many different recorded requests weir is asked about at once: the admin port answers within 30 s.
const BATCH: usize = 500;

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
    let progress = Progress::start("weir diff");
    let recording = match &args.samples {
        Some(file) => read(file, &progress).inspect_err(|_| progress.clear())?,
        None => Recording::default(),
    };
    let answer = ask(&args, files, &recording, &progress).await;
    progress.clear();
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) if error.is::<super::Usage>() => return Err(error),
        Err(error) => {
            eprintln!("weir: {error:#}");
            return Ok(ExitCode::from(NO_ANSWER));
        }
    };
    if let Some(file) = &args.samples {
        let file = file.display().to_string();
        recording.remarks(&file).iter().for_each(|remark| eprintln!("weir: {remark}"));
    }
    args.output.print(&json(&answer, &args, &recording)?, || report(&answer, &args))?;
    Ok(if changes(&answer) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Reads recorded requests from a file, or from standard input.
fn read(file: &Path, progress: &Progress) -> anyhow::Result<Recording> {
    let name = file.display().to_string();
    let input: Box<dyn BufRead> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin().lock()),
        _ => {
            let opened = File::open(file);
            let opened =
                opened.map_err(|error| super::usage(format!("--samples {name}: {error}")))?;
            Box::new(BufReader::new(opened))
        }
    };
    let recording = Recording::read(input, progress)
        .map_err(|error| super::usage(format!("--samples {name}: {error}")))?;
    if !recording.requests.is_empty() {
        return Ok(recording);
    }
    let why = match recording.remarks(&name).first() {
        Some(remark) => remark.clone(),
        None => "it is empty".to_owned(),
    };
    Err(super::usage(format!("--samples {name}: there is no request in it: {why}")))
}

async fn ask(
    args: &Args,
    files: Vec<(PathBuf, Vec<u8>)>,
    recording: &Recording,
    progress: &Progress,
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
    let mut request = v1::PreviewObjectsRequest {
        files: files.collect(),
        samples: samples.collect(),
        ..Default::default()
    };
    let all = recording.asked(&from);
    let mut batches = all.chunks(BATCH);
    request.recorded = batches.next().map(<[_]>::to_vec).unwrap_or_default();
    progress.is("comparing");
    let mut client = args.admin.client().await?;
    let mut done = request.recorded.len();
    let first = client.preview_objects(request.clone()).await.map_err(status_error)?;
    let mut answer = first.into_inner();
    request.samples.clear();
    request.requests_only = true;
    for batch in batches {
        progress.further(&format!("{} of {} different requests", spaced(done), spaced(all.len())));
        request.recorded = batch.to_vec();
        let next = client.preview_objects(request.clone()).await.map_err(status_error)?;
        if let (Some(sum), Some(more)) = (&mut answer.replay, next.into_inner().replay) {
            add(sum, more);
        }
        done += batch.len();
    }
    Ok(answer)
}

/// Adds what becomes of further requests, which are not more frequent.
fn add(sum: &mut v1::Replay, more: v1::Replay) {
    sum.requests = sum.requests.saturating_add(more.requests);
    sum.elsewhere = sum.elsewhere.saturating_add(more.elsewhere);
    sum.other_settings = sum.other_settings.saturating_add(more.other_settings);
    for group in more.moves {
        let mut all = sum.moves.iter_mut();
        match all.find(|known| (&known.before, &known.after) == (&group.before, &group.after)) {
            Some(known) => known.requests = known.requests.saturating_add(group.requests),
            None => sum.moves.push(group),
        }
    }
    sum.moves.sort_by_key(|group| std::cmp::Reverse(group.requests));
}

/// The answer of weir, with what was read from the file of requests.
fn json(
    answer: &v1::PreviewObjectsResponse,
    args: &Args,
    recording: &Recording,
) -> anyhow::Result<serde_json::Value> {
    let mut json = proto_json::message_to_json(answer)?;
    if args.samples.is_some() {
        let object = json.as_object_mut().context("the answer is not an object")?;
        object.insert("recording".to_owned(), recording.json());
    }
    Ok(json)
}

fn changes(answer: &v1::PreviewObjectsResponse) -> bool {
    let unchanged = v1::object_preview::Change::Unchanged;
    !answer.problems.is_empty() || answer.objects.iter().any(|item| item.change() != unchanged)
}

fn report(answer: &v1::PreviewObjectsResponse, args: &Args) -> String {
    let mut out = objects(answer);
    let [changed, all] = [answer.changed_proxies, answer.proxies];
    out += &format!("\n{changed} of {all} connected proxies would get something else.\n");
    if !answer.resources.is_empty() {
        let head = ["TYPE", "RESOURCE", "CHANGE", " PROXIES"];
        out += &table(head, answer.resources.iter().map(resource));
    }
    for (sample, request) in answer.samples.iter().zip(&args.request) {
        out += &match sample.changed {
            false => format!("\n{request}: the same as now\n"),
            true => format!(
                "\n{request}, now:\n{}{request}, then:\n{}",
                indented(&sample.before),
                indented(&sample.after)
            ),
        };
    }
    if let Some(replay) = &answer.replay {
        out += &replayed(replay, args.from.as_deref().unwrap_or_default());
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

/// How many groups of requests are shown.
const SHOWN: usize = 20;

/// What becomes of recorded requests.
fn replayed(replay: &v1::Replay, from: &str) -> String {
    let [elsewhere, all, other] =
        [replay.elsewhere, replay.requests, replay.other_settings].map(spaced);
    let mut out = format!("\n{elsewhere} of {all} requests of {from} would go elsewhere.\n");
    if replay.other_settings > 0 {
        out += &format!(
            "{other} would go where they go now, with other settings, such as a timeout.\n"
        );
    }
    for group in replay.moves.iter().take(SHOWN) {
        let example = group.example.clone().unwrap_or_default();
        let headers = example.headers.iter().map(|header| format!(" -H '{header}'"));
        let example = format!("{}{}", example.request, headers.collect::<String>());
        let count = spaced(group.requests);
        out += &match group.requests {
            1 => format!("\n1 request: {example}\n"),
            _ => format!("\n{count} requests such as {example}\n"),
        };
        for (label, ends) in [("now", &group.before), ("then", &group.after)] {
            for (n, end) in ends.iter().enumerate() {
                out += &format!("  {:<4}  {end}\n", if n == 0 { label } else { "" });
            }
        }
    }
    let rest = replay.moves.iter().skip(SHOWN);
    let (groups, requests) =
        rest.fold((0, 0), |(groups, sum), group| (groups + 1, sum + group.requests));
    if groups > 0 {
        out +=
            &format!("\n{} more in {groups} smaller groups: -o json has all\n", spaced(requests));
    }
    out
}

/// A number with a blank before each three digits.
fn spaced(number: impl ToString) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        let cases = [(0, "0"), (999, "999"), (1204, "1 204"), (1_234_567, "1 234 567")];
        for (number, wanted) in cases {
            assert_eq!(spaced(number), wanted);
        }
    }

    fn part(before: &str, requests: u64) -> v1::Replay {
        let before = vec![before.to_owned()];
        let moves = vec![v1::replay::Move { before, requests, ..Default::default() }];
        v1::Replay { requests: requests + 1, elsewhere: requests, other_settings: 1, moves }
    }

    #[test]
    fn answers_about_parts_of_a_recording_are_added() {
        let mut sum = part("a", 5);
        add(&mut sum, part("b", 4));
        add(&mut sum, part("b", 3));
        assert_eq!((sum.requests, sum.elsewhere, sum.other_settings), (15, 12, 3));
        let groups: Vec<_> =
            sum.moves.iter().map(|group| (&*group.before[0], group.requests)).collect();
        assert_eq!(groups, [("b", 7), ("a", 5)]);
    }

    #[test]
    fn the_largest_groups_are_shown_and_the_others_are_summed_up() {
        let groups = (0..SHOWN + 2).map(|n| v1::replay::Move {
            before: vec!["100.00 %  a".into()],
            after: vec!["90.00 %  a".into(), "10.00 %  b".into()],
            requests: if n == 0 { 1500 } else { 3 },
            example: Some(v1::ExplainRequest {
                request: format!("GET http://a/{n}"),
                ..Default::default()
            }),
        });
        let moves: Vec<_> = groups.collect();
        let replay = v1::Replay { requests: 9876, elsewhere: 1563, other_settings: 0, moves };
        let text = replayed(&replay, "shop/client-0");
        let start = "\n1 563 of 9 876 requests of shop/client-0 would go elsewhere.\n\n\
            1 500 requests such as GET http://a/0\n  now   100.00 %  a\n  then  90.00 %  a\n        10.00 %  b\n";
        assert!(text.starts_with(start), "{text}");
        assert!(text.ends_with("\n6 more in 2 smaller groups: -o json has all\n"), "{text}");
    }
}
