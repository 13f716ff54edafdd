//! The phases of a bench: what is written, and what each proxy must get for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use futures::{StreamExt as _, TryStreamExt as _};

use super::expectation::Expectation;
use super::loads::LoadSettings;
use super::mesh::{Edit, Mesh};
use super::objects::Objects;
use super::process::{reset_peak, usage};
use super::proxies::{Arrivals, Proxies};
use super::report::{Before, Phase, Round};
use super::stream::Shared;
use crate::envoy::Admin;

/// A phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// All proxies connect and fetch everything.
    Start,
    /// One weight changes.
    Weight,
    /// One weight changes while one more proxy does not read.
    Stuck,
    /// One endpoint changes its address.
    Endpoint,
    /// A service is added, with all that belongs to it.
    Service,
    /// Every weight changes within a second.
    Storm,
    /// A tenth of the pods is replaced, one after the other.
    Restart,
    /// All proxies lose their streams, a weight changes, and they connect again with what they have.
    Reconnect,
    /// All proxies report their load for a while.
    Loads,
}

impl Kind {
    /// The usual ones, in this order.
    pub(crate) const USUAL: [Self; 7] = [
        Self::Start,
        Self::Weight,
        Self::Endpoint,
        Self::Service,
        Self::Storm,
        Self::Restart,
        Self::Reconnect,
    ];

    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Weight => "weight",
            Self::Stuck => "stuck",
            Self::Endpoint => "endpoint",
            Self::Service => "service",
            Self::Storm => "storm",
            Self::Restart => "restart",
            Self::Reconnect => "reconnect",
            Self::Loads => "loads",
        }
    }

    /// Whether one round is large enough to stand alone.
    fn is_large(self) -> bool {
        !matches!(self, Self::Weight | Self::Stuck | Self::Endpoint | Self::Service)
    }
}

/// How phases are measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Rounds of the small phases.
    pub rounds: usize,
    /// How long each round may take.
    pub timeout: Duration,
    /// How long nothing must arrive for a round to be over.
    pub settle: Duration,
    /// Replaced pods per second.
    pub restart_rate: f64,
    /// What proxies report.
    pub loads: LoadSettings,
}

/// Over how long the writes of a storm are spread.
const STORM: Duration = Duration::from_secs(1);

/// A mesh, a server and proxies.
pub(crate) struct Bench<'a> {
    /// How to measure.
    pub settings: Settings,
    /// The mesh as it is.
    pub mesh: Mesh,
    /// Where its objects are.
    pub objects: &'a Objects,
    /// The proxies.
    pub proxies: Proxies,
    /// What they share.
    pub shared: Arc<Shared>,
    /// The server's process, if it can be seen.
    pub pid: Option<u32>,
    /// The server's metrics, if it was started for the bench.
    pub admin: Option<Admin>,
    /// Says what is being done.
    pub progress: &'a (dyn Fn(&str) + Sync),
}

/// What was written in a round.
struct Written {
    /// When the last write began.
    last: Instant,
    /// How long all of them took.
    took: Duration,
}

impl Bench<'_> {
    /// Runs a phase.
    ///
    /// # Errors
    /// An object cannot be written, or a stream ends.
    pub(crate) async fn phase(&mut self, kind: Kind) -> anyhow::Result<Phase> {
        let count = if kind.is_large() { 1 } else { self.settings.rounds };
        let mut rounds = Vec::new();
        for n in 0..count {
            (self.progress)(&format!("{}, round {} of {count}", kind.name(), n + 1));
            let round = match kind {
                Kind::Loads => self.loads().await?,
                _ => self.round(kind, n).await?,
            };
            let complete = round.is_complete();
            rounds.push(round);
            if !complete {
                // The next one would find what this one has missed.
                break;
            }
        }
        Ok(Phase::new(kind.name(), rounds))
    }

    async fn round(&mut self, kind: Kind, n: usize) -> anyhow::Result<Round> {
        if let Some(pid) = self.pid {
            reset_peak(pid);
        }
        // Another service in each round, far from the one before.
        let service = (n + 1) * 7919 % self.mesh.services().max(1);
        let stuck = if kind == Kind::Stuck {
            let node = self.mesh.node(self.proxies.count());
            let stuck = self.proxies.stuck(&self.shared, node).await?;
            self.proxies.quiet(self.settings.settle).await;
            Some(stuck)
        } else {
            None
        };
        if kind == Kind::Reconnect {
            self.proxies.disconnect().await;
        }
        let before = self.now();
        let written = self.act(kind, service).await?;
        let within = self.settings.timeout;
        let arrivals = match kind {
            Kind::Start => self.proxies.served(within).await,
            _ => self.proxies.satisfied(within).await,
        };
        let Arrivals { at, lost } = arrivals;
        if let Some(why) = lost.first() {
            bail!("{} of {} streams ended; the first: {why}", lost.len(), self.proxies.count());
        }
        self.proxies.quiet(self.settings.settle).await;
        let after = self.now();
        drop(stuck);
        let mut round = Round::new(self.proxies.count(), &at, written.last, &before, &after);
        round.writing_ms = written.took.as_secs_f64() * 1000.0;
        Ok(round)
    }

    /// What was used until now.
    pub(super) fn now(&self) -> Before {
        Before {
            server: self.pid.and_then(usage),
            client: usage(std::process::id()),
            received: self.proxies.received(),
        }
    }

    /// Does what a phase is about.
    async fn act(&mut self, kind: Kind, service: usize) -> anyhow::Result<Written> {
        match kind {
            Kind::Start | Kind::Loads => {
                let last = Instant::now();
                self.proxies.connect();
                Ok(Written { last, took: Duration::ZERO })
            }
            Kind::Weight | Kind::Stuck => {
                let (edit, expected) = self.mesh.weight(service);
                self.write(vec![vec![edit]], expected, None).await
            }
            Kind::Endpoint => {
                let (edit, expected) = self.mesh.endpoint(service);
                self.write(vec![vec![edit]], expected, None).await
            }
            Kind::Service => {
                let (edits, expected) = self.mesh.new_service();
                self.write(vec![edits], expected, None).await
            }
            Kind::Storm => {
                let (edits, expected) = self.mesh.storm();
                let pause = STORM.div_f64(edits.len().max(1) as f64);
                self.write(
                    edits.into_iter().map(|edit| vec![edit]).collect(),
                    expected,
                    Some(pause),
                )
                .await
            }
            Kind::Restart => {
                let (services, expected) = self.mesh.rolling_restart();
                let pause = Duration::from_secs_f64(1.0 / self.settings.restart_rate);
                self.write(services, expected, Some(pause)).await
            }
            Kind::Reconnect => {
                let (edit, expected) = self.mesh.weight(service);
                let written = self.write(vec![vec![edit]], expected, None).await?;
                let last = Instant::now();
                self.proxies.connect();
                Ok(Written { last, ..written })
            }
        }
    }

    /// Makes edits: those of each list in order, and the last one when all others are done. `pause` is the time from the
    /// beginning of one list to that of the next.
    async fn write(
        &mut self,
        mut lists: Vec<Vec<Edit>>,
        expected: Expectation,
        pause: Option<Duration>,
    ) -> anyhow::Result<Written> {
        self.proxies.expect(expected);
        let begun = Instant::now();
        let mut final_list = lists.pop().unwrap_or_default();
        let final_edit = final_list.pop();
        let objects = self.objects;
        let count = lists.len();
        let paced = (0u32..).zip(lists).map(|(n, list)| {
            let due = begun + pause.unwrap_or_default() * n;
            async move {
                tokio::time::sleep_until(due.into()).await;
                for edit in &list {
                    objects.write(edit).await?;
                }
                anyhow::Ok(())
            }
        });
        futures::stream::iter(paced)
            .buffer_unordered(objects.concurrency())
            .try_collect::<Vec<()>>()
            .await?;
        if let Some(pause) = pause {
            tokio::time::sleep_until(
                (begun + pause * u32::try_from(count).unwrap_or(u32::MAX)).into(),
            )
            .await;
        }
        for edit in &final_list {
            objects.write(edit).await?;
        }
        let last = Instant::now();
        if let Some(edit) = &final_edit {
            objects.write(edit).await?;
        }
        Ok(Written { last, took: begun.elapsed() })
    }
}
