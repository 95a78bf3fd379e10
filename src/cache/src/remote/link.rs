//! A reader's connection: short waits, and none at all while the server is away.
//!
//! No reader waits for a connection: it is made by a task of its own, with growing pauses. A server that answers late
//! twice in a row counts as away.

use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use parking_lot::Mutex;
use redis::RedisError;
use redis::aio::MultiplexedConnection;

use lamagrid_process::Backoff;

use super::place::{Connected, Place, describe};

/// Pauses between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Consecutive late answers after which the server counts as away.
const MAX_LATE: u32 = 2;

#[derive(Debug)]
enum State {
    Idle,
    Connecting,
    Up { connection: MultiplexedConnection, late: u32 },
}

#[derive(Debug)]
struct Shared {
    place: Arc<Place>,
    state: Mutex<State>,
    /// Whether the last log line said that the cache answers.
    was_told: Mutex<Option<bool>>,
    /// Grows until a look-up is answered: a server may accept connections and refuse the commands.
    backoff: Mutex<Backoff>,
}

/// The connection of a process's readers.
#[derive(Debug)]
pub(super) struct Link(Arc<Shared>);

impl Link {
    pub(super) fn new(place: Arc<Place>) -> Self {
        Self(Arc::new(Shared {
            place,
            state: Mutex::new(State::Idle),
            was_told: Mutex::default(),
            backoff: Mutex::new(Backoff::new(FIRST_PAUSE, LONGEST_PAUSE)),
        }))
    }

    /// The connection; `None` while one is being made.
    pub(super) fn connection(&self) -> Option<MultiplexedConnection> {
        let mut state = self.0.state.lock();
        match &*state {
            State::Up { connection, .. } => return Some(connection.clone()),
            State::Connecting => return None,
            State::Idle => {}
        }
        *state = State::Connecting;
        drop(state);
        tokio::spawn(connect(Arc::downgrade(&self.0)));
        None
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(*self.0.state.lock(), State::Up { .. })
    }

    pub(super) fn answered(&self) {
        if let State::Up { late, .. } = &mut *self.0.state.lock() {
            *late = 0;
        }
        self.0.tell_up();
    }

    pub(super) fn late(&self) {
        if let State::Up { late, .. } = &mut *self.0.state.lock() {
            *late += 1;
            if *late < MAX_LATE {
                return;
            }
        }
        self.lose("it does not answer in time");
    }

    pub(super) fn failed(&self, error: &RedisError) {
        self.lose(&describe(error));
    }

    pub(super) fn unreadable(&self) {
        self.lose("its answer cannot be read");
    }

    fn lose(&self, reason: &str) {
        let was_up = {
            let mut state = self.0.state.lock();
            let was_up = matches!(*state, State::Up { .. });
            if was_up {
                *state = State::Connecting;
            }
            was_up
        };
        if was_up {
            self.0.tell_away(reason);
            tokio::spawn(connect(Arc::downgrade(&self.0)));
        }
    }
}

impl Shared {
    fn tell_away(&self, reason: &str) {
        if self.was_told.lock().replace(false) != Some(false) {
            tracing::warn!(cache = %self.place.name(), reason,
                "the cache of states is away: the scheduler is asked until it is back");
        }
    }

    fn tell_up(&self) {
        if self.was_told.lock().replace(true) != Some(true) {
            self.backoff.lock().reset();
            tracing::info!(cache = %self.place.name(), "the cache of states answers");
        }
    }
}

/// Connects, however long it takes, while the link is in use.
async fn connect(link: Weak<Shared>) {
    loop {
        let Some(shared) = link.upgrade() else { return };
        let is_first = shared.was_told.lock().is_none();
        let pause = shared.backoff.lock().pause();
        let place = Arc::clone(&shared.place);
        drop(shared);
        if !is_first {
            tokio::time::sleep(pause).await;
        }
        let connected = place.connect().await;
        let Some(shared) = link.upgrade() else { return };
        match connected {
            Ok(Connected { connection, .. }) => {
                *shared.state.lock() = State::Up { connection, late: 0 };
                return;
            }
            Err(error) => shared.tell_away(&error.to_string()),
        }
    }
}
