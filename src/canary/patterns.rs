//! The writes of a canary, in the orders in which rollout tools and people make them.

use std::collections::BTreeMap;
use std::time::Duration;

/// The time between two writes that belong together, as rollout tools make them.
pub const APART: Duration = Duration::from_millis(9);

/// How long pods take that are written last.
const PODS: Duration = Duration::from_millis(300);

/// A write of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// The DestinationRule: subsets, and the version that each selects.
    Rule(Vec<(&'static str, &'static str)>),
    /// The VirtualService: subsets with weights.
    Route(Vec<(&'static str, u32)>),
    /// The backends that exist, by version.
    Endpoints(Vec<u8>),
}

/// Writes that belong together, after which everything must become live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Each with the pause before it.
    pub writes: Vec<(Duration, Write)>,
    /// Whether this is what the pattern is about, and not the way back.
    pub measured: bool,
}

/// A pattern of a rollout, which may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// What it does.
    pub name: &'static str,
    /// What must be live before.
    pub before: Vec<Write>,
    /// The steps of one cycle, which ends where it began.
    pub cycle: Vec<Step>,
}

/// What the objects say after some writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The subsets and their versions.
    pub rule: BTreeMap<&'static str, &'static str>,
    /// The weights of subsets.
    pub route: BTreeMap<&'static str, u32>,
    /// The versions of which there are backends.
    pub endpoints: Vec<u8>,
}

impl State {
    /// Applies a write.
    pub fn apply(&mut self, write: &Write) {
        match write {
            Write::Rule(subsets) => self.rule = subsets.iter().copied().collect(),
            Write::Route(weights) => self.route = weights.iter().copied().collect(),
            Write::Endpoints(versions) => self.endpoints.clone_from(versions),
        }
    }
}

fn both() -> Write {
    Write::Rule(vec![("v1", "v1"), ("v2", "v2")])
}

fn rule(version: &'static str) -> Write {
    Write::Rule(vec![(version, version)])
}

fn split(v1: u32) -> Write {
    Write::Route(vec![("v1", v1), ("v2", 100 - v1)])
}

/// The route to one subset, without mentioning the other.
fn only(version: &'static str) -> Write {
    Write::Route(vec![(version, 100)])
}

fn pods(versions: &[u8]) -> Write {
    Write::Endpoints(versions.to_vec())
}

fn back(write: Write) -> Step {
    Step { writes: vec![(Duration::ZERO, write)], measured: false }
}

fn step(write: Write) -> Step {
    Step { measured: true, ..back(write) }
}

fn pair(first: Write, then: Write) -> Step {
    Step { writes: vec![(Duration::ZERO, first), (APART, then)], measured: true }
}

/// Where every pattern begins: both versions run and have a subset, and all requests go to v1.
pub fn begin() -> [Write; 3] {
    [pods(&[1, 2]), both(), only("v1")]
}

/// All patterns. They may be played in any order, each after [`begin`].
pub fn all() -> Vec<Pattern> {
    let mut all = subsets();
    all.extend(endpoints());
    let steps = [90, 75, 50, 25, 1, 0].map(|v1| step(split(v1)));
    all.push(Pattern {
        name: "weight steps",
        before: vec![both()],
        cycle: [split(100)].map(back).into_iter().chain(steps).collect(),
    });
    all.push(Pattern {
        name: "rollout is aborted, its pods go",
        before: vec![both()],
        cycle: vec![
            back(pods(&[1, 2])),
            back(split(50)),
            pair(only("v1"), pods(&[1])),
            back(pods(&[1, 2])),
        ],
    });
    all
}

/// Patterns in which the rule and the route change, in both orders.
fn subsets() -> Vec<Pattern> {
    vec![
        added("subset is added, then used", pair(both(), only("v2"))),
        added("subset is used, then added", pair(only("v2"), both())),
        dropped("subset is left, then dropped", pair(only("v2"), rule("v2"))),
        dropped("subset is dropped, then left", pair(rule("v2"), only("v2"))),
    ]
}

/// A subset is added and gets all requests.
fn added(name: &'static str, change: Step) -> Pattern {
    Pattern {
        name,
        before: vec![only("v1"), rule("v1")],
        cycle: vec![change, back(only("v1")), back(rule("v1"))],
    }
}

/// A subset gets no more requests and is dropped.
fn dropped(name: &'static str, change: Step) -> Pattern {
    Pattern {
        name,
        before: vec![both(), split(50)],
        cycle: vec![change, back(both()), back(split(50))],
    }
}

/// Patterns in which pods come late or go early.
fn endpoints() -> Vec<Pattern> {
    let labels_move = Write::Rule(vec![("v1", "v2"), ("v2", "v2")]);
    let late =
        vec![(Duration::ZERO, split(50)), (Duration::ZERO, labels_move), (PODS, pods(&[1, 2]))];
    vec![
        Pattern {
            name: "weight and labels before pods",
            before: vec![both()],
            cycle: vec![
                back(only("v1")),
                back(pods(&[1])),
                Step { writes: late, measured: true },
                back(both()),
            ],
        },
        Pattern {
            name: "old pods go after the switch",
            before: vec![both()],
            cycle: vec![
                back(only("v1")),
                pair(only("v2"), pods(&[2])),
                back(pods(&[1, 2])),
                back(only("v1")),
            ],
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After every step some version with pods takes the requests, so that a failure is the control plane's.
    #[test]
    fn every_step_leads_to_a_state_that_serves() {
        for pattern in all() {
            let mut state = State::default();
            begin().iter().chain(&pattern.before).for_each(|write| state.apply(write));
            let mut ends = Vec::new();
            for step in pattern.cycle.iter().chain(&pattern.cycle) {
                step.writes.iter().for_each(|(_, write)| state.apply(write));
                for (subset, weight) in &state.route {
                    let version = state.rule.get(subset).copied();
                    let version =
                        version.unwrap_or_else(|| panic!("{}: no subset {subset}", pattern.name));
                    let serves = state.endpoints.iter().any(|n| version == format!("v{n}"));
                    assert!(*weight == 0 || serves, "{}: {state:?}", pattern.name);
                }
                ends.push(state.clone());
            }
            let half = ends.len() / 2;
            assert_eq!(ends[half - 1], ends[2 * half - 1], "{}", pattern.name);
            assert!(pattern.cycle.iter().any(|step| step.measured), "{}", pattern.name);
        }
    }
}
