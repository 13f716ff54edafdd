use super::*;
use crate::api::{Kind, Spec};
use crate::store::Store;
use proptest::prelude::*;

fn rule(name: &str, host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec:\n  hosts: [{host}]\n  \
             http:\n  - route:\n    - destination:\n        host: {host}\n"
    )
}

fn broken(name: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec:\n  hosts: 5\n"
    )
}

/// A loader and the store it feeds.
#[derive(Default)]
struct Fixture {
    loader: Loader,
    store: Store,
}

impl Fixture {
    fn update(&mut self, files: Vec<(PathBuf, Content)>) -> Vec<SourceEvent> {
        let changes = self.loader.update(files);
        for change in &changes {
            self.store.apply(change.clone(), &mut BTreeSet::new());
        }
        changes
    }

    fn write(&mut self, path: &str, text: impl AsRef<[u8]>) -> Vec<SourceEvent> {
        self.update(vec![(PathBuf::from(path), Content::Bytes(text.as_ref().to_vec()))])
    }

    fn delete(&mut self, path: &str) -> Vec<SourceEvent> {
        self.update(vec![(PathBuf::from(path), Content::Gone)])
    }

    /// The name and first host of every active VirtualService.
    fn active(&self) -> BTreeMap<String, String> {
        let entries = self.store.all(Kind::VirtualService);
        entries
            .map(|entry| match &entry.object.spec {
                Spec::VirtualService(spec) => {
                    (entry.object.meta.name.to_string(), spec.hosts[0].to_string())
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn holds(&self, name: &str) -> bool {
        self.store.all(Kind::VirtualService).any(|entry| &*entry.object.meta.name == name)
    }

    fn hosts(&self) -> String {
        self.active()
            .into_iter()
            .map(|(name, host)| format!("{name}={host}"))
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn source_problems(&self) -> Vec<String> {
        self.store
            .source_problems()
            .flat_map(|(_, problems)| problems)
            .map(ToString::to_string)
            .collect()
    }

    fn rejected(&self) -> Vec<String> {
        self.store.rejected().flat_map(|(_, problems)| problems).map(ToString::to_string).collect()
    }
}

#[test]
fn a_broken_file_changes_nothing_and_is_reported() {
    let good = rule("a", "one");
    for (bad, says) in [
        (Content::Bytes(Vec::new()), "d/a.yaml:1: the file is empty"),
        (Content::Bytes(b" \n\n".to_vec()), "d/a.yaml:1: the file is empty"),
        (
            Content::Bytes(format!("{good}---\nx: [").into_bytes()),
            "d/a.yaml:11: column 4: unclosed",
        ),
        (Content::Bytes(b"\xff".to_vec()), "d/a.yaml:1: column 1: the byte 0xff is not UTF-8"),
        (
            Content::Unreadable("cannot be read: denied".to_owned()),
            "d/a.yaml:1: cannot be read: denied",
        ),
        (Content::Bytes(b"hello".to_vec()), "d/a.yaml:1: the document is the string `hello`"),
    ] {
        let mut fixture = Fixture::default();
        fixture.write("d/a.yaml", &good);
        fixture.update(vec![("d/a.yaml".into(), bad)]);
        assert_eq!(fixture.hosts(), "a=one");
        assert_eq!(fixture.source_problems().len(), 1);
        assert!(fixture.source_problems()[0].starts_with(says), "{}", fixture.source_problems()[0]);
        let changes = fixture.write("d/a.yaml", &good);
        assert!(fixture.source_problems().is_empty());
        assert!(
            matches!(changes.as_slice(), [SourceEvent::SourceProblems { problems, .. }] if problems.is_empty()),
            "{changes:?}"
        );
    }
}

#[test]
fn an_invalid_object_is_rejected_and_its_last_version_stays() {
    let mut fixture = Fixture::default();
    fixture.write("a.yaml", format!("{}---\n{}", rule("a", "one"), rule("b", "one")));
    fixture.write("a.yaml", format!("{}---\n{}", broken("a"), rule("b", "two")));
    assert_eq!(fixture.hosts(), "a=one b=two");
    assert_eq!(fixture.rejected().len(), 1);
    assert!(fixture.rejected()[0].starts_with("a.yaml:5: spec.hosts"), "{:?}", fixture.rejected());
    fixture.write("a.yaml", format!("{}---\n{}", rule("a", "one"), rule("b", "two")));
    assert_eq!((fixture.hosts().as_str(), fixture.rejected().len()), ("a=one b=two", 0));
}

#[test]
fn objects_removed_from_a_valid_file_are_deleted() {
    let mut fixture = Fixture::default();
    fixture.write("a.yaml", format!("{}---\n{}", rule("a", "one"), rule("b", "one")));
    fixture.write("a.yaml", rule("b", "one"));
    assert_eq!(fixture.hosts(), "b=one");
    fixture.write("a.yaml", "# nothing\n");
    assert_eq!((fixture.hosts().as_str(), fixture.source_problems().len()), ("", 0));
    fixture.write("a.yaml", rule("b", "one"));
    assert!(
        matches!(fixture.delete("a.yaml").as_slice(), [SourceEvent::Delete(key)] if &*key.name == "b")
    );
}

#[test]
fn an_unidentifiable_document_keeps_the_objects_that_it_might_be() {
    let mut fixture = Fixture::default();
    fixture.write("a.yaml", format!("{}---\n{}", rule("a", "one"), rule("b", "one")));
    let nameless = rule("b", "two").replace("name: b", "nam: b");
    fixture.write("a.yaml", format!("{}---\n{nameless}", rule("a", "two")));
    assert_eq!(fixture.hosts(), "a=two b=one");
    assert!(
        fixture.source_problems()[0].starts_with("a.yaml:13: metadata.name: is missing"),
        "{:?}",
        fixture.source_problems()
    );
    fixture.write("a.yaml", rule("a", "two"));
    assert_eq!((fixture.hosts().as_str(), fixture.source_problems().len()), ("a=two", 0));
    fixture.write("a.yaml", rule("a", "three").replace("VirtualService", "VirtualServise"));
    assert_eq!(fixture.hosts(), "a=two");
    assert!(
        fixture.source_problems()[0].starts_with(
            "a.yaml:2: kind: `VirtualServise` is not a kind \
            of"
        ),
        "{:?}",
        fixture.source_problems()
    );
    fixture.write("a.yaml", rule("a", "three").replace("VirtualService", "Gateway"));
    assert_eq!((fixture.hosts().as_str(), fixture.source_problems().len()), ("", 0));
}

#[test]
fn the_first_of_two_wins_and_the_next_takes_over() {
    let mut fixture = Fixture::default();
    fixture.write("b.yaml", format!("{}---\n{}", rule("a", "two"), rule("a", "three")));
    assert_eq!(fixture.hosts(), "a=two");
    assert_eq!(fixture.source_problems().len(), 1);
    assert!(
        fixture.source_problems()[0].starts_with(
            "b.yaml:11: VirtualService default/a is already defined at \
                b.yaml:1,"
        ),
        "{:?}",
        fixture.source_problems()
    );
    fixture.write("a.yaml", rule("a", "one"));
    assert_eq!((fixture.hosts().as_str(), fixture.source_problems().len()), ("a=one", 2));
    fixture.write("a.yaml", "nonsense: [");
    assert_eq!((fixture.hosts().as_str(), fixture.source_problems().len()), ("a=one", 3));
    let changes = fixture.delete("a.yaml");
    assert!(!changes.iter().any(|change| matches!(change, SourceEvent::Delete(_))), "{changes:?}");
    assert_eq!((fixture.hosts().as_str(), fixture.source_problems().len()), ("a=two", 1));
    fixture.write("b.yaml", rule("a", "three"));
    assert_eq!((fixture.hosts().as_str(), fixture.source_problems().len()), ("a=three", 0));
}

#[test]
fn an_object_moves_between_files_without_disappearing() {
    let mut fixture = Fixture::default();
    fixture.write("a.yaml", rule("a", "one"));
    let moved = Content::Bytes(rule("a", "one").into_bytes());
    let changes = fixture.update(vec![("a.yaml".into(), Content::Gone), ("b.yaml".into(), moved)]);
    assert!(
        changes.iter().all(|change| matches!(change, SourceEvent::Apply { .. })),
        "{changes:?}"
    );
    assert_eq!(fixture.hosts(), "a=one");
}

#[test]
fn lists_are_expanded_and_other_kinds_are_skipped() {
    let mut fixture = Fixture::default();
    let text = "\
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
- apiVersion: networking.istio.io/v1
  kind: VirtualService
  metadata: {name: a}
  spec: {hosts: [one], http: [{route: [{destination: {host: one}}], nonsense: 1}]}
- apiVersion: networking.istio.io/v1
  kind: VirtualService
  metadata: {name: b}
  spec:
    hosts: 5
- kind: Service
";
    let changes = fixture.write("list.json", text);
    assert_eq!(fixture.hosts(), "a=one");
    let SourceEvent::Apply { origin, warnings, .. } = &changes[0] else { panic!("{changes:?}") };
    assert_eq!(origin.to_string(), "list.json:6");
    assert_eq!(warnings[0].origin.to_string(), "list.json:9");
    assert!(
        fixture.rejected()[0].starts_with("list.json:14: spec.hosts:"),
        "{:?}",
        fixture.rejected()
    );
    assert!(
        fixture.source_problems()[0].starts_with("list.json:15: items[3].apiVersion: is missing"),
        "{:?}",
        fixture.source_problems()
    );
}

#[test]
fn later_positions_are_newer_wherever_files_are_added() {
    let mut fixture = Fixture::default();
    // Each name sorts between the two before it, which exhausts the gap several times.
    let mut name = "m".to_owned();
    for n in 0..60 {
        fixture.write(
            &format!("{name}.yaml"),
            format!("{}---\n{}", rule(&format!("{name}-a"), "x"), rule(&format!("{name}-b"), "x")),
        );
        name.push(if n % 2 == 0 { 'm' } else { 'a' });
        if n % 3 == 0 {
            fixture.write(&format!("a{}.yaml", 100 - n), rule(&format!("a{}", 100 - n), "x"));
            fixture.write(&format!("z{}.yaml", 100 + n), rule(&format!("z{}", 100 + n), "x"));
        }
    }
    let mut placed: Vec<_> = fixture
        .store
        .all(Kind::VirtualService)
        .map(|entry| (entry.origin.clone(), entry.object.meta.age.order))
        .collect();
    placed.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert!(
        placed.len() > 120 && placed.windows(2).all(|pair| pair[0].1 < pair[1].1),
        "{placed:#?}"
    );
}

/// What a model step writes to one file.
#[derive(Clone, Debug)]
enum Step {
    Documents(Vec<Piece>),
    Garbage(Vec<u8>),
    Empty,
    Unreadable,
    Gone,
}

#[derive(Clone, Debug)]
enum Piece {
    Valid(u8, u8),
    Broken(u8),
    Nameless,
    Other,
}

fn pieces() -> impl Strategy<Value = Piece> {
    prop_oneof![
        6 => (0..4_u8, 0..4_u8).prop_map(|(name, host)| Piece::Valid(name, host)),
        2 => (0..4_u8).prop_map(Piece::Broken),
        1 => Just(Piece::Nameless),
        1 => Just(Piece::Other),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(pieces(), 0..4).prop_map(Step::Documents),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(|mut bytes| { bytes.push(0xff); Step::Garbage(bytes) }),
        1 => Just(Step::Empty),
        1 => Just(Step::Unreadable),
        2 => Just(Step::Gone),
    ]
}

fn content(step: &Step) -> Content {
    match step {
        Step::Documents(pieces) => {
            let texts = pieces.iter().map(|piece| match piece {
                Piece::Valid(name, host) => rule(&format!("n{name}"), &format!("h{host}")),
                Piece::Broken(name) => broken(&format!("n{name}")),
                Piece::Nameless => "apiVersion: v1\nkind: Service\n".to_owned(),
                Piece::Other => "apiVersion: apps/v1\nkind: Deployment\n".to_owned(),
            });
            Content::Bytes(
                format!("# words\n{}", texts.collect::<Vec<_>>().join("---\n")).into_bytes(),
            )
        }
        Step::Garbage(bytes) => Content::Bytes(bytes.clone()),
        Step::Empty => Content::Bytes(b"\n".to_vec()),
        Step::Unreadable => Content::Unreadable("cannot be read".to_owned()),
        Step::Gone => Content::Gone,
    }
}

type Documents = Vec<(String, Option<String>, bool)>;

/// A reference model of [`Loader`] in the simplest form.
#[derive(Default)]
struct Model {
    /// By file: whether the file itself is broken, and per object its name, last valid host, and whether it is
    /// currently invalid.
    files: BTreeMap<usize, (bool, Documents)>,
    active: BTreeMap<String, String>,
}

impl Model {
    fn apply(&mut self, file: usize, step: &Step) {
        match step {
            Step::Gone => {
                self.files.remove(&file);
            }
            Step::Garbage(_) | Step::Empty | Step::Unreadable => {
                self.files.entry(file).or_default().0 = true;
            }
            Step::Documents(pieces) => {
                let (wrong, held) = self.files.entry(file).or_default();
                let mut old = std::mem::take(held);
                *wrong = pieces.iter().any(|piece| matches!(piece, Piece::Nameless));
                for piece in pieces {
                    let (name, host) = match piece {
                        Piece::Valid(name, host) => (format!("n{name}"), Some(format!("h{host}"))),
                        Piece::Broken(name) => (format!("n{name}"), None),
                        Piece::Nameless | Piece::Other => continue,
                    };
                    let last =
                        old.iter().position(|(old, ..)| *old == name).map(|at| old.remove(at));
                    let valid = host.is_some();
                    held.push((name, host.or(last.and_then(|(_, host, _)| host)), !valid));
                }
                if *wrong {
                    for (name, host, broken) in old {
                        if !held.iter().any(|(other, ..)| *other == name) {
                            held.push((name, host, broken));
                        }
                    }
                }
            }
        }
    }

    fn settle(&mut self) {
        let held: BTreeSet<&String> =
            self.files.values().flat_map(|(_, held)| held).map(|(name, ..)| name).collect();
        self.active.retain(|name, _| held.contains(name));
        for name in held {
            let first =
                self.files.values().flat_map(|(_, held)| held).find(|(other, ..)| other == name);
            if let Some((_, Some(host), _)) = first {
                self.active.insert(name.clone(), host.clone());
            }
        }
    }

    fn rejected(&self) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let all = self.files.values().flat_map(|(_, held)| held);
        all.filter(|(name, ..)| seen.insert(name))
            .filter(|(.., broken)| *broken)
            .map(|(name, ..)| name.clone())
            .collect()
    }

    fn troubled(&self) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut troubled = BTreeSet::new();
        for (file, (wrong, held)) in &self.files {
            let again = held.iter().filter(|(name, ..)| !seen.insert(name.clone())).count() > 0;
            if *wrong || again {
                troubled.insert(format!("f{file}.yaml"));
            }
        }
        troubled
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn accepted_objects_are_never_lost(
        batches in prop::collection::vec(prop::collection::vec((0..3_usize, steps()), 1..3), 1..12)
    ) {
        let mut fixture = Fixture::default();
        let mut model = Model::default();
        for batch in batches {
            let files = batch.iter().map(|(file, step)| (PathBuf::from(format!("f{file}.yaml")), content(step)));
            fixture.update(files.collect());
            for (file, step) in &batch {
                model.apply(*file, step);
            }
            model.settle();
            prop_assert_eq!(&fixture.active(), &model.active, "{:?}", &batch);
            let rejected: BTreeSet<_> = fixture.store.rejected().map(|(key, _)| key.name.to_string()).collect();
            prop_assert_eq!(rejected, model.rejected());
            let troubled: BTreeSet<_> = fixture.store.source_problems().map(|(subject, _)| subject.to_owned()).collect();
            prop_assert_eq!(troubled, model.troubled());
        }
    }

    #[test]
    fn random_contents_in_any_order_match_the_model(
        files in prop::collection::vec((0..2_usize, prop::collection::vec(any::<u8>(), 0..60)), 1..8)
    ) {
        let mut fixture = Fixture::default();
        fixture.write("good.yaml", rule("good", "one"));
        for (file, bytes) in files {
            fixture.write(&format!("f{file}.yaml"), bytes);
            prop_assert_eq!(fixture.hosts(), "good=one");
        }
    }

    #[test]
    fn a_damaged_file_loses_only_objects_it_no_longer_contains(
        damage in prop::collection::vec((0..3_u8, any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let mut fixture = Fixture::default();
        let mut text = format!("{}---\n{}", rule("a", "one"), rule("b", "one")).into_bytes();
        fixture.write("f.yaml", &text);
        for (what, at, byte) in damage {
            if text.is_empty() {
                break;
            }
            let at = at.index(text.len());
            match what {
                0 => text[at] = byte,
                1 => text.insert(at, byte),
                _ => text.truncate(at),
            }
            fixture.write("f.yaml", &text);
            let names = names(&text);
            for name in ["a", "b"] {
                let gone = names.as_ref().is_some_and(|names| !names.iter().any(|item| item == name));
                prop_assert!(gone || fixture.holds(name), "{name} of {:?}", String::from_utf8_lossy(&text));
            }
            // An object lost to earlier damage need not reappear.
            fixture = Fixture::default();
            fixture.write("f.yaml", format!("{}---\n{}", rule("a", "one"), rule("b", "one")));
        }
    }
}

/// The VirtualServices of namespace `default` in a text; `None` if some document cannot be identified.
fn names(text: &[u8]) -> Option<Vec<String>> {
    let documents = yaml::documents(text).ok()?;
    if text.iter().all(u8::is_ascii_whitespace) {
        return None;
    }
    let mut names = Vec::new();
    for (_, member) in documents.into_iter().flat_map(|document| expand_list(document.value)) {
        match identify(&member).ok()? {
            Identity::Known(key)
                if key.kind == Kind::VirtualService && &*key.namespace == "default" =>
            {
                names.push(key.name.to_string());
            }
            _ => {}
        }
    }
    Some(names)
}
