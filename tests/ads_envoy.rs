//! Objects written in the wrong order, milliseconds apart, under load through a real Envoy: no request may fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::canary::Canary;
use crate::support::mesh::{
    Backends, Objects, Serve, Tally, only_yaml, route_yaml, rule_yaml, send, start_envoy, until,
};
use crate::support::process::free_port;

async fn written_in_the_wrong_order(more: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    std::fs::create_dir(&config).unwrap();
    let objects =
        Objects { folder: config.clone(), service: free_port(), backend: Backends::start().port };
    objects.write_all(100, 0);
    let v1 = only_yaml("v1");
    let v2 = only_yaml("v2");
    objects.write("virtual-service.yaml", &v1);
    objects.write("destination-rule.yaml", &rule_yaml(&["v1"]));
    let weir = Serve::start(
        &["--config-dir", config.to_str().unwrap(), "--grace", "0.1"],
        free_port(),
        free_port(),
    );
    weir.ready().await;
    let envoy = start_envoy(folder.path(), weir.xds, more).await;
    weir.acked_after(0).await;

    let stop = Arc::new(AtomicBool::new(false));
    let (port, stopped) = (objects.service, stop.clone());
    let load = std::thread::spawn(move || {
        let mut sum = Tally::default();
        // Bounded, so that a hanging test does not send forever.
        for _ in 0..20_000 {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            for (answer, count) in send(port, 50).answers {
                *sum.answers.entry(answer).or_default() += count;
            }
        }
        sum
    });
    let clusters =
        async || String::from_utf8(envoy.admin_get("/clusters").await.unwrap().to_vec()).unwrap();
    let taken = async |what: &str, file: &str, text: &str| {
        let before = weir.revision().await;
        objects.write(file, text);
        until(what, async || weir.revision().await > before).await;
    };
    for (route, next, now, gone) in [(&v2, "v2", 100, "|v1|"), (&v1, "v1", 0, "|v2|")].repeat(3) {
        // First the route to an undefined subset, then the rule that defines it and removes the other subset.
        taken("the route is read", "virtual-service.yaml", route).await;
        let tally = tokio::task::spawn_blocking(move || send(port, 50)).await.unwrap();
        tally.assert_split(100 - now);
        let before = weir.revision().await;
        objects.write("destination-rule.yaml", &rule_yaml(&[next]));
        weir.acked_after(before).await;
        let tally = tokio::task::spawn_blocking(move || send(port, 50)).await.unwrap();
        tally.assert_split(now);
        until("the old subset's cluster is gone", async || !clusters().await.contains(gone)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let all = load.join().unwrap();
    assert_eq!(all.failed(), 0, "{all:?}");
    let rejected = envoy.stats("update_rejected").await.unwrap();
    assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
}

#[tokio::test]
async fn no_request_fails_when_objects_are_written_in_the_wrong_order_over_delta() {
    written_in_the_wrong_order(&[]).await;
}

#[tokio::test]
async fn no_request_fails_when_objects_are_written_in_the_wrong_order_over_sotw() {
    written_in_the_wrong_order(&["--sotw"]).await;
}

/// A cluster whose policy changes warms again and needs its endpoints again, although they did not change.
async fn a_changed_policy_is_taken(more: &[&str]) {
    let canary = Canary::start(more).await;
    let load = canary.load();
    let rule = rule_yaml(&["v1", "v2"]);
    for seconds in 1..=5 {
        let policy = format!(
            "  trafficPolicy: {{connectionPool: {{tcp: {{connectTimeout: {seconds}s}}}}}}\n"
        );
        canary.edit("destination-rule.yaml", &format!("{}\n{policy}", rule.trim_end())).await;
        canary.edit("virtual-service.yaml", &route_yaml(100 - seconds, seconds)).await;
    }
    let all = load.end();
    assert_eq!(all.failed(), 0, "{all:?}");
    let dump = canary.envoy.config_dump().await.unwrap().to_string();
    assert!(
        dump.contains(r#""connect_timeout":"5s""#) && !dump.contains(r#""connect_timeout":"4s""#),
        "{dump}"
    );
}

#[tokio::test]
async fn a_changed_policy_is_taken_over_delta() {
    a_changed_policy_is_taken(&[]).await;
}

#[tokio::test]
async fn a_changed_policy_is_taken_over_sotw() {
    a_changed_policy_is_taken(&["--sotw"]).await;
}
