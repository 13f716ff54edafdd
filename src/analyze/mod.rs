//! Static analysis of a set of objects: every problem of syntax, schema, values and references that can be found
//! without running anything. Pure: from a [`Store`] to [`Finding`]s.
//!
//! Problems of single objects are found when they are parsed (`api::validate`) and converted by `problems`. The other
//! modules check relations between objects and style.

mod annotations;
pub mod code;
mod conflicts;
mod destination_rule;
mod held;
mod host_conflicts;
mod index;
mod lines;
mod peer_authentication;
mod problems;
mod protocols;
mod references;
mod refused;
mod routes;
mod same_host;
mod served;
mod server_first;
mod service;
mod sidecar;
mod virtual_service;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use code::{Code, Severity};
pub(crate) use lines::refine;

use crate::api::{ObjectKey, Problem, Spec};
use crate::mesh::MeshConfig;
use crate::source::{LocatedProblem, Origin};
use crate::store::{Entry, Store};
use crate::text::listed;

/// A problem or piece of information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The code.
    pub code: &'static Code,
    /// The object; `None` for a finding about a file or a watched kind.
    pub object: Option<ObjectKey>,
    /// The location: the line of the object, or of the field if known.
    pub origin: Origin,
    /// The field, like `spec.http[0].route[1].weight`; empty for the entire object.
    pub path: String,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub advice: String,
}

/// All findings about the objects in `store`, in the order of [`sort`]. Their lines are those of the objects;
/// [`refine`] replaces them with the lines of the fields.
pub fn analyze(store: &Store, config: &MeshConfig) -> Vec<Finding> {
    findings(store, config, None)
}

/// The findings of [`analyze`] about one object of `store`. The relations of other objects are not examined, so this
/// takes a fraction of the time.
pub fn analyze_object(store: &Store, config: &MeshConfig, key: &ObjectKey) -> Vec<Finding> {
    findings(store, config, Some(key))
}

/// The findings about one object that follow from the object alone: `problems` are those of its intake.
pub(crate) fn of_intake(key: &ObjectKey, problems: Vec<Problem>) -> Vec<Finding> {
    let problems = problems.into_iter();
    let located = problems.map(|problem| LocatedProblem { origin: Origin::Cluster, problem });
    located.map(|problem| problems::finding(key, &problem)).collect()
}

fn findings(store: &Store, config: &MeshConfig, only: Option<&ObjectKey>) -> Vec<Finding> {
    let index = index::Index::new(store, config);
    let mut served = served::Served::new(&index.mesh);
    let mut found = Findings::default();
    problems::check(store, &mut found);
    annotations::check(store, &mut found);
    service::check(&index, &mut found);
    sidecar::check(&index, &mut found);
    peer_authentication::check(&index, &mut found);
    server_first::check(&index, &mut found);
    for virtual_service in index.virtual_services.iter().filter(|item| is_wanted(item.entry, only))
    {
        virtual_service::check(virtual_service, &mut found);
        routes::check(virtual_service, &mut found);
        references::check(virtual_service, &index, &mut found);
        served::check(virtual_service, &index, &mut served, &mut found);
        protocols::check(virtual_service, &index, &mut found);
    }
    references::delegates(&index, &mut found);
    for rule in index.destination_rules.iter().filter(|rule| is_wanted(rule.entry, only)) {
        destination_rule::check(rule, &index, &mut found);
        refused::check(rule, &index, &mut found);
    }
    conflicts::check(&index, &mut found);
    same_host::check(&index, &mut found);
    host_conflicts::check(&index, &mut found);
    held::check(&index, &mut found);
    let mut found = found.0;
    found.retain(|finding| only.is_none_or(|key| finding.object.as_ref() == Some(key)));
    sort(&mut found);
    found
}

fn is_wanted(entry: &Entry, only: Option<&ObjectKey>) -> bool {
    only.is_none_or(|key| entry.object.is(key))
}

/// Sorts findings by file and line, then by object, then by descending severity.
pub(crate) fn sort(findings: &mut [Finding]) {
    findings.sort_by(|a, b| {
        (&a.origin, &a.object)
            .cmp(&(&b.origin, &b.object))
            .then_with(|| b.code.severity.cmp(&a.code.severity))
            .then_with(|| a.code.id.cmp(b.code.id))
            .then_with(|| (&a.path, &a.message).cmp(&(&b.path, &b.message)))
    });
}

/// Collects findings.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    /// Adds a finding about a field of an object: what was found and what to do.
    fn add(
        &mut self,
        code: &'static Code,
        entry: &Entry,
        path: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.0.push(Finding {
            code,
            object: Some(entry.object.key()),
            origin: entry.origin.clone(),
            path: path.into(),
            message: message.into(),
            advice: advice.into(),
        });
    }
}

/// `one, two or three`.
fn any_of(names: &[String]) -> String {
    listed(names, "or")
}

/// `one, two and three`.
fn all_of(names: &[String]) -> String {
    listed(names, "and")
}

/// The spec of an entry if `get` accepts its kind.
fn spec_of<'a, T>(entry: &'a Entry, get: impl Fn(&'a Spec) -> Option<&'a T>) -> Option<&'a T> {
    get(&entry.object.spec)
}
