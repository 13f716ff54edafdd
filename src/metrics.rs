//! The numbers weir counts. Names are Istio's where the meaning is the same.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::snapshot::{HubStats, ResourceType};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: &'static str,
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

/// What is told of a resource that clients share.
#[derive(Clone, Debug, Default)]
pub struct PoolMetrics {
    /// How much is in use.
    pub used: Gauge,
    /// How often a peer asked for more than its share.
    pub over_share: Counter,
    /// How often there was nothing left.
    pub exhausted: Counter,
    /// How often something was taken from the peer that had the most.
    pub revoked: Counter,
}

/// All metrics, and the registry that prints them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pushes: Family<TypeLabel, Counter>,
    sent_bytes: Family<TypeLabel, Counter>,
    rejects: Family<TypeLabel, Counter>,
    connected: Gauge,
    scopes: Gauge,
    parts: Gauge,
    left_out: Gauge,
    revision: Gauge,
    problems: Gauge,
    held: Gauge,
    config_events: Counter,
    convergence: Histogram,
    admitted: Family<PoolLabels, Gauge>,
    refusals: Family<RefusalLabels, Counter>,
}

/// Upper bounds of what `pilot_proxy_convergence_time` counts together, in seconds: Istio's, and shorter ones.
const CONVERGENCE: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 5.0, 10.0, 30.0];

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
            left_out: Gauge::default(),
            revision: Gauge::default(),
            problems: Gauge::default(),
            held: Gauge::default(),
            config_events: Counter::default(),
            convergence: Histogram::new(CONVERGENCE),
            admitted: Family::default(),
            refusals: Family::default(),
        };
        let registry = &mut this.registry;
        registry.register("pilot_xds", "Proxies connected by ADS", this.connected.clone());
        registry.register("pilot_xds_pushes", "Responses sent, by type", this.pushes.clone());
        registry.register("pilot_total_xds_rejects", "Responses that a proxy refused, by type", this.rejects.clone());
        registry.register("pilot_k8s_cfg_events", "Changes of objects taken in", this.config_events.clone());
        registry.register(
            "pilot_proxy_convergence_time",
            "Seconds from a change to a proxy's last ACK of what it led to, for each proxy",
            this.convergence.clone(),
        );
        registry.register("weir_xds_sent_bytes", "Bytes of responses sent, by type", this.sent_bytes.clone());
        registry.register("weir_scopes", "Distinct scopes of connected proxies", this.scopes.clone());
        registry.register("weir_encoded_resources", "Encoded parts that answers are made of", this.parts.clone());
        registry.register(
            "weir_resources_left_out",
            "Resources, or parts of them, that are not sent because Envoy would refuse them",
            this.left_out.clone(),
        );
        registry.register(
            "weir_mesh_revision",
            "The state of the mesh, counted up with each change",
            this.revision.clone(),
        );
        registry.register(
            "weir_held",
            "Weights and labels held back because a subset has no ready endpoint",
            this.held.clone(),
        );
        registry.register(
            "weir_config_problems",
            "Objects and files that are refused at present",
            this.problems.clone(),
        );
        registry.register(
            "weir_admitted",
            "Connections, open requests and bytes of memory that clients have in use, by port",
            this.admitted.clone(),
        );
        registry.register(
            "weir_admission_refusals",
            "How often a client did not get one of them, or lost it to others, by port and reason",
            this.refusals.clone(),
        );
        this
    }
}

impl Metrics {
    /// A response of `bytes` was sent.
    pub fn pushed(&self, kind: ResourceType, bytes: usize) {
        let label = TypeLabel { r#type: kind.short_name() };
        self.pushes.get_or_create(&label).inc();
        self.sent_bytes.get_or_create(&label).inc_by(bytes as u64);
    }

    /// A response was refused.
    pub fn refused(&self, kind: ResourceType) {
        self.rejects.get_or_create(&TypeLabel { r#type: kind.short_name() }).inc();
    }

    /// A proxy acked the last of what a change led to, so long after the change was taken in.
    pub fn converged(&self, after: Duration) {
        self.convergence.observe(after.as_secs_f64());
    }

    /// Objects changed, and `problems` of them are refused now.
    pub fn changed(&self, events: usize, revision: u64, problems: usize) {
        self.config_events.inc_by(events as u64);
        self.revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
        self.problems.set(i64::try_from(problems).unwrap_or(i64::MAX));
    }

    /// So many weights and labels are held back now.
    pub fn held(&self, count: usize) {
        self.held.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// What is told of a resource that the clients of a port share.
    pub fn pool(&self, port: &'static str, resource: &'static str) -> PoolMetrics {
        let refusals = |reason| self.refusals.get_or_create(&RefusalLabels { port, resource, reason }).clone();
        PoolMetrics {
            used: self.admitted.get_or_create(&PoolLabels { port, resource }).clone(),
            over_share: refusals("share"),
            exhausted: refusals("exhausted"),
            revoked: refusals("revoked"),
        }
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// Formatting failed, which only a broken metric does.
    pub fn text(&self, hub: HubStats) -> Result<String, std::fmt::Error> {
        let set = |gauge: &Gauge, n: usize| {
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        set(&self.connected, hub.proxies);
        set(&self.scopes, hub.scopes);
        set(&self.parts, hub.parts);
        set(&self.left_out, hub.left_out);
        let mut out = String::new();
        prometheus_client::encoding::text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}
