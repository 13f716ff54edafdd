//! Reads what a client says of itself.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::{Struct, Value as PbValue, value::Kind};

use crate::mesh::{Locality, NodeMetadata, Proxy, ProxyError};

/// The proxy that a node message describes.
///
/// # Errors
/// Its id is not that of a proxy that is served.
pub(super) fn read_node(node: &core::Node) -> Result<Proxy, ProxyError> {
    let metadata = node.metadata.as_ref().map_or(serde_json::Value::Null, struct_to_json);
    let locality = node.locality.clone().unwrap_or_default();
    let locality =
        Locality { region: locality.region, zone: locality.zone, sub_zone: locality.sub_zone };
    Proxy::new(&node.id, NodeMetadata::from_json(&metadata), locality)
}

fn struct_to_json(value: &Struct) -> serde_json::Value {
    value.fields.iter().map(|(name, value)| (name.clone(), value_to_json(value))).collect()
}

fn value_to_json(value: &PbValue) -> serde_json::Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::NumberValue(number)) => (*number).into(),
        Some(Kind::StringValue(text)) => text.clone().into(),
        Some(Kind::BoolValue(truth)) => (*truth).into(),
        Some(Kind::StructValue(fields)) => struct_to_json(fields),
        Some(Kind::ListValue(list)) => list.values.iter().map(value_to_json).collect(),
    }
}
