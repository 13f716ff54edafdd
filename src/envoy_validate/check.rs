//! Walks the wire bytes of a message according to its compiled rules.
//!
//! A protobuf reader keeps the last value of a repeated singular field and merges repeated messages. So singular fields
//! are recorded while the bytes are read and checked at the end; list items are checked immediately.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;

use super::compiled::{CompiledRules, FieldRules, Label, MessageRules, ValueRules};
use super::rules::Mismatch;
use super::semantics::{Message, semantic_check};
use super::wire::{Fields, Malformed, Payload, Scalar, Value, open_any};
use super::{MAX_VIOLATIONS, Violation};

/// The maximum nesting of messages, including `Any`. Source: protobuf's default recursion limit.
const MAX_DEPTH: usize = 100;

/// Checks `bytes` against the rules of the type `full_name`.
pub(super) fn run(
    compiled_rules: &'static CompiledRules,
    full_name: &str,
    bytes: &[u8],
) -> Vec<Violation> {
    let mut walker =
        Walker { compiled_rules, path: Vec::new(), depth: 0, slots: Vec::new(), found: Vec::new() };
    match compiled_rules.get(full_name) {
        Some(message_rules) => walker.message(message_rules, bytes),
        None => walker.add(
            String::new(),
            format!("type {full_name:?}"),
            "a known message type".to_owned(),
        ),
    }
    walker.found
}

/// A segment of a field path.
enum Step {
    Field(&'static str),
    Index(usize),
    Key(String),
}

/// The recorded state of one field of the current message.
#[derive(Clone, Copy, Default)]
struct Slot {
    count: usize,
    /// The number of fields read before the first relevant occurrence.
    since: usize,
    /// A numeric value, or the offset of a string or message in its parent.
    bits: u64,
    length: usize,
}

/// A field as read: payload, order and end offset.
struct Read<'a> {
    payload: Payload<'a>,
    order: usize,
    end: usize,
}

struct Walker {
    compiled_rules: &'static CompiledRules,
    path: Vec<Step>,
    /// The nesting depth.
    depth: usize,
    /// The slots of the messages being read, innermost last.
    slots: Vec<Slot>,
    found: Vec<Violation>,
}

impl Walker {
    fn message(&mut self, message_rules: &'static MessageRules, bytes: &[u8]) {
        if !message_rules.active || self.found.len() >= MAX_VIOLATIONS {
            return;
        }
        if self.depth >= MAX_DEPTH {
            return self.wrong("", format!("more than {MAX_DEPTH} nested messages"), "fewer");
        }
        self.depth += 1;
        let read = match message_rules.is_any {
            true => self.any(bytes),
            false => self.fields(message_rules, bytes),
        };
        self.depth -= 1;
        let read = read.and_then(|()| {
            match message_rules.is_semantic.then(|| semantic_check(&message_rules.name)).flatten() {
                Some(check) => {
                    let message = Message {
                        compiled_rules: self.compiled_rules,
                        message_rules,
                        bytes,
                        is_root: self.depth == 0,
                    };
                    check(&message, &mut |path: &str, wrong: Mismatch| {
                        self.wrong(path, wrong.found, wrong.expected);
                    })
                }
                None => Ok(()),
            }
        });
        if read.is_err() {
            self.wrong("", "malformed bytes", format!("an encoded {}", message_rules.name));
        }
    }

    fn any(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let (url, value) = open_any(bytes)?;
        let url = std::str::from_utf8(url).map_err(|_| Malformed)?;
        let compiled_rules = self.compiled_rules;
        let name = url.rsplit_once('/').map_or(url, |(_, name)| name);
        if let Some(message_rules) = compiled_rules.get(name) {
            self.message(message_rules, value);
        }
        Ok(())
    }

    fn fields(
        &mut self,
        message_rules: &'static MessageRules,
        bytes: &[u8],
    ) -> Result<(), Malformed> {
        let base = self.slots.len();
        self.slots.resize(
            base + message_rules.fields.len() + message_rules.oneofs.len(),
            Slot::default(),
        );
        let read = self
            .read(message_rules, bytes, base)
            .and_then(|()| self.end(message_rules, bytes, base));
        self.slots.truncate(base);
        read
    }

    /// Reads the bytes once: checks list items and records other fields.
    fn read(
        &mut self,
        message_rules: &'static MessageRules,
        bytes: &[u8],
        base: usize,
    ) -> Result<(), Malformed> {
        let mut seen: BTreeMap<usize, HashSet<Vec<u8>>> = BTreeMap::new();
        let (mut fields, mut order) = (Fields::new(bytes), 0);
        while let Some(entry) = fields.next() {
            let (number, payload) = entry?;
            order += 1;
            let Ok(at) = message_rules.fields.binary_search_by_key(&number, |field| field.number)
            else {
                if payload == Payload::Group {
                    return Err(Malformed);
                }
                continue;
            };
            let Some(field) = message_rules.fields.get(at) else {
                continue;
            };
            match field.label {
                Label::Single => {
                    let end = bytes.len() - fields.left();
                    self.note(message_rules, at, base, Read { payload, order: order - 1, end })?;
                }
                Label::List => {
                    let seen = match &field.count {
                        Some(count) if count.unique => Some(seen.entry(at).or_default()),
                        _ => None,
                    };
                    self.items(field, base + at, payload, seen)?;
                }
                Label::Map => {
                    let Payload::Bytes(entry) = payload else {
                        return Err(Malformed);
                    };
                    self.count(base + at);
                    self.entry(field, entry)?;
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, at: usize) -> usize {
        self.slots.get_mut(at).map_or(0, |slot| {
            slot.count += 1;
            slot.count - 1
        })
    }

    fn note(
        &mut self,
        message_rules: &'static MessageRules,
        at: usize,
        base: usize,
        read: Read<'_>,
    ) -> Result<(), Malformed> {
        let Some(field) = message_rules.fields.get(at) else {
            return Ok(());
        };
        let value = readable(field.value.scalar, read.payload)?;
        if let Some(oneof) = field.oneof {
            // The slot of a oneof contains the 1-based index of the field that is set.
            let state = base + message_rules.fields.len() + oneof;
            let before = self.slots.get(state).map_or(0, |slot| slot.count);
            if before != at + 1 {
                if let Some(slot) =
                    before.checked_sub(1).and_then(|before| self.slots.get_mut(base + before))
                {
                    *slot = Slot::default();
                }
                if let Some(slot) = self.slots.get_mut(state) {
                    slot.count = at + 1;
                }
            }
        }
        if let Some(slot) = self.slots.get_mut(base + at) {
            if slot.count == 0 {
                slot.since = read.order;
            }
            slot.count += 1;
            match (value, read.payload) {
                (Value::Bytes(part), _) => {
                    slot.bits = read.end.saturating_sub(part.len()) as u64;
                    slot.length = part.len();
                }
                (_, Payload::Varint(bits) | Payload::Fixed64(bits)) => slot.bits = bits,
                (_, Payload::Fixed32(bits)) => slot.bits = bits.into(),
                _ => {}
            }
        }
        Ok(())
    }

    fn items(
        &mut self,
        field: &'static FieldRules,
        slot: usize,
        payload: Payload<'_>,
        mut seen: Option<&mut HashSet<Vec<u8>>>,
    ) -> Result<(), Malformed> {
        let scalar = field.value.scalar;
        match payload {
            Payload::Bytes(mut packed) if scalar.packs() => {
                while !packed.is_empty() {
                    let payload = scalar.unpack(&mut packed).ok_or(Malformed)?;
                    self.item(field, slot, payload, seen.as_deref_mut())?;
                }
                Ok(())
            }
            payload => self.item(field, slot, payload, seen),
        }
    }

    fn item(
        &mut self,
        field: &'static FieldRules,
        slot: usize,
        payload: Payload<'_>,
        seen: Option<&mut HashSet<Vec<u8>>>,
    ) -> Result<(), Malformed> {
        let value = readable(field.value.scalar, payload)?;
        let index = self.count(slot);
        if field.value.rule.is_none() && field.value.message.is_none() && seen.is_none() {
            return Ok(());
        }
        self.path.extend([Step::Field(&field.name), Step::Index(index)]);
        if let Some(seen) = seen
            && !seen.insert(fingerprint(value))
        {
            self.wrong("", "a duplicate item", "unique items");
        }
        let checked = self.value(&field.value, value);
        self.path.truncate(self.path.len().saturating_sub(2));
        checked
    }

    fn entry(&mut self, field: &'static FieldRules, entry: &[u8]) -> Result<(), Malformed> {
        let Some(key_plan) = &field.key else {
            return Ok(());
        };
        let (mut key, mut value) = (key_plan.scalar.zero(), field.value.scalar.zero());
        for part in Fields::new(entry) {
            match part? {
                (1, payload) => key = readable(key_plan.scalar, payload)?,
                (2, payload) => value = readable(field.value.scalar, payload)?,
                (_, Payload::Group) => return Err(Malformed),
                _ => {}
            }
        }
        if key_plan.rule.is_none() && field.value.rule.is_none() && field.value.message.is_none() {
            return Ok(());
        }
        let shown = match key {
            Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Value::Int(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::Float(number) => number.to_string(),
        };
        self.path.extend([Step::Field(&field.name), Step::Key(shown)]);
        let checked = self.value(key_plan, key).and_then(|()| self.value(&field.value, value));
        self.path.truncate(self.path.len().saturating_sub(2));
        checked
    }

    /// Checks the recorded fields and reports missing ones.
    fn end(
        &mut self,
        message_rules: &'static MessageRules,
        bytes: &[u8],
        base: usize,
    ) -> Result<(), Malformed> {
        for at in &message_rules.at_end {
            let (Some(field), Some(slot)) =
                (message_rules.fields.get(*at), self.slots.get(base + at).copied())
            else {
                continue;
            };
            self.path.push(Step::Field(&field.name));
            let checked = match field.label {
                Label::Single => self.single(field, slot, bytes),
                Label::List | Label::Map => {
                    self.size(field, slot.count as u64);
                    Ok(())
                }
            };
            self.path.pop();
            checked?;
        }
        for (oneof, at) in message_rules.oneofs.iter().zip(base + message_rules.fields.len()..) {
            if oneof.required && self.slots.get(at).is_none_or(|slot| slot.count == 0) {
                let fields = message_rules.fields.iter().filter(|field| {
                    field
                        .oneof
                        .and_then(|at| message_rules.oneofs.get(at))
                        .is_some_and(|of| of.name == oneof.name)
                });
                let names: Vec<_> = fields.map(|field| field.name.as_str()).collect();
                self.wrong(&oneof.name, "nothing", format!("one of {}", names.join(", ")));
            }
        }
        Ok(())
    }

    fn single(
        &mut self,
        field: &'static FieldRules,
        slot: Slot,
        bytes: &[u8],
    ) -> Result<(), Malformed> {
        if slot.count == 0 {
            // The rules of a oneof member apply only if it is set.
            match field.oneof {
                None if field.required => {
                    self.wrong("", "nothing", "a value: the field is required");
                }
                // Proto3 omits zero values, so absent means zero here.
                None if !field.presence => {
                    return self.value(&field.value, field.value.scalar.zero());
                }
                _ => {}
            }
            return Ok(());
        }
        let merged;
        let value = match field.value.scalar {
            Scalar::Message if slot.count > 1 => {
                merged = merge(field.number, slot.since, bytes)?;
                Value::Bytes(&merged)
            }
            Scalar::Message | Scalar::Text | Scalar::Bytes => {
                let start = usize::try_from(slot.bits).map_err(|_| Malformed)?;
                Value::Bytes(bytes.get(start..start.saturating_add(slot.length)).ok_or(Malformed)?)
            }
            scalar => {
                let of = [
                    Payload::Varint(slot.bits),
                    Payload::Fixed64(slot.bits),
                    Payload::Fixed32(slot.bits as u32),
                ];
                of.into_iter().find_map(|payload| scalar.read(payload)).ok_or(Malformed)?
            }
        };
        self.value(&field.value, value)
    }

    fn size(&mut self, field: &'static FieldRules, is: u64) {
        let Some(count) = &field.count else {
            return;
        };
        if count.ignore_empty && is == 0 {
            return;
        }
        if is < count.min {
            self.wrong("", format!("{is} items"), format!("at least {}", count.min));
        }
        if let Some(max) = count.max.filter(|max| is > *max) {
            self.wrong("", format!("{is} items"), format!("at most {max}"));
        }
    }

    fn value(
        &mut self,
        message_rules: &'static ValueRules,
        value: Value<'_>,
    ) -> Result<(), Malformed> {
        if let Some(rule) = &message_rules.rule {
            let wrong = match (message_rules.wrapped, value) {
                (Some(scalar), Value::Bytes(wrapper)) => rule.check(unwrap(scalar, wrapper)?)?,
                _ => rule.check(value)?,
            };
            if let Some(wrong) = wrong {
                self.wrong("", wrong.found, wrong.expected);
            }
        }
        let compiled_rules = self.compiled_rules;
        if let (Some(message), Value::Bytes(bytes)) =
            (message_rules.message.and_then(|at| compiled_rules.messages.get(at)), value)
        {
            self.message(message, bytes);
        }
        Ok(())
    }

    /// Reports a violation at the current path, or at `below` relative to it.
    fn wrong(&mut self, below: &str, found: impl Into<String>, expected: impl Into<String>) {
        let mut path = String::new();
        for step in &self.path {
            // Writing to a String does not fail.
            let _ = match step {
                Step::Field(name) if path.is_empty() => write!(path, "{name}"),
                Step::Field(name) => write!(path, ".{name}"),
                Step::Index(index) => write!(path, "[{index}]"),
                Step::Key(key) => write!(path, "[{key:?}]"),
            };
        }
        if !path.is_empty() && !below.is_empty() && !below.starts_with('[') {
            path.push('.');
        }
        path.push_str(below);
        self.add(path, found.into(), expected.into());
    }

    fn add(&mut self, path: String, found: String, expected: String) {
        if self.found.len() < MAX_VIOLATIONS {
            self.found.push(Violation { path, found, expected });
        }
    }
}

/// Decodes a payload; strings must be UTF-8.
fn readable(scalar: Scalar, payload: Payload<'_>) -> Result<Value<'_>, Malformed> {
    let value = scalar.read(payload).ok_or(Malformed)?;
    match value {
        Value::Bytes(bytes) if scalar == Scalar::Text && std::str::from_utf8(bytes).is_err() => {
            Err(Malformed)
        }
        value => Ok(value),
    }
}

/// Unwraps a wrapper, whose only field is `value`.
fn unwrap(scalar: Scalar, wrapper: &[u8]) -> Result<Value<'_>, Malformed> {
    let mut value = scalar.zero();
    for field in Fields::new(wrapper) {
        if let (1, payload) = field? {
            value = readable(scalar, payload)?;
        }
    }
    Ok(value)
}

/// Concatenates all occurrences of a message, which is how protobuf merges them.
fn merge(number: u32, since: usize, bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut merged = Vec::new();
    for field in Fields::new(bytes).skip(since) {
        if let (at, Payload::Bytes(part)) = field?
            && at == number
        {
            merged.extend_from_slice(part);
        }
    }
    Ok(merged)
}

/// A fingerprint that is equal for equal values.
fn fingerprint(value: Value<'_>) -> Vec<u8> {
    let bytes: Cow<'_, [u8]> = match value {
        Value::Int(number) => number.to_le_bytes().to_vec().into(),
        Value::Float(number) => number.to_bits().to_le_bytes().to_vec().into(),
        Value::Bool(flag) => vec![u8::from(flag)].into(),
        Value::Bytes(bytes) => bytes.into(),
    };
    bytes.into_owned()
}
