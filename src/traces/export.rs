//! The task that sends traces to the collector.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::follow::Trace;
use super::options::TraceOptions;
use super::span::text;
use crate::metrics::TraceMetrics;

/// The most traces of a request.
const BATCH: usize = 128;

/// The shortest and the longest time between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long a request is tried.
const GIVE_UP: Duration = Duration::from_secs(60);

/// How long what is left may take when weir shuts down.
const LAST: Duration = Duration::from_secs(2);

/// Sends traces, one request at a time.
pub(crate) struct Exporter {
    collector: String,
    client: TraceServiceClient<Channel>,
    headers: MetadataMap,
    resource: Resource,
    traces: mpsc::Receiver<Trace>,
    metrics: TraceMetrics,
    closing: CancellationToken,
    /// The pause after the last attempt; `None` if that succeeded.
    failing: Option<Duration>,
    /// The spans that were dropped since it fails.
    lost: u64,
}

impl Exporter {
    pub(super) fn new(
        options: TraceOptions,
        traces: mpsc::Receiver<Trace>,
        metrics: TraceMetrics,
        closing: CancellationToken,
    ) -> Self {
        let TraceOptions { endpoint, headers, resource } = options;
        let attributes = resource.into_iter().map(|(key, value)| text(&key, value)).collect();
        Self {
            collector: endpoint.uri().to_string(),
            client: TraceServiceClient::new(endpoint.connect_lazy()),
            headers,
            resource: Resource { attributes, ..Default::default() },
            traces,
            metrics,
            closing,
            failing: None,
            lost: 0,
        }
    }

    /// Sends until nobody makes traces any more, and for a moment after weir begins to shut down.
    ///
    /// # Errors
    /// None; tasks of the control plane have them.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let closing = self.closing.clone();
        let last = async {
            closing.cancelled().await;
            tokio::time::sleep(LAST).await;
        };
        tokio::select! {
            () = self.send_all() => {}
            () = last => {}
        }
        Ok(())
    }

    async fn send_all(&mut self) {
        let mut batch: Vec<Trace> = Vec::new();
        while self.traces.recv_many(&mut batch, BATCH).await > 0 {
            self.send(batch.drain(..).flatten().collect()).await;
        }
    }

    /// Sends spans until the collector takes them or it makes no sense to try again.
    async fn send(&mut self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        let request = self.request(spans);
        let begun = Instant::now();
        loop {
            let mut attempt = Request::new(request.clone());
            *attempt.metadata_mut() = self.headers.clone();
            match self.client.export(attempt).await {
                Ok(answer) => {
                    let partial = answer.into_inner().partial_success.unwrap_or_default();
                    let refused = u64::try_from(partial.rejected_spans).unwrap_or(0).min(count);
                    if refused > 0 {
                        let reason = partial.error_message;
                        tracing::debug!(refused, reason, "the collector refused spans");
                    }
                    self.metrics.dropped(refused);
                    self.metrics.exported(count - refused);
                    self.works();
                    return;
                }
                Err(status) => {
                    let pause = self.fails(&status);
                    let is_over = begun.elapsed() >= GIVE_UP || self.closing.is_cancelled();
                    if is_over || !is_temporary(&status) {
                        self.metrics.dropped(count);
                        self.lost += count;
                        return;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.closing.cancelled() => {}
                    }
                }
            }
        }
    }

    fn request(&self, spans: Vec<Span>) -> ExportTraceServiceRequest {
        let scope = InstrumentationScope {
            name: "weir".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..Default::default() }];
        let resource = Some(self.resource.clone());
        let resource_spans =
            vec![ResourceSpans { resource, scope_spans, schema_url: String::new() }];
        ExportTraceServiceRequest { resource_spans }
    }

    /// Logs the first of several failures. Returns how long to wait.
    fn fails(&mut self, status: &Status) -> Duration {
        if self.failing.is_none() {
            let (collector, code, reason) = (&self.collector, status.code(), status.message());
            tracing::warn!(
                collector,
                %code,
                reason,
                "cannot export traces; spans for which there is no room are dropped until it works"
            );
        }
        let pause = self.failing.map_or(PAUSE, |last| (last * 2).min(LONGEST_PAUSE));
        *self.failing.insert(pause)
    }

    fn works(&mut self) {
        if self.failing.take().is_some() {
            let (collector, lost) = (&self.collector, std::mem::take(&mut self.lost));
            tracing::info!(collector, lost, "exporting traces again");
        }
    }
}

/// Whether the same request may succeed later.
fn is_temporary(status: &Status) -> bool {
    use std::error::Error as _;
    // What the collector says has no source; what the connection says has one.
    status.source().is_some()
        || matches!(
            status.code(),
            Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Aborted
                | Code::OutOfRange
                | Code::Unavailable
                | Code::DataLoss
        )
}
