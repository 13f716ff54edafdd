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
        let watcher = DirectoryWatcher::new(dir.path().join(root), Loader::new(), events);
        let store = Store::default();
        let mut fixture = Self { dir, watcher, store, now: Instant::now(), deleted: Vec::new() };
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
    let mut fixture = Fixture::new(&[("a.yaml", &rule("a", "one")), ("b.yaml", &rule("b", "one"))]);
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
fn two_quick_writes_of_the_same_length_are_both_noticed() {
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
fn a_file_that_stays_absent_is_deleted() {
    let mut fixture = Fixture::new(&[("a.yaml", &rule("a", "one")), ("b.yaml", &rule("b", "one"))]);
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
    assert!(fixture.source_problems()[0].contains("is empty"), "{:?}", fixture.source_problems());
    fixture.write("a.yaml", rule("a", "two"));
    assert_eq!(fixture.rescan(), "a=two");
    assert!(fixture.source_problems().is_empty());
}

/// Replaces the files of a mounted ConfigMap, as the kubelet does.
fn mount(fixture: &Fixture, version: &str, files: &[(&str, String)]) {
    fs::create_dir_all(fixture.path(version).join("sub")).unwrap();
    files.iter().for_each(|(name, text)| fixture.write(&format!("{version}/{name}"), text));
    symlink(version, fixture.path("..data_tmp")).unwrap();
    fixture.rename("..data_tmp", "..data");
}

#[test]
fn a_mounted_configmap_changes_atomically() {
    let mut fixture = Fixture::new(&[]);
    mount(
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
    mount(
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
    mount(&fixture, "..2024_3", &[("a.yaml", rule("a", "one")), ("sub/c.yaml", rule("c", "one"))]);
    assert_eq!(fixture.rescan(), "a=one b=two c=one");
    fs::remove_file(fixture.path("b.yaml")).unwrap();
    fixture.rescan();
    assert_eq!(fixture.after(ABSENCE), "a=one c=one");
    assert_eq!((fixture.deleted.len(), fixture.source_problems().len()), (1, 0));
}

#[test]
fn folders_are_created_moved_and_deleted() {
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
fn the_folder_itself_may_be_deleted_and_recreated() {
    let mut fixture = Fixture::new(&[("a.yaml", &rule("a", "one")), ("b.yaml", &rule("b", "one"))]);
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
fn the_folder_may_be_a_link_that_is_replaced() {
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
            [SourceEvent::Apply { .. }, SourceEvent::SourceProblems { .. }, SourceEvent::Synced]
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
        let task = tokio::spawn(watch(root.to_owned(), None, sender, mpsc::channel(1).1));
        Self { changes, task, store: Store::default() }
    }

    async fn until(&mut self, what: &str) {
        while !self.store.synced() || active(&self.store) != what {
            let batch = tokio::time::timeout(Duration::from_secs(60), self.changes.recv()).await;
            for change in
                batch.unwrap_or_else(|_| panic!("{} is not {what}", active(&self.store))).unwrap()
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
async fn a_folder_that_is_missing_at_startup_is_an_error() {
    let (sender, _changes) = mpsc::channel(1);
    let error = watch(PathBuf::from("/nonexistent/conf"), None, sender, mpsc::channel(1).1)
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
            fs::write(path.join(format!("d{}/{n}.yaml", n % 20)), rule(&format!("n{n:03}"), "h"))
                .unwrap();
        }
    });
    let all: Vec<_> = (0..300).map(|n| format!("n{n:03}=h")).collect();
    live.until(&all.join(" ")).await;
    writer.await.unwrap();
}
