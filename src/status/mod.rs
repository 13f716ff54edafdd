//! Which proxy has which version of which object, computed from its ACKs.

mod conditions;
mod published;
mod report;
mod summary;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use conditions::{Condition, ConditionStatus};
pub(crate) use conditions::{Conditions, PROGRAMMED, ReplicaAnswer, TYPES, conditions};
pub(crate) use published::{ActiveObject, ObjectVersion, Published, State};
pub(crate) use report::{
    DestinationShare, ObjectReport, ObjectState, ProxyReport, SplitReport, object, proxies, splits,
};
pub(crate) use summary::{MissingProxy, NAMED, ObjectSummary, Summaries, Summarizer};
