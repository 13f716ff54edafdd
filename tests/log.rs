//! The log of `weir serve`, as a program reads it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::ads::{CDS, EDS, Variant, ask, connect};
use crate::support::mesh::{Objects, Serve, route_yaml, until};
use crate::support::process::free_port;

/// `weir serve` with a log of JSON in a file.
struct Logged {
    serve: Serve,
    objects: Objects,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Logged {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (config, log) = (folder.path().join("config"), folder.path().join("log"));
        std::fs::create_dir(&config).unwrap();
        let objects = Objects { folder: config.clone(), service: free_port(), backend: 8080 };
        objects.write_all(100, 0);
        let (xds, admin) = (free_port(), free_port());
        let child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["serve", "--log", "info,weir=debug", "--log-format", "json"])
            .arg("--config-dir")
            .arg(&config)
            .args(["--xds-listen", &format!("127.0.0.1:{xds}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin}")])
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let serve = Serve::of(child, xds, admin);
        serve.ready().await;
        Self { serve, objects, log, _folder: folder }
    }

    /// The first event with this message that has all of these fields.
    async fn event(&self, message: &str, fields: Value) -> Value {
        let mut found = None;
        until(&format!("the log says `{message}` with {fields}"), async || {
            found = events(&self.log).into_iter().find(|event| {
                event["message"] == message
                    && fields.as_object().unwrap().iter().all(|(name, value)| event[name] == *value)
            });
            found.is_some()
        })
        .await;
        found.unwrap()
    }
}

/// The events of which the whole line is written.
fn events(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn each_event_of_a_stream_names_the_stream_and_its_proxy() {
    let weir = Logged::start().await;
    let mut client = connect(weir.serve.xds, Variant::Delta, None).await;
    client.fetch(CDS, &[]).await;
    client.send(ask(EDS, &["outbound|1||nobody.shop.svc.cluster.local"])).await;
    let endpoints = client.got(EDS).await;
    client.answer(&endpoints, Some("no \"such\" cluster")).await;
    for (message, fields) in [
        ("proxy connected", json!({"level": "INFO"})),
        ("sending a response", json!({"level": "DEBUG", "resource_type": "cds"})),
        ("proxy acknowledged a response", json!({"level": "DEBUG", "resource_type": "cds"})),
        ("entered a stage", json!({"step": "switch", "from": "Idle"})),
        (
            "proxy rejected resources",
            json!({"level": "WARN", "resource_type": "eds", "reason": "no \"such\" cluster"}),
        ),
    ] {
        let event = weir.event(message, fields).await;
        let found = ["port", "stream", "variant", "proxy"].map(|name| &event[name]);
        let expected = [&json!("xds"), &json!(1), &json!("delta"), &json!("shop/client-0")];
        assert_eq!(found, expected, "{event}");
    }
}

#[tokio::test]
async fn a_rejected_object_is_named_with_its_file_its_field_and_the_reason() {
    let weir = Logged::start().await;
    let wrong = route_yaml(90, 10).replace("weight: 90", "weight: -5");
    weir.objects.write("virtual-service.yaml", &wrong);
    let path = json!({"path": "spec.http[0].route[0].weight"});
    let event =
        weir.event("rejected an object; its last accepted version stays active", path).await;
    assert_eq!(event["object"], "VirtualService shop/my-app", "{event}");
    assert!(event["file"].as_str().unwrap().contains(".yaml:"), "{event}");
    assert_eq!((&event["level"], &event["reason"]), (&json!("ERROR"), &json!("is -5")), "{event}");
    weir.objects.write_all(90, 10);
    weir.event("publishing changed objects", json!({"revision": 2})).await;
}
