//! `weir log`: what happened to an object answers why its traffic is not what was written.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use weir::admin::api::v1::{self, admin_client::AdminClient};
use weir::proto_json;

use crate::support::ads::{RDS, Variant, Weir};
use crate::support::canary::Canary;
use crate::support::kube_canary::KubeCanary;
use crate::support::mesh::{Serve, route_yaml, until, until_within};
use crate::support::process::free_port;

fn run(weir: &Serve, args: &[&str]) -> Output {
    let admin = format!("127.0.0.1:{}", weir.admin);
    Command::new(env!("CARGO_BIN_EXE_weir")).args(args).args(["--admin", &admin]).output().unwrap()
}

/// What `weir log` prints of the canary's route, each entry on a line of its own.
fn log(weir: &Serve) -> Vec<String> {
    let printed = run(weir, &["log", "vs/my-app", "-n", "shop"]);
    assert!(printed.status.success(), "{printed:?}");
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
    let mut entries: Vec<String> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("  "), entries.last_mut()) {
            (Some(more), Some(entry)) => *entry += &format!(" {}", more.trim_start()),
            _ => entries.push(line.to_owned()),
        }
    }
    entries
}

/// Waits until the log has an entry with this word and this text.
async fn told(weir: &Serve, word: &str, text: &str) -> String {
    told_within(Duration::from_secs(60), weir, word, text).await
}

async fn told_within(limit: Duration, weir: &Serve, word: &str, text: &str) -> String {
    let mut all = Vec::new();
    let mut found = None;
    let waited = tokio::time::timeout(
        limit,
        until_within(limit * 2, "an entry", async || {
            all = log(weir);
            found = all
                .iter()
                .rfind(|entry| {
                    let after_time = entry.split_once("Z  ").map(|(_, rest)| rest);
                    after_time.is_some_and(|rest| rest.starts_with(word)) && entry.contains(text)
                })
                .cloned();
            found.is_some()
        }),
    )
    .await;
    assert!(waited.is_ok(), "no entry `{word}` with `{text}` in: {all:#?}");
    found.unwrap()
}

#[tokio::test]
async fn a_held_weight_and_a_wrong_object_are_told_with_a_real_envoy() {
    let canary = Canary::start(&[]).await;
    let weir = &canary.weir;
    told(weir, "ACKed", "1 of 1 proxy ACKed revision").await;
    told(weir, "connected", "1 proxy connected: shop/client-0").await;

    // Held: v2 has no pods.
    let endpoints = canary.objects.endpoints_yaml();
    canary.edit("endpoints.yaml", &canary.objects.endpoints_of(&[1])).await;
    canary.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    told(weir, "accepted", "spec.http[0]: v1 100 -> 50 %, v2 0 -> 50 %").await;
    let held = "spec.http[0].route[1]: weight 50 for subset `v2` of my-app.shop.svc.cluster.local is held at 0 until \
                one of its endpoints is ready";
    told(weir, "held", held).await;
    told(weir, "now", "held back: VirtualService shop/my-app: spec.http[0].route[1]: weight 50")
        .await;
    canary.edit("endpoints.yaml", &endpoints).await;
    told(weir, "released", "no longer: spec.http[0].route[1]: weight 50 for subset `v2`").await;
    let revision = weir.revision().await;
    told(weir, "published", &format!("in force with revision {revision} of the mesh")).await;
    told(weir, "ACKed", &format!("1 of 1 proxy ACKed revision {revision}: shop/client-0 after"))
        .await;

    // Wrong: the last valid version stays in force.
    let wrong = route_yaml(40, 60).replace("weight: 60", "weight: -60");
    canary.objects.write("virtual-service.yaml", &wrong);
    told(weir, "rejected", "spec.http[0].route[1].weight: is -60").await;
    canary.objects.write("virtual-service.yaml", "no: [yaml");
    told(weir, "unreadable", "virtual-service.yaml").await;
    canary.edit("virtual-service.yaml", &route_yaml(40, 60)).await;
    told(weir, "readable", "virtual-service.yaml can be read again").await;
    told(weir, "accepted", "v1 50 -> 40 %, v2 50 -> 60 %").await;
    told(weir, "ACKed", &format!("ACKed revision {}", weir.revision().await)).await;

    the_three_ways_to_ask_agree(weir).await;
    std::fs::remove_file(canary.objects.folder.join("virtual-service.yaml")).unwrap();
    told(weir, "deleted", "").await;
}

/// gRPC, HTTP and the command say the same, once nothing happens any more.
async fn the_three_ways_to_ask_agree(weir: &Serve) {
    let mut grpc = AdminClient::connect(format!("http://127.0.0.1:{}", weir.admin)).await.unwrap();
    let request = v1::GetTimelineRequest {
        kind: "virtualservice".into(),
        namespace: "shop".into(),
        name: "my-app".into(),
        since: String::new(),
    };
    let answer = grpc.get_timeline(request).await.unwrap();
    let expected = proto_json::message_to_text(answer.get_ref()).unwrap();
    let path = "/api/v1/timeline/vs/shop/my-app";
    let body = weir.admin().get(path).await.unwrap();
    assert_eq!(String::from_utf8(body.to_vec()).unwrap(), expected);
    let printed = run(weir, &["log", "vs/my-app", "-n", "shop", "-o", "json"]);
    assert_eq!(String::from_utf8(printed.stdout).unwrap(), expected);
    let all: Value = serde_json::from_str(&expected).unwrap();
    let step = all["entries"].as_array().unwrap().iter().find(|entry| entry["kind"] == "HELD");
    let share = &step.unwrap()["shares"][0];
    assert_eq!(
        (&share["subset"], &share["before"], &share["after"]),
        (&json!("v2"), &json!(0), &json!(50))
    );
    assert_eq!((&all["now"]["live"], &all["now"]["inScope"]), (&json!(1), &json!(1)));

    let everything = weir.admin().get("/api/v1/timeline").await.unwrap();
    let everything: Value = serde_json::from_slice(&everything).unwrap();
    let rules = |entry: &Value| entry["object"]["kind"] == "DestinationRule";
    assert!(everything["entries"].as_array().unwrap().iter().any(rules), "{everything:#}");
    let nothing = run(weir, &["log", "vs/nothing", "-n", "shop"]);
    let said = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(said.contains("VirtualService shop/nothing does not exist"), "{said}");
    for wrong in [&["log", "my-app"][..], &["log", "gateway/x"], &["log", "--since", "soon"]] {
        assert_eq!(run(weir, wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_proxy_that_rejects_or_does_not_answer_is_named() {
    let weir = Weir::start(&["--ack-timeout", "0.3"]).await;
    let mut client = weir.ads(Variant::Delta).await;
    client.start(&weir).await;
    told(&weir.serve, "ACKed", "1 of 1 proxy ACKed revision 1: shop/client-0").await;

    // It follows while that happens.
    let admin = format!("127.0.0.1:{}", weir.serve.admin);
    let mut following = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["log", "vs/my-app", "-n", "shop", "-f", "--admin", &admin])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("whole since then, as replica"));

    weir.edit("virtual-service.yaml", &route_yaml(90, 10)).await;
    let route = client.got(RDS).await;
    let silent =
        told(&weir.serve, "lagging", "0 of 1 proxy have it; 1 proxy lags: shop/client-0 (").await;
    assert!(silent.contains("rds"), "{silent}");
    told(
        &weir.serve,
        "now",
        "live on 0 of 1 proxies of this replica; shop/client-0 does not have it",
    )
    .await;
    client.ack(&route).await;
    told(&weir.serve, "ACKed", "1 of 1 proxy ACKed revision 2: shop/client-0 after").await;
    told(&weir.serve, "caught up", "1 proxy answered again: shop/client-0").await;

    weir.edit("virtual-service.yaml", &route_yaml(80, 20)).await;
    // It rejects everything that it is sent, until that is known.
    let why = "1 proxy rejected it and kept the version before: shop/client-0 (rds ";
    let nacked = tokio::select! {
        nacked = told(&weir.serve, "NACKed", why) => nacked,
        () = async {
            while let Ok(got) = client.message().await {
                client.answer(&got, Some("no such filter")).await;
            }
        } => panic!("the stream ended"),
    };
    assert!(nacked.contains("no such filter"), "{nacked}");
    drop(client);
    told(&weir.serve, "gone", "1 proxy disconnected: shop/client-0; connected now: 0").await;

    let found = tokio::task::spawn_blocking(move || {
        lines.map_while(Result::ok).find(|line| line.contains("NACKed"))
    });
    assert!(tokio::time::timeout(Duration::from_secs(60), found).await.unwrap().unwrap().is_some());
    following.kill().unwrap();
    following.wait().unwrap();
}

#[tokio::test]
async fn an_api_server_that_is_gone_or_does_not_answer_is_told() {
    let name = "an_api_server_that_is_gone_or_does_not_answer_is_told";
    let Some(mut canary) = KubeCanary::start(name).await else { return };
    let weir = canary.weir((free_port(), free_port()), &[]);
    weir.ready().await;
    told(&weir, "accepted", "generation 1: read for the first time: spec.http[0]: v1 100 %").await;
    told(&weir, "accepted", "created at 20").await;
    canary.route(70).await;
    told(&weir, "accepted", "generation 2: spec.http[0]: v1 100 -> 70 %, v2 0 -> 30 %").await;

    canary.cluster.stop_apiserver();
    told(&weir, "API fails", "cannot be read, so newer changes are not known").await;
    canary.cluster.start_apiserver();
    told(&weir, "API answers", "the API answers; what was missed is read").await;
    until("the objects are read again", async || {
        weir.admin().get("/ready?verbose").await.is_ok_and(|text| {
            !String::from_utf8_lossy(&text).lines().any(|line| line.starts_with("[-]"))
        })
    })
    .await;

    // One that keeps its connections open is noticed by its silence, 90 s after its last sign of life.
    canary.cluster.pause_apiserver(true);
    let limit = Duration::from_secs(180);
    let silent = told_within(limit, &weir, "API silent", "the API has not answered since 20").await;
    assert!(silent.contains("newer changes are not known"), "{silent}");
    canary.cluster.pause_apiserver(false);
    until("the API answers again", async || {
        let mut api = log(&weir).into_iter().rev().filter(|entry| entry.contains("  API "));
        api.next().is_some_and(|entry| entry.contains("  API answers"))
    })
    .await;
    canary.route(60).await;
    told(&weir, "accepted", "generation 3: spec.http[0]: v1 70 -> 60 %").await;
}
