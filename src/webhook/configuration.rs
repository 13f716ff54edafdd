//! The webhook configurations, by which the API server knows of the webhooks. Both kinds look alike as far as weir reads
//! and writes them: which webhooks are its own, and which authorities they trust.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use serde_json::{Value, json};

use crate::source::kubernetes::object_watch::{ObjectWatch, Seen};

/// The name of the Service that the API server calls, and proxies, too.
pub(crate) const SERVICE: &str = "weir";

const GROUP: &str = "admissionregistration.k8s.io";
const API_VERSION: &str = "admissionregistration.k8s.io/v1";

/// A kind of webhook configuration, and the name of weir's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ConfigurationKind {
    pub kind: &'static str,
    plural: &'static str,
    pub name: &'static str,
}

/// That of the validating webhook.
pub(super) const VALIDATING: ConfigurationKind = ConfigurationKind {
    kind: "ValidatingWebhookConfiguration",
    plural: "validatingwebhookconfigurations",
    name: "weir",
};

/// That of sidecar injection.
pub(super) const MUTATING: ConfigurationKind = ConfigurationKind {
    kind: "MutatingWebhookConfiguration",
    plural: "mutatingwebhookconfigurations",
    name: "weir-sidecar-injector",
};

pub(super) const ALL: [&ConfigurationKind; 2] = [&VALIDATING, &MUTATING];

impl ConfigurationKind {
    pub(super) fn api(&self, client: &Client) -> Api<DynamicObject> {
        let resource = ApiResource {
            group: GROUP.to_owned(),
            version: "v1".to_owned(),
            api_version: API_VERSION.to_owned(),
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        };
        Api::all_with(client.clone(), &resource)
    }
}

/// What is known about a webhook configuration.
#[derive(Debug, Default)]
pub(super) enum Configuration {
    /// Nothing yet.
    #[default]
    Unknown,
    /// There is none, or not for this weir.
    NotForUs,
    /// It exists: its UID, and its webhooks for this weir with their authorities.
    Present { uid: Option<String>, webhooks: Vec<(String, String)> },
}

impl Configuration {
    /// What an object says, for the weir of a namespace.
    pub(super) fn of(object: &DynamicObject, namespace: &str) -> Self {
        let webhooks = object.data.get("webhooks").and_then(Value::as_array).into_iter().flatten();
        let ours = webhooks.filter(|webhook| {
            let service = &webhook["clientConfig"]["service"];
            service["name"] == SERVICE && service["namespace"] == namespace
        });
        let webhooks: Vec<_> = ours
            .map(|webhook| {
                let bundle = STANDARD.decode(text(&webhook["clientConfig"]["caBundle"]));
                let trusted = String::from_utf8(bundle.unwrap_or_default()).unwrap_or_default();
                (text(&webhook["name"]), trusted)
            })
            .collect();
        match webhooks.is_empty() {
            true => Self::NotForUs,
            false => Self::Present { uid: object.metadata.uid.clone(), webhooks },
        }
    }

    /// Whether every webhook trusts exactly these authorities.
    pub(super) fn trusts(&self, authorities: &str) -> bool {
        match self {
            Self::Present { webhooks, .. } => {
                webhooks.iter().all(|(_, trusted)| trusted == authorities)
            }
            Self::Unknown | Self::NotForUs => false,
        }
    }

    /// What has to be applied so that every webhook trusts these authorities; `None` if nothing has to.
    pub(super) fn patch(&self, kind: &ConfigurationKind, authorities: &str) -> Option<Value> {
        let Self::Present { uid, webhooks } = self else { return None };
        if authorities.is_empty() || self.trusts(authorities) {
            return None;
        }
        let bundle = STANDARD.encode(authorities);
        let webhooks = webhooks
            .iter()
            .map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}}));
        Some(json!({
            "apiVersion": API_VERSION,
            "kind": kind.kind,
            // With its UID, one that was deleted meanwhile is not created.
            "metadata": {"name": kind.name, "uid": uid},
            "webhooks": webhooks.collect::<Vec<_>>(),
        }))
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The watches of these kinds.
pub(super) fn watches(
    client: &Client,
    kinds: &[&'static ConfigurationKind],
) -> Vec<ObjectWatch<DynamicObject>> {
    kinds.iter().map(|kind| ObjectWatch::new(kind.api(client), kind.name)).collect()
}

/// What is seen next by one of several watches, and which one. Cancel safe.
pub(super) async fn next(
    watches: &mut [ObjectWatch<DynamicObject>],
) -> (usize, Seen<DynamicObject>) {
    if watches.is_empty() {
        return future::pending().await;
    }
    let each = watches.iter_mut().enumerate();
    let each = each.map(|(n, watch)| Box::pin(async move { (n, watch.next().await) }));
    future::select_all(each).await.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(service: &str, namespace: &str, bundle: &str) -> DynamicObject {
        let value = json!({
            "metadata": {"name": "weir", "uid": "1"},
            "webhooks": [{
                "name": "validation.weir.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {
                    "service": {"name": service, "namespace": namespace}, "caBundle": STANDARD.encode(bundle),
                },
            }],
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_configuration_of_another_weir_is_left_alone() {
        let of = |service: &str, namespace: &str| {
            Configuration::of(&configuration(service, namespace, "a"), "weir-system")
        };
        assert!(matches!(of("weir", "other"), Configuration::NotForUs));
        assert!(matches!(of("istiod", "weir-system"), Configuration::NotForUs));
        let ours = of("weir", "weir-system");
        assert!(ours.trusts("a") && !ours.trusts("a\nb"));
    }

    #[test]
    fn only_what_is_missing_is_written() {
        let ours = Configuration::of(&configuration("weir", "weir-system", "a"), "weir-system");
        assert_eq!(ours.patch(&MUTATING, "a"), None);
        assert_eq!(ours.patch(&MUTATING, ""), None);
        assert_eq!(Configuration::Unknown.patch(&MUTATING, "b"), None);
        let bundle = STANDARD.encode("b");
        assert_eq!(
            ours.patch(&MUTATING, "b").unwrap(),
            json!({
                "apiVersion": API_VERSION, "kind": "MutatingWebhookConfiguration",
                "metadata": {"name": "weir-sidecar-injector", "uid": "1"},
                "webhooks": [{"name": "validation.weir.dev", "clientConfig": {"caBundle": bundle}}],
            })
        );
    }
}
