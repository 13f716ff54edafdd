//! Connections between Envoy and weir that break, stall and crawl while objects change: no request fails, and in the
//! end Envoy has what weir says it has.
//!
//! Each variant plays a few random histories (`WEIR_CUTS` says how many); `WEIR_CUTS_SEED` repeats a run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::support::ads::{CDS, EDS, LDS, RDS};
use crate::support::canary::Canary;
use crate::support::cutter::{Cut, Cutter};
use crate::support::mesh::{DEADLINE, only_yaml, route_yaml, rule_yaml, until};
use crate::support::process::random;
use serde_json::Value;
use tokio::process::Command;
use weir::canary::patterns::APART;
use weir::proto_json::{bytes_to_json, json_to_any};

const RULE: &str = "destination-rule.yaml";
const ROUTE: &str = "virtual-service.yaml";
const ENDPOINTS: &str = "endpoints.yaml";

/// A short grace, so that what is dropped is dropped within its history.
const GRACE: [&str; 2] = ["--grace", "0.05"];

/// The three files at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Written {
    rule: String,
    route: String,
    pods: Vec<u8>,
}

impl Written {
    /// The subsets that there are, the one that takes all requests (or each half of them), and the versions whose pods
    /// there are.
    fn new(subsets: &[&str], to: Option<&str>, pods: &[u8]) -> Self {
        let route = to.map_or_else(|| route_yaml(50, 50), only_yaml);
        Self { rule: rule_yaml(subsets), route, pods: pods.to_vec() }
    }

    fn all() -> Vec<Self> {
        let new = Self::new;
        vec![
            new(&["v1"], Some("v1"), &[1, 2]),
            new(&["v2"], Some("v2"), &[1, 2]),
            new(&["v1", "v2"], Some("v1"), &[1, 2]),
            new(&["v1", "v2"], Some("v2"), &[1, 2]),
            new(&["v1", "v2"], Some("v1"), &[1]),
            new(&["v1", "v2"], Some("v2"), &[2]),
            new(&["v1"], Some("v1"), &[1]),
            new(&["v2"], Some("v2"), &[2]),
            new(&["v1", "v2"], None, &[1, 2]),
            new(&["v1", "v2", "n1"], Some("v1"), &[1, 2]),
            new(&["v1", "v2", "n1"], Some("v2"), &[1, 2]),
        ]
    }

    fn with_policy(mut self, seconds: u64) -> Self {
        let policy = format!(
            "  trafficPolicy: {{connectionPool: {{tcp: {{connectTimeout: {seconds}s}}}}}}\n"
        );
        self.rule = format!("{}\n{policy}", self.rule.trim_end());
        self
    }
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.roll(all.len() as u64) as usize]
    }
}

/// Writes what differs, file by file. New pods come first and old pods go last, as they do in life; the rest comes in
/// any order.
async fn write(canary: &Canary, before: &Written, next: &Written, dice: &mut Dice) {
    let pods = |versions: &[u8]| (ENDPOINTS, canary.objects.endpoints_of(versions));
    let both: Vec<u8> =
        [1, 2].into_iter().filter(|n| before.pods.contains(n) || next.pods.contains(n)).collect();
    let mut files = Vec::new();
    if before.rule != next.rule {
        files.push((RULE, next.rule.clone()));
    }
    if before.route != next.route {
        files.insert(dice.roll(files.len() as u64 + 1) as usize, (ROUTE, next.route.clone()));
    }
    if both != before.pods {
        files.insert(0, pods(&both));
    }
    if both != next.pods {
        files.push(pods(&next.pods));
    }
    for (name, text) in files {
        canary.objects.write(name, &text);
        tokio::time::sleep(APART).await;
    }
}

/// Waits until what is written is live, as users do.
async fn wait_for(canary: &Canary, object: &str) {
    let admin = format!("127.0.0.1:{}", canary.weir.admin);
    let args = ["wait", object, "-n", "shop", "--admin", &admin];
    let waited = Command::new(env!("CARGO_BIN_EXE_weir")).args(args).output().await.unwrap();
    let said =
        [waited.stdout, waited.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(waited.status.success(), "{said:?}");
}

async fn settled(canary: &Canary) {
    for object in ["vs/my-app", "dr/my-app"] {
        wait_for(canary, object).await;
    }
}

fn fault(cutter: &Cutter, dice: &mut Dice) {
    let delay = [0, 0, 1, 5, 40];
    cutter.delay(Duration::from_millis(*dice.pick(&delay)));
    cutter.throttle(*dice.pick(&[None, None, Some(200_000)]));
    let cut = if dice.roll(2) == 0 {
        Cut::Messages(1 + dice.roll(14))
    } else {
        Cut::Bytes(1 + dice.roll(6000))
    };
    cutter.cut_after(cut);
    if dice.roll(3) == 0 {
        let kind: &&str = dice.pick(&[CDS, EDS, LDS, RDS]);
        cutter.hold(kind);
    }
}

/// One history: a change, a break while it is being delivered, another change meanwhile, and perhaps another break.
async fn history(
    canary: &mut Canary,
    cutter: &Cutter,
    before: &Written,
    dice: &mut Dice,
) -> Written {
    let states = Written::all();
    let any = |dice: &mut Dice| {
        let next = dice.pick(&states).clone();
        if dice.roll(3) == 0 { next.with_policy(1 + dice.roll(5)) } else { next }
    };
    let mut now = before.clone();
    for _ in 0..=dice.roll(2) {
        fault(cutter, dice);
        let cuts = cutter.cuts();
        let next = any(dice);
        write(canary, &now, &next, dice).await;
        now = next;
        // A change that needs fewer messages does not get that far.
        let cut = until_or(Duration::from_millis(300), async || cutter.cuts() > cuts).await;
        cutter.refuse(true);
        if !cut {
            cutter.cut();
        }
        cutter.release();
        if dice.roll(3) > 0 {
            let next = any(dice);
            write(canary, &now, &next, dice).await;
            now = next;
        }
        if dice.roll(4) == 0 {
            canary.kill_weir();
            canary.revive().await;
        }
        cutter.refuse(false);
    }
    cutter.heal();
    settled(canary).await;
    now
}

async fn until_or(time: Duration, mut holds: impl AsyncFnMut() -> bool) -> bool {
    let begun = std::time::Instant::now();
    while begun.elapsed() < time {
        if holds().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

async fn random_cuts(more: &[&str]) {
    let number =
        |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("WEIR_CUTS_SEED").unwrap_or_else(random);
    let histories = number("WEIR_CUTS").unwrap_or(8);
    println!("WEIR_CUTS_SEED={seed}");
    let mut dice = Dice(seed | 1);
    let (mut canary, cutter) = Canary::behind_cutter(more, &GRACE).await;
    // What there is to begin with.
    let begun = Written { route: route_yaml(100, 0), ..Written::new(&["v1", "v2"], None, &[1, 2]) };
    let mut now = Written::new(&["v1", "v2"], Some("v1"), &[1, 2]);
    write(&canary, &begun, &now, &mut dice).await;
    settled(&canary).await;
    for n in 0..histories {
        let load = canary.load();
        let next = history(&mut canary, &cutter, &now, &mut dice).await;
        let tally = load.end();
        assert_eq!(tally.failed(), 0, "history {n}, from {now:?} to {next:?}: {tally:?}");
        assert!(tally.total() > 0);
        now = next;
    }
    same_at_both_ends(&canary).await;
    let rejected = canary.envoy.stats("update_rejected").await.unwrap();
    assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
}

#[tokio::test]
async fn no_break_costs_a_request_over_delta() {
    random_cuts(&[]).await;
}

#[tokio::test]
async fn no_break_costs_a_request_over_sotw() {
    random_cuts(&["--sotw"]).await;
}

type ByName = BTreeMap<String, Value>;

/// Checks that Envoy's configuration becomes what weir reports.
pub(crate) async fn same_at_both_ends(canary: &Canary) {
    let mut last = None;
    let same = async || {
        last = differs(canary).await;
        last.is_none()
    };
    assert!(until_or(DEADLINE, same).await, "{last:?}");
}

/// Where Envoy's configuration is not what weir says it is.
async fn differs(canary: &Canary) -> Option<String> {
    let admin = format!("127.0.0.1:{}", canary.weir.admin);
    let printed = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["dump", "shop/client-0", "--admin", &admin])
        .output()
        .await
        .unwrap();
    if !printed.status.success() {
        return Some(String::from_utf8_lossy(&printed.stderr).into_owned());
    }
    let said: Value = serde_json::from_slice(&printed.stdout).unwrap();
    let resources = said["resources"].as_array().unwrap();
    let of_type = |kind: &'static str| {
        resources
            .iter()
            .filter(move |resource| resource["type"] == kind)
            .map(|resource| &resource["resource"])
    };
    let has = canary.envoy.config_dump().await.unwrap();
    let configs = has["configs"].as_array().unwrap();
    let part = |part: &'static str| {
        configs.iter().filter_map(move |config| config[part].as_array()).flatten()
    };
    if let Some(warming) = part("dynamic_warming_clusters").next() {
        return Some(format!("a cluster warms: {warming}"));
    }
    for (list, dynamic, entry, kind) in [
        ("CDS", "dynamic_active_clusters", "/cluster", "envoy.config.cluster.v3.Cluster"),
        ("LDS", "dynamic_listeners", "/active_state/listener", "envoy.config.listener.v3.Listener"),
        (
            "RDS",
            "dynamic_route_configs",
            "/route_config",
            "envoy.config.route.v3.RouteConfiguration",
        ),
    ] {
        let said = named(of_type(list), kind);
        let has = named(part(dynamic).filter_map(|config| config.pointer(entry)), kind);
        if said != has {
            return Some(format!("{list}: weir says {said:?}, Envoy has {has:?}"));
        }
    }
    let assignments = of_type("EDS");
    let said: BTreeMap<&str, BTreeSet<String>> =
        assignments.map(|item| (item["clusterName"].as_str().unwrap(), addresses(item))).collect();
    let body: Value =
        serde_json::from_slice(&canary.envoy.admin_get("/clusters?format=json").await.unwrap())
            .unwrap();
    for cluster in body["cluster_statuses"].as_array().unwrap() {
        let name = cluster["name"].as_str().unwrap();
        let has = addresses(cluster);
        if name.starts_with("outbound|") && said.get(name) != Some(&has) {
            return Some(format!(
                "endpoints of {name}: weir says {:?}, Envoy has {has:?}",
                said.get(name)
            ));
        }
    }
    None
}

/// All addresses, wherever they stand.
fn addresses(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Object(fields) => {
            let own = fields.get("address").and_then(Value::as_str).map(str::to_owned);
            fields.values().flat_map(addresses).chain(own).collect()
        }
        Value::Array(list) => list.iter().flat_map(addresses).collect(),
        _ => BTreeSet::new(),
    }
}

/// Messages by name, all in the same form.
fn named<'a>(all: impl Iterator<Item = &'a Value>, kind: &str) -> ByName {
    let normal = all.map(|value| {
        let mut value = value.clone();
        value.as_object_mut().unwrap().shift_remove("@type");
        bytes_to_json(kind, &json_to_any(kind, &value).unwrap()).unwrap()
    });
    normal.map(|value| (value["name"].as_str().unwrap().to_owned(), value)).collect()
}

/// A subset is added and rolled back while the client waits for its endpoints, and the connection breaks: the client
/// goes on, and the next subset's route waits for its cluster.
async fn rolled_back_while_it_warms(more: &[&str]) {
    let (canary, cutter) = Canary::behind_cutter(more, &GRACE).await;
    canary.edit(ROUTE, &only_yaml("v1")).await;
    canary.edit(RULE, &rule_yaml(&["v1"])).await;
    let load = canary.load();
    cutter.hold(EDS);
    canary.objects.write(RULE, &rule_yaml(&["v1", "n1"]));
    cutter.holding().await;
    cutter.refuse(true);
    cutter.cut();
    cutter.release();
    let before = canary.weir.revision().await;
    canary.objects.write(RULE, &rule_yaml(&["v1"]));
    until("the subset is gone", async || canary.weir.revision().await > before).await;
    cutter.delay(Duration::from_millis(40));
    cutter.refuse(false);
    canary.weir.acked_after(before).await;
    canary.pair((ROUTE, &only_yaml("v2")), (RULE, &rule_yaml(&["v1", "v2"]))).await;
    let all = load.end();
    assert_eq!(all.failed(), 0, "{all:?}");
    assert!(all.of("v2") > 0, "{all:?}");
    same_at_both_ends(&canary).await;
}

#[tokio::test]
async fn a_subset_that_is_rolled_back_while_it_warms_holds_nothing_up_over_delta() {
    rolled_back_while_it_warms(&[]).await;
}

#[tokio::test]
async fn a_subset_that_is_rolled_back_while_it_warms_holds_nothing_up_over_sotw() {
    rolled_back_while_it_warms(&["--sotw"]).await;
}

/// A route moves to a new subset while the connection is broken and a cluster warms.
async fn route_moves_while_a_cluster_warms(more: &[&str]) {
    let (canary, cutter) = Canary::behind_cutter(more, &GRACE).await;
    canary.edit(ROUTE, &only_yaml("v1")).await;
    canary.edit(RULE, &rule_yaml(&["v1"])).await;
    let load = canary.load();
    cutter.delay(Duration::from_millis(40));
    cutter.hold(EDS);
    canary.objects.write(RULE, &rule_yaml(&["v1", "n1"]));
    cutter.holding().await;
    cutter.refuse(true);
    cutter.cut();
    cutter.release();
    let before = canary.weir.events().await;
    canary.objects.write(RULE, &rule_yaml(&["v1", "v2", "n1"]));
    canary.objects.write(ROUTE, &only_yaml("v2"));
    until("both are read", async || canary.weir.events().await >= before + 2).await;
    cutter.refuse(false);
    canary.weir.live_with(before + 2).await;
    let all = load.end();
    assert_eq!(all.failed(), 0, "{all:?}");
    same_at_both_ends(&canary).await;
}

#[tokio::test]
async fn a_route_that_moves_while_a_cluster_warms_waits_for_its_own_over_delta() {
    route_moves_while_a_cluster_warms(&[]).await;
}

#[tokio::test]
async fn a_route_that_moves_while_a_cluster_warms_waits_for_its_own_over_sotw() {
    route_moves_while_a_cluster_warms(&["--sotw"]).await;
}
