//! Validates Sidecars.

use std::collections::BTreeSet;

use super::Diagnostics;
use super::common::{destination, host_name, is_dns_label, port, port_name, protocol, selector};
use super::destination_rule::connection_pool;
use crate::api::{IstioEgressListener, OutboundMode, OutboundTrafficPolicy, Sidecar};

const NOT_YET: &str = "is not supported yet and has no effect";

pub(super) fn check(spec: &Sidecar, found: &mut Diagnostics) {
    if *spec
        == (Sidecar { workload_selector: spec.workload_selector.clone(), ..Default::default() })
    {
        found.add("spec", "is empty", "expected egress or outboundTrafficPolicy");
    }
    if let Some(workloads) = &spec.workload_selector {
        selector(&workloads.labels, "spec.workloadSelector.labels", found);
    }
    if !spec.ingress.is_empty() {
        found.no_effect("spec.ingress", NOT_YET, "remove it");
    }
    for (n, item) in spec.ingress.iter().enumerate() {
        let number =
            item.pointer("/port/number").and_then(serde_json::Value::as_u64).unwrap_or_default();
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        port(number, &format!("spec.ingress[{n}].port.number"), found);
    }
    if let Some(pool) = &spec.inbound_connection_pool {
        connection_pool(pool, "spec.inboundConnectionPool", found);
    }
    let mut ports = BTreeSet::new();
    for (n, listener) in spec.egress.iter().enumerate() {
        let path = format!("spec.egress[{n}]");
        egress(listener, &path, found);
        match &listener.port {
            None if n + 1 < spec.egress.len() => {
                found.add(
                    format!("{path}.port"),
                    "is missing, so later entries have no effect",
                    "move it to the end",
                );
            }
            None => {}
            Some(at) if at.number != 0 && !ports.insert(at.number) => {
                found.add(
                    format!("{path}.port.number"),
                    format!("{} appears twice", at.number),
                    "expected each once",
                );
            }
            Some(_) => {}
        }
    }
    if let Some(policy) = &spec.outbound_traffic_policy {
        outbound_policy(policy, found);
    }
}

fn egress(listener: &IstioEgressListener, path: &str, found: &mut Diagnostics) {
    if listener.hosts.is_empty() {
        found.add(format!("{path}.hosts"), "is empty", "expected hosts of the form NAMESPACE/HOST");
    }
    for (m, host) in listener.hosts.iter().enumerate() {
        scoped_host(host, &format!("{path}.hosts[{m}]"), found);
    }
    let pipe = listener.bind.strip_prefix("unix://");
    if let Some(at) = &listener.port {
        if pipe.is_none() || at.number != 0 {
            port(at.number, &format!("{path}.port.number"), found);
        }
        if !at.name.is_empty() {
            port_name(&at.name, &format!("{path}.port.name"), found);
        }
        protocol(&at.protocol, &format!("{path}.port.protocol"), found);
        if at.target_port != 0 {
            found.add(
                format!("{path}.port.targetPort"),
                "is not supported here (Istio rejects it too)",
                "remove it",
            );
        }
    }
    if !listener.bind.is_empty() {
        if pipe.is_none() && listener.bind.parse::<std::net::IpAddr>().is_err() {
            found.add(
                format!("{path}.bind"),
                format!("is `{}`", listener.bind),
                "expected an IP address",
            );
        }
        found.no_effect(format!("{path}.bind"), NOT_YET, "remove it");
    }
    match listener.capture_mode.as_str() {
        "" | "DEFAULT" => {}
        "IPTABLES" | "NONE" => found.no_effect(format!("{path}.captureMode"), NOT_YET, "remove it"),
        other => {
            found.add(
                format!("{path}.captureMode"),
                format!("is `{other}`"),
                "expected DEFAULT, IPTABLES or NONE",
            );
        }
    }
}

/// `NAMESPACE/HOST`, where the namespace may be `*`, `.` or `~`, and a leading `~` excludes the host.
fn scoped_host(text: &str, path: &str, found: &mut Diagnostics) {
    let Some((namespace, host)) =
        text.split_once('/').filter(|(ns, host)| !ns.is_empty() && !host.is_empty())
    else {
        found.add(
            path,
            format!("`{text}` is not of the form NAMESPACE/HOST"),
            "expected one like ./web.shop.svc.cluster.local",
        );
        return;
    };
    let plain = namespace.strip_prefix('~').unwrap_or(namespace);
    if !matches!(plain, "" | "*" | ".") && !is_dns_label(plain) {
        found.add(
            path,
            format!("has the namespace `{namespace}`"),
            "expected a name, `*`, `.` or `~`",
        );
    }
    if host != "*" && !host.contains('.') {
        found.add(
            path,
            format!("has the short host `{host}`"),
            "expected a full name like web.shop.svc.cluster.local",
        );
    } else if host.starts_with('*') && host != "*" && !host.starts_with("*.") {
        found.add(
            path,
            format!("has the partial wildcard `{host}`"),
            "expected one like *.example.com",
        );
    } else {
        host_name(host, path, found);
    }
}

fn outbound_policy(policy: &OutboundTrafficPolicy, found: &mut Diagnostics) {
    let Some(proxy) = &policy.egress_proxy else {
        return;
    };
    let path = "spec.outboundTrafficPolicy.egressProxy";
    if policy.mode != OutboundMode::AllowAny {
        found.add(path, "is set with a mode other than ALLOW_ANY", "set mode to ALLOW_ANY");
    }
    destination(Some(proxy), path, found);
    if proxy.port.is_none() {
        found.add(format!("{path}.port"), "is missing", "expected a map with number");
    }
}
