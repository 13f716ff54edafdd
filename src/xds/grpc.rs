//! gRPC framing for streams whose messages share bytes: decodes a request body into messages, and encodes [`Frame`]s as
//! a response body.
//!
//! Source: gRPC's "gRPC over HTTP2" document, Length-Prefixed-Message: a compression flag byte, four length bytes, the
//! message.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

use super::wire::{Chunks, Frame};
use crate::admission::{Exchange, Exhausted, Hold, Limits};

/// The maximum request size in bytes, enough for the names of about 100 000 clusters.
const MAX_REQUEST: usize = 8 << 20;

/// The maximum size of a single request field in bytes.
const MAX_FIELD: usize = 256 << 10;

/// The maximum number of fields in a request: each name and each initial version is one.
const MAX_FIELDS: usize = 250_000;

/// The size of the message prefix in bytes.
const PREFIX: usize = 5;

/// The size in bytes up to which a message is not charged to its peer. Most messages are shorter.
const FREE: usize = 4 << 10;

/// How many times the bytes of a message are in memory while it is handled: as received, as decoded, and as shared names.
const COPIES: usize = 3;

/// The memory for each field of a message while it is handled, in bytes: its places in vectors and sets, and what the
/// allocator adds to it.
const FIELD: usize = 100;

/// How many times the time of a message may pass while its parts keep coming.
const LATENESS: u32 = 4;

/// The messages in a request body. Their memory is charged to the peer.
#[derive(Debug)]
pub(super) struct Requests<M> {
    body: Body,
    exchange: Arc<Exchange>,
    buffer: BytesMut,
    /// A complete message that waits for the memory to decode it, and the number of bytes it needs.
    complete: Option<(Bytes, usize)>,
    /// The time of the message that is being received.
    clock: Option<Clock>,
    /// The bytes charged to the peer for the data received.
    settled: usize,
    hold: Option<Hold>,
    message: PhantomData<fn() -> M>,
}

impl<M: Message + Default> Requests<M> {
    pub(crate) fn new(body: Body, exchange: Arc<Exchange>) -> Self {
        Self {
            body,
            exchange,
            buffer: BytesMut::new(),
            complete: None,
            clock: None,
            settled: 0,
            hold: None,
            message: PhantomData,
        }
    }

    /// The next message; `None` if the client has ended its half. Dropping the future loses nothing. The peer is
    /// charged for the message until [`Requests::settle`].
    pub(crate) async fn next(&mut self) -> Result<Option<M>, Status> {
        loop {
            if self.complete.is_none()
                && let Some(message) = self.whole()?
            {
                let takes = message.len() * COPIES + count_fields(&message)? * FIELD;
                self.complete = Some((message, takes));
                self.clock = None;
            }
            if let Some((_, takes)) = self.complete {
                self.charge_before_due(takes).await?;
                self.clock = None;
            }
            if let Some((message, _)) = self.complete.take() {
                let is_long = message.len() > FREE;
                let decoded = M::decode(message);
                // Requests are usually short and rare, so the memory of a long one is released, even if the next one has
                // begun. Short ones that follow each other share theirs, or each would copy the rest.
                if is_long || self.buffer.is_empty() {
                    self.buffer = BytesMut::from(self.buffer.as_ref());
                }
                return decoded.map(Some).map_err(|error| {
                    Status::invalid_argument(format!("the request cannot be decoded: {error}"))
                });
            }
            self.make_room().await?;
            if !self.more().await? {
                let message = "the stream ended in the middle of a request";
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(Status::invalid_argument(message))
                };
            }
        }
    }

    /// Waits until a message begins. Returns whether one began before the client ended its half.
    pub(crate) async fn begun(&mut self) -> Result<bool, Status> {
        while self.buffer.is_empty() {
            if !self.more().await? {
                return Ok(false);
            }
        }
        self.charge_before_due(self.buffer.capacity()).await?;
        // The rest is received when the stream gets a place, which may take longer than a message may.
        self.clock = None;
        Ok(true)
    }

    /// Charges the peer for what is received, and gives a long message its whole buffer at once: a buffer that grows by
    /// doubling is copied each time, and the freed copies stay resident for a while.
    async fn make_room(&mut self) -> Result<(), Status> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let length = self.length().filter(|length| *length <= MAX_REQUEST);
        let room = length.map_or(0, |length| length + PREFIX);
        self.charge_before_due(room.max(self.buffer.capacity())).await?;
        self.buffer.reserve(room.saturating_sub(self.buffer.len()));
        Ok(())
    }

    /// Reads the next part of the body, which the caller charges the peer for. Returns whether there was one.
    async fn more(&mut self) -> Result<bool, Status> {
        let Some(frame) = self.frame().await? else {
            return Ok(false);
        };
        if let Ok(data) = frame?.into_data() {
            self.buffer.extend_from_slice(&data);
        }
        Ok(true)
    }

    /// Charges the peer `bytes` for the rest of the stream, instead of what it was charged for the message just
    /// received.
    pub(crate) fn settle(&mut self, bytes: usize) -> Result<(), Status> {
        self.settled = bytes;
        self.charge(self.buffer.capacity())
    }

    /// Charges the peer `bytes` in addition to what is settled.
    fn charge(&mut self, bytes: usize) -> Result<(), Status> {
        let all = self.settled.saturating_add(bytes);
        if all <= FREE {
            self.hold = None;
            return Ok(());
        }
        held(&mut self.hold, &self.exchange)?.resize(all).map_err(exhausted)
    }

    /// Like [`Requests::charge`], but waits for memory, as long as a short message may take: many proxies that share an
    /// address may start together.
    async fn charge_before_due(&mut self, bytes: usize) -> Result<(), Status> {
        let all = self.settled.saturating_add(bytes);
        if all <= FREE {
            return self.charge(bytes);
        }
        if self.hold.as_ref().is_some_and(|hold| hold.bytes() == all) {
            return Ok(());
        }
        let hold = held(&mut self.hold, &self.exchange)?;
        let wait = Wait::begin(&mut self.clock);
        let due = wait.0.began + self.exchange.limits().message;
        hold.resize_before(all, due).await.map_err(exhausted)?;
        let free = tokio::time::timeout_at(due, self.exchange.memory_free()).await;
        free.map_err(|_| Status::resource_exhausted("others did not return memory in time"))?
            .map_err(exhausted)
    }

    /// The next part of the body, unless the message that it belongs to misses its deadline.
    async fn frame(&mut self) -> Result<Option<Result<http_body::Frame<Bytes>, Status>>, Status> {
        if self.buffer.is_empty() {
            return Ok(self.body.frame().await);
        }
        let length = self.length().unwrap_or(0);
        let wait = Wait::begin(&mut self.clock);
        let due = due(self.exchange.limits(), length, wait.0.began, Instant::now());
        tokio::time::timeout_at(due, self.body.frame()).await.map_err(|_| {
            Status::deadline_exceeded(format!(
                "a request of {length} bytes was not complete in time"
            ))
        })
    }

    /// The length of the message that is being received, if it is known.
    fn length(&self) -> Option<usize> {
        let mut prefix = self.buffer.get(1..PREFIX)?;
        usize::try_from(prefix.get_u32()).ok()
    }

    /// The first complete message in the buffer, if any.
    fn whole(&mut self) -> Result<Option<Bytes>, Status> {
        let mut prefix = self.buffer.as_ref();
        if prefix.len() < PREFIX {
            return Ok(None);
        }
        let compressed = prefix.get_u8();
        let length = usize::try_from(prefix.get_u32()).unwrap_or(usize::MAX);
        if compressed != 0 {
            return Err(Status::unimplemented("compressed requests are not supported"));
        }
        if length > MAX_REQUEST {
            return Err(Status::resource_exhausted(format!(
                "the request has {length} bytes; the limit is {MAX_REQUEST}"
            )));
        }
        if prefix.len() < length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

/// The time that a message takes, without the time in which nobody waits for its parts: a stream does not read while it
/// sends a long response, which is no fault of the client.
#[derive(Debug)]
struct Clock {
    /// When it began, later by the time in which nobody waited.
    began: Instant,
    /// Since when nobody waits.
    paused: Option<Instant>,
}

impl Clock {
    fn new(now: Instant) -> Self {
        Self { began: now, paused: None }
    }

    /// Nobody waits any more.
    fn pause(&mut self, now: Instant) {
        self.paused = Some(now);
    }

    /// Somebody waits again.
    fn resume(&mut self, now: Instant) {
        if let Some(paused) = self.paused.take() {
            self.began += now.saturating_duration_since(paused);
        }
    }
}

/// A wait for a part of a message, until it is dropped.
struct Wait<'a>(&'a mut Clock);

impl<'a> Wait<'a> {
    fn begin(clock: &'a mut Option<Clock>) -> Self {
        let now = Instant::now();
        let clock = clock.get_or_insert(Clock::new(now));
        clock.resume(now);
        Self(clock)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.0.pause(Instant::now());
    }
}

/// The charge to the peer, of 0 bytes if there was none.
fn held<'a>(hold: &'a mut Option<Hold>, exchange: &Arc<Exchange>) -> Result<&'a mut Hold, Status> {
    Ok(match hold {
        Some(hold) => hold,
        none => none.insert(exchange.hold(0).map_err(exhausted)?),
    })
}

/// The deadline for the next part of a message of `length` bytes, if the last part came `now`.
///
/// While thousands of proxies connect at once, it may be this process that is late with reading. So a client that goes on
/// sending gets more time.
fn due(limits: &Limits, length: usize, began: Instant, now: Instant) -> Instant {
    let within = limits.message_within(length);
    (began + within).max((now + limits.message).min(began + within * LATENESS))
}

/// Counts the fields of a request. Rejects requests that would take much more memory once decoded: very many fields, or a
/// single field (the node, an error message) that consists of very many.
fn count_fields(message: &Bytes) -> Result<usize, Status> {
    let mut rest = message.clone();
    let mut fields = 0usize;
    while rest.has_remaining() {
        let before = rest.remaining();
        let Ok((field, kind)) = decode_key(&mut rest) else {
            return Ok(fields);
        };
        if skip_field(kind, field, &mut rest, DecodeContext::default()).is_err() {
            // Decoding reports a better error.
            return Ok(fields);
        }
        fields += 1;
        if before - rest.remaining() > MAX_FIELD {
            return Err(Status::resource_exhausted(format!(
                "field {field} of the request exceeds the limit of {MAX_FIELD} bytes"
            )));
        }
        if fields > MAX_FIELDS {
            return Err(Status::resource_exhausted(format!(
                "the request exceeds the limit of {MAX_FIELDS} names"
            )));
        }
    }
    Ok(fields)
}

/// A response body: the received frames, followed by the final status of the stream.
#[derive(Debug)]
struct Responses {
    frames: mpsc::Receiver<Result<Outgoing, Status>>,
    current: Option<(Chunks, Option<Hold>)>,
    ended: bool,
}

/// A message to send, and the charge to its peer until it is sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    frame: Frame,
    hold: Option<Hold>,
}

impl Outgoing {
    /// Charges the peer for the bytes of a message that no other response shares.
    pub(crate) fn new(frame: Frame, exchange: &Arc<Exchange>) -> Result<Self, Status> {
        let own = frame.own_len();
        let hold = if own > FREE { Some(exchange.hold(own).map_err(exhausted)?) } else { None };
        Ok(Self { frame, hold })
    }
}

fn exhausted(exhausted: Exhausted) -> Status {
    Status::resource_exhausted(exhausted.to_string())
}

/// A response of these messages.
pub(super) fn response(frames: mpsc::Receiver<Result<Outgoing, Status>>) -> http::Response<Body> {
    let body = Body::new(Responses { frames, current: None, ended: false });
    let mut response = http::Response::new(body);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    response
}

impl http_body::Body for Responses {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(chunk) = self.current.as_mut().and_then(|(chunks, _)| chunks.next()) {
                return Poll::Ready(Some(Ok(http_body::Frame::data(chunk))));
            }
            self.current = None;
            if self.ended {
                return Poll::Ready(None);
            }
            let status = match std::task::ready!(self.frames.poll_recv(context)) {
                Some(Ok(Outgoing { frame, hold })) => {
                    let length = u32::try_from(frame.len());
                    let Ok(length) = length else {
                        self.ended = true;
                        let status = Status::internal("the response exceeds gRPC's limit of 4 GiB");
                        return Poll::Ready(Some(Ok(http_body::Frame::trailers(trailers(status)))));
                    };
                    let [a, b, c, d] = length.to_be_bytes();
                    self.current = Some((frame.chunks(&[0, a, b, c, d]), hold));
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            self.ended = true;
            return Poll::Ready(Some(Ok(http_body::Frame::trailers(trailers(status)))));
        }
    }
}

/// The trailers with the final status.
fn trailers(status: Status) -> HeaderMap {
    let mut headers = status.into_http::<()>().into_parts().0.headers;
    headers.remove(http::header::CONTENT_TYPE);
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
    use std::time::Duration;

    use futures::{FutureExt, StreamExt};
    use http_body_util::{Full, StreamBody};

    fn framed(message: &DiscoveryRequest) -> Vec<u8> {
        let bytes = message.encode_to_vec();
        let mut out = vec![0];
        out.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        out.extend(bytes);
        out
    }

    fn part(bytes: &[u8]) -> Result<http_body::Frame<Bytes>, Infallible> {
        Ok(http_body::Frame::data(Bytes::copy_from_slice(bytes)))
    }

    fn request(name: &str) -> DiscoveryRequest {
        DiscoveryRequest { type_url: name.to_owned(), ..Default::default() }
    }

    fn exchange() -> Arc<Exchange> {
        crate::admission::exchange_for_tests(crate::admission::Limits::default())
    }

    async fn all(body: Body) -> (Vec<String>, Option<Status>) {
        let mut requests = Requests::<DiscoveryRequest>::new(body, exchange());
        let mut found = Vec::new();
        loop {
            match requests.next().await {
                Ok(Some(message)) => found.push(message.type_url),
                Ok(None) => return (found, None),
                Err(status) => return (found, Some(status)),
            }
        }
    }

    #[tokio::test]
    async fn messages_are_read_regardless_of_how_their_bytes_are_split() {
        let bytes: Vec<u8> =
            ["a", "bb", ""].iter().flat_map(|name| framed(&request(name))).collect();
        for size in [1, 3, 7, bytes.len()] {
            let pieces: Vec<_> = bytes.chunks(size).map(part).collect();
            let (found, error) =
                all(Body::new(StreamBody::new(futures::stream::iter(pieces)))).await;
            assert_eq!(found, ["a", "bb", ""], "in pieces of {size}");
            assert!(error.is_none(), "{error:?}");
        }
    }

    #[tokio::test]
    async fn an_invalid_message_ends_the_stream_with_a_status() {
        let cut = framed(&request("long enough"))[..9].to_vec();
        let too_long = [&[0][..], &u32::MAX.to_be_bytes()].concat();
        for (bytes, code) in [
            (cut, tonic::Code::InvalidArgument),
            (vec![1, 0, 0, 0, 0], tonic::Code::Unimplemented),
            (vec![0, 0, 0, 0, 1, 255], tonic::Code::InvalidArgument),
            (too_long, tonic::Code::ResourceExhausted),
        ] {
            let (found, error) = all(Body::new(Full::new(Bytes::from(bytes)))).await;
            assert!(found.is_empty());
            assert_eq!(error.map(|status| status.code()), Some(code));
        }
    }

    #[test]
    fn a_message_whose_parts_keep_coming_gets_more_time() {
        let limits = Limits::default();
        let (began, length) = (Instant::now(), 64 << 10);
        let (part, within) = (limits.message, limits.message_within(length));
        // Silence from the beginning, from just before the deadline, and parts without end.
        assert_eq!(due(&limits, length, began, began), began + within);
        let late = began + within;
        assert_eq!(due(&limits, length, began, late), late + part);
        let last = began + within * LATENESS;
        assert_eq!(due(&limits, length, began, last), last);
    }

    #[test]
    fn the_time_in_which_nobody_waits_for_a_message_does_not_count() {
        let begun = Instant::now();
        let mut clock = Clock::new(begun);
        clock.resume(begun);
        clock.pause(begun + Duration::from_secs(2));
        clock.resume(begun + Duration::from_secs(50));
        assert_eq!(clock.began, begun + Duration::from_secs(48));
        // Without a pause in between, time goes on.
        clock.resume(begun + Duration::from_secs(60));
        assert_eq!(clock.began, begun + Duration::from_secs(48));
    }

    #[tokio::test]
    async fn a_peer_is_charged_for_what_arrives_before_the_message_is_complete() {
        let mut bytes = vec![0];
        bytes.extend(100_000u32.to_be_bytes());
        bytes.resize(10_000, 0);
        let body = futures::stream::iter([part(&bytes)]).chain(futures::stream::pending());
        let exchange = exchange();
        let body = Body::new(StreamBody::new(body));
        let mut requests = Requests::<DiscoveryRequest>::new(body, exchange);
        assert!(requests.begun().now_or_never().unwrap().unwrap());
        assert!(
            requests.hold.as_ref().is_some_and(|hold| (10_000..50_000).contains(&hold.bytes()))
        );
        assert!(requests.next().now_or_never().is_none());
        assert!(requests.hold.as_ref().is_some_and(|hold| hold.bytes() > 100_000));
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_pauses_the_time_of_the_message() {
        let bytes = framed(&request("split"));
        let body = futures::stream::iter([part(&bytes[..7])]).chain(futures::stream::pending());
        let body = Body::new(StreamBody::new(body));
        let mut requests = Requests::<DiscoveryRequest>::new(body, exchange());
        assert!(requests.next().now_or_never().is_none());
        assert!(requests.clock.is_some_and(|clock| clock.paused.is_some()));
    }

    #[tokio::test]
    async fn the_final_status_comes_last() {
        let (sender, frames) = mpsc::channel(2);
        let frame = Frame::sotw(crate::snapshot::ResourceType::Route, 1, "n", Vec::new());
        let length = frame.len();
        sender.send(Ok(Outgoing::new(frame, &exchange()).unwrap())).await.unwrap();
        sender.send(Err(Status::unavailable("going"))).await.unwrap();
        let collected = response(frames).into_body().collect().await.unwrap();
        let trailers = collected.trailers().unwrap();
        assert_eq!(trailers.get("grpc-status").unwrap(), "14");
        assert_eq!(trailers.get("grpc-message").unwrap(), "going");
        assert_eq!(collected.to_bytes().len(), length + PREFIX);
    }
}
