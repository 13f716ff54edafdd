//! Where an Envoy binary came from, and whether it can be executed.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

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

/// Checks that the path is an executable file. The error follows the word "which".
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
