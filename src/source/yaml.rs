//! Parses YAML (and thus JSON) into JSON values and records the line of every field.
//!
//! Plain scalars are interpreted as by kubectl, so a file works the same whether it is applied or served. That is YAML
//! 1.1 without base-60 numbers: `y`, `yes`, `on` and `true` are true; `n`, `no`, `off` and `false` are false (in lower,
//! upper or title case); `~`, `null` and the empty scalar are null; `0x1f`, `0o17`, `017`, `0b11` and `1_000` are
//! integers; `080` is 80 because it is not octal; `1e3` is 1000; dates stay strings. Quoted scalars and `|` or `>`
//! blocks are always strings. Keys that are numbers or booleans become the string that JSON would print. Unlike with
//! kubectl, a duplicate key is an error and not a silent loss.
//!
//! Plain scalars within `[]` and `{}` also end where they do for kubectl: a colon ends a scalar only before a blank, so
//! `[2001:db8::]` contains an address. A scalar that begins with a colon, like `[::1]`, is text here and an error in
//! kubectl.

mod characters;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use granit_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};
use serde_json::{Map, Number, Value};
use xxhash_rust::xxh3::xxh3_64;

use characters::Characters;

/// The maximum input size in bytes.
pub(crate) const MAX_BYTES: usize = 16 << 20;
/// The maximum nesting depth of lists and maps, including aliases.
const MAX_DEPTH: usize = 128;
/// The maximum number of values after alias expansion.
const MAX_VALUES: usize = 1_000_000;
/// The maximum number of text bytes repeated by aliases.
const MAX_REPEATED_BYTES: usize = 16 << 20;

/// A syntax error and its position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct SyntaxError {
    /// The 1-based line.
    pub line: u32,
    /// The 1-based column in characters.
    pub column: u32,
    /// The error message.
    pub message: String,
}

impl SyntaxError {
    fn new(mark: &Marker, message: impl Into<String>) -> Self {
        Self {
            line: line_of(mark),
            column: narrow(mark.col()).saturating_add(1),
            message: message.into(),
        }
    }
}

impl From<ScanError> for SyntaxError {
    fn from(error: ScanError) -> Self {
        Self::new(error.marker(), error.info())
    }
}

/// One document.
#[derive(Debug)]
pub struct Document {
    /// Its value; never null.
    pub value: Value,
    /// The 1-based line at which its content begins.
    pub line: u32,
    positions: Vec<Position>,
}

/// The line of a value. Entries are in document order: a value is followed by everything inside it.
#[derive(Clone, Copy, Debug)]
struct Position {
    /// The line of the key, list item or document.
    line: u32,
    /// The number of entries of this value, including itself.
    size: u32,
    /// The hash of its key in a map; 0 in a list. A collision could only make a message name the wrong line.
    key: u32,
}

impl Document {
    /// The 1-based line of a field like `spec.http[0].route[1].weight`: the line of its key or list item. A missing
    /// field gets the line of its nearest existing parent. Keys that contain dots or brackets, such as annotations, are
    /// found too. `None` if not even the first part of the path exists.
    pub(crate) fn locate(&self, path: &str) -> Option<u32> {
        if path.is_empty() {
            return Some(self.line);
        }
        let (followed, line) = self.descend(0, path)?;
        (followed > 0).then_some(line)
    }

    /// How many bytes of `path` can be resolved below the value at `at`, and the line reached.
    fn descend(&self, at: usize, path: &str) -> Option<(usize, u32)> {
        let mut best = (0, self.positions.get(at)?.line);
        if path.is_empty() {
            return Some(best);
        }
        let item = path.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let item = item.and_then(|(inside, rest)| Some((self.in_brackets(at, inside)?, rest)));
        // A key may contain path separators, so every possible end is tried and the longest match wins. Paths come from
        // problems, not from files, so there are few ends.
        let keys = if at == 0 { path } else { path.strip_prefix('.').unwrap_or(path) };
        let members = ends(keys).filter_map(|end| {
            let key = hash(keys.get(..end)?);
            let child = self.children(at).find(|&child| self.key_at(child) == key)?;
            Some((child, keys.get(end..)?))
        });
        for (child, rest) in item.into_iter().chain(members) {
            let Some((followed, line)) = self.descend(child, rest) else {
                continue;
            };
            let followed = followed + path.len() - rest.len();
            if followed > best.0 {
                best = (followed, line);
            }
        }
        Some(best)
    }

    /// The child that brackets name: an item of a list by its index, or a member by its key as in `annotations[a.b/c]`.
    fn in_brackets(&self, at: usize, inside: &str) -> Option<usize> {
        let mut children = self.children(at);
        match inside.parse() {
            Ok(index) => children.filter(|&child| self.key_at(child) == 0).nth(index),
            Err(_) => {
                let key = hash(inside);
                children.find(|&child| self.key_at(child) == key)
            }
        }
    }

    fn key_at(&self, at: usize) -> u32 {
        self.positions.get(at).map_or(0, |position| position.key)
    }

    fn children(&self, at: usize) -> impl Iterator<Item = usize> {
        children(&self.positions, at)
    }
}

/// The direct children of the entry at `at`.
fn children(positions: &[Position], at: usize) -> impl Iterator<Item = usize> {
    between(positions, at + 1, at + positions.get(at).map_or(1, |position| position.size as usize))
}

/// The entries from `first` until `end` that are not nested in each other.
fn between(positions: &[Position], first: usize, end: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(first), move |&at| {
        Some(at + positions.get(at).map_or(1, |position| position.size.max(1) as usize))
    })
    .take_while(move |&at| at < end)
}

/// The possible ends of the first path segment: before every dot and bracket, and at the end.
fn ends(path: &str) -> impl Iterator<Item = usize> {
    path.char_indices()
        .filter(|(_, c)| matches!(c, '.' | '['))
        .map(|(at, _)| at)
        .chain([path.len()])
        .take(32)
}

/// The hash of a key; never 0, which marks list items.
fn hash(key: &str) -> u32 {
    let [a, b, c, d, ..] = xxh3_64(key.as_bytes()).to_le_bytes();
    u32::from_le_bytes([a, b, c, d]).max(1)
}

/// Parses all documents of a text. Empty documents (only comments between two `---`) are skipped.
///
/// # Errors
/// The text is longer than [`MAX_BYTES`], not UTF-8 or not YAML, is nested more than 128 levels deep, expands
/// excessively through aliases, or has a duplicate key. An error in one document fails the entire text, because the
/// start of the next document is unknown.
pub fn documents(text: &[u8]) -> Result<Vec<Document>, SyntaxError> {
    if text.len() > MAX_BYTES {
        let message =
            format!("is {} bytes long, expected at most {MAX_BYTES} (16 MiB)", text.len());
        return Err(SyntaxError { line: 1, column: 1, message });
    }
    let text = checked(text)?;
    let mut options = granit_parser::Options::default();
    options.set_emit_comments(false);
    let mut builder = DocumentBuilder::default();
    for event in Parser::with_options(Characters::new(text), options) {
        let (event, span) = event?;
        builder.take(event, &span.start)?;
    }
    Ok(builder.documents)
}

/// Decodes the bytes and rejects characters that YAML does not allow.
fn checked(bytes: &[u8]) -> Result<&str, SyntaxError> {
    let (at, message) = match std::str::from_utf8(bytes) {
        Ok(text) => match bytes.iter().position(|&byte| byte == 0) {
            None => return Ok(text),
            Some(at) => (at, "a zero byte; expected text in UTF-8".to_owned()),
        },
        Err(error) => {
            let at = error.valid_up_to();
            let byte = bytes.get(at).copied().unwrap_or_default();
            (at, format!("the byte 0x{byte:02x} is not UTF-8; expected text in UTF-8"))
        }
    };
    let before = bytes.get(..at).unwrap_or_default();
    let line = before.iter().filter(|&&byte| byte == b'\n').count();
    let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let column = String::from_utf8_lossy(before.get(start..).unwrap_or_default()).chars().count();
    let (line, column) = (narrow(line).saturating_add(1), narrow(column).saturating_add(1));
    Err(SyntaxError { line, column, message })
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn line_of(mark: &Marker) -> u32 {
    narrow(mark.line()).max(1)
}

/// A list or map under construction.
struct OpenCollection {
    collection: Collection,
    /// Its index in `DocumentBuilder::positions`.
    position: usize,
    anchor: usize,
    /// The nesting depth of its content, including itself.
    depth: usize,
}

enum Collection {
    List(Vec<Value>),
    Map {
        map: Map<String, Value>,
        /// The key of the next value.
        key: Option<Key>,
        /// The values of `<<` keys, with their entries.
        merges: Vec<(Value, usize)>,
    },
}

enum Key {
    Text(String, u32),
    Merge(u32),
}

/// The value of an anchor.
struct Anchored {
    value: Value,
    positions: Vec<Position>,
    depth: usize,
    bytes: usize,
}

#[derive(Default)]
struct DocumentBuilder {
    documents: Vec<Document>,
    frames: Vec<OpenCollection>,
    positions: Vec<Position>,
    anchors: HashMap<usize, Anchored>,
    values: usize,
    repeated_bytes: usize,
}

impl DocumentBuilder {
    fn take(&mut self, event: Event<'_>, mark: &Marker) -> Result<(), SyntaxError> {
        match event {
            Event::DocumentStart(..) => {
                self.positions.clear();
                self.anchors.clear();
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                if self.expects_key() {
                    let key = key(&text, plain, tag.as_deref(), mark)?;
                    return self.put_key(key, anchor, mark);
                }
                let value = scalar(&text, plain, tag.as_deref())
                    .map_err(|message| SyntaxError::new(mark, message))?;
                let position = self.open_position(mark)?;
                self.remember(anchor, &value, position, 0, mark)?;
                self.put(value, position, 0, mark)?;
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_collection(tag.as_deref(), "seq", "list", mark)?;
                self.open(Collection::List(Vec::new()), anchor, mark)?;
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_collection(tag.as_deref(), "map", "map", mark)?;
                let collection = Collection::Map { map: Map::new(), key: None, merges: Vec::new() };
                self.open(collection, anchor, mark)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(mark)?,
            Event::Alias(anchor) => self.alias(anchor, mark)?,
            Event::UnresolvedAlias(name) => {
                return Err(SyntaxError::new(
                    mark,
                    format!("the alias `*{name}` has no anchor `&{name}` before it"),
                ));
            }
            _ => {}
        }
        Ok(())
    }

    fn expects_key(&self) -> bool {
        matches!(
            self.frames.last(),
            Some(OpenCollection { collection: Collection::Map { key: None, .. }, .. })
        )
    }

    fn put_key(&mut self, key: Key, anchor: usize, mark: &Marker) -> Result<(), SyntaxError> {
        if let Key::Text(text, _) = &key {
            if anchor != 0 {
                let anchored = Anchored {
                    value: Value::String(text.clone()),
                    positions: vec![Position { line: line_of(mark), size: 1, key: 0 }],
                    depth: 0,
                    bytes: text.len(),
                };
                self.charge(1, text.len(), mark)?;
                self.anchors.insert(anchor, anchored);
            }
            if let Some(OpenCollection {
                collection: Collection::Map { map, .. }, position, ..
            }) = self.frames.last()
                && map.contains_key(text)
            {
                let hash = hash(text);
                let first = between(&self.positions, position + 1, self.positions.len())
                    .filter_map(|child| self.positions.get(child))
                    .find(|child| child.key == hash)
                    .map_or(0, |child| child.line);
                return Err(SyntaxError::new(
                    mark,
                    format!(
                        "the key `{}` appears twice in this map, first on line {first}",
                        shown(text)
                    ),
                ));
            }
        }
        if let Some(OpenCollection { collection: Collection::Map { key: slot, .. }, .. }) =
            self.frames.last_mut()
        {
            *slot = Some(key);
        }
        Ok(())
    }

    /// Starts a list or map.
    fn open(
        &mut self,
        collection: Collection,
        anchor: usize,
        mark: &Marker,
    ) -> Result<(), SyntaxError> {
        self.check_depth(1, mark)?;
        let position = self.open_position(mark)?;
        self.frames.push(OpenCollection { collection, position, anchor, depth: 1 });
        Ok(())
    }

    fn check_collection(
        &self,
        tag: Option<&Tag>,
        core: &str,
        name: &str,
        mark: &Marker,
    ) -> Result<(), SyntaxError> {
        if self.expects_key() {
            // `{{ .Values.name }}` parses as a map whose key is a map.
            let template = if name == "map" {
                "; templates, such as Helm's, must be rendered first"
            } else {
                ""
            };
            return Err(SyntaxError::new(
                mark,
                format!("a {name} as a key; expected a string{template}"),
            ));
        }
        match tag {
            Some(tag) if !is_plain(tag) && tag.core_suffix() != Some(core) => {
                Err(SyntaxError::new(
                    mark,
                    format!("the tag `{}` is not supported on a {name}", written(tag)),
                ))
            }
            _ => Ok(()),
        }
    }

    fn check_depth(&self, more: usize, mark: &Marker) -> Result<(), SyntaxError> {
        if self.frames.len() + more > MAX_DEPTH {
            return Err(SyntaxError::new(
                mark,
                format!("lists and maps are nested more than {MAX_DEPTH} deep"),
            ));
        }
        Ok(())
    }

    fn charge(
        &mut self,
        values: usize,
        repeated_bytes: usize,
        mark: &Marker,
    ) -> Result<(), SyntaxError> {
        self.values += values;
        self.repeated_bytes += repeated_bytes;
        if self.values > MAX_VALUES {
            let message = format!(
                "the file has more than {MAX_VALUES} values, including those repeated by aliases"
            );
            return Err(SyntaxError::new(mark, message));
        }
        if self.repeated_bytes > MAX_REPEATED_BYTES {
            let message =
                format!("the file's aliases repeat more than {MAX_REPEATED_BYTES} bytes (16 MiB)");
            return Err(SyntaxError::new(mark, message));
        }
        Ok(())
    }

    /// The line and key hash of the next value.
    fn next_position(&self, mark: &Marker) -> (u32, u32) {
        match self.frames.last().map(|frame| &frame.collection) {
            Some(Collection::Map { key: Some(Key::Text(key, line)), .. }) => (*line, hash(key)),
            Some(Collection::Map { key: Some(Key::Merge(line)), .. }) => (*line, hash("<<")),
            _ => (line_of(mark), 0),
        }
    }

    fn open_position(&mut self, mark: &Marker) -> Result<usize, SyntaxError> {
        self.charge(1, 0, mark)?;
        let (line, key) = self.next_position(mark);
        self.positions.push(Position { line, size: 1, key });
        Ok(self.positions.len() - 1)
    }

    /// Stores the value of an anchor. The copy counts towards the limits like an alias.
    fn remember(
        &mut self,
        anchor: usize,
        value: &Value,
        position: usize,
        depth: usize,
        mark: &Marker,
    ) -> Result<(), SyntaxError> {
        if anchor == 0 {
            return Ok(());
        }
        let bytes = text_bytes(value);
        let positions = self.positions.get(position..).unwrap_or_default();
        self.charge(positions.len(), bytes, mark)?;
        let positions = self.positions.get(position..).unwrap_or_default().to_vec();
        self.anchors.insert(anchor, Anchored { value: value.clone(), positions, depth, bytes });
        Ok(())
    }

    fn alias(&mut self, anchor: usize, mark: &Marker) -> Result<(), SyntaxError> {
        let Some(anchored) = self.anchors.get(&anchor) else {
            return Err(SyntaxError::new(mark, "the alias is inside its own anchor"));
        };
        let (depth, bytes, count) = (anchored.depth, anchored.bytes, anchored.positions.len());
        self.check_depth(depth, mark)?;
        self.charge(count, bytes, mark)?;
        let Some(anchored) = self.anchors.get(&anchor) else {
            return Ok(());
        };
        if self.expects_key() {
            let Value::String(text) = &anchored.value else {
                return Err(SyntaxError::new(
                    mark,
                    "the alias is used as a key but does not refer to a string",
                ));
            };
            let key = Key::Text(text.clone(), line_of(mark));
            return self.put_key(key, 0, mark);
        }
        let value = anchored.value.clone();
        let (line, key) = self.next_position(mark);
        let position = self.positions.len();
        self.positions.extend_from_slice(&anchored.positions);
        if let Some(first) = self.positions.get_mut(position) {
            (first.line, first.key) = (line, key);
        }
        self.put(value, position, depth, mark)
    }

    /// Ends the innermost list or map.
    fn close(&mut self, mark: &Marker) -> Result<(), SyntaxError> {
        let Some(frame) = self.frames.pop() else {
            return Ok(());
        };
        let value = match frame.collection {
            Collection::List(items) => Value::Array(items),
            Collection::Map { mut map, merges, .. } => {
                for (source, position) in merges {
                    self.merge(&mut map, source, position, mark)?;
                }
                Value::Object(map)
            }
        };
        let size = narrow(self.positions.len().saturating_sub(frame.position));
        if let Some(position) = self.positions.get_mut(frame.position) {
            position.size = size;
        }
        self.remember(frame.anchor, &value, frame.position, frame.depth, mark)?;
        self.put(value, frame.position, frame.depth, mark)
    }

    /// Merges a `<<` value into a map. Keys of the map itself and of earlier sources take precedence.
    fn merge(
        &mut self,
        map: &mut Map<String, Value>,
        source: Value,
        position: usize,
        mark: &Marker,
    ) -> Result<(), SyntaxError> {
        let line = self.positions.get(position).map_or(1, |position| position.line);
        let sources = match source {
            Value::Object(source) => vec![(source, position)],
            Value::Array(items) => items
                .into_iter()
                .zip(children(&self.positions, position).collect::<Vec<_>>())
                .map(|(item, position)| match item {
                    Value::Object(source) => Ok((source, position)),
                    _ => Err(not_mergeable(line)),
                })
                .collect::<Result<_, _>>()?,
            _ => return Err(not_mergeable(line)),
        };
        for (source, position) in sources {
            let members: HashMap<u32, usize> = children(&self.positions, position)
                .filter_map(|child| self.positions.get(child).map(|position| (position.key, child)))
                .collect();
            for (key, value) in source {
                if map.contains_key(&key) {
                    continue;
                }
                if let Some(&from) = members.get(&hash(&key)) {
                    let size =
                        self.positions.get(from).map_or(0, |position| position.size as usize);
                    self.charge(size, 0, mark)?;
                    self.positions.extend_from_within(from..from + size);
                }
                map.insert(key, value);
            }
        }
        Ok(())
    }

    /// Adds a complete value to its parent, or as a document.
    fn put(
        &mut self,
        value: Value,
        position: usize,
        depth: usize,
        mark: &Marker,
    ) -> Result<(), SyntaxError> {
        let Some(frame) = self.frames.last_mut() else {
            if !value.is_null() {
                let positions = std::mem::take(&mut self.positions);
                let line = positions.first().map_or(1, |position| position.line);
                self.documents.push(Document { value, line, positions });
            }
            return Ok(());
        };
        frame.depth = frame.depth.max(depth + 1);
        match &mut frame.collection {
            Collection::List(items) => items.push(value),
            Collection::Map { map, key, merges } => match key.take() {
                Some(Key::Text(key, _)) => {
                    map.insert(key, value);
                }
                Some(Key::Merge(_)) => merges.push((value, position)),
                None => return Err(SyntaxError::new(mark, "a value without a key")),
            },
        }
        Ok(())
    }
}

fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + text_bytes(value)).sum(),
        _ => 0,
    }
}

fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

fn written(tag: &Tag) -> String {
    format!("{}{}", tag.original_handle(), tag.suffix())
}

/// Whether a tag is `!`, which only marks the value as a string.
fn is_plain(tag: &Tag) -> bool {
    tag.suffix().is_empty() && tag.handle() == "!" || tag.handle().is_empty() && tag.suffix() == "!"
}

fn key(text: &str, plain: bool, tag: Option<&Tag>, mark: &Marker) -> Result<Key, SyntaxError> {
    let line = line_of(mark);
    if plain && text == "<<" && tag.is_none_or(|tag| tag.suffix() == "merge") {
        return Ok(Key::Merge(line));
    }
    match scalar(text, plain, tag).map_err(|message| SyntaxError::new(mark, message))? {
        Value::String(text) => Ok(Key::Text(text, line)),
        Value::Bool(truth) => Ok(Key::Text(truth.to_string(), line)),
        Value::Number(number) => Ok(Key::Text(number.to_string(), line)),
        Value::Null => Err(SyntaxError::new(mark, "an empty key; expected a string")),
        Value::Array(_) | Value::Object(_) => {
            Err(SyntaxError::new(mark, "a key that is not a string"))
        }
    }
}

fn not_mergeable(line: u32) -> SyntaxError {
    let message = "the value of `<<` is neither a map nor a list of maps".to_owned();
    SyntaxError { line, column: 1, message }
}

/// The value of a scalar, according to its tag if it has one.
fn scalar(text: &str, plain: bool, tag: Option<&Tag>) -> Result<Value, String> {
    let Some(tag) = tag else {
        return if plain { resolve(text) } else { Ok(Value::from(text)) };
    };
    if is_plain(tag) {
        return Ok(Value::from(text));
    }
    match tag.core_suffix() {
        Some("str") => Ok(Value::from(text)),
        Some("null") => match resolve(text)? {
            Value::Null => Ok(Value::Null),
            _ => Err(mistagged(text, tag, "null")),
        },
        Some("bool") => match resolve(text)? {
            Value::Bool(truth) => Ok(Value::Bool(truth)),
            _ => Err(mistagged(text, tag, "boolean")),
        },
        Some("int") => match resolve(text)? {
            Value::Number(number) if !number.is_f64() => Ok(Value::Number(number)),
            _ => Err(mistagged(text, tag, "integer")),
        },
        Some("float") => match resolve(text)? {
            Value::Number(number) => Ok(Value::Number(number)),
            _ => Err(mistagged(text, tag, "number")),
        },
        _ if tag.suffix_in_namespace("tag:yaml.org,2002:").as_deref() == Some("timestamp") => {
            Ok(Value::from(text))
        }
        _ => Err(format!("the tag `{}` is not supported here", written(tag))),
    }
}

/// The message for a scalar that is not of the kind that its tag names.
fn mistagged(text: &str, tag: &Tag, kind: &str) -> String {
    format!("`{}` is tagged `{}` but is not a valid {kind}", shown(text), written(tag))
}

/// The value of a plain scalar; see the module documentation.
fn resolve(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" | "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return Ok(Value::Bool(true));
        }
        "false" | "False" | "FALSE" | "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Ok(Value::Bool(false));
        }
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF"
        | "-.inf" | "-.Inf" | "-.INF" => {
            return Err(format!(
                "`{text}` is not a number that JSON can represent; quote it if it is a \
            string"
            ));
        }
        _ => {}
    }
    let number = match text.bytes().next() {
        Some(b'.') => float(text),
        Some(b'0'..=b'9' | b'+' | b'-') => {
            let digits: String = text.chars().filter(|&c| c != '_').collect();
            whole(&digits).or_else(|| float(&digits))
        }
        _ => None,
    };
    Ok(number.map_or_else(|| Value::String(text.to_owned()), Value::Number))
}

/// Parses an integer with an optional sign and base prefix (`0x`, `0o`, `0b` or a leading 0).
fn whole(text: &str) -> Option<Number> {
    let (negative, signed, digits) = match text.split_at_checked(1) {
        Some(("-", rest)) => (true, true, rest),
        Some(("+", rest)) => (false, true, rest),
        _ => (false, false, text),
    };
    let (base, digits) = match digits.split_at_checked(2) {
        Some(("0x" | "0X", rest)) => (16, rest),
        Some(("0o" | "0O", rest)) => (8, rest),
        Some(("0b" | "0B", rest)) => (2, rest),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, digits),
        _ => (10, digits),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let size = u64::from_str_radix(digits, base).ok()?;
    match (negative, signed) {
        (true, _) => 0i64.checked_sub_unsigned(size).map(Number::from),
        // A signed number that fits only without its sign becomes a float, as in kubectl.
        (false, true) => i64::try_from(size).ok().map(Number::from),
        (false, false) => Some(Number::from(size)),
    }
}

/// Parses a decimal number with an optional fraction and exponent. Without a fractional part it is an integer, as after
/// kubectl's conversion to JSON.
fn float(text: &str) -> Option<Number> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let starts =
        digits.strip_prefix('.').unwrap_or(digits).starts_with(|c: char| c.is_ascii_digit());
    let is_decimal =
        digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    if !starts || !is_decimal {
        return None;
    }
    let number: f64 = text.parse().ok()?;
    // Every integer up to 2^53 is exact.
    if number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0 {
        return format!("{number:.0}").parse::<i64>().ok().map(Number::from);
    }
    Number::from_f64(number)
}
