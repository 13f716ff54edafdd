//! Repeated canary steps under steady load: whatever the order of the writes, no request may fail.
//!
//! Each test runs every kind of cycle 20 times (override with `WEIR_CYCLES`). The writes of a step are 9 ms apart, as
//! with rollout tools; everything else waits for events.

use std::time::Duration;

use crate::support::canary::{APART, Canary};
use crate::support::mesh::{Tally, only_yaml, route_yaml, rule_yaml, start_envoy, until};
use nix::sys::signal::Signal;

fn cycles() -> u32 {
    std::env::var("WEIR_CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

const RULE: &str = "destination-rule.yaml";
const ROUTE: &str = "virtual-service.yaml";

async fn run(canary: &mut Canary, kill: bool) -> Vec<(&'static str, Tally)> {
    let (both, v1, v2) = (rule_yaml(&["v1", "v2"]), rule_yaml(&["v1"]), rule_yaml(&["v2"]));
    let (to_v1, to_v2, half) = (only_yaml("v1"), only_yaml("v2"), route_yaml(50, 50));
    let mut found = Vec::new();
    // The rule adds a subset, then the route uses it; and the other way round.
    canary.edit(ROUTE, &to_v1).await;
    canary.edit(RULE, &v1).await;
    for (name, rule_first) in
        [("a: rule adds, route uses", true), ("b: route uses, rule adds", false)]
    {
        let load = canary.load();
        for _ in 0..cycles() {
            let (rule, route) = ((RULE, both.as_str()), (ROUTE, to_v2.as_str()));
            let (first, then) = if rule_first { (rule, route) } else { (route, rule) };
            step(canary, first, then, kill).await;
            canary.edit(ROUTE, &to_v1).await;
            canary.edit(RULE, &v1).await;
        }
        found.push((name, load.end()));
    }
    // The route leaves a subset, then the rule drops it; and the other way round.
    canary.edit(RULE, &both).await;
    canary.edit(ROUTE, &half).await;
    for (name, route_first) in
        [("c: route leaves, rule drops", true), ("d: rule drops, route leaves", false)]
    {
        let load = canary.load();
        for _ in 0..cycles() {
            let (rule, route) = ((RULE, v2.as_str()), (ROUTE, to_v2.as_str()));
            let (first, then) = if route_first { (route, rule) } else { (rule, route) };
            step(canary, first, then, kill).await;
            canary.edit(RULE, &both).await;
            canary.edit(ROUTE, &half).await;
        }
        found.push((name, load.end()));
    }
    // Weights and subset labels are written before their pods exist.
    let all = canary.objects.endpoints_yaml();
    let no_v2 = canary.objects.endpoints_of(&[1]);
    let load = canary.load();
    for _ in 0..cycles() {
        canary.edit(ROUTE, &to_v1).await;
        canary.edit("endpoints.yaml", &no_v2).await;
        let before = canary.weir.events().await;
        canary.objects.write(ROUTE, &half);
        canary.objects.write(
            RULE,
            &both.replace("name: v1, labels: {version: v1}", "name: v1, labels: {version: v2}"),
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
        canary.objects.write("endpoints.yaml", &all);
        canary.weir.live_with(before + 3).await;
        if kill {
            restart(canary).await;
            canary.weir.live_with(1).await;
        }
        canary.edit(RULE, &both).await;
    }
    found.push(("f: weight and labels before pods", load.end()));
    // The pods of the old version go right after the switch.
    let no_v1 = canary.objects.endpoints_of(&[2]);
    let load = canary.load();
    for _ in 0..cycles() {
        canary.edit(ROUTE, &to_v1).await;
        step(canary, (ROUTE, &to_v2), ("endpoints.yaml", &no_v1), kill).await;
        canary.edit("endpoints.yaml", &all).await;
    }
    found.push(("g: old pods go after the switch", load.end()));
    // Both in a single write of one file.
    std::fs::remove_file(canary.objects.folder.join(RULE)).unwrap();
    let item = |rule: &str, route: &str| format!("{rule}---\n{route}");
    canary.edit(ROUTE, &item(&both, &half)).await;
    let load = canary.load();
    for _ in 0..cycles() {
        canary.edit(ROUTE, &item(&v1, &to_v1)).await;
        if kill {
            canary.objects.write(ROUTE, &item(&v2, &to_v2));
            restart(canary).await;
            canary.weir.live_with(1).await;
        } else {
            canary.edit(ROUTE, &item(&v2, &to_v2)).await;
        }
    }
    found.push(("e: both in one write", load.end()));
    found
}

/// One step, optionally with weir killed between the two writes.
async fn step(canary: &mut Canary, first: (&str, &str), then: (&str, &str), kill: bool) {
    if !kill {
        canary.pair(first, then).await;
        return;
    }
    canary.objects.write(first.0, first.1);
    tokio::time::sleep(APART).await;
    canary.kill_weir();
    canary.objects.write(then.0, then.1);
    canary.revive().await;
    canary.weir.live_with(1).await;
}

async fn restart(canary: &mut Canary) {
    canary.kill_weir();
    canary.revive().await;
}

fn nothing_failed(found: &[(&str, Tally)]) {
    for (name, tally) in found {
        eprintln!("{name}: {} requests, {} failed", tally.total(), tally.failed());
        if tally.failed() > 0 {
            eprintln!("  {:?}", tally.answers);
        }
    }
    let bad: Vec<_> = found.iter().filter(|(_, tally)| tally.failed() > 0).collect();
    assert!(bad.is_empty(), "{bad:?}");
    assert!(found.iter().all(|(_, tally)| tally.total() > 100), "{found:?}");
}

/// A short grace period, so that removals happen within their cycle.
const GRACE: [&str; 2] = ["--grace", "0.05"];

#[tokio::test]
async fn no_step_costs_a_request_over_delta() {
    let mut canary = Canary::with(&[], &GRACE).await;
    nothing_failed(&run(&mut canary, false).await);
}

#[tokio::test]
async fn no_step_costs_a_request_over_sotw() {
    let mut canary = Canary::with(&["--sotw"], &GRACE).await;
    nothing_failed(&run(&mut canary, false).await);
}

#[tokio::test]
async fn no_step_costs_a_request_while_weir_is_killed_and_restarted_over_delta() {
    let mut canary = Canary::with(&[], &GRACE).await;
    nothing_failed(&run(&mut canary, true).await);
}

#[tokio::test]
async fn no_step_costs_a_request_while_weir_is_killed_and_restarted_over_sotw() {
    let mut canary = Canary::with(&["--sotw"], &GRACE).await;
    nothing_failed(&run(&mut canary, true).await);
}

#[tokio::test]
async fn without_the_gates_requests_do_fail() {
    let mut canary = Canary::with(&[], &["--grace", "0.05", "--test-ungated"]).await;
    let found = run(&mut canary, false).await;
    let failed: u64 = found.iter().map(|(_, tally)| tally.failed()).sum();
    assert!(failed > 0, "the load does not detect missing gates: {found:?}");
}

/// Two Envoys, one of which is paused for a while: the other gets every step as fast as before, and the paused one is
/// reported as lagging, catches up to the newest state, and loses nothing.
#[tokio::test]
async fn a_paused_proxy_delays_no_other_and_catches_up() {
    let canary = Canary::with(&[], &["--grace", "0.05", "--ack-timeout", "0.5"]).await;
    let folder = tempfile::tempdir().unwrap();
    // This one does not bind the service's ports, so all requests go to the first.
    let more = ["--pod", "client-1", "--intercept", "redirect"];
    let other = start_envoy(folder.path(), canary.weir.xds, &more).await;
    let signal = |signal| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(other.id().cast_signed()), signal)
            .unwrap();
    };
    let state = async || {
        let all = canary.weir.proxies().await.unwrap();
        all.into_iter().find(|proxy| proxy.pod == "client-1").unwrap_or_default()
    };
    until("the second proxy is up to date", async || {
        let now = state().await;
        now.acked.is_some() && now.acked == now.wanted
    })
    .await;
    let load = canary.load();
    signal(Signal::SIGSTOP);
    for _ in 0..cycles() {
        canary.pair((RULE, &rule_yaml(&["v2"])), (ROUTE, &only_yaml("v2"))).await;
        canary.pair((RULE, &rule_yaml(&["v1", "v2"])), (ROUTE, &only_yaml("v1"))).await;
    }
    canary.edit(ROUTE, &only_yaml("v2")).await;
    until("the stopped proxy is shown as lagging", async || !state().await.lagging.is_empty())
        .await;
    let behind = state().await;
    assert!(behind.acked < behind.wanted, "{behind:?}");
    signal(Signal::SIGCONT);
    until("the proxy has caught up", async || {
        let now = state().await;
        now.acked == now.wanted && now.lagging.is_empty()
    })
    .await;
    let rejected = other.stats("update_rejected").await.unwrap();
    assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
    let all = load.end();
    assert_eq!(all.failed(), 0, "{all:?}");
}
