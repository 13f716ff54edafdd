//! `weir bench`: a mesh in a box.

mod canary;
mod charts;
mod text;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use super::remote::Output;
use super::signals::Signals;
use super::usage;
use crate::bench::loads::LoadSettings;
use crate::bench::mesh::Size;
use crate::bench::phases::{Kind, Settings};
use crate::bench::report::Report;
use crate::bootstrap::AdsVariant;
use crate::cli::progress::Progress;
use crate::xds::stream::runtime_layers;
use world::World;

/// Measure weir, or any xDS server, on a mesh made for it
///
/// Starts weir, writes Services, EndpointSlices, Pods, VirtualServices and DestinationRules, and connects proxies
/// which subscribe and ACK as Envoy does. Then it changes objects and measures when each proxy has the change, and the CPU
/// time and memory that it cost.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  weir bench
  weir bench --services 10000 --namespaces 100 --streams 1000 --mode sotw
  weir bench --phases start,weight --rounds 20 -o json
  weir bench --series services=100,1000,10000 --svg growth.svg
  weir bench --source kubernetes --kubeconfig ~/.kube/config
  weir bench --address 127.0.0.1:15010 --pid 4711     an Istiod that reads the current cluster
  weir bench --streams 1000 --phases start,loads      what load reports cost
  weir bench -- --grace 5                             what follows -- goes to weir serve
  weir bench canary                                   does a canary fail requests?

Phases: start    all proxies connect and fetch everything
        weight   one weight changes
        endpoint one endpoint changes its address
        service  a service is added with all that belongs to it
        storm    every weight changes, spread over a second
        restart  a tenth of the pods is replaced, one after the other
        reconnect  all proxies lose their streams, a weight changes, they connect with what they have
        stuck    (if asked for) one weight changes while one more proxy does not read
        loads    (if asked for) all proxies report their load, after as long a time without reports

Times are from the beginning of the last write until a proxy has received what was written. CPU time
counts until nothing more is sent. Phases of a single change are repeated (--rounds), and each column
shows the median. With a Kubernetes API the objects are in namespaces weir-bench-*, which are deleted
at the end. Exit status: 0 if every proxy got everything, 1 otherwise, 2 usage error."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// The number of services, each with a VirtualService and a DestinationRule of two subsets
    #[arg(long, value_name = "N", default_value = "1000", value_parser = number(100_000))]
    services: u64,
    /// Pods of each service
    #[arg(long, value_name = "N", default_value = "4", value_parser = number(1000))]
    pods_per_service: u64,
    /// Namespaces over which the services and proxies are spread
    #[arg(long, value_name = "N", default_value = "1", value_parser = number(10_000))]
    namespaces: u64,
    /// The number of proxies, each with a connection and a stream of its own
    #[arg(long, value_name = "N", default_value = "100", value_parser = number(20_000))]
    streams: u64,
    /// The variant of the protocol
    #[arg(long, value_enum, value_name = "MODE", default_value = "delta")]
    mode: Mode,
    /// Subscribe to runtime layers as well, and accept a weight that comes in one
    #[arg(long)]
    rtds: bool,
    /// The names of the runtime layers [default: those of weir bootstrap]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', requires = "rtds")]
    rtds_name: Vec<String>,
    /// Where the objects are: in weir's memory, in a folder of YAML, or in a Kubernetes API [default: memory;
    /// kubernetes with --address]
    #[arg(long, value_enum, value_name = "SOURCE")]
    source: Option<Source>,
    /// The Kubernetes API, with --source kubernetes or --address [default: the usual one of kubectl]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Measure the xDS server at this address, which must read the Kubernetes API, instead of a new weir
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port, conflicts_with = "weir")]
    address: Option<String>,
    /// The process of that server on this machine, to measure its CPU time and memory
    #[arg(long, value_name = "PID", requires = "address")]
    pid: Option<u32>,
    /// Phases to run, in this order; start precedes them [default: all except stuck
    /// and loads]
    #[arg(long, value_enum, value_name = "PHASE,...", value_delimiter = ',')]
    phases: Vec<Kind>,
    /// How often a phase of a single change is repeated
    #[arg(long, value_name = "N", default_value = "5", value_parser = number(10_000))]
    rounds: u64,
    /// Repeat everything for each of these numbers of services, namespaces or streams
    #[arg(long, value_name = "NAME=N,...", value_parser = series)]
    series: Option<Series>,
    /// Write a chart of latency, CPU time and memory against size to this file
    #[arg(long, value_name = "FILE", requires = "series")]
    svg: Option<PathBuf>,
    /// How long a round may take
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    timeout: Duration,
    /// A round is over when nothing more was sent for so long
    #[arg(long, value_name = "SECONDS", default_value = "0.1", value_parser = seconds)]
    settle: Duration,
    /// Pods replaced per second in a rolling restart
    #[arg(long, value_name = "N", default_value = "200", value_parser = number(10_000))]
    restart_rate: u64,
    /// How many load reports of each proxy are measured in the phase loads
    #[arg(long, value_name = "N", default_value = "6", value_parser = number(10_000))]
    load_reports: u64,
    /// How often weir asks for load reports; another server has an interval of its own
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = interval)]
    load_report_interval: Duration,
    /// To how many services each proxy sends requests in the phase loads
    #[arg(long, value_name = "N", default_value = "20", value_parser = number(100_000))]
    load_services: u64,
    /// The weir to start [default: this one]
    #[arg(long, value_name = "FILE")]
    weir: Option<PathBuf>,
    /// How to print the result
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Output,
    /// More flags for weir serve
    #[arg(last = true, value_name = "FLAGS", conflicts_with = "address")]
    serve: Vec<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Canary(canary::Args),
}

/// A variant of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// State of the world: every response has all resources of its type.
    Sotw,
    /// Only changes are sent.
    Delta,
}

impl Mode {
    fn variant(self) -> AdsVariant {
        match self {
            Self::Sotw => AdsVariant::Sotw,
            Self::Delta => AdsVariant::Delta,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sotw => "sotw",
            Self::Delta => "delta",
        }
    }
}

/// Where the objects are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Source {
    /// They are sent to weir directly.
    Memory,
    /// In files.
    Folder,
    /// In a Kubernetes API.
    Kubernetes,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Folder => "folder",
            Self::Kubernetes => "kubernetes",
        }
    }
}

/// What grows in a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dimension {
    Services,
    Namespaces,
    Streams,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Series {
    dimension: Dimension,
    sizes: Vec<usize>,
}

fn number(most: u64) -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=most)
}

fn host_and_port(text: &str) -> Result<String, String> {
    let is_one = text
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if is_one {
        Ok(text.to_owned())
    } else {
        Err("expected HOST:PORT, such as istiod.istio-system:15010".to_owned())
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: Option<f64> = text.strip_suffix('s').unwrap_or(text).parse().ok();
    number
        .filter(|number| (0.001..=86_400.0).contains(number))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| {
            "expected a number of seconds from 0.001 to 86400, such as 10 or 0.5".to_owned()
        })
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = seconds(text).ok();
    interval
        .filter(|time| (0.1..=300.0).contains(&time.as_secs_f64()))
        .ok_or_else(|| "expected a number of seconds from 0.1 to 300, such as 10 or 0.5".to_owned())
}

fn series(text: &str) -> Result<Series, String> {
    let (dimension, most, sizes) = match text.split_once('=') {
        Some(("services", sizes)) => (Dimension::Services, 100_000, sizes),
        Some(("namespaces", sizes)) => (Dimension::Namespaces, 10_000, sizes),
        Some(("streams", sizes)) => (Dimension::Streams, 20_000, sizes),
        _ => {
            let expected = "expected services=100,1000 or the same with namespaces or streams";
            return Err(expected.to_owned());
        }
    };
    let sizes: Option<Vec<usize>> = sizes.split(',').map(|size| size.trim().parse().ok()).collect();
    let sizes = sizes.filter(|sizes| sizes.iter().all(|size| (1..=most).contains(size)));
    Ok(Series {
        dimension,
        sizes: sizes.ok_or_else(|| format!("expected numbers from 1 to {most}"))?,
    })
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Args {
    fn sizes(&self) -> anyhow::Result<Vec<Size>> {
        let sizes = self.all_sizes();
        let pods = sizes.iter().map(|size| size.services.saturating_mul(size.pods_per_service));
        match pods.max() {
            Some(pods @ MAX_PODS..) => Err(usage(format!(
                "--services and --pods-per-service: {pods} pods; expected fewer than {MAX_PODS}"
            ))),
            _ => Ok(sizes),
        }
    }

    fn all_sizes(&self) -> Vec<Size> {
        let size = Size {
            services: to_usize(self.services),
            pods_per_service: to_usize(self.pods_per_service),
            namespaces: to_usize(self.namespaces),
            streams: to_usize(self.streams),
        };
        let Some(series) = &self.series else {
            return vec![size];
        };
        let sizes = series.sizes.iter().map(|n| match series.dimension {
            Dimension::Services => Size { services: *n, ..size },
            Dimension::Namespaces => Size { namespaces: *n, ..size },
            Dimension::Streams => Size { streams: *n, ..size },
        });
        sizes.collect()
    }

    fn source(&self) -> anyhow::Result<Source> {
        match (self.source, &self.address) {
            (None | Some(Source::Kubernetes), Some(_)) => Ok(Source::Kubernetes),
            (Some(source), Some(_)) => Err(usage(format!(
                "--source {}: a server at an --address reads a Kubernetes API; expected --source kubernetes",
                source.name()
            ))),
            (source, None) => Ok(source.unwrap_or(Source::Memory)),
        }
    }

    /// The runtime layers to which proxies subscribe.
    fn runtime_layers(&self) -> Vec<String> {
        match (self.rtds, self.rtds_name.as_slice()) {
            (false, _) => Vec::new(),
            (true, []) => {
                let layers = runtime_layers(self.mode.variant().into());
                layers.iter().map(ToString::to_string).collect()
            }
            (true, names) => names.to_vec(),
        }
    }

    /// The flags for `weir serve`.
    fn serve_flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        if self.phases().contains(&Kind::Loads) {
            let interval = self.load_report_interval.as_secs_f64().to_string();
            flags.extend(["--load-report-interval".to_owned(), interval]);
        }
        flags.extend(self.serve.iter().cloned());
        flags
    }

    fn phases(&self) -> &[Kind] {
        if self.phases.is_empty() { &Kind::USUAL } else { &self.phases }
    }

    fn settings(&self) -> Settings {
        Settings {
            rounds: usize::try_from(self.rounds).unwrap_or(usize::MAX),
            timeout: self.timeout,
            settle: self.settle,
            restart_rate: self.restart_rate as f64,
            loads: LoadSettings {
                interval: self.load_report_interval,
                reports: to_usize(self.load_reports),
                services: to_usize(self.load_services),
            },
        }
    }
}

/// A mesh has fewer pods than this.
const MAX_PODS: usize = 1 << 20;

/// Runs the bench until it is done or interrupted. Nothing that it started is left.
///
/// # Errors
/// The mesh cannot be made, or the server does not serve it.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(Command::Canary(args)) = args.command {
        return canary::run(args).await;
    }
    let mut signals = Signals::new()?;
    let progress = Progress::start("weir bench");
    let mut report = Report {
        server: args.address.clone().unwrap_or_else(|| "weir".to_owned()),
        mode: args.mode.name(),
        rtds: args.rtds,
        source: args.source()?.name(),
        runs: Vec::new(),
    };
    for size in args.sizes()? {
        let mut world = World::default();
        let measured = tokio::select! {
            measured = world.measure(&args, size, &progress) => Ok(measured),
            status = signals.any() => Err(status),
        };
        let measured = measured.map(|run| run.map_err(|error| world.explain(error)));
        progress.is("stopping weir and deleting the objects");
        let closed = world.close(&mut signals).await;
        progress.clear();
        match measured {
            Ok(run) => {
                report.runs.push(run?);
                closed?;
            }
            Err(status) => {
                closed?;
                eprintln!("interrupted; everything is stopped");
                return Ok(ExitCode::from(status));
            }
        }
    }
    if let (Some(file), Some(series)) = (&args.svg, &args.series) {
        let svg = charts::of(&report, series.dimension);
        std::fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
    }
    args.output.print(&serde_json::to_value(&report)?, || text::report(&report))?;
    Ok(if report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_names_what_grows() {
        let found = series("streams=10,200").unwrap();
        assert_eq!(found, Series { dimension: Dimension::Streams, sizes: vec![10, 200] });
        for wrong in ["", "pods=1", "services=", "services=0", "services=1,x", "services"] {
            assert!(series(wrong).is_err(), "{wrong}");
        }
    }
}
