//! The weighted routes with what was observed of them, over all replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::sync::mpsc;
use tonic::Status;

use super::Admin;
use super::api::v1;
use super::grpc::{invalid, not_found};
use crate::api::{Kind, ObjectKey};
use crate::bootstrap::dns_label;
use crate::load::interval::{self, Interval, LEVEL, Proportion, TOLERANCE, Verdict};
use crate::load::{LoadSettings, Named};
use crate::metrics::{WeightLabels, Weights};
use crate::replicas::{PeerReader, observed_at};
use crate::status::{self, ObservedRoute, Requests, SplitReport, SplitSelection, State};
use crate::timer::at;
use crate::translate::cluster_name;

/// The shortest time between two updates for reports that arrived.
const SHORTEST: Duration = Duration::from_millis(100);

/// The longest time between two updates for changes.
const LONGEST: Duration = Duration::from_secs(5);

/// The maximum number of weights in the metrics.
const MOST_WEIGHTS: usize = 1000;

/// What another replica observed, or why it cannot be asked.
type Answer = Result<BTreeMap<Place, v1::ObservedCounts>, String>;

/// What the other replicas say, by the names of their pods.
#[derive(Clone, Debug, Default)]
struct Others {
    answers: Vec<(String, Answer)>,
}

/// Where a route is: the VirtualService with the hosts, the one that holds it, and the field.
pub(super) type Place = (ObjectKey, ObjectKey, String);

impl Admin {
    /// The splits with what this replica's proxies reported.
    async fn own_splits(&self, selection: SplitSelection) -> Result<Vec<SplitReport>, Status> {
        let (state, connected) = (self.published.state(), self.connections.list());
        let load = self.load.clone();
        // With many proxies that keeps a thread busy.
        let work = tokio::task::spawn_blocking(move || {
            status::splits(&state, &connected, selection, load.as_deref())
        });
        work.await.map_err(|error| Status::internal(error.to_string()))
    }

    /// Brings the effective weights in the metrics up to date.
    pub(super) async fn show_weights(&self) -> Result<(), Status> {
        let Some(load) = &self.load else {
            return Ok(());
        };
        let (state, named) = (self.published.state(), load.named());
        let work = tokio::task::spawn_blocking(move || weights(&state, &named));
        let weights = work.await.map_err(|error| Status::internal(error.to_string()))?;
        self.metrics.load().show_weights(weights);
        Ok(())
    }

    /// The splits with what the proxies of all replicas reported.
    pub(super) async fn all_splits(
        &self,
        selection: SplitSelection,
    ) -> Result<v1::ListSplitsResponse, Status> {
        let namespace = selection.namespace.clone();
        let is_narrow = selection.only.is_some();
        let own = self.own_splits(selection).await?;
        let chosen = own.iter().filter(|_| is_narrow).map(|split| &split.object);
        let objects = chosen.collect::<BTreeSet<_>>().into_iter().map(Into::into).collect();
        let others = if own.is_empty() {
            Others::default()
        } else {
            let question = v1::ListObservedRequest { namespace, objects };
            self.others(&mut self.peers.read(), &question).await
        };
        Ok(self.merged(own, &others))
    }

    fn merged(&self, own: Vec<SplitReport>, others: &Others) -> v1::ListSplitsResponse {
        let settings = self.load.as_ref().map(|load| load.settings());
        let splits = own.into_iter().map(|split| message(split, settings, others));
        v1::ListSplitsResponse { splits: splits.collect() }
    }

    /// What the other replicas observed.
    async fn others(&self, reader: &mut PeerReader, question: &v1::ListObservedRequest) -> Others {
        if self.load.is_none() {
            return Others::default();
        }
        let peers = loop {
            match reader.answers(Instant::now()) {
                Ok(peers) => break peers,
                Err(again) => {
                    let _ = tokio::time::timeout_at(again.into(), reader.changed()).await;
                }
            }
        };
        let answers = peers.into_iter().map(|peer| async move {
            let answer = match (peer.summaries, peer.address) {
                (Ok(_), Some(address)) => observed(address, question).await,
                (Err(why), _) => Err(why),
                (Ok(_), None) => Err("its address is not known".to_owned()),
            };
            (peer.name, answer)
        });
        Others { answers: join_all(answers).await }
    }

    /// Sends the splits now and on every change; what was reported once in each interval of reports. In a large mesh changes
    /// are taken together, so that nine tenths of the time are left to others.
    pub(super) async fn send_splits(
        &self,
        namespace: &str,
        to: &mpsc::Sender<Result<v1::ListSplitsResponse, Status>>,
    ) {
        let mut ready = self.ready.clone();
        if ready.wait_for(|ready| *ready).await.is_err() {
            return;
        }
        let mut reader = self.peers.read();
        let (mut proxies, mut states) = (self.connections.changes(), self.published.changes());
        let interval = self.load.as_ref().map(|load| load.settings().interval.max(SHORTEST));
        let selection = SplitSelection::of_namespace(namespace);
        let question =
            v1::ListObservedRequest { namespace: namespace.to_owned(), objects: Vec::new() };
        let mut others = self.others(&mut reader, &question).await;
        let mut next = interval.map(|interval| tokio::time::Instant::now() + interval);
        let mut last = None;
        loop {
            proxies.mark_unchanged();
            states.mark_unchanged();
            let begun = Instant::now();
            let own = self.own_splits(selection.clone()).await;
            let update = own.map(|own| self.merged(own, &others));
            let pause = (begun.elapsed() * 9).min(LONGEST);
            let ends = update.is_err();
            if ends || last.as_ref() != update.as_ref().ok() {
                last = update.as_ref().ok().cloned();
                if to.send(update).await.is_err() || ends {
                    return;
                }
            }
            tokio::select! {
                () = to.closed() => return,
                () = tokio::time::sleep(pause) => {}
            }
            tokio::select! {
                () = to.closed() => return,
                changed = proxies.changed() => if changed.is_err() { return },
                changed = states.changed() => if changed.is_err() { return },
                () = at(next) => {
                    others = self.others(&mut reader, &question).await;
                    next = interval.map(|interval| tokio::time::Instant::now() + interval);
                }
            }
        }
    }

    /// What one destination got.
    pub(super) async fn observed(
        &self,
        request: &v1::GetObservedRequest,
    ) -> Result<v1::GetObservedResponse, Status> {
        dns_label(&request.namespace).map_err(|why| invalid("namespace", why))?;
        if self.load.is_none() {
            return Err(Status::not_found(
                "load reports are off; start weir serve with --load-reports on",
            ));
        }
        let key = ObjectKey::new(Kind::VirtualService, &request.namespace, &request.name);
        let only = Some((BTreeSet::from([key.clone()]), 0));
        let selection = SplitSelection { namespace: request.namespace.clone(), only };
        let splits = self.all_splits(selection).await?.splits;
        if splits.is_empty() {
            return match self.published.state().active.contains_key(&key) {
                true => Err(Status::not_found(format!("{key} has no weighted route"))),
                false => Err(not_found(&key)),
            };
        }
        chosen(request, splits)
    }
}

/// The effective weights of the routes whose clusters all have counters and belong to no other route, in the order of their
/// names, as many as the metrics may have. A destination without a port has a weight for each port of its service.
fn weights(state: &State, named: &Named) -> Weights {
    let mut found = Weights::new();
    let Some(mesh) = &state.mesh else {
        return found;
    };
    for split in status::splits(state, &[], SplitSelection::default(), None) {
        let delegate = (split.defined_in != split.object).then_some(&split.defined_in);
        let route = match delegate {
            Some(key) => format!("{}/{} {}", key.namespace, key.name, split.field),
            None => split.field.clone(),
        };
        let mut own = Weights::new();
        let mut is_measured = true;
        for share in &split.shares {
            let (host, ports) = status::host_and_ports(mesh, share);
            for port in ports {
                let name = cluster_name(port, &share.subset, host);
                is_measured &= named.get(&name).is_some_and(|cluster| cluster.is_measured());
                let labels = WeightLabels {
                    namespace: split.object.namespace.to_string(),
                    virtual_service: split.object.name.to_string(),
                    route: route.clone(),
                    destination_service: host.to_string(),
                    subset: share.subset.clone(),
                    port,
                };
                *own.entry(labels).or_default() += share.effective / 100.0;
            }
        }
        // The counters of shared clusters have the requests of other routes, too.
        let has_room = found.len() + own.len() <= MOST_WEIGHTS;
        if is_measured && has_room && !status::is_shared(mesh, &split) {
            found.extend(own);
        }
    }
    found
}

/// The destination that a request names, of the splits of its VirtualService.
fn chosen(
    request: &v1::GetObservedRequest,
    splits: Vec<v1::Split>,
) -> Result<v1::GetObservedResponse, Status> {
    let mut found = Vec::new();
    for split in splits {
        let v1::Split { defined_in, field, shares, observation, .. } = split;
        if !request.field.is_empty() && request.field != field {
            continue;
        }
        let route = v1::RouteRef { object: defined_in, field };
        for share in shares {
            let is_host = request.host.is_empty() || request.host == share.host;
            if is_host && request.subset == share.subset {
                found.push((route.clone(), share, observation.clone()));
            }
        }
    }
    let (Some((route, share, observation)), true) = (found.pop(), found.is_empty()) else {
        let v1::GetObservedRequest { namespace, name, subset, .. } = request;
        let object = format!("VirtualService {namespace}/{name}");
        return Err(match found.is_empty() {
            true => Status::not_found(format!(
                "{object}: no weighted route has a destination with subset `{subset}` and this host and field"
            )),
            false => invalid(
                "subset",
                format!(
                    "several destinations of {object} have subset `{subset}`; expected `host` or `field` as well"
                ),
            ),
        });
    };
    let verdict = match &share.observed {
        Some(observed) => observed.verdict(),
        None => v1::Verdict::TooFewRequests,
    };
    let (route, share) = (Some(route), Some(share));
    Ok(v1::GetObservedResponse { verdict: verdict.into(), route, share, observation })
}

/// What another replica observed.
async fn observed(address: SocketAddr, question: &v1::ListObservedRequest) -> Answer {
    let counts = observed_at(address, question.clone()).await?.splits.into_iter();
    Ok(counts.filter_map(|counts| Some((place(&counts)?, counts))).collect())
}

fn place(counts: &v1::ObservedCounts) -> Option<Place> {
    let (object, defined_in) = (counts.object.as_ref()?.key()?, counts.defined_in.as_ref()?.key()?);
    Some((object, defined_in, counts.field.clone()))
}

/// What the proxies of all replicas got.
struct Total {
    observed: ObservedRoute,
    missing_replicas: Vec<String>,
}

impl Total {
    fn new(split: &SplitReport, observed: ObservedRoute, others: &Others) -> Self {
        let mut this = Self { observed, missing_replicas: Vec::new() };
        let place = (split.object.clone(), split.defined_in.clone(), split.field.clone());
        for (name, answer) in &others.answers {
            let missing = match answer.as_ref().map(|splits| splits.get(&place)) {
                Ok(Some(counts)) => this.add(split, counts).err(),
                Ok(None) => Some("does not have the route yet".to_owned()),
                Err(why) => Some(format!("cannot be asked: {why}")),
            };
            let missing = missing.map(|why| format!("replica {name} {why}"));
            this.missing_replicas.extend(missing);
        }
        this
    }

    /// Adds the counts of another replica, unless it has another version of the route.
    fn add(&mut self, split: &SplitReport, counts: &v1::ObservedCounts) -> Result<(), String> {
        let versions = self.observed.versions.map(v1::ObjectVersion::from);
        let order = split.shares.iter().map(|share| (&share.host, &share.subset, share.port));
        let others = counts.destinations.iter().map(|to| (&to.host, &to.subset, to.port));
        if counts.versions != versions || !order.eq(others) {
            return Err("has another version of the object".to_owned());
        }
        for (sum, more) in self.observed.counts.iter_mut().zip(&counts.destinations) {
            let v1::RequestCounts { issued, succeeded, failed, in_progress, .. } = *more;
            sum.add(Requests { issued, succeeded, failed, in_progress });
        }
        let [in_scope, reporting] = [counts.in_scope, counts.reporting]
            .map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        self.observed.in_scope = self.observed.in_scope.saturating_add(in_scope);
        self.observed.reporting = self.observed.reporting.saturating_add(reporting);
        self.observed.left_out |= counts.left_out;
        Ok(())
    }

    /// Whether anything is known.
    fn is_known(&self) -> bool {
        let issued = self.observed.counts.iter().any(|of| *of != Requests::default());
        self.observed.reporting > 0 || issued
    }
}

/// A split with its observation, for a replica with these settings.
fn message(mut split: SplitReport, settings: Option<LoadSettings>, others: &Others) -> v1::Split {
    let observed = split.observed.take();
    let total = observed.map(|observed| Total::new(&split, observed, others));
    let mut message = v1::Split::from(split);
    let (Some(total), Some(settings)) = (total, settings) else {
        return message;
    };
    if total.is_known() {
        let all = observations(&total.observed.counts);
        for (share, observed) in message.shares.iter_mut().zip(all) {
            share.observed = Some(observed);
        }
    }
    let Total { observed, missing_replicas } = total;
    message.observation = Some(v1::Observation {
        reporting: small(observed.reporting),
        in_scope: small(observed.in_scope),
        window_seconds: settings.window.as_secs_f64(),
        interval_seconds: settings.interval.as_secs_f64(),
        level: percent(LEVEL),
        tolerance: percent(TOLERANCE),
        shared_with: observed.shared_with.iter().map(Into::into).collect(),
        missing_replicas,
        left_out: observed.left_out,
    });
    message
}

/// What is known of each destination.
fn observations(counts: &[Requests]) -> Vec<v1::Observed> {
    let issued = counts.iter().fold(0_u64, |sum, of| sum.saturating_add(of.issued));
    let first = counts.first().copied().unwrap_or_default();
    let all = counts.iter().enumerate().map(|(n, of)| {
        let share = Proportion::new(of.issued, issued);
        let failed = errors(*of);
        let (Interval { lower, upper }, error) = (share.interval(), failed.interval());
        let difference = (n > 0).then(|| interval::difference(errors(first), failed));
        let verdict = difference.map_or(v1::Verdict::Unspecified, |it| Verdict::of(it).into());
        v1::Observed {
            percent: share.value().map(percent),
            lower: floor(lower),
            upper: ceiling(upper),
            requests: small(of.issued),
            ended: small(of.succeeded.saturating_add(of.failed)),
            errors: small(of.failed),
            error_percent: failed.value().map(percent),
            error_lower: floor(error.lower),
            error_upper: ceiling(error.upper),
            in_progress: small(of.in_progress),
            verdict: verdict.into(),
            difference_lower: difference.map(|it| floor(it.lower)),
            difference_upper: difference.map(|it| ceiling(it.upper)),
        }
    });
    all.collect()
}

fn errors(of: Requests) -> Proportion {
    Proportion::new(of.failed, of.succeeded.saturating_add(of.failed))
}

fn percent(value: f64) -> f64 {
    (value * 10_000.0).round() / 100.0
}

/// In percent, not above the value.
fn floor(value: f64) -> f64 {
    (value * 10_000.0).floor() / 100.0
}

/// In percent, not below the value.
fn ceiling(value: f64) -> f64 {
    (value * 10_000.0).ceil() / 100.0
}

fn small<N>(count: N) -> u32
where
    u32: TryFrom<N>,
{
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Admin {
    /// What this replica's proxies got, for another replica.
    pub(super) async fn own_observed(
        &self,
        request: &v1::ListObservedRequest,
    ) -> Result<v1::ListObservedResponse, Status> {
        let only = request.objects.iter().map(|object| {
            object.key().ok_or_else(|| invalid("objects", format!("`{object}` names no object")))
        });
        let only = only.collect::<Result<BTreeSet<_>, _>>()?;
        let only = (!only.is_empty()).then_some((only, 0));
        let selection = SplitSelection { namespace: request.namespace.clone(), only };
        let splits = self.own_splits(selection).await?.into_iter();
        let splits = splits.filter_map(|split| {
            let observed = split.observed?;
            let destinations = split.shares.into_iter().zip(observed.counts).map(|(to, of)| {
                let Requests { issued, succeeded, failed, in_progress } = of;
                let (host, subset, port) = (to.host, to.subset, to.port);
                v1::RequestCounts { host, subset, port, issued, succeeded, failed, in_progress }
            });
            Some(v1::ObservedCounts {
                object: Some((&split.object).into()),
                defined_in: Some((&split.defined_in).into()),
                field: split.field,
                versions: observed.versions.map(Into::into).into(),
                in_scope: small(observed.in_scope),
                reporting: small(observed.reporting),
                left_out: observed.left_out,
                destinations: destinations.collect(),
            })
        });
        Ok(v1::ListObservedResponse { splits: splits.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(issued: u64, succeeded: u64, failed: u64) -> Requests {
        Requests { issued, succeeded, failed, in_progress: 0 }
    }

    #[test]
    fn shares_have_the_bounds_that_their_counts_allow() {
        let all = observations(&[requests(800, 790, 0), requests(200, 100, 95)]);
        let [first, second] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((first.percent, second.percent), (Some(80.0), Some(20.0)));
        // Wilson at 99 % of 200 of 1000: 0.169443 to 0.234513.
        assert_eq!((second.lower, second.upper), (16.94, 23.46));
        assert_eq!((second.requests, second.ended, second.errors), (200, 195, 95));
        assert_eq!(second.error_percent, Some(48.72));
        assert_eq!(second.verdict(), v1::Verdict::Worse);
        assert!(second.difference_lower > Some(30.0) && second.difference_upper < Some(60.0));
        assert_eq!((first.verdict(), first.difference_lower), (v1::Verdict::Unspecified, None));
    }

    #[test]
    fn without_requests_there_is_no_share_and_no_verdict() {
        let all = observations(&[requests(0, 0, 0), requests(0, 0, 0)]);
        for observed in &all {
            assert_eq!((observed.percent, observed.error_percent), (None, None));
            assert_eq!((observed.lower, observed.upper), (0.0, 100.0));
        }
        assert_eq!(all.last().unwrap().verdict(), v1::Verdict::TooFewRequests);
    }

    #[test]
    fn a_destination_is_found_by_what_identifies_it() {
        let share = |subset: &str, host: &str| v1::Share {
            host: host.to_owned(),
            subset: subset.to_owned(),
            ..Default::default()
        };
        let split = |field: &str| v1::Split {
            field: field.to_owned(),
            shares: vec![share("v1", "web"), share("v2", "web")],
            ..Default::default()
        };
        let splits = || vec![split("spec.http[0]"), split("spec.http[1]")];
        let ask = |subset: &str, field: &str| v1::GetObservedRequest {
            subset: subset.to_owned(),
            field: field.to_owned(),
            ..Default::default()
        };
        let found = chosen(&ask("v2", "spec.http[1]"), splits()).unwrap();
        assert_eq!(found.route.unwrap().field, "spec.http[1]");
        assert_eq!(found.verdict, i32::from(v1::Verdict::TooFewRequests));
        let several = chosen(&ask("v2", ""), splits()).unwrap_err();
        assert_eq!(several.code(), tonic::Code::InvalidArgument);
        let none = chosen(&ask("v3", ""), splits()).unwrap_err();
        assert_eq!(none.code(), tonic::Code::NotFound);
    }
}
