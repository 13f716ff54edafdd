//! Finds the virtual hosts that a client rejects, so that the others in their route configuration reach it.
//!
//! A client rejects a route configuration as a whole and may not say why. The virtual hosts that changed are then sent
//! in halves, until each rejected virtual host was sent alone. The client keeps its version of those.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::rejection::{Rejection, is_named};
use crate::snapshot::{EncodedVirtualHost, Resource, Resources, RouteTable};

/// Whether a client gets the new version of a virtual host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostVerdict {
    /// It does.
    Allowed,
    /// It waits while others are tried.
    Untried,
    /// The client rejected it.
    Rejected,
}

/// Virtual hosts that are tried together, with their versions.
type Group = BTreeMap<Arc<str>, u64>;

#[derive(Debug, Default)]
struct TableTrials {
    rejected: BTreeMap<Arc<str>, Rejection>,
    /// Groups of virtual hosts to be tried; the last one is next, or in flight.
    groups: Vec<Group>,
}

/// The route configurations in which a client rejected virtual hosts.
#[derive(Debug, Default)]
pub(super) struct Trials {
    tables: BTreeMap<Arc<str>, TableTrials>,
}

impl Trials {
    /// The client rejected `sent`, and still has `had`. Returns whether only some virtual hosts are at fault; otherwise
    /// the whole route configuration counts as rejected.
    pub(crate) fn contain(
        &mut self,
        had: Option<&RouteTable>,
        sent: &Resource,
        message: &Arc<str>,
    ) -> bool {
        let Some(table) = sent.table() else { return false };
        let empty = RouteTable::new(table.head().clone());
        let had = had.unwrap_or(&empty);
        let mut changed: Vec<&Arc<EncodedVirtualHost>> = Vec::new();
        // A shortened one is the version that the client had, except for its domains.
        had.diff(table, |_, _, after| changed.extend(after.filter(|host| !host.is_shortened)));
        if changed.is_empty() || had.head() != table.head() {
            return false;
        }
        let trials = self.tables.entry(sent.name.clone()).or_default();
        trials.groups.pop();
        let mut named: Vec<_> =
            changed.iter().copied().filter(|host| is_named(message, &host.name)).collect();
        if let [host] = changed.as_slice() {
            named = vec![*host];
        }
        if named.is_empty() {
            let (left, right) = changed.split_at(changed.len() / 2);
            trials.groups.extend([right, left].map(|hosts| {
                hosts.iter().map(|host| (host.name.clone(), host.version())).collect::<Group>()
            }));
        }
        for host in named {
            let (version, objects) = (host.version(), host.objects.clone());
            let rejection = Rejection { version, objects, message: message.clone() };
            trials.rejected.insert(host.name.clone(), rejection);
        }
        true
    }

    /// Ends the trial of the next group of `table`: the client accepted it, or it cannot be tried now.
    pub(crate) fn end_group(&mut self, table: &str) {
        if let Some(trials) = self.tables.get_mut(table) {
            trials.groups.pop();
        }
    }

    /// Forgets the versions of virtual hosts that are not in `target`, and tables that the client does not ask for.
    pub(crate) fn prune(&mut self, target: &Resources, wants: impl Fn(&str) -> bool) {
        self.tables.retain(|name, trials| {
            let table =
                target.get(name).filter(|_| wants(name)).and_then(|resource| resource.table());
            trials.rejected.retain(|host, rejection| has_version(table, host, rejection.version));
            for group in &mut trials.groups {
                group.retain(|host, version| has_version(table, host, *version));
            }
            trials.groups.retain(|group| !group.is_empty());
            !trials.rejected.is_empty() || !trials.groups.is_empty()
        });
    }

    /// Whether virtual hosts of `table` were rejected or are being tried.
    pub(crate) fn concern(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    /// The tables with groups that are still to be tried.
    pub(crate) fn pending(&self) -> impl Iterator<Item = &Arc<str>> {
        self.tables.iter().filter(|(_, trials)| !trials.groups.is_empty()).map(|(name, _)| name)
    }

    /// Whether the client gets this version of a virtual host of `table`.
    pub(crate) fn verdict(&self, table: &str, host: &EncodedVirtualHost) -> HostVerdict {
        let Some(trials) = self.tables.get(table) else {
            return HostVerdict::Allowed;
        };
        let version = host.version();
        if trials.rejected.get(&host.name).is_some_and(|rejection| rejection.version == version) {
            return HostVerdict::Rejected;
        }
        match trials.groups.last() {
            Some(group) if group.get(&host.name) != Some(&version) => HostVerdict::Untried,
            _ => HostVerdict::Allowed,
        }
    }

    /// The rejected virtual hosts: table, virtual host and rejection.
    pub(crate) fn rejections(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>, &Rejection)> {
        self.tables.iter().flat_map(|(table, trials)| {
            trials.rejected.iter().map(move |(host, rejection)| (table, host, rejection))
        })
    }
}

/// Whether the table has this version of a virtual host.
fn has_version(table: Option<&RouteTable>, host: &str, version: u64) -> bool {
    table.and_then(|table| table.find(host)).is_some_and(|host| host.version() == version)
}
