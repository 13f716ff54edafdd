//! Who is let in, and how much of weir each peer may take.
//!
//! Every resource that a client can make weir spend has an owner and a limit. Connections, requests and memory come
//! from [`Pool`]s: each has a limit for all peers together and one for each peer, and what a [`Permit`] stands for goes
//! back to its pool when the permit is dropped. Where a pool is empty, a peer that has less than another gets its part
//! from the one that has the most, so that nobody can keep the others out. Streams begin in turns, peer by peer
//! ([`Turns`]). [`serve`] accepts connections and ends those that do nothing.
//!
//! A peer is an address. It is all that is known of a client that has not proved who it is.

mod connection;
pub mod descriptors;
mod listener;
pub mod memory;
mod paced;
mod pool;
mod turns;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::Metrics;

pub use connection::{Connection, Exchange, Hold};
pub use listener::{Protocol, serve};
pub use pool::{Exhausted, Permit, Pool, Resource};
pub use turns::Turns;

/// What an open connection takes, in bytes: hyper's and h2's buffers and state.
pub const CONNECTION_BYTES: usize = 32 << 10;

/// How often it is logged that something was refused.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// How much there is, in all and for each peer, and how long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Requests that are open at a time, in all. A discovery stream is one request.
    pub streams: usize,
    /// Streams that may begin within a second. Those above wait for their turn.
    pub streams_per_second: u32,
    /// Bytes that all clients together may make weir hold.
    pub memory: usize,
    /// Which part of all of that one peer may have, in percent.
    pub peer_share: u8,
    /// How long a connection may take to its first request, and a stream to its first message.
    pub first_request: Duration,
    /// How long a connection may be without a request.
    pub idle: Duration,
    /// How long a message may take from its first byte to its last, beside the time that its length gives it.
    pub message: Duration,
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
        }
    }
}

impl Limits {
    /// Those of the admin port, which people and tools ask now and then.
    pub fn admin() -> Self {
        Self { connections: descriptors::ADMIN, streams: 256, memory: 32 << 20, peer_share: 50, ..Self::default() }
    }

    /// These, with no more connections than there are file descriptors for.
    #[must_use]
    pub fn within(self, descriptors: usize) -> Self {
        Self { connections: self.connections.min(descriptors), ..self }
    }

    /// How long a message of `length` bytes may take to come in: slow links get the time that they need.
    pub fn message_within(&self, length: usize) -> Duration {
        const BYTES_PER_SECOND: u32 = 32 << 10;
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.message + Duration::from_secs(1) * length / BYTES_PER_SECOND
    }
}

/// A client's address, or the /64 network that it is in, of which a single machine may have every address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(IpAddr);

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
pub struct Admission {
    limits: Limits,
    connections: Arc<Pool>,
    streams: Arc<Pool>,
    memory: Arc<Pool>,
    told: Mutex<Told>,
}

/// What was logged of refusals, of which there may be very many.
#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    since: u64,
}

impl Admission {
    /// Pools of which everything is left. What is in use and what they refuse is told in `metrics`, by the `port`.
    pub fn new(limits: Limits, port: &'static str, metrics: &Metrics) -> Self {
        let pool = |resource: Resource, limit| {
            Arc::new(Pool::new(resource, limit, limits.peer_share, metrics.pool(port, resource.name())))
        };
        Self {
            limits,
            connections: pool(Resource::Connections, limits.connections),
            streams: pool(Resource::Streams, limits.streams),
            memory: pool(Resource::Memory, limits.memory),
            told: Mutex::default(),
        }
    }

    /// Logs that something was refused or closed, and why; of very many only some.
    fn tell(&self, what: &str, why: &dyn fmt::Display) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.last.is_some_and(|last| last.elapsed() < TELL_AGAIN) {
            told.since += 1;
            return;
        }
        match told.since {
            0 => tracing::warn!("{what}: {why}"),
            since => tracing::warn!("{what}: {why}; and {since} more like it before"),
        }
        *told = Told { last: Some(Instant::now()), since: 0 };
    }

    /// How much there is.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The connections.
    pub fn connections(&self) -> &Arc<Pool> {
        &self.connections
    }

    /// The open requests.
    pub fn streams(&self) -> &Arc<Pool> {
        &self.streams
    }

    /// The bytes.
    pub fn memory(&self) -> &Arc<Pool> {
        &self.memory
    }
}

/// A request of a client, for what is tested without a connection.
#[cfg(test)]
pub fn exchange_for_tests(limits: Limits) -> Arc<Exchange> {
    let admission = Arc::new(Admission::new(limits, "test", &Metrics::default()));
    let connection = admission.connect(([127, 0, 0, 1], 1).into());
    connection.and_then(|connection| connection.begin()).unwrap_or_else(|exhausted| panic!("{exhausted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_one_machine_may_have_are_one_peer() {
        let peer = |text: &str| Peer::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
        assert_eq!(peer("fd00:1:2:3::1"), peer("fd00:1:2:3:4:5:6:7"));
        assert_ne!(peer("fd00:1:2:3::1"), peer("fd00:1:2:4::1"));
        assert_eq!(peer("fd00:1:2:3::1").to_string(), "fd00:1:2:3::/64");
    }

    #[test]
    fn a_long_message_may_take_longer() {
        let limits = Limits::default();
        assert_eq!(limits.message_within(0), limits.message);
        assert_eq!(limits.message_within(1 << 20), limits.message + Duration::from_secs(32));
    }
}
