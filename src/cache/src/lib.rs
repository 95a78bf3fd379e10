//! Copies of the tasks' states, for readers that must not ask the scheduler each time.
//!
//! The scheduler's store is the truth. The scheduler [publishes](Feed) each committed change into a [`StateCache`]:
//! a Redis server ([`Redis`]) that several web servers and programs share. Without one nothing is published. A
//! [`StateReader`] answers from the cache, and asks the scheduler for what the cache does not know. Whatever happens to
//! Redis, a reader gets the scheduler's answer instead; decision 0029 says why a copy is never wrong for long.
//!
//! Does not: hold pixels or parameters of tasks, or decide anything.
//!
//! Invariant: a state is shown only while an uninterrupted feed (an [`Epoch`]) vouches for it.

mod cache;
#[cfg(feature = "client")]
mod client_source;
mod feed;
mod feed_queue;
mod freshness;
mod reader;
mod remote;
mod seen;
mod state;

pub use cache::{
    Answer, CacheError, Epoch, Lookup, Moment, Notice, Publisher, StateCache, Subscription, Write,
};
#[cfg(feature = "client")]
pub use client_source::ClientSource;
pub use feed::{Feed, FeedFigures};
pub use feed_queue::Change;
pub use freshness::{MAX_STALE, REFRESH};
pub use reader::{ReaderFigures, StateReader, StateSource};
pub use remote::{Redis, RedisPublisher};
pub use state::{MAX_STATE_BYTES, TaskState, Version};
