//! Where `weir serve` exports traces.

use crate::traces::TraceOptions;

/// Flags of traces.
#[derive(Debug, clap::Args)]
pub(super) struct TracesArgs {
    /// Export a trace of each change of a VirtualService or DestinationRule to this OpenTelemetry collector, over gRPC:
    /// http://HOST:PORT or https://HOST:PORT, where the port is usually 4317 [default:
    /// $OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, else $OTEL_EXPORTER_OTLP_ENDPOINT, else no traces]
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
}

impl TracesArgs {
    /// The options; `None` if no traces are exported. `pod` is the namespace and the name of weir's pod.
    ///
    /// # Errors
    /// With the flag, it or a variable cannot be used. Without it the variables may be meant for other programs, so the
    /// log says what is wrong with them.
    pub(super) fn options(
        &self,
        pod: Option<(&str, &str)>,
    ) -> anyhow::Result<Option<TraceOptions>> {
        let flag = self.otlp_endpoint.as_deref();
        match TraceOptions::read(flag, pod, |name| std::env::var(name).ok()) {
            Err(reason) if flag.is_none() => {
                tracing::warn!(reason, "exporting no traces");
                Ok(None)
            }
            options => options.map_err(crate::cli::usage),
        }
    }
}
