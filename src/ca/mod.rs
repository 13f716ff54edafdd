//! The certificate authority of the mesh: signs the certificates of workloads and of weir's own TLS port.
//!
//! Its root, or an intermediate authority, is in a Secret that every replica follows ([`follow`]). The elected replica makes
//! a root if there is none, and writes the roots to trust into each namespace ([`Keeper`]). Which authority signs, and
//! what is trusted meanwhile, are pure decisions (`trust.rs`).

mod authority;
mod follow;
mod keeper;
mod key;
mod request;
mod retired;
mod secret;
mod server;
mod service;
mod signing;
mod trust;

pub(crate) use authority::LONGEST_LIFETIME;
pub(crate) use follow::follow;
pub(crate) use keeper::Keeper;
pub(crate) use secret::Stored;
pub(crate) use server::present;
pub(crate) use service::CertificateService;
pub use signing::CaOptions;
pub(crate) use signing::{CertificateAuthority, Current, KeyedChain};
