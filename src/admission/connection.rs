//! An admitted connection and its requests.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::Frame;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{
    CancellationToken, WaitForCancellationFuture, WaitForCancellationFutureOwned,
};

use super::{Admission, CONNECTION_BYTES, Exhausted, HANDSHAKE_BYTES, Limits, Peer, Permit};

/// The memory cost of an open request in bytes: its tasks, its state, and the queued part of its response.
const EXCHANGE_BYTES: usize = 16 << 10;

/// The burst and rate per second of useless requests that a connection may make. A healthy client that is rejected
/// retries far less often.
const WASTE: f64 = 1000.0;
const WASTE_PER_SECOND: f64 = 50.0;

/// How long a response may continue after it was ended, so that the client learns the reason.
const FAREWELL: Duration = Duration::from_secs(1);

/// A connection. Its share of the pools is released when it and all its requests are dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: Peer,
    admission: Arc<Admission>,
    slot: Permit,
    memory: Permit,
    /// Cancelled to close the connection immediately.
    over: CancellationToken,
    in_use: watch::Sender<InUse>,
    waste: Mutex<Waste>,
}

/// The counts of a connection's requests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InUse {
    pub now: usize,
    /// The total so far, because a request may begin and end between two checks.
    pub ever: u64,
}

/// How many more useless requests are allowed.
#[derive(Debug)]
struct Waste {
    left: f64,
    at: Instant,
}

/// A request with its response. Its share of the pools is released when the last owner drops it.
#[derive(Debug)]
pub(crate) struct Exchange {
    connection: Arc<Connection>,
    slot: Permit,
    memory: Permit,
    /// Cancelled to end the response.
    over: CancellationToken,
    /// Additional memory held by the request, in bytes.
    held: Mutex<usize>,
    in_use: AtomicBool,
    made_sense: AtomicBool,
}

/// Memory held by a request, released on drop.
#[derive(Debug)]
pub(crate) struct Hold {
    exchange: Arc<Exchange>,
    bytes: usize,
}

impl Admission {
    /// Admits a connection.
    ///
    /// # Errors
    /// The limit for this peer is reached.
    pub(crate) fn connect(
        self: &Arc<Self>,
        address: SocketAddr,
    ) -> Result<Arc<Connection>, Exhausted> {
        let (peer, over) = (Peer::from(address.ip()), CancellationToken::new());
        Ok(Arc::new(Connection {
            peer,
            admission: self.clone(),
            slot: self.connections().acquire(peer, 1, &over)?,
            memory: self.memory().acquire(peer, CONNECTION_BYTES, &over)?,
            over,
            in_use: watch::Sender::default(),
            waste: Mutex::new(Waste { left: WASTE, at: Instant::now() }),
        }))
    }
}

impl Connection {
    pub(super) fn admission(&self) -> &Admission {
        &self.admission
    }

    pub(super) fn limits(&self) -> &Limits {
        self.admission.limits()
    }

    /// Tells of the requests that are under way.
    pub(super) fn in_use(&self) -> watch::Receiver<InUse> {
        self.in_use.subscribe()
    }

    /// Resolves when the connection must be closed immediately.
    pub(super) fn over(&self) -> WaitForCancellationFuture<'_> {
        self.over.cancelled()
    }

    /// Reserves the memory of a TLS handshake.
    ///
    /// # Errors
    /// The limit for this peer is reached.
    pub(super) fn begin_handshake(&self) -> Result<(), Exhausted> {
        self.memory.resize(CONNECTION_BYTES + HANDSHAKE_BYTES)
    }

    /// Returns the memory of the handshake.
    pub(super) fn end_handshake(&self) {
        // Shrinking always succeeds, unless the reservation was already revoked.
        let _ = self.memory.resize(CONNECTION_BYTES);
    }

    /// Logs why it is closed.
    pub(super) fn log_closing(&self) {
        match self.slot.why_revoked().or_else(|| self.memory.why_revoked()) {
            Some(why) => self.admission.log("closed a connection", &why),
            None => self.admission.log(
                "closed a connection",
                &format_args!("too many useless requests from {}", self.peer),
            ),
        }
    }

    /// Starts a request.
    ///
    /// # Errors
    /// The limit for this peer is reached.
    pub(super) fn begin(self: &Arc<Self>) -> Result<Arc<Exchange>, Exhausted> {
        let over = CancellationToken::new();
        let (slot, memory) = self.permits(&over).inspect_err(|_| self.wasted())?;
        let connection = self.clone();
        let (held, in_use, made_sense) = Default::default();
        Ok(Arc::new(Exchange { connection, slot, memory, over, held, in_use, made_sense }))
    }

    /// The permits for a new request: one stream and the memory for it.
    fn permits(&self, over: &CancellationToken) -> Result<(Permit, Permit), Exhausted> {
        let slot = self.admission.streams().acquire(self.peer, 1, over)?;
        Ok((slot, self.admission.memory().acquire(self.peer, EXCHANGE_BYTES, over)?))
    }

    /// Counts a useless request.
    fn wasted(&self) {
        let mut waste = self.waste.lock();
        let now = Instant::now();
        let more = now.saturating_duration_since(waste.at).as_secs_f64() * WASTE_PER_SECOND;
        *waste = Waste { left: (waste.left + more).min(WASTE) - 1.0, at: now };
        if waste.left < 0.0 {
            self.over.cancel();
        }
    }
}

impl Exchange {
    /// The peer that owns it.
    pub(crate) fn peer(&self) -> Peer {
        self.connection.peer
    }

    /// The limits.
    pub(crate) fn limits(&self) -> &Limits {
        self.connection.admission.limits()
    }

    /// Marks the request as active, so its connection is not idle.
    pub(crate) fn is_in_use(&self) {
        if !self.in_use.swap(true, Ordering::Relaxed) {
            self.connection.in_use.send_modify(|count| {
                count.now += 1;
                count.ever += 1;
            });
        }
    }

    /// Returns the request's share of the streams: it belongs to another stream of the client, which counts for both.
    pub(crate) fn is_beside(&self) {
        // Shrinking always succeeds, unless the share was already revoked.
        let _ = self.slot.resize(0);
    }

    /// Marks the request as useful: it was read and is valid.
    pub(crate) fn makes_sense(&self) {
        self.made_sense.store(true, Ordering::Relaxed);
    }

    /// Reserves `bytes` of additional memory.
    ///
    /// # Errors
    /// The peer's limit would be exceeded.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Result<Hold, Exhausted> {
        let mut hold = Hold { exchange: self.clone(), bytes: 0 };
        hold.resize(bytes)?;
        Ok(hold)
    }

    /// Waits until others have returned the memory that was revoked for this request.
    ///
    /// # Errors
    /// Its own memory was revoked meanwhile.
    pub(crate) async fn memory_free(&self) -> Result<(), Exhausted> {
        tokio::select! {
            () = self.connection.admission.memory().within_limit() => {}
            () = self.over.cancelled() => {}
        }
        self.why_revoked().map_or(Ok(()), Err)
    }

    /// Ends the response after a moment in which it can still report the reason.
    pub(crate) fn end(&self) {
        self.over.cancel();
    }

    /// Resolves when the response must end.
    pub(crate) fn over(&self) -> WaitForCancellationFuture<'_> {
        self.over.cancelled()
    }

    /// The pool that revoked it, if any.
    pub(crate) fn why_revoked(&self) -> Option<Exhausted> {
        self.slot.why_revoked().or_else(|| self.memory.why_revoked())
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if *self.in_use.get_mut() {
            self.connection.in_use.send_modify(|count| count.now = count.now.saturating_sub(1));
        }
        if !*self.made_sense.get_mut() {
            self.connection.wasted();
        }
    }
}

impl Hold {
    /// The reserved amount.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the reserved amount.
    ///
    /// # Errors
    /// The peer's limit would be exceeded. The reservation then stays unchanged.
    pub(crate) fn resize(&mut self, bytes: usize) -> Result<(), Exhausted> {
        self.resize_by(bytes, Permit::resize)
    }

    /// Changes the reserved amount as soon as there is room.
    ///
    /// # Errors
    /// There was no room before `due`, or the request's memory was revoked meanwhile. The reservation then stays
    /// unchanged.
    pub(crate) async fn resize_before(
        &mut self,
        bytes: usize,
        due: Instant,
    ) -> Result<(), Exhausted> {
        let exchange = self.exchange.clone();
        loop {
            let returned = exchange.connection.admission.memory().returned();
            let refused = match self.resize_by(bytes, Permit::try_resize) {
                Err(refused @ (Exhausted::Peer { .. } | Exhausted::All { .. })) => refused,
                done => return done,
            };
            if tokio::time::timeout_at(due, returned).await.is_err() {
                exchange.connection.admission.memory().count(&refused);
                return Err(refused);
            }
        }
    }

    fn resize_by(
        &mut self,
        bytes: usize,
        resize: impl Fn(&Permit, usize) -> Result<(), Exhausted>,
    ) -> Result<(), Exhausted> {
        let mut held = self.exchange.held.lock();
        let all = held.saturating_sub(self.bytes).saturating_add(bytes);
        if all != *held {
            resize(&self.exchange.memory, EXCHANGE_BYTES.saturating_add(all))?;
        }
        (*held, self.bytes) = (all, bytes);
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Shrinking always succeeds, unless the reservation was already revoked.
        let _ = self.resize(0);
    }
}

/// The body of a response that ends with its [`Exchange`].
pub(super) struct Guarded {
    body: Body,
    over: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    farewell: Option<Pin<Box<Sleep>>>,
    /// `None` if it was not admitted; the response is then short.
    _exchange: Option<Arc<Exchange>>,
}

impl Guarded {
    pub(crate) fn new(body: Body, exchange: Option<Arc<Exchange>>) -> Self {
        let over =
            exchange.as_ref().map(|exchange| Box::pin(exchange.over.clone().cancelled_owned()));
        Self { body, over, farewell: None, _exchange: exchange }
    }

    /// Ready shortly after the response must end.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(over) = &mut self.over else {
            return Poll::Pending;
        };
        if self.farewell.is_none() {
            std::task::ready!(over.as_mut().poll(context));
        }
        let farewell = self.farewell.get_or_insert_with(|| Box::pin(tokio::time::sleep(FAREWELL)));
        farewell.as_mut().poll(context)
    }
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.poll_over(context).is_ready() {
            return Poll::Ready(Some(Err(axum::Error::new("the response was ended"))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Limits;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn a_request_waits_for_memory_that_others_of_its_peer_return() {
        let limits = Limits { memory: 1 << 20, peer_share: 100, ..Default::default() };
        let admission = Arc::new(Admission::new(limits, "test", &Metrics::default()));
        let connection = admission.connect(([127, 0, 0, 1], 1).into()).unwrap();
        let [first, second] = [connection.begin().unwrap(), connection.begin().unwrap()];
        let first = first.hold(600_000).unwrap();
        let mut hold = second.hold(0).unwrap();
        assert!(hold.resize_before(600_000, Instant::now()).await.is_err(), "it is already due");
        let later = Instant::now() + Duration::from_secs(3600);
        {
            let mut waiting = std::pin::pin!(hold.resize_before(600_000, later));
            assert!(futures::poll!(&mut waiting).is_pending());
            drop(first);
            assert!(matches!(futures::poll!(&mut waiting), std::task::Poll::Ready(Ok(()))));
        }
        second.memory_free().await.unwrap();
    }
}
