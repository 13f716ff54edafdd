//! Validates ServiceEntries and WorkloadEntries.

use std::collections::BTreeSet;

use super::Diagnostics;
use super::common::{
    export_to, host_name, is_address, is_dns_label, labels, named_ports, port, port_name, protocol,
    selector, subnet,
};
use crate::api::{EntryResolution, Meta, ServiceEntry, ServiceEntryPort, WorkloadEntry};

pub(super) fn check(spec: &ServiceEntry, meta: &Meta, found: &mut Diagnostics) {
    let by_dns = matches!(spec.resolution, EntryResolution::Dns | EntryResolution::DnsRoundRobin);
    hosts(&spec.hosts, by_dns && spec.endpoints.is_empty(), found);
    if spec.resolution == EntryResolution::DynamicDns {
        found.add(
            "spec.resolution",
            "is DYNAMIC_DNS, which weir does not support",
            "expected NONE, STATIC, DNS or DNS_ROUND_ROBIN",
        );
    }
    if let Some(workloads) = &spec.workload_selector {
        selector(&workloads.labels, "spec.workloadSelector.labels", found);
        if !spec.endpoints.is_empty() {
            found.add(
                "spec.endpoints",
                "are set together with workloadSelector",
                "only one of them may be set",
            );
        }
    }
    for (n, address) in spec.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{n}]");
        subnet(address, &path, found);
        if by_dns && address.contains('/') {
            found.add(
                path,
                format!("`{address}` is an address range, which has no single host name"),
                "expected an \
                address",
            );
        }
    }
    ports(&spec.ports, found);
    if spec.resolution != EntryResolution::None
        && spec.hosts.len() > 1
        && let Some(n) = spec.ports.iter().position(|port| !names_host(port))
    {
        found.add(
            format!("spec.ports[{n}].protocol"),
            "does not distinguish the hosts",
            "use a single host, or HTTP or TLS for several hosts",
        );
    }
    endpoints(spec, by_dns, found);
    export_to(&spec.export_to, &meta.namespace, true, "spec.exportTo", found);
}

/// Whether connections to a port identify their host.
fn names_host(port: &ServiceEntryPort) -> bool {
    matches!(
        port.protocol.to_ascii_lowercase().as_str(),
        "http" | "http2" | "http_proxy" | "grpc" | "grpc-web" | "https" | "tls"
    )
}

/// `resolved` says whether the hosts are looked up by DNS.
fn hosts(hosts: &[String], resolved: bool, found: &mut Diagnostics) {
    if hosts.is_empty() {
        found.add("spec.hosts", "is empty", "expected at least one host");
    }
    for (n, host) in hosts.iter().enumerate() {
        let path = format!("spec.hosts[{n}]");
        host_name(host, &path, found);
        if host == "*" {
            found.add(path, "is `*`", "expected a host or a wildcard like *.example.com");
        } else if host.starts_with('*') && resolved {
            found.add(
                path,
                format!("`{host}` is a wildcard, which DNS cannot resolve"),
                "expected a full name, or endpoints",
            );
        }
    }
}

fn ports(ports: &[ServiceEntryPort], found: &mut Diagnostics) {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (n, entry_port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{n}]");
        port(entry_port.number, &format!("{path}.number"), found);
        if !numbers.insert(entry_port.number) {
            found.add(
                format!("{path}.number"),
                format!("{} appears twice", entry_port.number),
                "expected each port once",
            );
        }
        port_name(&entry_port.name, &format!("{path}.name"), found);
        if !names.insert(&entry_port.name) {
            found.add(
                format!("{path}.name"),
                format!("`{}` appears twice", entry_port.name),
                "expected each name once",
            );
        }
        protocol(&entry_port.protocol, &format!("{path}.protocol"), found);
        if entry_port.target_port != 0 {
            port(entry_port.target_port, &format!("{path}.targetPort"), found);
        }
    }
}

fn endpoints(spec: &ServiceEntry, by_dns: bool, found: &mut Diagnostics) {
    if spec.resolution == EntryResolution::None && !spec.endpoints.is_empty() {
        found.add(
            "spec.endpoints",
            "are set with resolution NONE, which does not use endpoints",
            "expected resolution STATIC or DNS",
        );
    }
    if spec.resolution == EntryResolution::DnsRoundRobin && spec.endpoints.len() > 1 {
        found.add(
            "spec.endpoints",
            "has several entries, which DNS_ROUND_ROBIN does not support",
            "use one endpoint, \
            or resolution DNS",
        );
    }
    for (n, endpoint) in spec.endpoints.iter().enumerate() {
        let path = format!("spec.endpoints[{n}]");
        workload_entry(endpoint, &path, found);
        let is_pipe = endpoint.address.starts_with("unix://");
        if spec.resolution == EntryResolution::Static
            && !(is_address(&endpoint.address) || is_pipe || endpoint.address.is_empty())
        {
            found.add(
                format!("{path}.address"),
                format!(
                    "`{}` is not an IP address, which STATIC resolution requires",
                    endpoint.address
                ),
                "use an IP address, or resolution DNS",
            );
        }
        if is_pipe && by_dns {
            found.add(
                format!("{path}.address"),
                "is a path, which DNS cannot resolve",
                "expected resolution STATIC",
            );
        }
        if is_pipe && spec.ports.len() != 1 {
            found.add(
                format!("{path}.address"),
                "is a path, which has no ports",
                "use a single port in spec.ports",
            );
        }
        for name in
            endpoint.ports.keys().filter(|name| !spec.ports.iter().any(|port| port.name == **name))
        {
            found.add(
                format!("{path}.ports"),
                format!("`{name}` is not a port name in spec.ports"),
                "expected one of those names",
            );
        }
    }
}

/// `path` is the path of the entry: a WorkloadEntry's `spec`, or an endpoint of a ServiceEntry.
pub(super) fn workload_entry(entry: &WorkloadEntry, path: &str, found: &mut Diagnostics) {
    let at = format!("{path}.address");
    match entry.address.strip_prefix("unix://") {
        Some(file) if file.starts_with('@') && file.len() > 1 => {}
        Some(file) if !file.starts_with('/') || file.ends_with('/') || file.contains('\0') => {
            found.add(
                at,
                format!("`{}` is not an absolute path", entry.address),
                "expected unix:///PATH",
            );
        }
        Some(_) => {}
        None if entry.address.is_empty() && !entry.network.is_empty() => {
            found.suspicious(
                at,
                "is missing, and weir does not support gateways to other networks: the endpoint gets no traffic",
                "set it to the address of a gateway to that network",
            );
        }
        None if entry.address.is_empty() => {
            found.add(at, "is missing", "expected an IP address or a host name");
        }
        None if entry.address.contains('*') || entry.address.contains('[') => {
            found.add(
                at,
                format!("is `{}`", entry.address),
                "expected an IP address or a host name",
            );
        }
        None => host_name(&entry.address, &at, found),
    }
    if entry.address.starts_with("unix://") && !entry.ports.is_empty() {
        found.add(
            format!("{path}.ports"),
            "are set together with a path, which has no ports",
            "remove the ports",
        );
    }
    named_ports(&entry.ports, &format!("{path}.ports"), found);
    labels(&entry.labels, &format!("{path}.labels"), found);
    if !entry.network.is_empty() && !entry.network.split('.').all(is_dns_label) {
        found.suspicious(
            format!("{path}.network"),
            format!("`{}` is not a network name", entry.network),
            "expected letters, digits, `-` and `.`",
        );
    }
}
