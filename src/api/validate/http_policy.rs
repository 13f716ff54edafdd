//! Validates the policies of HTTP routes: retries, faults and CORS.

use super::Diagnostics;
use super::common::{
    at_least_one_ms, at_most_one_of, header_name, not_negative, one_line, percent, string_match,
};
use crate::api::{CorsPolicy, FaultAbort, FaultDelay, HttpFaultInjection, HttpRetry};

/// Source: Envoy's documentation of `x-envoy-retry-on` and `x-envoy-retry-grpc-on`.
const RETRY_ON: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"];

pub(super) fn retries(retries: &HttpRetry, path: &str, found: &mut Diagnostics) {
    not_negative(retries.attempts, &format!("{path}.attempts"), found);
    let more = retries.per_try_timeout.is_some()
        || !retries.retry_on.is_empty()
        || retries.retry_remote_localities.is_some();
    if retries.attempts == 0 && more {
        found.add(
            format!("{path}.attempts"),
            "is 0, which disables retries, but other settings are set",
            "expected 1 \
            or more",
        );
    }
    at_least_one_ms(retries.per_try_timeout, &format!("{path}.perTryTimeout"), found);
    at_least_one_ms(retries.backoff, &format!("{path}.backoff"), found);
    for word in retries.retry_on.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let is_status = word.parse::<u32>().is_ok_and(|status| (100..600).contains(&status));
        if !is_status && !RETRY_ON.contains(&word) {
            let advice = match RETRY_ON.iter().find(|known| letters(known) == letters(word)) {
                Some(near) => format!("expected `{near}`"),
                None => format!("expected a status or one of {}", RETRY_ON.join(", ")),
            };
            found.add(
                format!("{path}.retryOn"),
                format!("`{word}` is not a retry condition"),
                advice,
            );
        }
    }
}

/// A retry condition without the characters and case that are often confused.
fn letters(condition: &str) -> String {
    condition.replace(['-', '_'], "").to_ascii_lowercase()
}

pub(super) fn fault(fault: &HttpFaultInjection, path: &str, found: &mut Diagnostics) {
    if fault.delay.is_none() && fault.abort.is_none() {
        found.add(path, "does nothing", "expected delay, abort or both");
    }
    if let Some(delay) = &fault.delay {
        self::delay(delay, &format!("{path}.delay"), found);
    }
    if let Some(abort) = &fault.abort {
        self::abort(abort, &format!("{path}.abort"), found);
    }
}

fn delay(delay: &FaultDelay, path: &str, found: &mut Diagnostics) {
    percent(delay.percentage, &format!("{path}.percentage"), found);
    at_least_one_ms(delay.fixed_delay, &format!("{path}.fixedDelay"), found);
    if delay.percent != 0 {
        found.deprecated(
            format!("{path}.percent"),
            "is deprecated",
            "use percentage: {value: ...}",
        );
    }
    if delay.exponential_delay.is_some() {
        found.add(
            format!("{path}.exponentialDelay"),
            "is not supported by Envoy (Istio rejects it too)",
            "expected fixedDelay",
        );
    } else if delay.fixed_delay.is_none() {
        found.suspicious(path, "has no fixedDelay, so no request is delayed", "add fixedDelay");
    }
}

fn abort(abort: &FaultAbort, path: &str, found: &mut Diagnostics) {
    percent(abort.percentage, &format!("{path}.percentage"), found);
    at_most_one_of(
        &[("httpStatus", abort.http_status.is_some()), ("grpcStatus", abort.grpc_status.is_some())],
        path,
        found,
    );
    if abort.http2_error.is_some() {
        found.add(
            format!("{path}.http2Error"),
            "is not supported by Envoy (Istio rejects it too)",
            "expected httpStatus or grpcStatus",
        );
    } else if abort.http_status.is_none() && abort.grpc_status.is_none() {
        found.suspicious(
            path,
            "has neither httpStatus nor grpcStatus, so no request is aborted",
            "add one of them",
        );
    }
    if let Some(status) = abort.http_status
        && !(200..600).contains(&status)
    {
        found.add(format!("{path}.httpStatus"), format!("is {status}"), "expected 200 to 599");
    }
    if let Some(status) = &abort.grpc_status
        && crate::api::grpc_status(status).is_none()
    {
        found.add(
            format!("{path}.grpcStatus"),
            format!("is `{status}`"),
            "expected a status like UNAVAILABLE or 0 to 16",
        );
    }
}

pub(super) fn cors(policy: &CorsPolicy, path: &str, found: &mut Diagnostics) {
    if !policy.allow_origin.is_empty() {
        found.deprecated(
            format!("{path}.allowOrigin"),
            "is deprecated",
            "use allowOrigins: [{exact: ...}]",
        );
    } else if policy.allow_origins.is_empty() {
        found.suspicious(
            path,
            "allows no origin, so browsers block the response",
            "add allowOrigins",
        );
    }
    for (n, origin) in policy.allow_origins.iter().enumerate() {
        let path = format!("{path}.allowOrigins[{n}]");
        let text = origin.exact.as_ref().or(origin.prefix.as_ref()).or(origin.regex.as_ref());
        if text.is_none_or(String::is_empty) {
            found.add(&path, "is empty", "set exact, prefix or regex");
        } else {
            string_match(origin, false, &path, found);
            // Elsewhere `*` matches any value, but an origin is always present.
            if origin.regex.as_deref() == Some("*") {
                found.expression(
                    format!("{path}.regex"),
                    "`*` is not an RE2 expression",
                    "use .* to match any string",
                );
            }
        }
    }
    for (n, origin) in policy.allow_origin.iter().enumerate() {
        one_line(origin, &format!("{path}.allowOrigin[{n}]"), found);
    }
    for (n, method) in policy.allow_methods.iter().enumerate() {
        if !METHODS.contains(&method.as_str()) {
            found.add(
                format!("{path}.allowMethods[{n}]"),
                format!("is `{method}`"),
                format!("expected one of {}", METHODS.join(", ")),
            );
        }
    }
    for (list, names) in
        [("allowHeaders", &policy.allow_headers), ("exposeHeaders", &policy.expose_headers)]
    {
        for (n, name) in names.iter().enumerate() {
            header_name(name, &format!("{path}.{list}[{n}]"), found);
        }
    }
    if let Some(age) = policy.max_age.filter(|age| age.0.subsec_nanos() != 0) {
        found.add(
            format!("{path}.maxAge"),
            format!("is {age}"),
            "expected a whole number of seconds",
        );
    }
}
