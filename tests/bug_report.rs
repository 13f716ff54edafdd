//! `weir bug-report`: what is in the file, and above all what is not.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use serde_json::Value;

use crate::identity::{WEB_0, World};
use crate::support::ads::Weir;

fn report(admin: u16, file: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["bug-report", "--admin", &format!("127.0.0.1:{admin}"), "-o"])
        .arg(file)
        .args(more)
        .output()
        .unwrap()
}

/// The files of a report by their names, without the folder that they are in.
fn files(report: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut tar = tar::Archive::new(GzDecoder::new(std::fs::File::open(report).unwrap()));
    let mut found = BTreeMap::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let (folder, name) = path.split_once('/').unwrap();
        assert!(folder.starts_with("weir-bug-report-20"), "{path}");
        let name = name.to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        found.insert(name, content);
    }
    found
}

#[tokio::test]
async fn a_report_has_what_weir_knows_and_what_the_caller_adds() {
    let weir = Weir::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let (file, log) = (folder.path().join("report.tar.gz"), folder.path().join("weir.log"));
    std::fs::write(&log, "a line of the log\n").unwrap();
    let made = report(weir.serve.admin, &file, &["--add", log.to_str().unwrap()]);
    assert!(made.status.success(), "{made:?}");
    let files = files(&file);
    assert_eq!(files["added/weir.log"], b"a line of the log\n");
    let info: Value = serde_json::from_slice(&files["info.json"]).unwrap();
    assert_eq!(
        (&info["version"], &info["ready"]),
        (&env!("CARGO_PKG_VERSION").into(), &true.into())
    );
    assert_eq!(info["flags"][0], "serve");
    assert!(info["tasks"].as_u64() > Some(0), "{info}");
    #[cfg(target_os = "linux")]
    assert!(info["process"]["VmRSS"].as_str().unwrap().ends_with(" kB"), "{info}");
    for (name, part) in [
        ("ready.txt", "ready"),
        ("readiness.json", "\"ready\": true"),
        ("proxies.json", "\"proxies\""),
        ("splits.json", "my-app"),
        ("findings.json", "{"),
        ("timeline.json", "\"ACCEPTED\""),
        ("metrics.txt", "weir_mesh_revision"),
        ("CONTENTS.txt", "metrics.txt"),
    ] {
        let text = String::from_utf8_lossy(&files[name]);
        assert!(text.contains(part), "{name}: {text}");
        assert!(!text.contains("cannot be read") && !text.contains("left out"), "{name}: {text}");
    }

    // What the caller adds is looked at, too.
    std::fs::write(&log, "-----BEGIN PRIVATE KEY-----\n").unwrap();
    let refused = report(weir.serve.admin, &file, &["--add", log.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("contains a private key"), "{said}");
    let nobody = report(1, &file, &[]);
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(nobody.status.code() == Some(1) && said.contains("cannot connect to weir"), "{said}");
}

/// Each line of a private key, as it is and as a Secret has it.
fn of_key(pem: &[u8]) -> Vec<Vec<u8>> {
    let text = std::str::from_utf8(pem).unwrap();
    assert!(text.contains("PRIVATE KEY-----"), "{text}");
    let lines = text.lines().filter(|line| line.len() > 20 && !line.starts_with('-'));
    let mut found: Vec<Vec<u8>> = lines.clone().map(|line| line.as_bytes().to_vec()).collect();
    found.extend(lines.filter_map(|line| STANDARD.decode(line).ok()));
    found.push(STANDARD.encode(pem).into_bytes());
    found
}

#[tokio::test]
async fn a_report_of_a_weir_that_signs_certificates_has_no_key_and_no_token() {
    let test = "a_report_of_a_weir_that_signs_certificates_has_no_key_and_no_token";
    let Some(world) = World::start(test, &[]).await else { return };
    let token = world.token("web", Some("web-0"), "istio-ca");
    let _stream = world.ask(Some(&token), &WEB_0).await.unwrap();
    let secrets = Api::<Secret>::namespaced(world.cluster.client().await, "weir-system");
    let mut needles: Vec<Vec<u8>> = Vec::new();
    for secret in secrets.list(&Default::default()).await.unwrap() {
        for (name, value) in secret.data.unwrap_or_default() {
            if name.contains("key") {
                needles.extend(of_key(&value.0));
            }
        }
    }
    assert!(needles.len() > 2, "the authority has a key");
    let own = std::fs::read(world.cluster.kubeconfig_for("weir-system.weir")).unwrap();
    let own: Value = serde_json::from_slice(&own).unwrap();
    let own = own.pointer("/users/0/user/token").unwrap().as_str().unwrap();
    for token in [&*token, own] {
        needles.push(token.as_bytes().to_vec());
        needles.push(token.rsplit('.').next().unwrap().as_bytes().to_vec());
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.tar.gz");
    let made = report(world.serve.admin, &file, &[]);
    assert!(made.status.success(), "{made:?}");
    let files = files(&file);
    let proxies = String::from_utf8_lossy(&files["proxies.json"]).into_owned();
    assert!(proxies.contains("web-0"), "{proxies}");
    for (name, content) in &files {
        for needle in &needles {
            let is_there = content.windows(needle.len()).any(|window| window == needle);
            assert!(!is_there, "{name} has {}", String::from_utf8_lossy(needle));
        }
    }
}
