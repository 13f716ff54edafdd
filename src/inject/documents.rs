//! Injection into the documents of YAML and JSON texts. Documents that do not change stay byte for byte as they are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::workload::pod_template;
use super::{Chosen, Options, Outcome, Owner, inject};
use crate::api::{Labels, Problem};
use crate::source::yaml::{self, Document, SyntaxError};

/// A text, and the name of the file that it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub file: Arc<PathBuf>,
    pub text: String,
}

/// Something to tell about a document.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    file: Arc<PathBuf>,
    line: u32,
    /// `KIND NAMESPACE/NAME`; empty for the file.
    object: String,
    text: String,
    /// Whether the result cannot be used.
    pub is_error: bool,
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: ", self.file.display(), self.line)?;
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        f.write_str(&self.text)
    }
}

/// The result of injection into texts.
#[derive(Debug, Default)]
pub(crate) struct Rewritten {
    /// All texts, in order, as one stream of documents.
    pub text: String,
    /// How many pods and templates got a sidecar.
    pub injected: usize,
    pub notes: Vec<Note>,
}

/// Injects sidecars into all documents. `namespace` is that of objects that do not name one.
pub(crate) fn rewrite(inputs: &[Input], namespace: &str, options: &Options) -> Rewritten {
    let mut result = Rewritten::default();
    let texts: Vec<_> =
        inputs.iter().map(|input| (input, parts(input, &mut result.notes))).collect();
    let namespaces = namespaces(texts.iter().flat_map(|(_, parts)| parts));
    for (input, parts) in &texts {
        begin_text(&mut result.text, &input.text);
        for part in parts {
            let mut editor = Editor {
                input,
                part,
                namespaces: &namespaces,
                namespace,
                options,
                injected: 0,
                notes: &mut result.notes,
            };
            match editor.edited() {
                Some(text) => result.text += &text,
                None => result.text += part.text,
            }
            result.injected += editor.injected;
        }
    }
    result
}

/// Separates a text from what was written before it.
fn begin_text(written: &mut String, text: &str) {
    if written.is_empty() {
        return;
    }
    if !written.ends_with('\n') {
        written.push('\n');
    }
    let first = text.lines().find(|line| !is_blank(line));
    if first.is_some_and(|line| !is_marker(line)) {
        written.push_str("---\n");
    }
}

/// A part of a text with at most one document.
struct Part<'a> {
    text: &'a str,
    /// How many lines there are before it.
    before: u32,
    document: Option<Document>,
}

impl Part<'_> {
    fn line(&self, path: &str) -> u32 {
        let document = self.document.as_ref();
        let line = document.and_then(|document| document.locate(path).or(Some(document.line)));
        self.before + line.unwrap_or(1)
    }
}

/// Whether a line ends one document and begins the next one. YAML forbids such lines within scalars.
fn is_marker(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

fn is_end(line: &str) -> bool {
    line.strip_prefix("...")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// Whether there is nothing but a comment or a directive on a line.
fn is_blank(line: &str) -> bool {
    let line = line.trim_start_matches('\u{feff}');
    line.trim().is_empty() || line.trim_start().starts_with('#') || line.starts_with('%')
}

/// The parts of a text. One that cannot be read is reported.
fn parts<'a>(input: &'a Input, notes: &mut Vec<Note>) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    let (mut start, mut at, mut line, mut first_line) = (0, 0, 0u32, 0u32);
    for text in input.text.split_inclusive('\n') {
        let bare = text.trim_end_matches(['\n', '\r']);
        if is_marker(bare) {
            parts.extend(part(input, start..at, first_line, notes));
            (start, first_line) = (at, line);
        }
        at += text.len();
        line = line.saturating_add(1);
        if is_end(bare) {
            parts.extend(part(input, start..at, first_line, notes));
            (start, first_line) = (at, line);
        }
    }
    parts.extend(part(input, start..at, first_line, notes));
    parts
}

/// The part in a range of a text, after so many lines; `None` if it is empty.
fn part<'a>(
    input: &'a Input,
    range: std::ops::Range<usize>,
    before: u32,
    notes: &mut Vec<Note>,
) -> Option<Part<'a>> {
    let text = input.text.get(range).filter(|text| !text.is_empty())?;
    let document = match read(text) {
        Ok(document) => document,
        Err(error) => {
            let text = format!("column {}: {}", error.column, error.message);
            let (file, line) = (input.file.clone(), before + error.line);
            notes.push(Note { file, line, object: String::new(), text, is_error: true });
            None
        }
    };
    Some(Part { text, before, document })
}

/// The document of a part, if there is one.
fn read(text: &str) -> Result<Option<Document>, SyntaxError> {
    if text.lines().all(is_blank) {
        return Ok(None);
    }
    Ok(yaml::documents(text.as_bytes())?.pop())
}

/// The labels of the namespaces among documents.
fn namespaces<'a>(parts: impl Iterator<Item = &'a Part<'a>>) -> BTreeMap<String, Labels> {
    let mut found = BTreeMap::new();
    for part in parts {
        let Some(document) = &part.document else { continue };
        for (_, item) in items(&document.value) {
            if item.group().is_empty() && item.kind == "Namespace" {
                let labels = item.value.pointer("/metadata/labels").and_then(Value::as_object);
                let labels = labels.into_iter().flatten();
                let labels = labels
                    .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
                found.insert(item.name().to_owned(), labels.collect());
            }
        }
    }
    found
}

/// An object, with the kind and version that the list says that it is in.
struct Item<'a> {
    value: &'a Value,
    api_version: &'a str,
    kind: &'a str,
}

impl Item<'_> {
    fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    fn name(&self) -> &str {
        let name = self.text("/metadata/name");
        if name.is_empty() { self.text("/metadata/generateName") } else { name }
    }
}

/// The objects of a document: itself, or the members of a list, each with its path.
fn items(document: &Value) -> Vec<(Option<usize>, Item<'_>)> {
    let (api_version, kind) = (member(document, "apiVersion"), member(document, "kind"));
    let (api_version, kind) = (api_version.unwrap_or_default(), kind.unwrap_or_default());
    let list = document.get("items").and_then(Value::as_array);
    match (kind.strip_suffix("List"), list) {
        (Some(of), Some(list)) => list
            .iter()
            .enumerate()
            .map(|(n, value)| (Some(n), typed(value, api_version, of)))
            .collect(),
        _ => vec![(None, Item { value: document, api_version, kind })],
    }
}

/// A member of a list. Those of a typed list need not say what they are.
fn typed<'a>(value: &'a Value, api_version: &'a str, kind: &'a str) -> Item<'a> {
    Item {
        value,
        api_version: member(value, "apiVersion").unwrap_or(api_version),
        kind: member(value, "kind").unwrap_or(kind),
    }
}

/// A member as text.
fn member<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name)?.as_str()
}

/// Injects into the document of one part.
struct Editor<'a> {
    input: &'a Input,
    part: &'a Part<'a>,
    namespaces: &'a BTreeMap<String, Labels>,
    namespace: &'a str,
    options: &'a Options,
    injected: usize,
    notes: &'a mut Vec<Note>,
}

impl Editor<'_> {
    /// The part with sidecars; `None` if it stays as it is.
    fn edited(&mut self) -> Option<String> {
        let part = self.part;
        let document = part.document.as_ref()?;
        let mut changes = Vec::new();
        for (at, item) in items(&document.value) {
            if let Some((pointer, pod)) = self.injected_item(at, &item) {
                changes
                    .push((at.map_or(pointer.to_owned(), |n| format!("/items/{n}{pointer}")), pod));
            }
        }
        self.injected += changes.len();
        if changes.is_empty() {
            return None;
        }
        let mut value = document.value.clone();
        for (pointer, pod) in changes {
            *value.pointer_mut(&pointer)? = pod;
        }
        let yaml = serde_saphyr::to_string(&value);
        match yaml {
            Ok(yaml) => Some(header(part.text, document.line) + &yaml),
            Err(error) => {
                self.note(String::new(), "", format!("cannot be written as YAML: {error}"), true);
                None
            }
        }
    }

    /// The pod of an object with a sidecar, and the pointer to it; `None` if it stays as it is.
    fn injected_item(
        &mut self,
        at: Option<usize>,
        item: &Item<'_>,
    ) -> Option<(&'static str, Value)> {
        let pointer = pod_template(item.group(), item.kind)?;
        let pod = item.value.pointer(pointer).filter(|pod| !pod.is_null())?;
        let namespace = match item.text("/metadata/namespace") {
            "" => self.namespace,
            name => name,
        };
        let none = Labels::new();
        let chosen = Chosen::ByUser(self.namespaces.get(namespace).unwrap_or(&none));
        let owner = (!pointer.is_empty()).then(|| Owner {
            api_version: item.api_version.to_owned(),
            kind: item.kind.to_owned(),
            name: item.name().to_owned(),
        });
        let object = format!("{} {namespace}/{}", item.kind, item.name());
        let list = at.map(|n| format!("items[{n}].")).unwrap_or_default();
        let template = pointer.trim_start_matches('/').replace('/', ".");
        let base = if template.is_empty() { list } else { format!("{list}{template}.") };
        match inject(pod, namespace, owner.as_ref(), chosen, self.options) {
            Outcome::Injected(injected) => {
                for warning in injected.warnings {
                    let path = warning.split(": ").next().unwrap_or_default();
                    let path = format!("{base}{path}");
                    self.note(object.clone(), &path, format!("warning: {base}{warning}"), false);
                }
                Some((pointer, injected.pod))
            }
            Outcome::Skipped(reason) => {
                let path = base.trim_end_matches('.');
                self.note(object, path, format!("not injected: {reason}"), false);
                None
            }
            Outcome::Refused(refusal) => {
                for problem in refusal.problems {
                    let path = format!("{base}{}", problem.path);
                    let problem = Problem { path: path.clone(), ..problem };
                    self.note(object.clone(), &path, problem.to_string(), true);
                }
                None
            }
        }
    }

    fn note(&mut self, object: String, path: &str, text: String, is_error: bool) {
        let (file, line) = (self.input.file.clone(), self.part.line(path));
        self.notes.push(Note { file, line, object, text, is_error });
    }
}

/// What stands before the content of a part, which begins at a line: the marker and comments.
fn header(text: &str, line: u32) -> String {
    let before = text.split_inclusive('\n').take(usize::try_from(line).unwrap_or(usize::MAX));
    let mut header = String::new();
    for line in before {
        if is_marker(line.trim_end()) {
            // A document may begin on the line of its marker.
            header.push_str("---\n");
        } else if is_blank(line) {
            header.push_str(line);
        } else {
            break;
        }
    }
    header
}
