//! The status of an object in the API, and what has to be written there. Pure.
//!
//! Conditions of others are left alone. Where the list of conditions is keyed by type, as in weir's own definitions,
//! only weir's are sent, and the API merges them. In Istio's definitions the list is atomic: whoever applies it owns all
//! of it. There the conditions of others are sent back as they were read, and the resource version that goes with every
//! write makes the API refuse it if they have changed since.

use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject};
use serde_json::{Map, Value, json};

use super::queue::Urgency;
use crate::api::ObjectKey;
use crate::status::{Conditions, PROGRAMMED, TYPES};

/// The status of an object in the API, as far as it concerns weir.
#[derive(Clone, Debug, Default)]
pub(crate) struct ApiObject {
    uid: String,
    resource_version: String,
    /// Microseconds since 1970.
    created: i64,
    own: Vec<Value>,
    foreign: Vec<Value>,
    /// Whether the API merges the list of conditions by type.
    keyed: bool,
    /// The conditions that weir wrote last and what the API made of them, which differs where a definition lacks a
    /// field.
    written: Option<(Conditions, Vec<Value>)>,
}

impl ApiObject {
    /// Reads what the API returned.
    pub(crate) fn read(object: &DynamicObject) -> Self {
        let listed = object.data.pointer("/status/conditions").and_then(Value::as_array);
        let (own, foreign) = listed.into_iter().flatten().cloned().partition(is_own);
        let meta = &object.metadata;
        let created = meta.creation_timestamp.as_ref();
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            created: created.map_or(i64::MAX, |time| time.0.as_microsecond()),
            own,
            foreign,
            keyed: has_keys(object),
            written: None,
        }
    }

    /// Takes in what a watch delivered. Returns whether it is new: a watch may deliver what the answer to a write
    /// already contained. What was `listed` counts even if it is older, as after a restored backup.
    pub(crate) fn update(&mut self, newer: Self, listed: bool) -> bool {
        if !listed && self.uid == newer.uid && !newer.is_newer_than(&self.resource_version) {
            return false;
        }
        let written = self.written.take().filter(|_| self.uid == newer.uid);
        *self = Self { written, ..newer };
        true
    }

    /// Resource versions of one resource are ordered as integers. Where they are not integers, what comes is new.
    fn is_newer_than(&self, version: &str) -> bool {
        let (new, known) = (version_number(&self.resource_version), version_number(version));
        new.zip(known).is_none_or(|(new, known)| new > known)
    }

    /// Takes in the API's answer to a write of these conditions. The watch may have delivered something newer before the
    /// answer arrived; that stays.
    pub(crate) fn wrote(&mut self, conditions: &Conditions, answer: Self) {
        if self.uid != answer.uid {
            return;
        }
        let written = Some((conditions.clone(), answer.own.clone()));
        let known = version_number(&self.resource_version);
        let versions = known.zip(version_number(&answer.resource_version));
        if versions.is_none_or(|(known, answered)| known <= answered) {
            *self = answer;
        }
        self.written = written;
    }

    /// Whether the API keeps the generation of a condition. Older definitions of Istio do not.
    pub(crate) fn keeps_generation(&self) -> bool {
        let Some((_, made)) = &self.written else { return true };
        made.iter().all(|condition| condition.get("observedGeneration").is_some())
    }

    /// Whether the conditions are about this object rather than one of the same name that was deleted.
    pub(crate) fn is_subject_of(&self, conditions: &Conditions) -> bool {
        conditions.created.is_none_or(|created| created == self.created)
    }

    /// How urgent it is to write these conditions; `None` if they are there already.
    pub(crate) fn difference(&self, wanted: &Conditions) -> Option<Urgency> {
        if let Some((last, made)) = &self.written
            && last == wanted
            && *made == self.own
        {
            return None;
        }
        let mut urgency = None;
        for condition in &wanted.list {
            let Some(there) = self.own(condition.kind) else {
                return Some(Urgency::Now);
            };
            if generation(there) != Some(wanted.generation) && self.keeps_generation() {
                return Some(Urgency::Now);
            }
            let same_status = text(there, "status") == condition.status.as_str();
            // A proxy that has just connected does not have the object for a moment.
            let unsettled = condition.kind == PROGRAMMED && text(there, "status") == "True";
            if !same_status && !unsettled {
                return Some(Urgency::Now);
            }
            if !same_status
                || text(there, "reason") != condition.reason
                || text(there, "message") != condition.message
            {
                urgency = Some(Urgency::Later);
            }
        }
        // Without generations in the conditions, only what was written last tells which one they are about.
        let of_generation = self.written.as_ref().map(|(last, _)| last.generation);
        if !self.keeps_generation() && of_generation != Some(wanted.generation) {
            return Some(Urgency::Now);
        }
        urgency
    }

    fn own(&self, kind: &str) -> Option<&Value> {
        self.own.iter().find(|condition| condition["type"] == kind)
    }

    /// The document to apply to the status of the object.
    pub(crate) fn patch(
        &self,
        key: &ObjectKey,
        resource: &ApiResource,
        wanted: &Conditions,
        now: Timestamp,
    ) -> Value {
        let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let own = wanted.list.iter().map(|condition| {
            let there = self.own(condition.kind);
            let since = there
                .filter(|there| there["status"] == condition.status.as_str())
                .and_then(|there| there["lastTransitionTime"].as_str());
            json!({
                "type": condition.kind,
                "status": condition.status.as_str(),
                "reason": condition.reason,
                "message": condition.message,
                "lastTransitionTime": since.unwrap_or(&now),
                "observedGeneration": wanted.generation,
            })
        });
        let foreign = self.foreign.iter().filter(|_| !self.keyed).cloned();
        let conditions: Vec<Value> = foreign.chain(own).collect();
        let mut status = Map::new();
        status.insert("conditions".to_owned(), conditions.into());
        if !self.keeps_generation() {
            status.insert("observedGeneration".to_owned(), wanted.generation.into());
        }
        json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {
                "namespace": &*key.namespace,
                "name": &*key.name,
                "uid": self.uid,
                "resourceVersion": self.resource_version,
            },
            "status": status,
        })
    }
}

fn is_own(condition: &Value) -> bool {
    TYPES.iter().any(|kind| condition["type"] == *kind)
}

fn version_number(version: &str) -> Option<u128> {
    version.parse().ok()
}

/// A field of a condition; empty if there is none.
fn text<'a>(condition: &'a Value, field: &str) -> &'a str {
    condition.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The generation of a condition. Istio's definitions also allow text.
fn generation(condition: &Value) -> Option<i64> {
    let value = condition.get("observedGeneration")?;
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

/// Whether the API tracks the owners of conditions by their type.
fn has_keys(object: &DynamicObject) -> bool {
    object.metadata.managed_fields.iter().flatten().any(|owner| {
        let fields = owner.fields_v1.as_ref().map(|fields| &fields.0);
        fields
            .and_then(|fields| fields.pointer("/f:status/f:conditions"))
            .and_then(Value::as_object)
            .is_some_and(|items| items.keys().any(|name| name.starts_with("k:")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Kind;
    use crate::status::{Condition, ConditionStatus};

    fn condition(
        kind: &'static str,
        status: ConditionStatus,
        reason: &'static str,
        message: &str,
    ) -> Condition {
        Condition { kind, status, reason, message: message.to_owned() }
    }

    fn conditions(generation: i64, programmed: ConditionStatus, message: &str) -> Conditions {
        Conditions {
            created: Some(1_767_225_600_000_000),
            generation,
            list: [
                condition("Accepted", ConditionStatus::True, "Accepted", ""),
                condition("Programmed", programmed, "Programmed", message),
                condition("Held", ConditionStatus::False, "NothingHeld", ""),
            ],
        }
    }

    /// As the API returns an object with this list of conditions, which managers own as `fields` say.
    fn object(version: &str, conditions: &Value, fields: &Value) -> ApiObject {
        let object: DynamicObject = serde_json::from_value(json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": version,
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "managedFields": [{"manager": "other", "fieldsType": "FieldsV1", "fieldsV1":
                    {"f:status": {"f:conditions": fields}}}],
            },
            "status": {"conditions": conditions},
        }))
        .unwrap();
        ApiObject::read(&object)
    }

    fn patched(object: &ApiObject, wanted: &Conditions) -> Value {
        let resource = ApiResource {
            group: "networking.istio.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "networking.istio.io/v1".to_owned(),
            kind: "VirtualService".to_owned(),
            plural: "virtualservices".to_owned(),
        };
        let key = ObjectKey::new(Kind::VirtualService, "shop", "web");
        object.patch(&key, &resource, wanted, "2026-01-02T00:00:00.5Z".parse().unwrap())
    }

    #[test]
    fn what_is_there_already_is_not_written_and_what_differs_is_as_urgent_as_it_matters() {
        let wanted = conditions(3, ConditionStatus::True, "2/2 proxies");
        let empty = object("1", &json!([]), &json!({}));
        assert!(empty.is_subject_of(&wanted));
        assert_eq!(empty.difference(&wanted), Some(Urgency::Now));
        let patch = patched(&empty, &wanted);
        assert_eq!(patch["metadata"]["resourceVersion"], "1");
        assert_eq!(patch.get("spec"), None);
        let there = object("2", &patch["status"]["conditions"], &json!({}));
        assert_eq!(there.difference(&wanted), None);
        for (wanted, urgency) in [
            (conditions(3, ConditionStatus::True, "3/3 proxies"), Urgency::Later),
            (conditions(3, ConditionStatus::False, "2/3 proxies"), Urgency::Later),
            (conditions(4, ConditionStatus::True, "2/2 proxies"), Urgency::Now),
        ] {
            assert_eq!(there.difference(&wanted), Some(urgency), "{wanted:?}");
        }
        let pending = patched(&empty, &conditions(3, ConditionStatus::False, "1/2 proxies"));
        let pending = object("2", &pending["status"]["conditions"], &json!({}));
        assert_eq!(pending.difference(&wanted), Some(Urgency::Now));
        let of_another = Conditions { created: Some(0), ..wanted };
        assert!(!there.is_subject_of(&of_another));
    }

    #[test]
    fn the_time_of_a_condition_is_that_of_its_last_change_of_status() {
        let first = patched(
            &object("1", &json!([]), &json!({})),
            &conditions(3, ConditionStatus::False, "0/1 proxies"),
        );
        let mut old = first["status"]["conditions"].clone();
        for condition in old.as_array_mut().unwrap() {
            assert_eq!(condition["lastTransitionTime"], "2026-01-02T00:00:00Z");
            condition["lastTransitionTime"] = json!("2026-01-01T00:00:00Z");
        }
        let there = object("2", &old, &json!({}));
        let next = patched(&there, &conditions(4, ConditionStatus::True, "1/1 proxies"));
        let times: Vec<_> = next["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|condition| condition["lastTransitionTime"].as_str().unwrap())
            .collect();
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        assert_eq!(times, [old, new, old]);
    }

    #[test]
    fn conditions_of_others_are_sent_only_where_the_api_would_drop_them() {
        let foreign = json!({"type": "Reconciled", "status": "True", "reason": "x"});
        let wanted = conditions(1, ConditionStatus::True, "");
        for (fields, sent) in
            [(json!({"k:{\"type\":\"Reconciled\"}": {".": {}}}), 3), (json!({}), 4)]
        {
            let there = object("1", &json!([foreign]), &fields);
            let list = patched(&there, &wanted)["status"]["conditions"].clone();
            let list = list.as_array().unwrap();
            assert_eq!(list.len(), sent, "{fields}");
            assert_eq!(list.contains(&foreign), sent == 4);
        }
    }

    #[test]
    fn a_watch_that_is_behind_the_answer_to_a_write_is_not_believed() {
        let wanted = conditions(1, ConditionStatus::True, "");
        let mut there = object("9", &json!([]), &json!({}));
        let list = patched(&there, &wanted)["status"]["conditions"].clone();
        there.wrote(&wanted, object("10", &list, &json!({})));
        for version in ["9", "10"] {
            assert!(!there.update(object(version, &json!([]), &json!({})), false), "{version}");
        }
        assert_eq!(there.difference(&wanted), None);
        // A backup was restored.
        assert!(there.clone().update(object("5", &json!([]), &json!({})), true));
        // Somebody has removed them.
        assert!(there.update(object("11", &json!([]), &json!({})), false));
        assert_eq!(there.difference(&wanted), Some(Urgency::Now));
    }

    #[test]
    fn an_answer_to_a_write_does_not_undo_what_the_watch_has_delivered_since() {
        let wanted = conditions(1, ConditionStatus::True, "");
        let mut there = object("9", &json!([]), &json!({}));
        let list = patched(&there, &wanted)["status"]["conditions"].clone();
        // Somebody removed them after the write.
        assert!(there.update(object("11", &json!([]), &json!({})), false));
        there.wrote(&wanted, object("10", &list, &json!({})));
        assert_eq!(there.difference(&wanted), Some(Urgency::Now));
        assert_eq!(patched(&there, &wanted)["metadata"]["resourceVersion"], "11");
        // The object was deleted and created again.
        there.uid = "u2".to_owned();
        there.wrote(&wanted, object("12", &list, &json!({})));
        assert_eq!(patched(&there, &wanted)["metadata"]["uid"], "u2");
    }

    #[test]
    fn a_definition_that_drops_generations_does_not_make_it_write_again_and_again() {
        let wanted = conditions(1, ConditionStatus::True, "");
        let mut there = object("1", &json!([]), &json!({}));
        let mut list = patched(&there, &wanted)["status"]["conditions"].clone();
        for condition in list.as_array_mut().unwrap() {
            condition.as_object_mut().unwrap().remove("observedGeneration");
        }
        assert_eq!(patched(&there, &wanted)["status"].get("observedGeneration"), None);
        there.wrote(&wanted, object("2", &list, &json!({})));
        assert_eq!(there.difference(&wanted), None);
        let next = conditions(2, ConditionStatus::True, "");
        assert_eq!(there.difference(&next), Some(Urgency::Now));
        // kubectl wait also looks here.
        assert_eq!(patched(&there, &next)["status"]["observedGeneration"], 2);
    }
}
