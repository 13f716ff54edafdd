//! Linters for Kubernetes manifests: from `PATH`, else built once from `tests/lint`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use xxhash_rust::xxh3::xxh3_64;

use super::Skip;
use super::cache::{at, on_path, once};
use super::go::GoBuild;

/// The paths of the linters.
#[derive(Debug, Clone)]
pub(crate) struct Linters {
    pub kubeconform: PathBuf,
    pub kube_score: PathBuf,
}

impl Linters {
    /// `None` if this machine has none and cannot build them, which is then reported as skipped.
    pub(crate) fn find(test: &str) -> Option<Self> {
        static FOUND: OnceLock<Result<Linters, Skip>> = OnceLock::new();
        match FOUND.get_or_init(|| find().map_err(|why| Skip { why })) {
            Ok(linters) => Some(linters.clone()),
            Err(skip) => {
                skip.report(test);
                None
            }
        }
    }
}

fn find() -> Result<Linters, String> {
    if let (Some(kubeconform), Some(kube_score)) = (on_path("kubeconform"), on_path("kube-score")) {
        return Ok(Linters { kubeconform, kube_score });
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lint");
    let mut sources = String::new();
    for file in ["go.mod", "go.sum"] {
        let path = folder.join(file);
        sources += &fs::read_to_string(&path).map_err(at(&path))?;
    }
    let name = format!("lint-{:016x}", xxh3_64(sources.as_bytes()));
    let made = once(&name, |out| {
        let build = GoBuild {
            folder: &folder,
            programs: "kubeconform and kube-score",
            minutes: 1,
            ldflags: "-s -w",
            packages: &[
                "github.com/yannh/kubeconform/cmd/kubeconform",
                "github.com/zegl/kube-score/cmd/kube-score",
            ],
        };
        build.run(out)
    })?;
    Ok(Linters { kubeconform: made.join("kubeconform"), kube_score: made.join("kube-score") })
}
