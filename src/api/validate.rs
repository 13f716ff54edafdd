//! What must hold for one object by itself. What needs other objects (a subset that no rule has) is not checked here.

use super::{
    Destination, DestinationRule, Duration, HttpRoute, Object, Percent, Problem, RouteDestination, Service, Spec,
    VirtualService,
};

/// Everything that makes `object` unusable; empty where it is fine. Source of the rules: the comments of the fields in
/// istio/api's protos.
pub(super) fn check(object: &Object) -> Vec<Problem> {
    let mut found = Findings::default();
    match &object.spec {
        Spec::VirtualService(spec) => virtual_service(spec, &mut found),
        Spec::DestinationRule(spec) => destination_rule(spec, &mut found),
        Spec::Service(spec) => service(spec, &mut found),
        Spec::Node | Spec::Namespace | Spec::Pod | Spec::EndpointSlice(_) | Spec::Endpoints(_) => {}
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
        }
        destinations(&route.route, &path, found);
    }
    for (n, route) in spec.tcp.iter().enumerate() {
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
