//! Pods, or in files also the templates that pods are made from, and the namespaces that they are in.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Concerns, Document, Finding, Level};
use crate::api::{Labels, REVISION_LABEL, selects};
use crate::inject::workload::pod_template;
use crate::inject::{INJECTED_BY, NAMESPACE_INJECTION, STATUS as INJECTED};
use crate::mesh::{TLS_MODE, TLS_MODE_ISTIO};

/// The label of namespaces and pods that are in ambient mode.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// How many pods a message names.
const NAMED: usize = 3;

/// A pod or a template of pods.
struct Workload<'a> {
    document: &'a Document,
    labels: Labels,
    /// The revision of its sidecar; `None` without a sidecar of Istiod.
    revision: Option<String>,
    /// Whether weir has injected its sidecar.
    is_of_weir: bool,
    gateway: bool,
}

impl<'a> Workload<'a> {
    fn new(document: &'a Document, gateways: &[Labels]) -> Option<Self> {
        let pod = pod_template(document.group(), document.kind())?;
        document.at(&format!("{pod}/metadata"))?;
        let labels = document.labels(&format!("{pod}/metadata/labels"));
        let annotations = document.labels(&format!("{pod}/metadata/annotations"));
        let containers = ["containers", "initContainers"];
        let mut containers =
            containers.into_iter().flat_map(|list| document.items(&format!("{pod}/spec/{list}")));
        let has_proxy = containers.any(|container| container["name"] == "istio-proxy");
        let status = annotations.get(INJECTED);
        let is_of_weir = annotations.contains_key(INJECTED_BY);
        let revision = (!is_of_weir && (has_proxy || status.is_some()))
            .then(|| revision(&labels, &annotations));
        let template = annotations.get("inject.istio.io/templates");
        let gateway = template.is_some_and(|names| names.split(',').any(|name| name == "gateway"))
            || labels.contains_key("gateway.networking.k8s.io/gateway-name")
            || gateways.iter().any(|selector| selects(selector, &labels));
        Some(Self { document, labels, revision, is_of_weir, gateway })
    }

    fn namespace(&self) -> &'a str {
        self.document.namespace()
    }

    fn has_label(&self, name: &str, value: &str) -> bool {
        self.labels.get(name).is_some_and(|label| label == value)
    }
}

/// The revision that injected a sidecar.
fn revision(labels: &Labels, annotations: &Labels) -> String {
    let status =
        annotations.get(INJECTED).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let injected = status.as_ref().and_then(|status| status["revision"].as_str());
    let label = labels.get(REVISION_LABEL).or_else(|| annotations.get(REVISION_LABEL));
    injected.or(label.map(String::as_str)).unwrap_or("default").to_owned()
}

/// All workloads, and what the labels of namespaces say of them.
pub(super) struct Workloads<'a> {
    all: Vec<Workload<'a>>,
    /// The namespaces whose labels put them into the mesh.
    labelled: BTreeMap<&'a str, &'a Document>,
    pub root_namespace: &'a str,
    /// Whether every pod is among them.
    known: bool,
}

impl<'a> Workloads<'a> {
    pub(crate) fn new(documents: &'a [Document], root_namespace: &'a str, known: bool) -> Self {
        let gateways = documents.iter().filter(|item| item.is("networking.istio.io", "Gateway"));
        let gateways: Vec<Labels> = gateways
            .map(|gateway| gateway.labels("/spec/selector"))
            .filter(|selector| !selector.is_empty())
            .collect();
        let namespaces = documents.iter().filter(|document| document.is("", "Namespace"));
        let labelled = namespaces.filter(|namespace| {
            let labels = namespace.labels("/metadata/labels");
            labels.contains_key(REVISION_LABEL)
                || labels.get(NAMESPACE_INJECTION).is_some_and(|value| value == "enabled")
                || labels.get(DATAPLANE_MODE).is_some_and(|value| value == "ambient")
        });
        Self {
            all: documents.iter().filter_map(|item| Workload::new(item, &gateways)).collect(),
            labelled: labelled.map(|namespace| (namespace.name(), namespace)).collect(),
            root_namespace,
            known,
        }
    }

    /// The namespaces of the mesh: by their labels, or because a pod has a sidecar.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &'a str> {
        let pods = self.all.iter().filter(|workload| workload.revision.is_some());
        self.labelled.keys().copied().chain(pods.map(Workload::namespace))
    }

    /// What a policy concerns that selects sidecars by labels; nothing if it selects none. In the root namespace it
    /// selects in all namespaces.
    pub(crate) fn selected(&self, document: &Document, selector: &Labels) -> Vec<Concerns> {
        let own = document.namespace();
        let everywhere = own == self.root_namespace;
        let in_scope = self.all.iter().filter(|workload| everywhere || workload.namespace() == own);
        let known = self.known || in_scope.clone().next().is_some();
        if selector.is_empty() || !known {
            let all = if everywhere {
                Concerns::Mesh(BTreeSet::new())
            } else {
                Concerns::Namespace(own.to_owned())
            };
            return vec![all];
        }
        let chosen =
            in_scope.filter(|workload| !workload.gateway && selects(selector, &workload.labels));
        let namespaces: BTreeSet<&str> = chosen.map(Workload::namespace).collect();
        namespaces.into_iter().map(|name| Concerns::Namespace(name.to_owned())).collect()
    }

    /// What there is to say of pods and namespaces themselves.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        for (name, namespace) in &self.labelled {
            let labels = namespace.labels("/metadata/labels");
            let concerns = Concerns::Namespace((*name).to_owned());
            if labels.get(DATAPLANE_MODE).is_some_and(|mode| mode == "ambient") {
                let path = format!("metadata.labels[{DATAPLANE_MODE}]");
                let message = "is `ambient`: its traffic goes through ztunnel, and weir configures sidecars only";
                let advice = "give its pods sidecars first, or leave it with Istiod";
                found.push(namespace.finding(Level::Blocker, concerns, path, message, advice));
            } else {
                let label = if labels.contains_key(REVISION_LABEL) {
                    REVISION_LABEL
                } else {
                    NAMESPACE_INJECTION
                };
                let path = format!("metadata.labels[{label}]");
                let message = "has Istio inject its sidecars, which Istiod then configures";
                let advice =
                    "replace it by istio.io/rev with the revision of weir when the namespace moves";
                found.push(namespace.finding(Level::Step, concerns, path, message, advice));
            }
        }
        let mut groups: BTreeMap<(&str, Group), Vec<&Workload>> = BTreeMap::new();
        for workload in &self.all {
            for group in Group::of(workload) {
                groups.entry((workload.namespace(), group)).or_default().push(workload);
            }
        }
        found.extend(
            groups.iter().filter_map(|((namespace, group), pods)| group.finding(namespace, pods)),
        );
        found
    }
}

/// Pods of a namespace that a finding names together: a line for each pod would hide the rest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Ambient,
    Gateway,
    Sidecar(String),
    TlsMode,
}

impl Group {
    fn of(workload: &Workload) -> Vec<Self> {
        if workload.gateway {
            return vec![Group::Gateway];
        }
        let mut groups = Vec::new();
        groups.extend(workload.has_label(DATAPLANE_MODE, "ambient").then_some(Group::Ambient));
        groups.extend(workload.revision.clone().map(Group::Sidecar));
        let is_labelled = workload.has_label(TLS_MODE, TLS_MODE_ISTIO);
        groups.extend((!workload.is_of_weir && is_labelled).then_some(Group::TlsMode));
        groups
    }

    fn finding(&self, namespace: &str, pods: &[&Workload]) -> Option<Finding> {
        let (level, path, message, advice) = match self {
            Group::Ambient => (
                Level::Blocker,
                format!("metadata.labels[{DATAPLANE_MODE}]"),
                "is `ambient`: the traffic goes through ztunnel, and weir configures sidecars only".to_owned(),
                "give these pods sidecars first",
            ),
            Group::Gateway => (
                Level::Difference,
                String::new(),
                "is a gateway, which weir does not serve".to_owned(),
                "leave the gateway with Istiod",
            ),
            Group::Sidecar(revision) => (
                Level::Step,
                String::new(),
                format!("has a sidecar of Istio's revision `{revision}`, which Istiod configures"),
                "create the pod again when its namespace has moved, so that weir injects its sidecar",
            ),
            Group::TlsMode => (
                Level::Step,
                format!("metadata.labels[{TLS_MODE}]"),
                "is `istio`: clients send mutual TLS to it, which a sidecar of weir takes only with --identity on"
                    .to_owned(),
                "run weir with --identity on and Istio's authority, or create the pods that move without the label",
            ),
        };
        let first = pods.first()?;
        let concerns = Concerns::Namespace(namespace.to_owned());
        let mut finding = first.document.finding(level, concerns, path, message, advice);
        if pods.len() > 1 {
            let names: Vec<&str> = pods.iter().take(NAMED).map(|pod| pod.document.name()).collect();
            let more = if pods.len() > NAMED { ", ..." } else { "" };
            finding.message += &format!(" ({} like it: {}{more})", pods.len(), names.join(", "));
        }
        Some(finding)
    }
}
