//! The annotation `proxy.istio.io/config`: settings of one pod's proxy, in YAML.

use std::time::Duration;

use serde_json::{Map, Value};

use super::EXPECTED_INTERCEPTION;
use crate::api::{self, Labels, Problem, describe};
use crate::mesh::Interception;
use crate::source::yaml;

/// The annotation.
pub(super) const ANNOTATION: &str = "proxy.istio.io/config";

/// The members that weir reads. Istio's agent reads the others as well.
const READ: [&str; 6] = [
    "concurrency",
    "drainDuration",
    "holdApplicationUntilProxyStarts",
    "interceptionMode",
    "proxyMetadata",
    "terminationDrainDuration",
];

/// The settings of one pod's proxy.
#[derive(Debug, Default)]
pub(super) struct ProxyConfig {
    /// The number of worker threads; 0 is one for each CPU.
    pub concurrency: Option<u32>,
    /// How long listeners drain that a new configuration removes.
    pub drain: Option<Duration>,
    /// How long connections may continue when the pod ends.
    pub termination_drain: Option<Duration>,
    /// Whether containers wait for the proxy.
    pub hold_application: Option<bool>,
    /// How traffic is intercepted.
    pub interception: Option<Interception>,
    /// Environment variables of the proxy.
    pub metadata: Labels,
    /// All of it, for an agent that reads it itself.
    pub raw: Map<String, Value>,
}

impl ProxyConfig {
    /// Reads the annotation.
    pub(crate) fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let mut documents = yaml::documents(text.as_bytes())
            .map_err(|error| vec![at("", format!("is not YAML: {error}"), "")])?;
        let raw = match (documents.pop().map(|document| document.value), documents.is_empty()) {
            (None, _) => Map::new(),
            (Some(Value::Object(raw)), true) => raw,
            (Some(other), true) => {
                return Err(vec![at("", format!("is {}", describe(&other)), "expected a map")]);
            }
            (Some(_), false) => {
                return Err(vec![at("", "has several YAML documents".to_owned(), "expected one")]);
            }
        };
        let mut problems = Vec::new();
        let mut config = Self {
            concurrency: member(&raw, "concurrency", &mut problems, concurrency),
            drain: member(&raw, "drainDuration", &mut problems, duration),
            termination_drain: member(&raw, "terminationDrainDuration", &mut problems, duration),
            hold_application: member(&raw, "holdApplicationUntilProxyStarts", &mut problems, truth),
            interception: member(&raw, "interceptionMode", &mut problems, interception),
            metadata: Labels::new(),
            raw: Map::new(),
        };
        for (name, value) in
            raw.get("proxyMetadata").and_then(Value::as_object).into_iter().flatten()
        {
            match value {
                Value::String(text) => {
                    config.metadata.insert(name.clone(), text.clone());
                }
                other => problems.push(at(
                    &format!(".proxyMetadata[{name}]"),
                    format!("is {}", describe(other)),
                    "expected a string, in quotes",
                )),
            }
        }
        if let Some(other) =
            raw.get("proxyMetadata").filter(|value| !value.is_object() && !value.is_null())
        {
            problems.push(at(
                ".proxyMetadata",
                format!("is {}", describe(other)),
                "expected a map",
            ));
        }
        config.raw = raw;
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    /// The members that only Istio's agent reads.
    pub(crate) fn of_istio_alone(&self) -> Vec<&str> {
        let members = self.raw.keys().map(String::as_str);
        members.filter(|name| !READ.contains(name)).collect()
    }
}

fn at(path: &str, message: String, advice: &str) -> Problem {
    Problem::new(format!("metadata.annotations[{ANNOTATION}]{path}"), message, advice)
}

/// A member, if it is there and `read` accepts it.
fn member<T>(
    raw: &Map<String, Value>,
    name: &str,
    problems: &mut Vec<Problem>,
    read: fn(&Value) -> Result<T, String>,
) -> Option<T> {
    let value = raw.get(name).filter(|value| !value.is_null())?;
    match read(value) {
        Ok(value) => Some(value),
        Err(expected) => {
            let message = format!("is {}", describe(value));
            problems.push(at(&format!(".{name}"), message, &format!("expected {expected}")));
            None
        }
    }
}

fn concurrency(value: &Value) -> Result<u32, String> {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.filter(|number| *number <= 1024).ok_or("a number of threads from 0 to 1024".to_owned())
}

fn duration(value: &Value) -> Result<Duration, String> {
    let duration = value.as_str().and_then(|text| api::Duration::parse(text).ok());
    duration.map(|duration| duration.0).ok_or("a duration such as 5s or 1m".to_owned())
}

fn truth(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or("true or false".to_owned())
}

fn interception(value: &Value) -> Result<Interception, String> {
    value.as_str().and_then(super::interception).ok_or(EXPECTED_INTERCEPTION.to_owned())
}

/// Seconds, rounded up.
pub(super) fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_members_are_read() {
        let text = "concurrency: 3\nterminationDrainDuration: 2500ms\ndrainDuration: 1m\n\
                    holdApplicationUntilProxyStarts: true\ninterceptionMode: NONE\n\
                    proxyMetadata: {A: '1'}\ntracing: {sampling: 100}\n";
        let config = ProxyConfig::parse(text).unwrap();
        assert_eq!(config.concurrency, Some(3));
        assert_eq!(config.termination_drain.map(seconds), Some(3));
        assert_eq!(config.drain.map(seconds), Some(60));
        assert_eq!(config.hold_application, Some(true));
        assert_eq!(config.interception, Some(Interception::None));
        assert_eq!(config.metadata["A"], "1");
        assert_eq!(config.of_istio_alone(), ["tracing"]);
        assert!(ProxyConfig::parse("").unwrap().raw.is_empty());
        assert_eq!(ProxyConfig::parse(r#"{"concurrency": 0}"#).unwrap().concurrency, Some(0));
    }

    #[test]
    fn wrong_members_are_named() {
        for (text, said) in [
            ("concurrency: -1", ".concurrency: is the number -1; expected a number of threads"),
            ("drainDuration: 5", ".drainDuration: is the number 5; expected a duration such as"),
            ("interceptionMode: TPROXY", ".interceptionMode: is the string `TPROXY`; expected"),
            ("holdApplicationUntilProxyStarts: 'yes'", "expected true or false"),
            ("proxyMetadata: {A: 1}", ".proxyMetadata[A]: is the number 1; expected a string"),
            ("proxyMetadata: []", ".proxyMetadata: is a list; expected a map"),
            ("[", ": is not YAML: line 1"),
            ("a", ": is the string `a`; expected a map"),
            ("a: 1\n---\na: 2", ": has several YAML documents"),
        ] {
            let problems = ProxyConfig::parse(text).unwrap_err();
            let found = problems[0].to_string();
            assert!(found.starts_with("metadata.annotations[proxy.istio.io/config]"), "{found}");
            assert!(found.contains(said), "{found}");
        }
    }
}
