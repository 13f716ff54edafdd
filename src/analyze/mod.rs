//! What is wrong with a set of objects: every problem of syntax, schema, value and reference that can be told without
//! running anything. Pure: from a [`Store`] to [`Finding`]s.
//!
//! What can be told of one object alone is told when it is read (`api::validate`), and handed on by `problems`. The
//! other modules hold what needs more: the other objects, or the knowledge that a person wants to know what is fine.

mod annotations;
pub mod code;
mod conflicts;
mod destination_rule;
mod held;
mod host_conflicts;
mod index;
mod lines;
mod problems;
mod protocols;
mod references;
mod routes;
mod same_host;
mod served;
mod service;
mod sidecar;
mod virtual_service;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;

pub use code::{Code, Severity};
pub use lines::refine;

use crate::api::{ObjectKey, Spec};
use crate::mesh::MeshConfig;
use crate::source::Origin;
use crate::store::{Entry, Store};

/// One thing that is wrong, or worth knowing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of finding it is.
    pub code: &'static Code,
    /// The object; `None` where the finding is about a file or a watched kind.
    pub object: Option<ObjectKey>,
    /// Where that is: the line of the object, or of the field where it is known.
    pub origin: Origin,
    /// The field, like `spec.http[0].route[1].weight`; empty for the object as a whole.
    pub path: String,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub advice: String,
}

/// Everything that is wrong with what `store` holds, in the order of [`sort`]. The lines are those of the objects;
/// [`refine`] makes them those of the fields.
pub fn analyze(store: &Store, config: &MeshConfig) -> Vec<Finding> {
    let index = index::Index::new(store, config);
    let mut served = served::Served::new(&index.mesh);
    let mut found = Findings::default();
    problems::check(store, &mut found);
    annotations::check(store, &mut found);
    service::check(&index, &mut found);
    sidecar::check(&index, &mut found);
    for one in &index.virtual_services {
        virtual_service::check(one, &mut found);
        routes::check(one, &mut found);
        references::check(one, &index, &mut found);
        served::check(one, &index, &mut served, &mut found);
        protocols::check(one, &index, &mut found);
    }
    references::delegates(&index, &mut found);
    for one in &index.destination_rules {
        destination_rule::check(one, &index, &mut found);
    }
    conflicts::check(&index, &mut found);
    same_host::check(&index, &mut found);
    host_conflicts::check(&index, &mut found);
    held::check(&index, &mut found);
    let mut found = found.0;
    sort(&mut found);
    found
}

/// Sorts findings by file and line, then by object, the worst of each first.
pub fn sort(findings: &mut [Finding]) {
    findings.sort_by(|a, b| {
        let key = |one: &'_ Finding| (Reverse(one.code.severity), one.code.id);
        (&a.origin, &a.object)
            .cmp(&(&b.origin, &b.object))
            .then_with(|| key(a).cmp(&key(b)))
            .then_with(|| (&a.path, &a.message).cmp(&(&b.path, &b.message)))
    });
}

/// The findings so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    /// Adds one about a field of an object: what was found, and what to do.
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

fn listed(names: &[String], last_word: &str) -> String {
    match names {
        [] => String::new(),
        [name] => name.clone(),
        [first @ .., last] => format!("{} {last_word} {last}", first.join(", ")),
    }
}

/// The spec of an entry as the kind that `get` picks.
fn spec_of<'a, T>(entry: &'a Entry, get: impl Fn(&'a Spec) -> Option<&'a T>) -> Option<&'a T> {
    get(&entry.object.spec)
}
