//! A pod, or a template of pods, as JSON: what the rules read of it, and how its parts are changed.

use serde_json::{Map, Value};

use crate::api::{Labels, Problem, describe};

/// The parts of a pod that the rules read.
#[derive(Debug)]
pub(super) struct PodView<'a> {
    pub labels: Labels,
    pub annotations: Labels,
    pub metadata: Option<&'a Map<String, Value>>,
    pub spec: &'a Map<String, Value>,
}

impl<'a> PodView<'a> {
    /// Reads a pod.
    ///
    /// # Errors
    /// A part that the rules read has another type than in the Kubernetes API.
    pub(crate) fn of(pod: &'a Value) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let metadata = map_at(pod.get("metadata"), "metadata", &mut problems);
        let labels = metadata.and_then(|metadata| metadata.get("labels"));
        let labels = texts(labels, "metadata.labels", &mut problems);
        let annotations = metadata.and_then(|metadata| metadata.get("annotations"));
        let annotations = texts(annotations, "metadata.annotations", &mut problems);
        let spec = map_at(pod.get("spec"), "spec", &mut problems);
        for list in ["containers", "initContainers", "volumes", "imagePullSecrets"] {
            let items = spec.and_then(|spec| spec.get(list)).filter(|list| !list.is_null());
            let Some(items) = items else { continue };
            let Some(items) = items.as_array() else {
                problems.push(wrong(&format!("spec.{list}"), items, "a list"));
                continue;
            };
            for (n, item) in items.iter().enumerate().filter(|(_, item)| !item.is_object()) {
                problems.push(wrong(&format!("spec.{list}[{n}]"), item, "a map"));
            }
        }
        match spec {
            Some(spec) if problems.is_empty() => Ok(Self { labels, annotations, metadata, spec }),
            None if problems.is_empty() => {
                Err(vec![Problem::new("spec", "is missing", "expected the spec of a pod")])
            }
            _ => Err(problems),
        }
    }

    /// Whether it shares the network of its node.
    pub(crate) fn host_network(&self) -> bool {
        self.spec.get("hostNetwork").is_some_and(|value| value == true)
    }

    /// Whether it is for nodes with Windows.
    pub(crate) fn is_for_windows(&self) -> bool {
        let os = self.spec.get("os").and_then(|os| os.get("name"));
        let node = self.spec.get("nodeSelector").and_then(|node| node.get("kubernetes.io/os"));
        [os, node].into_iter().flatten().any(|value| value == "windows")
    }

    /// The items of a list of the spec, with their paths.
    pub(crate) fn items(
        &self,
        list: &'static str,
    ) -> impl Iterator<Item = (String, &'a Map<String, Value>)> + use<'a> {
        let items = self.spec.get(list).and_then(Value::as_array).into_iter().flatten();
        items
            .enumerate()
            .filter_map(move |(n, item)| Some((format!("spec.{list}[{n}]"), item.as_object()?)))
    }

    /// All containers, with their paths: those of the application first.
    pub(crate) fn all_containers(
        &self,
    ) -> impl Iterator<Item = (String, &'a Map<String, Value>)> + use<'a> {
        self.items("containers").chain(self.items("initContainers"))
    }

    /// A member of the metadata as text.
    pub(crate) fn text(&self, name: &str) -> Option<&'a str> {
        self.metadata?.get(name)?.as_str().filter(|text| !text.is_empty())
    }
}

/// A member as text.
pub(super) fn text<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    map.get(name)?.as_str()
}

fn wrong(path: &str, value: &Value, expected: &str) -> Problem {
    Problem::new(path, format!("is {}", describe(value)), format!("expected {expected}"))
}

fn map_at<'a>(
    value: Option<&'a Value>,
    path: &str,
    problems: &mut Vec<Problem>,
) -> Option<&'a Map<String, Value>> {
    match value? {
        Value::Null => None,
        Value::Object(map) => Some(map),
        other => {
            problems.push(wrong(path, other, "a map"));
            None
        }
    }
}

/// A map of texts, such as labels.
fn texts(value: Option<&Value>, path: &str, problems: &mut Vec<Problem>) -> Labels {
    let mut found = Labels::new();
    for (name, value) in map_at(value, path, problems).into_iter().flatten() {
        match value {
            Value::String(text) => {
                found.insert(name.clone(), text.clone());
            }
            // As the API server takes it.
            Value::Null => {
                found.insert(name.clone(), String::new());
            }
            other => {
                problems.push(wrong(&format!("{path}[{name}]"), other, "a string, in quotes"));
            }
        }
    }
    found
}

/// The map at a key, which is created if it is not there.
pub(super) fn map_mut<'a>(
    map: &'a mut Map<String, Value>,
    key: &str,
) -> Option<&'a mut Map<String, Value>> {
    let value = map.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut()
}

/// The list at a key, which is created if it is not there.
pub(super) fn list_mut<'a>(
    map: &'a mut Map<String, Value>,
    key: &str,
) -> Option<&'a mut Vec<Value>> {
    let value = map.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_of_another_type_are_named() {
        let pod = json!({
            "metadata": {"labels": {"a": "b"}, "annotations": {"sidecar.istio.io/inject": false}},
            "spec": {"containers": [1], "volumes": {}, "initContainers": null},
        });
        let problems = PodView::of(&pod).unwrap_err();
        let said: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "metadata.annotations[sidecar.istio.io/inject]: is the boolean false; expected a string, in quotes",
                "spec.containers[0]: is the number 1; expected a map",
                "spec.volumes: is a map; expected a list",
            ]
        );
        let said = |pod: Value| PodView::of(&pod).unwrap_err()[0].to_string();
        assert_eq!(said(json!({})), "spec: is missing; expected the spec of a pod");
        assert_eq!(said(json!({"spec": []})), "spec: is a list; expected a map");
    }
}
