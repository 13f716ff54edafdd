//! What became of each weighted route over the last hour: weights, observed shares and error rates. Sampled at a fixed
//! interval, and kept in memory of bounded size.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;

use super::Admin;
use super::api::v1;
use super::splits::Place;
use crate::api::{Kind, ObjectKey};
use crate::status::SplitSelection;
use crate::timeline::{EntryKind, Note};

/// How often weights and shares are sampled.
const EACH: Duration = Duration::from_secs(10);

/// How many samples are kept: an hour.
const SAMPLES: usize = 360;

/// Of how many routes samples are kept. With two destinations each, they take 10 MB.
const ROUTES: usize = 200;

/// The samples of all weighted routes. Whoever has it may read.
#[derive(Debug, Default)]
pub(crate) struct History {
    routes: Mutex<BTreeMap<Place, Route>>,
}

#[derive(Debug, Default)]
struct Route {
    samples: VecDeque<Sample>,
    /// Whether its destinations got requests, when that was last known.
    busy: Option<bool>,
}

#[derive(Clone, Debug, PartialEq)]
struct Sample {
    at: Timestamp,
    live: u32,
    in_scope: u32,
    shares: Box<[ShareSample]>,
}

/// In percent; single precision is enough for a chart.
#[derive(Clone, Copy, Debug, PartialEq)]
struct ShareSample {
    wanted: f32,
    effective: f32,
    /// The observed share and its bounds.
    observed: Option<[f32; 3]>,
    errors: Option<f32>,
}

impl History {
    /// Adds a sample of each of these routes. A route that is gone loses its samples as they become old. Returns for which
    /// routes requests have stopped or begun.
    fn add(&self, splits: &[v1::Split], at: Timestamp) -> Vec<Note> {
        let oldest = at.checked_sub(EACH * u32::try_from(SAMPLES).unwrap_or(u32::MAX));
        let mut notes = Vec::new();
        let mut routes = self.routes.lock();
        for split in splits {
            let Some(place) = place(split) else { continue };
            let room = routes.len() < ROUTES;
            let object = place.0.clone();
            let route = match routes.get_mut(&place) {
                Some(route) => route,
                None if room => routes.entry(place).or_default(),
                None => continue,
            };
            route.samples.push_back(Sample::of(split, at));
            if route.samples.len() > SAMPLES {
                route.samples.pop_front();
            }
            if let Some(busy) = busy(split) {
                let before = route.busy.replace(busy);
                notes.extend(note(&object, split, before, busy));
            }
        }
        routes.retain(|_, route| {
            let newest = route.samples.back().map(|sample| sample.at);
            newest.is_some_and(|newest| oldest.as_ref().is_ok_and(|oldest| newest > *oldest))
        });
        notes
    }

    /// What is sampled next: the VirtualServices that have samples, and as many more as there is room for. In a large mesh
    /// all of them would keep a core busy.
    fn selection(&self) -> SplitSelection {
        let routes = self.routes.lock();
        let known = routes.keys().map(|(object, ..)| object.clone()).collect();
        let room = ROUTES.saturating_sub(routes.len());
        SplitSelection { namespace: String::new(), only: Some((known, room)) }
    }

    /// The samples of a VirtualService's routes, oldest first.
    pub(super) fn of(&self, object: &ObjectKey) -> v1::GetHistoryResponse {
        let routes = self.routes.lock();
        let own = routes.iter().filter(|((hosts, ..), _)| hosts == object);
        let own = own.map(|((_, defined_in, field), route)| v1::RouteHistory {
            defined_in: Some(defined_in.into()),
            field: field.clone(),
            points: route.samples.iter().map(Into::into).collect(),
        });
        v1::GetHistoryResponse { routes: own.collect(), interval_seconds: EACH.as_secs_f64() }
    }
}

/// Where a route is; `None` only if weir forgot to say so.
fn place(split: &v1::Split) -> Option<Place> {
    let [object, defined_in] = [&split.object, &split.defined_in].map(|named| {
        let named = named.as_ref()?;
        Some(ObjectKey::new(Kind::VirtualService, &named.namespace, &named.name))
    });
    Some((object?, defined_in?, split.field.clone()))
}

/// Whether the destinations of a route got requests; `None` if that is not known of all proxies that see it.
fn busy(split: &v1::Split) -> Option<bool> {
    let observation = split.observation.as_ref()?;
    let requests: u64 = split
        .shares
        .iter()
        .filter_map(|share| Some(u64::from(share.observed.as_ref()?.requests)))
        .sum();
    let all = observation.in_scope > 0
        && observation.reporting == observation.in_scope
        && observation.missing_replicas.is_empty()
        && !observation.left_out;
    if requests > 0 { Some(true) } else { all.then_some(false) }
}

/// An entry of the time line if requests have stopped, or have begun after they had.
fn note(object: &ObjectKey, split: &v1::Split, before: Option<bool>, busy: bool) -> Option<Note> {
    let field = &split.field;
    match (before, busy) {
        (None | Some(true), false) => {
            let proxies = split.in_scope;
            let text = format!("{field}: none of {proxies} proxies that see it sends requests");
            Some(Note::of(object, EntryKind::NoRequests, text))
        }
        (Some(false), true) => Some(Note::of(
            object,
            EntryKind::Requests,
            format!("{field}: proxies send requests again"),
        )),
        _ => None,
    }
}

impl Sample {
    fn of(split: &v1::Split, at: Timestamp) -> Self {
        let shares = split.shares.iter().map(|share| {
            let observed = share.observed.as_ref();
            let bounds = observed.and_then(|seen| Some([seen.percent?, seen.lower, seen.upper]));
            ShareSample {
                wanted: share.wanted as f32,
                effective: share.effective as f32,
                observed: bounds.map(|bounds| bounds.map(|bound| bound as f32)),
                errors: observed.and_then(|seen| seen.error_percent).map(|rate| rate as f32),
            }
        });
        Self { at, live: split.live, in_scope: split.in_scope, shares: shares.collect() }
    }
}

impl From<&Sample> for v1::HistoryPoint {
    fn from(sample: &Sample) -> Self {
        let shares = sample.shares.iter().map(|share| v1::HistoryShare {
            wanted: share.wanted.into(),
            effective: share.effective.into(),
            observed: share.observed.map(|[observed, ..]| observed.into()),
            lower: share.observed.map(|[_, lower, _]| lower.into()),
            upper: share.observed.map(|[.., upper]| upper.into()),
            error_percent: share.errors.map(Into::into),
        });
        Self {
            time: Some(super::convert::timestamp(sample.at)),
            live: sample.live,
            in_scope: sample.in_scope,
            shares: shares.collect(),
        }
    }
}

/// Samples until the future is dropped.
pub(crate) async fn sample(admin: Admin) {
    let mut ready = admin.ready.clone();
    if ready.wait_for(|ready| *ready).await.is_err() {
        return;
    }
    let mut ticks = tokio::time::interval(EACH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match admin.all_splits(admin.history.selection()).await {
            Ok(answer) => {
                let notes = admin.history.add(&answer.splits, Timestamp::now());
                admin.timeline.record(notes);
            }
            Err(error) => tracing::warn!(%error, "weighted routes cannot be sampled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(name: &str, percent: f64) -> v1::Split {
        let object = ObjectKey::new(Kind::VirtualService, "shop", name);
        let observed = v1::Observed { percent: Some(percent), ..Default::default() };
        let share = v1::Share { wanted: 10.0, observed: Some(observed), ..Default::default() };
        v1::Split {
            object: Some((&object).into()),
            defined_in: Some((&object).into()),
            field: "spec.http[0]".to_owned(),
            shares: vec![share],
            ..Default::default()
        }
    }

    fn points(history: &History, name: &str) -> Vec<Option<f64>> {
        let answer = history.of(&ObjectKey::new(Kind::VirtualService, "shop", name));
        let points = answer.routes.iter().flat_map(|route| &route.points);
        points.flat_map(|point| &point.shares).map(|share| share.observed).collect()
    }

    #[test]
    fn an_hour_is_kept_and_a_route_that_is_gone_is_forgotten() {
        let (history, begun) = (History::default(), Timestamp::UNIX_EPOCH);
        history.add(&[split("gone", 1.0)], begun);
        for n in 0..500u32 {
            history.add(&[split("web", f64::from(n))], begun + EACH * n);
        }
        assert_eq!(points(&history, "gone"), []);
        let kept = points(&history, "web");
        assert_eq!((kept.len(), kept[0], kept[SAMPLES - 1]), (SAMPLES, Some(140.0), Some(499.0)));
    }

    /// A route of which `reporting` of 2 proxies report, with this many requests.
    fn reported(reporting: u32, requests: u32) -> v1::Split {
        let observation = v1::Observation { reporting, in_scope: 2, ..Default::default() };
        let mut split = split("web", 1.0);
        split.observation = Some(observation);
        split.shares[0].observed = Some(v1::Observed { requests, ..Default::default() });
        split
    }

    #[test]
    fn an_end_of_all_requests_is_told_once_and_only_if_all_proxies_report() {
        let history = History::default();
        let told =
            [(2, 5), (1, 0), (2, 0), (2, 0), (1, 3), (2, 3), (2, 0)].map(|(reporting, n)| {
                let notes = history.add(&[reported(reporting, n)], Timestamp::UNIX_EPOCH);
                notes.first().map(|note| note.kind)
            });
        let (no, again) = (Some(EntryKind::NoRequests), Some(EntryKind::Requests));
        assert_eq!(told, [None, None, no, None, again, None, no]);
        let unknown = History::default();
        assert!(unknown.add(&[split("web", 1.0)], Timestamp::UNIX_EPOCH).is_empty());
    }

    #[test]
    fn only_what_has_room_is_sampled() {
        let history = History::default();
        history.add(&[split("web", 1.0), split("api", 1.0)], Timestamp::UNIX_EPOCH);
        let (known, room) = history.selection().only.unwrap();
        let keys = ["api", "web"].map(|name| ObjectKey::new(Kind::VirtualService, "shop", name));
        assert_eq!((known, room), (keys.into(), ROUTES - 2));
    }

    #[test]
    fn the_number_of_routes_is_bounded() {
        let history = History::default();
        let splits: Vec<_> = (0..=ROUTES).map(|n| split(&format!("web-{n:03}"), 1.0)).collect();
        history.add(&splits, Timestamp::UNIX_EPOCH);
        history.add(&splits, Timestamp::UNIX_EPOCH + EACH);
        assert_eq!(history.routes.lock().len(), ROUTES);
        assert_eq!(points(&history, "web-000").len(), 2);
        assert_eq!(points(&history, &format!("web-{ROUTES:03}")).len(), 0);
    }
}
