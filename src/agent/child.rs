//! The Envoy process, and the end of every child process: as the first process of a container, the agent becomes the
//! parent of those whose parents have ended.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid};
use tokio::signal::unix::{SignalKind, signal};

/// How Envoy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Killed(Signal),
}

impl Ended {
    /// The exit status by which a shell would report it.
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::Exited(status) => u8::try_from(status).unwrap_or(u8::MAX),
            Self::Killed(signal) => u8::try_from(128 + signal as i32).unwrap_or(u8::MAX),
        }
    }

    /// The exit status after Envoy was asked to end. Before it handles the signal, as it starts, the signal ends it.
    pub(crate) fn status_on_request(self) -> u8 {
        match self {
            Self::Killed(Signal::SIGTERM) => 0,
            other => other.status(),
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exit status {status}"),
            Self::Killed(signal) => write!(f, "killed by {signal}"),
        }
    }
}

/// A running Envoy. It is killed when this is dropped, and by the kernel when the agent is killed.
#[derive(Debug)]
pub(crate) struct Envoy {
    child: Child,
    id: Pid,
    children: tokio::signal::unix::Signal,
    ended: Option<Ended>,
}

impl Envoy {
    /// Starts Envoy by way of [`become_envoy`].
    pub(crate) fn start(program: &Path, args: &[OsString]) -> anyhow::Result<Self> {
        // Before the process exists, so that its end is not missed.
        let children = signal(SignalKind::child()).context("handling SIGCHLD")?;
        let child = Command::new("/proc/self/exe")
            .args(["agent", "become-envoy", "--parent", &getpid().to_string(), "--"])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            // A Ctrl-C at the terminal is for the agent alone.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let id = Pid::from_raw(i32::try_from(child.id()).context("the id of Envoy's process")?);
        Ok(Self { child, id, children, ended: None })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for Envoy to end. Until then, every other child that ends is reaped. May be cancelled and called again.
    ///
    /// # Errors
    /// The system does not say how it ended.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<Ended> {
        loop {
            if let Some(ended) = self.reap()? {
                return Ok(ended);
            }
            self.children.recv().await;
        }
    }

    fn reap(&mut self) -> anyhow::Result<Option<Ended>> {
        while self.ended.is_none() {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(id, status)) if id == self.id => {
                    self.ended = Some(Ended::Exited(status));
                }
                Ok(WaitStatus::Signaled(id, signal, _)) if id == self.id => {
                    self.ended = Some(Ended::Killed(signal));
                }
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for Envoy"),
            }
        }
        Ok(self.ended)
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        self.send(Signal::SIGTERM);
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        self.send(Signal::SIGKILL);
    }

    fn send(&self, signal: Signal) {
        // Its id cannot be another process's before it is reaped.
        if self.ended.is_none() {
            // This fails only if it has ended.
            _ = kill(self.id, signal);
        }
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.kill();
            // There is nothing to do about an error.
            _ = waitpid(self.id, None);
        }
    }
}

/// Turns this process into Envoy, which the kernel kills when the process `parent` ends. Only the process itself can ask
/// the kernel for that, so it happens between the start of a process and that of Envoy in it.
///
/// # Errors
/// Envoy cannot be executed, or the parent has ended already.
pub(crate) fn become_envoy(parent: i32, program: &Path, args: &[OsString]) -> anyhow::Error {
    if let Err(error) = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL) {
        return anyhow::Error::new(error).context("asking the kernel to end Envoy with its agent");
    }
    // Envoy has an allocator of its own. It runs as well with the agent's setting, which it inherits.
    _ = nix::sys::prctl::set_thp_disable(false);
    if getppid().as_raw() != parent {
        return anyhow::anyhow!("the agent has ended");
    }
    let error = Command::new(program).args(args).exec();
    anyhow::Error::new(error).context(format!("running {}", program.display()))
}
