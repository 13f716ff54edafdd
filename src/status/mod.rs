//! Which proxy has which version of which object, computed from its ACKs.

mod conditions;
mod published;
mod report;
mod summary;
#[cfg(test)]
mod tests;

pub use conditions::{
    Condition, ConditionStatus, Conditions, PROGRAMMED, ReplicaAnswer, TYPES, conditions,
};
pub use published::{ActiveObject, ObjectVersion, Published, RejectedObject, State};
pub use report::{
    DestinationShare, ObjectReport, ObjectState, ProxyObjectState, ProxyReport, SplitReport,
    object, proxies, splits,
};
pub use summary::{MissingProxy, NAMED, ObjectSummary, Summaries, Summarizer};
