//! Where objects come from. A source reads documents, parses them with [`crate::api`], and hands [`Change`]s on; it
//! knows nothing of what is done with them.

pub mod directory;
#[cfg(target_os = "linux")]
mod inotify;
#[cfg(not(target_os = "linux"))]
#[path = "polling.rs"]
mod inotify;
pub mod kubernetes;
pub mod loader;
pub mod newest;
mod scan;
pub mod yaml;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::api::{Object, ObjectError, ObjectKey, Outline, Problem};

/// Where an object was read, for messages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A file, and the line (from 1) at which the object begins.
    File {
        /// The path, as the user knows it.
        path: Arc<PathBuf>,
        /// The line, from 1.
        line: u32,
    },
    /// The Kubernetes API.
    Cluster,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Cluster => f.write_str("cluster"),
        }
    }
}

/// A problem and the line it is on, where the source knows lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedProblem {
    /// The place of the field (not of the object) where it is known.
    pub origin: Origin,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for LocatedProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.problem)
    }
}

/// One thing a source has seen.
#[derive(Clone, Debug)]
pub enum Change {
    /// An object is there, new or changed.
    Apply {
        /// The object.
        object: Arc<Object>,
        /// Where it was read.
        origin: Origin,
        /// What is odd about it but does no harm.
        warnings: Vec<LocatedProblem>,
    },
    /// An object is there but can not be used. What was last accepted of it stays in force.
    Refuse {
        /// The object.
        key: ObjectKey,
        /// Why; at least one.
        problems: Vec<LocatedProblem>,
        /// What it speaks of, as far as it can be read.
        outline: Outline,
    },
    /// An object is gone.
    Delete(ObjectKey),
    /// Something that can not be tied to one object is wrong (a file that is no YAML, a watch that fails), or is
    /// right again (`problems` is empty). `subject` is the file or the watched kind.
    Trouble {
        /// The file or kind.
        subject: String,
        /// What is wrong; empty when all is well again.
        problems: Vec<LocatedProblem>,
    },
    /// Everything that was there when the source began has been handed on.
    Synced,
    /// Everything that was there when [`newest::Asker`] asked for this number has been handed on.
    Mark(u64),
}

/// Turns one parse result into a change. `locate` gives the place of a field path.
pub fn change_from(
    key: ObjectKey,
    parsed: Result<crate::api::Parsed, ObjectError>,
    origin: Origin,
    locate: impl Fn(&str) -> Origin,
) -> Change {
    let at = |problem: Problem| LocatedProblem { origin: locate(&problem.path), problem };
    match parsed {
        Ok(parsed) => Change::Apply {
            object: Arc::new(parsed.object),
            origin,
            warnings: parsed.warnings.into_iter().map(at).collect(),
        },
        Err(ObjectError { problems, outline }) => {
            Change::Refuse { key, problems: problems.into_iter().map(at).collect(), outline }
        }
    }
}
