//! `node-events`: PUB on nodes, SUB on the scheduler. Loss is harmless: the control poll alone keeps a session.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zeromq::prelude::*;
use zeromq::{PubSocket, ZmqMessage};

use lamagrid_protocol::frame::Frame;

use crate::connection::Kind;
use crate::endpoint::{SocketError, connect};
use crate::listener::{Accepted, ConnectionLimits, Listener, SocketFile};

/// Events waiting to be sent; more are dropped.
const QUEUED: usize = 256;
/// Events that a node publishes in each [`PERIOD`]; more are dropped.
const MAX_PUBLISHED: u32 = 40;
/// Events that are read from one node in each [`PERIOD`]: more than this is a flood, which waits in its own connection.
const MAX_READ: u32 = 50;
/// See [`MAX_PUBLISHED`] and [`MAX_READ`].
const PERIOD: Duration = Duration::from_millis(200);
/// Periods of a flood in a row after which its connection is closed: what waits in it is worth nothing.
const MAX_FLOODED: u32 = 25;

/// Counts events in periods that begin with the first event after the last one.
#[derive(Debug)]
struct Period {
    ends: Instant,
    events: u32,
}

impl Period {
    fn begin() -> Self {
        Self { ends: Instant::now() + PERIOD, events: 0 }
    }

    /// Counts one event. Gives how many there were in the last period if this is the first one of the next.
    fn count(&mut self) -> Option<u32> {
        let is_over = Instant::now() >= self.ends;
        let last = is_over.then_some(self.events);
        if is_over {
            *self = Self::begin();
        }
        self.events += 1;
        last
    }
}

/// A node's end. Dropping it closes the connection.
#[derive(Debug)]
pub struct EventPublisher {
    outgoing: mpsc::Sender<Frame>,
    period: Mutex<Period>,
    writer: JoinHandle<()>,
}

impl EventPublisher {
    /// Connects to `address` within `patience`.
    ///
    /// # Errors
    /// [`SocketError::Connect`] or [`SocketError::Silent`].
    pub async fn connect(address: &str, patience: Duration) -> Result<Self, SocketError> {
        let mut socket = PubSocket::new();
        connect(&mut socket, address, patience).await?;
        let (outgoing, mut outgoing_rx) = mpsc::channel::<Frame>(QUEUED);
        let writer = tokio::spawn(async move {
            while let Some(frame) = outgoing_rx.recv().await {
                let message = ZmqMessage::try_from(frame.into_parts()).expect("a message of ours has frames");
                if let Err(error) = socket.send(message).await {
                    tracing::trace!(%error, "event lost");
                }
            }
        });
        Ok(Self { outgoing, period: Mutex::new(Period::begin()), writer })
    }

    /// Publishes `frame`, or drops it when too many wait, or `MAX_PUBLISHED` were published in this `PERIOD`.
    pub fn publish(&self, frame: Frame) {
        let mut period = self.period.lock();
        period.count();
        if period.events <= MAX_PUBLISHED {
            // Events are lossy by design.
            let _ = self.outgoing.try_send(frame);
        }
    }
}

impl Drop for EventPublisher {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

/// The scheduler's end. Dropping it closes the socket.
#[derive(Debug)]
pub struct EventSubscriber {
    incoming: mpsc::Receiver<Frame>,
    accepting: JoinHandle<()>,
    file: SocketFile,
}

impl EventSubscriber {
    /// Binds `address`, after removing the socket file that a killed process may have left.
    ///
    /// # Errors
    /// [`SocketError::Bind`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(address: &str, limits: &ConnectionLimits) -> Result<Self, SocketError> {
        let (listener, file) = Listener::bind(address, Kind::Subscriber, limits)?;
        let (incoming_tx, incoming) = mpsc::channel(QUEUED);
        let accepting = tokio::spawn(listener.accept(move |accepted| hear(accepted, incoming_tx.clone())));
        Ok(Self { incoming, accepting, file })
    }

    /// Its file, by which others find it.
    pub fn file(&mut self) -> &mut SocketFile {
        &mut self.file
    }

    /// The next event.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn recv(&mut self) -> Option<Frame> {
        self.incoming.recv().await
    }
}

impl Drop for EventSubscriber {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Passes on what one node publishes, [`MAX_READ`] in each [`PERIOD`], until it closes the connection or floods it.
async fn hear(accepted: Accepted, incoming: mpsc::Sender<Frame>) {
    let Accepted { mut stream, mut inbox, slot: _slot, .. } = accepted;
    let (mut period, mut flooded) = (Period::begin(), 0);
    loop {
        if period.events == MAX_READ {
            tokio::time::sleep_until(period.ends).await;
        }
        let message = inbox.next(&mut stream).await;
        match period.count() {
            Some(MAX_READ) => flooded += 1,
            Some(_) => flooded = 0,
            None => {}
        }
        if flooded == MAX_FLOODED {
            return tracing::debug!("a node floods its events: the connection is closed");
        }
        match message {
            Ok(Some(parts)) => match Frame::from_parts(parts) {
                Ok(frame) => {
                    if incoming.send(frame).await.is_err() {
                        return;
                    }
                }
                Err(error) => tracing::debug!(%error, "bad event dropped"),
            },
            Ok(None) => return,
            Err(error) => return tracing::debug!(%error, "a publisher's connection ended"),
        }
    }
}
