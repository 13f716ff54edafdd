//! The xDS transport: what a stream asked for, what it has, and what it gets next.
//!
//! [`stream`] is the protocol's state machine, pure; [`wire`] puts responses together from encoded resources;
//! [`server`] carries both over gRPC; [`board`] tells which proxy has what; [`door`] says
//! how many there may be.

pub mod board;
pub mod door;
pub mod server;
pub mod stream;
pub mod wire;
