//! Lists objects of any kind once.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::ApiResource;
use serde_json::Value;

use super::{list_pages, reason};

/// The objects of some kinds.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    /// The objects of the kinds that the API serves.
    pub documents: Vec<Value>,
    /// The kinds that cannot be listed, as `virtualservices.networking.istio.io`, with the reason.
    pub unreadable: Vec<(String, String)>,
}

/// Lists the objects of these resources, each given by its group and plural name, in all namespaces. A kind that the API
/// does not serve is skipped. `metadata_only` says of which only metadata is needed.
///
/// # Errors
/// The API cannot be asked at all.
pub(crate) async fn list(
    client: &Client,
    resources: &[(&str, &str)],
    metadata_only: impl Fn(&str, &str) -> bool,
) -> Result<Inventory, String> {
    let groups = client.list_api_groups().await.map_err(|error| reason(&error))?;
    let mut inventory = Inventory::default();
    for (group, plural) in resources {
        let versions: Vec<String> = if group.is_empty() {
            vec!["v1".to_owned()]
        } else {
            let group = groups.groups.iter().find(|known| known.name == *group);
            let versions = group.into_iter().flat_map(|group| {
                // The preferred version comes first.
                group.preferred_version.iter().chain(&group.versions)
            });
            versions.map(|version| version.version.clone()).collect()
        };
        let listed = async {
            let Some(resource) = served(client, group, &versions, plural).await? else {
                return Ok(Vec::new());
            };
            let metadata_only = metadata_only(group, plural);
            let listed = list_pages(client, &resource, None, metadata_only).await?;
            Ok::<_, kube::Error>(listed.documents)
        };
        match listed.await {
            Ok(documents) => inventory.documents.extend(documents),
            Err(error) => {
                let dot = if group.is_empty() { "" } else { "." };
                inventory.unreadable.push((format!("{plural}{dot}{group}"), reason(&error)));
            }
        }
    }
    Ok(inventory)
}

/// Lists the ConfigMaps of a namespace; none if there is no such namespace.
///
/// # Errors
/// Why they cannot be listed.
pub(crate) async fn config_maps(client: &Client, namespace: &str) -> Result<Vec<Value>, String> {
    let resource = ApiResource::erase::<ConfigMap>(&());
    let listed = list_pages(client, &resource, Some(namespace), false).await;
    Ok(listed.map_err(|error| reason(&error))?.documents)
}

/// The resource in the first of these versions in which the API serves it.
async fn served(
    client: &Client,
    group: &str,
    versions: &[String],
    plural: &str,
) -> Result<Option<ApiResource>, kube::Error> {
    for version in versions {
        let api_version =
            if group.is_empty() { version.clone() } else { format!("{group}/{version}") };
        let listed = if group.is_empty() {
            client.list_core_api_resources(version).await
        } else {
            client.list_api_group_resources(&api_version).await
        };
        let listed = match listed {
            Ok(listed) => listed,
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error),
        };
        if let Some(found) = listed.resources.into_iter().find(|item| item.name == plural) {
            return Ok(Some(ApiResource {
                group: group.to_owned(),
                version: version.clone(),
                api_version,
                kind: found.kind,
                plural: plural.to_owned(),
            }));
        }
    }
    Ok(None)
}
