//! What must hold for a ServiceEntry and for a WorkloadEntry.

use std::collections::BTreeSet;

use super::Findings;
use super::common::{
    export_to, host_name, is_address, is_dns_label, labels, named_ports, port, port_name, protocol, selector, subnet,
};
use crate::api::{EntryResolution, Meta, ServiceEntry, ServiceEntryPort, WorkloadEntry};

pub(super) fn check(spec: &ServiceEntry, meta: &Meta, found: &mut Findings) {
    let by_dns = matches!(spec.resolution, EntryResolution::Dns | EntryResolution::DnsRoundRobin);
    if spec.hosts.is_empty() {
        found.add("spec.hosts", "is empty", "expected at least one host");
    }
    for (n, host) in spec.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{n}]");
        host_name(host, &path, found);
        if host == "*" {
            found.add(path, "is `*`", "expected a host or a wildcard like *.example.com");
        } else if host.starts_with('*') && by_dns && spec.endpoints.is_empty() {
            found.add(
                path,
                format!("`{host}` is a wildcard, which DNS can not resolve"),
                "expected a full name, or endpoints",
            );
        }
    }
    if spec.resolution == EntryResolution::DynamicDns {
        found.add(
            "spec.resolution",
            "is DYNAMIC_DNS, which weir does not serve",
            "expected NONE, STATIC, DNS or DNS_ROUND_ROBIN",
        );
    }
    if let Some(workloads) = &spec.workload_selector {
        selector(&workloads.labels, "spec.workloadSelector.labels", found);
        if !spec.endpoints.is_empty() {
            found.add("spec.endpoints", "stand beside workloadSelector", "expected only one of them");
        }
    }
    for (n, address) in spec.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{n}]");
        subnet(address, &path, found);
        if by_dns && address.contains('/') {
            found.add(path, format!("`{address}` is a range, for which there is no one name"), "expected an address");
        }
    }
    ports(&spec.ports, found);
    if spec.resolution != EntryResolution::None && spec.hosts.len() > 1 {
        let by_name = |port: &ServiceEntryPort| {
            let name = port.protocol.to_ascii_lowercase();
            matches!(name.as_str(), "http" | "http2" | "http_proxy" | "grpc" | "grpc-web" | "https" | "tls")
        };
        if let Some(n) = spec.ports.iter().position(|port| !by_name(port)) {
            found.add(
                format!("spec.ports[{n}].protocol"),
                "does not tell the hosts apart",
                "expected one host, or HTTP or TLS for several",
            );
        }
    }
    endpoints(spec, by_dns, found);
    export_to(&spec.export_to, &meta.namespace, true, "spec.exportTo", found);
}

fn ports(ports: &[ServiceEntryPort], found: &mut Findings) {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (n, one) in ports.iter().enumerate() {
        let path = format!("spec.ports[{n}]");
        port(one.number, &format!("{path}.number"), found);
        if !numbers.insert(one.number) {
            found.add(format!("{path}.number"), format!("{} stands twice", one.number), "expected each port once");
        }
        port_name(&one.name, &format!("{path}.name"), found);
        if !names.insert(&one.name) {
            found.add(format!("{path}.name"), format!("`{}` stands twice", one.name), "expected each name once");
        }
        protocol(&one.protocol, &format!("{path}.protocol"), found);
        if one.target_port != 0 {
            port(one.target_port, &format!("{path}.targetPort"), found);
        }
    }
}

fn endpoints(spec: &ServiceEntry, by_dns: bool, found: &mut Findings) {
    if spec.resolution == EntryResolution::None && !spec.endpoints.is_empty() {
        found.add(
            "spec.endpoints",
            "stand beside resolution NONE, which uses none",
            "expected resolution STATIC or DNS",
        );
    }
    if spec.resolution == EntryResolution::DnsRoundRobin && spec.endpoints.len() > 1 {
        found.add("spec.endpoints", "are more than one, of which DNS_ROUND_ROBIN can use none", "expected one, or DNS");
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
                format!("`{}` is no IP address, which STATIC resolution needs", endpoint.address),
                "expected one, or resolution DNS",
            );
        }
        if is_pipe && by_dns {
            found.add(format!("{path}.address"), "is a path, which DNS can not resolve", "expected resolution STATIC");
        }
        if is_pipe && spec.ports.len() != 1 {
            found.add(format!("{path}.address"), "is a path, which has no ports", "expected one port in spec.ports");
        }
        for name in endpoint.ports.keys().filter(|name| !spec.ports.iter().any(|port| port.name == **name)) {
            found.add(
                format!("{path}.ports"),
                format!("`{name}` is none of spec.ports"),
                "expected one of their names",
            );
        }
    }
}

/// `path` is that of the entry: a WorkloadEntry's `spec`, or an endpoint of a ServiceEntry.
pub(super) fn workload_entry(entry: &WorkloadEntry, path: &str, found: &mut Findings) {
    let at = format!("{path}.address");
    match entry.address.strip_prefix("unix://") {
        Some(file) if file.starts_with('@') && file.len() > 1 => {}
        Some(file) if !file.starts_with('/') || file.ends_with('/') || file.contains('\0') => {
            found.add(at, format!("`{}` is no absolute path", entry.address), "expected unix:///PATH");
        }
        Some(_) => {}
        None if entry.address.is_empty() && !entry.network.is_empty() => {
            found.odd(
                at,
                "is missing, and weir knows no gateway of other networks: no traffic goes there",
                "give it the address of a gateway that leads there",
            );
        }
        None if entry.address.is_empty() => found.add(at, "is missing", "expected an IP address or a host name"),
        None if entry.address.contains('*') || entry.address.contains('[') => {
            found.add(at, format!("is `{}`", entry.address), "expected an IP address or a host name");
        }
        None => host_name(&entry.address, &at, found),
    }
    if entry.address.starts_with("unix://") && !entry.ports.is_empty() {
        found.add(format!("{path}.ports"), "stand beside a path, which has none", "expected no ports");
    }
    named_ports(&entry.ports, &format!("{path}.ports"), found);
    labels(&entry.labels, &format!("{path}.labels"), found);
    if !entry.network.is_empty() && !entry.network.split('.').all(is_dns_label) {
        found.odd(
            format!("{path}.network"),
            format!("`{}` is not the name of a network", entry.network),
            "expected letters, digits, `-` and `.`",
        );
    }
}
