//! Prometheus metrics. Names are Istio's if the meaning is the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::revision::MeshRevision;
use crate::snapshot::CacheStats;
use crate::source::sync::KindSync;
use crate::translate::destination_of;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkLabel {
    work: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WatchLabel {
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    port: &'static str,
    resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    port: &'static str,
    resource: &'static str,
    reason: &'static str,
}

/// The metrics of a resource shared by clients.
#[derive(Clone, Debug, Default)]
pub(crate) struct PoolMetrics {
    /// How much is in use.
    pub used: Gauge,
    /// How often a peer exceeded its share.
    pub over_share: Counter,
    /// How often the pool was exhausted.
    pub exhausted: Counter,
    /// How often a permit was revoked from the peer that had the most.
    pub revoked: Counter,
}

/// The metrics of the status writer.
#[derive(Clone, Debug, Default)]
pub(crate) struct StatusMetrics {
    /// The requests to write the status of an object.
    pub writes: Counter,
    /// Those that failed, except for an object that had changed meanwhile.
    pub errors: Counter,
    /// Writes that were saved because a newer state replaced an unwritten one.
    pub skipped: Counter,
    /// The objects whose status is to be written.
    pub pending: Gauge,
    /// 1 if this replica writes the status.
    pub leader: Gauge,
    /// The replicas that cannot be asked.
    pub unreachable: Gauge,
}

impl StatusMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "weir_status_writes",
            "Requests to write the status of an object",
            self.writes.clone(),
        );
        registry.register(
            "weir_status_write_errors",
            "Requests to write the status of an object that failed",
            self.errors.clone(),
        );
        registry.register(
            "weir_status_writes_skipped",
            "Writes that were saved because a newer state replaced an unwritten one",
            self.skipped.clone(),
        );
        registry.register(
            "weir_status_pending",
            "Objects whose status is to be written",
            self.pending.clone(),
        );
        registry.register(
            "weir_status_leader",
            "1 if this replica writes the status",
            self.leader.clone(),
        );
        registry.register(
            "weir_replicas_unreachable",
            "Replicas that the one that writes the status cannot ask",
            self.unreachable.clone(),
        );
    }
}

/// What became of a request to the webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReviewResult {
    /// The object was admitted without a warning.
    Admitted,
    /// It was admitted with warnings.
    Warned,
    /// It was refused.
    Refused,
    /// It was admitted without a look, because weir does not read it.
    Skipped,
    /// The request was not a review.
    Malformed,
    /// weir could not answer.
    Failed,
}

impl ReviewResult {
    fn name(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Warned => "warned",
            Self::Refused => "refused",
            Self::Skipped => "skipped",
            Self::Malformed => "malformed",
            Self::Failed => "failed",
        }
    }
}

/// A cluster of a weighted route, and how requests ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ObservedLabels {
    destination_service: String,
    subset: String,
    port: u16,
    result: &'static str,
}

/// A cluster of a weighted route, and where the route is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub(crate) struct WeightLabels {
    /// The namespace of the VirtualService that has the hosts.
    pub namespace: String,
    /// Its name.
    pub virtual_service: String,
    /// The field of the route, like `spec.http[0]`, and the delegate that has it, if one does.
    pub route: String,
    /// The host of the cluster.
    pub destination_service: String,
    /// Its subset; empty for the whole service.
    pub subset: String,
    /// Its port.
    pub port: u16,
}

/// Effective weights by cluster, from 0 to 1.
pub(crate) type Weights = BTreeMap<WeightLabels, f64>;

/// The metrics of a cluster of a weighted route.
#[derive(Clone, Debug)]
pub(crate) struct ClusterCounters([Counter; 3]);

impl ClusterCounters {
    /// Adds attempts that began, and those that ended well and with an error.
    pub(crate) fn add(&self, issued: u32, succeeded: u32, failed: u32) {
        for (counter, more) in self.0.iter().zip([issued, succeeded, failed]) {
            counter.inc_by(more.into());
        }
    }
}

/// The metrics of load reports.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoadMetrics {
    observed: Family<ObservedLabels, Counter>,
    weights: Family<WeightLabels, Gauge<f64, AtomicU64>>,
    /// The weights that are shown now.
    shown: Arc<Mutex<Weights>>,
    /// The open streams.
    pub streams: Gauge,
    /// The reports that arrived.
    pub reports: Counter,
    /// Those that were not kept for lack of room.
    pub left_out: Counter,
}

impl LoadMetrics {
    /// The metrics of a cluster, by its name.
    pub(crate) fn cluster(&self, name: &str) -> ClusterCounters {
        let labels = Self::labels(name);
        ClusterCounters(labels.map(|labels| self.observed.get_or_create(&labels).clone()))
    }

    /// Ends the metrics of a cluster.
    pub(crate) fn forget(&self, name: &str) {
        for labels in Self::labels(name) {
            self.observed.remove(&labels);
        }
    }

    /// Shows these weights and no others.
    pub(crate) fn show_weights(&self, weights: Weights) {
        let mut shown = self.shown.lock();
        for gone in shown.keys().filter(|labels| !weights.contains_key(*labels)) {
            self.weights.remove(gone);
        }
        for (labels, weight) in &weights {
            self.weights.get_or_create(labels).set(*weight);
        }
        *shown = weights;
    }

    fn labels(name: &str) -> [ObservedLabels; 3] {
        let (port, subset, host) = destination_of(name).unwrap_or((0, "", name));
        ["issued", "success", "error"].map(|result| ObservedLabels {
            destination_service: host.to_owned(),
            subset: subset.to_owned(),
            port,
            result,
        })
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "weir_observed_requests",
            "Requests that proxies report for the clusters of weighted routes: issued, and ended with success or error. \
             A retry is a request",
            self.observed.clone(),
        );
        registry.register(
            "weir_effective_weight_ratio",
            "The effective weight of each cluster of a weighted route, from 0 to 1",
            self.weights.clone(),
        );
        registry.register(
            "weir_load_streams",
            "Proxies that report their requests",
            self.streams.clone(),
        );
        registry.register("weir_load_reports", "Load reports received", self.reports.clone());
        registry.register(
            "weir_load_reports_left_out",
            "Load reports that do not count in observed shares for lack of room",
            self.left_out.clone(),
        );
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// The metrics of the webhook.
#[derive(Clone, Debug, Default)]
pub(crate) struct WebhookMetrics {
    requests: Family<ResultLabel, Counter>,
    /// The objects that were admitted without having been analyzed among the others.
    pub unchecked: Counter,
    /// Until when the certificate is valid, in seconds since 1970; 0 without one.
    pub expiry: Gauge,
}

impl WebhookMetrics {
    /// Counts a request.
    pub(crate) fn count(&self, result: ReviewResult) {
        self.requests.get_or_create(&ResultLabel { result: result.name() }).inc();
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "weir_webhook_requests",
            "Requests to the validating webhook, by result",
            self.requests.clone(),
        );
        registry.register(
            "weir_webhook_unchecked",
            "Objects that were admitted without having been analyzed among the others, for lack of time or before they \
             were known",
            self.unchecked.clone(),
        );
        registry.register(
            "weir_webhook_certificate_expiry_timestamp_seconds",
            "When the certificate of the webhook expires, in seconds since 1970; 0 without one",
            self.expiry.clone(),
        );
    }
}

/// What became of a request for a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InjectionResult {
    /// The pod gets one.
    Injected,
    /// It stays as it is.
    Skipped,
    /// It cannot get one, or weir could not answer.
    Failed,
}

/// The metrics of sidecar injection, with Istio's names.
#[derive(Clone, Debug, Default)]
pub(crate) struct InjectionMetrics {
    requests: Counter,
    injected: Counter,
    skipped: Counter,
    failed: Counter,
}

impl InjectionMetrics {
    /// Counts a request.
    pub(crate) fn count(&self, result: InjectionResult) {
        self.requests.inc();
        self.counter(result).inc();
    }

    fn counter(&self, result: InjectionResult) -> &Counter {
        match result {
            InjectionResult::Injected => &self.injected,
            InjectionResult::Skipped => &self.skipped,
            InjectionResult::Failed => &self.failed,
        }
    }

    /// How many requests had this result.
    #[cfg(test)]
    pub(crate) fn count_of(&self, result: InjectionResult) -> u64 {
        self.counter(result).get()
    }

    fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            ("sidecar_injection_requests", "Requests for sidecars", &self.requests),
            ("sidecar_injection_success", "Pods that got a sidecar", &self.injected),
            ("sidecar_injection_skip", "Pods that are to have no sidecar", &self.skipped),
            (
                "sidecar_injection_failure",
                "Pods that cannot get a sidecar, and requests that weir could not answer",
                &self.failed,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
    }
}

/// The metrics of identities and of the certificate authority.
#[derive(Clone, Debug, Default)]
pub(crate) struct IdentityMetrics {
    tokens: Family<ResultLabel, Counter>,
    /// The certificates that were signed for workloads.
    pub certificates: Counter,
    expiry: Gauge,
}

impl IdentityMetrics {
    /// Counts a token that was presented: accepted, refused, or unavailable if nobody could check it.
    pub(crate) fn identified(&self, result: &'static str) {
        self.tokens.get_or_create(&ResultLabel { result }).inc();
    }

    /// Until when the authority's certificates are valid.
    pub(crate) fn set_expiry(&self, at: SystemTime) {
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.expiry.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "weir_tokens",
            "Tokens of clients on the TLS port, by result: accepted, refused, or unavailable if the API server could not \
             be asked",
            self.tokens.clone(),
        );
        registry.register(
            "weir_certificates_signed",
            "Certificates signed for workloads",
            self.certificates.clone(),
        );
        registry.register(
            "weir_ca_expiry_timestamp_seconds",
            "When the first of the authority's certificates expires, in seconds since 1970; 0 without an authority",
            self.expiry.clone(),
        );
    }
}

/// The metrics of exported traces.
#[derive(Clone, Debug, Default)]
pub(crate) struct TraceMetrics {
    spans: Family<ResultLabel, Counter>,
}

impl TraceMetrics {
    /// Counts spans that the collector took.
    pub(crate) fn exported(&self, spans: u64) {
        self.spans.get_or_create(&ResultLabel { result: "exported" }).inc_by(spans);
    }

    /// Counts spans that were dropped: there was no room, or the collector did not take them.
    pub(crate) fn dropped(&self, spans: u64) {
        self.spans.get_or_create(&ResultLabel { result: "dropped" }).inc_by(spans);
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "weir_trace_spans",
            "Spans of changes, by result: exported, or dropped for lack of room or because the collector did not take them",
            self.spans.clone(),
        );
    }
}

/// All metrics and their registry.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pushes: Family<TypeLabel, Counter>,
    sent_bytes: Family<TypeLabel, Counter>,
    rejects: Family<TypeLabel, Counter>,
    connected: Gauge,
    scopes: Gauge,
    parts: Gauge,
    omitted: Gauge,
    work: Family<WorkLabel, Counter>,
    revision: Gauge,
    problems: Gauge,
    held: Gauge,
    tasks: Gauge,
    watch_age: Family<WatchLabel, Gauge<f64, AtomicU64>>,
    config_events: Counter,
    convergence: Histogram,
    admitted: Family<PoolLabels, Gauge>,
    refusals: Family<RefusalLabels, Counter>,
    status: StatusMetrics,
    webhook: WebhookMetrics,
    injection: InjectionMetrics,
    identity: IdentityMetrics,
    load: LoadMetrics,
    traces: TraceMetrics,
}

/// The bucket bounds of `pilot_proxy_convergence_time` in seconds: Istio's, and shorter ones.
const CONVERGENCE: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 5.0, 10.0, 30.0];

impl Default for Metrics {
    fn default() -> Self {
        let mut this = Self {
            registry: Registry::default(),
            pushes: Family::default(),
            sent_bytes: Family::default(),
            rejects: Family::default(),
            connected: Gauge::default(),
            scopes: Gauge::default(),
            parts: Gauge::default(),
            omitted: Gauge::default(),
            work: Family::default(),
            revision: Gauge::default(),
            problems: Gauge::default(),
            held: Gauge::default(),
            tasks: Gauge::default(),
            watch_age: Family::default(),
            config_events: Counter::default(),
            convergence: Histogram::new(CONVERGENCE),
            admitted: Family::default(),
            refusals: Family::default(),
            status: StatusMetrics::default(),
            webhook: WebhookMetrics::default(),
            injection: InjectionMetrics::default(),
            identity: IdentityMetrics::default(),
            load: LoadMetrics::default(),
            traces: TraceMetrics::default(),
        };
        this.register_istios();
        this.register_weirs();
        this.status.register(&mut this.registry);
        this.webhook.register(&mut this.registry);
        this.injection.register(&mut this.registry);
        this.identity.register(&mut this.registry);
        this.load.register(&mut this.registry);
        this.traces.register(&mut this.registry);
        this
    }
}

impl Metrics {
    /// Registers the metrics that Istiod has too.
    fn register_istios(&mut self) {
        let registry = &mut self.registry;
        registry.register("pilot_xds", "Proxies connected over ADS", self.connected.clone());
        registry.register("pilot_xds_pushes", "Responses sent, by type", self.pushes.clone());
        registry.register(
            "pilot_total_xds_rejects",
            "Responses that a proxy rejected, by type",
            self.rejects.clone(),
        );
        registry.register(
            "pilot_k8s_cfg_events",
            "Object changes received",
            self.config_events.clone(),
        );
        registry.register(
            "pilot_proxy_convergence_time",
            "Seconds from a change to each proxy's last ACK of the resulting configuration",
            self.convergence.clone(),
        );
    }

    /// Registers the metrics that only weir has.
    fn register_weirs(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "weir_xds_sent_bytes",
            "Bytes of responses sent, by type",
            self.sent_bytes.clone(),
        );
        registry.register(
            "weir_scopes",
            "Distinct scopes of connected proxies",
            self.scopes.clone(),
        );
        registry.register(
            "weir_encoded_resources",
            "Encoded resources that responses are assembled from",
            self.parts.clone(),
        );
        registry.register(
            "weir_resources_left_out",
            "Resources or parts of them that are omitted because Envoy would reject them",
            self.omitted.clone(),
        );
        registry.register(
            "weir_work",
            "Work caused by mesh changes: hosts and ports examined over all scopes, parts translated, resources \
                encoded, scopes built from scratch and scopes changed",
            self.work.clone(),
        );
        registry.register(
            "weir_mesh_revision",
            "The revision of the mesh, incremented with each change",
            self.revision.clone(),
        );
        registry.register(
            "weir_held",
            "Weight and label changes held back because a subset has no ready endpoint",
            self.held.clone(),
        );
        registry.register("weir_tasks", "Running asynchronous tasks", self.tasks.clone());
        registry.register(
            "weir_watch_age_seconds",
            "Seconds since the Kubernetes API last answered the watch of a resource, with an event or a bookmark",
            self.watch_age.clone(),
        );
        registry.register(
            "weir_config_problems",
            "Objects and files that are currently rejected",
            self.problems.clone(),
        );
        registry.register(
            "weir_admitted",
            "Connections, open requests and bytes of memory in use by clients, by port",
            self.admitted.clone(),
        );
        registry.register(
            "weir_admission_refusals",
            "How often a client was denied one of them or lost it to another client, by port and reason",
            self.refusals.clone(),
        );
    }

    /// Records a response of `bytes` bytes, by the short name of its type.
    pub(crate) fn pushed(&self, r#type: &'static str, bytes: usize) {
        let label = TypeLabel { r#type };
        self.pushes.get_or_create(&label).inc();
        self.sent_bytes.get_or_create(&label).inc_by(bytes as u64);
    }

    /// Records a rejected response, by the short name of its type.
    pub(crate) fn rejected(&self, r#type: &'static str) {
        self.rejects.get_or_create(&TypeLabel { r#type }).inc();
    }

    /// Records how long after a change a proxy ACKed the last resulting resource.
    pub(crate) fn converged(&self, after: Duration) {
        self.convergence.observe(after.as_secs_f64());
    }

    /// Records changed objects and the current number of problems.
    pub(crate) fn changed(&self, events: usize, revision: MeshRevision, problems: usize) {
        self.config_events.inc_by(events as u64);
        self.revision.set(i64::try_from(revision.get()).unwrap_or(i64::MAX));
        set(&self.problems, problems);
    }

    /// Sets the number of weight and label changes held back.
    pub(crate) fn held(&self, count: usize) {
        set(&self.held, count);
    }

    /// Sets the ages of the watches.
    pub(crate) fn watches(&self, kinds: &[KindSync]) {
        for kind in kinds {
            let label = WatchLabel { resource: kind.kind.resource() };
            self.watch_age.get_or_create(&label).set(kind.answered.age().as_secs_f64());
        }
    }

    /// The metrics of the status writer.
    pub(crate) fn status(&self) -> StatusMetrics {
        self.status.clone()
    }

    /// The metrics of the webhook.
    pub(crate) fn webhook(&self) -> WebhookMetrics {
        self.webhook.clone()
    }

    /// The metrics of sidecar injection.
    pub(crate) fn injection(&self) -> InjectionMetrics {
        self.injection.clone()
    }

    /// The metrics of identities and of the certificate authority.
    pub(crate) fn identity(&self) -> IdentityMetrics {
        self.identity.clone()
    }

    /// The metrics of load reports.
    pub(crate) fn load(&self) -> LoadMetrics {
        self.load.clone()
    }

    /// The metrics of exported traces.
    pub(crate) fn traces(&self) -> TraceMetrics {
        self.traces.clone()
    }

    /// The metrics of a resource that the clients of a port share.
    pub(crate) fn pool(&self, port: &'static str, resource: &'static str) -> PoolMetrics {
        let [over_share, exhausted, revoked] = ["share", "exhausted", "revoked"].map(|reason| {
            self.refusals.get_or_create(&RefusalLabels { port, resource, reason }).clone()
        });
        let used = self.admitted.get_or_create(&PoolLabels { port, resource }).clone();
        PoolMetrics { used, over_share, exhausted, revoked }
    }

    /// The metrics in the Prometheus text format, with this number of running tasks.
    ///
    /// # Errors
    /// Fails only if a metric cannot be formatted.
    pub(crate) fn text(&self, cache: CacheStats, tasks: usize) -> Result<String, std::fmt::Error> {
        set(&self.tasks, tasks);
        set(&self.connected, cache.proxies);
        set(&self.scopes, cache.scopes);
        set(&self.parts, cache.parts);
        set(&self.omitted, cache.omitted);
        for (work, count) in cache.work.named() {
            let counter = self.work.get_or_create(&WorkLabel { work });
            counter.inner().store(count, Ordering::Relaxed);
        }
        let mut out = String::new();
        prometheus_client::encoding::text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

fn set(gauge: &Gauge, count: usize) {
    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The names of weir's metrics in a text, as the dashboard and the alerts use them.
    fn names(text: &str) -> BTreeSet<&str> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words
            .filter(|word| ["weir_", "pilot_"].iter().any(|start| word.starts_with(start)))
            .collect()
    }

    fn weights(subsets: &[&str]) -> Weights {
        let labels = subsets.iter().map(|subset| WeightLabels {
            namespace: "shop".into(),
            virtual_service: "web".into(),
            route: "spec.http[0]".into(),
            destination_service: "web.shop.svc.cluster.local".into(),
            subset: (*subset).to_owned(),
            port: 80,
        });
        labels.map(|labels| (labels, 0.5)).collect()
    }

    #[test]
    fn a_weight_that_is_gone_is_not_shown() {
        let metrics = Metrics::default();
        for subsets in [&["v1", "v2"][..], &["v2", "v3"], &[]] {
            metrics.load().show_weights(weights(subsets));
            let text = metrics.text(CacheStats::default(), 1).unwrap();
            let shown =
                text.lines().filter(|line| line.starts_with("weir_effective_weight_ratio{"));
            let shown: Vec<&str> = shown
                .filter_map(|line| line.split("subset=\"").nth(1)?.split('"').next())
                .collect();
            assert_eq!(BTreeSet::from_iter(shown), subsets.iter().copied().collect(), "{text}");
        }
    }

    #[test]
    fn the_dashboard_and_the_alerts_name_metrics_that_exist() {
        let metrics = Metrics::default();
        // A family appears with its first member.
        metrics.pushed("CDS", 1);
        metrics.rejected("CDS");
        metrics.pool("xds", "streams");
        metrics.watch_age.get_or_create(&WatchLabel { resource: "pods".into() }).set(1.0);
        metrics.webhook().count(ReviewResult::Admitted);
        metrics.identity().identified("accepted");
        metrics.load().cluster("outbound|80|v1|web");
        metrics.load().show_weights(weights(&["v1"]));
        let text = metrics.text(CacheStats::default(), 1).unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let known: BTreeSet<&str> =
            samples.filter_map(|line| line.split([' ', '{']).next()).collect();
        for (file, used) in [
            ("dashboard", names(include_str!("../deploy/monitoring/grafana-dashboard.json"))),
            ("alerts", names(include_str!("../deploy/monitoring/prometheus-rules.yaml"))),
        ] {
            assert!(used.len() > 5, "{file}: {used:?}");
            let unknown: Vec<_> = used.difference(&known).collect();
            assert!(unknown.is_empty(), "{file}: {unknown:?} of {known:?}");
        }
    }
}
