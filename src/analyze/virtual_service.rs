//! Checks single VirtualServices for valid but possibly unintended settings. Invalid values are reported when the
//! objects are parsed.

use std::collections::HashMap;

use super::index::IndexedVirtualService;
use super::{Findings, code};
use crate::api::HttpRoute;

pub(super) fn check(virtual_service: &IndexedVirtualService<'_>, found: &mut Findings) {
    hosts(virtual_service, found);
    gateways(virtual_service, found);
    for (n, route) in virtual_service.spec.http.iter().enumerate() {
        let path = format!("spec.http[{n}]");
        weights(virtual_service, route.route.iter().map(|to| to.weight), &path, found);
        timeout(virtual_service, route, &path, found);
    }
    for (n, route) in virtual_service.spec.tls.iter().enumerate() {
        weights(
            virtual_service,
            route.route.iter().map(|to| to.weight),
            &format!("spec.tls[{n}]"),
            found,
        );
    }
    for (n, route) in virtual_service.spec.tcp.iter().enumerate() {
        weights(
            virtual_service,
            route.route.iter().map(|to| to.weight),
            &format!("spec.tcp[{n}]"),
            found,
        );
    }
}

/// A service listed by its short and its full name.
fn hosts(virtual_service: &IndexedVirtualService<'_>, found: &mut Findings) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (n, host) in virtual_service.hosts.iter().enumerate() {
        if let Some(first) = seen.get(&**host) {
            let message = format!("is `{host}`, the same host as hosts[{first}]");
            found.add(
                &code::NO_EFFECT,
                virtual_service.entry,
                format!("spec.hosts[{n}]"),
                message,
                "remove one of \
                them",
            );
        }
        seen.entry(host).or_insert(n);
    }
}

fn gateways(virtual_service: &IndexedVirtualService<'_>, found: &mut Findings) {
    if !virtual_service.is_for_mesh() {
        let message = "applies only to gateways: no sidecar uses this VirtualService";
        let advice = "add `mesh` to spec.gateways if sidecars should use it";
        found.add(&code::NOT_FOR_SIDECARS, virtual_service.entry, "spec.gateways", message, advice);
        return;
    }
    for (n, name) in
        virtual_service.spec.gateways.iter().enumerate().filter(|(_, name)| *name != "mesh")
    {
        let message = format!(
            "`{name}` is a gateway, which weir does not serve; sidecars still use the VirtualService"
        );
        let advice = "ignore this if another control plane serves the gateway";
        found.add(
            &code::NOT_FOR_SIDECARS,
            virtual_service.entry,
            format!("spec.gateways[{n}]"),
            message,
            advice,
        );
    }
    for (path, matched) in virtual_service.matches() {
        if !matched.gateways.is_empty() && !matched.gateways.iter().any(|name| name == "mesh") {
            let message = "applies only to gateways: no sidecar uses this match";
            let advice = "add `mesh` to its gateways if sidecars should use it";
            found.add(
                &code::NOT_FOR_SIDECARS,
                virtual_service.entry,
                format!("{path}.gateways"),
                message,
                advice,
            );
        }
    }
}

/// Sums other than 100. A sum of 0 is reported when the object is parsed.
fn weights(
    virtual_service: &IndexedVirtualService<'_>,
    weights: impl ExactSizeIterator<Item = i32>,
    path: &str,
    found: &mut Findings,
) {
    let count = weights.len();
    let sum: i64 = weights.map(i64::from).sum();
    if count > 1 && sum != 0 && sum != 100 {
        let message =
            format!("the weights sum to {sum}, so a weight of {sum} would mean all requests");
        let advice = "make them sum to 100 if they are meant as percentages";
        found.add(
            &code::WEIGHT_SUM,
            virtual_service.entry,
            format!("{path}.route"),
            message,
            advice,
        );
    }
}

fn timeout(
    virtual_service: &IndexedVirtualService<'_>,
    route: &HttpRoute,
    path: &str,
    found: &mut Findings,
) {
    let Some(retries) = route.retries.as_ref().filter(|retries| retries.attempts > 0) else {
        return;
    };
    let limit = route.timeout.filter(|timeout| !timeout.is_zero());
    if let (Some(limit), Some(each)) = (limit, retries.per_try_timeout)
        && limit < each
    {
        let message = format!(
            "ends a request after {limit}, before a single attempt of {each} (perTryTimeout) can \
            finish"
        );
        let advice = "make timeout at least perTryTimeout times the number of attempts";
        found.add(
            &code::TIMEOUT,
            virtual_service.entry,
            format!("{path}.timeout"),
            message,
            advice,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{
        base, found_in_route as route, found_in_virtual_service as spec, ids, store,
    };
    use crate::api::Kind;

    const TO: &str = "route: [{destination: {host: web}}]";

    #[test]
    fn valid_objects_have_no_findings() {
        assert_eq!(ids(&base()), [""; 0]);
        for fine in [
            "match: [{uri: {prefix: ''}}], route: [{destination: {host: web}}]",
            "match: [{headers: {x-user: {}, cookie: {regex: '*'}}, withoutHeaders: {a: {regex: '*'}}}], route: [{destination: {host: web}}]",
            "route: [{destination: {host: web, subset: v1}, weight: 1}]",
            "route: [{destination: {host: web, subset: v1}, weight: 90}, {destination: {host: web, subset: v2}, weight: 10}]",
            "route: [{destination: {host: web}}], timeout: 3s, retries: {attempts: 2, perTryTimeout: 1s, retryOn: '5xx, reset,503'}",
            "route: [{destination: {host: web}}], fault: {delay: {fixedDelay: 1s, percentage: {value: 1}}, abort: {httpStatus: 503}}",
            "route: [{destination: {host: web}}], headers: {request: {set: {':authority': x}, remove: [x-y]}}",
            "route: [{destination: {host: web}}], mirror: {host: web}, mirrorPercentage: {value: 5}",
            "redirect: {uri: /x}",
            "route: [{destination: {host: web}}], corsPolicy: {allowOrigins: [{exact: '*'}, {regex: '.*'}], allowMethods: [GET]}",
        ] {
            assert_eq!(route(fine), [], "{fine}");
        }
    }

    fn weighted(subset: &str, weight: i32) -> String {
        format!("{{destination: {{host: web, subset: {subset}}}, weight: {weight}}}")
    }

    fn found_with_weights(a: i32, b: i32) -> [Vec<(&'static str, String)>; 3] {
        let route = format!("route: [{}, {}]", weighted("v1", a), weighted("v2", b));
        let matched = "match: [{sniHosts: [x.a.b]}]";
        [
            spec(&format!("hosts: ['*.a.b'], http: [{{{route}}}]")),
            spec(&format!("hosts: ['*.a.b'], tls: [{{{matched}, {route}}}]")),
            spec(&format!("hosts: ['*.a.b'], tcp: [{{{route}}}]")),
        ]
    }

    fn in_each(code: &'static str, field: &str) -> [Vec<(&'static str, String)>; 3] {
        ["http", "tls", "tcp"].map(|kind| vec![(code, format!("spec.{kind}[0].{field}"))])
    }

    #[test]
    fn weights() {
        assert_eq!(found_with_weights(0, 0), in_each("IST0106", "route"));
        assert_eq!(found_with_weights(1, 2), in_each("WEIR0101", "route"));
        assert_eq!(found_with_weights(-1, 101), in_each("IST0106", "route[0].weight"));
        assert_eq!(found_with_weights(100, 0), [vec![], vec![], vec![]]);
    }

    #[test]
    fn a_route_with_zero_weights_leaves_other_routes_active() {
        let zero = "route: [{destination: {host: web, subset: v1}, weight: 0}, {destination: {host: web, subset: v2}}]";
        let text = format!(
            "{}---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: shop}}\n\
             spec: {{hosts: ['*.a.b'], http: [{{match: [{{uri: {{prefix: /a}}}}], {zero}}}, {{{TO}}}]}}\n",
            base()
        );
        let store = store(&text);
        assert_eq!((store.count(Kind::VirtualService), store.rejected().count()), (1, 0));
    }

    #[test]
    fn valid_but_suspicious_settings_are_reported() {
        for (fields, code, path) in [
            ("match: [{gateways: [ns/gw]}]", "WEIR0201", "match[0].gateways"),
            ("timeout: 1s, retries: {attempts: 2, perTryTimeout: 2s}", "WEIR0107", "timeout"),
        ] {
            let path = format!("spec.http[0].{path}");
            assert_eq!(route(&format!("{TO}, {fields}")), [(code, path)], "{fields}");
        }
        let tcp =
            spec(&format!("hosts: ['*.a.b'], tcp: [{{match: [{{gateways: [ns/gw]}}], {TO}}}]"));
        assert_eq!(tcp, [("WEIR0201", "spec.tcp[0].match[0].gateways".to_owned())]);
    }

    #[test]
    fn hosts_and_gateways() {
        for (fields, expected) in [
            ("hosts: ['*'], gateways: [ns/gw]", vec![("WEIR0201", "spec.gateways")]),
            ("hosts: ['*.a.b'], gateways: [mesh, ns/gw]", vec![("WEIR0201", "spec.gateways[1]")]),
            ("hosts: [other, other.shop.svc.cluster.local]", vec![("WEIR0203", "spec.hosts[1]")]),
        ] {
            let expected: Vec<_> =
                expected.into_iter().map(|(code, path)| (code, path.to_owned())).collect();
            assert_eq!(spec(&format!("{fields}, http: [{{{TO}}}]")), expected, "{fields}");
        }
    }
}
