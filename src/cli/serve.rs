//! `weir serve`: the control plane.

mod identity;
mod traces;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::Switch;
use super::inject::{ControlPlaneNames, SidecarArgs};
use crate::admission::{Limits, descriptors};
use crate::bootstrap::dns_label;
use crate::control_plane::{ControlPlane, Options, Source};
use crate::inject;
use crate::load::LoadSettings;
use crate::replicas::{PeerOptions, StatusOptions};
use crate::source::directory::DirectoryError;
use crate::source::kubernetes;
use crate::source::kubernetes::selection::{DiscoverySelector, Namespaces};
use crate::webhook::{CertificateSource, LIFETIME, WebhookOptions};
use crate::xds::stream::StreamSettings;

use identity::{IdentityArgs, Plain, Surroundings};
use traces::TracesArgs;

/// Flags of `weir serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir serve --config-dir deploy/examples/canary
  weir serve --kubeconfig ~/.kube/config
  weir serve                                  inside a cluster
  weir serve --webhook on --injection on      with the validating webhook and sidecar injection

Reads *.yaml, *.yml and *.json files in the folder and its subfolders as soon as they are closed or
renamed into place. A broken file or object keeps its last accepted version, and the log says why;
deleted objects are removed.

Ports: 15010 ADS and load reports in plain text; 15012 the same over TLS and Istio's certificate API, if identity is on;
15014 /healthz, /ready, /metrics and the API for weir ps, dump, splits and wait, and the gates of
rollout tools; 15017 the webhooks over HTTPS, if they are on. With --config-dir they listen on
loopback, in a cluster on all addresses.

Exit status: 0 stopped by SIGTERM or Ctrl-C, 1 failure, 2 usage error or unreadable input.")]
pub(crate) struct Args {
    /// Read objects from the YAML files in this folder and reload them when they change
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    config_dir: Option<PathBuf>,
    /// Read objects from the Kubernetes API of this kubeconfig
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Read only objects in namespaces whose labels match, such as env=prod or `team in (a,b)`; may be repeated, and
    /// one match is enough. Like meshConfig.discoverySelectors of Istio
    #[arg(long, value_name = "SELECTOR", conflicts_with = "config_dir")]
    discovery_selector: Vec<DiscoverySelector>,
    /// Read only objects in this namespace, for which a Role in it is enough. Nodes and Namespaces are not read
    #[arg(long, value_name = "NAMESPACE", conflicts_with_all = ["config_dir", "discovery_selector"],
          value_parser = dns_label)]
    only_namespace: Option<String>,
    /// Read objects from standard input, a line of JSON for each change; weir bench uses this
    #[arg(long, hide = true, conflicts_with_all = ["config_dir", "kubeconfig"])]
    objects_from_stdin: bool,
    #[command(flatten)]
    status: StatusArgs,
    #[command(flatten)]
    webhook: WebhookArgs,
    #[command(flatten)]
    sidecar: SidecarArgs,
    #[command(flatten)]
    identity: IdentityArgs,
    /// The address of the ADS listener in plain text, where everyone is served, or off [default: port 15010; with
    /// --identity on, only on loopback]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = identity::plain)]
    xds_listen: Option<Plain>,
    /// The address of the admin listener (health, metrics, API) [default: port 15014]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    admin_listen: Option<SocketAddr>,
    /// The address of a listener that serves the gates of Flagger and Argo Rollouts (/gates/...) and nothing else; the
    /// admin listener serves them, too
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    gates_listen: Option<SocketAddr>,
    /// How long a proxy keeps a cluster that is no longer referenced
    #[arg(long, value_name = "SECONDS", default_value = "1", allow_negative_numbers = true, value_parser = seconds)]
    grace: Duration,
    /// How long Envoys drain: their --drain-time-s. Connections that are open when a pod leaves its Services continue
    /// for this long
    #[arg(long, value_name = "SECONDS", default_value = "600", allow_negative_numbers = true, value_parser = seconds)]
    drain_time: Duration,
    /// How long a proxy may take to answer before it is reported as lagging
    #[arg(long, value_name = "SECONDS", default_value = "10", allow_negative_numbers = true, value_parser = seconds)]
    ack_timeout: Duration,
    /// The maximum number of concurrent xDS streams, and of connections
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().streams, allow_negative_numbers = true,
          value_parser = at_least_one)]
    max_streams: usize,
    /// Total memory that proxies may consume, such as 512M or 2G; a proxy takes about 50 KB [default: half of the
    /// memory of the container or machine, at most 1G]
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = bytes)]
    client_memory: Option<usize>,
    /// Maximum share of the streams, connections and memory per address; use 100 if all proxies connect through one
    /// load balancer
    #[arg(long, value_name = "PERCENT", default_value_t = Limits::default().peer_share, allow_negative_numbers = true,
          value_parser = percent)]
    peer_share: u8,
    /// How long after the last change of weights the routes of a proxy get those that it has as runtime values
    #[arg(long, value_name = "SECONDS", default_value = "30", allow_negative_numbers = true, value_parser = seconds)]
    routes_follow: Duration,
    /// Memory for the time lines of objects (weir log), such as 8M; the oldest events go first
    #[arg(long, value_name = "BYTES", default_value = "8M", allow_negative_numbers = true, value_parser = bytes)]
    timeline_memory: usize,
    #[command(flatten)]
    traces: TracesArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Send everything at once without waiting for ACKs; a test uses this to show why waiting is needed
    #[arg(long, hide = true)]
    test_ungated: bool,
    #[command(flatten)]
    mesh: super::MeshArgs,
}

/// Flags of load reports.
#[derive(Debug, clap::Args)]
struct LoadArgs {
    /// Whether to take load reports: what each destination of a weighted route gets, and how many requests fail. Only
    /// proxies that have them in their bootstrap send any
    #[arg(long, value_enum, value_name = "WHETHER", default_value = "on")]
    load_reports: Switch,
    /// How often proxies report
    #[arg(long, value_name = "SECONDS", default_value = "10", allow_negative_numbers = true, value_parser = load_interval)]
    load_report_interval: Duration,
    /// How long a report counts in observed shares; at least the interval of reports
    #[arg(long, value_name = "SECONDS", default_value = "60", allow_negative_numbers = true, value_parser = load_window)]
    load_window: Duration,
}

impl LoadArgs {
    fn settings(&self) -> anyhow::Result<Option<LoadSettings>> {
        let Self { load_report_interval: interval, load_window: window, .. } = *self;
        if window < interval {
            return Err(super::usage(
                "--load-window is shorter than --load-report-interval; expected at least as much",
            ));
        }
        Ok(self.load_reports.is_on().then_some(LoadSettings { interval, window }))
    }
}

/// Flags of the status writer.
#[derive(Debug, clap::Args)]
struct StatusArgs {
    /// Whether to write the conditions Accepted, Programmed and Held into the status of VirtualServices and
    /// DestinationRules. Needs --pod-namespace
    #[arg(long, value_enum, value_name = "WHETHER", default_value = "on")]
    status: Switch,
    /// The namespace that weir runs in: of the Lease weir-status, whose holder writes the status, and of the Service of
    /// the replicas
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", value_parser = dns_label)]
    pod_namespace: Option<String>,
    /// The name of the pod that weir runs in
    #[arg(long, value_name = "NAME", env = "POD_NAME", default_value = "weir")]
    pod_name: String,
    /// The headless Service of the replicas, which are asked about their proxies for the status of objects and for the
    /// gates of rollout tools. Without it the proxies of other replicas do not count
    #[arg(long, value_name = "NAME", value_parser = dns_label)]
    replicas_service: Option<String>,
    /// How long after the last sign of the replica that writes the status another one takes over
    #[arg(long, value_name = "SECONDS", default_value = "15", allow_negative_numbers = true, value_parser = lease)]
    status_lease: Duration,
}

/// Flags of the webhooks.
#[derive(Debug, clap::Args)]
struct WebhookArgs {
    /// Whether to serve the validating webhook, which reviews Istio objects before the API server stores them. Needs
    /// --pod-namespace, where the elected replica keeps the certificate in the Secret weir-webhook-cert, or
    /// --webhook-cert-dir
    #[arg(long, value_enum, value_name = "WHETHER", default_value = "off")]
    webhook: Switch,
    /// Whether to serve the mutating webhook, which adds sidecars to pods when they are created. Needs the same as
    /// --webhook on
    #[arg(long, value_enum, value_name = "WHETHER", default_value = "off")]
    injection: Switch,
    /// The address of the webhooks' listener [default: port 15017]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    webhook_listen: Option<SocketAddr>,
    /// Serve the webhooks with the certificate in the files tls.crt and tls.key of this folder, which are read again when
    /// they change. weir then writes neither a Secret nor the webhook configurations
    #[arg(long, value_name = "DIR")]
    webhook_cert_dir: Option<PathBuf>,
    /// How long a certificate that weir makes is valid; tests use this
    #[arg(long, hide = true, value_name = "SECONDS", value_parser = seconds)]
    webhook_cert_lifetime: Option<Duration>,
}

impl WebhookArgs {
    /// The options of the webhooks; `None` if all of them are off.
    fn options(
        self,
        local: IpAddr,
        namespace: Option<&str>,
        injection: Option<inject::Options>,
    ) -> anyhow::Result<Option<WebhookOptions>> {
        if !self.webhook.is_on() && injection.is_none() {
            if self.webhook_cert_dir.is_some() || self.webhook_listen.is_some() {
                return Err(super::usage(
                    "--webhook-cert-dir and --webhook-listen need --webhook on or --injection on",
                ));
            }
            return Ok(None);
        }
        let certificate = match (self.webhook_cert_dir, namespace) {
            (Some(folder), _) => CertificateSource::Folder(folder),
            (None, Some(namespace)) => CertificateSource::Secret {
                namespace: namespace.to_owned(),
                lifetime: self.webhook_cert_lifetime.unwrap_or(LIFETIME),
            },
            (None, None) => {
                return Err(super::usage(
                    "--webhook on and --injection on need a certificate: inside a cluster --pod-namespace, elsewhere \
                     --webhook-cert-dir",
                ));
            }
        };
        let listen = self.webhook_listen.unwrap_or(SocketAddr::new(local, 15017));
        Ok(Some(WebhookOptions {
            validation: self.webhook.is_on(),
            injection,
            listen,
            certificate,
            limits: Limits::webhook(),
        }))
    }
}

impl StatusArgs {
    /// The namespace and the name of the pod; `None` if nobody says in which namespace weir runs.
    fn pod(&self) -> Option<(&str, &str)> {
        Some((self.pod_namespace.as_deref()?, &self.pod_name))
    }

    /// Which replica this is; `None` if nobody says in which namespace it runs.
    fn peers(&self) -> Option<PeerOptions> {
        let (namespace, pod) = (self.pod_namespace.clone()?, self.pod_name.clone());
        Some(PeerOptions { namespace, pod, service: self.replicas_service.clone() })
    }

    /// The options of the election; `None` if there is nothing to be elected for.
    fn options(self, only: Option<Arc<str>>, keeps_certificate: bool) -> Option<StatusOptions> {
        let write = self.status.is_on();
        if !write && !keeps_certificate {
            return None;
        }
        let Some(namespace) = self.pod_namespace else {
            tracing::info!("not writing the status of objects: --pod-namespace is not set");
            return None;
        };
        let (pod, lease) = (self.pod_name, self.status_lease);
        Some(StatusOptions { write, namespace, pod, only, lease })
    }
}

/// Long enough to renew a Lease several times, even if the API server is slow.
fn lease(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse().ok();
    number
        .filter(|number| (3..=3600).contains(number))
        .map(Duration::from_secs)
        .ok_or_else(|| "expected a number of seconds from 3 to 3600, such as 15 or 15s".to_owned())
}

fn load_interval(text: &str) -> Result<Duration, String> {
    seconds_between(text, 0.1, 300.0)
}

fn load_window(text: &str) -> Result<Duration, String> {
    seconds_between(text, 0.1, 3600.0)
}

fn seconds_between(text: &str, least: f64, most: f64) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse().ok();
    number.filter(|number| (least..=most).contains(number)).map(Duration::from_secs_f64).ok_or_else(
        || format!("expected a number of seconds from {least} to {most}, such as 10 or 10s"),
    )
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse().ok();
    // One day: longer than any proxy should wait, and short enough to add to any instant.
    number
        .filter(|number| (0.0..=86_400.0).contains(number))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| {
            "expected a number of seconds from 0 to 86400, such as 10, 0.5 or 10s".to_owned()
        })
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected ADDRESS:PORT, such as 127.0.0.1:15010, 0.0.0.0:15010 or [::]:15010".to_owned()
    })
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| "expected an integer of 1 or more".to_owned())
}

fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok();
    number
        .filter(|number| (1..=100).contains(number))
        .ok_or_else(|| "expected a percentage from 1 to 100".to_owned())
}

fn bytes(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let shift = match text.get(digits.len()..) {
        Some("") => Some(0),
        Some("k" | "K" | "Ki" | "KiB") => Some(10),
        Some("m" | "M" | "Mi" | "MiB") => Some(20),
        Some("g" | "G" | "Gi" | "GiB") => Some(30),
        _ => None,
    };
    let number = digits.parse::<usize>().ok().filter(|number| *number > 0);
    let all = number.zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
    // A single connection takes 32 KB.
    let enough = all.filter(|all| *all >= 1 << 20);
    enough.ok_or_else(|| {
        "expected a number of bytes of 1M or more, such as 256M, 512Mi or 2G".to_owned()
    })
}

/// The limits of the ADS port and of the admin port.
fn limits(args: &Args) -> (Limits, Limits) {
    let descriptors = descriptors::raise();
    tracing::info!(
        soft_limit = descriptors.before,
        limit = descriptors.limit,
        for_proxies = descriptors.for_proxies(),
        "limit of file descriptors"
    );
    let default = Limits::default();
    let limits = Limits {
        streams: args.max_streams,
        connections: args.max_streams,
        memory: args.client_memory.unwrap_or(default.memory),
        peer_share: args.peer_share,
        ..default
    };
    let mut for_proxies = descriptors.for_proxies();
    if args.webhook.webhook.is_on() || args.webhook.injection.is_on() {
        for_proxies = for_proxies.saturating_sub(descriptors.for_webhook()).max(1);
    }
    (limits.within(for_proxies), Limits::admin().within(descriptors.for_admin()))
}

/// Runs until SIGINT or SIGTERM, or until a task fails.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let mut plane = ControlPlane::start(options(args)?).await.map_err(as_usage_error)?;
    announce(&plane);
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (interrupted, ended) = tokio::select! {
        ended = until_ready_and_after(&mut plane, begun) => (false, ended),
        _ = interrupt.recv() => (true, Ok(())),
        _ = terminate.recv() => (true, Ok(())),
    };
    if !interrupted {
        ended.map_err(as_usage_error)?;
        anyhow::bail!("a task of the control plane ended unexpectedly");
    }
    tracing::info!("stopping");
    plane.shutdown().await;
    Ok(ExitCode::SUCCESS)
}

/// Where to listen by default: with objects from a folder on loopback, otherwise everywhere.
fn local(in_folder: bool) -> IpAddr {
    if in_folder { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// What the control plane is started with.
fn options(args: Args) -> anyhow::Result<Options> {
    let local = local(args.config_dir.is_some());
    let ((limits, admin_limits), streams) = (limits(&args), streams(&args));
    let only = args.only_namespace.as_deref().map(Arc::from);
    let namespaces = namespaces(args.only_namespace, args.discovery_selector);
    // Objects in files have no status, and no API server asks about them.
    let in_cluster = args.config_dir.is_none() && !args.objects_from_stdin;
    let load = args.load.settings()?;
    let namespace = args.status.pod_namespace.clone().filter(|_| in_cluster);
    let traces = args.traces.options(args.status.pod())?;
    let mesh = args.mesh.config();
    let names = ControlPlaneNames::of(
        &mesh,
        args.status.pod_namespace.clone(),
        mesh.trust_domain.to_string(),
        mesh.identities,
    );
    let injection = args.webhook.injection.is_on().then(|| args.sidecar.options(names));
    let injection = injection.transpose()?;
    let webhook = args.webhook.options(local, namespace.as_deref(), injection)?;
    let plain = IdentityArgs::plain(args.xds_listen, mesh.identities, local);
    let secure = args.identity.options(&Surroundings {
        local,
        namespace: namespace.as_deref(),
        mesh: &mesh,
        only: only.clone(),
    })?;
    let keeps_certificate = secure.is_some()
        || webhook
            .as_ref()
            .is_some_and(|webhook| matches!(webhook.certificate, CertificateSource::Secret { .. }));
    let peers = if in_cluster { args.status.peers() } else { None };
    let status = if in_cluster { args.status.options(only, keeps_certificate) } else { None };
    Ok(Options {
        source: match args.config_dir {
            Some(folder) => Source::Directory(folder),
            None if args.objects_from_stdin => Source::Stdin,
            None => Source::Kubernetes { kubeconfig: args.kubeconfig, namespaces },
        },
        status,
        webhook,
        peers,
        xds_listen: plain,
        secure,
        admin_listen: args.admin_listen.unwrap_or(SocketAddr::new(local, 15014)),
        gates_listen: args.gates_listen,
        mesh,
        streams,
        load,
        limits,
        admin_limits,
        timeline_memory: args.timeline_memory,
        traces,
    })
}

/// Settings of the xDS streams.
fn streams(args: &Args) -> StreamSettings {
    StreamSettings {
        grace: args.grace,
        drain: args.drain_time,
        ack_timeout: args.ack_timeout,
        routes_follow: args.routes_follow,
        gated: !args.test_ungated,
        ..Default::default()
    }
}

/// The namespaces whose objects are read.
fn namespaces(only: Option<String>, selectors: Vec<DiscoverySelector>) -> Namespaces {
    match only {
        Some(name) => Namespaces::One(name.into()),
        None if selectors.is_empty() => Namespaces::All,
        None => Namespaces::Matching(selectors.into()),
    }
}

/// Logs where the control plane listens.
fn announce(plane: &ControlPlane) {
    if let Some(address) = plane.xds_addr() {
        tracing::info!(%address, "serving ADS");
    }
    if let Some(address) = plane.secure_addr() {
        tracing::info!(%address, "serving ADS over TLS");
    }
    tracing::info!(address = %plane.admin_addr(), "serving health, metrics and the admin API");
    if let Some(address) = plane.webhook_addr() {
        tracing::info!(%address, "serving the webhooks");
    }
    if let Some(address) = plane.gates_addr() {
        tracing::info!(%address, "serving the gates of rollout tools");
    }
}

/// An unreadable folder or kubeconfig is a usage error; other failures are not.
fn as_usage_error(error: anyhow::Error) -> anyhow::Error {
    let folder = matches!(error.downcast_ref(), Some(DirectoryError::Unreadable { .. }));
    let kubeconfig = matches!(error.downcast_ref(), Some(kubernetes::Error::Config(_)));
    if folder || kubeconfig { super::usage(format!("{error:#}")) } else { error }
}

/// Logs when the control plane is ready and returns when a task has ended.
async fn until_ready_and_after(plane: &mut ControlPlane, begun: Instant) -> anyhow::Result<()> {
    let mut ready = plane.readiness();
    tokio::select! {
        ended = plane.failed() => return ended,
        _ = ready.wait_for(|ready| *ready) => {}
    }
    tracing::info!(seconds = begun.elapsed().as_secs_f64(), "ready");
    plane.failed().await
}
