//! Envoy's format strings, used in header values: text in which `%NAME(PARAMETERS):LENGTH%` is replaced by a property
//! of the request, response or connection.
//!
//! Source: Envoy's documentation, "Access logging: Command operators", verified against Envoy 1.40.

use std::borrow::Cow;

/// Commands without parameters.
const PLAIN: [&str; 109] = [
    "ACCESS_LOG_TYPE",
    "BYTES_RECEIVED",
    "BYTES_RETRANSMITTED",
    "BYTES_SENT",
    "CONNECTION_ID",
    "CONNECTION_TERMINATION_DETAILS",
    "CUSTOM_FLAGS",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS",
    "DOWNSTREAM_DIRECT_LOCAL_PORT",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    "DOWNSTREAM_DIRECT_REMOTE_PORT",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_CLOSE_REASON",
    "DOWNSTREAM_LOCAL_DNS_SAN",
    "DOWNSTREAM_LOCAL_EMAIL_SAN",
    "DOWNSTREAM_LOCAL_IP_SAN",
    "DOWNSTREAM_LOCAL_OTHERNAME_SAN",
    "DOWNSTREAM_LOCAL_PORT",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256",
    "DOWNSTREAM_PEER_CHAIN_SERIALS",
    "DOWNSTREAM_PEER_DNS_SAN",
    "DOWNSTREAM_PEER_EMAIL_SAN",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_IP_SAN",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_OTHERNAME_SAN",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "DOWNSTREAM_REMOTE_PORT",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "DURATION",
    "FILTER_CHAIN_NAME",
    "GRPC_STATUS",
    "GRPC_STATUS_NUMBER",
    "HOSTNAME",
    "LISTENER_NAME",
    "LOCAL_REPLY_BODY",
    "PATH",
    "PROTOCOL",
    "QUERY_PARAMS",
    "REQUESTED_SERVER_NAME",
    "REQUEST_DURATION",
    "REQUEST_HEADERS_BYTES",
    "REQUEST_TX_DURATION",
    "RESPONSE_CODE",
    "RESPONSE_DURATION",
    "RESPONSE_FLAGS",
    "RESPONSE_FLAGS_LONG",
    "RESPONSE_HEADERS_BYTES",
    "RESPONSE_TRAILERS_BYTES",
    "RESPONSE_TX_DURATION",
    "ROUNDTRIP_DURATION",
    "ROUTE_NAME",
    "STREAM_ID",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "TRACE_ID",
    "UNIQUE_ID",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_CLUSTER_RAW",
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_DETECTED_CLOSE_TYPE",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_HOST",
    "UPSTREAM_HOSTS_ATTEMPTED",
    "UPSTREAM_HOST_NAME",
    "UPSTREAM_HOST_NAMES_ATTEMPTED",
    "UPSTREAM_HOST_NAME_WITHOUT_PORT",
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_LOCAL_CLOSE_REASON",
    "UPSTREAM_LOCAL_DNS_SAN",
    "UPSTREAM_LOCAL_IP_SAN",
    "UPSTREAM_LOCAL_PORT",
    "UPSTREAM_LOCAL_URI_SAN",
    "UPSTREAM_PEER_CERT",
    "UPSTREAM_PEER_DNS_SAN",
    "UPSTREAM_PEER_IP_SAN",
    "UPSTREAM_PEER_ISSUER",
    "UPSTREAM_PEER_SUBJECT",
    "UPSTREAM_PEER_URI_SAN",
    "UPSTREAM_PROTOCOL",
    "UPSTREAM_REMOTE_ADDRESS",
    "UPSTREAM_REMOTE_PORT",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "UPSTREAM_TLS_CIPHER",
    "UPSTREAM_TLS_SESSION_ID",
    "UPSTREAM_TLS_VERSION",
    "UPSTREAM_TRANSPORT_FAILURE_REASON",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "UPSTREAM_WIRE_BYTES_SENT",
    "VIRTUAL_CLUSTER_NAME",
];

/// Checks that each `%` of `value` is escaped or part of a known command; the error is its offset.
pub(super) fn check(value: &str) -> Result<(), usize> {
    let mut rest = value;
    while let Some((_, after)) = rest.split_once('%') {
        let place = value.len() - after.len() - 1;
        rest = after.strip_prefix('%').or_else(|| after_command(after)).ok_or(place)?;
    }
    Ok(())
}

/// Escapes each `%` of `value` that is neither escaped nor part of a command, so that Envoy accepts it.
pub(crate) fn with_literal_percents(value: &str) -> Cow<'_, str> {
    if check(value).is_ok() {
        return Cow::Borrowed(value);
    }
    let mut out = String::with_capacity(value.len() + 4);
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        match after.strip_prefix('%').or_else(|| after_command(after)) {
            Some(left) => {
                out.push('%');
                out.push_str(after.strip_suffix(left).unwrap_or(after));
                rest = left;
            }
            None => {
                out.push_str("%%");
                rest = after;
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The rest of `text` after the command that follows a `%`.
fn after_command(text: &str) -> Option<&str> {
    let rest =
        text.trim_start_matches(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    let name = text.strip_suffix(rest)?;
    // The first end that yields a valid command, because a parameter may contain parentheses.
    let (parameters, (length, left)) = match end(rest) {
        Some(found) => (None, found),
        None => {
            let inner = rest.strip_prefix('(')?;
            inner
                .match_indices(')')
                .find_map(|(at, _)| Some((inner.get(..at), end(inner.get(at + 1..)?)?)))?
        }
    };
    fits(name, parameters, length.is_some()).then_some(left)
}

/// Parses `:LENGTH%` or `%` and returns the rest.
fn end(text: &str) -> Option<(Option<&str>, &str)> {
    if let Some(left) = text.strip_prefix('%') {
        return Some((None, left));
    }
    let (length, left) = text.strip_prefix(':')?.split_once('%')?;
    (length.len() <= 9 && !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()))
        .then_some((Some(length), left))
}

fn is_header_name(name: &str) -> bool {
    let name = name.strip_prefix(':').unwrap_or(name);
    name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Whether Envoy supports the command with these parameters.
fn fits(name: &str, parameters: Option<&str>, has_length: bool) -> bool {
    let given = parameters.filter(|parameters| !parameters.is_empty());
    match name {
        "REQ" | "RESP" | "TRAILER" => given.is_some_and(|names| {
            let (main, other) = names.split_once('?').unwrap_or((names, ""));
            is_header_name(main) && is_header_name(other)
        }),
        "START_TIME"
        | "START_TIME_LOCAL"
        | "EMIT_TIME"
        | "EMIT_TIME_LOCAL"
        | "DOWNSTREAM_PEER_CERT_V_START"
        | "DOWNSTREAM_PEER_CERT_V_END"
        | "UPSTREAM_PEER_CERT_V_START"
        | "UPSTREAM_PEER_CERT_V_END"
        | "RESPONSE_CODE_DETAILS" => !has_length,
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT"
        | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT"
        | "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT"
        | "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT"
        | "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT"
        | "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => given.is_none() && !has_length,
        "DYNAMIC_METADATA" | "ENVIRONMENT" | "QUERY_PARAM" => given.is_some(),
        "CLUSTER_METADATA" | "UPSTREAM_METADATA" => given.is_some() && !has_length,
        "FILTER_STATE" | "UPSTREAM_FILTER_STATE" => {
            given.is_some_and(|key| match key.split_once(':') {
                None => true,
                Some((_, kind)) => matches!(kind, "PLAIN" | "TYPED"),
            })
        }
        "GRPC_STATUS" if given.is_some() => {
            matches!(given, Some("CAMEL_STRING" | "SNAKE_STRING" | "NUMBER")) && !has_length
        }
        name => given.is_none() && !has_length && PLAIN.contains(&name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percent_sign_that_starts_no_command_is_doubled() {
        for (value, written) in [
            ("100%", "100%%"),
            ("100%%", "100%%"),
            ("%REQ(x)%", "%REQ(x)%"),
            ("50% of %REQ(:authority?host):9%!", "50%% of %REQ(:authority?host):9%!"),
            ("%FOO%", "%%FOO%%"),
            ("%REQ%", "%%REQ%%"),
            ("%REQ(a b)%", "%%REQ(a b)%%"),
            ("%HOSTNAME:3%", "%%HOSTNAME:3%%"),
            ("%START_TIME(%Y-%m)%", "%START_TIME(%Y-%m)%"),
            ("%UPSTREAM_METADATA([\"a\", \"b\"])%", "%UPSTREAM_METADATA([\"a\", \"b\"])%"),
            ("%é%", "%%é%%"),
            ("%", "%%"),
            ("", ""),
        ] {
            assert_eq!(with_literal_percents(value), written, "{value}");
            assert_eq!(check(&with_literal_percents(value)), Ok(()), "{value}");
        }
        assert_eq!(check("ab%c"), Err(2));
    }
}
