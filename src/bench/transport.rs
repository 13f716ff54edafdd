//! An ADS stream over HTTP/2, as cheap as it can be: gRPC's five bytes before each message, and messages as they came.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

use super::stream::Pieces;
use crate::bootstrap::AdsVariant;

/// How many bytes a server may send before the client has read them: the windows of HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Windows {
    stream: u32,
    connection: u32,
}

impl Windows {
    /// What Envoy gives its upstreams.
    pub(crate) const ENVOY: Self = Self { stream: 16 << 20, connection: 24 << 20 };

    /// Those of HTTP/2 itself, which are full at once if nothing is read.
    pub(crate) const SMALL: Self = Self { stream: 65_535, connection: 65_535 };
}

/// How many requests may wait for a server that does not read.
const QUEUE: usize = 64;

/// How long connecting and the response headers may take.
const CONNECT: Duration = Duration::from_secs(60);

/// The most bytes of unfinished messages, of all streams together.
const MEMORY: usize = 2 << 30;

/// The unit in which [`Memory`] is counted.
const UNIT: usize = 1024;

/// Memory for messages that are arriving. A stream whose message does not fit waits, so that a thousand proxies that
/// fetch a large mesh at once do not take all of the machine's memory.
#[derive(Debug, Clone)]
pub(crate) struct Memory(Arc<Semaphore>);

impl Default for Memory {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MEMORY / UNIT)))
    }
}

impl Memory {
    async fn take(&self, bytes: usize) -> anyhow::Result<OwnedSemaphorePermit> {
        if bytes > MEMORY {
            bail!("a response of {bytes} bytes: more than {MEMORY} are not read");
        }
        let units = u32::try_from(bytes.div_ceil(UNIT))?;
        Ok(self.0.clone().acquire_many_owned(units).await?)
    }
}

type RequestBody = StreamBody<ReceiverStream<Result<Frame<Bytes>, Infallible>>>;

/// An open stream.
pub(crate) struct AdsStream {
    requests: mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
    body: Incoming,
    received: BytesMut,
    memory: Memory,
    _connection: AbortOnDropHandle<()>,
}

impl AdsStream {
    /// Connects and opens a stream on a connection of its own, as a proxy does, and sends these requests.
    ///
    /// # Errors
    /// Nothing listens there, or it does not serve ADS.
    pub(crate) async fn open(
        address: &str,
        variant: AdsVariant,
        first: Vec<Pieces>,
        windows: Windows,
        memory: Memory,
    ) -> anyhow::Result<Self> {
        tokio::time::timeout(CONNECT, Self::connect(address, variant, first, windows, memory))
            .await
            .with_context(|| format!("{address} did not answer within {CONNECT:?}"))?
    }

    async fn connect(
        address: &str,
        variant: AdsVariant,
        first: Vec<Pieces>,
        windows: Windows,
        memory: Memory,
    ) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(windows.stream)
            .initial_connection_window_size(windows.connection)
            .handshake::<_, RequestBody>(TokioIo::new(stream))
            .await?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // That it broke is seen by the stream.
            let _ = connection.await;
        }));
        let method = match variant {
            AdsVariant::Delta => "DeltaAggregatedResources",
            AdsVariant::Sotw => "StreamAggregatedResources",
        };
        let (requests, frames) = mpsc::channel(QUEUE);
        let request = http::Request::post(format!(
            "http://{address}/envoy.service.discovery.v3.AggregatedDiscoveryService/{method}"
        ))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(ReceiverStream::new(frames)))?;
        let asked = sender.send_request(request);
        for pieces in first {
            send(&requests, pieces).await?;
        }
        let response =
            asked.await.with_context(|| format!("{address} did not answer a request for ADS"))?;
        if response.status() != http::StatusCode::OK {
            bail!("{address} answered ADS with HTTP status {}", response.status());
        }
        check(response.headers())?;
        let (body, received) = (response.into_body(), BytesMut::new());
        Ok(Self { requests, body, received, memory, _connection: connection })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// The stream ended.
    pub(crate) async fn send(&self, pieces: Pieces) -> anyhow::Result<()> {
        send(&self.requests, pieces).await
    }

    /// The next message, with the memory that it occupies.
    ///
    /// # Errors
    /// The stream ended, for which a server has a reason.
    pub(crate) async fn next(&mut self) -> anyhow::Result<(BytesMut, OwnedSemaphorePermit)> {
        while self.received.len() < PREFIX {
            self.more().await?;
        }
        let compressed = self.received.get_u8();
        let length = self.received.get_u32() as usize;
        if compressed != 0 {
            bail!("the server compresses, which was not asked for");
        }
        let permit = self.memory.take(length).await?;
        self.received.reserve(length.saturating_sub(self.received.len()));
        while self.received.len() < length {
            self.more().await?;
        }
        Ok((self.received.split_to(length), permit))
    }

    async fn more(&mut self) -> anyhow::Result<()> {
        let frame = self.body.frame().await.context("the server ended the stream")??;
        match frame.into_data() {
            Ok(data) => self.received.extend_from_slice(&data),
            Err(frame) => {
                if let Some(trailers) = frame.trailers_ref() {
                    check(trailers)?;
                }
                bail!("the server ended the stream");
            }
        }
        Ok(())
    }
}

/// The length of what precedes each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

async fn send(
    requests: &mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
    pieces: Pieces,
) -> anyhow::Result<()> {
    let length: usize = pieces.iter().map(Bytes::len).sum();
    let mut prefix = BytesMut::with_capacity(PREFIX);
    prefix.put_u8(0);
    prefix.put_u32(u32::try_from(length).context("a request is too long for gRPC")?);
    for piece in std::iter::once(prefix.freeze()).chain(pieces) {
        requests.send(Ok(Frame::data(piece))).await.ok().context("the server ended the stream")?;
    }
    Ok(())
}

/// A status other than OK is an error.
fn check(headers: &http::HeaderMap) -> anyhow::Result<()> {
    match tonic::Status::from_header_map(headers) {
        Some(status) if status.code() != tonic::Code::Ok => {
            bail!("the server ended the stream: {:?}: {}", status.code(), status.message())
        }
        _ => Ok(()),
    }
}
