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
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::SourceEvent;
use super::inotify::{FileEvents, InotifyWatcher, WatchedName};
use super::loader::{Content, Loader};
use super::scan::{self, FileStamp, Scan, parent, scan};

/// How long a file must be unchanged before it is read, if no event says that it is complete.
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
    DirectoryWatcher::new(path.to_owned(), None).load(Instant::now())
}

/// Reads a file, or a folder recursively, and sends the result and [`SourceEvent::Synced`] as one batch, then another
/// batch whenever files change. For each number received over `looks` it scans immediately and ends the batch with
/// [`SourceEvent::Barrier`]. Ends when the receiver is dropped; the future may be dropped at any time.
///
/// Objects stay active while the path itself is missing or cannot be listed.
///
/// # Errors
/// At startup the path does not exist or is a folder that cannot be listed, or watching fails without a fallback.
pub async fn watch(
    path: PathBuf,
    changes: mpsc::Sender<Vec<SourceEvent>>,
    mut scan_requests: mpsc::Receiver<u64>,
) -> Result<(), DirectoryError> {
    let failed = |source: io::Error| DirectoryError::Watch { path: path.clone(), source };
    let (events, wakes) = match InotifyWatcher::new()
        .and_then(|(events, wakes)| Ok((events, register(wakes)?)))
    {
        Ok((events, wakes)) => (Some(events), Some(wakes)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "inotify is unavailable; polling all files every second");
            (None, None)
        }
    };
    let watcher = DirectoryWatcher::new(path.clone(), events);
    let (mut watcher, batch) =
        blocking(watcher, |watcher| watcher.load(Instant::now())).await.map_err(failed)?;
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
                woken = readable(wakes.as_ref()) => woken.map_err(failed)?,
                () = tokio::time::sleep_until(watcher.deadline.into()) => {}
                number = scan_requests.recv(), if asked => {
                    barrier = number;
                    asked = number.is_some();
                }
            }
        }
        (watcher, batch) =
            blocking(watcher, |watcher| watcher.rescan(Instant::now())).await.map_err(failed)?;
        batch.extend(barrier.map(SourceEvent::Barrier));
    }
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
    fn new(root: PathBuf, events: Option<InotifyWatcher>) -> Self {
        Self {
            root,
            loader: Loader::new(),
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
            let unchanged = known.read == Some(stamp) && known.bad.is_none();
            let fresh = !unchanged && events.is_some_and(|events| events.is_new(&watched_names));
            let settled = match known.waiting {
                _ if first || fresh || file_events.is_ready(&watched_names, found) => true,
                _ if unchanged => {
                    known.waiting = None;
                    false
                }
                Some((seen, since)) if seen == stamp => {
                    next = next.min(since + SETTLE);
                    now >= since + SETTLE
                }
                _ => {
                    known.waiting = Some((stamp, now));
                    next = next.min(now + SETTLE);
                    false
                }
            };
            if settled {
                to_read.push((path.clone(), stamp, watched_names));
            }
        }
        if let Some(events) = &mut self.events {
            events.end_scan();
        }
        // `to_read` is sorted by path, like `scan.files`.
        let moved = |path: &Path| {
            let to = file_events.moved_to(path);
            to.is_some_and(|to| to_read.binary_search_by(|(path, ..)| path.cmp(&to)).is_ok())
        };
        updates.extend(self.deleted_files(&scan, moved, now, &mut next));
        let (known, events) = (&mut self.known, &mut self.events);
        let read = to_read.into_iter().filter_map(|(path, stamp, watched_names)| {
            read_stable(path, stamp, &watched_names, known, events)
        });
        let changes = self.loader.update(updates.into_iter().chain(read));
        let blind = self.events.as_ref().is_none_or(InotifyWatcher::limit_hit);
        if blind && self.events.is_some() && !self.warned {
            self.warned = true;
            let path = self.root.display();
            tracing::warn!(%path, "the limit of inotify watches is reached; polling all files every second");
        }
        self.deadline = if blind { next.min(now + POLL) } else { next };
        changes
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

    /// The files that are deleted. Files that `moved` elsewhere count immediately; files in a folder that cannot be
    /// listed may still exist.
    fn deleted_files(
        &mut self,
        scan: &Scan,
        moved: impl Fn(&Path) -> bool,
        now: Instant,
        next: &mut Instant,
    ) -> Vec<(PathBuf, Content)> {
        let hidden = |path: &Path| scan.unreadable.keys().any(|folder| path.starts_with(folder));
        let mut deleted_files = Vec::new();
        self.known.retain(|path, known| {
            if scan.files.contains_key(path) || hidden(path) {
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
mod tests {
    use super::*;
    use crate::api::{Kind, Spec};
    use crate::store::Store;
    use std::collections::BTreeSet;
    use std::fs::{self, File, Permissions};
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn rule(name: &str, host: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec:\n  \
             hosts: [{host}]\n  http: [{{route: [{{destination: {{host: {host}}}}}]}}]\n"
        )
    }

    /// The active VirtualServices by name and host, like `a=one b=two`.
    fn active(store: &Store) -> String {
        let shown = store.all(Kind::VirtualService).map(|entry| match &entry.object.spec {
            Spec::VirtualService(spec) => {
                format!("{}={}", entry.object.meta.name, spec.hosts[0])
            }
            other => panic!("{other:?}"),
        });
        shown.collect::<Vec<_>>().join(" ")
    }

    /// A folder, its watcher, and a clock that advances only on request. The kernel queues events before the causing
    /// call returns, so tests need not wait.
    struct Fixture {
        dir: tempfile::TempDir,
        watcher: DirectoryWatcher,
        store: Store,
        now: Instant,
        /// All deletions so far.
        deleted: Vec<String>,
    }

    impl Fixture {
        fn new(files: &[(&str, &str)]) -> Self {
            Self::with(files, Some(InotifyWatcher::new().unwrap().0), "conf")
        }

        fn with(files: &[(&str, &str)], events: Option<InotifyWatcher>, root: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("conf")).unwrap();
            let watcher = DirectoryWatcher::new(dir.path().join(root), events);
            let store = Store::default();
            let mut fixture =
                Self { dir, watcher, store, now: Instant::now(), deleted: Vec::new() };
            files.iter().for_each(|(name, text)| fixture.write(name, text));
            let changes = fixture.watcher.load(fixture.now).unwrap();
            fixture.apply(changes);
            assert!(fixture.store.synced());
            fixture
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join("conf").join(name)
        }

        fn write(&self, name: &str, text: impl AsRef<[u8]>) {
            fs::write(self.path(name), text).unwrap();
        }

        fn rename(&self, from: &str, to: &str) {
            fs::rename(self.path(from), self.path(to)).unwrap();
        }

        fn apply(&mut self, changes: Vec<SourceEvent>) {
            for change in changes {
                if let SourceEvent::Delete(key) = &change {
                    self.deleted.push(key.name.to_string());
                }
                self.store.apply(change, &mut BTreeSet::new());
            }
        }

        /// Scans until nothing is left to do at this time and returns the active objects.
        fn rescan(&mut self) -> String {
            loop {
                let changes = self.watcher.rescan(self.now);
                self.apply(changes);
                if !self.watcher.needs_scan() {
                    return active(&self.store);
                }
            }
        }

        fn after(&mut self, time: Duration) -> String {
            self.now += time;
            self.rescan()
        }

        fn source_problems(&self) -> Vec<String> {
            self.store
                .source_problems()
                .flat_map(|(_, problems)| problems)
                .map(ToString::to_string)
                .collect()
        }
    }

    #[test]
    fn a_file_that_is_being_written_is_left_alone() {
        let mut fixture =
            Fixture::new(&[("a.yaml", &rule("a", "one")), ("b.yaml", &rule("b", "one"))]);
        let mut file = File::create(fixture.path("a.yaml")).unwrap();
        assert_eq!(fixture.rescan(), "a=one b=one");
        // Each part is valid on its own.
        file.write_all(rule("x", "two").as_bytes()).unwrap();
        fixture.write("b.yaml", rule("b", "two"));
        assert_eq!(fixture.rescan(), "a=one b=two");
        assert_eq!(fixture.after(IDLE * 3), "a=one b=two");
        file.write_all(format!("---\n{}", rule("a", "two")).as_bytes()).unwrap();
        assert_eq!(fixture.rescan(), "a=one b=two");
        drop(file);
        assert_eq!(fixture.rescan(), "a=two b=two x=two");
        assert!(fixture.source_problems().is_empty() && fixture.deleted.is_empty());
    }

    #[test]
    fn a_new_file_is_read_when_its_writer_closes_it() {
        let mut fixture = Fixture::new(&[]);
        let mut file = File::create(fixture.path("a.yaml")).unwrap();
        assert_eq!(fixture.rescan(), "");
        file.write_all(rule("a", "one").as_bytes()).unwrap();
        fixture.write("b.yaml", rule("b", "one"));
        assert_eq!(fixture.rescan(), "b=one");
        file.write_all(format!("---\n{}", rule("c", "one")).as_bytes()).unwrap();
        drop(file);
        assert_eq!(fixture.rescan(), "a=one b=one c=one");
        assert!(fixture.source_problems().is_empty());
    }

    #[test]
    fn two_writes_of_the_same_length_in_no_time_are_both_seen() {
        let mut fixture = Fixture::new(&[("a.yaml", &rule("a", "h00"))]);
        for n in 1..50 {
            fixture.write("a.yaml", rule("a", &format!("h{n:02}")));
            assert_eq!(fixture.rescan(), format!("a=h{n:02}"));
        }
    }

    #[test]
    fn a_rename_takes_effect_immediately() {
        let mut fixture = Fixture::new(&[("a.yaml", &rule("a", "one"))]);
        fixture.write("a.yaml.tmp", rule("a", "two"));
        assert_eq!(fixture.rescan(), "a=one");
        fixture.rename("a.yaml.tmp", "a.yaml");
        assert_eq!(fixture.rescan(), "a=two");
        fixture.rename("a.yaml", "b.yaml");
        assert_eq!(fixture.rescan(), "a=two");
        assert!(fixture.deleted.is_empty() && fixture.source_problems().is_empty());
        assert!(fixture.watcher.known.keys().eq([&fixture.path("b.yaml")]));
    }

    #[test]
    fn a_file_that_moves_while_it_is_written_is_read_when_it_is_closed() {
        let mut fixture = Fixture::new(&[]);
        let mut file = File::create(fixture.path("a.yaml")).unwrap();
        file.write_all(rule("a", "one").as_bytes()).unwrap();
        fixture.rename("a.yaml", "b.yaml");
        assert_eq!(fixture.rescan(), "");
        file.write_all(format!("---\n{}", rule("b", "one")).as_bytes()).unwrap();
        drop(file);
        assert_eq!(fixture.rescan(), "a=one b=one");
    }

    #[test]
    fn an_editor_that_moves_the_old_file_aside_deletes_nothing() {
        let mut fixture = Fixture::new(&[("a.yaml", &rule("a", "one"))]);
        fixture.rename("a.yaml", "a.yaml~");
        assert_eq!(fixture.rescan(), "a=one");
        let mut file = File::create(fixture.path("a.yaml")).unwrap();
        assert_eq!(fixture.rescan(), "a=one");
        file.write_all(rule("a", "two").as_bytes()).unwrap();
        assert_eq!(fixture.after(IDLE), "a=one");
        drop(file);
        fs::remove_file(fixture.path("a.yaml~")).unwrap();
        assert_eq!(fixture.rescan(), "a=two");
        assert!(fixture.deleted.is_empty());
    }

    #[test]
    fn a_file_that_stays_away_is_deleted() {
        let mut fixture =
            Fixture::new(&[("a.yaml", &rule("a", "one")), ("b.yaml", &rule("b", "one"))]);
        fs::remove_file(fixture.path("a.yaml")).unwrap();
        assert_eq!(fixture.rescan(), "a=one b=one");
        assert!(fixture.watcher.deadline <= fixture.now + ABSENCE);
        assert_eq!(fixture.after(ABSENCE), "b=one");
        fixture.rename("b.yaml", "b.disabled");
        fixture.rescan();
        assert_eq!(fixture.after(ABSENCE), "");
        fixture.rename("b.disabled", "b.yaml");
        assert_eq!(fixture.rescan(), "b=one");
    }

    #[test]
    fn an_emptied_file_deletes_nothing() {
        let mut fixture = Fixture::new(&[("a.yaml", &rule("a", "one"))]);
        fixture.write("a.yaml", "");
        assert_eq!(fixture.rescan(), "a=one");
        assert!(
            fixture.source_problems()[0].contains("is empty"),
            "{:?}",
            fixture.source_problems()
        );
        fixture.write("a.yaml", rule("a", "two"));
        assert_eq!(fixture.rescan(), "a=two");
        assert!(fixture.source_problems().is_empty());
    }

    #[test]
    fn a_mounted_configmap_is_exchanged_as_one() {
        let dir = |fixture: &Fixture, version: &str, files: &[(&str, String)]| {
            fs::create_dir_all(fixture.path(version).join("sub")).unwrap();
            files.iter().for_each(|(name, text)| fixture.write(&format!("{version}/{name}"), text));
            symlink(version, fixture.path("..data_tmp")).unwrap();
            fixture.rename("..data_tmp", "..data");
        };
        let mut fixture = Fixture::new(&[]);
        dir(
            &fixture,
            "..2024_1",
            &[
                ("a.yaml", rule("a", "one")),
                ("b.yaml", rule("b", "one")),
                ("sub/c.yaml", rule("c", "one")),
            ],
        );
        for name in ["a.yaml", "b.yaml", "sub"] {
            symlink(format!("..data/{name}"), fixture.path(name)).unwrap();
        }
        assert_eq!(fixture.rescan(), "a=one b=one c=one");
        dir(
            &fixture,
            "..2024_2",
            &[
                ("a.yaml", rule("a", "two")),
                ("b.yaml", rule("b", "two")),
                ("sub/c.yaml", rule("c", "two")),
            ],
        );
        let changes = fixture.watcher.rescan(fixture.now);
        assert_eq!(
            changes.iter().filter(|change| matches!(change, SourceEvent::Apply { .. })).count(),
            3,
            "{changes:?}"
        );
        fixture.apply(changes);
        fs::remove_dir_all(fixture.path("..2024_1")).unwrap();
        assert_eq!(fixture.rescan(), "a=two b=two c=two");
        // The link of a removed key remains for a moment.
        dir(
            &fixture,
            "..2024_3",
            &[("a.yaml", rule("a", "one")), ("sub/c.yaml", rule("c", "one"))],
        );
        assert_eq!(fixture.rescan(), "a=one b=two c=one");
        fs::remove_file(fixture.path("b.yaml")).unwrap();
        fixture.rescan();
        assert_eq!(fixture.after(ABSENCE), "a=one c=one");
        assert_eq!((fixture.deleted.len(), fixture.source_problems().len()), (1, 0));
    }

    #[test]
    fn folders_come_move_and_go() {
        let mut fixture = Fixture::new(&[("a.yaml", &rule("a", "one"))]);
        fs::create_dir_all(fixture.path("sub/deep")).unwrap();
        fixture.write("sub/deep/b.yaml", rule("b", "one"));
        assert_eq!(fixture.rescan(), "a=one b=one");
        fixture.write("sub/deep/b.yaml", rule("b", "two"));
        assert_eq!(fixture.rescan(), "a=one b=two");
        fixture.rename("sub", "other");
        assert_eq!(fixture.rescan(), "a=one b=two");
        assert!(fixture.deleted.is_empty() && fixture.source_problems().is_empty());
        fixture.write("other/deep/b.yaml", rule("b", "three"));
        assert_eq!(fixture.rescan(), "a=one b=three");
        fs::remove_dir_all(fixture.path("other")).unwrap();
        fixture.rescan();
        assert_eq!(fixture.after(ABSENCE), "a=one");
        fs::create_dir(fixture.path("other")).unwrap();
        fixture.rescan();
        fixture.write("other/c.yaml", rule("c", "one"));
        assert_eq!(fixture.rescan(), "a=one c=one");
    }

    #[test]
    fn the_folder_itself_may_go_and_come_back() {
        let mut fixture =
            Fixture::new(&[("a.yaml", &rule("a", "one")), ("b.yaml", &rule("b", "one"))]);
        let conf = fixture.dir.path().join("conf");
        fs::rename(&conf, fixture.dir.path().join("old")).unwrap();
        fixture.rescan();
        assert_eq!(fixture.after(IDLE), "a=one b=one");
        assert!(
            fixture.source_problems()[0].contains(
                "conf:1: does not exist; a running weir \
            keeps"
            ),
            "{:?}",
            fixture.source_problems()
        );
        fs::create_dir(&conf).unwrap();
        fixture.write("a.yaml", rule("a", "two"));
        fixture.rescan();
        assert_eq!(fixture.after(ABSENCE), "a=two");
        assert!(fixture.source_problems().is_empty());
        fixture.write("a.yaml", rule("a", "three"));
        assert_eq!(fixture.rescan(), "a=three");
        fs::remove_dir_all(&conf).unwrap();
        fixture.rescan();
        fs::create_dir(&conf).unwrap();
        fixture.write("a.yaml", rule("a", "four"));
        assert_eq!(fixture.rescan(), "a=four");
    }

    #[test]
    fn the_folder_may_be_a_link_that_is_exchanged() {
        let mut fixture = Fixture::with(
            &[("a.yaml", &rule("a", "one"))],
            Some(InotifyWatcher::new().unwrap().0),
            "conf",
        );
        fs::rename(fixture.dir.path().join("conf"), fixture.dir.path().join("v1")).unwrap();
        symlink("v1", fixture.dir.path().join("conf")).unwrap();
        assert_eq!(fixture.rescan(), "a=one");
        fs::create_dir(fixture.dir.path().join("v2")).unwrap();
        fs::write(fixture.dir.path().join("v2/a.yaml"), rule("a", "two")).unwrap();
        symlink("v2", fixture.dir.path().join("next")).unwrap();
        fs::rename(fixture.dir.path().join("next"), fixture.dir.path().join("conf")).unwrap();
        assert_eq!(fixture.rescan(), "a=two");
    }

    #[test]
    fn a_single_file_can_be_watched() {
        let mut fixture = Fixture::with(
            &[("rules", &rule("a", "one"))],
            Some(InotifyWatcher::new().unwrap().0),
            "conf/rules",
        );
        assert_eq!(fixture.rescan(), "a=one");
        fixture.write("rules", rule("a", "two"));
        assert_eq!(fixture.rescan(), "a=two");
        fs::remove_file(fixture.path("rules")).unwrap();
        fixture.rescan();
        assert_eq!((fixture.after(IDLE).as_str(), fixture.source_problems().len()), ("a=two", 1));
        let mut file = File::create(fixture.path("rules")).unwrap();
        assert_eq!(fixture.rescan(), "a=two");
        file.write_all(rule("a", "three").as_bytes()).unwrap();
        drop(file);
        assert_eq!(fixture.rescan(), "a=three");
        assert!(fixture.deleted.is_empty() && fixture.source_problems().is_empty());
    }

    #[test]
    fn links_to_files_elsewhere_are_followed() {
        let mut fixture = Fixture::new(&[]);
        let target = fixture.dir.path().join("elsewhere.yaml");
        fs::write(&target, rule("a", "one")).unwrap();
        symlink(&target, fixture.path("a.yaml")).unwrap();
        assert_eq!(fixture.rescan(), "a=one");
        let mut file = File::create(&target).unwrap();
        fixture.write("b.yaml", rule("b", "one"));
        assert_eq!(fixture.rescan(), "a=one b=one");
        file.write_all(rule("a", "two").as_bytes()).unwrap();
        drop(file);
        assert_eq!(fixture.rescan(), "a=two b=one");
        fs::hard_link(&target, fixture.path("c.yaml")).unwrap();
        fixture.rescan();
        assert!(
            fixture.source_problems()[0].contains(
                "c.yaml:1: VirtualService default/a is already defined \
            at"
            ),
            "{:?}",
            fixture.source_problems()
        );
    }

    #[test]
    fn an_unreadable_file_keeps_its_objects() {
        let mut fixture = Fixture::new(&[("a.yaml", &rule("a", "one"))]);
        fs::remove_file(fixture.path("a.yaml")).unwrap();
        symlink("nowhere", fixture.path("a.yaml")).unwrap();
        fixture.rescan();
        assert_eq!(fixture.after(IDLE), "a=one");
        assert!(
            fixture.source_problems()[0].contains(
                "a.yaml:1: is a broken \
            link"
            ),
            "{:?}",
            fixture.source_problems()
        );
        fs::remove_file(fixture.path("a.yaml")).unwrap();
        fixture.write("a.yaml", rule("a", "two"));
        assert_eq!(fixture.rescan(), "a=two");
        // Permissions do not apply to root, so there is nothing to test.
        fs::set_permissions(fixture.path("a.yaml"), Permissions::from_mode(0o000)).unwrap();
        if File::open(fixture.path("a.yaml")).is_err() {
            fixture.rescan();
            assert_eq!(fixture.after(SETTLE), "a=two");
            assert!(
                fixture.source_problems()[0].contains("cannot be read"),
                "{:?}",
                fixture.source_problems()
            );
        }
    }

    #[test]
    fn without_inotify_files_are_read_when_they_have_settled() {
        let mut fixture = Fixture::with(&[("a.yaml", &rule("a", "one"))], None, "conf");
        fixture.write("a.yaml", rule("a", "twoo"));
        assert_eq!(fixture.after(POLL), "a=one");
        fixture.write("a.yaml", rule("a", "three"));
        assert_eq!(fixture.after(POLL), "a=one", "it changed between two looks");
        assert_eq!(fixture.after(SETTLE), "a=three");
        fs::remove_file(fixture.path("a.yaml")).unwrap();
        assert_eq!(fixture.after(POLL), "a=three");
        assert_eq!(fixture.after(POLL), "");
    }

    #[test]
    fn a_folder_is_loaded_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), rule("a", "one")).unwrap();
        fs::write(dir.path().join("b.yaml"), "x: [").unwrap();
        let changes = load_once(dir.path()).unwrap();
        assert!(
            matches!(
                changes.as_slice(),
                [
                    SourceEvent::Apply { .. },
                    SourceEvent::SourceProblems { .. },
                    SourceEvent::Synced
                ]
            ),
            "{changes:?}"
        );
        assert_eq!(load_once(&dir.path().join("a.yaml")).unwrap().len(), 2);
        let error = load_once(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none: does not exist; expected a folder"), "{error}");
    }

    /// A folder watched as by `weir serve`.
    struct Live {
        changes: mpsc::Receiver<Vec<SourceEvent>>,
        task: tokio::task::JoinHandle<Result<(), DirectoryError>>,
        store: Store,
    }

    impl Live {
        fn start(root: &Path) -> Self {
            let (sender, changes) = mpsc::channel(1);
            let task = tokio::spawn(watch(root.to_owned(), sender, mpsc::channel(1).1));
            Self { changes, task, store: Store::default() }
        }

        async fn until(&mut self, what: &str) {
            while !self.store.synced() || active(&self.store) != what {
                let batch =
                    tokio::time::timeout(Duration::from_secs(60), self.changes.recv()).await;
                for change in batch
                    .unwrap_or_else(|_| panic!("{} is not {what}", active(&self.store)))
                    .unwrap()
                {
                    self.store.apply(change, &mut BTreeSet::new());
                }
            }
        }
    }

    #[tokio::test]
    async fn changes_arrive_while_watching() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("conf");
        fs::create_dir(&conf).unwrap();
        fs::write(conf.join("a.yaml"), rule("a", "one")).unwrap();
        let mut live = Live::start(&conf);
        live.until("a=one").await;
        let mut file = File::create(conf.join("a.yaml")).unwrap();
        for part in rule("a", "two").as_bytes().chunks(40) {
            file.write_all(part).unwrap();
            tokio::task::yield_now().await;
        }
        drop(file);
        live.until("a=two").await;
        fs::write(conf.join("a.tmp"), rule("a", "three")).unwrap();
        fs::rename(conf.join("a.tmp"), conf.join("a.yaml")).unwrap();
        live.until("a=three").await;
        fs::create_dir(conf.join("sub")).unwrap();
        fs::write(conf.join("sub/b.yaml"), rule("b", "one")).unwrap();
        live.until("a=three b=one").await;
        fs::remove_file(conf.join("a.yaml")).unwrap();
        live.until("b=one").await;
        fs::remove_dir_all(&conf).unwrap();
        fs::create_dir(&conf).unwrap();
        fs::write(conf.join("c.yaml"), rule("c", "one")).unwrap();
        live.until("c=one").await;
        assert_eq!(live.store.source_problems().count(), 0);
        drop(live.changes);
        tokio::time::timeout(Duration::from_secs(60), live.task).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_at_the_start_is_an_error() {
        let (sender, _changes) = mpsc::channel(1);
        let error = watch(PathBuf::from("/nonexistent/conf"), sender, mpsc::channel(1).1)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("/nonexistent/conf: does not exist"), "{error}");
    }

    #[tokio::test]
    async fn many_files_written_at_once_all_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let mut live = Live::start(dir.path());
        live.until("").await;
        let path = dir.path().to_owned();
        let writer = tokio::task::spawn_blocking(move || {
            for n in 0..300 {
                fs::create_dir_all(path.join(format!("d{}", n % 20))).unwrap();
                fs::write(
                    path.join(format!("d{}/{n}.yaml", n % 20)),
                    rule(&format!("n{n:03}"), "h"),
                )
                .unwrap();
            }
        });
        let all: Vec<_> = (0..300).map(|n| format!("n{n:03}=h")).collect();
        live.until(&all.join(" ")).await;
        writer.await.unwrap();
    }
}
