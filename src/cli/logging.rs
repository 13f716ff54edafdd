//! The log on standard error.

use std::fmt;
use std::io::IsTerminal as _;

use serde_json::{Map, Value};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// Flags of the log, which every command has.
#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// Log level: error, warn, info, debug or trace, optionally per module (info,weir::xds=debug) [default: info for
    /// serve and agent, warn otherwise]
    #[arg(long, global = true, value_name = "LEVELS", env = "WEIR_LOG", display_order = 1000)]
    log: Option<String>,
    /// Log format: text for people, or a line of JSON for each event
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        env = "WEIR_LOG_FORMAT",
        default_value = "text",
        display_order = 1001
    )]
    log_format: LogFormat,
}

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl LogArgs {
    /// Starts the log. `usual` is the level unless a flag sets another.
    ///
    /// # Errors
    /// The levels are invalid.
    pub(crate) fn start(&self, usual: &str) -> Result<(), String> {
        // weir logs the failures of the Kubernetes client itself, once per kind.
        let usual = format!("{usual},kube_client=off,kube_runtime=off");
        let levels = self.log.as_deref().unwrap_or(&usual);
        let filter = match EnvFilter::try_new(levels) {
            Ok(filter) if levels.split(',').all(has_level) => filter,
            _ => {
                return Err(format!(
                    "--log `{levels}`: expected something like info, or info,weir::xds=debug"
                ));
            }
        };
        let ansi = std::io::stderr().is_terminal();
        let subscriber = subscriber(filter, self.log_format, ansi, std::io::stderr);
        tracing::subscriber::set_global_default(subscriber).map_err(|error| error.to_string())
    }
}

/// Whether a directive of `--log` ends in a level. Without this check a misspelt level would be taken for a module name
/// and nothing would be logged.
fn has_level(part: &str) -> bool {
    let level = part.rsplit('=').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(level.as_str(), "off" | "error" | "warn" | "info" | "debug" | "trace")
}

fn subscriber<W>(
    filter: EnvFilter,
    format: LogFormat,
    ansi: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        // The message comes first, and the fields of the spans last.
        LogFormat::Text => Box::new(builder.with_ansi(ansi).compact().finish()),
        LogFormat::Json => {
            Box::new(builder.fmt_fields(JsonFields::new()).event_format(JsonLine).finish())
        }
    }
}

/// Formats an event as a line of JSON. Its own fields and those of its spans are all at the top level, so a field is found
/// under its name wherever it was set; the innermost value counts.
struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut line = Map::new();
        line.insert("timestamp".to_owned(), time.into());
        line.insert("level".to_owned(), event.metadata().level().as_str().into());
        line.insert("target".to_owned(), event.metadata().target().into());
        let mut own = String::new();
        context.format_fields(Writer::new(&mut own), event)?;
        add_fields(&mut line, &own)?;
        for span in context.event_scope().into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                add_fields(&mut line, fields)?;
            }
        }
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// Adds the fields of a JSON object to a line that does not have them.
fn add_fields(line: &mut Map<String, Value>, fields: &str) -> fmt::Result {
    if fields.is_empty() {
        return Ok(());
    }
    let fields: Map<String, Value> = serde_json::from_str(fields).map_err(|_| fmt::Error)?;
    for (name, value) in fields {
        line.entry(name).or_insert(value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The line that an event in two nested spans leaves.
    fn logged(format: LogFormat) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = subscriber(EnvFilter::new("debug"), format, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            let connection = tracing::debug_span!("connection", port = "xds", revision = 1);
            let _connection = connection.enter();
            let stream = tracing::info_span!("stream", stream = 7, proxy = tracing::field::Empty);
            let _stream = stream.enter();
            stream.record("proxy", tracing::field::display("shop/web-0"));
            let reason = "no answer to \"cds\"\nat all";
            tracing::warn!(revision = 12, reason, "proxy is lagging");
        });
        String::from_utf8(buffer.0.lock().clone()).unwrap()
    }

    #[test]
    fn a_line_of_text_begins_with_the_message_and_ends_with_the_fields_of_the_spans() {
        let line = logged(LogFormat::Text);
        let (_, end) = line.split_once("connection:stream: weir::cli::logging::tests: ").unwrap();
        assert_eq!(
            end,
            "proxy is lagging revision=12 reason=\"no answer to \\\"cds\\\"\\nat all\" port=\"xds\" revision=1 \
             stream=7 proxy=shop/web-0\n"
        );
    }

    #[test]
    fn a_line_of_json_has_the_fields_of_the_event_and_its_spans_at_the_top_level() {
        let line = logged(LogFormat::Json);
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        let mut fields: Map<String, Value> = serde_json::from_str(&line).unwrap();
        assert!(fields.remove("timestamp").is_some_and(|time| time.is_string()), "{line}");
        let expected = serde_json::json!({
            "level": "WARN", "target": "weir::cli::logging::tests", "message": "proxy is lagging",
            "revision": 12, "reason": "no answer to \"cds\"\nat all", "stream": 7, "proxy": "shop/web-0",
            "port": "xds",
        });
        assert_eq!(Value::Object(fields), expected);
    }

    #[test]
    fn a_misspelt_level_is_detected() {
        assert!(["info", "WARN", "weir::xds=debug", " off"].into_iter().all(has_level));
        assert!(!["verbose", "weir=loud", "", "weir::xds"].into_iter().any(has_level));
    }
}
