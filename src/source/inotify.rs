//! What the kernel tells about the folders that hold the files: which file is complete, which is being written, and
//! when to look for files anew.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::scan::{Found, is_read, parent};

/// A file by the folder that is watched and its name there.
pub(super) type Spot = (WatchDescriptor, OsString);

/// How many reads of the queue, of some hundred events each, are made at once.
const READS: usize = 64;

#[derive(Debug, Default)]
struct Watched {
    path: PathBuf,
    /// Whether all in the folder counts; else only `names`.
    all: bool,
    names: HashSet<OsString>,
}

/// The watched folders, and what has happened in them.
///
/// The queue is drained by whoever reads files, right before and right after: the kernel puts an event there before the
/// call that caused it returns, so what is drained after a file was read tells for sure whether it was complete.
#[derive(Debug)]
pub(super) struct Events {
    inotify: Inotify,
    watched: HashMap<WatchDescriptor, Watched>,
    /// What `watched` is to become when the scan that is under way is done.
    next: HashMap<WatchDescriptor, Watched>,
    next_by_path: HashMap<PathBuf, WatchDescriptor>,
    /// Files that were written to by a writer that has not closed them yet.
    writing: HashSet<Spot>,
    /// Files that a writer has closed, or that a rename has put in their place, since `take` was called.
    ready: HashSet<Spot>,
    /// Files that came to be since `take` was called.
    created: HashSet<Spot>,
    /// Files that were written to since `forget_modified` was called.
    modified: HashSet<Spot>,
    /// Renames whose other half is still to come: the old path and whether the file was being written.
    moving: HashMap<u32, (PathBuf, bool)>,
    /// Renames of files and folders inside of the watched folders: from where, to where.
    moved: Vec<(PathBuf, PathBuf)>,
    rescan: bool,
    limit_hit: bool,
}

/// What has happened since the last look.
#[derive(Debug, Default)]
pub(super) struct Happened {
    ready: HashSet<Spot>,
    created: HashSet<Spot>,
    moved: Vec<(PathBuf, PathBuf)>,
}

impl Happened {
    /// Where the file that was at `path` is now, if it or a folder around it was renamed.
    pub fn moved_to(&self, path: &Path) -> Option<PathBuf> {
        let (from, to) = self.moved.iter().rev().find(|(from, _)| path.starts_with(from))?;
        let below = path.strip_prefix(from).ok()?;
        Some(if below == Path::new("") { to.clone() } else { to.join(below) })
    }

    /// Whether the file at one of `spots` is known to be complete. One that only was created may be about to be
    /// written, unless it came to be as a link to what was there before.
    pub fn is_ready(&self, spots: &[Spot], found: &Found) -> bool {
        let link = found.linked || found.target.is_some();
        spots.iter().any(|spot| self.ready.contains(spot) || link && self.created.contains(spot))
    }
}

impl Events {
    /// Nothing is watched yet. Also returns a descriptor that is readable when something has happened.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
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

    /// Whether something has happened that makes a scan worth while.
    pub fn wants_scan(&self) -> bool {
        self.rescan
    }

    /// Whether there are folders that could not be watched, as the system's limit is reached.
    pub fn limit_hit(&self) -> bool {
        self.limit_hit
    }

    /// Begins a scan: hands out what has happened before it.
    pub fn take(&mut self) -> Happened {
        self.rescan = false;
        self.limit_hit = false;
        // The second half of a rename may still be in the queue; those that were moved out of sight have none.
        if self.moving.len() > 64 {
            self.moving.clear();
        }
        Happened {
            ready: std::mem::take(&mut self.ready),
            created: std::mem::take(&mut self.created),
            moved: std::mem::take(&mut self.moved),
        }
    }

    /// Watches all in a folder, from now until a scan that does not ask for it.
    pub fn watch_folder(&mut self, path: &Path) {
        if let Some(watched) = self.watch(path) {
            watched.all = true;
            path.clone_into(&mut watched.path);
        }
    }

    /// Watches what has the name of `path` in its folder.
    pub fn watch_name(&mut self, path: &Path) {
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
                tracing::debug!(folder = %folder.display(), %error, "can not watch");
                None
            }
        }
    }

    /// Where events about a file show up: at its path and, if that is a link, at its target.
    pub fn spots(&self, path: &Path, found: &Found) -> Vec<Spot> {
        [Some(path), found.target.as_deref()]
            .into_iter()
            .flatten()
            .filter_map(|path| Some((*self.next_by_path.get(&parent(path))?, path.file_name()?.to_owned())))
            .collect()
    }

    /// Whether one of `spots` was not watched before the scan that is under way, or its folder had another path.
    pub fn is_new(&self, spots: &[Spot]) -> bool {
        spots.iter().any(|(descriptor, name)| {
            let path = self.next.get(descriptor).map(|watched| &watched.path);
            let known = |old: &&Watched| (old.all || old.names.contains(name)) && Some(&old.path) == path;
            self.watched.get(descriptor).filter(known).is_none()
        })
    }

    /// Whether a writer is at work at one of `spots`.
    pub fn is_writing(&self, spots: &[Spot]) -> bool {
        spots.iter().any(|spot| self.writing.contains(spot))
    }

    /// Ends a scan: what was not asked for again is no longer watched.
    pub fn settle(&mut self) {
        let old = std::mem::replace(&mut self.watched, std::mem::take(&mut self.next));
        self.next_by_path.clear();
        for descriptor in old.into_keys().filter(|descriptor| !self.watched.contains_key(descriptor)) {
            // It fails for a folder that is gone, whose watch went with it.
            let _ = self.inotify.rm_watch(descriptor);
        }
        self.writing.retain(|(descriptor, _)| self.watched.contains_key(descriptor));
    }

    /// From here on [`Events::was_modified`] looks.
    pub fn forget_modified(&mut self) {
        self.modified.clear();
    }

    /// Whether a file at one of `spots` was written to since [`Events::forget_modified`], as far as drained.
    pub fn was_modified(&self, spots: &[Spot]) -> bool {
        spots.iter().any(|spot| self.modified.contains(spot))
    }

    /// Takes in what has happened until now.
    pub fn drain(&mut self) {
        for _ in 0..READS {
            match self.inotify.read_events() {
                Ok(events) => events.into_iter().for_each(|event| self.note(event)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(error) => {
                    tracing::warn!(%error, "can not read what inotify tells; looking at all files instead");
                    self.limit_hit = true;
                    return;
                }
            }
        }
        // There is more. A scan that is not needed does no harm, and it drains on.
        self.rescan = true;
    }

    fn note(&mut self, event: InotifyEvent) {
        let InotifyEvent { wd, mask, cookie, name } = event;
        let is = |flags: AddWatchFlags| mask.intersects(flags);
        if is(AddWatchFlags::IN_Q_OVERFLOW) {
            tracing::warn!("more happened to the files than inotify could hold; looking at all of them");
            self.writing.clear();
            self.rescan = true;
            return;
        }
        if is(AddWatchFlags::IN_IGNORED) {
            self.rescan |= self.watched.remove(&wd).is_some();
            return;
        }
        // A folder that the scan under way has just begun to watch is not yet in `watched`.
        let Some(watched) = self.next.get(&wd).or_else(|| self.watched.get(&wd)) else { return };
        let Some(name) = name else {
            self.rescan = true;
            return;
        };
        let named = watched.names.contains(&name);
        if !named && !watched.all {
            return;
        }
        let path = watched.path.join(&name);
        let spot = (wd, name);
        let folder = is(AddWatchFlags::IN_ISDIR);
        let file = !folder && (named || is_read(&path));
        if is(AddWatchFlags::IN_MODIFY) {
            if file {
                self.ready.remove(&spot);
                self.modified.insert(spot.clone());
                self.writing.insert(spot);
            }
            return;
        }
        if is(AddWatchFlags::IN_CLOSE_WRITE) {
            if file {
                self.writing.remove(&spot);
                self.ready.insert(spot);
                self.rescan = true;
            }
            return;
        }
        self.rescan = true;
        if is(AddWatchFlags::IN_MOVED_FROM) {
            let writing = self.writing.remove(&spot);
            self.ready.remove(&spot);
            self.moving.insert(cookie, (path, writing));
        } else if is(AddWatchFlags::IN_MOVED_TO) {
            let from = self.moving.remove(&cookie);
            let writing = from.as_ref().is_some_and(|(_, writing)| *writing);
            if let Some((from, _)) = from {
                self.moved.push((from, path));
            }
            if !folder {
                self.writing.remove(&spot);
                if writing && file {
                    self.writing.insert(spot);
                } else {
                    self.ready.insert(spot);
                }
            }
        } else if is(AddWatchFlags::IN_CREATE) {
            self.created.insert(spot);
        } else if is(AddWatchFlags::IN_DELETE) {
            self.writing.remove(&spot);
            self.ready.remove(&spot);
            self.created.remove(&spot);
        }
    }
}
