pub mod envoy;
pub mod proto_json;
