//! The compiled rules of every known message: its fields by number, with their rules and message types. A message that
//! cannot violate any rule is marked so that a check skips it.

use std::collections::HashMap;

use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    ReflectMessage as _,
};

use super::rules::{Count, Rule};
use super::wire::Scalar;

/// All messages; they reference each other by index.
#[derive(Debug, Default)]
pub(super) struct CompiledRules {
    pub(super) messages: Vec<MessageRules>,
    by_name: HashMap<String, usize>,
    /// Rules in the protos that this code does not support. A test checks that there are none.
    pub(super) unsupported: Vec<String>,
}

/// One message.
#[derive(Debug)]
pub(super) struct MessageRules {
    pub(super) name: String,
    pub(super) is_any: bool,
    /// By number.
    pub(super) fields: Vec<FieldRules>,
    /// The indices of the fields to check after the entire message has been read.
    pub(super) at_end: Vec<usize>,
    pub(super) oneofs: Vec<OneofRules>,
    /// Whether Envoy's code has further checks for it.
    pub(super) is_semantic: bool,
    /// Whether this message or a nested one can violate a rule.
    pub(super) active: bool,
}

/// A oneof, and whether it is required.
#[derive(Debug)]
pub(super) struct OneofRules {
    pub(super) name: String,
    pub(super) required: bool,
}

/// The cardinality of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Single,
    List,
    Map,
}

/// One field.
#[derive(Debug)]
pub(super) struct FieldRules {
    pub(super) number: u32,
    pub(super) name: String,
    pub(super) label: Label,
    /// The rules of the field, list items or map values.
    pub(super) value: ValueRules,
    /// The rules of map keys.
    pub(super) key: Option<ValueRules>,
    pub(super) count: Option<Count>,
    pub(super) oneof: Option<usize>,
    /// Whether the field has explicit presence.
    pub(super) presence: bool,
    pub(super) required: bool,
}

impl FieldRules {
    /// Whether the field itself has rules, apart from those of a nested message.
    fn has_rules(&self) -> bool {
        self.required
            || self.count.is_some()
            || self.value.rule.is_some()
            || self.key.as_ref().is_some_and(|key| key.rule.is_some())
    }

    /// Whether the field can only be checked after the entire message has been read.
    fn is_checked_at_end(&self) -> bool {
        match self.label {
            Label::Single => {
                self.required || self.value.rule.is_some() || self.value.message.is_some()
            }
            Label::List | Label::Map => self.count.is_some(),
        }
    }
}

/// The type, rule and nested message of a value.
#[derive(Debug)]
pub(super) struct ValueRules {
    pub(super) scalar: Scalar,
    /// The wrapped type of a wrapper such as `google.protobuf.UInt32Value`, if the rule applies to it.
    pub(super) wrapped: Option<Scalar>,
    pub(super) rule: Option<Rule>,
    /// The index of the nested message.
    pub(super) kind: Option<usize>,
    /// The same, unless it cannot violate any rule.
    pub(super) message: Option<usize>,
}

/// The protoc-gen-validate extensions.
struct PgvExtensions {
    rules: ExtensionDescriptor,
    oneof_required: ExtensionDescriptor,
    disabled: ExtensionDescriptor,
    ignored: ExtensionDescriptor,
}

impl PgvExtensions {
    fn new(pool: &DescriptorPool) -> Result<Self, String> {
        Ok(Self {
            rules: Self::find(pool, "validate.rules")?,
            oneof_required: Self::find(pool, "validate.required")?,
            disabled: Self::find(pool, "validate.disabled")?,
            ignored: Self::find(pool, "validate.ignored")?,
        })
    }

    fn find(pool: &DescriptorPool, name: &str) -> Result<ExtensionDescriptor, String> {
        pool.get_extension_by_name(name).ok_or_else(|| format!("there is no extension {name}"))
    }

    fn is_set(options: &DynamicMessage, extension: &ExtensionDescriptor) -> bool {
        options.get_extension(extension).as_bool() == Some(true)
    }
}

impl CompiledRules {
    /// `is_semantic` says of a message's full name whether Envoy's code has further checks for it.
    pub(super) fn new(
        pool: &DescriptorPool,
        is_semantic: impl Fn(&str) -> bool,
    ) -> Result<Self, String> {
        let options = PgvExtensions::new(pool)?;
        let mut compiled_rules = Self::default();
        let all: Vec<_> = pool.all_messages().filter(|message| !message.is_map_entry()).collect();
        compiled_rules.by_name = all
            .iter()
            .enumerate()
            .map(|(at, message)| (message.full_name().to_owned(), at))
            .collect();
        for message in &all {
            let message_rules = compiled_rules.message(&options, message, &is_semantic);
            compiled_rules.messages.push(message_rules);
        }
        compiled_rules.mark();
        Ok(compiled_rules)
    }

    pub(super) fn get(&self, full_name: &str) -> Option<&MessageRules> {
        self.messages.get(*self.by_name.get(full_name)?)
    }

    fn message(
        &mut self,
        options: &PgvExtensions,
        message: &MessageDescriptor,
        is_semantic: impl Fn(&str) -> bool,
    ) -> MessageRules {
        let own = message.options();
        let off = PgvExtensions::is_set(&own, &options.disabled)
            || PgvExtensions::is_set(&own, &options.ignored);
        let oneofs: Vec<_> = message.oneofs().filter(|oneof| !oneof.is_synthetic()).collect();
        let mut fields: Vec<_> = match off {
            true => Vec::new(),
            false => message
                .fields()
                .map(|field| {
                    let oneof = field.containing_oneof();
                    let oneof = oneofs.iter().position(|item| Some(item) == oneof.as_ref());
                    self.field(options, &field, oneof)
                })
                .collect(),
        };
        fields.sort_by_key(|field| field.number);
        MessageRules {
            name: message.full_name().to_owned(),
            is_any: message.full_name() == "google.protobuf.Any",
            fields,
            at_end: Vec::new(),
            oneofs: match off {
                true => Vec::new(),
                false => oneofs
                    .iter()
                    .map(|oneof| OneofRules {
                        name: oneof.name().to_owned(),
                        required: PgvExtensions::is_set(&oneof.options(), &options.oneof_required),
                    })
                    .collect(),
            },
            is_semantic: !off && is_semantic(message.full_name()),
            active: false,
        }
    }

    fn field(
        &mut self,
        options: &PgvExtensions,
        field: &FieldDescriptor,
        oneof: Option<usize>,
    ) -> FieldRules {
        let own = field.options();
        let rules = own
            .has_extension(&options.rules)
            .then(|| own.get_extension(&options.rules).into_owned());
        let rules = rules.as_ref().and_then(|rules| rules.as_message());
        let mut message_rules = FieldRules {
            number: field.number(),
            name: field.name().to_owned(),
            label: Label::Single,
            value: self.value(&field.kind()),
            key: None,
            count: None,
            oneof,
            presence: field.supports_presence(),
            required: false,
        };
        if field.is_map() {
            message_rules.label = Label::Map;
            if let Kind::Message(entry) = field.kind() {
                message_rules.key = Some(self.value(&entry.map_entry_key_field().kind()));
                message_rules.value = self.value(&entry.map_entry_value_field().kind());
            }
        } else if field.is_list() {
            message_rules.label = Label::List;
        }
        let Some(rules) = rules else {
            return message_rules;
        };
        for (kind, value) in rules.fields() {
            let Some(value) = value.as_message() else {
                continue;
            };
            match (kind.name(), message_rules.label) {
                ("repeated", Label::List) => self.list(field, value, &mut message_rules),
                ("map", Label::Map) => self.map(field, value, &mut message_rules),
                _ => {}
            }
            message_rules.required |=
                message_rules.label == Label::Single && set(value, "required");
        }
        if message_rules.label == Label::Single {
            self.rules(field.full_name(), rules, &mut message_rules.value, &field.kind());
        }
        message_rules
    }

    /// Compiles the `validate.RepeatedRules` of a field.
    fn list(
        &mut self,
        field: &FieldDescriptor,
        rules: &DynamicMessage,
        message_rules: &mut FieldRules,
    ) {
        let name = field.full_name();
        message_rules.count = Some(self.count(name, rules, ["min_items", "max_items"], &["items"]));
        if let Some(items) = inner(rules, "items") {
            self.rules(name, &items, &mut message_rules.value, &field.kind());
        }
    }

    /// Compiles the `validate.MapRules` of a field.
    fn map(
        &mut self,
        field: &FieldDescriptor,
        rules: &DynamicMessage,
        message_rules: &mut FieldRules,
    ) {
        let name = field.full_name();
        let members = ["keys", "values"];
        message_rules.count = Some(self.count(name, rules, ["min_pairs", "max_pairs"], &members));
        let Kind::Message(entry) = field.kind() else {
            return;
        };
        if let (Some(keys), Some(key)) = (inner(rules, "keys"), &mut message_rules.key) {
            self.rules(name, &keys, key, &entry.map_entry_key_field().kind());
        }
        if let Some(values) = inner(rules, "values") {
            let kind = entry.map_entry_value_field().kind();
            self.rules(name, &values, &mut message_rules.value, &kind);
        }
    }

    fn value(&self, kind: &Kind) -> ValueRules {
        let message = match kind {
            Kind::Message(message) => self.by_name.get(message.full_name()).copied(),
            _ => None,
        };
        ValueRules { scalar: scalar(kind), wrapped: None, rule: None, kind: message, message }
    }

    /// Compiles the `validate.FieldRules` of one value.
    fn rules(
        &mut self,
        of: &str,
        rules: &DynamicMessage,
        message_rules: &mut ValueRules,
        kind: &Kind,
    ) {
        for (field, value) in rules.fields() {
            let Some(value) = value.as_message() else {
                continue;
            };
            if field.name() == "message" {
                if set(value, "skip") {
                    message_rules.message = None;
                }
                continue;
            }
            let enumeration = match kind {
                Kind::Enum(enumeration) => Some(enumeration),
                _ => None,
            };
            let (rule, unknown) = match Rule::compile(field.name(), value, enumeration) {
                Ok(compiled) => compiled,
                Err(reason) => {
                    self.unsupported.push(format!("{of}: {reason}"));
                    continue;
                }
            };
            self.unsupported
                .extend(unknown.iter().map(|name| format!("{of}: {}.{name}", field.name())));
            // Some Envoy fields have `Any` rules although they are another message; only `required` applies there.
            let fits = match (&rule, kind) {
                (Some(Rule::Any { .. }), Kind::Message(message)) => {
                    message.full_name() == "google.protobuf.Any"
                }
                (Some(Rule::Duration(_)), Kind::Message(message)) => {
                    message.full_name() == "google.protobuf.Duration"
                }
                (Some(Rule::Timestamp(_)), Kind::Message(message)) => {
                    message.full_name() == "google.protobuf.Timestamp"
                }
                (_, Kind::Message(message)) => {
                    message_rules.wrapped = message
                        .get_field_by_name("value")
                        .filter(|_| is_wrapper(message))
                        .map(|f| scalar(&f.kind()));
                    rule.is_none() || message_rules.wrapped.is_some()
                }
                _ => true,
            };
            match fits {
                true => message_rules.rule = rule,
                false => self
                    .unsupported
                    .push(format!("{of}: the rules {} do not fit the field", field.name())),
            }
        }
    }

    fn count(
        &mut self,
        of: &str,
        rules: &DynamicMessage,
        bounds: [&str; 2],
        inner: &[&str],
    ) -> Count {
        let [min, max] = bounds;
        for (field, _) in rules.fields() {
            let name = field.name();
            if !bounds.contains(&name)
                && !inner.contains(&name)
                && !["unique", "ignore_empty"].contains(&name)
            {
                self.unsupported.push(format!("{of}: {name}"));
            }
        }
        let has_max =
            rules.descriptor().get_field_by_name(max).is_some_and(|field| rules.has_field(&field));
        Count {
            min: size(rules, min).unwrap_or_default(),
            max: size(rules, max).filter(|_| has_max),
            unique: set(rules, "unique"),
            ignore_empty: set(rules, "ignore_empty"),
        }
    }

    /// Marks the messages that can violate a rule and removes references to all others.
    fn mark(&mut self) {
        for message_rules in &mut self.messages {
            message_rules.active = message_rules.is_any
                || message_rules.is_semantic
                || message_rules.oneofs.iter().any(|oneof| oneof.required)
                || message_rules.fields.iter().any(FieldRules::has_rules);
        }
        // Messages may be recursive, so this iterates to a fixed point.
        loop {
            let active: Vec<bool> =
                self.messages.iter().map(|message_rules| message_rules.active).collect();
            let mut changed = false;
            for message_rules in
                self.messages.iter_mut().filter(|message_rules| !message_rules.active)
            {
                message_rules.active = message_rules
                    .fields
                    .iter()
                    .any(|field| field.value.message.and_then(|at| active.get(at)) == Some(&true));
                changed |= message_rules.active;
            }
            if !changed {
                break;
            }
        }
        let active: Vec<bool> =
            self.messages.iter().map(|message_rules| message_rules.active).collect();
        for message_rules in &mut self.messages {
            for field in &mut message_rules.fields {
                field.value.message =
                    field.value.message.filter(|at| active.get(*at) == Some(&true));
            }
            message_rules.at_end = (0..)
                .zip(&message_rules.fields)
                .filter(|(_, field)| field.is_checked_at_end())
                .map(|(at, _)| at)
                .collect();
        }
    }
}

fn inner(rules: &DynamicMessage, name: &str) -> Option<DynamicMessage> {
    let field = rules.descriptor().get_field_by_name(name)?;
    rules.has_field(&field).then(|| rules.get_field(&field).as_message().cloned())?
}

fn size(rules: &DynamicMessage, name: &str) -> Option<u64> {
    rules.get_field_by_name(name).and_then(|value| value.as_u64())
}

fn set(rules: &DynamicMessage, name: &str) -> bool {
    rules.get_field_by_name(name).is_some_and(|value| value.as_bool() == Some(true))
}

fn is_wrapper(message: &MessageDescriptor) -> bool {
    message.full_name().starts_with("google.protobuf.")
        && message.full_name().ends_with("Value")
        && {
            let mut fields = message.fields();
            fields.next().is_some_and(|field| field.name() == "value" && field.number() == 1)
                && fields.next().is_none()
        }
}

fn scalar(kind: &Kind) -> Scalar {
    match kind {
        Kind::Double => Scalar::Double,
        Kind::Float => Scalar::Float,
        Kind::Int32 => Scalar::Int32,
        Kind::Int64 => Scalar::Int64,
        Kind::Uint32 => Scalar::Uint32,
        Kind::Uint64 => Scalar::Uint64,
        Kind::Sint32 => Scalar::Sint32,
        Kind::Sint64 => Scalar::Sint64,
        Kind::Fixed32 => Scalar::Fixed32,
        Kind::Fixed64 => Scalar::Fixed64,
        Kind::Sfixed32 => Scalar::Sfixed32,
        Kind::Sfixed64 => Scalar::Sfixed64,
        Kind::Bool => Scalar::Bool,
        Kind::String => Scalar::Text,
        Kind::Bytes => Scalar::Bytes,
        Kind::Message(_) => Scalar::Message,
        Kind::Enum(_) => Scalar::Enum,
    }
}
