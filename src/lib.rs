//! weir: an Envoy control plane for Istio's VirtualService and DestinationRule.
//!
//! The data flows one way, and so do the imports:
//! [`source`] → [`store`] → [`mesh`] → [`translate`] → [`snapshot`] → [`xds`].

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod admin;
pub mod admission;
pub mod analyze;
pub mod api;
pub mod bootstrap;
pub mod cli;
pub mod control_plane;
pub mod envoy;
pub mod explain;
pub mod guard;
pub mod mesh;
pub mod metrics;
pub mod proto_json;
pub mod proto_rules;
pub mod snapshot;
pub mod source;
pub mod status;
pub mod store;
pub mod translate;
pub mod xds;
