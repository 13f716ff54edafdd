//! Turns file contents into [`SourceEvent`]s. Remembers which object came from which file, so that a file that is
//! broken, shortened or deleted affects only its own objects. Performs no I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::{LocatedProblem, Origin, SourceEvent, event_from, yaml};
use crate::api::{
    Identity, Kind, Object, ObjectKey, Problem, References, expand_list, identify, in_revision,
    parse,
};

/// The current content of a file.
#[derive(Clone, Debug)]
pub enum Content {
    /// Its bytes.
    Bytes(Vec<u8>),
    /// It exists but cannot be read, with the reason: a sentence about the file without its name.
    Unreadable(String),
    /// It was deleted.
    Gone,
}

/// Turns file contents into events.
///
/// - A file that is empty (editors truncate before writing), unreadable or not YAML changes nothing: the last accepted
///   objects stay active. A [`SourceEvent::SourceProblems`] with the file's path reports the problem, and one without
///   problems reports recovery.
/// - An invalid document of a known kind becomes a [`SourceEvent::Reject`]. A document that cannot be identified
///   becomes a problem of its file. It might be any object that the file contained before, so none of those is deleted
///   until every document of the file can be identified.
/// - If several documents define the same object, the first by path and position wins; the others are reported as
///   problems of their files, and the next one takes over when the first disappears.
/// - Objects of other kinds and of other revisions are skipped.
#[derive(Debug, Default)]
pub struct Loader {
    /// The revision whose objects are read besides those without a revision; `None` reads all.
    revision: Option<Arc<str>>,
    files: BTreeMap<Arc<PathBuf>, File>,
    holders: HashMap<ObjectKey, BTreeSet<(Arc<PathBuf>, usize)>>,
    current: HashMap<ObjectKey, Reported>,
    source_problems: BTreeMap<Arc<PathBuf>, Vec<LocatedProblem>>,
}

/// The state of one file.
#[derive(Debug, Default)]
struct File {
    /// The position of the file among the others; see [`slot_between`].
    slot: u64,
    claims: Vec<Claim>,
    /// Problems of the file itself.
    problems: Vec<LocatedProblem>,
}

/// An object defined by a document of a file.
#[derive(Clone, Debug)]
struct Claim {
    key: ObjectKey,
    line: u32,
    /// Its last valid version in this file.
    accepted: Option<Accepted>,
    /// The problems of its current version.
    problems: Vec<LocatedProblem>,
    /// The generation of an invalid version.
    generation: i64,
    /// What an invalid version references.
    references: References,
}

#[derive(Clone, Debug, PartialEq)]
struct Accepted {
    object: Arc<Object>,
    origin: Origin,
    warnings: Vec<LocatedProblem>,
}

/// What was last reported about an object.
#[derive(Debug, Default)]
struct Reported {
    accepted: Option<Accepted>,
    problems: Vec<LocatedProblem>,
    references: References,
}

/// What has to be re-evaluated after an update.
#[derive(Default)]
struct Touched {
    keys: BTreeSet<ObjectKey>,
    files: BTreeSet<Arc<PathBuf>>,
}

/// Advice for a file that cannot be used.
const KEPT: &str = "a running weir keeps what it last read from it";
/// The low bits of an object's order number the objects within a file.
const POSITION_BITS: u32 = 24;
const SLOTS: u64 = 1 << (64 - POSITION_BITS);
/// The gap between consecutive files, which leaves room for later insertions.
const STRIDE: u64 = 1 << 20;

impl Loader {
    /// An empty loader.
    #[cfg(test)]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// An empty loader that reads the objects of one revision and those without a revision; with `None` it reads all.
    pub(crate) fn of_revision(revision: Option<Arc<str>>) -> Self {
        Self { revision, ..Self::default() }
    }

    fn reads(&self, kind: Kind, document: &Value) -> bool {
        in_revision(kind, document, self.revision.as_deref())
    }

    /// Applies the current content of some files, keyed by the path used in messages. Returns the resulting events,
    /// deletions last, so that an object that moves between files never disappears.
    pub fn update(
        &mut self,
        files: impl IntoIterator<Item = (PathBuf, Content)>,
    ) -> Vec<SourceEvent> {
        let mut touched = Touched::default();
        for (path, content) in files {
            let path = Arc::new(path);
            touched.files.insert(path.clone());
            match content {
                Content::Gone => self.remove(&path, &mut touched),
                Content::Unreadable(why) => {
                    let problem = Problem::new("", why, KEPT);
                    self.file(&path, &mut touched).problems = vec![problem_at(&path, 1, problem)];
                }
                Content::Bytes(bytes) => self.read(&path, &bytes, &mut touched),
            }
        }
        self.changes(touched)
    }

    fn file(&mut self, path: &Arc<PathBuf>, touched: &mut Touched) -> &mut File {
        if !self.files.contains_key(path) {
            let slot = match self.free_slot(path) {
                Some(slot) => slot,
                None => {
                    self.respace(touched);
                    self.free_slot(path).unwrap_or(SLOTS - 1)
                }
            };
            self.files.insert(path.clone(), File { slot, ..File::default() });
        }
        self.files.entry(path.clone()).or_default()
    }

    fn free_slot(&self, path: &Arc<PathBuf>) -> Option<u64> {
        let before = self.files.range(..path.clone()).next_back().map(|(_, file)| file.slot);
        let after = self.files.range(path.clone()..).next().map(|(_, file)| file.slot);
        slot_between(before, after)
    }

    /// Redistributes the slots evenly when no gap is left.
    fn respace(&mut self, touched: &mut Touched) {
        let step = SLOTS / (self.files.len() as u64 + 2);
        for (file, slot) in self.files.values_mut().zip((1..).map(|n| n * step)) {
            file.slot = slot;
            for claim in &mut file.claims {
                let Some(accepted) = &mut claim.accepted else {
                    continue;
                };
                let mut object = Object::clone(&accepted.object);
                object.meta.age.order =
                    (slot << POSITION_BITS) | (object.meta.age.order & ((1 << POSITION_BITS) - 1));
                accepted.object = Arc::new(object);
                touched.keys.insert(claim.key.clone());
            }
        }
    }

    fn remove(&mut self, path: &Arc<PathBuf>, touched: &mut Touched) {
        if let Some(file) = self.files.remove(path) {
            self.release(path, &file.claims, touched);
        }
    }

    fn release(&mut self, path: &Arc<PathBuf>, claims: &[Claim], touched: &mut Touched) {
        for (place, claim) in claims.iter().enumerate() {
            if let Some(holders) = self.holders.get_mut(&claim.key) {
                holders.remove(&(path.clone(), place));
                if holders.is_empty() {
                    self.holders.remove(&claim.key);
                }
            }
            touched.keys.insert(claim.key.clone());
        }
    }

    fn read(&mut self, path: &Arc<PathBuf>, bytes: &[u8], touched: &mut Touched) {
        let file = self.file(path, touched);
        if bytes.iter().all(u8::is_ascii_whitespace) {
            let advice =
                format!("{KEPT} (to remove its objects, delete it or leave only a comment in it)");
            file.problems =
                vec![problem_at(path, 1, Problem::new("", "the file is empty", advice))];
            return;
        }
        let documents = match yaml::documents(bytes) {
            Ok(documents) => documents,
            Err(error) => {
                let message = format!("column {}: {}", error.column, error.message);
                let problem = Problem::new("", message, KEPT);
                file.problems = vec![problem_at(path, error.line, problem)];
                return;
            }
        };
        let slot = file.slot;
        let old = std::mem::take(&mut file.claims);
        self.release(path, &old, touched);
        let (claims, problems) = self.claims(path, slot, documents, old);
        for (place, claim) in claims.iter().enumerate() {
            self.holders.entry(claim.key.clone()).or_default().insert((path.clone(), place));
            touched.keys.insert(claim.key.clone());
        }
        if let Some(file) = self.files.get_mut(path) {
            file.claims = claims;
            file.problems = problems;
        }
    }

    /// The objects of a file's documents, given its previous objects, and the problems of unidentifiable documents.
    fn claims(
        &self,
        path: &Arc<PathBuf>,
        slot: u64,
        documents: Vec<yaml::Document>,
        old: Vec<Claim>,
    ) -> (Vec<Claim>, Vec<LocatedProblem>) {
        let mut before: HashMap<ObjectKey, VecDeque<Claim>> = HashMap::new();
        for claim in old {
            before.entry(claim.key.clone()).or_default().push_back(claim);
        }
        let mut claims: Vec<Claim> = Vec::new();
        let mut problems = Vec::new();
        let mut place = 0;
        let mut skipped = 0_u32;
        for mut document in documents {
            let value = std::mem::take(&mut document.value);
            for (prefix, member) in expand_list(value) {
                let order = (slot << POSITION_BITS) | place;
                place = (place + 1).min((1 << POSITION_BITS) - 1);
                let key = match identify(&member) {
                    Ok(Identity::Known(key)) if self.reads(key.kind, &member) => key,
                    Ok(_) => {
                        skipped += 1;
                        continue;
                    }
                    Err(error) => {
                        problems.extend(error.problems.into_iter().map(|problem| {
                            let line = line_of(&document, &prefix, &problem.path);
                            problem_at(path, line, prefix_path(&prefix, problem))
                        }));
                        continue;
                    }
                };
                let last = before.get_mut(&key).and_then(VecDeque::pop_front);
                claims.push(claim(path, key, member, order, last, |field| {
                    line_of(&document, &prefix, field)
                }));
            }
        }
        if skipped > 0 {
            tracing::debug!(
                file = %path.display(), skipped, "skipped objects of unsupported kinds or other revisions"
            );
        }
        if !problems.is_empty() {
            // One copy is enough to keep an object that occurred several times.
            let held: HashSet<&ObjectKey> = claims.iter().map(|claim| &claim.key).collect();
            before.retain(|key, _| !held.contains(key));
            let mut kept: Vec<Claim> =
                before.into_values().filter_map(|mut old| old.pop_front()).collect();
            kept.sort_by(|a, b| (a.line, &a.key).cmp(&(b.line, &b.key)));
            claims.append(&mut kept);
        }
        (claims, problems)
    }

    fn changes(&mut self, mut touched: Touched) -> Vec<SourceEvent> {
        let mut changes = Vec::new();
        let mut gone = Vec::new();
        let mut winners = Vec::new();
        for key in touched.keys {
            let Some(holders) = self.holders.get(&key) else {
                if self.current.remove(&key).is_some() {
                    gone.push(SourceEvent::Delete(key));
                }
                continue;
            };
            // The files of duplicate definitions gain or lose a problem.
            touched.files.extend(holders.iter().map(|(path, _)| path.clone()));
            if let Some((path, place)) = holders.first() {
                winners.push((path.clone(), *place, key));
            }
        }
        winners.sort();
        for (path, place, key) in winners {
            let Some(claim) = self.files.get(&path).and_then(|file| file.claims.get(place)) else {
                continue;
            };
            let current = self.current.entry(key.clone()).or_default();
            let valid = claim.problems.is_empty();
            if let Some(accepted) = &claim.accepted
                && (current.accepted.as_ref() != Some(accepted)
                    || valid && !current.problems.is_empty())
            {
                current.accepted = Some(accepted.clone());
                current.problems.clear();
                current.references = References::default();
                let Accepted { object, origin, warnings } = accepted.clone();
                changes.push(SourceEvent::Apply { object, origin, warnings });
            }
            if !valid
                && (&current.problems, &current.references) != (&claim.problems, &claim.references)
            {
                current.problems.clone_from(&claim.problems);
                current.references.clone_from(&claim.references);
                let (problems, references) = (claim.problems.clone(), claim.references.clone());
                let generation = claim.generation;
                changes.push(SourceEvent::Reject { key, generation, problems, references });
            }
        }
        changes.append(&mut gone);
        changes.extend(touched.files.iter().filter_map(|path| self.changed_problems(path)));
        changes
    }

    /// The problems of a file, if they changed.
    fn changed_problems(&mut self, path: &Arc<PathBuf>) -> Option<SourceEvent> {
        let problems = self.problems(path);
        let old = self.source_problems.get(path).map_or(&[][..], Vec::as_slice);
        if old == problems.as_slice() {
            return None;
        }
        if problems.is_empty() {
            self.source_problems.remove(path);
        } else {
            self.source_problems.insert(path.clone(), problems.clone());
        }
        Some(SourceEvent::SourceProblems { subject: path.display().to_string(), problems })
    }

    /// The problems of a file, including duplicate definitions.
    fn problems(&self, path: &Arc<PathBuf>) -> Vec<LocatedProblem> {
        let Some(file) = self.files.get(path) else {
            return Vec::new();
        };
        let mut problems = file.problems.clone();
        for (place, claim) in file.claims.iter().enumerate() {
            let Some((first_path, first_place)) =
                self.holders.get(&claim.key).and_then(BTreeSet::first)
            else {
                continue;
            };
            if (first_path, *first_place) == (path, place) {
                continue;
            }
            let first = self.files.get(first_path).and_then(|file| file.claims.get(*first_place));
            let first_line = first.map_or(1, |claim| claim.line);
            let message = format!(
                "{} is already defined at {}:{first_line}, which comes first and is used",
                claim.key,
                first_path.display()
            );
            problems.push(problem_at(
                path,
                claim.line,
                Problem::new("", message, "remove one of them"),
            ));
        }
        problems
    }
}

/// Parses one object. If it is invalid, its last valid version in the same file (`last`) stays accepted.
fn claim(
    path: &Arc<PathBuf>,
    key: ObjectKey,
    document: Value,
    order: u64,
    last: Option<Claim>,
    line_of: impl Fn(&str) -> u32,
) -> Claim {
    let line = line_of("");
    let parsed = parse(&key, document, order);
    let accepted = last.and_then(|last| last.accepted);
    let kept = Claim {
        key: key.clone(),
        line,
        accepted,
        problems: Vec::new(),
        generation: 0,
        references: References::default(),
    };
    let origin = Origin::File { path: path.clone(), line };
    match event_from(key, parsed, origin, |field| Origin::File {
        path: path.clone(),
        line: line_of(field),
    }) {
        SourceEvent::Apply { object, origin, warnings } => {
            Claim { accepted: Some(Accepted { object, origin, warnings }), ..kept }
        }
        SourceEvent::Reject { generation, problems, references, .. } => {
            Claim { problems, generation, references, ..kept }
        }
        SourceEvent::Delete(_)
        | SourceEvent::SourceProblems { .. }
        | SourceEvent::Synced
        | SourceEvent::Resyncing
        | SourceEvent::Barrier(_) => kept,
    }
}

pub(super) fn problem_at(path: &Arc<PathBuf>, line: u32, problem: Problem) -> LocatedProblem {
    LocatedProblem { origin: Origin::File { path: path.clone(), line }, problem }
}

/// The line of a field of an object, which is at `prefix` in its document.
fn line_of(document: &yaml::Document, prefix: &str, field: &str) -> u32 {
    let dot = if prefix.is_empty() || field.is_empty() { "" } else { "." };
    document.locate(&format!("{prefix}{dot}{field}")).unwrap_or(document.line)
}

/// Prefixes the path of a list item's problem.
fn prefix_path(prefix: &str, problem: Problem) -> Problem {
    match (prefix, problem.path.as_str()) {
        ("", _) => problem,
        (_, "") => Problem { path: prefix.to_owned(), ..problem },
        (_, path) => Problem { path: format!("{prefix}.{path}"), ..problem },
    }
}

/// A slot between two neighbours; `None` if there is no gap.
fn slot_between(before: Option<u64>, after: Option<u64>) -> Option<u64> {
    match (before, after) {
        (None, None) => Some(SLOTS / 2),
        (Some(before), None) => Some(before + STRIDE).filter(|&slot| slot < SLOTS),
        (None, Some(after)) => after.checked_sub(STRIDE),
        (Some(before), Some(after)) => {
            let middle = before + after.saturating_sub(before) / 2;
            (middle > before && middle < after).then_some(middle)
        }
    }
}

#[cfg(test)]
mod tests;
