//! The environment of a container, and the variables in its command.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;

use super::{ADDRESS, NODE};

/// The variables of a container in the order in which they are given.
///
/// # Errors
/// One has its value from something that is not known here.
pub(crate) fn of(
    container: &Container,
    pod: &Pod,
    address: Ipv4Addr,
    first: Vec<(String, String)>,
) -> Result<Vec<(String, String)>, String> {
    let mut all = first;
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, None) => expanded(variable.value.as_deref().unwrap_or_default(), &all),
            (_, Some(from)) => match &from.field_ref {
                Some(of) => field(pod, &of.field_path, Some(address))?,
                None => return Err(format!("env {}: its source is not known here", variable.name)),
            },
        };
        all.retain(|(name, _)| *name != variable.name);
        all.push((variable.name.clone(), value));
    }
    Ok(all)
}

/// A field of a pod, by its path. Without an address those of its status are not known.
pub(crate) fn field(pod: &Pod, path: &str, address: Option<Ipv4Addr>) -> Result<String, String> {
    if let Some(key) = path.strip_prefix("metadata.labels['") {
        return Ok(pod.labels().get(key.trim_end_matches("']")).cloned().unwrap_or_default());
    }
    if let Some(key) = path.strip_prefix("metadata.annotations['") {
        return Ok(pod.annotations().get(key.trim_end_matches("']")).cloned().unwrap_or_default());
    }
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    Ok(match (path, address) {
        ("metadata.name", _) => pod.name_any(),
        ("metadata.namespace", _) => pod.namespace().unwrap_or_default(),
        ("metadata.uid", _) => pod.uid().unwrap_or_default(),
        ("spec.nodeName", _) => NODE.to_owned(),
        ("spec.serviceAccountName", _) => account.unwrap_or_default(),
        ("status.hostIP", Some(_)) => ADDRESS.to_string(),
        ("status.podIP" | "status.podIPs", Some(address)) => address.to_string(),
        _ => return Err(format!("the field {path} of a pod is not known here")),
    })
}

/// A text with the values of variables in place of `$(NAME)`.
pub(crate) fn expanded(text: &str, variables: &[(String, String)]) -> String {
    variables
        .iter()
        .fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}
