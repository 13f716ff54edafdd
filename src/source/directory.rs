//! The source that reads objects from the files of a folder, once or for as long as they change.
//!
//! A change is taken in as soon as a writer has closed the file or a rename has put it in place, and never before: a
//! file that is being written is left alone even if others around it change. Files whose changes the kernel does not
//! tell (on network file systems, behind links to links, or where the limit of inotify watches is reached) are looked
//! at from time to time and taken in once they have been the same for a second.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::Change;
use super::inotify::{Events, Happened, Spot};
use super::loader::{Content, Loader};
use super::scan::{self, Scan, Stamp, parent, scan};

/// How long a file must stay the same before it is read, where nothing tells that it is complete.
const SETTLE: Duration = Duration::from_secs(1);
/// How long a file must be absent before its objects are deleted. Some editors and tools remove a file, or move it
/// aside, right before they write it anew.
const ABSENCE: Duration = Duration::from_millis(100);
/// How often all files are looked at where inotify tells of changes.
const IDLE: Duration = Duration::from_secs(10);
/// How often all files are looked at where it does not.
const POLL: Duration = Duration::from_secs(1);

/// Why a folder can not be a source of objects.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It is not there, or can not be listed.
    #[error("{}: {why}; expected a folder with YAML or JSON files, or one such file", .path.display())]
    Unreadable {
        /// The path as it was given.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The system's means to watch files has failed.
    #[error("watching {}: {source}", .path.display())]
    Watch {
        /// The path as it was given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Reads a file, or all files of a folder and those below it, once. The changes end with [`Change::Synced`].
///
/// # Errors
/// The path is not there, or is a folder that can not be listed. Whatever else is wrong is among the changes.
pub fn load_once(path: &Path) -> Result<Vec<Change>, DirectoryError> {
    Follower::new(path.to_owned(), None).load(Instant::now())
}

/// Reads a file, or all files of a folder and those below it, sends what that gives and [`Change::Synced`] as one
/// batch, and then a batch whenever files change. For each number that comes over `looks` it looks at once, and ends
/// the batch with [`Change::Mark`]. Ends when the receiver is gone; may be dropped at any time.
///
/// What was read stays in force while the path itself is not there or can not be listed.
///
/// # Errors
/// At the start, the path is not there, or is a folder that can not be listed; or watching fails in a way that leaves
/// nothing to fall back to.
pub async fn watch(
    path: PathBuf,
    changes: mpsc::Sender<Vec<Change>>,
    mut looks: mpsc::Receiver<u64>,
) -> Result<(), DirectoryError> {
    let failed = |source: io::Error| DirectoryError::Watch { path: path.clone(), source };
    let (events, wakes) = match Events::new().and_then(|(events, wakes)| Ok((events, register(wakes)?))) {
        Ok((events, wakes)) => (Some(events), Some(wakes)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "inotify can not be had; looking at all files every second");
            (None, None)
        }
    };
    let follower = Follower::new(path.clone(), events);
    let (mut follower, batch) = blocking(follower, |follower| follower.load(Instant::now())).await.map_err(failed)?;
    let mut batch = batch?;
    let mut asked = true;
    loop {
        if !batch.is_empty() && changes.send(batch).await.is_err() {
            return Ok(());
        }
        let mut mark = looks.try_recv().ok();
        if mark.is_none() && !follower.wants_look() {
            tokio::select! {
                () = changes.closed() => return Ok(()),
                woken = readable(wakes.as_ref()) => woken.map_err(failed)?,
                () = tokio::time::sleep_until(follower.deadline.into()) => {}
                number = looks.recv(), if asked => {
                    mark = number;
                    asked = number.is_some();
                }
            }
        }
        (follower, batch) = blocking(follower, |follower| follower.look(Instant::now())).await.map_err(failed)?;
        batch.extend(mark.map(Change::Mark));
    }
}

/// Has the runtime wait for a descriptor.
// The function that tokio offers instead is unsafe, as a type may let go of its descriptor while it is waited for. An
// `OwnedFd` never does.
#[allow(deprecated)]
fn register(wakes: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(wakes, Interest::READABLE)
}

async fn readable(wakes: Option<&AsyncFd<OwnedFd>>) -> io::Result<()> {
    match wakes {
        Some(wakes) => {
            // What woke us is drained right after, so the next wake has a new reason.
            wakes.readable().await?.clear_ready();
            Ok(())
        }
        None => std::future::pending().await,
    }
}

/// Runs `work` where it may block. If the future is dropped meanwhile, the work at hand ends by itself.
async fn blocking<T: Send + 'static>(
    mut follower: Follower,
    work: impl FnOnce(&mut Follower) -> T + Send + 'static,
) -> io::Result<(Follower, T)> {
    tokio::task::spawn_blocking(move || {
        let result = work(&mut follower);
        (follower, result)
    })
    .await
    .map_err(io::Error::other)
}

/// What is known of a file from the last looks at it.
#[derive(Debug, Default)]
struct Known {
    /// Its state when it was last read.
    read: Option<Stamp>,
    /// Why it could not be read.
    bad: Option<String>,
    /// A newer state that nothing says is complete, and when it was first seen.
    waiting: Option<(Stamp, Instant)>,
    /// Since when it is absent.
    absent: Option<Instant>,
}

/// Follows the files at a path.
#[derive(Debug)]
struct Follower {
    root: PathBuf,
    loader: Loader,
    known: BTreeMap<PathBuf, Known>,
    unreadable: BTreeMap<PathBuf, String>,
    events: Option<Events>,
    warned: bool,
    /// When to look again, even if nothing is told.
    deadline: Instant,
}

impl Follower {
    fn new(root: PathBuf, events: Option<Events>) -> Self {
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

    /// The first look: reads all there is.
    fn load(&mut self, now: Instant) -> Result<Vec<Change>, DirectoryError> {
        let (scan, happened) = self.scan();
        if let Some(why) = scan.unreadable.get(&self.root) {
            return Err(DirectoryError::Unreadable { path: self.root.clone(), why: why.clone() });
        }
        let mut changes = self.take(scan, &happened, true, now);
        changes.push(Change::Synced);
        Ok(changes)
    }

    /// Takes in what has changed since the last look. `now` is not before that of the last look.
    fn look(&mut self, now: Instant) -> Vec<Change> {
        if let Some(events) = &mut self.events {
            events.drain();
        }
        if !self.wants_look() && now < self.deadline {
            return Vec::new();
        }
        let (scan, happened) = self.scan();
        self.take(scan, &happened, false, now)
    }

    fn wants_look(&self) -> bool {
        self.events.as_ref().is_some_and(Events::wants_scan)
    }

    fn scan(&mut self) -> (Scan, Happened) {
        let Some(events) = &mut self.events else { return (scan(&self.root, &mut |_| {}), Happened::default()) };
        let happened = events.take();
        // The root may be removed, put in place or exchanged like any file in it. While the folder it is in is missing
        // too, that one's coming is what to wait for.
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
        scan.files.values().filter_map(|found| found.target.as_deref()).for_each(|target| events.watch_name(target));
        (scan, happened)
    }

    /// Reads what is new in `scan` and complete.
    fn take(&mut self, scan: Scan, happened: &Happened, first: bool, now: Instant) -> Vec<Change> {
        let mut next = now + IDLE;
        let mut updates = self.folders(&scan);
        let mut to_read: Vec<(PathBuf, Stamp, Vec<Spot>)> = Vec::new();
        for (path, found) in &scan.files {
            let known = self.known.entry(path.clone()).or_default();
            known.absent = None;
            let stamp = match &found.stamp {
                Ok(stamp) => *stamp,
                Err(why) => {
                    if known.bad.as_ref() != Some(why) {
                        updates.push((path.clone(), Content::Unreadable(why.clone())));
                        *known = Known { bad: Some(why.clone()), ..Known::default() };
                    }
                    continue;
                }
            };
            let events = self.events.as_ref();
            let spots = events.map_or_else(Vec::new, |events| events.spots(path, found));
            if events.is_some_and(|events| events.is_writing(&spots)) {
                known.waiting = None;
                continue;
            }
            let unchanged = known.read == Some(stamp) && known.bad.is_none();
            let fresh = !unchanged && events.is_some_and(|events| events.is_new(&spots));
            let settled = match known.waiting {
                _ if first || fresh || happened.is_ready(&spots, found) => true,
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
                to_read.push((path.clone(), stamp, spots));
            }
        }
        if let Some(events) = &mut self.events {
            events.settle();
        }
        // `to_read` is in the order of its paths, as `scan.files` is.
        let moved = |path: &Path| {
            let to = happened.moved_to(path);
            to.is_some_and(|to| to_read.binary_search_by(|(path, ..)| path.cmp(&to)).is_ok())
        };
        updates.extend(self.gone(&scan, moved, now, &mut next));
        let (known, events) = (&mut self.known, &mut self.events);
        let read =
            to_read.into_iter().filter_map(|(path, stamp, spots)| read_whole(path, stamp, &spots, known, events));
        let changes = self.loader.update(updates.into_iter().chain(read));
        let blind = self.events.as_ref().is_none_or(Events::limit_hit);
        if blind && self.events.is_some() && !self.warned {
            self.warned = true;
            let path = self.root.display();
            tracing::warn!(%path, "the limit of inotify watches is reached; looking at all files every second");
        }
        self.deadline = if blind { next.min(now + POLL) } else { next };
        changes
    }

    /// What is new about folders that can not be listed.
    fn folders(&mut self, scan: &Scan) -> Vec<(PathBuf, Content)> {
        let old = std::mem::replace(&mut self.unreadable, scan.unreadable.clone());
        let mut updates = Vec::new();
        for path in old.keys().filter(|path| !scan.unreadable.contains_key(*path)) {
            if scan.files.contains_key(path) {
                // The root is a file. Reading it again clears what was wrong.
                self.known.remove(path);
            } else {
                updates.push((path.clone(), Content::Gone));
            }
        }
        let new = scan.unreadable.iter().filter(|(path, why)| old.get(*path) != Some(why));
        updates.extend(new.map(|(path, why)| (path.clone(), Content::Unreadable(why.clone()))));
        updates
    }

    /// The files that are gone for good, which those are at once that `moved` to another place. Those in a folder that
    /// can not be listed may well be there.
    fn gone(
        &mut self,
        scan: &Scan,
        moved: impl Fn(&Path) -> bool,
        now: Instant,
        next: &mut Instant,
    ) -> Vec<(PathBuf, Content)> {
        let hidden = |path: &Path| scan.unreadable.keys().any(|folder| path.starts_with(folder));
        let mut gone = Vec::new();
        self.known.retain(|path, known| {
            if scan.files.contains_key(path) || hidden(path) {
                return true;
            }
            let since = *known.absent.get_or_insert(now);
            if now < since + ABSENCE && !moved(path) {
                *next = (*next).min(since + ABSENCE);
                return true;
            }
            gone.push((path.clone(), Content::Gone));
            false
        });
        gone
    }
}

/// Reads a file. `None` if it is gone by now, or was written to meanwhile: then it is looked at again later.
fn read_whole(
    path: PathBuf,
    stamp: Stamp,
    spots: &[Spot],
    known: &mut BTreeMap<PathBuf, Known>,
    events: &mut Option<Events>,
) -> Option<(PathBuf, Content)> {
    if let Some(events) = events {
        events.forget_modified();
    }
    let (read, content) = scan::read(&path)?;
    if let Some(events) = events {
        events.drain();
        if events.was_modified(spots) {
            return None;
        }
    }
    let known = known.entry(path.clone()).or_default();
    *known = Known { read: Some(read.unwrap_or(stamp)), ..Known::default() };
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

    /// The VirtualServices in force, like `a=one b=two`, by name and host.
    fn in_force(store: &Store) -> String {
        let shown = store.all(Kind::VirtualService).map(|entry| match &entry.object.spec {
            Spec::VirtualService(spec) => format!("{}={}", entry.object.meta.name, spec.hosts[0]),
            other => panic!("{other:?}"),
        });
        shown.collect::<Vec<_>>().join(" ")
    }

    /// A folder, what follows it, and a clock that goes on only when told to. What the kernel tells is in its queue
    /// before the call that caused it returns, so nothing has to be waited for.
    struct Rig {
        dir: tempfile::TempDir,
        follower: Follower,
        store: Store,
        now: Instant,
        /// All deletions so far.
        deleted: Vec<String>,
    }

    impl Rig {
        fn new(files: &[(&str, &str)]) -> Self {
            Self::with(files, Some(Events::new().unwrap().0), "conf")
        }

        fn with(files: &[(&str, &str)], events: Option<Events>, root: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("conf")).unwrap();
            let follower = Follower::new(dir.path().join(root), events);
            let store = Store::default();
            let mut rig = Self { dir, follower, store, now: Instant::now(), deleted: Vec::new() };
            files.iter().for_each(|(name, text)| rig.write(name, text));
            let changes = rig.follower.load(rig.now).unwrap();
            rig.apply(changes);
            assert!(rig.store.synced());
            rig
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

        fn apply(&mut self, changes: Vec<Change>) {
            for change in changes {
                if let Change::Delete(key) = &change {
                    self.deleted.push(key.name.to_string());
                }
                self.store.apply(change, &mut BTreeSet::new());
            }
        }

        /// Looks until nothing is left to do at this time, and says what is in force.
        fn look(&mut self) -> String {
            loop {
                let changes = self.follower.look(self.now);
                self.apply(changes);
                if !self.follower.wants_look() {
                    return in_force(&self.store);
                }
            }
        }

        fn after(&mut self, time: Duration) -> String {
            self.now += time;
            self.look()
        }

        fn trouble(&self) -> Vec<String> {
            self.store.trouble().flat_map(|(_, problems)| problems).map(ToString::to_string).collect()
        }
    }

    #[test]
    fn a_file_that_is_being_written_is_left_alone() {
        let mut rig = Rig::new(&[("a.yaml", &rule("a", "one")), ("b.yaml", &rule("b", "one"))]);
        let mut file = File::create(rig.path("a.yaml")).unwrap();
        assert_eq!(rig.look(), "a=one b=one");
        // Each part is valid by itself.
        file.write_all(rule("x", "two").as_bytes()).unwrap();
        rig.write("b.yaml", rule("b", "two"));
        assert_eq!(rig.look(), "a=one b=two");
        assert_eq!(rig.after(IDLE * 3), "a=one b=two");
        file.write_all(format!("---\n{}", rule("a", "two")).as_bytes()).unwrap();
        assert_eq!(rig.look(), "a=one b=two");
        drop(file);
        assert_eq!(rig.look(), "a=two b=two x=two");
        assert!(rig.trouble().is_empty() && rig.deleted.is_empty());
    }

    #[test]
    fn a_new_file_is_read_when_its_writer_closes_it() {
        let mut rig = Rig::new(&[]);
        let mut file = File::create(rig.path("a.yaml")).unwrap();
        assert_eq!(rig.look(), "");
        file.write_all(rule("a", "one").as_bytes()).unwrap();
        rig.write("b.yaml", rule("b", "one"));
        assert_eq!(rig.look(), "b=one");
        file.write_all(format!("---\n{}", rule("c", "one")).as_bytes()).unwrap();
        drop(file);
        assert_eq!(rig.look(), "a=one b=one c=one");
        assert!(rig.trouble().is_empty());
    }

    #[test]
    fn two_writes_of_the_same_length_in_no_time_are_both_seen() {
        let mut rig = Rig::new(&[("a.yaml", &rule("a", "h00"))]);
        for n in 1..50 {
            rig.write("a.yaml", rule("a", &format!("h{n:02}")));
            assert_eq!(rig.look(), format!("a=h{n:02}"));
        }
    }

    #[test]
    fn a_rename_puts_a_file_in_place_at_once() {
        let mut rig = Rig::new(&[("a.yaml", &rule("a", "one"))]);
        rig.write("a.yaml.tmp", rule("a", "two"));
        assert_eq!(rig.look(), "a=one");
        rig.rename("a.yaml.tmp", "a.yaml");
        assert_eq!(rig.look(), "a=two");
        rig.rename("a.yaml", "b.yaml");
        assert_eq!(rig.look(), "a=two");
        assert!(rig.deleted.is_empty() && rig.trouble().is_empty());
        assert!(rig.follower.known.keys().eq([&rig.path("b.yaml")]));
    }

    #[test]
    fn a_file_that_moves_while_it_is_written_is_read_when_it_is_closed() {
        let mut rig = Rig::new(&[]);
        let mut file = File::create(rig.path("a.yaml")).unwrap();
        file.write_all(rule("a", "one").as_bytes()).unwrap();
        rig.rename("a.yaml", "b.yaml");
        assert_eq!(rig.look(), "");
        file.write_all(format!("---\n{}", rule("b", "one")).as_bytes()).unwrap();
        drop(file);
        assert_eq!(rig.look(), "a=one b=one");
    }

    #[test]
    fn an_editor_that_moves_the_old_file_aside_deletes_nothing() {
        let mut rig = Rig::new(&[("a.yaml", &rule("a", "one"))]);
        rig.rename("a.yaml", "a.yaml~");
        assert_eq!(rig.look(), "a=one");
        let mut file = File::create(rig.path("a.yaml")).unwrap();
        assert_eq!(rig.look(), "a=one");
        file.write_all(rule("a", "two").as_bytes()).unwrap();
        assert_eq!(rig.after(IDLE), "a=one");
        drop(file);
        fs::remove_file(rig.path("a.yaml~")).unwrap();
        assert_eq!(rig.look(), "a=two");
        assert!(rig.deleted.is_empty());
    }

    #[test]
    fn a_file_that_stays_away_is_deleted() {
        let mut rig = Rig::new(&[("a.yaml", &rule("a", "one")), ("b.yaml", &rule("b", "one"))]);
        fs::remove_file(rig.path("a.yaml")).unwrap();
        assert_eq!(rig.look(), "a=one b=one");
        assert!(rig.follower.deadline <= rig.now + ABSENCE);
        assert_eq!(rig.after(ABSENCE), "b=one");
        rig.rename("b.yaml", "b.disabled");
        rig.look();
        assert_eq!(rig.after(ABSENCE), "");
        rig.rename("b.disabled", "b.yaml");
        assert_eq!(rig.look(), "b=one");
    }

    #[test]
    fn an_emptied_file_deletes_nothing() {
        let mut rig = Rig::new(&[("a.yaml", &rule("a", "one"))]);
        rig.write("a.yaml", "");
        assert_eq!(rig.look(), "a=one");
        assert!(rig.trouble()[0].contains("is empty"), "{:?}", rig.trouble());
        rig.write("a.yaml", rule("a", "two"));
        assert_eq!(rig.look(), "a=two");
        assert!(rig.trouble().is_empty());
    }

    #[test]
    fn a_mounted_configmap_is_exchanged_as_one() {
        let dir = |rig: &Rig, version: &str, files: &[(&str, String)]| {
            fs::create_dir_all(rig.path(version).join("sub")).unwrap();
            files.iter().for_each(|(name, text)| rig.write(&format!("{version}/{name}"), text));
            symlink(version, rig.path("..data_tmp")).unwrap();
            rig.rename("..data_tmp", "..data");
        };
        let mut rig = Rig::new(&[]);
        dir(
            &rig,
            "..2024_1",
            &[("a.yaml", rule("a", "one")), ("b.yaml", rule("b", "one")), ("sub/c.yaml", rule("c", "one"))],
        );
        for name in ["a.yaml", "b.yaml", "sub"] {
            symlink(format!("..data/{name}"), rig.path(name)).unwrap();
        }
        assert_eq!(rig.look(), "a=one b=one c=one");
        dir(
            &rig,
            "..2024_2",
            &[("a.yaml", rule("a", "two")), ("b.yaml", rule("b", "two")), ("sub/c.yaml", rule("c", "two"))],
        );
        let changes = rig.follower.look(rig.now);
        assert_eq!(changes.iter().filter(|change| matches!(change, Change::Apply { .. })).count(), 3, "{changes:?}");
        rig.apply(changes);
        fs::remove_dir_all(rig.path("..2024_1")).unwrap();
        assert_eq!(rig.look(), "a=two b=two c=two");
        // A key that is gone leaves its link behind for a moment.
        dir(&rig, "..2024_3", &[("a.yaml", rule("a", "one")), ("sub/c.yaml", rule("c", "one"))]);
        assert_eq!(rig.look(), "a=one b=two c=one");
        fs::remove_file(rig.path("b.yaml")).unwrap();
        rig.look();
        assert_eq!(rig.after(ABSENCE), "a=one c=one");
        assert_eq!((rig.deleted.len(), rig.trouble().len()), (1, 0));
    }

    #[test]
    fn folders_come_move_and_go() {
        let mut rig = Rig::new(&[("a.yaml", &rule("a", "one"))]);
        fs::create_dir_all(rig.path("sub/deep")).unwrap();
        rig.write("sub/deep/b.yaml", rule("b", "one"));
        assert_eq!(rig.look(), "a=one b=one");
        rig.write("sub/deep/b.yaml", rule("b", "two"));
        assert_eq!(rig.look(), "a=one b=two");
        rig.rename("sub", "other");
        assert_eq!(rig.look(), "a=one b=two");
        assert!(rig.deleted.is_empty() && rig.trouble().is_empty());
        rig.write("other/deep/b.yaml", rule("b", "three"));
        assert_eq!(rig.look(), "a=one b=three");
        fs::remove_dir_all(rig.path("other")).unwrap();
        rig.look();
        assert_eq!(rig.after(ABSENCE), "a=one");
        fs::create_dir(rig.path("other")).unwrap();
        rig.look();
        rig.write("other/c.yaml", rule("c", "one"));
        assert_eq!(rig.look(), "a=one c=one");
    }

    #[test]
    fn the_folder_itself_may_go_and_come_back() {
        let mut rig = Rig::new(&[("a.yaml", &rule("a", "one")), ("b.yaml", &rule("b", "one"))]);
        let conf = rig.dir.path().join("conf");
        fs::rename(&conf, rig.dir.path().join("old")).unwrap();
        rig.look();
        assert_eq!(rig.after(IDLE), "a=one b=one");
        assert!(rig.trouble()[0].contains("conf:1: is not there; a running weir keeps"), "{:?}", rig.trouble());
        fs::create_dir(&conf).unwrap();
        rig.write("a.yaml", rule("a", "two"));
        rig.look();
        assert_eq!(rig.after(ABSENCE), "a=two");
        assert!(rig.trouble().is_empty());
        rig.write("a.yaml", rule("a", "three"));
        assert_eq!(rig.look(), "a=three");
        fs::remove_dir_all(&conf).unwrap();
        rig.look();
        fs::create_dir(&conf).unwrap();
        rig.write("a.yaml", rule("a", "four"));
        assert_eq!(rig.look(), "a=four");
    }

    #[test]
    fn the_folder_may_be_a_link_that_is_exchanged() {
        let mut rig = Rig::with(&[("a.yaml", &rule("a", "one"))], Some(Events::new().unwrap().0), "conf");
        fs::rename(rig.dir.path().join("conf"), rig.dir.path().join("v1")).unwrap();
        symlink("v1", rig.dir.path().join("conf")).unwrap();
        assert_eq!(rig.look(), "a=one");
        fs::create_dir(rig.dir.path().join("v2")).unwrap();
        fs::write(rig.dir.path().join("v2/a.yaml"), rule("a", "two")).unwrap();
        symlink("v2", rig.dir.path().join("next")).unwrap();
        fs::rename(rig.dir.path().join("next"), rig.dir.path().join("conf")).unwrap();
        assert_eq!(rig.look(), "a=two");
    }

    #[test]
    fn one_file_can_be_followed() {
        let mut rig = Rig::with(&[("rules", &rule("a", "one"))], Some(Events::new().unwrap().0), "conf/rules");
        assert_eq!(rig.look(), "a=one");
        rig.write("rules", rule("a", "two"));
        assert_eq!(rig.look(), "a=two");
        fs::remove_file(rig.path("rules")).unwrap();
        rig.look();
        assert_eq!((rig.after(IDLE).as_str(), rig.trouble().len()), ("a=two", 1));
        let mut file = File::create(rig.path("rules")).unwrap();
        assert_eq!(rig.look(), "a=two");
        file.write_all(rule("a", "three").as_bytes()).unwrap();
        drop(file);
        assert_eq!(rig.look(), "a=three");
        assert!(rig.deleted.is_empty() && rig.trouble().is_empty());
    }

    #[test]
    fn links_to_files_elsewhere_are_followed() {
        let mut rig = Rig::new(&[]);
        let target = rig.dir.path().join("elsewhere.yaml");
        fs::write(&target, rule("a", "one")).unwrap();
        symlink(&target, rig.path("a.yaml")).unwrap();
        assert_eq!(rig.look(), "a=one");
        let mut file = File::create(&target).unwrap();
        rig.write("b.yaml", rule("b", "one"));
        assert_eq!(rig.look(), "a=one b=one");
        file.write_all(rule("a", "two").as_bytes()).unwrap();
        drop(file);
        assert_eq!(rig.look(), "a=two b=one");
        fs::hard_link(&target, rig.path("c.yaml")).unwrap();
        rig.look();
        assert!(rig.trouble()[0].contains("c.yaml:1: VirtualService default/a is already at"), "{:?}", rig.trouble());
    }

    #[test]
    fn a_file_that_can_not_be_read_keeps_its_objects() {
        let mut rig = Rig::new(&[("a.yaml", &rule("a", "one"))]);
        fs::remove_file(rig.path("a.yaml")).unwrap();
        symlink("nowhere", rig.path("a.yaml")).unwrap();
        rig.look();
        assert_eq!(rig.after(IDLE), "a=one");
        assert!(rig.trouble()[0].contains("a.yaml:1: is a link to something that is not there"), "{:?}", rig.trouble());
        fs::remove_file(rig.path("a.yaml")).unwrap();
        rig.write("a.yaml", rule("a", "two"));
        assert_eq!(rig.look(), "a=two");
        // The administrator's rights are not bound by permissions, so there is nothing to see as root.
        fs::set_permissions(rig.path("a.yaml"), Permissions::from_mode(0o000)).unwrap();
        if File::open(rig.path("a.yaml")).is_err() {
            rig.look();
            assert_eq!(rig.after(SETTLE), "a=two");
            assert!(rig.trouble()[0].contains("can not be read"), "{:?}", rig.trouble());
        }
    }

    #[test]
    fn without_inotify_files_are_read_when_they_have_settled() {
        let mut rig = Rig::with(&[("a.yaml", &rule("a", "one"))], None, "conf");
        rig.write("a.yaml", rule("a", "twoo"));
        assert_eq!(rig.after(POLL), "a=one");
        rig.write("a.yaml", rule("a", "three"));
        assert_eq!(rig.after(POLL), "a=one", "it changed between two looks");
        assert_eq!(rig.after(SETTLE), "a=three");
        fs::remove_file(rig.path("a.yaml")).unwrap();
        assert_eq!(rig.after(POLL), "a=three");
        assert_eq!(rig.after(POLL), "");
    }

    #[test]
    fn a_folder_is_loaded_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), rule("a", "one")).unwrap();
        fs::write(dir.path().join("b.yaml"), "x: [").unwrap();
        let changes = load_once(dir.path()).unwrap();
        assert!(
            matches!(changes.as_slice(), [Change::Apply { .. }, Change::Trouble { .. }, Change::Synced]),
            "{changes:?}"
        );
        assert_eq!(load_once(&dir.path().join("a.yaml")).unwrap().len(), 2);
        let error = load_once(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none: is not there; expected a folder"), "{error}");
    }

    /// A folder that is watched as `weir serve` does it.
    struct Live {
        changes: mpsc::Receiver<Vec<Change>>,
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
            while !self.store.synced() || in_force(&self.store) != what {
                let batch = tokio::time::timeout(Duration::from_secs(60), self.changes.recv()).await;
                for change in batch.unwrap_or_else(|_| panic!("{} is not {what}", in_force(&self.store))).unwrap() {
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
        assert_eq!(live.store.trouble().count(), 0);
        drop(live.changes);
        tokio::time::timeout(Duration::from_secs(60), live.task).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_at_the_start_is_an_error() {
        let (sender, _changes) = mpsc::channel(1);
        let error =
            watch(PathBuf::from("/nonexistent/conf"), sender, mpsc::channel(1).1).await.unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/conf: is not there"), "{error}");
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
                fs::write(path.join(format!("d{}/{n}.yaml", n % 20)), rule(&format!("n{n:03}"), "h")).unwrap();
            }
        });
        let all: Vec<_> = (0..300).map(|n| format!("n{n:03}=h")).collect();
        live.until(&all.join(" ")).await;
        writer.await.unwrap();
    }
}
