//! Runs the `weir` binary from outside: against real Envoys, a real Kubernetes API server and real gRPC clients.
//!
//! All tests are one program, because linking one for each file takes longer than most of them run. `cargo test --test
//! weir cycles::` runs those of one file.

mod support;

mod admin;
mod ads_conformance;
mod ads_envoy;
mod agent;
mod agreement;
mod analyze;
mod attack;
mod attack_tls;
mod bench;
mod bug_report;
mod canary_in_pods;
mod canary_traps;
mod cases;
mod certificates;
mod chaos;
mod cluster;
mod completions;
mod cuts;
mod cycles;
mod deploy;
mod diff;
mod envoy;
mod envoy_validate;
mod envoy_versions;
mod explain;
mod fuzz;
mod hosts;
mod identity;
mod injection;
mod kube_envoy;
mod kube_harness;
mod load;
mod log;
mod manifests;
mod mutual_tls;
mod names;
mod page;
mod pilot_agent;
mod redirect;
mod replicas;
mod rollouts;
mod runtime_weights;
mod soak;
mod status;
mod timeline;
mod traces;
mod traffic_balancing;
mod traffic_failures;
mod traffic_hosts;
mod traffic_placement;
mod traffic_protocols;
mod traffic_redirected;
mod traffic_routes;
mod traffic_tcp;
mod valid;
mod webhook;
