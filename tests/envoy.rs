//! The canary with real Envoys: splits, reloads, broken files, and restarts of both sides.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::canary::Canary;
use crate::support::mesh::{Serve, route_yaml, rule_yaml, start_envoy, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

async fn tutorial(more: &[&str]) {
    let canary = Canary::start(more).await;
    let load = canary.load();
    for (v1, v2) in [(100, 0), (90, 10), (50, 50), (0, 100)] {
        if (v1, v2) != (100, 0) {
            canary.edit("virtual-service.yaml", &route_yaml(v1, v2)).await;
        }
        canary.send(3000).await.assert_split(v2);
    }
    let only_v2 = route_yaml(0, 100)
        .lines()
        .filter(|line| !line.contains("subset: v1"))
        .collect::<Vec<_>>()
        .join("\n");
    canary.edit("virtual-service.yaml", &only_v2).await;
    canary.edit("destination-rule.yaml", &rule_yaml(&["v2"])).await;
    canary.send(500).await.assert_split(100);
    let all = load.end();
    assert_eq!(all.failed(), 0, "{all:?}");
    until("the subset's cluster is gone from Envoy", async || {
        let clusters = canary.envoy.admin_get("/clusters").await.unwrap();
        !String::from_utf8_lossy(&clusters).contains("|v1|")
    })
    .await;
    let rejected = canary.envoy.stats("update_rejected").await.unwrap();
    assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
}

#[tokio::test]
async fn the_tutorials_steps_split_as_written_over_delta() {
    tutorial(&[]).await;
}

#[tokio::test]
async fn the_tutorials_steps_split_as_written_over_sotw() {
    tutorial(&["--sotw"]).await;
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_a_mended_one_does() {
    let canary = Canary::start(&[]).await;
    canary.edit("virtual-service.yaml", &route_yaml(0, 100)).await;
    let revision = canary.weir.revision().await;
    for broken in ["spec: [", "", &route_yaml(50, 50).replace("weight: 50", "weight: fifty")] {
        canary.objects.write("virtual-service.yaml", broken);
        until("the problem is counted", async || {
            canary.weir.metric("weir_config_problems ").await == Some(1)
        })
        .await;
        canary.send(100).await.assert_split(100);
        assert_eq!(canary.weir.revision().await, revision, "{broken:?}");
        canary.objects.write("virtual-service.yaml", &route_yaml(0, 100));
        until("the problem is gone", async || {
            canary.weir.metric("weir_config_problems ").await == Some(0)
        })
        .await;
    }
    canary.edit("virtual-service.yaml", &route_yaml(100, 0)).await;
    canary.send(100).await.assert_split(0);
    std::fs::remove_file(canary.objects.folder.join("virtual-service.yaml")).unwrap();
    canary.weir.acked_after(revision + 1).await;
    // Without the VirtualService all endpoints are equal.
    let tally = canary.send(1000).await;
    assert!(tally.of("v1") > 0 && tally.of("v2") > 0 && tally.failed() == 0, "{tally:?}");
}

#[tokio::test]
async fn traffic_goes_on_while_weir_restarts_and_the_next_edit_arrives() {
    let mut canary = Canary::start(&[]).await;
    canary.edit("virtual-service.yaml", &route_yaml(0, 100)).await;
    let load = canary.load();
    canary.weir.kill();
    canary.send(500).await.assert_split(100);
    let (xds, admin) = (canary.weir.xds, canary.weir.admin);
    canary.weir =
        Serve::start(&["--config-dir", canary.objects.folder.to_str().unwrap()], xds, admin);
    canary.weir.ready().await;
    canary.weir.acked_after(0).await;
    canary.send(500).await.assert_split(100);
    canary.edit("virtual-service.yaml", &route_yaml(100, 0)).await;
    canary.send(500).await.assert_split(0);
    let all = load.end();
    assert_eq!(all.failed(), 0, "{all:?}");
}

#[tokio::test]
async fn a_new_envoy_gets_everything_from_a_running_weir() {
    let mut canary = Canary::start(&[]).await;
    canary.edit("virtual-service.yaml", &route_yaml(0, 100)).await;
    let folder = tempfile::tempdir().unwrap();
    let new = start_envoy(folder.path(), canary.weir.xds, &[]);
    // The old one must release the port first.
    let pid = canary.envoy.id();
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    canary.envoy = new.await;
    canary.weir.acked_after(0).await;
    until("the listener exists", async || canary.send(1).await.failed() == 0).await;
    canary.send(500).await.assert_split(100);
}

/// Runs `weir demo` with its own temporary folder.
fn demo(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command
        .arg("demo")
        .args(args)
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// The leftovers of a demo: files, and processes identified by their environment.
fn left_in(folder: &Path) -> Vec<String> {
    let files =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path().display().to_string());
    let mark = format!("TMPDIR={}", folder.display());
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let environment = std::fs::read(path.join("environ")).ok()?;
        let ours = environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes());
        ours.then(|| path.display().to_string())
    });
    files.chain(processes).collect()
}

#[test]
fn the_demo_shows_each_step_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--requests", "100", "--steps", "100,90,90,0"];
    let output = demo(folder.path(), &args).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let steps = ["100/0", "90/10", "90/10", "0/100", "v1 removed"];
    let rows: Vec<&str> = said.lines().filter(|line| line.contains(" ± ")).collect();
    assert!(
        rows.len() == 5 && rows.iter().zip(steps).all(|(row, step)| row.starts_with(step)),
        "{said}"
    );
    assert!(said.lines().all(|line| line.chars().count() <= 100), "{said}");
    assert_eq!(left_in(folder.path()), [""; 0]);
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let folder = tempfile::tempdir().unwrap();
        let mut child = demo(folder.path(), &["--requests", "100000"]).spawn().unwrap();
        // Once the table header is printed, Envoy is serving.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("desired v2")));
        assert!(left_in(folder.path()).len() > 2);
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(128 + signal as i32));
        assert_eq!(left_in(folder.path()), [""; 0], "{signal}");
    }
}
