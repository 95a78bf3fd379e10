//! Carries the `node-events` channel: PUB on nodes, SUB on the scheduler. Events may be lost, since only the
//! control poll keeps a session alive.

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

/// Limit on events waiting to be sent; further ones are dropped.
const QUEUED: usize = 256;
/// Limit on the events that a node publishes in each [`PERIOD`]; further ones are dropped.
const MAX_PUBLISHED: u32 = 40;
/// Limit on the events read from one node in each [`PERIOD`]; further ones wait in that node's connection.
const MAX_READ: u32 = 50;
/// The period of [`MAX_PUBLISHED`] and [`MAX_READ`].
const PERIOD: Duration = Duration::from_millis(200);
/// A connection is closed after this many consecutive periods at the limit: its queued events are outdated.
const MAX_FLOODED: u32 = 25;

/// Counts events in periods; a new period starts with the first event after the end of the last one.
#[derive(Debug)]
struct Period {
    ends: Instant,
    events: u32,
}

impl Period {
    fn begin() -> Self {
        Self { ends: Instant::now() + PERIOD, events: 0 }
    }

    /// Counts one event. If it starts a new period, returns the number of events in the last one.
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

/// The node's side of the channel. Dropping it closes the connection.
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

    /// Publishes `frame`, or drops it if too many events wait or were published in this period.
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

/// The scheduler's side of the channel. Dropping it closes the socket.
#[derive(Debug)]
pub struct EventSubscriber {
    incoming: mpsc::Receiver<Frame>,
    accepting: JoinHandle<()>,
    file: SocketFile,
}

impl EventSubscriber {
    /// Binds `address`, after removing a socket file that a killed process may have left.
    ///
    /// # Errors
    /// [`SocketError::Bind`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(address: &str, limits: &ConnectionLimits) -> Result<Self, SocketError> {
        let (listener, file) = Listener::bind(address, Kind::Subscriber, limits)?;
        let (incoming_tx, incoming) = mpsc::channel(QUEUED);
        let accepting = tokio::spawn(listener.accept(move |accepted| receive(accepted, incoming_tx.clone())));
        Ok(Self { incoming, accepting, file })
    }

    /// The socket's file.
    pub fn file(&mut self) -> &mut SocketFile {
        &mut self.file
    }

    /// Waits for the next event.
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

/// Forwards the events of one node, at most [`MAX_READ`] per [`PERIOD`], until it disconnects or floods.
async fn receive(accepted: Accepted, incoming: mpsc::Sender<Frame>) {
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
