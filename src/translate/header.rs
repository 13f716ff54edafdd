//! `headers`: operations on request and response headers, and the authority that they may set.

use envoy_types::pb::envoy::config::core::v3 as core;

use crate::api::{HeaderOperations, Headers};
use crate::envoy_validate::with_literal_percents;

/// Header operations in Envoy's form.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Operations {
    /// Request headers.
    pub request_add: Vec<core::HeaderValueOption>,
    /// Request headers.
    pub request_remove: Vec<String>,
    /// Response headers.
    pub response_add: Vec<core::HeaderValueOption>,
    /// Response headers.
    pub response_remove: Vec<String>,
    /// The authority set through the request header `:authority` or `host`.
    pub authority: Option<String>,
}

impl Operations {
    /// Translates `headers`.
    pub fn new(headers: Option<&Headers>) -> Self {
        let mut this = Self::default();
        if let Some(request) = headers.and_then(|headers| headers.request.as_ref()) {
            (this.request_add, this.request_remove) = operations(request);
            let names = request.set.iter().chain(&request.add);
            this.authority =
                names.filter(|(name, _)| is_authority(name)).map(|(_, value)| value.clone()).next();
        }
        if let Some(response) = headers.and_then(|headers| headers.response.as_ref()) {
            (this.response_add, this.response_remove) = operations(response);
        }
        this
    }
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// In Envoy's header values `%` starts a command; any other `%` is meant literally and is escaped. Envoy rejects header
/// operations on pseudo-headers.
fn operations(from: &HeaderOperations) -> (Vec<core::HeaderValueOption>, Vec<String>) {
    use core::header_value_option::HeaderAppendAction::{
        AppendIfExistsOrAdd, OverwriteIfExistsOrAdd,
    };
    let ours = |name: &str| !name.starts_with(':') && !is_authority(name) && !name.is_empty();
    let option = |(name, value): (&String, &String), action| core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: name.clone(),
            value: with_literal_percents(value).into_owned(),
            ..Default::default()
        }),
        append_action: action as i32,
        ..Default::default()
    };
    let set = from
        .set
        .iter()
        .filter(|(name, _)| ours(name))
        .map(|header| option(header, OverwriteIfExistsOrAdd));
    let add = from
        .add
        .iter()
        .filter(|(name, _)| ours(name))
        .map(|header| option(header, AppendIfExistsOrAdd));
    (set.chain(add).collect(), from.remove.iter().filter(|name| ours(name)).cloned().collect())
}
