//! `weir redirect` in the network of a pod: where connections of the application, of the proxy and of others arrive.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};

use crate::support::network::{is_inside_of_a_pod, on_node};

/// Answers every connection to its ports with its name and the destination before redirection.
const SERVER: &str = r#"
import socket, struct, sys, threading
def serve(family, port):
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(("", port))
    listener.listen(16)
    def answer():
        while True:
            stream = listener.accept()[0]
            try:
                level, length = (socket.SOL_IP, 16) if family == socket.AF_INET else (41, 28)
                at = stream.getsockopt(level, 80, length)
                address = at[4:8] if family == socket.AF_INET else at[8:24]
                address = socket.inet_ntop(family, address)
                port = struct.unpack("!H", at[2:4])[0]
            except OSError:
                # Nothing is redirected in this network.
                address, port = stream.getsockname()[:2]
            stream.sendall(f"{sys.argv[1]} {address} {port}".encode())
            stream.close()
    threading.Thread(target=answer).start()
for port in sys.argv[2:]:
    for family in (socket.AF_INET, socket.AF_INET6):
        serve(family, int(port))
print("listening", flush=True)
"#;

/// Connects as a user and a group, which may not read Python's modules, from the last argument if there is one more, and prints the answer.
const CLIENT: &str = r#"
import encodings.idna, os, socket, sys
user, group, host, port = sys.argv[1:5]
source = (sys.argv[5], 0) if len(sys.argv) > 5 else None
os.setgroups([])
os.setgid(int(group))
os.setuid(int(user))
with socket.create_connection((host, int(port)), 10, source) as stream:
    print(stream.makefile().read())
"#;

/// A server that ends with this value.
struct Server(Child);

impl Server {
    fn start(mut command: Command, name: &str, ports: &[&str]) -> Self {
        let mut child =
            command.args(["-c", SERVER, name]).args(ports).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "listening\n", "{name}");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The servers of the pod and of the node.
fn servers() -> Vec<Server> {
    let mut servers = Vec::new();
    for (name, ports) in [
        ("outbound", &["15001"][..]),
        ("inbound", &["15006"]),
        ("app", &["8080", "9090"]),
        ("agent", &["15020", "15021", "15090"]),
    ] {
        servers.push(Server::start(Command::new("python3"), name, ports));
    }
    servers.push(Server::start(on_node("python3"), "node", &["80", "443", "3306"]));
    servers
}

/// The user and group of an application, of the proxy, and of a process that shares only its group.
const APP: [&str; 2] = ["1000", "1000"];
const PROXY: [&str; 2] = ["1337", "1337"];
const OF_GROUP: [&str; 2] = ["1000", "1337"];

/// Where a connection of a user arrives.
fn connect(owner: [&str; 2], to: &[&str]) -> String {
    said(Command::new("python3").args(["-c", CLIENT]).args(owner).args(to).output().unwrap())
}

fn connect_from_node(to: &[&str]) -> String {
    said(on_node("python3").args(["-c", CLIENT]).args(["0", "0"]).args(to).output().unwrap())
}

fn said(output: Output) -> String {
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    match stdout.trim() {
        "" => stderr.trim().lines().last().unwrap_or_default().to_owned(),
        answer => answer.to_owned(),
    }
}

fn redirect(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir")).arg("redirect").args(args).output().unwrap()
}

fn redirect_ok(args: &[&str]) -> String {
    let output = redirect(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// All rules, without counters.
fn rules() -> String {
    let mut all = String::new();
    for (program, args) in [
        ("nft", &["list", "ruleset"][..]),
        ("iptables-save", &["-t", "nat"]),
        ("ip6tables-save", &["-t", "nat"]),
    ] {
        let output = Command::new(program).args(args).output().unwrap();
        assert!(output.status.success(), "{program}");
        let text = String::from_utf8(output.stdout).unwrap();
        for line in text.lines().filter(|line| !line.starts_with(['#', ':'])) {
            // nft shows iptables' rules with counters.
            let mut is_count = false;
            for word in line.split_whitespace() {
                if !std::mem::replace(&mut is_count, ["packets", "bytes"].contains(&word)) {
                    all.push_str(word);
                    all.push(' ');
                }
            }
            all.push('\n');
        }
    }
    all
}

/// Rules of someone else, which stay.
fn foreign_rules() {
    run(&["nft", "add", "table", "inet", "other"]);
    for program in ["iptables", "ip6tables"] {
        for chain in ["PREROUTING", "OUTPUT"] {
            run(&[program, "-t", "nat", "-A", chain, "-p", "udp", "-j", "ACCEPT"]);
        }
    }
}

fn run(command: &[&str]) {
    assert!(Command::new(command[0]).args(&command[1..]).status().unwrap().success());
}

fn everything_is_redirected() {
    for (ip, service, node_ip, source) in [
        ("10.3.0.1", "10.96.0.1", "10.3.0.2", "127.0.0.6"),
        ("fd03::1", "fd96::1", "fd03::2", "::6"),
    ] {
        assert_eq!(connect(APP, &[service, "80"]), format!("outbound {service} 80"));
        assert_eq!(connect(APP, &[node_ip, "3306"]), format!("outbound {node_ip} 3306"));
        // The proxy's own connections.
        for owner in [PROXY, OF_GROUP] {
            assert_eq!(connect(owner, &[service, "80"]), format!("node {service} 80"));
        }
        // An application that calls its own pod.
        assert_eq!(connect(APP, &[ip, "8080"]), format!("app {ip} 8080"));
        // The proxy does for it what a service says, and then calls it.
        for owner in [PROXY, OF_GROUP] {
            assert_eq!(connect(owner, &[ip, "8080"]), format!("inbound {ip} 8080"));
        }
        assert_eq!(connect(PROXY, &[ip, "8080", source]), format!("app {ip} 8080"));
        let loopback = if ip.contains(':') { "::1" } else { "127.0.0.1" };
        for owner in [APP, PROXY] {
            assert_eq!(connect(owner, &[loopback, "8080"]), format!("app {loopback} 8080"));
        }
        assert_eq!(connect_from_node(&[ip, "8080"]), format!("inbound {ip} 8080"));
        for port in ["15020", "15021", "15090"] {
            assert_eq!(connect_from_node(&[ip, port]), format!("agent {ip} {port}"));
        }
    }
}

fn only_the_selected_is_redirected() {
    for (ip, service, node_ip) in
        [("10.3.0.1", "10.96.0.1", "10.3.0.2"), ("fd03::1", "fd96::1", "fd03::2")]
    {
        assert_eq!(connect(APP, &[service, "80"]), format!("outbound {service} 80"));
        assert_eq!(connect(APP, &[service, "3306"]), format!("node {service} 3306"));
        assert_eq!(connect(APP, &[node_ip, "80"]), format!("node {node_ip} 80"));
        assert_eq!(connect(APP, &[node_ip, "443"]), format!("outbound {node_ip} 443"));
        assert_eq!(connect_from_node(&[ip, "8080"]), format!("inbound {ip} 8080"));
        assert_eq!(connect_from_node(&[ip, "9090"]), format!("app {ip} 9090"));
    }
}

fn nothing_is_redirected() {
    for (ip, service) in [("10.3.0.1", "10.96.0.1"), ("fd03::1", "fd96::1")] {
        assert_eq!(connect(APP, &[service, "80"]), format!("node {service} 80"));
        assert_eq!(connect_from_node(&[ip, "8080"]), format!("app {ip} 8080"));
    }
}

const SELECTED: [&str; 7] = [
    "--outbound-ranges=10.96.0.0/12,fd96::/64",
    "--exclude-outbound-ranges=10.9.0.0/16,fd09::/64",
    "--outbound-ports=443",
    "--exclude-outbound-ports=3306",
    "--inbound-ports=8080,9090",
    "--exclude-inbound-ports=9090",
    "--exclude-interfaces=net1",
];

#[test]
fn traffic_of_a_pod_goes_through_the_proxy() {
    if !is_inside_of_a_pod() {
        return;
    }
    let _servers = servers();
    foreign_rules();
    nothing_is_redirected();
    let before = rules();
    for backend in ["nft", "iptables"] {
        let with = |more: &[&str]| {
            redirect_ok(&[&["--backend", backend][..], more].concat());
        };
        with(&[]);
        everything_is_redirected();
        let once = rules();
        with(&[]);
        assert_eq!(rules(), once, "{backend}");

        with(&SELECTED);
        only_the_selected_is_redirected();

        with(&["--exclude-interfaces=eth0"]);
        nothing_is_redirected();
        with(&["--inbound-ports=", "--outbound-ranges="]);
        nothing_is_redirected();
        with(&["--exclude-outbound-ranges=10.96.0.1/12,fd96::/64", "--exclude-inbound-ports=8080"]);
        nothing_is_redirected();
        with(&[]);
        with(&["--clean-up"]);
        nothing_is_redirected();
        assert_eq!(rules(), before, "{backend}");
    }
    redirect_ok(&["--backend", "iptables"]);
    redirect_ok(&[]);
    redirect_ok(&["--clean-up"]);
    redirect_ok(&["--clean-up"]);
    assert_eq!(rules(), before);
}

#[test]
fn a_dry_run_prints_what_would_be_applied_and_applies_nothing() {
    if !is_inside_of_a_pod() {
        return;
    }
    // iptables leaves its table and its chains behind.
    foreign_rules();
    let before = rules();
    for backend in ["nft", "iptables"] {
        let printed = redirect_ok(&["--backend", backend, "--dry-run"]);
        assert_eq!(rules(), before);
        // What it prints can be applied by hand.
        let mut parts: Vec<(Vec<String>, String)> = Vec::new();
        for line in printed.lines() {
            match (line.strip_prefix("# "), parts.last_mut()) {
                (Some(command), _) => {
                    parts.push((command.split(' ').map(str::to_owned).collect(), String::new()));
                }
                (None, Some((_, input))) => *input += &format!("{line}\n"),
                (None, None) => panic!("{printed}"),
            }
        }
        for (command, input) in parts {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), input).unwrap();
            let status = Command::new(&command[0])
                .args(&command[1..])
                .stdin(std::fs::File::open(file.path()).unwrap())
                .status();
            assert!(status.unwrap().success(), "{command:?}");
        }
        let by_hand = rules();
        assert_ne!(by_hand, before);
        redirect_ok(&["--backend", backend]);
        assert_eq!(rules(), by_hand, "{backend}");
        redirect_ok(&["--backend", backend, "--clean-up"]);
        assert_eq!(rules(), before);
    }
}

#[test]
fn without_the_capability_it_says_what_is_missing() {
    if !is_inside_of_a_pod() {
        return;
    }
    for backend in ["nft", "iptables"] {
        let output = Command::new("setpriv")
            .args(["--bounding-set", "-net_admin", env!("CARGO_BIN_EXE_weir")])
            .args(["redirect", "--backend", backend])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("NET_ADMIN") && said.contains("securityContext"), "{said}");
    }
}
