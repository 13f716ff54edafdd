//! Object sources. A source reads documents, parses them with [`crate::api`] and emits [`SourceEvent`]s; it knows
//! nothing about their consumers.

pub mod directory;
pub(crate) mod freshness;
#[cfg(target_os = "linux")]
mod inotify;
#[cfg(not(target_os = "linux"))]
#[path = "polling.rs"]
mod inotify;
pub mod kubernetes;
pub mod loader;
pub(crate) mod probe;
mod scan;
pub(crate) mod stdin;
pub(crate) mod sync;
pub mod yaml;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::field::DisplayValue;

use crate::api::{Object, ObjectError, ObjectKey, Problem, References};

/// The origin of an object, for messages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A file and a 1-based line.
    File {
        /// The path as given by the user.
        path: Arc<PathBuf>,
        /// The 1-based line.
        line: u32,
    },
    /// The Kubernetes API.
    Cluster,
}

impl Origin {
    /// The file and line, if there are any, as a field of the log.
    pub(crate) fn file(&self) -> Option<DisplayValue<&Self>> {
        matches!(self, Self::File { .. }).then(|| tracing::field::display(self))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Cluster => f.write_str("cluster"),
        }
    }
}

/// A problem and its location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedProblem {
    /// The location of the field (not of the object), if known.
    pub origin: Origin,
    /// The problem.
    pub problem: Problem,
}

impl fmt::Display for LocatedProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.problem)
    }
}

/// An event of a source.
#[derive(Clone, Debug)]
pub enum SourceEvent {
    /// An object was added or changed.
    Apply {
        /// The object.
        object: Arc<Object>,
        /// Where it was read.
        origin: Origin,
        /// Harmless problems.
        warnings: Vec<LocatedProblem>,
    },
    /// An object is invalid. Its last accepted version stays active.
    Reject {
        /// The object.
        key: ObjectKey,
        /// Its `metadata.generation`; 0 if absent.
        generation: i64,
        /// The reasons; at least one.
        problems: Vec<LocatedProblem>,
        /// What it references, as far as it can be read.
        references: References,
    },
    /// An object was deleted.
    Delete(ObjectKey),
    /// A problem that cannot be attributed to one object (a file that is not YAML, a failing watch), or its recovery
    /// (`problems` is empty). `subject` is the file or the watched kind.
    SourceProblems {
        /// The file or kind.
        subject: String,
        /// The problems; empty after recovery.
        problems: Vec<LocatedProblem>,
    },
    /// Everything that existed when the source started has been sent; after [`SourceEvent::Resyncing`], everything that was
    /// missed.
    Synced,
    /// What follows may lack changes that were written before it, until [`SourceEvent::Synced`].
    Resyncing,
    /// Everything that existed when [`probe::FreshnessProbe`] requested this number has been sent.
    Barrier(u64),
}

/// Turns a parse result into an event. `locate` maps a field path to its location.
pub fn event_from(
    key: ObjectKey,
    parsed: Result<crate::api::Parsed, ObjectError>,
    origin: Origin,
    locate: impl Fn(&str) -> Origin,
) -> SourceEvent {
    match parsed {
        Ok(parsed) => SourceEvent::Apply {
            object: Arc::new(parsed.object),
            origin,
            warnings: located(parsed.warnings, locate),
        },
        Err(ObjectError { problems, generation, references }) => {
            SourceEvent::Reject { key, generation, problems: located(problems, locate), references }
        }
    }
}

/// The problems with their locations.
fn located(problems: Vec<Problem>, locate: impl Fn(&str) -> Origin) -> Vec<LocatedProblem> {
    problems
        .into_iter()
        .map(|problem| LocatedProblem { origin: locate(&problem.path), problem })
        .collect()
}
