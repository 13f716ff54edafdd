//! `weir ps`, `dump`, `splits` and `wait`, as a user has them: the binary, a running weir and a real Envoy.

mod support;

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::canary::Canary;
use support::mesh::{route_yaml, rule_yaml, until};

fn weir(canary: &Canary, args: &[&str]) -> Output {
    let admin = format!("127.0.0.1:{}", canary.weir.admin);
    Command::new(env!("CARGO_BIN_EXE_weir")).args(args).args(["--admin", &admin]).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(output), String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test]
async fn ps_dump_splits_and_wait_tell_what_a_real_envoy_has() {
    let canary = Canary::start(&[]).await;
    canary.edit("virtual-service.yaml", &route_yaml(90, 10)).await;

    let ps = weir(&canary, &["ps"]);
    assert_eq!(ps.status.code(), Some(0), "{ps:?}");
    let lines = text(&ps);
    assert!(lines.lines().count() == 2 && lines.lines().all(|line| line.chars().count() <= 100), "{lines}");
    assert!(lines.contains("shop/client-0") && lines.matches("synced").count() == 4, "{lines}");
    let listed = json(&weir(&canary, &["ps", "-o", "json"]));
    assert_eq!(listed[0]["acked"], listed[0]["wanted"]);

    let dump = json(&weir(&canary, &["dump", "shop/client-0", "--type", "routes"]));
    let routes = dump["routes"].as_array().unwrap();
    let hosts = routes.iter().flat_map(|one| one["virtualHosts"].as_array().unwrap());
    let weights: Vec<&Value> = hosts
        .filter(|host| host["name"].as_str().unwrap().starts_with("my-app."))
        .map(|host| &host["routes"][0]["route"]["weightedClusters"]["clusters"])
        .collect();
    assert_eq!((&weights[0][0]["weight"], &weights[0][1]["weight"]), (&90.into(), &10.into()));
    assert!(dump.get("clusters").is_none());
    let diff = weir(&canary, &["dump", "client-0", "--diff"]);
    assert_eq!((diff.status.code(), text(&diff)), (Some(0), String::new()));
    let nobody = weir(&canary, &["dump", "shop/nobody"]);
    assert!(!nobody.status.success() && String::from_utf8_lossy(&nobody.stderr).contains("shop/nobody"), "{nobody:?}");

    let splits = json(&weir(&canary, &["splits", "-o", "json"]));
    let shares = &splits[0]["shares"];
    assert_eq!((&shares[0]["subset"], &shares[0]["wanted"]), (&"v1".into(), &90.0.into()));
    assert_eq!(
        (&shares[1]["effective"], &splits[0]["live"], &splits[0]["inScope"]),
        (&10.0.into(), &1.into(), &1.into())
    );
    assert!(text(&weir(&canary, &["splits"])).contains("1/1"));

    for object in ["virtualservice/my-app", "vs/my-app", "destinationrule/my-app"] {
        let waited = weir(&canary, &["wait", object, "-n", "shop", "--timeout", "20s"]);
        assert!(waited.status.success() && text(&waited).contains("is live on 1 prox"), "{waited:?}");
    }
    let missing = weir(&canary, &["wait", "vs/nothing", "-n", "shop", "--timeout", "1s"]);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(missing.status.code() == Some(1) && said.contains("there is no VirtualService shop/nothing"), "{said}");
    for wrong in [["wait", "my-app"], ["wait", "pod/x"]] {
        assert_eq!(weir(&canary, &wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[tokio::test]
async fn what_was_written_a_moment_ago_is_waited_for() {
    let canary = Canary::start(&[]).await;
    for n in 1..=20 {
        canary.objects.write("virtual-service.yaml", &route_yaml(100 - n, n));
        let waited = weir(&canary, &["wait", "vs/my-app", "-n", "shop"]);
        assert!(waited.status.success(), "{waited:?}");
        let splits = json(&weir(&canary, &["splits", "-o", "json"]));
        let shares = &splits[0]["shares"];
        assert_eq!((&shares[1]["effective"], &splits[0]["live"]), (&f64::from(n).into(), &1.into()), "{splits}");
    }
    // Each of them reached the proxy, and is counted once.
    assert_eq!(canary.weir.metric("pilot_proxy_convergence_time_count ").await, Some(20));
    canary.objects.write("virtual-service.yaml", &route_yaml(50, 50).replace("weight: 50", "weight: fifty"));
    let waited = weir(&canary, &["wait", "vs/my-app", "-n", "shop", "--timeout", "1s"]);
    let said = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert!(waited.status.code() == Some(1) && said.contains("fifty"), "{said}");
    let splits = text(&weir(&canary, &["splits"]));
    assert!(splits.contains("the newest form is refused") && splits.contains("80 %"), "{splits}");
}

#[tokio::test]
async fn what_is_held_back_is_told_until_it_is_let_go() {
    let canary = Canary::start(&[]).await;
    // v2's pods do not exist yet.
    let endpoints = canary.objects.endpoints_yaml();
    canary.edit("endpoints.yaml", &canary.objects.endpoints_of(&[1])).await;
    canary.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    canary.send(200).await.assert_split(0);
    let splits = json(&weir(&canary, &["splits", "-o", "json"]));
    let shares = &splits[0]["shares"];
    assert_eq!((&shares[1]["wanted"], &shares[1]["effective"]), (&50.0.into(), &0.0.into()), "{splits}");
    assert_eq!(canary.weir.metric("weir_held ").await, Some(1));
    let waited = weir(&canary, &["wait", "vs/my-app", "-n", "shop", "--timeout", "1s"]);
    let said = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert_eq!(waited.status.code(), Some(1));
    assert!(said.contains("held: VirtualService shop/my-app: spec.http[0].route[1]"), "{said}");

    canary.edit("endpoints.yaml", &endpoints).await;
    let waited = weir(&canary, &["wait", "vs/my-app", "-n", "shop", "--timeout", "30s"]);
    assert!(waited.status.success(), "{waited:?}");
    canary.send(1000).await.assert_split(50);
    assert_eq!(canary.weir.metric("weir_held ").await, Some(0));
}

#[tokio::test]
async fn wait_returns_when_the_edit_is_live_and_names_what_keeps_it() {
    let canary = Canary::start(&[]).await;
    // A subset that no rule has: the route is held, and wait says by whom.
    canary.edit("destination-rule.yaml", &rule_yaml(&["v1"])).await;
    until("the subset's cluster is gone from Envoy", async || {
        let clusters = canary.envoy.admin_get("/clusters").await.unwrap();
        !String::from_utf8_lossy(&clusters).contains("|v2|")
    })
    .await;
    let before = canary.weir.revision().await;
    canary.objects.write("virtual-service.yaml", &route_yaml(0, 100));
    until("the edit is taken in", async || canary.weir.revision().await > before).await;
    let waited = weir(&canary, &["wait", "vs/my-app", "-n", "shop", "--timeout", "2s"]);
    let said = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert_eq!(waited.status.code(), Some(1));
    assert!(said.contains("held: there is no cluster outbound|"), "{said}");
    canary.send(100).await.assert_split(0);
    let admin = format!("127.0.0.1:{}", canary.weir.admin);
    let waiting = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["wait", "vs/my-app", "-n", "shop", "--timeout", "60s", "--admin", &admin])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    canary.objects.write("destination-rule.yaml", &rule_yaml(&["v1", "v2"]));
    let waited = tokio::task::spawn_blocking(move || waiting.wait_with_output().unwrap()).await.unwrap();
    assert!(waited.status.success(), "{waited:?}");
    canary.send(100).await.assert_split(100);
}
