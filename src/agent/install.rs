//! Puts this program where the container of Envoy finds it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Copies the running program to `folder/weir`, which is complete at any time, and returns that path.
///
/// # Errors
/// The folder cannot be written to.
pub(crate) fn install(folder: &Path) -> anyhow::Result<PathBuf> {
    let target = folder.join("weir");
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    copy_to(&target, folder).with_context(|| format!("writing {}", target.display()))?;
    Ok(target)
}

fn copy_to(target: &Path, folder: &Path) -> anyhow::Result<()> {
    let mut source = fs::File::open("/proc/self/exe").context("reading this program")?;
    let mut file = tempfile::Builder::new()
        .prefix(".weir-")
        .permissions(Permissions::from_mode(0o755))
        .tempfile_in(folder)?;
    std::io::copy(&mut source, &mut file)?;
    // The mask of the process may have taken bits away.
    file.as_file().set_permissions(Permissions::from_mode(0o755))?;
    file.persist(target)?;
    Ok(())
}
