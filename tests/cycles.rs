//! Repeated canary steps under steady load: whatever the order of the writes, no request may fail.
//!
//! Each test runs every kind of cycle 20 times (override with `WEIR_CYCLES`). The writes of a step are 9 ms apart, as
//! with rollout tools; everything else waits for events.

use crate::support::canary::Canary;
use crate::support::mesh::{Tally, only_yaml, route_yaml, rule_yaml, start_envoy, until};
use nix::sys::signal::Signal;
use weir::canary::objects::{self, NAMESPACE};
use weir::canary::patterns::{self, State, Step, Write};

fn cycles() -> u32 {
    std::env::var("WEIR_CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

const RULE: &str = "destination-rule.yaml";
const ROUTE: &str = "virtual-service.yaml";

/// Plays all patterns; `kill` kills and restarts weir amid the writes of each step, or after them where only two can be
/// told apart.
async fn run(canary: &mut Canary, kill: bool) -> Vec<(&'static str, Tally)> {
    let mut found = Vec::new();
    // What the canary starts with.
    let mut state = State::default();
    state.apply(&Write::Endpoints(vec![1, 2]));
    state.apply(&Write::Rule(vec![("v1", "v1"), ("v2", "v2")]));
    state.apply(&Write::Route(vec![("v1", 100), ("v2", 0)]));
    for pattern in patterns::all() {
        let in_pieces = pattern.cycle.iter().any(|step| step.writes.len() > 1);
        if kill && !in_pieces {
            continue;
        }
        for write in patterns::begin().iter().chain(&pattern.before) {
            write_alone(canary, &mut state, write).await;
        }
        let load = canary.load();
        for _ in 0..cycles() {
            for step in &pattern.cycle {
                play(canary, &mut state, step, kill).await;
            }
        }
        found.push((pattern.name, load.end()));
    }
    found.push(("both in one write", both_in_one_write(canary, kill).await));
    found
}

/// The file and the text of a write.
fn text(canary: &Canary, write: &Write) -> (&'static str, String) {
    match write {
        Write::Rule(subsets) => (RULE, objects::rule(NAMESPACE, subsets)),
        Write::Route(weights) => (ROUTE, objects::route(NAMESPACE, weights)),
        Write::Endpoints(versions) => ("endpoints.yaml", canary.objects.endpoints_of(versions)),
    }
}

async fn write_alone(canary: &Canary, state: &mut State, write: &Write) {
    let before = state.clone();
    state.apply(write);
    // A write that changes nothing makes no revision that could be waited for.
    if *state != before {
        let (file, text) = text(canary, write);
        canary.edit(file, &text).await;
    }
}

/// One step, optionally with weir killed between its two writes.
async fn play(canary: &mut Canary, state: &mut State, step: &Step, kill: bool) {
    if let [(_, write)] = step.writes.as_slice() {
        write_alone(canary, state, write).await;
        return;
    }
    let between = kill && step.writes.len() == 2;
    let before = canary.weir.events().await;
    for (n, (pause, write)) in step.writes.iter().enumerate() {
        tokio::time::sleep(*pause).await;
        if between && n == 1 {
            canary.kill_weir();
        }
        state.apply(write);
        let (file, text) = text(canary, write);
        canary.objects.write(file, &text);
    }
    if between {
        canary.revive().await;
        canary.weir.live_with(1).await;
        return;
    }
    canary.weir.live_with(before + step.writes.len() as u64).await;
    if kill {
        restart(canary).await;
        canary.weir.live_with(1).await;
    }
}

/// The rule and the route in a single write of one file.
async fn both_in_one_write(canary: &mut Canary, kill: bool) -> Tally {
    std::fs::remove_file(canary.objects.folder.join(RULE)).unwrap();
    let item = |subsets: &[&str], route: &str| format!("{}---\n{route}", rule_yaml(subsets));
    canary.edit(ROUTE, &item(&["v1", "v2"], &route_yaml(50, 50))).await;
    let (to_v1, to_v2) = (item(&["v1"], &only_yaml("v1")), item(&["v2"], &only_yaml("v2")));
    let load = canary.load();
    for _ in 0..cycles() {
        canary.edit(ROUTE, &to_v1).await;
        if kill {
            canary.objects.write(ROUTE, &to_v2);
            restart(canary).await;
            canary.weir.live_with(1).await;
        } else {
            canary.edit(ROUTE, &to_v2).await;
        }
    }
    load.end()
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
    assert!(found.iter().all(|(_, tally)| tally.total() > 0), "{found:?}");
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
