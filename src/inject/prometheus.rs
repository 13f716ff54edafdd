//! Metrics of the application that Prometheus gets from the agent, together with those of the proxy.

use serde_json::{Map, Value, json};

use super::pod::map_mut;
use crate::agent::AGENT_PORT;

/// The environment variable that tells the agent where the application's metrics are.
const TARGET: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";

const SCRAPE: &str = "prometheus.io/scrape";
const PATH: &str = "prometheus.io/path";
const PORT: &str = "prometheus.io/port";

/// Points the annotations of a pod at the agent. Returns the environment of the agent. A pod that is not to be scraped
/// stays as it is.
pub(super) fn merge(pod: &mut Map<String, Value>) -> Option<Value> {
    let annotations = map_mut(map_mut(pod, "metadata")?, "annotations")?;
    let [scrape, path, port] = [SCRAPE, PATH, PORT]
        .map(|name| annotations.get(name).and_then(Value::as_str).map(str::to_owned));
    let agent = AGENT_PORT.to_string();
    if scrape.as_deref() == Some("false") || port.as_ref() == Some(&agent) {
        return None;
    }
    let own = [(SCRAPE, "true"), (PATH, "/stats/prometheus"), (PORT, &agent)];
    for (name, value) in own {
        annotations.insert(name.to_owned(), value.into());
    }
    if scrape.is_none() && path.is_none() && port.is_none() {
        return None;
    }
    let [scrape, path, port] = [scrape, path, port].map(Option::unwrap_or_default);
    let target = json!({"scrape": scrape, "path": path, "port": port});
    Some(json!({"name": TARGET, "value": target.to_string()}))
}
