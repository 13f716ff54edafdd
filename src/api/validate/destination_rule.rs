//! Validates DestinationRules.

use std::collections::{BTreeMap, BTreeSet};

use super::Diagnostics;
use super::common::{
    at_least_one_ms, at_most_one_of, export_to, header_name, host_name, is_address, labels,
    not_negative, one_line, percentage, port, selector, subset_name, whole_percent,
};
use crate::api::{
    ClientTlsSettings, ConnectionPoolSettings, ConsistentHashLb, DestinationRule, Failover,
    HttpCookie, LoadBalancerSettings, LocalityLbSetting, Meta, OutlierDetection, PortTrafficPolicy,
    ProblemKind, RetryBudget, SimpleLb, TlsMode, TrafficPolicy, TunnelSettings,
    WarmupConfiguration, ZoneAwareLbSetting,
};

/// Envoy's maximum ring size. Source: `RingHashLbConfig` in Envoy's protos.
const LARGEST_RING: u64 = 8 * 1024 * 1024;
/// Envoy's maximum Maglev table size. Source: `MaglevLbConfig` in Envoy's protos.
const LARGEST_TABLE: u64 = 5_000_011;
/// Envoy's maximum SNI length. Source: `UpstreamTlsContext` in Envoy's protos.
const LONGEST_SNI: usize = 255;
/// The locality labels that Istio handles specially.
const PLACES: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

pub(super) fn check(spec: &DestinationRule, meta: &Meta, found: &mut Diagnostics) {
    host_name(&spec.host, "spec.host", found);
    if let Some(policy) = &spec.traffic_policy {
        traffic_policy(policy, false, "spec.trafficPolicy", found);
    }
    let inherits_outlier = spec.traffic_policy.as_deref().is_some_and(has_outlier_detection);
    let mut seen = BTreeSet::new();
    for (n, subset) in spec.subsets.iter().enumerate() {
        let path = format!("spec.subsets[{n}]");
        if subset.name.is_empty() {
            found.add(format!("{path}.name"), "is missing", "expected a name");
        } else if !seen.insert(&subset.name) {
            found.add(
                format!("{path}.name"),
                format!("`{}` appears twice", subset.name),
                "expected each name once",
            );
        } else {
            subset_name(&subset.name, &format!("{path}.name"), found);
        }
        labels(&subset.labels, &format!("{path}.labels"), found);
        if let Some(policy) = &subset.traffic_policy {
            traffic_policy(policy, inherits_outlier, &format!("{path}.trafficPolicy"), found);
        }
    }
    export_to(&spec.export_to, &meta.namespace, false, "spec.exportTo", found);
    if let Some(workloads) = &spec.workload_selector {
        selector(&workloads.match_labels, "spec.workloadSelector.matchLabels", found);
        if let Some(name) =
            spec.export_to.iter().find(|name| *name != "." && **name != *meta.namespace)
        {
            found.add(
                "spec.exportTo",
                format!("is `{name}` together with workloadSelector"),
                "expected `.`: a selector applies only within its own namespace",
            );
        }
    }
}

/// Whether a policy detects outliers at some port. A subset without its own setting inherits that of its rule.
fn has_outlier_detection(policy: &TrafficPolicy) -> bool {
    policy.outlier_detection.is_some()
        || policy.port_level_settings.iter().any(|port| port.outlier_detection.is_some())
}

/// `inherits_outlier` says whether a subset's policy may get outlier detection from its rule's. A port-level entry does
/// not: it replaces all settings that it may contain.
fn traffic_policy(
    policy: &TrafficPolicy,
    inherits_outlier: bool,
    path: &str,
    found: &mut Diagnostics,
) {
    if *policy == TrafficPolicy::default() {
        found.add(path, "is empty", "expected at least one setting");
    }
    if policy.tunnel.is_some() && policy.proxy_protocol.is_some() {
        found.add(
            format!("{path}.proxyProtocol"),
            "is set together with tunnel",
            "only one of them may be set",
        );
    }
    parts(
        policy.load_balancer.as_ref(),
        policy.connection_pool.as_ref(),
        policy.outlier_detection.as_ref(),
        policy.tls.as_ref(),
        inherits_outlier,
        path,
        found,
    );
    let mut ports = BTreeSet::new();
    for (n, at_port) in policy.port_level_settings.iter().enumerate() {
        let is_first = at_port.port.is_none_or(|at| ports.insert(at.number));
        port_policy(at_port, is_first, &format!("{path}.portLevelSettings[{n}]"), found);
    }
    if let Some(tunnel) = &policy.tunnel {
        self::tunnel(tunnel, &format!("{path}.tunnel"), found);
    }
    if let Some(budget) = &policy.retry_budget {
        retry_budget(budget, &format!("{path}.retryBudget"), found);
    }
}

/// `is_first` says whether no earlier entry is for the same port.
fn port_policy(at_port: &PortTrafficPolicy, is_first: bool, path: &str, found: &mut Diagnostics) {
    match at_port.port {
        None => found.add(format!("{path}.port"), "is missing", "expected a map with number"),
        Some(at) if !is_first => {
            let message = format!("{} appears twice; only the first entry is used", at.number);
            found.no_effect(format!("{path}.port"), message, "expected each port once");
        }
        Some(at) if at.number == 0 => {
            let message = "is 0 or missing, so the entry has no effect";
            found.no_effect(
                format!("{path}.port.number"),
                message,
                "expected a port from 1 to 65535",
            );
        }
        Some(at) => port(at.number, &format!("{path}.port.number"), found),
    }
    if (PortTrafficPolicy { port: at_port.port, ..Default::default() }) == *at_port {
        found.add(
            path,
            "is empty",
            "expected at least one of loadBalancer, connectionPool, outlierDetection or tls",
        );
    }
    parts(
        at_port.load_balancer.as_ref(),
        at_port.connection_pool.as_ref(),
        at_port.outlier_detection.as_ref(),
        at_port.tls.as_ref(),
        false,
        path,
        found,
    );
}

/// The settings that a policy and a port-level entry share.
fn parts(
    balancer: Option<&LoadBalancerSettings>,
    pool: Option<&ConnectionPoolSettings>,
    outlier: Option<&OutlierDetection>,
    tls: Option<&ClientTlsSettings>,
    inherits_outlier: bool,
    path: &str,
    found: &mut Diagnostics,
) {
    if let Some(balancer) = balancer {
        load_balancer(
            balancer,
            outlier.is_some() || inherits_outlier,
            &format!("{path}.loadBalancer"),
            found,
        );
    }
    if let Some(pool) = pool {
        connection_pool(pool, &format!("{path}.connectionPool"), found);
    }
    if let Some(outlier) = outlier {
        outlier_detection(outlier, &format!("{path}.outlierDetection"), found);
    }
    if let Some(tls) = tls {
        self::tls(tls, &format!("{path}.tls"), found);
    }
}

fn load_balancer(
    from: &LoadBalancerSettings,
    has_outlier: bool,
    path: &str,
    found: &mut Diagnostics,
) {
    let members =
        [("simple", from.simple.is_some()), ("consistentHash", from.consistent_hash.is_some())];
    at_most_one_of(&members, path, found);
    if let Some(hash) = &from.consistent_hash {
        consistent_hash(hash, &format!("{path}.consistentHash"), found);
    }
    if from.locality_lb_setting.is_some() && from.zone_aware_lb_setting.is_some() {
        found.add(
            format!("{path}.zoneAwareLbSetting"),
            "is set together with localityLbSetting",
            "only one of them \
            may be set",
        );
    }
    if let Some(setting) = &from.locality_lb_setting {
        locality(setting, has_outlier, &format!("{path}.localityLbSetting"), found);
    }
    if let Some(setting) = &from.zone_aware_lb_setting {
        zone_aware(setting, has_outlier, &format!("{path}.zoneAwareLbSetting"), found);
    }
    if from.simple == Some(SimpleLb::LeastConn) {
        found.deprecated(
            format!("{path}.simple"),
            "LEAST_CONN is deprecated",
            "use LEAST_REQUEST, which is equivalent",
        );
    }
    at_least_one_ms(from.warmup_duration_secs, &format!("{path}.warmupDurationSecs"), found);
    if from.warmup_duration_secs.is_some() {
        found.deprecated(
            format!("{path}.warmupDurationSecs"),
            "is deprecated",
            "use warmup: {duration: ...}",
        );
    }
    if let Some(warmup) = &from.warmup {
        self::warmup(warmup, &format!("{path}.warmup"), found);
    }
}

fn consistent_hash(hash: &ConsistentHashLb, path: &str, found: &mut Diagnostics) {
    let keys = [
        ("httpHeaderName", hash.http_header_name.is_some()),
        ("httpCookie", hash.http_cookie.is_some()),
        ("useSourceIp", hash.use_source_ip.is_some()),
        ("httpQueryParameterName", hash.http_query_parameter_name.is_some()),
    ];
    at_most_one_of(&keys, path, found);
    if keys.iter().all(|(_, given)| !given) {
        let names: Vec<_> = keys.iter().map(|(name, _)| *name).collect();
        let message = "does not specify what to hash, so requests are distributed randomly";
        found.suspicious(path, message, format!("add one of {}", names.join(", ")));
    }
    let algorithms = [
        ("ringHash", hash.ring_hash.is_some()),
        ("maglev", hash.maglev.is_some()),
        ("minimumRingSize", hash.minimum_ring_size != 0),
    ];
    at_most_one_of(&algorithms, path, found);
    if hash.minimum_ring_size != 0 {
        found.deprecated(
            format!("{path}.minimumRingSize"),
            "is deprecated",
            "use ringHash: {minimumRingSize: ...}",
        );
    }
    if let Some(name) = &hash.http_header_name {
        header_name(name, &format!("{path}.httpHeaderName"), found);
    }
    if hash.http_query_parameter_name.as_ref().is_some_and(String::is_empty) {
        found.add(
            format!("{path}.httpQueryParameterName"),
            "is empty",
            "expected the name of a parameter",
        );
    }
    if let Some(cookie) = &hash.http_cookie {
        self::cookie(cookie, &format!("{path}.httpCookie"), found);
    }
    hash_table(hash, path, found);
}

/// The sizes of Envoy's hash tables.
fn hash_table(hash: &ConsistentHashLb, path: &str, found: &mut Diagnostics) {
    let ring =
        hash.ring_hash.as_ref().map(|ring| (ring.minimum_ring_size, "ringHash.minimumRingSize"));
    for (size, name) in ring.into_iter().chain([(hash.minimum_ring_size, "minimumRingSize")]) {
        if size > LARGEST_RING {
            found.add(
                format!("{path}.{name}"),
                format!("is {size}"),
                format!("expected at most {LARGEST_RING}"),
            );
        }
    }
    if let Some(maglev) = &hash.maglev
        && !(maglev.table_size <= LARGEST_TABLE && is_prime(maglev.table_size))
    {
        let size = maglev.table_size;
        found.add(
            format!("{path}.maglev.tableSize"),
            format!("is {size}"),
            format!("expected a prime up to {LARGEST_TABLE}"),
        );
    }
}

fn cookie(cookie: &HttpCookie, path: &str, found: &mut Diagnostics) {
    if cookie.name.is_empty() {
        found.add(format!("{path}.name"), "is missing", "expected the name of a cookie");
    }
    let mut names = BTreeSet::new();
    for (n, attribute) in cookie.attributes.iter().enumerate() {
        let path = format!("{path}.attributes[{n}]");
        if attribute.name.is_empty() {
            found.add(format!("{path}.name"), "is missing", "expected a name");
        } else if !names.insert(&attribute.name) {
            found.add(
                format!("{path}.name"),
                format!("`{}` appears twice", attribute.name),
                "expected each once",
            );
        }
        header_text(&attribute.name, &format!("{path}.name"), found);
        header_text(&attribute.value, &format!("{path}.value"), found);
    }
}

fn header_text(text: &str, path: &str, found: &mut Diagnostics) {
    one_line(text, path, found);
    if text.len() > 16_384 {
        found.add(path, format!("has {} bytes", text.len()), "expected at most 16384");
    }
}

fn is_prime(number: u64) -> bool {
    number > 1
        && (2..).take_while(|d| d * d <= number).all(|divisor| !number.is_multiple_of(divisor))
}

fn locality(setting: &LocalityLbSetting, has_outlier: bool, path: &str, found: &mut Diagnostics) {
    if !setting.distribute.is_empty() && !setting.failover.is_empty() {
        found.add(
            format!("{path}.failover"),
            "is set together with distribute",
            "only one of them may be set",
        );
    }
    for (n, rule) in setting.distribute.iter().enumerate() {
        let path = format!("{path}.distribute[{n}]");
        shares(&rule.to, &path, found);
        let names: Vec<&String> = rule.to.keys().collect();
        for (k, name) in names.iter().enumerate() {
            place(name, names.iter().copied().take(k), &format!("{path}.to"), found);
        }
        let before = setting.distribute.iter().take(n).map(|other| &other.from);
        place(&rule.from, before, &format!("{path}.from"), found);
    }
    if !setting.failover.is_empty() {
        for (n, label) in setting.failover_priority.iter().enumerate() {
            if PLACES.contains(&label.as_str()) {
                found.add(
                    format!("{path}.failoverPriority[{n}]"),
                    format!("`{label}` is redundant with failover, which ranks by the same label"),
                    "only one of them may be set",
                );
            }
        }
    }
    failover(&setting.failover, &setting.failover_priority, has_outlier, path, found);
}

fn zone_aware(
    setting: &ZoneAwareLbSetting,
    has_outlier: bool,
    path: &str,
    found: &mut Diagnostics,
) {
    for (n, label) in setting.failover_priority.iter().enumerate() {
        if PLACES.contains(&label.as_str()) {
            found.add(
                format!("{path}.failoverPriority[{n}]"),
                format!("is `{label}`, which zone-aware load balancing already ranks by"),
                "expected other labels",
            );
        }
    }
    failover(&setting.failover, &setting.failover_priority, has_outlier, path, found);
}

fn failover(
    regions: &[Failover],
    labels: &[String],
    has_outlier: bool,
    path: &str,
    found: &mut Diagnostics,
) {
    let ranked = !regions.is_empty() || !labels.is_empty();
    if ranked && !has_outlier {
        found.suspicious(
            path,
            "configures failover, but without outlierDetection no locality ever fails over",
            "add outlierDetection beside loadBalancer",
        );
    }
    for (n, failover) in regions.iter().enumerate() {
        let path = format!("{path}.failover[{n}]");
        if failover.from == failover.to {
            found.add(
                &path,
                format!("fails over from `{}` to itself", failover.from),
                "expected two different regions",
            );
        }
        for (name, region) in [("from", &failover.from), ("to", &failover.to)] {
            if region.contains(['/', '*']) {
                found.add(
                    format!("{path}.{name}"),
                    format!("is `{region}`"),
                    "expected a region without / and *",
                );
            }
        }
    }
}

fn shares(to: &BTreeMap<String, u32>, path: &str, found: &mut Diagnostics) {
    for (name, share) in to {
        if !(1..=100).contains(share) {
            found.add(format!("{path}.to.{name}"), format!("is {share}"), "expected 1 to 100");
        }
    }
    let total: u64 = to.values().map(|share| u64::from(*share)).sum();
    if total != 100 {
        found.add(format!("{path}.to"), format!("sums to {total}"), "expected 100");
    }
}

/// `region/zone/subzone`, whose end may be omitted or `*`, and which does not overlap with another entry.
fn place<'a>(
    name: &str,
    before: impl Iterator<Item = &'a String>,
    path: &str,
    found: &mut Diagnostics,
) {
    let stars = name.matches('*').count();
    if name.splitn(3, '/').any(str::is_empty) {
        found.add(path, format!("`{name}` has an empty component"), "expected region/zone/subzone");
    } else if stars > 1 || (stars == 1 && !name.ends_with('*')) {
        found.add(
            path,
            format!("`{name}` has a wildcard that is not at the end"),
            "expected one like region/zone/*",
        );
    }
    fn parts(name: &str) -> impl Iterator<Item = &str> {
        name.splitn(3, '/').take_while(|part| *part != "*")
    }
    // They overlap if the shorter one contains nothing that distinguishes them.
    for other in before.filter(|other| parts(name).zip(parts(other)).all(|(a, b)| a == b)) {
        found.add(
            path,
            format!("`{name}` overlaps with `{other}`"),
            "expected localities that do not overlap",
        );
    }
}

fn warmup(warmup: &WarmupConfiguration, path: &str, found: &mut Diagnostics) {
    if warmup.duration.is_none() {
        found.add(format!("{path}.duration"), "is missing", "expected a duration like 60s");
    }
    at_least_one_ms(warmup.duration, &format!("{path}.duration"), found);
    if let Some(least) = warmup.minimum_percent {
        percentage(least, &format!("{path}.minimumPercent"), found);
    }
    if let Some(aggression) =
        warmup.aggression.filter(|aggression| !(*aggression > 0.0 && aggression.is_finite()))
    {
        found.add(format!("{path}.aggression"), format!("is {aggression}"), "expected more than 0");
    }
}

/// Also used for Sidecars.
pub(super) fn connection_pool(pool: &ConnectionPoolSettings, path: &str, found: &mut Diagnostics) {
    if pool.tcp.is_none() && pool.http.is_none() {
        found.add(path, "is empty", "expected tcp or http");
    }
    if let Some(tcp) = &pool.tcp {
        let path = format!("{path}.tcp");
        not_negative(tcp.max_connections, &format!("{path}.maxConnections"), found);
        at_least_one_ms(tcp.connect_timeout, &format!("{path}.connectTimeout"), found);
        at_least_one_ms(
            tcp.max_connection_duration,
            &format!("{path}.maxConnectionDuration"),
            found,
        );
        if let Some(probes) = &tcp.tcp_keepalive {
            at_least_one_ms(probes.time, &format!("{path}.tcpKeepalive.time"), found);
            at_least_one_ms(probes.interval, &format!("{path}.tcpKeepalive.interval"), found);
        }
    }
    let Some(http) = &pool.http else { return };
    let path = format!("{path}.http");
    for (name, value) in [
        ("http1MaxPendingRequests", http.http1_max_pending_requests),
        ("http2MaxRequests", http.http2_max_requests),
        ("maxRequestsPerConnection", http.max_requests_per_connection),
        ("maxRetries", http.max_retries),
        ("maxConcurrentStreams", http.max_concurrent_streams),
    ] {
        not_negative(value, &format!("{path}.{name}"), found);
    }
    if http.use_client_protocol
        && http.h2_upgrade_policy == Some(crate::api::H2UpgradePolicy::Upgrade)
    {
        found.add(
            format!("{path}.useClientProtocol"),
            "is set together with h2UpgradePolicy: UPGRADE",
            "only one of them may be set",
        );
    }
    if let Some(probes) = &http.http2_keep_alive {
        for (name, value) in [("interval", probes.interval), ("timeout", probes.timeout)] {
            let path = format!("{path}.http2KeepAlive.{name}");
            if value.is_none() {
                found.add(&path, "is missing", "expected a duration like 10s");
            }
            at_least_one_ms(value, &path, found);
        }
    }
}

fn outlier_detection(from: &OutlierDetection, path: &str, found: &mut Diagnostics) {
    at_least_one_ms(from.interval, &format!("{path}.interval"), found);
    at_least_one_ms(from.base_ejection_time, &format!("{path}.baseEjectionTime"), found);
    whole_percent(from.max_ejection_percent, &format!("{path}.maxEjectionPercent"), found);
    whole_percent(from.min_health_percent, &format!("{path}.minHealthPercent"), found);
    if from.consecutive_errors != 0 {
        let message = "is deprecated and has no effect, as in Istio";
        found.deprecated(format!("{path}.consecutiveErrors"), message, "use consecutive5xxErrors");
    }
    if from.consecutive_local_origin_failures.is_some_and(|count| count > 0)
        && !from.split_external_local_origin_errors
    {
        found.add(
            format!("{path}.consecutiveLocalOriginFailures"),
            "has no effect without splitExternalLocalOriginErrors",
            "set splitExternalLocalOriginErrors to true",
        );
    }
    for (n, code) in from.outlier_detection_http_error_codes.iter().enumerate() {
        if !(100..600).contains(code) {
            found.add(
                format!("{path}.outlierDetectionHttpErrorCodes[{n}]"),
                format!("is {code}"),
                "expected a status from 100 to 599",
            );
        }
    }
}

fn tls(tls: &ClientTlsSettings, path: &str, found: &mut Diagnostics) {
    if tls.sni.len() > LONGEST_SNI {
        found.add(
            format!("{path}.sni"),
            format!("has {} bytes", tls.sni.len()),
            format!("expected at most {LONGEST_SNI}"),
        );
    }
    let files = [
        ("clientCertificate", &tls.client_certificate),
        ("privateKey", &tls.private_key),
        ("caCertificates", &tls.ca_certificates),
        ("caCrl", &tls.ca_crl),
    ];
    let own = matches!(tls.mode, TlsMode::Simple | TlsMode::Mutual);
    if own && !tls.credential_name.is_empty() {
        for (name, _) in files.iter().filter(|(_, file)| !file.is_empty()) {
            found.add(
                format!("{path}.{name}"),
                "is set together with credentialName",
                "use either files or a \
                credential",
            );
        }
        found.warn(
            ProblemKind::Credential,
            format!("{path}.credentialName"),
            "works only for gateways: sidecars cannot read Secrets and send plain text",
            "use clientCertificate, privateKey and caCertificates",
        );
        return;
    }
    if tls.mode == TlsMode::Mutual {
        for (name, file) in files.iter().take(2) {
            if file.is_empty() {
                found.add(
                    format!("{path}.{name}"),
                    "is missing",
                    "expected a file, which mode MUTUAL requires",
                );
            }
        }
    }
    if !own {
        for (name, _) in files.iter().filter(|(_, file)| !file.is_empty()) {
            let message = "has no effect in this mode";
            found.no_effect(
                format!("{path}.{name}"),
                message,
                "use mode SIMPLE or MUTUAL, or remove it",
            );
        }
        return;
    }
    verification(tls, path, found);
}

/// How the server is verified.
fn verification(tls: &ClientTlsSettings, path: &str, found: &mut Diagnostics) {
    let unverified = tls.insecure_skip_verify == Some(true);
    if unverified && !tls.ca_certificates.is_empty() {
        found.add(
            format!("{path}.caCertificates"),
            "is set together with insecureSkipVerify",
            "only one of them may \
            be set",
        );
    }
    if unverified && !tls.subject_alt_names.is_empty() {
        found.add(
            format!("{path}.subjectAltNames"),
            "is set together with insecureSkipVerify",
            "only one of them may \
            be set",
        );
    }
    if !tls.ca_crl.is_empty() && tls.ca_certificates.is_empty() {
        found.add(
            format!("{path}.caCrl"),
            "is set without caCertificates",
            "set both: Envoy requires the CA that issued the list",
        );
    }
}

fn tunnel(tunnel: &TunnelSettings, path: &str, found: &mut Diagnostics) {
    if !matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST") {
        found.add(
            format!("{path}.protocol"),
            format!("is `{}`", tunnel.protocol),
            "expected CONNECT or POST",
        );
    }
    if tunnel.target_host.contains('*') {
        found.add(
            format!("{path}.targetHost"),
            format!("`{}` is a wildcard", tunnel.target_host),
            "expected a host",
        );
    } else if !is_address(&tunnel.target_host) {
        host_name(&tunnel.target_host, &format!("{path}.targetHost"), found);
    }
    port(tunnel.target_port, &format!("{path}.targetPort"), found);
}

fn retry_budget(budget: &RetryBudget, path: &str, found: &mut Diagnostics) {
    if let Some(percent) = budget.percent {
        percentage(percent, &format!("{path}.percent"), found);
    }
}
