//! Serves one connection: TLS, HTTP, and limits on its times.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use lamagrid_gate::Https;

use crate::places::Seat;

/// Upper bound of a request's head, in bytes.
pub(crate) const HEAD_BYTES: usize = 16 * 1024;
/// How long a request's head may take, the handshake of TLS, and the pause before the next request.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may last that does not use the API.
const SHORT_LIFE: Duration = Duration::from_secs(60);
/// How long a peer may read nothing of a response.
const UNREAD: Duration = Duration::from_secs(30);

/// Serves a connection to its end; `respond` answers its requests.
pub(crate) async fn serve<R, A>(stream: TcpStream, https: Option<Arc<Https>>, seat: Arc<Seat>, respond: R)
where
    R: Fn(Request) -> A,
    A: Future<Output = Response>,
{
    match https {
        None => speak(stream, &seat, respond).await,
        Some(https) => {
            // A peer's fault needs no action here.
            if let Ok(Ok(stream)) = tokio::time::timeout(HEAD_PATIENCE, https.accept(stream)).await {
                speak(stream, &seat, respond).await;
            }
        }
    }
}

async fn speak<S, R, A>(stream: S, seat: &Seat, respond: R)
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: Fn(Request) -> A,
    A: Future<Output = Response>,
{
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let answer = respond(request.map(Body::new));
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Impatient::new(stream, UNREAD)), service);
    let mut connection = pin!(connection);
    // Errors of a peer's connection, and its timeout, need no action here.
    if tokio::time::timeout(SHORT_LIFE, &mut connection).await.is_err() && seat.uses_api() {
        let _ = connection.await;
    }
}

/// A connection that ends if its peer reads nothing for a while.
struct Impatient<S> {
    stream: S,
    patience: Duration,
    until: Pin<Box<Sleep>>,
    is_waiting: bool,
}

impl<S> Impatient<S> {
    fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, until: Box::pin(tokio::time::sleep(patience)), is_waiting: false }
    }

    /// Measures how long a write waits.
    fn checked<T>(&mut self, wrote: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            self.is_waiting = false;
            return wrote;
        }
        if !self.is_waiting {
            let until = Instant::now() + self.patience;
            self.until.as_mut().reset(until);
            self.is_waiting = true;
        }
        self.until.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.checked(wrote, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.checked(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.checked(shut, context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_left_and_a_slow_one_is_not() {
        let (end, mut peer) = tokio::io::duplex(8);
        let patience = Duration::from_millis(400);
        let mut stream = Impatient::new(end, patience);
        let slow = tokio::spawn(async move {
            for _ in 0..4 {
                tokio::time::sleep(patience / 4).await;
                let mut bytes = [0; 8];
                tokio::io::AsyncReadExt::read_exact(&mut peer, &mut bytes).await.unwrap();
            }
            peer
        });
        stream.write_all(&[0; 40]).await.unwrap();
        let _peer = slow.await.unwrap();
        let began = Instant::now();
        assert_eq!(stream.write_all(&[0; 9]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= patience);
    }
}
