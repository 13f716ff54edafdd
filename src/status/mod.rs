//! Which proxy has which version of which object, computed from its ACKs.

mod conditions;
mod observed;
mod published;
mod report;
mod summary;
#[cfg(test)]
pub(crate) mod tests;
mod visibility;

#[cfg(test)]
pub(crate) use conditions::{Condition, ConditionStatus};
pub(crate) use conditions::{
    Conditions, Liveness, PROGRAMMED, ReplicaAnswer, TYPES, conditions, liveness,
};
pub(crate) use observed::{
    ObservedRoute, OtherRoute, Requests, follow_weighted_routes, host_and_ports, is_shared,
};
pub(crate) use published::{ObjectVersion, Published, State};
pub(crate) use report::{
    DestinationShare, ObjectReport, ObjectState, ProxyReport, SplitReport, SplitSelection, Verdict,
    WeightedRoute, object, proxies, splits, weighted,
};
pub(crate) use summary::{MissingProxy, NAMED, ObjectSummary, Summaries, Summarizer, summary};
pub(crate) use visibility::{ProxiesByViewpoint, VisibleObjects};
