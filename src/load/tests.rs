use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::service::load_stats::v3 as load_stats;
use prost::Message as _;
use serde_json::json;

use super::*;
use crate::mesh::{Locality, NodeMetadata};

fn loads(interval: u64, window: u64) -> Arc<Loads> {
    let settings = LoadSettings {
        interval: Duration::from_secs(interval),
        window: Duration::from_secs(window),
    };
    let loads = Arc::new(Loads::new(settings, LoadMetrics::default()));
    loads.name(&["v1", "v2"].map(str::to_owned).into());
    loads
}

/// The id of a proxy, and what keeps it connected.
fn connect(loads: &Arc<Loads>, pod: &str) -> (Arc<str>, Presence) {
    let id = format!("sidecar~10.9.0.1~{pod}.shop~shop.svc.cluster.local");
    let proxy = Proxy::new(&id, NodeMetadata::from_json(&json!({})), Locality::default()).unwrap();
    let id: Arc<str> = id.into();
    let presence = loads.connected(&id, &Arc::new(proxy));
    (id, presence)
}

fn request(clusters: &[(&str, u64)]) -> LoadStatsRequest {
    let stats = clusters.iter().map(|(name, issued)| endpoint::ClusterStats {
        cluster_name: (*name).to_owned(),
        upstream_locality_stats: vec![endpoint::UpstreamLocalityStats {
            total_issued_requests: *issued,
            ..Default::default()
        }],
        ..Default::default()
    });
    let request =
        load_stats::LoadStatsRequest { cluster_stats: stats.collect(), ..Default::default() };
    LoadStatsRequest::decode(Bytes::from(request.encode_to_vec())).unwrap()
}

/// All requests to a cluster that are kept.
fn issued(loads: &Loads, cluster: &str) -> u32 {
    let id = loads.named().get(cluster).unwrap().id;
    let mut sum = 0;
    let long_ago = Instant::now() - Duration::from_secs(3600);
    for proxy in loads.proxies() {
        proxy.reports(long_ago, 0, |report| sum += report.of(id).issued);
    }
    sum
}

#[test]
fn reports_of_named_clusters_are_kept_by_proxy() {
    let loads = loads(10, 60);
    let (id, _presence) = connect(&loads, "a");
    let mut reporter = loads.open(&id).unwrap();
    reporter.take(&request(&[])).unwrap();
    assert_eq!(reporter.answer(), Some(loads.named().response()));
    assert_eq!(reporter.answer(), None, "Envoy would begin a new period");
    reporter.take(&request(&[("v1", 8), ("other", 5), ("v2", 2), ("v2", 9)])).unwrap();
    assert_eq!((issued(&loads, "v1"), issued(&loads, "v2")), (8, 2));
    loads.name(&["v1", "v3"].map(str::to_owned).into());
    reporter.take(&request(&[("v1", 1), ("v3", 1)])).unwrap();
    assert!(reporter.answer().is_some());
    assert_eq!((issued(&loads, "v1"), issued(&loads, "v3")), (9, 1));
    // It did not know of v3 when that period began.
    let mut since_v3 = 0;
    let version = loads.named().get("v3").unwrap().since;
    let from = Instant::now() - Duration::from_secs(1);
    loads.proxies()[0].reports(from, version, |_| since_v3 += 1);
    assert_eq!(since_v3, 0);
}

#[test]
fn the_reports_of_a_proxy_that_has_gone_count_until_they_leave_the_window() {
    let (here, there) = (loads(10, 60), loads(10, 60));
    let (id, presence) = connect(&here, "a");
    let mut reporter = here.open(&id).unwrap();
    reporter.take(&request(&[("v1", 3)])).unwrap();
    drop((reporter, presence));
    assert_eq!(here.gone.load(Ordering::Relaxed), 1);
    // It goes on at another replica, with what happened in between.
    let (id, _there) = connect(&there, "a");
    there.open(&id).unwrap().take(&request(&[("v1", 4)])).unwrap();
    assert_eq!((issued(&here, "v1"), issued(&there, "v1")), (3, 4));
    assert_eq!(here.open(&id).err(), Some(Refused::Elsewhere));
    // And comes back.
    let (_, _here) = connect(&here, "a");
    here.open(&id).unwrap().take(&request(&[("v1", 5)])).unwrap();
    assert_eq!((issued(&here, "v1"), here.gone.load(Ordering::Relaxed)), (8, 0));
}

#[test]
fn a_proxy_that_has_gone_is_forgotten_with_its_last_report() {
    let loads = loads(0, 0);
    let (id, presence) = connect(&loads, "b");
    loads.open(&id).unwrap().take(&request(&[("v1", 3)])).unwrap();
    drop(presence);
    let later = Instant::now();
    while Instant::now() == later {}
    assert!(loads.proxies().is_empty());
    assert_eq!(loads.gone.load(Ordering::Relaxed), 0);
    assert_eq!(loads.counts.load(Ordering::Relaxed), 0);
}

#[test]
fn a_stream_of_reports_ends_when_the_configuration_comes_from_elsewhere() {
    let loads = loads(10, 60);
    let (id, first) = connect(&loads, "a");
    let mut reporter = loads.open(&id).unwrap();
    let (_, second) = connect(&loads, "a");
    drop(first);
    reporter.take(&request(&[("v1", 1)])).unwrap();
    drop(second);
    assert_eq!(reporter.take(&request(&[("v1", 1)])), Err(Refused::Elsewhere));
}

#[test]
fn a_proxy_has_as_many_streams_of_reports_as_of_configuration() {
    let loads = loads(10, 60);
    let (id, _presence) = connect(&loads, "a");
    let first = loads.open(&id).unwrap();
    let _second = loads.open(&id).unwrap();
    assert_eq!(loads.open(&id).err(), Some(Refused::TooMany));
    drop(first);
    assert!(loads.open(&id).is_ok());
}

#[test]
fn what_does_not_fit_is_left_out_and_told() {
    let loads = loads(10, 60);
    loads.counts.store(MOST_COUNTS, Ordering::Relaxed);
    let (id, presence) = connect(&loads, "a");
    loads.open(&id).unwrap().take(&request(&[("v1", 1)])).unwrap();
    let proxy = &loads.proxies()[0];
    let from = Instant::now() - Duration::from_secs(1);
    let mut seen = 0;
    assert!(proxy.reports(from, 0, |_| seen += 1), "something is missing");
    assert_eq!((seen, loads.metrics.left_out.get()), (0, 1));
    // Those that have gone are bounded, too.
    loads.counts.store(0, Ordering::Relaxed);
    loads.gone.store(MOST_GONE, Ordering::Relaxed);
    loads.open(&id).unwrap().take(&request(&[("v1", 1)])).unwrap();
    drop(presence);
    assert!(loads.proxies().is_empty());
    assert_eq!(loads.counts.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_proxy_is_told_the_list_as_soon_as_there_is_one() {
    let loads = Arc::new(Loads::new(LoadSettings::default(), LoadMetrics::default()));
    let (id, _presence) = connect(&loads, "a");
    let mut reporter = loads.open(&id).unwrap();
    reporter.take(&request(&[])).unwrap();
    assert_eq!(reporter.answer(), None, "an empty list would end the reports");
    assert!(futures::poll!(std::pin::pin!(reporter.waited())).is_pending());
    loads.name(&["v1".to_owned()].into());
    reporter.waited().await;
    assert_eq!(reporter.answer(), Some(loads.named().response()));
    assert!(futures::poll!(std::pin::pin!(reporter.waited())).is_pending());
    loads.name(&BTreeSet::new());
    reporter.take(&request(&[("v1", 1)])).unwrap();
    assert_eq!(reporter.answer(), Some(loads.named().response()), "nothing more to report");
    loads.name(&["v2".to_owned()].into());
    reporter.waited().await;
    assert!(reporter.answer().is_some());
}

#[test]
fn malformed_reports_are_refused() {
    let loads = loads(10, 60);
    let (id, _presence) = connect(&loads, "a");
    let mut reporter = loads.open(&id).unwrap();
    let request = LoadStatsRequest {
        cluster_stats: vec![Bytes::from_static(&[0xff])],
        ..LoadStatsRequest::default()
    };
    assert_eq!(reporter.take(&request), Err(Refused::Malformed));
}
