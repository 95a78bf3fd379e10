//! The messages that wait for one peer to read them, bounded in number and in bytes.
//!
//! A peer that does not read fills its own outbox and is disconnected then. Sending never waits, so that it delays
//! no other peer.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::frame::Frame;

/// Bytes that wait for one peer; with its buffers a peer that does not read costs less than 8 MiB.
const MAX_BYTES: usize = 4 << 20;
/// What a message costs beside its bytes.
const MESSAGE_COST: usize = 256;
/// A sender that holds large messages back goes on below this.
const DRAINED_BYTES: usize = 1 << 20;

/// The outbox of one connection. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outbox(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// A message is waiting.
    pushed: Notify,
    closed: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Frame>,
    /// Of the waiting messages and of those that are being written.
    bytes: usize,
    closed: bool,
    /// The sender wants to know when the peer has read most of it.
    watched: bool,
}

impl Outbox {
    /// Queues a message. False if the outbox is full, which closes it, or if it was closed before.
    pub(crate) fn push(&self, frame: Frame) -> bool {
        let mut state = self.0.state.lock();
        if state.closed {
            return false;
        }
        state.bytes += cost(&frame);
        if state.bytes > MAX_BYTES {
            state.closed = true;
            state.waiting = VecDeque::new();
        } else {
            state.waiting.push_back(frame);
        }
        let is_open = !state.closed;
        drop(state);
        if is_open {
            self.0.pushed.notify_one()
        } else {
            self.0.closed.notify_one()
        }
        is_open
    }

    /// Ends the connection; what waits is dropped.
    pub(crate) fn close(&self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        state.waiting = VecDeque::new();
        drop(state);
        self.0.closed.notify_one();
    }

    /// Waits until the outbox is closed. One task may wait.
    pub(crate) async fn closed(&self) {
        while !self.0.state.lock().closed {
            self.0.closed.notified().await;
        }
    }

    /// Bytes that the peer has not taken yet.
    pub(crate) fn bytes(&self) -> usize {
        self.0.state.lock().bytes
    }

    /// Has [`Outbox::written`] tell once when the peer has read most of what waits. False if there is too little to
    /// wait for.
    pub(crate) fn watch(&self) -> bool {
        let mut state = self.0.state.lock();
        state.watched = state.bytes > DRAINED_BYTES && !state.closed;
        state.watched
    }

    /// The next message, with its cost. One task may wait.
    ///
    /// # Cancel safety
    /// Safe: a message is taken at the last step.
    pub(crate) async fn next(&self) -> (Frame, usize) {
        loop {
            if let Some(next) = self.next_small(usize::MAX) {
                return next;
            }
            self.0.pushed.notified().await;
        }
    }

    /// The next message if one waits whose cost is at most this.
    pub(crate) fn next_small(&self, most: usize) -> Option<(Frame, usize)> {
        let frame = self.0.state.lock().waiting.pop_front_if(|frame| cost(frame) <= most)?;
        let cost = cost(&frame);
        Some((frame, cost))
    }

    /// Messages of this cost have reached the socket. True if the sender is to be told that there is room again.
    pub(crate) fn written(&self, cost: usize) -> bool {
        let mut state = self.0.state.lock();
        state.bytes -= cost;
        let is_drained = state.watched && state.bytes <= DRAINED_BYTES;
        state.watched &= !is_drained;
        is_drained
    }
}

/// Memory that a message is counted with, in bytes.
fn cost(frame: &Frame) -> usize {
    MESSAGE_COST + frame.header.len() + frame.blobs.iter().map(bytes::Bytes::len).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn frame(len: usize) -> Frame {
        Frame { kind: 1, header: Bytes::new(), blobs: vec![Bytes::from(vec![7; len])] }
    }

    #[test]
    fn a_full_outbox_closes_and_holds_nothing() {
        for len in [0, 1_000, 1 << 20] {
            let outbox = Outbox::default();
            let pushed = (0..MAX_BYTES).take_while(|_| outbox.push(frame(len))).count();
            assert_eq!(pushed, MAX_BYTES / (len + MESSAGE_COST));
            assert_eq!(outbox.0.state.lock().waiting.capacity(), 0);
            assert!(!outbox.push(frame(0)), "it stays closed");
        }
    }

    #[tokio::test]
    async fn room_is_told_once_when_most_was_written() {
        let outbox = Outbox::default();
        assert!(!outbox.watch(), "there is room at once");
        for _ in 0..30 {
            assert!(outbox.push(frame(100_000)));
        }
        assert!(outbox.watch());
        let mut told = Vec::new();
        for n in 1..=30 {
            let (_, cost) = outbox.next().await;
            told.extend(outbox.written(cost).then_some(n));
        }
        let left = DRAINED_BYTES / (100_000 + MESSAGE_COST);
        assert_eq!(told, [30 - left]);
        assert_eq!(outbox.bytes(), 0);
    }
}
