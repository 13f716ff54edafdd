pub mod proto_json;
