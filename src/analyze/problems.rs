//! What the source and the parser already know: files that can not be read, objects that are refused, unknown fields.

use super::{Finding, Findings, code};
use crate::api::ObjectKey;
use crate::source::{LocatedProblem, Origin};
use crate::store::Store;

pub(super) fn check(store: &Store, found: &mut Findings) {
    let mut add = |code, object: Option<&ObjectKey>, problem: &LocatedProblem, advice: &str| {
        found.0.push(Finding {
            code,
            object: object.cloned(),
            origin: problem.origin.clone(),
            path: problem.problem.path.clone(),
            message: problem.problem.message.clone(),
            advice: advice.to_owned(),
        });
    };
    for (_, problem) in store.trouble().flat_map(|(subject, list)| list.iter().map(move |one| (subject, one))) {
        match problem.origin {
            Origin::File { .. } => add(&code::UNREADABLE, None, problem, "correct the document"),
            Origin::Cluster => {
                add(&code::NOT_LISTED, None, problem, "install the definition, or allow weir to list it")
            }
        }
    }
    for (key, problem) in store.refused().flat_map(|(key, list)| list.iter().map(move |one| (key, one))) {
        add(&code::SCHEMA, Some(key), problem, "correct it: until then the whole object is refused");
    }
    for (key, problem) in store.warnings().flat_map(|(key, list)| list.iter().map(move |one| (key, one))) {
        add(&code::SCHEMA_WARNING, Some(key), problem, "correct or remove the field");
    }
}
