//! Replaces inotify on systems without it: it never starts, so the folder source polls all files every second.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::scan::FoundFile;

/// A file, by watched folder and file name. It has no values.
pub(super) type WatchedName = Infallible;

/// The watched folders. This type has no values.
#[derive(Debug)]
pub(super) struct InotifyWatcher(Infallible);

/// The events since the last scan, which are unknown.
#[derive(Debug, Default)]
pub(super) struct FileEvents;

impl FileEvents {
    pub(crate) fn moved_to(&self, _path: &Path) -> Option<PathBuf> {
        None
    }

    pub(crate) fn is_ready(&self, _names: &[WatchedName], _found: &FoundFile) -> bool {
        false
    }
}

impl InotifyWatcher {
    /// # Errors
    /// Always: this system has no inotify.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no inotify"))
    }

    pub(crate) fn needs_scan(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn limit_hit(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn begin_scan(&mut self) -> FileEvents {
        match self.0 {}
    }

    pub(crate) fn watch_folder(&mut self, _path: &Path) {
        match self.0 {}
    }

    pub(crate) fn watch_name(&mut self, _path: &Path) {
        match self.0 {}
    }

    pub(crate) fn watched_names(&self, _path: &Path, _found: &FoundFile) -> Vec<WatchedName> {
        match self.0 {}
    }

    pub(crate) fn is_new(&self, _names: &[WatchedName]) -> bool {
        match self.0 {}
    }

    pub(crate) fn is_writing(&self, _names: &[WatchedName]) -> bool {
        match self.0 {}
    }

    pub(crate) fn end_scan(&mut self) {
        match self.0 {}
    }

    pub(crate) fn reset_modified(&mut self) {
        match self.0 {}
    }

    pub(crate) fn was_modified(&self, _names: &[WatchedName]) -> bool {
        match self.0 {}
    }

    pub(crate) fn drain(&mut self) {
        match self.0 {}
    }
}
