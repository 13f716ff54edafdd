//! What must hold for one object by itself. What needs other objects (a subset that no rule has) is not checked here.

use super::{
    Destination, DestinationRule, Duration, EntryResolution, HttpRoute, Object, Percent, Problem, RouteDestination,
    Service, ServiceEntry, Sidecar, Spec, VirtualService, WorkloadEntry,
};

/// Everything that makes `object` unusable; empty where it is fine. Source of the rules: the comments of the fields in
/// istio/api's protos.
pub(super) fn check(object: &Object) -> Vec<Problem> {
    let mut found = Findings::default();
    match &object.spec {
        Spec::VirtualService(spec) => virtual_service(spec, &mut found),
        Spec::DestinationRule(spec) => destination_rule(spec, &mut found),
        Spec::Service(spec) => service(spec, &mut found),
        Spec::Node | Spec::Namespace | Spec::Pod(_) | Spec::EndpointSlice(_) | Spec::Endpoints(_) => {}
        Spec::ServiceEntry(spec) => service_entry(spec, &mut found),
        Spec::WorkloadEntry(spec) => workload_entry(spec, "spec", &mut found),
        Spec::Sidecar(spec) => sidecar(spec, &mut found),
    }
    found.0
}

#[derive(Default)]
struct Findings(Vec<Problem>);

impl Findings {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem::new(path, message));
    }
}

fn service(spec: &Service, found: &mut Findings) {
    for (n, port) in spec.ports.iter().enumerate() {
        if port.port == 0 {
            found.add(format!("spec.ports[{n}].port"), "is 0 or missing; expected a port from 1 to 65535");
        }
    }
}

fn virtual_service(spec: &VirtualService, found: &mut Findings) {
    for (n, host) in spec.hosts.iter().enumerate() {
        host_name(host, &format!("spec.hosts[{n}]"), found);
    }
    if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        found.add("spec", "has no routes; expected at least one of http, tls or tcp");
    }
    for (n, route) in spec.http.iter().enumerate() {
        http_route(route, spec.hosts.is_empty(), &format!("spec.http[{n}]"), found);
    }
    for (n, route) in spec.tls.iter().enumerate() {
        let path = format!("spec.tls[{n}]");
        if route.matches.is_empty() {
            found.add(format!("{path}.match"), "is missing; expected at least one match with sniHosts");
        }
        for (m, one) in route.matches.iter().enumerate() {
            if one.sni_hosts.is_empty() {
                found.add(format!("{path}.match[{m}].sniHosts"), "is empty; expected at least one name");
            }
            for (k, address) in one.destination_subnets.iter().enumerate() {
                subnet(address, &format!("{path}.match[{m}].destinationSubnets[{k}]"), found);
            }
        }
        destinations(&route.route, &path, found);
    }
    for (n, route) in spec.tcp.iter().enumerate() {
        for (m, one) in route.matches.iter().enumerate() {
            for (k, address) in one.destination_subnets.iter().enumerate() {
                subnet(address, &format!("spec.tcp[{n}].match[{m}].destinationSubnets[{k}]"), found);
            }
        }
        destinations(&route.route, &format!("spec.tcp[{n}]"), found);
    }
}

fn http_route(route: &HttpRoute, is_delegate: bool, path: &str, found: &mut Findings) {
    let actions = [
        (!route.route.is_empty(), "route"),
        (route.redirect.is_some(), "redirect"),
        (route.direct_response.is_some(), "directResponse"),
        (route.delegate.is_some(), "delegate"),
    ];
    let given: Vec<_> = actions.iter().filter(|(given, _)| *given).map(|(_, name)| *name).collect();
    match given.as_slice() {
        [] => found.add(path, "does nothing; expected one of route, redirect, directResponse or delegate"),
        [_] => {}
        many => found.add(path, format!("has {}; expected only one of them", many.join(" and "))),
    }
    if is_delegate && route.delegate.is_some() {
        found.add(format!("{path}.delegate"), "a VirtualService without hosts is a delegate and can not delegate on");
    }
    for (n, one) in route.route.iter().enumerate() {
        weight(one.weight, &format!("{path}.route[{n}].weight"), found);
        destination(one.destination.as_ref(), &format!("{path}.route[{n}].destination"), found);
    }
    if let Some(to) = &route.mirror {
        destination(Some(to), &format!("{path}.mirror"), found);
    }
    percent(route.mirror_percentage, &format!("{path}.mirrorPercentage"), found);
    for (n, mirror) in route.mirrors.iter().enumerate() {
        destination(mirror.destination.as_ref(), &format!("{path}.mirrors[{n}].destination"), found);
        percent(mirror.percentage, &format!("{path}.mirrors[{n}].percentage"), found);
    }
    if let Some(redirect) = &route.redirect
        && !matches!(redirect.redirect_code, 0 | 301 | 302 | 303 | 307 | 308)
    {
        let code = redirect.redirect_code;
        found.add(format!("{path}.redirect.redirectCode"), format!("is {code}; expected 301, 302, 303, 307 or 308"));
    }
    if let Some(response) = &route.direct_response
        && !(200..600).contains(&response.status)
    {
        found.add(format!("{path}.directResponse.status"), format!("is {}; expected 200 to 599", response.status));
    }
    if let Some(retries) = &route.retries {
        if retries.attempts < 0 {
            found.add(format!("{path}.retries.attempts"), format!("is {}; expected 0 or more", retries.attempts));
        }
        at_least_one_ms(retries.per_try_timeout, &format!("{path}.retries.perTryTimeout"), found);
        at_least_one_ms(retries.backoff, &format!("{path}.retries.backoff"), found);
    }
    if let Some(fault) = &route.fault {
        if let Some(delay) = &fault.delay {
            percent(delay.percentage, &format!("{path}.fault.delay.percentage"), found);
            at_least_one_ms(delay.fixed_delay, &format!("{path}.fault.delay.fixedDelay"), found);
        }
        if let Some(abort) = &fault.abort {
            percent(abort.percentage, &format!("{path}.fault.abort.percentage"), found);
            if let Some(status) = abort.http_status
                && !(200..600).contains(&status)
            {
                found.add(format!("{path}.fault.abort.httpStatus"), format!("is {status}; expected 200 to 599"));
            }
        }
    }
}

fn destinations(routes: &[RouteDestination], path: &str, found: &mut Findings) {
    if routes.is_empty() {
        found.add(format!("{path}.route"), "is missing; expected at least one destination");
    }
    for (n, one) in routes.iter().enumerate() {
        weight(one.weight, &format!("{path}.route[{n}].weight"), found);
        destination(one.destination.as_ref(), &format!("{path}.route[{n}].destination"), found);
    }
}

fn weight(weight: i32, path: &str, found: &mut Findings) {
    if weight < 0 {
        found.add(path, format!("is {weight}; expected a weight of 0 or more"));
    }
}

fn destination(to: Option<&Destination>, path: &str, found: &mut Findings) {
    let Some(to) = to else {
        found.add(path, "is missing; expected a map with host");
        return;
    };
    if to.host.is_empty() {
        found.add(format!("{path}.host"), "is missing; expected the host of a service");
    } else if to.host.contains('*') {
        found.add(format!("{path}.host"), format!("`{}` is a wildcard; expected the host of one service", to.host));
    } else {
        host_name(&to.host, &format!("{path}.host"), found);
    }
    if let Some(port) = to.port
        && !(1..=65535).contains(&port.number)
    {
        found.add(format!("{path}.port.number"), format!("is {}; expected 1 to 65535", port.number));
    }
}

/// A name that can stand in a cluster's name and in a virtual host's domains.
fn host_name(host: &str, path: &str, found: &mut Findings) {
    let (wildcard, rest) = match host.strip_prefix('*') {
        Some(rest) => (true, rest),
        None => (false, host),
    };
    let plain = rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':' | b'[' | b']'));
    if host.is_empty() {
        found.add(path, "is empty; expected a host");
    } else if !plain || host.len() > 253 || (wildcard && !rest.is_empty() && !rest.starts_with(['.', '-'])) {
        found.add(
            path,
            format!("`{host}` is not a host; expected a DNS name, a wildcard like *.example.com, or an IP address"),
        );
    }
}

fn percent(percent: Option<Percent>, path: &str, found: &mut Findings) {
    if let Some(Percent { value }) = percent
        && !(0.0..=100.0).contains(&value)
    {
        found.add(format!("{path}.value"), format!("is {value}; expected 0 to 100"));
    }
}

fn at_least_one_ms(duration: Option<Duration>, path: &str, found: &mut Findings) {
    if let Some(duration) = duration
        && duration.0.as_millis() == 0
    {
        found.add(path, format!("is {duration}; expected 1ms or more"));
    }
}

fn destination_rule(spec: &DestinationRule, found: &mut Findings) {
    host_name(&spec.host, "spec.host", found);
    let mut seen = std::collections::BTreeSet::new();
    for (n, subset) in spec.subsets.iter().enumerate() {
        let path = format!("spec.subsets[{n}].name");
        let plain = subset.name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        if subset.name.is_empty() {
            found.add(path, "is missing; expected a name");
        } else if !plain {
            found.add(path, format!("`{}` is not a name; expected letters, digits, `-`, `_` and `.`", subset.name));
        } else if !seen.insert(&subset.name) {
            found.add(path, format!("`{}` stands twice; expected each name once", subset.name));
        }
    }
}

fn service_entry(spec: &ServiceEntry, found: &mut Findings) {
    if spec.hosts.is_empty() {
        found.add("spec.hosts", "is empty; expected at least one host");
    }
    for (n, host) in spec.hosts.iter().enumerate() {
        host_name(host, &format!("spec.hosts[{n}]"), found);
        if host == "*" {
            found.add(format!("spec.hosts[{n}]"), "is `*`; expected a host or a wildcard like *.example.com");
        } else if host.starts_with('*')
            && matches!(spec.resolution, EntryResolution::Dns | EntryResolution::DnsRoundRobin)
            && spec.endpoints.is_empty()
        {
            found.add(
                format!("spec.hosts[{n}]"),
                format!("`{host}` is a wildcard, which DNS can not resolve; expected a full name, or endpoints"),
            );
        }
    }
    if spec.resolution == EntryResolution::DynamicDns {
        found.add(
            "spec.resolution",
            "is DYNAMIC_DNS, which weir does not serve; expected NONE, STATIC, DNS or DNS_ROUND_ROBIN",
        );
    }
    if spec.workload_selector.is_some() && !spec.endpoints.is_empty() {
        found.add("spec.endpoints", "stand beside workloadSelector; expected only one of them");
    }
    for (n, address) in spec.addresses.iter().enumerate() {
        subnet(address, &format!("spec.addresses[{n}]"), found);
    }
    let (mut names, mut numbers) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for (n, port) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{n}]");
        if !(1..=65535).contains(&port.number) {
            found.add(format!("{path}.number"), format!("is {}; expected 1 to 65535", port.number));
        } else if !numbers.insert(port.number) {
            found.add(format!("{path}.number"), format!("{} stands twice; expected each port once", port.number));
        }
        if port.name.is_empty() {
            found.add(format!("{path}.name"), "is missing; expected a name");
        } else if !names.insert(&port.name) {
            found.add(format!("{path}.name"), format!("`{}` stands twice; expected each name once", port.name));
        }
        if port.target_port > 65535 {
            found.add(format!("{path}.targetPort"), format!("is {}; expected 1 to 65535", port.target_port));
        }
    }
    for (n, endpoint) in spec.endpoints.iter().enumerate() {
        let path = format!("spec.endpoints[{n}]");
        workload_entry(endpoint, &path, found);
        let is_ip = endpoint.address.parse::<std::net::IpAddr>().is_ok() || endpoint.address.starts_with("unix://");
        if spec.resolution == EntryResolution::Static && !is_ip && !endpoint.address.is_empty() {
            found.add(
                format!("{path}.address"),
                format!(
                    "`{}` is no IP address, which STATIC resolution needs; expected one, or resolution DNS",
                    endpoint.address
                ),
            );
        }
    }
}

fn workload_entry(entry: &WorkloadEntry, path: &str, found: &mut Findings) {
    match entry.address.strip_prefix("unix://") {
        Some(file) if !file.starts_with('/') => {
            found.add(
                format!("{path}.address"),
                format!("`{}` is no absolute path; expected unix:///PATH", entry.address),
            );
        }
        Some(_) => {}
        None if entry.address.is_empty() => {
            found.add(format!("{path}.address"), "is missing; expected an IP address or a host name");
        }
        None => host_name(&entry.address, &format!("{path}.address"), found),
    }
    for (name, port) in &entry.ports {
        if !(1..=65535).contains(port) {
            found.add(format!("{path}.ports.{name}"), format!("is {port}; expected 1 to 65535"));
        }
    }
}

/// An IP address, with or without a prefix length.
fn subnet(text: &str, path: &str, found: &mut Findings) {
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    let fits = match address.parse::<std::net::IpAddr>() {
        Ok(ip) => {
            length.is_empty() && !text.ends_with('/')
                || length.parse().is_ok_and(|n: u8| n <= if ip.is_ipv4() { 32 } else { 128 })
        }
        Err(_) => false,
    };
    if !fits {
        found.add(path, format!("`{text}` is not an address; expected one like 10.0.0.1 or 10.0.0.0/16"));
    }
}

fn sidecar(spec: &Sidecar, found: &mut Findings) {
    for (n, listener) in spec.egress.iter().enumerate() {
        let path = format!("spec.egress[{n}]");
        if listener.hosts.is_empty() {
            found.add(format!("{path}.hosts"), "is empty; expected hosts of the form NAMESPACE/HOST");
        }
        for (m, host) in listener.hosts.iter().enumerate() {
            if host.split('/').count() != 2 || host.starts_with('/') || host.ends_with('/') {
                found.add(
                    format!("{path}.hosts[{m}]"),
                    format!(
                        "`{host}` is not of the form NAMESPACE/HOST; expected one like ./web.shop.svc.cluster.local"
                    ),
                );
            }
        }
        if let Some(port) = &listener.port
            && !(1..=65535).contains(&port.number)
        {
            found.add(format!("{path}.port.number"), format!("is {}; expected 1 to 65535", port.number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Identity, identify, parse};
    use serde_json::{Value, json};

    fn problems(kind: &str, spec: Value) -> Vec<String> {
        let document =
            json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": "a"}, "spec": spec});
        let Ok(Identity::Known(key)) = identify(&document) else { panic!("no key") };
        match parse(&key, document, 0) {
            Ok(_) => Vec::new(),
            Err(error) => error.problems.iter().map(|p| p.path.clone()).collect(),
        }
    }

    #[test]
    fn what_can_not_be_routed_is_refused_at_its_field() {
        let to = json!({"host": "web"});
        for (spec, path) in [
            (json!({"hosts": ["web"]}), "spec"),
            (json!({"hosts": ["w eb"], "http": [{"route": [{"destination": to}]}]}), "spec.hosts[0]"),
            (json!({"hosts": ["web"], "http": [{}]}), "spec.http[0]"),
            (json!({"hosts": ["web"], "http": [{"route": [{"destination": to}], "redirect": {}}]}), "spec.http[0]"),
            (
                json!({"hosts": ["web"], "http": [{"route": [{"destination": to, "weight": -1}]}]}),
                "spec.http[0].route[0].weight",
            ),
            (json!({"hosts": ["web"], "http": [{"route": [{"weight": 1}]}]}), "spec.http[0].route[0].destination"),
            (
                json!({"hosts": ["web"], "http": [{"route": [{"destination": {"host": "*.x"}}]}]}),
                "spec.http[0].route[0].destination.host",
            ),
            (
                json!({"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web", "port": {"number": 70000}}}]}]}),
                "spec.http[0].route[0].destination.port.number",
            ),
            (json!({"hosts": ["web"], "tcp": [{}]}), "spec.tcp[0].route"),
            (json!({"hosts": ["web"], "tls": [{"route": [{"destination": to}]}]}), "spec.tls[0].match"),
        ] {
            assert_eq!(problems("VirtualService", spec.clone()), [path], "{spec}");
        }
    }

    #[test]
    fn subsets_need_names_of_their_own() {
        assert_eq!(
            problems("DestinationRule", json!({"host": "web", "subsets": [{"name": "v1"}, {"name": "v1"}]})),
            ["spec.subsets[1].name"]
        );
        assert_eq!(problems("DestinationRule", json!({"subsets": [{"name": "v1"}]})), ["spec.host"]);
        assert!(problems("DestinationRule", json!({"host": "*.example.com", "subsets": [{"name": "v1"}]})).is_empty());
    }
}
