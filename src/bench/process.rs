//! The server that is measured: a weir of its own, or one that runs already; and what a process costs.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::process::{Child, ChildStdin, Command};

use super::transport::HAS_ADDRESSES;
use crate::envoy::Admin;

/// How long weir may take to stop after SIGTERM before it is killed.
const STOP: Duration = Duration::from_secs(10);

/// All proxies of the bench have one address where they cannot have one each.
const ONE_PEER: [&str; 2] = ["--peer-share", "100"];

/// How often it is asked whether it is ready.
const POLL: Duration = Duration::from_millis(2);

/// How much of the end of its log an error shows, in bytes.
const LOG_TAIL: usize = 4096;

/// How to start weir.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// The program.
    pub program: PathBuf,
    /// The flags of `weir serve` that name the source.
    pub source: Vec<String>,
    /// Whether objects come from standard input.
    pub from_stdin: bool,
    /// More flags.
    pub more: Vec<String>,
}

/// A weir that ends with this value.
pub(crate) struct Weir {
    child: Child,
    begun: Instant,
    log: tempfile::NamedTempFile,
    /// The address of ADS.
    pub xds: SocketAddr,
    /// Its admin port.
    pub admin: Admin,
}

impl Weir {
    /// Starts `weir serve` on free loopback ports.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(launch: &Launch) -> anyhow::Result<(Self, Option<ChildStdin>)> {
        let (xds, admin) = (free_address()?, free_address()?);
        let log = tempfile::Builder::new().prefix("weir-bench-").suffix(".log").tempfile()?;
        let mut child = Command::new(&launch.program)
            .arg("serve")
            .args(&launch.source)
            .args(["--xds-listen", &xds.to_string(), "--admin-listen", &admin.to_string()])
            .args(if HAS_ADDRESSES { &[][..] } else { &ONE_PEER })
            .args(&launch.more)
            .env_remove("WEIR_LOG")
            .env_remove("WEIR_LOG_FORMAT")
            .args(["--log", "warn,kube_client=off,kube_runtime=off"])
            .stdin(if launch.from_stdin { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::null())
            .stderr(log.reopen()?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", launch.program.display()))?;
        let input = child.stdin.take();
        Ok((Self { child, begun: Instant::now(), log, xds, admin: Admin::new(admin) }, input))
    }

    /// Waits until it serves, and says how long it took since it was started.
    ///
    /// # Errors
    /// It ended, or takes too long.
    pub(crate) async fn ready(&mut self, within: Duration) -> anyhow::Result<Duration> {
        while self.admin.get("/ready").await.is_err() {
            if let Some(why) = self.ended() {
                bail!("{why}");
            }
            if self.begun.elapsed() > within {
                bail!(
                    "weir serve was not ready within {within:?}; end of its log:\n{}",
                    self.log_tail()
                );
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(self.begun.elapsed())
    }

    /// Its process id.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Why it ended, if it did: its status, and the end of its log.
    pub(crate) fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!("weir serve ended with {status}; end of its log:\n{}", self.log_tail()))
    }

    /// The end of its log.
    fn log_tail(&self) -> String {
        let text = std::fs::read(self.log.path()).unwrap_or_default();
        let from = text.len().saturating_sub(LOG_TAIL);
        String::from_utf8_lossy(text.get(from..).unwrap_or_default()).into_owned()
    }

    /// Ends it and waits for that.
    pub(crate) async fn stop(mut self) {
        #[cfg(unix)]
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            // This fails only if it has ended.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(id),
                nix::sys::signal::Signal::SIGTERM,
            );
        }
        if tokio::time::timeout(STOP, self.child.wait()).await.is_err() {
            // An error means that it has ended.
            let _ = self.child.kill().await;
        }
    }
}

fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    Ok(listener.and_then(|listener| listener.local_addr())?)
}

/// What a process has used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    /// CPU time in seconds since it began.
    pub cpu: f64,
    /// Resident memory in bytes.
    pub resident: u64,
    /// The most that it was since the last [`reset_peak`], or since the process began.
    pub peak: u64,
}

/// A field of `/proc/PID/status` that is a number of kilobytes.
fn kilobytes(status: &str, field: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(field))?;
    value.split_whitespace().next()?.parse().ok()
}

/// What the process with this id has used; `None` where the system does not tell.
pub(crate) fn usage(id: u32) -> Option<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    Some(Usage {
        cpu: cpu(id)?,
        resident: kilobytes(&status, "VmRSS:")? * 1024,
        peak: kilobytes(&status, "VmHWM:")? * 1024,
    })
}

/// The CPU time of a process to the nanosecond: `/proc/PID/stat` counts in hundredths of a second.
#[cfg(target_os = "linux")]
fn cpu(id: u32) -> Option<f64> {
    use nix::time::{clock_getcpuclockid, clock_gettime};

    let pid = nix::unistd::Pid::from_raw(i32::try_from(id).ok()?);
    let time = clock_gettime(clock_getcpuclockid(pid).ok()?).ok()?;
    Some(Duration::from(time).as_secs_f64())
}

#[cfg(not(target_os = "linux"))]
fn cpu(_: u32) -> Option<f64> {
    None
}

/// Begins to measure the peak of memory anew, where the system allows it.
pub(crate) fn reset_peak(id: u32) {
    // Without permission the peak is that since the process began.
    let _ = std::fs::write(format!("/proc/{id}/clear_refs"), "5");
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_tells_what_it_uses() {
        let before = super::usage(std::process::id()).unwrap();
        assert!(before.resident > 0 && before.peak >= before.resident && before.cpu > 0.0);
        assert_eq!(super::usage(u32::MAX), None);
    }
}
