//! Sidecar injection: from a pod, or a template of pods, to the same pod with a sidecar. Pure.
//!
//! Pods are JSON values here and not Kubernetes types, because whatever weir does not know of a pod has to stay as it is,
//! and because the parts that are added can then be read as they are in a manifest.

mod conflicts;
pub(crate) mod documents;
mod metadata;
mod patch;
mod pod;
mod probes;
mod prometheus;
mod proxy_config;
mod quantity;
mod select;
mod settings;
mod template;
#[cfg(test)]
mod tests;
pub(crate) mod workload;

use std::sync::Arc;

use serde_json::Value;

use crate::api::Problem;
use crate::mesh::Interception;
use pod::{PodView, map_mut};
use settings::Settings;
use template::Template;

pub(crate) use patch::patch;
pub(crate) use select::{Chosen, INJECTED_BY, NAMESPACE_INJECTION, Reason, STATUS};
pub(crate) use workload::Owner;

/// The image of plain Envoy that is injected by default.
pub(crate) const ENVOY_IMAGE: &str = "docker.io/envoyproxy/envoy:distroless-v1.40.0";
/// The image of istio-proxy that is injected by default: the newest of the minor release whose agent the tests run.
pub(crate) const ISTIO_PROXY_IMAGE: &str = "docker.io/istio/proxyv2:1.31.4";
/// The image of weir that is injected by default: that of the manifests in `deploy/`.
pub(crate) const WEIR_IMAGE: &str = concat!("weir:", env!("CARGO_PKG_VERSION"));

/// Which proxy a sidecar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ProxyKind {
    /// Envoy, started by `weir agent`
    Envoy,
    /// Istio's Envoy with its agent
    IstioProxy,
}

impl ProxyKind {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "envoy" => Some(Self::Envoy),
            "istio-proxy" => Some(Self::IstioProxy),
            _ => None,
        }
    }

    /// What an image contains by its name; `None` if the name does not tell.
    fn of_image(image: &str) -> Option<Self> {
        let repository = image.split('@').next()?.rsplit('/').next()?.split(':').next()?;
        match repository {
            "proxyv2" => Some(Self::IstioProxy),
            "envoy" => Some(Self::Envoy),
            _ => None,
        }
    }
}

/// Whether a text is an amount of CPU time or memory.
pub(crate) fn is_amount(text: &str) -> bool {
    quantity::parse(text).is_some()
}

/// Whether a text may name an image.
pub(crate) fn is_image(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:@".contains(c))
}

/// The ways of interception that a pod may ask for.
const EXPECTED_INTERCEPTION: &str = "REDIRECT or NONE";

fn interception(text: &str) -> Option<Interception> {
    let all = [Interception::Redirect, Interception::None];
    all.into_iter().find(|mode| mode.as_str() == text)
}

/// CPU time and memory, as Kubernetes writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resources {
    pub cpu: Option<String>,
    pub memory: Option<String>,
    pub cpu_limit: Option<String>,
    pub memory_limit: Option<String>,
}

impl Resources {
    #[cfg(test)]
    fn none() -> Self {
        Self { cpu: None, memory: None, cpu_limit: None, memory_limit: None }
    }
}

/// Mesh-wide settings of injection.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The proxy.
    pub proxy: ProxyKind,
    /// Its image; `None` is the usual one of that proxy.
    pub proxy_image: Option<String>,
    /// The image of weir, for its agent and its redirection.
    pub weir_image: String,
    /// Whether sidecars are init containers that keep running. Kubernetes has them since 1.29.
    pub native_sidecars: bool,
    /// Where proxies find weir: `HOST:PORT`.
    pub xds: String,
    /// Whether that port speaks TLS.
    pub xds_tls: bool,
    /// The sidecar's resources.
    pub resources: Resources,
    /// Whether probes of the application go through the agent.
    pub rewrite_probes: bool,
    /// Whether Prometheus gets the application's metrics from the agent, together with those of the proxy.
    pub merge_prometheus: bool,
    /// Secrets to pull the images with.
    pub image_pull_secrets: Vec<String>,
    /// The revision of this control plane.
    pub revision: Option<Arc<str>>,
    /// The cluster's DNS domain.
    pub domain: String,
    /// The cluster's id.
    pub cluster: String,
    /// The trust domain of identities.
    pub trust_domain: String,
}

impl Options {
    /// The image of a proxy.
    fn image(&self, kind: ProxyKind) -> &str {
        match (&self.proxy_image, kind) {
            (Some(image), _) if kind == self.proxy => image,
            (_, ProxyKind::Envoy) => ENVOY_IMAGE,
            (_, ProxyKind::IstioProxy) => ISTIO_PROXY_IMAGE,
        }
    }

    fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(select::DEFAULT_REVISION)
    }
}

#[cfg(test)]
impl Default for Options {
    fn default() -> Self {
        Self {
            proxy: ProxyKind::Envoy,
            proxy_image: None,
            weir_image: WEIR_IMAGE.to_owned(),
            native_sidecars: true,
            xds: "weir.weir-system.svc:15012".to_owned(),
            xds_tls: true,
            resources: Resources {
                cpu: Some("100m".to_owned()),
                memory: Some("128Mi".to_owned()),
                cpu_limit: Some("2".to_owned()),
                memory_limit: Some("1Gi".to_owned()),
            },
            rewrite_probes: true,
            merge_prometheus: false,
            image_pull_secrets: Vec::new(),
            revision: None,
            domain: "cluster.local".to_owned(),
            cluster: "Kubernetes".to_owned(),
            trust_domain: "cluster.local".to_owned(),
        }
    }
}

/// What becomes of a pod.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It gets a sidecar.
    Injected(Box<Injected>),
    /// It stays as it is.
    Skipped(Reason),
    /// It cannot get one.
    Refused(Refusal),
}

/// A pod with a sidecar.
#[derive(Debug)]
pub(crate) struct Injected {
    pub pod: Value,
    /// What is probably not meant.
    pub warnings: Vec<String>,
}

/// Why a pod cannot get a sidecar.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub problems: Vec<Problem>,
    /// Whether the pod itself asks for a sidecar, and not only its namespace.
    pub asked: bool,
}

/// Injects a sidecar into a pod of a namespace. `owner` is the object whose template it is, if it is one.
pub(crate) fn inject(
    pod: &Value,
    namespace: &str,
    owner: Option<&Owner>,
    chosen: Chosen<'_>,
    options: &Options,
) -> Outcome {
    let view = match PodView::of(pod) {
        Ok(view) => view,
        Err(problems) => return refused(problems),
    };
    let asked = select::asks(&view);
    match select::decide(&view, namespace, chosen, options.revision.as_deref()) {
        Ok(()) => {}
        Err(reason @ (Reason::HostNetwork | Reason::Windows)) if asked => {
            let advice = "give the pod no sidecar";
            return refused(vec![Problem::new("spec", reason.to_string(), advice)]);
        }
        Err(reason) => return Outcome::Skipped(reason),
    }
    let settings = match Settings::read(&view, options) {
        Ok(settings) => settings,
        Err(problems) => return refused(problems),
    };
    let problems = conflicts::find(&view, &settings);
    if !problems.is_empty() {
        return Outcome::Refused(Refusal { problems, asked });
    }
    match with_sidecar(pod, &view, namespace, owner, settings, options) {
        Some(injected) => Outcome::Injected(Box::new(injected)),
        // The view has shown that its parts have the right types.
        None => refused(vec![Problem::new("spec", "is not the spec of a pod", "")]),
    }
}

/// What is wrong with the pod as such, or with an annotation that only a sidecar has, concerns one who wants it.
fn refused(problems: Vec<Problem>) -> Outcome {
    Outcome::Refused(Refusal { problems, asked: true })
}

/// The pod with a sidecar. `None` if a part of it has another type than in the Kubernetes API.
fn with_sidecar(
    pod: &Value,
    view: &PodView<'_>,
    namespace: &str,
    owner: Option<&Owner>,
    mut settings: Settings,
    options: &Options,
) -> Option<Injected> {
    let mut warnings = std::mem::take(&mut settings.warnings);
    let owner = owner.cloned().or_else(|| Owner::of_pod(view));
    let is_job = owner.as_ref().is_some_and(|owner| ["Job", "CronJob"].contains(&&*owner.kind));
    if is_job && !settings.native {
        warnings.push(
            "spec: the Job will not end, because an ordinary sidecar keeps running; a native sidecar ends with it"
                .to_owned(),
        );
    }
    let mut pod = pod.clone();
    let top = pod.as_object_mut()?;
    let mut env = Vec::new();
    if settings.merge_prometheus {
        env.extend(prometheus::merge(top));
    }
    let spec = map_mut(top, "spec")?;
    if settings.rewrite_probes {
        let (probers, doubts) = probes::rewrite(spec);
        env.extend(probers);
        warnings.extend(doubts);
    }
    let template =
        Template { view, settings: &settings, options, namespace, owner: owner.as_ref() };
    let parts = template.parts(env);
    let status = parts.status(options);
    parts.add_to(spec, &settings)?;
    metadata::add(top, view, &template, &status)?;
    Some(Injected { pod, warnings })
}
