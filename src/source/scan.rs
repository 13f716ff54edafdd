//! Finds the files of a folder and their stamps. Follows symbolic links, because mounted ConfigMaps use them, and
//! terminates on link cycles.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::loader::Content;
use super::yaml::MAX_BYTES;

/// The maximum folder depth.
const MAX_DEPTH: usize = 64;

/// Metadata that changes whenever a file changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileStamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file found by a scan.
#[derive(Clone, Debug)]
pub(super) struct FoundFile {
    /// Its stamp, or why it cannot be read.
    pub stamp: Result<FileStamp, String>,
    /// The target, if the path is a symbolic link.
    pub target: Option<PathBuf>,
    /// Whether the file has several hard links.
    pub linked: bool,
}

/// The result of a scan.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The files by path.
    pub files: BTreeMap<PathBuf, FoundFile>,
    /// The folders that cannot be listed, with the reasons.
    pub unreadable: BTreeMap<PathBuf, String>,
}

/// Finds all files to read at or below `root`. Calls `on_folder` before listing each folder, so that a watcher misses
/// nothing. If `root` is a file, it is the only result.
pub(super) fn scan(root: &Path, on_folder: &mut dyn FnMut(&Path)) -> Scan {
    let mut scan = Scan::default();
    match fs::metadata(root) {
        Ok(metadata) if metadata.is_dir() => {
            folder(root, &metadata, 0, &mut HashSet::new(), &mut scan, on_folder)
        }
        Ok(_) => scan.files.extend(found(root, true).map(|found| (root.to_owned(), found))),
        Err(error) => {
            scan.unreadable.insert(root.to_owned(), reason(&error));
        }
    }
    scan
}

fn folder(
    path: &Path,
    metadata: &Metadata,
    depth: usize,
    seen: &mut HashSet<(u64, u64)>,
    scan: &mut Scan,
    on_folder: &mut dyn FnMut(&Path),
) {
    // A folder reachable through several links is read once: otherwise links to a parent would never end, and links
    // between siblings would multiply.
    if !seen.insert((metadata.dev(), metadata.ino())) {
        tracing::debug!(folder = %path.display(), "skipped a folder that was already read under another path");
        return;
    }
    if depth > MAX_DEPTH {
        scan.unreadable.insert(
            path.to_owned(),
            format!("the folder is more than {MAX_DEPTH} folders deep and is not read"),
        );
        return;
    }
    on_folder(path);
    let entries =
        match fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound && depth > 0 => return,
            Err(error) => {
                scan.unreadable.insert(path.to_owned(), reason(&error));
                return;
            }
        };
    let entries = entries.iter().map(|entry| (entry.path(), entry.file_type().ok()));
    let mut entries: Vec<_> = entries.filter(|(path, _)| !is_hidden(path)).collect();
    // The order determines which of two paths a folder is read under.
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (path, kind) in entries {
        // The listing already identifies most entries as files, which saves a stat call.
        let is_file = kind.is_some_and(|kind| kind.is_file());
        if !is_file
            && let Ok(metadata) = fs::metadata(&path)
            && metadata.is_dir()
        {
            folder(&path, &metadata, depth + 1, seen, scan, on_folder);
        } else if is_read(&path)
            && let Some(found) = found(&path, !is_file)
        {
            scan.files.insert(path, found);
        }
    }
}

/// Examines a file. `None` if nothing of that name exists, not even a link.
fn found(path: &Path, may_be_link: bool) -> Option<FoundFile> {
    let is_link = may_be_link && fs::symlink_metadata(path).ok()?.is_symlink();
    let target = if is_link { fs::canonicalize(path).ok() } else { None };
    let metadata = fs::metadata(path);
    let linked = metadata.as_ref().is_ok_and(|metadata| metadata.nlink() > 1);
    let stamp = match metadata {
        Ok(metadata) if metadata.is_file() => Ok(FileStamp::of(&metadata)),
        Ok(_) => Err("is neither a file nor a folder".to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound && is_link => {
            Err("is a broken link".to_owned())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => Err(reason(&error)),
    };
    Some(FoundFile { stamp, target, linked })
}

/// Reads a file found by a scan. `None` if it no longer exists. The returned stamp is that of the content or an older
/// one.
pub(super) fn read(path: &Path) -> Option<(Option<FileStamp>, Content)> {
    // If a pipe has replaced the file, opening it must not block.
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
        .and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, mut file) = match opened {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => return Some((None, Content::Unreadable(reason(&error)))),
    };
    let stamp = Some(FileStamp::of(&metadata));
    if !metadata.is_file() {
        return Some((stamp, Content::Unreadable("is neither a file nor a folder".to_owned())));
    }
    let limit = MAX_BYTES as u64;
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(limit)).unwrap_or(0));
    match file.by_ref().take(limit + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() > MAX_BYTES => {
            let size = metadata.len();
            Some((
                stamp,
                Content::Unreadable(format!(
                    "is {size} bytes long, expected at most {limit} (16 MiB)"
                )),
            ))
        }
        Ok(_) => Some((stamp, Content::Bytes(bytes))),
        Err(error) => Some((stamp, Content::Unreadable(reason(&error)))),
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "does not exist".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Whether a file with this name is read: `*.yaml`, `*.yml` and `*.json` unless hidden. Editor leftovers (`a.yaml~`,
/// `.a.yaml.swp`, `.#a.yaml`, `4913`) do not match.
pub(super) fn is_read(path: &Path) -> bool {
    let extension = path.extension().and_then(std::ffi::OsStr::to_str);
    !is_hidden(path) && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// The folder that holds `path`.
pub(super) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != std::ffi::OsStr::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(root: &Path) -> Vec<String> {
        let found = scan(root, &mut |_| {});
        found
            .files
            .keys()
            .map(|path| path.strip_prefix(root).unwrap().display().to_string())
            .collect()
    }

    #[test]
    fn only_yaml_and_json_files_are_read() {
        for name in ["a.yaml", "a.yml", "b.c.json", "d/a.yaml"] {
            assert!(is_read(Path::new(name)), "{name}");
        }
        for name in [
            "",
            ".a.yaml",
            "a.yaml~",
            ".#a.yaml",
            ".a.yaml.swp",
            "4913",
            "a.yaml.bak",
            "yaml",
            ".yaml",
            "..data",
        ] {
            assert!(!is_read(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn hidden_folders_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["sub/deep", ".git", "..2024"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for file in [
            "b.yaml",
            "a.json",
            "x.txt",
            "sub/deep/c.yml",
            ".git/x.yaml",
            "..2024/m.yaml",
            ".hidden.yaml",
        ] {
            fs::write(dir.path().join(file), "a: 1").unwrap();
        }
        symlink("..2024", dir.path().join("..data")).unwrap();
        symlink("..data/m.yaml", dir.path().join("m.yaml")).unwrap();
        symlink("nowhere", dir.path().join("dangling.yaml")).unwrap();
        assert_eq!(
            names(dir.path()),
            ["a.json", "b.yaml", "dangling.yaml", "m.yaml", "sub/deep/c.yml"]
        );
        let found = scan(dir.path(), &mut |_| {});
        let target = fs::canonicalize(dir.path().join("..2024/m.yaml")).unwrap();
        assert_eq!(
            found.files[&dir.path().join("m.yaml")].target.as_deref(),
            Some(target.as_path())
        );
        let dangling = found.files[&dir.path().join("dangling.yaml")].stamp.as_ref().unwrap_err();
        assert!(dangling.contains("is a broken link"), "{dangling}");
        assert_eq!(
            names(&dir.path().join("x.txt")),
            [""],
            "a file that is named is read whatever its ending"
        );
    }

    #[test]
    fn link_cycles_and_deep_folders_terminate() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..12 {
            fs::create_dir(dir.path().join(format!("d{n}"))).unwrap();
            fs::write(dir.path().join(format!("d{n}/f.yaml")), "a: 1").unwrap();
            for m in 0..12 {
                symlink(format!("../d{m}"), dir.path().join(format!("d{n}/to{m}"))).unwrap();
            }
            symlink("..", dir.path().join(format!("d{n}/up"))).unwrap();
        }
        symlink("self.yaml", dir.path().join("self.yaml")).unwrap();
        assert_eq!(
            names(dir.path()).len(),
            13,
            "each file once, and the link to itself as a problem"
        );
        let deep = tempfile::tempdir().unwrap();
        let mut path = deep.path().to_owned();
        for _ in 0..100 {
            path.push("d");
        }
        fs::create_dir_all(&path).unwrap();
        let found = scan(deep.path(), &mut |_| {});
        assert_eq!(found.unreadable.len(), 1);
        assert!(found.unreadable.values().all(|why| why.contains("64 folders deep")));
    }

    #[test]
    fn pipes_and_large_files_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let large = dir.path().join("large.yaml");
        fs::File::create(&large).unwrap().set_len(MAX_BYTES as u64 + 1).unwrap();
        let Some((_, Content::Unreadable(why))) = read(&large) else { panic!() };
        assert!(why.contains("16777217 bytes long, expected at most 16777216"), "{why}");
        let pipe = dir.path().join("pipe.yaml");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(found(&pipe, true).unwrap().stamp.is_err());
        assert!(matches!(read(&pipe), Some((_, Content::Unreadable(_)))));
        assert!(read(&dir.path().join("none.yaml")).is_none());
    }
}
