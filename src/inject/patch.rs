//! A JSON patch (RFC 6902) from a pod to the same pod with a sidecar.

use serde_json::{Map, Value, json};

/// The operations that turn `before` into `after`. Injection changes members of the metadata and the spec as a whole, so
/// each of them is one operation: `add` replaces a member that is there.
pub(crate) fn patch(before: &Value, after: &Value) -> Value {
    let mut operations = Vec::new();
    for part in ["metadata", "spec"] {
        let Some(new) = after.get(part).and_then(Value::as_object) else { continue };
        let Some(old) = before.get(part).and_then(Value::as_object) else {
            operations.push(json!({"op": "add", "path": format!("/{part}"), "value": new}));
            continue;
        };
        operations.extend(members(part, old, new));
    }
    Value::Array(operations)
}

fn members<'a>(
    part: &'a str,
    old: &'a Map<String, Value>,
    new: &'a Map<String, Value>,
) -> impl Iterator<Item = Value> + use<'a> {
    new.iter().filter(|(name, value)| old.get(*name) != Some(*value)).map(move |(name, value)| {
        let name = name.replace('~', "~0").replace('/', "~1");
        json!({"op": "add", "path": format!("/{part}/{name}"), "value": value})
    })
}
