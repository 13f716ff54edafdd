//! The random mesh: services with subsets, external hosts, virtual hosts that route to some of them, and TCP listeners.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::resources::{dns_cluster, eds_cluster, endpoints, resource};
use super::Dice;
use crate::snapshot::ResourceType::{Cluster, Endpoints, Listener, Route};
use crate::snapshot::{Resource, ResourceType, Resources, Snapshot};

pub(crate) const SERVICES: u64 = 3;
pub(crate) const SUBSETS: u64 = 4;

/// A service and one of its subsets; 0 is the service as a whole.
pub(crate) type Subset = (u64, u64);

#[derive(Clone, Debug, Default)]
pub(crate) struct Mesh {
    /// Subsets with the policy of their clusters.
    pub clusters: BTreeMap<Subset, u32>,
    /// External hosts, likewise.
    pub external: BTreeMap<u64, u32>,
    /// How often the endpoints of a service changed.
    pub generations: BTreeMap<u64, u32>,
    /// Subsets without endpoints.
    pub empty: BTreeSet<Subset>,
    /// The clusters that each host of each route configuration references.
    pub hosts: BTreeMap<(u64, u64), String>,
    /// The last weight that was written.
    pub weight: u32,
    /// TCP listeners.
    pub tcp: BTreeMap<u64, String>,
    /// Names of resources that the client rejects.
    pub bad: BTreeSet<(ResourceType, String)>,
}

pub(crate) fn cluster_name((service, subset): Subset) -> String {
    let subset = if subset == 0 { String::new() } else { format!("v{subset}") };
    format!("outbound|80|{subset}|service-{service}")
}

pub(crate) fn external_name(number: u64) -> String {
    format!("external-{number}")
}

impl Mesh {
    /// One service, and a host that routes to it.
    pub(crate) fn new() -> Self {
        Self::default().with(&[(0, 0), (0, 1)]).leading(0, &[(0, 0)])
    }

    /// With these subsets.
    pub(crate) fn with(mut self, subsets: &[Subset]) -> Self {
        self.clusters.extend(subsets.iter().map(|subset| (*subset, 0)));
        self
    }

    /// With a host that routes to these subsets.
    pub(crate) fn leading(mut self, host: u64, to: &[Subset]) -> Self {
        let names: Vec<_> = to.iter().map(|subset| cluster_name(*subset)).collect();
        self.hosts.insert((80, host), names.join(","));
        self
    }

    /// With another policy for the cluster of a subset.
    pub(crate) fn with_policy(mut self, subset: Subset, policy: u32) -> Self {
        self.clusters.insert(subset, policy);
        self
    }

    /// With no endpoints in a subset.
    pub(crate) fn without_endpoints(mut self, subset: Subset) -> Self {
        self.empty.insert(subset);
        self
    }

    /// One change of any kind.
    pub(crate) fn write(&mut self, dice: &mut Dice) {
        match dice.roll(28) {
            0..=3 => {
                self.clusters.entry(any_subset(dice)).or_insert(0);
            }
            4..=6 => {
                self.clusters.remove(&any_subset(dice));
            }
            7..=8 => {
                if let Some(policy) = self.clusters.get_mut(&any_subset(dice)) {
                    *policy += 1;
                }
            }
            9 => *self.generations.entry(dice.roll(SERVICES)).or_default() += 1,
            10..=11 => {
                let subset = any_subset(dice);
                if !self.empty.remove(&subset) {
                    self.empty.insert(subset);
                }
            }
            12..=16 => self.write_host(dice),
            17 => {
                self.hosts.remove(&(80 + dice.roll(2), dice.roll(4)));
            }
            18 => {
                self.tcp.insert(dice.roll(2), any_cluster(dice));
            }
            19 => {
                self.tcp.remove(&dice.roll(2));
            }
            20 => self.write_external(dice),
            24..=27 => self.write_weight(dice),
            21 if dice.in_few(2) => self.spoil(dice),
            _ => {
                self.bad.pop_first();
            }
        }
    }

    fn write_host(&mut self, dice: &mut Dice) {
        let mut to: Vec<_> = (0..=dice.roll(2)).map(|_| any_cluster(dice)).collect();
        to.dedup();
        self.weight += 1;
        let text = format!("{}*{}", to.join(","), self.weight);
        self.hosts.insert((80 + dice.roll(2), dice.roll(4)), text);
    }

    /// A change of weights only. Each weight is larger than all before it.
    fn write_weight(&mut self, dice: &mut Dice) {
        self.weight += 1;
        if let Some(text) = self.hosts.get_mut(&(80 + dice.roll(2), dice.roll(4)))
            && let Some((to, _)) = text.split_once('*')
        {
            *text = format!("{to}*{}", self.weight);
        }
    }

    fn write_external(&mut self, dice: &mut Dice) {
        let number = dice.roll(2);
        if self.external.remove(&number).is_none() {
            self.external.insert(number, u32::try_from(dice.roll(3)).unwrap());
        }
    }

    fn spoil(&mut self, dice: &mut Dice) {
        let subset = any_subset(dice);
        self.bad.insert(match dice.roll(5) {
            0 | 1 => (Cluster, cluster_name(subset)),
            2 => (Endpoints, cluster_name(subset)),
            3 => (Route, (80 + dice.roll(2)).to_string()),
            _ => (Listener, format!("tcp-{}", dice.roll(2))),
        });
    }

    pub(crate) fn snapshot(&self, revision: u64) -> Arc<Snapshot> {
        let mut clusters = vec![resource(Cluster, "fixed", "fixed")];
        let mut assignments = Vec::new();
        for (subset, policy) in &self.clusters {
            let name = cluster_name(*subset);
            let generation = self.generations.get(&subset.0).copied().unwrap_or(0);
            let number = (!self.empty.contains(subset)).then_some(generation + 1);
            clusters.push(eds_cluster(&name, *policy, self.is_bad(Cluster, &name)));
            assignments.push(endpoints(&name, number, self.is_bad(Endpoints, &name)));
        }
        clusters.extend(
            self.external
                .iter()
                .map(|(number, policy)| dns_cluster(&external_name(*number), *policy)),
        );
        let mut tables: BTreeMap<String, String> = BTreeMap::new();
        for ((table, host), to) in &self.hosts {
            *tables.entry(table.to_string()).or_default() += &format!("host-{host}>{to} ");
        }
        let mut listeners = Vec::new();
        let mut routes = Vec::new();
        for (table, mut hosts) in tables {
            if self.is_bad(Route, &table) {
                hosts += "bad>fixed";
            }
            listeners.push(resource(
                Listener,
                &format!("http-{table}"),
                &format!("http {table}>fixed"),
            ));
            routes.push(resource(Route, &table, &hosts));
        }
        for (number, to) in &self.tcp {
            let name = format!("tcp-{number}");
            let prefix = if self.is_bad(Listener, &name) { "bad " } else { "" };
            let body = format!("{prefix}{name} tcp>{to}");
            listeners.push(resource(Listener, &name, &body));
        }
        Arc::new(Snapshot::new(
            revision.into(),
            [clusters, assignments, listeners, routes].map(by_name),
        ))
    }

    /// Whether the client should reject a resource.
    fn is_bad(&self, kind: ResourceType, name: &str) -> bool {
        self.bad.contains(&(kind, name.to_owned()))
    }
}

fn by_name(all: Vec<Arc<Resource>>) -> Resources {
    all.into_iter().collect()
}

fn any_subset(dice: &mut Dice) -> Subset {
    (dice.roll(SERVICES), dice.roll(SUBSETS))
}

fn any_cluster(dice: &mut Dice) -> String {
    if dice.in_few(8) { external_name(dice.roll(2)) } else { cluster_name(any_subset(dice)) }
}
