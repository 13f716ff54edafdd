//! Every DestinationRule by namespace and host. Cheap to clone; modified copies share unchanged parts.

use std::cmp::Reverse;
use std::sync::Arc;

use imbl::OrdMap;

use super::host::{self, Host};
use super::rules::DestinationRule;
use crate::api::{self, Labels};
use crate::revision::Revision;

/// The rules of one namespace for one host.
pub(crate) type RulesForHost = Arc<[Arc<DestinationRule>]>;

/// All DestinationRules by namespace.
#[derive(Clone, Debug, Default)]
pub struct DestinationRules {
    by_namespace: OrdMap<Arc<str>, NamespaceRules>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct NamespaceRules {
    exact: OrdMap<Host, RulesForHost>,
    /// The longest first.
    wildcards: OrdMap<(Reverse<usize>, Host), RulesForHost>,
}

impl NamespaceRules {
    /// The rules of the most specific matching host that has a visible rule.
    fn find(&self, host: &str, seen: impl Fn(&DestinationRule) -> bool) -> Option<&RulesForHost> {
        let exact = self.exact.get(host).into_iter();
        let wildcards =
            self.wildcards.iter().filter(|((_, wildcard), _)| host::covers(wildcard, host));
        let mut all = exact.chain(wildcards.map(|(_, rules)| rules));
        all.find(|rules| rules.iter().any(|rule| seen(rule)))
    }

    fn set(&mut self, host: &Host, rules: Vec<Arc<DestinationRule>>) {
        let wildcard = host::is_wildcard(host).then(|| (Reverse(host.len()), host.clone()));
        match (wildcard, rules.is_empty()) {
            (Some(key), true) => drop(self.wildcards.remove(&key)),
            (Some(key), false) => drop(self.wildcards.insert(key, rules.into())),
            (None, true) => drop(self.exact.remove(host)),
            (None, false) => drop(self.exact.insert(host.clone(), rules.into())),
        }
    }

    fn get(&self, host: &Host) -> Option<&RulesForHost> {
        if host::is_wildcard(host) {
            self.wildcards.get(&(Reverse(host.len()), host.clone()))
        } else {
            self.exact.get(host)
        }
    }

    fn covering<'a>(&'a self, host: &str) -> Vec<&'a RulesForHost> {
        let wildcards =
            self.wildcards.iter().filter(|((_, wildcard), _)| host::covers(wildcard, host));
        self.exact.get(host).into_iter().chain(wildcards.map(|(_, rules)| rules)).collect()
    }

    fn all(&self) -> impl Iterator<Item = &RulesForHost> {
        self.exact.values().chain(self.wildcards.values())
    }
}

impl DestinationRules {
    /// Replaces the rules of a namespace for a host; an empty list removes them.
    pub(super) fn set(
        &mut self,
        namespace: &Arc<str>,
        host: &Host,
        rules: Vec<Arc<DestinationRule>>,
    ) {
        let mut of_namespace = self.by_namespace.get(namespace).cloned().unwrap_or_default();
        of_namespace.set(host, rules);
        if of_namespace.exact.is_empty() && of_namespace.wildcards.is_empty() {
            self.by_namespace.remove(namespace);
        } else {
            self.by_namespace.insert(namespace.clone(), of_namespace);
        }
    }

    /// The rule for a host from the point of view of a client: from the client's namespace, else exported from the
    /// service's namespace, else exported from the root namespace; the first of these that has a rule is used. Within a
    /// namespace only the rules for the most specific host are used. A rule that selects other proxies also hides the
    /// rules for all proxies in its namespace (measured on Istiod). Among rules for all proxies that differ in
    /// visibility, the newest wins. Source: Istio's documentation, "Global namespace aliases" of
    /// `DestinationRule.exportTo`, and its code.
    pub(crate) fn find(
        &self,
        host: &str,
        service_namespace: &str,
        root_namespace: &str,
        client_namespace: &str,
        client_labels: &Labels,
    ) -> Option<&Arc<DestinationRule>> {
        let found = self.deciding_rules(host, service_namespace, root_namespace, client_namespace);
        // A selector applies to workloads of the rule's own namespace. A rule that selects the proxy beats one for all
        // proxies.
        let selecting = found.iter().copied().find(|rule| {
            rule.selector.as_ref().is_some_and(|selector| {
                *rule.namespace == *client_namespace && api::selects(selector, client_labels)
            })
        });
        selecting.or_else(|| for_all(&found))
    }

    /// The same for inbound traffic at the service's own workloads, where rules that select clients do not apply.
    pub(crate) fn find_inbound(
        &self,
        host: &str,
        service_namespace: &str,
        root_namespace: &str,
        namespace: &str,
    ) -> Option<&Arc<DestinationRule>> {
        for_all(&self.deciding_rules(host, service_namespace, root_namespace, namespace))
    }

    /// The rules of the namespace that decides.
    fn deciding_rules(
        &self,
        host: &str,
        service_namespace: &str,
        root_namespace: &str,
        client_namespace: &str,
    ) -> Vec<&Arc<DestinationRule>> {
        // For proxies of the root namespace, its public rules must not take precedence over those of the service's
        // namespace.
        let mut found = self.visible_rules(client_namespace, host, client_namespace, |rule| {
            if client_namespace == root_namespace {
                rule.is_private()
            } else {
                rule.visibility.includes(client_namespace)
            }
        });
        for namespace in [service_namespace, root_namespace] {
            if found.is_empty() {
                found = self
                    .visible_rules(namespace, host, client_namespace, |rule| !rule.is_private());
            }
        }
        found
    }

    /// The visible rules of a namespace that `which` admits, for the most specific host that has any.
    fn visible_rules(
        &self,
        namespace: &str,
        host: &str,
        client_namespace: &str,
        which: impl Fn(&DestinationRule) -> bool,
    ) -> Vec<&Arc<DestinationRule>> {
        let rules = self.by_namespace.get(namespace).and_then(|rules| rules.find(host, &which));
        rules
            .into_iter()
            .flat_map(|rules| rules.iter())
            .filter(|rule| which(rule) && rule.visibility.includes(client_namespace))
            .collect()
    }

    /// The rules of a namespace for exactly this host.
    pub(crate) fn of_host(&self, namespace: &str, host: &Host) -> &[Arc<DestinationRule>] {
        self.by_namespace
            .get(namespace)
            .and_then(|rules| rules.get(host))
            .map_or(&[], |rules| rules)
    }

    /// The same, with the rules of these revisions replaced.
    pub(crate) fn with<'a>(
        &self,
        others: impl Iterator<Item = (&'a Revision, &'a Arc<DestinationRule>)>,
    ) -> Self {
        let mut same = self.clone();
        for (revision, other) in others {
            let rules =
                same.by_namespace.get(&other.namespace).and_then(|rules| rules.get(&other.host));
            let Some(rules) = rules else { continue };
            let replaced = rules
                .iter()
                .map(|rule| if rule.revision == *revision { other } else { rule }.clone());
            let rules = replaced.collect();
            same.set(&other.namespace, &other.host, rules);
        }
        same
    }

    /// Every rule, in any namespace, that applies to a host by name or wildcard.
    pub(crate) fn all(&self, host: &str) -> Vec<&Arc<DestinationRule>> {
        self.by_namespace
            .values()
            .flat_map(|rules| rules.covering(host))
            .flat_map(|rules| rules.iter())
            .collect()
    }

    /// Every rule.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.by_namespace.values().flat_map(|rules| rules.all().flat_map(|rules| rules.iter()))
    }

    /// Calls `found` with the rules for each namespace and host at which two states differ, old and new.
    pub(crate) fn diff(
        &self,
        new: &Self,
        mut found: impl FnMut(Option<&RulesForHost>, Option<&RulesForHost>),
    ) {
        let none = NamespaceRules::default();
        super::diff(&self.by_namespace, &new.by_namespace, |_, old, new| {
            let (old, new) = (old.unwrap_or(&none), new.unwrap_or(&none));
            super::diff(&old.exact, &new.exact, |_, old, new| found(old, new));
            super::diff(&old.wildcards, &new.wildcards, |_, old, new| {
                found(old, new);
            });
        });
    }
}

fn for_all<'a>(found: &[&'a Arc<DestinationRule>]) -> Option<&'a Arc<DestinationRule>> {
    found.iter().copied().rfind(|rule| rule.selector.is_none())
}
