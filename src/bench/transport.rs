//! gRPC streams over HTTP/2, as cheap as they can be: gRPC's five bytes before each message, and messages as they came.
//!
//! Proxies have an address each where the system allows it, because a server limits what a single address may do.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpSocket, TcpStream};
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

/// Whether every address of 127.0.0.0/8 is on the loopback interface, so that each proxy can connect from another one.
pub(crate) const HAS_ADDRESSES: bool = cfg!(target_os = "linux");

/// The loopback address of the proxy with this number; `None` where there is only one, and for numbers above 16 million.
/// Those of 127.0.0.0/16 are left to others.
pub(crate) fn loopback(number: usize) -> Option<Ipv4Addr> {
    let first = u32::from(Ipv4Addr::new(127, 1, 0, 1));
    let address = Ipv4Addr::from(first.checked_add(u32::try_from(number).ok()?)?);
    (HAS_ADDRESSES && address.is_loopback() && !address.is_broadcast()).then_some(address)
}

/// Connects from this address if the server is on loopback and IPv4, and from any otherwise.
async fn connect(address: &str, from: Option<Ipv4Addr>) -> std::io::Result<TcpStream> {
    let Some(from) = from else {
        return TcpStream::connect(address).await;
    };
    let mut last = None;
    for target in tokio::net::lookup_host(address).await? {
        let connected = match target.ip() {
            IpAddr::V4(ip) if ip.is_loopback() => {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddr::from((from, 0)))?;
                socket.connect(target).await
            }
            _ => TcpStream::connect(target).await,
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| std::io::Error::other("the name has no address")))
}

/// A connection, which ends with this value.
pub(crate) struct Connection {
    address: Arc<str>,
    sender: http2::SendRequest<RequestBody>,
    _task: AbortOnDropHandle<()>,
}

impl Connection {
    /// Connects, from `from` if it is given and the server is on loopback.
    ///
    /// # Errors
    /// Nothing listens there.
    pub(crate) async fn open(
        address: &Arc<str>,
        from: Option<Ipv4Addr>,
        windows: Windows,
    ) -> anyhow::Result<Self> {
        let opened = async {
            let stream = connect(address, from)
                .await
                .with_context(|| format!("cannot connect to {address}"))?;
            stream.set_nodelay(true)?;
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(windows.stream)
                .initial_connection_window_size(windows.connection)
                .handshake::<_, RequestBody>(TokioIo::new(stream))
                .await?;
            let task = AbortOnDropHandle::new(tokio::spawn(async move {
                // That it broke is seen by its streams.
                let _ = connection.await;
            }));
            anyhow::Ok(Self { address: address.clone(), sender, _task: task })
        };
        in_time(address, opened).await
    }

    /// Opens an ADS stream and sends these requests.
    ///
    /// # Errors
    /// The server does not serve ADS.
    pub(crate) async fn ads(
        &self,
        variant: AdsVariant,
        first: Vec<Pieces>,
        memory: Memory,
    ) -> anyhow::Result<GrpcStream> {
        let method = match variant {
            AdsVariant::Delta => "DeltaAggregatedResources",
            AdsVariant::Sotw => "StreamAggregatedResources",
        };
        let path = format!("envoy.service.discovery.v3.AggregatedDiscoveryService/{method}");
        self.stream(&path, first, memory).await
    }

    /// Opens a stream of load reports on the same connection, as Envoy does, and sends these requests.
    ///
    /// # Errors
    /// The server takes no load reports.
    pub(crate) async fn load_reports(
        &self,
        first: Pieces,
        memory: Memory,
    ) -> anyhow::Result<GrpcStream> {
        let path = "envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats";
        self.stream(path, vec![first], memory).await
    }

    async fn stream(
        &self,
        path: &str,
        first: Vec<Pieces>,
        memory: Memory,
    ) -> anyhow::Result<GrpcStream> {
        let address = &self.address;
        let (requests, frames) = mpsc::channel(QUEUE);
        let request = http::Request::post(format!("http://{address}/{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(StreamBody::new(ReceiverStream::new(frames)))?;
        let opened = async {
            let mut sender = self.sender.clone();
            let asked = sender.send_request(request);
            for pieces in first {
                send(&requests, pieces).await?;
            }
            let response =
                asked.await.with_context(|| format!("{address} did not answer {path}"))?;
            if response.status() != http::StatusCode::OK {
                bail!("{address} answered {path} with HTTP status {}", response.status());
            }
            check(response.headers())?;
            Ok(response.into_body())
        };
        let body = in_time(address, opened).await?;
        Ok(GrpcStream { requests, body, received: BytesMut::new(), memory })
    }
}

async fn in_time<T>(
    address: &str,
    opened: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::time::timeout(CONNECT, opened)
        .await
        .with_context(|| format!("{address} did not answer within {CONNECT:?}"))?
}

/// An open stream. It ends with this value or with its connection.
pub(crate) struct GrpcStream {
    requests: mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
    body: Incoming,
    received: BytesMut,
    memory: Memory,
}

impl GrpcStream {
    /// Sends a request.
    ///
    /// # Errors
    /// The stream ended.
    pub(crate) async fn send(&self, pieces: Pieces) -> anyhow::Result<()> {
        send(&self.requests, pieces).await
    }

    /// The next message, with the memory that it occupies. Cancel safe.
    ///
    /// # Errors
    /// The stream ended, for which a server has a reason.
    pub(crate) async fn next(&mut self) -> anyhow::Result<(BytesMut, OwnedSemaphorePermit)> {
        while self.received.len() < PREFIX {
            self.more().await?;
        }
        let mut prefix = &self.received[..];
        let compressed = prefix.get_u8();
        let length = prefix.get_u32() as usize;
        if compressed != 0 {
            bail!("the server compresses, which was not asked for");
        }
        let permit = self.memory.take(length).await?;
        self.received.reserve((PREFIX + length).saturating_sub(self.received.len()));
        while self.received.len() < PREFIX + length {
            self.more().await?;
        }
        self.received.advance(PREFIX);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_proxy_connects_from_an_address_of_its_own() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        for (number, wanted) in [(0, [127, 1, 0, 1]), (300, [127, 1, 1, 45])] {
            let _stream = connect(&address, loopback(number)).await.unwrap();
            let (_, from) = listener.accept().await.unwrap();
            let wanted = if HAS_ADDRESSES { wanted } else { [127, 0, 0, 1] };
            assert_eq!(from.ip(), Ipv4Addr::from(wanted));
        }
        assert_eq!(loopback(1 << 24), None);
    }
}
