//! Resolves which virtual host of a route configuration gets a domain that several of them claim.
//!
//! Envoy rejects a route configuration in which a domain occurs twice, ignoring case. The virtual host with the highest
//! precedence keeps the domain; the others lose it.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::{HashMap, OrdMap};
use xxhash_rust::xxh3::xxh3_64;

use super::{EncodedVirtualHost, RouteTable};
use crate::mesh::Precedence;

/// The precedence of virtual hosts for domains: first VirtualServices in their order, each with its hosts that are not
/// services first; then services without a VirtualService.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// It comes from a VirtualService; whether its host is a service.
    Ruled(Precedence, bool),
    /// It comes from a service without a VirtualService.
    Plain,
}

/// A virtual host and the domains it claims.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub rank: Rank,
    pub host: Arc<EncodedVirtualHost>,
}

/// The virtual hosts of one route configuration with all the domains that they claim, and the claimants of each domain.
/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Domains {
    claims: OrdMap<Arc<str>, Claim>,
    /// The claimants of domains with a dot.
    dotted: Claimants,
    /// Those of the others: short names, which services have only for the proxies of their namespace. Scopes of different
    /// namespaces differ in these alone, so they share the map of the others, which is large.
    short: Claimants,
}

/// The names of the virtual hosts that claim a domain, by the domain's hash.
type Claimants = HashMap<u64, Arc<[Arc<str>]>>;

impl PartialEq for Claim {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank && self.host == other.host
    }
}

fn key(domain: &str) -> u64 {
    xxh3_64(domain.to_ascii_lowercase().as_bytes())
}

impl Claim {
    /// The domains of a claim that another one lacks.
    fn only<'a>(this: Option<&'a Self>, other: Option<&Self>) -> Vec<&'a str> {
        let other = other.map_or(&[][..], |other| &other.host.domains);
        let all = this.into_iter().flat_map(|claim| claim.host.domains.iter());
        all.filter(|domain| !other.iter().any(|other| other.eq_ignore_ascii_case(domain)))
            .map(String::as_str)
            .collect()
    }
}

impl Domains {
    /// Replaces or removes the claim of this name, and updates `table`.
    pub(crate) fn set(&mut self, name: &Arc<str>, new: Option<Claim>, table: &mut RouteTable) {
        let old = match &new {
            Some(new) => self.claims.insert(name.clone(), new.clone()),
            None => self.claims.remove(name),
        };
        if let Some((old, new)) = old.as_ref().zip(new.as_ref())
            && old.rank == new.rank
            && old.host.domains == new.host.domains
            && !self.is_disputed(new)
        {
            table.set(name, Some(new.host.clone()));
            return;
        }
        let mut touched = BTreeSet::from([name.clone()]);
        for domain in old.iter().chain(&new).flat_map(|claim| claim.host.domains.iter()) {
            touched.extend(self.wanting(domain).iter().cloned());
        }
        for domain in Claim::only(old.as_ref(), new.as_ref()) {
            let others = self.wanting(domain).iter().filter(|other| *other != name);
            self.set_wanting(domain, others.cloned().collect());
        }
        for domain in Claim::only(new.as_ref(), old.as_ref()) {
            let others = self.wanting(domain).iter().filter(|other| *other != name);
            self.set_wanting(domain, others.chain([name]).cloned().collect());
        }
        for name in touched {
            table.set(&name, self.resolved(&name));
        }
    }

    /// Whether there is no claim.
    pub(crate) fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// Whether any virtual host claims this domain.
    pub(crate) fn has(&self, domain: &str) -> bool {
        !self.wanting(domain).is_empty()
    }

    fn wanting(&self, domain: &str) -> &[Arc<str>] {
        let claimants = if domain.contains('.') { &self.dotted } else { &self.short };
        claimants.get(&key(domain)).map_or(&[], |names| names)
    }

    fn set_wanting(&mut self, domain: &str, names: Arc<[Arc<str>]>) {
        let claimants = if domain.contains('.') { &mut self.dotted } else { &mut self.short };
        if names.is_empty() {
            claimants.remove(&key(domain));
        } else {
            claimants.insert(key(domain), names);
        }
    }

    fn is_disputed(&self, claim: &Claim) -> bool {
        claim.host.domains.iter().any(|domain| self.wanting(domain).len() > 1)
    }

    /// The virtual host of a name without the domains that another keeps; `None` if no domain is left.
    fn resolved(&self, name: &Arc<str>) -> Option<Arc<EncodedVirtualHost>> {
        let claim = self.claims.get(name)?;
        let domains = claim.host.domains.iter();
        let taken: BTreeSet<String> = domains
            .filter(|domain| {
                self.wanting(domain).iter().any(|other| {
                    let rank = self.claims.get(other).map(|other| &other.rank);
                    other != name && rank.is_some_and(|rank| (rank, other) < (&claim.rank, name))
                })
            })
            .map(|domain| domain.to_ascii_lowercase())
            .collect();
        if taken.is_empty() {
            Some(claim.host.clone())
        } else {
            claim.host.without(&taken).map(Arc::new)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use envoy_types::pb::envoy::config::route::v3 as route;

    fn claim(name: &str, domains: &[&str]) -> Claim {
        let domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
        let host = route::VirtualHost { name: name.into(), domains, ..Default::default() };
        Claim { rank: Rank::Plain, host: Arc::new(EncodedVirtualHost::new(host, Arc::default())) }
    }

    fn shown(table: &RouteTable) -> Vec<(String, Vec<String>)> {
        table.iter().map(|host| (host.name.to_string(), host.domains.to_vec())).collect()
    }

    #[test]
    fn a_short_name_more_leaves_the_other_domains_alone() {
        let (mut domains, mut table) = (Domains::default(), RouteTable::new(Bytes::new()));
        let others = claim("a.shop:80", &["a.shop", "A.shop.svc"]);
        domains.set(&others.host.name.clone(), Some(others), &mut table);
        let before = domains.clone();
        let own = claim("a.shop:80", &["a.shop", "a.shop.svc", "a"]);
        domains.set(&own.host.name.clone(), Some(own), &mut table);
        assert!(domains.dotted.ptr_eq(&before.dotted));
        assert!(domains.has("A") && domains.has("a.shop.svc") && !before.has("a"));
        domains.set(&"a.shop:80".into(), None, &mut table);
        assert!(domains.dotted.is_empty() && domains.short.is_empty());
    }

    #[test]
    fn a_domain_is_unique_and_the_first_virtual_host_keeps_it_in_any_order_of_changes() {
        let all = [claim("a", &["x", "Y"]), claim("b", &["y", "z"]), claim("c", &["X"])];
        let wanted = [
            ("a".to_owned(), vec!["x".to_owned(), "Y".to_owned()]),
            ("b".to_owned(), vec!["z".to_owned()]),
        ];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [1, 0, 2]] {
            let (mut domains, mut table) = (Domains::default(), RouteTable::new(Bytes::new()));
            for at in order {
                domains.set(&all[at].host.name.clone(), Some(all[at].clone()), &mut table);
            }
            assert_eq!(shown(&table), wanted, "{order:?}");
            domains.set(&"a".into(), None, &mut table);
            let left = [
                ("b".to_owned(), vec!["y".to_owned(), "z".to_owned()]),
                ("c".to_owned(), vec!["X".to_owned()]),
            ];
            assert_eq!(shown(&table), left, "{order:?}");
        }
    }
}
