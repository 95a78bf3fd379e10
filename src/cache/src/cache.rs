//! The interface of every cache of states.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use lamagrid_domain::TaskId;
use lamagrid_process::random_id;

use crate::state::{TaskState, Version};

/// Notices kept for a slow subscriber.
pub(crate) const NOTICES: usize = 1_024;

/// A pending answer of a cache.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, CacheError>> + Send + 'a>>;

/// Why a cache gave no answer. Readers ask the scheduler then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// It is not connected; a connection is being made.
    #[error("the cache is away")]
    Away,
    /// It did not answer in time.
    #[error("the cache did not answer in time")]
    Late,
    /// It refused, or its answer cannot be read.
    #[error("{0}")]
    Refused(String),
}

/// One uninterrupted feed of the scheduler's changes. After an interruption a new one begins, and the states of the
/// earlier ones are not shown any more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Epoch([u8; 16]);

impl Epoch {
    pub(crate) fn draw() -> Self {
        Self(random_id())
    }

    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() == 32)?;
        u128::from_str_radix(text, 16).ok().map(|number| Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// When a reader looked: states that it asked the scheduler for afterwards may be put into the same epoch, soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub(crate) epoch: Epoch,
    /// By the cache's own clock, in milliseconds.
    pub(crate) at_ms: u64,
}

/// The answer to [`StateCache::get`].
#[derive(Debug, Clone, PartialEq)]
pub struct Lookup {
    /// For each id its state; `None` where the cache knows none that may be shown.
    pub states: Vec<Option<TaskState>>,
    /// For [`StateCache::put_if_newer`]; `None` while no feed vouches for the cache.
    pub moment: Option<Moment>,
}

impl Lookup {
    /// Nothing is known of `ids` tasks.
    pub(crate) fn empty(ids: usize) -> Self {
        Self { states: vec![None; ids], moment: None }
    }
}

/// Something that subscribers hear.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// A task has a new state.
    Changed(Arc<TaskState>),
    /// Notices were lost: look at the states again.
    Gap,
}

/// Hears the changes of all owners' tasks, oldest first. Compare [`TaskState::owner`] before a change is shown.
#[derive(Debug)]
pub struct Subscription(pub(crate) broadcast::Receiver<Notice>);

impl Subscription {
    /// Waits for the next notice; `None` if the cache was dropped.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Option<Notice> {
        match self.0.recv().await {
            Ok(notice) => Some(notice),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Notice::Gap),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Copies of states, as readers use them.
pub trait StateCache: fmt::Debug + Send + Sync {
    /// The states of tasks, in one round trip.
    fn get<'a>(&'a self, ids: &'a [TaskId]) -> Answer<'a, Lookup>;

    /// Puts in what the scheduler told after `moment`, unless something as new is there or the moment is past.
    fn put_if_newer<'a>(&'a self, moment: Moment, states: &'a [TaskState]) -> Answer<'a, ()>;

    /// Subscribes to the changes from now on. Call it inside a tokio runtime.
    fn subscribe(&self) -> Subscription;
}

/// One change to publish.
#[derive(Debug, Clone)]
pub struct Write {
    /// The task.
    pub id: TaskId,
    /// The place of its state.
    pub version: Version,
    /// The state; `None` hides the task: it was removed, or its state is too large.
    pub state: Option<TaskState>,
    /// How long the copy is kept.
    pub keep: Duration,
}

/// The scheduler's side of a cache. An error interrupts the epoch: nothing counts until the next [`Publisher::begin`].
pub trait Publisher: Send {
    /// Begins a new epoch, in which nothing is known yet.
    fn begin(&mut self) -> Answer<'_, ()>;

    /// Publishes changes, oldest first, and vouches for the whole epoch; with none it only vouches.
    fn publish<'a>(&'a mut self, writes: &'a [Write]) -> Answer<'a, ()>;

    /// Changes were lost: withdraws the epoch, if possible at once.
    fn interrupt(&mut self) -> Answer<'_, ()>;
}
