//! Which objects of a cluster are read: all of them, those of one namespace, or those of the namespaces that discovery
//! selectors match; and of Istio's objects only those of one revision.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use kube::core::{Expression, Selector, SelectorExt as _};

use crate::api::{Kind, Labels, is_label_name, is_label_value};

/// The objects of a cluster that are read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// The revision whose Istio objects are read besides those without a revision; `None` reads all.
    pub revision: Option<Arc<str>>,
    /// The namespaces whose objects are read.
    pub namespaces: Namespaces,
}

/// The namespaces whose objects are read.
#[derive(Clone, Debug, Default)]
pub enum Namespaces {
    /// All of them.
    #[default]
    All,
    /// One. The Namespace itself and the Nodes are not read, so permissions in that namespace are enough.
    One(Arc<str>),
    /// Those that at least one of the selectors matches; never empty. Source: Istio's `meshConfig.discoverySelectors`.
    Matching(Arc<[DiscoverySelector]>),
}

impl Selection {
    /// The kinds that are read.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = Kind> + use<> {
        let one_namespace = matches!(self.namespaces, Namespaces::One(_));
        Kind::ALL.into_iter().filter(move |kind| kind.namespaced() || !one_namespace)
    }
}

/// A selector for namespaces in the notation of kubectl: `env=prod,team in (a,b),!legacy`. All of its requirements must
/// hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoverySelector(Selector);

impl DiscoverySelector {
    /// Whether it selects a namespace with these labels.
    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.0.matches(labels)
    }
}

impl fmt::Display for DiscoverySelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for DiscoverySelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let requirements = split(text).into_iter().map(requirement);
        requirements.collect::<Result<Vec<_>, _>>().map(|all| Self(all.into_iter().collect()))
    }
}

/// Splits at the commas outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    text.split(|character| {
        depth += i32::from(character == '(') - i32::from(character == ')');
        character == ',' && depth == 0
    })
    .collect()
}

fn requirement(text: &str) -> Result<Expression, String> {
    let text = text.trim();
    if let Some(key) = text.strip_prefix('!') {
        return Ok(Expression::DoesNotExist(label_key(key)?));
    }
    if let Some((key, value)) = text.split_once("!=") {
        return Ok(Expression::NotEqual(label_key(key)?, label_value(value)?));
    }
    if let Some((key, value)) = text.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value);
        return Ok(Expression::Equal(label_key(key)?, label_value(value)?));
    }
    if let Some((head, values)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let values = values.split(',').map(label_value).collect::<Result<BTreeSet<_>, _>>()?;
        let head: Vec<&str> = head.split_whitespace().collect();
        return match head.as_slice() {
            [key, "in"] => Ok(Expression::In(label_key(key)?, values)),
            [key, "notin"] => Ok(Expression::NotIn(label_key(key)?, values)),
            _ => Err(unreadable(text)),
        };
    }
    Ok(Expression::Exists(label_key(text)?))
}

fn unreadable(text: &str) -> String {
    format!(
        "`{text}`: expected requirements such as env=prod, env!=dev, `team in (a,b)`, `team notin (a,b)`, env or \
         !env, separated by commas"
    )
}

fn label_key(text: &str) -> Result<String, String> {
    let text = text.trim();
    if is_label_name(text) { Ok(text.to_owned()) } else { Err(unreadable(text)) }
}

fn label_value(text: &str) -> Result<String, String> {
    let text = text.trim();
    if is_label_value(text) { Ok(text.to_owned()) } else { Err(unreadable(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_selector_means_what_kubectl_takes_it_for() {
        let shop = labels(&[("env", "prod"), ("team", "a"), ("istio.io/rev", "weir")]);
        let none = labels(&[]);
        for (text, of_shop, of_none) in [
            ("env=prod", true, false),
            ("env==prod", true, false),
            ("env=dev", false, false),
            ("env!=prod", false, true),
            ("env", true, false),
            ("!env", false, true),
            ("team in (a, b)", true, false),
            ("team notin (a,b)", false, true),
            ("team notin (b)", true, true),
            ("env=prod,team in (a,b)", true, false),
            ("env=prod,team in (b,c)", false, false),
            (" istio.io/rev = weir , !legacy", true, false),
            ("env=", false, false),
            ("env in (prod),team=a", true, false),
        ] {
            let selector: DiscoverySelector = text.parse().unwrap_or_else(|why| panic!("{why}"));
            assert_eq!(selector.matches(&shop), of_shop, "{text}");
            assert_eq!(selector.matches(&none), of_none, "{text}");
            let again: DiscoverySelector = selector.to_string().parse().unwrap();
            assert_eq!(again, selector, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_selector_is_refused_with_what_would_be_one() {
        for text in [
            "",
            ",",
            "env=prod,",
            "=prod",
            "env=a b",
            "team in",
            "team in a",
            "team of (a)",
            "(a)",
            "a/b/c=d",
            "team in (a",
            "env=(a)",
            "-env",
            "env=prod_",
            "!",
            "a b",
            "env in (a),,b",
            "ENV!/x",
        ] {
            let why = text.parse::<DiscoverySelector>().unwrap_err();
            assert!(why.contains("expected requirements such as env=prod"), "{text}: {why}");
        }
        let long = "a".repeat(64);
        assert!(long.parse::<DiscoverySelector>().is_err());
        assert!(long[1..].parse::<DiscoverySelector>().is_ok());
    }
}
