//! Validates PeerAuthentications.

use super::Diagnostics;
use super::common::selector;
use crate::api::PeerAuthentication;

/// What is wrong with a port is only a warning: without the object, the other ports would take plain text after a restart.
pub(super) fn check(spec: &PeerAuthentication, found: &mut Diagnostics) {
    if let Some(workloads) = &spec.selector {
        selector(&workloads.match_labels, "spec.selector.matchLabels", found);
    }
    if !spec.port_level_mtls.is_empty() && spec.labels().is_empty() {
        found.no_effect(
            "spec.portLevelMtls",
            "has no effect without a selector",
            "add spec.selector.matchLabels, because ports are those of a workload",
        );
    }
    for port in spec.port_level_mtls.keys() {
        if !port.parse::<u16>().is_ok_and(|port| port > 0) {
            found.no_effect(
                format!("spec.portLevelMtls[{port}]"),
                "is not a port, so it has no effect",
                "expected the number of a port of the workload, from 1 to 65535",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::api;

    fn problems(spec: Value) -> Vec<String> {
        let document = json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "a", "namespace": "shop"}, "spec": spec,
        });
        let api::Identity::Known(key) = api::identify(&document).unwrap() else {
            panic!("the kind is not read");
        };
        match api::parse(&key, document, 0) {
            Ok(parsed) => parsed.warnings.iter().map(ToString::to_string).collect(),
            Err(error) => error.problems.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_policy_for_workloads_and_their_ports_is_accepted() {
        let ports = json!({"8080": {"mode": "DISABLE"}, "9090": {"mode": "UNSET"}});
        let selector = json!({"matchLabels": {"app": "web"}});
        for spec in [
            json!({}),
            json!({"mtls": {"mode": "STRICT"}}),
            json!({"selector": selector, "mtls": {"mode": "PERMISSIVE"}, "portLevelMtls": ports}),
        ] {
            assert_eq!(problems(spec), [""; 0]);
        }
    }

    #[test]
    fn what_cannot_work_is_named_by_field() {
        let path = |spec: Value| problems(spec).join("; ");
        let without = json!({"portLevelMtls": {"8080": {"mode": "STRICT"}}});
        assert!(path(without).starts_with("spec.portLevelMtls: has no effect without"));
        let selector = json!({"matchLabels": {"app": "web"}});
        for port in ["0", "65536", "http"] {
            let spec = json!({"selector": selector, "portLevelMtls": {port: {"mode": "STRICT"}}});
            let expected = format!("spec.portLevelMtls[{port}]: is not a port");
            assert!(path(spec.clone()).starts_with(&expected), "{}", path(spec));
        }
        let wrong = json!({"mtls": {"mode": "MAYBE"}});
        assert!(path(wrong.clone()).contains("spec.mtls.mode"), "{}", path(wrong));
        let wildcard = json!({"selector": {"matchLabels": {"app": "*"}}});
        assert!(path(wildcard).starts_with("spec.selector.matchLabels"));
    }
}
