//! `weir analyze`: what is wrong with objects, before or after they are applied.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::analyze::{self, Finding, Severity, code};
use crate::api::Kind;
use crate::source::{Origin, directory, kubernetes};
use crate::store::Store;

/// How long the Kubernetes API may take to list everything.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// How wide a table is, unless it is for a terminal that is narrower.
const WIDTH: usize = 100;
/// Narrower than this, columns side by side can not be read.
const LEAST_TABLE: usize = 80;
/// Narrower than this, nothing can.
const LEAST_WIDTH: usize = 30;

/// Flags of `weir analyze`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir analyze -f mesh.yaml                       one file
  weir analyze -f deploy/ --fail-on warning       a folder, for a pre-commit hook or CI
  weir analyze -f deploy/ -o json | jq '.findings[] | select(.severity == \"error\")'
  weir analyze --kubeconfig ~/.kube/config -n shop    what is in the cluster
  weir analyze --list-codes                       every code and what it means

References are looked up among the objects given: hand it the Services too, not only the routes.
What is only known of pods (whether a subset has any) is said where pods or endpoints are given.

Exit status: 0 nothing at or above --fail-on, 1 something, 2 wrong usage or nothing to read.")]
pub struct Args {
    /// A YAML or JSON file, or a folder of them, with Kubernetes and Istio objects
    #[arg(short, long, value_name = "FILE|DIR", required_unless_present_any = ["kubeconfig", "list_codes"])]
    file: Option<PathBuf>,
    /// The cluster of this kubeconfig instead; everything is listed once
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    kubeconfig: Option<PathBuf>,
    /// Only findings about objects in this namespace; references are looked up in all
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Leave out findings with this code or name; may be repeated
    #[arg(long, value_name = "CODE")]
    ignore: Vec<String>,
    /// The least severity that makes the exit status 1
    #[arg(long, value_enum, value_name = "SEVERITY", default_value = "error")]
    fail_on: Severity,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Print every code with its severity and meaning, and do nothing else
    #[arg(long)]
    list_codes: bool,
    #[command(flatten)]
    mesh: super::MeshArgs,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people: at most 100 columns.
    Table,
    /// For programs.
    Json,
}

/// Runs the command.
///
/// # Errors
/// The answer can not be written.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.list_codes {
        return print_out(&list(args.output)?, ExitCode::SUCCESS);
    }
    if let Some(unknown) = args.ignore.iter().find(|name| !code::ALL.iter().any(|code| is(code, name))) {
        eprintln!("weir: --ignore `{unknown}` is no code; weir analyze --list-codes prints them all");
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
        eprintln!("weir: no object is in the namespace `{name}`");
    }
    let mut findings = analyze::analyze(&store, &args.mesh.config());
    findings.retain(|one| {
        let ignored = args.ignore.iter().any(|name| is(one.code, name));
        let elsewhere =
            args.namespace.as_deref().zip(one.object.as_ref()).is_some_and(|(name, key)| *key.namespace != *name);
        !ignored && !elsewhere
    });
    analyze::refine(&mut findings, |path| std::fs::read(path).ok());
    let looked_at = LookedAt {
        objects: Kind::ALL.into_iter().map(|kind| store.count(kind)).sum(),
        refused: store.refused().count(),
    };
    let text = match args.output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&to_json(&findings, looked_at))?),
        Output::Table => {
            let colours =
                std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
            table(&findings, looked_at, width(), colours)
        }
    };
    let failed = findings.iter().any(|one| one.code.severity >= args.fail_on);
    print_out(&text, if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn is_known(store: &Store, namespace: &str) -> bool {
    let all = Kind::ALL.into_iter().flat_map(|kind| store.all(kind)).map(|entry| &*entry.object.meta.namespace);
    all.chain(store.refused().map(|(key, _)| &*key.namespace)).any(|known| known == namespace)
}

/// What was looked at.
#[derive(Clone, Copy)]
struct LookedAt {
    /// How many objects that can be used.
    objects: usize,
    /// How many that can not.
    refused: usize,
}

/// How many columns there are; the size is that of the terminal, and a pipe has none.
fn width() -> usize {
    let columns = terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0));
    columns.map_or(WIDTH, |columns| columns.clamp(LEAST_WIDTH, WIDTH))
}

/// A reader that has seen enough (`| head`) is no failure.
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
        for change in directory::load_once(path)? {
            store.apply(change, &mut dirty);
        }
        // A hook that looks at the wrong folder must not pass.
        if dirty.is_empty() && store.refused().next().is_none() && store.trouble().next().is_none() {
            let kinds = Kind::ALL.map(Kind::as_str).join(", ");
            bail!("{}: no file in it (.yaml, .yml or .json) holds an object of these kinds: {kinds}", path.display());
        }
        return Ok(store);
    }
    let client = kubernetes::client(args.kubeconfig.as_deref()).await?;
    let (sender, mut changes) = mpsc::channel(16);
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
            _ = kubernetes::watch(client, sender) => {}
        }
    });
    if listed.await.is_err() {
        let why: Vec<_> = store.trouble().flat_map(|(_, list)| list).map(ToString::to_string).collect();
        bail!("the Kubernetes API did not list everything in {} s: {}", LIST_TIMEOUT.as_secs(), why.join("; "));
    }
    Ok(store)
}

fn list(output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        let codes: Vec<Value> = code::ALL
            .iter()
            .map(|one| json!({"code": one.id, "name": one.name, "severity": one.severity.as_str(), "about": one.about}))
            .collect();
        return Ok(format!("{}\n", serde_json::to_string_pretty(&codes)?));
    }
    let rows = code::ALL.iter().map(|one| Row {
        severity: one.severity.as_str(),
        colour: colour(one.severity),
        code: one.id,
        place: vec![one.name.to_owned()],
        message: one.about.to_owned(),
    });
    Ok(print(["LEVEL", "CODE", "NAME", "MEANING"], &rows.collect::<Vec<_>>(), WIDTH, WIDTH / 2, false))
}

fn to_json(findings: &[Finding], looked_at: LookedAt) -> Value {
    let one = |finding: &Finding| {
        let (file, line) = match &finding.origin {
            Origin::File { path, line } => (Some(path.display().to_string()), Some(*line)),
            Origin::Cluster => (None, None),
        };
        let object = finding
            .object
            .as_ref()
            .map(|key| json!({"kind": key.kind.as_str(), "namespace": &*key.namespace, "name": &*key.name}));
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
    };
    let counts = counts(findings);
    let count = |severity| counts.get(&severity).copied().unwrap_or_default();
    json!({
        "findings": findings.iter().map(one).collect::<Vec<_>>(),
        "summary": {
            "error": count(Severity::Error),
            "warning": count(Severity::Warning),
            "info": count(Severity::Info),
            "objects": looked_at.objects,
            "refused": looked_at.refused,
        },
    })
}

fn counts(findings: &[Finding]) -> BTreeMap<Severity, usize> {
    let mut counts = BTreeMap::new();
    findings.iter().for_each(|one| *counts.entry(one.code.severity).or_default() += 1);
    counts
}

fn colour(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "\x1b[31m",
        Severity::Warning => "\x1b[33m",
        Severity::Info => "\x1b[36m",
    }
}

/// One row; the cells that may be long are wrapped.
struct Row {
    severity: &'static str,
    colour: &'static str,
    code: &'static str,
    /// A line each, at least.
    place: Vec<String>,
    message: String,
}

fn table(findings: &[Finding], looked_at: LookedAt, width: usize, colours: bool) -> String {
    let counts = counts(findings);
    let count = |severity, one: &str, many: &str| {
        let n = counts.get(&severity).copied().unwrap_or_default();
        format!("{n} {}", if n == 1 { one } else { many })
    };
    let LookedAt { objects, refused } = looked_at;
    let objects = format!("{} {}", objects + refused, if objects + refused == 1 { "object" } else { "objects" });
    if findings.is_empty() {
        return format!("Nothing found in {objects}.\n");
    }
    let rows = findings.iter().map(|one| {
        let origin = Some(one.origin.to_string()).filter(|_| one.origin != Origin::Cluster);
        let object = one.object.as_ref().map(ToString::to_string);
        let path = Some(one.path.clone()).filter(|path| !path.is_empty());
        Row {
            severity: one.code.severity.as_str(),
            colour: colour(one.code.severity),
            code: one.code.id,
            place: [origin, object, path].into_iter().flatten().collect(),
            message: if one.advice.is_empty() {
                one.message.clone()
            } else {
                format!("{}; {}", one.message, one.advice)
            },
        }
    });
    let rows: Vec<_> = rows.collect();
    let mut text = if width < LEAST_TABLE {
        stack(&rows, width, colours)
    } else {
        print(["LEVEL", "CODE", "WHERE", "WHAT"], &rows, width, width * 36 / 100, colours)
    };
    let mut last = vec![format!(
        "{}, {}, {} in {objects}",
        count(Severity::Error, "error", "errors"),
        count(Severity::Warning, "warning", "warnings"),
        count(Severity::Info, "note", "notes"),
    )];
    if refused > 0 {
        let which = if refused == 1 { "1 of these is refused" } else { &format!("{refused} of these are refused") };
        last.push(format!("{which}: what weir last accepted of them, if anything, stays in force"));
    }
    text.push('\n');
    for line in last.iter().flat_map(|line| wrap(line, width, &[' '])) {
        text += &format!("{line}\n");
    }
    text
}

/// The rows with each cell on lines of its own.
fn stack(rows: &[Row], width: usize, colours: bool) -> String {
    let mut text = String::new();
    for row in rows {
        let (on, off) = if colours { (row.colour, "\x1b[0m") } else { ("", "") };
        text += &format!("{on}{}{off} {}\n", row.severity, row.code);
        let places = row.place.iter().flat_map(|line| wrap(line, width - 2, &['/', '.', ' ']));
        for line in places.chain(wrap(&row.message, width - 2, &[' '])) {
            text += &format!("  {line}\n");
        }
    }
    text
}

fn print([a, b, c, d]: [&str; 4], rows: &[Row], width: usize, most_place: usize, colours: bool) -> String {
    let longest = |of: fn(&Row) -> usize, least: usize| rows.iter().map(of).max().unwrap_or(0).max(least);
    let severity = longest(|row| row.severity.len(), 5);
    let code = longest(|row| row.code.len(), 4);
    let place = longest(|row| row.place.iter().map(|line| line.chars().count()).max().unwrap_or(0), 5).min(most_place);
    let message = width.saturating_sub(severity + code + place + 6);
    let mut text = format!("{a:severity$}  {b:code$}  {c:place$}  {d}\n");
    for row in rows {
        let places: Vec<String> = row.place.iter().flat_map(|line| wrap(line, place, &['/', '.', ' '])).collect();
        let messages = wrap(&row.message, message, &[' ']);
        for n in 0..places.len().max(messages.len()).max(1) {
            let cell = |lines: &[String]| lines.get(n).cloned().unwrap_or_default();
            let (level, id) = if n == 0 { (row.severity, row.code) } else { ("", "") };
            let (on, off) = if colours && n == 0 { (row.colour, "\x1b[0m") } else { ("", "") };
            let line = format!("{on}{level:severity$}{off}  {id:code$}  {:place$}  {}", cell(&places), cell(&messages));
            text += line.trim_end();
            text.push('\n');
        }
    }
    text
}

/// `text` in lines of at most `width` characters, broken after one of `breaks` where there is one.
fn wrap(text: &str, width: usize, breaks: &[char]) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    let mut rest: Vec<char> = text.chars().collect();
    while rest.len() > width {
        // A break that is a blank may stand just beyond the line, since it is not printed.
        let at_blank = rest.get(width).filter(|c| **c == ' ').map(|_| width);
        let before = rest.iter().take(width).rposition(|c| breaks.contains(c)).filter(|at| *at > 0).map(|at| at + 1);
        let end = at_blank.or(before).unwrap_or(width);
        let tail = rest.split_off(end);
        lines.push(rest.into_iter().collect::<String>().trim_end().to_owned());
        rest = tail.into_iter().skip_while(|c| *c == ' ').collect();
    }
    lines.push(rest.into_iter().collect());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_where_they_may_be() {
        assert_eq!(wrap("one two three", 7, &[' ']), ["one two", "three"]);
        assert_eq!(wrap("one two three", 6, &[' ']), ["one", "two", "three"]);
        assert_eq!(wrap("a/bb/ccc", 5, &['/']), ["a/bb/", "ccc"]);
        assert_eq!(wrap("abcdefgh", 3, &[' ']), ["abc", "def", "gh"]);
        assert_eq!(wrap("", 3, &[' ']), [""]);
    }

    #[test]
    fn the_list_of_codes_fits_the_page() {
        let text = list(Output::Table).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(code::ALL.iter().all(|code| text.contains(code.id) && text.contains(code.name)));
    }

    #[test]
    fn a_table_fits_the_terminal() {
        let finding = |origin| Finding {
            code: &code::SCHEMA,
            object: Some(crate::api::ObjectKey::new(Kind::VirtualService, "shop", "a-name-that-is-not-short-at-all")),
            origin,
            path: "spec.http[0].route[0].destination.host".to_owned(),
            message: "is not what anyone would have expected to find in this place".to_owned(),
            advice: "write something else, something that is expected".to_owned(),
        };
        let file = Origin::File { path: std::sync::Arc::new("some/folder/with/a/file.yaml".into()), line: 1234 };
        for width in [LEAST_WIDTH, LEAST_TABLE, WIDTH] {
            let text = table(
                &[finding(file.clone()), finding(Origin::Cluster)],
                LookedAt { objects: 7, refused: 2 },
                width,
                false,
            );
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains("2 of these are refused: what weir last"), "{text}");
            assert!(words.contains("2 errors, 0 warnings, 0 notes in 9 objects"), "{text}");
        }
    }
}
