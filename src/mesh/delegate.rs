//! Delegates: VirtualServices without hosts whose routes are merged into a root VirtualService.
//!
//! Source: Istio's documentation of `Delegate` and `HTTPRoute.delegate`.

use crate::api::{HttpMatchRequest, HttpRoute, StringMatch};

/// Merges a root route with a route of its delegate: every match is the conjunction of both, and fields that the
/// delegate does not set come from the root. `None` if the matches contradict each other.
pub(super) fn merge(root: &HttpRoute, delegate: &HttpRoute) -> Option<HttpRoute> {
    let matches = merge_matches(&root.matches, &delegate.matches)?;
    let mut merged = delegate.clone();
    merged.matches = matches;
    merged.name = joined(&root.name, &delegate.name);
    merged.rewrite = merged.rewrite.or_else(|| root.rewrite.clone());
    merged.direct_response = merged.direct_response.or_else(|| root.direct_response.clone());
    merged.timeout = merged.timeout.or(root.timeout);
    merged.retries = merged.retries.or_else(|| root.retries.clone());
    merged.fault = merged.fault.or_else(|| root.fault.clone());
    merged.mirror = merged.mirror.or_else(|| root.mirror.clone());
    merged.mirror_percent = merged.mirror_percent.or(root.mirror_percent);
    merged.mirror_percentage = merged.mirror_percentage.or(root.mirror_percentage);
    merged.cors_policy = merged.cors_policy.or_else(|| root.cors_policy.clone());
    merged.headers = merged.headers.or_else(|| root.headers.clone());
    if merged.mirrors.is_empty() {
        merged.mirrors.clone_from(&root.mirrors);
    }
    Some(merged)
}

fn joined(root: &str, delegate: &str) -> String {
    match (root, delegate) {
        ("", name) | (name, "") => name.to_owned(),
        (root, delegate) => format!("{root}-{delegate}"),
    }
}

fn merge_matches(
    root: &[HttpMatchRequest],
    delegate: &[HttpMatchRequest],
) -> Option<Vec<HttpMatchRequest>> {
    if root.is_empty() {
        return Some(delegate.to_vec());
    }
    if delegate.is_empty() {
        return Some(root.to_vec());
    }
    let mut out = Vec::new();
    for leaf in delegate {
        let before = out.len();
        out.extend(
            root.iter().filter(|root| !contradicts(root, leaf)).map(|root| merge_match(root, leaf)),
        );
        // Every match of the delegate must be compatible with a match of the root, or the route is dropped.
        if out.len() == before {
            return None;
        }
    }
    Some(out)
}

fn merge_match(root: &HttpMatchRequest, leaf: &HttpMatchRequest) -> HttpMatchRequest {
    let mut merged = leaf.clone();
    merged.name = joined(&root.name, &leaf.name);
    merged.uri = merged.uri.or_else(|| root.uri.clone());
    merged.scheme = merged.scheme.or_else(|| root.scheme.clone());
    merged.method = merged.method.or_else(|| root.method.clone());
    merged.authority = merged.authority.or_else(|| root.authority.clone());
    merged.port = merged.port.filter(|port| *port != 0).or(root.port);
    for (name, value) in &root.headers {
        merged.headers.entry(name.clone()).or_insert_with(|| value.clone());
    }
    for (name, value) in &root.without_headers {
        merged.without_headers.entry(name.clone()).or_insert_with(|| value.clone());
    }
    for (name, value) in &root.query_params {
        merged.query_params.entry(name.clone()).or_insert_with(|| value.clone());
    }
    for (name, value) in &root.source_labels {
        merged.source_labels.entry(name.clone()).or_insert_with(|| value.clone());
    }
    if merged.source_namespace.is_empty() {
        merged.source_namespace.clone_from(&root.source_namespace);
    }
    if merged.gateways.is_empty() {
        merged.gateways.clone_from(&root.gateways);
    }
    if merged.stat_prefix.is_empty() {
        merged.stat_prefix.clone_from(&root.stat_prefix);
    }
    merged
}

fn contradicts(root: &HttpMatchRequest, leaf: &HttpMatchRequest) -> bool {
    let texts = [
        (&root.uri, &leaf.uri),
        (&root.scheme, &leaf.scheme),
        (&root.method, &leaf.method),
        (&root.authority, &leaf.authority),
    ];
    let maps = [
        (&root.headers, &leaf.headers),
        (&root.without_headers, &leaf.without_headers),
        (&root.query_params, &leaf.query_params),
    ];
    texts.into_iter().any(|(root, leaf)| texts_contradict(root.as_ref(), leaf.as_ref()))
        || maps.into_iter().any(|(root, leaf)| {
            leaf.iter().any(|(name, value)| texts_contradict(root.get(name), Some(value)))
        })
        || root.ignore_uri_case != leaf.ignore_uri_case
        || matches!((root.port, leaf.port), (Some(root), Some(leaf)) if root != 0 && leaf != 0 && root != leaf)
        || (!root.source_namespace.is_empty() && root.source_namespace != leaf.source_namespace)
        || leaf
            .source_labels
            .iter()
            .any(|(name, value)| root.source_labels.get(name).is_some_and(|own| own != value))
        || (!root.gateways.is_empty()
            && leaf.gateways.iter().any(|gateway| !root.gateways.contains(gateway)))
}

/// Whether `leaf` is not a refinement of `root`, as far as that can be decided: regular expressions cannot be compared,
/// so they contradict everything.
fn texts_contradict(root: Option<&StringMatch>, leaf: Option<&StringMatch>) -> bool {
    let (Some(root), Some(leaf)) = (root, leaf) else {
        return false;
    };
    match (root, leaf) {
        (StringMatch { exact: Some(root), .. }, StringMatch { exact: Some(leaf), .. }) => {
            root != leaf
        }
        (
            StringMatch { prefix: Some(root), .. },
            StringMatch { prefix: Some(leaf), .. } | StringMatch { exact: Some(leaf), .. },
        ) => !leaf.starts_with(root.as_str()),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(prefixes: &[&str]) -> HttpRoute {
        let matches = prefixes.iter().map(|prefix| HttpMatchRequest {
            uri: Some(StringMatch { prefix: Some((*prefix).into()), ..Default::default() }),
            ..Default::default()
        });
        HttpRoute { matches: matches.collect(), ..Default::default() }
    }

    #[test]
    fn a_delegates_match_must_fit_the_roots() {
        let root = route(&["/cart"]);
        assert_eq!(
            merge(&root, &route(&["/cart/v2"])).unwrap().matches,
            route(&["/cart/v2"]).matches
        );
        assert_eq!(merge(&root, &route(&[])).unwrap().matches, root.matches);
        assert!(merge(&root, &route(&["/other"])).is_none());
        assert!(merge(&root, &route(&["/cart/v2", "/other"])).is_none());
    }
}
