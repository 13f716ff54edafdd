use super::*;
use proptest::prelude::*;
use serde_json::json;

fn one(text: &str) -> Value {
    let mut documents =
        documents(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0).value
}

fn error(text: impl AsRef<[u8]>) -> SyntaxError {
    documents(text.as_ref()).unwrap_err()
}

#[test]
fn scalars_are_interpreted_as_by_kubectl() {
    for (text, value) in [
        ("true", json!(true)),
        ("\"true\"", json!("true")),
        ("'on'", json!("on")),
        ("on", json!(true)),
        ("Yes", json!(true)),
        ("n", json!(false)),
        ("oN", json!("oN")),
        ("~", json!(null)),
        ("", json!(null)),
        ("NULL", json!(null)),
        ("''", json!("")),
        ("0", json!(0)),
        ("-0", json!(0)),
        ("80", json!(80)),
        ("010", json!(8)),
        ("0o17", json!(15)),
        ("080", json!(80)),
        ("0x1F", json!(31)),
        ("0b11", json!(3)),
        ("-0x10", json!(-16)),
        ("1_000", json!(1000)),
        ("+5", json!(5)),
        ("1e3", json!(1000)),
        ("1.0", json!(1)),
        ("1.", json!(1)),
        (".5", json!(0.5)),
        ("1.5e-3", json!(0.0015)),
        ("18446744073709551615", json!(18_446_744_073_709_551_615_u64)),
        ("-9223372036854775808", json!(i64::MIN)),
        ("1e400", json!("1e400")),
        ("1:30", json!("1:30")),
        ("10s", json!("10s")),
        ("1.2.3", json!("1.2.3")),
        ("2024-01-02", json!("2024-01-02")),
        ("2024-01-02T03:04:05Z", json!("2024-01-02T03:04:05Z")),
        ("0x", json!("0x")),
        (".e3", json!(".e3")),
        ("1e", json!("1e")),
        ("nan", json!("nan")),
        ("-inf", json!("-inf")),
        ("!!str 5", json!("5")),
        ("! 5", json!("5")),
        ("!!int \"5\"", json!(5)),
        ("|\n    5\n", json!("5\n")),
        (">-\n    a\n    b\n", json!("a b")),
    ] {
        let text = format!("v: {text}\n");
        assert_eq!(one(&text)["v"], value, "{text}");
    }
    assert_eq!(
        one("{on: 1, 080: 2, 1.5: 3, 'no': 4}"),
        json!({"true": 1, "80": 2, "1.5": 3, "no": 4})
    );
}

/// The result of kubectl's parser (sigs.k8s.io/yaml 1.4) for each.
#[test]
fn a_colon_ends_a_plain_scalar_of_a_list_or_map_only_before_a_blank() {
    for (text, value) in [
        ("[2001:db8::]", json!(["2001:db8::"])),
        ("[2001:db8::, x]", json!(["2001:db8::", "x"])),
        ("[2001:db8:: ]", json!([{"2001:db8:": null}])),
        ("[2001:db8:: ,x]", json!([{"2001:db8:": null}, "x"])),
        ("[fd00::/8]", json!(["fd00::/8"])),
        ("{address: fd00::}", json!({"address": "fd00::"})),
        ("{address: fd00::, b: c}", json!({"address": "fd00::", "b": "c"})),
        ("{a: b:}", json!({"a": "b:"})),
        ("[a:]", json!(["a:"])),
        ("[a:, b]", json!(["a:", "b"])),
        ("[a: ]", json!([{"a": null}])),
        ("[a:b]", json!(["a:b"])),
        ("{a:b}", json!({"a:b": null})),
        ("{a:}", json!({"a:": null})),
        ("{a:, b:}", json!({"a:": null, "b:": null})),
        ("{a:b: c}", json!({"a:b": "c"})),
        ("{a:: b}", json!({"a:": "b"})),
        ("[a::: b]", json!([{"a::": "b"}])),
        ("[http://x:80/]", json!(["http://x:80/"])),
        ("[x::#y]", json!(["x::#y"])),
        ("[x:: #y\n]", json!([{"x:": null}])),
        ("[a::\n, b]", json!([{"a:": null}, "b"])),
        ("[a\n b::, c]", json!(["a b::", "c"])),
        ("{a: b\n c::}", json!({"a": "b c::"})),
        ("[{a: b::}, [c::]]", json!([{"a": "b::"}, ["c::"]])),
        ("{a: [b::], c: {d: e::}}", json!({"a": ["b::"], "c": {"d": "e::"}})),
        ("[&a b::]", json!(["b::"])),
        ("[!!str b::]", json!(["b::"])),
        ("[\"2001:db8::\", '::1', \":\"]", json!(["2001:db8::", "::1", ":"])),
        ("{\"a\":b::}", json!({"a": "b::"})),
        ("[\"a\":]", json!([{"a": null}])),
        ("{a: \"b::\",c: 'd::'}", json!({"a": "b::", "c": "d::"})),
        ("[\u{e9}::, \u{4e2d}:\u{4e2d}]", json!(["\u{e9}::", "\u{4e2d}:\u{4e2d}"])),
        ("v: ::1", json!({"v": "::1"})),
        ("- ::1", json!(["::1"])),
        ("- fd00::", json!([{"fd00:": null}])),
        ("a::: b", json!({"a::": "b"})),
        // An error in kubectl, although it is unambiguous.
        ("[::1, ::/0]", json!(["::1", "::/0"])),
    ] {
        assert_eq!(one(text), value, "{text}");
    }
    for text in ["v: fd00::", "{a: b}::", "{x: 'y'::}", "[a:[b]]", "{a:{b: c}}"] {
        assert!(documents(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn values_without_a_json_form_are_rejected() {
    for (text, says) in [
        ("v: .inf", "not a number that JSON can represent"),
        ("v: !!int x", "not a valid integer"),
        ("v: !secret x", "the tag `!secret`"),
        ("v: !!binary aGk=", "the tag `!!binary`"),
        ("? [a]\n: b", "a list as a key"),
        ("~: b", "an empty key"),
    ] {
        assert!(error(text).message.contains(says), "{text}: {}", error(text));
    }
}

#[test]
fn documents_are_read_one_by_one_and_empty_ones_are_skipped() {
    let all = documents(
        b"# only words\n---\n---\na: 1\n---\n# none\n---\n- 2\n...\n---\n~\n---\n{\"b\": 3}\n",
    )
    .unwrap();
    let found: Vec<_> =
        all.iter().map(|document| (document.line, document.value.clone())).collect();
    assert_eq!(found, [(4, json!({"a": 1})), (8, json!([2])), (13, json!({"b": 3}))]);
    assert!(documents(b"").unwrap().is_empty());
    assert_eq!(documents(b"\xef\xbb\xbfa: 1").unwrap()[0].value, json!({"a": 1}));
    assert_eq!(documents(b"a: 1\r\nb: 2\r\n").unwrap()[0].value, json!({"a": 1, "b": 2}));
}

#[test]
fn json_is_yaml() {
    let value = json!({"a": {"b": [1, 2.5, "\u{1F600}\n\"x\"\\", null, true, {"c:d": "on"}]}, "e": "x".repeat(3000)});
    assert_eq!(one(&serde_json::to_string(&value).unwrap()), value);
    assert_eq!(one(&serde_json::to_string_pretty(&value).unwrap()), value);
    assert_eq!(one(&serde_json::to_string_pretty(&value).unwrap().replace("  ", "\t")), value);
    assert_eq!(
        one("{\"a\":\"\\ud83d\\ude00\",\"b\":\"\\/\"}"),
        json!({"a": "\u{1F600}", "b": "/"})
    );
}

#[test]
fn anchors_aliases_and_merges() {
    let text = "\
base: &base
  a: 1
  b: {c: 2}
plain: *base
merged:
  b: 5
  <<: *base
several:
  <<: [{x: 1, a: 0}, *base]
key: &k name
again: {*k : 3}
";
    let document = documents(text.as_bytes()).unwrap().remove(0);
    assert_eq!(document.value["plain"], json!({"a": 1, "b": {"c": 2}}));
    assert_eq!(document.value["merged"], json!({"b": 5, "a": 1}));
    assert_eq!(document.value["several"], json!({"x": 1, "a": 0, "b": {"c": 2}}));
    assert_eq!(document.value["again"], json!({"name": 3}));
    for (path, line) in
        [("plain", 4), ("plain.a", 2), ("merged.a", 2), ("merged.b", 6), ("several.x", 9)]
    {
        assert_eq!(document.locate(path), Some(line), "{path}");
    }
    assert_eq!(document.locate("several.b.c"), Some(3));
    assert!(error("a: *b").message.contains("anchor"), "{}", error("a: *b"));
    assert!(error("a: &a [*a]").message.contains("inside its own anchor"));
    assert!(error("<<: 5").message.contains("neither a map"));
}

#[test]
fn alias_bombs_are_rejected() {
    let mut aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    let mut merges = "m0: &m0 {k: vvvvvvvv}\n".to_owned();
    for n in 1..12 {
        let items = vec![format!("*a{}", n - 1); 9].join(", ");
        aliases.push_str(&format!("a{n}: &a{n} [{items}]\n"));
        merges.push_str(&format!(
            "m{n}: &m{n} {{<<: *m{0}, a{n}: *m{0}, b{n}: *m{0}, c{n}: *m{0}, d{n}: *m{0}}}\n",
            n - 1
        ));
    }
    assert!(error(&aliases).message.contains("values"), "{}", error(&aliases));
    assert!(error(&merges).message.contains("values"), "{}", error(&merges));
    let text = format!("a: &a {}\nb: [{}]", "x".repeat(1 << 16), vec!["*a"; 1000].join(", "));
    assert!(error(&text).message.contains("aliases repeat"), "{}", error(&text));
    for deep in
        ["[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(100_000), "? ".repeat(100_000)]
    {
        let error = error(&deep);
        assert_eq!(error.line, 1, "{error}");
    }
    let mut deeper = "a0: &a0 [[[[[[[[[[x]]]]]]]]]]\n".to_owned();
    for n in 1..20 {
        deeper.push_str(&format!("a{n}: &a{n} [[[[[[[[[[*a{}]]]]]]]]]]\n", n - 1));
    }
    assert!(error(&deeper).message.contains("128 deep"), "{}", error(&deeper));
    assert!(error("[".to_owned() + &"1,".repeat(2_000_000)).message.contains("values"));
    assert!(error(vec![b' '; MAX_BYTES + 1]).message.contains("16 MiB"));
}

#[test]
fn an_error_names_line_and_column() {
    let cases: [(&[u8], u32, u32, &str); 5] = [
        (b"a: 1\nb: {\n", 2, 4, "unclosed"),
        (b"a: 1\nb: \xff\n", 2, 4, "0xff is not UTF-8"),
        (b"a: 1\n\xc3\xa9: \0\n", 2, 4, "zero byte"),
        (b"a: 1\nb: 2\na: 3\n", 3, 1, "`a` appears twice in this map, first on line 1"),
        (b"x:\n  - {on: 1, true: 2}\n", 2, 13, "`true` appears twice"),
    ];
    for (text, line, column, says) in cases {
        let error = error(text);
        assert_eq!((error.line, error.column), (line, column), "{error}");
        assert!(error.message.contains(says) && !error.message.is_empty(), "{error}");
    }
    assert_eq!((error("a: b: c").line, error("a:\n\tb: 1").line), (1, 2));
}

#[test]
fn locate_finds_the_line_of_a_field_or_of_its_nearest_parent() {
    let text = "\
# a comment
apiVersion: networking.istio.io/v1
metadata:
  annotations:
    a.b/c[0]: x
    a: y
spec:
  hosts: [web]
  http:
  - name: first
    route:
    - destination: {host: web}
    - weight: ten
      destination:
        host: web
  -
    name: second
";
    let document = documents(text.as_bytes()).unwrap().remove(0);
    for (path, line) in [
        ("", 2),
        ("spec", 7),
        ("spec.hosts[0]", 8),
        ("spec.http[0].route[0].destination.host", 12),
        ("spec.http[0].route[1]", 13),
        ("spec.http[0].route[1].weight", 13),
        ("spec.http[0].route[1].destination.host", 15),
        ("spec.http[1].name", 17),
        ("spec.http[0].route[1].destination.port.number", 14),
        ("spec.http[7].route", 9),
        ("metadata.annotations.a.b/c[0]", 5),
        ("metadata.annotations.a", 6),
        ("metadata.name", 3),
    ] {
        assert_eq!(document.locate(path), Some(line), "{path}");
    }
    assert_eq!(document.locate("status.x"), None);
    assert_eq!(document.locate("[0]"), None);
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~\u{e9}\u{4e2d}\n\t]{0,12}".prop_map(Value::from),
        "(yes|no|1e3|~|0x1f|- a|: b|#c|&d|\\*e|!f|%g|@h|<<)".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            // Dots and brackets in a key would make paths ambiguous.
            prop::collection::btree_map("[a-z/ ]{1,6}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Writes `value` as block YAML, a line per scalar, and records the line of each path.
fn write(
    value: &Value,
    indent: usize,
    path: &str,
    out: &mut Vec<String>,
    lines: &mut Vec<(String, u32)>,
) {
    let pad = " ".repeat(indent);
    match value {
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                write_child(item, indent, format!("{pad}-"), format!("{path}[{n}]"), out, lines);
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                let dot = if path.is_empty() { "" } else { "." };
                let head = format!("{pad}{}:", Value::from(key.as_str()));
                write_child(item, indent, head, format!("{path}{dot}{key}"), out, lines);
            }
        }
        other => out.push(format!("{pad}{other}")),
    }
}

/// Writes an item of a list or a member of a map after its `head`.
fn write_child(
    value: &Value,
    indent: usize,
    head: String,
    path: String,
    out: &mut Vec<String>,
    lines: &mut Vec<(String, u32)>,
) {
    let holds = value.as_array().is_some_and(|items| !items.is_empty())
        || value.as_object().is_some_and(|map| !map.is_empty());
    let item_is_below = holds && head.ends_with('-');
    lines.push((path.clone(), u32::try_from(out.len()).unwrap() + 1 + u32::from(item_is_below)));
    if holds {
        out.push(head);
        write(value, indent + 2, &path, out, lines);
    } else {
        out.push(format!("{head} {value}"));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_rejected(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = documents(&bytes);
    }

    #[test]
    fn anything_like_yaml_is_parsed_or_rejected(
        text in "([ \t]{0,4}|[-?:,&*!|>'\"%@{}\\[\\]#]|a|b: |<<: |\\*a|&a |- |---\n|\\.\\.\\.\n|\n|!!int |\u{feff}|\u{2028}|\r){0,40}"
    ) {
        if let Ok(all) = documents(text.as_bytes()) {
            for document in all {
                prop_assert!(document.line >= 1 && document.locate("a.b[0]").is_none_or(|line| line >= 1));
            }
        }
    }

    #[test]
    fn json_values_survive_a_round_trip(value in values()) {
        let text = value.to_string();
        let all = documents(text.as_bytes()).unwrap();
        let back = all.into_iter().next().map_or(Value::Null, |document| document.value);
        prop_assert_eq!(back, value);
    }

    #[test]
    fn documents_survive_a_round_trip_with_their_lines(values in prop::collection::vec(values(), 1..4)) {
        let values: Vec<_> = values.into_iter().filter(|value| !value.is_null()).collect();
        let mut out = Vec::new();
        let mut all_lines = Vec::new();
        for value in &values {
            out.push("---".to_owned());
            let mut lines = Vec::new();
            match value {
                Value::Array(items) if items.is_empty() => out.push("[]".to_owned()),
                Value::Object(map) if map.is_empty() => out.push("{}".to_owned()),
                _ => write(value, 0, "", &mut out, &mut lines),
            }
            all_lines.push(lines);
        }
        let read = documents(out.join("\n").as_bytes()).unwrap();
        prop_assert_eq!(read.iter().map(|document| &document.value).collect::<Vec<_>>(), values.iter().collect::<Vec<_>>());
        for (document, lines) in read.iter().zip(all_lines) {
            for (path, line) in &lines {
                // A path that two fields share (keys may contain dots) has more than one correct line.
                if lines.iter().filter(|(other, _)| other == path).count() == 1 && !path.is_empty() {
                    prop_assert_eq!(document.locate(path), Some(*line), "{} in {}", path, &document.value);
                }
            }
        }
    }
}
