//! weir: an Envoy control plane for Istio's VirtualService and DestinationRule.
//!
//! Data flows in one direction, and so do the imports: [`source`] → [`store`] → [`mesh`] → [`translate`] → [`snapshot`]
//! → [`xds`].

pub mod admin;
pub mod admission;
pub(crate) mod agent;
pub mod analyze;
pub mod api;
pub(crate) mod bench;
pub(crate) mod bootstrap;
pub mod ca;
pub mod canary;
pub mod cli;
pub mod control_plane;
pub mod envoy;
pub mod envoy_validate;
pub mod explain;
pub(crate) mod identity;
pub(crate) mod inject;
pub mod load;
pub mod mesh;
pub(crate) mod metrics;
pub(crate) mod ports;
pub(crate) mod preflight;
pub(crate) mod preview;
pub mod proto_json;
pub(crate) mod redirect;
pub mod replicas;
pub(crate) mod revision;
pub(crate) mod rollout_guard;
pub mod snapshot;
pub mod source;
pub(crate) mod status;
pub mod store;
pub(crate) mod text;
pub(crate) mod timeline;
pub(crate) mod timer;
pub(crate) mod tls;
pub mod traces;
pub(crate) mod translate;
pub mod webhook;
pub mod xds;
