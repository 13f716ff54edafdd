//! `weir inject`: adds sidecars to the pods in files. Also the flags of injection, which `weir serve` has, too.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;

use super::{Switch, domain, usage};
use crate::bootstrap::{XdsAddress, dns_label, dns_name};
use crate::inject::documents::{Input, Rewritten, rewrite};
use crate::inject::{Options, ProxyKind, Resources, WEIR_IMAGE, is_amount, is_image};
use crate::mesh::MeshConfig;
use crate::source::directory;
use crate::source::yaml::MAX_BYTES;
use crate::webhook::SERVICE;

/// Add sidecars to the pods and pod templates in files
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir inject -f deployment.yaml | kubectl apply -f -
  weir inject -f manifests/ -o injected.yaml
  kustomize build . | weir inject -f - --weir-image registry.example/weir:0.1.0
  weir inject -f pod.yaml --proxy istio-proxy --native-sidecars off

Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets, ReplicationControllers, Jobs, CronJobs, Argo
Rollouts and lists of them get sidecars, unless a label or annotation forbids it: on the pod
sidecar.istio.io/inject=false, on its Namespace, if that is among the files, istio-injection=disabled,
or on either of them istio.io/rev with another revision. All other documents stay byte for byte as they
are; documents that change lose the comments inside of them. Annotations of the pod change its sidecar,
see docs/injection.md. What has a sidecar already stays as it is.

Standard error says which pods get none, and what is wrong, with its file and line. If something is
wrong, nothing is written.

Exit status: 0 success, 1 a document cannot be read or a pod cannot get a sidecar, 2 usage error.")]
pub(crate) struct Args {
    /// A YAML or JSON file, a folder of them, or - for standard input; may be repeated
    #[arg(short, long, value_name = "FILE|DIR|-", required = true)]
    file: Vec<PathBuf>,
    /// Where to write all documents [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The namespace of objects that do not name one
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default", value_parser = dns_label)]
    namespace: String,
    /// The revision of the control plane [default: none]
    #[arg(long, value_name = "REVISION", value_parser = dns_label)]
    revision: Option<String>,
    /// The cluster's DNS domain
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", value_parser = domain)]
    domain: String,
    /// The trust domain of the identities in certificates [default: the cluster's domain]
    #[arg(long, value_name = "NAME", value_parser = dns_name)]
    trust_domain: Option<String>,
    /// The cluster id that proxies report
    #[arg(long, value_name = "ID", default_value = "Kubernetes")]
    cluster_id: String,
    #[command(flatten)]
    sidecar: SidecarArgs,
}

/// Flags for the sidecars that are injected.
#[derive(Debug, clap::Args)]
pub(crate) struct SidecarArgs {
    /// The proxy that pods get. The annotations sidecar.istio.io/proxyImage and weir.dev/proxy change it for a pod
    #[arg(long, value_enum, value_name = "PROXY", default_value = "envoy")]
    proxy: ProxyKind,
    /// The image of that proxy [default: docker.io/envoyproxy/envoy:distroless-v1.40.0 or
    /// docker.io/istio/proxyv2:1.31.4]
    #[arg(long, value_name = "IMAGE", value_parser = image)]
    proxy_image: Option<String>,
    /// The image of weir, from which pods with plain Envoy get the agent and their redirection
    #[arg(long, value_name = "IMAGE", env = "WEIR_IMAGE", default_value = WEIR_IMAGE, value_parser = image)]
    weir_image: String,
    /// A secret to pull the images with; may be repeated
    #[arg(long, value_name = "SECRET")]
    image_pull_secret: Vec<String>,
    /// Whether sidecars are init containers that keep running, which Kubernetes has since 1.29, or ordinary containers
    #[arg(long, value_enum, value_name = "WHETHER", default_value = "on")]
    native_sidecars: Switch,
    /// Where proxies find weir [default: port 15012 of the Service weir in the namespace of weir, or in weir-system; 15010
    /// without TLS]
    #[arg(long, value_name = "HOST:PORT")]
    proxy_xds: Option<XdsAddress>,
    /// Whether that port speaks TLS, where proxies prove who they are and get certificates [default: on; in weir serve
    /// whatever --identity says]
    #[arg(long, value_enum, value_name = "WHETHER")]
    proxy_xds_tls: Option<Switch>,
    /// The CPU time that a sidecar requests
    #[arg(long, value_name = "AMOUNT", default_value = "100m", value_parser = amount)]
    proxy_cpu: String,
    /// The CPU time that a sidecar may take, or none. It also decides how many threads Envoy has
    #[arg(long, value_name = "AMOUNT", default_value = "2", value_parser = amount)]
    proxy_cpu_limit: String,
    /// The memory that a sidecar requests
    #[arg(long, value_name = "AMOUNT", default_value = "128Mi", value_parser = amount)]
    proxy_memory: String,
    /// The memory that a sidecar may take, or none
    #[arg(long, value_name = "AMOUNT", default_value = "1Gi", value_parser = amount)]
    proxy_memory_limit: String,
    /// Whether the kubelet's probes of the application go through the agent, past redirection and mutual TLS
    #[arg(long, value_enum, value_name = "WHETHER", default_value = "on")]
    rewrite_probes: Switch,
    /// Whether the annotations prometheus.io/* point to the agent, which adds the application's metrics to the proxy's
    #[arg(long, value_enum, value_name = "WHETHER", default_value = "off")]
    merge_prometheus: Switch,
}

/// What the injected sidecars have in common with the control plane.
pub(crate) struct ControlPlaneNames {
    /// The namespace that weir runs in.
    pub namespace: Option<String>,
    pub revision: Option<Arc<str>>,
    pub domain: String,
    pub cluster: String,
    pub trust_domain: String,
    /// Whether weir serves proxies over TLS.
    pub serves_tls: bool,
}

impl ControlPlaneNames {
    /// Those of a control plane with this mesh.
    pub(crate) fn of(
        mesh: &MeshConfig,
        namespace: Option<String>,
        trust_domain: String,
        serves_tls: bool,
    ) -> Self {
        Self {
            namespace,
            revision: mesh.revision.clone(),
            domain: mesh.domain.to_string(),
            cluster: mesh.cluster.to_string(),
            trust_domain,
            serves_tls,
        }
    }
}

impl SidecarArgs {
    /// The resulting settings.
    ///
    /// # Errors
    /// Flags contradict each other.
    pub(crate) fn options(self, names: ControlPlaneNames) -> anyhow::Result<Options> {
        let tls = self.proxy_xds_tls.map_or(names.serves_tls, Switch::is_on);
        if self.proxy == ProxyKind::IstioProxy && !tls {
            return Err(usage(
                "--proxy istio-proxy needs --proxy-xds-tls on: its agent asks weir for certificates",
            ));
        }
        let namespace = names.namespace.as_deref().unwrap_or("weir-system");
        Ok(Options {
            proxy: self.proxy,
            proxy_image: self.proxy_image,
            weir_image: self.weir_image,
            native_sidecars: self.native_sidecars.is_on(),
            xds: self.proxy_xds.map_or_else(
                || {
                    let port = if tls { 15012 } else { 15010 };
                    format!("{SERVICE}.{namespace}.svc:{port}")
                },
                |address| address.to_string(),
            ),
            xds_tls: tls,
            resources: Resources {
                cpu: unless_none(self.proxy_cpu),
                memory: unless_none(self.proxy_memory),
                cpu_limit: unless_none(self.proxy_cpu_limit),
                memory_limit: unless_none(self.proxy_memory_limit),
            },
            rewrite_probes: self.rewrite_probes.is_on(),
            merge_prometheus: self.merge_prometheus.is_on(),
            image_pull_secrets: self.image_pull_secret,
            revision: names.revision,
            domain: names.domain,
            cluster: names.cluster,
            trust_domain: names.trust_domain,
        })
    }
}

/// Stands for no amount.
const NONE: &str = "none";

fn unless_none(amount: String) -> Option<String> {
    (amount != NONE).then_some(amount)
}

fn amount(text: &str) -> Result<String, String> {
    if text == NONE || is_amount(text) {
        return Ok(text.to_owned());
    }
    Err("expected an amount such as 100m, 2, 128Mi or 1Gi, or none".to_owned())
}

fn image(text: &str) -> Result<String, String> {
    if is_image(text) {
        return Ok(text.to_owned());
    }
    Err("expected an image such as registry.example/weir:0.1.0".to_owned())
}

/// Runs the command.
///
/// # Errors
/// There is no input, or the output cannot be written.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let options = args.sidecar.options(ControlPlaneNames {
        namespace: None,
        revision: args.revision.map(Into::into),
        trust_domain: args.trust_domain.unwrap_or_else(|| args.domain.clone()),
        domain: args.domain,
        cluster: args.cluster_id,
        serves_tls: true,
    })?;
    let (inputs, mut failed) = read(&args.file)?;
    let Rewritten { text, injected, notes } = rewrite(&inputs, &args.namespace, &options);
    for note in &notes {
        eprintln!("{note}");
        failed |= note.is_error;
    }
    if failed {
        return Ok(ExitCode::FAILURE);
    }
    if injected == 0 {
        eprintln!("weir: no pod got a sidecar");
    }
    match &args.output {
        None => super::print(&text)?,
        Some(file) => write(file, &text).with_context(|| file.display().to_string())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads all inputs. Returns also whether some of them cannot be read, which is then said on standard error.
fn read(paths: &[PathBuf]) -> anyhow::Result<(Vec<Input>, bool)> {
    let (mut inputs, mut failed) = (Vec::new(), false);
    for path in paths {
        if path.as_os_str() == "-" {
            let mut bytes = Vec::new();
            // One byte more shows that it is too long.
            let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
            std::io::stdin()
                .lock()
                .take(limit)
                .read_to_end(&mut bytes)
                .context("standard input")?;
            failed |= add(&mut inputs, Path::new("stdin"), bytes);
            continue;
        }
        let (files, problems) = directory::files(path).map_err(|error| usage(error.to_string()))?;
        failed |= !problems.is_empty();
        problems.iter().for_each(|problem| eprintln!("{problem}"));
        if files.is_empty() && problems.is_empty() {
            return Err(usage(format!(
                "{}: there is no .yaml, .yml or .json file",
                path.display()
            )));
        }
        for (file, bytes) in files {
            failed |= add(&mut inputs, &file, bytes);
        }
    }
    Ok((inputs, failed))
}

/// Adds an input. Returns whether it cannot be used.
fn add(inputs: &mut Vec<Input>, file: &Path, bytes: Vec<u8>) -> bool {
    if bytes.len() > MAX_BYTES {
        eprintln!("{}: has more than {MAX_BYTES} bytes", file.display());
        return true;
    }
    match String::from_utf8(bytes) {
        Ok(text) => {
            inputs.push(Input { file: Arc::new(file.to_owned()), text });
            false
        }
        Err(error) => {
            let before =
                error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            eprintln!("{}:{line}: is not UTF-8; expected text in UTF-8", file.display());
            true
        }
    }
}

/// Replaces a file as a whole, so that nobody reads half of it.
fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut new = tempfile::Builder::new()
        .permissions(permissions())
        .tempfile_in(folder.unwrap_or(Path::new(".")))?;
    new.write_all(text.as_bytes())?;
    new.persist(file).map_err(|error| error.error)?;
    Ok(())
}

/// Those of a file that a program creates; the process's mask is applied to them.
fn permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::Permissions::from_mode(0o666)
}
