//! `weir demo`: a canary rollout with a real Envoy.

mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::admission::Limits;
use crate::bootstrap::AdsVariant;
use crate::canary::backends::{self, Backends};
use crate::canary::folder::CanaryFolder;
use crate::canary::load::Load;
use crate::canary::objects::{NAMESPACE, host};
use crate::canary::sidecar;
use crate::cli::signals::Signals;
use crate::control_plane::{ControlPlane, Options, Source};
use crate::envoy::{EnvoyBinary, EnvoyProcess, SpawnOptions};
use crate::load::LoadSettings;
use crate::mesh::{MeshConfig, WeightDelivery};
use crate::timeline;
use crate::xds::stream::StreamSettings;

use report::{Row, Table, print_line};

/// The timeout of each wait.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Flags of `weir demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir demo
  weir demo --steps 100,99,75,0 --requests 10000
  weir demo --keep           then edit the file it names and watch with the printed commands

The bound after ± is 4.4 standard deviations of a fair split of that many requests, and 0 for 0 and
100 percent. Exit status: 0 if every observed share is within its bound and no request failed,
1 otherwise, 2 usage error.")]
pub(crate) struct Args {
    /// The Envoy binary [default: $ENVOY, then PATH, else installed once into ~/.cache/weir]
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// Percentage of requests to v1 in each step
    #[arg(long, value_name = "PERCENT,...", default_value = "100,90,50,0", value_delimiter = ',',
          allow_hyphen_values = true, value_parser = percent)]
    steps: Vec<u32>,
    /// Number of requests counted in each step
    #[arg(long, value_name = "N", default_value = "2000", value_parser = clap::value_parser!(u64).range(100..=100_000))]
    requests: u64,
    /// Keep everything running after the last step, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

fn percent(text: &str) -> Result<u32, String> {
    let number = text.trim().parse().ok().filter(|number| *number <= 100);
    number.ok_or_else(|| {
        "expected comma-separated integers from 0 to 100, such as 100,90,50,0".to_owned()
    })
}

/// Runs the demo until it finishes or is interrupted; everything it started is stopped.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let kept = AtomicBool::new(false);
    let status = match super::envoy::find(args.envoy.as_deref(), &mut signals).await? {
        Ok(binary) => tokio::select! {
            done = demo(&args, &binary, &kept) => return done,
            status = signals.any() => status,
        },
        Err(status) => status,
    };
    if kept.into_inner() {
        print_line("\neverything is stopped");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("\ninterrupted; everything is stopped");
    Ok(ExitCode::from(status))
}

/// Everything that runs.
struct Demo {
    plane: ControlPlane,
    envoy: EnvoyProcess,
    node: String,
    objects: CanaryFolder,
    load: Load,
    table: Table,
    _backends: Backends,
}

async fn demo(args: &Args, binary: &EnvoyBinary, kept: &AtomicBool) -> anyhow::Result<ExitCode> {
    let mut demo = start(args, binary).await?;
    let outcome = steps(args, &mut demo).await;
    let fine = match outcome {
        Ok(fine) => fine && demo.load.failed_between_steps() == 0,
        Err(error) => {
            eprintln!("\n{error:#}");
            false
        }
    };
    print_outcome(&demo, fine);
    if args.keep && fine {
        keep(args, &mut demo, kept).await?;
    }
    demo.load.end().await;
    let _ = demo.envoy.stop().await;
    demo.plane.shutdown().await;
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts the backends, weir, Envoy and the load.
async fn start(args: &Args, binary: &EnvoyBinary) -> anyhow::Result<Demo> {
    let backends = backends::start().await?;
    let objects = CanaryFolder::new(backends.port).context("cannot write the demo's objects")?;
    objects.write_all(args.steps.first().copied().unwrap_or(100))?;
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let plane = ControlPlane::start(Options {
        source: Source::Directory(objects.folder()),
        status: None,
        peers: None,
        gates_listen: None,
        xds_listen: Some(any),
        secure: None,
        admin_listen: any,
        mesh: MeshConfig { weights: WeightDelivery::Runtime, ..MeshConfig::default() },
        streams: StreamSettings::default(),
        // Sooner than in a cluster, so that what a person edits can be seen at work at once.
        load: Some(LoadSettings { interval: Duration::from_secs(1), ..LoadSettings::default() }),
        limits: Limits::default(),
        admin_limits: Limits::admin(),
        webhook: None,
        timeline_memory: timeline::MEMORY,
        traces: None,
    })
    .await?;
    with_timeout("weir to read its folder", plane.ready()).await?;
    let xds = plane.xds_addr().context("weir serves no ADS in plain text")?;
    let bootstrap = sidecar(NAMESPACE, xds.into(), AdsVariant::Delta);
    let node = bootstrap.node.to_string();
    let file = objects.outside("bootstrap.yaml");
    std::fs::write(&file, bootstrap.to_yaml()?)?;
    let mut envoy = binary.spawn(&SpawnOptions::new(file))?;
    envoy.ready(TIMEOUT).await?;
    let revision = plane.revision();
    with_timeout("Envoy to ack its first configuration", plane.live(&node, revision)).await?;
    print_line(&format!("weir     ADS on {xds}, objects in {}", objects.folder().display()));
    print_line(&format!(
        "Envoy    {} from {} as a sidecar of shop/client-0, my-app on 127.0.0.1:{}",
        binary.version(),
        binary.source(),
        objects.port()
    ));
    print_line(&format!(
        "backends three of v1 on 127.0.1.1-3, three of v2 on 127.0.2.1-3, port {}\n",
        backends.port
    ));
    let load = Load::start(&host(NAMESPACE), objects.port(), request_limit(args));
    Ok(Demo { plane, envoy, node, objects, load, table: Table::new(), _backends: backends })
}

fn print_outcome(demo: &Demo, fine: bool) {
    if fine {
        print_line(&format!(
            "\nEvery split is within its bound (±), and none of {} requests failed, including those during edits.",
            demo.load.sent()
        ));
        print_line(
            "Next: serve your own objects with weir serve --config-dir DIR; see weir serve --help",
        );
    } else {
        print_line(&format!(
            "\nSomething is wrong: see the rows marked with !. {} requests failed during edits.",
            demo.load.failed_between_steps()
        ));
        print_line(&format!("End of Envoy's log:\n{}", demo.envoy.log_tail()));
    }
}

/// The pause between a worker's requests while the demo is kept running, for a total of about 50 per second.
const LIGHT: Duration = Duration::from_millis(160);

/// Keeps everything running until weir fails or the caller drops the future, and prints what to try.
async fn keep(args: &Args, demo: &mut Demo, kept: &AtomicBool) -> anyhow::Result<()> {
    if args.steps.last() == Some(&0) {
        // Restores both versions, so that there are weights to edit.
        let objects = &demo.objects;
        edit(demo, &[&|| objects.write_all(50)]).await?;
    }
    let (port, admin) = (demo.objects.port(), demo.plane.admin_addr());
    let file = demo.objects.route_file();
    print_line(&format!("\nStill running. Edit the weights in {}", file.display()));
    print_line(&format!("  http://{admin}/    shows all of it in a browser"));
    print_line(&format!(
        "  weir splits -w --admin {admin}    shows the weights and whether Envoy has them"
    ));
    print_line(&format!(
        "  curl -H 'host: my-app.shop' http://127.0.0.1:{port}/    sends a request"
    ));
    print_line("About 50 requests a second go on. Press Ctrl-C to stop.");
    demo.load.pause();
    let _load = Load::paced(&host(NAMESPACE), port, u64::MAX, LIGHT);
    kept.store(true, Ordering::Relaxed);
    demo.plane.failed().await
}

async fn steps(args: &Args, demo: &mut Demo) -> anyhow::Result<bool> {
    demo.table.head();
    let mut fine = true;
    for (n, v1) in args.steps.iter().copied().enumerate() {
        let step = format!("{v1}/{}", 100 - v1);
        let objects = &demo.objects;
        // An identical write changes nothing, so there would be nothing to wait for.
        let same = n > 0 && args.steps.get(n - 1) == Some(&v1);
        let took =
            if n == 0 || same { None } else { Some(edit(demo, &[&|| objects.route(v1)]).await?) };
        fine &= measure(args, demo, &step, 100 - v1, took).await?;
    }
    if args.steps.last() == Some(&0) {
        let objects = &demo.objects;
        let took =
            edit(demo, &[&|| objects.route_to_v2_alone(), &|| objects.rule_without_v1()]).await?;
        fine &= measure(args, demo, "v1 removed", 100, Some(took)).await?;
    }
    Ok(fine)
}

/// Writes files in order and waits until Envoy has ACKed everything; the elapsed time is what a user waits for a weight
/// change.
async fn edit(
    demo: &Demo,
    writes: &[&dyn Fn() -> std::io::Result<()>],
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    demo.load.edit_begins();
    let mut revision = demo.plane.revision();
    for write in writes {
        write().context("cannot write the demo's objects")?;
        revision =
            with_timeout("weir to see the edit", demo.plane.revision_after(revision)).await?;
    }
    with_timeout("Envoy to ack the edit", demo.plane.live(&demo.node, revision)).await?;
    Ok(begun.elapsed())
}

async fn measure(
    args: &Args,
    demo: &Demo,
    step: &str,
    v2: u32,
    took: Option<Duration>,
) -> anyhow::Result<bool> {
    demo.load.step_begins();
    let (mut answered, mut since) = (0, Instant::now());
    loop {
        let row = Row { step: step.to_owned(), wanted_v2: v2, tally: demo.load.tally(), took };
        let total = row.tally.total();
        if total > answered {
            (answered, since) = (total, Instant::now());
        }
        if total >= args.requests {
            demo.table.done(&row);
            return Ok(row.is_fine());
        }
        if since.elapsed() > TIMEOUT {
            demo.table.done(&row);
            bail!(
                "after {answered} of {} requests, no response arrived for {TIMEOUT:?}",
                args.requests
            );
        }
        demo.table.progress(&row);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn with_timeout<T>(what: &str, future: impl Future<Output = T>) -> anyhow::Result<T> {
    let waited = tokio::time::timeout(TIMEOUT, future).await;
    waited.map_err(|_| anyhow::anyhow!("timed out after {TIMEOUT:?} waiting for {what}"))
}

/// The limit at which the load stops by itself: well above what all steps and edits can need.
fn request_limit(args: &Args) -> u64 {
    let steps = u64::try_from(args.steps.len()).unwrap_or(u64::MAX).saturating_add(2);
    steps.saturating_mul(args.requests.saturating_add(100_000))
}
