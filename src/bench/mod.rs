//! Measures a control plane: makes a mesh, connects proxies to the control plane as Envoy would, changes objects, and
//! measures when each proxy has the change and what that cost.
//!
//! [`mesh`] makes the objects and says what a change must lead to at a proxy ([`expectation`]). [`objects`] writes them.
//! A proxy is a [`stream`], which knows the protocol and does no I/O, on a [`transport`]; [`proxies`] runs all of them.
//! [`phases`] are what is measured, [`loads`] is the one of load reports, [`report`] has the figures.

pub(crate) mod expectation;
pub(crate) mod loads;
pub(crate) mod mesh;
pub(crate) mod names;
pub(crate) mod objects;
pub(crate) mod phases;
pub(crate) mod process;
pub(crate) mod proto;
pub(crate) mod proxies;
pub(crate) mod report;
pub(crate) mod stream;
pub(crate) mod svg;
pub(crate) mod transport;
