//! Random input with a bounded number of cases; `WEIR_FUZZ_CASES=100000 cargo test --test weir fuzz::` runs more.

mod harness;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRng, TestRunner};

/// Runs `cases`, always the same ones; with `WEIR_FUZZ_CASES` that many random ones.
fn runner(cases: u32) -> TestRunner {
    let wanted: Option<u32> =
        std::env::var("WEIR_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = Config {
        cases: wanted.unwrap_or(cases),
        failure_persistence: None,
        // A case that fails is printed whole in any event.
        max_shrink_iters: 100,
        ..Config::default()
    };
    if wanted.is_some() {
        return TestRunner::new(config);
    }
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    TestRunner::new_with_rng(config, rng)
}

#[test]
fn reading_never_panics() {
    let bytes = proptest::collection::vec(any::<u8>(), 0..200);
    runner(500)
        .run(&bytes, |bytes| {
            harness::read(&bytes);
            Ok(())
        })
        .unwrap();
    // Input that resembles JSON gets further.
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| format!("{n:e}")),
        "\\PC{0,8}".prop_map(|text| serde_json::Value::from(text).to_string()),
    ];
    let names = prop::sample::select(vec![
        "hosts",
        "http",
        "match",
        "route",
        "host",
        "trafficPolicy",
        "subsets",
        "spec",
    ]);
    let json = leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec((names.clone(), inner), 0..4).prop_map(|items| {
                let items: Vec<_> =
                    items.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
                format!("{{{}}}", items.join(","))
            }),
        ]
    });
    runner(500)
        .run(&json, |json| {
            harness::read(json.as_bytes());
            Ok(())
        })
        .unwrap();
}

#[test]
fn envoy_accepts_the_output_for_any_input() {
    let tried = std::cell::Cell::new(harness::Tried::default());
    let bytes = proptest::collection::vec(any::<u8>(), 100..1500);
    runner(60)
        .run(&bytes, |bytes| {
            let (now, before) = (harness::history(&bytes), tried.get());
            tried.set(harness::Tried {
                accepted: before.accepted + now.accepted,
                rejected: before.rejected + now.rejected,
            });
            Ok(())
        })
        .unwrap();
    let tried = tried.get();
    // If all objects were rejected or all accepted, the test would show nothing.
    assert!(tried.accepted > 200 && tried.rejected > 50, "{tried:?}");
}
