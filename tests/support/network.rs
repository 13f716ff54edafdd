//! Runs tests in a network namespace: one in which connections are redirected to Envoy as in a pod, or one with the
//! addresses of pods.

use std::process::Command;

use super::Skip;
use super::cache::on_path;

const INSIDE: &str = "WEIR_TEST_NETWORK";

/// Addresses 10.1.0.1 to 10.1.0.7; all others are reachable too. Traffic from 10.1.0.6, the workload, goes to Envoy's
/// outbound port, and traffic from 10.1.0.7 to the workload goes to its inbound port.
const SETUP: &str = r#"
set -e
ip link set lo up
for n in 1 2 3 4 5 6 7; do ip address add 10.1.0.$n/32 dev lo; done
ip route add default dev lo
iptables -t nat -A OUTPUT -p tcp -s 10.1.0.6 -j REDIRECT --to-ports 15001
iptables -t nat -A OUTPUT -p tcp -s 10.1.0.7 -d 10.1.0.6 -j REDIRECT --to-ports 15006
exec "$0" "$@"
"#;

/// All of 10.2.0.0/16 is here, for pods. Loopback addresses must not be published in a cluster.
const PODS: &str = r#"
set -e
ip link set lo up
ip route add local 10.2.0.0/16 dev lo
exec "$0" "$@"
"#;

/// Whether this process is inside a network with redirection. If not, runs the calling test inside one and fails if that
/// fails; if the machine cannot create one, the test is reported as skipped.
pub(crate) fn is_inside() -> bool {
    is_inside_of(SETUP, &["unshare", "ip", "iptables"])
}

/// The same with a network in which every address of 10.2.0.0/16 can be bound, and all ports are free.
pub(crate) fn is_inside_of_pods() -> bool {
    is_inside_of(PODS, &["unshare", "ip"])
}

fn is_inside_of(setup: &str, tools: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let thread = std::thread::current();
    // The harness names a test's thread after the test.
    let name = thread.name().unwrap();
    if let Some(missing) = tools.iter().find(|tool| on_path(tool).is_none()) {
        Skip { why: format!("{missing} is required for a network of its own") }.report(name);
        return false;
    }
    let allowed = |args: &[&str]| {
        Command::new("unshare").args(args).arg("true").output().unwrap().status.success()
    };
    let Some(args) = [&["--net"][..], &["--net", "--user", "--map-root-user"]]
        .into_iter()
        .find(|args| allowed(args))
    else {
        Skip { why: "this user may not create network namespaces".to_owned() }.report(name);
        return false;
    };
    let inside = Command::new("unshare")
        .args(args)
        .args(["sh", "-c", setup])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "yes")
        .output()
        .unwrap();
    let said =
        [inside.stdout, inside.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(inside.status.success(), "{}\n{}", said[0], said[1]);
    assert!(said[0].contains("1 passed"), "{}", said[0]);
    false
}
