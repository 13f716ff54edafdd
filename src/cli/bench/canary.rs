//! `weir bench canary`: whether a canary fails requests.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::{Mode, host_and_port, number};
use crate::bench::mesh::Edit;
use crate::bench::objects::{Cluster, Objects};
use crate::bench::process::{Launch, Weir};
use crate::bench::report::percentile;
use crate::bootstrap::XdsAddress;
use crate::canary::backends::{self, Backends};
use crate::canary::folder::free_port;
use crate::canary::live::Service;
use crate::canary::load::Load;
use crate::canary::objects::{self, NAMESPACE, Ports};
use crate::canary::patterns::{self, Pattern, State, Step, Write};
use crate::canary::sidecar;
use crate::cli::progress::Progress;
use crate::cli::remote::Output;
use crate::cli::signals::Signals;
use crate::cli::table::table;
use crate::envoy::{EnvoyBinary, EnvoyProcess, SpawnOptions};
use crate::source::kubernetes;

/// How long something may take to be live.
const LIVE: Duration = Duration::from_secs(60);

/// How often Envoy is asked.
const POLL: Duration = Duration::from_millis(5);

/// More requests than a run can need.
const REQUEST_LIMIT: u64 = 1_000_000_000;

/// Measure whether a canary fails requests
///
/// Plays the writes of a rollout through a real Envoy under load, in the orders in which people and tools make them, and
/// counts the requests that fail.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir bench canary
  weir bench canary --cycles 100 --mode sotw
  weir bench canary --kubernetes --kubeconfig ~/.kube/config
  weir bench canary --address 127.0.0.1:15010 --max-failed 1000     an Istiod of that cluster

Writes that belong together are 9 ms apart, in both orders: a subset is added and used, left and
dropped; a weight and labels move before their pods exist; old pods go right after the switch; weights
move step by step; a rollout is aborted. All others wait until Envoy has what was written before. LIVE
is the time from the last write of a step until Envoy has all of it, by its admin interface.

A Kubernetes API accepts no loopback addresses in an EndpointSlice: there the service is a
ServiceEntry. Exit status: 0 if no more requests failed than --max-failed, 1 otherwise, 2 usage error.")]
pub(crate) struct Args {
    /// How often each pattern is played
    #[arg(long, value_name = "N", default_value = "5", value_parser = number(100_000))]
    cycles: u64,
    /// How many requests may fail
    #[arg(long, value_name = "N", default_value = "0")]
    max_failed: u64,
    /// The variant of the protocol that Envoy uses
    #[arg(long, value_enum, value_name = "MODE", default_value = "delta")]
    mode: Mode,
    /// The Envoy binary [default: $ENVOY, then PATH, else installed once into ~/.cache/weir]
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// Keep the objects in a Kubernetes API instead of a folder
    #[arg(long)]
    kubernetes: bool,
    /// The Kubernetes API [default: the usual one of kubectl]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Use the control plane at this address, which must read that API, instead of a new weir
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port, conflicts_with = "weir")]
    address: Option<String>,
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

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    server: String,
    mode: &'static str,
    source: &'static str,
    envoy: String,
    patterns: Vec<Played>,
    requests: u64,
    failed: u64,
    /// Failed requests by status, or kind of error.
    failures: BTreeMap<String, u64>,
}

/// What was measured of one pattern.
#[derive(Debug, Serialize)]
struct Played {
    name: &'static str,
    cycles: u64,
    requests: u64,
    failed: u64,
    live_p50_ms: f64,
    live_max_ms: f64,
}

/// Runs until all patterns were played, or interrupted. Nothing that it started is left.
///
/// # Errors
/// Something does not start, or what was written does not become live.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let binary = match crate::cli::envoy::find(args.envoy.as_deref(), &mut signals).await? {
        Ok(binary) => binary,
        Err(status) => return Ok(ExitCode::from(status)),
    };
    let progress = Progress::start("weir bench");
    let mut stage = Stage::default();
    let played = tokio::select! {
        played = stage.play(&args, &binary, &progress) => Ok(played),
        status = signals.any() => Err(status),
    };
    progress.is("stopping everything");
    let closed = stage.close(&mut signals).await;
    progress.clear();
    let report = match played {
        Ok(report) => {
            let report = report?;
            closed?;
            report
        }
        Err(status) => {
            closed?;
            eprintln!("interrupted; everything is stopped");
            return Ok(ExitCode::from(status));
        }
    };
    args.output.print(&serde_json::to_value(&report)?, || report.text())?;
    Ok(if report.failed <= args.max_failed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is running.
#[derive(Default)]
struct Stage {
    weir: Option<Weir>,
    objects: Option<Objects>,
    folder: Option<tempfile::TempDir>,
    backends: Option<Backends>,
    envoy: Option<EnvoyProcess>,
    load: Option<Load>,
}

impl Stage {
    async fn play(
        &mut self,
        args: &Args,
        binary: &EnvoyBinary,
        progress: &Progress,
    ) -> anyhow::Result<Report> {
        let in_api = args.kubernetes || args.kubeconfig.is_some() || args.address.is_some();
        let backends = self.backends.insert(backends::start().await?);
        let ports = Ports { service: free_port()?, backend: backends.port };
        let namespace = if in_api {
            format!("weir-bench-{:05x}", RandomState::new().hash_one(()) & 0xf_ffff)
        } else {
            NAMESPACE.to_owned()
        };
        let folder = tempfile::Builder::new().prefix("weir-bench-").tempdir()?;
        let folder = self.folder.insert(folder).path().to_owned();
        let source = self.place(args, in_api, &namespace, &folder).await?;
        let objects = self.objects.as_ref().context("there is no place for objects")?;
        let service = Service { namespace, port: ports.service };
        let mut canary = Canary { objects, service, ports, in_api, state: State::default() };
        canary.begin().await?;
        let address = match &args.address {
            Some(address) => address.clone(),
            None => {
                progress.is("waiting for weir to be ready");
                start_weir(&mut self.weir, args, source).await?
            }
        };
        progress.is("waiting for Envoy to be ready");
        let address: XdsAddress = address.parse().map_err(crate::cli::usage)?;
        let bootstrap = sidecar(&canary.service.namespace, address, args.mode.variant());
        let file = folder.join("bootstrap.yaml");
        std::fs::write(&file, bootstrap.to_yaml()?)?;
        let envoy = self.envoy.insert(binary.spawn(&SpawnOptions::new(file))?);
        envoy.ready(LIVE).await?;
        canary.live(envoy, "at the beginning").await?;
        let host = objects::host(&canary.service.namespace);
        let load = self.load.insert(Load::start(&host, ports.service, REQUEST_LIMIT));
        let mut played = Vec::new();
        for pattern in patterns::all() {
            played.push(canary.pattern(args.cycles, &pattern, envoy, load, progress).await?);
        }
        Ok(Report {
            server: args.address.clone().unwrap_or_else(|| "weir".to_owned()),
            mode: args.mode.name(),
            source: if in_api { "kubernetes" } else { "folder" },
            envoy: binary.version().to_string(),
            requests: played.iter().map(|pattern| pattern.requests).sum(),
            failed: played.iter().map(|pattern| pattern.failed).sum(),
            failures: load.failures(),
            patterns: played,
        })
    }

    /// Makes the place for objects, and returns the flags by which weir reads it.
    async fn place(
        &mut self,
        args: &Args,
        in_api: bool,
        namespace: &str,
        folder: &std::path::Path,
    ) -> anyhow::Result<Vec<String>> {
        if !in_api {
            let config = folder.join("config");
            std::fs::create_dir(&config)?;
            self.objects = Some(Objects::Folder(config.clone()));
            return Ok(vec!["--config-dir".to_owned(), utf8(config)?]);
        }
        let client = kubernetes::client(args.kubeconfig.as_deref())
            .await
            .map_err(|error| crate::cli::usage(error.to_string()))?;
        let cluster = Cluster::new(client, vec![namespace.to_owned()]).await?;
        if let Objects::Kubernetes(cluster) =
            self.objects.insert(Objects::Kubernetes(Box::new(cluster)))
        {
            cluster.create_namespaces().await?;
        }
        Ok(match &args.kubeconfig {
            Some(file) => vec!["--kubeconfig".to_owned(), utf8(file.clone())?],
            None => Vec::new(),
        })
    }

    async fn close(self, signals: &mut Signals) -> anyhow::Result<()> {
        if let Some(load) = self.load {
            load.end().await;
        }
        if let Some(envoy) = self.envoy {
            envoy.stop().await?;
        }
        if let Some(weir) = self.weir {
            weir.stop().await;
        }
        match &self.objects {
            Some(objects) => objects.close(signals.any()).await,
            None => Ok(()),
        }
    }
}

/// Starts weir and returns its address when it is ready.
fn utf8(path: PathBuf) -> anyhow::Result<String> {
    let text = path.into_os_string().into_string();
    text.map_err(|path| anyhow::anyhow!("{path:?} is not UTF-8"))
}

async fn start_weir(
    place: &mut Option<Weir>,
    args: &Args,
    source: Vec<String>,
) -> anyhow::Result<String> {
    let (weir, _) = Weir::start(&Launch {
        program: args.weir.clone().map_or_else(std::env::current_exe, Ok)?,
        source,
        from_stdin: false,
        more: args.serve.clone(),
    })?;
    let weir = place.insert(weir);
    weir.ready(LIVE).await?;
    Ok(weir.xds.to_string())
}

/// The objects of the canary, as they were last written.
struct Canary<'a> {
    objects: &'a Objects,
    service: Service,
    ports: Ports,
    in_api: bool,
    state: State,
}

impl Canary<'_> {
    /// Writes everything for the first time.
    async fn begin(&mut self) -> anyhow::Result<()> {
        if !self.in_api {
            let service = objects::service(&self.service.namespace, self.ports);
            self.write_file("service", &service).await?;
        }
        for write in patterns::begin() {
            self.write(&write).await?;
        }
        Ok(())
    }

    async fn write(&mut self, write: &Write) -> anyhow::Result<()> {
        self.state.apply(write);
        let namespace = &self.service.namespace;
        let (file, text) = match write {
            Write::Rule(subsets) => ("rule", objects::rule(namespace, subsets)),
            Write::Route(weights) => ("route", objects::route(namespace, weights)),
            Write::Endpoints(versions) if self.in_api => {
                ("endpoints", objects::service_entry(namespace, self.ports, versions))
            }
            Write::Endpoints(versions) => {
                ("endpoints", objects::endpoints(namespace, self.ports, versions))
            }
        };
        self.write_file(file, &text).await
    }

    async fn write_file(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let mut whole = Vec::new();
        for document in text.split("---\n") {
            whole.push(serde_saphyr::from_str(document)?);
        }
        let edit =
            Edit { file: file.to_owned(), changed: whole.clone(), whole, deleted: Vec::new() };
        self.objects.write(&edit).await
    }

    /// Waits until Envoy has everything, and says when it had.
    async fn live(&self, envoy: &mut EnvoyProcess, what: &str) -> anyhow::Result<Instant> {
        let begun = Instant::now();
        loop {
            if self.service.is_live(envoy.admin()?, &self.state).await? {
                return Ok(Instant::now());
            }
            if begun.elapsed() > LIVE || envoy.exited()?.is_some() {
                bail!(
                    "what was written is not live after {} s: {what}; end of Envoy's log:\n{}",
                    begun.elapsed().as_secs(),
                    envoy.log_tail()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn pattern(
        &mut self,
        cycles: u64,
        pattern: &Pattern,
        envoy: &mut EnvoyProcess,
        load: &Load,
        progress: &Progress,
    ) -> anyhow::Result<Played> {
        let (sent, failed) = (load.sent(), load.failed_between_steps());
        progress.is(pattern.name);
        for write in patterns::begin().iter().chain(&pattern.before) {
            self.write(write).await?;
            self.live(envoy, pattern.name).await?;
        }
        let mut took = Vec::new();
        for cycle in 1..=cycles {
            progress.further(&format!("{}, cycle {cycle} of {cycles}", pattern.name));
            for step in &pattern.cycle {
                let last = self.step(step).await?;
                let live = self.live(envoy, pattern.name).await?;
                if step.measured {
                    took.push(live.saturating_duration_since(last));
                }
            }
        }
        took.sort_unstable();
        Ok(Played {
            name: pattern.name,
            cycles,
            requests: load.sent() - sent,
            failed: load.failed_between_steps() - failed,
            live_p50_ms: percentile(&took, 50),
            live_max_ms: percentile(&took, 100),
        })
    }

    /// Makes the writes of a step, and says when the last one began.
    async fn step(&mut self, step: &Step) -> anyhow::Result<Instant> {
        let mut last = Instant::now();
        for (pause, write) in &step.writes {
            tokio::time::sleep(*pause).await;
            last = Instant::now();
            self.write(write).await?;
        }
        Ok(last)
    }
}

impl Report {
    fn text(&self) -> String {
        let mut text = format!(
            "{} over {} with Envoy {}, objects from {}\n\n",
            self.server, self.mode, self.envoy, self.source
        );
        let rows = self.patterns.iter().map(|played| {
            [
                played.name.to_owned(),
                played.cycles.to_string(),
                played.requests.to_string(),
                played.failed.to_string(),
                format!("{:.1}", played.live_p50_ms),
                format!("{:.1}", played.live_max_ms),
            ]
        });
        let head = ["PATTERN", " CYCLES", " REQUESTS", " FAILED", " LIVE P50 ms", " LIVE MAX ms"];
        text += &table(head, rows);
        text += &format!("\n{} of {} requests failed.\n", self.failed, self.requests);
        for (why, count) in &self.failures {
            text += &format!("  {count} times {why}\n");
        }
        text
    }
}
