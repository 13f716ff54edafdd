//! `weir bench`: every proxy gets every change, the figures are consistent, and nothing is left.

use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::kube::KubeCluster;
use crate::support::mesh::{DEADLINE, Serve};
use crate::support::process::free_port;

const STREAMS: u64 = 4;
const PHASES: [&str; 7] =
    ["start", "weight", "endpoint", "service", "storm", "restart", "reconnect"];

/// A small mesh: `weir bench` with these flags.
fn bench(args: &[&str]) -> Output {
    let small = ["--services", "20", "--streams", "4", "--namespaces", "2", "--rounds", "2"];
    Command::new(env!("CARGO_BIN_EXE_weir"))
        .arg("bench")
        .args(small)
        .args(["-o", "json"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Checks a report of all phases; `measured` says whether the server's process was seen.
fn check(report: &Value, measured: bool) {
    let runs = report["runs"].as_array().unwrap();
    let [run] = runs.as_slice() else { panic!("{report:#}") };
    let phases = run["phases"].as_array().unwrap();
    let names: Vec<&str> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    assert_eq!(names, PHASES);
    for phase in phases {
        let is_small = ["weight", "endpoint", "service"].contains(&phase["name"].as_str().unwrap());
        let rounds = phase["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), if is_small { 2 } else { 1 }, "{phase:#}");
        for round in rounds.iter().chain([&phase["median"]]) {
            assert_eq!([&round["arrived"], &round["streams"]], [STREAMS, STREAMS], "{phase:#}");
            let times = ["p50_ms", "p99_ms", "last_ms"].map(|name| round[name].as_f64().unwrap());
            assert!(times.is_sorted() && times[0] > 0.0, "{phase:#}");
            for name in ["cpu_s", "resident_bytes", "peak_bytes"] {
                assert_eq!(
                    round[name].as_f64().is_some_and(|value| value > 0.0),
                    measured,
                    "{name}: {phase:#}"
                );
            }
            types(phase["name"].as_str().unwrap(), round);
        }
    }
    let share = run["client_cpu_percent"].as_f64();
    assert_eq!(share.is_some_and(|share| share > 0.0 && share < 100.0), measured, "{run:#}");
}

/// Checks that a phase sends the types that it is about. The end of an earlier phase may send more.
fn types(phase: &str, round: &Value) {
    let needed: &[&str] = match phase {
        "start" => &["cds", "eds", "lds", "rds"],
        "endpoint" | "restart" => &["eds"],
        "service" => &["cds", "eds", "rds"],
        _ => &["rds"],
    };
    for of in needed {
        assert!(round["bytes"][of].as_u64() > Some(0), "{phase}: no {of}: {round:#}");
    }
}

#[test]
fn every_proxy_gets_every_change_from_a_folder_over_delta() {
    let report = report(&bench(&["--source", "folder", "--mode", "delta"]));
    assert_eq!([&report["mode"], &report["source"]], ["delta", "folder"]);
    check(&report, true);
}

#[test]
fn every_proxy_gets_every_change_from_a_folder_over_sotw() {
    let report = report(&bench(&["--source", "folder", "--mode", "sotw"]));
    assert_eq!([&report["mode"], &report["source"]], ["sotw", "folder"]);
    check(&report, true);
}

/// A server that does not know of runtime layers need not answer; the weights then come in routes.
#[test]
fn a_proxy_may_ask_for_a_runtime_layer() {
    for mode in ["delta", "sotw"] {
        let report = report(&bench(&["--rtds", "--mode", mode]));
        let phases = report["runs"][0]["phases"].as_array().unwrap();
        assert_eq!(phases.len(), PHASES.len(), "{report:#}");
        assert!(phases.iter().all(|phase| phase["median"]["arrived"] == STREAMS), "{report:#}");
    }
}

/// Each peer, which is an address, may open a single stream.
#[cfg(target_os = "linux")]
#[test]
fn each_proxy_is_a_peer_of_its_own() {
    let phases = ["--phases", "start,stuck", "--", "--max-streams", "8", "--peer-share", "13"];
    let report = report(&bench(&phases));
    let phases = report["runs"][0]["phases"].as_array().unwrap();
    assert!(phases.iter().all(|phase| phase["median"]["arrived"] == STREAMS), "{report:#}");
}

/// Three reports of each proxy are measured; those that were sent before are counted as well.
#[test]
fn every_load_report_is_counted() {
    for mode in ["delta", "sotw"] {
        let flags = ["--mode", mode, "--phases", "start,loads", "--load-report-interval", "0.2"];
        let more = ["--services", "5", "--load-services", "2", "--load-reports", "3"];
        let output = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["bench", "--streams", "4", "-o", "json"])
            .args([&flags[..], &more].concat())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let report = report(&output);
        let round = &report["runs"][0]["phases"][1]["median"];
        assert_eq!(round["arrived"], STREAMS, "{report:#}");
        let loads = &round["loads"];
        assert!(loads["sent"].as_u64() >= Some(3 * STREAMS), "{loads:#}");
        assert_eq!([&loads["received"], &loads["left_out"]], [&loads["sent"], &Value::from(0)]);
        // Two subsets of each service.
        assert_eq!(loads["clusters"], 10, "{loads:#}");
        for name in ["cpu_percent", "idle_cpu_percent", "resident_before_bytes", "bytes"] {
            assert!(loads[name].as_f64() > Some(0.0), "{name}: {loads:#}");
        }
    }
}

#[test]
fn a_proxy_that_never_reads_delays_no_other_and_a_series_has_a_chart() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("growth.svg");
    let flags = ["--phases", "start,stuck", "--series", "streams=1,4", "--svg"];
    let report = report(&bench(&[&flags[..], &[svg.to_str().unwrap()]].concat()));
    let streams: Vec<&Value> =
        report["runs"].as_array().unwrap().iter().map(|run| &run["size"]["streams"]).collect();
    assert_eq!(streams, [1, 4]);
    for run in report["runs"].as_array().unwrap() {
        let stuck = &run["phases"][1]["median"];
        assert_eq!(stuck["arrived"], run["size"]["streams"], "{run:#}");
    }
    let svg = std::fs::read_to_string(svg).unwrap();
    assert!(svg.starts_with("<svg ") && svg.contains(">stuck</text>"), "{svg}");
}

#[test]
fn every_proxy_gets_every_change_from_a_real_api_server() {
    let Some(cluster) = KubeCluster::start("every_proxy_gets_every_change_from_a_real_api_server")
    else {
        return;
    };
    cluster.apply_crds();
    let kubeconfig = cluster.kubeconfig_path().to_str().unwrap();
    let in_api = ["--source", "kubernetes", "--kubeconfig", kubeconfig];
    for mode in ["delta", "sotw"] {
        check(&report(&bench(&[&in_api[..], &["--mode", mode]].concat())), true);
    }
    // A server that runs already, without and with its process.
    let weir = Serve::start(&["--kubeconfig", kubeconfig], free_port(), free_port());
    let (address, pid) = (format!("127.0.0.1:{}", weir.xds), weir.id().to_string());
    let running = [&in_api[..], &["--address", &address]].concat();
    let found = report(&bench(&running));
    assert_eq!(found["server"], address.as_str());
    check(&found, false);
    check(&report(&bench(&[&running[..], &["--pid", &pid]].concat())), true);

    let played = canary(&["--kubeconfig", kubeconfig, "--address", &address]);
    assert_eq!(played["failed"], 0, "{played:#}");

    let label = ["-l", "app.kubernetes.io/managed-by=weir-bench", "-o", "json"];
    let left = |args: &[&str]| -> Value {
        serde_json::from_str(&cluster.kubectl_ok(&[args, &label].concat())).unwrap()
    };
    // No controller runs here that would complete the deletion of a namespace.
    let namespaces = left(&["get", "namespaces"]);
    let deleted = |item: &Value| item["metadata"]["deletionTimestamp"].is_string();
    assert!(namespaces["items"].as_array().unwrap().iter().all(deleted), "{namespaces:#}");
    let kinds = "services,endpointslices,pods,virtualservices,destinationrules,serviceentries";
    let objects = left(&["get", kinds, "--all-namespaces"]);
    assert_eq!(objects["items"].as_array().map(Vec::len), Some(0), "{objects:#}");
}

fn canary(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["bench", "canary", "--cycles", "1", "-o", "json"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    report(&output)
}

#[test]
fn a_canary_fails_no_request() {
    for mode in ["delta", "sotw"] {
        let played = canary(&["--mode", mode]);
        assert_eq!(played["failed"], 0, "{played:#}");
        let patterns = played["patterns"].as_array().unwrap();
        assert_eq!(patterns.len(), weir::canary::patterns::all().len());
        assert!(patterns.iter().all(|played| played["requests"].as_u64() > Some(0)), "{played:#}");
    }
}

#[test]
fn flags_that_do_not_fit_are_usage_errors() {
    for wrong in [
        &["--address", "127.0.0.1:1", "--source", "folder"][..],
        &["--series", "pods=1"],
        &["--svg", "x.svg"],
        &["--load-report-interval", "0.01"],
        &["--kubeconfig", "/does/not/exist", "--source", "kubernetes"],
    ] {
        let output = bench(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
    }
}

/// The child processes of a process, of whichever of its threads.
fn children(id: u32) -> Vec<i32> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{id}/task")) else {
        return Vec::new();
    };
    let of = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).ok();
    let lists: Vec<String> = tasks.flatten().filter_map(of).collect();
    lists.iter().flat_map(|list| list.split_whitespace()).flat_map(str::parse).collect()
}

/// Waits until a process has as many children.
fn children_of(bench: &mut Child, count: usize) -> Vec<i32> {
    let begun = Instant::now();
    loop {
        let found = children(bench.id());
        if found.len() >= count {
            return found;
        }
        assert!(bench.try_wait().unwrap().is_none(), "it ended by itself");
        assert!(begun.elapsed() < DEADLINE, "it starts no {count} processes");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[test]
fn interrupting_leaves_no_process() {
    for (args, count) in [(&["--rounds", "10000"][..], 1), (&["canary", "--cycles", "100000"], 2)] {
        let mut bench = Command::new(env!("CARGO_BIN_EXE_weir"))
            .arg("bench")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = children_of(&mut bench, count);
        kill(Pid::from_raw(bench.id().cast_signed()), Signal::SIGINT).unwrap();
        assert_eq!(bench.wait().unwrap().code(), Some(130));
        for id in started {
            assert!(kill(Pid::from_raw(id), None).is_err(), "process {id} is left");
        }
    }
}
