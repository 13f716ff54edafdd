//! Whether a source has delivered everything that exists. Used when waiting for a recent write, so that a change weir has
//! not seen yet is not reported as live.

/// The freshness of an object at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// Its current `metadata.generation` in the Kubernetes API.
    Generation(i64),
    /// The Kubernetes API does not have the object.
    Absent,
    /// Everything in the folder at the time of the request is sent before [`super::SourceEvent::Barrier`] with this
    /// number.
    Barrier(u64),
}
