//! The truth: which proxies have which form of which object, computed from what they acked.

mod ledger;
mod origin;
mod report;

pub use ledger::{InForce, Ledger, State};
pub use report::{
    DestinationShare, ObjectReport, ProxyReport, ProxyVerdict, SplitReport, Verdict, object, proxies, splits,
};
