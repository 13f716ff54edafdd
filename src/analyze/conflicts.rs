//! DestinationRules for the same host.

use super::index::{Index, IndexedDestinationRule, overlap};
use super::{Findings, code};
use crate::store::Entry;

/// Two DestinationRules in one namespace for the same host are merged if they apply to the same clients.
pub(super) fn check(index: &Index<'_>, found: &mut Findings) {
    for places in index.rules_by_host.values() {
        let mut rules: Vec<_> =
            places.iter().filter_map(|n| index.destination_rules.get(*n)).collect();
        rules.sort_by_key(|rule| {
            let meta = &rule.entry.object.meta;
            (meta.namespace.clone(), meta.age, meta.name.clone())
        });
        for of_namespace in rules.chunk_by(|a, b| a.namespace() == b.namespace()) {
            for (place, rule) in of_namespace.iter().enumerate() {
                let older = of_namespace.get(..place).unwrap_or_default();
                with_older(rule, older, found);
            }
        }
    }
}

/// `older` is sorted, oldest first.
fn with_older(
    rule: &IndexedDestinationRule<'_>,
    older: &[&IndexedDestinationRule<'_>],
    found: &mut Findings,
) {
    let mut same_clients = older
        .iter()
        .copied()
        .filter(|older| older.spec.workload_selector == rule.spec.workload_selector);
    let merged: Vec<_> =
        same_clients.clone().filter(|older| older.visibility == rule.visibility).collect();
    let Some(first) = merged.first() else {
        if let Some(winner) =
            same_clients.find(|older| overlap(&older.visibility, &rule.visibility))
        {
            let message = format!(
                "{} {} and has the same host but a different exportTo, so they are not merged: clients that see both \
                    use only that one",
                winner.entry.object.key(),
                comes_first(winner.entry)
            );
            found.add(
                &code::RULE_CONFLICT,
                rule.entry,
                "spec.host",
                message,
                "give both the same exportTo, or merge them",
            );
        }
        return;
    };
    let (first, why) = (first.entry.object.key(), comes_first(first.entry));
    let message =
        format!("{first} {why} and has the same host: the subsets of this rule are added to it");
    found.add(
        &code::MERGED,
        rule.entry,
        "spec.host",
        message,
        "merge them if they have the same owner",
    );
    overridden(rule, &merged, found);
}

/// The fields that have no effect because an older rule that this one is merged with sets them too.
fn overridden(
    rule: &IndexedDestinationRule<'_>,
    merged: &[&IndexedDestinationRule<'_>],
    found: &mut Findings,
) {
    if let Some(policy) = &rule.spec.traffic_policy
        && let Some(winner) = merged.iter().find(|older| older.spec.traffic_policy.is_some())
        && winner.spec.traffic_policy.as_ref() != Some(policy)
    {
        let (winner, why) = (winner.entry.object.key(), comes_first(winner.entry));
        let message = format!("has no effect: {winner} {why} and sets it too");
        let advice = "move it there, or into the subsets";
        found.add(&code::RULE_CONFLICT, rule.entry, "spec.trafficPolicy", message, advice);
    }
    for (n, subset) in rule.spec.subsets.iter().enumerate() {
        let winner = merged.iter().find(|older| older.has_subset(&subset.name));
        if let Some(winner) = winner {
            let (winner, why) = (winner.entry.object.key(), comes_first(winner.entry));
            let message =
                format!("`{}` has no effect: {winner} {why} and defines it too", subset.name);
            let path = format!("spec.subsets[{n}].name");
            found.add(
                &code::RULE_CONFLICT,
                rule.entry,
                path,
                message,
                "rename or remove one of them",
            );
        }
    }
}

/// Why an object takes precedence.
pub(super) fn comes_first(winner: &Entry) -> &'static str {
    if winner.object.meta.age.created == i64::MAX { "comes first" } else { "is older" }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{base, found};

    fn rule(name: &str, fields: &str) -> String {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: {name}, namespace: shop}}\nspec: {{host: other, {fields}}}\n"
        )
    }

    fn found_in_two(a: &str, b: &str) -> Vec<(&'static str, String)> {
        found(&(base() + &rule("b", a) + &rule("a", b)))
    }

    fn load_balancer(kind: &str) -> String {
        format!("trafficPolicy: {{loadBalancer: {{simple: {kind}}}}}")
    }

    fn subset(name: &str) -> String {
        format!("subsets: [{{name: {name}, labels: {{version: v1}}}}]")
    }

    #[test]
    fn two_rules_for_one_host_are_merged() {
        let merged = ("WEIR0102", "spec.host".to_owned());
        assert_eq!(found_in_two(&subset("a"), &subset("b")), std::slice::from_ref(&merged));
        assert_eq!(
            found_in_two(&load_balancer("RANDOM"), &load_balancer("RANDOM")),
            std::slice::from_ref(&merged)
        );
        let policy = ("WEIR0103", "spec.trafficPolicy".to_owned());
        assert_eq!(
            found_in_two(&load_balancer("RANDOM"), &load_balancer("ROUND_ROBIN")),
            [policy, merged.clone()]
        );
        let name = ("WEIR0103", "spec.subsets[0].name".to_owned());
        assert_eq!(found_in_two(&subset("a"), &subset("a")), [name, merged]);
        let apart = found_in_two("exportTo: [.]", &subset("a"));
        assert_eq!(apart, [("WEIR0103", "spec.host".to_owned())]);
        assert_eq!(found_in_two("exportTo: [p]", "exportTo: [q]"), []);
    }
}
