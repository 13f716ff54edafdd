//! inotify events for the folders that hold the files: which files are complete, which are being written, and when to
//! rescan.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::scan::{FoundFile, is_read, parent};

/// A file, by watched folder and file name.
pub(super) type WatchedName = (WatchDescriptor, OsString);

/// The maximum number of queue reads per drain, of a few hundred events each.
const READS: usize = 64;

#[derive(Debug, Default)]
struct Watched {
    path: PathBuf,
    /// Whether all files in the folder are watched, or only `names`.
    all: bool,
    names: HashSet<OsString>,
}

/// The watched folders and their events.
///
/// The reader of the files drains the queue right before and after each read. The kernel queues an event before the
/// causing call returns, so a drain after a read shows reliably whether the file was complete.
#[derive(Debug)]
pub(super) struct InotifyWatcher {
    inotify: Inotify,
    watched: HashMap<WatchDescriptor, Watched>,
    /// The next value of `watched`, built during the current scan.
    next: HashMap<WatchDescriptor, Watched>,
    next_by_path: HashMap<PathBuf, WatchDescriptor>,
    /// Files with a writer that has not closed them yet.
    writing: HashSet<WatchedName>,
    /// Files that were closed by a writer or renamed into place since the last scan.
    ready: HashSet<WatchedName>,
    /// Files created since the last scan.
    created: HashSet<WatchedName>,
    /// Files modified since [`InotifyWatcher::reset_modified`].
    modified: HashSet<WatchedName>,
    /// Renames whose second event is pending: the old path, and whether the file was being written.
    moving: HashMap<u32, (PathBuf, bool)>,
    /// Renames within the watched folders: from, to.
    moved: Vec<(PathBuf, PathBuf)>,
    rescan: bool,
    limit_hit: bool,
}

/// The events since the last scan.
#[derive(Debug, Default)]
pub(super) struct FileEvents {
    ready: HashSet<WatchedName>,
    created: HashSet<WatchedName>,
    moved: Vec<(PathBuf, PathBuf)>,
}

impl FileEvents {
    /// The new path of `path` if it or a parent folder was renamed.
    pub(crate) fn moved_to(&self, path: &Path) -> Option<PathBuf> {
        let (from, to) = self.moved.iter().rev().find(|(from, _)| path.starts_with(from))?;
        let below = path.strip_prefix(from).ok()?;
        Some(if below == Path::new("") { to.clone() } else { to.join(below) })
    }

    /// Whether the file at one of `watched_names` is known to be complete. A file that was only created may be about to be
    /// written, unless it was created as a link to an existing file.
    pub(crate) fn is_ready(&self, watched_names: &[WatchedName], found: &FoundFile) -> bool {
        let link = found.linked || found.target.is_some();
        watched_names.iter().any(|watched_name| {
            self.ready.contains(watched_name) || link && self.created.contains(watched_name)
        })
    }
}

impl InotifyWatcher {
    /// Watches nothing yet. Also returns a descriptor that becomes readable when there are events.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let wakes = inotify.as_fd().try_clone_to_owned()?;
        let events = Self {
            inotify,
            watched: HashMap::new(),
            next: HashMap::new(),
            next_by_path: HashMap::new(),
            writing: HashSet::new(),
            ready: HashSet::new(),
            created: HashSet::new(),
            modified: HashSet::new(),
            moving: HashMap::new(),
            moved: Vec::new(),
            rescan: false,
            limit_hit: false,
        };
        Ok((events, wakes))
    }

    /// Whether events require a scan.
    pub(crate) fn needs_scan(&self) -> bool {
        self.rescan
    }

    /// Whether some folders are not watched because the system limit was reached.
    pub(crate) fn limit_hit(&self) -> bool {
        self.limit_hit
    }

    /// Begins a scan and returns the events before it.
    pub(crate) fn begin_scan(&mut self) -> FileEvents {
        self.rescan = false;
        self.limit_hit = false;
        // The second event of a rename may still be queued; a move out of the watched folders has none.
        if self.moving.len() > 64 {
            self.moving.clear();
        }
        FileEvents {
            ready: std::mem::take(&mut self.ready),
            created: std::mem::take(&mut self.created),
            moved: std::mem::take(&mut self.moved),
        }
    }

    /// Watches everything in a folder until a scan no longer requests it.
    pub(crate) fn watch_folder(&mut self, path: &Path) {
        if let Some(watched) = self.watch(path) {
            watched.all = true;
            path.clone_into(&mut watched.path);
        }
    }

    /// Watches the name of `path` in its parent folder.
    pub(crate) fn watch_name(&mut self, path: &Path) {
        if let Some(name) = path.file_name()
            && let Some(watched) = self.watch(&parent(path))
        {
            watched.names.insert(name.to_owned());
        }
    }

    fn watch(&mut self, folder: &Path) -> Option<&mut Watched> {
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR;
        match self.inotify.add_watch(folder, flags) {
            Ok(descriptor) => {
                self.next_by_path.insert(folder.to_owned(), descriptor);
                let watched = self.next.entry(descriptor).or_default();
                if watched.path.as_os_str().is_empty() {
                    folder.clone_into(&mut watched.path);
                }
                Some(watched)
            }
            Err(error) => {
                self.limit_hit |= matches!(error, Errno::ENOSPC | Errno::ENOMEM);
                tracing::debug!(folder = %folder.display(), %error, "cannot watch a folder");
                None
            }
        }
    }

    /// Where events about a file appear: at its path and, for a link, at its target.
    pub(crate) fn watched_names(&self, path: &Path, found: &FoundFile) -> Vec<WatchedName> {
        [Some(path), found.target.as_deref()]
            .into_iter()
            .flatten()
            .filter_map(|path| {
                Some((*self.next_by_path.get(&parent(path))?, path.file_name()?.to_owned()))
            })
            .collect()
    }

    /// Whether one of `watched_names` was not watched before the current scan, or its folder had another path.
    pub(crate) fn is_new(&self, watched_names: &[WatchedName]) -> bool {
        watched_names.iter().any(|(descriptor, name)| {
            let path = self.next.get(descriptor).map(|watched| &watched.path);
            !self
                .watched
                .get(descriptor)
                .is_some_and(|old| (old.all || old.names.contains(name)) && Some(&old.path) == path)
        })
    }

    /// Whether one of `watched_names` is being written.
    pub(crate) fn is_writing(&self, watched_names: &[WatchedName]) -> bool {
        watched_names.iter().any(|watched_name| self.writing.contains(watched_name))
    }

    /// Ends a scan: stops watching what was not requested again.
    pub(crate) fn end_scan(&mut self) {
        let old = std::mem::replace(&mut self.watched, std::mem::take(&mut self.next));
        self.next_by_path.clear();
        for descriptor in
            old.into_keys().filter(|descriptor| !self.watched.contains_key(descriptor))
        {
            // Fails for a removed folder, whose watch is already gone.
            let _ = self.inotify.rm_watch(descriptor);
        }
        self.writing.retain(|(descriptor, _)| self.watched.contains_key(descriptor));
    }

    /// Resets [`InotifyWatcher::was_modified`].
    pub(crate) fn reset_modified(&mut self) {
        self.modified.clear();
    }

    /// Whether a file at one of `watched_names` was modified since [`InotifyWatcher::reset_modified`], as of the last drain.
    pub(crate) fn was_modified(&self, watched_names: &[WatchedName]) -> bool {
        watched_names.iter().any(|watched_name| self.modified.contains(watched_name))
    }

    /// Processes all queued events.
    pub(crate) fn drain(&mut self) {
        for _ in 0..READS {
            match self.inotify.read_events() {
                Ok(events) => events.into_iter().for_each(|event| self.record(event)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot read inotify events; scanning all files instead");
                    self.limit_hit = true;
                    return;
                }
            }
        }
        // There are more events. An unnecessary scan is harmless and continues the drain.
        self.rescan = true;
    }

    fn record(&mut self, event: InotifyEvent) {
        let InotifyEvent { wd, mask, cookie, name } = event;
        if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            tracing::warn!("the queue of inotify overflowed; scanning all files instead");
            self.writing.clear();
            self.rescan = true;
            return;
        }
        if mask.contains(AddWatchFlags::IN_IGNORED) {
            self.rescan |= self.watched.remove(&wd).is_some();
            return;
        }
        // A folder that the current scan just started to watch is not in `watched` yet.
        let Some(watched) = self.next.get(&wd).or_else(|| self.watched.get(&wd)) else {
            return;
        };
        let Some(name) = name else {
            self.rescan = true;
            return;
        };
        let named = watched.names.contains(&name);
        if !named && !watched.all {
            return;
        }
        let path = watched.path.join(&name);
        let watched_name = (wd, name);
        let is_folder = mask.contains(AddWatchFlags::IN_ISDIR);
        let is_file = !is_folder && (named || is_read(&path));
        if mask.intersects(AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE) {
            if is_file {
                self.record_write(watched_name, mask.contains(AddWatchFlags::IN_CLOSE_WRITE));
            }
            return;
        }
        self.rescan = true;
        if mask.contains(AddWatchFlags::IN_MOVED_FROM) {
            let writing = self.writing.remove(&watched_name);
            self.ready.remove(&watched_name);
            self.moving.insert(cookie, (path, writing));
        } else if mask.contains(AddWatchFlags::IN_MOVED_TO) {
            let writing = self.end_move(cookie, path);
            if !is_folder {
                self.writing.remove(&watched_name);
                if writing && is_file {
                    self.writing.insert(watched_name);
                } else {
                    self.ready.insert(watched_name);
                }
            }
        } else if mask.contains(AddWatchFlags::IN_CREATE) {
            self.created.insert(watched_name);
        } else if mask.contains(AddWatchFlags::IN_DELETE) {
            self.writing.remove(&watched_name);
            self.ready.remove(&watched_name);
            self.created.remove(&watched_name);
        }
    }

    /// Records that a file was modified, or closed by its writer.
    fn record_write(&mut self, file: WatchedName, closed: bool) {
        if closed {
            self.writing.remove(&file);
            self.ready.insert(file);
            self.rescan = true;
        } else {
            self.ready.remove(&file);
            self.modified.insert(file.clone());
            self.writing.insert(file);
        }
    }

    /// Records a rename to `path`. Returns whether the file was being written when its rename began.
    fn end_move(&mut self, cookie: u32, path: PathBuf) -> bool {
        let Some((from, writing)) = self.moving.remove(&cookie) else {
            return false;
        };
        self.moved.push((from, path));
        writing
    }
}
