//! The real Flagger, Argo Rollouts and agent of Istio, built once from their Go modules, with the files that they need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use xxhash_rust::xxh3::xxh3_64;

use super::cache::{at, on_path, once};
use super::go::GoBuild;

/// A rollout tool.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    /// The controller.
    pub program: PathBuf,
    /// A folder with the CustomResourceDefinitions of its kinds.
    pub crds: PathBuf,
}

/// Flagger, from `tests/flagger`.
pub(crate) fn flagger() -> Result<Tool, String> {
    let folder = in_repository("tests/flagger");
    let made = built("flagger", &folder, &["go.mod", "go.sum"], |out| {
        let build = GoBuild {
            folder: &folder,
            programs: "Flagger",
            minutes: 2,
            ldflags: "-s -w",
            packages: &["github.com/fluxcd/flagger/cmd/flagger"],
        };
        build.run(out)?;
        copy_definitions(&folder, "github.com/fluxcd/flagger", "artifacts/flagger", out)
    })?;
    Ok(Tool { program: made.join("flagger"), crds: made.join("crds") })
}

/// Argo Rollouts, from `tests/argo-rollouts`.
pub(crate) fn argo_rollouts() -> Result<Tool, String> {
    let folder = in_repository("tests/argo-rollouts");
    let made = built("argo-rollouts", &folder, &["go.mod", "go.sum"], |out| {
        let build = GoBuild {
            folder: &folder,
            programs: "Argo Rollouts",
            minutes: 6,
            ldflags: "-s -w",
            packages: &["github.com/argoproj/argo-rollouts/cmd/rollouts-controller"],
        };
        build.run(out)?;
        copy_definitions(&folder, "github.com/argoproj/argo-rollouts", "manifests/crds", out)
    })?;
    Ok(Tool { program: made.join("rollouts-controller"), crds: made.join("crds") })
}

/// weir's plugin for Argo Rollouts.
pub(crate) fn argo_plugin() -> Result<PathBuf, String> {
    let folder = in_repository("deploy/argo-rollouts-plugin");
    let sources = ["go.mod", "go.sum", "main.go", "gate.go", "plugin.go"];
    let made = built("argo-rollouts-plugin", &folder, &sources, |out| {
        let build = GoBuild {
            folder: &folder,
            programs: "the plugin for Argo Rollouts",
            minutes: 2,
            ldflags: "-s -w",
            packages: &["."],
        };
        build.run(out)
    })?;
    Ok(made.join("argo-rollouts-plugin"))
}

/// Istio's agent.
#[derive(Debug, Clone)]
pub(crate) struct PilotAgent {
    pub program: PathBuf,
    /// The template of Envoy's bootstrap.
    pub template: PathBuf,
}

/// Istio's agent, from `tests/istio`.
pub(crate) fn pilot_agent() -> Result<PilotAgent, String> {
    const TEMPLATE: &str = "envoy_bootstrap.json";
    let folder = in_repository("tests/istio");
    let made = built("istio", &folder, &["go.mod", "go.sum"], |out| {
        let build = GoBuild {
            folder: &folder,
            programs: "Istio's agent",
            minutes: 3,
            ldflags: "-s -w",
            packages: &["istio.io/istio/pilot/cmd/pilot-agent"],
        };
        build.run(out)?;
        let template = sources_of(&folder, "istio.io/istio")?.join("tools/packaging/common");
        let template = template.join(TEMPLATE);
        let text = fs::read(&template).map_err(at(&template))?;
        let copy = out.join(TEMPLATE);
        fs::write(&copy, text).map_err(at(&copy))
    })?;
    Ok(PilotAgent { program: made.join("pilot-agent"), template: made.join(TEMPLATE) })
}

fn in_repository(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

/// A folder of the cache whose name depends on these files.
fn built(
    name: &str,
    folder: &Path,
    files: &[&str],
    make: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let mut sources = String::new();
    for file in files {
        let path = folder.join(file);
        let text = fs::read_to_string(&path).map_err(at(&path))?;
        sources += &format!("{}\n{text}", text.len());
    }
    once(&format!("{name}-{:016x}", xxh3_64(sources.as_bytes())), make)
}

/// The folder with the sources of a module that the one in `folder` requires.
fn sources_of(folder: &Path, module: &str) -> Result<PathBuf, String> {
    let go = on_path("go").ok_or("no go on PATH")?;
    let listed = Command::new(&go)
        .arg("-C")
        .arg(folder)
        .args(["list", "-m", "-f", "{{.Dir}}", module])
        .output()
        .map_err(at(&go))?;
    if !listed.status.success() {
        return Err(format!("go list -m {module}: {}", String::from_utf8_lossy(&listed.stderr)));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&listed.stdout).trim()))
}

/// Copies the CustomResourceDefinitions in a folder of a module's sources.
fn copy_definitions(folder: &Path, module: &str, from: &str, out: &Path) -> Result<(), String> {
    let sources = sources_of(folder, module)?.join(from);
    let crds = out.join("crds");
    fs::create_dir(&crds).map_err(at(&crds))?;
    for entry in fs::read_dir(&sources).map_err(at(&sources))? {
        let entry = entry.map_err(at(&sources))?;
        let text = fs::read_to_string(entry.path()).map_err(at(&entry.path()))?;
        if text.contains("kind: CustomResourceDefinition") {
            let path = crds.join(entry.file_name());
            fs::write(&path, text).map_err(at(&path))?;
        }
    }
    Ok(())
}
