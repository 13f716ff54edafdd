//! Which proxy has which version of which object, computed from its ACKs.

mod published;
mod report;

pub use published::{ActiveObject, Published, State};
pub use report::{
    DestinationShare, ObjectReport, ObjectState, ProxyObjectState, ProxyReport, SplitReport,
    object, proxies, splits,
};
