//! `weir diff --samples`: the access logs of a real Envoy are replayed by a running weir.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use weir::envoy::{EnvoyBinary, EnvoyProcess, SpawnOptions};

use crate::support::mesh::{DEADLINE, Objects, Serve};
use crate::support::process::free_port;

/// The route of the canary with `/api` sent to v2.
const ROUTE: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: my-app, namespace: shop}
spec:
  hosts: [my-app]
  http:
  - match: [{uri: {prefix: /api}}]
    route: [{destination: {host: my-app, subset: v2}}]
  - route: [{destination: {host: my-app, subset: v1}}]
";

/// A running weir with the objects of the canary, and the port of the service.
fn weir(folder: &Path) -> (Serve, u16) {
    let config = folder.join("config");
    std::fs::create_dir(&config).unwrap();
    let objects = Objects { folder: config.clone(), service: free_port(), backend: free_port() };
    objects.write_all(100, 0);
    let serve = Serve::start(&["--config-dir", config.to_str().unwrap()], free_port(), free_port());
    std::fs::write(folder.join("route.yaml"), ROUTE).unwrap();
    (serve, objects.service)
}

fn diff(weir: &Serve, folder: &Path, samples: &str, input: &[u8], more: &[&str]) -> Output {
    let admin = format!("127.0.0.1:{}", weir.admin);
    let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["diff", "-f", "route.yaml", "--from", "shop/client-0", "--samples", samples])
        .args(["--admin", &admin])
        .args(more)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// The access logs of Istio in both encodings and Envoy's own, in three files.
fn logs(folder: &Path) -> Value {
    let json = [
        ("start_time", "%START_TIME%"),
        ("route_name", "%ROUTE_NAME%"),
        ("method", "%REQ(:METHOD)%"),
        ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
        ("protocol", "%PROTOCOL%"),
        ("response_code", "%RESPONSE_CODE%"),
        ("user_agent", "%REQ(USER-AGENT)%"),
        ("authority", "%REQ(:AUTHORITY)%"),
        ("upstream_host", "%UPSTREAM_HOST%"),
        ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
        ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
        ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
        ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ];
    let json: serde_json::Map<_, _> =
        json.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    let text = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
        %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
        \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
        %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
        \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER% \
        %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% \
        %ROUTE_NAME%\n";
    let formats = [
        ("json", Some(json!({"jsonFormat": json}))),
        ("text", Some(json!({"textFormatSource": {"inlineString": text}}))),
        ("envoy", None),
    ];
    let logs = formats.map(|(name, format)| {
        let mut config = json!({
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": folder.join(name),
        });
        if let Some(format) = format {
            config["logFormat"] = format;
        }
        json!({"name": "log", "typedConfig": config})
    });
    logs.into_iter().collect()
}

/// An Envoy that answers at one port, closes connections at the other, and logs both.
async fn envoy(folder: &Path, http: u16, tcp: u16) -> EnvoyProcess {
    let listener = |port: u16, filter: Value| {
        json!({
            "name": port.to_string(),
            "address": {"socketAddress": {"address": "127.0.0.1", "portValue": port}},
            "filterChains": [{"filters": [{"name": "filter", "typedConfig": filter}]}],
        })
    };
    let api = "type.googleapis.com/envoy.extensions.filters";
    let routes = json!([{"match": {"prefix": "/"}, "directResponse": {"status": 200}}]);
    let manager = json!({
        "@type": format!("{api}.network.http_connection_manager.v3.HttpConnectionManager"),
        "statPrefix": "http",
        "accessLog": logs(folder),
        "routeConfig": {"virtualHosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "httpFilters": [{"name": "router", "typedConfig": {"@type": format!("{api}.http.router.v3.Router")}}],
    });
    let proxy = json!({
        "@type": format!("{api}.network.tcp_proxy.v3.TcpProxy"),
        "statPrefix": "tcp",
        "cluster": "none",
        "accessLog": logs(folder),
    });
    let bootstrap = json!({
        "node": {"id": "log", "cluster": "log"},
        "staticResources": {"listeners": [listener(http, manager), listener(tcp, proxy)]},
    });
    let file = folder.join("bootstrap.json");
    std::fs::write(&file, bootstrap.to_string()).unwrap();
    let binary = tokio::task::spawn_blocking(|| EnvoyBinary::find(None)).await.unwrap().unwrap();
    let mut process = binary.spawn(&SpawnOptions::new(file)).unwrap();
    process.ready(DEADLINE).await.unwrap();
    process
}

/// Sends text and reads until the other side closes.
fn exchange(port: u16, text: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[tokio::test]
async fn the_access_logs_of_a_real_envoy_are_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (weir, port) = weir(folder);
    weir.ready().await;
    let tcp = free_port();
    let envoy = envoy(folder, port, tcp).await;
    for path in ["/", "/api/x?y=1", "/", "/api/x?y=1", "/other"] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: my-app.shop:{port}\r\nuser-agent: test/1 (a; b)\r\nconnection: close\r\n\r\n"
        );
        assert!(exchange(port, &request).starts_with("HTTP/1.1 200 "));
    }
    exchange(tcp, "not HTTP");
    // Envoy writes what it has not written yet when it ends.
    drop(envoy);

    for log in ["json", "text", "envoy"] {
        let content = std::fs::read_to_string(folder.join(log)).unwrap();
        let made = diff(&weir, folder, log, b"", &[]);
        assert_eq!(made.status.code(), Some(1), "{made:?}\n{content}");
        let said = String::from_utf8(made.stdout).unwrap();
        let sum = "\n2 of 5 requests of shop/client-0 would go elsewhere.\n";
        assert!(said.contains(sum), "{said}\n{content}");
        let group = format!("\n2 requests such as GET http://my-app.shop:{port}/api/x?y=1 ");
        assert!(said.contains(&group), "{said}");
        let [now, then] =
            ["v1", "v2"].map(|v| format!("100.00 %  outbound|{port}|{v}|my-app.shop"));
        assert!(said.find(&now).unwrap() < said.find(&then).unwrap(), "{said}");
        let noted = String::from_utf8(made.stderr).unwrap();
        assert!(
            noted.contains("lines about received requests or connections without HTTP: 1"),
            "{noted}"
        );
    }
}

#[tokio::test]
async fn lines_that_are_not_requests_are_counted_and_a_file_without_any_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (weir, port) = weir(folder);
    weir.ready().await;
    let request = format!("{{\"host\": \"my-app.shop\", \"port\": {port}, \"path\": \"/api\"}}\n");
    let input = format!("2026-01-02T03:04:05Z info ready\n{}", request.repeat(1500));
    let made = diff(&weir, folder, "-", input.as_bytes(), &["-o", "json"]);
    assert_eq!(made.status.code(), Some(1), "{made:?}");
    let noted = String::from_utf8(made.stderr).unwrap();
    assert!(
        noted.contains("lines that are not a request: 1; the first: -:1: `2026-01-02"),
        "{noted}"
    );
    let answer: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(answer["replay"]["elsewhere"], "1500", "{answer:#}");
    assert_eq!(answer["replay"]["moves"][0]["example"]["from"], "shop/client-0", "{answer:#}");
    let recording = &answer["recording"];
    let read = [&recording["lines"], &recording["differentRequests"], &recording["unreadable"]];
    assert_eq!(read, [&json!(1501), &json!(1), &json!(1)], "{answer:#}");

    std::fs::write(folder.join("bad"), "\n{\"host\": 1}\n").unwrap();
    std::fs::write(folder.join("empty"), "").unwrap();
    let wrong = [
        ("bad", "bad:2: host: 1, expected a string"),
        ("empty", "it is empty"),
        ("none", "none: "),
    ];
    for (file, why) in wrong {
        let made = diff(&weir, folder, file, b"", &[]);
        let said = String::from_utf8(made.stderr).unwrap();
        assert_eq!(made.status.code(), Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    }
}
