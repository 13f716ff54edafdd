//! Validates single objects, so that Envoy accepts the resulting configuration. Anything that involves other objects (a
//! subset that no rule defines) is not checked here.
//!
//! Sources: the field comments in istio/api's protos, the checks of Istio's admission webhook, and the checks of Envoy
//! ([`crate::envoy_validate`]).
//!
//! Every check on a single object belongs here, so that `weir serve` logs it and `weir analyze` prints it. Values that
//! may be intended (weights that do not sum to 100, TLS without verification) are left to [`crate::analyze`].

mod common;
mod destination_rule;
mod http_policy;
mod peer_authentication;
mod service_entry;
mod sidecar;
mod virtual_service;

pub(crate) use common::{is_dns_label, is_label_name, is_label_value};

use super::{Object, Problem, ProblemKind, Service, Spec};

/// The problems found in an object.
#[derive(Debug, Default)]
pub(super) struct Diagnostics {
    /// The problems that make it invalid.
    pub problems: Vec<Problem>,
    /// Harmless problems.
    pub warnings: Vec<Problem>,
}

/// `message` describes what was found, `advice` what is expected or what to do.
impl Diagnostics {
    /// A problem that rejects the object.
    fn add(
        &mut self,
        path: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.problems.push(Problem::new(path, message, advice));
    }

    /// A regular expression that Envoy does not accept, which rejects the object.
    fn expression(
        &mut self,
        path: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.problems.push(Problem::new(path, message, advice).of(ProblemKind::Expression));
    }

    /// A value that is accepted but probably unintended.
    fn suspicious(
        &mut self,
        path: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.warn(ProblemKind::Suspicious, path, message, advice);
    }

    /// A field without effect.
    fn no_effect(
        &mut self,
        path: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.warn(ProblemKind::NoEffect, path, message, advice);
    }

    /// A deprecated field or value.
    fn deprecated(
        &mut self,
        path: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.warn(ProblemKind::Deprecated, path, message, advice);
    }

    fn warn(
        &mut self,
        kind: ProblemKind,
        path: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.warnings.push(Problem::new(path, message, advice).of(kind));
    }
}

/// Checks `object`.
pub(super) fn check(object: &Object) -> Diagnostics {
    let mut found = Diagnostics::default();
    let meta = &object.meta;
    if !meta.namespace.is_empty() && !common::is_dns_label(&meta.namespace) {
        found.add(
            "metadata.namespace",
            format!("is `{}`", meta.namespace),
            "expected the name of a namespace",
        );
    }
    match &object.spec {
        Spec::VirtualService(spec) => virtual_service::check(spec, meta, &mut found),
        Spec::DestinationRule(spec) => destination_rule::check(spec, meta, &mut found),
        Spec::Service(spec) => {
            // Its name is part of its host.
            if !common::is_dns_label(&meta.name) {
                found.add(
                    "metadata.name",
                    format!("is `{}`", meta.name),
                    "expected lower-case letters, digits and `-`",
                );
            }
            service(spec, &mut found);
        }
        Spec::Node
        | Spec::Namespace
        | Spec::Pod(_)
        | Spec::EndpointSlice(_)
        | Spec::Endpoints(_) => {}
        Spec::ServiceEntry(spec) => service_entry::check(spec, meta, &mut found),
        Spec::WorkloadEntry(spec) => service_entry::workload_entry(spec, "spec", &mut found),
        Spec::Sidecar(spec) => sidecar::check(spec, &mut found),
        Spec::PeerAuthentication(spec) => peer_authentication::check(spec, &mut found),
    }
    found
}

fn service(spec: &Service, found: &mut Diagnostics) {
    for (n, port) in spec.ports.iter().enumerate() {
        if port.port == 0 {
            found.add(
                format!("spec.ports[{n}].port"),
                "is 0 or missing",
                "expected a port from 1 to 65535",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Identity, Parsed, Problem, ProblemKind, identify, parse};
    use crate::source::yaml;
    use serde_json::{Value, json};

    fn checked(kind: &str, spec: Value) -> Vec<Problem> {
        let document = json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": "a"}, "spec": spec});
        let Ok(Identity::Known(key)) = identify(&document) else { panic!("no key") };
        match parse(&key, document, 0) {
            Ok(Parsed { warnings, .. }) => warnings,
            Err(error) => error.problems,
        }
    }

    fn problems(kind: &str, spec: Value) -> Vec<String> {
        checked(kind, spec).into_iter().map(|item| item.path).collect()
    }

    /// The only problem or warning in a spec given as YAML, if any.
    fn only(kind: &str, spec: &str) -> Option<(ProblemKind, String)> {
        let value = yaml::documents(format!("{{{spec}}}").as_bytes()).unwrap().remove(0).value;
        let mut all = checked(kind, value);
        assert!(all.len() < 2, "{spec}: {all:#?}");
        assert!(
            all.iter().all(|item| !item.message.is_empty() && !item.advice.is_empty()),
            "{all:#?}"
        );
        all.pop().map(|item| (item.kind, item.path))
    }

    #[test]
    fn unroutable_specs_are_rejected_at_their_field() {
        let to = json!({"host": "web"});
        for (spec, path) in [
            (json!({"hosts": ["web"]}), "spec"),
            (
                json!({"hosts": ["w eb"], "http": [{"route": [{"destination": to}]}]}),
                "spec.hosts[0]",
            ),
            (json!({"hosts": ["web"], "http": [{}]}), "spec.http[0]"),
            (
                json!({"hosts": ["web"], "http": [{"route": [{"destination": to}], "redirect": {"uri": "/"}}]}),
                "spec.http[0]",
            ),
            (
                json!({"hosts": ["web"], "http": [{"route": [{"destination": to, "weight": -1}]}]}),
                "spec.http[0].route[0].weight",
            ),
            (
                json!({"hosts": ["web"], "http": [{"route": [{"weight": 1}]}]}),
                "spec.http[0].route[0].destination",
            ),
            (
                json!({"hosts": ["web"], "http": [{"route": [{"destination": {"host": "*"}}]}]}),
                "spec.http[0].route[0].destination.host",
            ),
            (
                json!({"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web", "port": {"number": 70000}}}]}]}),
                "spec.http[0].route[0].destination.port.number",
            ),
            (json!({"hosts": ["web"], "tcp": [{}]}), "spec.tcp[0].route"),
            (
                json!({"hosts": ["web"], "tls": [{"route": [{"destination": to}]}]}),
                "spec.tls[0].match",
            ),
        ] {
            assert_eq!(problems("VirtualService", spec.clone()), [path], "{spec}");
        }
    }

    #[test]
    fn subsets_need_names_of_their_own() {
        assert_eq!(
            problems(
                "DestinationRule",
                json!({"host": "web", "subsets": [{"name": "v1"}, {"name": "v1"}]})
            ),
            ["spec.subsets[1].name"]
        );
        assert_eq!(
            problems("DestinationRule", json!({"subsets": [{"name": "v1"}]})),
            ["spec.host"]
        );
        assert!(
            problems(
                "DestinationRule",
                json!({"host": "*.example.com", "subsets": [{"name": "v1"}]})
            )
            .is_empty()
        );
    }

    const TO: &str = "route: [{destination: {host: web}}]";

    /// The path of each problem is below `spec.http[0]`.
    fn problems_of_routes(cases: &[(&str, ProblemKind, &str)]) {
        for (fields, kind, path) in cases {
            let found = only("VirtualService", &format!("hosts: [web], http: [{{{fields}}}]"));
            assert_eq!(found, Some((*kind, format!("spec.http[0].{path}"))), "{fields}");
        }
    }

    /// The same for fields beside a destination.
    fn problems_beside_destinations(cases: &[(&str, ProblemKind, &str)]) {
        for (fields, kind, path) in cases {
            problems_of_routes(&[(&format!("{TO}, {fields}"), *kind, path)]);
        }
    }

    #[test]
    fn matches_of_http_routes() {
        use ProblemKind::{Expression, Invalid, NoEffect, Suspicious};
        problems_beside_destinations(&[
            ("match: [{uri: {regex: 'a(?=b)'}}]", Expression, "match[0].uri.regex"),
            ("match: [{uri: {regex: ''}}]", Expression, "match[0].uri.regex"),
            ("match: [{method: {prefix: ''}}]", Invalid, "match[0].method.prefix"),
            ("match: [{uri: {exact: /a, prefix: /b}}]", Invalid, "match[0].uri"),
            ("match: [{headers: {a.b: {regex: '['}}}]", Expression, "match[0].headers.a.b.regex"),
            ("match: [{headers: {uri: {exact: x}}}]", Suspicious, "match[0].headers.uri"),
            ("match: [{headers: {'a b': {exact: x}}}]", Invalid, "match[0].headers"),
            (
                "match: [{headers: {'@request.auth.claims.a': {exact: x}}}]",
                Invalid,
                "match[0].headers",
            ),
            (
                "match: [{queryParams: {q: {regex: 'a**'}}}]",
                Expression,
                "match[0].queryParams.q.regex",
            ),
            ("match: [{uri: {regex: a}, ignoreUriCase: true}]", NoEffect, "match[0].ignoreUriCase"),
            ("match: [{port: 70000}]", Invalid, "match[0].port"),
            ("match: [{sourceNamespace: 'a b'}]", Invalid, "match[0].sourceNamespace"),
        ]);
        let long = format!(
            "hosts: [web], http: [{{{TO}, match: [{{uri: {{regex: '{}'}}}}]}}]",
            "a".repeat(1025)
        );
        assert_eq!(only("VirtualService", &long).unwrap().0, Expression);
    }

    #[test]
    fn retries_and_faults() {
        use ProblemKind::{Deprecated, Invalid, Suspicious};
        problems_beside_destinations(&[
            ("retries: {attempts: 2, retryOn: 'connect_failure'}", Invalid, "retries.retryOn"),
            ("retries: {attempts: 0, retryOn: 5xx}", Invalid, "retries.attempts"),
            ("fault: {}", Invalid, "fault"),
            ("fault: {abort: {percentage: {value: 5}}}", Suspicious, "fault.abort"),
            ("fault: {abort: {http2Error: X}}", Invalid, "fault.abort.http2Error"),
            ("fault: {abort: {httpStatus: 500, grpcStatus: UNAVAILABLE}}", Invalid, "fault.abort"),
            ("fault: {abort: {grpcStatus: NOPE}}", Invalid, "fault.abort.grpcStatus"),
            (
                "fault: {abort: {httpStatus: 500, percentage: {value: 0.00001}}}",
                Suspicious,
                "fault.abort.percentage.value",
            ),
            ("fault: {delay: {exponentialDelay: 1s}}", Invalid, "fault.delay.exponentialDelay"),
            ("fault: {delay: {percent: 5, fixedDelay: 1s}}", Deprecated, "fault.delay.percent"),
            ("fault: {delay: {percentage: {value: 5}}}", Suspicious, "fault.delay"),
        ]);
    }

    #[test]
    fn cors_policies() {
        use ProblemKind::{Deprecated, Expression, Invalid, Suspicious};
        problems_beside_destinations(&[
            (
                "corsPolicy: {allowOrigins: [{regex: '*'}]}",
                Expression,
                "corsPolicy.allowOrigins[0].regex",
            ),
            ("corsPolicy: {allowOrigins: [{}]}", Invalid, "corsPolicy.allowOrigins[0]"),
            ("corsPolicy: {allowOrigin: ['*']}", Deprecated, "corsPolicy.allowOrigin"),
            ("corsPolicy: {allowMethods: [GET]}", Suspicious, "corsPolicy"),
            (
                "corsPolicy: {allowOrigins: [{exact: x}], allowMethods: [get]}",
                Invalid,
                "corsPolicy.allowMethods[0]",
            ),
            (
                "corsPolicy: {allowOrigins: [{exact: x}], allowHeaders: ['a, b']}",
                Invalid,
                "corsPolicy.allowHeaders[0]",
            ),
            (
                "corsPolicy: {allowOrigins: [{exact: x}], maxAge: 1500ms}",
                Invalid,
                "corsPolicy.maxAge",
            ),
        ]);
    }

    #[test]
    fn mirrors_rewrites_and_headers() {
        use ProblemKind::{Deprecated, Expression, Invalid, NoEffect};
        problems_beside_destinations(&[
            ("mirrorPercent: 5, mirror: {host: web}", Deprecated, "mirrorPercent"),
            ("mirrorPercentage: {value: 5}", NoEffect, "mirrorPercentage"),
            ("mirror: {host: web}, mirrors: [{destination: {host: web}}]", Invalid, "mirrors"),
            ("rewrite: {}", Invalid, "rewrite"),
            ("rewrite: {uri: /, uriRegexRewrite: {match: a, rewrite: b}}", Invalid, "rewrite"),
            (
                "rewrite: {uriRegexRewrite: {match: '(', rewrite: b}}",
                Expression,
                "rewrite.uriRegexRewrite.match",
            ),
            ("headers: {response: {set: {host: x}}}", NoEffect, "headers.response.set"),
            ("headers: {request: {remove: [':path']}}", NoEffect, "headers.request.remove[0]"),
            ("headers: {request: {set: {'a b': c}}}", Invalid, "headers.request.set"),
            (
                "rewrite: {authority: a}, headers: {request: {set: {host: x}}}",
                Invalid,
                "headers.request",
            ),
        ]);
    }

    #[test]
    fn routes_that_redirect_respond_or_delegate() {
        use ProblemKind::{DeadRoute, Invalid, NoEffect};
        problems_of_routes(&[
            ("redirect: {uri: /x}, fault: {abort: {httpStatus: 500}}", Invalid, "fault"),
            ("directResponse: {status: 200}, rewrite: {uri: /x}", Invalid, "rewrite"),
            ("redirect: {uri: /x}, timeout: 1s", NoEffect, "timeout"),
            ("directResponse: {status: 200}, retries: {attempts: 1}", NoEffect, "retries"),
            ("redirect: {}", Invalid, "redirect"),
            ("redirect: {uri: /x, prefixRewrite: /y}", Invalid, "redirect"),
            (
                "match: [{uri: {exact: /a}}], redirect: {prefixRewrite: /y}",
                Invalid,
                "redirect.prefixRewrite",
            ),
            ("redirect: {scheme: ftp}", Invalid, "redirect.scheme"),
            ("delegate: {}", DeadRoute, "delegate.name"),
        ]);
    }

    fn problems_of_virtual_services(cases: &[(String, ProblemKind, &str)]) {
        for (spec, kind, path) in cases {
            let wanted = Some((*kind, format!("spec.{path}")));
            assert_eq!(only("VirtualService", spec), wanted, "{spec}");
        }
    }

    #[test]
    fn hosts_and_gateways() {
        use ProblemKind::Invalid;
        problems_of_virtual_services(&[
            (format!("hosts: ['*.a.b', x.a.b], http: [{{{TO}}}]"), Invalid, "hosts[1]"),
            (format!("hosts: ['*'], http: [{{{TO}}}]"), Invalid, "hosts[0]"),
            (
                format!("hosts: ['*'], gateways: [mesh, ns/gw], http: [{{{TO}}}]"),
                Invalid,
                "hosts[0]",
            ),
            (
                format!("hosts: [web], exportTo: ['*', '.'], http: [{{{TO}}}]"),
                Invalid,
                "exportTo[0]",
            ),
            (
                format!("hosts: [web], exportTo: ['.', default], http: [{{{TO}}}]"),
                Invalid,
                "exportTo[1]",
            ),
            (format!("hosts: [web], exportTo: ['~'], http: [{{{TO}}}]"), Invalid, "exportTo[0]"),
            (format!("gateways: [mesh], http: [{{{TO}}}]"), Invalid, "gateways"),
            (format!("http: [{{{TO}}}], tcp: [{{{TO}}}]"), Invalid, "tcp"),
            ("http: [{delegate: {name: other}}]".to_owned(), Invalid, "http[0].delegate"),
        ]);
        assert_eq!(
            only("VirtualService", &format!("hosts: ['*'], gateways: [gw], http: [{{{TO}}}]")),
            None
        );
    }

    #[test]
    fn connections() {
        use ProblemKind::{DeadRoute, Invalid, NoEffect, Suspicious};
        let two = "route: [{destination: {host: a}}, {destination: {host: b}}]";
        problems_of_virtual_services(&[
            (
                format!("hosts: [a.b], tls: [{{match: [{{sniHosts: [c.d]}}], {TO}}}]"),
                Invalid,
                "tls[0].match[0].sniHosts[0]",
            ),
            (
                format!("hosts: [a.b], tls: [{{match: [{{sniHosts: [10.0.0.1]}}], {TO}}}]"),
                Suspicious,
                "tls[0].match[0].sniHosts[0]",
            ),
            (
                format!("hosts: [a.b], tcp: [{{match: [{{sourceSubnet: 10.0.0.0/8}}], {TO}}}]"),
                NoEffect,
                "tcp[0].match[0].sourceSubnet",
            ),
            (
                format!(
                    "hosts: [a.b], tcp: [{{match: [{{destinationSubnets: [10.0.0.0/33]}}], {TO}}}]"
                ),
                Invalid,
                "tcp[0].match[0].destinationSubnets[0]",
            ),
            (format!("hosts: [a.b], tcp: [{{{two}}}]"), DeadRoute, "tcp[0].route"),
            (format!("hosts: [a.b], http: [{{{two}}}, {{{TO}}}]"), DeadRoute, "http[0].route"),
        ]);
    }

    /// The path of each problem is below the traffic policy, of the rule as well as of a subset.
    fn problems_of_policies(cases: &[(&str, ProblemKind, &str)]) {
        for (policy, kind, path) in cases {
            for (before, after, at) in [
                ("trafficPolicy: {", "}", "trafficPolicy"),
                (
                    "subsets: [{name: s, labels: {version: v1}, trafficPolicy: {",
                    "}}]",
                    "subsets[0].trafficPolicy",
                ),
            ] {
                let found =
                    only("DestinationRule", &format!("host: other, {before}{policy}{after}"));
                let path = format!("spec.{at}.{path}").trim_end_matches('.').to_owned();
                assert_eq!(found, Some((*kind, path)), "{policy}");
            }
        }
    }

    #[test]
    fn load_balancers() {
        use ProblemKind::{Deprecated, Invalid};
        problems_of_policies(&[
            ("loadBalancer: {simple: LEAST_CONN}", Deprecated, "loadBalancer.simple"),
            (
                "loadBalancer: {warmupDurationSecs: 5s}",
                Deprecated,
                "loadBalancer.warmupDurationSecs",
            ),
            ("loadBalancer: {warmup: {}}", Invalid, "loadBalancer.warmup.duration"),
            (
                "loadBalancer: {warmup: {duration: 5s, minimumPercent: 101}}",
                Invalid,
                "loadBalancer.warmup.minimumPercent",
            ),
            (
                "loadBalancer: {warmup: {duration: 5s, aggression: 0}}",
                Invalid,
                "loadBalancer.warmup.aggression",
            ),
            (
                "loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}",
                Invalid,
                "loadBalancer",
            ),
        ]);
    }

    #[test]
    fn hashes_and_localities_of_load_balancers() {
        use ProblemKind::{Deprecated, Invalid, Suspicious};
        problems_of_policies(&[
            ("loadBalancer: {consistentHash: {}}", Suspicious, "loadBalancer.consistentHash"),
            (
                "loadBalancer: {consistentHash: {useSourceIp: true, httpHeaderName: x}}",
                Invalid,
                "loadBalancer.consistentHash",
            ),
            (
                "loadBalancer: {consistentHash: {httpCookie: {ttl: 1s}}}",
                Invalid,
                "loadBalancer.consistentHash.httpCookie.name",
            ),
            (
                "loadBalancer: {consistentHash: {useSourceIp: true, minimumRingSize: 5}}",
                Deprecated,
                "loadBalancer.consistentHash.minimumRingSize",
            ),
            (
                "loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 10}}}",
                Invalid,
                "loadBalancer.consistentHash.maglev.tableSize",
            ),
            (
                "loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}",
                Suspicious,
                "loadBalancer.localityLbSetting",
            ),
            (
                "outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: a, to: a}]}}",
                Invalid,
                "loadBalancer.localityLbSetting.failover[0]",
            ),
            (
                "loadBalancer: {localityLbSetting: {distribute: [{from: 'a/*', to: {'a/*': 90}}]}}",
                Invalid,
                "loadBalancer.localityLbSetting.distribute[0].to",
            ),
        ]);
    }

    #[test]
    fn outlier_detection_connection_pools_and_tls() {
        use ProblemKind::{Credential, Deprecated, Invalid, NoEffect};
        problems_of_policies(&[
            ("", Invalid, ""),
            (
                "outlierDetection: {consecutiveErrors: 5}",
                Deprecated,
                "outlierDetection.consecutiveErrors",
            ),
            (
                "outlierDetection: {consecutiveLocalOriginFailures: 5}",
                Invalid,
                "outlierDetection.consecutiveLocalOriginFailures",
            ),
            (
                "outlierDetection: {maxEjectionPercent: 101}",
                Invalid,
                "outlierDetection.maxEjectionPercent",
            ),
            ("outlierDetection: {interval: 0s}", Invalid, "outlierDetection.interval"),
            ("connectionPool: {}", Invalid, "connectionPool"),
            (
                "connectionPool: {tcp: {maxConnections: -1}}",
                Invalid,
                "connectionPool.tcp.maxConnections",
            ),
            ("connectionPool: {http: {maxRetries: -1}}", Invalid, "connectionPool.http.maxRetries"),
            (
                "connectionPool: {http: {useClientProtocol: true, h2UpgradePolicy: UPGRADE}}",
                Invalid,
                "connectionPool.http.useClientProtocol",
            ),
            ("tls: {mode: ISTIO_MUTUAL, caCertificates: /ca.pem}", NoEffect, "tls.caCertificates"),
            (
                "tls: {mode: MUTUAL, clientCertificate: /c, caCertificates: /ca}",
                Invalid,
                "tls.privateKey",
            ),
            (
                "tls: {mode: SIMPLE, caCertificates: /ca.pem, insecureSkipVerify: true}",
                Invalid,
                "tls.caCertificates",
            ),
            ("tls: {mode: SIMPLE, credentialName: x}", Credential, "tls.credentialName"),
            ("portLevelSettings: [{tls: {mode: DISABLE}}]", Invalid, "portLevelSettings[0].port"),
            ("portLevelSettings: [{port: {number: 80}}]", Invalid, "portLevelSettings[0]"),
            ("tunnel: {targetHost: a.b}", Invalid, "tunnel.targetPort"),
        ]);
        let beyond = "host: other, workloadSelector: {matchLabels: {app: web}}, exportTo: ['*']";
        assert_eq!(only("DestinationRule", beyond), Some((Invalid, "spec.exportTo".to_owned())));
    }

    fn at_port(settings: &str) -> String {
        format!("portLevelSettings: [{{port: {{number: 80}}, {settings}}}]")
    }

    #[test]
    fn a_subset_inherits_the_outlier_detection_of_its_rule() {
        let failover = "loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}";
        let ranked = "loadBalancer: {localityLbSetting: {failoverPriority: [rack]}}";
        let zones = "loadBalancer: {zoneAwareLbSetting: {failover: [{from: a, to: b}]}}";
        let detects = "outlierDetection: {interval: 5s}";
        let balances = "loadBalancer: {simple: RANDOM}";
        let locality = "loadBalancer.localityLbSetting";
        for (rule, subset, suspicious) in [
            (detects.to_owned(), failover.to_owned(), None),
            (detects.to_owned(), ranked.to_owned(), None),
            (detects.to_owned(), zones.to_owned(), None),
            (at_port(detects), failover.to_owned(), None),
            (balances.to_owned(), failover.to_owned(), Some(locality.to_owned())),
            (balances.to_owned(), format!("{failover}, {detects}"), None),
            // A port-level entry of the subset replaces the entire policy for its port.
            (
                detects.to_owned(),
                at_port(failover),
                Some(format!("portLevelSettings[0].{locality}")),
            ),
            (balances.to_owned(), at_port(&format!("{failover}, {detects}")), None),
        ] {
            let spec = format!(
                "host: other, trafficPolicy: {{{rule}}}, \
                 subsets: [{{name: s, labels: {{version: v1}}, trafficPolicy: {{{subset}}}}}]"
            );
            let expected = suspicious.map(|path| {
                (ProblemKind::Suspicious, format!("spec.subsets[0].trafficPolicy.{path}"))
            });
            assert_eq!(only("DestinationRule", &spec), expected, "{spec}");
        }
    }
}
