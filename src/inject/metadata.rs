//! The labels and annotations of a pod with a sidecar.

use serde_json::{Map, Value};

use super::pod::{PodView, map_mut, text};
use super::select::{INJECTED_BY, STATUS};
use super::template::Template;
use crate::api::{Labels, REVISION_LABEL};
use crate::mesh::{SERVICE_ACCOUNT, TLS_MODE, TLS_MODE_ISTIO};

const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
const DEFAULT_CONTAINERS: [&str; 2] =
    ["kubectl.kubernetes.io/default-logs-container", "kubectl.kubernetes.io/default-container"];

/// The longest value of a label.
const LONGEST_LABEL: usize = 63;

/// Adds labels and annotations. `None` if a part of the pod is no map.
pub(super) fn add(
    pod: &mut Map<String, Value>,
    view: &PodView<'_>,
    template: &Template<'_>,
    status: &str,
) -> Option<()> {
    let service_account = service_account(pod);
    let metadata = map_mut(pod, "metadata")?;
    let labels = map_mut(metadata, "labels")?;
    let owner = template.owner.map(|owner| owner.name.as_str());
    let name = first(&view.labels, &["app.kubernetes.io/name", "app"]).or(owner).map(label_value);
    let version = first(&view.labels, &["app.kubernetes.io/version", "version"]);
    for (name, value) in [
        (TLS_MODE, Some(tls_mode(template))),
        (CANONICAL_NAME, name.filter(|name| !name.is_empty())),
        (CANONICAL_REVISION, version.or(Some("latest"))),
    ] {
        // What the user has written stays.
        if let Some(value) = value.filter(|_| !view.labels.contains_key(name)) {
            labels.insert(name.to_owned(), value.into());
        }
    }

    let annotations = map_mut(metadata, "annotations")?;
    annotations.insert(REVISION_LABEL.to_owned(), template.options.revision().into());
    let application = view.items("containers").find_map(|(_, container)| text(container, "name"));
    for name in DEFAULT_CONTAINERS {
        if let Some(application) = application.filter(|_| !view.annotations.contains_key(name)) {
            annotations.insert(name.to_owned(), application.into());
        }
    }
    annotations.insert(SERVICE_ACCOUNT.to_owned(), service_account.into());
    annotations.insert(STATUS.to_owned(), status.into());
    annotations.insert(INJECTED_BY.to_owned(), concat!("weir/", env!("CARGO_PKG_VERSION")).into());
    Some(())
}

/// The service account of a pod. Admission sets it before injection.
fn service_account(pod: &Map<String, Value>) -> String {
    let spec = pod.get("spec").and_then(Value::as_object);
    // The second is the old name of the first.
    let mut named = ["serviceAccountName", "serviceAccount"]
        .into_iter()
        .filter_map(|name| text(spec?, name).filter(|name| !name.is_empty()));
    named.next().unwrap_or("default").to_owned()
}

/// Whether clients send mutual TLS: to a proxy with certificates, through which inbound connections go.
fn tls_mode(template: &Template<'_>) -> &'static str {
    let takes_mutual_tls = template.has_identity() && template.settings.redirects();
    if takes_mutual_tls { TLS_MODE_ISTIO } else { "disabled" }
}

/// The value of the first of these labels that is there.
fn first<'a>(labels: &'a Labels, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| labels.get(*name)).map(String::as_str)
}

/// The beginning of a name that can be the value of a label.
fn label_value(name: &str) -> &str {
    crate::text::prefix(name, LONGEST_LABEL).trim_matches(['-', '_', '.'])
}
