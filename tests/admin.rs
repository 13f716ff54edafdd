//! Tests `weir ps`, `dump`, `splits` and `wait` end to end: the binary, a running weir and a real Envoy.

use std::process::{Command, Output, Stdio};

use crate::support::canary::Canary;
use crate::support::mesh::{only_yaml, post, route_yaml, rule_yaml, until};
use crate::support::process::free_port;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use prost::{Message, Name};
use serde_json::{Value, json};
use weir::admin::api::v1::{self, admin_client::AdminClient};
use weir::proto_json;

fn weir(canary: &Canary, args: &[&str]) -> Output {
    let admin = format!("127.0.0.1:{}", canary.weir.admin);
    Command::new(env!("CARGO_BIN_EXE_weir")).args(args).args(["--admin", &admin]).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}{}", text(output), String::from_utf8_lossy(&output.stderr))
    })
}

#[tokio::test]
async fn ps_and_dump_report_the_state_of_a_real_envoy() {
    let canary = Canary::start(&[]).await;
    canary.edit("virtual-service.yaml", &route_yaml(90, 10)).await;

    let ps = weir(&canary, &["ps"]);
    assert_eq!(ps.status.code(), Some(0), "{ps:?}");
    let lines = text(&ps);
    assert!(
        lines.lines().count() == 2 && lines.lines().all(|line| line.chars().count() <= 100),
        "{lines}"
    );
    assert!(lines.contains("shop/client-0") && lines.matches("synced").count() == 4, "{lines}");
    let listed = &json(&weir(&canary, &["ps", "-o", "json"]))["proxies"];
    assert!(
        listed[0]["acked"].is_string() && listed[0]["acked"] == listed[0]["wanted"],
        "{listed}"
    );

    let dump = json(&weir(&canary, &["dump", "shop/client-0", "--type", "routes"]));
    let routes = dump["resources"].as_array().unwrap();
    assert!(
        routes.iter().all(|route| route["type"] == "RDS" && route["state"] == "ACKED"),
        "{dump:#}"
    );
    let hosts =
        routes.iter().flat_map(|route| route["resource"]["virtualHosts"].as_array().unwrap());
    let weights: Vec<&Value> = hosts
        .filter(|host| host["name"].as_str().unwrap().starts_with("my-app."))
        .map(|host| &host["routes"][0]["route"]["weightedClusters"]["clusters"])
        .collect();
    assert_eq!((&weights[0][0]["weight"], &weights[0][1]["weight"]), (&90.into(), &10.into()));
    let diff = weir(&canary, &["dump", "client-0", "--diff"]);
    assert_eq!((diff.status.code(), text(&diff)), (Some(0), String::new()));
    let nobody = weir(&canary, &["dump", "shop/nobody"]);
    assert!(
        !nobody.status.success() && String::from_utf8_lossy(&nobody.stderr).contains("shop/nobody"),
        "{nobody:?}"
    );
}

#[tokio::test]
async fn splits_and_wait_report_the_state_of_a_real_envoy() {
    let canary = Canary::start(&[]).await;
    canary.edit("virtual-service.yaml", &route_yaml(90, 10)).await;

    let splits = &json(&weir(&canary, &["splits", "-o", "json"]))["splits"];
    let shares = &splits[0]["shares"];
    assert_eq!((&shares[0]["subset"], &shares[0]["wanted"]), (&"v1".into(), &90.into()));
    assert_eq!(
        (&shares[1]["effective"], &splits[0]["live"], &splits[0]["inScope"]),
        (&10.into(), &1.into(), &1.into())
    );
    assert!(text(&weir(&canary, &["splits"])).contains("1/1"));

    for object in ["virtualservice/my-app", "vs/my-app", "destinationrule/my-app"] {
        let waited = weir(&canary, &["wait", object, "-n", "shop", "--timeout", "20s"]);
        assert!(
            waited.status.success() && text(&waited).contains("is live on 1 prox"),
            "{waited:?}"
        );
    }
    let missing = weir(&canary, &["wait", "vs/nothing", "-n", "shop", "--timeout", "1s"]);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(
        missing.status.code() == Some(1)
            && said.contains("VirtualService shop/nothing does not exist"),
        "{said}"
    );
    for wrong in [["wait", "my-app"], ["wait", "pod/x"]] {
        assert_eq!(weir(&canary, &wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[tokio::test]
async fn diff_says_what_applying_would_change_and_the_running_weir_explains_requests() {
    let canary = Canary::start(&[]).await;
    canary.edit("virtual-service.yaml", &route_yaml(90, 10)).await;
    let request = format!("GET http://my-app.shop:{}/", canary.objects.service);
    let client = ["--from", "shop/client-0", "--request", &request];

    let explained = weir(&canary, &[&["explain"][..], &client].concat());
    assert_eq!(explained.status.code(), Some(0), "{explained:?}");
    assert!(text(&explained).contains("90.00 %"), "{explained:?}");
    let explanation = json(&weir(&canary, &[&["explain", "-o", "json"][..], &client].concat()));
    assert_eq!(explanation["outcome"]["destinations"][0]["percent"], 90.0, "{explanation:#}");
    let nowhere = ["explain", "--from", "client-0", "--request", "GET http://web/"];
    let nowhere = weir(&canary, &nowhere);
    assert_eq!(nowhere.status.code(), Some(2), "{nowhere:?}");
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("from: `client-0`"), "{nowhere:?}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("route.yaml");
    let named = file.to_str().unwrap();
    let diff = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).unwrap();
        weir(&canary, &[&["diff", "-f", named][..], more].concat())
    };
    let same = diff(&route_yaml(90, 10), &client);
    assert_eq!(same.status.code(), Some(0), "{same:?}");
    assert!(text(&same).contains("0 of 1 connected proxies"), "{same:?}");
    assert!(text(&same).contains("the same as now"), "{same:?}");

    let moved = diff(&route_yaml(20, 80), &client);
    assert_eq!(moved.status.code(), Some(1), "{moved:?}");
    let said = text(&moved);
    assert!(said.starts_with("changed  VirtualService shop/my-app\n"), "{said}");
    assert!(
        said.contains("v1 90 -> 20 %, v2 10 -> 80 %") && said.contains("1 of 1 connected proxies"),
        "{said}"
    );
    let now = said.find("90.00 %").unwrap();
    assert!(now < said.find("20.00 %").unwrap(), "{said}");
    assert!(said.lines().all(|line| line.chars().count() <= 100), "{said}");
    // Nothing was written.
    let splits = json(&weir(&canary, &["splits", "-o", "json"]));
    assert_eq!(splits["splits"][0]["shares"][0]["wanted"], 90, "{splits:#}");

    let wrong = diff(&route_yaml(20, 80).replace("weight: 80", "weight: many"), &[]);
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    assert!(text(&wrong).starts_with("invalid  VirtualService shop/my-app\n"), "{wrong:?}");
    assert!(text(&wrong).contains("weight"), "{wrong:?}");
    let none = weir(&canary, &["diff", "-f", folder.path().join("nothing").to_str().unwrap()]);
    assert_eq!(none.status.code(), Some(2), "{none:?}");
}

#[tokio::test]
async fn recent_writes_are_waited_for() {
    let canary = Canary::start(&[]).await;
    for n in 1..=20 {
        canary.objects.write("virtual-service.yaml", &route_yaml(100 - n, n));
        let waited = weir(&canary, &["wait", "vs/my-app", "-n", "shop"]);
        assert!(waited.status.success(), "{waited:?}");
        let splits = &json(&weir(&canary, &["splits", "-o", "json"]))["splits"];
        let shares = &splits[0]["shares"];
        assert_eq!(
            (&shares[1]["effective"], &splits[0]["live"]),
            (&n.into(), &1.into()),
            "{splits}"
        );
    }
    // Each of them reached the proxy and is counted once.
    assert_eq!(canary.weir.metric("pilot_proxy_convergence_time_count ").await, Some(20));
    canary
        .objects
        .write("virtual-service.yaml", &route_yaml(50, 50).replace("weight: 50", "weight: fifty"));
    let waited = weir(&canary, &["wait", "vs/my-app", "-n", "shop", "--timeout", "1s"]);
    let said = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert!(waited.status.code() == Some(1) && said.contains("fifty"), "{said}");
    let splits = text(&weir(&canary, &["splits"]));
    assert!(
        splits.contains("the newest version is rejected") && splits.contains("80 %"),
        "{splits}"
    );
}

#[tokio::test]
async fn held_back_changes_are_reported_until_released() {
    let canary = Canary::start(&[]).await;
    // v2's pods do not exist yet.
    let endpoints = canary.objects.endpoints_yaml();
    canary.edit("endpoints.yaml", &canary.objects.endpoints_of(&[1])).await;
    canary.edit("virtual-service.yaml", &route_yaml(50, 50)).await;
    canary.send(200).await.assert_split(0);
    let splits = &json(&weir(&canary, &["splits", "-o", "json"]))["splits"];
    let shares = &splits[0]["shares"];
    assert_eq!(
        (&shares[1]["wanted"], &shares[1]["effective"]),
        (&50.into(), &0.into()),
        "{splits}"
    );
    assert_eq!(canary.weir.metric("weir_held ").await, Some(1));
    let waited = weir(&canary, &["wait", "vs/my-app", "-n", "shop", "--timeout", "1s"]);
    let said = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert_eq!(waited.status.code(), Some(1));
    assert!(said.contains("held: VirtualService shop/my-app: spec.http[0].route[1]"), "{said}");
    let waited =
        weir(&canary, &["wait", "vs/my-app", "-n", "shop", "--timeout", "1s", "-o", "json"]);
    let said = json(&waited);
    assert_eq!(
        (waited.status.code(), &said["live"], &said["object"]["name"]),
        (Some(1), &false.into(), &"my-app".into())
    );
    assert!(said["held"][0].as_str().unwrap().contains("spec.http[0].route[1]"), "{said:#}");

    canary.edit("endpoints.yaml", &endpoints).await;
    let waited = weir(&canary, &["wait", "vs/my-app", "-n", "shop", "--timeout", "30s"]);
    assert!(waited.status.success(), "{waited:?}");
    canary.send(1000).await.assert_split(50);
    assert_eq!(canary.weir.metric("weir_held ").await, Some(0));
}

#[tokio::test]
async fn wait_returns_when_the_edit_is_live_and_reports_what_blocks_it() {
    let canary = Canary::start(&[]).await;
    // An undefined subset: the route is held back, and `wait` reports why.
    canary.edit("destination-rule.yaml", &rule_yaml(&["v1"])).await;
    until("the subset's cluster is gone from Envoy", async || {
        let clusters = canary.envoy.admin_get("/clusters").await.unwrap();
        !String::from_utf8_lossy(&clusters).contains("|v2|")
    })
    .await;
    let before = canary.weir.revision().await;
    canary.objects.write("virtual-service.yaml", &route_yaml(0, 100));
    until("the edit is applied", async || canary.weir.revision().await > before).await;
    let waited = weir(&canary, &["wait", "vs/my-app", "-n", "shop", "--timeout", "2s"]);
    let said = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert_eq!(waited.status.code(), Some(1));
    assert!(said.contains("held: cluster outbound|"), "{said}");
    canary.send(100).await.assert_split(0);
    let admin = format!("127.0.0.1:{}", canary.weir.admin);
    let waiting = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["wait", "vs/my-app", "-n", "shop", "--timeout", "60s", "--admin", &admin])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    canary.objects.write("destination-rule.yaml", &rule_yaml(&["v1", "v2"]));
    let waited =
        tokio::task::spawn_blocking(move || waiting.wait_with_output().unwrap()).await.unwrap();
    assert!(waited.status.success(), "{waited:?}");
    canary.send(100).await.assert_split(100);
}

/// Status, content type and body of an answer over HTTP.
async fn http(canary: &Canary, method: &str, path: &str) -> (u16, String, String) {
    let request = http::Request::builder()
        .method(method)
        .uri(format!("http://127.0.0.1:{}{path}", canary.weir.admin));
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let answer = client.request(request.body(Empty::new()).unwrap()).await.unwrap();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    let (status, body) =
        (answer.status().as_u16(), answer.into_body().collect().await.unwrap().to_bytes());
    (status, kind, String::from_utf8(body.to_vec()).unwrap())
}

fn printed<M: Message + Name>(answer: tonic::Response<M>) -> String {
    proto_json::message_to_text(answer.get_ref()).unwrap()
}

#[tokio::test]
async fn http_and_the_commands_print_the_messages_of_grpc_byte_for_byte() {
    let canary = Canary::start(&[]).await;
    canary.edit("virtual-service.yaml", &route_yaml(90, 10)).await;
    let mut grpc =
        AdminClient::connect(format!("http://127.0.0.1:{}", canary.weir.admin)).await.unwrap();
    let (proxy, all) = ("shop/client-0".to_owned(), v1::ResourceType::Unspecified.into());
    let object =
        v1::GetObjectRequest { kind: "vs".into(), namespace: "shop".into(), name: "my-app".into() };
    let answers = [
        (
            printed(grpc.list_proxies(v1::ListProxiesRequest {}).await.unwrap()),
            "/api/v1/proxies",
            &["ps", "-o", "json"][..],
        ),
        (
            printed(
                grpc.list_splits(v1::ListSplitsRequest { namespace: "shop".into() }).await.unwrap(),
            ),
            "/api/v1/splits?namespace=shop",
            &["splits", "-n", "shop", "-o", "json"],
        ),
        (
            printed(
                grpc.dump_proxy(v1::DumpProxyRequest { proxy: proxy.clone(), r#type: all })
                    .await
                    .unwrap(),
            ),
            "/api/v1/dump?proxy=shop/client-0",
            &["dump", "shop/client-0"],
        ),
        (
            printed(grpc.diff_proxy(v1::DiffProxyRequest { proxy, r#type: all }).await.unwrap()),
            "/api/v1/diff?proxy=shop/client-0",
            &["dump", "shop/client-0", "--diff", "-o", "json"],
        ),
        (
            printed(grpc.get_object(object).await.unwrap()),
            "/api/v1/objects/virtualservice/shop/my-app",
            &["wait", "vs/my-app", "-n", "shop", "-o", "json"],
        ),
    ];
    for (expected, path, command) in answers {
        let (status, kind, body) = http(&canary, "GET", path).await;
        assert_eq!((status, &*kind), (200, "application/json"), "{path}: {body}");
        assert_eq!(body, expected, "{path}");
        assert_eq!(text(&weir(&canary, command)), expected, "weir {command:?}");
    }
}

#[tokio::test]
async fn gates_open_when_what_was_written_last_is_live() {
    let gates = free_port();
    let address = format!("127.0.0.1:{gates}");
    let canary = Canary::with(&[], &["--gates-listen", &address]).await;
    let flagger = async |name: &str, metadata: Value| {
        let body = json!({"name": name, "namespace": "shop", "phase": "Progressing", "checksum": "1",
                          "metadata": metadata});
        post(gates, "/gates/flagger", &body.to_string()).await
    };
    for n in 1..=20 {
        canary.objects.write("virtual-service.yaml", &route_yaml(100 - n, n));
        let (status, answer) = flagger("my-app", json!(null)).await;
        assert_eq!(status, 200, "{answer}");
        let path = "/gates/live?namespace=shop&name=my-app&timeout=0s";
        let (_, _, body) = http(&canary, "GET", path).await;
        let live: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&live["live"], &live["proxies"], &live["missing"]),
            (&true.into(), &1.into(), &json!([]))
        );
        let route = &live["routes"][0];
        assert_eq!(route["destinations"][1]["subset"], "v2", "{body}");
        assert_eq!(route["destinations"][1]["weight"].as_f64(), Some(f64::from(n)), "{body}");
    }
    let named = json!({"virtualService": "shop/my-app", "timeout": "1s"});
    assert_eq!(flagger("canary", named).await.0, 200);

    // Of a route to a subset that no rule defines, the previous version stays in force.
    let unknown = only_yaml("v3");
    canary.objects.write("virtual-service.yaml", &unknown);
    let (status, answer) = flagger("my-app", json!({"timeout": "0s"})).await;
    assert_eq!(status, 409, "{answer}");
    assert!(answer.starts_with("VirtualService shop/my-app is not live: "), "{answer}");
    assert_refusals(&canary, gates).await;
}

/// What the gates do not answer, and why.
async fn assert_refusals(canary: &Canary, gates: u16) {
    for (method, path, status, said) in [
        (
            "GET",
            "/gates/live?namespace=shop&name=nothing",
            404,
            "VirtualService shop/nothing does not exist",
        ),
        ("GET", "/gates/live?namespace=shop", 400, "name: is empty"),
        ("GET", "/gates/live?name=my-app", 400, "namespace: "),
        ("GET", "/gates/live?kind=pod&namespace=shop&name=a", 400, "kind: is `pod`"),
        (
            "GET",
            "/gates/live?namespace=shop&name=a&timeout=soon",
            400,
            "timeout: `soon` is not a duration",
        ),
        ("GET", "/gates/flagger", 405, "expected POST /gates/flagger"),
        ("GET", "/gates/other", 404, "no such page"),
    ] {
        let (answered, _, body) = http(canary, method, path).await;
        assert_eq!(answered, status, "{path}: {body}");
        assert!(body.contains(said), "{path}: {body}");
    }
    for (body, status) in
        [("{}", 400), ("no JSON", 400), (r#"{"name": "nothing", "namespace": "shop"}"#, 404)]
    {
        let (answered, answer) = post(gates, "/gates/flagger", body).await;
        assert_eq!(answered, status, "{body}: {answer}");
    }
    // The port of the gates serves nothing else.
    for path in ["/api/v1/proxies", "/api/v1/dump?proxy=client-0", "/metrics", "/ready"] {
        let (answered, answer) = post(gates, path, "").await;
        assert_eq!(answered, 404, "{path}: {answer}");
    }
}

/// Paths with a parameter that is wrong, and what is wrong with it.
const INVALID: [(&str, &str); 8] = [
    ("/api/v1/splits?namespaces=shop", "parameter `namespaces`: is unknown; expected `namespace`"),
    ("/api/v1/splits?namespace=Shop!", "namespace: \"Shop!\" is not a DNS label"),
    ("/api/v1/proxies?x=1", "parameter `x`: is unknown; this path takes none"),
    ("/api/v1/dump?proxy=a&proxy=b", "parameter `proxy`: is given twice"),
    ("/api/v1/dump?proxy=client-0&type=routes", "parameter `type`: is `routes`; expected CDS, EDS"),
    ("/api/v1/dump", "proxy: is empty; expected NAMESPACE/POD"),
    ("/api/v1/objects/pod/shop/web", "kind: is `pod`; expected virtualservice or destinationrule"),
    ("/api/v1/objects/vs/shop/web?watch=true", "parameter `watch`: this path takes none"),
];

/// Paths of what does not exist.
const MISSING: [(&str, &str); 3] = [
    ("/api/v1/dump?proxy=shop/nobody", "no proxy `shop/nobody` is connected"),
    ("/api/v1/objects/vs/shop/web", "VirtualService shop/web does not exist"),
    ("/api/v1/routes", "no such path; expected one of /api/v1/proxies"),
];

/// The answer has this status, and as its body a status of gRPC with this code and a message that begins like this.
async fn assert_error(
    canary: &Canary,
    (method, path): (&str, &str),
    (status, code): (u16, tonic::Code),
    message: &str,
) {
    let (answered, kind, body) = http(canary, method, path).await;
    assert_eq!((answered, &*kind), (status, "application/json"), "{path}: {body}");
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&error["code"], &error["details"]),
        (&i32::from(code).into(), &Value::Array(vec![])),
        "{path}: {body}"
    );
    assert!(error["message"].as_str().unwrap().starts_with(message), "{path}: {body}");
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_in_one_form() {
    let canary = Canary::start(&[]).await;
    for (path, message) in INVALID {
        let expected = (400, tonic::Code::InvalidArgument);
        assert_error(&canary, ("GET", path), expected, message).await;
    }
    for (path, message) in MISSING {
        assert_error(&canary, ("GET", path), (404, tonic::Code::NotFound), message).await;
    }
    let post = ("POST", "/api/v1/proxies");
    let unimplemented = (405, tonic::Code::Unimplemented);
    assert_error(&canary, post, unimplemented, "this path takes GET only").await;
    let (status, _, body) = http(&canary, "GET", "/nothing").await;
    assert!(status == 404 && body.contains("/api/v1/"), "{body}");
    // Over gRPC the same refusals, where it has such requests.
    let mut grpc =
        AdminClient::connect(format!("http://127.0.0.1:{}", canary.weir.admin)).await.unwrap();
    let unknown = v1::DumpProxyRequest { proxy: "client-0".into(), r#type: 9 };
    let rejected = grpc.dump_proxy(unknown).await.unwrap_err();
    assert_eq!(
        (rejected.code(), rejected.message()),
        (tonic::Code::InvalidArgument, "type: is 9; expected CDS, EDS, LDS, RDS or RTDS")
    );
    let rejected =
        grpc.list_splits(v1::ListSplitsRequest { namespace: "Shop!".into() }).await.unwrap_err();
    assert_eq!(rejected.code(), tonic::Code::InvalidArgument);
}
