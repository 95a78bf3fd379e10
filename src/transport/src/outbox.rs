//! Queues the messages that wait for one peer, bounded in number and bytes, per peer and in total.
//!
//! A peer that does not read fills its own outbox and is disconnected. If all outboxes together exceed their
//! limit, the peer that has not read for the longest time is disconnected. Sending never blocks, so that a
//! slow peer does not delay others.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;

use lamagrid_protocol::frame::Frame;

/// Limit on the bytes that wait for one peer. Including buffers, a peer that does not read costs less than 8 MiB.
const MAX_BYTES: usize = 4 << 20;
/// Limit on the bytes that wait for all peers of one process.
pub(crate) const MAX_TOTAL_BYTES: usize = 24 << 20;
/// Memory overhead of a message in bytes: its header has a buffer of 512, and the queue doubles when it grows.
const MESSAGE_COST: usize = 768;
/// Below this, a peer that was watched counts as drained, and its sender resumes large messages.
const DRAINED_BYTES: usize = 1 << 20;

/// The total of all outboxes of one process. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct OutboxBudget(Arc<Outboxes>);

#[derive(Debug, Default)]
struct Outboxes {
    bytes: AtomicUsize,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Weak<Shared>>>,
}

impl OutboxBudget {
    /// Bytes that wait for all peers.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Creates an outbox whose bytes count towards this total.
    pub(crate) fn outbox(&self) -> Outbox {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let state = State {
            waiting: VecDeque::new(),
            queued: 0,
            writing: 0,
            closed: false,
            progress_at: Instant::now(),
            watched: false,
        };
        let shared = Shared {
            id,
            all: Arc::clone(&self.0),
            state: Mutex::new(state),
            pushed: Notify::default(),
            closed: Notify::default(),
        };
        let outbox = Outbox(Arc::new(shared));
        self.0.open.lock().insert(id, Arc::downgrade(&outbox.0));
        outbox
    }

    /// Closes the outboxes whose peers have not read for the longest time, until the total is within the limit.
    fn shed(&self) {
        while self.bytes() > MAX_TOTAL_BYTES {
            let open: Vec<_> = self.0.open.lock().values().filter_map(Weak::upgrade).collect();
            let idle_since = |shared: &Arc<Shared>| {
                let state = shared.state.lock();
                (state.queued > 0).then_some(state.progress_at)
            };
            let Some((_, idle)) = open
                .iter()
                .filter_map(|shared| Some((idle_since(shared)?, shared)))
                .min_by_key(|(since, _)| *since)
            else {
                return;
            };
            Outbox(Arc::clone(idle)).close();
        }
    }
}

/// The outbox of one connection. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Outbox(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    id: u64,
    all: Arc<Outboxes>,
    state: Mutex<State>,
    /// Signals a new message.
    pushed: Notify,
    closed: Notify,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<Frame>,
    /// Cost of the waiting messages, in bytes.
    queued: usize,
    /// Cost of the messages being written, in bytes.
    writing: usize,
    closed: bool,
    /// When the peer last took bytes, or when the empty outbox got its first message.
    progress_at: Instant,
    /// True if the sender asked for a signal when the outbox has drained.
    watched: bool,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.all.open.lock().remove(&self.id);
        let state = self.state.get_mut();
        self.all.bytes.fetch_sub(state.queued + state.writing, Ordering::Relaxed);
    }
}

impl Outbox {
    /// Queues a message. Returns false if the outbox is full, which closes it, or was already closed.
    pub(crate) fn push(&self, frame: Frame) -> bool {
        let cost = cost(&frame);
        {
            let mut state = self.0.state.lock();
            if state.closed {
                return false;
            }
            if state.queued + state.writing == 0 {
                state.progress_at = Instant::now();
            }
            if state.queued + state.writing + cost <= MAX_BYTES {
                state.queued += cost;
                state.waiting.push_back(frame);
            } else {
                drop(state);
                self.close();
                return false;
            }
        }
        let all = self.0.all.bytes.fetch_add(cost, Ordering::Relaxed) + cost;
        self.0.pushed.notify_one();
        if all > MAX_TOTAL_BYTES {
            OutboxBudget(Arc::clone(&self.0.all)).shed();
        }
        true
    }

    /// Closes the outbox, which ends the connection, and drops the waiting messages.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut state = self.0.state.lock();
            state.closed = true;
            self.0.all.bytes.fetch_sub(std::mem::take(&mut state.queued), Ordering::Relaxed);
            std::mem::take(&mut state.waiting)
        };
        drop(dropped);
        self.0.closed.notify_one();
    }

    /// Waits until the outbox is closed. For one waiting task only.
    pub(crate) async fn closed(&self) {
        while !self.0.state.lock().closed {
            self.0.closed.notified().await;
        }
    }

    /// Bytes that the peer has not taken yet.
    pub(crate) fn bytes(&self) -> usize {
        let state = self.0.state.lock();
        state.queued + state.writing
    }

    /// Requests that [`Outbox::written`] reports once when the peer has read most of the bytes. Returns false if too few wait.
    pub(crate) fn watch(&self) -> bool {
        let mut state = self.0.state.lock();
        state.watched = state.queued + state.writing > DRAINED_BYTES && !state.closed;
        state.watched
    }

    /// Waits for the next message; returns it with its cost. For one waiting task only.
    ///
    /// # Cancel safety
    /// Safe: a message is taken in the last step.
    pub(crate) async fn next(&self) -> (Frame, usize) {
        loop {
            if let Some(next) = self.next_small(usize::MAX) {
                return next;
            }
            self.0.pushed.notified().await;
        }
    }

    /// Takes the next message if one waits and its cost is at most `most`.
    pub(crate) fn next_small(&self, most: usize) -> Option<(Frame, usize)> {
        let mut state = self.0.state.lock();
        let frame = state.waiting.pop_front_if(|frame| cost(frame) <= most)?;
        let cost = cost(&frame);
        state.queued -= cost;
        state.writing += cost;
        Some((frame, cost))
    }

    /// Records that the peer took some bytes.
    pub(crate) fn progressed(&self) {
        self.0.state.lock().progress_at = Instant::now();
    }

    /// Records that messages of this cost were written. Returns true if the sender asked for a signal and it is due.
    pub(crate) fn written(&self, cost: usize) -> bool {
        self.0.all.bytes.fetch_sub(cost, Ordering::Relaxed);
        let mut state = self.0.state.lock();
        state.writing -= cost;
        let is_drained = state.watched && state.queued + state.writing <= DRAINED_BYTES;
        state.watched &= !is_drained;
        is_drained
    }
}

/// Memory charged for a message, in bytes.
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
    fn a_full_outbox_closes_and_frees_its_messages() {
        let budget = OutboxBudget::default();
        for len in [0, 1_000, 1 << 20] {
            let outbox = budget.outbox();
            let pushed = (0..MAX_BYTES).take_while(|_| outbox.push(frame(len))).count();
            assert_eq!(pushed, MAX_BYTES / (len + MESSAGE_COST));
            assert_eq!((outbox.0.state.lock().waiting.capacity(), budget.bytes()), (0, 0));
            assert!(!outbox.push(frame(0)), "it stays closed");
        }
        assert!(budget.0.open.lock().is_empty());
    }

    #[tokio::test]
    async fn a_watched_outbox_reports_once_when_it_has_drained() {
        let outbox = OutboxBudget::default().outbox();
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

    #[tokio::test]
    async fn above_the_total_limit_idle_peers_are_disconnected_first() {
        let budget = OutboxBudget::default();
        let (deaf, honest): (Vec<_>, Vec<_>) =
            ((0..100).map(|_| budget.outbox()).collect(), (0..2).map(|_| budget.outbox()).collect());
        for _ in 0..16 {
            for outbox in deaf.iter().chain(&honest) {
                outbox.push(frame(100_000));
            }
            for outbox in &honest {
                let (_, cost) = outbox.next().await;
                outbox.progressed();
                outbox.written(cost);
            }
            assert!(budget.bytes() <= MAX_TOTAL_BYTES);
        }
        let closed = |outbox: &&Outbox| outbox.0.state.lock().closed;
        assert_eq!(honest.iter().filter(closed).count(), 0);
        assert!(deaf.iter().filter(closed).count() > 80);
        drop((deaf, honest));
        assert_eq!(budget.bytes(), 0);
    }
}
