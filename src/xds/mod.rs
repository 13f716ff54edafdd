//! The xDS server: subscriptions, client state and responses of each stream.
//!
//! [`stream`] is the protocol's state machine, pure; [`wire`] puts responses together from encoded resources, and
//! `grpc` frames them; [`server`] carries both; `secrets` is the
//! state machine of the certificate and roots of one client; [`connections`] tracks which proxy has ACKed what.

pub(crate) mod connections;
mod credentials;
mod grpc;
mod node;
mod secrets;
pub(crate) mod server;
pub mod stream;
pub(crate) mod wire;
