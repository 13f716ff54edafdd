//! The codes of findings and their meanings. A finding that Istio's analyzers report too has Istio's code and severity
//! (source: istio/istio, `pkg/config/analysis/msg/messages.yaml`); the others are `WEIRnnnn`.

use std::fmt;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Severity {
    /// Informational.
    Info,
    /// Probably unintended.
    Warning,
    /// Does not work.
    Error,
}

impl Severity {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A kind of finding.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// Like `IST0101`.
    pub id: &'static str,
    /// A descriptive name; Istio's if the code is Istio's.
    pub name: &'static str,
    /// The severity.
    pub severity: Severity,
    /// The meaning.
    pub about: &'static str,
}

macro_rules! codes {
    ($($(#[$doc:meta])+ $name:ident = $id:literal, $title:literal, $severity:ident, $about:literal;)+) => {
        $($(#[$doc])+ pub static $name: Code =
            Code { id: $id, name: $title, severity: Severity::$severity, about: $about };)+
        /// Every code, Istio's first.
        pub static ALL: &[&Code] = &[$(&$name),+];
    };
}

codes! {
    /// A deprecated field.
    DEPRECATED = "IST0002", "Deprecated", Warning,
        "a deprecated field or value that still works";
    /// A reference to nothing.
    REFERENCE = "IST0101", "ReferencedResourceNotFound", Error,
        "a host, port, subset or delegate does not exist or is not visible in the object's namespace";
    /// A value that is not allowed.
    SCHEMA = "IST0106", "SchemaValidationError", Error,
        "a field is missing, has an invalid value, or contradicts another: the object is rejected and its last \
            accepted version stays active; if a VirtualService is not rejected, one of its routes does not work";
    /// An annotation on the wrong kind.
    MISPLACED_ANNOTATION = "IST0107", "MisplacedAnnotation", Warning,
        "an Istio annotation has no effect on this kind of object";
    /// An unknown annotation.
    UNKNOWN_ANNOTATION = "IST0108", "UnknownAnnotation", Warning,
        "an istio.io annotation that Istio does not define";
    /// Two VirtualServices for one host.
    HOST_CONFLICT = "IST0109", "ConflictingMeshGatewayVirtualServiceHosts", Error,
        "two VirtualServices define the same host for the same sidecars: only one of them is used";
    /// Two Sidecars with a selector for one pod.
    SIDECAR_SELECTORS = "IST0110", "ConflictingSidecarWorkloadSelectors", Error,
        "two Sidecars in one namespace select the same pod: the older one is used";
    /// Two Sidecars for one namespace.
    SIDECARS_WITHOUT_SELECTOR = "IST0111", "MultipleSidecarsWithoutWorkloadSelectors", Error,
        "two Sidecars in one namespace have no workloadSelector: the older one is used";
    /// An ambiguous port.
    PORT_REQUIRED = "IST0112", "VirtualServiceDestinationPortSelectorRequired", Error,
        "a destination names no port although its service has several: the request's port is used, if the service has \
            it";
    /// One pod port, two protocols.
    WORKLOAD_CONFLICT = "IST0116", "DeploymentAssociatedToMultipleServices", Warning,
        "two services target the same port of the same pods with different protocols";
    /// A port name without a protocol.
    PORT_NAME = "IST0118", "PortNameIsNotUnderNamingConvention", Info,
        "neither appProtocol nor the port name specifies a protocol: it is detected from the first bytes of each \
            connection";
    /// An invalid regular expression. Istio warns; weir rejects the object because Envoy would reject the result.
    REGEX = "IST0122", "InvalidRegexp", Error,
        "a regular expression is not valid in Envoy's RE2: the object is rejected";
    /// An annotation with a wrong value.
    INVALID_ANNOTATION = "IST0125", "InvalidAnnotation", Warning,
        "an Istio annotation has an invalid value";
    /// A selector that selects nothing.
    NO_WORKLOADS = "IST0127", "NoMatchingWorkloadsFound", Warning,
        "no known pod matches a workloadSelector";
    /// TLS to a server that is not verified. Istio's analyzer asks for caCertificates; without them the system's trust
    /// store is used.
    UNVERIFIED = "IST0128", "NoServerCertificateVerificationDestinationLevel", Warning,
        "a TLS policy with insecureSkipVerify: the server certificate is not verified";
    /// TLS to a server's port that is not verified.
    UNVERIFIED_PORT = "IST0129", "NoServerCertificateVerificationPortLevel", Warning,
        "a port-level TLS policy with insecureSkipVerify: the server certificate is not verified";
    /// An unreachable route.
    UNREACHABLE = "IST0130", "VirtualServiceUnreachableRule", Warning,
        "a route is unreachable because earlier routes match all of its requests";
    /// An unreachable match.
    INEFFECTIVE_MATCH = "IST0131", "VirtualServiceIneffectiveMatch", Info,
        "a match is unreachable because earlier matches cover all of its requests";
    /// Accepted but probably unintended.
    SCHEMA_WARNING = "IST0133", "SchemaWarning", Warning,
        "an unknown field, or a value that is accepted but probably unintended";
    /// A ServiceEntry that captures a port on every address.
    ADDRESS_REQUIRED = "IST0134", "ServiceEntryAddressesRequired", Warning,
        "a ServiceEntry without addresses has a port with protocol TCP or none: it captures that port on every \
            address";
    /// A deprecated annotation.
    DEPRECATED_ANNOTATION = "IST0135", "DeprecatedAnnotation", Info,
        "an annotation is deprecated in Istio";
    /// An ExternalName service's port without protocol.
    EXTERNAL_NAME_PORT = "IST0150", "ExternalNameServiceTypeInvalidPortName", Warning,
        "the port of an ExternalName service is named `tcp` or specifies no protocol: traffic may be routed wrongly";
    /// A subset without pods.
    EMPTY_SUBSET = "IST0173", "DestinationRuleSubsetNotSelectPods", Error,
        "no known endpoint of the service matches the subset's labels: requests to it get 503, unless its weight is \
            held back";
    /// An unused DestinationRule.
    UNUSED_RULE = "IST0174", "UnknownDestinationRuleHost", Warning,
        "no client uses a DestinationRule: its host is not a known service or is an alias (ExternalName), or it is in \
            a namespace where no client looks for it";
    /// An unusable file or document.
    UNREADABLE = "WEIR0001", "UnreadableDocument", Error,
        "a file is unreadable or not YAML, or a document cannot be identified or is defined twice";
    /// A kind that cannot be listed.
    NOT_LISTED = "WEIR0002", "KindNotListed", Warning,
        "the Kubernetes API does not serve a kind or does not allow weir to list it";
    /// Weights that do not sum to 100.
    WEIGHT_SUM = "WEIR0101", "WeightsNotHundred", Info,
        "weights do not sum to 100: they are relative to their sum, not percentages";
    /// Merged DestinationRules.
    MERGED = "WEIR0102", "DestinationRulesMerged", Info,
        "two DestinationRules in one namespace for the same host: the subsets of the newer are added to the older";
    /// Conflicting DestinationRules.
    RULE_CONFLICT = "WEIR0103", "DestinationRuleConflict", Warning,
        "two DestinationRules in one namespace for the same host conflict: the older one wins";
    /// A subset that is visible only to some clients.
    SUBSET_VISIBILITY = "WEIR0104", "SubsetNotSeenByAllClients", Warning,
        "a VirtualService applies in namespaces that cannot see the DestinationRule of a subset it routes to";
    /// A subset without labels.
    SUBSET_WITHOUT_LABELS = "WEIR0105", "SubsetWithoutLabels", Info,
        "a subset without labels contains every endpoint of the service";
    /// A port that the service does not have.
    UNKNOWN_PORT = "WEIR0106", "UnknownPort", Warning,
        "a match or policy has no effect because the service does not have its port";
    /// A timeout shorter than one attempt.
    TIMEOUT = "WEIR0107", "TimeoutShorterThanTry", Warning,
        "a route's timeout is shorter than its perTryTimeout";
    /// An unused delegate.
    UNUSED_DELEGATE = "WEIR0108", "UnusedDelegate", Warning,
        "no VirtualService delegates to this VirtualService without hosts";
    /// An unknown namespace.
    UNKNOWN_NAMESPACE = "WEIR0109", "UnknownNamespace", Warning,
        "exportTo or a match names a namespace that does not exist";
    /// A host without a service.
    UNKNOWN_HOST = "WEIR0110", "HostNotInRegistry", Info,
        "the host of a VirtualService is not a known service: it is routed on port 80 and on the ports of the other \
            hosts";
    /// Two services for one host.
    SERVICE_CONFLICT = "WEIR0111", "ConflictingServiceHosts", Warning,
        "two services have the same host and are not merged: clients use the one in their own namespace, else the \
            first";
    /// A Sidecar host that matches nothing.
    EGRESS_HOST = "WEIR0112", "EgressHostNotFound", Warning,
        "a Sidecar lists hosts that match no service";
    /// Weight that is held back.
    WEIGHT_HELD = "WEIR0113", "WeightHeld", Info,
        "weight for a destination without a ready endpoint: a weir that starts now assigns it to the other \
            destinations";
    /// A VirtualService that some clients do not get.
    OVERRIDDEN = "WEIR0114", "VirtualServiceOverridden", Info,
        "some clients of the host, by namespace, labels or port, get the routes of another VirtualService that names them";
    /// A service that only some clients know.
    SERVICE_VISIBILITY = "WEIR0115", "ServiceNotSeenByAllClients", Warning,
        "a VirtualService applies in namespaces that cannot see a service it routes to";
    /// Not applicable to sidecars.
    NOT_FOR_SIDECARS = "WEIR0201", "NotForSidecars", Info,
        "applies only to gateways, which weir does not serve";
    /// A credential that only gateways can use.
    CREDENTIAL_NAME = "WEIR0202", "CredentialNameForSidecars", Error,
        "credentialName works only for gateways: sidecars cannot read the Secret and send plain text";
    /// A field without effect.
    NO_EFFECT = "WEIR0203", "NoEffect", Warning,
        "a field has no effect here";
    /// One address and port, two protocols.
    PROTOCOL_CONFLICT = "WEIR0204", "ConflictingPortProtocols", Error,
        "two services have the same address and port but different protocols";
    /// A PeerAuthentication that does not apply to some or all of its workloads.
    PEER_POLICY_IGNORED = "WEIR0205", "PeerAuthenticationIgnored", Error,
        "another PeerAuthentication for the same workloads is older, or it selects workloads in the root namespace: it has \
            no effect on them";
    /// Connections without a certificate of the mesh to servers that require one.
    PLAIN_TEXT_REFUSED = "WEIR0206", "PlainTextRefused", Error,
        "a DestinationRule has clients send plain text, or TLS without a certificate, to workloads whose \
            PeerAuthentication is STRICT";
    /// Certificates from files to servers that require one of the mesh.
    OTHER_CERTIFICATE = "WEIR0207", "CertificateNotOfMesh", Warning,
        "a DestinationRule has clients present a certificate from files to workloads whose PeerAuthentication is STRICT: \
            they refuse it unless the mesh's authority has signed it";
    /// A sidecar that requires mutual TLS and cannot decrypt it.
    STRICT_WITHOUT_CERTIFICATES = "WEIR0208", "StrictWithoutCertificates", Error,
        "a PeerAuthentication is STRICT for pods whose sidecars have no certificates by their label \
            security.istio.io/tlsMode: clients send plain text, which is refused";
    /// A port where the server speaks first, but its proxy waits for the client.
    SERVER_SPEAKS_FIRST = "WEIR0209", "ServerSpeaksFirst", Warning,
        "the server of a port speaks first, but a proxy in front of it waits for the client's first bytes, to detect the \
            protocol or mutual TLS";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_unique_ordered_and_documented() {
        let ids: Vec<_> = ALL.iter().map(|code| code.id).collect();
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(ids, sorted);
        assert!(ALL.iter().all(|code| code.about.len() > 20 && !code.name.contains(' ')));
    }
}
