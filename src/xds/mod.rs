//! The xDS server: subscriptions, client state and responses of each stream.
//!
//! [`stream`] is the protocol's state machine, pure; [`wire`] puts responses together from encoded resources, and
//! `grpc` frames them; [`server`] carries both; [`connections`] tracks which proxy has ACKed what.

pub(crate) mod connections;
mod grpc;
pub(crate) mod server;
pub mod stream;
pub(crate) mod wire;
