//! Who gets a sidecar. The rules about labels are those of Istio's webhook configurations; the rules about the pod itself
//! are those of its injector.

use std::fmt;

use super::pod::PodView;
use crate::api::{Labels, REVISION_LABEL};

/// The label of a pod, or its older form as an annotation, that asks for a sidecar (`true`) or forbids it (`false`).
pub(crate) const INJECT: &str = "sidecar.istio.io/inject";
/// The label of a namespace whose pods get sidecars (`enabled`) or none.
pub(crate) const NAMESPACE_INJECTION: &str = "istio-injection";
/// The annotation that an injector leaves on a pod.
pub(crate) const STATUS: &str = "sidecar.istio.io/status";
/// The annotation with the version of weir that injected a pod.
pub(crate) const INJECTED_BY: &str = "weir.dev/injected-by";
/// The revision of a control plane without one.
pub(crate) const DEFAULT_REVISION: &str = "default";
/// The annotation of a pod that mirrors one that a kubelet runs from a file.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Namespaces whose pods never get a sidecar. Source: Istio's `IgnoredNamespaces`.
const SYSTEM_NAMESPACES: [&str; 4] =
    ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// Who has chosen a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chosen<'a> {
    /// The API server, by the selectors of the webhook configuration.
    ByWebhook,
    /// The user, who names the file that it is in. The labels of its namespace, where they are known, can still forbid
    /// it.
    ByUser(&'a Labels),
}

/// Why a pod stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Neither the namespace nor the pod asks for a sidecar.
    NotLabelled,
    /// The namespace forbids it: the value of `istio-injection`.
    NamespaceForbids(String),
    /// The namespace or the pod is of another revision.
    OtherRevision(String),
    /// The pod forbids it.
    PodForbids,
    /// The namespace belongs to Kubernetes.
    SystemNamespace,
    /// It has a sidecar already.
    AlreadyInjected,
    /// It shares the network of its node.
    HostNetwork,
    /// It runs on Windows.
    Windows,
    /// It mirrors a pod that a kubelet runs from a file.
    Mirror,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLabelled => write!(
                f,
                "neither its namespace has the label {NAMESPACE_INJECTION} or {REVISION_LABEL}, nor the pod the label \
                 {INJECT} or {REVISION_LABEL}"
            ),
            Self::NamespaceForbids(value) => {
                write!(f, "its namespace has the label {NAMESPACE_INJECTION}={value}")
            }
            Self::OtherRevision(revision) => {
                write!(f, "the label {REVISION_LABEL} assigns it to revision `{revision}`")
            }
            Self::PodForbids => write!(f, "its label or annotation {INJECT} is false"),
            Self::SystemNamespace => f.write_str("its namespace belongs to Kubernetes"),
            Self::AlreadyInjected => write!(f, "it has a sidecar already (annotation {STATUS})"),
            Self::HostNetwork => f.write_str(
                "spec.hostNetwork is true: redirecting its traffic would redirect that of the node",
            ),
            Self::Windows => f.write_str("it runs on Windows, and the sidecar runs on Linux only"),
            Self::Mirror => f.write_str("it is a static pod, which runs as its node's file says"),
        }
    }
}

/// Whether the labels of a namespace and a pod choose the pod for a control plane of this revision. These are the
/// selectors of the MutatingWebhookConfiguration in `deploy/`, which are those of Istio.
pub(crate) fn by_labels(
    namespace: &Labels,
    pod: &Labels,
    revision: Option<&str>,
) -> Result<(), Reason> {
    let injection = namespace.get(NAMESPACE_INJECTION).cloned();
    let namespace_revision = namespace.get(REVISION_LABEL).cloned();
    let pod_revision = pod.get(REVISION_LABEL).cloned();
    let inject = pod.get(INJECT);
    if inject.map(String::as_str) == Some("false") {
        return Err(Reason::PodForbids);
    }
    let own = revision.unwrap_or(DEFAULT_REVISION);
    match (injection, namespace_revision, pod_revision) {
        // The older label decides, and means the control plane without a revision.
        (Some(value), ..) if value != "enabled" => Err(Reason::NamespaceForbids(value)),
        (Some(_), ..) => match revision {
            None => Ok(()),
            Some(_) => Err(Reason::OtherRevision(DEFAULT_REVISION.to_owned())),
        },
        (None, Some(chosen), _) | (None, None, Some(chosen)) => {
            if chosen == own {
                Ok(())
            } else {
                Err(Reason::OtherRevision(chosen))
            }
        }
        (None, None, None) if inject.map(String::as_str) == Some("true") => match revision {
            None => Ok(()),
            Some(_) => Err(Reason::OtherRevision(DEFAULT_REVISION.to_owned())),
        },
        (None, None, None) => Err(Reason::NotLabelled),
    }
}

/// Whether a pod gets a sidecar, and if not, why.
pub(super) fn decide(
    pod: &PodView<'_>,
    namespace: &str,
    chosen: Chosen<'_>,
    revision: Option<&str>,
) -> Result<(), Reason> {
    if pod.annotations.contains_key(STATUS) {
        return Err(Reason::AlreadyInjected);
    }
    // The label takes precedence over the annotation. Other values mean what no value means.
    let wish = pod.labels.get(INJECT).or_else(|| pod.annotations.get(INJECT));
    if wish.is_some_and(|wish| wish == "false") {
        return Err(Reason::PodForbids);
    }
    if SYSTEM_NAMESPACES.contains(&namespace) {
        return Err(Reason::SystemNamespace);
    }
    if let Chosen::ByUser(labels) = chosen {
        match by_labels(labels, &pod.labels, revision) {
            // Whoever names the file asks for it.
            Ok(()) | Err(Reason::NotLabelled) => {}
            Err(reason) => return Err(reason),
        }
    }
    if pod.annotations.contains_key(MIRROR) {
        return Err(Reason::Mirror);
    }
    if pod.host_network() {
        return Err(Reason::HostNetwork);
    }
    if pod.is_for_windows() {
        return Err(Reason::Windows);
    }
    Ok(())
}

/// Whether the pod itself asks for a sidecar, and not only its namespace.
pub(super) fn asks(pod: &PodView<'_>) -> bool {
    let wish = pod.labels.get(INJECT).or_else(|| pod.annotations.get(INJECT));
    wish.is_some_and(|wish| wish == "true") || pod.labels.contains_key(REVISION_LABEL)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::source::yaml;

    fn labels(text: &str) -> Labels {
        let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Every combination of the values that the rules distinguish.
    fn combinations() -> impl Iterator<Item = (Labels, Labels)> {
        let values = |name: &str, values: &[&str]| {
            let given = values.iter().map(|value| format!("{name}={value} "));
            std::iter::once(String::new()).chain(given).collect::<Vec<_>>()
        };
        let revisions = ["default", "weir", "other"];
        let of_namespace = values(NAMESPACE_INJECTION, &["enabled", "disabled"]);
        let namespaces = pairs(&of_namespace, &values(REVISION_LABEL, &revisions));
        let of_pod = values(INJECT, &["true", "false", "maybe"]);
        let pods = pairs(&of_pod, &values(REVISION_LABEL, &revisions));
        namespaces.into_iter().flat_map(move |namespace| {
            let with = move |pod: &String| (labels(&namespace), labels(pod));
            pods.iter().map(with).collect::<Vec<_>>()
        })
    }

    fn pairs(left: &[String], right: &[String]) -> Vec<String> {
        left.iter().flat_map(|a| right.iter().map(move |b| format!("{a}{b}"))).collect()
    }

    #[test]
    fn labels_choose_pods_as_in_istio() {
        for (revision, namespace, pod, expected) in [
            (None, "istio-injection=enabled", "", "yes"),
            (None, "istio-injection=enabled", "sidecar.istio.io/inject=false", "its label"),
            (None, "istio-injection=enabled", "istio.io/rev=other", "yes"),
            (None, "istio-injection=enabled istio.io/rev=other", "", "yes"),
            (None, "istio-injection=disabled", "sidecar.istio.io/inject=true", "its namespace"),
            (None, "istio.io/rev=default", "", "yes"),
            (None, "istio.io/rev=other", "sidecar.istio.io/inject=true", "the label"),
            (None, "", "sidecar.istio.io/inject=true", "yes"),
            (None, "", "istio.io/rev=default", "yes"),
            (None, "", "istio.io/rev=other sidecar.istio.io/inject=true", "the label"),
            (None, "", "sidecar.istio.io/inject=maybe", "neither"),
            (None, "", "", "neither"),
            (Some("weir"), "istio.io/rev=weir", "", "yes"),
            (Some("weir"), "istio.io/rev=weir", "sidecar.istio.io/inject=false", "its label"),
            (Some("weir"), "istio.io/rev=weir istio-injection=enabled", "", "the label"),
            (Some("weir"), "istio.io/rev=weir istio-injection=disabled", "", "its namespace"),
            (Some("weir"), "istio-injection=enabled", "istio.io/rev=weir", "the label"),
            (Some("weir"), "", "istio.io/rev=weir", "yes"),
            (Some("weir"), "", "istio.io/rev=weir sidecar.istio.io/inject=false", "its label"),
            (Some("weir"), "istio.io/rev=default", "istio.io/rev=weir", "the label"),
            (Some("weir"), "", "sidecar.istio.io/inject=true", "the label"),
            (Some("weir"), "", "", "neither"),
        ] {
            let chosen = by_labels(&labels(namespace), &labels(pod), revision);
            let said = chosen.map_or_else(|reason| reason.to_string(), |()| "yes".to_owned());
            assert!(said.starts_with(expected), "{revision:?} [{namespace}] [{pod}]: {said}");
        }
    }

    /// Whether a label selector in JSON matches.
    fn matches(selector: &Value, labels: &Labels) -> bool {
        let expressions = selector["matchExpressions"].as_array().expect("expressions");
        expressions.iter().all(|expression| {
            let value = labels.get(expression["key"].as_str().expect("a key"));
            let among = || {
                let values = expression["values"].as_array().expect("values");
                value.is_some_and(|value| values.iter().any(|allowed| allowed == value))
            };
            match expression["operator"].as_str().expect("an operator") {
                "In" => among(),
                "NotIn" => !among(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("{other}"),
            }
        })
    }

    /// The selectors in the manifests and the rules in code are the same.
    #[test]
    fn the_webhook_configuration_chooses_the_same_pods() {
        let text = include_bytes!("../../deploy/base/injection.yaml");
        let documents = yaml::documents(text).unwrap();
        let configuration = documents
            .into_iter()
            .map(|document| document.value)
            .find(|value| value["kind"] == "MutatingWebhookConfiguration")
            .unwrap();
        let webhooks = configuration["webhooks"].as_array().unwrap();
        for (namespace, pod) in combinations() {
            let called = webhooks
                .iter()
                .filter(|webhook| {
                    matches(&webhook["namespaceSelector"], &namespace)
                        && matches(&webhook["objectSelector"], &pod)
                })
                .count();
            let chosen = by_labels(&namespace, &pod, None);
            assert_eq!(called, usize::from(chosen.is_ok()), "{namespace:?} {pod:?}: {chosen:?}");
        }
    }

    #[test]
    fn the_pod_decides_in_the_end() {
        let decide = |metadata: Value, spec: Value, namespace: &str| {
            let pod = json!({"metadata": metadata, "spec": spec});
            let pod = PodView::of(&pod).unwrap();
            decide(&pod, namespace, Chosen::ByWebhook, None)
        };
        let none = || json!({"containers": [{"name": "app"}]});
        let pod = |name: &str, value: &str| json!({"labels": {name: value}});
        let annotated = |name: &str, value: &str| json!({"annotations": {name: value}});
        assert_eq!(decide(json!({}), none(), "shop"), Ok(()));
        assert_eq!(decide(pod(INJECT, "false"), none(), "shop"), Err(Reason::PodForbids));
        assert_eq!(decide(annotated(INJECT, "false"), none(), "shop"), Err(Reason::PodForbids));
        let both = json!({"labels": {INJECT: "true"}, "annotations": {INJECT: "false"}});
        assert_eq!(decide(both, none(), "shop"), Ok(()), "the label takes precedence");
        let other = decide(annotated(INJECT, "yes"), none(), "shop");
        assert_eq!(other, Ok(()), "another value means nothing");
        for namespace in SYSTEM_NAMESPACES {
            assert_eq!(decide(json!({}), none(), namespace), Err(Reason::SystemNamespace));
        }
        let injected = decide(annotated(STATUS, "{}"), none(), "shop");
        assert_eq!(injected, Err(Reason::AlreadyInjected));
        assert_eq!(decide(annotated(MIRROR, "x"), none(), "shop"), Err(Reason::Mirror));
        for (spec, reason) in [
            (json!({"hostNetwork": true}), Reason::HostNetwork),
            (json!({"os": {"name": "windows"}}), Reason::Windows),
            (json!({"nodeSelector": {"kubernetes.io/os": "windows"}}), Reason::Windows),
        ] {
            assert_eq!(decide(json!({}), spec, "shop"), Err(reason));
        }
    }

    #[test]
    fn whoever_names_a_file_asks_for_its_pods_unless_a_label_forbids_it() {
        let pod = json!({"spec": {"containers": [{"name": "app"}]}});
        let pod = PodView::of(&pod).unwrap();
        let decide = |namespace: &str| {
            decide(&pod, "shop", Chosen::ByUser(&labels(namespace)), Some("weir")).is_ok()
        };
        assert!(decide("") && decide("istio.io/rev=weir"));
        assert!(!decide("istio-injection=disabled") && !decide("istio.io/rev=other"));
    }
}
