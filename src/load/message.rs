//! A load report as it arrives, decoded only as far as weir reads it. The names of clusters stay in the bytes that were
//! received, because a report has hundreds of them.
//!
//! Field numbers: `LoadStatsRequest` of `envoy.service.load_stats.v3`, `ClusterStats` and `UpstreamLocalityStats` of
//! `envoy.config.endpoint.v3`.

use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::google::protobuf::Duration as PbDuration;
use prost::Message as _;

use super::window::Counts;

/// A request of the stream.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct LoadStatsRequest {
    /// The encoded node. Envoy repeats it in each request.
    #[prost(bytes = "bytes", tag = "1")]
    pub node: Bytes,
    /// An encoded `ClusterStats` for each cluster.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub cluster_stats: Vec<Bytes>,
}

/// The requests to a cluster since the last report.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ClusterStats {
    /// The name.
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    #[prost(message, repeated, tag = "2")]
    localities: Vec<LocalityStats>,
    #[prost(message, optional, tag = "4")]
    interval: Option<PbDuration>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct LocalityStats {
    #[prost(uint64, tag = "2")]
    succeeded: u64,
    #[prost(uint64, tag = "3")]
    in_progress: u64,
    #[prost(uint64, tag = "4")]
    failed: u64,
    #[prost(uint64, tag = "8")]
    issued: u64,
}

impl ClusterStats {
    /// Reads one.
    ///
    /// # Errors
    /// It is malformed.
    pub(super) fn read(bytes: &Bytes) -> Result<Self, prost::DecodeError> {
        Self::decode(bytes.clone())
    }

    /// The sum over all localities; `None` if there was nothing.
    pub(super) fn counts(&self) -> Option<Counts> {
        let mut all = LocalityStats::default();
        for part in &self.localities {
            all.succeeded = all.succeeded.saturating_add(part.succeeded);
            all.in_progress = all.in_progress.saturating_add(part.in_progress);
            all.failed = all.failed.saturating_add(part.failed);
            all.issued = all.issued.saturating_add(part.issued);
        }
        let counts = Counts {
            issued: small(all.issued),
            succeeded: small(all.succeeded),
            failed: small(all.failed),
            in_progress: small(all.in_progress),
        };
        (counts != Counts::default()).then_some(counts)
    }

    /// How long the period was that it is about; 0 if it does not say.
    pub(super) fn interval(&self) -> Duration {
        let given = self.interval.unwrap_or_default();
        let (seconds, nanos) = (u64::try_from(given.seconds), u32::try_from(given.nanos));
        let nanos = nanos.unwrap_or(0).min(999_999_999);
        seconds.map_or(Duration::ZERO, |seconds| Duration::new(seconds, nanos))
    }
}

fn small(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
    use envoy_types::pb::envoy::service::load_stats::v3 as load_stats;

    use super::*;

    #[test]
    fn what_envoy_encodes_is_read() {
        let locality = |issued, failed| endpoint::UpstreamLocalityStats {
            total_issued_requests: issued,
            total_error_requests: failed,
            total_successful_requests: issued - failed,
            total_requests_in_progress: 1,
            ..Default::default()
        };
        let stats = endpoint::ClusterStats {
            cluster_name: "outbound|80|v1|web".to_owned(),
            cluster_service_name: "x".to_owned(),
            upstream_locality_stats: vec![locality(10, 1), locality(u64::MAX, 2)],
            load_report_interval: Some(PbDuration { seconds: 9, nanos: 500_000_000 }),
            ..Default::default()
        };
        let whole = load_stats::LoadStatsRequest {
            node: Some(Default::default()),
            cluster_stats: vec![stats],
        };
        let read = LoadStatsRequest::decode(Bytes::from(whole.encode_to_vec())).unwrap();
        let [cluster] = read.cluster_stats.as_slice() else { panic!("{read:?}") };
        let cluster = ClusterStats::read(cluster).unwrap();
        assert_eq!(cluster.name, "outbound|80|v1|web");
        assert_eq!(cluster.interval(), Duration::from_millis(9500));
        let counts = cluster.counts().unwrap();
        assert_eq!((counts.issued, counts.failed, counts.in_progress), (u32::MAX, 3, 2));
    }

    #[test]
    fn a_cluster_without_requests_has_no_counts() {
        let stats = ClusterStats::read(&Bytes::new()).unwrap();
        assert_eq!((stats.counts(), stats.interval()), (None, Duration::ZERO));
        let wrong = PbDuration { seconds: -1, nanos: i32::MAX };
        let stats = ClusterStats { interval: Some(wrong), ..ClusterStats::default() };
        assert_eq!(stats.interval(), Duration::ZERO);
    }
}
