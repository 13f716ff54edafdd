//! A document of any kind.

use serde_json::Value;

use super::{Concerns, Finding, Level};
use crate::api::Labels;
use crate::source::Origin;

/// A document of any kind, with where it was read.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// Where it was read.
    pub origin: Origin,
    /// Its content.
    pub value: Value,
}

impl Document {
    /// A member as text; empty if it is not there.
    fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// The API group; empty for Kubernetes' core group.
    pub(crate) fn group(&self) -> &str {
        self.text("/apiVersion").split_once('/').map_or("", |(group, _)| group)
    }

    /// The kind.
    pub(crate) fn kind(&self) -> &str {
        self.text("/kind")
    }

    /// Whether it is of this group and kind.
    pub(crate) fn is(&self, group: &str, kind: &str) -> bool {
        self.group() == group && self.kind() == kind
    }

    /// The name.
    pub(crate) fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    /// The namespace; `default` if it is not set, as in kubectl.
    pub(crate) fn namespace(&self) -> &str {
        Some(self.text("/metadata/namespace")).filter(|name| !name.is_empty()).unwrap_or("default")
    }

    /// The member at a pointer, such as `/spec/selector`.
    pub(crate) fn at(&self, pointer: &str) -> Option<&Value> {
        self.value.pointer(pointer).filter(|value| !value.is_null())
    }

    /// The items of a list at a pointer.
    pub(crate) fn items<'a>(&'a self, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.at(pointer).and_then(Value::as_array).into_iter().flatten()
    }

    /// The labels or annotations at a pointer.
    pub(crate) fn labels(&self, pointer: &str) -> Labels {
        let map = self.at(pointer).and_then(Value::as_object).into_iter().flatten();
        map.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
    }

    /// A finding about this object.
    pub(crate) fn finding(
        &self,
        level: Level,
        concerns: Concerns,
        path: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Finding {
        let namespaced = !self.is("", "Namespace");
        Finding {
            level,
            concerns,
            kind: self.kind().to_owned(),
            namespace: if namespaced { self.namespace().to_owned() } else { String::new() },
            name: self.name().to_owned(),
            origin: self.origin.clone(),
            path: path.into(),
            message: message.into(),
            advice: advice.into(),
        }
    }
}
