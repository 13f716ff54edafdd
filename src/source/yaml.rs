//! YAML (and so JSON) text to JSON values that know the line of each of their fields.
//!
//! Plain scalars mean what they mean to kubectl, so that a file works the same whether it is applied or served:
//! kubectl reads YAML 1.1 without its base-60 numbers. `y`, `yes`, `on` and `true` are true, `n`, `no`, `off` and
//! `false` are false (each in lower, upper or title case), `~`, `null` and nothing are null, `0x1f`, `0o17`, `017` and
//! `0b11` are whole numbers and so is `1_000`; `080` is 80, since it is no octal number; `1e3` is 1000; dates stay
//! text. What is quoted, or a `|` or `>` block, is always text. Keys that are numbers or truth values become the text
//! JSON would print. Unlike kubectl, a key that stands twice in a map is an error, not a silent loss.
//!
//! Where plain scalars of `[]` and `{}` end is kubectl's rule too: a colon ends one only before a blank, so that
//! `[2001:db8::]` holds an address. One that begins with a colon, like `[::1]`, is text here, and an error to kubectl.

mod characters;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use granit_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};
use serde_json::{Map, Number, Value};
use xxhash_rust::xxh3::xxh3_64;

use characters::Characters;

/// The size in bytes up to which a text is read.
pub const MAX_BYTES: usize = 16 << 20;
/// How deep lists and maps may be nested, aliases included.
const MAX_DEPTH: usize = 128;
/// How many values a text may hold once its aliases are written out.
const MAX_VALUES: usize = 1_000_000;
/// How many bytes of text the aliases of one file may repeat.
const MAX_REPEATED_BYTES: usize = 16 << 20;

/// Why a text is no YAML that can be read, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct SyntaxError {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// What is wrong there.
    pub message: String,
}

impl SyntaxError {
    fn new(mark: &Marker, message: impl Into<String>) -> Self {
        Self { line: line_of(mark), column: narrow(mark.col()).saturating_add(1), message: message.into() }
    }
}

impl From<ScanError> for SyntaxError {
    fn from(error: ScanError) -> Self {
        Self::new(error.marker(), error.info())
    }
}

/// One document of a text.
#[derive(Debug)]
pub struct Document {
    /// What it holds; never null.
    pub value: Value,
    /// The line, from 1, at which its content begins.
    pub line: u32,
    places: Vec<Place>,
}

/// The line of a value, in the order in which the values stand in the text: a value is followed by all that is in it.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The line of the key, of the list's item, or of the document.
    line: u32,
    /// How many places this value takes, itself included.
    size: u32,
    /// The hash of its key in a map; 0 in a list. Two keys of one map with the same hash could only make a message
    /// name the line of the wrong one.
    key: u32,
}

impl Document {
    /// The line (from 1) of a field like `spec.http[0].route[1].weight`: the line of its key, or of the list's item.
    /// A field that is not there has the line of the nearest one around it. Keys that hold dots or brackets, such as
    /// annotations, are found too. `None` if not even the outermost part of the path is there.
    pub fn locate(&self, path: &str) -> Option<u32> {
        if path.is_empty() {
            return Some(self.line);
        }
        let (followed, line) = self.descend(0, path)?;
        (followed > 0).then_some(line)
    }

    /// How many bytes of `path` lead to something below the value at `at`, and the line of that.
    fn descend(&self, at: usize, path: &str) -> Option<(usize, u32)> {
        let mut best = (0, self.places.get(at)?.line);
        if path.is_empty() {
            return Some(best);
        }
        let mut follow = |child: Option<usize>, rest: &str| {
            let Some((followed, line)) = child.and_then(|child| self.descend(child, rest)) else { return };
            let followed = followed + path.len() - rest.len();
            if followed > best.0 {
                best = (followed, line);
            }
        };
        if let Some((index, rest)) = path.strip_prefix('[').and_then(|rest| rest.split_once(']'))
            && let Ok(index) = index.parse::<usize>()
        {
            follow(self.children(at).filter(|&child| self.key_at(child) == 0).nth(index), rest);
        }
        // A key may itself hold the characters that part a path, so every end is tried, and the one that leads
        // farthest is right. The number of ends is small: a path comes from a problem, not from a file.
        let keys = if at == 0 { path } else { path.strip_prefix('.').unwrap_or(path) };
        for end in ends(keys) {
            let (Some(key), Some(rest)) = (keys.get(..end), keys.get(end..)) else { continue };
            let key = hash(key);
            follow(self.children(at).find(|&child| self.key_at(child) == key), rest);
        }
        Some(best)
    }

    fn key_at(&self, at: usize) -> u32 {
        self.places.get(at).map_or(0, |place| place.key)
    }

    fn children(&self, at: usize) -> impl Iterator<Item = usize> {
        children(&self.places, at)
    }
}

/// The places right below the one at `at`.
fn children(places: &[Place], at: usize) -> impl Iterator<Item = usize> {
    between(places, at + 1, at + places.get(at).map_or(1, |place| place.size as usize))
}

/// The places from `first` on and before `end` that are not inside of one another.
fn between(places: &[Place], first: usize, end: usize) -> impl Iterator<Item = usize> {
    let next = move |&at: &usize| Some(at + places.get(at).map_or(1, |place| place.size.max(1) as usize));
    std::iter::successors(Some(first), next).take_while(move |&at| at < end)
}

/// Where the first step of a path could end: before every dot and bracket, and at the end.
fn ends(path: &str) -> impl Iterator<Item = usize> {
    path.char_indices().filter(|(_, c)| matches!(c, '.' | '[')).map(|(at, _)| at).chain([path.len()]).take(32)
}

/// The hash of a key; never 0, which stands for the items of lists.
fn hash(key: &str) -> u32 {
    let [a, b, c, d, ..] = xxh3_64(key.as_bytes()).to_le_bytes();
    u32::from_le_bytes([a, b, c, d]).max(1)
}

/// Reads all documents of a text. Those that are empty (nothing but comments between two `---`) are left out.
///
/// # Errors
/// The text is longer than [`MAX_BYTES`], not UTF-8, or not YAML; or nested more than 128 deep, or its aliases
/// multiply it beyond reason; or a map holds a key twice. An error in one document means that none is read, for where
/// the next one begins can not be told.
pub fn documents(text: &[u8]) -> Result<Vec<Document>, SyntaxError> {
    if text.len() > MAX_BYTES {
        let message = format!("is {} bytes long, expected at most {MAX_BYTES} (16 MiB)", text.len());
        return Err(SyntaxError { line: 1, column: 1, message });
    }
    let text = checked(text)?;
    let mut options = granit_parser::Options::default();
    options.set_emit_comments(false);
    let mut builder = Builder::default();
    for event in Parser::with_options(Characters::new(text), options) {
        let (event, span) = event?;
        builder.take(event, &span.start)?;
    }
    Ok(builder.documents)
}

/// The bytes as text, without characters that YAML does not allow and that no parser agrees on.
fn checked(bytes: &[u8]) -> Result<&str, SyntaxError> {
    let position = |before: &[u8]| {
        let line = before.iter().filter(|&&byte| byte == b'\n').count();
        let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let column = String::from_utf8_lossy(before.get(start..).unwrap_or_default()).chars().count();
        (narrow(line).saturating_add(1), narrow(column).saturating_add(1))
    };
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
    let (line, column) = position(bytes.get(..at).unwrap_or_default());
    Err(SyntaxError { line, column, message })
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn line_of(mark: &Marker) -> u32 {
    narrow(mark.line()).max(1)
}

/// A list or map that is not yet complete.
struct Frame {
    holder: Holder,
    /// Where it is in `Builder::places`.
    place: usize,
    anchor: usize,
    /// How deep what it holds is nested, itself included.
    depth: usize,
}

enum Holder {
    List(Vec<Value>),
    Map {
        map: Map<String, Value>,
        /// The key whose value comes next.
        key: Option<Key>,
        /// What stands behind `<<`, with its place.
        merges: Vec<(Value, usize)>,
    },
}

enum Key {
    Text(String, u32),
    Merge(u32),
}

/// What an anchor stands for.
struct Anchored {
    value: Value,
    places: Vec<Place>,
    depth: usize,
    bytes: usize,
}

#[derive(Default)]
struct Builder {
    documents: Vec<Document>,
    frames: Vec<Frame>,
    places: Vec<Place>,
    anchors: HashMap<usize, Anchored>,
    values: usize,
    repeated_bytes: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, mark: &Marker) -> Result<(), SyntaxError> {
        match event {
            Event::DocumentStart(..) => {
                self.places.clear();
                self.anchors.clear();
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                if self.expects_key() {
                    let key = key(&text, plain, tag.as_deref(), mark)?;
                    return self.put_key(key, anchor, mark);
                }
                let value = scalar(&text, plain, tag.as_deref()).map_err(|message| SyntaxError::new(mark, message))?;
                let place = self.open_place(mark)?;
                self.remember(anchor, &value, place, 0, mark)?;
                self.put(value, place, 0, mark)?;
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_collection(tag.as_deref(), "seq", "list", mark)?;
                self.open(Holder::List(Vec::new()), anchor, mark)?;
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_collection(tag.as_deref(), "map", "map", mark)?;
                let holder = Holder::Map { map: Map::new(), key: None, merges: Vec::new() };
                self.open(holder, anchor, mark)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(mark)?,
            Event::Alias(anchor) => self.alias(anchor, mark)?,
            Event::UnresolvedAlias(name) => {
                return Err(SyntaxError::new(mark, format!("the alias `*{name}` has no anchor `&{name}` before it")));
            }
            _ => {}
        }
        Ok(())
    }

    fn expects_key(&self) -> bool {
        matches!(self.frames.last(), Some(Frame { holder: Holder::Map { key: None, .. }, .. }))
    }

    fn put_key(&mut self, key: Key, anchor: usize, mark: &Marker) -> Result<(), SyntaxError> {
        if let Key::Text(text, _) = &key {
            if anchor != 0 {
                let anchored = Anchored {
                    value: Value::String(text.clone()),
                    places: vec![Place { line: line_of(mark), size: 1, key: 0 }],
                    depth: 0,
                    bytes: text.len(),
                };
                self.charge(1, text.len(), mark)?;
                self.anchors.insert(anchor, anchored);
            }
            if let Some(Frame { holder: Holder::Map { map, .. }, place, .. }) = self.frames.last()
                && map.contains_key(text)
            {
                let hash = hash(text);
                let first = between(&self.places, place + 1, self.places.len())
                    .filter_map(|child| self.places.get(child))
                    .find(|child| child.key == hash)
                    .map_or(0, |child| child.line);
                return Err(SyntaxError::new(
                    mark,
                    format!("the key `{}` stands twice in this map, first on line {first}", shown(text)),
                ));
            }
        }
        if let Some(Frame { holder: Holder::Map { key: slot, .. }, .. }) = self.frames.last_mut() {
            *slot = Some(key);
        }
        Ok(())
    }

    /// A list or map begins.
    fn open(&mut self, holder: Holder, anchor: usize, mark: &Marker) -> Result<(), SyntaxError> {
        self.check_depth(1, mark)?;
        let place = self.open_place(mark)?;
        self.frames.push(Frame { holder, place, anchor, depth: 1 });
        Ok(())
    }

    fn check_collection(&self, tag: Option<&Tag>, core: &str, name: &str, mark: &Marker) -> Result<(), SyntaxError> {
        if self.expects_key() {
            // `{{ .Values.name }}` reads as a map whose key is a map.
            let template = if name == "map" { "; a template, such as Helm's, has to be rendered first" } else { "" };
            return Err(SyntaxError::new(mark, format!("a {name} as a key; expected a text{template}")));
        }
        match tag {
            Some(tag) if !is_plain(tag) && tag.core_suffix() != Some(core) => {
                Err(SyntaxError::new(mark, format!("the tag `{}` has no meaning on a {name}", written(tag))))
            }
            _ => Ok(()),
        }
    }

    fn check_depth(&self, more: usize, mark: &Marker) -> Result<(), SyntaxError> {
        if self.frames.len() + more > MAX_DEPTH {
            return Err(SyntaxError::new(mark, format!("lists and maps are nested more than {MAX_DEPTH} deep")));
        }
        Ok(())
    }

    fn charge(&mut self, values: usize, repeated_bytes: usize, mark: &Marker) -> Result<(), SyntaxError> {
        self.values += values;
        self.repeated_bytes += repeated_bytes;
        if self.values > MAX_VALUES {
            let message = format!("the file holds more than {MAX_VALUES} values, those that aliases repeat included");
            return Err(SyntaxError::new(mark, message));
        }
        if self.repeated_bytes > MAX_REPEATED_BYTES {
            let message = format!("the file's aliases repeat more than {MAX_REPEATED_BYTES} bytes (16 MiB)");
            return Err(SyntaxError::new(mark, message));
        }
        Ok(())
    }

    /// The line and key hash of the value that comes next.
    fn next_place(&self, mark: &Marker) -> (u32, u32) {
        match self.frames.last().map(|frame| &frame.holder) {
            Some(Holder::Map { key: Some(Key::Text(key, line)), .. }) => (*line, hash(key)),
            Some(Holder::Map { key: Some(Key::Merge(line)), .. }) => (*line, hash("<<")),
            _ => (line_of(mark), 0),
        }
    }

    fn open_place(&mut self, mark: &Marker) -> Result<usize, SyntaxError> {
        self.charge(1, 0, mark)?;
        let (line, key) = self.next_place(mark);
        self.places.push(Place { line, size: 1, key });
        Ok(self.places.len() - 1)
    }

    /// Keeps what an anchor stands for. It is a copy, so it counts like an alias does.
    fn remember(
        &mut self,
        anchor: usize,
        value: &Value,
        place: usize,
        depth: usize,
        mark: &Marker,
    ) -> Result<(), SyntaxError> {
        if anchor == 0 {
            return Ok(());
        }
        let bytes = text_bytes(value);
        let places = self.places.get(place..).unwrap_or_default();
        self.charge(places.len(), bytes, mark)?;
        let places = self.places.get(place..).unwrap_or_default().to_vec();
        self.anchors.insert(anchor, Anchored { value: value.clone(), places, depth, bytes });
        Ok(())
    }

    fn alias(&mut self, anchor: usize, mark: &Marker) -> Result<(), SyntaxError> {
        let Some(anchored) = self.anchors.get(&anchor) else {
            return Err(SyntaxError::new(mark, "the alias stands inside of what it stands for"));
        };
        let (depth, bytes, count) = (anchored.depth, anchored.bytes, anchored.places.len());
        self.check_depth(depth, mark)?;
        self.charge(count, bytes, mark)?;
        let Some(anchored) = self.anchors.get(&anchor) else { return Ok(()) };
        if self.expects_key() {
            let Value::String(text) = &anchored.value else {
                return Err(SyntaxError::new(mark, "the alias is used as a key but does not stand for a text"));
            };
            let key = Key::Text(text.clone(), line_of(mark));
            return self.put_key(key, 0, mark);
        }
        let value = anchored.value.clone();
        let (line, key) = self.next_place(mark);
        let place = self.places.len();
        self.places.extend_from_slice(&anchored.places);
        if let Some(first) = self.places.get_mut(place) {
            (first.line, first.key) = (line, key);
        }
        self.put(value, place, depth, mark)
    }

    /// The innermost list or map is complete.
    fn close(&mut self, mark: &Marker) -> Result<(), SyntaxError> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        let value = match frame.holder {
            Holder::List(items) => Value::Array(items),
            Holder::Map { mut map, merges, .. } => {
                for (source, place) in merges {
                    self.merge(&mut map, source, place, mark)?;
                }
                Value::Object(map)
            }
        };
        let size = narrow(self.places.len().saturating_sub(frame.place));
        if let Some(place) = self.places.get_mut(frame.place) {
            place.size = size;
        }
        self.remember(frame.anchor, &value, frame.place, frame.depth, mark)?;
        self.put(value, frame.place, frame.depth, mark)
    }

    /// Adds what `<<` brings to a map. What the map or an earlier source says itself stays.
    fn merge(
        &mut self,
        map: &mut Map<String, Value>,
        source: Value,
        place: usize,
        mark: &Marker,
    ) -> Result<(), SyntaxError> {
        let wrong = |line: u32| SyntaxError {
            line,
            column: 1,
            message: "`<<` stands before something that is neither a map nor a list of maps".to_owned(),
        };
        let line = self.places.get(place).map_or(1, |place| place.line);
        let sources = match source {
            Value::Object(source) => vec![(source, place)],
            Value::Array(items) => items
                .into_iter()
                .zip(children(&self.places, place).collect::<Vec<_>>())
                .map(|(item, place)| match item {
                    Value::Object(source) => Ok((source, place)),
                    _ => Err(wrong(line)),
                })
                .collect::<Result<_, _>>()?,
            _ => return Err(wrong(line)),
        };
        for (source, place) in sources {
            let members: HashMap<u32, usize> = children(&self.places, place)
                .filter_map(|child| self.places.get(child).map(|place| (place.key, child)))
                .collect();
            for (key, value) in source {
                if map.contains_key(&key) {
                    continue;
                }
                if let Some(&from) = members.get(&hash(&key)) {
                    let size = self.places.get(from).map_or(0, |place| place.size as usize);
                    self.charge(size, 0, mark)?;
                    self.places.extend_from_within(from..from + size);
                }
                map.insert(key, value);
            }
        }
        Ok(())
    }

    /// A value is complete: it goes to the list or map around it, or is a document.
    fn put(&mut self, value: Value, place: usize, depth: usize, mark: &Marker) -> Result<(), SyntaxError> {
        let Some(frame) = self.frames.last_mut() else {
            if !value.is_null() {
                let places = std::mem::take(&mut self.places);
                let line = places.first().map_or(1, |place| place.line);
                self.documents.push(Document { value, line, places });
            }
            return Ok(());
        };
        frame.depth = frame.depth.max(depth + 1);
        match &mut frame.holder {
            Holder::List(items) => items.push(value),
            Holder::Map { map, key, merges } => match key.take() {
                Some(Key::Text(key, _)) => {
                    map.insert(key, value);
                }
                Some(Key::Merge(_)) => merges.push((value, place)),
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

/// Whether a tag is `!`, which only says that the value is to be taken as written.
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
        Value::Null => Err(SyntaxError::new(mark, "a key that is empty; expected a text")),
        Value::Array(_) | Value::Object(_) => Err(SyntaxError::new(mark, "a key that is no text")),
    }
}

/// What a scalar means, by its tag if it has one.
fn scalar(text: &str, plain: bool, tag: Option<&Tag>) -> Result<Value, String> {
    let as_text = || Ok(Value::String(text.to_owned()));
    let Some(tag) = tag else {
        return if plain { resolve(text) } else { as_text() };
    };
    if is_plain(tag) {
        return as_text();
    }
    let wrong = |kind: &str| Err(format!("`{}` is tagged `{}` but is no {kind}", shown(text), written(tag)));
    match tag.core_suffix() {
        Some("str") => as_text(),
        Some("null") => match resolve(text)? {
            Value::Null => Ok(Value::Null),
            _ => wrong("null"),
        },
        Some("bool") => match resolve(text)? {
            Value::Bool(truth) => Ok(Value::Bool(truth)),
            _ => wrong("truth value"),
        },
        Some("int") => match resolve(text)? {
            Value::Number(number) if !number.is_f64() => Ok(Value::Number(number)),
            _ => wrong("whole number"),
        },
        Some("float") => match resolve(text)? {
            Value::Number(number) => Ok(Value::Number(number)),
            _ => wrong("number"),
        },
        _ if tag.suffix_in_namespace("tag:yaml.org,2002:").as_deref() == Some("timestamp") => as_text(),
        _ => Err(format!("the tag `{}` has no meaning here", written(tag))),
    }
}

/// What a plain scalar means; see the module's description.
fn resolve(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" | "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return Ok(Value::Bool(true));
        }
        "false" | "False" | "FALSE" | "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Ok(Value::Bool(false));
        }
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => return Err(format!("`{text}` is no number that an object can hold; quote it if it is a text")),
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

/// A whole number with an optional sign, and `0x`, `0o`, `0b` or a leading 0 for its base.
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
        // A sign before a number that only fits without one makes it a float, as for kubectl.
        (false, true) => i64::try_from(size).ok().map(Number::from),
        (false, false) => Some(Number::from(size)),
    }
}

/// A decimal number with an optional point and exponent. One without a fraction is a whole number, as it is once
/// kubectl has printed it as JSON.
fn float(text: &str) -> Option<Number> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let starts = digits.strip_prefix('.').unwrap_or(digits).starts_with(|c: char| c.is_ascii_digit());
    let allowed = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-');
    if !starts || !digits.bytes().all(allowed) {
        return None;
    }
    let number: f64 = text.parse().ok()?;
    // Up to 2^53 every whole number is exact.
    if number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0 {
        return format!("{number:.0}").parse::<i64>().ok().map(Number::from);
    }
    Number::from_f64(number)
}
