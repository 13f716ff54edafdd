//! The differences between what a proxy was sent and a translation from scratch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::google::protobuf as pb;
use serde_json::Value;

use super::api::v1;
use crate::proto_json::{self, Error};
use crate::snapshot::{Resource, ResourceType, Resources};

/// The differences between resources of one type, by name and field.
pub(super) fn resources<'a>(
    kind: ResourceType,
    sent: impl Iterator<Item = &'a Arc<Resource>>,
    fresh: &Resources,
) -> Result<Vec<v1::Difference>, Error> {
    let sent: BTreeMap<&str, &Arc<Resource>> =
        sent.map(|resource| (&*resource.name, resource)).collect();
    let names: BTreeSet<&str> =
        sent.keys().copied().chain(fresh.keys().map(|name| &**name)).collect();
    let mut found = Vec::new();
    for name in names {
        let sides = (sent.get(name).copied(), fresh.get(name));
        if matches!(sides, (Some(sent), Some(fresh)) if sent.version == fresh.version) {
            continue;
        }
        let (sent, fresh) = (json(kind, sides.0)?, json(kind, sides.1)?);
        let mut fields = Vec::new();
        compare("", sent.as_ref(), fresh.as_ref(), &mut fields);
        found.extend(fields.into_iter().map(|field| v1::Difference {
            r#type: v1::ResourceType::from(kind).into(),
            name: name.to_owned(),
            field: field.path,
            sent: field.sent.map(value),
            fresh: field.fresh.map(value),
        }));
    }
    Ok(found)
}

fn json(kind: ResourceType, resource: Option<&Arc<Resource>>) -> Result<Option<Value>, Error> {
    let full_name = kind.type_url().rsplit('/').next().unwrap_or_default();
    resource.map(|resource| proto_json::bytes_to_json(full_name, &resource.bytes())).transpose()
}

/// A field that is not the same on both sides.
#[derive(Debug, PartialEq)]
struct Field<'a> {
    path: String,
    sent: Option<&'a Value>,
    fresh: Option<&'a Value>,
}

fn compare<'a>(
    path: &str,
    sent: Option<&'a Value>,
    fresh: Option<&'a Value>,
    found: &mut Vec<Field<'a>>,
) {
    match (sent, fresh) {
        (a, b) if a == b => {}
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                compare(&path, a.get(name), b.get(name), found);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) if a.len() == b.len() => {
            for (n, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}[{n}]"), Some(a), Some(b), found);
            }
        }
        (sent, fresh) => found.push(Field { path: path.to_owned(), sent, fresh }),
    }
}

/// A JSON value as a message.
pub(super) fn value(json: &Value) -> pb::Value {
    use pb::value::Kind;
    let kind = match json {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        // Integers that a double cannot hold are strings in ProtoJSON.
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(list) => {
            Kind::ListValue(pb::ListValue { values: list.iter().map(value).collect() })
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, field)| (name.clone(), value(field)));
            Kind::StructValue(pb::Struct { fields: fields.collect() })
        }
    };
    pb::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
    use prost::Message as _;
    use serde_json::json;

    use super::*;

    fn cluster(name: &str, alternative: &str) -> Arc<Resource> {
        let cluster = Cluster {
            name: name.to_owned(),
            alt_stat_name: alternative.to_owned(),
            lb_policy: cluster::LbPolicy::RoundRobin.into(),
            ..Default::default()
        };
        Resource::new(name, cluster.encode_to_vec().into(), Arc::default())
    }

    #[test]
    fn differences_are_named_by_resource_and_field() {
        let sent = [cluster("same", "a"), cluster("other", "a"), cluster("old", "a")];
        let fresh = [cluster("same", "a"), cluster("other", "b"), cluster("new", "a")];
        let fresh: Resources = fresh.into_iter().collect();
        let found = resources(ResourceType::Cluster, sent.iter(), &fresh).unwrap();
        let names: Vec<_> = found.iter().map(|item| (&*item.name, &*item.field)).collect();
        assert_eq!(names, [("new", ""), ("old", ""), ("other", "altStatName")]);
        assert_eq!((&found[0].sent, found[0].fresh.is_some()), (&None, true));
        assert_eq!((found[1].sent.is_some(), &found[1].fresh), (true, &None));
        assert_eq!(
            (&found[2].sent, &found[2].fresh),
            (&Some(value(&json!("a"))), &Some(value(&json!("b"))))
        );
        assert!(resources(ResourceType::Cluster, fresh.values(), &fresh).unwrap().is_empty());
    }

    fn differing_paths(sent: Value, fresh: Value) -> Vec<String> {
        let mut found = Vec::new();
        compare("", Some(&sent), Some(&fresh), &mut found);
        found.into_iter().map(|field| field.path).collect::<Vec<_>>()
    }

    #[test]
    fn lists_of_equal_length_are_compared_by_position_and_others_as_a_whole() {
        assert_eq!(
            differing_paths(json!({"a": [1, {"b": 2}]}), json!({"a": [1, {"b": 3}]})),
            ["a[1].b"]
        );
        assert_eq!(differing_paths(json!({"a": [1, 2]}), json!({"a": [1]})), ["a"]);
        assert_eq!(differing_paths(json!({"a": null}), json!({})), ["a"]);
    }
}
