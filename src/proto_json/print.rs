//! Builds the JSON of a message. prost-reflect's serializer is not used because it fails on an `Any` of an unknown
//! type.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage,
    Value as Field,
};
use serde_json::{Map, Number, Value, json};

use super::{Error, OWN_PACKAGE, Types};

/// The maximum nesting of `Any`. Each one is decoded separately, so protobuf's recursion limit does not apply across
/// them.
const MAX_ANY_DEPTH: usize = 32;

/// The largest integer up to which every integer has its own double.
const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_991.0;

/// The JSON of an `Any` nested in `depth` others.
pub(super) fn any(
    types: &Types,
    type_url: &str,
    bytes: &[u8],
    depth: usize,
) -> Result<Value, Error> {
    if type_url.is_empty() && bytes.is_empty() {
        return Ok(json!({}));
    }
    let name = type_url.rsplit_once('/').map_or(type_url, |(_, name)| name);
    let descriptor = match types.find(name) {
        Ok(descriptor) => descriptor,
        Err(Error::UnknownType(_)) => {
            return Ok(json!({ "@type": type_url, "value": BASE64_STANDARD.encode(bytes) }));
        }
        Err(error) => return Err(error),
    };
    if depth >= MAX_ANY_DEPTH {
        return Err(no_json_form(name, format!("more than {MAX_ANY_DEPTH} nested Any")));
    }
    let message = DynamicMessage::decode(descriptor, bytes)
        .map_err(|source| Error::Decode { type_name: name.to_owned(), source })?;
    let contents = self::message(types, &message, depth + 1)?;

    let mut out = Map::new();
    out.insert("@type".to_owned(), type_url.into());
    match contents {
        Value::Object(fields) if !has_own_form(name) => out.extend(fields),
        contents => _ = out.insert("value".to_owned(), contents),
    }
    Ok(Value::Object(out))
}

/// The JSON of a message nested in `depth` `Any`s.
pub(super) fn message(
    types: &Types,
    message: &DynamicMessage,
    depth: usize,
) -> Result<Value, Error> {
    let descriptor = message.descriptor();
    let name = descriptor.full_name();
    match name {
        "google.protobuf.Any" => {
            let type_url = message.get_field_by_name("type_url");
            let bytes = message.get_field_by_name("value");
            return any(
                types,
                type_url.as_deref().and_then(Field::as_str).unwrap_or(""),
                bytes.as_deref().and_then(Field::as_bytes).map_or(&[], |bytes| bytes),
                depth,
            );
        }
        "google.protobuf.Struct" => return only_field(types, message, "fields", depth),
        "google.protobuf.ListValue" => return only_field(types, message, "values", depth),
        "google.protobuf.Value" => {
            return match message.fields().next() {
                None => Ok(Value::Null),
                Some((_, Field::F64(number))) if !number.is_finite() => {
                    Err(no_json_form(name, format!("the number is {number}")))
                }
                Some((field, value)) => self::value(types, value, &field.kind(), depth),
            };
        }
        _ if is_wrapper(name) => return only_field(types, message, "value", depth),
        _ if has_own_form(name) => {
            return serde_json::to_value(message)
                .map_err(|error| no_json_form(name, error.to_string()));
        }
        _ if descriptor.package_name() == OWN_PACKAGE => {
            return own(types, message, &descriptor, depth);
        }
        _ => {}
    }

    message
        .fields()
        .map(|(field, value)| {
            Ok((field.json_name().to_owned(), field_value(types, value, &field, depth)?))
        })
        .collect::<Result<Vec<_>, Error>>()
        .map(sorted)
}

/// One of weir's own messages: fields in the order of their numbers, and all fields without presence, so that the set
/// of fields does not depend on their values.
fn own(
    types: &Types,
    message: &DynamicMessage,
    descriptor: &MessageDescriptor,
    depth: usize,
) -> Result<Value, Error> {
    let mut fields: Vec<FieldDescriptor> = descriptor.fields().collect();
    fields.sort_unstable_by_key(FieldDescriptor::number);
    let shown =
        fields.iter().filter(|field| !field.supports_presence() || message.has_field(field));
    shown
        .map(|field| {
            Ok((
                field.json_name().to_owned(),
                field_value(types, &message.get_field(field), field, depth)?,
            ))
        })
        .collect::<Result<Map<_, _>, Error>>()
        .map(Value::Object)
}

/// The single field whose value represents a well-known message, set or not.
fn only_field(
    types: &Types,
    message: &DynamicMessage,
    name: &str,
    depth: usize,
) -> Result<Value, Error> {
    let descriptor = message.descriptor();
    let field = descriptor
        .get_field_by_name(name)
        .ok_or_else(|| no_json_form(descriptor.full_name(), format!("it has no field {name}")))?;
    field_value(types, &message.get_field(&field), &field, depth)
}

fn field_value(
    types: &Types,
    value: &Field,
    field: &FieldDescriptor,
    depth: usize,
) -> Result<Value, Error> {
    let kind = field.kind();
    let Field::Map(entries) = value else {
        return self::value(types, value, &kind, depth);
    };
    let Kind::Message(entry) = kind else {
        return Err(no_json_form(field.full_name(), "a map without entries"));
    };
    let kind = entry.map_entry_value_field().kind();
    entries
        .iter()
        .map(|(key, value)| Ok((map_key(key), self::value(types, value, &kind, depth)?)))
        .collect::<Result<Vec<_>, Error>>()
        .map(sorted)
}

fn value(types: &Types, value: &Field, kind: &Kind, depth: usize) -> Result<Value, Error> {
    Ok(match value {
        Field::Bool(value) => (*value).into(),
        Field::I32(value) => (*value).into(),
        Field::U32(value) => (*value).into(),
        Field::I64(value) => value.to_string().into(),
        Field::U64(value) => value.to_string().into(),
        // Converted through its shortest decimal form, or 0.1 would become the double nearest to the float.
        Field::F32(value) => number(value.to_string().parse().unwrap_or(f64::from(*value))),
        Field::F64(value) => number(*value),
        Field::String(value) => value.as_str().into(),
        Field::Bytes(value) => BASE64_STANDARD.encode(value).into(),
        Field::EnumNumber(number) => match kind {
            Kind::Enum(kind) if kind.full_name() == "google.protobuf.NullValue" => Value::Null,
            Kind::Enum(kind) => match kind.get_value(*number) {
                Some(value) => value.name().into(),
                None => (*number).into(),
            },
            _ => (*number).into(),
        },
        Field::Message(message) => self::message(types, message, depth)?,
        Field::List(values) => values
            .iter()
            .map(|value| self::value(types, value, kind, depth))
            .collect::<Result<Vec<_>, Error>>()?
            .into(),
        // Maps occur only as fields, which `field_value` handles.
        Field::Map(_) => return Err(no_json_form("map", "a map that is not a field")),
    })
}

fn number(value: f64) -> Value {
    if value.is_nan() {
        "NaN".into()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.into()
    } else if value.fract() == 0.0 && value.abs() <= MAX_SAFE_INTEGER {
        (value as i64).into()
    } else {
        Number::from_f64(value).map_or(Value::Null, Value::Number)
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

fn sorted(mut entries: Vec<(String, Value)>) -> Value {
    entries.sort_unstable_by(|(item, _), (other, _)| item.cmp(other));
    Value::Object(entries.into_iter().collect())
}

fn is_wrapper(name: &str) -> bool {
    matches!(
        name,
        "google.protobuf.BoolValue"
            | "google.protobuf.BytesValue"
            | "google.protobuf.DoubleValue"
            | "google.protobuf.FloatValue"
            | "google.protobuf.Int32Value"
            | "google.protobuf.Int64Value"
            | "google.protobuf.StringValue"
            | "google.protobuf.UInt32Value"
            | "google.protobuf.UInt64Value"
    )
}

/// The messages that are not printed as an object of their fields; an `Any` contains them under `value`.
fn has_own_form(name: &str) -> bool {
    is_wrapper(name)
        || matches!(
            name,
            "google.protobuf.Any"
                | "google.protobuf.Duration"
                | "google.protobuf.Empty"
                | "google.protobuf.FieldMask"
                | "google.protobuf.ListValue"
                | "google.protobuf.Struct"
                | "google.protobuf.Timestamp"
                | "google.protobuf.Value"
        )
}

fn no_json_form(type_name: &str, reason: impl Into<String>) -> Error {
    Error::NoJsonForm { type_name: type_name.to_owned(), reason: reason.into() }
}
