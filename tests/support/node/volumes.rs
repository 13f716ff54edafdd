//! The volumes of a pod, as folders.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccount,
    ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use kube::{Api, Client, ResourceExt as _};

use super::environment::field;

/// How often the node looks whether an object that a volume needs is there.
const RETRY: Duration = Duration::from_millis(100);

/// Makes the folder of a volume and returns it.
///
/// # Errors
/// The volume is of a kind that is not known here, or the API refuses what it needs.
pub(crate) async fn make(
    client: &Client,
    pod: &Pod,
    volume: &Volume,
    parent: &Path,
) -> Result<PathBuf, String> {
    let folder = parent.join(&volume.name);
    let files =
        files(client, pod, volume).await.map_err(|why| format!("{}: {why}", volume.name))?;
    let written = fs::create_dir_all(&folder)
        // An emptyDir is for every user.
        .and_then(|()| fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)))
        .and_then(|()| {
            files.iter().try_for_each(|(name, bytes)| {
                let file = folder.join(name);
                fs::create_dir_all(file.parent().unwrap_or(&folder))?;
                fs::write(&file, bytes)?;
                // As the kubelet has it where the containers of a pod run as different users.
                fs::set_permissions(&file, fs::Permissions::from_mode(0o644))
            })
        });
    written.map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

type Files = BTreeMap<String, Vec<u8>>;

async fn files(client: &Client, pod: &Pod, volume: &Volume) -> Result<Files, String> {
    if volume.empty_dir.is_some() {
        return Ok(Files::new());
    }
    if let Some(map) = &volume.config_map {
        return of_config_map(client, pod, &map.name, map.items.as_deref(), map.optional).await;
    }
    if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        return of_secret(client, pod, name, secret.items.as_deref(), secret.optional).await;
    }
    if let Some(downward) = &volume.downward_api {
        return of_fields(pod, downward.items.as_deref().unwrap_or_default());
    }
    let Some(projected) = &volume.projected else {
        return Err("this kind of volume is not known here".to_owned());
    };
    let mut all = Files::new();
    for source in projected.sources.iter().flatten() {
        all.extend(projection(client, pod, source).await?);
    }
    Ok(all)
}

async fn projection(
    client: &Client,
    pod: &Pod,
    source: &VolumeProjection,
) -> Result<Files, String> {
    if let Some(map) = &source.config_map {
        return of_config_map(client, pod, &map.name, map.items.as_deref(), map.optional).await;
    }
    if let Some(secret) = &source.secret {
        return of_secret(client, pod, &secret.name, secret.items.as_deref(), secret.optional)
            .await;
    }
    if let Some(downward) = &source.downward_api {
        return of_fields(pod, downward.items.as_deref().unwrap_or_default());
    }
    match &source.service_account_token {
        Some(wanted) => Ok(Files::from([(wanted.path.clone(), token(client, pod, wanted).await?)])),
        None => Err("this kind of projection is not known here".to_owned()),
    }
}

/// A token of the pod's service account that is bound to the pod.
async fn token(
    client: &Client,
    pod: &Pod,
    wanted: &ServiceAccountTokenProjection,
) -> Result<Vec<u8>, String> {
    let accounts: Api<ServiceAccount> =
        Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    let pod = BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name_any()),
        uid: pod.uid(),
    };
    let spec = TokenRequestSpec {
        audiences: wanted.audience.clone().map(|audience| vec![audience]),
        bound_object_ref: Some(pod),
        expiration_seconds: wanted.expiration_seconds,
        ..Default::default()
    };
    let request = TokenRequest { spec: Some(spec), ..Default::default() };
    let made = accounts
        .create_token_request(account.unwrap_or("default"), &Default::default(), &request)
        .await
        .map_err(|error| format!("a token: {error}"))?;
    let token = made.status.and_then(|status| status.token).ok_or("the API gives no token")?;
    Ok(token.into_bytes())
}

/// Waits for an object, unless it is optional.
async fn get<K>(api: Api<K>, name: &str, optional: Option<bool>) -> Result<Option<K>, String>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    loop {
        let found = api.get_opt(name).await.map_err(|error| format!("{name}: {error}"))?;
        if found.is_some() || optional == Some(true) {
            return Ok(found);
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn of_config_map(
    client: &Client,
    pod: &Pod,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
) -> Result<Files, String> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let data = get(api, name, optional).await?.and_then(|map| map.data).unwrap_or_default();
    Ok(chosen(data.into_iter().map(|(key, text)| (key, text.into_bytes())).collect(), items))
}

async fn of_secret(
    client: &Client,
    pod: &Pod,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
) -> Result<Files, String> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let data = get(api, name, optional).await?.and_then(|secret| secret.data).unwrap_or_default();
    Ok(chosen(data.into_iter().map(|(key, bytes)| (key, bytes.0)).collect(), items))
}

/// All keys, or those that are listed at the paths that are given.
fn chosen(mut data: Files, items: Option<&[KeyToPath]>) -> Files {
    match items {
        None => data,
        Some(items) => items
            .iter()
            .filter_map(|item| Some((item.path.clone(), data.remove(&item.key)?)))
            .collect(),
    }
}

fn of_fields(pod: &Pod, items: &[DownwardAPIVolumeFile]) -> Result<Files, String> {
    let mut files = Files::new();
    for item in items {
        let path = item.field_ref.as_ref().map_or("", |field| &field.field_path);
        let text = match path {
            "metadata.labels" => lines(pod.labels()),
            "metadata.annotations" => lines(pod.annotations()),
            // A file has no field of the status.
            path => field(pod, path, None)?,
        };
        files.insert(item.path.clone(), text.into_bytes());
    }
    Ok(files)
}

/// A line `key="value"` for each, as the kubelet writes them.
fn lines(all: &BTreeMap<String, String>) -> String {
    let lines: String = all.iter().map(|(key, value)| format!("{key}={value:?}\n")).collect();
    lines.trim_end().to_owned()
}
