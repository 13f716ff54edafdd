//! `weir agent`: what runs beside Envoy in a pod.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use super::Switch;
use crate::agent::{self, ApplicationMetrics, Options, Probes};
use crate::bootstrap::{
    AdsVariant, Bootstrap, NodeId, XdsAddress, XdsIdentity, dns_label, dns_name,
};
use crate::mesh::{Interception, Locality, WeightDelivery};
use crate::ports;

const EXAMPLE: &str = "\
Examples:
  weir agent install /var/run/weir       in an init container: copy this program to a shared volume
  weir agent run                         in Envoy's container: start Envoy for this pod
  weir agent wait                        in a postStart hook: return when Envoy is ready";

const INSTALL_EXAMPLE: &str = "\
Examples:
  weir agent install /var/run/weir       then, in another container: /var/run/weir/weir agent run";

const WAIT_EXAMPLE: &str = "\
Examples:
  weir agent wait
  weir agent wait --timeout 10";

const BECOME_EXAMPLE: &str = "\
Examples:
  weir agent become-envoy --parent 1 -- envoy -c envoy.json";

const RUN_EXAMPLE: &str = "\
Examples:
  weir agent run                                       in a pod, where the environment says the rest
  weir agent run --concurrency 2 -- --log-level info   what follows -- goes to Envoy
  weir agent run --xds 127.0.0.1:15010 --xds-tls off --pod web-0 --namespace shop --ip 127.0.0.1 \\
    --interception NONE --config-dir /tmp              on a developer's machine

Ports:
  15021  /healthz/ready       200 once Envoy is live and has clusters and listeners from weir
  15020  the same, /app-health/CONTAINER/{livez,readyz,startupz} (the application's probes),
         /app-lifecycle/CONTAINER/{prestopz,poststartz} (its hooks), /stats/prometheus, and
         POST /quitquitquit from the pod itself (stops the agent, as a Job's last step)
  15000  Envoy's admin interface, on the loopback address
  15090  Envoy's /stats/prometheus alone

On SIGTERM or SIGINT it is no longer ready, lets connections end for --drain seconds at most, and
ends Envoy; a second signal ends it at once. Exit status: Envoy's; 128 + N if signal N killed it.";

/// Run Envoy in a pod
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Copy this program to a folder
    #[command(after_help = INSTALL_EXAMPLE)]
    Install {
        /// The folder, which is created if necessary
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    Run(Box<RunArgs>),
    /// Wait until the agent of this pod says that Envoy is ready
    #[command(after_help = WAIT_EXAMPLE)]
    Wait {
        /// How many seconds to wait at most
        #[arg(long, value_name = "SECONDS", default_value = "60")]
        timeout: u64,
    },
    /// Become Envoy, and end with the agent
    #[command(hide = true, after_help = BECOME_EXAMPLE)]
    BecomeEnvoy {
        /// The process id of the agent
        #[arg(long)]
        parent: i32,
        /// Envoy and its arguments
        #[arg(last = true, required = true, num_args = 1..)]
        command: Vec<OsString>,
    },
}

/// Start Envoy for this pod, say whether it is ready, and let its connections end before it does
///
/// The environment variables are those that an injector sets. Envoy gets its configuration and its certificates from weir,
/// and reads its token again by itself when it changes.
#[derive(Debug, clap::Args)]
#[command(after_help = RUN_EXAMPLE)]
struct RunArgs {
    /// The address of weir's xDS port
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "WEIR_XDS",
        default_value = "weir.weir-system.svc:15012"
    )]
    xds: XdsAddress,
    /// Whether to use TLS and present the token: on for port 15012, off for port 15010
    #[arg(long, value_enum, value_name = "ON|OFF", env = "WEIR_XDS_TLS", default_value = "on")]
    xds_tls: Switch,
    /// Whether Envoy tells weir how many requests it sent to which cluster, and how they ended
    #[arg(
        long,
        value_enum,
        value_name = "ON|OFF",
        env = "WEIR_LOAD_REPORTS",
        default_value = "on"
    )]
    load_reports: Switch,
    /// The name of the pod
    #[arg(long, value_name = "NAME", env = "POD_NAME", value_parser = dns_name)]
    pod: String,
    /// The namespace of the pod
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", value_parser = dns_label)]
    namespace: String,
    /// The address of the pod, at which the application is probed as well
    #[arg(long, value_name = "IP", env = "INSTANCE_IP")]
    ip: IpAddr,
    /// All addresses of the pod, separated by commas
    #[arg(long, value_name = "IPS", env = "INSTANCE_IPS", value_parser = addresses, default_value = "")]
    other_ips: Addresses,
    /// The service account of the pod, to which the token belongs
    #[arg(long, value_name = "NAME", env = "SERVICE_ACCOUNT", value_parser = dns_name)]
    service_account: Option<String>,
    /// The node that the pod runs on
    #[arg(long, value_name = "NAME", env = "NODE_NAME", value_parser = dns_name)]
    node_name: Option<String>,
    /// The name of the proxy's cluster
    #[arg(long, value_name = "ID", env = "ISTIO_META_CLUSTER_ID", default_value = "Kubernetes")]
    cluster_id: String,
    /// The cluster's DNS domain
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", value_parser = dns_name)]
    domain: String,
    /// The file of the downward API with the pod's labels [default: /etc/istio/pod/labels, if it exists]
    #[arg(long, value_name = "FILE")]
    labels_file: Option<PathBuf>,
    /// The file with the token of the service account
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/tokens/istio-token")]
    token_file: PathBuf,
    /// The roots by which weir's certificate is verified, in PEM
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/istio/root-cert.pem")]
    root_cert: PathBuf,
    /// How traffic is intercepted
    #[arg(long, value_enum, value_name = "MODE", ignore_case = true, default_value = "redirect")]
    interception: Interception,
    /// How many seconds connections have to end after SIGTERM
    #[arg(
        long,
        value_name = "SECONDS",
        env = "TERMINATION_DRAIN_DURATION_SECONDS",
        default_value = "5"
    )]
    drain: u64,
    /// The application's probes and hooks by path, as JSON:
    /// {"/app-health/CONTAINER/livez": {"httpGet": {"port": 8080}, "timeoutSeconds": 1}}
    #[arg(long, value_name = "JSON", env = "ISTIO_KUBE_APP_PROBERS", value_parser = probes, default_value = "{}")]
    probes: Probes,
    /// Where the application's metrics are, which /stats/prometheus serves after Envoy's, as JSON:
    /// {"path": "/metrics", "port": "9090"}
    #[arg(long, value_name = "JSON", env = "ISTIO_PROMETHEUS_ANNOTATIONS", value_parser = metrics)]
    metrics: Option<MetricsFlag>,
    /// The Envoy binary [default: envoy on the PATH]
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// The number of Envoy's worker threads [default: one for each CPU]
    #[arg(long, value_name = "COUNT")]
    concurrency: Option<u32>,
    /// The folder for the files that Envoy starts with
    #[arg(long, value_name = "DIR", default_value = "/etc/istio/proxy")]
    config_dir: PathBuf,
    /// More arguments for Envoy
    #[arg(last = true, value_name = "ARGUMENTS")]
    envoy_args: Vec<OsString>,
}

/// The application's metrics, unless they are turned off.
#[derive(Debug, Clone)]
struct MetricsFlag(Option<ApplicationMetrics>);

/// Addresses in the order in which they are given.
#[derive(Debug, Clone)]
struct Addresses(Vec<IpAddr>);

fn addresses(text: &str) -> Result<Addresses, String> {
    let items = text.split(',').filter(|item| !item.is_empty());
    let addresses =
        items.map(|item| item.parse().map_err(|_| format!("{item:?} is not an IP address")));
    addresses.collect::<Result<_, _>>().map(Addresses)
}

fn probes(text: &str) -> Result<Probes, String> {
    Probes::parse(text)
}

fn metrics(text: &str) -> Result<MetricsFlag, String> {
    ApplicationMetrics::parse(text).map(MetricsFlag)
}

/// Runs the subcommand.
///
/// # Errors
/// A file, a port or Envoy cannot be used.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Install { folder } => {
            let program = agent::install(&folder)?;
            super::print(&format!("{}\n", program.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(args) => {
            let options = args.options()?;
            Ok(ExitCode::from(block_on(agent::run(options))??))
        }
        Command::Wait { timeout } => {
            let agent = SocketAddr::from((Ipv4Addr::LOCALHOST, agent::READY_PORT));
            block_on(agent::wait(agent, Duration::from_secs(timeout)))??;
            Ok(ExitCode::SUCCESS)
        }
        Command::BecomeEnvoy { parent, command } => match command.split_first() {
            Some((envoy, args)) => Err(agent::become_envoy(parent, Path::new(envoy), args)),
            None => Err(super::usage("the command is missing")),
        },
    }
}

/// On this thread alone: the kernel ends Envoy with the thread that started it, and few threads take little memory.
fn block_on<T>(command: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(command);
    // A host name that is still being looked up must not keep the process alive.
    runtime.shutdown_background();
    Ok(result)
}

impl RunArgs {
    fn options(self) -> anyhow::Result<Options> {
        let labels = self.labels()?;
        let envoy = crate::envoy::program(self.envoy.as_deref())
            .map_err(|error| super::usage(error.to_string()))?;
        let mut envoy_args = self.envoy_args;
        if let Some(count) = self.concurrency {
            envoy_args.splice(0..0, ["--concurrency".into(), count.to_string().into()]);
        }
        let identity = self.xds_tls.is_on().then(|| XdsIdentity {
            token: self.token_file,
            roots: self.root_cert,
            token_secret: self.config_dir.join("token.json"),
            service_account: self.service_account,
        });
        // Of the family of the pod's address, because a pod may lack the other.
        let stats = match self.ip {
            IpAddr::V4(_) => SocketAddr::from(([0; 4], ports::METRICS)),
            IpAddr::V6(_) => SocketAddr::from(([0; 16], ports::METRICS)),
        };
        let bootstrap = Bootstrap {
            node: NodeId {
                ip: self.ip,
                pod: self.pod,
                dns_domain: format!("{}.svc.{}", self.namespace, self.domain),
                namespace: self.namespace,
            },
            labels: labels.into_iter().collect(),
            cluster_id: self.cluster_id,
            other_ips: self.other_ips.0.into_iter().filter(|ip| *ip != self.ip).collect(),
            node_name: self.node_name,
            locality: None::<Locality>,
            interception: self.interception,
            xds: self.xds,
            identity,
            variant: AdsVariant::Delta,
            weights: WeightDelivery::Runtime,
            load_reports: self.load_reports.is_on(),
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, ports::ADMIN)),
            stats: Some(stats),
        };
        Ok(Options {
            bootstrap,
            folder: self.config_dir,
            envoy,
            envoy_args,
            drain: Duration::from_secs(self.drain),
            application: self.ip,
            probes: self.probes,
            metrics: self.metrics.and_then(|MetricsFlag(metrics)| metrics),
        })
    }

    fn labels(&self) -> anyhow::Result<Vec<(String, String)>> {
        const USUAL: &str = "/etc/istio/pod/labels";
        let file = self.labels_file.as_deref().unwrap_or(Path::new(USUAL));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error)
                if self.labels_file.is_none() && error.kind() == std::io::ErrorKind::NotFound =>
            {
                tracing::warn!(
                    file = USUAL,
                    "there is no file with labels; the proxy says none of its pod"
                );
                return Ok(Vec::new());
            }
            Err(error) => {
                return Err(error).with_context(|| format!("--labels-file {}", file.display()));
            }
        };
        agent::labels(&text)
            .map_err(|reason| super::usage(format!("--labels-file {}: {reason}", file.display())))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn parse(more: &[&str]) -> Result<RunArgs, clap::Error> {
        let fixed = ["agent", "run", "--pod", "web-0", "--namespace", "shop", "--ip", "10.1.2.3"];
        let all = fixed.iter().chain(more);
        match Program::try_parse_from(all)?.args.command {
            Command::Run(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_given_is_in_the_bootstrap() {
        let more = [
            "--envoy",
            "/bin/sh",
            "--other-ips",
            "10.1.2.3,fd00::3",
            "--service-account",
            "web",
            "--concurrency",
            "2",
            "--interception",
            "NONE",
            "--",
            "-l",
            "info",
        ];
        let options = parse(&more).unwrap().options().unwrap();
        let json = options.bootstrap.to_json();
        let node = &json["node"];
        assert_eq!(node["id"], "sidecar~10.1.2.3~web-0.shop~shop.svc.cluster.local");
        assert_eq!(node["metadata"]["INSTANCE_IPS"], "10.1.2.3,fd00::3");
        assert_eq!(node["metadata"]["SERVICE_ACCOUNT"], "web");
        assert_eq!(node["metadata"]["INTERCEPTION_MODE"], "NONE");
        assert_eq!(options.envoy_args, ["--concurrency", "2", "-l", "info"]);
    }

    #[test]
    fn wrong_flags_are_wrong_usage() {
        for (flag, value, part) in [
            ("--probes", "{\"/x\": {}}", "\"/x\" is neither"),
            ("--metrics", "{\"port\": \"x\"}", "\"x\" is not a port"),
            ("--other-ips", "10.1", "\"10.1\" is not an IP address"),
            ("--interception", "TPROXY", "possible values: redirect, none"),
            ("--drain", "5s", "invalid digit"),
        ] {
            let error = parse(&[flag, value]).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
