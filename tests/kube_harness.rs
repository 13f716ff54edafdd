//! Tests the Kubernetes test harness: a real API server accepts weir's CRDs and the canary example, keeps them over an
//! outage, and leaves no process behind.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::kube::KubeCluster;
use crate::support::process::{Launch, Supervised, free_port};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// Set for a test binary that a test started in order to kill it.
const PID_FILE: &str = "WEIR_TEST_PID_FILE";

#[test]
fn the_canary_example_lives_in_a_real_api_server() {
    let Some(mut cluster) = KubeCluster::start("the_canary_example_lives_in_a_real_api_server")
    else {
        return;
    };
    cluster.apply_crds();
    cluster.apply_folder("deploy/examples/canary");

    let in_namespace = |cluster: &KubeCluster, args: &[&str]| {
        cluster.kubectl_ok(&[args, &["--namespace", "your-namespace"]].concat())
    };
    let weights = |cluster: &KubeCluster| {
        let path = "jsonpath={.spec.http[0].route[*].weight}";
        in_namespace(cluster, &["get", "virtualservice", "my-app", "-o", path])
    };
    assert_eq!(weights(&cluster), "90 10");
    let pods = in_namespace(&cluster, &["get", "pods", "-l", "app=my-app", "-o", "name"]);
    assert_eq!(pods.lines().count(), 6);

    let patch = r#"[{"op": "replace", "path": "/spec/http/0/route/0/weight", "value": 75},
                    {"op": "replace", "path": "/spec/http/0/route/1/weight", "value": 25}]"#;
    in_namespace(&cluster, &["patch", "vs", "my-app", "--type=json", "-p", patch]);
    assert_eq!(weights(&cluster), "75 25");

    // The status is a subresource, so writing it does not change the generation.
    let status = r#"{"status": {"conditions": [{"type": "Reconciled", "status": "True"}]}}"#;
    let patch = ["patch", "vs", "my-app", "--type=merge", "--subresource=status", "-p", status];
    in_namespace(&cluster, &patch);
    let path = "jsonpath={.metadata.generation} {.status.conditions[0].type}";
    let live = in_namespace(&cluster, &["get", "vs", "my-app", "-o", path]);
    assert_eq!(live, "2 Reconciled");

    cluster.stop_apiserver();
    assert!(!cluster.kubectl(&["get", "namespaces"]).status.success());
    cluster.start_apiserver();
    assert_eq!(weights(&cluster), "75 25");
}

#[test]
fn the_istio_kinds_go_by_their_usual_names_and_versions() {
    let Some(cluster) = KubeCluster::start("the_istio_kinds_go_by_their_usual_names_and_versions")
    else {
        return;
    };
    cluster.apply_crds();
    // (name in kubectl, kind, columns that kubectl prints)
    let kinds = [
        ("vs", "VirtualService", "NAME GATEWAYS HOSTS ACCEPTED PROGRAMMED AGE"),
        ("dr", "DestinationRule", "NAME HOST ACCEPTED PROGRAMMED AGE"),
        ("se", "ServiceEntry", "NAME HOSTS LOCATION RESOLUTION AGE"),
        ("we", "WorkloadEntry", "NAME AGE ADDRESS"),
        ("sidecars", "Sidecar", "NAME AGE"),
    ];
    for (name, kind, columns) in kinds {
        for version in ["v1", "v1beta1", "v1alpha3"] {
            // A field that no schema defines must be preserved.
            cluster.apply(&format!(
                "apiVersion: networking.istio.io/{version}\n\
                 kind: {kind}\n\
                 metadata: {{name: {version}, namespace: default}}\n\
                 spec: {{later: [{{field: 1}}]}}\n"
            ));
            let path = "jsonpath={.kind} {.spec.later[0].field}";
            let kept = cluster.kubectl_ok(&["get", name, version, "-o", path]);
            assert_eq!(kept, format!("{kind} 1"), "{version}");
        }
        let table = cluster.kubectl_ok(&["get", name]);
        let header = table.lines().next().unwrap_or_default();
        assert_eq!(header.split_whitespace().collect::<Vec<_>>().join(" "), columns);
    }
    for version in ["v1", "v1beta1"] {
        cluster.apply(&format!(
            "apiVersion: security.istio.io/{version}\nkind: PeerAuthentication\n\
             metadata: {{name: {version}, namespace: default}}\nspec: {{later: [{{field: 1}}]}}\n"
        ));
        let path = "jsonpath={.kind} {.spec.later[0].field}";
        let kept = cluster.kubectl_ok(&["get", "pa", version, "-o", path]);
        assert_eq!(kept, "PeerAuthentication 1", "{version}");
    }
    for (category, count) in [("istio-io", 17), ("networking-istio-io", 15)] {
        let all = cluster.kubectl_ok(&["get", category, "-o", "name"]);
        assert_eq!(all.lines().count(), count, "{category}:\n{all}");
    }
}

#[test]
fn access_is_decided_by_role_bindings() {
    let users: [(&str, &[&str]); 2] = [("jo", &["readers"]), ("kim", &[])];
    let Some(cluster) = KubeCluster::start_with_users("access_is_decided_by_role_bindings", &users)
    else {
        return;
    };
    for args in [
        "create clusterrole pod-reader --verb=get,list --resource=pods",
        "create clusterrolebinding readers --clusterrole=pod-reader --group=readers",
        "create clusterrolebinding weir --clusterrole=pod-reader --serviceaccount=default:weir",
        "create serviceaccount weir",
    ] {
        cluster.kubectl_ok(&args.split(' ').collect::<Vec<_>>());
    }
    let account = cluster.kubeconfig_for_service_account("default", "weir");
    let list_pods = |kubeconfig: &Path| {
        let kubeconfig = kubeconfig.to_str().expect("UTF-8");
        cluster.kubectl(&["--kubeconfig", kubeconfig, "get", "pods"])
    };
    // The API server learns of a new role binding from its own watch, shortly after it was written.
    for allowed in [cluster.kubeconfig_for("jo"), account] {
        eventually("the role binding to take effect", || {
            list_pods(&allowed).status.success().then_some(())
        });
    }
    let rejected = list_pods(&cluster.kubeconfig_for("kim"));
    let why = String::from_utf8_lossy(&rejected.stderr);
    assert!(why.contains("Forbidden"), "{why}");
}

#[test]
fn a_dropped_server_is_killed_even_if_it_ignores_sigterm() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (server, pid) = stubborn(folder.path(), 2);
    drop(server);
    assert_eq!(kill(pid, None), Err(Errno::ESRCH));
}

#[test]
fn a_killed_test_leaves_no_server_and_no_folder() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let pid_file = folder.path().join("pid");
    let mut test = Command::new(std::env::current_exe().expect("own path"))
        .args(["--ignored", "--exact", "kube_harness::run_a_server_until_killed"])
        .env(PID_FILE, &pid_file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("start this test binary");
    let text = eventually("the server to start", || {
        fs::read_to_string(&pid_file).ok().filter(|text| text.ends_with('\n'))
    });
    let (server, scratch) = text.trim().split_once(' ').expect("two words");
    let server = Pid::from_raw(server.parse().expect("a process id"));
    assert_eq!(kill(server, None), Ok(()));

    test.kill().expect("kill the test binary");
    test.wait().expect("wait for the test binary");
    eventually("the server to end", || (kill(server, None) == Err(Errno::ESRCH)).then_some(()));
    eventually("its folder to go", || (!Path::new(scratch).exists()).then_some(()));
}

/// Not a test: the process that `a_killed_test_leaves_no_server_and_no_folder` kills.
#[test]
#[ignore = "started by another test"]
fn run_a_server_until_killed() {
    let Some(pid_file) = std::env::var_os(PID_FILE) else {
        return;
    };
    let scratch = tempfile::tempdir().expect("temporary folder");
    let (mut server, pid) = stubborn(scratch.path(), 2);
    let partial = Path::new(&pid_file).with_extension("partial");
    fs::write(&partial, format!("{pid} {}\n", scratch.path().display())).expect("write");
    fs::rename(partial, pid_file).expect("rename");
    server.wait().expect("wait for the server");
}

#[test]
fn free_ports_are_not_of_the_range_for_outgoing_connections() {
    let port = free_port();
    assert!((16_384..32_768).contains(&port), "{port}");
    std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
}

/// Starts a process that ignores SIGTERM and would run for minutes, and returns its id. `folder` is removed with it.
fn stubborn(folder: &Path, grace_tenths: u32) -> (Supervised, Pid) {
    // exec keeps the process id and the ignored signal.
    let script = "trap '' TERM; echo $$ >&2; exec 2>&-; exec sleep 600";
    let mut server = Supervised::spawn(Launch {
        program: Path::new("sh"),
        args: vec!["-c".into(), script.into()],
        stdout: Stdio::null(),
        stderr: Stdio::piped(),
        grace_tenths,
        remove: Some(folder),
    })
    .expect("start sh");
    let mut stderr = server.take_stderr().expect("piped");
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && stderr.read(&mut byte).expect("read") == 1 {
        line.push(byte[0]);
    }
    let pid = String::from_utf8_lossy(&line).trim().parse().expect("a process id");
    (server, Pid::from_raw(pid))
}

/// Polls until there is a result.
///
/// # Panics
/// After one minute without a result.
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
