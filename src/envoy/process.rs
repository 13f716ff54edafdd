//! A running Envoy, started with an admin interface on a free loopback port and stopped when dropped.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Admin, EnvoyBinary, Error, last_lines};

/// How long Envoy may take to exit after SIGTERM before SIGKILL; it normally takes milliseconds.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// The interval at which the process and its admin interface are polled.
const POLL: Duration = Duration::from_millis(20);

/// How much of the end of the log an error includes, in lines, and how much is read for it, in bytes.
const LOG_TAIL_LINES: usize = 20;
const LOG_TAIL_BYTES: i64 = 16 * 1024;

/// An admin interface on a free loopback port, merged over the one in the configuration.
const ADMIN: &str = "{admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}}";

/// How to run Envoy.
#[derive(Debug, Clone)]
pub struct SpawnOptions {
    /// The bootstrap file (`.json`, `.yaml` or `.pb`). Its admin address is replaced by a free loopback port.
    pub config: PathBuf,
    /// The file for Envoy's output; by default a temporary file.
    pub log: Option<PathBuf>,
    /// Envoy's `--log-level`.
    pub log_level: String,
    /// The number of worker threads; by default one per CPU.
    pub concurrency: Option<u32>,
    /// Additional arguments for Envoy.
    pub args: Vec<OsString>,
}

impl SpawnOptions {
    /// Runs `config` with one worker and a temporary log of warnings.
    pub fn new(config: impl Into<PathBuf>) -> Self {
        Self {
            config: config.into(),
            log: None,
            log_level: "warning".to_owned(),
            concurrency: Some(1),
            args: Vec::new(),
        }
    }
}

/// A running Envoy. Dropping it terminates the process with SIGTERM, followed by SIGKILL after 3 seconds.
#[derive(Debug)]
pub struct EnvoyProcess {
    child: Child,
    log: PathBuf,
    admin: OnceLock<Admin>,
    folder: tempfile::TempDir,
}

impl EnvoyProcess {
    pub(super) fn start(binary: &EnvoyBinary, options: &SpawnOptions) -> Result<Self, Error> {
        let folder = tempfile::Builder::new()
            .prefix("weir-envoy-")
            .tempdir()
            .map_err(Error::io("creating a temporary folder"))?;
        let log = options.log.clone().unwrap_or_else(|| folder.path().join("envoy.log"));
        let log_file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(Error::io(format!("opening {}", log.display())))?;
        let errors = log_file.try_clone().map_err(Error::io("duplicating the log's descriptor"))?;

        let mut command = binary.command();
        command
            .arg("-c")
            .arg(&options.config)
            .args(["--config-yaml", ADMIN, "--admin-address-path"])
            .arg(admin_address_file(folder.path()))
            // No shared memory, so that any number of Envoys can run concurrently.
            .arg("--disable-hot-restart")
            .args(["--log-level", &options.log_level]);
        if let Some(concurrency) = options.concurrency {
            command.arg("--concurrency").arg(concurrency.to_string());
        }
        let child = command
            .args(&options.args)
            .stdin(Stdio::null())
            .stdout(log_file)
            .stderr(errors)
            .spawn()
            .map_err(Error::io(format!("running {}", binary.path().display())))?;
        Ok(Self { child, log, admin: OnceLock::new(), folder })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The last lines of its output.
    pub(crate) fn log_tail(&self) -> String {
        match read_end(&self.log, LOG_TAIL_BYTES) {
            Ok(bytes) => last_lines(&String::from_utf8_lossy(&bytes), LOG_TAIL_LINES).to_owned(),
            Err(error) => format!("{}: {error}", self.log.display()),
        }
    }

    /// Its exit status, if it has exited.
    ///
    /// # Errors
    /// [`Error::Io`] if the system call fails.
    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child.try_wait().map_err(Error::io("waiting for Envoy"))
    }

    /// Its admin interface, available once it listens.
    ///
    /// # Errors
    /// [`Error::Admin`] before that; wait for [`EnvoyProcess::ready`] first.
    pub fn admin(&self) -> Result<&Admin, Error> {
        if let Some(admin) = self.admin.get() {
            return Ok(admin);
        }
        let file = admin_address_file(self.folder.path());
        let address = std::fs::read_to_string(&file)
            .map_err(|error| format!("it is not listening yet: {error}"))
            .and_then(|text| {
                text.trim().parse().map_err(|error| format!("{}: {error}", file.display()))
            })
            .map_err(|reason| Error::Admin { path: "/".to_owned(), reason })?;
        Ok(self.admin.get_or_init(|| Admin::new(address)))
    }

    /// Waits until the admin interface responds, which does not require configuration from the control plane.
    ///
    /// # Errors
    /// [`Error::Ended`] as soon as the process exits, [`Error::NotReady`] after `timeout`.
    #[cfg(test)]
    pub(crate) async fn admin_up(&mut self, timeout: Duration) -> Result<(), Error> {
        self.wait(timeout, |_live| true).await
    }

    /// Waits until Envoy is live: it has its first configuration and serves traffic.
    ///
    /// # Errors
    /// [`Error::Ended`] as soon as the process exits, [`Error::NotReady`] after `timeout`.
    pub async fn ready(&mut self, timeout: Duration) -> Result<(), Error> {
        self.wait(timeout, |live| live).await
    }

    async fn wait(
        &mut self,
        timeout: Duration,
        enough: fn(live: bool) -> bool,
    ) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.exited()? {
                return Err(Error::Ended { status, log: self.log_tail() });
            }
            let left = timeout.saturating_sub(start.elapsed());
            let state = match tokio::time::timeout(left, self.ask_ready()).await {
                Ok(Ok((live, _))) if enough(live) => return Ok(()),
                Ok(Ok((_, state))) => state,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "its admin interface does not respond".to_owned(),
            };
            if start.elapsed() >= timeout {
                return Err(Error::NotReady { after: timeout, state, log: self.log_tail() });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn ask_ready(&self) -> Result<(bool, String), Error> {
        self.admin()?.ready().await
    }

    /// Like [`Admin::get`].
    ///
    /// # Errors
    /// Like [`Admin::get`].
    pub async fn admin_get(&self, path: &str) -> Result<Bytes, Error> {
        self.admin()?.get(path).await
    }

    /// Like [`Admin::stats`].
    ///
    /// # Errors
    /// Like [`Admin::stats`].
    pub async fn stats(&self, filter: &str) -> Result<BTreeMap<String, u64>, Error> {
        self.admin()?.stats(filter).await
    }

    /// Like [`Admin::config_dump`].
    ///
    /// # Errors
    /// Like [`Admin::config_dump`].
    pub async fn config_dump(&self) -> Result<serde_json::Value, Error> {
        self.admin()?.config_dump().await
    }

    /// Terminates the process as on drop, without blocking the thread, and returns its exit status.
    ///
    /// # Errors
    /// [`Error::Io`] if the system call fails.
    pub(crate) async fn stop(mut self) -> Result<ExitStatus, Error> {
        self.terminate();
        let start = Instant::now();
        while start.elapsed() < STOP_GRACE {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            tokio::time::sleep(POLL).await;
        }
        self.kill_and_reap().map_err(Error::io("waiting for Envoy"))
    }

    /// Sends SIGTERM unless the process has already exited; its id cannot be reused until it is reaped.
    fn terminate(&mut self) {
        if let (Ok(None), Ok(id)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            // This fails only if the process has exited.
            _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
    }

    fn kill_and_reap(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for EnvoyProcess {
    fn drop(&mut self) {
        self.terminate();
        let start = Instant::now();
        while start.elapsed() < STOP_GRACE {
            // An error means that there is nothing to wait for.
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL);
        }
        if let Err(error) = self.kill_and_reap() {
            tracing::warn!(pid = self.child.id(), %error, "cannot terminate Envoy");
        }
    }
}

fn admin_address_file(folder: &Path) -> PathBuf {
    folder.join("admin-address")
}

/// The last bytes of a file, at most `most`.
fn read_end(path: &Path, most: i64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX);
    file.seek(SeekFrom::End(-length.min(most)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
