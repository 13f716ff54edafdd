//! A control plane that works for a long time, under every kind of change and proxies that come and go: its memory, its
//! file descriptors and its tasks stay what they are, and no request fails.
//!
//! `WEIR_SOAK=30m` says for how long, and prints a table.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::support::ads::{CDS, Client, EDS, LDS, RDS, Variant, ask};
use crate::support::canary::Canary;
use crate::support::mesh::{only_yaml, route_yaml, rule_yaml, until};
use crate::support::say;
use tokio::task::JoinSet;
use tonic::transport::Channel;

const RULE: &str = "destination-rule.yaml";
const ROUTE: &str = "virtual-service.yaml";
const ENDPOINTS: &str = "endpoints.yaml";

/// The proxies that come and go with each round, half of them over each variant.
const PROXIES: usize = 20;

/// The rounds before anything is compared: caches fill, and the allocator keeps what it got.
const WARM_UP: usize = 5;

/// How long, and whether somebody asked for it.
fn length() -> (Duration, bool) {
    let Ok(text) = std::env::var("WEIR_SOAK") else {
        return (Duration::from_secs(60), false);
    };
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.trim_end_matches('s'), 1),
    };
    let number: u64 = number.parse().expect("WEIR_SOAK is like 30m or 90s");
    (Duration::from_secs(number * unit), true)
}

/// The resident memory of a process in bytes.
fn resident(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    kilobytes.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// What weir uses after a round, when only the Envoy is connected.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Duration,
    resident: u64,
    descriptors: u64,
    tasks: u64,
}

async fn sample(canary: &Canary, at: Duration) -> Sample {
    let id = canary.weir.id();
    let mut least = Sample { at, resident: u64::MAX, descriptors: u64::MAX, tasks: u64::MAX };
    // Connections that were closed just now take a moment to go.
    for _ in 0..5 {
        let tasks = canary.weir.metric("weir_tasks ").await.unwrap();
        let descriptors = std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count() as u64;
        least.tasks = least.tasks.min(tasks);
        least.descriptors = least.descriptors.min(descriptors);
        least.resident = least.resident.min(resident(id));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    least
}

/// A proxy that takes in everything until it is dropped.
async fn proxy(xds: u16, n: usize, routes: String) {
    let variant = if n.is_multiple_of(2) { Variant::Delta } else { Variant::Sotw };
    let channel = Channel::from_shared(format!("http://127.0.0.1:{xds}")).unwrap();
    let mut client = Client::open(channel.connect().await.unwrap(), variant, None).await;
    client.send(ask(CDS, &[])).await;
    let mut subscribed = false;
    while let Ok(got) = client.message().await {
        client.ack(&got).await;
        if got.type_url == CDS {
            let names = got.names().into_iter().filter(|name| name.starts_with("outbound|"));
            client.send(ask(EDS, &names.collect::<Vec<_>>())).await;
            if !std::mem::replace(&mut subscribed, true) {
                client.send(ask(LDS, &[])).await;
                client.send(ask(RDS, &[&routes])).await;
            }
        }
    }
}

/// One round of changes, while proxies come and go.
async fn round(canary: &Canary) {
    let mut proxies = JoinSet::new();
    for n in 0..PROXIES {
        proxies.spawn(proxy(canary.weir.xds, n, canary.objects.service.to_string()));
    }
    until("the proxies are there", async || {
        canary.weir.proxies().await.is_some_and(|list| list.len() > PROXIES)
    })
    .await;
    for v2 in [10, 50, 90] {
        canary.edit(ROUTE, &route_yaml(100 - v2, v2)).await;
    }
    canary.pair((ROUTE, &only_yaml("v2")), (RULE, &rule_yaml(&["v2"]))).await;
    canary.edit(ENDPOINTS, &canary.objects.endpoints_of(&[2])).await;
    canary.edit(ENDPOINTS, &canary.objects.endpoints_of(&[1, 2])).await;
    proxies.shutdown().await;
    canary.edit(RULE, &rule_yaml(&["v1", "v2"])).await;
    canary.edit(ROUTE, &only_yaml("v1")).await;
    until("the proxies are gone", async || {
        canary.weir.proxies().await.is_some_and(|list| list.len() == 1)
    })
    .await;
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// A line for each tenth of the time.
fn table(samples: &[Sample]) -> String {
    let mut text =
        "| after | rounds | resident | descriptors | tasks |\n|---|---|---|---|---|\n".to_owned();
    let step = (samples.len() / 10).max(1);
    for (n, sample) in (1..).zip(samples).filter(|(n, _)| n % step == 0) {
        let Sample { at, resident, descriptors, tasks } = sample;
        let (minutes, megabytes) = (at.as_secs_f64() / 60.0, *resident as f64 / 1e6);
        writeln!(text, "| {minutes:.1} min | {n} | {megabytes:.1} MB | {descriptors} | {tasks} |")
            .unwrap();
    }
    text
}

#[tokio::test]
async fn memory_descriptors_and_tasks_stay_what_they_are() {
    let (length, asked) = length();
    let flags = ["--grace", "0.05", "--routes-follow", "0.2"];
    let canary = Canary::with(&[], &flags).await;
    let load = canary.load();
    let begun = Instant::now();
    let mut samples = Vec::new();
    // However slow the machine is, there is something to compare.
    while begun.elapsed() < length || samples.len() < WARM_UP + 9 {
        round(&canary).await;
        samples.push(sample(&canary, begun.elapsed()).await);
    }
    let tally = load.end();
    if asked {
        let failed = tally.failed();
        say(&format!("{}{} requests, {failed} failed", table(&samples), tally.total()));
    }
    assert_eq!(tally.failed(), 0, "{tally:?}");
    let compared = &samples[WARM_UP..];
    let third = compared.len() / 3;
    let (first, last) = (&compared[..third], &compared[compared.len() - third..]);
    let of = |part: &[Sample], what: fn(&Sample) -> u64| median(part.iter().map(what).collect());
    let told = table(&samples);
    assert_eq!(of(first, |it| it.tasks), of(last, |it| it.tasks), "tasks\n{told}");
    let descriptors = |part| of(part, |it: &Sample| it.descriptors);
    assert_eq!(descriptors(first), descriptors(last), "descriptors\n{told}");
    let (before, after) = (of(first, |it| it.resident), of(last, |it| it.resident));
    assert!(after <= before + before / 10 + (2 << 20), "{before} and {after} bytes\n{told}");
}
