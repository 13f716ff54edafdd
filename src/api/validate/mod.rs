//! What must hold for one object by itself, so that Envoy takes what is made of it. What needs other objects (a subset
//! that no rule has) is not checked here.
//!
//! Source of the rules: the comments of the fields in istio/api's protos, what Istio's admission webhook refuses, and
//! what Envoy refuses ([`crate::proto_rules`]).

mod common;
mod destination_rule;
mod service_entry;
mod sidecar;
mod virtual_service;

use super::{Object, Problem, Service, Spec};

/// What was found in an object.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// What makes it unusable.
    pub problems: Vec<Problem>,
    /// What is odd about it but does no harm.
    pub warnings: Vec<Problem>,
}

impl Findings {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem::new(path, message));
    }

    fn warn(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Problem::new(path, message));
    }
}

/// Everything that can be said of `object`.
pub(super) fn check(object: &Object) -> Findings {
    let mut found = Findings::default();
    let meta = &object.meta;
    if !meta.namespace.is_empty() && !common::is_dns_label(&meta.namespace) {
        found.add("metadata.namespace", format!("is `{}`; expected the name of a namespace", meta.namespace));
    }
    match &object.spec {
        Spec::VirtualService(spec) => virtual_service::check(spec, meta, &mut found),
        Spec::DestinationRule(spec) => destination_rule::check(spec, meta, &mut found),
        Spec::Service(spec) => {
            // Its name stands in its host.
            if !common::is_dns_label(&meta.name) {
                found.add("metadata.name", format!("is `{}`; expected lower-case letters, digits and `-`", meta.name));
            }
            service(spec, &mut found);
        }
        Spec::Node | Spec::Namespace | Spec::Pod(_) | Spec::EndpointSlice(_) | Spec::Endpoints(_) => {}
        Spec::ServiceEntry(spec) => service_entry::check(spec, meta, &mut found),
        Spec::WorkloadEntry(spec) => service_entry::workload_entry(spec, "spec", &mut found),
        Spec::Sidecar(spec) => sidecar::check(spec, &mut found),
    }
    found
}

fn service(spec: &Service, found: &mut Findings) {
    for (n, port) in spec.ports.iter().enumerate() {
        if port.port == 0 {
            found.add(format!("spec.ports[{n}].port"), "is 0 or missing; expected a port from 1 to 65535");
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
            (
                json!({"hosts": ["web"], "http": [{"route": [{"destination": to}], "redirect": {"uri": "/"}}]}),
                "spec.http[0]",
            ),
            (
                json!({"hosts": ["web"], "http": [{"route": [{"destination": to, "weight": -1}]}]}),
                "spec.http[0].route[0].weight",
            ),
            (json!({"hosts": ["web"], "http": [{"route": [{"weight": 1}]}]}), "spec.http[0].route[0].destination"),
            (
                json!({"hosts": ["web"], "http": [{"route": [{"destination": {"host": "*"}}]}]}),
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
