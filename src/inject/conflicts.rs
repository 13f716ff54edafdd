//! What a sidecar cannot work with: names and ports that are taken, and users whose traffic is not redirected.

use serde_json::{Map, Value};

use super::pod::{PodView, text};
use super::settings::Settings;
use super::template::{CONTAINERS, PROXY_ID, volume_names};
use crate::api::Problem;
use crate::ports;

/// The ports of a sidecar.
const PORTS: [(u16, &str); 6] = [
    (ports::ADMIN, "Envoy's admin interface"),
    (ports::OUTBOUND, "outbound traffic"),
    (ports::INBOUND, "inbound traffic"),
    (ports::AGENT, "the agent"),
    (ports::READY, "readiness"),
    (ports::METRICS, "Envoy's metrics"),
];

/// Everything in a pod that a sidecar cannot work with.
pub(super) fn find(pod: &PodView<'_>, settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    if pod.items("containers").next().is_none() {
        problems.push(Problem::new("spec.containers", "is empty", "expected a container"));
    }
    for (path, container) in pod.all_containers() {
        name(&path, container, &mut problems);
        taken_ports(&path, container, &mut problems);
    }
    let taken = volume_names(settings);
    for (path, volume) in pod.items("volumes") {
        let name = text(volume, "name").unwrap_or_default();
        if taken.iter().any(|taken| taken == name) {
            let message = format!("is `{name}`, the name of a volume of the sidecar");
            problems.push(Problem::new(format!("{path}.name"), message, "give it another name"));
        }
    }
    if settings.redirects() {
        users(pod, &mut problems);
    }
    problems
}

fn name(path: &str, container: &Map<String, Value>, problems: &mut Vec<Problem>) {
    let name = text(container, "name").unwrap_or_default();
    if !CONTAINERS.contains(&name) {
        return;
    }
    let path = format!("{path}.name");
    problems.push(if name == "istio-proxy" {
        let advice =
            "take it out: annotations change the sidecar, and weir merges no container into it";
        Problem::new(path, "is `istio-proxy`, the name of the sidecar", advice)
    } else {
        let message = format!("is `{name}`, the name of a container that comes with the sidecar");
        Problem::new(path, message, "give it another name")
    });
}

fn taken_ports(path: &str, container: &Map<String, Value>, problems: &mut Vec<Problem>) {
    let ports = container.get("ports").and_then(Value::as_array).into_iter().flatten();
    for (n, port) in ports.enumerate() {
        let is_tcp = port.get("protocol").is_none_or(|protocol| protocol == "TCP");
        let number = port.get("containerPort").and_then(Value::as_u64);
        let taken =
            PORTS.into_iter().find(|(taken, _)| number == Some(u64::from(*taken)) && is_tcp);
        if let Some((number, purpose)) = taken {
            let message = format!("is {number}, which the sidecar listens on for {purpose}");
            let path = format!("{path}.ports[{n}].containerPort");
            problems.push(Problem::new(
                path,
                message,
                "have the application listen on another port",
            ));
        }
    }
}

/// The traffic of the proxy's user and group is not redirected, so a container that runs as one of them would get none.
fn users(pod: &PodView<'_>, problems: &mut Vec<Problem>) {
    for name in ["runAsUser", "runAsGroup"] {
        for (path, container) in pod.all_containers() {
            let (at, id) = match (security(container, name), security(pod.spec, name)) {
                (Some(id), _) => (format!("{path}.securityContext.{name}"), id),
                (None, Some(id)) => (format!("spec.securityContext.{name}"), id),
                (None, None) => continue,
            };
            if id == PROXY_ID && !problems.iter().any(|problem| problem.path == at) {
                let message =
                    format!("is {PROXY_ID}, that of the sidecar, whose traffic is not redirected");
                problems.push(Problem::new(at, message, "run the application as another"));
            }
        }
    }
}

/// A number in the security context of a pod or container.
fn security(of: &Map<String, Value>, name: &str) -> Option<u64> {
    of.get("securityContext")?.get(name).and_then(Value::as_u64)
}
