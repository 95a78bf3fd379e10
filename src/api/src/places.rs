//! Counts connections: short ones, of which the oldest makes room for a new one, and those that use the API.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

/// Upper bound of short connections. A regular one lasts milliseconds, so the oldest of this many can be closed.
pub(crate) const SHORT: usize = 64;

struct Short {
    id: u64,
    connection: AbortHandle,
}

/// The connections of one server.
pub(crate) struct Places {
    short: Mutex<VecDeque<Short>>,
    api: Arc<Semaphore>,
}

/// One connection, which begins as a short one.
pub(crate) struct Seat {
    id: u64,
    places: Arc<Places>,
    api: OnceLock<OwnedSemaphorePermit>,
    has_asked: AtomicBool,
}

impl Places {
    pub(crate) fn new(max_api: usize) -> Self {
        Self { short: Mutex::default(), api: Arc::new(Semaphore::new(max_api)) }
    }

    /// True if all short places are taken.
    pub(crate) fn is_full(&self) -> bool {
        self.short.lock().len() >= SHORT
    }

    /// The place of a new connection.
    pub(crate) fn seat(self: &Arc<Self>, id: u64) -> Arc<Seat> {
        Arc::new(Seat {
            id,
            places: Arc::clone(self),
            api: OnceLock::new(),
            has_asked: AtomicBool::new(false),
        })
    }

    /// Counts a new connection, and closes the oldest short one if there is no room.
    pub(crate) fn enter(&self, id: u64, connection: AbortHandle) {
        let mut short = self.short.lock();
        // Closed ones leave by themselves, unless they were closed before they ran.
        short.retain(|each| !each.connection.is_finished());
        if short.len() >= SHORT
            && let Some(oldest) = short.pop_front()
        {
            oldest.connection.abort();
        }
        short.push_back(Short { id, connection });
    }

    fn leave(&self, id: u64) {
        self.short.lock().retain(|each| each.id != id);
    }
}

impl Seat {
    /// Makes the connection one that uses the API, for as long as it lasts. False if there are too many.
    pub(crate) fn use_api(&self) -> bool {
        if self.uses_api() {
            return true;
        }
        let Ok(permit) = Arc::clone(&self.places.api).try_acquire_owned() else { return false };
        self.places.leave(self.id);
        // Requests of one connection come one after the other, so it is empty.
        self.api.set(permit).is_ok()
    }

    /// Begins a request; true if it is not the connection's first one.
    pub(crate) fn asks_again(&self) -> bool {
        self.has_asked.swap(true, Ordering::Relaxed)
    }

    /// True once it has used the API.
    pub(crate) fn uses_api(&self) -> bool {
        self.api.get().is_some()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.uses_api() {
            self.places.leave(self.id);
        }
    }
}
