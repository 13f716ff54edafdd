//! A source that reads objects from the files of a folder, once or continuously.
//!
//! A change is read as soon as its writer has closed the file or a rename has put it in place, and never earlier: a
//! file that is still being written is left alone even if other files change. If the kernel does not report changes (on
//! network file systems, behind chains of links, or once the limit on inotify watches is reached), files are polled and
//! read after they have not changed for one second.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::inotify::{FileEvents, InotifyWatcher, WatchedName};
use super::loader::{Content, Loader, problem_at};
use super::scan::{self, FileStamp, Scan, parent, scan};
use super::{LocatedProblem, Origin, SourceEvent, yaml};
use crate::api::{Problem, expand_list};

/// How long a file must be unchanged before it is read, if no event shows that it is complete.
const SETTLE: Duration = Duration::from_secs(1);
/// How long a file must be absent before its objects are deleted. Some editors and tools remove or move a file right
/// before they rewrite it.
const ABSENCE: Duration = Duration::from_millis(100);
/// The interval between full scans while inotify works.
const IDLE: Duration = Duration::from_secs(10);
/// The interval between full scans without inotify.
const POLL: Duration = Duration::from_secs(1);

/// Why a folder cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It does not exist or cannot be listed.
    #[error("{}: {why}; expected a folder with YAML or JSON files, or one such file", .path.display())]
    Unreadable {
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Watching files failed.
    #[error("watching {}: {source}", .path.display())]
    Watch {
        /// The path as given.
        path: PathBuf,
        /// The system error.
        source: io::Error,
    },
}

/// Reads a file, or a folder recursively, once. The events end with [`SourceEvent::Synced`].
///
/// # Errors
/// The path does not exist or is a folder that cannot be listed. All other problems are reported as events.
pub fn load_once(path: &Path) -> Result<Vec<SourceEvent>, DirectoryError> {
    load_revision(path, None)
}

/// Like [`load_once`], for a control plane of this revision; see [`crate::api::in_revision`].
///
/// # Errors
/// Like [`load_once`].
pub(crate) fn load_revision(
    path: &Path,
    revision: Option<Arc<str>>,
) -> Result<Vec<SourceEvent>, DirectoryError> {
    let loader = Loader::of_revision(revision);
    DirectoryWatcher::new(path.to_owned(), loader, None).load(Instant::now())
}

/// The documents of a file or folder, of whatever kind, and the problems of the files that cannot be read.
pub(crate) type Documents = (Vec<(Origin, Value)>, Vec<LocatedProblem>);

/// Reads the documents of a file, or of a folder recursively, of whatever kind.
///
/// # Errors
/// The path does not exist or is a folder that cannot be listed.
pub(crate) fn documents(path: &Path) -> Result<Documents, DirectoryError> {
    let (files, mut problems) = files(path)?;
    let mut documents = Vec::new();
    for (file, bytes) in files {
        let path = Arc::new(file);
        match yaml::documents(&bytes) {
            Ok(list) => {
                for document in list {
                    let origin = Origin::File { path: path.clone(), line: document.line };
                    let members = expand_list(document.value).into_iter();
                    documents.extend(members.map(|(_, value)| (origin.clone(), value)));
                }
            }
            Err(error) => {
                let problem = Problem::new("", error.message, "");
                problems.push(problem_at(&path, error.line, problem));
            }
        }
    }
    Ok((documents, problems))
}

/// The contents of files, in the order of their names, and the problems of those that cannot be read.
pub(crate) type Files = (Vec<(PathBuf, Vec<u8>)>, Vec<LocatedProblem>);

/// Reads a file, or the YAML and JSON files of a folder recursively.
///
/// # Errors
/// The path does not exist or is a folder that cannot be listed.
pub(crate) fn files(path: &Path) -> Result<Files, DirectoryError> {
    let found = scan(path, &mut |_| ());
    if let Some(why) = found.unreadable.get(path) {
        return Err(DirectoryError::Unreadable { path: path.to_owned(), why: why.clone() });
    }
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    for file in found.files.into_keys() {
        match scan::read(&file) {
            Some((_, Content::Bytes(bytes))) => files.push((file, bytes)),
            Some((_, Content::Unreadable(why))) => {
                let origin = Origin::File { path: Arc::new(file), line: 1 };
                let problem = Problem::new("", why, "");
                problems.push(LocatedProblem { origin, problem });
            }
            Some((_, Content::Gone)) | None => {}
        }
    }
    Ok((files, problems))
}

/// Reads a file, or a folder recursively, and sends the result and [`SourceEvent::Synced`] as one batch, then another
/// batch whenever files change. For each number received over `scan_requests` it scans immediately and ends the batch with
/// [`SourceEvent::Barrier`]. Ends when the receiver is dropped; the future may be dropped at any time.
///
/// Objects stay active while the path itself is missing or cannot be listed.
///
/// # Errors
/// At startup the path does not exist or is a folder that cannot be listed, or watching fails without a fallback.
pub(crate) async fn watch(
    path: PathBuf,
    revision: Option<Arc<str>>,
    changes: mpsc::Sender<Vec<SourceEvent>>,
    mut scan_requests: mpsc::Receiver<u64>,
) -> Result<(), DirectoryError> {
    let (events, wakes) = match InotifyWatcher::new()
        .and_then(|(events, wakes)| Ok((events, register(wakes)?)))
    {
        Ok((events, wakes)) => (Some(events), Some(wakes)),
        Err(error) => {
            tracing::warn!(folder = %path.display(), %error, "inotify is unavailable; polling all files every second");
            (None, None)
        }
    };
    let watcher = DirectoryWatcher::new(path.clone(), Loader::of_revision(revision), events);
    let (mut watcher, batch) = blocking(watcher, |watcher| watcher.load(Instant::now()))
        .await
        .map_err(watch_error(&path))?;
    let mut batch = batch?;
    let mut asked = true;
    loop {
        if !batch.is_empty() && changes.send(batch).await.is_err() {
            return Ok(());
        }
        let mut barrier = scan_requests.try_recv().ok();
        if barrier.is_none() && !watcher.needs_scan() {
            tokio::select! {
                () = changes.closed() => return Ok(()),
                woken = readable(wakes.as_ref()) => woken.map_err(watch_error(&path))?,
                () = tokio::time::sleep_until(watcher.deadline.into()) => {}
                number = scan_requests.recv(), if asked => {
                    barrier = number;
                    asked = number.is_some();
                }
            }
        }
        (watcher, batch) = blocking(watcher, |watcher| watcher.rescan(Instant::now()))
            .await
            .map_err(watch_error(&path))?;
        batch.extend(barrier.map(SourceEvent::Barrier));
    }
}

fn watch_error(path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    move |source| DirectoryError::Watch { path: path.to_owned(), source }
}

/// Registers a descriptor with the runtime.
// Tokio's own constructor is unsafe because a type may close its descriptor while it is being polled. An `OwnedFd`
// never does.
#[allow(deprecated)]
fn register(wakes: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(wakes, Interest::READABLE)
}

async fn readable(wakes: Option<&AsyncFd<OwnedFd>>) -> io::Result<()> {
    match wakes {
        Some(wakes) => {
            // The caller drains the events, so readiness can be cleared.
            wakes.readable().await?.clear_ready();
            Ok(())
        }
        None => std::future::pending().await,
    }
}

/// Runs `work` on a blocking thread. If the future is dropped, the work still finishes by itself.
async fn blocking<T: Send + 'static>(
    mut watcher: DirectoryWatcher,
    work: impl FnOnce(&mut DirectoryWatcher) -> T + Send + 'static,
) -> io::Result<(DirectoryWatcher, T)> {
    tokio::task::spawn_blocking(move || {
        let result = work(&mut watcher);
        (watcher, result)
    })
    .await
    .map_err(io::Error::other)
}

/// The state of a file after the last scans.
#[derive(Debug, Default)]
struct FileState {
    /// Its stamp when it was last read.
    read: Option<FileStamp>,
    /// Why it could not be read.
    bad: Option<String>,
    /// A newer stamp that may be incomplete, and when it was first seen.
    waiting: Option<(FileStamp, Instant)>,
    /// When it was first missing.
    absent: Option<Instant>,
}

impl FileState {
    /// Whether the file has been read with this stamp.
    fn is_unchanged(&self, stamp: FileStamp) -> bool {
        self.read == Some(stamp) && self.bad.is_none()
    }

    /// Whether the file has not changed for [`SETTLE`] since its last change. If it has to wait, `next` is moved to the
    /// end of the wait.
    fn has_settled(&mut self, stamp: FileStamp, now: Instant, next: &mut Instant) -> bool {
        if self.is_unchanged(stamp) {
            self.waiting = None;
            return false;
        }
        let since = match self.waiting {
            Some((seen, since)) if seen == stamp => since,
            _ => now,
        };
        self.waiting = Some((stamp, since));
        *next = (*next).min(since + SETTLE);
        now >= since + SETTLE
    }
}

/// Tracks the files at a path.
#[derive(Debug)]
struct DirectoryWatcher {
    root: PathBuf,
    loader: Loader,
    known: BTreeMap<PathBuf, FileState>,
    unreadable: BTreeMap<PathBuf, String>,
    events: Option<InotifyWatcher>,
    warned: bool,
    /// When to scan again even without events.
    deadline: Instant,
}

impl DirectoryWatcher {
    fn new(root: PathBuf, loader: Loader, events: Option<InotifyWatcher>) -> Self {
        Self {
            root,
            loader,
            known: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            events,
            warned: false,
            deadline: Instant::now(),
        }
    }

    /// The initial scan: reads everything.
    fn load(&mut self, now: Instant) -> Result<Vec<SourceEvent>, DirectoryError> {
        let (scan, file_events) = self.scan();
        if let Some(why) = scan.unreadable.get(&self.root) {
            return Err(DirectoryError::Unreadable { path: self.root.clone(), why: why.clone() });
        }
        let mut changes = self.apply_scan(scan, &file_events, true, now);
        changes.push(SourceEvent::Synced);
        Ok(changes)
    }

    /// Reads what changed since the last scan. `now` must not go backwards.
    fn rescan(&mut self, now: Instant) -> Vec<SourceEvent> {
        if let Some(events) = &mut self.events {
            events.drain();
        }
        if !self.needs_scan() && now < self.deadline {
            return Vec::new();
        }
        let (scan, file_events) = self.scan();
        self.apply_scan(scan, &file_events, false, now)
    }

    fn needs_scan(&self) -> bool {
        self.events.as_ref().is_some_and(InotifyWatcher::needs_scan)
    }

    fn scan(&mut self) -> (Scan, FileEvents) {
        let Some(events) = &mut self.events else {
            return (scan(&self.root, &mut |_| {}), FileEvents::default());
        };
        let file_events = events.begin_scan();
        // The root may be created, removed or replaced like any file in it. If its parent folder is missing as well,
        // its creation is watched instead.
        let mut highest = self.root.clone();
        while highest.file_name().is_some() {
            events.watch_name(&highest);
            let folder = parent(&highest);
            if folder.exists() {
                break;
            }
            highest = folder;
        }
        let scan = scan(&self.root, &mut |folder| events.watch_folder(folder));
        scan.files
            .values()
            .filter_map(|found| found.target.as_deref())
            .for_each(|target| events.watch_name(target));
        (scan, file_events)
    }

    /// Reads the files in `scan` that are new and complete.
    fn apply_scan(
        &mut self,
        scan: Scan,
        file_events: &FileEvents,
        first: bool,
        now: Instant,
    ) -> Vec<SourceEvent> {
        let mut next = now + IDLE;
        let mut updates = self.unlistable_folders(&scan);
        let mut to_read: Vec<(PathBuf, FileStamp, Vec<WatchedName>)> = Vec::new();
        for (path, found) in &scan.files {
            let known = self.known.entry(path.clone()).or_default();
            known.absent = None;
            let stamp = match &found.stamp {
                Ok(stamp) => *stamp,
                Err(why) => {
                    if known.bad.as_ref() != Some(why) {
                        updates.push((path.clone(), Content::Unreadable(why.clone())));
                        *known = FileState { bad: Some(why.clone()), ..FileState::default() };
                    }
                    continue;
                }
            };
            let events = self.events.as_ref();
            let watched_names =
                events.map_or_else(Vec::new, |events| events.watched_names(path, found));
            if events.is_some_and(|events| events.is_writing(&watched_names)) {
                known.waiting = None;
                continue;
            }
            let fresh = !known.is_unchanged(stamp)
                && events.is_some_and(|events| events.is_new(&watched_names));
            if first
                || fresh
                || file_events.is_ready(&watched_names, found)
                || known.has_settled(stamp, now, &mut next)
            {
                to_read.push((path.clone(), stamp, watched_names));
            }
        }
        if let Some(events) = &mut self.events {
            events.end_scan();
        }
        // `to_read` is sorted by path, like `scan.files`.
        let deleted = self.deleted_files(&scan, now, &mut next, |path| {
            let to = file_events.moved_to(path);
            to.is_some_and(|to| to_read.binary_search_by(|(path, ..)| path.cmp(&to)).is_ok())
        });
        updates.extend(deleted);
        let (known, events) = (&mut self.known, &mut self.events);
        let read = to_read.into_iter().filter_map(|(path, stamp, watched_names)| {
            read_stable(path, stamp, &watched_names, known, events)
        });
        let changes = self.loader.update(updates.into_iter().chain(read));
        self.deadline = if self.must_poll() { next.min(now + POLL) } else { next };
        changes
    }

    /// Whether some files are not watched. Warns once if the limit of watches is the cause.
    fn must_poll(&mut self) -> bool {
        let limit_hit = self.events.as_ref().is_some_and(InotifyWatcher::limit_hit);
        if limit_hit && !self.warned {
            self.warned = true;
            let folder = self.root.display();
            tracing::warn!(%folder, "the limit of inotify watches is reached; polling all files every second");
        }
        limit_hit || self.events.is_none()
    }

    /// Reports changes among folders that cannot be listed.
    fn unlistable_folders(&mut self, scan: &Scan) -> Vec<(PathBuf, Content)> {
        let old = std::mem::replace(&mut self.unreadable, scan.unreadable.clone());
        let mut updates = Vec::new();
        for path in old.keys().filter(|path| !scan.unreadable.contains_key(*path)) {
            if scan.files.contains_key(path) {
                // The root is a file: reading it again clears the problem.
                self.known.remove(path);
            } else {
                updates.push((path.clone(), Content::Gone));
            }
        }
        let new = scan.unreadable.iter().filter(|(path, why)| old.get(*path) != Some(why));
        updates.extend(new.map(|(path, why)| (path.clone(), Content::Unreadable(why.clone()))));
        updates
    }

    /// The files that are deleted. Files that `moved` elsewhere are deleted immediately. Files in a folder that cannot
    /// be listed are kept, because they may still exist.
    fn deleted_files(
        &mut self,
        scan: &Scan,
        now: Instant,
        next: &mut Instant,
        moved: impl Fn(&Path) -> bool,
    ) -> Vec<(PathBuf, Content)> {
        let mut deleted_files = Vec::new();
        self.known.retain(|path, known| {
            if scan.files.contains_key(path)
                || scan.unreadable.keys().any(|folder| path.starts_with(folder))
            {
                return true;
            }
            let since = *known.absent.get_or_insert(now);
            if now < since + ABSENCE && !moved(path) {
                *next = (*next).min(since + ABSENCE);
                return true;
            }
            deleted_files.push((path.clone(), Content::Gone));
            false
        });
        deleted_files
    }
}

/// Reads a file. `None` if it was removed or written to in the meantime; it is then checked again later.
fn read_stable(
    path: PathBuf,
    stamp: FileStamp,
    watched_names: &[WatchedName],
    known: &mut BTreeMap<PathBuf, FileState>,
    events: &mut Option<InotifyWatcher>,
) -> Option<(PathBuf, Content)> {
    if let Some(events) = events {
        events.reset_modified();
    }
    let (read, content) = scan::read(&path)?;
    if let Some(events) = events {
        events.drain();
        if events.was_modified(watched_names) {
            return None;
        }
    }
    let known = known.entry(path.clone()).or_default();
    *known = FileState { read: Some(read.unwrap_or(stamp)), ..FileState::default() };
    Some((path, content))
}

#[cfg(test)]
mod tests;
