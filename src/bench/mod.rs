//! Measures a control plane: makes a mesh, connects proxies to the control plane as Envoy would, changes objects, and
//! measures when each proxy has the change and what that cost.
//!
//! [`mesh`] makes the objects and says what a change must lead to at a proxy ([`expectation`]). [`objects`] writes them.
//! A proxy is a [`stream`], which knows the protocol and does no I/O, on a [`transport`]; [`proxies`] runs all of them.
//! [`phases`] are what is measured, [`report`] has the figures.

pub mod expectation;
pub mod mesh;
pub mod names;
pub mod objects;
pub mod phases;
pub mod process;
pub mod proto;
pub mod proxies;
pub mod report;
pub mod stream;
pub mod svg;
pub mod transport;
