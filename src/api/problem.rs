//! Problems with the fields of objects.

use std::fmt;

/// The category of a problem, for machine use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProblemKind {
    /// A value that is invalid, contradicts another, or is missing. The object is rejected.
    Invalid,
    /// A regular expression that Envoy does not accept. The object is rejected.
    Expression,
    /// A route of an accepted object that answers every request with an error.
    DeadRoute,
    /// TLS with a credential that sidecars cannot read, in an accepted object: they send plain text.
    Credential,
    /// An unknown field.
    UnknownField,
    /// A deprecated field or value.
    Deprecated,
    /// A known field that has no effect here.
    NoEffect,
    /// A value that is accepted but probably unintended.
    Suspicious,
}

/// A problem with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The category.
    pub kind: ProblemKind,
    /// The field, like `spec.http[0].route[1].weight`; empty for the entire object.
    pub path: String,
    /// What was found.
    pub message: String,
    /// What is expected or what to do; may be empty.
    pub advice: String,
}

impl Problem {
    /// A problem at `path` that makes the object invalid.
    pub(crate) fn new(
        path: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            kind: ProblemKind::Invalid,
            path: path.into(),
            message: message.into(),
            advice: advice.into(),
        }
    }

    /// The same problem with another category.
    pub(crate) fn of(self, kind: ProblemKind) -> Self {
        Self { kind, ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (text, end) in [(&self.path, ": "), (&self.message, "")] {
            if !text.is_empty() {
                write!(f, "{text}{end}")?;
            }
        }
        if self.advice.is_empty() { Ok(()) } else { write!(f, "; {}", self.advice) }
    }
}
