//! The rules of every message weir knows, compiled once: per message its fields by number, with what each must be and where its
//! contents are described. A message in which nothing can be wrong is marked, so that a check steps over it.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _,
};

use super::rules::{Count, Rule};
use super::semantics::{self, Hook};
use super::wire::Scalar;
use crate::proto_json;

/// All messages; they name each other by their place.
#[derive(Debug, Default)]
pub(super) struct Plans {
    pub(super) messages: Vec<Plan>,
    by_name: HashMap<String, usize>,
    /// Rules that stand in the protos and that this code does not understand. A test says that there are none.
    pub(super) unsupported: Vec<String>,
}

/// One message.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) is_any: bool,
    /// By number.
    pub(super) fields: Vec<FieldPlan>,
    /// The places of the fields that have something to look at when all of the message was read.
    pub(super) at_end: Vec<usize>,
    pub(super) oneofs: Vec<OneofPlan>,
    pub(super) hook: Option<Hook>,
    /// Whether something in here, or below, can be wrong.
    pub(super) active: bool,
}

/// A oneof and whether one of its fields must be set.
#[derive(Debug)]
pub(super) struct OneofPlan {
    pub(super) name: String,
    pub(super) required: bool,
}

/// How often a field may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Single,
    List,
    Map,
}

/// One field.
#[derive(Debug)]
pub(super) struct FieldPlan {
    pub(super) number: u32,
    pub(super) name: String,
    pub(super) label: Label,
    /// Of the field, of a list's items or of a map's values.
    pub(super) value: ValuePlan,
    /// Of a map's keys.
    pub(super) key: Option<ValuePlan>,
    pub(super) count: Option<Count>,
    pub(super) oneof: Option<usize>,
    /// Absent is something else than zero.
    pub(super) presence: bool,
    pub(super) required: bool,
}

/// What a value is, what it must be, and what is in it.
#[derive(Debug)]
pub(super) struct ValuePlan {
    pub(super) scalar: Scalar,
    /// The type inside of a wrapper such as `google.protobuf.UInt32Value`, if the rule is about that.
    pub(super) wrapped: Option<Scalar>,
    pub(super) rule: Option<Rule>,
    /// The message's plan.
    pub(super) kind: Option<usize>,
    /// The same, unless nothing in it can be wrong.
    pub(super) message: Option<usize>,
}

/// The rules, compiled on first use.
pub(super) fn plans() -> Result<&'static Plans, &'static str> {
    static PLANS: LazyLock<Result<Plans, String>> = LazyLock::new(|| {
        // A pool of its own, which takes several times as much memory as what is made of it, and goes again.
        let pool = proto_json::fresh_pool().map_err(|error| error.to_string())?;
        Plans::new(&pool)
    });
    PLANS.as_ref().map_err(String::as_str)
}

/// The extensions in which the rules stand.
struct Options {
    rules: ExtensionDescriptor,
    oneof_required: ExtensionDescriptor,
    disabled: ExtensionDescriptor,
    ignored: ExtensionDescriptor,
}

impl Options {
    fn new(pool: &DescriptorPool) -> Result<Self, String> {
        let find = |name: &str| pool.get_extension_by_name(name).ok_or_else(|| format!("there is no extension {name}"));
        Ok(Self {
            rules: find("validate.rules")?,
            oneof_required: find("validate.required")?,
            disabled: find("validate.disabled")?,
            ignored: find("validate.ignored")?,
        })
    }

    fn is_set(options: &DynamicMessage, extension: &ExtensionDescriptor) -> bool {
        options.get_extension(extension).as_bool() == Some(true)
    }
}

impl Plans {
    pub(super) fn new(pool: &DescriptorPool) -> Result<Self, String> {
        let options = Options::new(pool)?;
        let mut plans = Self::default();
        let all: Vec<_> = pool.all_messages().filter(|message| !message.is_map_entry()).collect();
        plans.by_name = all.iter().enumerate().map(|(at, message)| (message.full_name().to_owned(), at)).collect();
        for message in &all {
            let plan = plans.message(&options, message);
            plans.messages.push(plan);
        }
        plans.mark();
        Ok(plans)
    }

    pub(super) fn get(&self, full_name: &str) -> Option<&Plan> {
        self.messages.get(*self.by_name.get(full_name)?)
    }

    fn message(&mut self, options: &Options, message: &MessageDescriptor) -> Plan {
        let own = message.options();
        let off = Options::is_set(&own, &options.disabled) || Options::is_set(&own, &options.ignored);
        let oneofs: Vec<_> = message.oneofs().filter(|oneof| !oneof.is_synthetic()).collect();
        let mut fields: Vec<_> = match off {
            true => Vec::new(),
            false => message
                .fields()
                .map(|field| {
                    let oneof = field.containing_oneof();
                    let oneof = oneofs.iter().position(|one| Some(one) == oneof.as_ref());
                    self.field(options, &field, oneof)
                })
                .collect(),
        };
        fields.sort_by_key(|field| field.number);
        Plan {
            name: message.full_name().to_owned(),
            is_any: message.full_name() == "google.protobuf.Any",
            fields,
            at_end: Vec::new(),
            oneofs: match off {
                true => Vec::new(),
                false => oneofs
                    .iter()
                    .map(|oneof| OneofPlan {
                        name: oneof.name().to_owned(),
                        required: Options::is_set(&oneof.options(), &options.oneof_required),
                    })
                    .collect(),
            },
            hook: semantics::hook(message.full_name()).filter(|_| !off),
            active: false,
        }
    }

    fn field(&mut self, options: &Options, field: &FieldDescriptor, oneof: Option<usize>) -> FieldPlan {
        let own = field.options();
        let rules = own.has_extension(&options.rules).then(|| own.get_extension(&options.rules).into_owned());
        let rules = rules.as_ref().and_then(|rules| rules.as_message());
        let mut plan = FieldPlan {
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
            plan.label = Label::Map;
            if let Kind::Message(entry) = field.kind() {
                plan.key = Some(self.value(&entry.map_entry_key_field().kind()));
                plan.value = self.value(&entry.map_entry_value_field().kind());
            }
        } else if field.is_list() {
            plan.label = Label::List;
        }
        let Some(rules) = rules else {
            return plan;
        };
        for (kind, value) in rules.fields() {
            let (Some(value), full_name) = (value.as_message(), field.full_name()) else {
                continue;
            };
            match (kind.name(), plan.label) {
                ("repeated", Label::List) => {
                    plan.count = Some(self.count(full_name, value, ["min_items", "max_items"], &["items"]));
                    if let Some(items) = inner(value, "items") {
                        self.rules(full_name, &items, &mut plan.value, &field.kind());
                    }
                }
                ("map", Label::Map) => {
                    plan.count = Some(self.count(full_name, value, ["min_pairs", "max_pairs"], &["keys", "values"]));
                    if let Kind::Message(entry) = field.kind() {
                        if let (Some(keys), Some(key)) = (inner(value, "keys"), &mut plan.key) {
                            self.rules(full_name, &keys, key, &entry.map_entry_key_field().kind());
                        }
                        if let Some(values) = inner(value, "values") {
                            self.rules(full_name, &values, &mut plan.value, &entry.map_entry_value_field().kind());
                        }
                    }
                }
                _ => {}
            }
            plan.required |= plan.label == Label::Single && set(value, "required");
        }
        if plan.label == Label::Single {
            self.rules(field.full_name(), rules, &mut plan.value, &field.kind());
        }
        plan
    }

    fn value(&self, kind: &Kind) -> ValuePlan {
        let message = match kind {
            Kind::Message(message) => self.by_name.get(message.full_name()).copied(),
            _ => None,
        };
        ValuePlan { scalar: scalar(kind), wrapped: None, rule: None, kind: message, message }
    }

    /// Reads `validate.FieldRules` of one value.
    fn rules(&mut self, of: &str, rules: &DynamicMessage, plan: &mut ValuePlan, kind: &Kind) {
        for (field, value) in rules.fields() {
            let Some(value) = value.as_message() else {
                continue;
            };
            if field.name() == "message" {
                if set(value, "skip") {
                    plan.message = None;
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
            self.unsupported.extend(unknown.iter().map(|name| format!("{of}: {}.{name}", field.name())));
            // Some of Envoy's fields carry the rules of an `Any` although they are another message: there, only `required` counts.
            let fits = match (&rule, kind) {
                (Some(Rule::Any { .. }), Kind::Message(message)) => message.full_name() == "google.protobuf.Any",
                (Some(Rule::Duration(_)), Kind::Message(message)) => message.full_name() == "google.protobuf.Duration",
                (Some(Rule::Timestamp(_)), Kind::Message(message)) => {
                    message.full_name() == "google.protobuf.Timestamp"
                }
                (_, Kind::Message(message)) => {
                    plan.wrapped =
                        message.get_field_by_name("value").filter(|_| is_wrapper(message)).map(|f| scalar(&f.kind()));
                    rule.is_none() || plan.wrapped.is_some()
                }
                _ => true,
            };
            match fits {
                true => plan.rule = rule,
                false => self.unsupported.push(format!("{of}: the rules {} do not fit the field", field.name())),
            }
        }
    }

    fn count(&mut self, of: &str, rules: &DynamicMessage, bounds: [&str; 2], inner: &[&str]) -> Count {
        let [min, max] = bounds;
        let size = |name| rules.get_field_by_name(name).and_then(|value| value.as_u64());
        for (field, _) in rules.fields() {
            let name = field.name();
            if !bounds.contains(&name) && !inner.contains(&name) && !["unique", "ignore_empty"].contains(&name) {
                self.unsupported.push(format!("{of}: {name}"));
            }
        }
        let has_max = rules.descriptor().get_field_by_name(max).is_some_and(|field| rules.has_field(&field));
        Count {
            min: size(min).unwrap_or_default(),
            max: size(max).filter(|_| has_max),
            unique: set(rules, "unique"),
            ignore_empty: set(rules, "ignore_empty"),
        }
    }

    /// Finds the messages in which something can be wrong, and forgets the way to all others.
    fn mark(&mut self) {
        for plan in &mut self.messages {
            let own = |field: &FieldPlan| {
                field.required
                    || field.count.is_some()
                    || field.value.rule.is_some()
                    || field.key.as_ref().is_some_and(|key| key.rule.is_some())
            };
            plan.active = plan.is_any
                || plan.hook.is_some()
                || plan.oneofs.iter().any(|oneof| oneof.required)
                || plan.fields.iter().any(own);
        }
        // Messages hold each other in circles, so this goes on until nothing changes.
        loop {
            let active: Vec<bool> = self.messages.iter().map(|plan| plan.active).collect();
            let is_active = |field: &FieldPlan| field.value.message.and_then(|at| active.get(at)) == Some(&true);
            let mut changed = false;
            for plan in self.messages.iter_mut().filter(|plan| !plan.active) {
                plan.active = plan.fields.iter().any(is_active);
                changed |= plan.active;
            }
            if !changed {
                break;
            }
        }
        let active: Vec<bool> = self.messages.iter().map(|plan| plan.active).collect();
        for plan in &mut self.messages {
            for field in &mut plan.fields {
                field.value.message = field.value.message.filter(|at| active.get(*at) == Some(&true));
            }
            let looked_at = |field: &FieldPlan| match field.label {
                Label::Single => field.required || field.value.rule.is_some() || field.value.message.is_some(),
                Label::List | Label::Map => field.count.is_some(),
            };
            plan.at_end = (0..).zip(&plan.fields).filter(|(_, field)| looked_at(field)).map(|(at, _)| at).collect();
        }
    }
}

fn inner(rules: &DynamicMessage, name: &str) -> Option<DynamicMessage> {
    let field = rules.descriptor().get_field_by_name(name)?;
    rules.has_field(&field).then(|| rules.get_field(&field).as_message().cloned())?
}

fn set(rules: &DynamicMessage, name: &str) -> bool {
    rules.get_field_by_name(name).is_some_and(|value| value.as_bool() == Some(true))
}

fn is_wrapper(message: &MessageDescriptor) -> bool {
    message.full_name().starts_with("google.protobuf.") && message.full_name().ends_with("Value") && {
        let mut fields = message.fields();
        fields.next().is_some_and(|field| field.name() == "value" && field.number() == 1) && fields.next().is_none()
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
