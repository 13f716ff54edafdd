//! Checks Istio annotations: known, on the right kind, with a valid value.

use std::collections::HashSet;

use super::{Findings, code};
use crate::api::{Kind, is_dns_label};
use crate::store::{Entry, Store};

/// Istio's annotations, the kinds they apply to (empty for any), and whether they are deprecated. Source: istio/api,
/// `annotation/annotations.yaml`.
const KNOWN: &[(&str, &[&str], bool)] = &[
    ("alpha.istio.io/canonical-serviceaccounts", &["Service"], true),
    ("alpha.istio.io/kubernetes-serviceaccounts", &["Service"], true),
    ("ambient.istio.io/bypass-inbound-capture", &["Pod"], false),
    ("ambient.istio.io/dns-capture", &["Pod"], false),
    ("ambient.istio.io/redirection", &["Pod"], false),
    ("ambient.istio.io/waypoint-inbound-binding", &["GatewayClass", "Gateway"], false),
    ("galley.istio.io/analyze-suppress", &[], false),
    ("gateway.istio.io/controller-version", &[], false),
    ("gateway.istio.io/name-override", &["Gateway"], false),
    ("gateway.istio.io/service-account", &["Gateway"], false),
    ("inject.istio.io/templates", &["Pod"], false),
    ("istio.io/autoRegistrationGroup", &["WorkloadEntry"], false),
    ("istio.io/connectedAt", &["WorkloadEntry"], false),
    ("istio.io/disconnectedAt", &["WorkloadEntry"], false),
    ("istio.io/dry-run", &["AuthorizationPolicy"], false),
    ("istio.io/reroute-virtual-interfaces", &["Pod"], false),
    ("istio.io/rev", &["Pod"], false),
    ("istio.io/use-waypoint-canary-weight", &["Service", "ServiceEntry", "Namespace"], false),
    ("istio.io/workloadController", &["WorkloadEntry"], false),
    ("networking.istio.io/exportTo", &["Service"], false),
    ("networking.istio.io/service-type", &["Gateway"], false),
    ("networking.istio.io/traffic-distribution", &["Namespace", "Service", "ServiceEntry"], false),
    ("prometheus.istio.io/merge-metrics", &["Pod"], false),
    ("proxy.istio.io/config", &["Pod"], false),
    ("proxy.istio.io/overrides", &["Pod"], false),
    ("readiness.status.sidecar.istio.io/applicationPorts", &["Pod"], false),
    ("readiness.status.sidecar.istio.io/failureThreshold", &["Pod"], false),
    ("readiness.status.sidecar.istio.io/initialDelaySeconds", &["Pod"], false),
    ("readiness.status.sidecar.istio.io/periodSeconds", &["Pod"], false),
    ("sidecar.istio.io/agentLogLevel", &["Pod"], false),
    ("sidecar.istio.io/bootstrapOverride", &["Pod"], false),
    ("sidecar.istio.io/componentLogLevel", &["Pod"], false),
    ("sidecar.istio.io/discoveryAddress", &["Pod"], true),
    ("sidecar.istio.io/extraStatTags", &["Pod"], true),
    ("sidecar.istio.io/inject", &["Pod"], true),
    ("sidecar.istio.io/interceptionMode", &["Pod"], false),
    ("sidecar.istio.io/logLevel", &["Pod"], false),
    ("sidecar.istio.io/nativeSidecar", &["Pod"], false),
    ("sidecar.istio.io/proxyCPU", &["Pod"], false),
    ("sidecar.istio.io/proxyCPULimit", &["Pod"], false),
    ("sidecar.istio.io/proxyImage", &["Pod"], false),
    ("sidecar.istio.io/proxyImageType", &["Pod"], false),
    ("sidecar.istio.io/proxyMemory", &["Pod"], false),
    ("sidecar.istio.io/proxyMemoryLimit", &["Pod"], false),
    ("sidecar.istio.io/rewriteAppHTTPProbers", &["Pod"], false),
    ("sidecar.istio.io/statsCompression", &["Pod"], true),
    ("sidecar.istio.io/statsEvictionInterval", &["Pod"], false),
    ("sidecar.istio.io/statsFlushInterval", &["Pod"], false),
    ("sidecar.istio.io/statsHistogramBins", &["Pod"], false),
    ("sidecar.istio.io/statsHistogramBuckets", &["Pod"], false),
    ("sidecar.istio.io/statsInclusionPrefixes", &["Pod"], true),
    ("sidecar.istio.io/statsInclusionRegexps", &["Pod"], true),
    ("sidecar.istio.io/statsInclusionSuffixes", &["Pod"], true),
    ("sidecar.istio.io/status", &["Pod"], false),
    ("sidecar.istio.io/userVolume", &["Pod"], false),
    ("sidecar.istio.io/userVolumeMount", &["Pod"], false),
    ("status.sidecar.istio.io/port", &["Pod"], false),
    ("topology.istio.io/controlPlaneClusters", &["Namespace"], false),
    ("traffic.istio.io/nodeSelector", &["Service"], false),
    ("traffic.sidecar.istio.io/excludeInboundPorts", &["Pod"], false),
    ("traffic.sidecar.istio.io/excludeInterfaces", &["Pod"], false),
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", &["Pod"], false),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", &["Pod"], false),
    ("traffic.sidecar.istio.io/includeInboundPorts", &["Pod"], false),
    ("traffic.sidecar.istio.io/includeOutboundIPRanges", &["Pod"], false),
    ("traffic.sidecar.istio.io/includeOutboundPorts", &["Pod"], false),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", &["Pod"], true),
];

/// Prefixes written by Istio's own tools.
const OWN: [&str; 3] = ["internal.istio.io", "install.operator.istio.io", "operator.istio.io"];

pub(super) fn check(store: &Store, found: &mut Findings) {
    let mut seen = HashSet::new();
    for entry in Kind::ALL.into_iter().flat_map(|kind| store.all(kind)) {
        let kind = entry.object.kind();
        for (name, value) in &entry.object.meta.annotations {
            let domain = name.split('/').next().unwrap_or_default();
            let is_istios = domain == "istio.io" || domain.ends_with(".istio.io");
            if !is_istios || OWN.contains(&domain) {
                continue;
            }
            // All pods of a workload have the same annotations, so only the first is checked.
            if kind == Kind::Pod && !seen.insert((entry.object.meta.namespace.clone(), name, value))
            {
                continue;
            }
            annotation(entry, name, value, found);
        }
    }
}

fn annotation(entry: &Entry, name: &str, value: &str, found: &mut Findings) {
    let kind = entry.object.kind();
    let path = format!("metadata.annotations.{name}");
    let Some((_, kinds, deprecated)) = KNOWN.iter().find(|(known, ..)| *known == name) else {
        let message = "is not a known Istio annotation";
        found.add(
            &code::UNKNOWN_ANNOTATION,
            entry,
            path,
            message,
            "check its spelling, or remove it",
        );
        return;
    };
    if !kinds.is_empty() && !kinds.contains(&kind.as_str()) {
        let message = format!("has no effect on a {kind}; it applies to a {}", kinds.join(" or "));
        let advice = if name == "networking.istio.io/exportTo" {
            "use spec.exportTo"
        } else {
            "move it there"
        };
        found.add(&code::MISPLACED_ANNOTATION, entry, path, message, advice);
        return;
    }
    if *deprecated {
        let advice = if name == "sidecar.istio.io/inject" {
            "use the label of the same name"
        } else {
            "remove it"
        };
        found.add(&code::DEPRECATED_ANNOTATION, entry, path.clone(), "is deprecated", advice);
    }
    for (message, advice) in invalid_values(name, value) {
        found.add(&code::INVALID_ANNOTATION, entry, path.clone(), message, advice);
    }
}

/// The problems with the value of an annotation that weir reads, each with what is expected.
fn invalid_values(name: &str, value: &str) -> Vec<(String, &'static str)> {
    match name {
        "networking.istio.io/traffic-distribution" => {
            let known = ["", "any", "preferclose", "prefersamezone", "prefersamenode"];
            if known.contains(&value.to_ascii_lowercase().as_str()) {
                return Vec::new();
            }
            vec![(
                format!("`{value}` is not a valid preference and disables the namespace's setting"),
                "use PreferClose, PreferSameZone or PreferSameNode",
            )]
        }
        "networking.istio.io/exportTo" => value
            .split(',')
            .map(str::trim)
            .filter(|part| !matches!(*part, "" | "*" | "." | "~") && !is_dns_label(part))
            .map(|part| {
                (
                    format!("`{part}` is not a namespace"),
                    "expected a comma-separated list of namespaces, `.`, `*` or `~`",
                )
            })
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{found, ids};

    fn service(annotations: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, annotations: {{{annotations}}}}}\n\
             spec: {{clusterIP: 10.0.0.1, ports: [{{name: http, port: 80}}]}}\n"
        )
    }

    #[test]
    fn annotations_are_known_and_on_the_right_kind() {
        assert_eq!(
            ids(&service(
                "networking.istio.io/exportTo: 'shop, .', example.com/x: z, internal.istio.io/a: b"
            )),
            [""; 0]
        );
        assert_eq!(ids(&service("networking.istio.io/traffic-distribution: preferclose")), [""; 0]);
        for (annotation, code) in [
            ("networking.istio.io/exportTo: 'Sh op'", "IST0125"),
            ("networking.istio.io/traffic-distribution: PreferNear", "IST0125"),
            ("networking.istio.io/exportto: shop", "IST0108"),
            ("proxy.istio.io/config: x", "IST0107"),
            ("alpha.istio.io/canonical-serviceaccounts: x", "IST0135"),
        ] {
            let name = annotation.split(':').next().unwrap();
            assert_eq!(
                found(&service(annotation)),
                [(code, format!("metadata.annotations.{name}"))]
            );
        }
    }
}
