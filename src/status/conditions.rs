//! Decides the conditions in an object's `status` from what every replica knows of it. Pure.

use super::published::{ObjectVersion, State};
use super::report::ObjectState;
use super::summary::{MissingProxy, NAMED, ObjectSummary};
use crate::api::ObjectKey;
use crate::source::LocatedProblem;

/// The longest text that a message quotes, in characters.
const QUOTED: usize = 300;

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It cannot be told.
    Unknown,
}

impl ConditionStatus {
    /// As Kubernetes writes it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A condition without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// The type.
    pub kind: &'static str,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One word in CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// The types of weir's conditions, in the order in which they are written.
pub(crate) const TYPES: [&str; 3] = [ACCEPTED, PROGRAMMED, HELD];

/// Whether the object is valid.
pub(crate) const ACCEPTED: &str = "Accepted";
/// Whether every proxy that sees the object has ACKed it.
pub(crate) const PROGRAMMED: &str = "Programmed";
/// Whether something of the object is held back.
pub(crate) const HELD: &str = "Held";

/// The conditions of one version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conditions {
    /// When the object was created, as in [`ObjectVersion::created`]; `None` if that is unknown.
    pub created: Option<i64>,
    /// The `metadata.generation` that the conditions are about.
    pub generation: i64,
    /// In the order of [`TYPES`].
    pub list: [Condition; 3],
}

/// What a replica answered about an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplicaAnswer<'a> {
    /// The replica, by the name of its pod.
    pub replica: &'a str,
    /// Its summary, `None` if it does not have the object; or why it cannot be asked.
    pub summary: Result<Option<&'a ObjectSummary>, &'a str>,
}

/// The conditions of an object, as this replica's state and the answers of all replicas, this one included, say.
/// `None` if this replica does not have the object.
pub(crate) fn conditions(
    state: &State,
    key: &ObjectKey,
    answers: &[ReplicaAnswer<'_>],
) -> Option<Conditions> {
    conditions_of(state, key, &Merged::of_version_in(state, key, answers))
}

fn conditions_of(state: &State, key: &ObjectKey, all: &Merged) -> Option<Conditions> {
    let active = state.active.get(key);
    let version = active.map(|active| active.version);
    let held = all.held();
    if let Some(rejected) = state.invalid.get(key) {
        let generation = rejected.generation;
        let accepted = Condition {
            kind: ACCEPTED,
            status: ConditionStatus::False,
            reason: "Invalid",
            message: problems(&rejected.problems),
        };
        let programmed = Condition {
            kind: PROGRAMMED,
            status: ConditionStatus::False,
            reason: "Invalid",
            message: match version {
                Some(version) => format!(
                    "generation {generation} is not valid; generation {} stays in force: {}",
                    version.generation,
                    all.message()
                ),
                None => format!("generation {generation} is not valid"),
            },
        };
        let created = version.map(|version| version.created);
        return Some(Conditions { created, generation, list: [accepted, programmed, held] });
    }
    let active = active?;
    let accepted = Condition {
        kind: ACCEPTED,
        status: ConditionStatus::True,
        reason: ACCEPTED,
        message: problems(&active.warnings),
    };
    let ObjectVersion { created, generation } = active.version;
    let list = [accepted, all.programmed(), held];
    Some(Conditions { created: Some(created), generation, list })
}

/// Whether an object is live on every proxy at every replica, for a rollout tool that waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Liveness {
    /// Whether every proxy that sees the object has ACKed its newest version, with nothing held back.
    pub live: bool,
    /// The newest `metadata.generation` that this replica has received.
    pub generation: i64,
    /// The reason of [`PROGRAMMED`].
    pub reason: &'static str,
    /// What is missing, for people.
    pub message: String,
    /// How many proxies see the object.
    pub proxies: usize,
    /// How many of them have it.
    pub live_proxies: usize,
    /// Some proxies that do not have it.
    pub missing: Vec<MissingProxy>,
    /// Replicas that have an older version or cannot be asked, in words.
    pub missing_replicas: Vec<String>,
}

/// Whether an object is live, as this replica's state and the answers of all replicas, this one included, say. `None` if
/// this replica does not have the object.
pub(crate) fn liveness(
    state: &State,
    key: &ObjectKey,
    answers: &[ReplicaAnswer<'_>],
) -> Option<Liveness> {
    let all = Merged::of_version_in(state, key, answers);
    let Conditions { generation, list, .. } = conditions_of(state, key, &all)?;
    let [accepted, programmed, held] = list;
    // Held also tells of proxies, which Programmed has named.
    let more = match accepted.status {
        ConditionStatus::True => all.held_changes.iter().take(NAMED).cloned().collect(),
        _ => vec![accepted.message],
    };
    let messages: Vec<String> = std::iter::once(programmed.message).chain(more).collect();
    let missing_replicas = all.behind.into_iter().chain(all.unreachable).collect();
    let is_live =
        programmed.status == ConditionStatus::True && held.status != ConditionStatus::True;
    Some(Liveness {
        live: is_live,
        generation,
        reason: programmed.reason,
        message: messages.join("; "),
        proxies: all.in_scope,
        live_proxies: all.live,
        missing: all.missing,
        missing_replicas,
    })
}

/// Problems with their field paths. Where they were read, the cluster, need not be said in the object itself.
fn problems(list: &[LocatedProblem]) -> String {
    let texts = list.iter().map(|located| quoted(&located.problem.to_string()));
    listed(&texts.take(NAMED).collect::<Vec<_>>(), list.len(), "; ")
}

/// The answers of all replicas together.
#[derive(Debug, Default)]
struct Merged {
    in_scope: usize,
    live: usize,
    rejected: usize,
    held: usize,
    /// Proxies that have not answered yet.
    pending: usize,
    missing: Vec<MissingProxy>,
    held_changes: Vec<String>,
    /// Replicas that have an older version, or none.
    behind: Vec<String>,
    unreachable: Vec<String>,
}

impl Merged {
    /// The answers about the version of an object that this replica has.
    fn of_version_in(state: &State, key: &ObjectKey, answers: &[ReplicaAnswer<'_>]) -> Self {
        let version = state.active.get(key).map(|active| active.version);
        Self::of(version.unwrap_or_default(), answers)
    }

    fn of(version: ObjectVersion, answers: &[ReplicaAnswer<'_>]) -> Self {
        let mut all = Self::default();
        for ReplicaAnswer { replica, summary } in answers {
            let summary = match summary {
                Ok(Some(summary)) => summary,
                Ok(None) => {
                    all.behind.push(format!("replica {replica} does not have the object yet"));
                    continue;
                }
                Err(why) => {
                    let why = quoted(why);
                    all.unreachable.push(format!("replica {replica} cannot be asked: {why}"));
                    continue;
                }
            };
            all.in_scope += summary.in_scope;
            if summary.version < version {
                let older = summary.version.generation;
                all.behind.push(if summary.version.created < version.created {
                    format!("replica {replica} has an object of this name that was deleted")
                } else {
                    format!("replica {replica} still has generation {older}")
                });
                continue;
            }
            all.live += summary.live;
            all.rejected += summary.rejected;
            all.held += summary.held;
            let answered = summary.live + summary.rejected + summary.held;
            all.pending += summary.in_scope.saturating_sub(answered);
            all.missing.extend(summary.missing.iter().cloned());
            for change in &summary.held_changes {
                if !all.held_changes.contains(change) {
                    all.held_changes.push(change.clone());
                }
            }
        }
        all
    }

    /// The proxies in a state, of which there are `count`.
    fn named(&self, state: ObjectState, count: usize, with_reason: bool) -> String {
        let proxies = self.missing.iter().filter(|missing| missing.state == state).take(NAMED);
        let names = proxies.map(|missing| match missing.reason.as_str() {
            "" => missing.proxy.clone(),
            _ if !with_reason => missing.proxy.clone(),
            reason => format!("{} ({})", missing.proxy, quoted(reason)),
        });
        listed(&names.collect::<Vec<_>>(), count, ", ")
    }

    /// How many proxies have the object, and why the others do not.
    fn message(&self) -> String {
        let noun = if self.in_scope == 1 { "proxy" } else { "proxies" };
        let mut parts = vec![format!("{}/{} {noun}", self.live, self.in_scope)];
        if self.rejected > 0 {
            let names = self.named(ObjectState::Rejected, self.rejected, true);
            parts.push(format!("rejected by {names}"));
        }
        if self.held > 0 {
            let names = self.named(ObjectState::Held, self.held, true);
            parts.push(format!("held back from {names}"));
        }
        if self.pending > 0 {
            // Why a proxy has not answered yet changes all the time.
            let names = self.named(ObjectState::Lagging, self.pending, false);
            parts.push(format!("waiting for {names}"));
        }
        if !self.held_changes.is_empty() {
            parts.push("a change is held back".to_owned());
        }
        parts.extend(self.behind.iter().take(NAMED).cloned());
        parts.extend(self.unreachable.iter().take(NAMED).cloned());
        if self.live == 0 && self.in_scope == 0 && parts.len() == 1 {
            parts.push("no connected proxy sees it".to_owned());
        }
        parts.join("; ")
    }

    fn programmed(&self) -> Condition {
        let (status, reason) = if self.rejected > 0 {
            (ConditionStatus::False, "Rejected")
        } else if self.held > 0 || !self.held_changes.is_empty() {
            (ConditionStatus::False, "Held")
        } else if self.live < self.in_scope || !self.behind.is_empty() {
            (ConditionStatus::False, "Pending")
        } else if !self.unreachable.is_empty() {
            (ConditionStatus::Unknown, "ReplicaUnreachable")
        } else if self.in_scope == 0 {
            (ConditionStatus::True, "NoProxies")
        } else {
            (ConditionStatus::True, "Programmed")
        };
        Condition { kind: PROGRAMMED, status, reason, message: self.message() }
    }

    fn held(&self) -> Condition {
        let (status, reason) = if !self.held_changes.is_empty() {
            (ConditionStatus::True, "NoReadyEndpoint")
        } else if self.held > 0 {
            (ConditionStatus::True, "MissingCluster")
        } else {
            (ConditionStatus::False, "NothingHeld")
        };
        let mut parts = self.held_changes.clone();
        parts.truncate(NAMED);
        if self.held > 0 {
            let names = self.named(ObjectState::Held, self.held, true);
            parts.push(format!("held back from {names}"));
        }
        Condition { kind: HELD, status, reason, message: parts.join("; ") }
    }
}

/// The named ones, and how many more there are of `count`.
fn listed(named: &[String], count: usize, separator: &str) -> String {
    match count.saturating_sub(named.len()) {
        0 => named.join(separator),
        more if named.is_empty() => more.to_string(),
        more => format!("{} and {more} more", named.join(separator)),
    }
}

/// A text of bounded length.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}
