//! The objects that pods come from.

use serde_json::Value;

use super::pod::PodView;

/// The pointer to the template of pods in an object of a kind; empty for a pod itself, `None` for a kind without pods.
pub(crate) fn pod_template(group: &str, kind: &str) -> Option<&'static str> {
    Some(match (group, kind) {
        ("", "Pod") => "",
        ("", "PodTemplate") => "/template",
        ("", "ReplicationController")
        | ("apps", "DaemonSet" | "Deployment" | "ReplicaSet" | "StatefulSet")
        | ("batch", "Job")
        | ("argoproj.io", "Rollout") => "/spec/template",
        ("batch", "CronJob") => "/spec/jobTemplate/spec/template",
        _ => return None,
    })
}

/// The object that a pod belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub api_version: String,
    pub kind: String,
    pub name: String,
}

impl Owner {
    /// The owner of a pod that its controller creates: the object that a user has written, as far as the names tell.
    /// Source: Istio's `GetDeployMetaFromPod`.
    pub(super) fn of_pod(pod: &PodView<'_>) -> Option<Self> {
        let owners = pod.metadata?.get("ownerReferences").and_then(Value::as_array);
        let controller = owners
            .into_iter()
            .flatten()
            .find(|owner| owner.get("controller").is_some_and(|controller| controller == true));
        let Some(controller) = controller else {
            let name = pod.text("name").or(pod.text("generateName"))?;
            let (api_version, kind) = ("v1".to_owned(), "Pod".to_owned());
            return Some(Self { api_version, kind, name: name.to_owned() });
        };
        let (api_version, kind, name) =
            (text(controller, "apiVersion")?, text(controller, "kind")?, text(controller, "name")?);
        let (kind, name) = match kind.as_str() {
            "ReplicaSet" => {
                match (
                    without_hash(&name, pod, "pod-template-hash"),
                    without_hash(&name, pod, "rollouts-pod-template-hash"),
                ) {
                    (Some(name), _) => ("Deployment".to_owned(), name),
                    (None, Some(name)) => ("Rollout".to_owned(), name),
                    (None, None) => (kind, name),
                }
            }
            "Job" => match cron_job(&name) {
                Some(name) => ("CronJob".to_owned(), name),
                None => (kind, name),
            },
            _ => (kind, name),
        };
        Some(Self { api_version, kind, name })
    }

    /// The identifier that Istio's telemetry uses.
    pub(super) fn uri(&self, namespace: &str) -> String {
        let Self { api_version, kind, name } = self;
        let plural = kind.to_ascii_lowercase();
        format!("kubernetes://apis/{api_version}/namespaces/{namespace}/{plural}s/{name}")
    }
}

/// A member as text.
fn text(owner: &Value, name: &str) -> Option<String> {
    owner.get(name)?.as_str().map(str::to_owned)
}

/// The name of a ReplicaSet without the hash in a label of its pod, if it ends in that.
fn without_hash(name: &str, pod: &PodView<'_>, label: &str) -> Option<String> {
    let hash = pod.labels.get(label).filter(|hash| !hash.is_empty())?;
    name.strip_suffix(hash.as_str())?.strip_suffix('-').map(str::to_owned)
}

/// The name of the CronJob whose Job has this name: it ends in a time of 8 to 10 digits.
fn cron_job(job: &str) -> Option<String> {
    let (name, time) = job.rsplit_once('-')?;
    let is_time = (8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit());
    (is_time && !name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_owner_is_the_object_that_a_user_has_written() {
        for (labels, kind, name, expected) in [
            (json!({"pod-template-hash": "6f9"}), "ReplicaSet", "web-6f9", "Deployment web"),
            (json!({"rollouts-pod-template-hash": "6f9"}), "ReplicaSet", "web-6f9", "Rollout web"),
            (json!({"pod-template-hash": "6f9"}), "ReplicaSet", "web", "ReplicaSet web"),
            (json!({}), "StatefulSet", "web", "StatefulSet web"),
            (json!({}), "Job", "backup-29012345", "CronJob backup"),
            (json!({}), "Job", "backup-1", "Job backup-1"),
        ] {
            let pod = json!({
                "metadata": {
                    "generateName": "web-6f9-", "labels": labels,
                    "ownerReferences": [
                        {"apiVersion": "x/v1", "kind": "Other", "name": "other"},
                        {"apiVersion": "apps/v1", "kind": kind, "name": name, "controller": true},
                    ],
                },
                "spec": {},
            });
            let owner = Owner::of_pod(&PodView::of(&pod).unwrap()).unwrap();
            assert_eq!(format!("{} {}", owner.kind, owner.name), expected);
        }
        let pod = json!({"metadata": {"name": "web"}, "spec": {}});
        let owner = Owner::of_pod(&PodView::of(&pod).unwrap()).unwrap();
        assert_eq!(owner.uri("shop"), "kubernetes://apis/v1/namespaces/shop/pods/web");
    }
}
