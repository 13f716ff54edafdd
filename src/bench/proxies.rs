//! Proxies: one task for each, with a stream and a connection of its own.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::expectation::Expectation;
use super::loads::{LoadSettings, Reporter, Run};
use super::stream::{Shared, Stream, Type};
use super::transport::{Connection, GrpcStream, Memory, Windows, loopback};
use crate::bootstrap::AdsVariant;

/// How many events of proxies may wait to be counted.
const EVENTS: usize = 4096;

/// What a proxy tells.
#[derive(Debug)]
pub(super) enum Event {
    /// It has its whole configuration.
    Served(Instant),
    /// It has all that was expected with this number.
    Satisfied(u64, Instant),
    /// It knows which load to report.
    Told(Instant),
    /// It has sent all load reports that are measured.
    Reported(Instant),
    /// A stream of it ended.
    Lost(String),
}

/// What is looked for in responses, with a number that grows.
type Expected = (u64, Option<Arc<Expectation>>);

/// Received bytes of messages by type.
#[derive(Debug, Default)]
struct Received([AtomicU64; 5]);

impl Received {
    fn add(&self, of: Type, bytes: usize) {
        for (counter, this) in self.0.iter().zip(Type::ALL) {
            if this == of {
                counter.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        }
    }
}

/// Where proxies connect to and what they share.
#[derive(Clone)]
struct Context {
    address: Arc<str>,
    variant: AdsVariant,
    expected: watch::Receiver<Expected>,
    /// The run of load reports that is under way.
    reporting: watch::Receiver<Option<Arc<Run>>>,
    events: mpsc::Sender<Event>,
    received: Arc<Received>,
    memory: Memory,
    stop: CancellationToken,
}

/// The proxies of a bench.
pub(crate) struct Proxies {
    context: Context,
    expected: watch::Sender<Expected>,
    reporting: watch::Sender<Option<Arc<Run>>>,
    events: mpsc::Receiver<Event>,
    /// Those that are not connected.
    idle: Vec<Proxy>,
    connected: JoinSet<Proxy>,
}

/// A proxy.
struct Proxy {
    /// Its number among all.
    number: usize,
    /// Its encoded `Node`.
    node: bytes::Bytes,
    stream: Stream,
    /// The address that it connects from, if the server is on loopback.
    from: Option<Ipv4Addr>,
}

/// When proxies had what was waited for, and which of them lost their stream.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    /// One for each proxy that has it, in order.
    pub at: Vec<Instant>,
    /// Why streams ended.
    pub lost: Vec<String>,
}

impl Proxies {
    /// As many as there are nodes, each of which is an encoded `Node`.
    pub(crate) fn new(address: &str, shared: &Arc<Shared>, nodes: Vec<bytes::Bytes>) -> Self {
        let (expected, watched) = watch::channel((0, None));
        let (reporting, runs) = watch::channel(None);
        let (sender, events) = mpsc::channel(EVENTS);
        let context = Context {
            address: address.into(),
            variant: shared.variant,
            expected: watched,
            reporting: runs,
            events: sender,
            received: Arc::default(),
            memory: Memory::default(),
            stop: CancellationToken::new(),
        };
        let idle = nodes.into_iter().enumerate().map(|(number, node)| Proxy {
            number,
            node: node.clone(),
            stream: Stream::new(shared.clone(), node),
            from: loopback(number),
        });
        let idle = idle.collect();
        Self { context, expected, reporting, events, idle, connected: JoinSet::new() }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.idle.len() + self.connected.len()
    }

    /// Received bytes by type since the beginning.
    pub(crate) fn received(&self) -> BTreeMap<Type, u64> {
        let counters =
            self.context.received.0.iter().map(|counter| counter.load(Ordering::Relaxed));
        Type::ALL.into_iter().zip(counters).collect()
    }

    /// Connects all at once.
    pub(crate) fn connect(&mut self) {
        self.context.stop = CancellationToken::new();
        for proxy in self.idle.drain(..) {
            self.connected.spawn(run(proxy, self.context.clone()));
        }
    }

    /// Ends all streams. The proxies keep what they have.
    pub(crate) async fn disconnect(&mut self) {
        self.context.stop.cancel();
        while let Some(ended) = self.connected.join_next().await {
            // A task ends in no other way.
            self.idle.extend(ended.ok());
            while self.events.try_recv().is_ok() {}
        }
        while self.events.try_recv().is_ok() {}
    }

    /// Ends all streams. The proxies forget what they had, as after a restart.
    pub(crate) async fn forget(&mut self) {
        self.disconnect().await;
        self.idle.iter_mut().for_each(|proxy| proxy.stream.forget());
    }

    /// From now on, looks for this in what arrives. Must precede the write that leads to it.
    pub(crate) fn expect(&mut self, what: Expectation) {
        let number = self.expected.borrow().0 + 1;
        self.expected.send_replace((number, Some(Arc::new(what))));
    }

    /// Waits until all proxies have their whole configuration.
    pub(crate) async fn served(&mut self, within: Duration) -> Arrivals {
        self.arrivals(within, |event, _| match event {
            Event::Served(at) => Some(*at),
            _ => None,
        })
        .await
    }

    /// From now on all connected proxies report their load.
    pub(super) fn report_loads(&self, settings: LoadSettings) -> Arc<Run> {
        let run = Arc::new(Run::new(settings, self.count()));
        self.reporting.send_replace(Some(run.clone()));
        run
    }

    /// Ends the streams of load reports.
    pub(super) fn end_reports(&self) {
        self.reporting.send_replace(None);
    }

    /// Waits until all proxies know which load to report.
    pub(super) async fn told(&mut self, within: Duration) -> Arrivals {
        self.arrivals(within, |event, _| match event {
            Event::Told(at) => Some(*at),
            _ => None,
        })
        .await
    }

    /// Waits until all proxies have sent all load reports that are measured.
    pub(super) async fn reported(&mut self, within: Duration) -> Arrivals {
        self.arrivals(within, |event, _| match event {
            Event::Reported(at) => Some(*at),
            _ => None,
        })
        .await
    }

    /// Waits until all proxies have what is expected.
    pub(crate) async fn satisfied(&mut self, within: Duration) -> Arrivals {
        self.arrivals(within, |event, current| match event {
            Event::Satisfied(number, at) if *number == current => Some(*at),
            _ => None,
        })
        .await
    }

    async fn arrivals(
        &mut self,
        within: Duration,
        when: impl Fn(&Event, u64) -> Option<Instant>,
    ) -> Arrivals {
        let (all, number) = (self.count(), self.expected.borrow().0);
        let mut arrivals = Arrivals::default();
        let collect = async {
            while arrivals.at.len() + arrivals.lost.len() < all {
                let Some(event) = self.events.recv().await else {
                    return;
                };
                arrivals.at.extend(when(&event, number));
                if let Event::Lost(why) = event {
                    arrivals.lost.push(why);
                }
            }
        };
        // Those that are late are missing in what is returned.
        let _ = tokio::time::timeout(within, collect).await;
        arrivals.at.sort_unstable();
        arrivals
    }

    /// Waits until nothing more arrives for a while: until what follows from the last change is over.
    pub(crate) async fn quiet(&self, for_as_long_as: Duration) {
        let mut before = self.received();
        for _ in 0..MAX_QUIET_ROUNDS {
            tokio::time::sleep(for_as_long_as).await;
            let now = self.received();
            if std::mem::replace(&mut before, now.clone()) == now {
                return;
            }
        }
    }
}

/// A server that never stops sending is not waited for longer.
const MAX_QUIET_ROUNDS: usize = 50;

/// A proxy until it is stopped. Its task always ends with the proxy.
async fn run(mut proxy: Proxy, context: Context) -> Proxy {
    let stop = context.stop.clone();
    let ended = tokio::select! {
        ended = converse(&mut proxy, &context) => ended,
        () = stop.cancelled() => return proxy,
    };
    if let Err(error) = ended {
        tokio::select! {
            _ = context.events.send(Event::Lost(format!("{error:#}"))) => stop.cancelled().await,
            () = stop.cancelled() => {}
        }
    }
    proxy
}

async fn converse(proxy: &mut Proxy, context: &Context) -> anyhow::Result<()> {
    let Proxy { number, node, stream, from } = proxy;
    let mut expected = context.expected.clone();
    let number_of_expected = expect(stream, &mut expected);
    let first = stream.begin();
    let memory = context.memory.clone();
    let connection = Connection::open(&context.address, *from, Windows::ENVOY).await?;
    let ads = connection.ads(context.variant, first, memory).await?;
    let (connection, events) = (&connection, &context.events);
    let reporter = Reporter { connection, node: &*node, number: *number, events };
    tokio::select! {
        ended = subscribe(stream, ads, expected, number_of_expected, context) => ended,
        ended = report(&reporter, context.reporting.clone()) => ended,
    }
}

/// Reports load while there is a run.
async fn report(
    reporter: &Reporter<'_>,
    mut runs: watch::Receiver<Option<Arc<Run>>>,
) -> anyhow::Result<()> {
    loop {
        let run = runs.borrow_and_update().clone();
        let Some(run) = run else {
            runs.changed().await?;
            continue;
        };
        tokio::select! {
            ended = run.report(reporter) => return ended,
            changed = runs.changed() => changed?,
        }
    }
}

/// Takes in configuration until the stream ends.
async fn subscribe(
    stream: &mut Stream,
    mut ads: GrpcStream,
    mut expected: watch::Receiver<Expected>,
    mut number: u64,
    context: &Context,
) -> anyhow::Result<()> {
    loop {
        let (message, permit) = ads.next().await?;
        let at = Instant::now();
        if expected.has_changed()? {
            number = expect(stream, &mut expected);
        }
        let outcome = stream.response(&message)?;
        if let Some(of) = outcome.of {
            context.received.add(of, message.len());
        }
        drop((message, permit));
        for pieces in outcome.requests {
            ads.send(pieces).await?;
        }
        if outcome.served {
            context.events.send(Event::Served(at)).await?;
        }
        if outcome.satisfied {
            context.events.send(Event::Satisfied(number, at)).await?;
        }
    }
}

/// Tells the stream what is expected now, and returns the number of that.
fn expect(stream: &mut Stream, expected: &mut watch::Receiver<Expected>) -> u64 {
    let now = expected.borrow_and_update();
    stream.expect(now.1.clone());
    now.0
}

/// A connection that subscribes to everything and never reads.
pub(crate) struct Stuck {
    _ads: GrpcStream,
    _connection: Connection,
}

impl Proxies {
    /// Connects one more proxy, which never reads. It ends when dropped.
    ///
    /// # Errors
    /// It cannot connect.
    pub(crate) async fn stuck(
        &self,
        shared: &Arc<Shared>,
        node: bytes::Bytes,
    ) -> anyhow::Result<Stuck> {
        let mut stream = Stream::new(shared.clone(), node);
        let Context { address, variant, .. } = &self.context;
        let (first, memory) = (stream.begin(), Memory::default());
        let from = loopback(self.count());
        let connection = Connection::open(address, from, Windows::SMALL).await?;
        let ads = connection.ads(*variant, first, memory).await?;
        Ok(Stuck { _ads: ads, _connection: connection })
    }
}
