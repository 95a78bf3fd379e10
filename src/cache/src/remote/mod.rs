//! A cache in a Redis server, which several web servers and programs share.
//!
//! Each value begins with a line of text that scripts compare: epoch, version, source and time by Redis' clock. A get
//! is one round trip; a put is one script, so that nothing comes between its comparison and its write.

mod entry;
mod link;
mod place;
mod publisher;
mod scripts;
mod subscriber;

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::sync::broadcast;

use lamagrid_config::CacheConfig;
use lamagrid_domain::TaskId;

use crate::cache::{Answer, CacheError, Epoch, Lookup, Moment, NOTICES, Notice, StateCache, Subscription};
use crate::freshness::{PUBLISH_PATIENCE, REFRESH, millis};
use crate::state::TaskState;
use link::Link;
use place::Place;
use subscriber::Subscriber;

pub use publisher::RedisPublisher;

/// The most tasks of one round trip; of further ones nothing is known.
const MAX_IDS: usize = 256;
/// How long a reader's copy is kept.
const READERS_KEEP: Duration = Duration::from_secs(600);

/// The states in a Redis server.
#[derive(Debug)]
pub struct Redis {
    place: Arc<Place>,
    link: Link,
    timeout: Duration,
    notices: broadcast::Sender<Notice>,
    subscriber: Subscriber,
}

impl Redis {
    /// Prepares a cache. It connects at its first use.
    #[must_use]
    pub fn new(config: &CacheConfig) -> Self {
        let place = Arc::new(Place::new(config));
        let (notices, _) = broadcast::channel(NOTICES);
        Self {
            link: Link::new(Arc::clone(&place)),
            place,
            timeout: Duration::from_millis(config.timeout_ms),
            notices,
            subscriber: Subscriber::default(),
        }
    }

    /// The scheduler's side, with a connection of its own.
    #[must_use]
    pub fn publisher(&self) -> RedisPublisher {
        RedisPublisher::new(Arc::clone(&self.place))
    }

    /// True while readers are connected.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    async fn look(&self, ids: &[TaskId]) -> Result<Lookup, CacheError> {
        let Some(mut connection) = self.link.connection() else { return Err(CacheError::Away) };
        let asked = &ids[..ids.len().min(MAX_IDS)];
        let mut pipe = redis::pipe();
        pipe.cmd("GETRANGE").arg(self.place.head_key()).arg(0).arg(entry::MAX_HEAD_BYTES);
        pipe.cmd("TIME");
        for id in asked {
            pipe.cmd("GETRANGE").arg(self.place.key(*id)).arg(0).arg(entry::MAX_BYTES);
        }
        let answer =
            tokio::time::timeout(self.timeout, pipe.query_async::<Vec<Value>>(&mut connection)).await;
        let values = match answer {
            Err(_) => {
                self.link.late();
                return Err(CacheError::Late);
            }
            Ok(Err(error)) => {
                self.link.failed(&error);
                return Err(CacheError::Refused(place::describe(&error)));
            }
            Ok(Ok(values)) => values,
        };
        match lookup(&values, ids) {
            Some(lookup) => {
                self.link.answered();
                Ok(lookup)
            }
            None => {
                self.link.unreadable();
                Err(CacheError::Refused("its answer cannot be read".to_owned()))
            }
        }
    }

    async fn put(&self, moment: Moment, states: &[TaskState]) -> Result<(), CacheError> {
        let Some(mut connection) = self.link.connection() else { return Err(CacheError::Away) };
        let mut call = scripts::FILL.prepare_invoke();
        call.key(self.place.head_key());
        call.arg(moment.epoch.to_string()).arg(moment.at_ms).arg(millis(REFRESH)).arg(millis(READERS_KEEP));
        for state in states.iter().take(MAX_IDS) {
            let Some(body) = state.encode() else { continue };
            call.key(self.place.key(state.info.id));
            call.arg(state.version().number()).arg(u8::from(state.is_queued())).arg(body);
        }
        match tokio::time::timeout(PUBLISH_PATIENCE, call.invoke_async::<()>(&mut connection)).await {
            Err(_) => Err(CacheError::Late),
            // A full server can still be read.
            Ok(Err(error)) => Err(CacheError::Refused(place::describe(&error))),
            Ok(Ok(())) => Ok(()),
        }
    }
}

/// Reads the answer to [`Redis::look`]; `None` if it is not that of a Redis server.
fn lookup(values: &[Value], ids: &[TaskId]) -> Option<Lookup> {
    let [Value::BulkString(head), time, entries @ ..] = values else { return None };
    let now_ms = place::clock_ms(time)?;
    let Some(epoch) = Epoch::parse(head) else { return Some(Lookup::empty(ids.len())) };
    let mut states = Vec::with_capacity(ids.len());
    for (id, value) in ids.iter().zip(entries) {
        let Value::BulkString(bytes) = value else { return None };
        states.push(entry::shown(bytes, epoch, now_ms).filter(|state| state.info.id == *id));
    }
    states.resize(ids.len(), None);
    Some(Lookup { states, moment: Some(Moment { epoch, at_ms: now_ms }) })
}

impl StateCache for Redis {
    fn get<'a>(&'a self, ids: &'a [TaskId]) -> Answer<'a, Lookup> {
        Box::pin(self.look(ids))
    }

    fn put_if_newer<'a>(&'a self, moment: Moment, states: &'a [TaskState]) -> Answer<'a, ()> {
        Box::pin(self.put(moment, states))
    }

    fn subscribe(&self) -> Subscription {
        let subscription = Subscription(self.notices.subscribe());
        self.subscriber.start(&self.place, &self.notices);
        subscription
    }
}
