//! Checks in Envoy's code that are not expressed in its protos: one function per message type, each with its source.
//!
//! Paths refer to Envoy's source tree; every rule was also verified with Envoy 1.40, whose results `tests.rs` compares
//! with these.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use super::compiled::{CompiledRules, FieldRules, MessageRules};
use super::re2;
use super::rules::{Mismatch, quoted};
use super::wire::{Fields, Malformed, Payload, Scalar, Value, seconds_and_nanos};

/// Checks one message and reports violations with relative paths.
pub(super) type SemanticCheck =
    fn(&Message<'_>, &mut dyn FnMut(&str, Mismatch)) -> Result<(), Malformed>;

type Report<'r> = &'r mut dyn FnMut(&str, Mismatch);

/// The check for a message type.
pub(super) fn semantic_check(full_name: &str) -> Option<SemanticCheck> {
    Some(match full_name {
        "envoy.config.cluster.v3.Cluster" => cluster,
        "envoy.config.cluster.v3.OutlierDetection" => outlier_detection,
        "envoy.config.endpoint.v3.ClusterLoadAssignment" => load_assignment,
        "envoy.config.listener.v3.Listener" => listener,
        "envoy.config.route.v3.InternalRedirectPolicy" => internal_redirect_policy,
        "envoy.config.route.v3.RetryPolicy.RetryBackOff" => retry_back_off,
        "envoy.config.route.v3.Route" => header_operations,
        "envoy.config.route.v3.RouteAction" => route_action,
        "envoy.config.route.v3.RouteAction.RequestMirrorPolicy" => request_mirror_policy,
        "envoy.config.route.v3.RouteConfiguration" => route_configuration,
        "envoy.config.route.v3.VirtualHost" => virtual_host,
        "envoy.config.route.v3.WeightedCluster" => weighted_cluster,
        "envoy.config.route.v3.WeightedCluster.ClusterWeight" => header_operations,
        "envoy.extensions.load_balancing_policies.maglev.v3.Maglev" => maglev,
        "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash" => ring_hash,
        "envoy.type.matcher.v3.RegexMatcher" => regex_matcher,
        "google.protobuf.Duration" => duration,
        _ => return None,
    })
}

/// An encoded message; fields are looked up by name, and the last value of a singular field wins.
pub(super) struct Message<'a> {
    pub(super) compiled_rules: &'static CompiledRules,
    pub(super) message_rules: &'static MessageRules,
    pub(super) bytes: &'a [u8],
    /// Whether this is the top-level message.
    pub(super) is_root: bool,
}

impl<'a> Message<'a> {
    fn field(&self, name: &str) -> Option<&'static FieldRules> {
        let found = self.message_rules.fields.iter().find(|field| field.name == name);
        debug_assert!(found.is_some(), "{} has no field {name}", self.message_rules.name);
        found
    }

    fn values(&self, name: &str) -> Result<Vec<Payload<'a>>, Malformed> {
        let Some(field) = self.field(name) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for item in Fields::new(self.bytes) {
            let (number, payload) = item?;
            if number == field.number {
                found.push(payload);
            }
        }
        Ok(found)
    }

    fn has(&self, name: &str) -> Result<bool, Malformed> {
        Ok(!self.values(name)?.is_empty())
    }

    fn messages(&self, name: &str) -> Result<Vec<Message<'a>>, Malformed> {
        let message_rules =
            self.field(name).and_then(|field| self.compiled_rules.messages.get(field.value.kind?));
        let Some(message_rules) = message_rules else {
            return Ok(Vec::new());
        };
        let compiled_rules = self.compiled_rules;
        let opened = self.values(name)?.into_iter().map(|payload| match payload {
            Payload::Bytes(bytes) => {
                Ok(Message { compiled_rules, message_rules, bytes, is_root: false })
            }
            _ => Err(Malformed),
        });
        opened.collect()
    }

    fn message(&self, name: &str) -> Result<Option<Message<'a>>, Malformed> {
        Ok(self.messages(name)?.pop())
    }

    fn texts(&self, name: &str) -> Result<Vec<&'a str>, Malformed> {
        let texts = self.values(name)?.into_iter().map(|payload| match payload {
            Payload::Bytes(bytes) => std::str::from_utf8(bytes).map_err(|_| Malformed),
            _ => Err(Malformed),
        });
        texts.collect()
    }

    fn text(&self, name: &str) -> Result<&'a str, Malformed> {
        Ok(self.texts(name)?.pop().unwrap_or_default())
    }

    /// A number or an enum; 0 if absent.
    fn number(&self, name: &str) -> Result<u64, Malformed> {
        match self.values(name)?.pop() {
            None => Ok(0),
            Some(Payload::Varint(bits)) => Ok(bits),
            Some(_) => Err(Malformed),
        }
    }

    /// The number in a wrapper such as `google.protobuf.UInt32Value`.
    fn wrapped(&self, name: &str) -> Result<Option<u64>, Malformed> {
        self.message(name)?.map(|wrapper| wrapper.number("value")).transpose()
    }

    /// The milliseconds of a duration.
    fn milliseconds(&self, name: &str) -> Result<Option<i128>, Malformed> {
        let Some(duration) = self.message(name)? else {
            return Ok(None);
        };
        let (seconds, nanos) = seconds_and_nanos(duration.bytes)?;
        Ok(Some(i128::from(seconds) * 1000 + i128::from(nanos) / 1_000_000))
    }
}

fn wrong(found: impl Into<String>, expected: impl Into<String>) -> Mismatch {
    Mismatch { found: found.into(), expected: expected.into() }
}

/// Source: `source/common/router/config_impl.cc`, `RouteMatcher` and `DirectResponseEntryImpl`.
fn route_configuration(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    header_operations(message, report)?;
    let body_limit = message.wrapped("max_direct_response_body_size_bytes")?.unwrap_or(4096);
    let mut domains: HashSet<String> = HashSet::new();
    for (h, host) in message.messages("virtual_hosts")?.iter().enumerate() {
        for (d, domain) in host.texts("domains")?.into_iter().enumerate() {
            let lower = domain.to_ascii_lowercase();
            if domains.contains(&lower) {
                let expected = match lower == "*" {
                    true => "at most one `*` per route configuration",
                    false => "unique domains per route configuration, ignoring case",
                };
                report(
                    &format!("virtual_hosts[{h}].domains[{d}]"),
                    wrong(format!("{} again", quoted(domain.as_bytes())), expected),
                );
            }
            domains.insert(lower);
        }
        for (r, route) in host.messages("routes")?.iter().enumerate() {
            let Some(body) = route
                .message("direct_response")?
                .map(|answer| answer.message("body"))
                .transpose()?
                .flatten()
            else {
                continue;
            };
            for source in ["inline_string", "inline_bytes"] {
                if let Some(Payload::Bytes(bytes)) = body.values(source)?.pop()
                    && bytes.len() as u64 > body_limit
                {
                    report(
                        &format!("virtual_hosts[{h}].routes[{r}].direct_response.body.{source}"),
                        wrong(
                            format!("{} bytes", bytes.len()),
                            format!("at most {body_limit} bytes"),
                        ),
                    );
                }
            }
        }
    }
    Ok(())
}

/// Source: `source/common/router/config_impl.cc`, `CommonVirtualHostImpl`.
fn virtual_host(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    header_operations(message, report)?;
    if message.has("matcher")? && message.has("routes")? {
        report("matcher", wrong("a matcher together with routes", "one of them"));
    }
    Ok(())
}

/// The header operations of a route configuration, virtual host, route or weighted cluster.
///
/// Source: `source/common/router/header_parser.cc`, `HeaderParser::configure`; `HeaderUtility::isModifiableHeader` and
/// `isRemovableHeader`.
fn header_operations(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    for list in ["request_headers_to_add", "response_headers_to_add"] {
        for (at, option) in message.messages(list)?.iter().enumerate() {
            let Some(header) = option.message("header")? else {
                continue;
            };
            if is_reserved(header.text("key")?) {
                report(
                    &format!("{list}[{at}].header.key"),
                    wrong(
                        quoted(header.text("key")?.as_bytes()),
                        "a header other than `host` and pseudo-headers",
                    ),
                );
            }
            if let Err(place) = super::format::check(header.text("value")?) {
                report(
                    &format!("{list}[{at}].header.value"),
                    wrong(
                        format!(
                            "an unescaped % at byte {place} of {}",
                            quoted(header.text("value")?.as_bytes())
                        ),
                        "%% for a literal percent sign, or a command such as %REQ(NAME)%",
                    ),
                );
            }
        }
    }
    for list in ["request_headers_to_remove", "response_headers_to_remove"] {
        for (at, name) in message.texts(list)?.into_iter().enumerate() {
            if is_reserved(name) {
                report(
                    &format!("{list}[{at}]"),
                    wrong(quoted(name.as_bytes()), "a header other than `host` and pseudo-headers"),
                );
            }
        }
    }
    Ok(())
}

fn is_reserved(header: &str) -> bool {
    header.starts_with(':') || header.eq_ignore_ascii_case("host")
}

/// Source: `source/common/router/weighted_cluster_specifier.cc`.
fn weighted_cluster(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    let clusters = message.messages("clusters")?;
    let mut total = 0_u64;
    for (at, cluster) in clusters.iter().enumerate() {
        match cluster.wrapped("weight")? {
            Some(weight) => total = total.saturating_add(weight),
            None => {
                report(&format!("clusters[{at}].weight"), wrong("nothing", "a weight, possibly 0"))
            }
        }
        if cluster.text("name")?.is_empty() == cluster.text("cluster_header")?.is_empty() {
            let both = !cluster.text("name")?.is_empty();
            let found = if both {
                "a name and a cluster_header"
            } else {
                "neither a name nor a cluster_header"
            };
            report(&format!("clusters[{at}]"), wrong(found, "one of them"));
        }
    }
    if !clusters.is_empty() && (total == 0 || total > u32::MAX.into()) {
        report(
            "clusters",
            wrong(
                format!("weights with a sum of {total}"),
                format!("a sum from 1 to {}", u32::MAX),
            ),
        );
    }
    Ok(())
}

/// Source: `source/common/router/config_impl.cc`, `RouteEntryImplBase`.
fn route_action(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    let mut rewrites = Vec::new();
    if !message.text("prefix_rewrite")?.is_empty() {
        rewrites.push("prefix_rewrite");
    }
    for name in ["regex_rewrite", "path_rewrite_policy"] {
        if message.has(name)? {
            rewrites.push(name);
        }
    }
    if let [_, second, ..] = rewrites.as_slice() {
        report(second, wrong(rewrites.join(" and "), "only one way to rewrite the path"));
    }
    let mut upgrades = BTreeSet::new();
    for (at, upgrade) in message.messages("upgrade_configs")?.iter().enumerate() {
        let name = upgrade.text("upgrade_type")?;
        if !upgrades.insert(name.to_ascii_lowercase()) {
            report(
                &format!("upgrade_configs[{at}].upgrade_type"),
                wrong(
                    format!("{} again", quoted(name.as_bytes())),
                    "unique upgrade types, ignoring case",
                ),
            );
        }
    }
    Ok(())
}

/// Source: `source/common/router/config_impl.cc`, `validateMirrorClusterSpecifier`.
fn request_mirror_policy(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    let (cluster, header) = (message.text("cluster")?, message.text("cluster_header")?);
    if cluster.is_empty() == header.is_empty() {
        let found = if cluster.is_empty() {
            "neither cluster nor cluster_header"
        } else {
            "cluster and cluster_header"
        };
        report("", wrong(found, "one of them"));
    }
    Ok(())
}

/// Source: `source/common/router/config_impl.cc`, `RetryPolicyImpl`: both are counted in milliseconds, with a minimum
/// of one.
fn retry_back_off(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    let base = message.milliseconds("base_interval")?.unwrap_or_default().max(1);
    if let Some(max) = message.milliseconds("max_interval")?.map(|max| max.max(1))
        && max < base
    {
        report(
            "max_interval",
            wrong(format!("{max}ms"), format!("at least the base interval, {base}ms")),
        );
    }
    Ok(())
}

/// Source: `source/common/router/config_impl.cc`, `InternalRedirectPolicyImpl`.
fn internal_redirect_policy(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    for (at, name) in message.texts("response_headers_to_copy")?.into_iter().enumerate() {
        if is_reserved(name) {
            report(
                &format!("response_headers_to_copy[{at}]"),
                wrong(quoted(name.as_bytes()), "a header other than `host` and pseudo-headers"),
            );
        }
    }
    Ok(())
}

/// Source: `source/common/common/regex.cc`, `CompiledGoogleReMatcher`.
fn regex_matcher(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    let pattern = message.text("regex")?;
    if let Err(reason) = re2::check(pattern) {
        report(
            "regex",
            wrong(format!("{} ({reason})", quoted(pattern.as_bytes())), "an RE2 expression"),
        );
    }
    Ok(())
}

/// Source: `source/common/protobuf/utility.cc`, `validateDuration`.
fn duration(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    /// About 10 000 years, the maximum by definition of the type.
    const MAX_SECONDS: i64 = 315_576_000_000;
    let (seconds, nanos) = seconds_and_nanos(message.bytes)?;
    if !(0..=MAX_SECONDS).contains(&seconds) || !(0..=999_999_999).contains(&nanos) {
        report(
            "",
            wrong(
                format!("{seconds} seconds and {nanos} nanoseconds"),
                "a duration that is not negative",
            ),
        );
    }
    Ok(())
}

/// Values of `envoy.config.cluster.v3.Cluster.DiscoveryType` and `LbPolicy`.
const STATIC: u64 = 0;
const LOGICAL_DNS: u64 = 2;
const ORIGINAL_DST: u64 = 4;
const RING_HASH: u64 = 2;
const MAGLEV: u64 = 5;
const CLUSTER_PROVIDED: u64 = 6;

/// Source: `source/common/upstream/upstream_impl.cc`, `ClusterInfoImpl`; `source/extensions/clusters/original_dst`, `logical_dns`
/// and `static`.
fn cluster(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    // Extension clusters and policies have their own rules.
    let (kind, policy) = (message.number("type")?, message.number("lb_policy")?);
    let (is_custom, has_policy) =
        (message.has("cluster_type")?, message.has("load_balancing_policy")?);
    if !has_policy {
        hash_tables(message, policy, report)?;
    }
    if is_custom {
        return Ok(());
    }
    if !has_policy && kind == ORIGINAL_DST && policy != CLUSTER_PROVIDED {
        report(
            "lb_policy",
            wrong(format!("{policy}"), "CLUSTER_PROVIDED (6) for type ORIGINAL_DST"),
        );
    }
    if !has_policy && kind != ORIGINAL_DST && policy == CLUSTER_PROVIDED {
        report(
            "lb_policy",
            wrong("CLUSTER_PROVIDED", "another policy for a type other than ORIGINAL_DST"),
        );
    }
    let assignment = message.message("load_assignment")?;
    match (kind, &assignment) {
        (ORIGINAL_DST, Some(_)) => {
            report("load_assignment", wrong("endpoints", "none for type ORIGINAL_DST"))
        }
        (LOGICAL_DNS, _) => only_endpoint(assignment.as_ref(), report)?,
        (STATIC, Some(assignment)) => {
            addresses(assignment, &mut |path, wrong| {
                report(&below("load_assignment", path), wrong);
            })?;
        }
        _ => {}
    }
    Ok(())
}

/// Checks the settings of the cluster's `lb_policy`, if it uses a table of hashes.
fn hash_tables(message: &Message<'_>, policy: u64, report: Report<'_>) -> Result<(), Malformed> {
    if policy == RING_HASH
        && let Some(ring) = message.message("ring_hash_lb_config")?
    {
        ring_hash(&ring, &mut |path, wrong| {
            report(&below("ring_hash_lb_config", path), wrong);
        })?;
    }
    if policy == MAGLEV
        && let Some(table) = message.message("maglev_lb_config")?
    {
        maglev(&table, &mut |path, wrong| {
            report(&below("maglev_lb_config", path), wrong);
        })?;
    }
    Ok(())
}

/// A cluster of type LOGICAL_DNS has one endpoint.
fn only_endpoint(assignment: Option<&Message<'_>>, report: Report<'_>) -> Result<(), Malformed> {
    let localities = match assignment {
        Some(assignment) => assignment.messages("endpoints")?,
        None => Vec::new(),
    };
    let mut count = 0;
    for locality in &localities {
        count += locality.messages("lb_endpoints")?.len();
    }
    if (localities.len(), count) != (1, 1) {
        let found = format!("{count} endpoints in {} localities", localities.len());
        report(
            "load_assignment.endpoints",
            wrong(found, "exactly one endpoint for type LOGICAL_DNS"),
        );
    }
    Ok(())
}

fn below(field: &str, path: &str) -> String {
    format!("{field}.{path}")
}

/// Source: `source/extensions/load_balancing_policies/ring_hash/ring_hash_lb.cc`, with its defaults.
fn ring_hash(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    let min = message.wrapped("minimum_ring_size")?.unwrap_or(1024);
    let max = message.wrapped("maximum_ring_size")?.unwrap_or(8 * 1024 * 1024);
    if min > max {
        let expected = format!("at most the maximum ring size, {max}");
        report("minimum_ring_size", wrong(min.to_string(), expected));
    }
    Ok(())
}

/// Source: `source/extensions/load_balancing_policies/maglev/config.cc`; the maximum size is in the proto.
fn maglev(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    const LARGEST: u64 = 5_000_011;
    if let Some(size) =
        message.wrapped("table_size")?.filter(|size| *size <= LARGEST && !is_prime(*size))
    {
        report("table_size", wrong(size.to_string(), "a prime number"));
    }
    Ok(())
}

fn is_prime(number: u64) -> bool {
    number > 1
        && (2..).take_while(|d| d * d <= number).all(|divisor| !number.is_multiple_of(divisor))
}

/// Source: `source/common/upstream/outlier_detection_impl.cc`.
fn outlier_detection(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    let base = message.milliseconds("base_ejection_time")?.unwrap_or(30_000);
    if let Some(max) = message.milliseconds("max_ejection_time")?
        && max < base
    {
        report(
            "max_ejection_time",
            wrong(format!("{max}ms"), format!("at least the base ejection time, {base}ms")),
        );
    }
    Ok(())
}

/// Envoy accepts gaps in priorities and duplicate localities and endpoints.
///
/// Source: the documentation of `load_balancing_weight` in `envoy/config/endpoint/v3/endpoint_components.proto` for the
/// sums; Envoy 1.40 does not reject larger sums but truncates them to 32 bits.
fn load_assignment(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    let mut of_localities: BTreeMap<u64, u64> = BTreeMap::new();
    for (at, locality) in message.messages("endpoints")?.iter().enumerate() {
        let sum = of_localities.entry(locality.number("priority")?).or_default();
        *sum = sum.saturating_add(locality.wrapped("load_balancing_weight")?.unwrap_or_default());
        if *sum > u32::MAX.into() {
            report(
                &format!("endpoints[{at}].load_balancing_weight"),
                wrong(
                    format!("a total of {sum} so far"),
                    format!("at most {} per priority", u32::MAX),
                ),
            );
        }
        let mut sum = 0_u64;
        for endpoint in locality.messages("lb_endpoints")? {
            sum = sum.saturating_add(endpoint.wrapped("load_balancing_weight")?.unwrap_or(1));
        }
        if sum > u32::MAX.into() {
            report(
                &format!("endpoints[{at}].lb_endpoints"),
                wrong(format!("weights with a sum of {sum}"), format!("at most {}", u32::MAX)),
            );
        }
    }
    match message.is_root {
        true => addresses(message, report),
        false => Ok(()),
    }
}

/// Endpoints that are not resolved must have an IP address.
///
/// Source: `source/common/network/resolver_impl.cc`, `resolveProtoAddress`.
fn addresses(assignment: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    for (l, locality) in assignment.messages("endpoints")?.iter().enumerate() {
        for (e, endpoint) in locality.messages("lb_endpoints")?.iter().enumerate() {
            if endpoint.has("endpoint_name")? {
                continue;
            }
            let path = format!("endpoints[{l}].lb_endpoints[{e}].endpoint.address");
            let address = endpoint
                .message("endpoint")?
                .map(|item| item.message("address"))
                .transpose()?
                .flatten();
            let Some(address) = address else {
                report(&path, wrong("nothing", "an address"));
                continue;
            };
            let Some(socket) = address.message("socket_address")? else {
                continue;
            };
            let text = socket.text("address")?;
            if socket.text("resolver_name")?.is_empty() && !text.is_empty() && !is_ip(text) {
                report(
                    &format!("{path}.socket_address.address"),
                    wrong(
                        quoted(text.as_bytes()),
                        "an IP address; only DNS clusters accept host names",
                    ),
                );
            }
        }
    }
    Ok(())
}

/// An IPv6 address may have a zone after a `%`.
fn is_ip(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
        || text.split_once('%').is_some_and(|(ip, _)| ip.parse::<IpAddr>().is_ok())
}

/// Source: `source/common/listener_manager/filter_chain_manager_impl.cc`, `addFilterChains`; `listener_impl.cc`,
/// `validateFilterChains`.
fn listener(message: &Message<'_>, report: Report<'_>) -> Result<(), Malformed> {
    let chains = message.messages("filter_chains")?;
    if chains.is_empty()
        && !message.has("default_filter_chain")?
        && !message.has("api_listener")?
        && !message.has("udp_listener_config")?
    {
        report("filter_chains", wrong("none, and no default_filter_chain", "at least one"));
    }
    if message.has("filter_chain_matcher")? {
        return chain_names(&chains, report);
    }
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    for (at, chain) in chains.iter().enumerate() {
        let Some(keys) = chain_keys(at, chain, report)? else {
            continue;
        };
        let twin = keys.iter().find_map(|key| known.get(key).copied());
        if let Some(twin) = twin {
            report(
                &format!("filter_chains[{at}].filter_chain_match"),
                wrong(format!("the same match as filter_chains[{twin}]"), "a unique match"),
            );
        }
        known.extend(keys.into_iter().map(|key| (key, at)));
    }
    Ok(())
}

fn chain_names(chains: &[Message<'_>], report: Report<'_>) -> Result<(), Malformed> {
    let mut names = BTreeSet::new();
    for (at, chain) in chains.iter().enumerate() {
        let name = chain.text("name")?;
        let found = match () {
            () if name.is_empty() => "nothing".to_owned(),
            () if !names.insert(name) => format!("{} again", quoted(name.as_bytes())),
            () => continue,
        };
        report(
            &format!("filter_chains[{at}].name"),
            wrong(found, "a unique name, which a matcher requires"),
        );
    }
    Ok(())
}

/// Every combination of conditions that a filter chain matches, one string each; `None` if there are too many to
/// enumerate.
fn chain_keys(
    at: usize,
    chain: &Message<'_>,
    report: Report<'_>,
) -> Result<Option<Vec<String>>, Malformed> {
    const MANY: usize = 20_000;
    let Some(of) = chain.message("filter_chain_match")? else {
        return Ok(Some(vec![EMPTY_MATCH.to_owned()]));
    };
    let path = format!("filter_chains[{at}].filter_chain_match");
    if of.has("suffix_len")? || !of.text("address_suffix")?.is_empty() {
        report(
            &path,
            wrong("address_suffix or suffix_len", "neither, because Envoy does not implement them"),
        );
    }
    let mut parts = vec![vec![of.wrapped("destination_port")?.unwrap_or_default().to_string()]];
    parts.push(prefixes(&of, "prefix_ranges", &path, report)?);
    let mut names = Vec::new();
    for (n, name) in of.texts("server_names")?.into_iter().enumerate() {
        if name.contains('*') && !name.starts_with("*.") {
            report(
                &format!("{path}.server_names[{n}]"),
                wrong(quoted(name.as_bytes()), "a full name, or `*.` followed by a suffix"),
            );
        }
        names.push(name.to_ascii_lowercase());
    }
    parts.push(names);
    parts.push(vec![of.text("transport_protocol")?.to_owned()]);
    parts.push(of.texts("application_protocols")?.into_iter().map(str::to_owned).collect());
    parts.push(prefixes(&of, "direct_source_prefix_ranges", &path, report)?);
    parts.push(vec![of.number("source_type")?.to_string()]);
    parts.push(prefixes(&of, "source_prefix_ranges", &path, report)?);
    parts.push(ports(&of)?);
    let mut keys = vec![String::new()];
    for part in parts {
        let part = if part.is_empty() { vec![String::new()] } else { part };
        if keys.len().saturating_mul(part.len()) > MANY {
            return Ok(None);
        }
        keys = keys
            .iter()
            .flat_map(|key| part.iter().map(move |value| format!("{key}{value}\n")))
            .collect();
    }
    Ok(Some(keys))
}

/// The result of [`chain_keys`] for an empty match: port 0, any source type, and nothing else.
const EMPTY_MATCH: &str = "0\n\n\n\n\n\n0\n\n\n";

fn ports(of: &Message<'_>) -> Result<Vec<String>, Malformed> {
    let mut ports = Vec::new();
    for payload in of.values("source_ports")? {
        match payload {
            Payload::Bytes(mut packed) => {
                while !packed.is_empty() {
                    let entry = Scalar::Uint32
                        .unpack(&mut packed)
                        .and_then(|item| Scalar::Uint32.read(item));
                    ports.push(port(entry)?);
                }
            }
            entry => ports.push(port(Scalar::Uint32.read(entry))?),
        }
    }
    Ok(ports)
}

fn port(value: Option<Value<'_>>) -> Result<String, Malformed> {
    match value {
        Some(Value::Int(port)) => Ok(port.to_string()),
        _ => Err(Malformed),
    }
}

/// Address ranges with the bits after the prefix cleared, as Envoy compares them.
fn prefixes(
    of: &Message<'_>,
    list: &str,
    path: &str,
    report: Report<'_>,
) -> Result<Vec<String>, Malformed> {
    let mut out = Vec::new();
    for (at, range) in of.messages(list)?.iter().enumerate() {
        let (text, length) =
            (range.text("address_prefix")?, range.wrapped("prefix_len")?.unwrap_or_default());
        out.push(match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => {
                let length = length.min(32) as u32;
                let mask = u32::MAX.checked_shl(32 - length).unwrap_or_default();
                format!("{}/{length}", std::net::Ipv4Addr::from_bits(ip.to_bits() & mask))
            }
            Ok(IpAddr::V6(ip)) => {
                let length = length.min(128) as u32;
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or_default();
                format!("{}/{length}", std::net::Ipv6Addr::from_bits(ip.to_bits() & mask))
            }
            Err(_) => {
                report(
                    &format!("{path}.{list}[{at}].address_prefix"),
                    wrong(quoted(text.as_bytes()), "an IP address"),
                );
                continue;
            }
        });
    }
    Ok(out)
}
