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

/// A pod at 10.2.0.5 whose inbound connections go to Envoy, but for those of Envoy; others of the network can be bound.
const SERVER: &str = r#"
set -e
ip link set lo up
ip route add local 10.2.0.0/16 dev lo
iptables -t nat -A OUTPUT -p tcp -d 10.2.0.5 ! -s 127.0.0.6 -j REDIRECT --to-ports 15006
exec "$0" "$@"
"#;

/// Whether this process is in a network with a pod at 10.2.0.5 whose inbound connections go to Envoy.
pub(crate) fn is_inside_of_a_server() -> bool {
    is_inside_of(SERVER, &["unshare", "ip", "iptables"], &["unshare"])
}

/// Whether this process is inside a network with redirection. If not, runs the calling test inside one and fails if that
/// fails; if the machine cannot create one, the test is reported as skipped.
pub(crate) fn is_inside() -> bool {
    is_inside_of(SETUP, &["unshare", "ip", "iptables"], &["unshare"])
}

/// The same with a network in which every address of 10.2.0.0/16 can be bound, and all ports are free.
pub(crate) fn is_inside_of_pods() -> bool {
    is_inside_of(PODS, &["unshare", "ip"], &["unshare"])
}

/// `unshare` begins the command that makes the namespaces.
fn is_inside_of(setup: &str, tools: &[&str], unshare: &[&str]) -> bool {
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
        let mut command = Command::new(unshare[0]);
        command.args(&unshare[1..]).args(args).arg("true").output().unwrap().status.success()
    };
    let Some(args) = [&["--net"][..], &["--net", "--user", "--map-root-user"]]
        .into_iter()
        .find(|args| allowed(args))
    else {
        Skip { why: "this user may not create network namespaces".to_owned() }.report(name);
        return false;
    };
    let inside = Command::new(unshare[0])
        .args(&unshare[1..])
        .args(args)
        .args(["sh", "-c", setup])
        .arg(std::env::current_exe().unwrap())
        // One that is ignored runs because it was asked for.
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(INSIDE, "yes")
        .output()
        .unwrap();
    let said =
        [inside.stdout, inside.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(inside.status.success(), "{}\n{}", said[0], said[1]);
    assert!(said[0].contains("1 passed"), "{}", said[0]);
    // Shown if the test fails, or if it is asked for what it prints.
    println!("{}", said[0]);
    false
}

/// A pod, which is here, and its node, a network of its own that [`on_node`] reaches. The pod has the addresses 10.3.0.1
/// and fd03::1, the node 10.3.0.2 and fd03::2, and a service in it 10.96.0.1 and fd96::1.
const POD_AND_NODE: &str = r#"
set -e
ip link set lo up
setpriv --pdeathsig KILL unshare --net sleep infinity &
node=$!
while [ "$(readlink /proc/$node/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.02; done
ip link add eth0 type veth peer name pod0
ip link set pod0 netns $node
ip address add 10.3.0.1/24 dev eth0
ip -6 address add fd03::1/64 dev eth0 nodad
ip link set eth0 up
at_node() { nsenter --target $node --net "$@"; }
at_node ip link set lo up
at_node ip address add 10.3.0.2/24 dev pod0
at_node ip -6 address add fd03::2/64 dev pod0 nodad
at_node ip address add 10.96.0.1/32 dev lo
at_node ip -6 address add fd96::1/128 dev lo nodad
at_node ip link set pod0 up
ip route add default via 10.3.0.2
ip -6 route add default via fd03::2
export WEIR_TEST_NODE=$node
exec "$0" "$@"
"#;

/// Whether this process is in a pod, as [`is_inside`]. Processes can be those of any user there.
pub(crate) fn is_inside_of_a_pod() -> bool {
    let tools = ["unshare", "ip", "nft", "iptables", "nsenter", "setpriv", "python3"];
    may_become_another_user() && is_inside_of(POD_AND_NODE, &tools, &["unshare"])
}

/// If not, the test is reported as skipped.
fn may_become_another_user() -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let as_proxy = Command::new("setpriv").args(["--reuid", "1337", "true"]).output();
    let may = as_proxy.is_ok_and(|output| output.status.success());
    if !may {
        let thread = std::thread::current();
        Skip { why: "this user may not become another".to_owned() }.report(thread.name().unwrap());
    }
    may
}

/// The network of a node, which forwards between its pods, and a folder in memory for temporary files.
const NODE: &str = r#"
set -e
ip link set lo up
ip address add 10.3.0.1/32 dev lo
echo 1 >/proc/sys/net/ipv4/ip_forward
mount -t tmpfs -o mode=1777 tmpfs /run
export TMPDIR=/run
exec "$0" "$@"
"#;

/// Whether this process is on a node whose pods have addresses of 10.4.0.0/16, as [`is_inside`]. It may make namespaces and
/// start processes of any user.
pub(crate) fn is_inside_of_a_node() -> bool {
    let tools = ["unshare", "ip", "nft", "nsenter", "setpriv", "mount", "chroot"];
    // All processes end with this one.
    let unshare = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"];
    let unshare = [&unshare[..], &["--kill-child", "--mount-proc"]].concat();
    may_become_another_user() && is_inside_of(NODE, &tools, &unshare)
}

/// A program in the network of the node.
pub(crate) fn on_node(program: &str) -> Command {
    let node = std::env::var("WEIR_TEST_NODE").expect("this process is in a pod");
    let mut command = Command::new("nsenter");
    command.args(["--target", &node, "--net", program]);
    command
}
