//! The codes of findings: one table with what each means. Where Istio's analyzers have a code for the same finding it
//! is theirs, with their severity (source: istio/istio, `pkg/config/analysis/msg/messages.yaml`); the others are
//! `WEIRnnnn`.

use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Likely not what was meant.
    Warning,
    /// Does not work.
    Error,
}

impl Severity {
    /// The word for it.
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
    /// A name for people; Istio's where the code is Istio's.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it means.
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
        "a field or value that still works and has a newer form";
    /// A name that leads nowhere.
    REFERENCE = "IST0101", "ReferencedResourceNotFound", Error,
        "a host, port, subset or delegate that is not there, or that the object's namespace does not see";
    /// A value that is not allowed.
    SCHEMA = "IST0106", "SchemaValidationError", Error,
        "a field is missing, has a value that is not allowed, or contradicts another: the object is refused, and what was \
         accepted of it before stays in force; of a VirtualService that is not, one route is dead";
    /// An annotation on the wrong kind.
    MISPLACED_ANNOTATION = "IST0107", "MisplacedAnnotation", Warning,
        "an annotation of Istio's stands on a kind of object on which nothing reads it";
    /// An annotation nobody knows.
    UNKNOWN_ANNOTATION = "IST0108", "UnknownAnnotation", Warning,
        "an annotation below istio.io that Istio does not have";
    /// Two VirtualServices for one host.
    HOST_CONFLICT = "IST0109", "ConflictingMeshGatewayVirtualServiceHosts", Error,
        "two VirtualServices speak for one host to the same sidecars: one of them is in force there, whole";
    /// Two Sidecars with a selector for one pod.
    SIDECAR_SELECTORS = "IST0110", "ConflictingSidecarWorkloadSelectors", Error,
        "two Sidecars of one namespace select one pod: the older one counts";
    /// Two Sidecars for one namespace.
    SIDECARS_WITHOUT_SELECTOR = "IST0111", "MultipleSidecarsWithoutWorkloadSelectors", Error,
        "two Sidecars of one namespace have no workloadSelector: the older one counts";
    /// Which of several ports?
    PORT_REQUIRED = "IST0112", "VirtualServiceDestinationPortSelectorRequired", Error,
        "a destination names no port though its service has several: the port of the request is used, if there is one";
    /// One pod port, two protocols.
    WORKLOAD_CONFLICT = "IST0116", "DeploymentAssociatedToMultipleServices", Warning,
        "two services lead to one port of the same pods and say that different protocols are spoken there";
    /// A port name that says no protocol.
    PORT_NAME = "IST0118", "PortNameIsNotUnderNamingConvention", Info,
        "neither appProtocol nor the port's name says a protocol: it is told from the first bytes of each connection";
    /// An expression that is none. Istio warns; weir refuses the object, as Envoy would refuse what is made of it.
    REGEX = "IST0122", "InvalidRegexp", Error,
        "a regular expression that Envoy's RE2 does not take: the object is refused";
    /// An annotation with a wrong value.
    INVALID_ANNOTATION = "IST0125", "InvalidAnnotation", Warning,
        "an annotation of Istio's has a value that is not allowed";
    /// A selector that selects nothing.
    NO_WORKLOADS = "IST0127", "NoMatchingWorkloadsFound", Warning,
        "no known pod has the labels of a workloadSelector";
    /// TLS to a server that is not verified. Istio's analyzer asks for caCertificates; without them the roots that the
    /// system trusts count.
    UNVERIFIED = "IST0128", "NoServerCertificateVerificationDestinationLevel", Warning,
        "a TLS policy with insecureSkipVerify: the server's certificate is not verified";
    /// TLS to a server's port that is not verified.
    UNVERIFIED_PORT = "IST0129", "NoServerCertificateVerificationPortLevel", Warning,
        "a TLS policy of one port with insecureSkipVerify: the server's certificate is not verified";
    /// A route nothing reaches.
    UNREACHABLE = "IST0130", "VirtualServiceUnreachableRule", Warning,
        "a route that no request reaches, because routes before it take them all";
    /// A match nothing reaches.
    INEFFECTIVE_MATCH = "IST0131", "VirtualServiceIneffectiveMatch", Info,
        "a match that no request reaches, because matches before it take them all";
    /// Odd, but accepted.
    SCHEMA_WARNING = "IST0133", "SchemaWarning", Warning,
        "an unknown field, or a value that is accepted but hardly meant";
    /// A ServiceEntry that takes a port of every address.
    ADDRESS_REQUIRED = "IST0134", "ServiceEntryAddressesRequired", Warning,
        "a ServiceEntry without addresses has a port of TCP or of no protocol: it takes that port of every address";
    /// A deprecated annotation.
    DEPRECATED_ANNOTATION = "IST0135", "DeprecatedAnnotation", Info,
        "an annotation that Istio has deprecated";
    /// An ExternalName service's port without protocol.
    EXTERNAL_NAME_PORT = "IST0150", "ExternalNameServiceTypeInvalidPortName", Warning,
        "the port of an ExternalName service is named `tcp` or says no protocol: traffic may take the wrong way";
    /// A subset without pods.
    EMPTY_SUBSET = "IST0173", "DestinationRuleSubsetNotSelectPods", Error,
        "no known endpoint of the service has the labels of the subset: requests to it get 503, unless its weight is held back";
    /// A rule for nothing.
    UNUSED_RULE = "IST0174", "UnknownDestinationRuleHost", Warning,
        "a DestinationRule that no client uses: its host is no known service, or another name of one (ExternalName), or it \
         is where no client looks for it";
    /// A file or document that can not be used.
    UNREADABLE = "WEIR0001", "UnreadableDocument", Error,
        "a file is no YAML or can not be read, or a document does not say what it is, or is there twice";
    /// A kind that can not be listed.
    NOT_LISTED = "WEIR0002", "KindNotListed", Warning,
        "a kind of object that the Kubernetes API does not have, or does not let weir list";
    /// Weights that do not sum to 100.
    WEIGHT_SUM = "WEIR0101", "WeightsNotHundred", Info,
        "weights that do not sum to 100: each is a share of their sum, not a percentage";
    /// Two DestinationRules in one.
    MERGED = "WEIR0102", "DestinationRulesMerged", Info,
        "two DestinationRules of one namespace for one host: the younger adds its subsets to the older";
    /// Two DestinationRules that contradict each other.
    RULE_CONFLICT = "WEIR0103", "DestinationRuleConflict", Warning,
        "two DestinationRules of one namespace for one host contradict each other: the older is right";
    /// A subset that only some clients know.
    SUBSET_VISIBILITY = "WEIR0104", "SubsetNotSeenByAllClients", Warning,
        "a VirtualService counts in namespaces that do not see the DestinationRule of a subset it sends to";
    /// A subset of everything.
    SUBSET_WITHOUT_LABELS = "WEIR0105", "SubsetWithoutLabels", Info,
        "a subset without labels: every endpoint of the service belongs to it";
    /// A port that the service does not have.
    UNKNOWN_PORT = "WEIR0106", "UnknownPort", Warning,
        "a match or a policy is for a port that the service does not have, so it has no effect";
    /// Shorter than one try.
    TIMEOUT = "WEIR0107", "TimeoutShorterThanTry", Warning,
        "a route's timeout ends a request before its perTryTimeout can";
    /// A delegate nobody uses.
    UNUSED_DELEGATE = "WEIR0108", "UnusedDelegate", Warning,
        "a VirtualService without hosts to which no other one delegates";
    /// An unknown namespace.
    UNKNOWN_NAMESPACE = "WEIR0109", "UnknownNamespace", Warning,
        "exportTo or a match names a namespace that does not exist";
    /// A host of no service.
    UNKNOWN_HOST = "WEIR0110", "HostNotInRegistry", Info,
        "the host of a VirtualService is no known service: it is routed on port 80, and on the ports of known hosts beside it";
    /// Two services for one host.
    SERVICE_CONFLICT = "WEIR0111", "ConflictingServiceHosts", Warning,
        "two services have one host and are not merged: clients see that of their own namespace, else the first";
    /// A host that a Sidecar asks for in vain.
    EGRESS_HOST = "WEIR0112", "EgressHostNotFound", Warning,
        "a Sidecar asks for hosts of which there is no service";
    /// Weight that is held back.
    WEIGHT_HELD = "WEIR0113", "WeightHeld", Info,
        "weight for a destination without a ready endpoint: a weir that starts now gives it to the other destinations";
    /// A VirtualService that some clients do not get.
    OVERRIDDEN = "WEIR0114", "VirtualServiceOverridden", Info,
        "some clients of the host, by namespace, labels or port, get the routes of another VirtualService that names them";
    /// A service that only some clients know.
    SERVICE_VISIBILITY = "WEIR0115", "ServiceNotSeenByAllClients", Warning,
        "a VirtualService counts in namespaces that do not see a service it sends to";
    /// Not for sidecars.
    NOT_FOR_SIDECARS = "WEIR0201", "NotForSidecars", Info,
        "something that only counts at gateways, which weir does not serve";
    /// A credential only gateways can fetch.
    CREDENTIAL_NAME = "WEIR0202", "CredentialNameForSidecars", Error,
        "credentialName works for gateways: sidecars can not read the Secret, and send plain text";
    /// A field that does nothing.
    NO_EFFECT = "WEIR0203", "NoEffect", Warning,
        "a field that is read but does nothing where it stands";
    /// One address and port, two protocols.
    PROTOCOL_CONFLICT = "WEIR0204", "ConflictingPortProtocols", Error,
        "two services have one address and port, and say that different protocols are spoken there";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_stands_once_in_order_and_says_what_it_means() {
        let ids: Vec<_> = ALL.iter().map(|code| code.id).collect();
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(ids, sorted);
        assert!(ALL.iter().all(|code| code.about.len() > 20 && !code.name.contains(' ')));
    }
}
