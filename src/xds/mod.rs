//! The xDS transport: what a stream asked for, what it has, and what it gets next.
//!
//! [`stream`] is the protocol's state machine, pure; [`wire`] puts responses together from encoded resources, and
//! `grpc` frames them; [`server`] carries both; [`board`] tells which proxy has what.

pub mod board;
mod grpc;
pub mod server;
pub mod stream;
pub mod wire;
