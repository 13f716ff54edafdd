//! The xDS server: subscriptions, client state and responses of each stream.
//!
//! [`stream`] is the protocol's state machine, pure; [`wire`] puts responses together from encoded resources, and
//! `grpc` frames them; [`server`] carries both; `secrets` is the state machine of the certificate and roots of one client,
//! `names` that of its table of names, and `beside` has both; [`connections`] tracks which proxy has ACKed what.

mod beside;
mod client;
pub(crate) mod connections;
mod credentials;
mod grpc;
mod load;
mod names;
mod node;
mod secrets;
pub(crate) mod server;
pub mod stream;
pub(crate) mod wire;
