//! What becomes of requests: each is explained in the state before and in the one after.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Sample, State};
use crate::explain::{self, Explanation, ServersWithoutCertificates, Simulator};
use crate::mesh::ScopeView;
use crate::snapshot::SnapshotBuilder;

/// A request that was sent before, and how often.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    /// The request.
    pub sample: Sample,
    /// How often it was sent.
    pub count: u64,
}

/// What becomes of all recorded requests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Replay {
    /// How many there are.
    pub requests: u64,
    /// How many of them get to the same place with other settings, such as a timeout.
    pub other_settings: u64,
    /// Those that go elsewhere, by where they go now and then. The largest come first.
    pub moves: Vec<Move>,
}

/// Requests that go from the same place to the same other place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Move {
    /// Where they go now: the lines of [`explain::ends`].
    pub before: Vec<String>,
    /// Where they would go.
    pub after: Vec<String>,
    /// How many there are.
    pub requests: u64,
    /// The index of the most frequent one among the recorded requests.
    pub example: usize,
}

impl AsRef<Sample> for Sample {
    fn as_ref(&self) -> &Sample {
        self
    }
}

impl AsRef<Sample> for Recorded {
    fn as_ref(&self) -> &Sample {
        &self.sample
    }
}

/// Calls `each` with each of the samples and its answers in both states. What the proxy gets is made once for samples
/// that follow each other and share a proxy.
pub(super) fn both<T: AsRef<Sample>>(
    [before, after]: &[&State; 2],
    samples: &[T],
    [old, new]: &mut [SnapshotBuilder; 2],
    mut each: impl FnMut(&T, [Explanation; 2]),
) {
    // What the objects say is compared, and nothing else is known.
    let servers = ServersWithoutCertificates::new();
    let of_one_proxy = samples.chunk_by(|a, b| Arc::ptr_eq(&a.as_ref().proxy, &b.as_ref().proxy));
    for group in of_one_proxy {
        let Some(proxy) = group.first().map(|sample| &sample.as_ref().proxy) else { continue };
        let (scope, next) = (before.mesh.scope(proxy), after.mesh.scope(proxy));
        let snapshots = (old.snapshot(&before.mesh, &scope), new.snapshot(&after.mesh, &next));
        let views = (ScopeView::new(&before.mesh, &scope), ScopeView::new(&after.mesh, &next));
        let mut now = Simulator::new(&views.0, &snapshots.0, &servers);
        let mut then = Simulator::new(&views.1, &snapshots.1, &servers);
        for sample in group {
            let traffic = &sample.as_ref().traffic;
            let mut answers = [now.simulate(traffic), then.simulate(traffic)];
            for (answer, state) in answers.iter_mut().zip([before, after]) {
                answer.add_held(&state.held);
            }
            each(sample, answers);
        }
    }
}

/// What becomes of the recorded requests.
pub(super) fn replay(
    states: &[&State; 2],
    recorded: &[Recorded],
    snapshots: &mut [SnapshotBuilder; 2],
) -> Replay {
    let mut replay = Replay::default();
    let mut moves: BTreeMap<[Vec<String>; 2], (u64, u64, usize)> = BTreeMap::new();
    let mut index = 0;
    both(states, recorded, snapshots, |request, answers| {
        let count = request.count;
        replay.requests = replay.requests.saturating_add(count);
        let [from, to] = answers.each_ref().map(explain::ends);
        let [before, after] = answers.map(|answer| answer.outcome);
        if from != to {
            let ends = [from, to];
            let (sum, most, example) = moves.entry(ends).or_insert((0, 0, index));
            *sum = sum.saturating_add(count);
            if count > *most {
                (*most, *example) = (count, index);
            }
        } else if before != after {
            replay.other_settings = replay.other_settings.saturating_add(count);
        }
        index += 1;
    });
    let moves = moves.into_iter();
    replay.moves = moves
        .map(|([before, after], (requests, _, example))| Move { before, after, requests, example })
        .collect();
    replay.moves.sort_by_key(|group| std::cmp::Reverse(group.requests));
    replay
}
