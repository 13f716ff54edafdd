//! `weir analyze`: reports problems in objects, before or after they are applied.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use comfy_table::{ColumnConstraint, Width};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::table::{self, BREAK, MAX_WIDTH, breakable};
use crate::analyze::{self, Finding, Severity, code};
use crate::api::Kind;
use crate::source::kubernetes::selection::Selection;
use crate::source::{Origin, directory, kubernetes};
use crate::store::Store;

/// How long the Kubernetes API may take to list everything.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// Below this width, cells are stacked instead of placed in columns.
const LEAST_TABLE: u16 = 80;

/// Flags of `weir analyze`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir analyze -f mesh.yaml                       one file
  weir analyze -f deploy/ --fail-on warning       a folder, for a pre-commit hook or CI
  weir analyze -f deploy/ -o json | jq '.findings[] | select(.severity == \"error\")'
  weir analyze --kubeconfig ~/.kube/config -n shop    the objects in a cluster
  weir analyze --list-codes                       every code and its meaning

References are resolved among the given objects, so include the Services, not only the routes.
Checks that depend on pods, such as empty subsets, need pods or endpoints among the objects.

Exit status: 0 no finding at or above --fail-on, 1 such a finding, 2 usage error or no input.")]
pub(crate) struct Args {
    /// A YAML or JSON file, or a folder of them, with Kubernetes and Istio objects
    #[arg(short, long, value_name = "FILE|DIR", required_unless_present_any = ["kubeconfig", "list_codes"])]
    file: Option<PathBuf>,
    /// Analyze the cluster of this kubeconfig instead, listing everything once
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    kubeconfig: Option<PathBuf>,
    /// Only report objects in this namespace; references are resolved in all namespaces
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Omit findings with this code or name; may be repeated
    #[arg(long, value_name = "CODE")]
    ignore: Vec<String>,
    /// The minimum severity that makes the exit status 1
    #[arg(long, value_enum, value_name = "SEVERITY", default_value = "error")]
    fail_on: Severity,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Only print every code with its severity and meaning
    #[arg(long)]
    list_codes: bool,
    #[command(flatten)]
    mesh: super::MeshArgs,
}

/// The output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// A table of at most 100 columns.
    Table,
    /// JSON.
    Json,
}

/// Runs the command.
///
/// # Errors
/// The result cannot be written.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.list_codes {
        return print_out(&list(args.output)?, ExitCode::SUCCESS);
    }
    if let Some(unknown) =
        args.ignore.iter().find(|name| !code::ALL.iter().any(|code| is(code, name)))
    {
        eprintln!(
            "weir: --ignore `{unknown}` is not a code; weir analyze --list-codes prints all codes"
        );
        return Ok(ExitCode::from(2));
    }
    let store = match read(&args).await {
        Ok(store) => store,
        Err(error) => {
            eprintln!("weir: {error:#}");
            return Ok(ExitCode::from(2));
        }
    };
    if let Some(name) = args.namespace.as_deref().filter(|name| !is_known(&store, name)) {
        eprintln!("weir: there are no objects in namespace `{name}`");
    }
    let mut findings = analyze::analyze(&store, &args.mesh.config());
    findings.retain(|finding| {
        let ignored = args.ignore.iter().any(|name| is(finding.code, name));
        let elsewhere = args
            .namespace
            .as_deref()
            .zip(finding.object.as_ref())
            .is_some_and(|(name, key)| *key.namespace != *name);
        !ignored && !elsewhere
    });
    analyze::refine(&mut findings, |path| std::fs::read(path).ok());
    let object_counts = ObjectCounts {
        objects: Kind::ALL.into_iter().map(|kind| store.count(kind)).sum(),
        rejected: store.rejected().count(),
    };
    let text = match args.output {
        Output::Json => {
            format!("{}\n", serde_json::to_string_pretty(&to_json(&findings, object_counts))?)
        }
        Output::Table => {
            let colours = std::io::stdout().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
            let text = report(&findings, object_counts, table::width());
            if colours { coloured(&text) } else { text }
        }
    };
    let failed = findings.iter().any(|finding| finding.code.severity >= args.fail_on);
    print_out(&text, if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn is_known(store: &Store, namespace: &str) -> bool {
    let all = Kind::ALL
        .into_iter()
        .flat_map(|kind| store.all(kind))
        .map(|entry| &*entry.object.meta.namespace);
    all.chain(store.rejected().map(|(key, _)| &*key.namespace)).any(|known| known == namespace)
}

/// The number of analyzed objects.
#[derive(Clone, Copy)]
struct ObjectCounts {
    /// Valid objects.
    objects: usize,
    /// Rejected objects.
    rejected: usize,
}

/// A reader that stops early (`| head`) is not a failure.
fn print_out(text: &str, code: ExitCode) -> anyhow::Result<ExitCode> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(code),
    }
}

fn is(code: &code::Code, name: &str) -> bool {
    code.id.eq_ignore_ascii_case(name) || code.name.eq_ignore_ascii_case(name)
}

async fn read(args: &Args) -> anyhow::Result<Store> {
    let (mut store, mut dirty) = (Store::default(), BTreeSet::new());
    if let Some(path) = &args.file {
        for change in directory::load_revision(path, args.mesh.config().revision)? {
            store.apply(change, &mut dirty);
        }
        // A hook that checks the wrong folder must not pass.
        if dirty.is_empty()
            && store.rejected().next().is_none()
            && store.source_problems().next().is_none()
        {
            let kinds = Kind::ALL.map(Kind::as_str).join(", ");
            bail!(
                "{}: no .yaml, .yml or .json file contains an object of these kinds: {kinds}",
                path.display()
            );
        }
        return Ok(store);
    }
    let client = kubernetes::client(args.kubeconfig.as_deref()).await?;
    let selection = Selection { revision: args.mesh.config().revision, ..Default::default() };
    let (sender, mut changes) = mpsc::channel(16);
    let (states, _) = watch::channel(Vec::new());
    let listing = async {
        while let Some(batch) = changes.recv().await {
            for change in batch {
                store.apply(change, &mut dirty);
            }
            if store.synced() {
                break;
            }
        }
    };
    let listed = tokio::time::timeout(LIST_TIMEOUT, async {
        tokio::select! {
            () = listing => {}
            _ = kubernetes::watch(client, selection, states, sender) => {}
        }
    });
    if listed.await.is_err() {
        let why: Vec<_> =
            store.source_problems().flat_map(|(_, list)| list).map(ToString::to_string).collect();
        bail!(
            "the Kubernetes API did not list everything within {} s: {}",
            LIST_TIMEOUT.as_secs(),
            why.join("; ")
        );
    }
    Ok(store)
}

fn list(output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        let codes: Vec<Value> = code::ALL
            .iter()
            .map(|code| json!({"code": code.id, "name": code.name, "severity": code.severity.as_str(), "about": code.about}))
            .collect();
        return Ok(format!("{}\n", serde_json::to_string_pretty(&codes)?));
    }
    let rows = code::ALL.iter().map(|code| Row {
        severity: code.severity.as_str(),
        code: code.id,
        place: vec![code.name.to_owned()],
        message: code.about.to_owned(),
    });
    Ok(print(
        ["LEVEL", "CODE", "NAME", "MEANING"],
        &rows.collect::<Vec<_>>(),
        MAX_WIDTH,
        MAX_WIDTH / 2,
    ))
}

fn finding_to_json(finding: &Finding) -> Value {
    let (file, line) = match &finding.origin {
        Origin::File { path, line } => (Some(path.display().to_string()), Some(*line)),
        Origin::Cluster => (None, None),
    };
    let object = finding.object.as_ref().map(
        |key| json!({"kind": key.kind.as_str(), "namespace": &*key.namespace, "name": &*key.name}),
    );
    json!({
        "severity": finding.code.severity.as_str(),
        "code": finding.code.id,
        "name": finding.code.name,
        "object": object,
        "file": file,
        "line": line,
        "path": finding.path,
        "message": finding.message,
        "advice": finding.advice,
    })
}

fn to_json(findings: &[Finding], object_counts: ObjectCounts) -> Value {
    json!({
        "findings": findings.iter().map(finding_to_json).collect::<Vec<_>>(),
        "summary": {
            "error": count(findings, Severity::Error),
            "warning": count(findings, Severity::Warning),
            "info": count(findings, Severity::Info),
            "objects": object_counts.objects,
            "rejected": object_counts.rejected,
        },
    })
}

fn count(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.code.severity == severity).count()
}

/// `1 error`, `2 errors`.
fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn colour(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "\x1b[31m",
        Severity::Warning => "\x1b[33m",
        Severity::Info => "\x1b[36m",
    }
}

/// One row; long cells are wrapped.
struct Row {
    severity: &'static str,
    code: &'static str,
    /// At least one line each.
    place: Vec<String>,
    message: String,
}

fn report(findings: &[Finding], object_counts: ObjectCounts, width: u16) -> String {
    let ObjectCounts { objects, rejected } = object_counts;
    let objects = counted(objects + rejected, "object");
    if findings.is_empty() {
        return format!("No problems found in {objects}.\n");
    }
    let rows = findings.iter().map(|finding| {
        let origin = Some(finding.origin.to_string()).filter(|_| finding.origin != Origin::Cluster);
        let object = finding.object.as_ref().map(ToString::to_string);
        let path = Some(finding.path.clone()).filter(|path| !path.is_empty());
        Row {
            severity: finding.code.severity.as_str(),
            code: finding.code.id,
            place: [origin, object, path].into_iter().flatten().collect(),
            message: if finding.advice.is_empty() {
                finding.message.clone()
            } else {
                format!("{}; {}", finding.message, finding.advice)
            },
        }
    });
    let rows: Vec<_> = rows.collect();
    let mut text = if width < LEAST_TABLE {
        stack(&rows, width)
    } else {
        print(["LEVEL", "CODE", "WHERE", "WHAT"], &rows, width, width * 36 / 100)
    };
    let mut last = vec![format!(
        "{}, {}, {} in {objects}",
        counted(count(findings, Severity::Error), "error"),
        counted(count(findings, Severity::Warning), "warning"),
        counted(count(findings, Severity::Info), "note"),
    )];
    if rejected > 0 {
        let which = if rejected == 1 {
            "1 object is rejected"
        } else {
            &format!("{rejected} objects are rejected")
        };
        last.push(format!("{which}; the last accepted version, if any, stays active"));
    }
    text.push('\n');
    text.extend(last.iter().map(|line| table::wrapped(line, &[' '], width)));
    text
}

/// The characters after which a place may be wrapped: in file paths, object names and field paths.
const PLACE_BREAKS: &[char] = &['/', '.', ' '];

/// The rows with each cell on its own lines.
fn stack(rows: &[Row], width: u16) -> String {
    let mut text = String::new();
    for row in rows {
        text += &format!("{} {}\n", row.severity, row.code);
        let places = row.place.iter().map(|line| table::wrapped(line, PLACE_BREAKS, width - 2));
        for lines in places.chain([table::wrapped(&row.message, &[' '], width - 2)]) {
            lines.lines().for_each(|line| text += &format!("  {line}\n"));
        }
    }
    text
}

fn print(head: [&str; 4], rows: &[Row], width: u16, most_place: u16) -> String {
    let mut table = table::empty(width);
    table.set_header(head);
    for row in rows {
        let place: Vec<String> =
            row.place.iter().map(|line| breakable(line, PLACE_BREAKS)).collect();
        table.add_row([row.severity, row.code, &place.join("\n"), &row.message]);
    }
    let longest = rows
        .iter()
        .flat_map(|row| &row.place)
        .map(|line| line.chars().count())
        .max()
        .unwrap_or_default();
    let place_fits = longest <= usize::from(most_place);
    for (n, column) in table.column_iter_mut().enumerate().take(3) {
        column.set_constraint(ColumnConstraint::ContentWidth);
        if n == 2 && !place_fits {
            column
                .set_delimiter(BREAK)
                .set_constraint(ColumnConstraint::Absolute(Width::Fixed(most_place)));
        }
    }
    table::print(table)
}

/// Colours the severities, which are at the beginning of lines.
fn coloured(text: &str) -> String {
    text.lines().map(coloured_line).collect()
}

fn coloured_line(line: &str) -> String {
    for severity in [Severity::Error, Severity::Warning, Severity::Info] {
        if let Some(rest) = line.strip_prefix(severity.as_str())
            && rest.starts_with(' ')
        {
            return format!("{}{}\x1b[0m{rest}\n", colour(severity), severity.as_str());
        }
    }
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::table::MIN_WIDTH;

    #[test]
    fn only_severities_are_coloured() {
        let plain = "LEVEL  CODE\nerror  WEIR0101  errors are here\n       info  b\ninfo   X\n";
        let text = coloured(plain);
        assert_eq!(
            text,
            plain
                .replace("\nerror ", "\n\x1b[31merror\x1b[0m ")
                .replace("\ninfo ", "\n\x1b[36minfo\x1b[0m ")
        );
    }

    #[test]
    fn the_list_of_codes_fits_its_width() {
        let text = list(Output::Table).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= usize::from(MAX_WIDTH)), "{text}");
        assert!(code::ALL.iter().all(|code| text.contains(code.id) && text.contains(code.name)));
    }

    fn finding(origin: Origin) -> Finding {
        Finding {
            code: &code::SCHEMA,
            object: Some(crate::api::ObjectKey::new(
                Kind::VirtualService,
                "shop",
                "a-name-that-is-not-short-at-all",
            )),
            origin,
            path: "spec.http[0].route[0].destination.host".to_owned(),
            message: "is not what anyone would have expected to find in this place".to_owned(),
            advice: "write something else, something that is expected".to_owned(),
        }
    }

    #[test]
    fn a_table_fits_the_terminal() {
        let file = Origin::File {
            path: std::sync::Arc::new("some/folder/with/a/file.yaml".into()),
            line: 1234,
        };
        for width in [MIN_WIDTH, LEAST_TABLE, MAX_WIDTH] {
            let object_counts = ObjectCounts { objects: 7, rejected: 2 };
            let text =
                report(&[finding(file.clone()), finding(Origin::Cluster)], object_counts, width);
            assert!(text.lines().all(|line| line.chars().count() <= usize::from(width)), "{text}");
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains("2 objects are rejected; the last"), "{text}");
            assert!(words.contains("2 errors, 0 warnings, 0 notes in 9 objects"), "{text}");
        }
    }
}
