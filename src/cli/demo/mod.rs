//! `weir demo`: a canary through a real Envoy, from the first step to the last.

mod backends;
mod load;
mod report;
mod tutorial;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::bootstrap::{AdsVariant, Bootstrap, NodeId, XdsAddress};
use crate::control_plane::{ControlPlane, Options, Source};
use crate::envoy::{EnvoyBinary, EnvoyProcess, SpawnOptions};
use crate::mesh::{Interception, Locality, MeshConfig};
use crate::xds::door::Limits;
use crate::xds::stream::Settings;

use load::Load;
use report::{Row, Table};
use tutorial::Tutorial;

/// How long one thing may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Flags of `weir demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir demo
  weir demo --steps 100,99,75,0 --requests 10000
  weir demo --keep                            then edit the file it names and watch the split

Exit status 0 only if every observed share is within its bound and no request failed.")]
pub struct Args {
    /// The Envoy to run [default: $ENVOY, then PATH, else installed once into ~/.cache/weir]
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// Percent of requests to v1, step by step
    #[arg(long, value_name = "PERCENT,...", default_value = "100,90,50,0", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(0..=100))]
    steps: Vec<u32>,
    /// Requests counted in each step
    #[arg(long, value_name = "N", default_value = "2000", value_parser = clap::value_parser!(u64).range(100..=100_000))]
    requests: u64,
    /// Leave everything running after the last step, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// Runs the demo until it ends or is interrupted; nothing it started outlives it.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        done = demo(&args) => done,
        _ = interrupt.recv() => {
            eprintln!("\ninterrupted; everything is stopped");
            Ok(ExitCode::from(130))
        }
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    }
}

struct Demo {
    plane: ControlPlane,
    envoy: EnvoyProcess,
    node: String,
    tutorial: Tutorial,
    load: Load,
    table: Table,
}

async fn demo(args: &Args) -> anyhow::Result<ExitCode> {
    let explicit = args.envoy.clone();
    let binary = tokio::task::spawn_blocking(move || EnvoyBinary::find(explicit.as_deref())).await??;
    let backends = backends::start().await?;
    let tutorial = Tutorial::new(backends.port).context("can not write the demo's objects")?;
    let first = args.steps.first().copied().unwrap_or(100);
    tutorial.write_all(first)?;
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let plane = ControlPlane::start(Options {
        source: Source::Directory(tutorial.folder()),
        xds_listen: any,
        admin_listen: any,
        mesh: MeshConfig::default(),
        streams: Settings::default(),
        limits: Limits::default(),
    })
    .await?;
    patiently("weir to read its folder", plane.ready()).await?;
    let (node, bootstrap) = bootstrap(plane.xds_addr());
    let file = tutorial.outside("bootstrap.yaml");
    std::fs::write(&file, bootstrap.to_yaml()?)?;
    let mut envoy = binary.spawn(&SpawnOptions::new(file))?;
    envoy.ready(PATIENCE).await?;
    let revision = plane.revision();
    patiently("Envoy to ack its first configuration", plane.live(&node, revision)).await?;
    println!("weir     ADS on {}, objects in {}", plane.xds_addr(), tutorial.folder().display());
    println!("Envoy    {} as a sidecar of shop/client-0, my-app on 127.0.0.1:{}", binary.version(), tutorial.port());
    println!("backends three of v1 on 127.0.1.1-3, three of v2 on 127.0.2.1-3, port {}\n", backends.port);
    let load = Load::start(tutorial.port());
    let mut demo = Demo { plane, envoy, node, tutorial, load, table: Table::new() };
    let outcome = steps(args, &mut demo).await;
    let failed_between = demo.load.failed_between_steps();
    let log = demo.envoy.log_path().display().to_string();
    let fine = match outcome {
        Ok(fine) => fine && failed_between == 0,
        Err(error) => {
            eprintln!("\n{error:#}\nEnvoy's log ends:\n{}", demo.envoy.log_tail());
            false
        }
    };
    if fine {
        println!(
            "\nEvery split is within its bound, and none of {} requests failed, those during the edits included.",
            demo.load.sent()
        );
        println!("Next: weir serve --config-dir DIR, with your own objects; weir serve --help");
    } else {
        println!(
            "\nSomething is wrong: see the rows marked with !. {failed_between} requests failed during edits; Envoy's log was {log}"
        );
    }
    if args.keep && fine {
        println!("\nStill running. Edit {}", demo.tutorial.route_file().display());
        println!("and send requests: curl -H 'host: my-app.shop' http://127.0.0.1:{}/", demo.tutorial.port());
        println!("Ctrl-C ends it.");
        demo.load.pause();
        demo.plane.failed().await?;
    }
    demo.load.end().await;
    let _ = demo.envoy.stop().await;
    demo.plane.shutdown().await;
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn steps(args: &Args, demo: &mut Demo) -> anyhow::Result<bool> {
    demo.table.head();
    let mut fine = true;
    for (n, v1) in args.steps.iter().copied().enumerate() {
        let step = format!("{v1}/{}", 100 - v1);
        let tutorial = &demo.tutorial;
        let took = if n == 0 { None } else { Some(edit(demo, || tutorial.route(v1)).await?) };
        fine &= measure(args, demo, &step, 100 - v1, took).await?;
    }
    if args.steps.last() == Some(&0) {
        let tutorial = &demo.tutorial;
        let took = edit(demo, || {
            tutorial.route_to_v2_alone()?;
            tutorial.rule_without_v1()
        })
        .await?;
        fine &= measure(args, demo, "v1 removed", 100, Some(took)).await?;
    }
    Ok(fine)
}

/// Writes, and waits until Envoy has acked; the time between is what a user waits for a weight.
async fn edit(demo: &Demo, write: impl FnOnce() -> std::io::Result<()>) -> anyhow::Result<Duration> {
    let before = demo.plane.revision();
    let begun = Instant::now();
    demo.load.edit_begins();
    write()?;
    let revision = patiently("weir to see the edit", demo.plane.revision_after(before)).await?;
    patiently("Envoy to ack the edit", demo.plane.live(&demo.node, revision)).await?;
    Ok(begun.elapsed())
}

async fn measure(args: &Args, demo: &Demo, step: &str, v2: u32, took: Option<Duration>) -> anyhow::Result<bool> {
    demo.load.step_begins();
    let begun = Instant::now();
    let row = |tally| Row { step: step.to_owned(), wanted_v2: v2, tally, took };
    loop {
        let tally = demo.load.tally();
        if tally.total() >= args.requests {
            let row = row(tally);
            demo.table.done(&row);
            return Ok(row.is_fine());
        }
        if begun.elapsed() > PATIENCE {
            demo.table.done(&row(tally));
            bail!("only {} of {} requests were answered in {PATIENCE:?}", demo.load.tally().total(), args.requests);
        }
        demo.table.progress(&row(tally));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::time::timeout(PATIENCE, future).await.with_context(|| format!("waited {PATIENCE:?} for {what}"))
}

/// The node id of the demo's sidecar, and its bootstrap.
fn bootstrap(xds: std::net::SocketAddr) -> (String, Bootstrap) {
    let node = NodeId {
        ip: std::net::Ipv4Addr::LOCALHOST.into(),
        pod: "client-0".to_owned(),
        namespace: "shop".to_owned(),
        dns_domain: "shop.svc.cluster.local".to_owned(),
    };
    let id = node.to_string();
    let bootstrap = Bootstrap {
        node,
        labels: [("app".to_owned(), "client".to_owned())].into(),
        cluster_id: "Kubernetes".to_owned(),
        locality: None::<Locality>,
        interception: Interception::None,
        xds: XdsAddress::from(xds),
        variant: AdsVariant::Delta,
        admin: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
    };
    (id, bootstrap)
}
