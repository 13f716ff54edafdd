//! DestinationRules: hosts and subsets that lead nowhere, values that are not allowed or contradict each other,
//! deprecated fields, and TLS that verifies nobody. Source of what is not allowed: istio/istio, `pkg/config/validation`.

use std::collections::HashSet;

use super::index::{DestinationRule, Index, shown};
use super::references::unknown_namespace;
use super::{Findings, any_of, code, export_to};
use crate::api::{
    ClientTlsSettings, ConnectionPoolSettings, ConsistentHashLb, H2UpgradePolicy, LoadBalancerSettings,
    LocalityLbSetting, OutlierDetection, PortTrafficPolicy, SimpleLb, TlsMode, TrafficPolicy, selects,
};
use crate::mesh::is_wildcard;

/// The largest Maglev table, which is a prime. Source: Envoy's documentation of `table_size`.
const MAX_MAGLEV: u64 = 5_000_011;

/// Labels of localities, which rank endpoints before any other. Source: Kubernetes' and Istio's well-known labels.
const LOCALITY_LABELS: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

pub(super) fn check(one: &DestinationRule<'_>, index: &Index<'_>, found: &mut Findings) {
    export_to(one.entry, &one.spec.export_to, found);
    for (n, name) in one.spec.export_to.iter().enumerate() {
        unknown_namespace(one.entry, name, format!("spec.exportTo[{n}]"), index, found);
    }
    selector(one, index, found);
    host_and_subsets(one, index, found);
    let mut sink = Sink { one, index, found };
    if let Some(policy) = &one.spec.traffic_policy {
        sink.policy(policy, "spec.trafficPolicy");
    }
    for (n, subset) in one.spec.subsets.iter().enumerate() {
        if let Some(policy) = &subset.traffic_policy {
            sink.policy(policy, &format!("spec.subsets[{n}].trafficPolicy"));
        }
    }
}

fn selector(one: &DestinationRule<'_>, index: &Index<'_>, found: &mut Findings) {
    let Some(selector) = &one.spec.workload_selector else { return };
    let namespace = one.namespace();
    let beyond = one.spec.export_to.iter().position(|name| name != "." && *name != **namespace);
    if let Some(n) = beyond {
        let message = "a rule with a workloadSelector is for its own namespace alone";
        found.add(&code::SCHEMA, one.entry, format!("spec.exportTo[{n}]"), message, "write exportTo: [.]");
    }
    if let Some(pods) = index.pods.get(namespace)
        && !pods.iter().any(|labels| selects(&selector.match_labels, labels))
    {
        let message = format!("no pod in {namespace} has all of these labels, so the rule is for no client");
        let advice = "correct the labels: they are those of the clients, not of the service";
        found.add(&code::NO_WORKLOADS, one.entry, "spec.workloadSelector", message, advice);
    }
}

fn host_and_subsets(one: &DestinationRule<'_>, index: &Index<'_>, found: &mut Findings) {
    let host = &*one.host;
    let name = shown(host, index.config);
    if !index.is_known(host) {
        if !index.is_refused_service(host) {
            let message = format!("no known service is `{host}`, so the rule does nothing");
            let advice = match index.similar(host).as_slice() {
                [] => "check its spelling and namespace, or add a Service or ServiceEntry for it".to_owned(),
                similar => format!("write {}, if that is what is meant", any_of(similar)),
            };
            found.add(&code::UNUSED_RULE, one.entry, "spec.host", message, advice);
        }
        return;
    }
    let endpoints = index.service(host).filter(|_| !is_wildcard(host)).and_then(|service| service.endpoints.as_ref());
    for (n, subset) in one.spec.subsets.iter().enumerate() {
        let path = format!("spec.subsets[{n}].labels");
        if subset.labels.is_empty() {
            let message = format!("the subset `{}` has no labels, so it is all of {name}", subset.name);
            let advice = "add the labels that tell its pods from others, if it is not only there for its policy";
            found.add(&code::SUBSET_WITHOUT_LABELS, one.entry, path, message, advice);
            continue;
        }
        if let Some(endpoints) = endpoints
            && !endpoints.iter().any(|labels| selects(&subset.labels, labels))
        {
            let labels: Vec<_> = subset.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let message = format!(
                "none of the {} known endpoints of {name} has {}: requests to the subset `{}` get 503",
                endpoints.len(),
                labels.join(","),
                subset.name
            );
            found.add(&code::EMPTY_SUBSET, one.entry, path, message, "correct the labels, or start the pods first");
        }
    }
}

/// Where findings about one rule go.
struct Sink<'a, 'b> {
    one: &'a DestinationRule<'a>,
    index: &'a Index<'a>,
    found: &'b mut Findings,
}

impl Sink<'_, '_> {
    fn wrong(&mut self, path: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) {
        self.found.add(&code::SCHEMA, self.one.entry, path, message, advice);
    }

    fn old(&mut self, path: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) {
        self.found.add(&code::DEPRECATED, self.one.entry, path, message, advice);
    }

    fn policy(&mut self, policy: &TrafficPolicy, path: &str) {
        if *policy == TrafficPolicy::default() {
            self.wrong(
                path,
                "is empty",
                "give it a loadBalancer, connectionPool, outlierDetection or tls, or remove it",
            );
            return;
        }
        let outlier = policy.outlier_detection.as_ref();
        self.outlier(outlier, path);
        self.pool(policy.connection_pool.as_ref(), path);
        self.load_balancer(policy.load_balancer.as_ref(), outlier, path);
        self.tls(policy.tls.as_ref(), path, false);
        for (n, settings) in policy.port_level_settings.iter().enumerate() {
            self.port(settings, &format!("{path}.portLevelSettings[{n}]"));
        }
        if let Some(tunnel) = &policy.tunnel {
            let path = format!("{path}.tunnel");
            if policy.proxy_protocol.is_some() {
                self.wrong(&path, "stands beside proxyProtocol", "keep one of the two");
            }
            if !matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST") {
                let message = format!("is `{}`", tunnel.protocol);
                self.wrong(format!("{path}.protocol"), message, "write CONNECT or POST");
            }
            if tunnel.target_host.is_empty() {
                self.wrong(format!("{path}.targetHost"), "is missing", "write the host where the tunnel ends");
            }
            if !(1..=65535).contains(&tunnel.target_port) {
                self.wrong(format!("{path}.targetPort"), format!("is {}", tunnel.target_port), "write 1 to 65535");
            }
        }
        if let Some(share) = policy.retry_budget.as_ref().and_then(|budget| budget.percent)
            && !(0.0..=100.0).contains(&share)
        {
            let path = format!("{path}.retryBudget.percent");
            self.wrong(path, format!("is {share}"), "write 0 to 100");
        }
    }

    fn port(&mut self, settings: &PortTrafficPolicy, path: &str) {
        let rest = PortTrafficPolicy { port: settings.port, ..PortTrafficPolicy::default() };
        if *settings == rest {
            self.wrong(
                path,
                "sets nothing for its port",
                "give it a loadBalancer, connectionPool, outlierDetection or tls",
            );
        }
        match settings.port.map(|port| port.number) {
            None => self.wrong(format!("{path}.port"), "is missing", "write port: {number: ...}"),
            Some(number) if !(1..=65535).contains(&number) => {
                self.wrong(format!("{path}.port.number"), format!("is {number}"), "write a port from 1 to 65535");
            }
            Some(number) => {
                let service = self.index.service(&self.one.host).filter(|_| !is_wildcard(&self.one.host));
                let known: Vec<u16> = service.map(|service| service.ports.clone()).unwrap_or_default();
                if !known.is_empty() && !known.iter().any(|known| u32::from(*known) == number) {
                    let name = shown(&self.one.host, self.index.config);
                    let known: Vec<_> = known.iter().map(ToString::to_string).collect();
                    let message = format!("the service {name} has no port {number}, so the settings do nothing");
                    let advice = format!("use the port of the service, {}", any_of(&known));
                    self.found.add(&code::UNKNOWN_PORT, self.one.entry, format!("{path}.port.number"), message, advice);
                }
            }
        }
        let outlier = settings.outlier_detection.as_ref();
        self.outlier(outlier, path);
        self.pool(settings.connection_pool.as_ref(), path);
        self.load_balancer(settings.load_balancer.as_ref(), outlier, path);
        self.tls(settings.tls.as_ref(), path, true);
    }

    fn outlier(&mut self, outlier: Option<&OutlierDetection>, path: &str) {
        let Some(outlier) = outlier else { return };
        let path = format!("{path}.outlierDetection");
        if outlier.consecutive_errors != 0 {
            let advice = "use consecutive5xxErrors or consecutiveGatewayErrors";
            self.old(format!("{path}.consecutiveErrors"), "is deprecated", advice);
        }
        let local = outlier.consecutive_local_origin_failures.unwrap_or(0) > 0;
        if local && !outlier.split_external_local_origin_errors {
            let message = "counts only with splitExternalLocalOriginErrors";
            let advice = "add splitExternalLocalOriginErrors: true";
            self.wrong(format!("{path}.consecutiveLocalOriginFailures"), message, advice);
        }
        for (field, percent) in
            [("maxEjectionPercent", outlier.max_ejection_percent), ("minHealthPercent", outlier.min_health_percent)]
        {
            if !(0..=100).contains(&percent) {
                self.wrong(format!("{path}.{field}"), format!("is {percent}"), "write 0 to 100");
            }
        }
        for (field, time) in [("interval", outlier.interval), ("baseEjectionTime", outlier.base_ejection_time)] {
            if let Some(time) = time
                && time.0.as_millis() == 0
            {
                self.wrong(format!("{path}.{field}"), format!("is {time}"), "write 1ms or more");
            }
        }
    }

    fn pool(&mut self, pool: Option<&ConnectionPoolSettings>, path: &str) {
        let Some(pool) = pool else { return };
        let path = format!("{path}.connectionPool");
        if pool.http.is_none() && pool.tcp.is_none() {
            self.wrong(&path, "is empty", "give it tcp or http, or remove it");
        }
        let mut counts = Vec::new();
        if let Some(http) = &pool.http {
            counts.extend([
                ("http.http1MaxPendingRequests", http.http1_max_pending_requests),
                ("http.http2MaxRequests", http.http2_max_requests),
                ("http.maxRequestsPerConnection", http.max_requests_per_connection),
                ("http.maxRetries", http.max_retries),
                ("http.maxConcurrentStreams", http.max_concurrent_streams),
            ]);
            if http.use_client_protocol && http.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade) {
                let message = "contradicts h2UpgradePolicy: UPGRADE";
                self.wrong(format!("{path}.http.useClientProtocol"), message, "keep one of the two");
            }
        }
        if let Some(tcp) = &pool.tcp {
            counts.push(("tcp.maxConnections", tcp.max_connections));
            if let Some(time) = tcp.connect_timeout
                && time.0.as_millis() == 0
            {
                self.wrong(format!("{path}.tcp.connectTimeout"), format!("is {time}"), "write 1ms or more");
            }
        }
        for (field, count) in counts {
            if count < 0 {
                self.wrong(format!("{path}.{field}"), format!("is {count}"), "write 0 (for no limit) or more");
            }
        }
    }

    fn load_balancer(&mut self, lb: Option<&LoadBalancerSettings>, outlier: Option<&OutlierDetection>, path: &str) {
        let Some(lb) = lb else { return };
        let path = format!("{path}.loadBalancer");
        if lb.simple.is_some() && lb.consistent_hash.is_some() {
            self.wrong(&path, "has simple and consistentHash", "keep one of the two");
        }
        if lb.simple == Some(SimpleLb::LeastConn) {
            self.old(format!("{path}.simple"), "LEAST_CONN is deprecated", "write LEAST_REQUEST");
        }
        if lb.warmup_duration_secs.is_some() {
            self.old(format!("{path}.warmupDurationSecs"), "is deprecated", "use warmup: {duration: ...}");
        }
        if let Some(warmup) = &lb.warmup {
            let path = format!("{path}.warmup");
            if warmup.duration.is_none_or(|time| time.0.as_millis() == 0) {
                self.wrong(format!("{path}.duration"), "is missing or 0", "write how long the warm-up lasts");
            }
            if warmup.minimum_percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
                self.wrong(format!("{path}.minimumPercent"), "is out of range", "write 0 to 100");
            }
            if warmup.aggression.is_some_and(|aggression| aggression.is_nan() || aggression <= 0.0) {
                self.wrong(format!("{path}.aggression"), "is not above 0", "write 1 for a straight line");
            }
        }
        if let Some(hash) = &lb.consistent_hash {
            self.hash(hash, &format!("{path}.consistentHash"));
        }
        if let Some(locality) = &lb.locality_lb_setting {
            self.locality(locality, outlier, &format!("{path}.localityLbSetting"));
        }
    }

    fn hash(&mut self, hash: &ConsistentHashLb, path: &str) {
        let by = [
            (hash.http_header_name.is_some(), "httpHeaderName"),
            (hash.http_cookie.is_some(), "httpCookie"),
            (hash.use_source_ip.is_some(), "useSourceIp"),
            (hash.http_query_parameter_name.is_some(), "httpQueryParameterName"),
        ];
        let by: Vec<_> = by.iter().filter(|(given, _)| *given).map(|(_, name)| *name).collect();
        match by.as_slice() {
            [] => self.found.add(
                &code::SCHEMA_WARNING,
                self.one.entry,
                path,
                "does not say what is hashed, so every request goes anywhere",
                "add httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName",
            ),
            [_] => {}
            many => self.wrong(path, format!("has {}", many.join(" and ")), "keep one of them"),
        }
        if let Some(cookie) = &hash.http_cookie {
            if cookie.name.is_empty() {
                self.wrong(format!("{path}.httpCookie.name"), "is missing", "name the cookie");
            }
            let mut seen = HashSet::new();
            for (n, attribute) in cookie.attributes.iter().enumerate() {
                let path = format!("{path}.httpCookie.attributes[{n}].name");
                if attribute.name.is_empty() {
                    self.wrong(path, "is missing", "name the attribute");
                } else if !seen.insert(&attribute.name) {
                    self.wrong(path, format!("`{}` stands twice", attribute.name), "remove one of the two");
                }
            }
        }
        if hash.minimum_ring_size != 0 {
            self.old(format!("{path}.minimumRingSize"), "is deprecated", "use ringHash: {minimumRingSize: ...}");
            if hash.ring_hash.is_some() || hash.maglev.is_some() {
                self.wrong(format!("{path}.minimumRingSize"), "stands beside ringHash or maglev", "remove it");
            }
        }
        if hash.ring_hash.is_some() && hash.maglev.is_some() {
            self.wrong(path, "has ringHash and maglev", "keep one of the two");
        }
        if let Some(maglev) = &hash.maglev {
            let size = maglev.table_size;
            if size != 0 && (size >= MAX_MAGLEV || !is_prime(size)) {
                let message = format!("is {size}");
                let advice = format!("write a prime below {MAX_MAGLEV}, like 65537");
                self.wrong(format!("{path}.maglev.tableSize"), message, advice);
            }
        }
    }

    fn locality(&mut self, locality: &LocalityLbSetting, outlier: Option<&OutlierDetection>, path: &str) {
        if !locality.distribute.is_empty() && !locality.failover.is_empty() {
            self.wrong(path, "has distribute and failover", "keep one of the two");
        }
        let ranks = locality.failover_priority.iter().position(|label| LOCALITY_LABELS.contains(&label.as_str()));
        if let Some(n) = ranks.filter(|_| !locality.failover.is_empty()) {
            let message = "a label of localities contradicts failover";
            self.wrong(format!("{path}.failoverPriority[{n}]"), message, "keep one of the two");
        }
        for (n, one) in locality.distribute.iter().enumerate() {
            let path = format!("{path}.distribute[{n}]");
            let sum: u64 = one.to.values().map(|weight| u64::from(*weight)).sum();
            if sum != 100 || one.to.values().any(|weight| *weight == 0) {
                let message = format!("the weights sum to {sum}");
                self.wrong(format!("{path}.to"), message, "write weights of 1 or more that sum to 100");
            }
        }
        for (n, one) in locality.failover.iter().enumerate() {
            let path = format!("{path}.failover[{n}]");
            let plain = |region: &str| !region.is_empty() && !region.contains(['/', '*']);
            if one.from == one.to {
                self.wrong(&path, format!("leads from `{}` to itself", one.from), "name another region in to");
            } else if !plain(&one.from) || !plain(&one.to) {
                let message = format!("leads from `{}` to `{}`", one.from, one.to);
                self.wrong(&path, message, "name regions, without zones and `*`");
            }
        }
        let fails_over = !locality.failover.is_empty() || !locality.failover_priority.is_empty();
        if fails_over && outlier.is_none() {
            let message = "does nothing without outlierDetection, which says when a locality has failed";
            let advice = "add outlierDetection beside loadBalancer";
            self.found.add(&code::SCHEMA_WARNING, self.one.entry, path, message, advice);
        }
    }

    fn tls(&mut self, tls: Option<&ClientTlsSettings>, path: &str, of_port: bool) {
        let Some(tls) = tls else { return };
        let path = format!("{path}.tls");
        let own_files = [
            (!tls.client_certificate.is_empty(), "clientCertificate"),
            (!tls.private_key.is_empty(), "privateKey"),
            (!tls.ca_certificates.is_empty(), "caCertificates"),
            (!tls.ca_crl.is_empty(), "caCrl"),
        ];
        let credential = !tls.credential_name.is_empty();
        let with_selector = self.one.spec.workload_selector.is_some();
        if !matches!(tls.mode, TlsMode::Simple | TlsMode::Mutual) {
            if let Some((_, field)) = own_files.iter().find(|(given, _)| *given) {
                let message = format!("does nothing in mode {}", mode(tls.mode));
                let advice = "use mode SIMPLE or MUTUAL, or remove it";
                self.found.add(&code::NO_EFFECT, self.one.entry, format!("{path}.{field}"), message, advice);
            }
            return;
        }
        if credential && !with_selector {
            let message = "sidecars do not fetch credentials by name, so their connections fail";
            let advice = "use clientCertificate, privateKey and caCertificates, or add a workloadSelector";
            self.found.add(&code::CREDENTIAL_NAME, self.one.entry, format!("{path}.credentialName"), message, advice);
        }
        if credential && own_files.iter().any(|(given, _)| *given) {
            let message = "stands beside files";
            self.wrong(format!("{path}.credentialName"), message, "keep credentialName or the files");
        }
        let skips = tls.insecure_skip_verify == Some(true);
        if skips && (!tls.ca_certificates.is_empty() || !tls.subject_alt_names.is_empty()) {
            let message = "contradicts caCertificates and subjectAltNames";
            self.wrong(format!("{path}.insecureSkipVerify"), message, "remove it, or them");
        }
        if tls.mode == TlsMode::Mutual && !credential {
            for (given, field) in own_files.iter().take(2) {
                if !given {
                    self.wrong(format!("{path}.{field}"), "is missing, which mode MUTUAL needs", "name the file");
                }
            }
        }
        if tls.ca_certificates.is_empty() && !(credential && with_selector) {
            let message = format!("mode {} without caCertificates verifies no server", mode(tls.mode));
            let code = if of_port { &code::UNVERIFIED_PORT } else { &code::UNVERIFIED };
            self.found.add(code, self.one.entry, path, message, "add caCertificates");
        }
    }
}

fn mode(mode: TlsMode) -> &'static str {
    match mode {
        TlsMode::Disable => "DISABLE",
        TlsMode::Simple => "SIMPLE",
        TlsMode::Mutual => "MUTUAL",
        TlsMode::IstioMutual => "ISTIO_MUTUAL",
    }
}

fn is_prime(n: u64) -> bool {
    n == 2 || n > 2 && !n.is_multiple_of(2) && (3..).step_by(2).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use super::super::tests::found_in_rule as rule;

    #[test]
    fn fine_is_fine() {
        for fine in [
            "host: other, trafficPolicy: {loadBalancer: {simple: RANDOM}}",
            "host: other, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}",
            "host: other, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /ca.pem}}",
            "host: other, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}",
            "host: '*.shop.svc.cluster.local', trafficPolicy: {tls: {mode: DISABLE}}",
            "host: other, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x, maglev: {tableSize: 65537}}}}",
            "host: other, workloadSelector: {matchLabels: {app: web}}, exportTo: [.], \
             trafficPolicy: {tls: {mode: SIMPLE, credentialName: x}}",
        ] {
            assert_eq!(rule(fine), [], "{fine}");
        }
    }

    #[test]
    fn hosts_and_subsets_lead_somewhere() {
        for (fields, code, path) in [
            ("host: nobody", "IST0174", "host"),
            ("host: '*.nowhere.example'", "IST0174", "host"),
            ("host: many, subsets: [{name: all}]", "WEIR0105", "subsets[0].labels"),
            (
                "host: web, subsets: [{name: v3, labels: {version: v3}}], exportTo: [other]",
                "IST0173",
                "subsets[0].labels",
            ),
            ("host: other, workloadSelector: {matchLabels: {app: nobody}}", "IST0127", "workloadSelector"),
            ("host: other, workloadSelector: {matchLabels: {app: web}}, exportTo: ['*']", "IST0106", "exportTo[0]"),
        ] {
            let found = rule(fields);
            assert!(found.contains(&(code, format!("spec.{path}"))), "{fields}: {found:?}");
        }
        let unknown = "host: other, subsets: [{name: v9, labels: {version: v9}}]";
        assert_eq!(rule(unknown), [], "nothing is known of its endpoints");
    }

    #[test]
    fn a_field_is_found_where_it_is_wrong() {
        for (policy, code, path) in [
            ("", "IST0106", ""),
            ("loadBalancer: {simple: LEAST_CONN}", "IST0002", "loadBalancer.simple"),
            ("loadBalancer: {warmupDurationSecs: 5s}", "IST0002", "loadBalancer.warmupDurationSecs"),
            ("loadBalancer: {warmup: {}}", "IST0106", "loadBalancer.warmup.duration"),
            (
                "loadBalancer: {warmup: {duration: 5s, minimumPercent: 101}}",
                "IST0106",
                "loadBalancer.warmup.minimumPercent",
            ),
            ("loadBalancer: {warmup: {duration: 5s, aggression: 0}}", "IST0106", "loadBalancer.warmup.aggression"),
            ("loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}", "IST0106", "loadBalancer"),
            ("loadBalancer: {consistentHash: {}}", "IST0133", "loadBalancer.consistentHash"),
            (
                "loadBalancer: {consistentHash: {useSourceIp: true, httpHeaderName: x}}",
                "IST0106",
                "loadBalancer.consistentHash",
            ),
            (
                "loadBalancer: {consistentHash: {httpCookie: {ttl: 1s}}}",
                "IST0106",
                "loadBalancer.consistentHash.httpCookie.name",
            ),
            (
                "loadBalancer: {consistentHash: {useSourceIp: true, minimumRingSize: 5}}",
                "IST0002",
                "loadBalancer.consistentHash.minimumRingSize",
            ),
            (
                "loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 10}}}",
                "IST0106",
                "loadBalancer.consistentHash.maglev.tableSize",
            ),
            (
                "loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}",
                "IST0133",
                "loadBalancer.localityLbSetting",
            ),
            (
                "outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: a, to: a}]}}",
                "IST0106",
                "loadBalancer.localityLbSetting.failover[0]",
            ),
            (
                "loadBalancer: {localityLbSetting: {distribute: [{from: 'a/*', to: {'a/*': 90}}]}}",
                "IST0106",
                "loadBalancer.localityLbSetting.distribute[0].to",
            ),
            ("outlierDetection: {consecutiveErrors: 5}", "IST0002", "outlierDetection.consecutiveErrors"),
            (
                "outlierDetection: {consecutiveLocalOriginFailures: 5}",
                "IST0106",
                "outlierDetection.consecutiveLocalOriginFailures",
            ),
            ("outlierDetection: {maxEjectionPercent: 101}", "IST0106", "outlierDetection.maxEjectionPercent"),
            ("outlierDetection: {interval: 0s}", "IST0106", "outlierDetection.interval"),
            ("connectionPool: {}", "IST0106", "connectionPool"),
            ("connectionPool: {tcp: {maxConnections: -1}}", "IST0106", "connectionPool.tcp.maxConnections"),
            ("connectionPool: {http: {maxRetries: -1}}", "IST0106", "connectionPool.http.maxRetries"),
            (
                "connectionPool: {http: {useClientProtocol: true, h2UpgradePolicy: UPGRADE}}",
                "IST0106",
                "connectionPool.http.useClientProtocol",
            ),
            ("tls: {mode: SIMPLE}", "IST0128", "tls"),
            ("tls: {mode: ISTIO_MUTUAL, caCertificates: /ca.pem}", "WEIR0203", "tls.caCertificates"),
            ("tls: {mode: MUTUAL, clientCertificate: /c, caCertificates: /ca}", "IST0106", "tls.privateKey"),
            (
                "tls: {mode: SIMPLE, caCertificates: /ca.pem, insecureSkipVerify: true}",
                "IST0106",
                "tls.insecureSkipVerify",
            ),
            ("portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]", "IST0129", "portLevelSettings[0].tls"),
            (
                "portLevelSettings: [{port: {number: 81}, tls: {mode: DISABLE}}]",
                "WEIR0106",
                "portLevelSettings[0].port.number",
            ),
            ("portLevelSettings: [{tls: {mode: DISABLE}}]", "IST0106", "portLevelSettings[0].port"),
            ("portLevelSettings: [{port: {number: 80}}]", "IST0106", "portLevelSettings[0]"),
            ("tunnel: {targetHost: a.b}", "IST0106", "tunnel.targetPort"),
        ] {
            let path = |start: &str| format!("spec.{start}.{path}").trim_end_matches('.').to_owned();
            let found = rule(&format!("host: other, trafficPolicy: {{{policy}}}"));
            assert_eq!(found, [(code, path("trafficPolicy"))], "{policy}");
            let subset = "host: other, subsets: [{name: s, labels: {version: v1}, trafficPolicy";
            assert_eq!(
                rule(&format!("{subset}: {{{policy}}}}}]")),
                [(code, path("subsets[0].trafficPolicy"))],
                "{policy}"
            );
        }
    }

    #[test]
    fn credentials_by_name_are_for_gateways() {
        let found = rule("host: other, trafficPolicy: {tls: {mode: SIMPLE, credentialName: x}}");
        let tls = "spec.trafficPolicy.tls";
        assert_eq!(found, [("WEIR0202", format!("{tls}.credentialName")), ("IST0128", tls.to_owned())]);
    }
}
