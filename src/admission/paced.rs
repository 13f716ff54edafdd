//! A socket whose client can neither monopolize a thread nor block weir forever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// How many bytes are read before yielding to other connections. They may contain more than a thousand requests.
const AT_ONCE: usize = 64 << 10;

/// A socket that yields after every [`AT_ONCE`] bytes and fails if its client reads nothing for too long.
#[derive(Debug)]
pub(super) struct Paced<S = TcpStream> {
    socket: S,
    /// How long its client may fail to read pending data.
    patience: Duration,
    /// The bytes read since the last yield.
    read: usize,
    /// Runs while the client does not read.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    pub(crate) fn new(socket: S, patience: Duration) -> Self {
        Self { socket, patience, read: 0, stalled: None }
    }

    /// Fails a write that has been pending for too long.
    fn in_time<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read >= AT_ONCE {
            self.read = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(context, buf);
        self.read = if polled.is_pending() { 0 } else { self.read + (buf.filled().len() - before) };
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, pieces);
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_endless_sender_does_not_starve_others() {
        let mut socket = Paced::new(tokio::io::repeat(7), Duration::MAX);
        let ran = Arc::new(AtomicBool::new(false));
        let other = ran.clone();
        tokio::spawn(async move { other.store(true, Ordering::Relaxed) });
        let mut buffer = vec![0; 1024];
        let mut read = 0;
        while !ran.load(Ordering::Relaxed) {
            read += socket.read(&mut buffer).await.unwrap();
            assert!(read <= 2 * AT_ONCE);
        }
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_disconnected() {
        let (_client, server) = tokio::io::duplex(16);
        let mut socket = Paced::new(server, Duration::from_millis(1));
        let failed = socket.write_all(&[0; 17]).await.unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_client_that_reads_slowly_stays_connected() {
        let (mut client, server) = tokio::io::duplex(1);
        let mut socket = Paced::new(server, Duration::from_secs(3600));
        let writing = tokio::spawn(async move {
            socket.write_all(&[0; 4]).await.unwrap();
            socket.stalled.is_some()
        });
        for _ in 0..4 {
            client.read_u8().await.unwrap();
        }
        assert!(!writing.await.unwrap(), "each byte that is read ends the wait");
    }
}
