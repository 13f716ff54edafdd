//! Caches the programs that tests run against in the user's cache folder, so that each is fetched or built once.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::say;

/// `$WEIR_CACHE`, else `$XDG_CACHE_HOME/weir`, else `~/.cache/weir`.
pub(crate) fn folder() -> Result<PathBuf, String> {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    if let Some(folder) = named("WEIR_CACHE") {
        return Ok(folder.into());
    }
    if let Some(folder) = named("XDG_CACHE_HOME") {
        return Ok(Path::new(&folder).join("weir"));
    }
    match named("HOME") {
        Some(home) => Ok(Path::new(&home).join(".cache/weir")),
        None => Err("no cache folder: none of WEIR_CACHE, XDG_CACHE_HOME and HOME is set".into()),
    }
}

/// The folder `name` of the cache, created by `make` if it does not exist.
///
/// `make` fills a staging folder that is then renamed, so an existing folder is complete. If several processes need it,
/// one creates it and the others wait, with a message on stderr.
pub(crate) fn once(
    name: &str,
    make: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let root = folder()?;
    let ready = root.join(name);
    if ready.is_dir() {
        return Ok(ready);
    }
    fs::create_dir_all(&root).map_err(at(&root))?;
    let lock_path = root.join(format!("{name}.lock"));
    let lock = File::create(&lock_path).map_err(at(&lock_path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            say(&format!("waiting for another process to make {name}"));
            lock.lock().map_err(at(&lock_path))?;
        }
        Err(TryLockError::Error(error)) => return Err(at(&lock_path)(error)),
    }
    if ready.is_dir() {
        return Ok(ready);
    }
    let partial = root.join(format!("{name}.partial"));
    // We hold the lock, so leftovers are from a killed process.
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(at(&partial))?;
    }
    fs::create_dir(&partial).map_err(at(&partial))?;
    if let Err(why) = make(&partial) {
        // If that fails too, the next process does it.
        let _ = fs::remove_dir_all(&partial);
        return Err(why);
    }
    fs::rename(&partial, &ready).map_err(at(&ready))?;
    Ok(ready)
}

/// Installs a Python package without its dependencies into the cache once and returns its folder.
pub(crate) fn python_package(name: &str, version: &str) -> Result<PathBuf, String> {
    once(&format!("{name}-{version}"), |folder| {
        let python = on_path("python3")
            .ok_or_else(|| format!("no python3 on PATH to install {name} with"))?;
        say(&format!("installing {name} {version} once"));
        let pip = Command::new(&python)
            .args(["-m", "pip", "install", "--quiet"])
            .args(["--disable-pip-version-check", "--no-deps", "--target"])
            .arg(folder)
            .arg(format!("{name}=={version}"))
            .output()
            .map_err(at(&python))?;
        if pip.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&pip.stderr);
        Err(format!("pip could not install {name} {version}: {why}"))
    })
}

/// The program `name` on `PATH`.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| is_program(file))
}

/// Whether `file` is a file that somebody may execute.
pub(crate) fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Turns an I/O error into a message that names the file.
pub(crate) fn at(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}
