//! Clients that try to take more than is theirs, frame by frame: no HTTP/2 library lets one misbehave so. And one that
//! behaves, to see what the others do to it.
//!
//! Sources: RFC 9113 for frames, RFC 7541 for headers.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3 as pb;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

pub(crate) const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(crate) const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub(crate) const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The most that a frame may carry.
const FRAME: usize = 16_384;
const WINDOW: i64 = 65_535;

/// The address of an attacker, each of which counts as a peer.
pub(crate) fn attacker(n: usize) -> IpAddr {
    IpAddr::from([127, 0, 1, u8::try_from(n % 200 + 20).unwrap()])
}

/// A connection from an address of loopback.
pub(crate) async fn connect(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(from, 0))?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What the other side has sent.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub responses: usize,
    pub messages: usize,
    /// Streams that the other side has ended, or refused.
    pub ended: usize,
    /// The connection is closed, or will be.
    pub closed: bool,
    connection_window: i64,
    windows: HashMap<u32, i64>,
    /// What has come on the streams that are listened to.
    bodies: HashMap<u32, Vec<u8>>,
}

#[derive(Debug)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Notify,
    write: tokio::sync::Mutex<OwnedWriteHalf>,
}

/// An HTTP/2 connection. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Http2 {
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
    out: Vec<u8>,
    last_stream: u32,
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    out.extend([a, b, c, kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

/// A header that no table has, under the name of this index of the static table; a new name for index 0.
fn literal(out: &mut Vec<u8>, index: u8, name: &str, value: &str) {
    fn number(out: &mut Vec<u8>, prefix: usize, mut rest: usize) {
        if rest < prefix {
            out.push(u8::try_from(rest).unwrap());
            return;
        }
        out.push(u8::try_from(prefix).unwrap());
        rest -= prefix;
        while rest >= 128 {
            out.push(u8::try_from(rest % 128 + 128).unwrap());
            rest /= 128;
        }
        out.push(u8::try_from(rest).unwrap());
    }
    number(out, 15, usize::from(index));
    if index == 0 {
        number(out, 127, name.len());
        out.extend(name.as_bytes());
    }
    number(out, 127, value.len());
    out.extend(value.as_bytes());
}

/// The headers of a call of ADS, with so many bytes more.
fn headers(delta: bool, more: usize) -> Vec<u8> {
    let method = if delta { "DeltaAggregatedResources" } else { "StreamAggregatedResources" };
    let mut out = vec![0x83, 0x86];
    literal(
        &mut out,
        4,
        "",
        &format!("/envoy.service.discovery.v3.AggregatedDiscoveryService/{method}"),
    );
    literal(&mut out, 1, "", "weir");
    literal(&mut out, 31, "", "application/grpc");
    literal(&mut out, 0, "te", "trailers");
    if more > 0 {
        literal(&mut out, 0, "x-more", &"x".repeat(more));
    }
    out
}

impl Http2 {
    pub(crate) async fn connect(from: IpAddr, to: SocketAddr) -> io::Result<Self> {
        let (read, write) = connect(from, to).await?.into_split();
        let seen = Mutex::new(Seen { connection_window: WINDOW, ..Default::default() });
        let shared = Arc::new(Shared {
            seen,
            changed: Notify::new(),
            write: tokio::sync::Mutex::new(write),
        });
        let reader = tokio::spawn(read_all(shared.clone(), read));
        let mut this = Self { shared, reader, out: PREFACE.to_vec(), last_stream: 0 };
        // Whatever is sent may be sent: SETTINGS_INITIAL_WINDOW_SIZE, and as much for the connection.
        let most = i32::MAX.cast_unsigned().to_be_bytes();
        frame(&mut this.out, SETTINGS, 0, 0, &[&[0, 4][..], &most].concat());
        frame(
            &mut this.out,
            WINDOW_UPDATE,
            0,
            0,
            &(i32::MAX - 65_535).cast_unsigned().to_be_bytes(),
        );
        this.flush().await?;
        Ok(this)
    }

    /// Opens a stream; nothing is sent before [`Http2::flush`].
    pub(crate) fn open(&mut self, delta: bool, more_headers: usize) -> u32 {
        self.last_stream += if self.last_stream == 0 { 1 } else { 2 };
        frame(&mut self.out, HEADERS, END_HEADERS, self.last_stream, &headers(delta, more_headers));
        self.shared.seen.lock().unwrap().windows.insert(self.last_stream, WINDOW);
        self.last_stream
    }

    pub(crate) fn reset(&mut self, stream: u32) {
        const CANCEL: u32 = 8;
        frame(&mut self.out, RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
        self.shared.seen.lock().unwrap().windows.remove(&stream);
    }

    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        if self.is_closed() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let out = std::mem::take(&mut self.out);
        self.shared.write.lock().await.write_all(&out).await
    }

    /// Sends bytes on a stream, as fast as the other side lets it.
    pub(crate) async fn send(&mut self, stream: u32, mut bytes: &[u8]) -> io::Result<()> {
        let shared = self.shared.clone();
        while !bytes.is_empty() {
            let changed = shared.changed.notified();
            let size = {
                let mut seen = shared.seen.lock().unwrap();
                if seen.closed {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                let Some(own) = seen.windows.get(&stream).copied() else {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                };
                let window = usize::try_from(own.min(seen.connection_window)).unwrap_or(0);
                let size = window.min(FRAME).min(bytes.len());
                let signed = i64::try_from(size).unwrap();
                seen.connection_window -= signed;
                seen.windows.insert(stream, own - signed);
                size
            };
            if size == 0 {
                changed.await;
                continue;
            }
            let (now, later) = bytes.split_at(size);
            frame(&mut self.out, DATA, 0, stream, now);
            bytes = later;
            self.flush().await?;
        }
        Ok(())
    }

    /// Waits until what the other side has sent is as it should be, or the connection is closed; says whether it was.
    pub(crate) async fn until(&self, holds: impl Fn(&Seen) -> bool) -> bool {
        loop {
            let changed = self.shared.changed.notified();
            {
                let seen = self.shared.seen.lock().unwrap();
                if holds(&seen) {
                    return true;
                }
                if seen.closed {
                    return false;
                }
            }
            changed.await;
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.shared.seen.lock().unwrap().closed
    }

    /// The next message on a stream that is listened to.
    pub(crate) async fn message(&self, stream: u32) -> Option<pb::DiscoveryResponse> {
        let taken = |seen: &mut Seen| {
            let body = seen.bodies.entry(stream).or_default();
            let length = body
                .get(1..5)
                .map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()) as usize)?;
            let message = pb::DiscoveryResponse::decode(body.get(5..5 + length)?).unwrap();
            body.drain(..5 + length);
            Some(message)
        };
        loop {
            let changed = self.shared.changed.notified();
            {
                let mut seen = self.shared.seen.lock().unwrap();
                if let Some(message) = taken(&mut seen) {
                    return Some(message);
                }
                if seen.closed || !seen.windows.contains_key(&stream) {
                    return None;
                }
            }
            changed.await;
        }
    }
}

async fn read_all(shared: Arc<Shared>, mut read: OwnedReadHalf) {
    let mut buffer = Vec::new();
    loop {
        let mut head = [0; 9];
        if read.read_exact(&mut head).await.is_err() {
            break;
        }
        let [a, b, c, kind, flags, d, e, f, g] = head;
        buffer.resize(u32::from_be_bytes([0, a, b, c]) as usize, 0);
        if read.read_exact(&mut buffer).await.is_err() {
            break;
        }
        let stream = u32::from_be_bytes([d, e, f, g]);
        let ends = flags & END_STREAM != 0 && kind <= HEADERS;
        let mut answer = Vec::new();
        match kind {
            SETTINGS if flags & ACK == 0 => frame(&mut answer, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => frame(&mut answer, PING, ACK, 0, &buffer),
            _ => {}
        }
        if !answer.is_empty() && shared.write.lock().await.write_all(&answer).await.is_err() {
            break;
        }
        let mut seen = shared.seen.lock().unwrap();
        match kind {
            DATA => {
                seen.messages += 1;
                if let Some(body) = seen.bodies.get_mut(&stream) {
                    body.extend(&buffer);
                }
            }
            HEADERS => seen.responses += 1,
            GOAWAY => seen.closed = true,
            WINDOW_UPDATE => {
                let more = i64::from(u32::from_be_bytes(buffer[..4].try_into().unwrap()));
                match stream {
                    0 => seen.connection_window += more,
                    _ => {
                        if let Some(window) = seen.windows.get_mut(&stream) {
                            *window += more;
                        }
                    }
                }
            }
            _ => {}
        }
        if (ends || kind == RST_STREAM) && seen.windows.remove(&stream).is_some() {
            seen.ended += 1;
        }
        drop(seen);
        shared.changed.notify_waiters();
    }
    shared.seen.lock().unwrap().closed = true;
    shared.changed.notify_waiters();
}

fn node(namespace: &str, n: usize) -> core::Node {
    let (a, b) = (n / 250 % 250, n % 250 + 1);
    core::Node {
        id: format!("sidecar~10.9.{a}.{b}~client-{n}.{namespace}~{namespace}.svc.cluster.local"),
        ..Default::default()
    }
}

fn framed(message: &pb::DiscoveryRequest) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let mut out = vec![0];
    out.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend(bytes);
    out
}

/// A first request, as a proxy sends it.
pub(crate) fn request(namespace: &str, n: usize, type_url: &str, names: Vec<String>) -> Vec<u8> {
    framed(&pb::DiscoveryRequest {
        node: Some(node(namespace, n)),
        type_url: type_url.to_owned(),
        resource_names: names,
        ..Default::default()
    })
}

/// Connects as a new proxy does, and waits for its first clusters.
pub(crate) async fn served(from: IpAddr, to: SocketAddr) -> io::Result<Http2> {
    let mut http = Http2::connect(from, to).await?;
    let stream = http.open(false, 0);
    http.flush().await?;
    http.send(stream, &request("bench", 1, CDS, Vec::new())).await?;
    if http.until(|seen| seen.messages > 0).await {
        Ok(http)
    } else {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

/// A proxy that watches one route configuration.
pub(crate) struct Watcher {
    http: Http2,
    stream: u32,
    names: Vec<String>,
}

impl Watcher {
    pub(crate) async fn new(from: IpAddr, to: SocketAddr, routes: &str) -> io::Result<Self> {
        let mut http = Http2::connect(from, to).await?;
        let stream = http.open(false, 0);
        http.flush().await?;
        let names = vec![routes.to_owned()];
        http.send(stream, &request("bench", 2, RDS, names.clone())).await?;
        http.shared.seen.lock().unwrap().bodies.entry(stream).or_default();
        let mut this = Self { http, stream, names };
        this.next().await?;
        Ok(this)
    }

    /// Waits for the next form, and acks it.
    pub(crate) async fn next(&mut self) -> io::Result<pb::DiscoveryResponse> {
        let gone =
            || io::Error::new(io::ErrorKind::ConnectionReset, "the watching proxy lost its stream");
        let got = self.http.message(self.stream).await.ok_or_else(gone)?;
        let ack = framed(&pb::DiscoveryRequest {
            type_url: RDS.to_owned(),
            version_info: got.version_info.clone(),
            response_nonce: got.nonce.clone(),
            resource_names: self.names.clone(),
            ..Default::default()
        });
        self.http.send(self.stream, &ack).await?;
        Ok(got)
    }
}

/// What hostile clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attack {
    /// Opens streams, waits for their headers, and resets them.
    OpenReset,
    /// Opens streams and resets them in the same breath.
    RapidReset,
    /// The same, with headers of 10 KB.
    HeaderFlood,
    /// Connects and says nothing.
    Silent,
    /// Connects and says a byte now and then.
    Slowloris,
    /// Asks for very many names that nothing knows.
    UnknownNames,
    /// Sends all of a message of 8 MB but its last byte.
    Unfinished,
    /// Opens as many streams as there may be, from four connections, and asks for clusters on each.
    Hogging,
    /// Begins as ever other proxies do, each of a namespace of its own, and stays.
    Scopes,
    /// Begins as a proxy does, takes the first response, and resets the stream.
    Churn,
    /// Connects and disconnects.
    Reconnecting,
}

impl Attack {
    pub(crate) const ALL: [Self; 11] = [
        Self::OpenReset,
        Self::RapidReset,
        Self::HeaderFlood,
        Self::Silent,
        Self::Slowloris,
        Self::UnknownNames,
        Self::Unfinished,
        Self::Hogging,
        Self::Scopes,
        Self::Churn,
        Self::Reconnecting,
    ];

    /// Tries `count` streams (or connections, where it is about those) from several addresses, and holds on to what it
    /// gets. It is over when what is returned is dropped. `tried` counts up.
    pub(crate) fn start(
        self,
        to: SocketAddr,
        count: usize,
        tried: &Arc<std::sync::atomic::AtomicUsize>,
    ) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let peers = if self == Self::Hogging { 4 } else { 8 };
        for n in 0..peers {
            let tally = Tally { tried: tried.clone(), count };
            tasks.spawn(async move {
                let from = attacker(n);
                while tally.more() {
                    if self.once(from, to, &tally).await.is_err() {
                        // Rejected or closed: it comes back at once, as fast as the system lets it.
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
                std::future::pending::<()>().await;
            });
        }
        tasks
    }

    async fn once(self, from: IpAddr, to: SocketAddr, tally: &Tally) -> io::Result<()> {
        match self {
            Self::OpenReset => resetting(from, to, tally, 0, true).await,
            Self::RapidReset => resetting(from, to, tally, 0, false).await,
            Self::HeaderFlood => resetting(from, to, tally, 10_000, false).await,
            Self::Silent => silent(from, to, tally, None).await,
            Self::Slowloris => silent(from, to, tally, Some(Duration::from_millis(200))).await,
            Self::UnknownNames => {
                let names = (0..100_000)
                    .map(|n| format!("outbound|80||service-{n}.nowhere.svc.cluster.local"));
                sending(from, to, tally, &request("bench", 3, EDS, names.collect()), true).await
            }
            Self::Unfinished => {
                let mut message = vec![0];
                message.extend((8u32 << 20).to_be_bytes());
                message.resize(message.len() + (8 << 20) - 1, 10);
                sending(from, to, tally, &message, false).await
            }
            Self::Hogging | Self::Scopes => {
                let mut http = Http2::connect(from, to).await?;
                while tally.one() {
                    let (stream, n) = (http.open(false, 0), tally.number());
                    let namespace = if self == Self::Scopes {
                        format!("bench-{n}")
                    } else {
                        "bench".to_owned()
                    };
                    http.send(stream, &request(&namespace, n, CDS, Vec::new())).await?;
                }
                kept(http).await
            }
            Self::Churn => {
                let mut http = Http2::connect(from, to).await?;
                while tally.one() {
                    let stream = http.open(false, 0);
                    let before = http.shared.seen.lock().unwrap().messages;
                    http.send(stream, &request("bench", tally.number(), CDS, Vec::new())).await?;
                    http.until(|seen| seen.messages > before || seen.ended > 0).await;
                    http.reset(stream);
                    http.flush().await?;
                }
                Ok(())
            }
            Self::Reconnecting => {
                while tally.one() {
                    drop(connect(from, to).await?);
                }
                Ok(())
            }
        }
    }
}

struct Tally {
    tried: Arc<std::sync::atomic::AtomicUsize>,
    count: usize,
}

impl Tally {
    fn number(&self) -> usize {
        self.tried.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn more(&self) -> bool {
        self.number() < self.count
    }

    /// Counts one more, where there is one.
    fn one(&self) -> bool {
        self.tried.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < self.count
    }
}

/// Keeps a connection for as long as the other side does, and a little longer.
async fn kept(http: Http2) -> io::Result<()> {
    http.until(|_| false).await;
    Err(io::ErrorKind::ConnectionReset.into())
}

async fn resetting(
    from: IpAddr,
    to: SocketAddr,
    tally: &Tally,
    more: usize,
    patient: bool,
) -> io::Result<()> {
    const WAVE: usize = 50;
    let mut http = Http2::connect(from, to).await?;
    let mut opened = 0;
    while tally.more() {
        let wave: Vec<u32> =
            (0..WAVE).filter(|_| tally.one()).map(|_| http.open(false, more)).collect();
        if patient {
            http.flush().await?;
            opened += wave.len();
            http.until(|seen| seen.responses >= opened).await;
        }
        wave.into_iter().for_each(|stream| http.reset(stream));
        http.flush().await?;
    }
    Ok(())
}

/// Many connections at a time that say nothing, or one byte of what they should say after each pause.
async fn silent(
    from: IpAddr,
    to: SocketAddr,
    tally: &Tally,
    pause: Option<Duration>,
) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    while tally.one() {
        let Ok(mut stream) = connect(from, to).await else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        tasks.spawn(async move {
            if let Some(pause) = pause {
                for byte in PREFACE.iter().chain(&[0; 200]) {
                    if stream.write_all(&[*byte]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                }
            }
            let _ = stream.read(&mut [0]).await;
        });
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Sends this on stream after stream, several at a time, and keeps what is not refused.
async fn sending(
    from: IpAddr,
    to: SocketAddr,
    tally: &Tally,
    message: &[u8],
    whole: bool,
) -> io::Result<()> {
    let mut http = Http2::connect(from, to).await?;
    while tally.one() {
        let stream = http.open(!whole, 0);
        match http.send(stream, message).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            other => other?,
        }
    }
    kept(http).await
}
