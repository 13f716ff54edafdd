//! `headers`: operations on request and response headers, and the authority that they may set.

use envoy_types::pb::envoy::config::core::v3 as core;

use crate::api::{HeaderOperations, Headers};
use crate::envoy_validate::with_literal_percents;

/// Header operations in Envoy's form.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Operations {
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
    pub(crate) fn new(headers: Option<&Headers>) -> Self {
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

    /// Adds the operations of a destination after those of its route, whose authority wins.
    pub(crate) fn append(&mut self, other: Self) {
        self.request_add.extend(other.request_add);
        self.request_remove.extend(other.request_remove);
        self.response_add.extend(other.response_add);
        self.response_remove.extend(other.response_remove);
        self.authority = self.authority.take().or(other.authority);
    }
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// Whether Envoy may change the header: it rejects operations on pseudo-headers.
fn may_change(name: &str) -> bool {
    !name.starts_with(':') && !is_authority(name) && !name.is_empty()
}

fn operations(from: &HeaderOperations) -> (Vec<core::HeaderValueOption>, Vec<String>) {
    use core::header_value_option::HeaderAppendAction::{
        AppendIfExistsOrAdd, OverwriteIfExistsOrAdd,
    };
    let set = from.set.iter().map(|header| (header, OverwriteIfExistsOrAdd));
    let add = from.add.iter().map(|header| (header, AppendIfExistsOrAdd));
    let changes = set.chain(add).filter(|((name, _), _)| may_change(name));
    let removed = from.remove.iter().filter(|name| may_change(name));
    (
        changes.map(|((name, value), action)| value_option(name, value, action)).collect(),
        removed.cloned().collect(),
    )
}

/// In Envoy's header values `%` starts a command; any other `%` is meant literally and is escaped.
fn value_option(
    name: &str,
    value: &str,
    action: core::header_value_option::HeaderAppendAction,
) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: name.to_owned(),
            value: with_literal_percents(value).into_owned(),
            ..Default::default()
        }),
        append_action: action as i32,
        ..Default::default()
    }
}
