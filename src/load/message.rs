//! A load report as it arrives, decoded only as far as weir reads it. The names of clusters stay in the bytes that were
//! received, because a report has hundreds of them.
//!
//! Field numbers: `LoadStatsRequest` of `envoy.service.load_stats.v3`, `ClusterStats` and `UpstreamLocalityStats` of
//! `envoy.config.endpoint.v3`.

use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::google::protobuf::Duration as PbDuration;
use prost::Message as _;
use prost::encoding::{
    DecodeContext, WireType, check_wire_type, decode_key, decode_varint, skip_field,
};

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

/// The requests to a cluster since the last report. Refers to the bytes that were received: a report has thousands of
/// clusters, and most of them had no request.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ClusterStats<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The sum over all localities.
    sum: LocalityStats,
    interval: PbDuration,
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

impl LocalityStats {
    fn add(&mut self, more: Self) {
        self.succeeded = self.succeeded.saturating_add(more.succeeded);
        self.in_progress = self.in_progress.saturating_add(more.in_progress);
        self.failed = self.failed.saturating_add(more.failed);
        self.issued = self.issued.saturating_add(more.issued);
    }
}

impl<'a> ClusterStats<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// It is malformed.
    pub(super) fn read(mut bytes: &'a [u8]) -> Result<Self, prost::DecodeError> {
        let mut stats = Self::default();
        while !bytes.is_empty() {
            let (field, kind) = decode_key(&mut bytes)?;
            let mut value = bytes;
            skip_field(kind, field, &mut bytes, DecodeContext::default())?;
            if !matches!(field, 1 | 2 | 4) {
                continue;
            }
            check_wire_type(WireType::LengthDelimited, kind)?;
            let length = usize::try_from(decode_varint(&mut value)?).unwrap_or(usize::MAX);
            // It is not cut short, or it could not have been skipped.
            let value = value.get(..length).unwrap_or_default();
            match field {
                1 => stats.name = value,
                2 => stats.sum.add(LocalityStats::decode(value)?),
                _ => stats.interval.merge(value)?,
            }
        }
        Ok(stats)
    }

    /// The sum over all localities; `None` if there was nothing.
    pub(super) fn counts(&self) -> Option<Counts> {
        let LocalityStats { succeeded, in_progress, failed, issued } = self.sum;
        let counts = Counts {
            issued: small(issued),
            succeeded: small(succeeded),
            failed: small(failed),
            in_progress: small(in_progress),
        };
        (counts != Counts::default()).then_some(counts)
    }

    /// How long the period was that it is about; 0 if it does not say.
    pub(super) fn interval(&self) -> Duration {
        let given = self.interval;
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
        assert_eq!(cluster.name, b"outbound|80|v1|web");
        assert_eq!(cluster.interval(), Duration::from_millis(9500));
        let counts = cluster.counts().unwrap();
        assert_eq!((counts.issued, counts.failed, counts.in_progress), (u32::MAX, 3, 2));
    }

    #[test]
    fn a_cluster_without_requests_has_no_counts() {
        let stats = ClusterStats::read(&[]).unwrap();
        assert_eq!((stats.counts(), stats.interval()), (None, Duration::ZERO));
        let wrong = PbDuration { seconds: -1, nanos: i32::MAX };
        let stats = ClusterStats { interval: wrong, ..ClusterStats::default() };
        assert_eq!(stats.interval(), Duration::ZERO);
    }
    #[test]
    fn bytes_that_end_too_early_and_wrong_types_are_malformed() {
        let locality =
            endpoint::UpstreamLocalityStats { total_issued_requests: 300, ..Default::default() };
        let stats = endpoint::ClusterStats {
            cluster_name: "a".to_owned(),
            upstream_locality_stats: vec![locality],
            load_report_interval: Some(PbDuration { seconds: 10, nanos: 1 }),
            ..Default::default()
        };
        let whole = stats.encode_to_vec();
        assert!(ClusterStats::read(&whole).unwrap().counts().is_some());
        for length in 0..whole.len() {
            let part = &whole[..length];
            let expected = endpoint::ClusterStats::decode(part).is_ok();
            assert_eq!(ClusterStats::read(part).is_ok(), expected, "{length}");
        }
        // A varint where the name should be, and a length beyond the end.
        assert!(ClusterStats::read(&[1 << 3, 5]).is_err());
        assert!(ClusterStats::read(&[(1 << 3) | 2, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    }
}
