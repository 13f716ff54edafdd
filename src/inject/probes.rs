//! Probes and hooks that the kubelet sends to the application, which the sidecar would take for traffic of the mesh: they
//! go to the agent, which sends them on.

use serde_json::{Map, Value, json};

use super::pod::text;
use super::template::SIDECAR;
use crate::agent::AGENT_PORT;

/// The environment variable that tells the agent where probes go.
const PROBERS: &str = "ISTIO_KUBE_APP_PROBERS";

/// Lets the agent take the probes of all containers. Returns the environment of the agent, and what is doubtful.
pub(super) fn rewrite(spec: &mut Map<String, Value>) -> (Option<Value>, Vec<String>) {
    let (mut probers, mut doubts) = (Map::new(), Vec::new());
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (n, container) in containers.enumerate() {
            if let Some(container) = container.as_object_mut() {
                let path = format!("spec.{list}[{n}]");
                Container::new(&path, container).rewrite(container, &mut probers, &mut doubts);
            }
        }
    }
    let env = (!probers.is_empty())
        .then(|| json!({"name": PROBERS, "value": Value::Object(probers).to_string()}));
    (env, doubts)
}

/// What the probes of a container refer to.
struct Container {
    path: String,
    name: String,
    ports: Vec<(String, u64)>,
}

impl Container {
    fn new(path: &str, container: &Map<String, Value>) -> Self {
        let ports = container.get("ports").and_then(Value::as_array).into_iter().flatten();
        let named = ports.filter_map(|port| {
            Some((port.get("name")?.as_str()?.to_owned(), port.get("containerPort")?.as_u64()?))
        });
        let name = text(container, "name").unwrap_or_default().to_owned();
        Self { path: path.to_owned(), name, ports: named.collect() }
    }

    fn rewrite(
        &self,
        container: &mut Map<String, Value>,
        probers: &mut Map<String, Value>,
        doubts: &mut Vec<String>,
    ) {
        if self.name == SIDECAR {
            return;
        }
        let app = [
            ("readinessProbe", "readyz"),
            ("livenessProbe", "livez"),
            ("startupProbe", "startupz"),
        ];
        for (probe, page) in app {
            let path = format!("/app-health/{}/{page}", self.name);
            self.handler(container.get_mut(probe), probe, &path, probers, doubts);
        }
        let hooks = container.get_mut("lifecycle").and_then(Value::as_object_mut);
        let Some(hooks) = hooks else { return };
        for (hook, page) in [("preStop", "prestopz"), ("postStart", "poststartz")] {
            let path = format!("/app-lifecycle/{}/{page}", self.name);
            self.handler(hooks.get_mut(hook), &format!("lifecycle.{hook}"), &path, probers, doubts);
        }
    }

    /// Replaces a handler by a request to a page of the agent, and says under that page what the agent is to do.
    fn handler(
        &self,
        handler: Option<&mut Value>,
        member: &str,
        page: &str,
        probers: &mut Map<String, Value>,
        doubts: &mut Vec<String>,
    ) {
        let Some(handler) = handler.and_then(Value::as_object_mut) else { return };
        let kinds = ["httpGet", "tcpSocket", "grpc"];
        let Some(kind) =
            kinds.into_iter().find(|kind| handler.get(*kind).is_some_and(Value::is_object))
        else {
            return;
        };
        let Some(action) = handler.get(kind).and_then(Value::as_object) else { return };
        // It goes to another address, so the sidecar does not see it.
        if text(action, "host").is_some_and(|host| !host.is_empty()) {
            return;
        }
        let mut action = action.clone();
        match self.port(&action) {
            Some(port) if port == u64::from(AGENT_PORT) => return,
            Some(port) => action.insert("port".to_owned(), port.into()),
            None => {
                let path = format!("{}.{member}.{kind}.port", self.path);
                let port = action.get("port").unwrap_or(&Value::Null);
                doubts.push(format!(
                    "{path}: is {port}; expected a port, or the name of one of the container"
                ));
                return;
            }
        };
        let mut request = match kind {
            "httpGet" => action.clone(),
            _ => Map::new(),
        };
        // The kubelet asks the agent over plain HTTP, and the agent asks the application as before.
        request.remove("scheme");
        request.insert("path".to_owned(), page.into());
        request.insert("port".to_owned(), AGENT_PORT.into());
        let mut prober = Map::from_iter([(kind.to_owned(), Value::Object(action))]);
        if let Some(timeout) = handler.get("timeoutSeconds").filter(|timeout| timeout.is_number()) {
            prober.insert("timeoutSeconds".to_owned(), timeout.clone());
        }
        probers.insert(page.to_owned(), Value::Object(prober));
        handler.shift_remove(kind);
        handler.insert("httpGet".to_owned(), Value::Object(request));
    }

    /// The number of the port that a handler names. What is none stays for the API server to refuse.
    fn port(&self, action: &Map<String, Value>) -> Option<u64> {
        let number = match action.get("port")? {
            Value::Number(number) => number.as_u64(),
            Value::String(name) => {
                let named = self.ports.iter().find(|(known, _)| known == name);
                named.map(|(_, number)| *number).or_else(|| name.parse().ok())
            }
            _ => None,
        };
        number.filter(|number| (1..=65_535).contains(number))
    }
}
