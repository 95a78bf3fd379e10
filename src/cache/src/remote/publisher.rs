//! The scheduler's side: one connection is one epoch.
//!
//! A server that was restarted, restored or replaced breaks the connection, so that what it then holds counts no more.

use std::sync::Arc;
use std::time::Instant;

use redis::aio::MultiplexedConnection;

use super::place::{Connected, Place, describe};
use super::scripts;
use crate::cache::{Answer, CacheError, Epoch, Publisher, Write};
use crate::freshness::{LATEST, LIFE, PUBLISH_PATIENCE, millis};

/// The most changes of one script, which must not keep Redis from its other clients.
const BATCH: usize = 128;

/// Publishes into a Redis server.
#[derive(Debug)]
pub struct RedisPublisher {
    place: Arc<Place>,
    session: Option<Session>,
}

/// Invariant: every change since `epoch` began was written over this connection.
#[derive(Debug)]
struct Session {
    connection: MultiplexedConnection,
    epoch: Epoch,
    /// Redis' clock, and when it showed that.
    clock_ms: u64,
    read_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Begin,
    GoOn,
}

impl Session {
    /// Redis' clock now.
    fn now_ms(&self) -> u64 {
        self.clock_ms + millis(self.read_at.elapsed())
    }

    async fn call(&mut self, place: &Place, step: Step, writes: &[Write]) -> Result<(), CacheError> {
        let mut call = scripts::FEED.prepare_invoke();
        call.key(place.head_key());
        call.arg(self.epoch.to_string()).arg(u8::from(step == Step::Begin));
        call.arg(self.now_ms()).arg(millis(LATEST)).arg(millis(LIFE)).arg(place.channel());
        for write in writes {
            call.key(place.key(write.id));
            call.arg(write.version.number()).arg(millis(write.keep).max(1));
            // Without a state, or with one that is too large, readers ask the scheduler.
            call.arg(write.state.as_ref().and_then(|state| state.encode()).unwrap_or_default());
        }
        let answer =
            tokio::time::timeout(PUBLISH_PATIENCE, call.invoke_async::<(u64, String)>(&mut self.connection));
        let (clock_ms, word) = match answer.await {
            Err(_) => return Err(CacheError::Late),
            Ok(Err(error)) => return Err(CacheError::Refused(describe(&error))),
            Ok(Ok(answer)) => answer,
        };
        (self.clock_ms, self.read_at) = (clock_ms, Instant::now());
        match word.as_str() {
            "ok" => Ok(()),
            "superseded" => Err(CacheError::Refused(
                "another scheduler writes there; grids that share a Redis need different values of cache.prefix"
                    .to_owned(),
            )),
            _ => Err(CacheError::Late),
        }
    }
}

impl RedisPublisher {
    pub(super) fn new(place: Arc<Place>) -> Self {
        Self { place, session: None }
    }

    async fn start(&mut self) -> Result<(), CacheError> {
        self.session = None;
        let Connected { connection, clock_ms } = self.place.connect().await?;
        let mut session = Session { connection, epoch: Epoch::draw(), clock_ms, read_at: Instant::now() };
        session.call(&self.place, Step::Begin, &[]).await?;
        self.session = Some(session);
        Ok(())
    }

    async fn write(&mut self, writes: &[Write]) -> Result<(), CacheError> {
        let Some(session) = &mut self.session else { return Err(CacheError::Away) };
        if writes.is_empty() {
            return session.call(&self.place, Step::GoOn, &[]).await;
        }
        for batch in writes.chunks(BATCH) {
            session.call(&self.place, Step::GoOn, batch).await?;
        }
        Ok(())
    }

    async fn withdraw(&mut self) -> Result<(), CacheError> {
        let Some(mut session) = self.session.take() else { return Ok(()) };
        let mut call = scripts::WITHDRAW.prepare_invoke();
        call.key(self.place.head_key()).arg(session.epoch.to_string());
        match tokio::time::timeout(PUBLISH_PATIENCE, call.invoke_async::<()>(&mut session.connection)).await {
            Err(_) => Err(CacheError::Late),
            Ok(Err(error)) => Err(CacheError::Refused(describe(&error))),
            Ok(Ok(())) => Ok(()),
        }
    }
}

impl Publisher for RedisPublisher {
    fn begin(&mut self) -> Answer<'_, ()> {
        Box::pin(self.start())
    }

    fn publish<'a>(&'a mut self, writes: &'a [Write]) -> Answer<'a, ()> {
        Box::pin(self.write(writes))
    }

    fn interrupt(&mut self) -> Answer<'_, ()> {
        Box::pin(self.withdraw())
    }
}
