//! Objects of any kind as the API sends them, read into a JSON document at once, without what weir does not read.

use std::borrow::Cow;
use std::fmt;

use kube::Resource;
use kube::api::ApiResource;
use kube::core::{DynamicResourceScope, ObjectMeta};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

/// An object. If `METADATA` is true, only its metadata is requested.
#[derive(Clone, Debug)]
pub(super) struct Document<const METADATA: bool> {
    fields: Map<String, Value>,
    /// Only the resource version, which a watch goes on from.
    meta: ObjectMeta,
}

impl<const METADATA: bool> Document<METADATA> {
    /// The document of this resource. The items of a list do not say of which kind they are, and bare metadata has a kind of
    /// its own.
    pub(super) fn of(mut self, resource: &ApiResource) -> Value {
        self.fields.insert("apiVersion".to_owned(), resource.api_version.as_str().into());
        self.fields.insert("kind".to_owned(), resource.kind.as_str().into());
        Value::Object(self.fields)
    }
}

impl<const METADATA: bool> Resource for Document<METADATA> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn metadata_api() -> bool {
        METADATA
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

impl<'de, const METADATA: bool> Deserialize<'de> for Document<METADATA> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Part::Object.deserialize(deserializer)?;
        let version = fields.get("metadata").and_then(|metadata| metadata.get("resourceVersion"));
        let resource_version = version.and_then(Value::as_str).map(str::to_owned);
        Ok(Self { fields, meta: ObjectMeta { resource_version, ..ObjectMeta::default() } })
    }
}

/// A part of an object that has fields which weir does not read. They are often more than half of it.
#[derive(Clone, Copy)]
enum Part {
    Object,
    Metadata,
}

impl<'de> DeserializeSeed<'de> for Part {
    type Value = Map<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Part {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Object => "an object",
            Self::Metadata => "the metadata of an object",
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            match (self, name.as_str()) {
                (Self::Object, "status") | (Self::Metadata, "managedFields") => {
                    access.next_value::<IgnoredAny>()?;
                }
                (Self::Object, "metadata") => {
                    let metadata = access.next_value_seed(Self::Metadata)?;
                    fields.insert(name, Value::Object(metadata));
                }
                _ => drop(fields.insert(name, access.next_value()?)),
            }
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_has_its_kind_and_nothing_that_is_not_read() {
        let item = json!({
            "metadata": {
                "name": "a", "resourceVersion": "7", "labels": {"status": "kept"},
                "managedFields": [{"manager": "kubectl"}],
            },
            "spec": {"status": 1, "metadata": {"managedFields": 2}},
            "status": {"loadBalancer": {}},
        });
        let read: Document<false> = serde_json::from_value(item).unwrap();
        assert_eq!(read.meta().resource_version.as_deref(), Some("7"));
        let resource = ApiResource {
            group: "apps".to_owned(),
            version: "v1".to_owned(),
            api_version: "apps/v1".to_owned(),
            kind: "Thing".to_owned(),
            plural: "things".to_owned(),
        };
        let expected = json!({
            "apiVersion": "apps/v1", "kind": "Thing",
            "metadata": {"name": "a", "resourceVersion": "7", "labels": {"status": "kept"}},
            "spec": {"status": 1, "metadata": {"managedFields": 2}},
        });
        assert_eq!(read.of(&resource), expected);
        assert!(serde_json::from_value::<Document<true>>(json!({"metadata": 1})).is_err());
    }
}
