//! A proxy between Envoy and weir that cuts connections, holds responses back, and makes the way long or narrow.
//!
//! It reads enough of HTTP/2 and gRPC to know where one message ends and the next begins, and what type a response is of.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Chunks that may be on their way in one direction.
const ON_THE_WAY: usize = 256;

/// What HTTP/2 clients send first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ToWeir,
    ToEnvoy,
}

/// When the connection breaks. Both ways count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Right after so many more messages.
    Messages(u64),
    /// Right after so many more bytes.
    Bytes(u64),
}

/// The proxy. Its connections end when it is dropped.
#[derive(Debug)]
pub(crate) struct Cutter {
    pub port: u16,
    shared: Arc<Shared>,
    closing: CancellationToken,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something that is waited for may have come about.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    delay: Duration,
    bytes_per_second: Option<u64>,
    cut: Option<Cut>,
    /// The type whose responses stay, with all that follows them.
    held: Option<String>,
    /// Whether one stays.
    holds: bool,
    refusing: bool,
    cuts: u64,
    connections: Vec<CancellationToken>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if holds(&self.lock()) {
                return;
            }
            changed.await;
        }
    }
}

impl Cutter {
    /// A proxy of weir's port.
    pub(crate) async fn start(to: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (shared, closing) = (Arc::<Shared>::default(), CancellationToken::new());
        let (state, stop) = (shared.clone(), closing.clone());
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = stop.cancelled() => return,
                };
                // An error here is a client that went away before it was taken.
                let Ok((envoy, _)) = accepted else { continue };
                let connection = stop.child_token();
                {
                    let mut state = state.lock();
                    if state.refusing {
                        continue;
                    }
                    state.connections.retain(|other| !other.is_cancelled());
                    state.connections.push(connection.clone());
                }
                tokio::spawn(serve(envoy, to, state.clone(), connection));
            }
        });
        Self { port, shared, closing }
    }

    /// How long every byte takes, each way.
    pub(crate) fn delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
    }

    /// How many bytes go each way in a second; as many as there are where none is given.
    pub(crate) fn throttle(&self, bytes_per_second: Option<u64>) {
        self.shared.lock().bytes_per_second = bytes_per_second;
    }

    /// Breaks the connection at that point, once.
    pub(crate) fn cut_after(&self, cut: Cut) {
        self.shared.lock().cut = Some(cut);
    }

    /// Breaks all connections now.
    pub(crate) fn cut(&self) {
        let mut state = self.shared.lock();
        state.cuts += 1;
        state.cut = None;
        state.connections.drain(..).for_each(|connection| connection.cancel());
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// Refuses new connections, or accepts them again.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.shared.lock().refusing = refuse;
    }

    /// Keeps the next response of this type, and all that follows on its connection, until [`Cutter::release`].
    pub(crate) fn hold(&self, type_url: &str) {
        self.shared.lock().held = Some(type_url.to_owned());
    }

    /// Lets go what is held.
    pub(crate) fn release(&self) {
        let mut state = self.shared.lock();
        (state.held, state.holds) = (None, false);
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// Waits until a response is held.
    pub(crate) async fn holding(&self) {
        self.shared.until(|state| state.holds).await;
    }

    /// How many times connections were broken.
    pub(crate) fn cuts(&self) -> u64 {
        self.shared.lock().cuts
    }

    /// Forgets every fault.
    pub(crate) fn heal(&self) {
        let mut state = self.shared.lock();
        (state.delay, state.bytes_per_second, state.cut, state.refusing) =
            (Duration::ZERO, None, None, false);
        drop(state);
        self.release();
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

async fn serve(envoy: TcpStream, to: u16, shared: Arc<Shared>, connection: CancellationToken) {
    let _ended = connection.clone().drop_guard();
    let Ok(weir) = TcpStream::connect(("127.0.0.1", to)).await else {
        return;
    };
    let _ = (envoy.set_nodelay(true), weir.set_nodelay(true));
    let ((from_envoy, to_envoy), (from_weir, to_weir)) = (envoy.into_split(), weir.into_split());
    let up = pass(from_envoy, to_weir, Way::ToWeir, &shared);
    let down = pass(from_weir, to_envoy, Way::ToEnvoy, &shared);
    // Dropping the halves closes both connections, with all that is still on its way.
    tokio::select! {
        () = up => {}
        () = down => {}
        () = connection.cancelled() => {}
    }
}

/// Passes bytes on in one direction until either end is gone or the connection is cut.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Way, shared: &Shared) {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    let read = async move {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count) = from.read(&mut buffer).await {
            let due = Instant::now() + shared.lock().delay;
            if count == 0 || sender.send((due, buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async {
        let mut frames = Frames::new(way);
        while let Some((due, chunk)) = chunks.recv().await {
            tokio::time::sleep_until(due).await;
            if !write_chunk(&mut to, &mut frames, &chunk, way, shared).await {
                return;
            }
        }
    };
    tokio::pin!(read, write);
    tokio::select! {
        () = &mut read => write.await,
        () = &mut write => {}
    }
}

/// Writes a chunk message by message; false where the connection is to end.
async fn write_chunk(
    to: &mut OwnedWriteHalf,
    frames: &mut Frames,
    chunk: &[u8],
    way: Way,
    shared: &Shared,
) -> bool {
    let mut rest = chunk;
    while !rest.is_empty() {
        let (count, message) = frames.next(rest);
        let (piece, after) = rest.split_at(count);
        rest = after;
        if let Some(kind) = message.as_deref().filter(|_| way == Way::ToEnvoy) {
            // The last byte of a response is what makes it one.
            let (head, last) = piece.split_at(piece.len() - 1);
            if !write_piece(to, head, None, shared).await {
                return false;
            }
            hold(kind, shared).await;
            if !write_piece(to, last, message.as_deref(), shared).await {
                return false;
            }
        } else if !write_piece(to, piece, message.as_deref(), shared).await {
            return false;
        }
    }
    true
}

/// Waits while a response of this type is to stay.
async fn hold(kind: &str, shared: &Shared) {
    let held = {
        let mut state = shared.lock();
        let held = state.held.as_deref() == Some(kind);
        state.holds |= held;
        held
    };
    if held {
        shared.changed.notify_waiters();
        shared.until(|state| !state.holds).await;
    }
}

/// Writes bytes, the last of which may end a message; false where the connection is to end there.
async fn write_piece(
    to: &mut OwnedWriteHalf,
    bytes: &[u8],
    ends: Option<&str>,
    shared: &Shared,
) -> bool {
    let (count, cut, pace) = {
        let mut state = shared.lock();
        let (count, cut) = match &mut state.cut {
            Some(Cut::Bytes(left)) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= count as u64;
                (count, *left == 0)
            }
            Some(Cut::Messages(left)) if ends.is_some() => {
                *left = left.saturating_sub(1);
                (bytes.len(), *left == 0)
            }
            _ => (bytes.len(), false),
        };
        (count, cut, state.bytes_per_second)
    };
    if to.write_all(&bytes[..count]).await.is_err() {
        return false;
    }
    if let Some(pace) = pace {
        tokio::time::sleep(Duration::from_secs_f64(count as f64 / pace as f64)).await;
    }
    if cut {
        let mut state = shared.lock();
        state.cut = None;
        state.cuts += 1;
        state.connections.drain(..).for_each(|connection| connection.cancel());
        drop(state);
        shared.changed.notify_waiters();
    }
    !cut
}

/// Where gRPC's messages end in the bytes of an HTTP/2 connection (RFC 9113, section 4.1; gRPC's "gRPC over HTTP2").
struct Frames {
    /// What is left of the client's preface.
    preface: usize,
    head: Vec<u8>,
    /// What is left of a frame's payload.
    payload: usize,
    /// The HTTP/2 stream that the payload belongs to, where it is data.
    stream: Option<u32>,
    messages: HashMap<u32, Vec<u8>>,
}

const FRAME_HEAD: usize = 9;
const MESSAGE_HEAD: usize = 5;
const DATA: u8 = 0;

/// The field that requests and responses of both variants say their type in.
#[derive(Clone, PartialEq, prost::Message)]
struct Typed {
    #[prost(string, tag = "4")]
    type_url: String,
}

impl Frames {
    fn new(way: Way) -> Self {
        let preface = if way == Way::ToWeir { PREFACE.len() } else { 0 };
        Self { preface, head: Vec::new(), payload: 0, stream: None, messages: HashMap::new() }
    }

    /// How many of these bytes belong together, and the type of the message that they end, if they do.
    fn next(&mut self, bytes: &[u8]) -> (usize, Option<String>) {
        let mut count = 0;
        while count < bytes.len() {
            let rest = &bytes[count..];
            if self.preface > 0 {
                let skipped = self.preface.min(rest.len());
                self.preface -= skipped;
                count += skipped;
            } else if self.payload == 0 {
                let taken = (FRAME_HEAD - self.head.len()).min(rest.len());
                self.head.extend_from_slice(&rest[..taken]);
                count += taken;
                self.begin_frame();
            } else {
                let (taken, message) = self.take_payload(rest);
                count += taken;
                if message.is_some() {
                    return (count, message);
                }
            }
        }
        (count, None)
    }

    fn begin_frame(&mut self) {
        if let [a, b, c, kind, flags, d, e, f, g] = self.head[..] {
            assert!(kind != DATA || flags & 0x8 == 0, "padded data");
            self.payload = u32::from_be_bytes([0, a, b, c]) as usize;
            self.stream = (kind == DATA).then(|| u32::from_be_bytes([d & 0x7f, e, f, g]));
            self.head.clear();
        }
    }

    /// Takes bytes of a payload, but none behind the end of a message.
    fn take_payload(&mut self, rest: &[u8]) -> (usize, Option<String>) {
        let all = self.payload.min(rest.len());
        let Some(stream) = self.stream else {
            self.payload -= all;
            return (all, None);
        };
        let message = self.messages.entry(stream).or_default();
        let mut taken = 0;
        if message.len() < MESSAGE_HEAD {
            taken = (MESSAGE_HEAD - message.len()).min(all);
            message.extend_from_slice(&rest[..taken]);
        }
        let mut ended = None;
        if let [_, a, b, c, d, ..] = message[..] {
            let length = MESSAGE_HEAD + u32::from_be_bytes([a, b, c, d]) as usize;
            let more = (length - message.len()).min(all - taken);
            message.extend_from_slice(&rest[taken..taken + more]);
            taken += more;
            if message.len() == length {
                let typed = Typed::decode(&message[MESSAGE_HEAD..]).unwrap_or_default();
                message.clear();
                ended = Some(typed.type_url);
            }
        }
        self.payload -= taken;
        (taken, ended)
    }
}
