//! The real Helm: `$HELM`, then `helm` on PATH, else built once from `tests/helm`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use xxhash_rust::xxh3::xxh3_64;

use super::Skip;
use super::cache::{at, is_program, on_path, once};
use super::go::GoBuild;

/// Runs Helm with a home of its own; `None` if this machine has none and cannot build it, which is then reported as
/// skipped.
pub(crate) fn helm(test: &str, args: &[&str]) -> Option<Output> {
    static FOUND: OnceLock<Result<PathBuf, Skip>> = OnceLock::new();
    let program = match FOUND.get_or_init(|| find().map_err(|why| Skip { why })) {
        Ok(program) => program,
        Err(skip) => {
            skip.report(test);
            return None;
        }
    };
    let home = tempfile::tempdir().expect("temporary folder");
    let output = Command::new(program)
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("HOME", home.path())
        .env_remove("KUBECONFIG")
        .output();
    Some(output.unwrap_or_else(|error| panic!("{}: {error}", program.display())))
}

fn find() -> Result<PathBuf, String> {
    if let Some(helm) = std::env::var_os("HELM").filter(|value| !value.is_empty()) {
        let helm = PathBuf::from(helm);
        let wrong = || format!("HELM={} is not a program; unset it or name one", helm.display());
        return if is_program(&helm) { Ok(helm) } else { Err(wrong()) };
    }
    if let Some(helm) = on_path("helm") {
        return Ok(helm);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/helm");
    let mut sources = String::new();
    for file in ["go.mod", "go.sum"] {
        let path = folder.join(file);
        sources += &fs::read_to_string(&path).map_err(at(&path))?;
    }
    let name = format!("helm-{:016x}", xxh3_64(sources.as_bytes()));
    let made = once(&name, |out| {
        let build = GoBuild {
            folder: &folder,
            programs: "Helm",
            minutes: 3,
            ldflags: "-s -w",
            packages: &["helm.sh/helm/v4/cmd/helm"],
        };
        build.run(out)
    })?;
    Ok(made.join("helm"))
}
