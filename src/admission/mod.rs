//! Admission control: limits the resources that each peer may use.
//!
//! Every resource that a client can consume has an owner and a limit. Connections, requests and memory come from
//! [`Pool`]s: each has a total limit and a limit per peer, and a [`Permit`] is returned to its pool on drop. When a
//! pool is exhausted, a peer with less than another gets its share from the peer that has the most, so no peer can lock
//! out others. Streams start in turns, round robin over peers ([`Turns`]), and few at once ([`Starts`]). [`serve`] accepts
//! connections and closes idle ones.
//!
//! A peer is an address, which is all that is known about an unauthenticated client.

mod connection;
pub mod descriptors;
mod listener;
pub(crate) mod memory;
mod paced;
mod pool;
mod starts;
mod turns;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metrics::Metrics;

pub(crate) use connection::{Connection, Exchange, Hold};
pub(crate) use listener::{Protocol, serve, serve_tls};
pub(crate) use pool::{Exhausted, Permit, Pool, Resource};
pub(crate) use starts::{Start, Starts};
pub(crate) use turns::Turns;

/// The memory cost of an open connection in bytes: the buffers and state of hyper and h2.
pub(crate) const CONNECTION_BYTES: usize = 32 << 10;

/// The memory cost of a TLS handshake in bytes: rustls keeps a message of up to 64 KiB, and as much to be sent.
pub(crate) const HANDSHAKE_BYTES: usize = 128 << 10;

/// The interval between log messages about rejections.
const LOG_AGAIN: Duration = Duration::from_secs(10);

/// The limits, in total and per peer, and the timeouts.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The maximum number of connections.
    pub connections: usize,
    /// The maximum number of concurrent requests. A discovery stream is one request.
    pub streams: usize,
    /// The maximum number of streams that may start per second; others wait for their turn.
    pub streams_per_second: u32,
    /// The total memory in bytes that clients may consume.
    pub memory: usize,
    /// The maximum share of a single peer in percent.
    pub peer_share: u8,
    /// The timeout for the first request of a connection and the first message of a stream.
    pub first_request: Duration,
    /// How long a connection may be without a request.
    pub idle: Duration,
    /// The timeout for receiving a message, in addition to an allowance for its length.
    pub message: Duration,
    /// The timeout for the first byte of a page.
    pub page: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            streams: 20_000,
            streams_per_second: 1000,
            memory: memory::default_for_clients(),
            peer_share: 25,
            first_request: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            message: Duration::from_secs(10),
            page: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// The limits of the admin port, which is used occasionally by people and tools.
    pub fn admin() -> Self {
        Self {
            connections: descriptors::ADMIN,
            streams: 256,
            memory: 32 << 20,
            peer_share: 50,
            ..Self::default()
        }
    }

    /// The limits of the webhook's port, which a few API servers use.
    pub(crate) fn webhook() -> Self {
        Self {
            connections: descriptors::WEBHOOK,
            streams: 128,
            memory: 64 << 20,
            peer_share: 50,
            ..Self::default()
        }
    }

    /// These limits, capped to the available file descriptors.
    #[must_use]
    pub(crate) fn within(self, descriptors: usize) -> Self {
        Self { connections: self.connections.min(descriptors), ..self }
    }

    /// How long receiving a message of `length` bytes may take, with an allowance for slow links.
    pub(crate) fn message_within(&self, length: usize) -> Duration {
        const BYTES_PER_SECOND: u32 = 32 << 10;
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.message + Duration::from_secs(1) * length / BYTES_PER_SECOND
    }
}

/// A client's IPv4 address, or its IPv6 /64 network, which a single machine may own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Peer(IpAddr);

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
            address => Self(address),
        }
    }
}

impl Peer {
    /// Whether it is on this machine. All of `::/64` that can connect is.
    pub(crate) fn is_loopback(self) -> bool {
        match self.0 {
            IpAddr::V4(address) => address.is_loopback(),
            IpAddr::V6(network) => network.is_unspecified(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(network) => write!(f, "{network}/64"),
        }
    }
}

/// The pools of one port.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    connections: Arc<Pool>,
    streams: Arc<Pool>,
    memory: Arc<Pool>,
    /// The name of the port, for metrics and the log.
    port: &'static str,
    logged: Mutex<Logged>,
}

/// Rate limits the log messages about rejections.
#[derive(Debug, Default)]
struct Logged {
    last: Option<Instant>,
    since: u64,
}

impl Admission {
    /// Creates full pools. Usage and rejections are reported in `metrics` by `port`.
    pub(crate) fn new(limits: Limits, port: &'static str, metrics: &Metrics) -> Self {
        let [connections, streams, memory] = [
            (Resource::Connections, limits.connections),
            (Resource::Streams, limits.streams),
            (Resource::Memory, limits.memory),
        ]
        .map(|(resource, limit)| {
            let metrics = metrics.pool(port, resource.name());
            Arc::new(Pool::new(resource, limit, limits.peer_share, metrics))
        });
        Self { limits, connections, streams, memory, port, logged: Mutex::default() }
    }

    /// Logs that a client was refused or disconnected, rate limited.
    pub(crate) fn log(&self, what: &'static str, reason: &dyn fmt::Display) {
        let mut logged = self.logged.lock();
        if logged.last.is_some_and(|last| last.elapsed() < LOG_AGAIN) {
            logged.since += 1;
            return;
        }
        // How many similar messages came in between.
        let suppressed = (logged.since > 0).then_some(logged.since);
        tracing::warn!(port = self.port, %reason, suppressed, "{what}");
        *logged = Logged { last: Some(Instant::now()), since: 0 };
    }

    /// The name of the port.
    fn port(&self) -> &'static str {
        self.port
    }

    /// The limits.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The connections.
    pub(crate) fn connections(&self) -> &Arc<Pool> {
        &self.connections
    }

    /// The open requests.
    pub(crate) fn streams(&self) -> &Arc<Pool> {
        &self.streams
    }

    /// The bytes.
    pub(crate) fn memory(&self) -> &Arc<Pool> {
        &self.memory
    }
}

/// A client request for tests without a connection.
#[cfg(test)]
pub(crate) fn exchange_for_tests(limits: Limits) -> Arc<Exchange> {
    let admission = Arc::new(Admission::new(limits, "test", &Metrics::default()));
    let connection = admission.connect(([127, 0, 0, 1], 1).into());
    connection
        .and_then(|connection| connection.begin())
        .unwrap_or_else(|exhausted| panic!("{exhausted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Peer {
        Peer::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn addresses_that_one_machine_may_own_are_one_peer() {
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
        assert_eq!(peer("fd00:1:2:3::1"), peer("fd00:1:2:3:4:5:6:7"));
        assert_ne!(peer("fd00:1:2:3::1"), peer("fd00:1:2:4::1"));
        assert_eq!(peer("fd00:1:2:3::1").to_string(), "fd00:1:2:3::/64");
        assert!(
            ["127.0.0.1", "::1", "::ffff:127.0.0.6"]
                .map(peer)
                .iter()
                .all(|peer| peer.is_loopback())
        );
        assert!(
            !["10.0.0.1", "::ffff:10.0.0.1", "fd00::1"]
                .map(peer)
                .iter()
                .any(|peer| peer.is_loopback())
        );
    }

    #[test]
    fn a_long_message_may_take_longer() {
        let limits = Limits::default();
        assert_eq!(limits.message_within(0), limits.message);
        assert_eq!(limits.message_within(1 << 20), limits.message + Duration::from_secs(32));
    }
}
