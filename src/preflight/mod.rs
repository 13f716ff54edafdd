//! What in a cluster weir does not do, or does differently from Istiod, and which namespaces can move to it.
//!
//! [`check`] is a pure function of the documents that there are: of all kinds, from the API or from files. It is quiet
//! about what concerns no sidecar, such as policies of gateways and waypoints.

mod document;
mod kinds;
mod mesh_config;
#[cfg(test)]
mod tests;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use document::Document;
pub(crate) use kinds::RESOURCES;
use workloads::Workloads;

use crate::source::Origin;

/// How a finding bears on a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Has to be done when the namespace moves.
    Step,
    /// Works differently under weir.
    Difference,
    /// Does not work under weir, or is not safe.
    Blocker,
}

impl Level {
    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Level::Step => "step",
            Level::Difference => "difference",
            Level::Blocker => "blocker",
        }
    }
}

/// Whether a namespace can move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Nothing works differently.
    Yes,
    /// Something works differently.
    WithDifferences,
    /// Something does not work.
    No,
}

impl Verdict {
    /// As it is printed.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Verdict::Yes => "yes",
            Verdict::WithDifferences => "yes, with differences",
            Verdict::No => "no",
        }
    }
}

/// What a finding concerns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Concerns {
    /// Every namespace except these.
    Mesh(BTreeSet<String>),
    /// One namespace.
    Namespace(String),
}

/// One thing that weir does not do, or does differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// How it bears on a move.
    pub level: Level,
    /// What it concerns.
    pub concerns: Concerns,
    /// The kind of the object.
    pub kind: String,
    /// Its namespace; empty for a cluster-scoped kind.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it was read.
    pub origin: Origin,
    /// The field; empty for the entire object.
    pub path: String,
    /// What weir does with it.
    pub message: String,
    /// What can be done; may be empty.
    pub advice: String,
}

impl Finding {
    /// What findings of one level are sorted by.
    fn place(&self) -> (&str, &str, &str, &str, &Concerns) {
        (&self.namespace, &self.kind, &self.name, &self.path, &self.concerns)
    }

    /// The object as it is printed.
    pub(crate) fn object(&self) -> String {
        if self.namespace.is_empty() {
            format!("{} {}", self.kind, self.name)
        } else {
            format!("{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// The answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Whether each namespace of the mesh can move.
    pub namespaces: BTreeMap<String, Verdict>,
    /// The namespaces that are not in the mesh.
    pub outside: usize,
    /// All findings: the worst first, then by object.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The findings about a namespace, those about the whole mesh included.
    pub(crate) fn about<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Finding> {
        self.findings.iter().filter(move |finding| match &finding.concerns {
            Concerns::Mesh(except) => !except.contains(namespace),
            Concerns::Namespace(name) => name == namespace,
        })
    }
}

/// Judges what there is. `pods_known` says whether the documents include every pod.
pub(crate) fn check(documents: &[Document], root_namespace: &str, pods_known: bool) -> Report {
    let workloads = Workloads::new(documents, root_namespace, pods_known);
    let objects = documents.iter();
    let mut findings: Vec<Finding> =
        objects.flat_map(|document| kinds::check(document, documents, &workloads)).collect();
    findings.extend(workloads.findings());
    findings.sort_by(|a, b| b.level.cmp(&a.level).then_with(|| a.place().cmp(&b.place())));
    let mut members: BTreeSet<String> = workloads.namespaces().map(str::to_owned).collect();
    members.extend(findings.iter().filter_map(|finding| match &finding.concerns {
        Concerns::Namespace(name) => Some(name.clone()),
        Concerns::Mesh(_) => None,
    }));
    members.extend(kinds::namespaces_of_rules(documents));
    let all: BTreeSet<&str> = documents
        .iter()
        .filter(|document| document.is("", "Namespace"))
        .map(Document::name)
        .collect();
    let outside = all.iter().filter(|name| !members.contains(**name)).count();
    let mut report = Report { namespaces: BTreeMap::new(), outside, findings };
    for name in members {
        let worst = report.about(&name).map(|finding| finding.level).max();
        let verdict = match worst {
            None | Some(Level::Step) => Verdict::Yes,
            Some(Level::Difference) => Verdict::WithDifferences,
            Some(Level::Blocker) => Verdict::No,
        };
        report.namespaces.insert(name, verdict);
    }
    report
}
