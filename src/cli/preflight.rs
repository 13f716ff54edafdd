//! `weir preflight`: whether namespaces can move from Istiod to weir.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::remote::Output;
use super::table::{self, table};
use crate::bootstrap::dns_label;
use crate::preflight::{self, Concerns, Document, Finding, Level, Report};
use crate::source::kubernetes::{self, inventory};
use crate::source::{Origin, directory};

/// Report what weir does not do, or does differently from Istiod, and which namespaces can move to it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir preflight                                 the cluster of the current kubeconfig
  weir preflight --kubeconfig FILE -n shop       one namespace of it
  weir preflight -f manifests/                   files, before they are applied
  weir preflight -o json | jq '.namespaces[] | select(.canMove == \"no\")'

A namespace can move: yes; yes, with differences (something works differently under weir); or no
(something does not work under weir, or is not safe). A `step` is what has to be done when it moves.
Namespaces without sidecars and Istio objects are not listed. Reads everything and writes nothing. Pods
are read by their metadata; in files, the pod templates of Deployments and the like count as well.

Exit status: 0 every listed namespace can move, 1 some cannot or something cannot be read, 2 usage
error or no input.")]
pub(crate) struct Args {
    /// A YAML or JSON file, or a folder of them, instead of a cluster
    #[arg(short, long, value_name = "FILE|DIR", conflicts_with = "kubeconfig")]
    file: Option<PathBuf>,
    /// The kubeconfig of the cluster [default: the current one, or the cluster that this runs in]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Only report this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Istio's root namespace, whose policies apply to all namespaces
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system", value_parser = dns_label)]
    root_namespace: String,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// What was read.
struct Input {
    documents: Vec<Document>,
    pods_known: bool,
    /// What cannot be read, and why.
    unreadable: Vec<(String, String)>,
}

/// Runs the command.
///
/// # Errors
/// There is no input, or the result cannot be written.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let input = match &args.file {
        Some(path) => from_files(path)?,
        None => from_cluster(&args).await?,
    };
    let mut report = preflight::check(&input.documents, &args.root_namespace, input.pods_known);
    if let Some(only) = &args.namespace {
        report = only_about(report, only);
        if report.namespaces.is_empty() {
            eprintln!("weir: namespace `{only}` has no sidecars and no Istio objects");
        }
    }
    args.output.print(&to_json(&report, &input.unreadable), || text(&report))?;
    for (what, why) in &input.unreadable {
        eprintln!("weir: {what}: {why}; the answer is incomplete without it");
    }
    let stays = report.namespaces.values().any(|verdict| *verdict == preflight::Verdict::No);
    let failed = stays || !input.unreadable.is_empty();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn from_files(path: &std::path::Path) -> anyhow::Result<Input> {
    let (documents, problems) =
        directory::documents(path).map_err(|error| super::usage(error.to_string()))?;
    if documents.is_empty() && problems.is_empty() {
        let none = format!("{}: no .yaml, .yml or .json file contains an object", path.display());
        return Err(super::usage(none));
    }
    let documents = documents.into_iter().map(|(origin, value)| Document { origin, value });
    let unreadable =
        problems.iter().map(|item| (item.origin.to_string(), item.problem.to_string()));
    Ok(Input {
        documents: documents.collect(),
        pods_known: false,
        unreadable: unreadable.collect(),
    })
}

async fn from_cluster(args: &Args) -> anyhow::Result<Input> {
    let client = kubernetes::client(args.kubeconfig.as_deref())
        .await
        .map_err(|error| super::usage(error.to_string()))?;
    let core = [("", "namespaces"), ("", "pods")];
    let resources: Vec<(&str, &str)> = core.into_iter().chain(preflight::RESOURCES).collect();
    let read = inventory::list(&client, &resources, |group, _| group.is_empty())
        .await
        .map_err(anyhow::Error::msg)
        .context("cannot ask the Kubernetes API what it serves")?;
    let pods_known = !read.unreadable.iter().any(|(what, _)| what == "pods");
    let (mut documents, mut unreadable) = (read.documents, read.unreadable);
    match inventory::config_maps(&client, &args.root_namespace).await {
        Ok(maps) => documents.extend(maps),
        Err(why) => unreadable.push((format!("configmaps of {}", args.root_namespace), why)),
    }
    let documents =
        documents.into_iter().map(|value| Document { origin: Origin::Cluster, value }).collect();
    Ok(Input { documents, pods_known, unreadable })
}

fn only_about(report: Report, namespace: &str) -> Report {
    let findings = report.about(namespace).cloned().collect();
    let mut namespaces = report.namespaces;
    namespaces.retain(|name, _| name == namespace);
    Report { namespaces, findings, outside: 0 }
}

fn text(report: &Report) -> String {
    if report.namespaces.is_empty() {
        return "no namespace has sidecars or Istio objects\n".to_owned();
    }
    let mut out = table(
        ["NAMESPACE", "CAN MOVE", "BECAUSE OF"],
        report.namespaces.iter().map(|(name, verdict)| {
            [name.clone(), verdict.as_str().to_owned(), reasons(report, name)]
        }),
    );
    if report.outside > 0 {
        let many = if report.outside == 1 { "namespace is" } else { "namespaces are" };
        out += &format!("\n{} more {many} not in the mesh\n", report.outside);
    }
    if !report.findings.is_empty() {
        out.push('\n');
        let rows = report
            .findings
            .iter()
            .map(|finding| [finding.level.as_str().to_owned(), place(finding), what(finding)]);
        out += &table(["LEVEL", "OBJECT", "WHAT"], rows);
    }
    out.push('\n');
    let note = "Sidecars of weir use mutual TLS if weir runs with --identity on, and plain text otherwise.";
    out + &table::wrapped(note, &[' '], table::width())
}

/// The objects that decide the verdict about a namespace.
fn reasons(report: &Report, namespace: &str) -> String {
    let worst = report.about(namespace).map(|finding| finding.level).max();
    let level = worst.filter(|level| *level > Level::Step);
    let objects = report.about(namespace).filter(|finding| Some(finding.level) == level);
    let mut objects: Vec<String> = objects.map(Finding::object).collect();
    objects.dedup();
    if objects.is_empty() { "-".to_owned() } else { objects.join(", ") }
}

fn place(finding: &Finding) -> String {
    let origin = Some(finding.origin.to_string()).filter(|_| finding.origin != Origin::Cluster);
    let path = Some(finding.path.clone()).filter(|path| !path.is_empty());
    [origin, Some(finding.object()), path].into_iter().flatten().collect::<Vec<_>>().join("\n")
}

fn what(finding: &Finding) -> String {
    let scope = match &finding.concerns {
        Concerns::Mesh(_) => "; it concerns every namespace".to_owned(),
        Concerns::Namespace(name)
            if *name != finding.namespace && !finding.namespace.is_empty() =>
        {
            format!("; it concerns namespace {name}")
        }
        Concerns::Namespace(_) => String::new(),
    };
    let advice = Some(&finding.advice).filter(|advice| !advice.is_empty());
    let advice = advice.map(|advice| format!("; {advice}")).unwrap_or_default();
    format!("{}{scope}{advice}", finding.message)
}

fn finding_to_json(finding: &Finding) -> Value {
    let (file, line) = match &finding.origin {
        Origin::File { path, line } => (Some(path.display().to_string()), Some(*line)),
        Origin::Cluster => (None, None),
    };
    let concerns = match &finding.concerns {
        Concerns::Mesh(except) => json!({"all": true, "except": except}),
        Concerns::Namespace(name) => json!({"namespace": name}),
    };
    json!({
        "level": finding.level.as_str(),
        "concerns": concerns,
        "kind": finding.kind,
        "namespace": finding.namespace,
        "name": finding.name,
        "file": file,
        "line": line,
        "path": finding.path,
        "message": finding.message,
        "advice": finding.advice,
    })
}

fn to_json(report: &Report, unreadable: &[(String, String)]) -> Value {
    let namespaces = report.namespaces.iter();
    let unreadable = unreadable.iter();
    json!({
        "namespaces": namespaces
            .map(|(name, verdict)| json!({"name": name, "canMove": verdict.as_str()}))
            .collect::<Vec<_>>(),
        "outside": report.outside,
        "findings": report.findings.iter().map(finding_to_json).collect::<Vec<_>>(),
        "unreadable": unreadable
            .map(|(what, why)| json!({"what": what, "why": why}))
            .collect::<Vec<_>>(),
    })
}
